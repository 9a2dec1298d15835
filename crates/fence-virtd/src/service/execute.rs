// SPDX-License-Identifier: GPL-2.0-or-later
//! The search for a request's domain, the check of access, and the action itself.
//!
//! Requests of this host and asks of other hosts share [`run_power_action`]. Runs on the caller's task.
//! Nothing here knows of grants of other requests, of clients, or of sockets.

use std::time::{Duration, Instant};

use fence_core::access::{AccessDecision, AccessSubject};
use fence_core::domain::{
    ActionError, DomainHome, DomainRef, LocateError, PowerAction, PowerState, SeenPower,
};
use fence_core::evidence::ProvedOff;
use fence_wire::{Action, FORECAST_UNCERTAIN, HostListEntry, escaped};
use tracing::{debug, warn};

use crate::backend::{DynBackend, PowerForecast, PowerOffResult};
use crate::intent::OpenIntent;
use crate::request::job::{Refusal, RequestJob, RequestOutcome, ResolvedTarget};
use crate::request::lease::Lease;
use crate::service::listings::ListingDesk;
use crate::util::fault;

/// Time for the start after a reboot's power-off, whatever becomes of the client meanwhile.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);
/// Beginning of the reason of a reboot after which the domain did not start.
pub(crate) const NOT_STARTED: &str = "fenced, but not started again: ";
/// Longest time for which a status check is waited for: a slower one will not come at all.
pub(crate) const STATUS_CHECK_LIMIT: Duration = Duration::from_secs(10);

/// Result of a power action that was carried out.
#[derive(Debug)]
pub(crate) enum PowerActionResult {
    /// The domain was started, or was on already.
    Started { note: Option<String> },
    /// The domain was powered off for an off.
    PoweredOff { proof: ProvedOff, was_off: bool, note: Option<String> },
    /// The domain was powered off for a reboot, and there is no start to follow.
    NotToBeStarted { proof: ProvedOff, was_off: bool, note: Option<String> },
    /// The domain was powered off and started again.
    Rebooted { proof: ProvedOff, note: Option<String> },
    /// The domain was powered off, and its start failed.
    NotStarted { proof: ProvedOff, error: ActionError },
}

/// A domain that a status check showed off after the action.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeenOff {
    /// Moment since which it was looked at: a request that came later is told nothing by this.
    pub(crate) since: Instant,
    /// The domain was off before.
    pub(crate) was_off: bool,
    /// The domain is started again now.
    pub(crate) starts: bool,
    /// The domain may go off once more, by another order than the one that took it down.
    pub(crate) may_come_again: bool,
}

/// Carries out a power action that changes the power; refuses a status. `seen_off` is called as soon as a
/// status check after the power-off showed the domain off.
pub(crate) async fn run_power_action(
    backend: &dyn DynBackend,
    action: PowerAction,
    domain: &DomainRef,
    lease: &Lease,
    seen_off: impl FnOnce(SeenOff) + Send,
) -> Result<PowerActionResult, ActionError> {
    let is_reboot = match action {
        PowerAction::Status => return Err(ActionError::Refused(format!("{action} changes no power"))),
        PowerAction::On => {
            backend.on(domain, lease).await.inspect_err(|_| came_to_nothing(lease))?;
            return Ok(PowerActionResult::Started { note: lease.trail().remarks() });
        }
        PowerAction::Off => false,
        PowerAction::Reboot => true,
    };
    let down = backend.off(domain, is_reboot, lease).await;
    let down = down.inspect_err(|_| {
        if is_reboot {
            came_to_nothing(lease);
        }
    })?;
    let PowerOffResult { proof, was_off, note: said, restart, may_come_again } = down;
    seen_off(SeenOff { since: proof.since(), was_off, starts: restart.is_some(), may_come_again });
    let note = || joined([said.clone(), lease.trail().remarks()]);
    fault::reached("seen_off");
    let intent = lease.trail().intent();
    if is_reboot
        && restart.is_some()
        && let Some(it) = intent
    {
        it.owes_definition().await;
    }
    let restart = match restart {
        _ if !is_reboot => return Ok(PowerActionResult::PoweredOff { proof, was_off, note: note() }),
        None => return Ok(PowerActionResult::NotToBeStarted { proof, was_off, note: note() }),
        Some(restart) => restart,
    };
    // The domain was taken down to come up again: that is owed to it, not to the client.
    let rest = lease.detached(lease.until().max(Instant::now() + START_LIMIT));
    let started = restart.start(&rest).await;
    fault::reached("seen_on");
    // Cut off from the hypervisor, it is owed still, and made good when nobody waits for it any more.
    let is_owed = started.is_err() && intent.is_some_and(|it| it.left().is_some());
    if !is_owed {
        intent.into_iter().for_each(OpenIntent::settled);
    }
    Ok(match started {
        Ok(()) => PowerActionResult::Rebooted { proof, note: note() },
        Err(error) => {
            // Whoever makes good what is owed tells of that.
            if !is_owed {
                warn_not_started(domain, lease, &error);
            }
            came_to_nothing(lease);
            PowerActionResult::NotStarted { proof, error }
        }
    })
}

/// Tells that a machine is down which somebody wanted to be up: the answer is a success, since it is fenced.
fn warn_not_started(domain: &DomainRef, lease: &Lease, error: &ActionError) {
    let name = escaped(&domain.name);
    let by_hand = match domain.home {
        DomainHome::Agent => "start the domain by its device".to_owned(),
        DomainHome::Here(_) | DomainHome::Elsewhere => {
            format!(
                "be sure that the domain is on at no host, then virsh start {name} at one of them (virsh \
                 create where the domain has no definition)"
            )
        }
    };
    warn!(
        request = lease.request(), domain = %name, uuid = %domain.uuid,
        "a reboot powered this domain off, and the start failed: {error}. If the domain should run: \
         fence_xvm -o on -n {name}; or {by_hand}"
    );
}

/// Leaves a start that was owed before to whoever owes it.
fn came_to_nothing(lease: &Lease) {
    if let Some(it) = lease.trail().intent() {
        it.came_to_nothing();
    }
}

/// Joins what there is to say.
pub(crate) fn joined(notes: [Option<String>; 2]) -> Option<String> {
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

impl From<PowerActionResult> for RequestOutcome {
    fn from(result: PowerActionResult) -> Self {
        let (proof, said, note) = match result {
            PowerActionResult::Started { note } => return Self::started(note),
            PowerActionResult::PoweredOff { proof, was_off, note } => {
                (proof, was_off.then_some("was off already"), note)
            }
            PowerActionResult::NotToBeStarted { proof, was_off: true, note } => {
                (proof, Some("was off already, stays off"), note)
            }
            PowerActionResult::NotToBeStarted { proof, was_off: false, note } => {
                (proof, Some("another instance was started meanwhile"), note)
            }
            PowerActionResult::Rebooted { proof, note } => (proof, None, note),
            // What a cluster asks with a reboot is that the node is down; it was, and it still is. To report
            // a failure would make the cluster wait for a fence that has happened.
            PowerActionResult::NotStarted { proof, error } => {
                return Self::taken_down(&proof, None, Some(format!("{NOT_STARTED}{error}")));
            }
        };
        Self::taken_down(&proof, said, note)
    }
}

/// Finds the request's domain and checks the groups. Reads only; may run before the peer has proved itself.
pub(super) async fn resolve(backend: &dyn DynBackend, job: &RequestJob) -> ResolvedTarget {
    if !job.action.needs_target() {
        return ResolvedTarget::Run(None);
    }
    let located = backend.locate(&job.target, check_limit(job)).await;
    let subject = match &located {
        Ok(located) => AccessSubject::Domain { uuid: located.domain().uuid, name: &located.domain().name },
        Err(_) => AccessSubject::Text(job.target.as_str()),
    };
    let domain = located.as_ref().ok().map(|located| located.domain().clone());
    match (job.access.decide(&job.identity, job.key.as_deref(), subject), located) {
        (AccessDecision::Denied(denial), _) => {
            ResolvedTarget::Refused(Refusal::PermissionDenied, denial.to_string(), domain)
        }
        (_, Err(error)) => {
            if matches!(error, LocateError::Unavailable(_)) {
                warn!(id = job.id, "can't look for the domain: {error}");
            }
            ResolvedTarget::Refused(Refusal::Failure, error.to_string(), None)
        }
        (decision, Ok(located)) => {
            debug!(id = job.id, ?decision, domain = ?located.domain(), "resolved");
            ResolvedTarget::Run(Some(located))
        }
    }
}

/// Carries the request out. `seen_off` is called as soon as a status check after an off showed the domain
/// off.
pub(super) async fn execute(
    (backend, listings): (&dyn DynBackend, &ListingDesk),
    job: &RequestJob,
    resolved: ResolvedTarget,
    lease: &Lease,
    seen_off: impl FnOnce(SeenOff) + Send,
) -> RequestOutcome {
    match resolved {
        ResolvedTarget::Refused(refusal, reason, _) => RequestOutcome::refused(refusal, reason),
        ResolvedTarget::Run(None) => without_domain(backend, listings, job, lease).await,
        ResolvedTarget::Run(Some(located)) => {
            let domain = located.domain();
            let asked = (job.action, job.dry_run);
            on_domain(backend, asked, domain, lease, seen_off).await.unwrap_or_else(RequestOutcome::from)
        }
    }
}

async fn on_domain(
    backend: &dyn DynBackend,
    (action, dry_run): (Action, Option<PowerAction>),
    domain: &DomainRef,
    lease: &Lease,
    seen_off: impl FnOnce(SeenOff) + Send,
) -> Result<RequestOutcome, ActionError> {
    let Some(action) = PowerAction::of_request(action) else {
        return Ok(RequestOutcome::failed("the action is for no domain"));
    };
    if let Some(asked) = dry_run {
        let words = |it: &str| format!("{asked} {} ({}): {it}", domain.name, domain.uuid);
        return Ok(match backend.forecast(domain, asked, lease).await {
            Ok(PowerForecast::Uncertain(why)) => {
                RequestOutcome::failed(words(&format!("{FORECAST_UNCERTAIN}: {why}")))
            }
            Ok(forecast) => RequestOutcome::would_be_done(words(&in_words(&forecast, asked))),
            Err(error) => RequestOutcome::failed(words(&error.to_string())),
        });
    }
    if action == PowerAction::Status {
        let check = match domain.home {
            // Each of its devices has a time of its own.
            DomainHome::Agent => lease.clone(),
            DomainHome::Here(_) | DomainHome::Elsewhere => lease.within(Instant::now() + STATUS_CHECK_LIMIT),
        };
        return backend.status(domain, &check).await.map(|power| match power {
            SeenPower::On | SeenPower::Moving => RequestOutcome::is_on(),
            SeenPower::Off(proof) => RequestOutcome::is_off(&proof),
        });
    }
    run_power_action(backend, action, domain, lease, seen_off).await.map(RequestOutcome::from)
}

/// Returns an effect in words, for the guest that asks what an action would do.
fn in_words(forecast: &PowerForecast, action: PowerAction) -> String {
    match forecast {
        PowerForecast::PowersOff { at } if action == PowerAction::Reboot => {
            format!("is on, and would be powered off and started again at {at}")
        }
        PowerForecast::PowersOff { at } => format!("is on, and would be powered off at {at}"),
        PowerForecast::StaysOff => "is off everywhere, and would stay off: that is success".to_owned(),
        PowerForecast::Starts { at } => format!("is off everywhere, and would be started at {at}"),
        PowerForecast::StaysOn => "is on, and would stay on: that is success".to_owned(),
        PowerForecast::Uncertain(why) => why.clone(),
    }
}

async fn without_domain(
    backend: &dyn DynBackend,
    listings: &ListingDesk,
    job: &RequestJob,
    lease: &Lease,
) -> RequestOutcome {
    match job.action {
        Action::List => list(backend, listings, job, lease).await.unwrap_or_else(RequestOutcome::from),
        Action::Monitor => match backend.health(check_limit(job)).await {
            Ok(failed) if failed.is_empty() => RequestOutcome::is_well(None),
            Ok(failed) => {
                let failed = failed.join("; ");
                warn!(id = job.id, "monitor: {failed}");
                RequestOutcome::is_well(Some(failed))
            }
            Err(error) => RequestOutcome::failed(error),
        },
        // A request for nothing; the reference answers it with failure.
        _ => RequestOutcome::failed("nothing was asked"),
    }
}

/// Lists the domains that the source may see. No list is made for a client that is gone: a thousand of them
/// that waited, and hang up at once, would keep the processors from others for seconds.
async fn list(
    backend: &dyn DynBackend,
    listings: &ListingDesk,
    job: &RequestJob,
    lease: &Lease,
) -> Result<RequestOutcome, ActionError> {
    let limit = Instant::now() + STATUS_CHECK_LIMIT;
    let listing = listings.look(|| backend.list(limit), job.deadline().min(limit)).await?;
    let missing = (!listing.missing.is_empty()).then(|| listing.missing.join("; "));
    if let Some(missing) = &missing {
        warn!(id = job.id, "the host list is not complete: {missing}");
    }
    let tag = job.key.as_ref().map(|it| it.key.tag());
    let room = tokio::select! {
        biased;
        _ = lease.ended() => None,
        room = listings.room(tag, listing.domains.len(), job.deadline()) => room,
    };
    let Some(room) = room else {
        if lease.end_reason().is_some() {
            lease.check()?;
        }
        return Ok(RequestOutcome::failed(
            "clients with the same key read none of the lists that wait for them",
        ));
    };
    let shown = listing
        .domains
        .iter()
        .filter(|domain| job.access.shows(&job.identity, job.key.as_deref(), domain.uuid, &domain.name));
    let entries = shown
        .map(|domain| HostListEntry {
            name: domain.name.clone(),
            uuid: domain.uuid.to_string(),
            on: domain.power == PowerState::On,
        })
        .collect();
    Ok(RequestOutcome::listed(entries, missing, room))
}

/// Returns the latest moment for a check of the request: its deadline, and no longer than a check may take.
fn check_limit(job: &RequestJob) -> Instant {
    job.deadline().min(Instant::now() + STATUS_CHECK_LIMIT)
}

#[cfg(test)]
mod tests;
