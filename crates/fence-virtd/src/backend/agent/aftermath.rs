// SPDX-License-Identifier: GPL-2.0-or-later
//! Actions whose effect may still come after the request, and how long they hold up conflicting requests.

use std::time::{Duration, Instant};

use fence_core::agent::plan::StatusReading;
use fence_core::domain::PowerState;
use tokio::time::sleep_until;

use super::orders::OrderMark;
use super::route::Route;
use super::run::RunContext;
use super::slots::RunPurpose;
use crate::intent::WrittenOrder;
use crate::request::lease::Lease;
use crate::util::join::join_all;

/// Time for which the effect of a killed agent's action may still come after its device showed it.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);
/// Time for which an action that failed may still take effect: its connection may have broken after the
/// order, or its agent gave up.
const FAILED_SETTLE: Duration = Duration::from_secs(10);
/// Pause between status checks that wait for an effect.
const EFFECT_POLL: Duration = Duration::from_secs(1);

/// Pending effects: actions whose agents were killed or abandoned, or reported a success that their device
/// has not shown. They may still take effect, whatever became of the request. Conflicting requests wait until
/// the device shows the effect, or its `effect_timeout` is over.
pub(super) struct PendingEffects {
    pub(super) lease: Lease,
    pub(super) open: Vec<UnconfirmedAction>,
}

/// Action that may still take effect.
pub(super) struct UnconfirmedAction {
    /// Position of the device in the plan.
    pub(super) place: usize,
    pub(super) route: Route,
    /// State that the action leads to.
    pub(super) to: PowerState,
    /// Time when the run ended; none while it is in flight.
    pub(super) ended: Option<Instant>,
    /// True if the agent reported success.
    pub(super) is_claimed: bool,
    /// Failure that the agent reported; none if the order was given.
    pub(super) failed: Option<OrderFailure>,
    /// True if a status check of the device showed the effect after the run had ended.
    pub(super) is_seen: bool,
    pub(super) mark: OrderMark,
    /// The order on disk; none where nothing is written down.
    pub(super) order: Option<WrittenOrder>,
}

/// Failure of an action that an agent reported, without a word of its having given the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OrderFailure {
    /// At once: if the device tells a state afterwards, nothing comes of the order.
    AtOnce,
    /// After a time in which the order may have been given.
    Slow,
}

impl PendingEffects {
    /// Takes a status of a device; no action was in flight meanwhile.
    pub(super) fn looked(&mut self, place: usize, reading: StatusReading) {
        for it in self.open.iter_mut().filter(|it| it.place == place && !it.mark.is_covered()) {
            it.is_seen |= reading == StatusReading::Is(it.to);
        }
        // A device that failed at once and can be asked did not act, or has acted.
        let is_told = matches!(reading, StatusReading::Is(_));
        let is_over =
            |it: &UnconfirmedAction| it.failed == Some(OrderFailure::AtOnce) && it.place == place && is_told;
        // What was claimed has come.
        for it in self.open.extract_if(.., |it| it.is_claimed && it.is_seen || is_over(it)) {
            it.order.into_iter().for_each(WrittenOrder::settled);
        }
    }

    /// Returns whether an action is open of which nothing shows that it has had its effect.
    pub(super) fn may_come_again(&self) -> bool {
        self.open.iter().any(|it| !it.is_seen && it.failed != Some(OrderFailure::AtOnce))
    }
}

impl UnconfirmedAction {
    /// Returns the longest time for which the action may take effect after its run.
    pub(super) fn longest(&self) -> Duration {
        let longest = self.route.device.effect_timeout;
        match self.failed {
            None => longest,
            Some(OrderFailure::AtOnce | OrderFailure::Slow) => longest.min(FAILED_SETTLE),
        }
    }

    /// Waits until the action can take no effect any more.
    async fn settled(self) {
        let until = self.ended.unwrap_or_else(Instant::now) + self.longest();
        self.settled_by(until).await;
    }

    /// Waits until the device shows the effect, or it is `until`.
    pub(super) async fn settled_by(self, until: Instant) {
        let mut is_seen = self.is_seen;
        while !is_seen {
            if Instant::now() >= until {
                break;
            }
            if self.mark.is_covered() {
                sleep_until(until.into()).await;
                break;
            }
            let context = RunContext { purpose: RunPurpose::Request, lease: None, until };
            let reading = self.route.status(context).await.reading;
            is_seen = reading == StatusReading::Is(self.to) && !self.mark.is_covered();
            if !is_seen {
                sleep_until(until.min(Instant::now() + EFFECT_POLL).into()).await;
            }
        }
        if is_seen && !self.is_claimed {
            sleep_until(until.min(Instant::now() + EFFECT_SETTLE).into()).await;
        }
        self.order.into_iter().for_each(WrittenOrder::settled);
    }
}

impl Drop for PendingEffects {
    fn drop(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.is_empty() {
            return;
        }
        // Where only power-offs may come, another off of this machine need not wait.
        let late_off = self.lease.late_off();
        let longest = open.iter().map(UnconfirmedAction::longest).max().unwrap_or_default();
        let starts = open.iter().any(|it| it.to == PowerState::On);
        let held = starts.then(|| self.lease.detached(Instant::now() + longest));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            join_all(open.into_iter().map(UnconfirmedAction::settled)).await;
            drop((held, late_off));
        });
    }
}
