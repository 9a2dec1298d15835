// SPDX-License-Identifier: GPL-2.0-or-later
//! The signals that the daemon listens to, and the action that each asks for.
//!
//! Polled by the task of `run` alone. Must never lose a SIGHUP: the file may have changed since it was read.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// Action that a signal asks for.
pub(super) enum SignalAction {
    /// The daemon ends; the value is the signal's name.
    End(&'static str),
    /// The daemon reads its configuration and opens its audit file again.
    Reload,
    /// The daemon logs a summary of its counters.
    Summary,
}

/// Receivers of all signals that the daemon handles.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    /// A SIGHUP arrived when nothing could be reloaded; [`Self::next`] returns it later.
    reload_later: bool,
    user: Signal,
    /// Signals that the C daemon survives: caught, and nothing is done.
    _ignored: [Signal; 2],
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            reload_later: false,
            user: signal(SignalKind::user_defined1())?,
            _ignored: [signal(SignalKind::user_defined2())?, signal(SignalKind::alarm())?],
        })
    }

    /// Waits for a signal that ends the daemon. Keeps a SIGHUP for [`Self::next`].
    pub(super) async fn end(&mut self) -> &'static str {
        loop {
            match self.receive().await {
                SignalAction::End(name) => return name,
                SignalAction::Reload => {
                    info!("SIGHUP: the configuration is read anew as soon as the daemon serves");
                    self.reload_later = true;
                }
                SignalAction::Summary => {
                    info!("SIGUSR1: no summary while the daemon starts or ends");
                }
            }
        }
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> SignalAction {
        if std::mem::take(&mut self.reload_later) {
            return SignalAction::Reload;
        }
        self.receive().await
    }

    async fn receive(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.terminate.recv() => SignalAction::End("SIGTERM"),
            _ = self.interrupt.recv() => SignalAction::End("SIGINT"),
            _ = self.quit.recv() => SignalAction::End("SIGQUIT"),
            _ = self.hang_up.recv() => SignalAction::Reload,
            _ = self.user.recv() => SignalAction::Summary,
        }
    }
}
