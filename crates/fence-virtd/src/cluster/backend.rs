// SPDX-License-Identifier: GPL-2.0-or-later
//! The cpg backend: the domains of all hosts of a corosync cluster.
//!
//! This host acts on its own domains through the libvirt backend, and asks other hosts for work on theirs.
//! Owns the rules for that: when an answer would be a guess, and the way on after a domain moved. The rule
//! for the hosts to ask is [`super::resolve`]. The directory and the asks belong to [`super::state`] and
//! [`super::asker`]. The backend must never believe the directory where a host can be asked, and never wait
//! longer than the lease.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fence_wire::{Action, Target};

use super::asker::PendingAsk;
use super::resolve::{LocalReading, OwnerHost, OwnerStep, PublishedPlace, next_step};
use super::state::{ChangeWatch, Cluster, DomainPlace};
use crate::backend::libvirt::{DomainHere, LibvirtBackend};
use crate::backend::{Backend, BoxedFuture, PowerOffResult, Restart};
use crate::request::lease::Lease;
use fence_core::cluster::message::Member;
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain,
    PowerState, SeenPower, merge,
};
use fence_core::evidence::{DomainSite, Doubt, Finding, ProvedOff, Sight};

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
        let here = self.local.find_here(target, until).await;
        if !self.cluster.is_joined() {
            return self.locate_alone(here);
        }
        let mut known = self.cluster.named(target);
        let is_here = matches!(&here, Ok(DomainHere { sight: Sight::On | Sight::Ended, .. }));
        if known.is_empty() && !is_here && self.cluster.has_legacy_hosts() {
            self.cluster.poll_legacy_hosts(until).await;
            known = self.cluster.named(target);
        }
        match &here {
            Ok(DomainHere { domain, .. }) => {
                if known.iter().all(|it| it.uuid != domain.uuid) {
                    known.push(domain.clone());
                }
            }
            Err(error @ LocateError::Ambiguous(_)) => return Err(error.clone()),
            Err(LocateError::NotFound | LocateError::Unavailable(_)) => {}
        }
        let domain = match &known[..] {
            [] => return Err(here.err().unwrap_or(LocateError::NotFound)),
            [one] => one.clone(),
            several => {
                let all = several.iter().map(|it| self.cluster.describe(it)).collect::<Vec<_>>();
                return Err(LocateError::Ambiguous(all.join(", ")));
            }
        };
        let own = here.as_ref().ok().filter(|it| it.domain.uuid == domain.uuid);
        if let Some(DomainHere { domain, sight: Sight::On }) = own {
            return Ok(LocatedDomain::Here(domain.clone()));
        }
        let elsewhere = DomainRef { home: DomainHome::Elsewhere, ..domain.clone() };
        Ok(match (self.cluster.place(domain.uuid), own) {
            (DomainPlace::On(_) | DomainPlace::Down(_), _) => LocatedDomain::Elsewhere(elsewhere),
            (_, Some(DomainHere { domain, sight: Sight::Moving })) => LocatedDomain::Moving(domain.clone()),
            (DomainPlace::Lost { .. } | DomainPlace::NotYet(_) | DomainPlace::Doubt { .. }, _) => {
                LocatedDomain::InDoubt(elsewhere)
            }
            // Known to be on at no host: this one can answer as well as any.
            (DomainPlace::Off(_), Some(own)) => LocatedDomain::Off(own.domain.clone()),
            (DomainPlace::Off(_), None) => LocatedDomain::Elsewhere(elsewhere),
            (DomainPlace::Unknown, _) => match here {
                Ok(here) => LocatedDomain::InDoubt(here.domain),
                Err(error) => return Err(error),
            },
        })
    }

    /// Locates a domain without corosync: only domains that run here are found.
    fn locate_alone(&self, here: Result<DomainHere, LocateError>) -> Result<LocatedDomain, LocateError> {
        Err(LocateError::Unavailable(match here {
            Ok(DomainHere { domain, sight: Sight::On }) => return Ok(LocatedDomain::Here(domain)),
            Err(error) => format!("{error}; {}", self.cluster.standalone_reason()),
            Ok(_) => self.cluster.standalone_reason(),
        }))
    }

    /// Returns the hosts to ask now. Reads this host's hypervisors and the directory, and waits while a
    /// change may be enough.
    async fn resolve_owners(&self, domain: &DomainRef, until: Instant) -> Result<DomainOwners, ActionError> {
        let target = Target::new(&domain.uuid.to_string(), true).map_err(|_| ActionError::Gone)?;
        loop {
            let changed = self.cluster.changed();
            let here = self.read_here(&target, until).await?;
            if !self.cluster.is_joined() {
                return self.owners_alone(here);
            }
            let me = self.cluster.me();
            let place = PublishedPlace::of(self.read_directory(domain, &here, until).await?, me);
            let error = match next_step(here, place, |member| self.cluster.is_legacy(member)) {
                OwnerStep::AskRunning(at) => return Ok(DomainOwners::At { at, is_on: true }),
                OwnerStep::AskResting(mut at) => {
                    at.extend(self.others_than(&at));
                    return Ok(DomainOwners::At { at, is_on: false });
                }
                OwnerStep::CheckDown(node) => {
                    // The domain may have been started elsewhere since; this host need not know it yet.
                    let is_on = self.is_on_anywhere(domain, until).await?;
                    match self.evidence_of_down(node, is_on).await {
                        Ok(evidence) => return Ok(DomainOwners::Down(node, evidence)),
                        Err(why) => ActionError::Unavailable(why),
                    }
                }
                OwnerStep::AwaitEvidence { nodes, why } => {
                    self.wait_for_proof(&nodes, &why, until).await?;
                    continue;
                }
                OwnerStep::AwaitChange(error) => error,
                OwnerStep::Fail(error) => return Err(error),
            };
            if !changed.until(until).await {
                return Err(error);
            }
        }
    }

    /// Reads the domain at this host's own hypervisors.
    async fn read_here(&self, target: &Target, until: Instant) -> Result<LocalReading, ActionError> {
        Ok(match self.local.find_here(target, until).await {
            Ok(DomainHere { domain, sight }) => match sight {
                Sight::On | Sight::Moving => LocalReading::On(domain),
                Sight::Ended => LocalReading::WentOff(domain),
                Sight::Off => LocalReading::DefinedOff(domain),
                Sight::Absent | Sight::MovedAway => LocalReading::NotHere,
                Sight::Unknown(why) => LocalReading::Unavailable(why),
            },
            Err(LocateError::NotFound) => LocalReading::NotHere,
            Err(LocateError::Ambiguous(why)) => {
                return Err(ActionError::Refused(format!("on at several hypervisors of this host: {why}")));
            }
            Err(LocateError::Unavailable(why)) => LocalReading::Unavailable(why),
        })
    }

    /// Returns the hosts to ask while corosync is not there: this one, if the domain runs here.
    fn owners_alone(&self, here: LocalReading) -> Result<DomainOwners, ActionError> {
        match here {
            LocalReading::On(own) => Ok(DomainOwners::At { at: vec![OwnerHost::Here(own)], is_on: true }),
            LocalReading::Unavailable(why) => Err(ActionError::Unavailable(why)),
            LocalReading::WentOff(_) | LocalReading::DefinedOff(_) | LocalReading::NotHere => {
                Err(ActionError::Unavailable(self.cluster.standalone_reason()))
            }
        }
    }

    /// Reads the place of a domain in the directory. Legacy hosts do not publish every change: only a poll
    /// shows that the domain is on at none of them.
    async fn read_directory(
        &self,
        domain: &DomainRef,
        here: &LocalReading,
        until: Instant,
    ) -> Result<DomainPlace, ActionError> {
        let place = self.cluster.place(domain.uuid);
        if matches!(here, LocalReading::On(_))
            || matches!(&place, DomainPlace::On(at) if !at.iter().any(|it| self.cluster.is_legacy(*it)))
            || !self.cluster.has_legacy_hosts()
        {
            return Ok(place);
        }
        let silent = self.cluster.poll_legacy_hosts(until).await;
        let place = self.cluster.place(domain.uuid);
        let was_seen = matches!(here, LocalReading::WentOff(_)) || self.cluster.was_seen_off(domain.uuid);
        // A host that may have nothing to report counts as one that is not heard.
        let in_doubt = silent.iter().find(|it| !was_seen || self.cluster.has_its_own(**it));
        if let (Some(member), false) = (in_doubt, matches!(place, DomainPlace::On(_))) {
            let name = self.cluster.name(*member);
            return Err(ActionError::Unavailable(format!("{name} does not say whether it is on there")));
        }
        Ok(place)
    }

    /// Returns the evidence that this node is down, where the domain was on last. `is_on` says that the
    /// domain is on at another host.
    ///
    /// # Errors
    /// The reason why the domain may be on.
    async fn evidence_of_down(&self, node: u32, is_on: bool) -> Result<String, String> {
        // Without evidence the node came back this moment.
        let evidence = self.cluster.proved(node, Instant::now()).await?;
        if is_on { Err(format!("{evidence}, but it is on at another host")) } else { Ok(evidence) }
    }

    /// Returns the other hosts that run this daemon, without these.
    fn others_than(&self, at: &[OwnerHost]) -> Vec<OwnerHost> {
        let others = self.cluster.others().into_iter();
        others
            .filter(|it| !at.iter().any(|at| matches!(at, OwnerHost::There(at) if at == it)))
            .map(OwnerHost::There)
            .collect()
    }

    /// Asks each other host whether the domain is on there. The last host known to have it is down.
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
        // The evidence is there: the caller reads again, and never in a tight loop.
        changed.until(until).await;
        Ok(())
    }

    async fn status_of(&self, domain: &DomainRef, until: Instant) -> Result<SeenPower, ActionError> {
        // No client can end a status check early; the deadline does.
        let (lease, _settled) = Lease::new(until, 0);
        loop {
            let changed = self.cluster.changed();
            let (at, down) = match self.resolve_owners(domain, until).await? {
                DomainOwners::Down(node, _) => (self.others_than(&[]), Some(node)),
                DomainOwners::At { at, is_on: false } => (at, None),
                DomainOwners::At { at, is_on: true } => {
                    for it in &at {
                        match self.status_at(it, domain, false, &lease).await {
                            Ok(PowerState::On) => return Ok(SeenPower::On),
                            Ok(PowerState::Off) | Err(ActionError::Gone) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    // It has just left the host that had it: where it is now has to be heard.
                    self.again(changed, &lease).await?;
                    continue;
                }
            };
            return match self.prove_off(&at, down, domain, &lease).await? {
                Ok(proof) => Ok(SeenPower::Off(proof)),
                Err(Doubt::On(_) | Doubt::Moving(_)) => Ok(SeenPower::On),
                Err(doubt) => Err(doubt.into()),
            };
        }
    }

    /// Asks all of these hosts, twice, whether they have the domain. `down` is a node that is proved down.
    async fn prove_off(
        &self,
        at: &[OwnerHost],
        down: Option<u32>,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<Result<ProvedOff, Doubt>, ActionError> {
        let asked = Instant::now();
        let mut rounds = Vec::with_capacity(2);
        for _ in 0..2 {
            let mut round = Vec::with_capacity(at.len() + 1);
            for it in at {
                let began = Instant::now();
                let sight = match self.status_at(it, domain, true, lease).await {
                    Ok(PowerState::On) => Sight::On,
                    Ok(PowerState::Off) => Sight::Ended,
                    Err(ActionError::Gone) => Sight::Absent,
                    Err(error) => return Err(error),
                };
                round.push(Finding { place: self.place_of(it), sight, began, ended: Instant::now() });
            }
            let now = Instant::now();
            round.extend(down.map(|node| Finding {
                place: DomainSite::Host(format!("node {node}")),
                sight: Sight::Ended,
                began: now,
                ended: now,
            }));
            rounds.push(round);
        }
        Ok(ProvedOff::from_rounds(asked, &rounds))
    }

    fn place_of(&self, at: &OwnerHost) -> DomainSite {
        DomainSite::Host(match at {
            OwnerHost::Here(_) => "this host".to_owned(),
            OwnerHost::There(member) => self.cluster.name(*member),
        })
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
                DomainOwners::Down(node, why) => {
                    let others = self.others_than(&[]);
                    let proof = self.prove_off(&others, Some(node), domain, lease).await;
                    let proof = proof.and_then(|it| Ok(it?)).map_err(|it| after(took_down, it))?;
                    return Ok(PowerOffResult { proof, was_off: !took_down, restart: None, note: Some(why) });
                }
                DomainOwners::At { at, is_on } => (at, !is_on),
            };
            // A domain that migrates is on at several hosts. Success needs it off at all of them.
            for it in &at[1..] {
                match self.off_at(it, domain, false, rests, lease).await {
                    Ok(down) => took_down |= !down.was_off,
                    Err(ActionError::Gone) => {}
                    Err(error) => return Err(after(took_down, error)),
                }
            }
            match self.off_at(&at[0], domain, for_reboot, rests, lease).await {
                Ok(down) if down.was_off => {
                    let mut all = at;
                    all.extend(self.others_than(&all));
                    let proof = self.prove_off(&all, None, domain, lease).await;
                    let proof = proof.and_then(|it| Ok(it?)).map_err(|it| after(took_down, it))?;
                    return Ok(PowerOffResult { proof, was_off: !took_down, ..down });
                }
                Ok(down) => return Ok(down),
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
                DomainOwners::Down(_, why) => {
                    return Err(ActionError::Refused(format!("it can't be started: {why}")));
                }
                DomainOwners::At { at, is_on } => (at, is_on),
            };
            // The domain must be off at all hosts; else it would run twice.
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
                OwnerHost::Here(own) => self.local.on(own, lease).await,
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
            OwnerHost::Here(own) => match self.local.look(own, lease.until()).await? {
                Sight::On | Sight::Moving => Ok(PowerState::On),
                Sight::Off | Sight::Ended => Ok(PowerState::Off),
                Sight::Absent | Sight::MovedAway => Err(ActionError::Gone),
                Sight::Unknown(why) => Err(ActionError::Unavailable(why)),
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
        let asked = Instant::now();
        let member = match at {
            OwnerHost::Here(own) => {
                // This very host starts it again, whatever the directory says of others.
                return self.local.off(own, for_reboot, lease).await;
            }
            OwnerHost::There(member) => *member,
        };
        if self.cluster.is_legacy(member) {
            // A legacy host reports success for a reboot even if no status check showed the domain off.
            let was_off = self.cluster.legacy_off(member, domain, lease).await?;
            let proof = self.ended_at(member, asked)?;
            let restart = LegacyRestart { cluster: &self.cluster, member, domain: domain.clone() };
            let restart = (for_reboot && !was_off).then(|| Box::new(restart) as Box<dyn Restart>);
            return Ok(PowerOffResult {
                proof,
                was_off,
                restart,
                note: Some(format!("by {}", self.cluster.name(member))),
            });
        }
        let action = if for_reboot { Action::Reboot } else { Action::Off };
        let mut ask = self.cluster.ask(member, action, domain, rests, lease)?;
        let down = ask.down(lease).await?;
        Ok(PowerOffResult {
            proof: self.ended_at(member, asked)?,
            was_off: down.was_off,
            restart: down.starts.then(|| Box::new(ask) as Box<dyn Restart>),
            note: Some(format!("by {}", self.cluster.name(member))),
        })
    }

    /// Returns the proof that another host ended the instance that ran there, as it answered.
    fn ended_at(&self, member: Member, asked: Instant) -> Result<ProvedOff, ActionError> {
        let place = DomainSite::Host(self.cluster.name(member));
        let look = Finding { place, sight: Sight::Ended, began: asked, ended: Instant::now() };
        Ok(ProvedOff::from_end(asked, &look)?)
    }

    /// Waits for a change, after no asked host had the domain any more.
    async fn again(&self, changed: ChangeWatch, lease: &Lease) -> Result<(), ActionError> {
        lease.check()?;
        changed.until(lease.until()).await;
        lease.check()
    }
}

/// Domain that a legacy host powered off, and is to start again from its own definition.
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
    async fn locate(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        self.locate_anywhere(target, until).await
    }

    fn may_own(&self, target: &Target) -> bool {
        self.local.may_own(target) || !self.cluster.named(target).is_empty()
    }

    async fn status(&self, domain: &DomainRef, lease: &Lease) -> Result<SeenPower, ActionError> {
        self.status_of(domain, lease.until()).await
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
        self.bring_up(domain, lease).await
    }

    async fn list(&self, until: Instant) -> Result<DomainListing, ActionError> {
        let own = self.local.list(until).await;
        let (others, mut missing) = self.cluster.list();
        let mut listing = match own {
            Ok(listing) => listing,
            Err(error) if others.is_empty() => return Err(error),
            Err(error) => DomainListing { domains: Vec::new(), missing: vec![error.to_string()] },
        };
        listing.domains.extend(others);
        listing.missing.append(&mut missing);
        // A domain that is on at one host counts as on, whatever the others say of their definition.
        let on = |it: &&ListedDomain| it.power == PowerState::On;
        let running: HashSet<DomainId> = listing.domains.iter().filter(on).map(|it| it.uuid).collect();
        listing.domains.retain(|it| it.power == PowerState::On || !running.contains(&it.uuid));
        merge(&mut listing.domains);
        Ok(listing)
    }

    async fn health(&self, until: Instant) -> Result<Vec<String>, ActionError> {
        let mut failed = self.local.health(until).await?;
        failed.extend(self.cluster.health_problems());
        Ok(failed)
    }
}

/// Hosts that are to be asked.
enum DomainOwners {
    /// These hosts have the domain: the first does the action, the others confirm. Never empty.
    At { at: Vec<OwnerHost>, is_on: bool },
    /// None: the domain was on at this node, which is known to be down, for this reason.
    Down(u32, String),
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
