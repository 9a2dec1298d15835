// SPDX-License-Identifier: GPL-2.0-or-later

use super::*;

const OFF: StatusReading = StatusReading::Is(PowerState::Off);
const ON: StatusReading = StatusReading::Is(PowerState::On);
const LIMITS: DeviceLimits = DeviceLimits {
    timeout: None,
    status: Duration::from_secs(10),
    answer: Duration::from_secs(10),
    retries: 1,
    is_known_to_fail: false,
};

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A plan for so many devices with 28 s, and when it begins.
fn plan(devices: usize) -> (PowerPlan, Instant) {
    let now = Instant::now();
    (PowerPlan::new(PowerState::Off, vec![LIMITS; devices], now + s(28)), now)
}

#[test]
fn exit_codes() {
    assert_eq!((power(0), power(2)), (Some(PowerState::On), Some(PowerState::Off)));
    assert!([-1, 1, 3, 126, 127, 255].iter().all(|it| power(*it).is_none()));
}

#[test]
fn on_acted_off() {
    let (mut plan, now) = plan(1);
    // A look takes no more than a third of the turn, whatever its own limit is.
    assert_eq!(plan.next(now), PlanStep::Look(vec![(0, now + s(14) - s(14) * 2 / 3)]));
    plan.looked(0, ON, now, now);
    // Half of the time, for there is a second try, and a third of that for the looks after it.
    let limit = now + s(14) - s(14) / 3;
    assert_eq!(plan.next(now), PlanStep::Act(0, limit));
    plan.acted(0, ActionReport::Claimed, now, now + s(1));
    assert_eq!(plan.next(now + s(1)), PlanStep::Look(vec![(0, now + s(11))]));
    plan.looked(0, OFF, now, now + s(2));
    assert_eq!((plan.next(now + s(2)), plan.actions()), (PlanStep::Done, 1));
}

#[test]
fn off_already_is_asked_of_all_and_nothing_is_done() {
    let (mut plan, now) = plan(3);
    plan.looked(0, OFF, now, now);
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(1, now + s(10)), (2, now + s(10))]));
    plan.looked(1, StatusReading::CantTell, now - s(10), now);
    // A silence of less than its time says nothing.
    plan.looked(2, StatusReading::Silent, now - s(9), now);
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(2, now + s(10))]));
    plan.looked(2, StatusReading::Silent, now - s(10), now);
    assert_eq!((plan.next(now), plan.actions()), (PlanStep::Done, 0));
}

#[test]
fn off_by_one_and_on_by_another_is_on() {
    let (mut plan, now) = plan(2);
    plan.looked(0, OFF, now, now);
    plan.looked(1, ON, now, now);
    // The one that says on is moved to act; what the other said was before that.
    let PlanStep::Act(1, _) = plan.next(now) else { panic!("{plan:?}") };
    plan.acted(1, ActionReport::Claimed, now, now);
    let PlanStep::Look(asked) = plan.next(now) else { panic!("{plan:?}") };
    assert_eq!(asked.iter().map(|it| it.0).collect::<Vec<_>>(), [1]);
    plan.looked(1, OFF, now, now);
    // The first one said "off" before that action.
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(0, now + s(10))]));
    plan.looked(0, OFF, now, now);
    assert_eq!(plan.next(now), PlanStep::Done);
}

/// The first device took its machine down; the second one has another, or the same one by another way.
#[test]
fn one_that_was_never_asked_is_asked_after_the_action_of_another() {
    let (mut plan, now) = plan(2);
    plan.looked(0, ON, now, now);
    let PlanStep::Act(0, _) = plan.next(now) else { panic!("{plan:?}") };
    plan.acted(0, ActionReport::Claimed, now, now);
    plan.looked(0, OFF, now, now);
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(1, now + s(10))]));
    plan.looked(1, ON, now, now);
    let PlanStep::Act(1, _) = plan.next(now) else { panic!("{plan:?}") };
    plan.acted(1, ActionReport::Claimed, now, now);
    plan.looked(1, OFF, now, now);
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(0, now + s(10))]));
    plan.looked(0, StatusReading::CantTell, now - s(10), now);
    assert_eq!(plan.next(now), PlanStep::Done);
}

/// "On" is said sooner: a machine that is believed to be on and is not harms nobody.
#[test]
fn on_already_waits_for_a_silent_device_only_a_moment() {
    let now = Instant::now();
    let mut plan = PowerPlan::new(PowerState::On, vec![LIMITS; 2], now + s(28));
    plan.looked(0, ON, now, now);
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(1, now + WITNESS_TIMEOUT)]));
    plan.looked(1, StatusReading::Silent, now - WITNESS_TIMEOUT, now);
    assert_eq!(plan.next(now), PlanStep::Done);
}

#[test]
fn who_said_on_is_asked_again_after_another_has_acted() {
    let (mut plan, now) = plan(2);
    plan.looked(0, ON, now, now);
    let PlanStep::Act(0, _) = plan.next(now) else { panic!("{plan:?}") };
    plan.acted(0, ActionReport::Failed, now, now);
    plan.looked(0, ON, now, now);
    let PlanStep::Wait(_) = plan.next(now) else { panic!("{plan:?}") };
    let now = now + FAILED_ACTION_SETTLE;
    let PlanStep::Look(_) = plan.next(now) else { panic!("{plan:?}") };
    plan.looked(1, ON, now, now);
    let PlanStep::Act(1, _) = plan.next(now) else { panic!("{plan:?}") };
    plan.acted(1, ActionReport::Claimed, now, now);
    plan.looked(1, OFF, now, now);
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(0, now + s(10))]));
    // A controller that lost its power with its machine.
    let mut lost = plan;
    lost.looked(0, StatusReading::Silent, now, now + s(10));
    assert_eq!(lost.next(now + s(10)), PlanStep::Done);
}

#[test]
fn one_that_says_done_and_stays_on_is_a_failure() {
    let (mut plan, mut now) = plan(1);
    let until = now + s(28);
    let mut acts = 0;
    let end = loop {
        match plan.next(now) {
            PlanStep::Look(_) => plan.looked(0, ON, now, now),
            PlanStep::Wait(then) => now = then,
            PlanStep::Act(..) => {
                acts += 1;
                plan.acted(0, ActionReport::Claimed, now, now);
            }
            other => break other,
        }
    };
    // It was waited for to the very end: it may have been slow.
    assert_eq!((end, acts, now), (PlanStep::GiveUp, 2, until));
}

#[test]
fn one_that_lost_patience_with_a_slow_machine_is_followed() {
    let (mut plan, begin) = plan(1);
    let mut now = begin;
    let end = loop {
        let power = if now < begin + s(20) { ON } else { OFF };
        match plan.next(now) {
            PlanStep::Look(_) => plan.looked(0, power, now, now),
            PlanStep::Wait(then) => now = then,
            PlanStep::Act(..) => plan.acted(0, ActionReport::Failed, now, now),
            other => break other,
        }
    };
    assert_eq!((end, plan.actions()), (PlanStep::Done, 2));
}

#[test]
fn one_that_is_known_to_fail_fails_soon() {
    let begin = Instant::now();
    let failing = DeviceLimits { is_known_to_fail: true, ..LIMITS };
    let mut plan = PowerPlan::new(PowerState::Off, [failing], begin + s(28));
    let mut now = begin;
    let end = loop {
        match plan.next(now) {
            PlanStep::Look(_) => plan.looked(0, StatusReading::CantTell, now, now),
            PlanStep::Wait(then) => now = then,
            PlanStep::Act(..) => plan.acted(0, ActionReport::Failed, now, now),
            other => break other,
        }
    };
    assert_eq!((end, now - begin), (PlanStep::GiveUp, RETRY_PAUSE));
}

#[test]
fn after_the_lease_what_was_begun_is_followed_and_nothing_else() {
    let (mut plan, now) = plan(2);
    plan.stop();
    assert_eq!(plan.next(now), PlanStep::GiveUp);
    let (mut plan, now) = self::plan(2);
    plan.looked(0, ON, now, now);
    let PlanStep::Act(0, _) = plan.next(now) else { panic!("{plan:?}") };
    plan.acted(0, ActionReport::Unknown, now, now);
    plan.stop();
    assert!(plan.is_open());
    assert_eq!(plan.next(now), PlanStep::Look(vec![(0, now + s(28) / 3)]).min_by(&plan, now));
    plan.looked(0, OFF, now, now);
    // Looks go on.
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(1, now + s(10))]));
    plan.looked(1, StatusReading::CantTell, now - s(10), now);
    assert_eq!(plan.next(now), PlanStep::Done);
}

/// Nobody asked it: that is no silence of the device.
#[test]
fn one_whose_agent_had_no_slot_is_asked_again() {
    let (mut plan, now) = plan(2);
    plan.looked(0, OFF, now, now);
    plan.looked(1, StatusReading::NotAsked, now - s(10), now);
    assert_eq!(plan.next(now), PlanStep::Ask(vec![(1, now + s(10))]));
}

impl PlanStep {
    /// A look no longer than the device's own limit allows.
    fn min_by(self, plan: &PowerPlan, now: Instant) -> Self {
        let Self::Look(these) = self else { return self };
        let limit = |it: usize| now + plan.devices[it].limits.status;
        Self::Look(these.into_iter().map(|(it, until)| (it, until.min(limit(it)))).collect())
    }
}

#[test]
fn a_device_that_hangs_comes_after_those_that_answer() {
    let (mut plan, now) = plan(3);
    plan.looked(0, StatusReading::Silent, now - s(10), now);
    plan.looked(1, StatusReading::CantTell, now, now);
    let PlanStep::Act(1, limit) = plan.next(now) else { panic!("{plan:?}") };
    assert!(limit < now + s(28) / 4);
    plan.acted(1, ActionReport::Failed, now, now);
    plan.looked(1, StatusReading::CantTell, now, now);
    let PlanStep::Look(asked) = plan.next(now) else { panic!("{plan:?}") };
    assert_eq!(asked, [(2, now + s(28) / 3 - s(28) / 3 * 2 / 3)]);
}

#[test]
fn a_long_time_out_leaves_time_for_others() {
    let now = Instant::now();
    let long = DeviceLimits { timeout: Some(s(600)), ..LIMITS };
    let mut plan = PowerPlan::new(PowerState::Off, [long, LIMITS, LIMITS], now + s(28));
    plan.looked(0, ON, now, now);
    let PlanStep::Act(0, limit) = plan.next(now) else { panic!("{plan:?}") };
    assert_eq!(limit, now + s(18) - s(18) / 3);
}

/// A management controller that starts anew: for some seconds it can't tell the state and refuses to act.
#[test]
fn a_device_that_is_blind_for_some_seconds_is_tried_until_the_time_is_over() {
    for blind in [s(4), s(12), s(20)] {
        let (mut plan, start) = plan(1);
        let (mut now, mut is_on) = (start, true);
        let wakes = start + blind;
        let done = loop {
            match plan.next(now) {
                PlanStep::Look(asked) | PlanStep::Ask(asked) => {
                    let began = now;
                    now = asked[0].1.min(now + Duration::from_millis(100));
                    let told =
                        if now >= wakes { if is_on { ON } else { OFF } } else { StatusReading::CantTell };
                    plan.looked(0, told, began, now);
                }
                PlanStep::Act(_, _) => {
                    now += Duration::from_millis(200);
                    let works = now >= wakes;
                    is_on &= !works;
                    plan.acted(0, if works { ActionReport::Claimed } else { ActionReport::Failed }, now, now);
                }
                PlanStep::Wait(until) => now = until,
                PlanStep::Done => break true,
                PlanStep::GiveUp => break false,
            }
            assert!(now < start + s(60));
        };
        assert!(done && !is_on, "blind for {blind:?}: gave up after {:?}", now - start);
    }
}

/// Asks until the plan is done with a second device that can't tell until `wakes` and says "on" then. Returns
/// the last step, its time, and how often that device was asked.
fn hear_out(plan: &mut PowerPlan, mut now: Instant, wakes: Instant) -> (PlanStep, Instant, u32) {
    let mut asked = 0;
    loop {
        match plan.next(now) {
            PlanStep::Ask(these) | PlanStep::Look(these) if these.iter().all(|it| it.0 == 1) => {
                let began = now;
                now += Duration::from_millis(100);
                asked += 1;
                plan.looked(1, if now >= wakes { ON } else { StatusReading::CantTell }, began, now);
            }
            PlanStep::Wait(until) => now = until,
            end => return (end, now, asked),
        }
    }
}

/// One failure says nothing of the next answer.
#[test]
fn a_device_that_fails_is_heard_for_all_of_its_time_before_off_is_said() {
    for (blind, is_off) in [(s(1), false), (s(9), false), (s(15), true)] {
        let (mut plan, begin) = plan(2);
        plan.stop();
        plan.looked(0, OFF, begin, begin);
        let (end, now, asked) = hear_out(&mut plan, begin, begin + blind);
        assert_eq!(end, if is_off { PlanStep::Done } else { PlanStep::GiveUp }, "{blind:?}");
        assert!(now <= begin + s(10) && asked <= 26, "{:?}", now - begin);
        assert_eq!(plan.has_failed_throughout(1), is_off);
    }
}

/// Failures with much time between them: the device may have been well meanwhile.
#[test]
fn two_failures_are_not_all_of_the_time_between_them() {
    let (mut plan, begin) = plan(2);
    plan.looked(1, StatusReading::CantTell, begin, begin);
    plan.looked(0, ON, begin, begin);
    let PlanStep::Act(0, _) = plan.next(begin) else { panic!("{plan:?}") };
    let now = begin + s(12);
    plan.acted(0, ActionReport::Claimed, begin, now);
    plan.looked(0, OFF, now, now);
    let (end, now, _) = hear_out(&mut plan, now, now + s(9));
    assert!(matches!(end, PlanStep::Act(1, _)) && now >= begin + s(21), "{end:?}");
}

/// Device that may be well since: nobody may have asked it, and it may be well.
#[test]
fn one_that_failed_for_long_before_is_heard_out_before_off_is_said() {
    for blind in [s(1), s(9)] {
        let begin = Instant::now();
        let failing = DeviceLimits { is_known_to_fail: true, ..LIMITS };
        let mut plan = PowerPlan::new(PowerState::Off, [LIMITS, failing], begin + s(28));
        plan.stop();
        plan.looked(0, OFF, begin, begin);
        plan.looked(1, StatusReading::CantTell, begin, begin);
        assert_eq!(hear_out(&mut plan, begin, begin + blind).0, PlanStep::GiveUp);
        assert_eq!(plan.last(1), Some(ON));
    }
    // Where nobody says so, it is not waited for.
    let now = Instant::now();
    let failing = DeviceLimits { is_known_to_fail: true, ..LIMITS };
    let mut plan = PowerPlan::new(PowerState::Off, [failing], now + s(28));
    plan.stop();
    plan.looked(0, StatusReading::CantTell, now, now);
    assert_eq!(plan.next(now), PlanStep::GiveUp);
}

/// A device that was blind has one more try, and takes nobody's turn for it.
#[test]
fn one_that_could_not_tell_has_its_further_try_after_the_others() {
    let mut now = Instant::now();
    let limits = DeviceLimits { retries: 0, timeout: Some(s(5)), ..LIMITS };
    let mut plan = PowerPlan::new(PowerState::Off, [limits; 2], now + s(28));
    plan.looked(0, StatusReading::CantTell, now, now);
    let mut acted = Vec::new();
    loop {
        match plan.next(now) {
            PlanStep::Look(asked) | PlanStep::Ask(asked) => {
                asked.into_iter().for_each(|it| plan.looked(it.0, ON, now, now));
            }
            PlanStep::Act(device, _) => {
                acted.push(device);
                plan.acted(device, ActionReport::Failed, now, now);
            }
            PlanStep::Wait(until) => now = until,
            PlanStep::Done | PlanStep::GiveUp => break,
        }
    }
    assert_eq!(acted, [0, 1, 0]);
}

/// Two requests at once: what a device tells one of them ends its failures for the other one too.
#[test]
fn a_device_that_told_another_request_the_state_has_all_of_its_time_again() {
    let begin = Instant::now();
    let mut plan = PowerPlan::new(PowerState::Off, [LIMITS; 2], begin + s(60));
    plan.stop();
    plan.looked(0, OFF, begin, begin);
    // It told the state before the first of these ended.
    plan.told(1, begin + s(7));
    plan.looked(1, StatusReading::CantTell, begin, begin + s(9));
    plan.told(1, begin + s(7));
    let (end, now, _) = hear_out(&mut plan, begin + s(9), begin + s(60));
    assert_eq!(end, PlanStep::Done);
    assert!(now >= begin + s(16) && now <= begin + s(18), "{:?}", now - begin);
    assert!(plan.has_failed_throughout(1));
    // What it told before that counts no more.
    plan.told(1, begin + s(7));
    assert!(plan.has_failed_throughout(1));
    plan.told(1, now);
    assert!(!plan.has_failed_throughout(1));
}

/// A program that is not there for a moment is no evidence, and takes back nothing that the device said in
/// this request. Where nobody says "off" it is told at once.
#[test]
fn a_device_whose_agent_is_gone_is_heard_out() {
    for is_on in [false, true] {
        for says_off in [false, true] {
            let (mut plan, begin) = plan(2);
            plan.stop();
            if is_on {
                plan.looked(1, ON, begin, begin);
            }
            plan.looked(1, StatusReading::Unusable, begin, begin);
            plan.looked(0, if says_off { OFF } else { StatusReading::Unlisted }, begin, begin);
            let next = plan.next(begin);
            assert_ne!(next, PlanStep::Done);
            assert_eq!(next == PlanStep::GiveUp, !says_off, "{next:?}");
        }
    }
}

/// Nobody may act, and the only device fails once.
#[test]
fn a_status_is_no_failure_because_one_status_check_failed() {
    for blind in [s(3), s(12)] {
        let (mut plan, begin) = plan(2);
        plan.stop();
        plan.looked(0, StatusReading::Unusable, begin, begin);
        plan.looked(1, StatusReading::CantTell, begin, begin);
        let (end, now, _) = hear_out(&mut plan, begin, begin + blind);
        assert_eq!((end, plan.last(1) == Some(ON)), (PlanStep::GiveUp, blind == s(3)));
        assert!(now <= begin + s(10));
        // Where another one says on, that is the answer.
        let (mut plan, begin) = self::plan(2);
        plan.stop();
        plan.looked(1, StatusReading::CantTell, begin, begin);
        plan.looked(0, ON, begin, begin);
        assert_eq!(plan.next(begin), PlanStep::GiveUp);
    }
}
