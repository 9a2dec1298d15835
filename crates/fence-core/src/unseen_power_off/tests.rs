// SPDX-License-Identifier: GPL-2.0-or-later
//! The rule, and two nodes that fence each other through hypervisors which lose their connections.
//!
//! `PROPTEST_CASES` sets the number of courses.

use proptest::prelude::*;

use super::*;
use crate::arbiter::{
    Arbiter, ArbiterDecision, ArbiterRequest, ArbitratedAction, LateEffect, Rejection, RequestSource,
    SubmitResult,
};
use crate::domain::TargetKind;
use crate::schedules::{config, uuid};

/// Length of a step of a course.
const STEP: Duration = Duration::from_millis(100);
/// Steps in which the slowest order takes effect, once its hypervisor goes on.
const SLOWEST: u32 = 149;
/// Steps after which every course is over.
const COURSE: u32 = 2000;

#[test]
fn an_order_is_over_once_it_was_seen_off_or_its_time_is_over() {
    use LaterLook::{Gone, Off, On, Silent, Untold};
    let start = Instant::now();
    for (look, end) in [
        (Off, PowerOffEnd::SeenOff),
        (LaterLook::Elsewhere, PowerOffEnd::Over),
        // Another instance.
        (On(Some(8)), PowerOffEnd::Over),
        (On(Some(7)), PowerOffEnd::Open),
        (On(None), PowerOffEnd::Open),
        (Untold, PowerOffEnd::Open),
        (Silent, PowerOffEnd::Open),
        (Gone, PowerOffEnd::Open),
    ] {
        assert_eq!(UnseenPowerOff::new(Some(7)).look((start, start), look), end, "{look:?}");
    }
    let on = On(Some(7));
    // A hypervisor that stands still takes the order up when it goes on, also after an answer.
    assert_eq!(over_at(&[(0, Silent), (100, Silent), (101, on), (115, Untold), (116, on)]), Some(116));
    assert_eq!(over_at(&[(0, on), (60, Silent), (61, on)]), Some(61));
    assert_eq!(over_at(&[(0, on), (60, Silent)]), None);
    // One whose process has ended does not, whatever is there later.
    assert_eq!(over_at(&[(0, Silent), (100, Gone), (114, Gone), (115, Gone)]), Some(115));
    assert_eq!(over_at(&[(100, Gone), (101, Silent), (114, on), (115, Silent)]), Some(115));
    assert_eq!(over_at(&[(0, on), (5, Silent), (14, Gone), (15, Gone)]), Some(15));
    assert_eq!(over_at(&[(0, Gone), (3, Off)]), Some(3));
}

/// Returns when the order of an instance without a number is over, in seconds.
fn over_at(looks: &[(u64, LaterLook)]) -> Option<u64> {
    let (start, mut order) = (Instant::now(), UnseenPowerOff::new(None));
    let at = |seconds| start + Duration::from_secs(seconds);
    let is_over = |(s, look): &&(u64, _)| order.look((at(*s), at(*s)), *look) != PowerOffEnd::Open;
    looks.iter().find(is_over).map(|(seconds, _)| *seconds)
}

#[test]
fn the_time_begins_at_the_end_of_a_look_that_takes_long() {
    for look in [LaterLook::On(None), LaterLook::Gone] {
        let (start, mut order) = (Instant::now(), UnseenPowerOff::new(None));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(order.look((at(0), at(60)), look), PowerOffEnd::Open);
        assert_eq!(order.until(), Some(at(75)));
        assert_eq!(order.look((at(74), at(80)), look), PowerOffEnd::Open);
        assert_eq!(order.look((at(75), at(75)), look), PowerOffEnd::Over);
    }
}

/// One that lives has carried out by then what it was sent, and nothing more is sent.
#[test]
fn an_order_hangs_when_one_that_lives_would_be_done_with_it() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    for (sent, lease_end, from) in [(0, 28, 28), (13, 28, 28), (20, 28, 35), (28, 28, 43)] {
        assert_eq!(UnseenPowerOff::hangs_from(at(sent), at(lease_end)), at(from), "{sent} {lease_end}");
    }
}

/// Course of one order at a hypervisor, in steps since the order to run.
#[derive(Clone, Copy, Debug)]
struct Course {
    /// The request comes.
    comes: u32,
    /// The call with the order is cut off after its beginning.
    lost: u32,
    /// The hypervisor stands still, or is away, from the beginning of the order on.
    away: u32,
    /// The order takes effect after the hypervisor goes on; none: never.
    effect: Option<u32>,
    /// The process of the hypervisor ends.
    exit: Option<Exit>,
    /// Steps between two looks.
    pause: u32,
    /// The domain from which the request comes is known.
    is_known: bool,
}

/// End of a hypervisor's process.
#[derive(Clone, Copy, Debug)]
struct Exit {
    /// Steps after the beginning of the order.
    at: u32,
    /// Steps until the next one is there.
    back: u32,
    /// The next one stands still for ever.
    hangs: bool,
}

impl Course {
    /// Returns the step after the beginning of the order at which that takes effect.
    fn effect_at(&self) -> Option<u32> {
        // A process that ends before it hears of the order does nothing.
        let is_heard = self.exit.is_none_or(|it| it.at >= self.away);
        self.effect.filter(|_| is_heard).map(|it| self.away + it)
    }

    /// Returns what a look at this step after the beginning of the order shows.
    fn look(&self, step: u32, is_up: bool) -> LaterLook {
        let gone_for = self.exit.and_then(|it| step.checked_sub(it.at).map(|steps| (steps, it)));
        match gone_for {
            Some((steps, exit)) if steps < exit.back => return LaterLook::Gone,
            Some((_, Exit { hangs: true, .. })) => return LaterLook::Silent,
            None if step < self.away => return LaterLook::Silent,
            Some(_) | None => {}
        }
        if is_up { LaterLook::On(None) } else { LaterLook::Off }
    }
}

fn exit() -> impl Strategy<Value = Exit> {
    // A look comes before the next one is there.
    (0_u32..250, 10_u32..600, any::<bool>()).prop_map(|(at, back, hangs)| Exit { at, back, hangs })
}

fn course() -> impl Strategy<Value = Course> {
    let effect = prop_oneof![4 => (0..=SLOWEST).prop_map(Some), 1 => Just(None)];
    let exit = prop::option::of(exit());
    (0_u32..150, 0_u32..100, 0_u32..200, effect, exit, 1_u32..10, any::<bool>()).prop_map(
        |(comes, lost, away, effect, exit, pause, is_known)| {
            let mut it = Course { comes, lost, away, effect, exit, pause, is_known };
            // The call ends with the process.
            it.lost = it.lost.min(exit.map_or(u32::MAX, |it| it.at));
            it
        },
    )
}

/// Two nodes, each of which has the other one fenced, and the request of each.
struct World {
    arbiter: Arbiter,
    courses: [Course; 2],
    /// Step at which each request was told to run.
    run: [Option<u32>; 2],
    is_lost: [bool; 2],
    hangs: [bool; 2],
    /// An order hung, and the other request, whose source is not known, may run beside it.
    gave_up: bool,
    watched: [Option<UnseenPowerOff>; 2],
    is_over: [bool; 2],
    up: [bool; 2],
    start: Instant,
}

impl World {
    fn new(courses: [Course; 2]) -> Self {
        let start = Instant::now();
        Self {
            arbiter: Arbiter::default(),
            courses,
            run: [None; 2],
            is_lost: [false; 2],
            hangs: [false; 2],
            gave_up: false,
            watched: [None; 2],
            is_over: [false; 2],
            up: [true; 2],
            start,
        }
    }

    fn at(&self, step: u32) -> Instant {
        self.start + STEP * step
    }

    fn obey(&mut self, step: u32, decisions: Vec<ArbiterDecision>) {
        for decision in decisions {
            match decision {
                ArbiterDecision::Run(id) => self.begin(step, usize::from(id == 1)),
                ArbiterDecision::Drop(id, why) => {
                    assert_eq!(why, Rejection::SourceFenced);
                    self.is_over[usize::from(id == 1)] = true;
                }
                ArbiterDecision::Deliver(_) => panic!("they do not ask the same"),
            }
        }
    }

    /// Asks for the proof: a node that is down gives none.
    fn begin(&mut self, step: u32, node: usize) {
        if self.up[node] {
            self.run[node] = Some(step);
        } else {
            self.is_over[node] = true;
            let decisions = self.arbiter.abandoned(self.at(step), node as u64);
            self.obey(step, decisions);
        }
    }

    fn submit(&mut self, step: u32, node: usize) {
        if !self.up[node] {
            self.is_over[node] = true;
            return;
        }
        let source = match self.courses[node].is_known {
            true => RequestSource::Known(uuid(node)),
            false => RequestSource::Unknown,
        };
        let request = ArbiterRequest {
            name: None,
            id: node as u64,
            work: ArbitratedAction::Off(uuid(1 - node)),
            source,
            peer: None,
            sender: None,
            by: TargetKind::Name,
            arrived: self.at(step),
            deadline: self.at(COURSE * 10),
        };
        match self.arbiter.submit(self.at(step), request) {
            Ok(SubmitResult::Run) => self.begin(step, node),
            Ok(SubmitResult::Wait) => {}
            other => assert_eq!(other, Err(Rejection::SourceFenced)),
        }
    }

    /// Says that the order of a node hangs, if that is so from this step on.
    fn hang(&mut self, step: u32, node: usize) {
        let (Some(run), Course { lost, .. }) = (self.run[node], self.courses[node]) else { return };
        let from = UnseenPowerOff::hangs_from(self.at(run), self.at(run + lost));
        if self.watched[node].is_none() || self.hangs[node] || self.at(step) < from {
            return;
        }
        self.hangs[node] = true;
        self.gave_up |= !self.courses[1 - node].is_known;
        let decisions = self.arbiter.answered(self.at(step), node as u64, false, LateEffect::HangingOff);
        self.obey(step, decisions);
    }

    /// Lets the order of a node go on.
    fn act(&mut self, step: u32, node: usize) {
        let (Some(run), course) = (self.run[node], self.courses[node]) else { return };
        let Course { lost, pause, .. } = course;
        let target = 1 - node;
        // A grant may come after the node's turn in a step.
        if course.effect_at().is_some_and(|it| step >= run + it) {
            self.up[target] = false;
        }
        if step >= run + lost && !self.is_lost[node] {
            self.is_lost[node] = true;
            let decisions = self.arbiter.answered(self.at(step), node as u64, false, LateEffect::PowerOff);
            self.obey(step, decisions);
            self.watched[node] = Some(UnseenPowerOff::new(None));
        }
        self.hang(step, node);
        if !(step - run).is_multiple_of(pause) {
            return;
        }
        let began = self.at(step);
        let Some(watched) = &mut self.watched[node] else { return };
        let look = course.look(step - run, self.up[target]);
        let end = watched.look((began, began), look);
        if end == PowerOffEnd::Open {
            return;
        }
        (self.watched[node], self.is_over[node]) = (None, true);
        if end == PowerOffEnd::SeenOff {
            let decisions = self.arbiter.seen_off(began, began, node as u64);
            self.obey(step, decisions);
        }
        let decisions = self.arbiter.finished(began, node as u64);
        self.obey(step, decisions);
    }
}

proptest! {
    #![proptest_config(config(2000))]

    /// Each order is cut off at any moment, and takes effect up to 15 s after its hypervisor goes on, also if
    /// that has ended meanwhile. Where that is late nothing is said of a request whose source is not known.
    #[test]
    fn two_nodes_never_go_down_both(courses in [course(), course()]) {
        let mut world = World::new(courses);
        for step in 0..COURSE {
            for node in [0, 1] {
                if step == courses[node].comes {
                    world.submit(step, node);
                }
                world.act(step, node);
            }
            prop_assert!(world.gave_up || world.up[0] || world.up[1], "both down at step {step}");
        }
        // Nobody waits for ever.
        prop_assert!(world.is_over[0] || world.run[0].is_none());
        prop_assert!(world.run.iter().any(Option::is_some));
        prop_assert_eq!(world.arbiter.counts(), (0, 0));
    }
}
