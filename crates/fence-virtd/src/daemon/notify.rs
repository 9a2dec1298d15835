// SPDX-License-Identifier: GPL-2.0-or-later
//! What the service manager is told: that the daemon serves, that it still lives, that it ends.
//!
//! Without a manager (no `NOTIFY_SOCKET`) all of it does nothing.

use std::sync::Arc;

use sd_notify::NotifyState;
use tracing::{info, warn};

use crate::service::Service;

/// The daemon serves.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon reads its configuration anew; [`ready`] says that this is over.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!("can't tell the service manager: {error}"),
    }
}

/// The daemon is about to end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the manager's watchdog for ever that the daemon lives, where it has one (`WATCHDOG_USEC`).
///
/// Each time a new task has to start and to get past every lock that a request needs: a runtime whose threads
/// are all stuck, or a lock that nobody gives back, keeps it from being said, and the manager starts the
/// daemon anew.
pub(crate) async fn watchdog(service: Arc<Service>) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|it| !it.is_zero()) else { return };
    info!("the service manager's watchdog waits {} s", limit.as_secs_f64());
    // A third: one that comes late on a loaded machine is no reason for a restart.
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
