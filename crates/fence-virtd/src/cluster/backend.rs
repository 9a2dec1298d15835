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
use std::time::{Duration, Instant};

use fence_wire::{Action, Target};
use tracing::debug;

use super::asker::PendingAsk;
use super::resolve::{LocalReading, OwnerHost, OwnerStep, PublishedPlace, next_step};
use super::state::{ASK_PAUSES, Cluster, DomainOutlook, DomainPlace, UnheardNodes};
use crate::backend::elsewhere::DomainQuestion;
use crate::backend::libvirt::{DomainHere, LibvirtBackend, give_way};
use crate::backend::{Backend, BoxedFuture, PowerForecast, PowerOffResult, Restart};
use crate::request::lease::Lease;
use crate::util::backoff::Backoff;
use crate::util::join::join_all;
use fence_core::cluster::message::{AskForecast, Member};
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain,
    PowerAction, PowerState, SeenPower, merge,
};
use fence_core::evidence::{DomainSite, Doubt, Finding, ProvedOff, Sight};
use fence_core::intent::PendingOrder;
use fence_core::owed_start::StartVerdict;

/// Forecast for a domain that was on at another host a moment ago.
const JUST_GONE: &str = "the domain has just gone off, or to another host";

/// Refusal to start a domain that no node has defined.
const NO_DEFINITION: &str = "the domain is off, and no node that is heard has a definition of the domain. \
                             Start the domain at a host that has one: virsh list --all on each host";

/// Backend for the domains of all hosts of a corosync cluster.
pub(crate) struct CpgBackend {
    local: Arc<LibvirtBackend>,
    cluster: Arc<Cluster>,
}

impl CpgBackend {
    pub(crate) fn new(local: Arc<LibvirtBackend>, cluster: Arc<Cluster>) -> Self {
        Self { local, cluster }
    }

    /// Finds a domain. "No such domain" is said only when every node has said what it has; that is waited
    /// for while it is likely to come.
    async fn locate_anywhere(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let mut pauses = ASK_PAUSES;
        loop {
            let known = self.cluster.named(target);
            let error = match self.locate_now(target, until).await {
                Err(error @ LocateError::NotFound) => error,
                other => return other,
            };
            let Some(UnheardNodes { why, patience }) = self.cluster.unheard() else { return Err(error) };
            let is_news = || self.cluster.unheard().is_none() || self.cluster.named(target) != known;
            if !self.cluster.pause_or_news(&mut pauses, until.min(patience), is_news).await {
                return Err(LocateError::Unavailable(format!("no host that is heard has the domain; {why}")));
            }
        }
    }

    async fn locate_now(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let here = self.local.find_here(target, until).await;
        if !self.cluster.is_joined() {
            return self.locate_alone(here);
        }
        // A name that is known of an ended domain alone may be that of another one by now.
        let is_enough = match &here {
            Ok(DomainHere { sight: Sight::On, .. }) => true,
            Ok(DomainHere { sight: Sight::Ended(_), .. }) => false,
            _ => !self.cluster.named(target).is_empty(),
        };
        if !is_enough && self.cluster.has_legacy_hosts() {
            self.cluster.poll_legacy_hosts(until).await;
        }
        let known = match &here {
            Ok(here) => self.cluster.named_with(target, here),
            Err(error @ LocateError::Ambiguous(_)) => return Err(error.clone()),
            Err(LocateError::NotFound | LocateError::Unavailable(_)) => self.cluster.named(target),
        };
        let domain = match &known[..] {
            [] => return Err(here.err().unwrap_or(LocateError::NotFound)),
            [one] => one.clone(),
            _ => self.tell_apart(target, known, until).await?,
        };
        let own = here.as_ref().ok().filter(|it| it.domain.uuid == domain.uuid);
        if let Some(DomainHere { domain, sight: Sight::On, .. }) = own {
            return Ok(LocatedDomain::Here(domain.clone()));
        }
        let elsewhere = DomainRef { home: DomainHome::Elsewhere, ..domain.clone() };
        Ok(match (self.cluster.place(domain.uuid), own) {
            (DomainPlace::On(_), _) => LocatedDomain::Elsewhere(elsewhere),
            (_, Some(DomainHere { domain, sight: Sight::Moving, .. })) => {
                LocatedDomain::Moving(domain.clone())
            }
            (DomainPlace::Lost { .. } | DomainPlace::NotYet(_) | DomainPlace::Doubt(_), _) => {
                LocatedDomain::InDoubt(elsewhere)
            }
            // It may be at a host that is no node.
            (DomainPlace::Off(at), Some(DomainHere { domain, sight: Sight::MovedAway(_), .. }))
                if at.iter().all(|it| Some(*it) == self.cluster.me()) =>
            {
                LocatedDomain::InDoubt(domain.clone())
            }
            // Known to be on at no host: this one can answer as well as any.
            (DomainPlace::Off(_), Some(own)) => LocatedDomain::Off(own.domain.clone()),
            (DomainPlace::Off(_), None) => LocatedDomain::Elsewhere(elsewhere),
            (DomainPlace::Unknown, Some(own)) => LocatedDomain::InDoubt(own.domain.clone()),
            (DomainPlace::Unknown, None) => return Err(here.err().unwrap_or(LocateError::NotFound)),
        })
    }

    /// Returns the one of several domains that a name means, if each other one was last at a node that is not
    /// heard, and is proved off for this request. A machine that was made anew has its old name.
    async fn tell_apart(
        &self,
        target: &Target,
        named: Vec<DomainRef>,
        until: Instant,
    ) -> Result<DomainRef, LocateError> {
        let all = named.iter().map(|it| self.cluster.describe(it)).collect::<Vec<_>>().join(", ");
        let Some((one, rivals)) = self.cluster.split_rivals(target, named) else {
            return Err(LocateError::Ambiguous(all));
        };
        let proofs = rivals.iter().map(|rival| async {
            // By the UUID alone: the other one with the name may be on.
            let proof = self.local.prove_off(&DomainQuestion::by_uuid_alone(rival.uuid), until).await;
            proof.map_err(|doubt| LocateError::Ambiguous(format!("{all}; of {}: {doubt}", rival.uuid)))
        });
        for (proof, rival) in join_all(proofs).await.into_iter().zip(&rivals) {
            let evidence = proof?.down().unwrap_or_default();
            debug!(name = %one.name, rival = %rival.uuid, %evidence, "another domain with this name is off");
        }
        Ok(one)
    }

    /// Locates a domain without corosync: only domains that run here are found.
    fn locate_alone(&self, here: Result<DomainHere, LocateError>) -> Result<LocatedDomain, LocateError> {
        Err(LocateError::Unavailable(match here {
            Ok(DomainHere { domain, sight: Sight::On, .. }) => return Ok(LocatedDomain::Here(domain)),
            Err(error) => format!("{error}; {}", self.cluster.standalone_reason()),
            Ok(_) => self.cluster.standalone_reason(),
        }))
    }

    /// Waits until the host that has the domain answers, or until the domain is proved off: a request that
    /// can only wait for these takes no turn.
    async fn until_ready(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        loop {
            let known = self.cluster.outlook(domain.uuid);
            let owners = self.resolve_owners(domain, lease.until()).await?;
            if let DomainOwners::At { at, is_on: true } = &owners {
                for host in at.iter().filter(|it| self.is_asked_first(it)) {
                    match self.status_at(host, domain, lease).await {
                        Ok(_) | Err(ActionError::Gone) => {}
                        Err(error) => return Err(error),
                    }
                }
                return Ok(());
            }
            let news = async {
                self.cluster.outlook_changes(domain.uuid, &known, lease.until()).await;
                if Instant::now() >= lease.until() {
                    std::future::pending::<()>().await;
                }
            };
            let proof = tokio::select! {
                biased;
                proof = self.prove_off(&owners, domain, lease) => proof,
                () = news => continue,
            };
            return match proof {
                Ok(_) | Err(OffDoubt::OnElsewhere(..)) => Ok(()),
                Err(OffDoubt::CantTell(error)) => Err(error),
            };
        }
    }

    /// Returns whether a host is asked, before the turn, if it answers at all. C daemons miss replies.
    fn is_asked_first(&self, host: &OwnerHost) -> bool {
        matches!(host, OwnerHost::There(member) if !self.cluster.is_legacy(*member))
    }

    /// Returns the hosts to ask now, as [`Self::resolve_owners`], while anybody waits for that.
    async fn owners_for(&self, domain: &DomainRef, lease: &Lease) -> Result<DomainOwners, ActionError> {
        tokio::select! {
            biased;
            owners = self.resolve_owners(domain, lease.until()) => owners,
            _ = lease.ended() => Err(lease.check().err().unwrap_or(ActionError::Gone)),
        }
    }

    /// Returns the hosts to ask now. Reads this host's hypervisors and the directory, and waits while a
    /// change may be enough.
    async fn resolve_owners(&self, domain: &DomainRef, until: Instant) -> Result<DomainOwners, ActionError> {
        let target = Target::new(&domain.uuid.to_string(), true).map_err(|_| ActionError::Gone)?;
        let mut pauses = ASK_PAUSES;
        loop {
            let known = self.cluster.outlook(domain.uuid);
            let is_news = || self.cluster.outlook(domain.uuid) != known;
            let here = self.read_here(&target, until).await?;
            if !self.cluster.is_joined() {
                return self.owners_alone(here);
            }
            let me = self.cluster.me();
            let has_ended = |it| self.cluster.has_ended_at(it, domain.uuid);
            let place = PublishedPlace::of(self.read_directory(domain, &here, until).await?, me);
            let error = match next_step(here, place, |it| self.cluster.is_legacy(it), has_ended) {
                OwnerStep::AskRunning(at) => return Ok(DomainOwners::At { at, is_on: true }),
                OwnerStep::AskResting(at) => {
                    if self.is_daemon_awaited(&mut pauses, until, is_news).await {
                        continue;
                    }
                    return Ok(DomainOwners::At { at, is_on: false });
                }
                OwnerStep::AskLost { node, why } => {
                    if self.is_daemon_awaited(&mut pauses, until, is_news).await {
                        continue;
                    }
                    return Ok(DomainOwners::Lost { node, why });
                }
                OwnerStep::AwaitChange(error) => error,
                OwnerStep::Fail(error) => return Err(error),
            };
            if !self.cluster.pause_or_news(&mut pauses, until, is_news).await {
                return Err(error);
            }
        }
    }

    /// Waits for news where a daemon that ended a moment ago is expected back: without it the domain
    /// can't be called off. Returns false, at once, where none is.
    async fn is_daemon_awaited(
        &self,
        pauses: &mut Backoff,
        until: Instant,
        is_news: impl Fn() -> bool,
    ) -> bool {
        match self.cluster.daemon_expected_by() {
            Some(by) => self.cluster.pause_or_news(pauses, until.min(by), is_news).await,
            None => false,
        }
    }

    /// Reads the domain at this host's own hypervisors.
    async fn read_here(&self, target: &Target, until: Instant) -> Result<LocalReading, ActionError> {
        let found = self.local.find_here(target, until).await;
        self.cluster.check_found(target.as_str(), &found);
        Ok(match found {
            Ok(DomainHere { domain, sight, is_known }) => match sight {
                Sight::On | Sight::Moving => LocalReading::On(domain),
                Sight::Ended(_) => LocalReading::WentOff { domain, is_defined: is_known },
                Sight::Off | Sight::MovedAway(_) => LocalReading::DefinedOff(domain),
                Sight::Absent => LocalReading::NotHere,
                Sight::Unknown(why) | Sight::Down(why) => LocalReading::Unavailable(why),
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
            LocalReading::WentOff { .. } | LocalReading::DefinedOff(_) | LocalReading::NotHere => {
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
        // A host that may have nothing to report counts as one that is not heard.
        if let (Some(member), false) = (silent.first(), matches!(place, DomainPlace::On(_))) {
            let why = format!("{} does not say whether the domain is on there", self.cluster.name(*member));
            // It has just joined: a C daemon publishes at once, and one of ours is in the first group first.
            return match self.cluster.is_word_expected(*member) {
                true => Ok(DomainPlace::NotYet(why)),
                false => Err(ActionError::Unavailable(why)),
            };
        }
        Ok(place)
    }

    async fn status_of(&self, domain: &DomainRef, until: Instant) -> Result<SeenPower, ActionError> {
        // No client can end a status check early; the deadline does.
        let (lease, _settled) = Lease::new(until, 0);
        let mut pauses = ASK_PAUSES;
        loop {
            let known = self.cluster.outlook(domain.uuid);
            let owners = self.resolve_owners(domain, until).await?;
            let has_left = match &owners {
                DomainOwners::At { at, is_on: true } => {
                    if self.is_on_at(at, domain, &lease).await? {
                        return Ok(SeenPower::On);
                    }
                    true
                }
                DomainOwners::At { is_on: false, .. } | DomainOwners::Lost { .. } => false,
            };
            // It has just left the host that had it: where it is now may be heard in a moment.
            let proof = tokio::select! {
                biased;
                proof = self.prove_off(&owners, domain, &lease) => proof,
                () = self.cluster.outlook_changes(domain.uuid, &known, until), if has_left => continue,
            };
            match proof {
                Ok(proof) => return Ok(SeenPower::Off(proof)),
                Err(OffDoubt::OnElsewhere(_, IsSeen::On)) => return Ok(SeenPower::On),
                Err(OffDoubt::OnElsewhere(_, IsSeen::Moving)) => return Ok(SeenPower::Moving),
                Err(OffDoubt::CantTell(error)) if has_left => {
                    self.again(&mut pauses, domain, &known, &lease).await.map_err(|_| error)?;
                }
                Err(OffDoubt::CantTell(error)) => return Err(error),
            }
        }
    }

    /// Asks these hosts whether the domain is on at one of them.
    async fn is_on_at(
        &self,
        at: &[OwnerHost],
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<bool, ActionError> {
        for it in at {
            match self.status_at(it, domain, lease).await {
                Ok(PowerState::On) => return Ok(true),
                Ok(PowerState::Off) | Err(ActionError::Gone) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Looks at all nodes, for the proof that the domain is off. That may take long where a host has to be
    /// proved down: it ends with the lease, so that a later request is not joined to what nobody waits for.
    async fn prove_off(
        &self,
        owners: &DomainOwners,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<ProvedOff, OffDoubt> {
        let question = DomainQuestion::under(lease, domain);
        let proof = tokio::select! {
            biased;
            proof = self.local.prove_off(&question, lease.until()) => proof,
            _ = lease.ended() => {
                let error = lease.check().err().unwrap_or(ActionError::Gone);
                return Err(OffDoubt::CantTell(error));
            }
        };
        match proof {
            Ok(proof) => Ok(proof),
            Err(Doubt::On(place)) => Err(OffDoubt::OnElsewhere(place, IsSeen::On)),
            Err(Doubt::Moving(place)) => Err(OffDoubt::OnElsewhere(place, IsSeen::Moving)),
            Err(doubt) => Err(OffDoubt::CantTell(ActionError::Unavailable(match owners {
                DomainOwners::Lost { why, .. } => format!("{why}; {doubt}"),
                DomainOwners::At { .. } => doubt.to_string(),
            }))),
        }
    }

    async fn take_down(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let (mut took_down, mut starts_at, mut pauses) = (false, None, ASK_PAUSES);
        loop {
            let known = self.cluster.outlook(domain.uuid);
            lease.check().map_err(|it| after(took_down, starts_at.as_ref(), it))?;
            let owners = self
                .owners_for(domain, lease)
                .await
                .map_err(|it| after(took_down, starts_at.as_ref(), it))?;
            let done = match &owners {
                DomainOwners::At { at, is_on: true } => {
                    self.off_where_on((&owners, at), domain, for_reboot, &mut took_down, lease).await
                }
                DomainOwners::At { is_on: false, .. } | DomainOwners::Lost { .. } => {
                    self.off_already(&owners, domain, for_reboot, &mut starts_at, lease).await
                }
            };
            let error = match done {
                Ok(down) => return Ok(PowerOffResult { was_off: down.was_off && !took_down, ..down }),
                Err(ActionError::Gone) => match self.again(&mut pauses, domain, &known, lease).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            return Err(after(took_down, starts_at.as_ref(), error));
        }
    }

    /// Powers the domain off at all of these hosts, where it is on: at several while it migrates.
    async fn off_where_on(
        &self,
        (owners, at): (&DomainOwners, &[OwnerHost]),
        domain: &DomainRef,
        for_reboot: bool,
        took_down: &mut bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        for it in &at[1..] {
            match self.off_at(it, domain, false, false, lease).await {
                Ok(down) => *took_down |= !down.was_off,
                Err(ActionError::Gone) => {}
                Err(error) => return Err(error),
            }
        }
        let down = self.off_at(&at[0], domain, for_reboot, false, lease).await?;
        if !down.was_off {
            return Ok(down);
        }
        // It went off by itself, or went away.
        match self.prove_off(owners, domain, lease).await {
            Ok(proof) => Ok(PowerOffResult { proof, ..down }),
            Err(OffDoubt::OnElsewhere(..)) => Err(ActionError::Gone),
            Err(OffDoubt::CantTell(error)) => Err(error),
        }
    }

    /// Proves that a domain is off which is on at no host that is heard.
    async fn off_already(
        &self,
        owners: &DomainOwners,
        domain: &DomainRef,
        for_reboot: bool,
        starts_at: &mut Option<DomainSite>,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let proof = match self.prove_off(owners, domain, lease).await {
            Ok(proof) => proof,
            // This host is about to hear where.
            Err(OffDoubt::OnElsewhere(place, _)) => {
                *starts_at = Some(place);
                return Err(ActionError::Gone);
            }
            Err(OffDoubt::CantTell(error)) => return Err(error),
        };
        match owners {
            // Its configuration may say that a reboot starts it.
            DomainOwners::At { at, .. } if for_reboot => {
                self.discard_saved_memories(&at[1..], domain, lease).await?;
                let down = self.off_at(&at[0], domain, true, true, lease).await?;
                Ok(PowerOffResult { proof, ..down })
            }
            DomainOwners::At { at, .. } => {
                self.discard_saved_memories(at, domain, lease).await?;
                Ok(PowerOffResult { proof, was_off: true, restart: None, note: None, may_come_again: false })
            }
            DomainOwners::Lost { node, .. } => {
                let note = Some(format!("{} is down", self.cluster.node_name(*node)));
                Ok(PowerOffResult { proof, was_off: true, restart: None, note, may_come_again: false })
            }
        }
    }

    /// Has a domain that is off taken down once more at each of these hosts: each removes the memory that a
    /// managed save left there, or says that it can't.
    async fn discard_saved_memories(
        &self,
        at: &[OwnerHost],
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        for host in at {
            if matches!(host, OwnerHost::There(member) if self.cluster.is_legacy(*member)) {
                continue;
            }
            match self.off_at(host, domain, false, true, lease).await {
                Ok(_) | Err(ActionError::Gone) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn bring_up(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        let (mut pauses, mut gave_way) = (ASK_PAUSES, 0);
        loop {
            let known = self.cluster.outlook(domain.uuid);
            lease.check()?;
            let owners = self.owners_for(domain, lease).await?;
            let started = match &owners {
                DomainOwners::At { at, is_on: true } if self.is_on_at(at, domain, lease).await? => {
                    return Ok(());
                }
                // It has just gone off, or away.
                DomainOwners::At { is_on: true, .. } => Err(ActionError::Gone),
                DomainOwners::At { is_on: false, .. } | DomainOwners::Lost { .. } => {
                    // It must be off at all nodes; else it would run twice.
                    match (self.prove_off(&owners, domain, lease).await, &owners) {
                        (Err(OffDoubt::OnElsewhere(_, IsSeen::On)), _) => return Ok(()),
                        // What somebody is about to do is no success: it may come to nothing.
                        (Err(OffDoubt::OnElsewhere(place, IsSeen::Moving)), _) => {
                            self.gives_way(gave_way, place, lease).await?;
                            gave_way += 1;
                            continue;
                        }
                        (Err(OffDoubt::CantTell(error)), _) => return Err(error),
                        (Ok(_), DomainOwners::At { at, .. }) => self.start_at(&at[0], domain, lease).await,
                        (Ok(_), DomainOwners::Lost { node, .. }) => return Err(self.not_startable(*node)),
                    }
                }
            };
            match started {
                Err(ActionError::Gone) => self.again(&mut pauses, domain, &known, lease).await?,
                other => return other,
            }
        }
    }

    /// Starts a domain that is off at all nodes.
    async fn start_at(&self, at: &OwnerHost, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        match at {
            OwnerHost::Here(own) => self.local.on(own, lease).await,
            OwnerHost::There(member) if self.cluster.is_legacy(*member) => {
                self.cluster.legacy_on(*member, domain, lease).await
            }
            OwnerHost::There(member) => {
                self.cluster.ask(*member, Action::On, domain, true, lease)?.done(lease).await
            }
        }
    }

    async fn status_at(
        &self,
        at: &OwnerHost,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<PowerState, ActionError> {
        match at {
            OwnerHost::Here(own) => match self.local.look(own, lease.until()).await? {
                Sight::On | Sight::Moving => Ok(PowerState::On),
                Sight::Off | Sight::Ended(_) => Ok(PowerState::Off),
                Sight::Absent | Sight::MovedAway(_) => Err(ActionError::Gone),
                Sight::Unknown(why) | Sight::Down(why) => Err(ActionError::Unavailable(why)),
            },
            OwnerHost::There(member) if self.cluster.is_legacy(*member) => {
                self.cluster.legacy_status(*member, domain, lease.until()).await
            }
            OwnerHost::There(member) => {
                self.cluster.ask(*member, Action::Status, domain, false, lease)?.power(lease).await
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
                may_come_again: false,
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
            may_come_again: false,
        })
    }

    /// Asks the host that has the domain on what an action would do there: it may be less sure than this one.
    async fn forecast_at(
        &self,
        member: Member,
        domain: &DomainRef,
        action: PowerAction,
        lease: &Lease,
    ) -> Result<PowerForecast, ActionError> {
        let at = self.cluster.name(member);
        match self.cluster.ask_forecast(member, action, domain, lease)?.forecast(lease).await {
            Ok(Some(AskForecast::Uncertain(why))) => Ok(PowerForecast::Uncertain(format!("{at}: {why}"))),
            Ok(Some(AskForecast::Fails(why))) => Err(ActionError::Refused(format!("{at}: {why}"))),
            Ok(Some(AskForecast::Done) | None) => Ok(PowerForecast::PowersOff { at }),
            Err(ActionError::Gone) => Ok(PowerForecast::Uncertain(JUST_GONE.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Says what an action would do to a domain that is on at no host that is heard.
    async fn forecast_of_off(
        &self,
        owners: &DomainOwners,
        domain: &DomainRef,
        action: PowerAction,
        lease: &Lease,
    ) -> Result<PowerForecast, ActionError> {
        let proved = self.prove_off(owners, domain, lease).await;
        match (proved, action, owners) {
            (Err(OffDoubt::CantTell(error)), _, _) => Err(error),
            (Err(OffDoubt::OnElsewhere(_, IsSeen::On)), PowerAction::On, _) => Ok(PowerForecast::StaysOn),
            (Err(OffDoubt::OnElsewhere(place, _)), _, _) => {
                Ok(PowerForecast::Uncertain(format!("{place} has the domain on, or is about to start it")))
            }
            (Ok(_), PowerAction::On, DomainOwners::Lost { node, .. }) => Err(self.not_startable(*node)),
            (Ok(_), PowerAction::On, DomainOwners::At { at, .. }) => match &at[0] {
                OwnerHost::Here(own) => self.local.forecast(own, action, lease).await,
                OwnerHost::There(member) if self.cluster.has_ended_at(*member, domain.uuid) => {
                    Err(ActionError::Refused(NO_DEFINITION.to_owned()))
                }
                there @ OwnerHost::There(_) => Ok(PowerForecast::Starts { at: self.owner_name(there) }),
            },
            (Ok(_), PowerAction::Reboot, DomainOwners::At { at, .. }) => match &at[0] {
                OwnerHost::Here(own) => self.local.forecast(own, action, lease).await,
                // Its configuration may say that a reboot starts it.
                there @ OwnerHost::There(_) => Ok(PowerForecast::Uncertain(format!(
                    "the domain is off, and {} says only then whether a reboot starts it",
                    self.owner_name(there)
                ))),
            },
            (Ok(_), _, _) => Ok(PowerForecast::StaysOff),
        }
    }

    fn owner_name(&self, owner: &OwnerHost) -> String {
        match owner {
            OwnerHost::Here(_) => "this host".to_owned(),
            OwnerHost::There(member) => self.cluster.name(*member),
        }
    }

    /// Returns the refusal to start a domain whose host is down.
    fn not_startable(&self, node: u32) -> ActionError {
        let name = self.cluster.node_name(node);
        ActionError::Refused(format!(
            "the domain can't be started: {name} is down, where the domain was on last, and may start the \
             domain itself when that node is back. If the domain is to run: be sure that {name} stays off, \
             and start the domain with virsh at a node that is heard"
        ))
    }

    /// Returns the proof that another host ended the instance that ran there, as it answered.
    fn ended_at(&self, member: Member, asked: Instant) -> Result<ProvedOff, ActionError> {
        let place = DomainSite::Host(self.cluster.name(member));
        let look = Finding::without_namesakes(place, Sight::Ended(None), asked, Instant::now());
        Ok(ProvedOff::from_end(asked, &look)?)
    }

    /// Pauses before a domain is looked at again that comes or goes, or that this place is about to start.
    async fn gives_way(&self, times: u32, place: DomainSite, lease: &Lease) -> Result<(), ActionError> {
        let pause = tokio::time::timeout_at(lease.until().into(), give_way(times));
        pause.await.map_err(|_| Doubt::Moving(place).into())
    }

    /// Waits before hosts are asked once more, after none that was asked had the domain any more: `known` was
    /// known before that.
    async fn again(
        &self,
        pauses: &mut Backoff,
        domain: &DomainRef,
        known: &DomainOutlook,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        lease.check()?;
        let is_news = || self.cluster.outlook(domain.uuid) != *known;
        tokio::select! {
            _ = self.cluster.pause_or_news(pauses, lease.until(), is_news) => {}
            _ = lease.ended() => {}
        }
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

    async fn ready(&self, located: &LocatedDomain, lease: &Lease) -> Result<(), ActionError> {
        match located {
            // It can be ended here, whatever becomes of other instances.
            LocatedDomain::Here(_) => Ok(()),
            other => self.until_ready(other.domain(), lease).await,
        }
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

    async fn forecast(
        &self,
        domain: &DomainRef,
        action: PowerAction,
        lease: &Lease,
    ) -> Result<PowerForecast, ActionError> {
        let owners = self.resolve_owners(domain, lease.until()).await?;
        let is_on = match &owners {
            DomainOwners::At { at, is_on: true } => self.is_on_at(at, domain, lease).await?,
            DomainOwners::At { .. } | DomainOwners::Lost { .. } => false,
        };
        match (&owners, action) {
            (DomainOwners::At { is_on: true, .. }, _) if !is_on => {
                Ok(PowerForecast::Uncertain(JUST_GONE.to_owned()))
            }
            (DomainOwners::At { is_on: true, .. }, PowerAction::On | PowerAction::Status) => {
                Ok(PowerForecast::StaysOn)
            }
            (DomainOwners::At { at, is_on: true }, PowerAction::Off | PowerAction::Reboot) => match &at[0] {
                OwnerHost::Here(own) if at.len() == 1 => self.local.forecast(own, action, lease).await,
                OwnerHost::There(member) if at.len() == 1 && !self.cluster.is_legacy(*member) => {
                    self.forecast_at(*member, domain, action, lease).await
                }
                first => Ok(PowerForecast::PowersOff { at: self.owner_name(first) }),
            },
            (owners, action) => self.forecast_of_off(owners, domain, action, lease).await,
        }
    }

    async fn judge_at_places(&self, domain: &DomainRef, since: Duration, until: Instant) -> StartVerdict {
        Backend::judge_at_places(&*self.local, domain, since, until).await
    }

    fn judge_by_requests(&self, domain: &DomainRef, since: Duration) -> StartVerdict {
        self.cluster.judge_owed_start(domain.uuid, since)
    }

    async fn start_owed(
        &self,
        domain: &DomainRef,
        xml: Option<(&str, &str)>,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        if xml.is_none() {
            return self.bring_up(domain, lease).await;
        }
        Backend::start_owed(&*self.local, domain, xml, lease).await
    }

    async fn order_settles(&self, order: &PendingOrder, domain: DomainId, until: Instant) {
        Backend::order_settles(&*self.local, order, domain, until).await;
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
    /// These hosts have the domain: the first does the action. Never empty.
    At { at: Vec<OwnerHost>, is_on: bool },
    /// None: the domain was on last at this node, which is not heard.
    Lost { node: u32, why: String },
}

/// Sight of a domain that is not off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum IsSeen {
    /// The domain is on.
    On,
    /// The domain comes or goes, or is about to be started.
    Moving,
}

/// Reason why a domain can't be called off.
enum OffDoubt {
    /// This place has it on, or it comes or goes there.
    OnElsewhere(DomainSite, IsSeen),
    CantTell(ActionError),
}

/// Corrects the error of a request whose time is up. After an instance was taken down, "nothing was done"
/// would not be true. A place that had or was about to start the domain all the time is named.
fn after(took_down: bool, starts_at: Option<&DomainSite>, error: ActionError) -> ActionError {
    match (error, starts_at) {
        (ActionError::Lapsed(why), Some(place)) if !took_down => ActionError::Unavailable(format!(
            "{place} has the domain on, or is about to start the domain after a reboot, and {why}"
        )),
        (error, _) => after_power_off(took_down, error),
    }
}

/// Corrects an error after an instance was taken down.
fn after_power_off(took_down: bool, error: ActionError) -> ActionError {
    match error {
        ActionError::Lapsed(why) if took_down => {
            ActionError::Unknown(format!("the domain was taken down at one host, and then {why}"))
        }
        other => other,
    }
}
