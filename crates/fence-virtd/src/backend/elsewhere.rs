// SPDX-License-Identifier: GPL-2.0-or-later
//! The ports between a backend and the other places where its domains can be.
//!
//! Owns the question and the two directions: a backend asks other hosts before it calls a domain off, and
//! other hosts ask what this host's hypervisors show. Nothing here knows how hosts talk. An implementation
//! must never leave a host out that can have the domain.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use fence_core::domain::{DomainId, DomainRef, TargetKind};
use fence_core::evidence::{DomainSite, Finding};
use fence_core::host_down::Moment;
use fence_core::hosts::HostRun;
use fence_core::owed_start::{PlaceMemory, PlaceWord};
use fence_wire::HostId;

use super::BoxedFuture;
use crate::request::lease::Lease;
use crate::util::boot_clock::since_boot;

/// Question whether a place has a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DomainQuestion {
    pub(crate) uuid: DomainId,
    /// Name of the domain. Another domain with this name that is on makes a place unable to tell.
    pub(crate) name: String,
    /// Moment when it was first asked. Nothing that was found out before is an answer.
    pub(crate) asked: Instant,
    /// The same, of the request: what proves a host down counts for some time, and for the whole request.
    pub(crate) request_came: Moment,
    /// Moment after which this round of looks begins. What an earlier round of the same question found out
    /// may be judged again in this one, as a look that begins now.
    pub(crate) round: Instant,
    /// No answer of the request depends on it but the text of a failure: hosts that are slow to ask, those
    /// without host messages, are left out.
    pub(crate) is_for_text: bool,
    /// Word by which the domain is meant.
    pub(crate) by: TargetKind,
    /// The asker wants to know what the other hosts remember of the domain.
    pub(crate) asks_memory: bool,
    /// The asker seeks an instance, and nothing follows where none is found: hosts that are slow to ask are
    /// left out, what the silent ones are is not looked into, and the first that says "on" is enough.
    pub(crate) seeks_instance: bool,
    /// Asked right before a start: nodes of a cluster are asked too, which are not asked beside a power-off.
    pub(crate) is_before_start: bool,
}

/// UUID of a question by the name alone.
const NO_UUID: DomainId = DomainId::from_bytes([0; 16]);

impl DomainQuestion {
    /// Asks now.
    pub(crate) fn new(uuid: DomainId, name: String) -> Self {
        let asked = Instant::now();
        Self {
            uuid,
            name,
            asked,
            request_came: Moment(since_boot()),
            round: asked,
            is_for_text: false,
            asks_memory: false,
            seeks_instance: false,
            is_before_start: false,
            by: TargetKind::Name,
        }
    }

    /// Asks now.
    pub(crate) fn about(domain: &DomainRef) -> Self {
        Self { by: domain.by, ..Self::new(domain.uuid, domain.name.clone()) }
    }

    /// Asks now about a domain for a request, whose lease this is.
    pub(crate) fn under(lease: &Lease, domain: &DomainRef) -> Self {
        Self { request_came: lease.began(), ..Self::about(domain) }
    }

    /// Asks now about a domain that is about to be started here.
    pub(crate) fn before_start(domain: &DomainRef) -> Self {
        Self { is_before_start: true, ..Self::about(domain) }
    }

    /// Asks now about a domain under no name: what else has its name says nothing of it.
    pub(crate) fn by_uuid_alone(uuid: DomainId) -> Self {
        Self { by: TargetKind::Uuid, ..Self::new(uuid, uuid.to_string()) }
    }

    /// Asks now about a target that no place of this host knows: by its UUID, or by the name alone.
    pub(crate) fn about_unknown(uuid: Option<DomainId>, name: &str) -> Self {
        let uuid = uuid.unwrap_or(NO_UUID);
        Self { is_for_text: true, ..Self::new(uuid, name.to_owned()) }
    }

    /// Returns true if the asker knows no UUID: any domain with the name is the one that is asked about.
    pub(crate) fn is_by_name_alone(&self) -> bool {
        self.uuid == NO_UUID
    }

    /// Returns the same question, by the name, about another domain that bears it.
    pub(crate) fn about_namesake(&self, uuid: DomainId) -> Self {
        Self { uuid, ..self.next_round() }
    }

    /// Returns the question for another round of looks, which begins now.
    pub(crate) fn next_round(&self) -> Self {
        Self { round: Instant::now(), ..self.clone() }
    }
}

/// The other hosts that can have the domains of this one.
pub(crate) trait PeerHosts: Send + Sync {
    /// Looks at each other host that can have the domain: one finding for each, none left out. A host that
    /// does not answer is unknown, with its name and the next step. None: this host is alone. Where the asker
    /// only seeks an instance: those that answered, and nobody who is left out was seen without one.
    fn look<'a>(&'a self, question: &'a DomainQuestion, until: Instant) -> BoxedFuture<'a, Vec<Finding>>;

    /// Returns whether these hosts and this one share the results for a UUID, whatever word named it.
    fn shares_results(&self) -> bool {
        false
    }

    /// Asks each other host that can have the domain what it remembers of it: one word for each, none left
    /// out. None: this host is alone, or what the others remember is asked for in another way.
    fn recall<'a>(
        &'a self,
        question: &'a DomainQuestion,
        until: Instant,
    ) -> BoxedFuture<'a, Vec<(DomainSite, PlaceWord)>>;
}

/// The nodes of the cluster of this host, which corosync knows: they are asked by it, and not as other hosts.
pub(crate) trait NodeHosts: Send + Sync {
    /// Tells the other nodes the key and the run of this host, now and whenever one joins. `on_change` is
    /// called when a host that was a node is none any more; it must wait for nothing.
    fn tell_host(&self, id: HostId, run: HostRun, on_change: Arc<dyn Fn() + Send + Sync>);

    /// Returns true if the other nodes were told, and told theirs as far as they do.
    fn are_known(&self) -> bool;

    /// Returns true if a node has this key, and this run if one is given.
    fn is_node(&self, id: HostId, run: Option<HostRun>) -> bool;

    /// Returns true if corosync's list has a node with this address, which told this key if one is given.
    fn is_node_at(&self, id: Option<HostId>, address: IpAddr) -> bool;
}

/// The hypervisors of this host, as other hosts may ask about them.
pub(crate) trait OwnPlaces: Send + Sync {
    /// Looks at each hypervisor of this host now: one finding for each.
    fn look_here<'a>(&'a self, question: &'a DomainQuestion, until: Instant)
    -> BoxedFuture<'a, Vec<Finding>>;

    /// Returns the hypervisor of this host that keeps a saved memory of a domain, which its next start there
    /// would bring back; an error where that can't be told.
    fn saved_here<'a>(
        &'a self,
        uuid: DomainId,
        until: Instant,
    ) -> BoxedFuture<'a, Result<Option<String>, String>>;

    /// Returns what this host remembers of a domain, for another one that owes a start of it.
    fn recall_here(&self, uuid: DomainId) -> PlaceMemory;

    /// Looks everywhere for domains that moved away from this host, and forgets the moves of those that are
    /// off. For the background: no answer waits for it. Limited; the others are left for the next time.
    fn prove_moves<'a>(&'a self, others: Vec<DomainId>) -> BoxedFuture<'a, ()>;
}
