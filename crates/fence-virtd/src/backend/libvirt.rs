// SPDX-License-Identifier: GPL-2.0-or-later
//! The libvirt backend: one or several hypervisors, their domains merged.
//!
//! Owns the connections (through [`crate::hypervisor`]) and the rules of looking: what counts as off, when a
//! look is enough, when an answer would be a guess. Runs on the runtime; everything that blocks is sent to
//! blocking threads by [`crate::hypervisor`] with a deadline.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_wire::Target;
use libvirt_host::{Connection, State, Uuid};

use self::act::{ActFailure, DomainPowerOff, PowerOffOrder, PowerOffProgress, StartSource, look};
use self::target::{MatchedDomain, TargetQuery};
use super::{Backend, BoxedFuture, PowerOffResult, Restart, SLOW_BACKEND_GRACE};
use crate::hypervisor::uuid::{domain_id, libvirt_uuid};
use crate::hypervisor::{CallError, Hypervisor, Hypervisors};
use crate::request::lease::Lease;
use crate::util::join::join_all;
use crate::util::locks::lock;
use fence_core::domain::{
    ActionError, DomainHome, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain, PowerState,
    merge,
};

mod act;
mod target;

/// Time for which a hypervisor is asked about an unfinished action before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Time that a hypervisor may take for an earlier action after it answers again.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);
/// The hypervisors of `backends { libvirt { … } }`.
pub(crate) struct LibvirtBackend {
    hypervisors: Vec<Arc<Hypervisor>>,
    reboot_starts: bool,
}

impl LibvirtBackend {
    /// Connects to every hypervisor and keeps the connections; returns when the first attempt at each has
    /// ended.
    ///
    /// The second value has a line for each that can't be reached now. They are tried again for ever.
    pub(crate) async fn start(
        uris: &[String],
        reboot_starts: bool,
        known: &Hypervisors,
    ) -> (Self, Vec<String>) {
        let hypervisors: Vec<_> = uris.iter().map(|uri| known.at(uri)).collect();
        let mut unreachable = Vec::new();
        for hypervisor in &hypervisors {
            if let Err(error) = hypervisor.first_attempt().await {
                unreachable.push(error.to_string());
            }
        }
        (Self { hypervisors, reboot_starts }, unreachable)
    }

    /// Returns the hypervisors of the configuration, in its order.
    pub(crate) fn hypervisors(&self) -> &[Arc<Hypervisor>] {
        &self.hypervisors
    }

    fn home(&self, domain: &DomainRef) -> Result<&Arc<Hypervisor>, ActionError> {
        match domain.home {
            DomainHome::Here(place) => self.hypervisors.get(place).ok_or(ActionError::Gone),
            DomainHome::Elsewhere | DomainHome::Agent => Err(ActionError::Gone),
        }
    }

    /// Reads the state of a domain.
    pub(crate) async fn look(&self, domain: &DomainRef, until: Instant) -> Result<PowerState, ActionError> {
        let uuid = libvirt_uuid(domain.uuid);
        let look = self.home(domain)?.ask(until, move |c| look(c, uuid)).await?;
        look.power()
    }

    async fn locate_here(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let wanted = Arc::new(TargetQuery::new(target));
        let (mut found, mut unavailable) = (Vec::new(), Vec::new());
        let mut asked: Vec<usize> = (0..self.hypervisors.len()).collect();
        // One that hangs must not delay what another has: with several the first round is short.
        let first = if asked.len() > 1 { until.min(Instant::now() + SLOW_BACKEND_GRACE) } else { until };
        for limit in [first, until] {
            let looks = asked.iter().map(|home| {
                let wanted = Arc::clone(&wanted);
                self.hypervisors[*home].ask(limit, move |connection| wanted.find(connection))
            });
            let (mut silent, mut down) = (Vec::new(), Vec::new());
            for (home, result) in asked.iter().copied().zip(join_all(looks).await) {
                match result {
                    Ok(domains) => found.extend(domains.into_iter().map(|it| (home, it))),
                    Err(error @ (CallError::Slow { .. } | CallError::Busy { .. })) => {
                        silent.push((home, error));
                    }
                    Err(error) => down.push((home, error)),
                }
            }
            unavailable.extend(down);
            if found.iter().any(|(_, it): &(usize, MatchedDomain)| it.active)
                || silent.is_empty()
                || limit == until
            {
                unavailable.extend(silent);
                break;
            }
            asked = silent.into_iter().map(|(home, _)| home).collect();
        }
        // A domain that is on somewhere is there, whatever other hypervisors hold a definition of it.
        if found.iter().any(|(_, it)| it.active) {
            found.retain(|(_, it)| it.active);
        }
        let reasons = || unavailable.iter().map(|(_, e)| e.to_string()).collect::<Vec<_>>().join("; ");
        match &found[..] {
            [(home, one)] => {
                // Off here says nothing when it was last seen on a hypervisor that can't be asked now, and a
                // name says nothing when another domain had it there.
                let in_doubt = unavailable.iter().map(|(home, _)| &self.hypervisors[*home]).any(|it| {
                    !one.active && it.has_seen(one.uuid)
                        || !wanted.is_uuid_of(one) && it.has_seen_another(&one.name, one.uuid)
                });
                if in_doubt {
                    return Err(LocateError::Unavailable(reasons()));
                }
                Ok(self.here_or_resting(*home, one))
            }
            [] if !unavailable.is_empty() => Err(LocateError::Unavailable(reasons())),
            [] => self.gone(&wanted).ok_or(LocateError::NotFound),
            // The same domain defined on several hypervisors and on nowhere: it is off, and any will do.
            [(home, first), rest @ ..]
                if !first.active && rest.iter().all(|(_, it)| it.uuid == first.uuid) =>
            {
                Ok(self.here_or_resting(*home, first))
            }
            several => Err(LocateError::Ambiguous(
                several
                    .iter()
                    .map(|(home, it)| format!("{} at {}", it.uuid, self.hypervisors[*home].uri()))
                    .collect::<Vec<_>>()
                    .join(", "),
            )),
        }
    }

    fn here_or_resting(&self, home: usize, found: &MatchedDomain) -> LocatedDomain {
        let reference = found.reference(home);
        if found.active || self.hypervisors[home].gone_off(Some(found.uuid), None).is_some() {
            LocatedDomain::Here(reference)
        } else {
            LocatedDomain::DefinedOff(reference)
        }
    }

    /// A domain that is nowhere now and that was seen to go off. Any hint that it may live elsewhere makes
    /// this none: see [`Hypervisor::gone_off`].
    fn gone(&self, wanted: &TargetQuery) -> Option<LocatedDomain> {
        self.hypervisors.iter().enumerate().find_map(|(home, it)| {
            let (uuid, name) = it.gone_off(wanted.uuid(), wanted.name())?;
            Some(LocatedDomain::PoweredOffTransient(DomainRef {
                name,
                uuid: domain_id(uuid),
                home: DomainHome::Here(home),
            }))
        })
    }

    async fn take_down(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let home = self.home(domain)?;
        let uuid = libvirt_uuid(domain.uuid);
        let order = PowerOffOrder { uuid, for_reboot, reboot_starts: self.reboot_starts };
        let progress = Arc::new(Mutex::new(PowerOffProgress::default()));
        let result: Result<Infallible, ActionError> = loop {
            if let Err(lapsed) = lease.check() {
                break Err(lapsed);
            }
            let (held, memory, mine) = (lease.clone(), Arc::clone(home), Arc::clone(&progress));
            let work = move |c: &Connection| {
                let mut progress = lock(&mine);
                ActFailure::separate(act::take_down(c, order, &held, &memory, &mut progress))
            };
            match home.call(lease.until(), work).await {
                // The order is to have it off, so it is given again over a new connection as long as the
                // client waits for it.
                Err(CallError::Lost(_)) => {}
                Err(error) => break Err(error.into()),
                Ok(result) => {
                    let DomainPowerOff { was_off, start_from } = result?;
                    let restart = start_from.map(|source| {
                        Box::new(LibvirtRestart { home: Arc::clone(home), uuid, source }) as Box<dyn Restart>
                    });
                    return Ok(PowerOffResult { was_off, restart, note: None });
                }
            }
        };
        // Not to be had: a call still has it, and may be in the middle of the action.
        let begun = progress.try_lock().map_or(true, |it| it.acted);
        match result {
            Err(error) if begun => {
                Self::hold_until_known(Arc::clone(home), uuid, lease.clone());
                Err(ActionError::Unknown(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// A hypervisor that was told to act and was then lost may still do it. Nothing that this could harm gets
    /// its turn (the lease is held) before the hypervisor has been asked again, and asked once more a little
    /// later, because it may answer before it does what it was told earlier.
    fn hold_until_known(home: Arc<Hypervisor>, uuid: Uuid, held: Lease) {
        tokio::spawn(async move {
            for pause in [EFFECT_SETTLE, Duration::ZERO] {
                while home.ask(Instant::now() + ASK_AGAIN, move |c| look(c, uuid)).await.is_err() {
                    tokio::time::sleep(EFFECT_SETTLE).await;
                }
                tokio::time::sleep(pause).await;
            }
            drop(held);
        });
    }
}

/// A domain that a hypervisor can start, or start again.
struct LibvirtRestart {
    home: Arc<Hypervisor>,
    uuid: Uuid,
    source: StartSource,
}

/// Without the domain's XML, which may contain passwords.
impl fmt::Debug for LibvirtRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.source {
            StartSource::Definition => "definition",
            StartSource::Xml(_) => "XML",
        };
        f.debug_struct("LibvirtRestart")
            .field("uuid", &self.uuid)
            .field("source", &kind)
            .finish_non_exhaustive()
    }
}

impl LibvirtRestart {
    async fn bring_up(self, lease: &Lease) -> Result<(), ActionError> {
        let Self { home, uuid, source } = self;
        let source = Arc::new(source);
        loop {
            lease.check()?;
            let (held, source) = (lease.clone(), Arc::clone(&source));
            match home
                .call(lease.until(), move |c| ActFailure::separate(act::bring_up(c, uuid, &source, &held)))
                .await
            {
                Err(CallError::Lost(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(result) => return result,
            }
        }
    }
}

impl Restart for LibvirtRestart {
    fn start<'a>(self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a,
    {
        Box::pin(self.bring_up(lease))
    }
}

impl Backend for LibvirtBackend {
    async fn locate(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        self.locate_here(target, until).await
    }

    fn may_own(&self, target: &Target) -> bool {
        let wanted = TargetQuery::new(target);
        self.hypervisors.iter().any(|it| it.remembers(|uuid, name| wanted.means(uuid, name)))
    }

    async fn status(&self, domain: &DomainRef, lease: &Lease) -> Result<PowerState, ActionError> {
        self.look(domain, lease.until()).await
    }

    async fn off(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        self.take_down(domain, for_reboot, lease).await
    }

    async fn on(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        let (home, uuid) = (Arc::clone(self.home(domain)?), libvirt_uuid(domain.uuid));
        LibvirtRestart { home, uuid, source: StartSource::Definition }.bring_up(lease).await
    }

    async fn list(&self, until: Instant) -> Result<DomainListing, ActionError> {
        let looks = self.hypervisors.iter().map(|it| it.ask(until, Connection::domains));
        let mut listing = DomainListing::default();
        for result in join_all(looks).await {
            match result {
                Ok(records) => listing.domains.extend(
                    // What moved away is for its new host to list.
                    records.into_iter().filter(|it| it.state != State::MovedAway).map(|it| ListedDomain {
                        power: if it.state == State::ShutOff { PowerState::Off } else { PowerState::On },
                        name: it.name,
                        uuid: domain_id(it.uuid),
                    }),
                ),
                Err(error) => listing.missing.push(error.to_string()),
            }
        }
        if listing.missing.len() == self.hypervisors.len() {
            return Err(ActionError::Unavailable(listing.missing.join("; ")));
        }
        merge(&mut listing.domains);
        Ok(listing)
    }

    async fn health(&self, until: Instant) -> Result<Vec<String>, ActionError> {
        let pings = self.hypervisors.iter().map(|it| it.ask(until, Connection::ping));
        let failed: Vec<String> =
            join_all(pings).await.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
        if failed.len() == self.hypervisors.len() {
            return Err(ActionError::Unavailable(failed.join("; ")));
        }
        Ok(failed)
    }
}

impl From<CallError> for ActionError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(_) => Self::Refused(error.to_string()),
            CallError::Lost(_) | CallError::Down { .. } | CallError::Slow { .. } | CallError::Busy { .. } => {
                Self::Unavailable(error.to_string())
            }
        }
    }
}
