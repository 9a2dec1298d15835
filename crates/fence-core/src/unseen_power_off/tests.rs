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
const COURSE: u32 = 800;

#[test]
fn an_order_is_over_once_it_was_seen_off_or_its_time_is_over() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    for (look, end) in [
        (LaterLook::Off, PowerOffEnd::SeenOff),
        (LaterLook::Elsewhere, PowerOffEnd::Over),
        // Another instance.
        (LaterLook::On(Some(8)), PowerOffEnd::Over),
        (LaterLook::On(Some(7)), PowerOffEnd::Open),
        (LaterLook::On(None), PowerOffEnd::Open),
        (LaterLook::Untold, PowerOffEnd::Open),
        (LaterLook::Silent, PowerOffEnd::Open),
    ] {
        assert_eq!(UnseenPowerOff::new(Some(7)).look(start, look), end, "{look:?}");
    }
    let mut order = UnseenPowerOff::new(None);
    // A hypervisor that stands still takes the order up when it goes on.
    assert_eq!(order.look(at(0), LaterLook::Silent), PowerOffEnd::Open);
    assert_eq!(order.look(at(100), LaterLook::Silent), PowerOffEnd::Open);
    assert_eq!((order.until(), order.look(at(101), LaterLook::On(Some(7)))), (None, PowerOffEnd::Open));
    assert_eq!(order.until(), Some(at(116)));
    assert_eq!(order.look(at(115), LaterLook::Untold), PowerOffEnd::Open);
    assert_eq!(order.look(at(116), LaterLook::On(Some(7))), PowerOffEnd::Over);
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
    /// Steps between two looks.
    pause: u32,
    /// The domain from which the request comes is known.
    is_known: bool,
}

fn course() -> impl Strategy<Value = Course> {
    let effect = prop_oneof![4 => (0..=SLOWEST).prop_map(Some), 1 => Just(None)];
    (0_u32..150, 0_u32..100, 0_u32..200, effect, 1_u32..10, any::<bool>()).prop_map(
        |(comes, lost, away, effect, pause, is_known)| Course { comes, lost, away, effect, pause, is_known },
    )
}

/// Two nodes, each of which has the other one fenced, and the request of each.
struct World {
    arbiter: Arbiter,
    courses: [Course; 2],
    /// Step at which each request was told to run.
    run: [Option<u32>; 2],
    is_lost: [bool; 2],
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
            id: node as u64,
            work: ArbitratedAction::Off(uuid(1 - node)),
            source,
            peer: None,
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

    /// Lets the order of a node go on.
    fn act(&mut self, step: u32, node: usize) {
        let (Some(run), Course { lost, away, effect, pause, .. }) = (self.run[node], self.courses[node])
        else {
            return;
        };
        let target = 1 - node;
        let is_away = step < run + away;
        // A grant may come after the node's turn in a step.
        if effect.is_some_and(|it| step >= run + away + it) {
            self.up[target] = false;
        }
        if step >= run + lost && !self.is_lost[node] {
            self.is_lost[node] = true;
            let decisions = self.arbiter.answered(self.at(step), node as u64, false, LateEffect::PowerOff);
            self.obey(step, decisions);
            self.watched[node] = Some(UnseenPowerOff::new(None));
        }
        if !(step - run).is_multiple_of(pause) {
            return;
        }
        let began = self.at(step);
        let Some(watched) = &mut self.watched[node] else { return };
        let look = match self.up[target] {
            _ if is_away => LaterLook::Silent,
            true => LaterLook::On(None),
            false => LaterLook::Off,
        };
        let end = watched.look(began, look);
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

    /// Each order is cut off at any moment, and takes effect up to 15 s after its hypervisor goes on.
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
            prop_assert!(world.up[0] || world.up[1], "both down at step {step}");
        }
        // Nobody waits for ever.
        prop_assert!(world.is_over[0] || world.run[0].is_none());
        prop_assert!(world.run.iter().any(Option::is_some));
        prop_assert_eq!(world.arbiter.counts(), (0, 0));
    }
}
