// SPDX-License-Identifier: GPL-2.0-or-later
//! Table of the first group: its members, the requests of legacy hosts, and this host's asks to them.
//!
//! Pure but for the channels that it tells.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use fence_core::cluster::message::Member;
use fence_wire::{CpgRequest, Response};
use tokio::sync::oneshot;

/// Requests of legacy hosts that are remembered.
const MAX_REQUESTS: usize = 4096;

/// State of the first group.
#[derive(Debug)]
pub(super) struct LegacyHosts {
    /// This daemon's node, while it is in the group.
    node: Option<u32>,
    /// All members, hosts that run this daemon too.
    members: BTreeSet<Member>,
    sequence: u32,
    asks: HashMap<u32, LegacyAsk>,
    requests: Vec<LegacyRequest>,
    /// Number of domains that each node has published.
    publications: BTreeMap<u32, u64>,
}

/// Ask of this host to a legacy host.
#[derive(Debug)]
struct LegacyAsk {
    to: Member,
    reply: oneshot::Sender<LegacyReply>,
    /// Domains that the host has published since, by UUID: on or off.
    published: BTreeMap<String, bool>,
}

/// Reply of a legacy host.
#[derive(Debug)]
pub(super) struct LegacyReply {
    pub(super) response: Response,
    /// Domains that the host published between the ask and the reply, by UUID: on or off.
    pub(super) published: BTreeMap<String, bool>,
}

/// Request of a legacy host.
#[derive(Debug)]
pub(super) struct LegacyRequest {
    pub(super) from: Member,
    pub(super) sequence: u32,
    pub(super) request: CpgRequest,
    pub(super) since: Instant,
    /// Members that were known to have the domain when the request came.
    pub(super) owners: Vec<Member>,
}

impl LegacyHosts {
    pub(super) fn new() -> Self {
        Self {
            node: None,
            members: BTreeSet::new(),
            sequence: 0,
            asks: HashMap::new(),
            requests: Vec::new(),
            publications: BTreeMap::new(),
        }
    }

    /// Returns all members, hosts that run this daemon too.
    pub(super) fn members(&self) -> &BTreeSet<Member> {
        &self.members
    }

    /// Returns this daemon's node, while it is in the group.
    pub(super) fn node(&self) -> Option<u32> {
        self.node
    }

    /// Notes that this daemon joined the group.
    pub(super) fn joined(&mut self, node: u32) {
        self.node = Some(node);
    }

    /// Notes that corosync was lost.
    pub(super) fn lost(&mut self) {
        self.node = None;
        self.members.clear();
        self.requests.clear();
        self.asks.clear();
    }

    /// Notes a membership change. Asks to members that left end, and their requests are forgotten.
    pub(super) fn change(&mut self, members: BTreeSet<Member>, left: &[Member]) {
        self.members = members;
        let members = &self.members;
        self.publications.retain(|node, _| members.iter().any(|it| it.node == *node));
        self.asks.retain(|_, it| !left.contains(&it.to));
        self.requests.retain(|it| !left.contains(&it.from));
    }

    /// Takes out the requests whose owners all left: their hosts would wait without limit.
    pub(super) fn take_orphans(&mut self, left: &[Member]) -> Vec<LegacyRequest> {
        let has_left = |owner: &Member| left.iter().any(|gone| gone.node == owner.node);
        self.requests.extract_if(.., |it| !it.owners.is_empty() && it.owners.iter().all(has_left)).collect()
    }

    /// Takes out the requests whose clients have given up.
    pub(super) fn take_late(&mut self, client_timeout: Duration) -> Vec<LegacyRequest> {
        self.requests.extract_if(.., |it| it.since.elapsed() >= client_timeout).collect()
    }

    /// Notes a request of a legacy host. If there are too many, the oldest is forgotten.
    pub(super) fn requested(&mut self, request: LegacyRequest) {
        if self.requests.len() >= MAX_REQUESTS {
            self.requests.remove(0);
        }
        self.requests.push(request);
    }

    /// Returns true while no host has answered this request.
    pub(super) fn is_waiting(&self, from: Member, sequence: u32) -> bool {
        self.requests.iter().any(|it| it.from == from && it.sequence == sequence)
    }

    /// Notes that a host answered the request of this node.
    pub(super) fn answered(&mut self, node: u32, sequence: u32) {
        self.requests.retain(|it| it.from.node != node || it.sequence != sequence);
    }

    /// Notes a reply to node `to`; the asking task of this host gets it if it was asked of `from`.
    pub(super) fn replied(&mut self, from: Member, to: u32, sequence: u32, response: Response) {
        self.answered(to, sequence);
        let is_mine = Some(to) == self.node && self.asks.get(&sequence).is_some_and(|it| it.to == from);
        if is_mine && let Some(ask) = self.asks.remove(&sequence) {
            let _ = ask.reply.send(LegacyReply { response, published: ask.published });
        }
    }

    /// Notes a domain that a legacy host published.
    pub(super) fn published(&mut self, from: Member, uuid: &str, is_on: bool) {
        *self.publications.entry(from.node).or_default() += 1;
        for ask in self.asks.values_mut().filter(|it| it.to == from) {
            ask.published.insert(uuid.to_owned(), is_on);
        }
    }

    /// Returns the number of domains that a node has published since it joined.
    pub(super) fn publications(&self, node: u32) -> u64 {
        self.publications.get(&node).copied().unwrap_or_default()
    }

    /// Registers an ask to a legacy host. Returns its sequence number and the channel of the reply, which
    /// closes when the host leaves.
    pub(super) fn begin_ask(&mut self, to: Member) -> (u32, oneshot::Receiver<LegacyReply>) {
        let (sender, reply) = oneshot::channel();
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let ask = LegacyAsk { to, reply: sender, published: BTreeMap::new() };
        self.asks.insert(self.sequence, ask);
        (self.sequence, reply)
    }

    /// Forgets an ask that no task waits for any more.
    pub(super) fn forget_ask(&mut self, sequence: u32) {
        self.asks.remove(&sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = 1;
    const LEGACY: Member = Member { node: 2, pid: 20 };
    const OTHER: Member = Member { node: 3, pid: 30 };

    fn table() -> LegacyHosts {
        let mut hosts = LegacyHosts::new();
        hosts.joined(ME);
        hosts.change([Member { node: ME, pid: 10 }, LEGACY, OTHER].into(), &[]);
        hosts
    }

    fn request(from: Member, sequence: u32, owners: &[Member]) -> LegacyRequest {
        let request = CpgRequest { action: None, target: "n".to_owned(), client_sequence: 0 };
        LegacyRequest { from, sequence, request, since: Instant::now(), owners: owners.to_vec() }
    }

    #[test]
    fn a_reply_counts_from_the_asked_host_alone_with_its_publications() {
        let mut hosts = table();
        hosts.published(LEGACY, "before", true);
        let (sequence, mut reply) = hosts.begin_ask(LEGACY);
        hosts.published(LEGACY, "u", false);
        hosts.published(OTHER, "v", true);
        hosts.replied(OTHER, ME, sequence, Response::Success);
        hosts.replied(LEGACY, OTHER.node, sequence, Response::Success);
        assert!(matches!(reply.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        hosts.replied(LEGACY, ME, sequence, Response::Off);
        let reply = reply.try_recv().unwrap();
        assert_eq!((reply.response, reply.published), (Response::Off, [("u".to_owned(), false)].into()));
        assert_eq!((hosts.publications(LEGACY.node), hosts.publications(9)), (2, 0));
    }

    #[test]
    fn a_member_that_leaves_ends_its_asks_and_orphans_the_requests_for_its_domains() {
        let mut hosts = table();
        let (_, mut gone) = hosts.begin_ask(LEGACY);
        let (_, mut there) = hosts.begin_ask(OTHER);
        hosts.requested(request(OTHER, 1, &[LEGACY]));
        hosts.requested(request(OTHER, 2, &[LEGACY, OTHER]));
        hosts.requested(request(OTHER, 3, &[]));
        hosts.requested(request(LEGACY, 4, &[OTHER]));
        hosts.change([OTHER].into(), &[LEGACY]);
        assert!(matches!(gone.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(matches!(there.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        let orphans: Vec<u32> = hosts.take_orphans(&[LEGACY]).iter().map(|it| it.sequence).collect();
        assert_eq!(orphans, [1]);
        assert!(hosts.is_waiting(OTHER, 2) && hosts.is_waiting(OTHER, 3) && !hosts.is_waiting(LEGACY, 4));
        let late: Vec<u32> = hosts.take_late(Duration::ZERO).iter().map(|it| it.sequence).collect();
        assert_eq!(late, [2, 3]);
    }
}
