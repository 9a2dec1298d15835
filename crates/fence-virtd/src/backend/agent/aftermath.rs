// SPDX-License-Identifier: GPL-2.0-or-later
//! Actions whose effect may still come after the request, and how long they hold up conflicting requests.

use std::time::{Duration, Instant};

use fence_core::agent::plan::StatusReading;
use fence_core::domain::PowerState;
use tokio::time::sleep_until;

use super::route::Route;
use super::run::RunContext;
use super::slots::RunPurpose;
use crate::request::lease::Lease;
use crate::util::join::join_all;

/// Time for which the effect of a killed agent's action may still come after its device showed it.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);
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
    /// True if a status check of the device showed the effect after the run had ended.
    pub(super) is_seen: bool,
}

impl PendingEffects {
    /// Takes a status of a device; no action was in flight meanwhile.
    pub(super) fn looked(&mut self, place: usize, reading: StatusReading) {
        for it in self.open.iter_mut().filter(|it| it.place == place) {
            it.is_seen |= reading == StatusReading::Is(it.to);
        }
        // What was claimed has come.
        self.open.retain(|it| !(it.is_claimed && it.is_seen));
    }
}

impl UnconfirmedAction {
    /// Waits until the action can take no effect any more.
    async fn settled(self) {
        let until = self.ended.unwrap_or_else(Instant::now) + self.route.device.effect_timeout;
        let mut is_seen = self.is_seen;
        while !is_seen {
            if Instant::now() >= until {
                return;
            }
            let context = RunContext { purpose: RunPurpose::Request, lease: None, until };
            is_seen = self.route.status(context).await.reading == StatusReading::Is(self.to);
            if !is_seen {
                sleep_until(until.min(Instant::now() + EFFECT_POLL).into()).await;
            }
        }
        if !self.is_claimed {
            sleep_until(until.min(Instant::now() + EFFECT_SETTLE).into()).await;
        }
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
        let longest = open.iter().map(|it| it.route.device.effect_timeout).max().unwrap_or_default();
        let starts = open.iter().any(|it| it.to == PowerState::On);
        let held = starts.then(|| self.lease.detached(Instant::now() + longest));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            join_all(open.into_iter().map(UnconfirmedAction::settled)).await;
            drop((held, late_off));
        });
    }
}
