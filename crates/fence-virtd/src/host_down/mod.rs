// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts that are not heard any more, and the evidence that one of them is down, not merely cut off
//! (`host_down`).
//!
//! A [`LostHost`] lives from the moment when a host is not heard any more until it is heard again.
//! While a request waits for the evidence, one task asks for it every few seconds, for all that wait.
//! Evidence that was found once stays.
//!
//! Silence, an error or an old fencing must never count as evidence: domains of a host that runs would be
//! called off.

pub(crate) mod command;
pub(crate) mod pacemaker;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fence_config::HostDown;
use fence_wire::escaped;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tracing::info;

use fence_core::host_down::Loss;

/// Pause between two questions.
const PAUSE: Duration = Duration::from_secs(2);

/// Source of the evidence that a lost host is down, as configured. Clones share it.
#[derive(Clone)]
pub(crate) struct DownEvidence {
    how: Arc<EvidenceSource>,
    pause: Duration,
}

/// A node that corosync lost. Clones are the same loss.
#[derive(Clone)]
pub(crate) struct LostHost {
    inner: Arc<LostHostState>,
}

/// Knowledge of a lost host.
#[derive(Clone, PartialEq, Eq, Debug)]
enum EvidenceState {
    /// Not that it is down, for this reason.
    Nothing(String),
    /// Down, with this evidence.
    Down(String),
    /// Heard again.
    Back,
}

impl DownEvidence {
    /// As the configuration says.
    pub(crate) fn new(host_down: &HostDown) -> Self {
        let how = match host_down {
            HostDown::Never => EvidenceSource::Never,
            HostDown::Pacemaker => EvidenceSource::Pacemaker(pacemaker::STONITH_ADMIN.into()),
            HostDown::Command(command) => EvidenceSource::Command(command.clone()),
            HostDown::Membership => EvidenceSource::Membership,
        };
        Self { how: Arc::new(how), pause: PAUSE }
    }

    /// Corosync does not hear this node any more, just now; or never has. `heard_since`: when it came, or,
    /// for one that was there before us or that was never heard, when we came. Must be called in the runtime.
    pub(crate) fn lost(&self, node: u32, name: Option<String>, heard_since: SystemTime) -> LostHost {
        let host = LostNode { node, name, heard_since, lost: SystemTime::now(), since: Instant::now() };
        let known = match &*self.how {
            EvidenceSource::Never => {
                EvidenceState::Nothing("host_down = \"never\": nothing proves that it is down".to_owned())
            }
            EvidenceSource::Membership => {
                EvidenceState::Down("it left corosync (host_down = \"membership\")".to_owned())
            }
            EvidenceSource::Pacemaker(_) | EvidenceSource::Command(_) => {
                EvidenceState::Nothing("nobody was asked yet".to_owned())
            }
        };
        LostHost {
            inner: Arc::new(LostHostState {
                host,
                how: Arc::clone(&self.how),
                pause: self.pause,
                known: watch::Sender::new(known),
                is_asking: Mutex::new(false),
            }),
        }
    }
}

impl LostHost {
    /// Returns the evidence that the host is down, in words. Waits for it if there may be any.
    ///
    /// # Errors
    /// No proof until then, or none that could come: why. Then the host may run, and its domains with it.
    pub(crate) async fn proved(&self, until: Instant) -> Result<String, String> {
        let mut known = self.inner.known.subscribe();
        // After this task listens: one that is about to end sees it, or is replaced.
        self.ask();
        let decided =
            known.wait_for(|it| !matches!(it, EvidenceState::Nothing(_)) || self.inner.how.asks_nobody());
        // An error: no task is left that could find more.
        let _ = timeout_at(until.into(), decided).await;
        let known = known.borrow().clone();
        match known {
            EvidenceState::Down(proof) => Ok(proof),
            EvidenceState::Nothing(reason) => Err(reason),
            EvidenceState::Back => Err("it is heard again, or corosync is lost here".to_owned()),
        }
    }

    /// Returns true if there is evidence already that the host is down. Never asks for it.
    pub(crate) fn is_proved(&self) -> bool {
        matches!(*self.inner.known.borrow(), EvidenceState::Down(_))
    }

    /// Notes that corosync hears the node again, or is lost itself. The evidence does not count any more, and
    /// all waiting requests learn of it.
    pub(crate) fn ended(&self) {
        self.inner.known.send_replace(EvidenceState::Back);
    }

    /// Returns the time since the loss.
    pub(crate) fn age(&self) -> Duration {
        self.inner.host.since.elapsed()
    }

    /// Starts the task that asks, unless it runs.
    fn ask(&self) {
        if self.inner.how.asks_nobody() {
            return;
        }
        let mut is_asking = self.inner.is_asking.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_asking {
            *is_asking = true;
            tokio::spawn(Arc::clone(&self.inner).ask_on());
        }
    }
}

struct LostHostState {
    host: LostNode,
    how: Arc<EvidenceSource>,
    pause: Duration,
    known: watch::Sender<EvidenceState>,
    /// True while a task asks.
    is_asking: Mutex<bool>,
}

struct LostNode {
    node: u32,
    name: Option<String>,
    heard_since: SystemTime,
    lost: SystemTime,
    since: Instant,
}

enum EvidenceSource {
    Never,
    Pacemaker(PathBuf),
    Command(PathBuf),
    Membership,
}

impl EvidenceSource {
    fn asks_nobody(&self) -> bool {
        matches!(self, Self::Never | Self::Membership)
    }
}

impl LostHostState {
    /// Asks until there is evidence, or no task waits for it any more.
    async fn ask_on(self: Arc<Self>) {
        loop {
            let answer = match &*self.how {
                EvidenceSource::Pacemaker(program) => self.host.ask_pacemaker(program).await,
                EvidenceSource::Command(command) => self.host.ask_command(command).await,
                EvidenceSource::Never | EvidenceSource::Membership => return,
            };
            self.known.send_if_modified(|known| {
                let EvidenceState::Nothing(_) = known else { return false };
                *known = match answer {
                    Ok(proof) => {
                        info!("{} is down: {proof}", self.host);
                        EvidenceState::Down(proof)
                    }
                    Err(reason) => EvidenceState::Nothing(reason),
                };
                true
            });
            {
                let mut is_asking = self.is_asking.lock().unwrap_or_else(PoisonError::into_inner);
                let is_open = matches!(*self.known.borrow(), EvidenceState::Nothing(_));
                if !is_open || self.known.receiver_count() == 0 {
                    *is_asking = false;
                    return;
                }
            }
            tokio::time::sleep(self.pause).await;
        }
    }
}

impl std::fmt::Display for LostNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {}", self.node)?;
        self.name.as_ref().map_or(Ok(()), |it| write!(f, " ({})", escaped(it)))
    }
}

impl LostNode {
    async fn ask_command(&self, command: &Path) -> Result<String, String> {
        let seconds = self.since.elapsed().as_secs().to_string();
        let arguments = [self.name.as_deref().unwrap_or_default(), &self.node.to_string(), &seconds];
        command::ask("host_down_command", command, arguments).await
    }

    async fn ask_pacemaker(&self, program: &Path) -> Result<String, String> {
        let name = self.name.as_deref();
        let name = name.ok_or("corosync.conf has no name for it, so Pacemaker can't be asked")?;
        let history = pacemaker::history(program, name).await?;
        Loss { name, heard_since: self.heard_since, lost: self.lost }.judge(&history, SystemTime::now())
    }
}
