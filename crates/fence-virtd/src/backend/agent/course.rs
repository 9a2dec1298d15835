// SPDX-License-Identifier: GPL-2.0-or-later
//! The course of one plan: which devices are asked, which agents run, and what the domain's state is in the
//! end.

use std::time::{Duration, Instant};

use fence_core::agent::plan::{ActionReport, FAILED_PAUSE, PlanStep, PowerPlan, StatusReading};
use fence_core::domain::{ActionError, PowerState};
use fence_core::evidence::{DeviceLooks, DomainSite, Finding, Sight};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::aftermath::{OrderFailure, PendingEffects, UnconfirmedAction};
use super::orders::{MachinePlugs, OrderHistory};
use super::route::Route;
use super::run::{RunContext, StatusReply};
use super::slots::RunPurpose;
use crate::intent::WrittenOrder;
use crate::request::lease::Lease;

/// Time after which the next device is asked too, if one does not answer.
const HEDGE_DELAY: Duration = Duration::from_secs(2);
/// Time from which on an agent that reports failure may have given the order.
const SLOW_FAILURE: Duration = Duration::from_secs(2);

/// Result of a completed change of power.
pub(super) struct PowerChange {
    /// True if the domain was in the wanted state before.
    pub(super) was_so: bool,
    pub(super) note: Option<String>,
    /// Last reports of the devices, none older than the last action.
    pub(super) reports: Vec<DeviceLooks>,
    /// An order is not settled, and another one may have had the effect that is seen.
    pub(super) may_come_again: bool,
}

/// Last replies of a device.
#[derive(Clone, Default)]
pub(super) struct LastReply {
    status: Option<String>,
    action: Option<String>,
    /// Last status check since the last action, with its beginning and its end.
    reading: Option<(StatusReading, Instant, Instant)>,
}

/// Runs one plan.
pub(super) struct PlanRunner<'a> {
    pub(super) goal: PowerState,
    /// The power-off is the first half of a reboot.
    pub(super) for_reboot: bool,
    pub(super) routes: Vec<Route>,
    pub(super) plan: PowerPlan,
    pub(super) lease: &'a Lease,
    pub(super) replies: Vec<LastReply>,
    pub(super) pending: PendingEffects,
    pub(super) machine: MachinePlugs,
    pub(super) history: OrderHistory,
}

impl PlanRunner<'_> {
    /// Asks the devices in their order; if one does not answer soon, the next is asked too. Ends with the
    /// first state.
    pub(super) async fn first_status(&mut self) {
        let mut runs = PendingStatusRuns::default();
        let mut rest = 0..self.routes.len();
        let until = self.lease.until();
        loop {
            let next = rest.next();
            if let Some(place) = next {
                runs.begin(place, &self.routes[place], self.lease, until);
            }
            let alone = sleep_until(
                if rest.is_empty() { until } else { until.min(Instant::now() + HEDGE_DELAY) }.into(),
            );
            tokio::pin!(alone);
            loop {
                tokio::select! {
                    biased;
                    result = runs.next(), if !runs.is_empty() => {
                        if self.take_reading(result) {
                            return self.silent(runs);
                        }
                        if runs.is_empty() {
                            break;
                        }
                    }
                    _ = self.lease.ended() => return,
                    () = &mut alone => break,
                }
            }
            if rest.is_empty() && (runs.is_empty() || Instant::now() >= until) {
                return;
            }
        }
    }

    /// Follows the plan to its end. Returns whether the domain is in the wanted state.
    pub(super) async fn run_to_end(&mut self) -> bool {
        loop {
            if self.lease.check().is_err() {
                self.plan.stop();
                if self.plan.actions() == 0 {
                    return false;
                }
            }
            match self.plan.next(Instant::now()) {
                PlanStep::Look(these) => self.check_status(these, StatusReading::Is(self.goal)).await,
                PlanStep::Ask(these) => {
                    self.check_status(these, StatusReading::Is(opposite(self.goal))).await;
                }
                PlanStep::Act(place, until) => self.act(place, until).await,
                PlanStep::Wait(until) => {
                    // Nothing is polled faster for one that has gone.
                    tokio::select! {
                        () = sleep_until(until.into()) => {}
                        _ = self.lease.ended(), if self.plan.actions() == 0 => {}
                    }
                }
                PlanStep::Done => return true,
                PlanStep::GiveUp => return false,
            }
        }
    }

    /// Asks these devices at once, until one has said `enough` or each has answered. One that can't tell is
    /// asked again while others are waited for.
    async fn check_status(&mut self, these: Vec<(usize, Instant)>, enough: StatusReading) {
        let mut runs = PendingStatusRuns::default();
        for (place, until) in &these {
            runs.begin(*place, &self.routes[*place], self.lease, *until);
        }
        // An effect is looked for again as soon as each has answered; before success each is heard out.
        let is_look = enough == StatusReading::Is(self.goal);
        let mut unheard = these.clone();
        while !runs.is_empty() {
            tokio::select! {
                biased;
                result = runs.next() => {
                    let Some((place, heard)) = result.as_ref().map(|it| (it.place, it.reply.reading)) else {
                        return;
                    };
                    self.take_reading(result);
                    if heard == enough {
                        return;
                    }
                    unheard.retain(|it| it.0 != place);
                    let is_alone = if is_look { unheard.is_empty() } else { runs.is_empty() };
                    if !is_alone
                        && self.plan.is_to_be_heard_out(place)
                        && let Some((_, until)) = these.iter().find(|it| it.0 == place)
                        && Instant::now() + FAILED_PAUSE < *until
                    {
                        runs.begin_later(FAILED_PAUSE, place, &self.routes[place], self.lease, *until);
                    }
                }
                _ = self.lease.ended(), if self.plan.actions() == 0 => return,
            }
        }
    }

    /// Writes down that a reboot owes a start, before the first agent is told to power the domain off. One
    /// that is not seen on is owed none.
    async fn write_owed_start(&self) {
        let on = Some(StatusReading::Is(PowerState::On));
        if self.for_reboot
            && let Some(intent) = self.lease.trail().intent()
            && (0..self.routes.len()).any(|it| self.plan.last(it) == on)
        {
            intent.owes_definition().await;
        }
    }

    async fn act(&mut self, place: usize, until: Instant) {
        self.write_owed_start().await;
        let route = self.routes[place].clone();
        let device = &route.device;
        let order = match self.lease.trail().intent() {
            Some(intent) => {
                let (name, starts) = (device.name.clone(), self.goal == PowerState::On);
                Some(intent.ordered(name, route.plug.clone(), starts, device.effect_timeout).await)
            }
            None => None,
        };
        self.pending.open.push(UnconfirmedAction {
            place,
            route: route.clone(),
            to: self.goal,
            ended: None,
            is_claimed: false,
            failed: None,
            is_seen: false,
            mark: self.history.order(&self.machine, route.device_plug(), self.goal),
            order,
        });
        let context = RunContext { purpose: RunPurpose::Request, lease: Some(self.lease), until };
        let began = Instant::now();
        let (how, words) = route.act(self.goal, context).await;
        match self.pending.open.last_mut() {
            Some(open) if how != ActionReport::NotRun => {
                let ended = Instant::now();
                (open.ended, open.is_claimed) = (Some(ended), how == ActionReport::Claimed);
                if how == ActionReport::Failed {
                    let is_slow = ended - began >= SLOW_FAILURE;
                    open.failed = Some(if is_slow { OrderFailure::Slow } else { OrderFailure::AtOnce });
                    open.mark.failed();
                }
                if let Some(order) = &open.order {
                    order.expires(open.longest(), open.is_claimed);
                }
            }
            _ => {
                if let Some(never_given) = self.pending.open.pop() {
                    never_given.mark.take_back();
                    never_given.order.into_iter().for_each(WrittenOrder::settled);
                }
            }
        }
        self.replies[place].action = Some(words);
        // What was read before says nothing now.
        self.replies.iter_mut().for_each(|it| it.reading = None);
        self.plan.acted(place, how, began, Instant::now());
    }

    /// Takes the result of a status run. Returns whether it shows the domain's state.
    fn take_reading(&mut self, it: Option<StatusResult>) -> bool {
        let Some(StatusResult { place, reply, began }) = it else { return false };
        let now = Instant::now();
        if let Some(when) = self.routes[place].last_told() {
            self.plan.told(place, when);
        }
        let was_known = self.plan.has_failed_throughout(place);
        self.plan.looked(place, reply.reading, began, now);
        self.pending.looked(place, reply.reading);
        if !was_known && self.plan.has_failed_throughout(place) {
            self.routes[place].note_failed_throughout(began);
        }
        let last = &mut self.replies[place];
        // A status check that had not all of its time knows no reason, and hides none.
        let status_timeout = self.routes[place].device.status_timeout;
        let is_cut = reply.reading == StatusReading::Silent && now - began < status_timeout;
        if !(is_cut && last.reading.is_some()) {
            last.status = Some(reply.words);
        }
        last.reading = Some((reply.reading, began, now));
        matches!(reply.reading, StatusReading::Is(_))
    }

    /// Marks the devices that have not answered as silent.
    fn silent(&mut self, runs: PendingStatusRuns) {
        for (place, began) in runs.asked {
            self.routes[place].device.record_abandoned(began, self.lease);
            self.replies[place].status = Some("did not answer".to_owned());
            self.plan.looked(place, StatusReading::Silent, began, Instant::now());
        }
    }

    /// Returns the looks of each device that was asked since the last action.
    pub(super) fn reports(&self) -> Vec<DeviceLooks> {
        let reports =
            self.routes.iter().zip(&self.replies).enumerate().filter_map(|(place, (route, reply))| {
                let (reading, began, ended) = reply.reading?;
                let sight = match reading {
                    StatusReading::Is(PowerState::On) => Sight::On,
                    StatusReading::Is(PowerState::Off) => Sight::Off,
                    StatusReading::Unlisted => Sight::Absent,
                    StatusReading::CantTell
                    | StatusReading::Unusable
                    | StatusReading::Silent
                    | StatusReading::NotAsked => Sight::Unknown(reply.status.clone().unwrap_or_default()),
                };
                let site = DomainSite::Device(route.device.name.clone());
                let last = Finding::without_namesakes(site, sight, began, ended);
                Some(DeviceLooks { last, quiet_since: self.plan.quiet_since(place).unwrap_or(ended) })
            });
        reports.collect()
    }

    /// Returns the last replies of all devices, for people.
    pub(super) fn words(&self) -> String {
        let lines = self.routes.iter().zip(&self.replies).filter_map(|(route, reply)| {
            let status = reply.status.as_ref().map(|it| format!("status {it}"));
            let words: Vec<String> = reply.action.iter().cloned().chain(status).collect();
            (!words.is_empty()).then(|| format!("device {}: {}", route.device.name, words.join(", ")))
        });
        let lines: Vec<String> = lines.collect();
        if lines.is_empty() { "no device was asked in time".to_owned() } else { lines.join("; ") }
    }

    pub(super) fn outcome(&self, is_done: bool) -> Result<PowerChange, ActionError> {
        let acted: Vec<usize> =
            (0..self.routes.len()).filter(|it| self.replies[*it].action.is_some()).collect();
        if is_done {
            let was_so = self.plan.actions() == 0;
            // Which of several did it, and what was wrong with those before.
            let note = (acted.len() > 1).then(|| self.words());
            let may_come_again = self.pending.may_come_again();
            return Ok(PowerChange { was_so, note, reports: self.reports(), may_come_again });
        }
        let still = StatusReading::Is(opposite(self.goal));
        let is_still_so = (0..self.routes.len()).any(|it| self.plan.last(it) == Some(still));
        if self.plan.actions() == 0 {
            // A device that stands against it is named, though the time is up.
            if !is_still_so || self.lease.end_reason().is_some() {
                self.lease.check()?;
            }
            return Err(ActionError::Unavailable(self.words()));
        }
        if is_still_so {
            let state = if self.goal == PowerState::Off { "on" } else { "off" };
            return Err(ActionError::NoEffect { state: state.to_owned(), reason: Some(self.words()) });
        }
        Err(if self.plan.is_open() {
            ActionError::Unknown(self.words())
        } else {
            ActionError::Refused(self.words())
        })
    }
}

/// Result of one status run.
struct StatusResult {
    place: usize,
    reply: StatusReply,
    began: Instant,
}

/// Status runs in flight; they end when this is dropped.
#[derive(Default)]
struct PendingStatusRuns {
    set: JoinSet<StatusResult>,
    asked: Vec<(usize, Instant)>,
}

impl PendingStatusRuns {
    fn begin(&mut self, place: usize, route: &Route, lease: &Lease, until: Instant) {
        self.begin_later(Duration::ZERO, place, route, lease, until);
    }

    fn begin_later(&mut self, pause: Duration, place: usize, route: &Route, lease: &Lease, until: Instant) {
        let (route, lease, then) = (route.clone(), lease.clone(), Instant::now() + pause);
        self.asked.push((place, then));
        self.set.spawn(async move {
            sleep_until(then.into()).await;
            // Later than that on a busy machine: the time before was none of the device's.
            let began = Instant::now();
            let context = RunContext { purpose: RunPurpose::Request, lease: Some(&lease), until };
            let reply = route.status(context).await;
            StatusResult { place, reply, began }
        });
    }

    async fn next(&mut self) -> Option<StatusResult> {
        let result = self.set.join_next().await?.ok()?;
        self.asked.retain(|it| it.0 != result.place);
        Some(result)
    }

    fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

fn opposite(power: PowerState) -> PowerState {
    match power {
        PowerState::On => PowerState::Off,
        PowerState::Off => PowerState::On,
    }
}
