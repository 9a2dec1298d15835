// SPDX-License-Identifier: GPL-2.0-or-later
//! The cpg backend: the domains of all hosts of a corosync cluster.
//!
//! What this host has it does itself, through the libvirt backend; what others have they are asked for. Owns the rules of
//! that: who is to be asked, when an answer would be a guess, what a domain that moved means. Who has what, as far as it is
//! known, and the way to the other hosts are [`crate::cluster`]'s. It must never believe the directory where a host can
//! be asked, and never wait longer than the lease.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use fence_wire::{Action, Target};

use super::libvirt::LibvirtBackend;
use super::{
    ActError, Backend, DomainRef, Home, Lease, Listed, Listing, LocateError, Located, Power, StartFrom,
    TakenDown, Work, merge,
};
use crate::cluster::{Changed, Cluster, Member, Place};

/// See the module's head.
pub(crate) struct CpgBackend {
    local: Arc<LibvirtBackend>,
    cluster: Arc<Cluster>,
}

impl CpgBackend {
    pub(crate) fn new(local: Arc<LibvirtBackend>, cluster: Arc<Cluster>) -> Self {
        Self { local, cluster }
    }

    async fn locate_anywhere(&self, target: &Target, until: Instant) -> Result<Located, LocateError> {
        let here = self.local.locate(target, until).await;
        if !self.cluster.is_joined() {
            return self.locate_alone(here, until).await;
        }
        let mut known = self.cluster.named(target);
        let is_here = matches!(&here, Ok(Located::Here(_)));
        if known.is_empty() && !is_here && self.cluster.has_old_hosts() {
            self.cluster.look_at_old_hosts(until).await;
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
        if let Some(Located::Here(own)) = own
            && self.local.look(own, until).await == Ok(Power::On)
        {
            return Ok(Located::Here(own.clone()));
        }
        let elsewhere = DomainRef { home: Home::Elsewhere, ..domain.clone() };
        Ok(match (self.cluster.place(&domain.uuid), own) {
            (Place::On(_) | Place::Down(_), _) => Located::Elsewhere(elsewhere),
            (Place::Lost { .. }, _) => Located::Lost(elsewhere),
            // Seen to go off here, or known to be on nowhere: this host can say so as well as any.
            (_, Some(located @ (Located::Here(_) | Located::GoneOff(_)))) => located.clone(),
            (Place::Off(_), Some(Located::Resting(own))) => Located::Here(own.clone()),
            (Place::Off(_), _) => Located::Elsewhere(elsewhere),
            (Place::NotYet(_) | Place::Doubt { .. }, _) => Located::Lost(elsewhere),
            (Place::Unknown, _) => match here {
                Ok(located) => located,
                Err(error) => return Err(error),
            },
        })
    }

    /// Corosync is not there: what runs here is here, and of all else nothing can be said.
    async fn locate_alone(
        &self,
        here: Result<Located, LocateError>,
        until: Instant,
    ) -> Result<Located, LocateError> {
        if let Ok(Located::Here(domain)) = &here
            && self.local.look(domain, until).await == Ok(Power::On)
        {
            return here;
        }
        Err(LocateError::Unavailable(match here {
            Err(error) => format!("{error}; {}", self.cluster.why_alone()),
            Ok(_) => self.cluster.why_alone(),
        }))
    }

    /// Who is to be asked now. Looks at this host's hypervisors; waits as long as what is known may become enough.
    async fn owners(&self, domain: &DomainRef, until: Instant) -> Result<Owners, ActError> {
        let target = Target::new(&domain.uuid, true).map_err(|_| ActError::Gone)?;
        loop {
            let changed = self.cluster.changed();
            let here = match self.local.locate(&target, until).await {
                Ok(Located::Here(own)) => match self.local.look(&own, until).await {
                    Ok(Power::On) => Here::On(own),
                    Ok(Power::Off) => Here::WentOff(own),
                    Err(ActError::Gone) => Here::No,
                    Err(error) => return Err(error),
                },
                Ok(Located::GoneOff(own)) => Here::WentOff(own),
                Ok(Located::Resting(own)) => Here::Resting(own),
                Ok(Located::Elsewhere(_) | Located::Lost(_)) | Err(LocateError::NotFound) => Here::No,
                Err(LocateError::Ambiguous(why)) => {
                    return Err(ActError::Refused(format!("on at several hypervisors of this host: {why}")));
                }
                Err(LocateError::Unavailable(why)) => Here::Unknown(why),
            };
            if !self.cluster.is_joined() {
                return match here {
                    Here::On(own) => Ok(Owners::one(At::Here(own), true)),
                    Here::Unknown(why) => Err(ActError::Unavailable(why)),
                    Here::WentOff(_) | Here::Resting(_) | Here::No => {
                        Err(ActError::Unavailable(self.cluster.why_alone()))
                    }
                };
            }
            let me = self.cluster.me();
            let others = |members: Vec<Member>| {
                members.into_iter().filter(|it| Some(*it) != me).map(At::There).collect::<Vec<_>>()
            };
            let mut place = self.cluster.place(&domain.uuid);
            // Old hosts' domains change in silence: nothing but a look tells that it is on at none of them.
            if !matches!(here, Here::On(_))
                && !matches!(&place, Place::On(at) if !at.iter().any(|it| self.cluster.is_old(*it)))
                && self.cluster.has_old_hosts()
            {
                let silent = self.cluster.look_at_old_hosts(until).await;
                place = self.cluster.place(&domain.uuid);
                let was_seen = matches!(here, Here::WentOff(_)) || self.cluster.was_seen_off(&domain.uuid);
                // One that need not have anything to say is as one that is not heard.
                let in_doubt = silent.iter().find(|it| !was_seen || self.cluster.has_its_own(**it));
                if let (Some(member), false) = (in_doubt, matches!(place, Place::On(_))) {
                    let name = self.cluster.name(*member);
                    return Err(ActError::Unavailable(format!("{name} does not say whether it is on there")));
                }
            }
            // The directory may lag behind this host's own hypervisors, never ahead of them.
            let last_on_here = matches!(&place, Place::On(it) if me.is_some_and(|me| it.contains(&me)));
            let is_unknown = place == Place::Unknown;
            let (mut at, is_on) = match place {
                Place::On(members) => (others(members), true),
                Place::Off(members) => (others(members), false),
                Place::Down(node) if !matches!(here, Here::On(_)) => {
                    if let Here::Unknown(why) = here {
                        return Err(ActError::Unavailable(why));
                    }
                    // It may have been started elsewhere since, where that was not heard yet.
                    let is_on = self.is_on_anywhere(domain, until).await?;
                    let why = match self.cluster.proved(node, Instant::now()).await {
                        Ok(proof) if !is_on => return Ok(Owners::Down(proof)),
                        Ok(proof) => format!("{proof}, but it is on at another host"),
                        // It came back this moment.
                        Err(why) => why,
                    };
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActError::Unavailable(why));
                }
                Place::Lost { node, why } if !matches!(here, Here::On(_)) => {
                    self.wait_for_proof(&[node], &why, until).await?;
                    continue;
                }
                Place::Doubt { nodes, why } if !matches!(here, Here::On(_) | Here::WentOff(_)) => {
                    self.wait_for_proof(&nodes, &why, until).await?;
                    continue;
                }
                Place::NotYet(why) if !matches!(here, Here::On(_)) => {
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActError::Unavailable(why));
                }
                Place::Down(_)
                | Place::Lost { .. }
                | Place::Doubt { .. }
                | Place::NotYet(_)
                | Place::Unknown => (Vec::new(), false),
            };
            let is_on_there = is_on && !at.is_empty();
            let is_old = |it: &At| matches!(it, At::There(member) if self.cluster.is_old(*member));
            if !is_on && (matches!(here, Here::WentOff(_) | Here::Resting(_)) || !at.iter().all(is_old)) {
                // They were looked at just now.
                at.retain(|it| !is_old(it));
            }
            match here {
                Here::On(own) => {
                    if !is_on {
                        at.clear();
                    }
                    at.insert(0, At::Here(own));
                    return Ok(Owners::At { at, is_on: true });
                }
                // It was on here a moment ago, and libvirt has not said yet what became of it; or this host has not heard
                // itself yet, and so not the others either.
                Here::Resting(_) | Here::No if last_on_here && !is_on_there => {
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActError::Gone);
                }
                Here::Resting(_) | Here::WentOff(_) if is_unknown => {
                    if changed.until(until).await {
                        continue;
                    }
                    return Err(ActError::Gone);
                }
                Here::WentOff(own) | Here::Resting(own) if !is_on_there => at.insert(0, At::Here(own)),
                // What is on elsewhere is not on here, whatever this host can't ask.
                Here::Unknown(why) if !is_on_there || last_on_here => return Err(ActError::Unavailable(why)),
                _ => {}
            }
            if at.is_empty() {
                return Err(ActError::Gone);
            }
            if !is_on_there {
                // It may just have come to one that is not known to have it.
                at.extend(self.others_than(&at));
            }
            return Ok(Owners::At { at, is_on: is_on_there });
        }
    }

    /// Hosts of this daemon that are not among these, nor this one.
    fn others_than(&self, at: &[At]) -> Vec<At> {
        let others = self.cluster.others().into_iter();
        others
            .filter(|it| !at.iter().any(|at| matches!(at, At::There(at) if at == it)))
            .map(At::There)
            .collect()
    }

    /// Whether it is on at a host that had not said so, now that its last one is down. Asks each.
    async fn is_on_anywhere(&self, domain: &DomainRef, until: Instant) -> Result<bool, ActError> {
        let (lease, _settled) = Lease::new(until, 0);
        for it in self.others_than(&[]) {
            match self.status_at(&it, domain, true, &lease).await {
                Ok(Power::On) => return Ok(true),
                Ok(Power::Off) | Err(ActError::Gone) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Waits until all of these nodes are known to be down.
    async fn wait_for_proof(&self, nodes: &[u32], why: &str, until: Instant) -> Result<(), ActError> {
        let changed = self.cluster.changed();
        for node in nodes {
            if let Err(reason) = self.cluster.proved(*node, until).await {
                return Err(ActError::Unavailable(format!("{why}; {reason}")));
            }
        }
        if nodes.is_empty() {
            return Err(ActError::Unavailable(why.to_owned()));
        }
        // Proved: what follows from it is looked up again, and never in a tight loop.
        changed.until(until).await;
        Ok(())
    }

    async fn status_of(&self, domain: &DomainRef, until: Instant) -> Result<Power, ActError> {
        // Nobody hangs up on a look; it ends by its time.
        let (lease, _settled) = Lease::new(until, 0);
        loop {
            let changed = self.cluster.changed();
            let (at, is_on) = match self.owners(domain, until).await? {
                Owners::Down(_) => return Ok(Power::Off),
                Owners::At { at, is_on } => (at, is_on),
            };
            let mut seen = None;
            for it in &at {
                match self.status_at(it, domain, !is_on, &lease).await {
                    Ok(Power::On) => return Ok(Power::On),
                    Ok(Power::Off) => seen = Some(Power::Off),
                    Err(ActError::Gone) => {}
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
    ) -> Result<TakenDown, ActError> {
        let mut took_down = false;
        loop {
            let changed = self.cluster.changed();
            lease.check()?;
            let (at, rests) = match self.owners(domain, lease.until()).await? {
                Owners::Down(why) => {
                    return Ok(TakenDown { was_off: !took_down, restart: None, note: Some(why) });
                }
                Owners::At { at, is_on } => (at, !is_on),
            };
            // It is on at several hosts while it migrates: off is what is off everywhere.
            for it in &at[1..] {
                match self.off_at(it, domain, false, rests, lease).await {
                    Ok(down) => took_down |= !down.was_off,
                    Err(ActError::Gone) => {}
                    Err(error) => return Err(after(took_down, error)),
                }
            }
            match self.off_at(&at[0], domain, for_reboot, rests, lease).await {
                Ok(down) => return Ok(TakenDown { was_off: down.was_off && !took_down, ..down }),
                Err(ActError::Gone) => self.again(changed, lease).await.map_err(|it| after(took_down, it))?,
                Err(error) => return Err(after(took_down, error)),
            }
        }
    }

    async fn bring_up(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActError> {
        loop {
            let changed = self.cluster.changed();
            lease.check()?;
            let (at, is_on) = match self.owners(domain, lease.until()).await? {
                Owners::Down(why) => return Err(ActError::Refused(format!("it can't be started: {why}"))),
                Owners::At { at, is_on } => (at, is_on),
            };
            // Off is what is off everywhere: else it would be on twice.
            let mut on_there = false;
            for it in &at[1..] {
                match self.status_at(it, domain, !is_on, lease).await {
                    Ok(power) => on_there |= power == Power::On,
                    Err(ActError::Gone) => {}
                    Err(error) => return Err(error),
                }
            }
            if on_there {
                return Ok(());
            }
            let started = match &at[0] {
                At::Here(own) => match self.local.on(own, StartFrom::Definition, lease).await {
                    Err(ActError::Gone) if self.went_off(own, lease.until()).await => {
                        return Err(ActError::Refused("it went off and left no definition".to_owned()));
                    }
                    other => other,
                },
                At::There(member) if self.cluster.is_old(*member) => {
                    self.cluster.old_on(*member, domain, lease).await
                }
                At::There(member) => {
                    self.cluster.ask(*member, Action::On, domain, !is_on, lease)?.done(lease).await
                }
            };
            match started {
                Err(ActError::Gone) => self.again(changed, lease).await?,
                other => return other,
            }
        }
    }

    async fn status_at(
        &self,
        at: &At,
        domain: &DomainRef,
        rests: bool,
        lease: &Lease,
    ) -> Result<Power, ActError> {
        match at {
            At::Here(own) => match self.local.look(own, lease.until()).await {
                Err(ActError::Gone) if self.went_off(own, lease.until()).await => Ok(Power::Off),
                other => other,
            },
            At::There(member) if self.cluster.is_old(*member) => {
                self.cluster.old_status(*member, domain, lease.until()).await
            }
            At::There(member) => {
                self.cluster.ask(*member, Action::Status, domain, rests, lease)?.power(lease).await
            }
        }
    }

    async fn off_at(
        &self,
        at: &At,
        domain: &DomainRef,
        for_reboot: bool,
        rests: bool,
        lease: &Lease,
    ) -> Result<TakenDown, ActError> {
        let member = match at {
            At::Here(own) => {
                let down = self.local.off(own, for_reboot, lease).await?;
                let restart = down.restart.map(|it| StartFrom::Own(own.clone(), Box::new(it)));
                return Ok(TakenDown { restart, ..down });
            }
            At::There(member) => *member,
        };
        if self.cluster.is_old(member) {
            // It would say "done" of a reboot that nobody saw go off.
            let was_off = self.cluster.old_off(member, domain, lease).await?;
            let restart = (for_reboot && !was_off).then_some(StartFrom::Old(member));
            return Ok(TakenDown {
                was_off,
                restart,
                note: Some(format!("by {}", self.cluster.name(member))),
            });
        }
        let action = if for_reboot { Action::Reboot } else { Action::Off };
        let mut asked = self.cluster.ask(member, action, domain, rests, lease)?;
        let down = asked.down(lease).await?;
        Ok(TakenDown {
            was_off: down.was_off,
            restart: down.starts.then(|| StartFrom::There(asked)),
            note: Some(format!("by {}", self.cluster.name(member))),
        })
    }

    /// It was seen to go off here, and left no definition.
    async fn went_off(&self, domain: &DomainRef, until: Instant) -> bool {
        let Ok(target) = Target::new(&domain.uuid, true) else { return false };
        matches!(self.local.locate(&target, until).await, Ok(Located::GoneOff(_)))
    }

    /// Nobody that was asked has it any more: waits for news of where it is.
    async fn again(&self, changed: Changed, lease: &Lease) -> Result<(), ActError> {
        lease.check()?;
        changed.until(lease.until()).await;
        lease.check()
    }
}

impl Backend for CpgBackend {
    fn locate<'a>(&'a self, target: &'a Target, until: Instant) -> Work<'a, Result<Located, LocateError>> {
        Box::pin(self.locate_anywhere(target, until))
    }

    fn may_have(&self, target: &Target) -> bool {
        self.local.may_have(target) || !self.cluster.named(target).is_empty()
    }

    fn status<'a>(&'a self, domain: &'a DomainRef, lease: &'a Lease) -> Work<'a, Result<Power, ActError>> {
        Box::pin(self.status_of(domain, lease.until()))
    }

    fn off<'a>(
        &'a self,
        domain: &'a DomainRef,
        for_reboot: bool,
        lease: &'a Lease,
    ) -> Work<'a, Result<TakenDown, ActError>> {
        Box::pin(self.take_down(domain, for_reboot, lease))
    }

    fn on<'a>(
        &'a self,
        domain: &'a DomainRef,
        how: StartFrom,
        lease: &'a Lease,
    ) -> Work<'a, Result<(), ActError>> {
        Box::pin(async move {
            match how {
                StartFrom::Definition => self.bring_up(domain, lease).await,
                StartFrom::Own(own, how) => self.local.on(&own, *how, lease).await,
                StartFrom::Old(member) => self.cluster.old_on(member, domain, lease).await,
                StartFrom::There(mut asked) => asked.done(lease).await,
                xml @ StartFrom::Xml(_) => self.local.on(domain, xml, lease).await,
            }
        })
    }

    fn list(&self, until: Instant) -> Work<'_, Result<Listing, ActError>> {
        Box::pin(async move {
            let own = self.local.list(until).await;
            let (others, mut missing) = self.cluster.list();
            let mut listing = match own {
                Ok(listing) => listing,
                Err(error) if others.is_empty() => return Err(error),
                Err(error) => Listing { domains: Vec::new(), missing: vec![error.to_string()] },
            };
            listing.domains.extend(others);
            listing.missing.append(&mut missing);
            // What is on somewhere is that, whatever other hosts call their definition of it.
            let on = |it: &&Listed| it.power == Power::On;
            let running: HashSet<String> =
                listing.domains.iter().filter(on).map(|it| it.uuid.clone()).collect();
            listing.domains.retain(|it| it.power == Power::On || !running.contains(&it.uuid));
            merge(&mut listing.domains);
            Ok(listing)
        })
    }

    fn health(&self, until: Instant) -> Work<'_, Result<Vec<String>, ActError>> {
        Box::pin(async move {
            let mut failed = self.local.health(until).await?;
            failed.extend(self.cluster.troubles());
            Ok(failed)
        })
    }
}

/// Who is to be asked.
enum Owners {
    /// These have it: the first does what is asked, the others make sure. Never empty.
    At { at: Vec<At>, is_on: bool },
    /// It was on at a host that is known to be down, for this reason.
    Down(String),
}

impl Owners {
    fn one(at: At, is_on: bool) -> Self {
        Self::At { at: vec![at], is_on }
    }
}

/// One that has the domain.
enum At {
    Here(DomainRef),
    There(Member),
}

/// What this host's own hypervisors have of a domain.
enum Here {
    On(DomainRef),
    WentOff(DomainRef),
    Resting(DomainRef),
    No,
    /// One can't be asked, for this reason.
    Unknown(String),
}

/// An instance was taken down already: "nothing was done" would not be true.
fn after(took_down: bool, error: ActError) -> ActError {
    match error {
        ActError::Lapsed(why) if took_down => {
            ActError::Unknown(format!("it was taken down at one host, and then {why}"))
        }
        other => other,
    }
}
