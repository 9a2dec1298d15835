// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of actions that were under way when an earlier daemon ended: one audit record each, and the start
//! that a reboot owes. A reboot of this daemon that ended while libvirt was away owes its start too.
//!
//! Runs at the start of the daemon, one task for each action, or after such a reboot. A start takes its
//! turn like a request for the domain, so that later requests wait for it; one that fails is tried again,
//! and gives way to requests that came meanwhile. Must never start a domain that was not seen off at
//! every place, nor one that somebody else was seen to start or asked for since.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::arbiter::{Grant, LateEffect, SharedResult};
use fence_core::domain::{
    DomainHome, DomainId, DomainRef, LocateError, LocatedDomain, SeenPower, TargetKind,
};
use fence_core::intent::{Intent, IntentRemainder, START_AGE_MS, StartOwed, UnfinishedIntent};
use fence_core::owed_start::{MOVING, OwedStep, StartVerdict};
use fence_wire::{Action, Response, Target, escaped};
use tracing::{info, warn};

use super::execute::START_LIMIT;
use super::{RunPermit, Service};
use crate::hypervisor::NO_TIME_LEFT;
use crate::intent::store::LeftIntent;
use crate::intent::{OpenIntent, since_boot_ms};
use crate::request::job::{Arrival, RequestJob, ResolvedTarget};
use crate::request::lease::Lease;
use crate::util::backoff::{Backoff, OncePerReason};
use crate::util::join::join_all;

/// Time for which the daemon's start waits for this; what is left goes on beside the requests.
const START_WAIT: Duration = Duration::from_secs(5);
/// Time for which a domain that is on is watched: the order of the earlier daemon may be on its way.
const ORDER_SETTLE: Duration = Duration::from_secs(3);
/// Pauses between two attempts to start. In between later requests for the domain get their turn.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// End of an action of an earlier daemon, in the log.
const END_UNSEEN: &str = "the end of the action was not seen";
/// Beginning of the reason in the second record of a reboot, and its end in the log.
const OWED_LATER: &str = "the start was still owed when the request had ended";
/// Transport of this work in the log.
const TRANSPORT: &str = "recovery";
/// Pauses between two looks.
const LOOK_PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
/// Pause between two looks at the requests that have just come.
const ARRIVAL_PAUSE: Duration = Duration::from_millis(20);

/// Result of one attempt to make good a start, in words.
enum StartAttempt {
    /// The domain is on.
    On(String),
    /// Nothing is left to do, and the domain may be off.
    Over(String),
    /// A newer request that is to take the domain down waits. It decides, if it begins.
    GivesWay,
    /// The start is still owed.
    Failed(String),
}

/// Doubts of the looks of one attempt. A look that had no time left says nothing of the cause, which the
/// look before it told: a host that is silent.
#[derive(Default)]
struct AttemptDoubts {
    cause: Option<String>,
    last: String,
}

impl AttemptDoubts {
    fn add(&mut self, doubt: String) {
        if !doubt.contains(NO_TIME_LEFT) {
            self.cause = Some(doubt.clone());
        }
        self.last = doubt;
    }

    /// Returns the latest one that tells a cause; where none does, the latest.
    fn told(self) -> String {
        self.cause.unwrap_or(self.last)
    }
}

impl Service {
    /// Finishes what an earlier daemon left, and returns when that is done, or after [`START_WAIT`]; where
    /// not all hypervisors are ready, at once.
    pub(crate) async fn finish_left(self: &Arc<Self>, left: Vec<LeftIntent>, is_ready: bool) {
        let left: Vec<_> =
            left.into_iter().filter(|it| it.unfinished.remainder != IntentRemainder::Orders).collect();
        if left.is_empty() {
            return;
        }
        info!(
            actions = left.len(),
            "an earlier daemon ended in the middle of these; their domains are looked at now, and what is \
             owed is done"
        );
        let tasks: Vec<_> = left
            .into_iter()
            .map(|it| {
                let service = Arc::clone(self);
                tokio::spawn(async move { service.finish_one(it).await })
            })
            .collect();
        if !is_ready {
            return;
        }
        let _ = tokio::time::timeout(START_WAIT, join_all(tasks)).await;
    }

    async fn finish_one(self: Arc<Self>, left: LeftIntent) {
        let _in_flight = self.begin_request();
        let open = self.intents.adopt(&left);
        match &left.unfinished.remainder {
            // The orders are waited for by themselves.
            IntentRemainder::Orders => {}
            IntentRemainder::Record(line) => self.audit.write_earlier(line, open),
            IntentRemainder::Open { .. } => {
                let found = self.finish_action(&left, &open).await;
                let intent = &left.unfinished.intent;
                let cause = cause_of_end(&intent.boot, self.intents.boot());
                let reason = format!("was under way when the daemon ended; {found} ({cause})");
                self.audit.write_unfinished(intent, (END_UNSEEN, &reason), &open);
            }
        }
    }

    /// Makes good the start that a reboot of this daemon owes after its request has ended: libvirt was away.
    /// Returns at once. The intent stays as it is on disk, so that a next daemon would go on with it.
    pub(super) fn make_good_later(self: &Arc<Self>, left: LeftIntent) {
        let (service, in_flight) = (Arc::clone(self), self.begin_request());
        let open = self.intents.adopt(&left);
        let Intent { id, domain, uuid, .. } = &left.unfinished.intent;
        warn!(
            request = id, domain = %escaped(domain), uuid,
            "a reboot could not start the domain, since libvirt was away; the start is still owed, and is \
             made good when libvirt is back, up to {} s after the request",
            START_AGE_MS / 1000
        );
        tokio::spawn(async move {
            let _in_flight = in_flight;
            let found = service.finish_action(&left, &open).await;
            let reason = format!("{OWED_LATER}; {found}");
            service.audit.write_unfinished(&left.unfinished.intent, (OWED_LATER, &reason), &open);
        });
    }

    /// Looks at the domain, starts it if that is owed, and returns what came of it, in words.
    async fn finish_action(&self, left: &LeftIntent, open: &OpenIntent) -> String {
        let LeftIntent { unfinished, xml } = left;
        let Some(domain) = domain_of(unfinished) else { return "the domain is not known".to_owned() };
        let target = Target::new(&domain.uuid.to_string(), true).unwrap_or_else(|_| Target::none());
        let due = unfinished.start_due(self.intents.boot(), since_boot_ms());
        let start = match due {
            Ok(start) => start,
            Err(why) => {
                let job = self.accept(Arrival::from_host(TRANSPORT, String::new(), Action::Status, target));
                let (lease, _released) = Lease::new(Instant::now() + START_LIMIT, job.id);
                let reboot = unfinished.intent.action == Action::Reboot.name();
                let power = self.power_now(&job, &lease).await;
                return if reboot { format!("{power}; {why}") } else { power };
            }
        };
        let source = match (start, xml) {
            (StartOwed::Definition, _) => None,
            (StartOwed::Xml { uri }, Some(xml)) => Some((uri.as_str(), xml.as_str())),
            (StartOwed::Xml { .. }, None) => {
                return "the XML of the domain was not kept, so the domain is not started".to_owned();
            }
        };
        let began_ms = unfinished.intent.at_ms;
        let (mut backoff, mut logged) = (Backoff::new(FIRST_PAUSE, LAST_PAUSE), OncePerReason::default());
        loop {
            let why = match self.attempt(&domain, target.clone(), (source, began_ms), open).await {
                StartAttempt::On(found) | StartAttempt::Over(found) => return found,
                // The next attempt takes its turn behind that request.
                StartAttempt::GivesWay
                    if unfinished.start_due(self.intents.boot(), since_boot_ms()).is_ok() =>
                {
                    continue;
                }
                StartAttempt::GivesWay => {
                    "newer requests waited for the domain, and began nothing".to_owned()
                }
                StartAttempt::Failed(why) => why,
            };
            let pause = backoff.next_pause();
            let next_ms =
                since_boot_ms().saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
            let is_last = unfinished.start_due(self.intents.boot(), next_ms).is_err();
            if is_last || logged.is_new(&why) {
                let next = if is_last { "the domain stays off" } else { "trying again" };
                warn!(
                    domain = %escaped(&domain.name), uuid = %domain.uuid,
                    "can't make good the start that a reboot owes: {why}; {next}"
                );
            }
            if is_last {
                return not_made_good(&why);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes a turn for the domain, and tries to make good the start that is owed.
    async fn attempt(
        &self,
        domain: &DomainRef,
        target: Target,
        (source, began_ms): (Option<(&str, &str)>, u64),
        open: &OpenIntent,
    ) -> StartAttempt {
        let job = self.accept(Arrival::from_host(TRANSPORT, String::new(), Action::On, target));
        let (lease, mut released) = Lease::new(Instant::now() + START_LIMIT, job.id);
        // What is ordered now belongs to the intent of the earlier daemon.
        job.trail.set_intent(open.clone());
        let lease = lease.with_trail(job.trail.clone());
        let resolved = ResolvedTarget::Run(Some(LocatedDomain::Off(domain.clone())));
        let permit = match self.wait_for_grant(&job, &resolved, &lease).await {
            Grant::Run(permit) => permit,
            Grant::Coalesced(same) => return after_same_start(&same),
            Grant::Rejected(why) => return StartAttempt::Failed(why.to_string()),
        };
        let found = match permit.proved() {
            // Whoever had the turn before decides what becomes of it.
            Ok(()) => match self.intents.decided_by(&domain.uuid.to_string()) {
                Some(decision) => over(&decision),
                None => self.make_good(&job, domain, source, began_ms, (&lease, &permit)).await,
            },
            Err(why) => StartAttempt::Failed(why.to_string()),
        };
        drop(lease);
        let is_on = matches!(found, StartAttempt::On(_));
        // One that is dropped, or fails, hands the turn to the first request that joined it: nobody is told
        // "started" who would find the domain off.
        if !released.is_now() {
            let response = if is_on { Response::Success } else { Response::Failure };
            let held = permit.answered(LateEffect::Any, response, None);
            tokio::spawn(async move {
                released.wait().await;
                held.finished();
            });
        } else if is_on {
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
        began_ms: u64,
        (lease, permit): (&Lease, &RunPermit),
    ) -> StartAttempt {
        let (watch, mut is_judged, mut pauses) = (Instant::now() + ORDER_SETTLE, false, LOOK_PAUSES);
        let mut doubts = AttemptDoubts::default();
        let domain = loop {
            if self.has_rival(domain, lease, permit).await {
                return StartAttempt::GivesWay;
            }
            let is_settled = Instant::now() >= watch;
            let doubt = match self.look_for(job, lease).await {
                Ok((located, seen)) => match OwedStep::after(&seen, is_settled) {
                    OwedStep::Start => break located.domain().clone(),
                    OwedStep::IsOn => return StartAttempt::On(on_at(&located).to_owned()),
                    OwedStep::LookAgain(why) => {
                        // Of two hosts that owe it, the one that was asked first leaves it to the other.
                        if is_settled
                            && !std::mem::replace(&mut is_judged, true)
                            && let StartVerdict::Overtaken(what) = self.judge(domain, began_ms, lease).await
                        {
                            return over(&format!("{what}, so the domain is not started"));
                        }
                        why.to_owned()
                    }
                },
                Err(None) if xml.is_some() => break domain.clone(),
                Err(None) => return over("the domain is not here any more"),
                Err(Some(doubt)) => doubt,
            };
            doubts.add(doubt);
            if lease.check().is_err() {
                return StartAttempt::Failed(doubts.told());
            }
            tokio::time::sleep(pauses.next_pause()).await;
        };
        match self.judge(&domain, began_ms, lease).await {
            StartVerdict::Stands => {}
            StartVerdict::Overtaken(what) => return over(&format!("{what}, so the domain is not started")),
            StartVerdict::Untold(why) => return left_off(&domain, &why),
            StartVerdict::Unheard(why) => return StartAttempt::Failed(why),
        }
        if self.has_rival(&domain, lease, permit).await {
            return StartAttempt::GivesWay;
        }
        match self.backend.start_owed(&domain, xml, lease).await {
            Ok(()) => StartAttempt::On("the start that the reboot owed is made good".to_owned()),
            Err(error) => StartAttempt::Failed(error.to_string()),
        }
    }

    /// Returns whether the start still stands.
    async fn judge(&self, domain: &DomainRef, began_ms: u64, lease: &Lease) -> StartVerdict {
        let since = Duration::from_millis(since_boot_ms().saturating_sub(began_ms));
        let at_places = self.backend.judge_at_places(domain, since, lease.until()).await;
        at_places.and(self.backend.judge_by_requests(domain, since))
    }

    /// Returns whether a newer request waits that is to take the domain down: a machine that is started now
    /// would be powered off once more. One that has just come is not in the queue before its domain is found.
    async fn has_rival(&self, domain: &DomainRef, lease: &Lease, permit: &RunPermit) -> bool {
        while !permit.has_rival() && self.arriving.may_mean(domain) && lease.check().is_ok() {
            tokio::time::sleep(ARRIVAL_PAUSE).await;
        }
        permit.has_rival()
    }

    /// Returns the power of the job's domain, in words.
    async fn power_now(&self, job: &RequestJob, lease: &Lease) -> String {
        match self.look_for(job, lease).await {
            Ok((_, SeenPower::On)) => "the domain is on".to_owned(),
            Ok((_, SeenPower::Moving)) => MOVING.to_owned(),
            Ok((_, SeenPower::Off(_))) => "the domain is off".to_owned(),
            Err(None) => "the domain is not here any more".to_owned(),
            Err(Some(doubt)) => format!("the state of the domain is not known: {doubt}"),
        }
    }

    /// Finds the job's domain and looks at its power. An error without text: there is no such domain.
    async fn look_for(
        &self,
        job: &RequestJob,
        lease: &Lease,
    ) -> Result<(LocatedDomain, SeenPower), Option<String>> {
        let located = self.backend.locate(&job.target, lease.until()).await.map_err(|error| match error {
            LocateError::NotFound => None,
            other => Some(other.to_string()),
        })?;
        match self.backend.status(located.domain(), lease).await {
            Ok(power) => Ok((located, power)),
            Err(error) => Err(Some(error.to_string())),
        }
    }
}

/// Returns what is left of a start that was coalesced with the same work of another request, or of another
/// host. One that failed leaves it owed: nobody is left who was told to start the domain.
fn after_same_start(same: &SharedResult) -> StartAttempt {
    let SharedResult { response, reason, by } = same;
    if *response == Response::Success {
        return StartAttempt::On(format!("another request started the domain ({by})"));
    }
    let why = reason.as_deref().unwrap_or("no reason was told");
    StartAttempt::Failed(format!("another request tried to start the domain ({by}), and failed: {why}"))
}

/// Returns why the daemon ended in the middle of a request, as far as that is known: at a SIGTERM it waits
/// for its requests, for a time.
fn cause_of_end(boot: &str, now: &str) -> &'static str {
    if !boot.is_empty() && !now.is_empty() && boot != now {
        "the host was started anew since"
    } else {
        "fence_virtd was killed or crashed, or was told to end and did not wait any longer"
    }
}

fn on_at(located: &LocatedDomain) -> &'static str {
    match located {
        LocatedDomain::Here(_) => "the domain is on",
        _ => "another host has the domain on",
    }
}

/// Returns what is left of a start of which nobody can tell whether it still stands.
fn left_off(domain: &DomainRef, why: &str) -> StartAttempt {
    warn!(
        domain = %escaped(&domain.name), uuid = %domain.uuid,
        "a reboot owes a start, and nobody can tell any more whether somebody asked for the domain since: \
         {why}. The domain is left off. Start the domain if it should run"
    );
    over(&format!(
        "the domain is left off, since nobody can tell whether somebody asked for it meanwhile: {why}. Start \
         the domain if it should run"
    ))
}

fn over(found: &str) -> StartAttempt {
    StartAttempt::Over(found.to_owned())
}

/// Returns the domain of an intent. Its place is found anew.
fn domain_of(unfinished: &UnfinishedIntent) -> Option<DomainRef> {
    let uuid = DomainId::parse_canonical(&unfinished.intent.uuid)?;
    Some(DomainRef {
        name: unfinished.intent.domain.clone(),
        uuid,
        home: DomainHome::Here(0),
        by: TargetKind::Name,
    })
}

/// Returns the words for a start that is still owed, with the next step.
fn not_made_good(why: &str) -> String {
    let next = if why == MOVING {
        "The domain was not seen on. If the domain is off and should run, start the domain"
    } else {
        "The domain stays off until somebody starts it"
    };
    format!("the start that the reboot owes was not made good: {why}. {next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The look before took all the time: it waited for another host.
    #[test]
    fn a_silent_host_is_the_cause_and_not_the_libvirt_that_nobody_had_time_to_ask() {
        let told = |doubts: &[&str]| {
            let mut all = AttemptDoubts::default();
            doubts.iter().for_each(|it| all.add((*it).to_owned()));
            all.told()
        };
        let late = "can't tell: no time was left to ask libvirt at qemu:///system: what came before took it";
        let silent = "can't tell whether the domain is off: host h1 does not answer";
        assert_eq!(told(&[silent, late]), silent);
        assert_eq!(told(&[silent, late, late]), silent);
        assert_eq!(told(&["an earlier doubt", silent]), silent);
        assert_eq!(told(&[late]), late);
    }

    #[test]
    fn only_another_boot_is_called_one() {
        assert_eq!(cause_of_end("a", "b"), "the host was started anew since");
        for (boot, now) in [("a", "a"), ("", "b"), ("a", "")] {
            assert!(cause_of_end(boot, now).starts_with("fence_virtd was killed"), "{boot} {now}");
        }
    }
}
