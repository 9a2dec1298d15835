// SPDX-License-Identifier: GPL-2.0-or-later
//! Actions whose effect may still come after the request, and how long they hold up conflicting requests.

use std::time::{Duration, Instant};

use fence_core::agent::plan::StatusReading;
use tokio::time::{sleep, sleep_until};

use super::route::Route;
use super::run::RunContext;
use super::slots::RunPurpose;
use crate::request::lease::Lease;
use crate::util::join::join_all;

/// Time for which the effect of a killed agent's action may still come after its device answered.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);
/// Longest time for which a pending effect holds up conflicting requests.
const EFFECT_LIMIT: Duration = Duration::from_secs(10);

/// Pending effects: actions whose agents were killed or abandoned, or reported a success that no status
/// check showed. They may still take effect. Conflicting requests wait until the devices have answered.
pub(super) struct PendingEffects {
    pub(super) lease: Lease,
    pub(super) open: Vec<UnconfirmedAction>,
}

/// Action that may still take effect.
pub(super) struct UnconfirmedAction {
    pub(super) route: Route,
    /// Time when the run ended.
    pub(super) when: Instant,
    /// True if the agent reported success; status checks have followed since.
    pub(super) is_claimed: bool,
}

impl Drop for PendingEffects {
    fn drop(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.is_empty() {
            return;
        }
        let held = self.lease.detached(Instant::now() + EFFECT_LIMIT);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let waits = open.into_iter().map(|UnconfirmedAction { route, when, is_claimed }| async move {
                let until = if is_claimed { Instant::now() } else { when } + EFFECT_LIMIT;
                loop {
                    let context = RunContext { purpose: RunPurpose::Request, lease: None, until };
                    let reply = route.status(context).await;
                    if matches!(reply.reading, StatusReading::Is(_)) {
                        return sleep_until(until.min(Instant::now() + EFFECT_SETTLE).into()).await;
                    }
                    if Instant::now() >= until {
                        return;
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            });
            join_all(waits).await;
            drop(held);
        });
    }
}
