// SPDX-License-Identifier: GPL-2.0-or-later
//! What may be believed, and what to do next: the rules of the agent backend as pure logic.
//!
//! A [`Plan`] takes one domain to a state by way of the devices that serve it. It is asked for its next [`Step`] and told what
//! came of it; it runs nothing, and time is a parameter. Its rules:
//!
//! - Done is what a device's `status` says, asked after the last action had ended, and nothing else is.
//! - Whoever said the opposite since the request began must take it back: a device that says "on" and goes on
//!   saying so weighs more than one that says "off", which may be about another machine. Who can't tell any more has taken it
//!   back: a controller may lose its power with its machine.
//! - "Already so" means that nothing will be done, so all devices are asked, and only those that say nothing in
//!   [`WITNESS`] are passed over.
//! - A silence that is shorter than that says nothing.
//! - Each device gets its part of the time and no more. Those that did not answer at all come after those that did.
//! - Nothing is begun when [`Plan::stop`] was called; what was begun is followed to its end.

use std::time::{Duration, Instant};

use crate::domain::PowerState;

/// How long the other devices are asked for what speaks against success.
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an action that failed may still show an effect.
const FAILED_ACTION_SETTLE: Duration = Duration::from_secs(3);
/// The pauses between looks: the first, and then this one.
const POLL_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// The pause before a device is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// No look has less time, as long as there is some.
const MIN_STATUS_TIME: Duration = Duration::from_secs(1);
/// Whatever time-out a device has, each one after it in the round is left this much, or an equal part where that is less.
const LEFT_FOR_OTHERS: Duration = Duration::from_secs(5);

/// What an exit code of `status` says; nothing where it says nothing. Whether 2 may be believed is for the device to know.
pub fn power(exit_code: i32) -> Option<PowerState> {
    match exit_code {
        0 => Some(PowerState::On),
        2 => Some(PowerState::Off),
        _ => None,
    }
}

/// What came of a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusReading {
    Is(PowerState),
    /// It answered, and can't tell.
    CantTell,
    /// It did not answer in its time.
    Silent,
}

/// What came of an action. Whether it had an effect is another matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActionReport {
    /// It says that it did.
    Claimed,
    /// It says that it did not.
    Failed,
    /// It was killed, or ended by a signal: it may have begun.
    Unknown,
    /// The agent could not be started.
    NotRun,
}

/// What a plan knows of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceLimits {
    /// How long one try may take; none: an equal part of the time that is left.
    pub timeout: Option<Duration>,
    /// How long one look may take.
    pub status: Duration,
    /// How often it is tried again.
    pub retries: u32,
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlanStep {
    /// Look for the state that is wanted, at all of these at once, each until then. The first that says so is enough.
    Look(Vec<(usize, Instant)>),
    /// One says so. Ask all of these at once, each until then. The first that says the opposite is enough.
    Ask(Vec<(usize, Instant)>),
    /// Act at this one, until then.
    Act(usize, Instant),
    /// Do nothing until then.
    Wait(Instant),
    /// The domain is in the state that was wanted.
    Done,
    /// It is not, or nobody can tell, and nothing is left to be done.
    GiveUp,
}

/// How one domain comes to one state.
#[derive(Debug)]
pub struct PowerPlan {
    goal: PowerState,
    until: Instant,
    devices: Vec<DeviceRecord>,
    /// Actions that were begun: looks are told by how many had been before them.
    actions: u32,
    /// The device whose turn it is.
    turn: Option<DeviceTurn>,
    /// The next look of those that are asked when nobody has a turn any more.
    patience: PollTimer,
    stopped: bool,
}

#[derive(Clone, Copy, Debug)]
struct DeviceRecord {
    limits: DeviceLimits,
    tries: u32,
    last: Option<LastReading>,
    /// It said the opposite of what is wanted.
    opposed: bool,
    /// It may have been moved to act.
    effect_pending: bool,
    /// It did not answer when it was asked last.
    silent: bool,
    /// It had its turn, did not answer, and comes after the others.
    deferred: bool,
    /// When its last turn was over.
    over: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct LastReading {
    heard: StatusReading,
    /// How many actions had ended when it was begun.
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct DeviceTurn {
    device: usize,
    until: Instant,
    part: Duration,
    /// What came of its action, and when.
    acted: Option<(ActionReport, Instant)>,
    looked: bool,
    poll: PollTimer,
}

/// When to look again.
#[derive(Clone, Copy, Debug, Default)]
struct PollTimer {
    not_before: Option<Instant>,
    pause: Option<Duration>,
}

impl PowerPlan {
    /// To have the domain in the state `goal` by `until`. `devices` in their order; at least one.
    pub fn new(goal: PowerState, devices: impl IntoIterator<Item = DeviceLimits>, until: Instant) -> Self {
        let new = |limits| DeviceRecord {
            limits,
            tries: 0,
            last: None,
            opposed: false,
            effect_pending: false,
            silent: false,
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

    /// Nothing may be begun any more.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// How many actions were begun.
    pub fn actions(&self) -> u32 {
        self.actions
    }

    /// What a device said last.
    pub fn last(&self, device: usize) -> Option<StatusReading> {
        self.devices.get(device)?.last.map(|it| it.heard)
    }

    /// Whether something was begun of which nobody knows whether it has ended.
    pub fn is_open(&self) -> bool {
        self.devices.iter().any(|it| it.effect_pending && !self.says_goal(it))
    }

    /// A look that was begun at `began` has ended at `now`. No action may have been under way meanwhile.
    pub fn looked(&mut self, device: usize, heard: StatusReading, began: Instant, now: Instant) {
        let (goal, after) = (self.goal, self.actions);
        let Some(it) = self.devices.get_mut(device) else { return };
        it.silent = heard == StatusReading::Silent;
        // One that was cut short by the end of the time says nothing, and takes nothing back.
        let is_cut =
            it.silent && now.saturating_duration_since(began) < it.limits.status.min(WITNESS_TIMEOUT);
        if !is_cut {
            it.last = Some(LastReading { heard, after });
        }
        it.opposed |= matches!(heard, StatusReading::Is(power) if power != goal);
        if let Some(turn) = &mut self.turn
            && turn.device == device
        {
            turn.looked = true;
            turn.poll.wait(now);
            // Agents fail in the same way when nothing was begun, and when they had no more patience with a slow machine. One
            // that can still be asked may have been moved.
            let failed = matches!(turn.acted, Some((ActionReport::Failed, _)));
            it.effect_pending |= failed && matches!(heard, StatusReading::Is(power) if power != goal);
        }
    }

    /// An action has ended at `now`.
    pub fn acted(&mut self, device: usize, how: ActionReport, now: Instant) {
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

    /// What to do now.
    pub fn next(&mut self, now: Instant) -> PlanStep {
        if self.devices.iter().any(|it| self.says_goal(it)) {
            let asked: Vec<usize> =
                (0..self.devices.len()).filter(|it| self.is_to_be_asked(&self.devices[*it])).collect();
            let objects = self.devices.iter().any(|it| self.objects(it));
            if asked.is_empty() && !objects {
                return PlanStep::Done;
            }
            if now < self.until && !asked.is_empty() {
                let asked = asked.into_iter().map(|it| {
                    let DeviceRecord { limits, opposed, .. } = self.devices[it];
                    // One that said the opposite is alive: its word is worth waiting for.
                    let limit = if opposed { limits.status } else { limits.status.min(WITNESS_TIMEOUT) };
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

    /// The next step of the turn; none when it is over.
    fn go_on(&self, now: Instant) -> Option<PlanStep> {
        let turn = self.turn.as_ref()?;
        if now >= turn.until {
            return None;
        }
        let device = &self.devices[turn.device];
        let last = device.last.filter(|it| it.after == self.actions).map(|it| it.heard);
        let Some((how, when)) = turn.acted else {
            // Nothing is begun any more, or it is done already.
            if self.stopped || last == Some(StatusReading::Is(self.goal)) {
                return None;
            }
            if !turn.looked && last.is_none() && !device.deferred {
                // It has not been asked since the last action, which may have done it.
                let until = turn.until - turn.part * 2 / 3;
                let until = until
                    .max(now + MIN_STATUS_TIME)
                    .min(now + device.limits.status)
                    .min(turn.until - turn.part / 3);
                return Some(PlanStep::Look(vec![(turn.device, until)]));
            }
            // One that does not even answer lets the others go first, as long as there are any.
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
            // It waits for its effect; those that were moved to act before have the same right.
            (ActionReport::Claimed | ActionReport::Unknown, _) => (true, turn.until),
            (ActionReport::Failed, None) if !turn.looked => (false, turn.until),
            (ActionReport::Failed, Some(StatusReading::Is(_))) if now < when + FAILED_ACTION_SETTLE => {
                (false, turn.until.min(when + FAILED_ACTION_SETTLE))
            }
            (ActionReport::Failed, _) => return None,
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

    /// Whose turn is next. Where one says that it is done, those that don't.
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

    /// Nobody has a turn any more. What was begun may still come to something.
    fn wait_for_an_effect(&mut self, now: Instant) -> PlanStep {
        let waiting = |it: &DeviceRecord| it.effect_pending || self.objects(it);
        let asked: Vec<usize> = (0..self.devices.len()).filter(|it| waiting(&self.devices[*it])).collect();
        let worth = asked.iter().any(|it| self.devices[*it].effect_pending)
            || self.devices.iter().any(|it| self.says_goal(it));
        if asked.is_empty() || !worth || self.actions == 0 && self.stopped {
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

    /// It did not answer in its turn, so others go first, once.
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

    /// It says that the domain is as it is wanted, and nothing was done since.
    fn says_goal(&self, it: &DeviceRecord) -> bool {
        it.last.is_some_and(|last| last.after == self.actions && last.heard == StatusReading::Is(self.goal))
    }

    /// It said the opposite, and nothing was done since.
    fn objects(&self, it: &DeviceRecord) -> bool {
        it.last.is_some_and(|last| {
            last.after == self.actions && matches!(last.heard, StatusReading::Is(power) if power != self.goal)
        })
    }

    /// Its word is wanted before success is believed.
    fn is_to_be_asked(&self, it: &DeviceRecord) -> bool {
        match it.last {
            None => self.actions == 0,
            Some(last) => it.opposed && last.after != self.actions,
        }
    }
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
