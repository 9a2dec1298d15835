// SPDX-License-Identifier: GPL-2.0-or-later
//! Power-offs whose end this daemon has not seen: the client is told of a failure, and the hypervisor may
//! still carry the order out.
//!
//! What conflicts waits until a look shows the end ([`fence_core::unseen_power_off`] has the rule), or until
//! the order hangs: then only what is for the same domain waits on, and what is known to come from it. One
//! task for each such order; it must never make anything happen to a domain.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_core::evidence::Sight;
use fence_core::intent::DeviceOrder;
use fence_core::unseen_power_off::{LaterLook, PowerOffEnd, UnseenPowerOff};
use libvirt_host::Uuid;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::act::{self, DomainReading, PowerOffProgress};
use crate::hypervisor::{CallError, Hypervisor};
use crate::intent::WrittenOrder;
use crate::request::lease::Lease;
use crate::util::locks::lock;

/// Time for which a hypervisor is asked about an unfinished action before it is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Pause between two looks.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Pause before a hypervisor that did not answer is asked again.
pub(super) const SILENT_PAUSE: Duration = Duration::from_secs(2);

/// Power-off at one hypervisor. Dropped before its end was seen, it holds up what conflicts with it.
pub(super) struct PowerOffWatch {
    home: Arc<Hypervisor>,
    uuid: Uuid,
    lease: Lease,
    pub(super) progress: Arc<Mutex<PowerOffProgress>>,
    /// [`PowerOffProgress::sent`].
    sent: Arc<Mutex<Option<Instant>>>,
    /// Nothing is ever sent. The channel closes with the last call.
    calls: (mpsc::Sender<Infallible>, mpsc::Receiver<Infallible>),
    is_over: bool,
}

impl PowerOffWatch {
    pub(super) fn new(home: &Arc<Hypervisor>, uuid: Uuid, lease: &Lease) -> Self {
        let (home, lease, progress) = (Arc::clone(home), lease.clone(), PowerOffProgress::default());
        let sent = Arc::clone(&progress.sent);
        let progress = Arc::new(Mutex::new(progress));
        Self { home, uuid, lease, progress, sent, calls: mpsc::channel(1), is_over: false }
    }

    /// Returns the sign of a call with the order, which the call keeps to its end.
    pub(super) fn call(&self) -> mpsc::Sender<Infallible> {
        self.calls.0.clone()
    }

    /// Notes that the end was seen, or that there was nothing to end.
    pub(super) fn over(mut self) {
        self.is_over = true;
    }

    /// Returns whether the hypervisor was told, or may be at this moment.
    pub(super) fn has_begun(&self) -> bool {
        // Not to be had: a call still has it, and may be in the middle of the action.
        self.progress.try_lock().map_or(true, |it| it.acted)
    }
}

impl Drop for PowerOffWatch {
    fn drop(&mut self) {
        let may_come = self.progress.try_lock().map_or(true, |it| it.ordered.is_some());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.is_over || !may_come {
            return;
        }
        let (_, mut calls) = std::mem::replace(&mut self.calls, mpsc::channel(1));
        // Known to a daemon that may begin before the order is over.
        let order = DeviceOrder::at_hypervisor(false);
        let written = self.lease.trail().intent().map(|it| it.take_over(&order));
        let (home, uuid, request) = (Arc::clone(&self.home), self.uuid, self.lease.request());
        let (mut late_off, progress) = (self.lease.late_off(), Arc::clone(&self.progress));
        let (sent, lease_end) = (Arc::clone(&self.sent), self.lease.until());
        runtime.spawn(async move {
            let over = async {
                while calls.recv().await.is_some() {}
                let ordered = lock(&progress).ordered;
                let seen = match ordered {
                    Some(instance) => settle(&home, uuid, (instance, request), written.as_ref()).await,
                    None => None,
                };
                written.into_iter().for_each(WrittenOrder::settled);
                seen
            };
            tokio::pin!(over);
            let seen = tokio::select! {
                seen = &mut over => seen,
                () = until_hangs(&sent, lease_end) => {
                    warn_of_hang(&home, uuid, request);
                    late_off.hangs();
                    over.await
                }
            };
            if let Some(since) = seen {
                late_off.seen_off(since);
            }
        });
    }
}

/// Waits for the moment from which an order hangs whose end is not known by then.
async fn until_hangs(sent: &Mutex<Option<Instant>>, lease_end: Instant) {
    let began = Instant::now();
    loop {
        let sent = lock(sent).unwrap_or(began);
        let from = UnseenPowerOff::hangs_from(sent, lease_end);
        if Instant::now() >= from {
            return;
        }
        tokio::time::sleep_until(from.into()).await;
    }
}

fn warn_of_hang(home: &Hypervisor, uuid: Uuid, request: u64) {
    warn!(
        %uuid, request, uri = home.uri(),
        "libvirt hangs in a power-off of this machine, and may carry that out at any later time. Requests \
         for this machine, and those known to come from it, wait on; all others wait no more. If one of \
         them comes from this machine, both machines may go down. Restart that libvirtd: machines that run \
         go on"
    );
}

/// Waits until the order can take effect no more. Returns the beginning of the look that showed the machine
/// off, if one did.
async fn settle(
    home: &Arc<Hypervisor>,
    uuid: Uuid,
    (instance, request): (Option<u32>, u64),
    written: Option<&WrittenOrder>,
) -> Option<Instant> {
    let limit = UnseenPowerOff::LIMIT;
    warn!(
        %uuid, request, uri = home.uri(),
        "libvirt was told to power this machine off, and the end was not seen: requests that conflict with \
         that wait until the machine is seen off, for {} s at most after libvirt answers, or libvirtd is \
         found to have ended",
        limit.as_secs()
    );
    let mut order = UnseenPowerOff::new(instance);
    loop {
        let began = Instant::now();
        let look = later_look(home, uuid).await;
        let was_bound = order.until();
        match order.look((began, Instant::now()), look) {
            PowerOffEnd::Open => {}
            end => {
                let is_off = end == PowerOffEnd::SeenOff;
                info!(%uuid, request, is_off, "the order to libvirt can take effect no more");
                return is_off.then_some(began);
            }
        }
        if let (None, Some(_), Some(written)) = (was_bound, order.until(), written) {
            written.expires(limit, false);
        }
        let is_up = !matches!(look, LaterLook::Silent | LaterLook::Gone);
        tokio::time::sleep(if is_up { LOOK_PAUSE } else { SILENT_PAUSE }).await;
    }
}

/// Looks at the domain after the call with the order has ended.
pub(super) async fn later_look(home: &Arc<Hypervisor>, uuid: Uuid) -> LaterLook {
    let memory = Arc::clone(home);
    match home.ask(Instant::now() + ASK_AGAIN, move |c| act::sight(c, uuid, &memory)).await {
        Ok((DomainReading::On { instance, .. }, _)) => LaterLook::On(instance),
        Ok((DomainReading::Unknown, _)) | Err(CallError::Refused(_)) => LaterLook::Untold,
        // A process has the machine still.
        Ok((_, Sight::Unknown(_))) => LaterLook::Untold,
        Ok((DomainReading::MovedAway, _) | (_, Sight::MovedAway(_))) => LaterLook::Elsewhere,
        Ok((DomainReading::Off | DomainReading::Gone, _)) => LaterLook::Off,
        Err(CallError::Down { is_gone: true, .. }) => LaterLook::Gone,
        Err(_) => LaterLook::Silent,
    }
}
