// SPDX-License-Identifier: GPL-2.0-or-later
//! Two backends at once: that of this host's hypervisors, or of its cluster, and the agent backend.
//!
//! Owns the rules of asking both: what is in both, what can't be asked, who waits for whom. Everything about
//! one domain goes to the backend that has it. It must never let one that hangs delay what the other has, and
//! never choose between two domains.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::Target;

use super::{Backend, DynBackend, PowerForecast, PowerOffResult, SLOW_BACKEND_GRACE};
use crate::request::lease::Lease;
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainListing, DomainRef, LocateError, LocatedDomain, PowerAction,
    SeenPower, merge,
};
use fence_core::intent::PendingOrder;
use fence_core::owed_start::StartVerdict;

/// See the module's head.
pub(crate) struct CombinedBackend {
    hypervisors: NamedBackend,
    agent: NamedBackend,
}

/// One of them, and its name in the configuration.
struct NamedBackend {
    name: &'static str,
    backend: Arc<dyn DynBackend>,
}

impl CombinedBackend {
    /// `name` is what the configuration calls the one of the hypervisors.
    pub(crate) fn new(
        name: &'static str,
        hypervisors: Arc<dyn DynBackend>,
        agent: Arc<dyn DynBackend>,
    ) -> Self {
        Self {
            hypervisors: NamedBackend { name, backend: hypervisors },
            agent: NamedBackend { name: "agent", backend: agent },
        }
    }

    fn at(&self, domain: &DomainRef) -> &dyn DynBackend {
        &*match domain.home {
            DomainHome::Here(_) | DomainHome::Elsewhere => &self.hypervisors,
            DomainHome::Agent => &self.agent,
        }
        .backend
    }

    async fn locate_anywhere(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let (hypervisors, agent) = (&self.hypervisors, &self.agent);
        let mut asks =
            (pin!(hypervisors.backend.locate(target, until)), pin!(agent.backend.locate(target, until)));
        let mut said: (Option<LocateResult>, Option<LocateResult>) = (None, None);
        let mut prompt =
            pin!(tokio::time::sleep_until(until.min(Instant::now() + SLOW_BACKEND_GRACE).into()));
        let mut is_prompt = true;
        loop {
            let has_found = matches!((&said.0, &said.1), (Some(Ok(_)), _) | (_, Some(Ok(_))));
            let waits_for = |part: &NamedBackend, said: &Option<LocateResult>| {
                said.is_none() && (is_prompt || !has_found || part.backend.may_own(target))
            };
            if !waits_for(hypervisors, &said.0) && !waits_for(agent, &said.1) {
                break;
            }
            tokio::select! {
                it = &mut asks.0, if said.0.is_none() => said.0 = Some(it),
                it = &mut asks.1, if said.1.is_none() => said.1 = Some(it),
                () = &mut prompt, if is_prompt => is_prompt = false,
            }
        }
        let answer = |part: &NamedBackend, said: Option<LocateResult>| {
            let may_have = match said {
                Some(Err(LocateError::Unavailable(_))) => part.backend.may_own(target),
                // Not waited for, because it has none.
                _ => false,
            };
            BackendAnswer {
                backend: part.name,
                said: said.unwrap_or_else(|| Err(LocateError::Unavailable("no answer in time".to_owned()))),
                may_have,
            }
        };
        decide(answer(hypervisors, said.0), answer(agent, said.1))
    }
}

type LocateResult = Result<LocatedDomain, LocateError>;

/// Answer of one backend for a target.
#[derive(Clone, Debug)]
struct BackendAnswer {
    backend: &'static str,
    said: LocateResult,
    /// The backend can't be asked, and had such a domain when it was last read.
    may_have: bool,
}

/// Which domain is meant, by what both say.
fn decide(one: BackendAnswer, other: BackendAnswer) -> Result<LocatedDomain, LocateError> {
    use LocateError::{Ambiguous, NotFound, Unavailable};

    let unavailable = |it: &BackendAnswer, why: &str| format!("backend {}: {why}", it.backend);
    match (&one.said, &other.said) {
        (Ok(_), Ok(_)) => Err(Ambiguous(format!("{}, {}", one.described(), other.described()))),
        (Ok(_), Err(Ambiguous(why))) => Err(Ambiguous(format!("{}, {why}", one.described()))),
        (Err(Ambiguous(why)), Ok(_)) => Err(Ambiguous(format!("{why}, {}", other.described()))),
        (Ok(_), Err(Unavailable(why))) if other.may_have => Err(Unavailable(format!(
            "{}; this backend had such a domain when it was last heard, and so has backend {}",
            unavailable(&other, why),
            one.backend
        ))),
        (Err(Unavailable(why)), Ok(_)) if one.may_have => Err(Unavailable(format!(
            "{}; this backend had such a domain when it was last heard, and so has backend {}",
            unavailable(&one, why),
            other.backend
        ))),
        (Ok(_), Err(Unavailable(_) | NotFound)) => one.said,
        (Err(Unavailable(_) | NotFound), Ok(_)) => other.said,
        (Err(Ambiguous(first)), Err(Ambiguous(second))) => Err(Ambiguous(format!("{first}, {second}"))),
        (Err(Ambiguous(_)), Err(_)) => one.said,
        (Err(_), Err(Ambiguous(_))) => other.said,
        (Err(Unavailable(first)), Err(Unavailable(second))) => {
            Err(Unavailable(format!("{}; {}", unavailable(&one, first), unavailable(&other, second))))
        }
        (Err(Unavailable(why)), Err(NotFound)) => Err(Unavailable(unavailable(&one, why))),
        (Err(NotFound), Err(Unavailable(why))) => Err(Unavailable(unavailable(&other, why))),
        (Err(NotFound), Err(NotFound)) => Err(NotFound),
    }
}

impl BackendAnswer {
    /// The domain that it found.
    fn described(&self) -> String {
        let uuid = self.said.as_ref().map(|it| it.domain().uuid.to_string()).unwrap_or_default();
        format!("{uuid} of backend {}", self.backend)
    }
}

impl Backend for CombinedBackend {
    async fn locate(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        self.locate_anywhere(target, until).await
    }

    fn may_own(&self, target: &Target) -> bool {
        self.hypervisors.backend.may_own(target) || self.agent.backend.may_own(target)
    }

    async fn ready(&self, located: &LocatedDomain, lease: &Lease) -> Result<(), ActionError> {
        self.at(located.domain()).ready(located, lease).await
    }

    async fn status(&self, domain: &DomainRef, lease: &Lease) -> Result<SeenPower, ActionError> {
        self.at(domain).status(domain, lease).await
    }

    async fn off(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        self.at(domain).off(domain, for_reboot, lease).await
    }

    async fn on(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        self.at(domain).on(domain, lease).await
    }

    async fn forecast(
        &self,
        domain: &DomainRef,
        action: PowerAction,
        lease: &Lease,
    ) -> Result<PowerForecast, ActionError> {
        self.at(domain).forecast(domain, action, lease).await
    }

    async fn judge_at_places(&self, domain: &DomainRef, since: Duration, until: Instant) -> StartVerdict {
        self.at(domain).judge_at_places(domain, since, until).await
    }

    fn judge_by_requests(&self, domain: &DomainRef, since: Duration) -> StartVerdict {
        // The other hosts of a cluster fence the machines of devices too.
        self.hypervisors.backend.judge_by_requests(domain, since)
    }

    async fn start_owed(
        &self,
        domain: &DomainRef,
        xml: Option<(&str, &str)>,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        // A start from XML is libvirt's, wherever the domain is.
        let part = if xml.is_some() { &*self.hypervisors.backend } else { self.at(domain) };
        part.start_owed(domain, xml, lease).await
    }

    fn longest_effect(&self) -> Duration {
        self.agent.backend.longest_effect()
    }

    async fn order_settles(&self, order: &PendingOrder, domain: DomainId, until: Instant) {
        let part = if order.is_at_hypervisor() { &self.hypervisors.backend } else { &self.agent.backend };
        part.order_settles(order, domain, until).await;
    }

    async fn list(&self, until: Instant) -> Result<DomainListing, ActionError> {
        let lists = tokio::join!(self.hypervisors.backend.list(until), self.agent.backend.list(until));
        let (mut all, agents) = match lists {
            (Ok(all), Ok(agents)) => (all, agents),
            (Ok(one), Err(error)) | (Err(error), Ok(one)) => {
                (one, DomainListing { missing: vec![error.to_string()], ..DomainListing::default() })
            }
            (Err(first), Err(second)) => return Err(neither(&first, &second)),
        };
        all.domains.extend(agents.domains);
        all.missing.extend(agents.missing);
        merge(&mut all.domains);
        Ok(all)
    }

    async fn health(&self, until: Instant) -> Result<Vec<String>, ActionError> {
        let failed = tokio::join!(self.hypervisors.backend.health(until), self.agent.backend.health(until));
        match failed {
            (Ok(mut failed), Ok(more)) => {
                failed.extend(more);
                Ok(failed)
            }
            (Ok(mut failed), Err(error)) | (Err(error), Ok(mut failed)) => {
                failed.push(error.to_string());
                Ok(failed)
            }
            (Err(first), Err(second)) => Err(neither(&first, &second)),
        }
    }
}

fn neither(first: &ActionError, second: &ActionError) -> ActionError {
    ActionError::Unavailable(format!("{first}; {second}"))
}

#[cfg(test)]
mod tests;
