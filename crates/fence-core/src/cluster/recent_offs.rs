// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains that requests took down a short while ago, as all hosts remember them.
//!
//! A host whose daemon ends in the middle of a reboot may owe the start. Its next daemon must not make the
//! start good after another host was asked for the domain since, and has said that it is off. Each host notes
//! what the others see off. It tells a daemon that joins, before its own `sync`: so the daemon knows all of
//! it when its first claim is granted. Pure; time is a parameter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::message::{ClaimMessage, HostMessage, Member, RecentOff};
use crate::intent::START_AGE_MS;

/// Most domains that are remembered; then the oldest is forgotten.
const MAX_OFFS: usize = 512;
/// Most nodes that are believed to have taken part in one.
const MAX_NODES: usize = 64;
/// Most claims whose owners are remembered; then the oldest number is forgotten.
const MAX_OWNED: usize = 4096;
/// Time for which an off is remembered: no start is owed longer.
const KEPT: Duration = Duration::from_millis(START_AGE_MS);

/// Domains that were seen off a short while ago.
#[derive(Debug, Default)]
pub struct RecentOffs {
    /// Oldest first, as far as they were noted in order.
    offs: VecDeque<NotedOff>,
    /// Nodes that carry out a claim, by its asker and number.
    owners: BTreeMap<(Member, u64), BTreeSet<u32>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct NotedOff {
    uuid: String,
    at: Instant,
    /// Nodes that took part, and have written the request down themselves.
    nodes: BTreeSet<u32>,
}

impl RecentOffs {
    /// Takes the present members: the claims of those that left end without a word.
    pub fn members(&mut self, members: &BTreeSet<Member>) {
        self.owners.retain(|(asker, _), _| members.contains(asker));
    }

    /// Takes a message of the group, in agreed order.
    pub fn message(&mut self, from: Member, message: &HostMessage, now: Instant) {
        match message {
            HostMessage::Taken { asker, claim, .. } => self.owned(*asker, *claim, from.node),
            HostMessage::Sync(sync) => {
                for it in &sync.acting {
                    let ClaimMessage { id, .. } = it.held.claim;
                    self.owned(it.asker, id, from.node);
                }
            }
            HostMessage::SeenOff { id, victim } => {
                let owners = self.owners.get(&(from, *id)).into_iter().flatten().copied();
                let nodes = owners.chain([from.node]).collect();
                self.note(NotedOff { uuid: victim.clone(), at: now, nodes }, now);
            }
            HostMessage::Finished { id, .. } | HostMessage::Withdraw { id } => {
                self.owners.remove(&(from, *id));
            }
            HostMessage::RecentOffs { offs } => {
                for it in offs {
                    // A moment before the boot of this host counts as now: then no start is made.
                    let at = now.checked_sub(Duration::from_millis(it.age_ms)).unwrap_or(now);
                    let nodes = it.nodes.iter().copied().take(MAX_NODES).collect();
                    self.note(NotedOff { uuid: it.uuid.clone(), at, nodes }, now);
                }
            }
            _ => {}
        }
    }

    /// Returns the message for a daemon that joins; none if there is nothing to tell.
    pub fn telling(&mut self, now: Instant) -> Option<HostMessage> {
        self.expire(now);
        let age_ms = |at: Instant| now.saturating_duration_since(at).as_millis().try_into().unwrap_or(0);
        let offs: Vec<RecentOff> = self
            .offs
            .iter()
            .map(|it| RecentOff {
                uuid: it.uuid.clone(),
                age_ms: age_ms(it.at),
                nodes: it.nodes.iter().copied().collect(),
            })
            .collect();
        (!offs.is_empty()).then_some(HostMessage::RecentOffs { offs })
    }

    /// Returns whether hosts other than this node took the domain down less than `since` ago, without it.
    pub fn without(&self, node: u32, uuid: &str, since: Duration, now: Instant) -> bool {
        let is_later = |it: &NotedOff| now.saturating_duration_since(it.at) < since;
        self.offs.iter().any(|it| it.uuid == uuid && !it.nodes.contains(&node) && is_later(it))
    }

    fn owned(&mut self, asker: Member, claim: u64, node: u32) {
        self.owners.entry((asker, claim)).or_default().insert(node);
        if self.owners.len() > MAX_OWNED {
            self.owners.pop_first();
        }
    }

    fn note(&mut self, off: NotedOff, now: Instant) {
        self.expire(now);
        // Of the same hosts the latest is enough.
        self.offs.retain(|it| it.uuid != off.uuid || it.nodes != off.nodes || it.at > off.at);
        if !self.offs.iter().any(|it| it.uuid == off.uuid && it.nodes == off.nodes) {
            self.offs.push_back(off);
        }
        if self.offs.len() > MAX_OFFS {
            self.offs.pop_front();
        }
    }

    fn expire(&mut self, now: Instant) {
        self.offs.retain(|it| now.saturating_duration_since(it.at) < KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::message::{
        ActingClaim, AskAction, AskOutcome, InFlightClaim, MESSAGE_LIMIT, StateSync,
    };
    use fence_wire::Response;

    const A: Member = Member { node: 1, pid: 10 };
    const B: Member = Member { node: 2, pid: 20 };
    const C: Member = Member { node: 3, pid: 30 };
    const MINUTE: Duration = Duration::from_secs(60);

    fn seen_off(id: u64) -> HostMessage {
        HostMessage::SeenOff { id, victim: "u".to_owned() }
    }

    /// Returns what the next daemon at a node is told by one that remembers this.
    fn told(offs: &mut RecentOffs, now: Instant) -> RecentOffs {
        let mut next = RecentOffs::default();
        if let Some(message) = offs.telling(now) {
            let bytes = message.encode().unwrap();
            next.message(C, &HostMessage::decode(&bytes).unwrap().unwrap(), now);
        }
        next
    }

    #[test]
    fn what_others_took_down_meanwhile_is_told_to_the_next_daemon() {
        let start = Instant::now();
        let (off, now) = (start + MINUTE / 2, start + MINUTE);
        let mut offs = RecentOffs::default();
        offs.message(B, &seen_off(7), off);
        let next = told(&mut offs, now);
        assert!(next.without(1, "u", MINUTE, now));
        assert!(!next.without(1, "v", MINUTE, now));
        assert!(!next.without(1, "u", MINUTE / 4, now), "the reboot came after it");
        assert!(!next.without(2, "u", MINUTE, now), "it has written that down itself");
        let later = now + 2 * MINUTE;
        assert!(!told(&mut offs, later).without(1, "u", 3 * MINUTE, later), "nothing is owed any more");
    }

    /// The reboot whose start is owed was seen off too: by its asker, or under the asker's claim.
    #[test]
    fn the_reboot_itself_is_no_later_request() {
        let (start, ask) = (Instant::now(), 5);
        let now = start + MINUTE;
        let claim =
            ClaimMessage { id: 7, what: AskAction::Reboot, target: "u".to_owned(), source: None, peer: None };
        let held = InFlightClaim { claim, seen_off: false, lingers: false };
        let acting = vec![ActingClaim { asker: B, ask, held }];
        let taken = HostMessage::Taken { asker: B, ask, claim: 7 };
        for owned in [taken, HostMessage::Sync(StateSync { acting, ..StateSync::default() })] {
            let mut offs = RecentOffs::default();
            offs.message(A, &owned, start);
            offs.message(B, &seen_off(7), start);
            let outcome = AskOutcome::new(Response::Success, None);
            offs.message(B, &HostMessage::Finished { id: 7, outcome }, start);
            assert!(!told(&mut offs, now).without(1, "u", 2 * MINUTE, now));
            // A later one without this host.
            offs.message(B, &seen_off(8), start);
            assert!(told(&mut offs, now).without(1, "u", 2 * MINUTE, now));
        }
    }

    #[test]
    fn the_memory_is_bounded_and_fits_into_a_message() {
        let now = Instant::now();
        let mut offs = RecentOffs::default();
        for id in 0..2 * u64::try_from(MAX_OWNED).unwrap() {
            offs.message(A, &HostMessage::Taken { asker: B, ask: id, claim: id }, now);
            offs.message(B, &HostMessage::SeenOff { id, victim: format!("{id:0128}") }, now);
        }
        assert_eq!((offs.offs.len(), offs.owners.len()), (MAX_OFFS, MAX_OWNED));
        assert!(offs.telling(now).unwrap().encode().unwrap().len() < MESSAGE_LIMIT);
        offs.members(&BTreeSet::from([A]));
        assert_eq!((offs.offs.len(), offs.owners.len()), (MAX_OFFS, 0));
    }
}
