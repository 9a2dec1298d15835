// SPDX-License-Identifier: GPL-2.0-or-later
//! Response: the result of a request, as one byte.

use core::fmt;

/// Byte before a host list, in the place of a [`Response`].
pub const HOST_LIST_FOLLOWS: u8 = 253;

/// Byte before a forecast, in the place of a [`Response`]: only in the sealed answer to a question what an
/// action would do.
pub(crate) const FORECAST_FOLLOWS: u8 = 252;
/// Words of a forecast that can't be told before the action is done.
pub const FORECAST_UNCERTAIN: &str = "can't say before it is done";
/// Byte before a reason, in the place of a [`Response`]: only in the sealed answer to a client that wants it.
pub(crate) const REASON_FOLLOWS: u8 = 254;
/// Longest reason in bytes; a longer one is cut.
pub const REASON_MAX: usize = 1024;

/// Result of a request. The number is both the byte on the wire and the agent's exit code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Response {
    /// Done; for a status check: the domain is on.
    Success = 0,
    /// Not done, or not known to be done.
    Failure = 1,
    /// Status check only: the domain is off.
    Off = 2,
    /// The source may not fence this domain.
    PermissionDenied = 3,
}

impl Response {
    /// Returns the byte on the wire, which is also the agent's exit code.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the response of a byte on the wire; none for bytes without a meaning (252 to
    /// 254 included: a forecast, a list or a reason follows these).
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Success,
            1 => Self::Failure,
            2 => Self::Off,
            3 => Self::PermissionDenied,
            _ => return None,
        })
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Off => "off",
            Self::PermissionDenied => "permission denied",
        })
    }
}
