// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains as every layer names them: references, places, power states, listings, and the reasons why work on them fails.
//!
//! Owns values only. It must never do I/O.

/// One domain, found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainRef {
    /// Its name.
    pub name: String,
    /// Its UUID, canonical lower-case text.
    pub uuid: String,
    /// Where it was when it was found.
    pub home: DomainHome,
}

/// Where a domain is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainHome {
    /// At this one of the backend's hypervisors, counted from 0.
    Here(usize),
    /// At another host; at which one is asked when something is to be done.
    Elsewhere,
    /// Wherever the agent backend's devices are.
    Agent,
}

/// What became of a look for a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LocatedDomain {
    /// It is here: on, or seen to go off here a short while ago.
    Here(DomainRef),
    /// It is defined here and off, and nothing says that it was on here lately: it may be a definition that stayed
    /// behind when the domain went to another host.
    DefinedOff(DomainRef),
    /// It was here a short while ago, was seen to go off here, and left no definition (a transient domain).
    PoweredOffTransient(DomainRef),
    /// Another host has it, and this one can pass requests on to it.
    Elsewhere(DomainRef),
    /// It was last on at a host that was lost. What is known of that host decides when something is to be done.
    OnLostHost(DomainRef),
}

impl LocatedDomain {
    pub fn domain(&self) -> &DomainRef {
        match self {
            Self::Here(domain)
            | Self::DefinedOff(domain)
            | Self::PoweredOffTransient(domain)
            | Self::Elsewhere(domain)
            | Self::OnLostHost(domain) => domain,
        }
    }
}

/// Why no domain was found.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LocateError {
    /// Every hypervisor was asked and none has it.
    #[error("no such domain on this host")]
    NotFound,
    /// More than one domain is meant.
    #[error("ambiguous: {0}")]
    Ambiguous(String),
    /// A hypervisor could not be asked, and the others don't have it.
    #[error("can't tell: {0}")]
    Unavailable(String),
}

/// Whether a domain is on. Everything that is not off is on: a paused domain still holds its disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerState {
    On,
    Off,
}

/// A domain in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedDomain {
    pub name: String,
    pub uuid: String,
    pub power: PowerState,
}

/// Domains, and a line for each hypervisor that could not be asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DomainListing {
    pub domains: Vec<ListedDomain>,
    pub missing: Vec<String>,
}

/// Why an action failed. None of these is "done".
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ActionError {
    /// The hypervisor can't be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The hypervisor refused or failed.
    #[error("{0}")]
    Refused(String),
    /// A look after the action showed that it had no effect in time.
    #[error("still {state} when the time was up{}", because(.reason))]
    NoEffect {
        /// What the last look showed.
        state: String,
        /// What the hypervisor said of the action.
        reason: Option<String>,
    },
    /// The lease ended before anything was done.
    #[error("not done: {0}")]
    Lapsed(&'static str),
    /// The hypervisor was told to act and could not be asked what came of it.
    #[error("begun, and its end is not known: {0}")]
    Unknown(String),
    /// The domain went away between the look-up and the action, and not by being powered off here.
    #[error("the domain went away")]
    Gone,
}

fn because(reason: &Option<String>) -> String {
    reason.as_ref().map(|it| format!(" ({it})")).unwrap_or_default()
}

/// Sorted by name; a domain that is in several lists is listed once, and on when it is on anywhere.
pub fn merge(domains: &mut Vec<ListedDomain>) {
    domains.sort_by(|a, b| {
        (&a.name, &a.uuid, a.power == PowerState::Off).cmp(&(&b.name, &b.uuid, b.power == PowerState::Off))
    });
    domains.dedup_by(|later, first| later.uuid == first.uuid && later.name == first.name);
}
