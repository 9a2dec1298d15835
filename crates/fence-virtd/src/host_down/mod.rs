// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts that are not heard any more, and the evidence that one of them is down, not merely cut off
//! (`host_down`).
//!
//! A [`LostHost`] lives from the moment when a host is not heard any more until it is heard again. Each
//! request asks for the evidence anew, every few seconds until there is some; requests that wait at the same
//! time share an answer whose question came after all of them. A request that has its answer does not ask
//! again while the proof counts. [`fence_core::host_down`] decides what an
//! answer proves, and for how long.
//!
//! Silence, an error or an old fencing must never count as evidence: domains of a host that runs would be
//! called off. Nor must an answer that was asked for before the request came.

pub(crate) mod clock;
pub(crate) mod command;
pub(crate) mod pacemaker;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::HostDown;
use fence_core::host_down::{ClockWatch, Loss, Moment, Proof};
use fence_wire::escaped;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tracing::info;

use crate::util::locks::lock;

/// Pause between two questions for the same request.
const PAUSE: Duration = Duration::from_secs(2);
/// Interval at which the wall clock is read.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
const BACK: &str = "the host is heard again, or corosync is lost here";

/// Source of the evidence that a lost host is down, as configured. Clones share it.
#[derive(Clone)]
pub(crate) struct DownEvidence {
    how: Arc<EvidenceSource>,
    clock: Arc<Mutex<ClockWatch>>,
    pause: Duration,
}

/// A node that corosync lost. Clones are the same loss.
#[derive(Clone)]
pub(crate) struct LostHost {
    inner: Arc<LostHostState>,
}

/// Proof that a lost host is down, for one request.
#[derive(Clone)]
pub(crate) struct DownProof {
    proof: Proof,
    host: LostHost,
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
        let clock = Arc::new(Mutex::new(ClockWatch::new(clock::read())));
        Self { how: Arc::new(how), clock, pause: PAUSE }
    }

    /// Watches the wall clock, if any evidence has wall-clock times. Never returns then.
    pub(crate) async fn watch_clock(self) {
        if matches!(&*self.how, EvidenceSource::Pacemaker(_)) {
            loop {
                self.observe_clock();
                tokio::time::sleep(CLOCK_INTERVAL).await;
            }
        }
    }

    /// Corosync does not hear this node any more, just now; or never has. `heard_since`: when it came, or,
    /// for one that was there before us or that was never heard, when we came. Must be called in the runtime.
    pub(crate) fn lost(&self, node: u32, name: Option<String>, heard_since: Moment) -> LostHost {
        self.observe_clock();
        let lost = clock::now();
        let state = LostHostState {
            node,
            name,
            lost,
            loss: Mutex::new(Loss::new(heard_since, lost)),
            evidence: self.clone(),
            is_back: watch::Sender::new(false),
            round: tokio::sync::Mutex::new(Round::default()),
            refusal: Mutex::new("nobody was asked in time".to_owned()),
        };
        let host = LostHost { inner: Arc::new(state) };
        if matches!(&*self.how, EvidenceSource::Pacemaker(_)) {
            // Asked now, Pacemaker shows the fencings that have ended in the future: see `Loss`.
            let host = host.clone();
            tokio::spawn(async move { host.inner.ask().await });
        }
        host
    }

    fn observe_clock(&self) {
        lock(&self.clock).observe(clock::read());
    }
}

impl LostHost {
    /// Returns the proof that the host is down, from an answer to a question of after this moment. Waits
    /// for it if there may be any.
    ///
    /// # Errors
    /// No proof until then, or none that could come: why. Then the host may run, and its domains with it.
    pub(crate) async fn proved(&self, since: Moment, until: Instant) -> Result<DownProof, String> {
        let mut is_back = self.inner.is_back.subscribe();
        let back = async move {
            // The sender lives as long as `self`.
            let _ = is_back.wait_for(|it| *it).await;
        };
        let proof = tokio::select! {
            biased;
            () = back => return Err(BACK.to_owned()),
            proof = timeout_at(until.into(), self.inner.proof_after(since)) => proof,
        };
        let proof = proof.unwrap_or_else(|_| Err(lock(&self.inner.refusal).clone()))?;
        Ok(DownProof { proof, host: self.clone() })
    }

    /// Notes that corosync hears the node again, or is lost itself. The evidence does not count any more, and
    /// all waiting requests learn of it.
    pub(crate) fn ended(&self) {
        self.inner.is_back.send_replace(true);
    }

    /// Returns the time since the loss.
    pub(crate) fn age(&self) -> Duration {
        clock::now().since(self.inner.lost)
    }
}

impl DownProof {
    /// Returns the evidence in words, while it counts.
    ///
    /// # Errors
    /// The host was heard since, or may have booted since.
    pub(crate) fn evidence(&self) -> Result<&str, String> {
        if *self.host.inner.is_back.borrow() {
            return Err(BACK.to_owned());
        }
        self.proof.evidence(clock::now())
    }
}

/// Without the evidence, which is nothing but text.
impl std::fmt::Debug for DownProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DownProof({})", self.host.inner)
    }
}

enum EvidenceSource {
    Never,
    Pacemaker(PathBuf),
    Command(PathBuf),
    Membership,
}

struct LostHostState {
    node: u32,
    name: Option<String>,
    lost: Moment,
    loss: Mutex<Loss>,
    evidence: DownEvidence,
    is_back: watch::Sender<bool>,
    /// Latest question. Whoever asks holds the lock, and all others wait for the answer.
    round: tokio::sync::Mutex<Round>,
    /// Latest reason why there is no proof.
    refusal: Mutex<String>,
}

/// Question that was answered.
#[derive(Default)]
struct Round {
    number: u64,
    asked: Moment,
    answer: Option<Result<Proof, String>>,
}

impl Round {
    /// Returns whether there is an answer, and if it is a proof whether that counts still.
    fn counts(&self) -> bool {
        match &self.answer {
            Some(Ok(proof)) => proof.evidence(clock::now()).is_ok(),
            Some(Err(_)) => true,
            None => false,
        }
    }
}

impl LostHostState {
    /// Waits for a proof that was asked for after this moment, and that counts still.
    ///
    /// # Errors
    /// There can't be any.
    async fn proof_after(&self, arrived: Moment) -> Result<Proof, String> {
        match &*self.evidence.how {
            EvidenceSource::Never => {
                return Err("host_down = \"never\" (the default): nothing proves that the host is down, \
                            and to fence that host does not help. Bring that host back; so that this does \
                            not come again: set host_down (fence_virt.conf(5)) and restart fence_virtd on \
                            each node"
                    .to_owned());
            }
            EvidenceSource::Membership => return Ok(Proof::by_membership(arrived)),
            EvidenceSource::Pacemaker(_) | EvidenceSource::Command(_) => {}
        }
        let mut seen = None;
        loop {
            {
                let mut round = self.round.lock().await;
                let is_newer = round.asked >= arrived && seen.is_none_or(|it| it < round.number);
                if !is_newer || !round.counts() {
                    let asked = clock::now();
                    let answer = self.ask().await;
                    *round = Round { number: round.number + 1, asked, answer: Some(answer) };
                }
                seen = Some(round.number);
                if let Some(Ok(proof)) = &round.answer {
                    return Ok(proof.clone());
                }
            }
            tokio::time::sleep(self.evidence.pause).await;
        }
    }

    /// Asks once.
    async fn ask(&self) -> Result<Proof, String> {
        let answer = match &*self.evidence.how {
            EvidenceSource::Pacemaker(program) => self.ask_pacemaker(program).await,
            EvidenceSource::Command(command) => self.ask_command(command).await,
            EvidenceSource::Never | EvidenceSource::Membership => Err("nobody can be asked".to_owned()),
        };
        match &answer {
            Ok(proof) => info!("{self} is down: {}", proof.evidence(clock::now()).unwrap_or("too late")),
            Err(reason) => lock(&self.refusal).clone_from(reason),
        }
        answer
    }

    async fn ask_command(&self, command: &Path) -> Result<Proof, String> {
        let asked = clock::now();
        let seconds = asked.since(self.lost).as_secs().to_string();
        let arguments = [self.name.as_deref().unwrap_or_default(), &self.node.to_string(), &seconds];
        let said = command::ask("host_down_command", command, arguments).await?;
        Ok(Proof::asked_at(asked, said))
    }

    async fn ask_pacemaker(&self, program: &Path) -> Result<Proof, String> {
        let name = self.name.as_deref();
        let name = name.ok_or("corosync.conf has no name for the node, so Pacemaker can't be asked")?;
        let asked = clock::now();
        let history = pacemaker::history(program, name).await?;
        self.evidence.observe_clock();
        let mut watch = lock(&self.evidence.clock);
        lock(&self.loss).judge(name, &history, asked, clock::read(), &mut watch)
    }
}

impl std::fmt::Display for LostHostState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {}", self.node)?;
        self.name.as_ref().map_or(Ok(()), |it| write!(f, " ({})", escaped(it)))
    }
}
