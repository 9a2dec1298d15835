// SPDX-License-Identifier: GPL-2.0-or-later
//! Evidence and next step: the rules by which the agent backend takes one domain to a power state.
//!
//! Owns a [`PowerPlan`] for each request. The caller asks for the next [`PlanStep`], carries it out and
//! reports the result. Runs on the caller's task; time is a parameter. Must never run an agent. The rules:
//!
//! - Success is a device's `status`, read after the last action had ended, and nothing else.
//! - A device that reported the opposite since the request began must take that back. A device that says "on"
//!   and keeps saying so weighs more than one that says "off", which may be about another machine. A device
//!   that can no longer tell has taken it back: a controller may lose its power with its machine.
//! - "Off" is said when every device that is well was heard after the last action, or after the request came
//!   if there was none. A device has its own time for that, [`DeviceLimits::answer`]; only one that was
//!   silent for all of it is skipped.
//! - Where several devices say "off", or have no such machine, it may have moved from one to another between
//!   two looks. So of each two of them, each is looked at once more after the other was: one move, at
//!   whatever moment, is seen then.
//! - "On already" means that nothing will be done, so all devices are asked. A wrong "on" harms nobody, so
//!   those that are silent for [`WITNESS_TIMEOUT`] are skipped.
//! - A silence that is shorter than that is no evidence. Nor is it that a device's agent can't be run here,
//!   until that lasted as long.
//! - A device that can't tell the state may start anew at the moment. As long as there is time it is asked
//!   again, and has one more try when it can tell. It is left out of "off" only if it could not tell for all
//!   of [`DeviceLimits::answer`] in this request, and was asked at the end of that: what it did before is no
//!   evidence.
//! - Each device gets its part of the time and no more. Devices that did not answer at all come after those
//!   that did.
//! - Nothing begins after [`PowerPlan::stop`]; actions that were begun are followed to their end.

use std::time::{Duration, Instant};

use crate::domain::PowerState;

/// Time for which the other devices are asked for evidence against "on".
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for which a failed action may still show an effect.
const FAILED_ACTION_SETTLE: Duration = Duration::from_secs(3);
/// Pauses between status checks: the first, and each one after it.
const POLL_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// Pause before a device that can't tell the state is asked again.
pub const FAILED_PAUSE: Duration = Duration::from_millis(300);
/// Longest time between two failed status checks of a device that failed for all of the time between them.
const FAILED_GAP: Duration = Duration::from_secs(2);
/// Pause before a device is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Shortest time of a status check, as long as there is some left.
const MIN_STATUS_TIME: Duration = Duration::from_secs(1);
/// Time that each later device in the round keeps, whatever time-out a device has; an equal part where that
/// is less.
const LEFT_FOR_OTHERS: Duration = Duration::from_secs(5);

/// Returns the power state that an exit code of `status` means; none where it means none. The device knows
/// whether its 2 is evidence.
pub fn power(exit_code: i32) -> Option<PowerState> {
    match exit_code {
        0 => Some(PowerState::On),
        2 => Some(PowerState::Off),
        _ => None,
    }
}

/// Result of a status check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusReading {
    /// The device reports this state.
    Is(PowerState),
    /// The device answered, and can't tell the state.
    CantTell,
    /// The device does not list the machine now, so it may not be asked.
    Unlisted,
    /// The device's agent can't be run here. That may pass in a moment: a password is being changed, or a
    /// program replaced.
    Unusable,
    /// The device did not answer in its time.
    Silent,
    /// The device was not asked, because too many agents run, or this host could start no program.
    NotAsked,
}

impl StatusReading {
    fn is_failure(self) -> bool {
        matches!(self, Self::CantTell | Self::Unusable)
    }

    /// Returns true if the device was looked at, and has no machine that is on.
    fn is_quiet(self) -> bool {
        matches!(self, Self::Is(PowerState::Off) | Self::Unlisted)
    }
}

/// Report of an action. Its effect is another matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActionReport {
    /// The agent reports success.
    Claimed,
    /// The agent reports failure.
    Failed,
    /// The agent reports that it gave the order, and waited for the effect in vain.
    GaveUp,
    /// The agent was killed, or ended by a signal: the action may have begun.
    Unknown,
    /// The agent could not be started.
    NotRun,
}

/// Limits of a device, as far as a plan needs them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceLimits {
    /// Time limit of one try; none for an equal part of the time that is left.
    pub timeout: Option<Duration>,
    /// Time limit of one status check, with everything that makes it evidence.
    pub status: Duration,
    /// Time after which a device that is silent, or can't tell the state, is not well.
    pub answer: Duration,
    /// Number of further tries after the first.
    pub retries: u32,
    /// True for a device that never worked, or could not tell the state for long.
    pub is_known_to_fail: bool,
}

/// Next step for the caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlanStep {
    /// Check for the wanted state at all of these devices at once, each until its time. The first that
    /// reports it is enough.
    Look(Vec<(usize, Instant)>),
    /// One device reports the wanted state. Ask all of these at once, each until its time. The first that
    /// reports the opposite is enough. One that [is to be heard out](PowerPlan::is_to_be_heard_out) is asked
    /// again after [`FAILED_PAUSE`] while others are waited for; so it is in [`PlanStep::Look`] until each
    /// has answered once.
    Ask(Vec<(usize, Instant)>),
    /// Act at this device, until this time.
    Act(usize, Instant),
    /// Do nothing until this time.
    Wait(Instant),
    /// The domain is in the wanted state.
    Done,
    /// The domain is not in the wanted state, or no device can tell, and nothing is left to be done.
    GiveUp,
}

/// Plan that takes one domain to one power state.
#[derive(Debug)]
pub struct PowerPlan {
    goal: PowerState,
    until: Instant,
    devices: Vec<DeviceRecord>,
    /// Number of actions that have ended. Status checks are dated by it.
    actions: u32,
    /// Turn of the device that acts or is asked at the moment.
    turn: Option<DeviceTurn>,
    /// Next status check of pending effects, when no device has a turn any more.
    patience: PollTimer,
    stopped: bool,
}

#[derive(Clone, Copy, Debug)]
struct DeviceRecord {
    limits: DeviceLimits,
    tries: u32,
    last: Option<LastReading>,
    /// Status checks that show no machine that is on, and follow each other up to now.
    quiet: Option<QuietLooks>,
    /// The device has reported the opposite of the wanted state.
    opposed: bool,
    /// An action at the device may still take effect.
    effect_pending: bool,
    /// The device did not answer the last status check.
    silent: bool,
    /// The device answered, could not tell the state, has not told it since, and may tell it yet.
    is_blind: bool,
    /// Failed status checks that follow each other up to now.
    failing: Option<FailingTime>,
    /// Time when the device last told the state, whichever request asked.
    told: Option<Instant>,
    /// The device had its turn, did not answer, and comes after the others.
    deferred: bool,
    /// End of the device's last turn.
    over: Option<Instant>,
}

/// Time for which a device could not tell the state, whenever it was asked.
#[derive(Clone, Copy, Debug)]
struct FailingTime {
    since: Instant,
    /// End of the last status check, or of an action after it.
    last: Instant,
    /// Time of actions since the first one.
    acting: Duration,
}

impl FailingTime {
    /// Leaves out the time of an action: nobody is asked meanwhile, so it is no pause, and no time of
    /// failures.
    fn skip(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began.max(self.last));
        (self.last, self.acting) = (self.last + took, self.acting + took);
    }

    /// Returns the time for which the device failed, where it fails until `end`.
    fn length(&self, end: Instant) -> Duration {
        end.saturating_duration_since(self.since).saturating_sub(self.acting)
    }
}

#[derive(Clone, Copy, Debug)]
struct LastReading {
    heard: StatusReading,
    /// Number of actions that had ended when the status check began.
    after: u32,
}

/// Status checks of one device after one action that show no machine that is on.
#[derive(Clone, Copy, Debug)]
struct QuietLooks {
    /// Number of actions that had ended when the first began.
    after: u32,
    first_ended: Instant,
    last_began: Instant,
}

#[derive(Clone, Copy, Debug)]
struct DeviceTurn {
    device: usize,
    until: Instant,
    part: Duration,
    /// Report of the device's action, and its time.
    acted: Option<(ActionReport, Instant)>,
    looked: bool,
    poll: PollTimer,
}

/// Time of the next status check.
#[derive(Clone, Copy, Debug, Default)]
struct PollTimer {
    not_before: Option<Instant>,
    pause: Option<Duration>,
}

impl PowerPlan {
    /// Plans to have the domain in the state `goal` by `until`. `devices` in their order; at least one.
    pub fn new(goal: PowerState, devices: impl IntoIterator<Item = DeviceLimits>, until: Instant) -> Self {
        let new = |limits| DeviceRecord {
            limits,
            tries: 0,
            last: None,
            quiet: None,
            opposed: false,
            effect_pending: false,
            silent: false,
            is_blind: false,
            failing: None,
            told: None,
            deferred: false,
            over: None,
        };
        Self {
            goal,
            until,
            devices: devices.into_iter().map(new).collect(),
            actions: 0,
            turn: None,
            patience: PollTimer::default(),
            stopped: false,
        }
    }

    /// Forbids that anything else begins.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Returns the number of actions that were begun.
    pub fn actions(&self) -> u32 {
        self.actions
    }

    /// Returns the last status of a device.
    pub fn last(&self, device: usize) -> Option<StatusReading> {
        self.devices.get(device)?.last.map(|it| it.heard)
    }

    /// Returns the end of the first look since the last action that showed no machine that is on, with none
    /// after it that did; none where there is no such look.
    pub fn quiet_since(&self, device: usize) -> Option<Instant> {
        Some(self.devices.get(device)?.quiet_looks(self.actions)?.first_ended)
    }

    /// Returns true for a device that can't tell the state, and has to be asked again before success is
    /// reported.
    pub fn is_to_be_heard_out(&self, device: usize) -> bool {
        let is_asked = |it: &DeviceRecord| it.is_failing(self.actions) && !it.is_heard_out(self.goal);
        self.devices.get(device).is_some_and(is_asked)
    }

    /// Returns true for a device that could not tell the state for all of its time.
    pub fn has_failed_throughout(&self, device: usize) -> bool {
        self.devices.get(device).is_some_and(|it| it.has_failed_for(it.limits.answer))
    }

    /// Records that the device told the state at `when`, whichever request asked: its failures until then
    /// count no more.
    pub fn told(&mut self, device: usize, when: Instant) {
        let Some(it) = self.devices.get_mut(device) else { return };
        if it.told.is_none_or(|before| before < when) {
            it.told = Some(when);
            it.failing = it.failing.filter(|failing| when < failing.since);
        }
    }

    /// Returns true where an action was begun and its end is not known: it may come yet, or not all devices
    /// were heard that could deny it.
    pub fn is_open(&self) -> bool {
        self.devices.iter().any(|it| it.effect_pending || self.says_goal(it))
    }

    /// Records a status check that began at `began` and ended at `now`. No action may have been in flight
    /// meanwhile.
    pub fn looked(&mut self, device: usize, heard: StatusReading, began: Instant, now: Instant) {
        let (goal, after) = (self.goal, self.actions);
        let Some(it) = self.devices.get_mut(device) else { return };
        it.silent = matches!(heard, StatusReading::Silent | StatusReading::NotAsked);
        // A status check that was cut short by the end of the time is no evidence, and takes none back.
        let patience = patience(goal, it.limits);
        let is_cut = match heard {
            StatusReading::NotAsked => goal == PowerState::Off,
            StatusReading::Silent => now.saturating_duration_since(began) < patience,
            StatusReading::Is(_)
            | StatusReading::CantTell
            | StatusReading::Unlisted
            | StatusReading::Unusable => false,
        };
        if !is_cut {
            it.last = Some(LastReading { heard, after });
        }
        it.note_quiet(heard, after, began, now);
        let was_blind = it.is_blind;
        let is_blind = matches!(heard, StatusReading::CantTell | StatusReading::Unlisted);
        it.is_blind = !it.limits.is_known_to_fail && (is_blind || was_blind && it.silent);
        it.note_failing(heard, began, now);
        let opposes = matches!(heard, StatusReading::Is(power) if power != goal);
        if was_blind && opposes {
            // One more, after the others' turns.
            it.limits.retries = it.limits.retries.max(it.tries);
        }
        it.opposed |= opposes;
        if let Some(turn) = &mut self.turn
            && turn.device == device
        {
            turn.looked = true;
            turn.poll.wait(now);
            // Agents fail in the same way when no action began, and when they gave up on a slow machine. One
            // whose device can still be asked may have acted.
            let failed = matches!(turn.acted, Some((ActionReport::Failed | ActionReport::GaveUp, _)));
            it.effect_pending |= failed && matches!(heard, StatusReading::Is(power) if power != goal);
        }
    }

    /// Records an action that began at `began` and ended at `now`.
    pub fn acted(&mut self, device: usize, how: ActionReport, began: Instant, now: Instant) {
        for failing in self.devices.iter_mut().filter_map(|it| it.failing.as_mut()) {
            failing.skip(began, now);
        }
        if how != ActionReport::NotRun {
            self.actions += 1;
        }
        if let Some(it) = self.devices.get_mut(device) {
            it.effect_pending |= matches!(how, ActionReport::Claimed | ActionReport::Unknown);
        }
        if let Some(turn) = &mut self.turn
            && turn.device == device
        {
            turn.acted = Some((how, now));
            turn.looked = false;
            turn.poll = PollTimer::default();
        }
    }

    /// Returns the next step.
    pub fn next(&mut self, now: Instant) -> PlanStep {
        if self.devices.iter().any(|it| self.says_goal(it)) {
            let asked: Vec<usize> =
                (0..self.devices.len()).filter(|it| self.is_to_be_asked(&self.devices[*it])).collect();
            let objects = self.devices.iter().any(|it| self.objects(it));
            if asked.is_empty() && !objects {
                return PlanStep::Done;
            }
            if now < self.until && !asked.is_empty() {
                if let Some(then) = self.pause_until(&asked, now) {
                    return PlanStep::Wait(then);
                }
                let asked = asked.into_iter().map(|it| {
                    let DeviceRecord { limits, opposed, .. } = self.devices[it];
                    // A device that reported the opposite is alive: its answer is worth waiting for.
                    let whole = opposed || self.goal == PowerState::Off;
                    let limit = if whole { limits.status } else { patience(self.goal, limits) };
                    (it, self.until.min(now + limit))
                });
                return PlanStep::Ask(asked.collect());
            }
        }
        if now >= self.until {
            return PlanStep::GiveUp;
        }
        loop {
            if let Some(step) = self.go_on(now) {
                return step;
            }
            if let Some(turn) = self.turn.take() {
                let steps_back = self.steps_back(&turn);
                let device = &mut self.devices[turn.device];
                device.over = Some(now);
                if steps_back {
                    device.tries -= 1;
                    device.deferred = true;
                }
            }
            match self.next_device() {
                Some(device) => {
                    if let Some(again) = self.devices[device]
                        .over
                        .filter(|_| self.devices[device].tries > 0)
                        .map(|it| it + RETRY_PAUSE)
                        && now < again
                    {
                        return PlanStep::Wait(again.min(self.until));
                    }
                    self.begin(device, now);
                }
                None => return self.wait_for_an_effect(now),
            }
        }
    }

    /// Returns the next step of the turn; none when the turn is over.
    fn go_on(&self, now: Instant) -> Option<PlanStep> {
        let turn = self.turn.as_ref()?;
        if now >= turn.until {
            return None;
        }
        let device = &self.devices[turn.device];
        let last = device.last.filter(|it| it.after == self.actions).map(|it| it.heard);
        let Some((how, when)) = turn.acted else {
            // Nothing may begin any more, or the goal is reached already.
            if self.stopped || last == Some(StatusReading::Is(self.goal)) {
                return None;
            }
            if !turn.looked && last.is_none() && !device.deferred {
                // The device has not been asked since the last action, which may have reached the goal.
                let until = turn.until - turn.part * 2 / 3;
                let until = until
                    .max(now + MIN_STATUS_TIME)
                    .min(now + device.limits.status)
                    .min(turn.until - turn.part / 3);
                return Some(PlanStep::Look(vec![(turn.device, until)]));
            }
            // A device that does not even answer lets the others go first, as long as there are any.
            if self.steps_back(turn) {
                return None;
            }
            let left = turn.until.saturating_duration_since(now);
            let reserve = device.limits.status.min(turn.part / 3).min(left / 2);
            return Some(PlanStep::Act(turn.device, turn.until - reserve));
        };
        let (others, until) = match (how, last.filter(|_| turn.looked)) {
            (ActionReport::NotRun, _) => return None,
            (_, Some(StatusReading::Is(power))) if power == self.goal => return None,
            // The device waits for its effect; devices with an earlier pending effect have the same right.
            (ActionReport::Claimed | ActionReport::Unknown, _) => (true, turn.until),
            (ActionReport::Failed | ActionReport::GaveUp, None) if !turn.looked => (false, turn.until),
            (ActionReport::Failed | ActionReport::GaveUp, Some(StatusReading::Is(_)))
                if now < when + FAILED_ACTION_SETTLE =>
            {
                (false, turn.until.min(when + FAILED_ACTION_SETTLE))
            }
            (ActionReport::Failed | ActionReport::GaveUp, _) => return None,
        };
        if let Some(then) = turn.poll.not_before
            && then > now
        {
            return Some(PlanStep::Wait(then.min(until)));
        }
        let asked = self.devices.iter().enumerate();
        let asked = asked.filter(|(place, it)| *place == turn.device || others && it.effect_pending);
        Some(PlanStep::Look(asked.map(|(place, it)| (place, until.min(now + it.limits.status))).collect()))
    }

    /// Returns the device that has the next turn. Where one reports success, only those that object.
    fn next_device(&self) -> Option<usize> {
        if self.stopped {
            return None;
        }
        let contradicted = self.devices.iter().any(|it| self.says_goal(it));
        let can = |it: &DeviceRecord| it.tries <= it.limits.retries && (!contradicted || self.objects(it));
        let all = self.devices.iter().enumerate().filter(|(_, it)| can(it));
        all.min_by_key(|(place, it)| (it.tries, it.silent || it.deferred, *place)).map(|(place, _)| place)
    }

    fn begin(&mut self, device: usize, now: Instant) {
        let tries = self.devices[device].tries;
        let others = self.devices.iter().enumerate();
        let others = others
            .filter(|(place, it)| *place != device && it.tries <= tries && it.tries <= it.limits.retries);
        let others = u32::try_from(others.count()).unwrap_or(u32::MAX);
        let again = self.devices.iter().any(|it| tries < it.limits.retries);
        let left = self.until.saturating_duration_since(now);
        let equal = left / others.saturating_add(1 + u32::from(again));
        let part = match self.devices[device].limits.timeout {
            Some(timeout) => {
                let for_others = equal.min(LEFT_FOR_OTHERS).saturating_mul(others);
                timeout.min(left.saturating_sub(for_others))
            }
            None => equal,
        };
        self.devices[device].tries += 1;
        self.turn = Some(DeviceTurn {
            device,
            until: now + part,
            part,
            acted: None,
            looked: false,
            poll: PollTimer::default(),
        });
    }

    /// Waits for pending effects when no device has a turn any more.
    fn wait_for_an_effect(&mut self, now: Instant) -> PlanStep {
        if self.actions == 0 && self.stopped {
            return self.hear_out(now);
        }
        let waiting = |it: &DeviceRecord| it.effect_pending || it.is_blind || self.objects(it);
        let asked: Vec<usize> = (0..self.devices.len()).filter(|it| waiting(&self.devices[*it])).collect();
        let worth = asked.iter().any(|it| self.devices[*it].effect_pending || self.devices[*it].is_blind)
            || self.devices.iter().any(|it| self.says_goal(it));
        if asked.is_empty() || !worth {
            return PlanStep::GiveUp;
        }
        if let Some(then) = self.patience.not_before
            && then > now
        {
            return PlanStep::Wait(then.min(self.until));
        }
        let looks = asked.into_iter().map(|it| (it, self.until.min(now + self.devices[it].limits.status)));
        let step = PlanStep::Look(looks.collect());
        self.patience.wait(now);
        step
    }

    /// Asks devices that can't tell the state again, where nothing was done and nothing will be.
    fn hear_out(&self, now: Instant) -> PlanStep {
        // Nobody says "off", so what can't be used, and what failed for long before, is told at once.
        let is_worth = |it: &DeviceRecord| {
            !it.limits.is_known_to_fail && it.last.is_some_and(|it| it.heard != StatusReading::Unusable)
        };
        let is_asked =
            |it: &DeviceRecord| it.is_failing(self.actions) && !it.is_heard_out(self.goal) && is_worth(it);
        let asked: Vec<usize> = (0..self.devices.len()).filter(|it| is_asked(&self.devices[*it])).collect();
        if self.devices.iter().any(|it| self.objects(it)) || asked.is_empty() {
            return PlanStep::GiveUp;
        }
        if let Some(then) = self.pause_until(&asked, now) {
            return PlanStep::Wait(then);
        }
        let looks = asked.into_iter().map(|it| (it, self.until.min(now + self.devices[it].limits.status)));
        PlanStep::Look(looks.collect())
    }

    /// Returns until when these are left alone: all are asked at once, and one of them failed a moment ago.
    fn pause_until(&self, these: &[usize], now: Instant) -> Option<Instant> {
        let failed = these.iter().filter_map(|it| self.devices[*it].failing);
        let pause = failed.map(|it| it.last + FAILED_PAUSE).max().filter(|it| *it > now);
        pause.map(|it| it.min(self.until))
    }

    /// Returns true for a device that did not answer in its turn, so that others go first, once.
    fn steps_back(&self, turn: &DeviceTurn) -> bool {
        let device = &self.devices[turn.device];
        let waits = |it: &DeviceRecord| it.tries <= it.limits.retries && !it.deferred;
        let mut others = self.devices.iter().enumerate().filter(|(place, _)| *place != turn.device);
        turn.acted.is_none()
            && turn.looked
            && device.silent
            && !device.deferred
            && others.any(|(_, it)| waits(it))
    }

    /// Returns true for a device that reports the wanted state, with no action since.
    fn says_goal(&self, it: &DeviceRecord) -> bool {
        it.last.is_some_and(|last| last.after == self.actions && last.heard == StatusReading::Is(self.goal))
    }

    /// Returns true for a device that reported the opposite, with no action since.
    fn objects(&self, it: &DeviceRecord) -> bool {
        it.last.is_some_and(|last| {
            last.after == self.actions && matches!(last.heard, StatusReading::Is(power) if power != self.goal)
        })
    }

    /// Returns true for a device that must be asked before success is reported.
    fn is_to_be_asked(&self, it: &DeviceRecord) -> bool {
        let is_off = self.goal == PowerState::Off;
        match it.last {
            None => is_off || self.actions == 0,
            Some(last) if last.after == self.actions => {
                it.is_failing(self.actions) && !it.is_heard_out(self.goal)
                    || is_off && self.may_have_come_since(it)
            }
            // What it said, or did not say, before the action is no evidence about the time after it.
            Some(_) => it.opposed || is_off,
        }
    }

    /// Returns whether a machine may have come to the device since it was looked at, from another one that
    /// was looked at later.
    fn may_have_come_since(&self, it: &DeviceRecord) -> bool {
        let Some(own) = it.quiet_looks(self.actions) else { return false };
        let others = self.devices.iter().filter(|other| !std::ptr::eq(*other, it));
        others.filter_map(|other| other.quiet_looks(self.actions)).any(|it| own.last_began < it.first_ended)
    }
}

impl DeviceRecord {
    fn note_quiet(&mut self, heard: StatusReading, after: u32, began: Instant, ended: Instant) {
        if heard.is_quiet() {
            let before = self.quiet.filter(|it| it.after == after);
            let new = QuietLooks { after, first_ended: ended, last_began: began };
            self.quiet = Some(before.map_or(new, |it| QuietLooks { last_began: began, ..it }));
        } else if heard == StatusReading::Is(PowerState::On) {
            self.quiet = None;
        }
    }

    /// Returns the looks since that action, of a device that still shows no machine that is on.
    fn quiet_looks(&self, after: u32) -> Option<QuietLooks> {
        self.quiet.filter(|it| it.after == after && self.last.is_some_and(|last| last.heard.is_quiet()))
    }

    /// Notes whether the device could tell the state.
    fn note_failing(&mut self, heard: StatusReading, began: Instant, now: Instant) {
        match heard {
            StatusReading::CantTell | StatusReading::Unusable => {
                let before = self.failing_without_pause(began);
                let since = self.told.map_or(began, |it| it.max(began).min(now));
                let new = FailingTime { since, last: now, acting: Duration::ZERO };
                self.failing = Some(before.map_or(new, |it| FailingTime { last: now, ..it }));
            }
            StatusReading::Is(_) => self.failing = None,
            StatusReading::Unlisted | StatusReading::Silent | StatusReading::NotAsked => {}
        }
    }

    /// Returns the failures of a device that is asked at `began`; none after a pause in which it may have
    /// been well.
    fn failing_without_pause(&self, began: Instant) -> Option<FailingTime> {
        self.failing.filter(|it| began <= it.last + FAILED_GAP)
    }

    /// Returns true for a device that could not tell the state in its last status check after that action.
    fn is_failing(&self, after: u32) -> bool {
        self.last.is_some_and(|it| it.after == after && it.heard.is_failure())
    }

    /// Returns whether the device, which can't tell the state now, need not be asked again.
    fn is_heard_out(&self, goal: PowerState) -> bool {
        self.has_failed_for(patience(goal, self.limits))
    }

    /// Returns whether the device could not tell the state for so long.
    fn has_failed_for(&self, time: Duration) -> bool {
        self.failing.is_some_and(|it| it.length(it.last) + FAILED_PAUSE >= time)
    }
}

/// Returns the time after which a device that is silent need not be waited for.
fn patience(goal: PowerState, limits: DeviceLimits) -> Duration {
    let witness = if goal == PowerState::Off { limits.status } else { WITNESS_TIMEOUT };
    limits.answer.min(limits.status).min(witness)
}

impl PollTimer {
    fn wait(&mut self, now: Instant) {
        let pause = self.pause.map_or(POLL_BACKOFF.0, |_| POLL_BACKOFF.1);
        self.pause = Some(pause);
        self.not_before = Some(now + pause);
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
