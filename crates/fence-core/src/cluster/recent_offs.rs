// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains that requests took down a short while ago, as all hosts remember them.
//!
//! A host whose daemon ends in the middle of a reboot may owe the start. Its next daemon must not make the
//! start good after another host was asked for the domain since, and has said that it is off. Each host notes
//! what the others see off. It tells a daemon that joins, before its own `sync`: so the daemon knows all of
//! it when its first claim is granted. Nothing is kept over a restart, so each host tells for how long it has
//! noted all of it, and a start that is owed for longer than anybody has is not made. Pure; time is a
//! parameter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::message::{ClaimMessage, HostMessage, Member, RecentOff};
use crate::evidence::CLOCK_DRIFT;
use crate::intent::START_AGE_MS;
use crate::owed_start::StartVerdict;

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
    /// Moment since which this daemon has heard all requests of all hosts; none while it is alone.
    heard_since: Option<Instant>,
    /// The same of the others, as they have told.
    told_since: BTreeMap<Member, Instant>,
    /// Members that are there.
    present: BTreeSet<Member>,
    /// Members that have left.
    departed: BTreeSet<Member>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct NotedOff {
    uuid: String,
    at: Instant,
    /// Nodes that took part, and have written the request down themselves.
    nodes: BTreeSet<u32>,
}

impl RecentOffs {
    /// Takes note that this daemon hears the others from now on.
    pub fn joined(&mut self, now: Instant) {
        (self.heard_since, self.present) = (Some(now), BTreeSet::new());
    }

    /// Takes note that this daemon does not hear the others any more.
    pub fn lost(&mut self) {
        self.heard_since = None;
        self.told_since.clear();
    }

    /// Takes the present members: the claims of those that left end without a word. `is_cut`: a node is not
    /// heard any more. What it does from now on nobody hears, and the same of a member that was away.
    pub fn members(&mut self, members: &BTreeSet<Member>, is_cut: bool, now: Instant) {
        self.owners.retain(|(asker, _), _| members.contains(asker));
        let is_back = members.iter().any(|it| self.departed.contains(it));
        self.departed.extend(self.present.difference(members));
        self.departed.retain(|it| !members.contains(it));
        while self.departed.len() > MAX_OWNED {
            self.departed.pop_first();
        }
        self.present.clone_from(members);
        if is_cut || is_back {
            self.heard_since.iter_mut().chain(self.told_since.values_mut()).for_each(|it| *it = now);
        }
    }

    /// Takes a message of the group, in agreed order.
    pub fn message(&mut self, from: Member, message: &HostMessage, now: Instant) {
        match message {
            HostMessage::Taken { asker, claim, .. } => self.owned(*asker, *claim, from.node),
            HostMessage::Sync(sync) => {
                // One that lingers is kept for a daemon that is gone: its keeper owes no start.
                for it in sync.acting.iter().filter(|it| !it.held.lingers) {
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
            HostMessage::RecentOffs { offs, noted_ms } => {
                if let Some(ms) = noted_ms {
                    let since = now.checked_sub(Duration::from_millis(*ms)).unwrap_or(now);
                    self.told_since.insert(from, since);
                }
                while self.told_since.len() > MAX_OWNED {
                    self.told_since.pop_first();
                }
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

    /// Returns the message for a daemon that joins; none while this one hears nobody.
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
        let noted_ms = Some(age_ms(self.heard_since?));
        Some(HostMessage::RecentOffs { offs, noted_ms })
    }

    /// Judges whether a start that this daemon has owed for so long still stands.
    pub fn judge(&self, me: Member, uuid: &str, since: Duration, now: Instant) -> StartVerdict {
        let since = since.saturating_add(since / CLOCK_DRIFT);
        if self.without(me.node, uuid, since, now) {
            return StartVerdict::Overtaken("another host was asked for the domain since".to_owned());
        }
        let heard_all = |at: &Instant| now.saturating_duration_since(*at) > since;
        // What was asked for since this daemon joined it has heard itself.
        if self.told_since.iter().any(|(from, at)| *from != me && heard_all(at)) {
            return StartVerdict::Stands;
        }
        StartVerdict::Untold(format!(
            "no other host of the cluster has heard all requests of the last {} s: fence_virtd was started \
             anew there, is an older one, or the hosts had lost each other",
            since.as_secs()
        ))
    }

    /// Returns whether hosts other than this node took the domain down less than `since` ago, without it.
    fn without(&self, node: u32, uuid: &str, since: Duration, now: Instant) -> bool {
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
    use proptest::prelude::*;

    const A: Member = Member { node: 1, pid: 10 };
    const B: Member = Member { node: 2, pid: 20 };
    const C: Member = Member { node: 3, pid: 30 };
    const MINUTE: Duration = Duration::from_secs(60);

    fn seen_off(id: u64) -> HostMessage {
        HostMessage::SeenOff { id, victim: "u".to_owned() }
    }

    /// Returns the memory of a daemon that has heard all since then.
    fn heard_since(now: Instant) -> RecentOffs {
        let mut offs = RecentOffs::default();
        offs.joined(now);
        offs
    }

    /// Returns what the next daemon at a node is told by one that remembers this.
    fn told(offs: &mut RecentOffs, now: Instant) -> RecentOffs {
        let mut next = heard_since(now);
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
        offs.joined(start);
        offs.message(B, &seen_off(7), off);
        let next = told(&mut offs, now);
        assert!(next.without(1, "u", MINUTE, now));
        assert!(!next.without(1, "v", MINUTE, now));
        assert!(!next.without(1, "u", MINUTE / 4, now), "the reboot came after it");
        assert!(!next.without(2, "u", MINUTE, now), "it has written that down itself");
        let later = now + 2 * MINUTE;
        assert!(!told(&mut offs, later).without(1, "u", 3 * MINUTE, later), "nothing is owed any more");
    }

    /// Step of a course: what happens to the group.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A host takes the domain down, and says so to all that it hears.
        Off(u32),
        /// The fence_virtd of a host is started anew.
        Restart(u32),
        /// A host loses the others, takes the domain down alone if it has it, and comes back.
        Apart { host: u32, takes_down: bool, restarts: bool },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let host = || 2..=4_u32;
        let apart = (host(), any::<bool>(), any::<bool>());
        let step = prop_oneof![
            host().prop_map(Step::Off),
            host().prop_map(Step::Restart),
            apart.prop_map(|(host, takes_down, restarts)| Step::Apart { host, takes_down, restarts }),
        ];
        proptest::collection::vec(step, 0..6)
    }

    /// The daemons of three hosts, beside the one that owes a start.
    struct Group {
        daemons: BTreeMap<Member, RecentOffs>,
        now: Instant,
        next_pid: u32,
    }

    impl Group {
        fn at(&self, host: u32) -> Member {
            *self.daemons.keys().find(|it| it.node == host).unwrap()
        }

        fn change(&mut self, is_cut: bool, joined: bool) {
            let all: BTreeSet<Member> = self.daemons.keys().copied().collect();
            let now = self.now;
            self.daemons.values_mut().for_each(|it| it.members(&all, is_cut, now));
            if joined {
                let told: Vec<_> =
                    self.daemons.iter_mut().filter_map(|(m, it)| Some((*m, it.telling(now)?))).collect();
                for (from, message) in told {
                    self.daemons.values_mut().for_each(|it| it.message(from, &message, now));
                }
            }
        }

        fn join(&mut self, member: Member, mut daemon: RecentOffs) {
            daemon.joined(self.now);
            self.daemons.insert(member, daemon);
            self.change(false, true);
        }

        fn new_at(&mut self, node: u32) -> Member {
            self.next_pid += 1;
            Member { node, pid: self.next_pid }
        }

        fn take(&mut self, step: Step) {
            self.now += Duration::from_secs(1);
            match step {
                Step::Off(host) => {
                    let (from, now) = (self.at(host), self.now);
                    self.daemons.values_mut().for_each(|it| it.message(from, &seen_off(7), now));
                }
                Step::Restart(host) => {
                    self.daemons.remove(&self.at(host));
                    self.change(false, false);
                    let new = self.new_at(host);
                    self.join(new, RecentOffs::default());
                }
                Step::Apart { host, takes_down, restarts } => {
                    let member = self.at(host);
                    let mut daemon = self.daemons.remove(&member).unwrap();
                    self.change(true, false);
                    self.now += Duration::from_secs(1);
                    let now = self.now;
                    // Those that it does not hear any more have left, for it. It hears itself.
                    daemon.members(&[member].into(), true, now);
                    if takes_down {
                        daemon.message(member, &seen_off(8), now);
                    }
                    match restarts {
                        true => {
                            let new = self.new_at(host);
                            self.join(new, RecentOffs::default());
                        }
                        false => {
                            self.daemons.insert(member, daemon);
                            self.change(false, true);
                        }
                    }
                }
            }
        }
    }

    proptest! {
        /// Whatever restarts and whoever loses the others: no start stands after a host took the domain down
        /// since it is owed. Where one host has heard everything, and nothing was asked for, it does.
        #[test]
        fn no_owed_start_stands_after_a_newer_off(before in steps(), owed in steps()) {
            let start = Instant::now();
            let mut group = Group { daemons: BTreeMap::new(), now: start, next_pid: 100 };
            for node in 1..=4 {
                let new = group.new_at(node);
                group.join(new, RecentOffs::default());
            }
            before.iter().for_each(|it| group.take(*it));
            let owes_since = group.now + Duration::from_millis(500);
            group.daemons.remove(&group.at(1));
            group.change(false, false);
            owed.iter().for_each(|it| group.take(*it));
            group.now += Duration::from_secs(1);
            let new = group.new_at(1);
            group.join(new, RecentOffs::default());
            let since = group.now - owes_since;
            let verdict = group.daemons[&new].judge(new, "u", since, group.now);
            let is_off = |it: &Step| matches!(it, Step::Off(_) | Step::Apart { takes_down: true, .. });
            if owed.iter().any(is_off) {
                prop_assert_ne!(&verdict, &StartVerdict::Stands);
            }
            let restarted = |host| owed.iter().any(|it| matches!(it, Step::Restart(at) if *at == host));
            let is_calm = !owed.iter().any(|it| is_off(it) || matches!(it, Step::Apart { .. }));
            if is_calm && !(2..=4).all(restarted) {
                prop_assert_eq!(verdict, StartVerdict::Stands);
            }
        }
    }

    /// The reboot whose start is owed was seen off too: by its asker, or under the asker's claim.
    #[test]
    fn the_reboot_itself_is_no_later_request() {
        let (start, ask) = (Instant::now(), 5);
        let now = start + MINUTE;
        let claim = ClaimMessage {
            id: 7,
            what: AskAction::Reboot,
            target: "u".to_owned(),
            source: None,
            peer: None,
            possible: None,
            name: None,
            term_ms: None,
        };
        let held = InFlightClaim { claim, seen_off: false, lingers: false, answered: false, hangs: false };
        let acting = vec![ActingClaim { asker: B, ask, held }];
        let taken = HostMessage::Taken { asker: B, ask, claim: 7 };
        for owned in [taken, HostMessage::Sync(StateSync { acting, ..StateSync::default() })] {
            let mut offs = heard_since(start);
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
        let mut offs = heard_since(now);
        for id in 0..2 * u64::try_from(MAX_OWNED).unwrap() {
            offs.message(A, &HostMessage::Taken { asker: B, ask: id, claim: id }, now);
            offs.message(B, &HostMessage::SeenOff { id, victim: format!("{id:0128}") }, now);
        }
        assert_eq!((offs.offs.len(), offs.owners.len()), (MAX_OFFS, MAX_OWNED));
        assert!(offs.telling(now).unwrap().encode().unwrap().len() < MESSAGE_LIMIT);
        offs.members(&BTreeSet::from([A]), false, now);
        assert_eq!((offs.offs.len(), offs.owners.len()), (MAX_OFFS, 0));
    }
}
