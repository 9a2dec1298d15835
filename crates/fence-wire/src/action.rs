// SPDX-License-Identifier: GPL-2.0-or-later
//! What a request asks for.

use core::fmt;

/// What a request asks for, with its number on the wire.
///
/// `metadata` and `validate-all` never leave the agent and so are not here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Action {
    /// Nothing: a request that only proves that the path works.
    Null = 0,
    /// Power the domain off, hard.
    Off = 1,
    /// Power the domain off, hard, and start it again.
    Reboot = 2,
    /// Start the domain.
    On = 3,
    /// Tell whether the domain is on or off.
    Status = 4,
    /// Tell whether the host can do its work ("device status").
    Monitor = 5,
    /// List the domains that the asker may fence.
    List = 6,
}

impl Action {
    /// Every action, in the order of its number.
    pub const ALL: [Self; 7] =
        [Self::Null, Self::Off, Self::Reboot, Self::On, Self::Status, Self::Monitor, Self::List];

    /// The byte on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The name that users know it by, on command lines and in logs.
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

    /// Whether it takes a domain down: these are the requests that can leave a cluster with no survivor.
    #[must_use]
    pub fn is_destructive(self) -> bool {
        matches!(self, Self::Off | Self::Reboot)
    }

    /// Whether it changes a domain's power state.
    #[must_use]
    pub fn changes_state(self) -> bool {
        matches!(self, Self::Off | Self::Reboot | Self::On)
    }

    /// Whether it is about one domain and so needs a target.
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

/// The action byte is not one that goes over the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown action {0}")]
pub struct UnknownAction(pub u8);

impl TryFrom<u8> for Action {
    type Error = UnknownAction;

    fn try_from(number: u8) -> Result<Self, UnknownAction> {
        Self::ALL.get(usize::from(number)).copied().ok_or(UnknownAction(number))
    }
}
