// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains as every layer names them: references, homes, power states, listings, and the reasons why actions
//! on them fail.
//!
//! Owns values only, which any task may hold. Must never do I/O.

use std::fmt;

use fence_wire::Action;

pub use crate::domain_id::DomainId;
use crate::evidence::{Doubt, ProvedOff};

/// Reference to a domain that was located.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainRef {
    /// Name of the domain.
    pub name: String,
    /// UUID of the domain.
    pub uuid: DomainId,
    /// Place of the domain when it was located.
    pub home: DomainHome,
    /// Word of the request that names it.
    pub by: TargetKind,
}

/// Word by which a request names a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetKind {
    /// Name: each machine that may run under it is meant.
    Name,
    /// UUID: no other domain is meant, also none with the same name.
    Uuid,
}

/// Place from which a domain can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainHome {
    /// One of the backend's hypervisors, counted from 0.
    Here(usize),
    /// Another host of the cluster. The host itself is resolved when an action begins.
    Elsewhere,
    /// Any of the agent backend's devices.
    Agent,
}

/// Result of locating a domain. No variant is an answer: the action looks again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LocatedDomain {
    /// The domain is on here, or this host's devices have it.
    Here(DomainRef),
    /// An instance is here that comes or goes with a migration. Another host may have the machine.
    Moving(DomainRef),
    /// Every place where the domain can be was looked at once, and it is on at none.
    Off(DomainRef),
    /// The same, and this host has no definition: the domain's last instance ended here, and can't be started
    /// here.
    Undefined(DomainRef),
    /// Another host has the domain, and this host can pass requests on to that host.
    Elsewhere(DomainRef),
    /// The domain is not on here, and may be on at another place: one that can't be asked, or one to which
    /// this host can't pass requests on. What is found when the action begins decides.
    InDoubt(DomainRef),
}

impl LocatedDomain {
    /// Returns the reference, wherever the domain is.
    pub fn domain(&self) -> &DomainRef {
        match self {
            Self::Here(domain)
            | Self::Moving(domain)
            | Self::Off(domain)
            | Self::Undefined(domain)
            | Self::Elsewhere(domain)
            | Self::InDoubt(domain) => domain,
        }
    }
}

/// Reason why no domain was located.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LocateError {
    /// All hypervisors were asked and none has the domain.
    #[error("no such domain on this host")]
    NotFound,
    /// The target matches more than one domain.
    #[error("ambiguous: {0}")]
    Ambiguous(String),
    /// At least one hypervisor could not be asked, and the others do not have the domain.
    #[error("can't tell: {0}")]
    Unavailable(String),
}

/// Power state of a domain. Everything that is not off is on: a paused domain still holds its disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerState {
    /// The domain runs or is paused.
    On,
    /// The domain is powered off.
    Off,
}

/// Power of a domain as a status check found it. Off is not to be had without its proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SeenPower {
    /// The domain runs or is paused, here or at another place.
    On,
    /// The domain is about to be started at another place, or comes or goes there: it is not off, and was not
    /// seen on.
    Moving,
    /// The domain is off, wherever it can be.
    Off(ProvedOff),
}

impl SeenPower {
    /// Returns the power without its proof.
    pub fn state(&self) -> PowerState {
        match self {
            Self::On | Self::Moving => PowerState::On,
            Self::Off(_) => PowerState::Off,
        }
    }
}

/// Action on the power of one domain. Other layers' actions convert to and from this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerAction {
    /// Read the power state.
    Status,
    /// Start the domain.
    On,
    /// Power the domain off.
    Off,
    /// Power the domain off and start it again.
    Reboot,
}

impl PowerAction {
    /// Returns the power action of a request; none for an action that concerns no single domain.
    pub fn of_request(action: Action) -> Option<Self> {
        match action {
            Action::Status => Some(Self::Status),
            Action::On => Some(Self::On),
            Action::Off => Some(Self::Off),
            Action::Reboot => Some(Self::Reboot),
            Action::Null | Action::Monitor | Action::List => None,
        }
    }

    /// Returns the action that brings a domain to this power state.
    pub const fn to_reach(state: PowerState) -> Self {
        match state {
            PowerState::On => Self::On,
            PowerState::Off => Self::Off,
        }
    }
}

impl fmt::Display for PowerAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Action::from(*self).name())
    }
}

impl From<PowerAction> for Action {
    fn from(action: PowerAction) -> Self {
        match action {
            PowerAction::Status => Self::Status,
            PowerAction::On => Self::On,
            PowerAction::Off => Self::Off,
            PowerAction::Reboot => Self::Reboot,
        }
    }
}

/// Domain in a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedDomain {
    /// Name of the domain.
    pub name: String,
    /// UUID of the domain.
    pub uuid: DomainId,
    /// Power state of the domain.
    pub power: PowerState,
}

/// Listing of domains, with a line for each hypervisor or device that could not be asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DomainListing {
    /// Domains of all parts that answered.
    pub domains: Vec<ListedDomain>,
    /// Reasons why parts did not answer, in words.
    pub missing: Vec<String>,
}

/// Reason why an action failed. None of these means "done".
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ActionError {
    /// The hypervisor can't be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The hypervisor refused or failed.
    #[error("{0}")]
    Refused(String),
    /// A status check after the action showed that it had no effect in time.
    #[error("still {state} when the time was up{}", because(.reason))]
    NoEffect {
        /// State at the last status check.
        state: String,
        /// Reason that the hypervisor gave for the action.
        reason: Option<String>,
    },
    /// The lease ended before the action began.
    #[error("not done: {0}")]
    Lapsed(&'static str),
    /// The action was begun, and its result could not be read.
    #[error("begun, and the end of the action is not known: {0}")]
    Unknown(String),
    /// The domain went away between locating and acting, and not because it was powered off here.
    #[error("the domain went away")]
    Gone,
}

impl From<Doubt> for ActionError {
    fn from(doubt: Doubt) -> Self {
        Self::Unavailable(doubt.to_string())
    }
}

fn because(reason: &Option<String>) -> String {
    reason.as_ref().map(|it| format!(" ({it})")).unwrap_or_default()
}

/// Sorts domains by name and removes duplicates. A domain that is on in any list stays as on.
pub fn merge(domains: &mut Vec<ListedDomain>) {
    domains.sort_by(|a, b| {
        (&a.name, a.uuid, a.power == PowerState::Off).cmp(&(&b.name, b.uuid, b.power == PowerState::Off))
    });
    domains.dedup_by(|later, first| later.uuid == first.uuid && later.name == first.name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::message::AskAction;

    #[test]
    fn a_power_action_survives_each_conversion() {
        for action in [PowerAction::Status, PowerAction::On, PowerAction::Off, PowerAction::Reboot] {
            assert_eq!(PowerAction::of_request(action.into()), Some(action));
            assert_eq!(PowerAction::from(AskAction::from(action)), action);
            let arbitrated = crate::arbiter::ArbitratedAction::of(action, "vm".into());
            assert_eq!(arbitrated.action(), action);
            assert_eq!(arbitrated.target().is_some(), action != PowerAction::Status);
        }
        for action in [Action::Null, Action::Monitor, Action::List] {
            assert_eq!(PowerAction::of_request(action), None);
        }
    }
}
