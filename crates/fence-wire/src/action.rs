// SPDX-License-Identifier: GPL-2.0-or-later
//! Actions of requests.

use core::fmt;

/// Action of a request, with its number on the wire.
///
/// `metadata` and `validate-all` never leave the agent, so they are not here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Action {
    /// Do nothing: the request only proves that the path works.
    Null = 0,
    /// Power the domain off, hard.
    Off = 1,
    /// Power the domain off, hard, and start it again.
    Reboot = 2,
    /// Start the domain.
    On = 3,
    /// Return whether the domain is on or off.
    Status = 4,
    /// Return whether the host can do its work ("device status").
    Monitor = 5,
    /// List the domains that the source may fence.
    List = 6,
}

impl Action {
    /// Every action, in the order of its number.
    pub const ALL: [Self; 7] =
        [Self::Null, Self::Off, Self::Reboot, Self::On, Self::Status, Self::Monitor, Self::List];

    /// Returns the byte on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the name on command lines and in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Off => "off",
            Self::Reboot => "reboot",
            Self::On => "on",
            Self::Status => "status",
            Self::Monitor => "monitor",
            Self::List => "list",
        }
    }

    /// Returns whether the action takes a domain down. Such requests can leave a cluster without a survivor.
    #[must_use]
    pub fn is_destructive(self) -> bool {
        matches!(self, Self::Off | Self::Reboot)
    }

    /// Returns whether the action changes the power of a domain.
    #[must_use]
    pub fn changes_state(self) -> bool {
        matches!(self, Self::Off | Self::Reboot | Self::On)
    }

    /// Returns whether the action is about one domain and so needs a target.
    #[must_use]
    pub fn needs_target(self) -> bool {
        matches!(self, Self::Off | Self::Reboot | Self::On | Self::Status)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Error for an action byte that does not exist on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown action {0}")]
pub struct UnknownAction(pub u8);

impl TryFrom<u8> for Action {
    type Error = UnknownAction;

    fn try_from(number: u8) -> Result<Self, UnknownAction> {
        Self::ALL.get(usize::from(number)).copied().ok_or(UnknownAction(number))
    }
}
