// SPDX-License-Identifier: GPL-2.0-or-later
//! The cpg backend: the domains of all hosts of a corosync cluster.
//!
//! This host acts on its own domains through the libvirt backend, and asks other hosts for work on theirs.
//! Owns the rules for that: which hosts are asked, when an answer would be a guess, what happens when a
//! domain moved. The directory and the asks belong to [`super::state`] and [`super::asker`]. It must never
//! believe the directory where a host can be asked, and never wait longer than the lease.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fence_wire::{Action, Target};

use super::asker::PendingAsk;
use super::state::{ChangeWatch, Cluster, DomainPlace};
use crate::backend::libvirt::LibvirtBackend;
use crate::backend::{Backend, BoxedFuture, PowerOffResult, Restart};
use crate::request::lease::Lease;
use fence_core::cluster::message::Member;
use fence_core::domain::{
    ActionError, DomainHome, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain, PowerState,
    merge,
};

/// Backend for the domains of all hosts of a corosync cluster.
pub(crate) struct CpgBackend {
    local: Arc<LibvirtBackend>,
    cluster: Arc<Cluster>,
}

impl CpgBackend {
    pub(crate) fn new(local: Arc<LibvirtBackend>, cluster: Arc<Cluster>) -> Self {
        Self { local, cluster }
    }

    async fn locate_anywhere(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let here = self.local.locate(target, until).await;
        if !self.cluster.is_joined() {
            return self.locate_alone(here, until).await;
        }
        let mut known = self.cluster.named(target);
        let is_here = matches!(&here, Ok(LocatedDomain::Here(_)));
        if known.is_empty() && !is_here && self.cluster.has_legacy_hosts() {
            self.cluster.poll_legacy_hosts(until).await;
            known = self.cluster.named(target);
        }
        match &here {
            Ok(located) => {
                let domain = located.domain();
                let by_uuid = known.iter().any(|it| target.as_str().eq_ignore_ascii_case(&it.uuid));
                // By UUID at another host comes before by name here.
                if !by_uuid && known.iter().all(|it| it.uuid != domain.uuid) {
                    known.push(domain.clone());
                }
            }
            Err(LocateError::Ambiguous(_)) => return here,
            Err(LocateError::NotFound | LocateError::Unavailable(_)) => {}
        }
        let domain = match &known[..] {
            [] => return here.and(Err(LocateError::NotFound)),
            [one] => one.clone(),
            several => {
                let all = several.iter().map(|it| self.cluster.describe(it)).collect::<Vec<_>>();
                return Err(LocateError::Ambiguous(all.join(", ")));
            }
        };
        let own = here.as_ref().ok().filter(|it| it.domain().uuid == domain.uuid);
        if let Some(LocatedDomain::Here(own)) = own
            && self.local.look(own, until).await == Ok(PowerState::On)
        {
            return Ok(LocatedDomain::Here(own.clone()));
        }
        let elsewhere = DomainRef { home: DomainHome::Elsewhere, ..domain.clone() };
        Ok(match (self.cluster.place(&domain.uuid), own) {
            (DomainPlace::On(_) | DomainPlace::Down(_), _) => LocatedDomain::Elsewhere(elsewhere),
            (DomainPlace::Lost { .. }, _) => LocatedDomain::OnLostHost(elsewhere),
            // Seen to go off here, or known to be on nowhere: this host can say so as well as any.
            (_, Some(located @ (LocatedDomain::Here(_) | LocatedDomain::PoweredOffTransient(_)))) => {
                located.clone()
            }
            (DomainPlace::Off(_), Some(LocatedDomain::DefinedOff(own))) => LocatedDomain::Here(own.clone()),
            (DomainPlace::Off(_), _) => LocatedDomain::Elsewhere(elsewhere),
            (DomainPlace::NotYet(_) | DomainPlace::Doubt { .. }, _) => LocatedDomain::OnLostHost(elsewhere),
            (DomainPlace::Unknown, _) => match here {
                Ok(located) => located,
                Err(error) => return Err(error),
            },
        })
    }

    /// Locates a domain without corosync: only domains that run here are found.
    async fn locate_alone(
        &self,
        here: Result<LocatedDomain, LocateError>,
        until: Instant,
    ) -> Result<LocatedDomain, LocateError> {
        if let Ok(LocatedDomain::Here(domain)) = &here
            && self.local.look(domain, until).await == Ok(PowerState::On)
        {
            return here;
        }
        Err(LocateError::Unavailable(match here {
            Err(error) => format!("{error}; {}", self.cluster.standalone_reason()),
            Ok(_) => self.cluster.standalone_reason(),
        }))
    }

    /// Finds the hosts to ask now. Reads this host's hypervisors, and waits while later news may be enough.
    async fn resolve_owners(&self, domain: &DomainRef, until: Instant) -> Result<DomainOwners, ActionError> {
        let target = Target::new(&domain.uuid, true).map_err(|_| ActionError::Gone)?;
        loop {
            let changed = self.cluster.changed();
            let here = match self.local.locate(&target, until).await {
                Ok(LocatedDomain::Here(own)) => match self.local.look(&own, until).await {
                    Ok(PowerState::On) => LocalReading::On(own),
                    Ok(PowerState::Off) => LocalReading::WentOff(own),
                    Err(ActionError::Gone) => LocalReading::No,
                    Err(error) => return Err(error),
                },
                Ok(LocatedDomain::PoweredOffTransient(own)) => LocalReading::WentOff(own),
                Ok(LocatedDomain::DefinedOff(own)) => LocalReading::Resting(own),
                Ok(LocatedDomain::Elsewhere(_) | LocatedDomain::OnLostHost(_))
                | Err(LocateError::NotFound) => LocalReading::No,
                Err(LocateError::Ambiguous(why)) => {
                    return Err(ActionError::Refused(format!(
                        "on at several hypervisors of this host: {why}"
                    )));
                }
                Err(LocateError::Unavailable(why)) => LocalReading::Unknown(why),
            };
            if !self.cluster.is_joined() {
                return match here {
                    LocalReading::On(own) => Ok(DomainOwners::one(OwnerHost::Here(own), true)),
                    LocalReading::Unknown(why) => Err(ActionError::Unavailable(why)),
                    LocalReading::WentOff(_) | LocalReading::Resting(_) | LocalReading::No => {
                        Err(ActionError::Unavailable(self.cluster.standalone_reason()))
                    }
                };
            }
            let me = self.cluster.me();
            let others = |members: Vec<Member>| {
                members.into_iter().filter(|it| Some(*it) != me).map(OwnerHost::There).collect::<Vec<_>>()
            };
            let mut place = self.cluster.place(&domain.uuid);
            // Old hosts' domains change in silence: nothing but a look tells that it is on at none of them.
            if !matches!(here, LocalReading::On(_))
                && !matches!(&place, DomainPlace::On(at) if !at.iter().any(|it| self.cluster.is_legacy(*it)))
                && self.cluster.has_legacy_hosts()
            {
                let silent = self.cluster.poll_legacy_hosts(until).await;
                place = self.cluster.place(&domain.uuid);
                let was_seen =
                    matches!(here, LocalReading::WentOff(_)) || self.cluster.was_seen_off(&domain.uuid);
                // One that need not have anything to say is as one that is not heard.
                let in_doubt = silent.iter().find(|it| !was_seen || self.cluster.has_its_own(**it));
                if let (Some(member), false) = (in_doubt, matches!(place, DomainPlace::On(_))) {
                    let name = self.cluster.name(*member);
                    return Err(ActionError::Unavailable(format!(
                        "{name} does not say whether it is on there"
                    )));
                }
            }
            // The directory may lag behind this host's own hypervisors, never ahead of them.
            let last_on_here = matches!(&place, DomainPlace::On(it) if me.is_some_and(|me| it.contains(&me)));
            let is_unknown = place == DomainPlace::Unknown;
            let (mut at, is_on) = match place {
                DomainPlace::On(members) => (others(members), true),
                DomainPlace::Off(members) => (others(members), false),
                DomainPlace::Down(node) if !matches!(here, LocalReading::On(_)) => {
                    if let LocalReading::Unknown(why) = here {
                        return Err(ActionError::Unavailable(why));
                    }
                    // It may have been started elsewhere since, where that was not heard yet.
                    let is_on = self.is_on_anywhere(domain, until).await?;
                    let why = match self.cluster.proved(node, Instant::now()).await {
                        Ok(proof) if !is_on => return Ok(DomainOwners::Down(proof)),
                        Ok(proof) => format!("{proof}, but it is on at another host"),
                        // It came back this moment.
                        Err(why) => why,
                    };
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActionError::Unavailable(why));
                }
                DomainPlace::Lost { node, why } if !matches!(here, LocalReading::On(_)) => {
                    self.wait_for_proof(&[node], &why, until).await?;
                    continue;
                }
                DomainPlace::Doubt { nodes, why }
                    if !matches!(here, LocalReading::On(_) | LocalReading::WentOff(_)) =>
                {
                    self.wait_for_proof(&nodes, &why, until).await?;
                    continue;
                }
                DomainPlace::NotYet(why) if !matches!(here, LocalReading::On(_)) => {
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActionError::Unavailable(why));
                }
                DomainPlace::Down(_)
                | DomainPlace::Lost { .. }
                | DomainPlace::Doubt { .. }
                | DomainPlace::NotYet(_)
                | DomainPlace::Unknown => (Vec::new(), false),
            };
            let is_on_there = is_on && !at.is_empty();
            let is_legacy =
                |it: &OwnerHost| matches!(it, OwnerHost::There(member) if self.cluster.is_legacy(*member));
            if !is_on
                && (matches!(here, LocalReading::WentOff(_) | LocalReading::Resting(_))
                    || !at.iter().all(is_legacy))
            {
                // They were looked at just now.
                at.retain(|it| !is_legacy(it));
            }
            match here {
                LocalReading::On(own) => {
                    if !is_on {
                        at.clear();
                    }
                    at.insert(0, OwnerHost::Here(own));
                    return Ok(DomainOwners::At { at, is_on: true });
                }
                // It was on here a moment ago, and libvirt has not said yet what became of it; or this host
                // has not heard itself yet, and so not the others either.
                LocalReading::Resting(_) | LocalReading::No if last_on_here && !is_on_there => {
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActionError::Gone);
                }
                LocalReading::Resting(_) | LocalReading::WentOff(_) if is_unknown => {
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActionError::Gone);
                }
                LocalReading::WentOff(own) | LocalReading::Resting(own) if !is_on_there => {
                    at.insert(0, OwnerHost::Here(own));
                }
                // What is on elsewhere is not on here, whatever this host can't ask.
                LocalReading::Unknown(why) if !is_on_there || last_on_here => {
                    return Err(ActionError::Unavailable(why));
                }
                _ => {}
            }
            if at.is_empty() {
                return Err(ActionError::Gone);
            }
            if !is_on_there {
                // It may just have come to one that is not known to have it.
                at.extend(self.others_than(&at));
            }
            return Ok(DomainOwners::At { at, is_on: is_on_there });
        }
    }

    /// Returns the other hosts that run this daemon, without these.
    fn others_than(&self, at: &[OwnerHost]) -> Vec<OwnerHost> {
        let others = self.cluster.others().into_iter();
        others
            .filter(|it| !at.iter().any(|at| matches!(at, OwnerHost::There(at) if at == it)))
            .map(OwnerHost::There)
            .collect()
    }

    /// Asks each other host whether the domain is on there, now that the last host known to have it is down.
    async fn is_on_anywhere(&self, domain: &DomainRef, until: Instant) -> Result<bool, ActionError> {
        let (lease, _settled) = Lease::new(until, 0);
        for it in self.others_than(&[]) {
            match self.status_at(&it, domain, true, &lease).await {
                Ok(PowerState::On) => return Ok(true),
                Ok(PowerState::Off) | Err(ActionError::Gone) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Waits for the evidence that all of these nodes are down.
    async fn wait_for_proof(&self, nodes: &[u32], why: &str, until: Instant) -> Result<(), ActionError> {
        let changed = self.cluster.changed();
        for node in nodes {
            if let Err(reason) = self.cluster.proved(*node, until).await {
                return Err(ActionError::Unavailable(format!("{why}; {reason}")));
            }
        }
        if nodes.is_empty() {
            return Err(ActionError::Unavailable(why.to_owned()));
        }
        // Proved: what follows from it is looked up again, and never in a tight loop.
        changed.until(until).await;
        Ok(())
    }

    async fn status_of(&self, domain: &DomainRef, until: Instant) -> Result<PowerState, ActionError> {
        // Nobody hangs up on a look; it ends by its time.
        let (lease, _settled) = Lease::new(until, 0);
        loop {
            let changed = self.cluster.changed();
            let (at, is_on) = match self.resolve_owners(domain, until).await? {
                DomainOwners::Down(_) => return Ok(PowerState::Off),
                DomainOwners::At { at, is_on } => (at, is_on),
            };
            let mut seen = None;
            for it in &at {
                match self.status_at(it, domain, !is_on, &lease).await {
                    Ok(PowerState::On) => return Ok(PowerState::On),
                    Ok(PowerState::Off) => seen = Some(PowerState::Off),
                    Err(ActionError::Gone) => {}
                    Err(error) => return Err(error),
                }
            }
            match seen {
                Some(power) => return Ok(power),
                None => self.again(changed, &lease).await?,
            }
        }
    }

    async fn take_down(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let mut took_down = false;
        loop {
            let changed = self.cluster.changed();
            lease.check()?;
            let (at, rests) = match self.resolve_owners(domain, lease.until()).await? {
                DomainOwners::Down(why) => {
                    return Ok(PowerOffResult { was_off: !took_down, restart: None, note: Some(why) });
                }
                DomainOwners::At { at, is_on } => (at, !is_on),
            };
            // It is on at several hosts while it migrates: off is what is off everywhere.
            for it in &at[1..] {
                match self.off_at(it, domain, false, rests, lease).await {
                    Ok(down) => took_down |= !down.was_off,
                    Err(ActionError::Gone) => {}
                    Err(error) => return Err(after(took_down, error)),
                }
            }
            match self.off_at(&at[0], domain, for_reboot, rests, lease).await {
                Ok(down) => return Ok(PowerOffResult { was_off: down.was_off && !took_down, ..down }),
                Err(ActionError::Gone) => {
                    self.again(changed, lease).await.map_err(|it| after(took_down, it))?;
                }
                Err(error) => return Err(after(took_down, error)),
            }
        }
    }

    async fn bring_up(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        loop {
            let changed = self.cluster.changed();
            lease.check()?;
            let (at, is_on) = match self.resolve_owners(domain, lease.until()).await? {
                DomainOwners::Down(why) => {
                    return Err(ActionError::Refused(format!("it can't be started: {why}")));
                }
                DomainOwners::At { at, is_on } => (at, is_on),
            };
            // Off is what is off everywhere: else it would be on twice.
            let mut on_there = false;
            for it in &at[1..] {
                match self.status_at(it, domain, !is_on, lease).await {
                    Ok(power) => on_there |= power == PowerState::On,
                    Err(ActionError::Gone) => {}
                    Err(error) => return Err(error),
                }
            }
            if on_there {
                return Ok(());
            }
            let started = match &at[0] {
                OwnerHost::Here(own) => match self.local.on(own, lease).await {
                    Err(ActionError::Gone) if self.went_off(own, lease.until()).await => {
                        return Err(ActionError::Refused("it went off and left no definition".to_owned()));
                    }
                    other => other,
                },
                OwnerHost::There(member) if self.cluster.is_legacy(*member) => {
                    self.cluster.legacy_on(*member, domain, lease).await
                }
                OwnerHost::There(member) => {
                    self.cluster.ask(*member, Action::On, domain, !is_on, lease)?.done(lease).await
                }
            };
            match started {
                Err(ActionError::Gone) => self.again(changed, lease).await?,
                other => return other,
            }
        }
    }

    async fn status_at(
        &self,
        at: &OwnerHost,
        domain: &DomainRef,
        rests: bool,
        lease: &Lease,
    ) -> Result<PowerState, ActionError> {
        match at {
            OwnerHost::Here(own) => match self.local.look(own, lease.until()).await {
                Err(ActionError::Gone) if self.went_off(own, lease.until()).await => Ok(PowerState::Off),
                other => other,
            },
            OwnerHost::There(member) if self.cluster.is_legacy(*member) => {
                self.cluster.legacy_status(*member, domain, lease.until()).await
            }
            OwnerHost::There(member) => {
                self.cluster.ask(*member, Action::Status, domain, rests, lease)?.power(lease).await
            }
        }
    }

    async fn off_at(
        &self,
        at: &OwnerHost,
        domain: &DomainRef,
        for_reboot: bool,
        rests: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let member = match at {
            OwnerHost::Here(own) => {
                // Started again at this very host, whatever is known of others.
                return self.local.off(own, for_reboot, lease).await;
            }
            OwnerHost::There(member) => *member,
        };
        if self.cluster.is_legacy(member) {
            // It would say "done" of a reboot that nobody saw go off.
            let was_off = self.cluster.legacy_off(member, domain, lease).await?;
            let restart = LegacyRestart { cluster: &self.cluster, member, domain: domain.clone() };
            let restart = (for_reboot && !was_off).then(|| Box::new(restart) as Box<dyn Restart>);
            return Ok(PowerOffResult {
                was_off,
                restart,
                note: Some(format!("by {}", self.cluster.name(member))),
            });
        }
        let action = if for_reboot { Action::Reboot } else { Action::Off };
        let mut asked = self.cluster.ask(member, action, domain, rests, lease)?;
        let down = asked.down(lease).await?;
        Ok(PowerOffResult {
            was_off: down.was_off,
            restart: down.starts.then(|| Box::new(asked) as Box<dyn Restart>),
            note: Some(format!("by {}", self.cluster.name(member))),
        })
    }

    /// Returns true if the domain was seen to go off here and left no definition.
    async fn went_off(&self, domain: &DomainRef, until: Instant) -> bool {
        let Ok(target) = Target::new(&domain.uuid, true) else { return false };
        matches!(self.local.locate(&target, until).await, Ok(LocatedDomain::PoweredOffTransient(_)))
    }

    /// Waits for a change, after no asked host had the domain any more.
    async fn again(&self, changed: ChangeWatch, lease: &Lease) -> Result<(), ActionError> {
        lease.check()?;
        changed.until(lease.until()).await;
        lease.check()
    }
}

/// A domain that a legacy host powered off, and is to start again from what it has.
struct LegacyRestart<'a> {
    cluster: &'a Cluster,
    member: Member,
    domain: DomainRef,
}

impl fmt::Debug for LegacyRestart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LegacyRestart").field("member", &self.member).finish_non_exhaustive()
    }
}

impl Restart for LegacyRestart<'_> {
    fn start<'a>(self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a,
    {
        Box::pin(async move { self.cluster.legacy_on(self.member, &self.domain, lease).await })
    }
}

/// Another host that powered a domain off starts it again by itself.
impl Restart for PendingAsk {
    fn start<'a>(mut self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a,
    {
        Box::pin(async move { self.done(lease).await })
    }
}

impl Backend for CpgBackend {
    fn locate<'a>(
        &'a self,
        target: &'a Target,
        until: Instant,
    ) -> BoxedFuture<'a, Result<LocatedDomain, LocateError>> {
        Box::pin(self.locate_anywhere(target, until))
    }

    fn may_own(&self, target: &Target) -> bool {
        self.local.may_own(target) || !self.cluster.named(target).is_empty()
    }

    fn status<'a>(
        &'a self,
        domain: &'a DomainRef,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<PowerState, ActionError>> {
        Box::pin(self.status_of(domain, lease.until()))
    }

    fn off<'b, 'a: 'b>(
        &'a self,
        domain: &'b DomainRef,
        for_reboot: bool,
        lease: &'b Lease,
    ) -> BoxedFuture<'b, Result<PowerOffResult<'a>, ActionError>> {
        Box::pin(self.take_down(domain, for_reboot, lease))
    }

    fn on<'a>(&'a self, domain: &'a DomainRef, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>> {
        Box::pin(self.bring_up(domain, lease))
    }

    fn list(&self, until: Instant) -> BoxedFuture<'_, Result<DomainListing, ActionError>> {
        Box::pin(async move {
            let own = self.local.list(until).await;
            let (others, mut missing) = self.cluster.list();
            let mut listing = match own {
                Ok(listing) => listing,
                Err(error) if others.is_empty() => return Err(error),
                Err(error) => DomainListing { domains: Vec::new(), missing: vec![error.to_string()] },
            };
            listing.domains.extend(others);
            listing.missing.append(&mut missing);
            // What is on somewhere is that, whatever other hosts call their definition of it.
            let on = |it: &&ListedDomain| it.power == PowerState::On;
            let running: HashSet<String> =
                listing.domains.iter().filter(on).map(|it| it.uuid.clone()).collect();
            listing.domains.retain(|it| it.power == PowerState::On || !running.contains(&it.uuid));
            merge(&mut listing.domains);
            Ok(listing)
        })
    }

    fn health(&self, until: Instant) -> BoxedFuture<'_, Result<Vec<String>, ActionError>> {
        Box::pin(async move {
            let mut failed = self.local.health(until).await?;
            failed.extend(self.cluster.health_problems());
            Ok(failed)
        })
    }
}

/// Hosts that are to be asked.
enum DomainOwners {
    /// These hosts have the domain: the first does the action, the others confirm. Never empty.
    At { at: Vec<OwnerHost>, is_on: bool },
    /// None: the domain was on at a host that is known to be down, for this reason.
    Down(String),
}

impl DomainOwners {
    fn one(at: OwnerHost, is_on: bool) -> Self {
        Self::At { at: vec![at], is_on }
    }
}

/// Host that has the domain.
enum OwnerHost {
    Here(DomainRef),
    There(Member),
}

/// Reading of a domain at this host's own hypervisors.
enum LocalReading {
    On(DomainRef),
    WentOff(DomainRef),
    Resting(DomainRef),
    No,
    /// A hypervisor cannot be asked, for this reason.
    Unknown(String),
}

/// Corrects an error after an instance was taken down: "nothing was done" would not be true.
fn after(took_down: bool, error: ActionError) -> ActionError {
    match error {
        ActionError::Lapsed(why) if took_down => {
            ActionError::Unknown(format!("it was taken down at one host, and then {why}"))
        }
        other => other,
    }
}
