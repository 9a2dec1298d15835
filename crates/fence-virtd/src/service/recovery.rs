// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of actions that were under way when an earlier daemon ended: one audit record each, and the start
//! that a reboot owes.
//!
//! Runs at the start of the daemon, one task for each action. A start takes its turn like a request for the
//! domain, so that later requests wait for it. Must never start a domain that was not seen off at every
//! place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::arbiter::Grant;
use fence_core::domain::{DomainHome, DomainId, DomainRef, LocateError, LocatedDomain, SeenPower};
use fence_core::intent::{IntentRemainder, StartOwed, UnfinishedIntent};
use fence_wire::{Action, Response, Target};
use tracing::info;

use super::Service;
use super::execute::START_LIMIT;
use crate::intent::since_boot_ms;
use crate::intent::store::LeftIntent;
use crate::request::job::{Arrival, RequestJob, ResolvedTarget};
use crate::request::lease::Lease;
use crate::util::join::join_all;

/// Time for which the daemon's start waits for this; what is left goes on beside the requests.
const START_WAIT: Duration = Duration::from_secs(5);
/// Time for which a domain that is on is watched: the order of the earlier daemon may be on its way.
const ORDER_SETTLE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

impl Service {
    /// Finishes what an earlier daemon left, and returns when that is done, or after [`START_WAIT`].
    pub(crate) async fn finish_left(self: &Arc<Self>, left: Vec<LeftIntent>) {
        if left.is_empty() {
            return;
        }
        info!(actions = left.len(), "an earlier daemon ended in the middle of these; they are finished now");
        let tasks = left.into_iter().map(|it| {
            let service = Arc::clone(self);
            tokio::spawn(async move { service.finish_one(it).await })
        });
        let _ = tokio::time::timeout(START_WAIT, join_all(tasks)).await;
    }

    async fn finish_one(self: Arc<Self>, left: LeftIntent) {
        let _in_flight = self.begin_request();
        let open = self.intents.adopt(&left);
        match &left.unfinished.remainder {
            IntentRemainder::Record(line) => self.audit.write_earlier(line, open),
            IntentRemainder::Open { .. } => {
                let found = self.finish_action(&left).await;
                let reason = format!("was under way when the daemon ended; {found}");
                self.audit.write_unfinished(&left.unfinished.intent, &reason, &open);
            }
        }
    }

    /// Looks at the domain, starts it if that is owed, and returns what came of it, in words.
    async fn finish_action(&self, left: &LeftIntent) -> String {
        let LeftIntent { unfinished, xml } = left;
        let Some(domain) = domain_of(unfinished) else { return "the domain is not known".to_owned() };
        let target = Target::new(&domain.uuid.to_string(), true).unwrap_or_else(|_| Target::none());
        let due = unfinished.start_due(self.intents.boot(), since_boot_ms());
        let action = if due.is_ok() { Action::On } else { Action::Status };
        let job = self.accept(Arrival::from_host("recovery", String::new(), action, target));
        let (lease, mut released) = Lease::new(Instant::now() + START_LIMIT, job.id);
        let start = match due {
            Ok(start) => start,
            Err(why) => {
                let reboot = unfinished.intent.action == Action::Reboot.name();
                let power = self.power_now(&job, &lease).await;
                return if reboot { format!("{power}; {why}") } else { power };
            }
        };
        let source = match (start, xml) {
            (StartOwed::Definition, _) => None,
            (StartOwed::Xml { uri }, Some(xml)) => Some((uri.as_str(), xml.as_str())),
            (StartOwed::Xml { .. }, None) => return "its XML was not kept, so it is not started".to_owned(),
        };
        let resolved = ResolvedTarget::Run(Some(LocatedDomain::Off(domain.clone())));
        let permit = match self.wait_for_grant(&job, &resolved, &lease).await {
            Grant::Run(permit) => permit,
            Grant::Coalesced(_) => return "another request starts it".to_owned(),
            Grant::Rejected(why) => return format!("not started: {why}"),
        };
        let found = match permit.proved() {
            Ok(()) => self.make_good(&job, &domain, source, &lease).await,
            Err(why) => format!("not started: {why}"),
        };
        drop(lease);
        if !released.is_now() {
            tokio::spawn(async move {
                released.wait().await;
                permit.finished(Response::Success, None);
            });
        } else {
            permit.finished(Response::Success, None);
        }
        found
    }

    /// Starts the domain as soon as it is seen off.
    async fn make_good(
        &self,
        job: &RequestJob,
        domain: &DomainRef,
        xml: Option<(&str, &str)>,
        lease: &Lease,
    ) -> String {
        let watch_until = Instant::now() + ORDER_SETTLE;
        let domain = loop {
            let doubt = match self.look_for(job, lease).await {
                Ok((located, SeenPower::Off(_))) => break located,
                Ok((_, SeenPower::On)) if Instant::now() >= watch_until => return "it is on".to_owned(),
                Ok((_, SeenPower::On)) => String::new(),
                Err(None) if xml.is_some() => break domain.clone(),
                Err(None) => return "the domain is not here any more".to_owned(),
                Err(Some(doubt)) => doubt,
            };
            if lease.check().is_err() {
                return not_made_good(&doubt);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        };
        match self.backend.start_owed(&domain, xml, lease).await {
            Ok(()) => "the start that it owed is made good".to_owned(),
            Err(error) => not_made_good(&error),
        }
    }

    /// Returns the power of the job's domain, in words.
    async fn power_now(&self, job: &RequestJob, lease: &Lease) -> String {
        match self.look_for(job, lease).await {
            Ok((_, SeenPower::On)) => "it is on".to_owned(),
            Ok((_, SeenPower::Off(_))) => "it is off".to_owned(),
            Err(None) => "the domain is not here any more".to_owned(),
            Err(Some(doubt)) => format!("its state is not known: {doubt}"),
        }
    }

    /// Finds the job's domain and looks at its power. An error without text: there is no such domain.
    async fn look_for(
        &self,
        job: &RequestJob,
        lease: &Lease,
    ) -> Result<(DomainRef, SeenPower), Option<String>> {
        let located = self.backend.locate(&job.target, lease.until()).await.map_err(|error| match error {
            LocateError::NotFound => None,
            other => Some(other.to_string()),
        })?;
        let domain = located.domain().clone();
        match self.backend.status(&domain, lease).await {
            Ok(power) => Ok((domain, power)),
            Err(error) => Err(Some(error.to_string())),
        }
    }
}

/// Returns the domain of an intent. Its place is found anew.
fn domain_of(unfinished: &UnfinishedIntent) -> Option<DomainRef> {
    let uuid = DomainId::parse_canonical(&unfinished.intent.uuid)?;
    Some(DomainRef { name: unfinished.intent.domain.clone(), uuid, home: DomainHome::Here(0) })
}

/// Returns the words for a start that is still owed, with the next step.
fn not_made_good(why: &dyn std::fmt::Display) -> String {
    format!("the start that it owes was not made good: {why}. The domain stays off until somebody starts it")
}
