// SPDX-License-Identifier: GPL-2.0-or-later
//! One test per sentence of the rules. `off("b").from("a")` reads: a request to power b off, from domain a.

use super::ArbiterDecision::{Deliver, Drop, Run};
use super::*;

/// A daemon's arbiter, and seconds since it started.
struct Rig {
    arbiter: Arbiter,
    start: Instant,
}

impl Rig {
    fn new() -> Self {
        Self { arbiter: Arbiter::default(), start: Instant::now() }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    /// Submitted at the start.
    fn ask(&mut self, id: u64, ask: Ask) -> Result<SubmitResult, Rejection> {
        self.ask_at(0, id, ask)
    }

    fn ask_at(&mut self, seconds: u64, id: u64, ask: Ask) -> Result<SubmitResult, Rejection> {
        let Ask { work, source, peer, sender, arrived, deadline } = ask;
        let name = work.target().map(|it| format!("name of {it}").as_str().into());
        let (arrived, deadline) = (self.at(arrived), self.at(deadline));
        self.arbiter.submit(
            self.at(seconds),
            ArbiterRequest { id, work, name, source, peer, sender, by: TargetKind::Name, arrived, deadline },
        )
    }

    fn seen_off(&mut self, id: u64) -> Vec<ArbiterDecision> {
        self.seen_off_since(0, id)
    }

    /// By a look that began at this second.
    fn seen_off_since(&mut self, since: u64, id: u64) -> Vec<ArbiterDecision> {
        self.arbiter.seen_off(self.at(1), self.at(since), id)
    }

    fn finished(&mut self, id: u64) -> Vec<ArbiterDecision> {
        self.arbiter.finished(self.at(1), id)
    }

    fn abandoned(&mut self, id: u64) -> Vec<ArbiterDecision> {
        self.arbiter.abandoned(self.at(1), id)
    }

    fn withdraw(&mut self, id: u64, why: Rejection) -> Vec<ArbiterDecision> {
        self.arbiter.withdraw(self.at(1), id, why)
    }

    fn is_empty(&self) -> bool {
        self.arbiter.entries.is_empty()
    }
}

/// A request: arrived at the start, 30 s to go, from nobody knows whom.
#[derive(Clone)]
struct Ask {
    work: ArbitratedAction,
    source: RequestSource,
    peer: Option<PeerId>,
    sender: Option<SenderId>,
    arrived: u64,
    deadline: u64,
}

impl Ask {
    fn new(work: ArbitratedAction) -> Self {
        Self { work, source: RequestSource::Unknown, peer: None, sender: None, arrived: 0, deadline: 30 }
    }

    fn from(self, domain: &str) -> Self {
        Self { source: RequestSource::Known(domain.into()), ..self }
    }

    /// From one of these, by UUID or by the name that [`Rig::ask_at`] gives each target.
    fn by_one_of(self, uuids: &[&str], names: &[&str]) -> Self {
        let sources = PossibleSources::new(uuids.iter().map(|it| (*it).to_owned()), names);
        Self { source: RequestSource::OneOf(Arc::new(sources)), ..self }
    }

    fn at(self, peer: &str) -> Self {
        Self { peer: Some(PeerId(peer.into())), ..self }
    }

    fn arrived(self, arrived: u64) -> Self {
        Self { arrived, ..self }
    }

    fn until(self, deadline: u64) -> Self {
        Self { deadline, ..self }
    }
}

fn off(target: &str) -> Ask {
    Ask::new(ArbitratedAction::Off(target.into()))
}

fn on(target: &str) -> Ask {
    Ask::new(ArbitratedAction::On(target.into()))
}

fn reboot(target: &str) -> Ask {
    Ask::new(ArbitratedAction::Reboot(target.into()))
}

fn look() -> Ask {
    Ask::new(ArbitratedAction::Look)
}

const RUN: Result<SubmitResult, Rejection> = Ok(SubmitResult::Run);
const WAIT: Result<SubmitResult, Rejection> = Ok(SubmitResult::Wait);

fn joined(leader: u64) -> Result<SubmitResult, Rejection> {
    Ok(SubmitResult::Joined(leader))
}

/// Returns true where the second waits for the first.
fn conflict(first: Ask, second: Ask) -> bool {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, first), RUN);
    match rig.ask(2, second) {
        Ok(SubmitResult::Run) => false,
        Ok(SubmitResult::Wait) => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_nodes_that_shoot_at_each_other_conflict() {
    assert!(conflict(off("b").from("a"), off("a").from("b")));
    assert!(conflict(reboot("b").from("a"), reboot("a").from("b")));
    assert!(conflict(reboot("b").from("a"), off("a").from("b")));
}

#[test]
fn one_sided_danger_conflicts_in_either_order() {
    assert!(conflict(off("b").from("a"), off("c").from("b")));
    assert!(conflict(off("c").from("b"), off("b").from("a")));
}

#[test]
fn known_sources_are_exact() {
    assert!(!conflict(off("c").from("a"), off("d").from("b")));
    assert!(!conflict(off("c").from("a"), off("d").from("a")));
    assert!(!conflict(off("c").from("a").at("p"), off("d").from("b").at("q")));
}

#[test]
fn an_unknown_source_may_be_any_domain() {
    assert!(conflict(off("c"), off("d")));
    assert!(conflict(off("c").from("a"), off("d")));
    assert!(conflict(off("c"), off("d").from("a")));
    assert!(conflict(off("c").at("p"), off("d").at("q")));
    assert!(conflict(off("c").at("p"), off("d")));
}

#[test]
fn unless_both_come_from_one_peer() {
    assert!(!conflict(off("c").at("p"), off("d").at("p")));
    assert!(!conflict(off("c").at("p"), reboot("d").at("p")));
    // The domain of one of them was found: the other's is the same machine.
    assert!(!conflict(off("c").from("a").at("p"), off("d").at("p")));
    // A known source is exact, one peer or not: a shoots itself here.
    assert!(conflict(off("a").from("a").at("p"), off("d").from("a").at("p")));
}

#[test]
fn a_key_of_few_comes_by_one_of_these() {
    let red = || off("red1").by_one_of(&["red1", "red2"], &[]);
    let blue = || off("blue1").by_one_of(&["blue1"], &["name of blue2"]);
    assert!(!conflict(red(), blue()));
    assert!(!conflict(blue(), red()));
    assert!(conflict(off("red2"), red()));
    assert!(conflict(off("blue2").from("x"), blue()));
    assert!(!conflict(off("blue2").at("p"), blue().at("p")));
    assert!(!conflict(off("blue3").from("x"), blue()));
    // A source that is not known at all may be any domain.
    assert!(conflict(red(), off("blue1")));
    // A domain of both is where the two meet.
    let both = || off("x").by_one_of(&["red1", "blue1"], &[]);
    assert!(conflict(red(), both()));
    assert!(conflict(blue(), both()));
}

#[test]
fn what_hangs_holds_up_its_own_island() {
    let mut rig = Rig::new();
    let (red, blue) = (["red1", "red2"], ["blue1", "blue2"]);
    assert_eq!(rig.ask(1, off("red1").by_one_of(&red, &[])), RUN);
    let one = rig.at(1);
    assert_eq!(rig.arbiter.answered(one, 1, false, LateEffect::Any), []);
    assert_eq!(rig.ask(2, off("red2").by_one_of(&red, &[])), WAIT);
    assert_eq!(rig.ask(3, off("blue1").by_one_of(&blue, &[])), RUN);
    assert_eq!(rig.ask(4, off("blue2").from("blue1")), WAIT);
    assert_eq!(rig.seen_off(3), [Drop(4, Rejection::SourceFenced)]);
    assert_eq!(rig.finished(1), [Run(2)]);
}

#[test]
fn a_target_whose_name_is_not_known_may_be_any_of_the_names() {
    let sources = PossibleSources::new(["a".to_owned()], ["n"]);
    let name = |it: &str| Some(TargetName::from(it));
    assert!(sources.hold("a", name("x").as_ref()) && sources.hold("b", name("N").as_ref()));
    assert!(sources.hold("b", None) && !sources.hold("b", name("x").as_ref()));
}

#[test]
fn other_work_on_one_target_conflicts_whoever_asks() {
    for (first, second) in
        [(off("c"), reboot("c")), (reboot("c"), off("c")), (off("c"), on("c")), (on("c"), off("c"))]
    {
        assert!(conflict(first.clone().from("a"), second.clone().from("b")));
        assert!(conflict(first.at("p"), second.at("p")));
    }
}

#[test]
fn a_start_conflicts_with_nothing_but_its_own_target() {
    assert!(!conflict(on("b"), off("a")));
    assert!(!conflict(off("a"), on("b")));
    assert!(!conflict(on("b").from("a"), off("a").from("b")));
    assert!(!conflict(on("b"), on("a")));
}

#[test]
fn a_look_never_waits_and_holds_up_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("a")), RUN);
    assert_eq!(rig.ask(2, reboot("a")), WAIT);
    assert_eq!(rig.ask(3, look()), RUN);
    assert_eq!(rig.finished(3), []);
    assert_eq!(rig.finished(1), [Run(2)]);
    assert_eq!(rig.finished(2), []);
    assert!(rig.is_empty());
}

#[test]
fn conflicting_ones_run_in_order_of_arrival_and_others_at_once() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("c").from("b")), WAIT);
    // In conflict with 2 alone, which waits.
    assert_eq!(rig.ask(3, off("d").from("c")), WAIT);
    assert_eq!(rig.ask(4, off("x").from("y")), RUN);
    // 1 fails: b is still up.
    assert_eq!(rig.finished(1), [Run(2)]);
    assert_eq!(rig.finished(2), [Run(3)]);
}

#[test]
fn a_known_source_that_was_fenced_never_runs() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("a").from("b")), WAIT);
    assert_eq!(rig.seen_off(1), [Drop(2, Rejection::SourceFenced)]);
    assert_eq!(rig.finished(1), []);
    assert!(rig.is_empty());
}

#[test]
fn a_fenced_source_takes_its_start_and_its_joined_requests_with_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("c").from("d")), RUN);
    assert_eq!(rig.ask(3, off("c").from("b")), joined(2));
    assert_eq!(rig.ask(4, on("c").from("b")), WAIT);
    assert_eq!(rig.ask(5, off("c").from("a")), WAIT);
    assert_eq!(rig.ask(6, off("c").from("b")), joined(5));
    let fenced = Rejection::SourceFenced;
    assert_eq!(rig.seen_off(1), [Drop(3, fenced), Drop(4, fenced), Drop(6, fenced)]);
    assert_eq!(rig.finished(2), [Run(5)]);
}

#[test]
fn an_unknown_source_is_left_to_the_late_proof() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("b")), RUN);
    assert_eq!(rig.ask(2, off("a")), WAIT);
    assert_eq!(rig.seen_off(1), [Run(2)]);
    assert_eq!(rig.abandoned(2), []);
}

#[test]
fn a_source_fenced_between_arrival_and_submission_is_refused_and_one_started_since_is_not() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, reboot("b").from("a")), RUN);
    assert_eq!(rig.seen_off(1), []);
    assert_eq!(rig.ask_at(2, 2, off("a").from("b").arrived(0)), Err(Rejection::SourceFenced));
    assert_eq!(rig.ask_at(2, 3, look().from("b").arrived(1)), Err(Rejection::SourceFenced));
    assert_eq!(rig.ask_at(2, 4, off("a").from("b").arrived(2)), RUN);
    assert_eq!(rig.ask_at(3, 5, look().from("a").arrived(0)), RUN);
}

#[test]
fn what_arrived_longer_ago_than_victims_are_remembered_is_refused() {
    let mut rig = Rig::new();
    let memory = VICTIM_MEMORY.as_secs();
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.seen_off(1), []);
    assert_eq!(rig.finished(1), []);
    assert_eq!(rig.ask_at(memory, 2, off("a").from("b").until(1000)), Err(Rejection::DeadlinePassed));
    assert_eq!(
        rig.ask_at(memory, 3, off("a").from("b").arrived(1).until(1000)),
        Err(Rejection::SourceFenced)
    );
    // Forgotten when the next victim comes.
    assert_eq!(rig.ask_at(memory, 4, off("c").from("a").arrived(9).until(1000)), RUN);
    assert_eq!(rig.arbiter.victims.len(), 1);
    let late = rig.at(1 + memory);
    assert_eq!(rig.arbiter.seen_off(late, late, 4), []);
    assert_eq!(rig.arbiter.victims, [("c".to_owned(), late)]);
}

#[test]
fn victims_are_remembered_once_each_and_not_without_limit() {
    let mut rig = Rig::new();
    let mut fence = |id: u64, target: &str| {
        assert_eq!(rig.ask(id, off(target)), RUN);
        assert_eq!(rig.seen_off(id), []);
        assert_eq!(rig.finished(id), []);
        rig.arbiter.victims.len()
    };
    assert_eq!([fence(1, "a"), fence(2, "b"), fence(3, "a")], [1, 2, 2]);
    for id in 0..VICTIM_LIMIT as u64 - 2 {
        fence(10 + id, &format!("c{id}"));
    }
    assert_eq!(fence(5000, "d"), VICTIM_LIMIT);
    // b was the oldest.
    assert_eq!(rig.ask(5001, look().from("a")), Err(Rejection::SourceFenced));
    assert_eq!(rig.ask(5002, look().from("b")), RUN);
}

#[test]
fn seen_off_releases_danger_and_not_the_same_target() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, reboot("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("b").from("c")), WAIT);
    assert_eq!(rig.ask(3, off("a").from("d")), WAIT);
    assert_eq!(rig.seen_off(1), [Run(3)]);
    assert_eq!(rig.seen_off(1), []);
    assert_eq!(rig.ask(4, off("a").from("e")), joined(3));
    assert_eq!(rig.ask(5, on("b").from("c")), WAIT);
    assert_eq!(rig.finished(1), [Run(2)]);
    assert_eq!(rig.finished(2), [Run(5)]);
}

#[test]
fn danger_to_a_request_that_is_past_it_holds_up_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, reboot("b")), RUN);
    assert_eq!(rig.seen_off(1), []);
    assert_eq!(rig.ask(2, off("a")), RUN);
}

#[test]
fn the_same_work_is_done_once_and_all_are_told() {
    for work in [off, reboot, on] {
        let mut rig = Rig::new();
        assert_eq!(rig.ask(1, work("c").from("a")), RUN);
        assert_eq!(rig.ask(2, work("c").from("b")), joined(1));
        assert_eq!(rig.ask(3, work("c")), joined(1));
        assert_eq!(rig.finished(1), [Deliver(2), Deliver(3)]);
        assert!(rig.is_empty());
        // It is over; a new request is new work.
        assert_eq!(rig.ask(4, work("c").from("a")), RUN);
    }
}

#[test]
fn one_can_join_what_waits_and_what_runs_and_not_what_was_seen_off_before_it_arrived() {
    for work in [off, reboot] {
        let mut rig = Rig::new();
        assert_eq!(rig.ask(1, reboot("b").from("a")), RUN);
        assert_eq!(rig.ask(2, work("a").from("c")), WAIT);
        assert_eq!(rig.ask(3, work("a").from("d")), joined(2));
        assert_eq!(rig.seen_off(1), [Run(2)]);
        assert_eq!(rig.ask(4, work("a").from("d")), joined(2));
        assert_eq!(rig.seen_off_since(1, 2), []);
        // It arrived before the look, and its name was looked up slowly.
        assert_eq!(rig.ask(5, work("a").from("d").arrived(1)), joined(2));
        // a may be up again: the look says nothing to this one.
        assert_eq!(rig.ask_at(2, 6, work("a").from("d").arrived(2)), WAIT);
        // One that has not begun can be joined again, also through another that joined it.
        assert_eq!(rig.ask_at(2, 7, work("a").from("e").arrived(2)), joined(6));
        assert_eq!(rig.ask_at(2, 8, work("a").from("f").arrived(2)), joined(6));
        assert_eq!(rig.finished(2), [Deliver(3), Deliver(4), Deliver(5), Run(6)]);
        assert_eq!(rig.finished(6), [Deliver(7), Deliver(8)]);
    }
}

#[test]
fn one_that_joined_and_arrived_after_the_look_began_takes_its_turn() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, reboot("b").from("a")), RUN);
    assert_eq!(rig.ask(2, reboot("b").from("c")), joined(1));
    assert_eq!(rig.ask_at(1, 3, reboot("b").from("d").arrived(1)), joined(1));
    assert_eq!(rig.ask_at(1, 4, reboot("b").from("e").arrived(1)), joined(1));
    assert_eq!(rig.seen_off_since(0, 1), []);
    assert_eq!(rig.finished(1), [Deliver(2), Run(3)]);
    assert_eq!(rig.finished(3), [Deliver(4)]);
    assert!(rig.is_empty());
}

#[test]
fn what_somebody_else_saw_off_is_joined_no_more() {
    let mut rig = Rig::new();
    // In flight here, and waits for the same work of another host.
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("b").from("c")), joined(1));
    let one = rig.at(1);
    assert_eq!(rig.arbiter.victim(one, "b"), []);
    assert_eq!(rig.ask(3, off("b").from("d")), WAIT);
    assert_eq!(rig.finished(1), [Deliver(2), Run(3)]);
    // It has not begun when somebody else sees the target off: it looks later.
    assert_eq!(rig.ask(4, on("b")), WAIT);
    assert_eq!(rig.ask(5, off("b").from("e")), WAIT);
    assert_eq!(rig.arbiter.victim(one, "b"), []);
    assert_eq!(rig.ask(6, off("b").from("f")), joined(5));
}

/// Results for a UUID say nothing of the name, which other domains may have.
#[test]
fn a_request_by_name_joins_none_by_uuid() {
    use TargetKind::{Name, Uuid};
    let mut rig = Rig::new();
    let mut ask = |id, by| {
        let (arrived, deadline) = (rig.at(0), rig.at(30));
        let (work, source) = (ArbitratedAction::Off("b".to_owned()), RequestSource::Unknown);
        rig.arbiter.submit(
            arrived,
            ArbiterRequest { id, work, name: None, source, peer: None, sender: None, by, arrived, deadline },
        )
    };
    assert_eq!([ask(1, Uuid), ask(2, Uuid), ask(3, Name)], [Ok(SubmitResult::Run), joined(1), WAIT]);
    assert_eq!([ask(4, Name), ask(5, Uuid), ask(6, Name)], [joined(3), WAIT, WAIT]);
}

#[test]
fn an_installed_request_that_is_past_it_is_not_joined() {
    let mut rig = Rig::new();
    let request = |id, rig: &Rig| ArbiterRequest {
        id,
        work: ArbitratedAction::Reboot("b".to_owned()),
        name: None,
        source: RequestSource::Unknown,
        peer: None,
        sender: None,
        by: TargetKind::Name,
        arrived: rig.at(0),
        deadline: rig.at(30),
    };
    rig.arbiter.install(request(1, &rig));
    assert_eq!(rig.ask(2, reboot("b").from("a")), joined(1));
    rig.arbiter.close(1);
    assert_eq!(rig.ask(3, reboot("b").from("a")), WAIT);
    assert_eq!(rig.finished(1), [Deliver(2), Run(3)]);
}

#[test]
fn off_does_not_join_a_reboot_nor_overtake_what_came_between() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("c").from("a")), RUN);
    assert_eq!(rig.ask(2, on("c").from("b")), WAIT);
    // Would it join 1, it would be told "off" before 2 starts the domain.
    assert_eq!(rig.ask(3, off("c").from("d")), WAIT);
    assert_eq!(rig.ask(4, off("c").from("e")), joined(3));
    assert_eq!(rig.ask(5, reboot("c").from("e")), WAIT);
    assert_eq!(rig.finished(1), [Run(2)]);
    assert_eq!(rig.finished(2), [Run(3)]);
    assert_eq!(rig.finished(3), [Deliver(4), Run(5)]);
}

#[test]
fn a_leader_that_comes_to_nothing_is_replaced_by_the_first_that_joined() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("c").from("a")), RUN);
    assert_eq!(rig.ask(2, off("c").from("b")), joined(1));
    assert_eq!(rig.ask(3, off("c").from("d")), joined(1));
    assert_eq!(rig.abandoned(1), [Run(2)]);
    assert_eq!(rig.ask(4, off("c").from("e")), joined(2));
    assert_eq!(rig.abandoned(2), [Run(3)]);
    assert_eq!(rig.finished(3), [Deliver(4)]);
    assert!(rig.is_empty());
}

#[test]
fn the_heir_keeps_to_its_own_conflicts_and_its_own_place() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("c").from("d")), RUN);
    // In conflict with 2, which may run first.
    assert_eq!(rig.ask(3, off("b").from("c")), joined(1));
    assert_eq!(rig.abandoned(1), []);
    assert_eq!(rig.finished(2), [Run(3)]);
}

#[test]
fn an_heir_waits_for_what_was_let_past_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, reboot("b").from("a")), RUN);
    assert_eq!(rig.ask(2, reboot("b").from("c")), joined(1));
    assert_eq!(rig.seen_off(1), []);
    assert_eq!(rig.ask(3, off("c").from("d")), RUN);
    // The caller says that nothing was done, although b was seen off.
    assert_eq!(rig.abandoned(1), []);
    assert_eq!(rig.seen_off(3), [Drop(2, Rejection::SourceFenced)]);
}

#[test]
fn a_joined_request_holds_up_its_own_conflicts_until_its_leader_is_seen_off() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("b").from("c")), joined(1));
    assert_eq!(rig.ask(3, off("c").from("d")), WAIT);
    assert_eq!(rig.seen_off(1), [Run(3)]);
    assert_eq!(rig.seen_off(3), [Drop(2, Rejection::SourceFenced)]);

    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("b").from("a")), RUN);
    assert_eq!(rig.ask(2, off("b").from("c")), joined(1));
    assert_eq!(rig.ask(3, off("c").from("d")), WAIT);
    assert_eq!(rig.withdraw(2, Rejection::HungUp), [Drop(2, Rejection::HungUp), Run(3)]);
}

#[test]
fn a_leader_that_is_dropped_while_it_waits_leaves_its_work_to_the_first_that_joined() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("a").from("x")), RUN);
    assert_eq!(rig.ask(2, off("c").from("a")), WAIT);
    assert_eq!(rig.ask(3, off("c").from("b")), joined(2));
    assert_eq!(rig.seen_off(1), [Drop(2, Rejection::SourceFenced), Run(3)]);
}

#[test]
fn a_deadline_ends_what_waits_and_what_has_joined_and_never_what_runs() {
    let mut rig = Rig::new();
    assert_eq!(rig.arbiter.next_deadline(), None);
    assert_eq!(rig.ask(1, off("a").until(5)), RUN);
    assert_eq!(rig.arbiter.next_deadline(), None);
    assert_eq!(rig.ask(2, off("b").until(20)), WAIT);
    assert_eq!(rig.ask(3, off("a").until(10)), joined(1));
    assert_eq!(rig.ask(4, on("b").until(30)), WAIT);
    assert_eq!(rig.arbiter.next_deadline(), Some(rig.at(10)));
    let (nine, ten, twenty) = (rig.at(9), rig.at(10), rig.at(20));
    assert_eq!(rig.arbiter.tick(nine), []);
    assert_eq!(rig.arbiter.tick(ten), [Drop(3, Rejection::DeadlinePassed)]);
    assert_eq!(rig.arbiter.next_deadline(), Some(twenty));
    assert_eq!(rig.arbiter.tick(twenty), [Drop(2, Rejection::DeadlinePassed), Run(4)]);
    assert_eq!(rig.arbiter.next_deadline(), None);
}

#[test]
fn no_event_runs_or_answers_what_is_late() {
    let late = Rejection::DeadlinePassed;
    let mut rig = Rig::new();
    assert_eq!(rig.ask_at(30, 1, off("a")), Err(late));
    assert_eq!(rig.ask_at(30, 1, look()), Err(late));
    assert_eq!(rig.ask(1, off("a")), RUN);
    assert_eq!(rig.ask(2, off("a").until(2)), joined(1));
    assert_eq!(rig.ask(3, off("a").until(3)), joined(1));
    assert_eq!(rig.ask(4, on("a").until(2)), WAIT);
    let two = rig.at(2);
    assert_eq!(rig.arbiter.finished(two, 1), [Drop(2, late), Drop(4, late), Deliver(3)]);
    assert!(rig.is_empty());
}

#[test]
fn a_withdrawn_request_ends_unless_it_runs() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("a")), RUN);
    assert_eq!(rig.ask(2, off("b")), WAIT);
    assert_eq!(rig.ask(3, on("b")), WAIT);
    assert_eq!(rig.withdraw(1, Rejection::Superseded), []);
    assert_eq!(rig.withdraw(2, Rejection::Superseded), [Drop(2, Rejection::Superseded), Run(3)]);
    assert_eq!(rig.withdraw(2, Rejection::Superseded), []);
    assert_eq!(rig.ask(4, off("c")), WAIT);
    assert_eq!(rig.finished(1), [Run(4)]);
}

#[test]
fn a_client_that_asks_again_takes_its_older_request_s_part() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, off("x").from("y")), RUN);
    assert_eq!(rig.ask(2, off("y").from("a")), WAIT);
    assert_eq!(rig.ask(3, off("y").from("a")), joined(2));
    assert_eq!(rig.withdraw(2, Rejection::Superseded), [Drop(2, Rejection::Superseded)]);
    assert_eq!(rig.finished(1), [Run(3)]);
}

#[test]
fn the_table_is_bounded_in_all_and_per_target() {
    let mut rig = Rig::new();
    for id in 0..TARGET_LIMIT as u64 {
        assert!(rig.ask(id, off("a").at("p")).is_ok());
    }
    assert_eq!(rig.ask(5000, off("a").at("p")), Err(Rejection::TargetQueueFull));
    assert_eq!(rig.ask(5000, on("a").at("p")), Err(Rejection::TargetQueueFull));
    for id in TARGET_LIMIT..REQUEST_LIMIT {
        assert_eq!(rig.ask(id as u64, off(&format!("b{id}")).at("p")), RUN);
    }
    assert_eq!(rig.ask(5000, off("c").at("p")), Err(Rejection::QueueFull));
    assert_eq!(rig.ask(5000, look()), RUN);
    assert_eq!(rig.finished(1000), []);
    assert_eq!(rig.ask(5001, off("c").at("p")), RUN);
}

#[test]
fn a_storm_of_64_from_one_peer_runs_at_once() {
    let mut rig = Rig::new();
    for id in 0..64 {
        assert_eq!(rig.ask(id, reboot(&format!("d{id}")).at("192.0.2.1")), RUN);
    }
}

#[test]
fn reports_on_what_is_not_in_flight_change_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(1, on("a")), RUN);
    assert_eq!(rig.ask(2, off("a").from("b")), WAIT);
    // A start takes nobody down, and 2 has not run.
    assert_eq!(rig.seen_off(1), []);
    assert_eq!(rig.seen_off(2), []);
    assert_eq!(rig.arbiter.victims, []);
    assert_eq!([rig.seen_off(9), rig.finished(9), rig.abandoned(9)].concat(), []);
    assert_eq!(rig.finished(1), [Run(2)]);
}

#[test]
fn what_holds_a_request_up_is_named_while_it_is_in_flight() {
    let mut rig = Rig::new();
    let asked = |id, work: ArbitratedAction, rig: &Rig| ArbiterRequest {
        id,
        name: None,
        work,
        source: RequestSource::Unknown,
        peer: None,
        sender: None,
        by: TargetKind::Name,
        arrived: rig.start,
        deadline: rig.at(30),
    };
    let second = asked(2, ArbitratedAction::Off("y".into()), &rig);
    rig.ask(1, off("x")).unwrap();
    // Also after it was dropped.
    let first = rig.arbiter.holds_up_now(&second).unwrap();
    assert_eq!(first.to_string(), "off of x (request 1) comes first");
    rig.arbiter.answered(rig.at(1), 1, false, LateEffect::PowerOff);
    let first = rig.arbiter.holds_up_now(&second).unwrap();
    assert!(first.is_answered && first.to_string().contains("may still take effect"), "{first}");
    // An off of the same target does not wait for that, nor does whatever only looks.
    assert_eq!(rig.arbiter.holds_up_now(&asked(3, ArbitratedAction::Off("x".into()), &rig)), None);
    assert_eq!(rig.arbiter.holds_up_now(&asked(4, ArbitratedAction::Look, &rig)), None);
    rig.finished(1);
    assert_eq!(rig.arbiter.holds_up_now(&second), None);
}

/// Clients that hold the key and never prove themselves cost others one turn, however many they are.
#[test]
fn who_lets_its_turn_pass_goes_behind_all_others() {
    let mut rig = Rig::new();
    let by = |sender: &str, ask: Ask| Ask { sender: Some(SenderId(sender.to_owned())), ..ask };
    assert_eq!(rig.ask(1, by("red", off("a"))), Ok(SubmitResult::Run));
    for id in 2..20 {
        rig.ask(id, by("red", off(if id % 2 == 0 { "b" } else { "c" }))).unwrap();
    }
    // The same work as one that waits there: it goes with it only as long as that is not behind.
    assert_eq!(rig.ask(20, by("blue", off("b"))), Ok(SubmitResult::Joined(2)));
    assert_eq!(rig.arbiter.wasted(rig.at(1), 1), []);
    assert_eq!(rig.abandoned(1), [Run(20)]);
    assert_eq!(rig.ask(21, by("blue", off("c"))), Ok(SubmitResult::Wait));
    assert_eq!(rig.arbiter.proved(rig.at(1), 20), []);
    assert_eq!(rig.finished(20), [Run(21)]);
    assert_eq!(rig.finished(21), [Run(2)]);
    // With its proof it is one among others again.
    assert_eq!(rig.ask(22, by("green", off("d"))), Ok(SubmitResult::Wait));
    assert_eq!(rig.arbiter.proved(rig.at(1), 2), []);
    assert!(rig.finished(2).contains(&Run(3)));
}
