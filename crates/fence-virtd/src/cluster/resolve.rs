// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts to ask for a domain: the rule.
//!
//! Pure: a reading of this host's hypervisors and the domain's place in the directory go in, the next step
//! comes out. [`super::backend`] reads, waits and repeats. The directory may lag behind this host's own
//! hypervisors, and is never ahead of them. What it
//! names is a place to act, never an answer: before a domain is called off, all nodes are looked at
//! ([`super::elsewhere`]).

use super::state::DomainPlace;
use fence_core::cluster::message::Member;
use fence_core::domain::{ActionError, DomainRef};

/// Host that has the domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum OwnerHost {
    Here(DomainRef),
    There(Member),
}

/// Reading of a domain at this host's own hypervisors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LocalReading {
    On(DomainRef),
    /// Seen to go off here a short while ago, with a definition or without.
    WentOff {
        domain: DomainRef,
        is_defined: bool,
    },
    /// Defined and not on here; the domain may be on elsewhere, and may have migrated there from here.
    DefinedOff(DomainRef),
    NotHere,
    /// A hypervisor cannot be asked, for this reason.
    Unavailable(String),
}

/// Place of a domain in the directory, with this host apart from the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PublishedPlace {
    /// On at these other hosts; with `here_too` the directory names this host as well.
    OnThere {
        at: Vec<Member>,
        here_too: bool,
    },
    /// On at this host alone.
    OnHere,
    /// On at no host that is heard; these other hosts have the domain, off. Perhaps on at another node.
    Off(Vec<Member>),
    Lost {
        node: u32,
        why: String,
    },
    NotYet(String),
    Unknown,
}

impl PublishedPlace {
    /// Returns the place as this host sees it, which is the member `me`.
    pub(super) fn of(place: DomainPlace, me: Option<Member>) -> Self {
        let others = |members: Vec<Member>| members.into_iter().filter(|it| Some(*it) != me).collect();
        match place {
            DomainPlace::On(members) => {
                let here_too = me.is_some_and(|me| members.contains(&me));
                let at: Vec<Member> = others(members);
                if at.is_empty() { Self::OnHere } else { Self::OnThere { at, here_too } }
            }
            DomainPlace::Off(members) | DomainPlace::Doubt(members) => Self::Off(others(members)),
            DomainPlace::Lost { node, why } => Self::Lost { node, why },
            DomainPlace::NotYet(why) => Self::NotYet(why),
            DomainPlace::Unknown => Self::Unknown,
        }
    }
}

/// Next step towards the hosts to ask.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum OwnerStep {
    /// Ask these hosts, where the domain is on. Never empty.
    AskRunning(Vec<OwnerHost>),
    /// Look at all nodes whether the domain is off, and then ask these hosts, which have it: first those with
    /// a definition. Never empty.
    AskResting(Vec<OwnerHost>),
    /// Look at all nodes whether the domain is off, and whether this node is down, where it was on last.
    AskLost { node: u32, why: String },
    /// Wait for a change, and begin again; at the deadline the request fails with this error.
    AwaitChange(ActionError),
    /// The request fails.
    Fail(ActionError),
}

/// Returns the next step: one row for each pair of a reading and a place. `has_ended`: says of a member that
/// the domain ended there and left no definition.
pub(super) fn next_step(
    here: LocalReading,
    place: PublishedPlace,
    is_legacy: impl Fn(Member) -> bool,
    has_ended: impl Fn(Member) -> bool,
) -> OwnerStep {
    use LocalReading as Here;
    use PublishedPlace as Place;
    match (here, place) {
        (Here::On(own), Place::OnThere { at, .. }) => OwnerStep::AskRunning(with_own(own, at)),
        (Here::On(own), _) => OwnerStep::AskRunning(with_own(own, Vec::new())),
        (_, Place::Lost { node, why }) => OwnerStep::AskLost { node, why },
        (_, Place::NotYet(why)) => OwnerStep::AwaitChange(ActionError::Unavailable(why)),
        // A domain that is on elsewhere is not on here, even if a hypervisor here cannot be asked.
        (_, Place::OnThere { at, here_too: false })
        | (Here::WentOff { .. } | Here::DefinedOff(_) | Here::NotHere, Place::OnThere { at, .. }) => {
            OwnerStep::AskRunning(at.into_iter().map(OwnerHost::There).collect())
        }
        (Here::Unavailable(why), _) => OwnerStep::Fail(ActionError::Unavailable(why)),
        (Here::WentOff { domain: own, .. }, Place::OnHere) => {
            OwnerStep::AskResting(with_own(own, Vec::new()))
        }
        // The domain was on here a moment ago, and libvirt has not reported yet what became of it. Or this
        // host has not received its own messages yet, and so no later ones of the others either.
        (Here::DefinedOff(_) | Here::NotHere, Place::OnHere)
        | (Here::WentOff { .. } | Here::DefinedOff(_), Place::Unknown) => {
            OwnerStep::AwaitChange(ActionError::Gone)
        }
        (Here::NotHere, Place::Unknown) => OwnerStep::Fail(ActionError::Gone),
        (Here::WentOff { domain: own, is_defined: false }, Place::Off(at)) => {
            without_definition(Some(own), at, is_legacy, has_ended)
        }
        (Here::WentOff { domain: own, .. } | Here::DefinedOff(own), Place::Off(mut at)) => {
            // Legacy hosts were polled just now.
            at.retain(|member| !is_legacy(*member));
            OwnerStep::AskResting(with_own(own, at))
        }
        (Here::NotHere, Place::Off(at)) => without_definition(None, at, is_legacy, has_ended),
    }
}

/// Returns the step for a domain that is off and has no definition here; `own`: it ended here.
fn without_definition(
    own: Option<DomainRef>,
    mut at: Vec<Member>,
    is_legacy: impl Fn(Member) -> bool,
    has_ended: impl Fn(Member) -> bool,
) -> OwnerStep {
    // Legacy hosts were polled just now. One of them is of use if no other host can start the domain.
    if at.iter().any(|it| !is_legacy(*it) && !has_ended(*it)) {
        at.retain(|it| !is_legacy(*it));
    }
    let (ended, defined): (Vec<_>, Vec<_>) = at.into_iter().partition(|it| has_ended(*it));
    let there = |members: Vec<Member>| members.into_iter().map(OwnerHost::There);
    let owners: Vec<_> = there(defined).chain(own.map(OwnerHost::Here)).chain(there(ended)).collect();
    if owners.is_empty() { OwnerStep::Fail(ActionError::Gone) } else { OwnerStep::AskResting(owners) }
}

/// Returns this host before these others.
fn with_own(own: DomainRef, others: Vec<Member>) -> Vec<OwnerHost> {
    let others = others.into_iter().map(OwnerHost::There);
    std::iter::once(OwnerHost::Here(own)).chain(others).collect()
}

#[cfg(test)]
mod tests;
