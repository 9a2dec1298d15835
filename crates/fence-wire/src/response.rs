// SPDX-License-Identifier: GPL-2.0-or-later
//! How a request ended, as one byte.

use core::fmt;

/// The byte that stands before a host list, in the place of a [`Response`].
pub const HOST_LIST_FOLLOWS: u8 = 253;

/// How a request ended. The number is both the byte on the wire and the agent's exit code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Response {
    /// Done; for a status: the domain is on.
    Success = 0,
    /// Not done, or not known to be done.
    Failure = 1,
    /// Status only: the domain is off.
    Off = 2,
    /// The asker may not fence this domain.
    PermissionDenied = 3,
}

impl Response {
    /// The byte on the wire, and the agent's exit code.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What a byte on the wire means; none for bytes that mean nothing (253 included: see
    /// [`HOST_LIST_FOLLOWS`]).
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
