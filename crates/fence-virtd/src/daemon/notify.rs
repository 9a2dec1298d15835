// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages to the service manager: the daemon serves, still lives, or ends.
//!
//! Without a manager (no `NOTIFY_SOCKET`) all of them do nothing. The watchdog is one task. Must never wait
//! for the manager.

use std::sync::Arc;

use sd_notify::NotifyState;
use tracing::{info, warn};

use crate::service::Service;

/// Tells the manager that the daemon serves.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells the manager that the daemon reads its configuration again; [`ready`] ends that state.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!("can't tell the service manager: {error}"),
    }
}

/// Tells the manager that the daemon is about to end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the manager's watchdog again and again that the daemon lives, where there is one (`WATCHDOG_USEC`).
///
/// Each time a new task must start and take every lock that a request needs. If all threads of the runtime
/// are stuck, or a lock is never released, the message is not sent and the manager restarts the daemon.
pub(crate) async fn watchdog(service: Arc<Service>) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|it| !it.is_zero()) else { return };
    info!("the service manager's watchdog waits {} s", limit.as_secs_f64());
    // A third of the limit: a message that comes late on a loaded machine is no reason for a restart.
    let mut interval = tokio::time::interval(limit / 3);
    loop {
        interval.tick().await;
        let service = Arc::clone(&service);
        if tokio::spawn(async move { service.check_responsive() }).await.is_err() {
            // The runtime ends.
            return;
        }
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("can't tell the service manager: {error}");
    }
}
