// SPDX-License-Identifier: GPL-2.0-or-later
//! Cases that random schedules reach seldom, step by step.

use std::collections::VecDeque;
use std::sync::Arc;

use super::*;
use crate::arbiter::{ArbitratedAction, PossibleSources, RequestSource};
use crate::cluster::message::{AskAction, AskEnd, AskMessage};
use crate::domain::TargetKind;

/// Hosts, numbered from 0, and one order for what they say.
struct Net {
    hosts: Vec<ClusterArbiter>,
    /// Said, and not heard by anybody yet.
    out: Vec<VecDeque<HostMessage>>,
    /// Other effects of each host.
    done: Vec<Vec<ClaimEffect>>,
    group: BTreeSet<usize>,
    start: Instant,
}

/// Longest time in which an order of which nobody knows takes effect.
const UNKNOWN_LIMIT: Duration = Duration::from_secs(15);

/// Time after which no order is given for a claim any more.
const TERM: Duration = Duration::from_secs(26);

fn request(work: ArbitratedAction, source: RequestSource, at: Instant) -> ArbiterRequest {
    ArbiterRequest {
        id: 0,
        work,
        name: None,
        source,
        peer: None,
        sender: None,
        by: TargetKind::Name,
        arrived: at,
        deadline: at,
    }
}

fn member(host: usize) -> Member {
    let node = u32::try_from(host).unwrap() + 1;
    Member { node, pid: node * 10 }
}

fn outcome() -> AskOutcome {
    AskOutcome::new(Response::Success, None)
}

impl Net {
    /// All in one group, which has begun.
    fn new(hosts: usize) -> Self {
        let mut this = Self::apart(hosts);
        for host in 0..hosts {
            this.does(host, ClusterArbiter::joined);
        }
        this.change(&(0..hosts).collect::<Vec<_>>());
        this.settle();
        this
    }

    fn apart(hosts: usize) -> Self {
        let start = Instant::now();
        Self {
            hosts: (0..hosts).map(|it| ClusterArbiter::new(it as u64 * 1000, start)).collect(),
            out: vec![VecDeque::new(); hosts],
            done: vec![Vec::new(); hosts],
            group: BTreeSet::new(),
            start,
        }
    }

    fn does(&mut self, host: usize, what: impl FnOnce(&mut ClusterArbiter, Member) -> Vec<ClaimEffect>) {
        for effect in what(&mut self.hosts[host], member(host)) {
            match effect {
                ClaimEffect::Send(message) => self.out[host].push_back(message),
                effect => self.done[host].push(effect),
            }
        }
    }

    /// Tells them, and nobody else, that they are the members now.
    fn change(&mut self, hosts: &[usize]) {
        self.group = hosts.iter().copied().collect();
        let members = hosts.iter().map(|it| member(*it)).collect();
        for host in hosts {
            self.does(*host, |it, _| it.change(&members));
        }
    }

    /// The next message of this host is heard by all.
    fn order(&mut self, from: usize) {
        let message = self.out[from].pop_front().expect("something to say");
        for host in self.group.clone() {
            self.does(host, |it, _| it.message(member(from), &message));
        }
    }

    /// All that these say is heard, but nothing of the others.
    fn settle_these(&mut self, hosts: &[usize]) {
        while let Some(host) = hosts.iter().find(|it| !self.out[**it].is_empty()) {
            self.order(*host);
        }
    }

    fn settle(&mut self) {
        self.settle_these(&self.group.iter().copied().collect::<Vec<_>>());
    }

    fn shoot(&mut self, host: usize, target: &str, source: Option<&str>) -> u64 {
        self.claim(host, ArbitratedAction::Off(target.to_owned()), source)
    }

    fn claim(&mut self, host: usize, work: ArbitratedAction, source: Option<&str>) -> u64 {
        let source = source.map_or(RequestSource::Unknown, |it| RequestSource::Known(it.to_owned()));
        self.claim_from(host, &request(work, source, self.start))
    }

    /// By somebody with a key that these alone can have.
    fn shoot_by_one_of(&mut self, host: usize, target: &str, sources: &[impl AsRef<str>]) -> u64 {
        let source = RequestSource::OneOf(Arc::new(PossibleSources::new(sources, [""; 0])));
        let request = request(ArbitratedAction::Off(target.to_owned()), source, self.start);
        self.claim_from(host, &ArbiterRequest { name: Some("a name".into()), ..request })
    }

    fn claim_from(&mut self, host: usize, request: &ArbiterRequest) -> u64 {
        // No node that an unknown order could be of.
        let (id, effects) = self.hosts[host].claim(request, Some(Vec::new()), Some(TERM)).unwrap();
        self.does(host, |_, _| effects);
        id
    }

    /// As [`Self::shoot`], from a domain of which no host knows.
    fn shoot_from_nowhere(&mut self, host: usize, target: &str) -> u64 {
        let off = request(ArbitratedAction::Off(target.to_owned()), RequestSource::Unknown, self.start);
        let (id, effects) = self.hosts[host].claim(&off, None, Some(TERM)).unwrap();
        self.does(host, |_, _| effects);
        id
    }

    /// Corosync runs at all hosts, and so much time has passed.
    fn wait(&mut self, host: usize, seconds: u64) {
        let (now, all) = (self.start + Duration::from_secs(seconds), 1..=self.hosts.len());
        let nodes = all.map(|it| u32::try_from(it).unwrap()).collect();
        self.does(host, |it, _| it.heard_nodes(nodes));
        let terms = |_: &str, _| OrphanTerms { limit: UNKNOWN_LIMIT, ends_with_off: true };
        self.does(host, |it, _| it.expire_orphans(now, UNKNOWN_LIMIT, terms));
    }

    fn restore(&mut self, host: usize, target: &str, source: &str) -> u64 {
        let (work, source) =
            (ArbitratedAction::Off(target.to_owned()), RequestSource::Known(source.to_owned()));
        self.hosts[host].restore(&request(work, source, self.start))
    }

    /// Takes the effects of a host since the last call.
    fn done(&mut self, host: usize) -> Vec<ClaimEffect> {
        std::mem::take(&mut self.done[host])
    }

    /// An owner is asked, and is about to act.
    fn ask(&mut self, asker: usize, id: u64, owner: usize) {
        let claim = self.hosts[asker].of(id).cloned();
        let uuid = claim.as_ref().unwrap().target.clone();
        self.out[asker].push_back(HostMessage::Ask(AskMessage {
            to: member(owner),
            ask: 7,
            what: AskAction::Off,
            uuid,
            name: String::new(),
            claim,
            rests: false,
            left_ms: 0,
            request: 1,
            dry_run: None,
        }));
        self.settle();
        self.send_as_owner(owner, HostMessage::Taken { asker: member(asker), ask: 7, claim: id });
        self.settle();
    }

    fn send_as_owner(&mut self, host: usize, message: HostMessage) {
        self.does(host, |it, _| it.record_owner_message(&message));
        self.out[host].push_back(message);
    }

    fn reply(&mut self, owner: usize, asker: usize, id: u64) {
        let end = AskEnd::Done(outcome());
        self.send_as_owner(owner, HostMessage::Reply { asker: member(asker), ask: 7, claim: Some(id), end });
    }
}

/// Of several hosts that owe a start one is at it, and the others tell it what they see.
#[test]
fn a_start_in_flight_is_that_of_its_host_alone() {
    let mut net = Net::new(3);
    let start = || ArbitratedAction::On("x".to_owned());
    let of =
        |net: &Net| -> Vec<bool> { (0..3).map(|it| net.hosts[2].is_start_of(member(it), "x")).collect() };
    assert_eq!(of(&net), [false; 3], "nobody is at it");
    let first = net.claim(0, start(), None);
    net.claim(1, start(), None);
    net.settle();
    assert_eq!(of(&net), [true, false, false]);
    assert!(!net.hosts[2].is_start_of(member(0), "y"));
    net.does(0, |it, _| it.withdraw(first));
    net.settle();
    assert_eq!(of(&net), [false, true, false]);
    // Not while it is not known what the others do.
    net.change(&[0, 1, 2]);
    assert_eq!(of(&net), [false; 3]);
    net.settle();
    assert_eq!(of(&net), [false, true, false]);
    let mut net = Net::new(3);
    net.shoot(0, "x", None);
    net.settle();
    assert_eq!(of(&net), [false; 3], "an off is no start");
}

/// A daemon that is started anew waits for an order of the one before it, and so do all hosts.
#[test]
fn an_order_of_an_earlier_daemon_holds_up_what_conflicts_at_every_host() {
    let mut net = Net::apart(2);
    let left = net.restore(0, "b", "a");
    for host in 0..2 {
        net.does(host, ClusterArbiter::joined);
    }
    net.change(&[0, 1]);
    net.settle();
    let (again, back) = (net.shoot(1, "b", Some("a")), net.shoot(1, "a", Some("b")));
    net.settle();
    // The same victim once more is what the order wants too.
    assert_eq!(net.done(1), [ClaimEffect::Run(again)]);
    net.does(1, |it, _| it.finished(again, Response::Failure, None));
    net.settle();
    assert_eq!(net.done(1), []);
    net.does(0, |it, _| it.finished(left, Response::Failure, None));
    net.settle();
    assert_eq!((net.done(0), net.done(1)), (vec![], vec![ClaimEffect::Run(back)]));
}

/// All daemons were started anew, and one is not there yet: what may come from a domain of its host waits
/// until that daemon has told what it left, or for as long as an order takes effect.
#[test]
fn an_order_of_which_nobody_knows_holds_up_what_may_come_from_its_target() {
    for comes_back in [true, false] {
        let mut net = Net::apart(2);
        net.hosts[0].tell_earlier();
        net.does(0, ClusterArbiter::joined);
        let back = net.shoot_from_nowhere(0, "a");
        net.change(&[0]);
        net.wait(0, 0);
        net.settle();
        assert_eq!(net.done(0), [], "node 2 may have an order");
        assert_eq!(
            net.hosts[0].held().map(|(it, nodes)| (it.id, nodes)).collect::<Vec<_>>(),
            [(back, vec![2])]
        );
        if !comes_back {
            net.wait(0, 14);
            net.settle();
            assert_eq!(net.done(0), []);
            net.wait(0, 15);
            net.settle();
            assert_eq!(net.done(0), [ClaimEffect::Run(back)]);
            continue;
        }
        net.hosts[1].tell_earlier();
        let left = net.restore(1, "b", "a");
        net.does(1, ClusterArbiter::joined);
        net.change(&[0, 1]);
        net.settle();
        assert_eq!(net.done(0), [], "it has one");
        net.does(1, |it, _| it.seen_off(left));
        net.settle();
        assert_eq!(net.done(0), [ClaimEffect::Run(back), ClaimEffect::Victim("b".to_owned())]);
    }
}

/// A member that was there before knows each order of daemons that are gone, and tells it: nobody waits.
#[test]
fn who_is_told_by_a_member_of_before_holds_nothing_up() {
    let mut net = Net::apart(3);
    net.does(1, ClusterArbiter::joined);
    net.change(&[1]);
    net.wait(1, 0);
    net.wait(1, 15);
    net.does(0, ClusterArbiter::joined);
    net.wait(0, 100);
    let off = net.shoot_from_nowhere(0, "a");
    net.change(&[0, 1]);
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(off)], "node 3 has no daemon");
    // It passes that on.
    net.does(2, ClusterArbiter::joined);
    net.change(&[0, 2]);
    net.shoot_from_nowhere(2, "b");
    assert!(net.hosts[2].held().next().is_some());
    net.settle();
    assert!(net.hosts[2].held().next().is_none());
}

/// A daemon that has told what it left, and ends, leaves nothing unknown, as long as corosync hears its node.
#[test]
fn who_has_told_and_ends_holds_nothing_up() {
    for is_cut in [false, true] {
        let mut net = Net::apart(2);
        for host in 0..2 {
            net.hosts[host].tell_earlier();
            net.does(host, ClusterArbiter::joined);
        }
        net.change(&[0, 1]);
        net.settle();
        net.wait(0, 0);
        net.change(&[0]);
        if is_cut {
            net.does(0, |it, _| it.heard_nodes(BTreeSet::from([1])));
            net.wait(0, 1);
        }
        let off = net.shoot_from_nowhere(0, "a");
        net.settle();
        let held: Vec<_> = net.hosts[0].held().map(|(_, nodes)| nodes).collect();
        assert_eq!(held, if is_cut { vec![vec![2]] } else { vec![] });
        assert_eq!(net.done(0), if is_cut { vec![] } else { vec![ClaimEffect::Run(off)] });
    }
}

/// A request from a domain of a host whose daemon has told what it left waits for no other.
#[test]
fn a_known_source_waits_for_its_own_host_alone() {
    let mut net = Net::apart(3);
    net.hosts[0].tell_earlier();
    for host in 0..2 {
        net.does(host, ClusterArbiter::joined);
        net.wait(host, 0);
    }
    net.change(&[0, 1]);
    net.settle();
    let off = |target: &str, source: &str| {
        let source = RequestSource::Known(source.to_owned());
        request(ArbitratedAction::Off(target.to_owned()), source, Instant::now())
    };
    let (first, effects) = net.hosts[0].claim(&off("x", "a"), Some(vec![1]), Some(TERM)).unwrap();
    net.does(0, |_, _| effects);
    let (second, effects) = net.hosts[0].claim(&off("y", "b"), Some(vec![2]), Some(TERM)).unwrap();
    net.does(0, |_, _| effects);
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(first)]);
    assert_eq!(
        net.hosts[0].held().map(|(it, nodes)| (it.id, nodes)).collect::<Vec<_>>(),
        [(second, vec![2])]
    );
    // Without corosync it knows what it can.
    net.does(0, |it, _| it.lost());
    assert_eq!(net.done(0), [ClaimEffect::Run(second)]);
}

/// The same without other hosts.
#[test]
fn an_order_of_an_earlier_daemon_holds_up_what_conflicts_without_corosync() {
    let mut net = Net::apart(1);
    let left = net.restore(0, "b", "a");
    net.does(0, |it, _| it.lost());
    let back = net.shoot(0, "a", Some("b"));
    assert_eq!(net.done(0), []);
    net.does(0, |it, _| it.finished(left, Response::Failure, None));
    assert_eq!(net.done(0), [ClaimEffect::Run(back)]);
}

#[test]
fn of_two_that_shoot_each_other_from_two_hosts_the_second_never_runs() {
    let mut net = Net::new(3);
    let first = net.shoot(0, "b", Some("a"));
    let second = net.shoot(1, "a", Some("b"));
    net.order(1);
    net.order(0);
    assert_eq!(net.done(0), []);
    assert_eq!(net.done(1), [ClaimEffect::Run(second)]);
    assert_eq!(net.hosts[1].proved(second), Ok(()));
    net.does(1, |it, _| it.seen_off(second));
    net.settle();
    let victim = ClaimEffect::Victim("a".to_owned());
    assert_eq!(net.done(0), [ClaimEffect::Rejected(first, Rejection::SourceFenced), victim.clone()]);
    assert_eq!(net.done(2), [victim]);
    net.does(1, |it, _| it.finished(second, Response::Success, None));
    net.settle();
    assert!(net.hosts.iter().all(|it| it.counts() == (0, 0)));
}

#[test]
fn a_turn_that_crosses_a_withdrawal_goes_to_the_next() {
    let mut net = Net::new(2);
    let first = net.shoot(0, "b", Some("a"));
    let second = net.shoot(1, "a", Some("b"));
    net.does(0, |it, _| it.withdraw(first));
    net.order(0);
    // Both replicas say that it runs now; its host knows better.
    net.order(1);
    assert_eq!((net.done(0), net.done(1)), (vec![], vec![]));
    net.settle();
    assert_eq!((net.done(0), net.done(1)), (vec![], vec![ClaimEffect::Run(second)]));
}

#[test]
fn the_same_work_is_done_once_for_all_hosts() {
    let mut net = Net::new(2);
    let first = net.shoot(0, "c", Some("a"));
    let second = net.shoot(1, "c", Some("b"));
    net.settle();
    assert_eq!((net.done(0), net.done(1)), (vec![ClaimEffect::Run(first)], vec![]));
    net.does(0, |it, _| it.finished(first, Response::Failure, Some("why")));
    net.settle();
    let told = SharedResult {
        response: Response::Failure,
        reason: Some("why".to_owned()),
        by: "one of node 1".to_owned(),
    };
    assert_eq!(net.done(1), [ClaimEffect::Coalesced(second, told)]);
}

#[test]
fn an_owner_holds_the_claim_when_its_asker_has_given_up() {
    let mut net = Net::new(3);
    let first = net.shoot(0, "b", Some("a"));
    net.settle();
    net.ask(0, first, 1);
    let second = net.shoot(2, "a", Some("b"));
    net.does(0, |it, _| it.finished(first, Response::Failure, None));
    net.settle();
    assert_eq!(net.done(2), []);
    net.reply(1, 0, first);
    net.settle();
    assert_eq!(net.done(2), [ClaimEffect::Run(second)]);
}

#[test]
fn an_owner_holds_the_claim_when_its_asker_is_gone() {
    let mut net = Net::new(3);
    let first = net.shoot(0, "b", Some("a"));
    net.settle();
    net.ask(0, first, 1);
    let second = net.shoot(2, "a", Some("b"));
    net.settle();
    net.change(&[1, 2]);
    net.settle();
    assert_eq!(net.done(2), []);
    // It is what the owner sees that counts now.
    let (asker, victim) = (member(0), "b".to_owned());
    net.send_as_owner(
        1,
        HostMessage::Progress { asker, ask: 7, claim: first, victim, was_off: false, starts: false },
    );
    net.settle();
    assert_eq!(
        net.done(2),
        [ClaimEffect::Rejected(second, Rejection::SourceFenced), ClaimEffect::Victim("b".to_owned())]
    );
    net.reply(1, 0, first);
    net.settle();
    assert_eq!(net.hosts[2].counts(), (0, 0));
}

#[test]
fn what_waits_for_a_host_that_went_never_runs() {
    let mut net = Net::new(3);
    let _ = net.shoot(0, "b", Some("a"));
    let second = net.shoot(1, "a", Some("b"));
    let other = net.shoot(1, "d", Some("e"));
    let same = net.shoot(2, "b", Some("c"));
    net.settle();
    assert_eq!(net.done(1), [ClaimEffect::Run(other)]);
    net.change(&[1, 2]);
    net.settle();
    // The host that went may be shooting the source at this moment.
    assert_eq!(net.done(1), [ClaimEffect::Rejected(second, Rejection::HostsApart)]);
    // The same shot once more spoils nothing.
    assert_eq!(net.done(2), [ClaimEffect::Run(same)]);
    assert_eq!(net.hosts[1].proved(other), Ok(()));
}

#[test]
fn a_change_in_the_middle_of_a_change_is_no_way_round_that() {
    let mut net = Net::new(3);
    let _ = net.shoot(0, "b", Some("a"));
    let second = net.shoot(1, "a", Some("b"));
    net.settle();
    net.change(&[0, 1]);
    net.settle_these(&[1]);
    net.change(&[1]);
    net.settle();
    assert_eq!(net.done(1), [ClaimEffect::Rejected(second, Rejection::HostsApart)]);
}

#[test]
fn what_was_granted_stands_over_a_change_and_holds_up_others() {
    let mut net = Net::new(2);
    let first = net.shoot(0, "b", Some("a"));
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(first)]);
    net.change(&[0, 1]);
    let _ = net.shoot(1, "a", Some("b"));
    net.settle();
    assert_eq!(net.done(1), []);
    assert_eq!(net.hosts[0].proved(first), Ok(()));
}

#[test]
fn nothing_new_runs_before_all_have_spoken() {
    let mut net = Net::new(2);
    net.change(&[0, 1]);
    let claim = net.shoot(0, "b", Some("a"));
    net.settle_these(&[0]);
    assert_eq!(net.done(0), []);
    assert_eq!(net.hosts[0].silent(), [(member(1), true)]);
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(claim)]);
    assert_eq!(net.hosts[0].silent(), []);
}

/// Two changes, and what was said after the first is heard after the second.
#[test]
fn a_sync_of_an_earlier_membership_does_not_count() {
    let mut net = Net::new(2);
    net.change(&[0, 1]);
    net.change(&[0, 1]);
    let claim = net.shoot(0, "b", Some("a"));
    net.settle_these(&[0]);
    // The first of the two.
    net.order(1);
    assert_eq!(net.done(0), []);
    assert_eq!(net.hosts[0].silent(), [(member(1), true)]);
    net.order(1);
    assert_eq!(net.hosts[0].silent(), [(member(1), true)]);
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(claim)]);
}

#[test]
fn a_silent_member_is_passed_over_with_what_it_has_in_flight() {
    let mut net = Net::new(3);
    let first = net.shoot(2, "b", Some("a"));
    net.settle();
    assert_eq!(net.done(2), [ClaimEffect::Run(first)]);
    net.change(&[0, 1, 2]);
    let second = net.shoot(0, "a", Some("b"));
    let other = net.shoot(1, "d", Some("e"));
    net.settle_these(&[0, 1]);
    net.does(0, |it, _| it.pass_over(member(2)));
    net.settle_these(&[0, 1]);
    assert_eq!((net.done(0), net.done(1)), (vec![], vec![ClaimEffect::Run(other)]));
    // It goes on, and says that nothing came of it.
    assert_eq!(net.hosts[2].proved(first), Ok(()));
    net.does(2, |it, _| it.withdraw(first));
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(second)]);
}

/// One that came lately can't say what a silent member has in flight: nothing holds that up elsewhere.
#[test]
fn a_turn_that_others_know_nothing_of_is_none() {
    let mut net = Net::new(2);
    let first = net.shoot(1, "b", Some("a"));
    net.settle();
    assert_eq!(net.done(1), [ClaimEffect::Run(first)]);
    net.hosts[0] = ClusterArbiter::new(500, net.start);
    net.does(0, ClusterArbiter::joined);
    net.change(&[0, 1]);
    net.settle_these(&[0]);
    assert_eq!(net.hosts[0].silent(), [(member(1), false)]);
    net.does(0, |it, _| it.pass_over(member(1)));
    net.settle_these(&[0]);
    assert_eq!(net.hosts[1].proved(first), Err(Rejection::TurnLost));
    net.does(1, |it, _| it.withdraw(first));
    net.settle();
    assert_eq!(net.hosts[0].counts(), (0, 0));
}

#[test]
fn alone_a_host_decides_by_itself() {
    let mut net = Net::apart(1);
    let first = net.shoot(0, "b", None);
    // It may still find the others.
    assert_eq!(net.done(0), []);
    assert!(net.hosts[0].is_joining());
    net.does(0, |it, _| it.lost());
    assert!(!net.hosts[0].is_joining());
    // That is no news.
    net.does(0, |it, _| it.lost());
    assert_eq!(net.done(0), [ClaimEffect::Run(first)]);
    let second = net.shoot(0, "a", None);
    assert_eq!(net.done(0), []);
    assert_eq!(net.hosts[0].proved(first), Ok(()));
    net.does(0, |it, _| it.seen_off(first));
    assert_eq!(net.done(0), [ClaimEffect::Run(second)]);
    net.does(0, |it, _| it.finished(first, Response::Success, None));
    net.does(0, |it, _| it.finished(second, Response::Success, None));
    assert_eq!(net.hosts[0].counts(), (0, 0));
    assert!(net.out[0].is_empty());
}

#[test]
fn a_host_that_lost_corosync_goes_on_with_what_nobody_objects_to() {
    let mut net = Net::new(2);
    let _ = net.shoot(1, "b", Some("a"));
    let dangerous = net.shoot(0, "a", Some("b"));
    let same = net.shoot(0, "b", Some("c"));
    let granted = net.shoot(0, "d", Some("e"));
    net.order(1);
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(granted)]);
    net.does(0, |it, _| it.lost());
    assert_eq!(
        net.done(0),
        [ClaimEffect::Rejected(dangerous, Rejection::HostsApart), ClaimEffect::Run(same)]
    );
    assert_eq!(net.hosts[0].proved(granted), Ok(()));
    assert_eq!(net.hosts[0].proved(same), Ok(()));
}

#[test]
fn what_was_decided_without_the_group_is_decided_anew_in_it() {
    let mut net = Net::apart(2);
    for host in 0..2 {
        net.does(host, |it, _| it.lost());
    }
    let proved = net.shoot(0, "b", Some("a"));
    let unproved = net.shoot(0, "d", Some("c"));
    let other = net.shoot(1, "c", Some("d"));
    assert_eq!(net.hosts[0].proved(proved), Ok(()));
    assert_eq!(net.hosts[1].proved(other), Ok(()));
    assert_eq!(net.done(0), [ClaimEffect::Run(proved), ClaimEffect::Run(unproved)]);
    for host in 0..2 {
        net.does(host, ClusterArbiter::joined);
    }
    assert_eq!(net.hosts[0].proved(unproved), Err(Rejection::TurnLost));
    net.change(&[0, 1]);
    net.settle();
    // The other host is in the middle of shooting its source.
    assert_eq!(net.hosts[0].proved(unproved), Err(Rejection::TurnLost));
    net.does(1, |it, _| it.finished(other, Response::Failure, None));
    net.settle();
    assert_eq!(net.hosts[0].proved(unproved), Ok(()));
    assert_eq!(net.hosts[0].counts(), (2, 0));
}

#[test]
fn two_halves_meet_in_the_middle_of_their_work() {
    let mut net = Net::new(3);
    net.change(&[1, 2]);
    net.settle();
    let second = net.shoot(1, "a", Some("b"));
    net.settle();
    let half = std::mem::take(&mut net.done[1]);
    assert_eq!(half, [ClaimEffect::Run(second)]);
    net.change(&[0]);
    let first = net.shoot(0, "b", Some("a"));
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(first)]);
    net.change(&[0, 1, 2]);
    let third = net.shoot(2, "b", None);
    net.settle();
    // Both stand, and what comes later waits for both: it does the same as the first.
    assert_eq!(net.hosts[0].counts(), (2, 1));
    net.does(0, |it, _| it.withdraw(first));
    net.settle();
    assert_eq!(net.done(2), []);
    net.does(1, |it, _| it.finished(second, Response::Failure, None));
    net.settle();
    assert_eq!(net.done(2), [ClaimEffect::Run(third)]);
}

#[test]
fn a_source_that_goes_down_before_all_have_spoken_asks_no_more() {
    let mut net = Net::new(2);
    let first = net.shoot(0, "b", Some("a"));
    net.settle();
    let second = net.shoot(1, "a", Some("b"));
    net.settle();
    net.does(0, |it, _| it.seen_off(first));
    // Said before the change, and heard after it.
    net.change(&[0, 1]);
    net.order(0);
    let never = ClaimEffect::Rejected(second, Rejection::SourceFenced);
    assert_eq!(net.done(1), [ClaimEffect::Victim("b".to_owned()), never]);
    net.does(0, |it, _| it.finished(first, Response::Success, None));
    net.settle();
    assert_eq!(net.done(1), []);
    assert_eq!(net.hosts[1].counts(), (0, 0));
}

#[test]
fn a_source_that_goes_down_before_its_proof_is_not_believed() {
    let mut net = Net::new(2);
    let claim = net.shoot(0, "b", Some("a"));
    net.settle();
    // Shot by what the two halves of a cluster had in flight.
    net.out[1].push_back(HostMessage::SeenOff { id: 1, victim: "a".to_owned() });
    net.settle();
    assert_eq!(net.hosts[0].proved(claim), Err(Rejection::SourceFenced));
    // Started again it may ask again.
    let anew = net.shoot(0, "c", Some("a"));
    net.does(0, |it, _| it.withdraw(claim));
    net.settle();
    assert!(net.done(0).contains(&ClaimEffect::Run(anew)));
}

/// A daemon stands still in the middle of an off: the others say so when its order can take effect no more,
/// not before, and go on.
#[test]
fn a_member_that_holds_a_claim_for_longer_than_its_term_is_passed_over() {
    let mut net = Net::new(3);
    let stuck = net.shoot(2, "a", None);
    net.settle();
    assert_eq!(net.done(2), [ClaimEffect::Run(stuck)]);
    assert_eq!(net.hosts[2].proved(stuck), Ok(()));
    let waits = net.shoot(0, "b", None);
    net.wait(0, 0);
    net.wait(0, TERM.as_secs() + UNKNOWN_LIMIT.as_secs());
    net.settle();
    assert_eq!(net.done(0), []);
    net.wait(0, TERM.as_secs() + UNKNOWN_LIMIT.as_secs() + 3);
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(waits)]);
    // It goes on, and has nothing to say any more.
    net.does(2, |it, _| it.finished(stuck, Response::Failure, None));
    net.settle();
    assert_eq!(net.hosts[0].proved(waits), Ok(()));
    assert_eq!(net.hosts.iter().map(ClusterArbiter::counts).collect::<Vec<_>>(), [(1, 0); 3]);
}

#[test]
fn a_grant_of_a_member_that_was_passed_over_is_none() {
    let mut net = Net::new(2);
    let stuck = net.shoot(1, "a", None);
    net.settle();
    assert_eq!(net.done(1), [ClaimEffect::Run(stuck)]);
    net.wait(0, 0);
    net.wait(0, 60);
    net.settle();
    assert_eq!(net.hosts[1].proved(stuck), Err(Rejection::TurnLost));
}

/// A call hangs in its hypervisor: the host lives, and says that the order may still take effect.
#[test]
fn a_member_that_says_that_it_holds_a_claim_keeps_it() {
    let mut net = Net::new(2);
    let hangs = net.shoot(1, "a", None);
    net.settle();
    assert_eq!((net.done(1), net.hosts[1].proved(hangs)), (vec![ClaimEffect::Run(hangs)], Ok(())));
    for second in 0..200 {
        net.wait(0, second);
        net.wait(1, second);
        net.settle();
    }
    // Its word and that of the other cross.
    net.wait(0, 300);
    net.wait(1, 300);
    net.order(1);
    net.settle();
    let waits = net.shoot(0, "b", None);
    net.settle();
    assert_eq!(net.done(0), []);
    net.does(1, |it, _| it.finished(hangs, Response::Success, None));
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(waits)]);
}

/// A claim of the last release says no end.
#[test]
fn a_claim_without_an_end_is_held() {
    let mut net = Net::new(2);
    let off = request(ArbitratedAction::Off("a".to_owned()), RequestSource::Unknown, net.start);
    let (held, effects) = net.hosts[1].claim(&off, Some(Vec::new()), None).unwrap();
    net.does(1, |_, _| effects);
    net.settle();
    assert_eq!(net.done(1), [ClaimEffect::Run(held)]);
    net.shoot(0, "b", None);
    net.wait(0, 0);
    net.wait(0, 1000);
    net.settle();
    assert_eq!(net.done(0), []);
}

#[test]
fn a_host_does_not_take_more_than_it_can_tell() {
    let mut net = Net::new(1);
    let members: Vec<String> =
        (0..24).map(|it| format!("ffffffff-ffff-ffff-ffff-ffffffffff{it:02}")).collect();
    for it in 0..CLAIM_LIMIT {
        let target = format!("ffffffff-ffff-ffff-ffff-ffffffff{it:04}");
        net.shoot_by_one_of(0, &target, &members);
    }
    net.settle();
    let request = request(ArbitratedAction::Off("one more".to_owned()), RequestSource::Unknown, net.start);
    assert_eq!(net.hosts[0].claim(&request, None, None).unwrap_err(), Rejection::ClaimsFull);
    net.change(&[0]);
    let Some(HostMessage::Sync(sync)) = net.out[0].front() else { panic!("no sync") };
    assert_eq!(sync.in_flight.len() + sync.waiting.len(), CLAIM_LIMIT);
    assert!(net.out[0].front().unwrap().encode().is_ok());
}

/// Each host that works on it has to say so, and a change of the membership does not make it forgotten.
#[test]
fn a_power_off_that_hangs_holds_up_what_comes_from_its_target_and_nothing_else() {
    let mut net = Net::new(3);
    let hung = net.shoot(0, "a", Some("b"));
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(hung)]);
    net.hosts[0].proved(hung).unwrap();
    net.ask(0, hung, 1);
    net.settle();
    let from_a = net.shoot(2, "c", Some("a"));
    let first = net.shoot(2, "d", None);
    net.settle();
    assert_eq!(net.done(2), []);
    net.send_as_owner(1, HostMessage::Hangs { asker: member(0), claim: hung, ask: Some(7) });
    net.settle();
    assert_eq!(net.done(2), [], "the asker has not said so");
    net.does(0, |it, _| it.answered(hung, LateEffect::HangingOff, Response::Failure, None));
    net.settle();
    assert_eq!(net.done(2), [ClaimEffect::Run(first)]);
    net.does(2, |it, _| it.finished(first, Response::Success, None));
    net.settle();
    net.change(&[0, 1, 2]);
    net.settle();
    let second = net.shoot(2, "d", None);
    net.settle();
    assert_eq!(net.done(2), [ClaimEffect::Run(second)]);
    net.does(2, |it, _| it.finished(second, Response::Success, None));
    net.reply(1, 0, hung);
    net.does(0, |it, _| it.finished(hung, Response::Failure, None));
    net.settle();
    assert_eq!(net.done(2), [ClaimEffect::Run(from_a)]);
}

/// Two clusters with groups and keys of their own, at hosts of one group: what one of them has in flight
/// holds up its own requests at all hosts, and none of the other's, also after a change of the membership.
#[test]
fn islands_that_do_not_meet_do_not_wait_for_each_other_at_other_hosts() {
    let (red, blue) = (["r1", "r2"], ["b1", "b2"]);
    let mut net = Net::new(3);
    let stuck = net.shoot_by_one_of(0, "r1", &red);
    net.settle();
    assert_eq!(net.done(0), [ClaimEffect::Run(stuck)]);
    for change in [false, true] {
        if change {
            net.change(&[0, 1, 2]);
            net.settle();
        }
        let waits = net.shoot_by_one_of(1, "r2", &red);
        let both = net.shoot_by_one_of(1, "b2", &["r1", "b1", "b2"]);
        let first = net.shoot_by_one_of(2, "b1", &blue);
        net.settle();
        assert_eq!(net.done(1), [], "{change}");
        assert_eq!(net.done(2), [], "an earlier one may come from its target");
        for id in [both, waits] {
            net.does(1, |it, _| it.withdraw(id));
        }
        net.settle();
        assert_eq!(net.done(2), [ClaimEffect::Run(first)]);
        net.does(2, |it, _| it.finished(first, Response::Success, None));
        net.settle();
    }
}
