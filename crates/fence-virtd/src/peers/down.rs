// SPDX-License-Identifier: GPL-2.0-or-later
//! The command that says whether a silent host is down (`peer_down_command`), asked once for each request.
//!
//! Owns the latest answer about each host. Runs on the task of the request that asks; others that wait for an
//! answer about the same host wait for that task. A request must never take an answer to a question that was
//! asked before it came, nor one that is so old that the host may have booted since.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use fence_core::host_down::Proof;
use fence_wire::escaped;
use tokio::time::timeout_at;

use super::limits::{DOWN_COMMAND_LIMIT, DOWN_COMMAND_PAUSE, DOWN_COMMAND_WORD};
use crate::backend::elsewhere::DomainQuestion;
use crate::host_down::clock;
use crate::process::run as program;
use crate::util::locks::{Mutex, lock};

/// Answers of the command, by the question.
#[derive(Default)]
pub(super) struct DownAnswers(Mutex<HashMap<SilentSubject, AnswerSlot>>);

/// Question of the command: itself, and its arguments.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct SilentSubject {
    pub(super) command: PathBuf,
    pub(super) name: String,
    pub(super) address: String,
}

/// Place of the latest answer. Whoever asks holds the lock, and all others wait for the answer.
type AnswerSlot = Arc<tokio::sync::Mutex<Option<DownAnswer>>>;

/// Answer of the command, and when it was asked.
#[derive(Clone, Debug)]
struct DownAnswer {
    asked: Instant,
    said: Result<Proof, String>,
    /// The command hung. That is told to a later look too, until this moment: a request looks twice, and its
    /// reason would come after nobody waits for it.
    hung_until: Option<Instant>,
}

impl DownAnswers {
    /// Returns whether a host is down, in words, and when the command was asked: after the question, at the
    /// earliest. It is asked now unless it has been meanwhile.
    pub(super) async fn ask(
        &self,
        subject: SilentSubject,
        question: &DomainQuestion,
        until: Instant,
    ) -> (Result<String, String>, Instant) {
        let slot = self.slot(&subject);
        let Ok(mut slot) = timeout_at(until.into(), slot.lock()).await else {
            return (
                Err("was asked for another request, and did not end in time".to_owned()),
                question.asked,
            );
        };
        let hung = slot.as_ref().filter(|it| it.hung_until.is_some_and(|until| Instant::now() < until));
        if let Some(DownAnswer { said: Err(why), asked, .. }) = hung {
            return (Err(why.clone()), *asked);
        }
        if let Some(answer) = slot.as_ref().filter(|it| it.asked >= question.asked) {
            match &answer.said {
                Ok(proof) => {
                    if let Ok(evidence) = proof.evidence(clock::now()) {
                        return (Ok(evidence.to_owned()), answer.asked);
                    }
                }
                Err(why) => return (Err(why.clone()), answer.asked),
            }
        }
        let (asked, moment) = (Instant::now(), clock::now());
        let limit = until.min(asked + DOWN_COMMAND_LIMIT);
        let arguments = [&subject.name, &subject.address];
        let (said, is_whole) = match program::run(&subject.command, arguments, limit).await {
            Ok(output) if output.status.success() => {
                let evidence =
                    format!("{} says so{}", fence_cli::shown(&subject.command), word(&output.output));
                (Ok(Proof::asked_at(moment, evidence)), true)
            }
            Ok(output) => {
                let complaint = if output.complaint.is_empty() { "" } else { "; " };
                let said = word(&output.output);
                (Err(format!("{}{said}{complaint}{}", output.status, output.complaint)), true)
            }
            // Another request may have more time for it.
            Err(error) => (Err(error.to_string()), limit < until),
        };
        let ended = Instant::now();
        let hung_until = (said.is_err() && ended >= limit).then(|| ended + DOWN_COMMAND_PAUSE);
        *slot = Some(DownAnswer { asked, said: said.clone(), hung_until }).filter(|_| is_whole);
        (said.and_then(|it| it.evidence(clock::now()).map(str::to_owned)), asked)
    }

    /// Forgets what was said of the host at an address: it was heard.
    pub(super) fn forget(&self, address: &str) {
        lock(&self.0).retain(|it, _| it.address != address);
    }

    fn slot(&self, subject: &SilentSubject) -> AnswerSlot {
        let mut all = lock(&self.0);
        // Whoever asks or waits has its slot. Another one may be shared while its answer counts.
        all.retain(|it, slot| it == subject || Arc::strong_count(slot) > 1 || is_young(slot));
        Arc::clone(all.entry(subject.clone()).or_default())
    }

    #[cfg(test)]
    pub(super) async fn age(&self, by: std::time::Duration) {
        let all: Vec<AnswerSlot> = lock(&self.0).values().cloned().collect();
        for slot in all {
            if let Some(DownAnswer { said: Ok(proof), .. }) = slot.lock().await.as_mut() {
                let evidence = proof.evidence(clock::now()).unwrap().to_owned();
                *proof = Proof::asked_at(clock::now().before(by), evidence);
            }
        }
    }
}

fn is_young(slot: &AnswerSlot) -> bool {
    let answer = slot.try_lock();
    let said = answer.as_ref().ok().and_then(|it| it.as_ref());
    said.is_some_and(|it| it.said.as_ref().is_ok_and(|it| it.evidence(clock::now()).is_ok()))
}

/// Returns the first line that a command printed, behind a colon; nothing if it printed none.
fn word(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().map(str::trim).find(|it| !it.is_empty()).unwrap_or_default();
    let cut: String = line.chars().take(DOWN_COMMAND_WORD).collect();
    if cut.is_empty() { String::new() } else { format!(": {}", escaped(&cut)) }
}
