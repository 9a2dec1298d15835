// SPDX-License-Identifier: GPL-2.0-or-later
//! Completed reboots whose answer did not reach the client.
//!
//! A client that asks again gets the result of the first request: one wish is one reboot. Owns a bounded
//! list.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use fence_core::access::Identity;
use fence_core::arbiter::{ArbitratedAction, SharedResult};
use fence_core::domain::DomainRef;
use fence_wire::{Action, Response};

use crate::request::job::{RequestJob, RequestOutcome};
use crate::util::locks::lock;

/// Time for which a completed reboot whose answer was not delivered answers the same client's retry.
const UNDELIVERED_REBOOT_TTL: Duration = Duration::from_secs(60);
const MAX_LOST_ANSWERS: usize = 256;

/// Undelivered results, the oldest first.
#[derive(Default)]
pub(crate) struct LostAnswers(Mutex<Vec<UndeliveredReboot>>);

/// A completed reboot whose client was gone before it got the answer.
struct UndeliveredReboot {
    when: Instant,
    identity: Identity,
    /// UUID of the domain, as the arbiter's targets have it.
    uuid: String,
    result: SharedResult,
}

impl LostAnswers {
    /// Remembers the outcome of a request whose client did not get the answer, if it is a completed reboot.
    pub(crate) fn record(&self, job: &RequestJob, domain: Option<&DomainRef>, outcome: &RequestOutcome) {
        let response = outcome.answer().response();
        let (Action::Reboot, Response::Success, Some(domain)) = (job.action, response, domain) else {
            return;
        };
        let result = SharedResult {
            response,
            reason: outcome.reason().map(str::to_owned),
            by: format!("request {}", job.id),
        };
        let lost = UndeliveredReboot {
            when: Instant::now(),
            identity: job.identity.clone(),
            uuid: domain.uuid.to_string(),
            result,
        };
        let mut answers = lock(&self.0);
        answers.retain(|it| it.when.elapsed() < UNDELIVERED_REBOOT_TTL);
        if answers.len() >= MAX_LOST_ANSWERS {
            answers.remove(0);
        }
        answers.push(lost);
    }

    /// Takes out the result that answers a retry of the same client.
    pub(crate) fn take(&self, job: &RequestJob, action: &ArbitratedAction) -> Option<SharedResult> {
        let ArbitratedAction::Reboot(uuid) = action else { return None };
        let mut answers = lock(&self.0);
        let place = answers.iter().position(|it| {
            it.uuid == *uuid && it.identity == job.identity && it.when.elapsed() < UNDELIVERED_REBOOT_TTL
        })?;
        // Once: a further reboot is a further wish.
        Some(answers.remove(place).result)
    }

    /// Returns once the lock is free.
    pub(crate) fn check_responsive(&self) {
        drop(lock(&self.0));
    }
}
