// SPDX-License-Identifier: GPL-2.0-or-later
//! Doubts about who answers, in words for an administrator: which hosts, and the next step.
//!
//! Owns no state. A host in doubt is unknown, whatever it says.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use fence_core::hosts::{HostDoubt, Respondent};
use fence_wire::{HostId, escaped};

use super::limits::CLAIM_KEPT;
use super::settings::PeerMode;
use super::state::Peers;
use crate::util::locks::lock;

/// Reason that a host tells which has a second one with its key pair.
pub(super) const OWN_DOUBT: &str = "two daemons have one key pair: remove host.key at one";

impl Peers {
    /// Returns why another daemon makes it unknown which other hosts there are, if one does.
    pub(super) fn own_doubt(&self) -> Option<String> {
        let id = self.identity.id();
        let Some(HostDoubt::TwoDaemons { at, .. }) = lock(&self.table).doubt(id) else {
            return self.own_claim();
        };
        Some(format!(
            "another daemon has the key pair of this one ({id}) and was heard from {at}: a state directory \
             was copied, or both have none. Remove host.key in the state_dir of one of them (or give it a \
             state_dir), restart fence_virtd there, and then: fence_virtd --forget all"
        ))
    }

    /// Returns why another daemon may have the key pair of this one, without a proof that one has. Whoever
    /// holds the key can make such a message, so the doubt ends by itself.
    fn own_claim(&self) -> Option<String> {
        let (at, since) = (*lock(&self.claimed))?;
        let kept = CLAIM_KEPT.as_secs();
        (since.elapsed() < CLAIM_KEPT).then(|| {
            format!(
                "a message with the name of this host ({}) came from {at} without a proof: ask again {kept} \
                 s after the last one. If the state directory was copied to that host: remove host.key \
                 there, restart fence_virtd there, and then: fence_virtd --forget all. If a guest sends it: \
                 give the hosts a peer_key_file",
                self.identity.id()
            )
        })
    }

    /// Notes a message with the name of this host that came from another machine and proves nothing.
    pub(super) fn note_own_claim(&self, from: IpAddr) {
        *lock(&self.claimed) = Some((from, Instant::now()));
        let why = self.own_doubt().unwrap_or_default();
        self.drops.note(super::state::NAME, "same-key-pair", &from, &why);
    }

    /// Notes that another daemon has the key pair of this one.
    pub(super) fn note_own_twin(&self, from: IpAddr) {
        lock(&self.table).note_two_daemons(self.identity.id(), from);
        self.changed.notify_one();
        let why = self.own_doubt().unwrap_or_default();
        self.drops.note(super::state::NAME, "same-key-pair", &from, &why);
    }

    /// Returns why an answer of this one would prove nothing, and the next step.
    pub(super) fn doubt(&self, who: Respondent) -> Option<String> {
        let peers = self.listed();
        let doubt = {
            let table = lock(&self.table);
            match who {
                Respondent::Host(id) => {
                    let mut places = peers.iter().filter(|it| table.pinned(it) == Some(id));
                    places.find_map(|it| table.doubt_at(*it, &peers)).or_else(|| table.doubt(id))
                }
                Respondent::Address(address) => table.doubt_at(address, &peers),
            }
        };
        doubt.map(|it| self.told(it))
    }

    fn told(&self, doubt: HostDoubt) -> String {
        match doubt {
            HostDoubt::TwoDaemons { id, at } => {
                let (name, addresses) = self.known_as(id);
                let mut at_all = addresses;
                if !at_all.contains(&at) {
                    at_all.push(at);
                }
                let at_all: Vec<_> = at_all.iter().map(ToString::to_string).collect();
                format!(
                    "two daemons have the key pair {id} of host {name}, at {}: a state directory was copied. \
                     Remove host.key in the state_dir of one of them, restart fence_virtd there, and then \
                     here (this alone, if one host was given another address): \
                     fence_virtd --forget {id}",
                    at_all.join(", ")
                )
            }
            HostDoubt::TwoAddresses { id, at: [first, second] } => format!(
                "{first} and {second} of `peers` answer with one key ({id}, host {}): name each host once. \
                 If they are two hosts, remove host.key in the state_dir of one and restart fence_virtd \
                 there; if the host moved to another address: fence_virtd --forget {}",
                self.known_as(id).0,
                first.ip()
            ),
            HostDoubt::TwoHosts { at, ids: [known, other] } => format!(
                "two hosts answered at {at} of `peers`: {known} ({}) first, then {other} ({}). Two \
                 fence_virtd at once at that host do it too: end one there. Then, or if that host was \
                 installed anew, or the address was given to another host: fence_virtd --forget {}",
                self.known_as(known).0,
                self.known_as(other).0,
                at.ip()
            ),
        }
    }

    fn known_as(&self, id: HostId) -> (String, Vec<IpAddr>) {
        let host = lock(&self.table).host(id).cloned();
        host.map_or_else(
            || ("unknown".to_owned(), Vec::new()),
            |it| (escaped(&it.name).to_string(), it.addresses),
        )
    }

    /// Returns what an administrator can do about a host with another key.
    pub(super) fn told_of_other_key(&self, address: IpAddr) -> String {
        let is_listed = match &self.settings().mode {
            PeerMode::Listed(listed) => listed.iter().any(|it| it.ip().to_canonical() == address),
            PeerMode::Off | PeerMode::NoWay(_) | PeerMode::Discovered => false,
        };
        let whose = if is_listed {
            "a host of `peers` uses another key than this one, and can't be asked"
        } else {
            "a message of a host that uses another key than this one. If that host can have the same domains"
        };
        format!(
            "{whose}: use the same peer_key_file on all hosts (without it: the same key of the multicast \
             listener), and reload. fence_virtd --check on each host shows the fingerprints"
        )
    }

    /// Returns true if a host that is asked has this address.
    pub(super) fn is_asked_at(&self, address: IpAddr) -> bool {
        self.listed().iter().any(|it| it.ip().to_canonical() == address)
            || lock(&self.table).all().any(|it| it.addresses.contains(&address))
    }

    /// Returns the addresses of `peers`.
    pub(super) fn listed(&self) -> Vec<SocketAddr> {
        match &self.settings().mode {
            PeerMode::Listed(listed) => listed.clone(),
            PeerMode::Off | PeerMode::NoWay(_) | PeerMode::Discovered => Vec::new(),
        }
    }
}
