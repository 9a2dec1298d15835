// SPDX-License-Identifier: GPL-2.0-or-later
//! The libvirt backend: one or several hypervisors, their domains merged.
//!
//! Owns the connections (through [`crate::hypervisor`]) and the rules of looking: what counts as off, when a
//! look is enough, when an answer would be a guess. Runs on the runtime; everything that blocks is sent to
//! blocking threads by [`crate::hypervisor`] with a deadline.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_wire::Target;
use libvirt_host::{Connection, DomainRecord, OrdinaryConnection, State, Uuid};
use tracing::debug;
use zeroize::Zeroizing;

use self::act::{
    ActFailure, DomainReading, EndForecast, NamesakesHere, OtherEnd, PowerOffHere, PowerOffOrder, StartOrder,
    StartResult, StartSource, look,
};
use self::judged_move::{JudgedMove, MovesBefore};
use self::second_instance::{ANSWER_AGE, SecondInstance};
use self::start_check::{DownCourse, StartCheck, StartPlaces};
use self::target::{MatchedDomain, TargetQuery};
use self::unseen::PowerOffWatch;
use self::unseen_start::StartWatch;
use super::elsewhere::{DomainQuestion, OwnPlaces, PeerHosts};
use super::{Backend, BoxedFuture, PowerForecast, PowerOffResult, Restart, SLOW_BACKEND_GRACE};
use crate::hypervisor::uuid::{domain_id, libvirt_uuid};
use crate::hypervisor::{CallError, Hypervisor, Hypervisors};
use crate::intent::{OpenIntent, StartDebt};
use crate::request::lease::Lease;
use crate::util::join::join_all;
use crate::util::locks::lock;
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain,
    PowerAction, PowerState, SeenPower, TargetKind, merge,
};
use fence_core::evidence::last_seen::{LastSeen, LeaveKind};
use fence_core::evidence::namesakes::{MAX_NAMESAKES, Namesakes, ProofTurns, meant_by_name};
use fence_core::evidence::{self, DomainSite, Doubt, Finding, ProvedOff, Sight};
use fence_core::hosts::{PendingStarts, StartDecision, about_to_start, pause_after_giving_way};
use fence_core::intent::{PendingOrder, StartOwed};
use fence_core::owed_start::{PlaceMemory, StartVerdict};

mod act;
mod judged_move;
mod second_instance;
mod start_check;
mod target;
mod unseen;
mod unseen_start;

/// Pause between two looks at a domain that an earlier daemon was powering off.
const ORDER_PAUSE: Duration = Duration::from_millis(200);
/// Most times that a reboot of a domain which is off gives way to another host that is about to start it.
const REBOOT_GIVES_WAY: u32 = 3;
/// Most times that a forecast follows a domain from one hypervisor of this host to another.
const FORECAST_LOOKS: usize = 4;
/// Time to look everywhere for one domain that moved away from here, where nobody waits for the answer.
const PROOF_LIMIT: Duration = Duration::from_secs(5);
/// Beginning of the reason for an instance that stood still for a migration, where nobody knows its other
/// end.
const HANDED_OVER: &str = "what was here stood still (paused, or for a migration) and was ended; after a \
                           migration the machine may run at the other end";

/// Note of a reboot that found its domain powered off by an earlier daemon.
const TOOK_OVER: &str = "an earlier reboot had powered the domain off and could not start the domain, and \
                         this reboot has taken over the start";

/// The hypervisors of `backends { libvirt { … } }`.
pub(crate) struct LibvirtBackend {
    hypervisors: Vec<Arc<Hypervisor>>,
    reboot_starts: bool,
    /// Hosts that are asked before a domain is called off.
    others: Mutex<Vec<Arc<dyn PeerHosts>>>,
    /// Domains that this host is about to start: other hosts are not told that they are off.
    starting: Arc<Mutex<PendingStarts>>,
    /// Domains that moved away from here, and are looked for in the background.
    proofs: Mutex<ProofTurns>,
}

/// Domain that this host's hypervisors know, with what they show of it.
#[derive(Debug)]
pub(crate) struct DomainHere {
    pub(crate) domain: DomainRef,
    pub(crate) sight: Sight,
    /// A hypervisor has a definition or an instance; else only the name is remembered.
    pub(crate) is_known: bool,
}

/// Result of the search for a domain on this host.
struct SearchedDomain {
    here: DomainHere,
    /// Reasons why hypervisors could not be asked.
    silent: Vec<String>,
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
            if let Err(error) = hypervisor.first_answer().await {
                unreachable.push(error.to_string());
            }
        }
        let (others, starting, proofs) = Default::default();
        (Self { hypervisors, reboot_starts, others, starting, proofs }, unreachable)
    }

    /// Adds hosts that are asked before a domain is called off. Before the first request.
    pub(crate) fn ask_others(&self, others: Arc<dyn PeerHosts>) {
        lock(&self.others).push(others);
    }

    /// Returns the hypervisors of the configuration, in its order.
    pub(crate) fn hypervisors(&self) -> &[Arc<Hypervisor>] {
        &self.hypervisors
    }

    fn home(&self, domain: &DomainRef) -> Result<&Arc<Hypervisor>, ActionError> {
        self.home_of(domain).map(|place| &self.hypervisors[place])
    }

    /// Reads the state of a domain at the hypervisor that had it.
    pub(crate) async fn look(&self, domain: &DomainRef, until: Instant) -> Result<Sight, ActionError> {
        let (home, uuid) = (self.home(domain)?, libvirt_uuid(domain.uuid));
        let memory = Arc::clone(home);
        home.ask(until, move |c| act::sight(c, uuid, &memory).map(|(_, it)| it)).await.map_err(Into::into)
    }

    /// Looks at each hypervisor of this host.
    async fn look_at_all(&self, question: &DomainQuestion, until: Instant) -> Vec<Finding> {
        join_all(self.hypervisors.iter().map(|it| look_at_one(it, question, until))).await
    }

    /// Looks at each hypervisor of this host, and asks the other hosts: one round.
    async fn look_everywhere(&self, question: &DomainQuestion, until: Instant) -> Vec<Finding> {
        let (mut round, others) = tokio::join!(self.look_at_all(question, until), async {
            let others = lock(&self.others).clone();
            let looks = others.iter().map(|it| it.look(question, until));
            join_all(looks).await.into_iter().flatten().collect::<Vec<_>>()
        });
        if !others.is_empty() {
            self.mark_saved(question, &mut round);
        }
        round.extend(others);
        if question.by == TargetKind::Uuid {
            round.iter_mut().for_each(|it| it.namesakes.clear());
        }
        round
    }

    /// Takes a machine that was saved to a file for one that moved: another host may have restored it.
    fn mark_saved(&self, question: &DomainQuestion, found: &mut [Finding]) {
        for (finding, hypervisor) in found.iter_mut().zip(&self.hypervisors) {
            let uuid = libvirt_uuid(question.uuid);
            let saved = hypervisor.namesakes_away(&question.name, uuid, LeaveKind::Saved);
            finding.namesakes.extend(saved.into_iter().map(domain_id));
            let age = hypervisor.save_age(uuid);
            if let (Sight::Off | Sight::Absent, Some(age)) = (&finding.sight, age) {
                finding.sight = Sight::MovedAway(age);
            }
        }
    }

    /// Proves the same for a request of a client of this host: by the UUID it can ask about one domain alone.
    ///
    /// # Errors
    /// Reason why it may be on, or another one with its name.
    async fn prove_off_here(&self, question: &DomainQuestion, until: Instant) -> Result<ProvedOff, Doubt> {
        let by_uuid = |why: String| {
            format!("{why}. A request with the UUID of this one, {}, asks about no other", question.uuid)
        };
        let has_own_result = !lock(&self.others).iter().any(|it| it.shares_results());
        match self.prove_off(question, until).await {
            Err(Doubt::Namesake(why)) if has_own_result => Err(Doubt::Namesake(by_uuid(why))),
            other => other,
        }
    }

    /// Proves that a domain is off wherever it can be. If it is meant by its name, so is each other one with
    /// this name that left a place.
    ///
    /// # Errors
    /// Reason why it may be on, or another one with its name.
    pub(crate) async fn prove_off(
        &self,
        question: &DomainQuestion,
        until: Instant,
    ) -> Result<ProvedOff, Doubt> {
        let judged = self.last_seen(question.uuid);
        let rounds = self.rounds(question, until).await;
        let mut namesakes = Namesakes::of(question.uuid, question.asked);
        if question.by == TargetKind::Name {
            namesakes.hear_name(&question.name);
        }
        namesakes.hear(&rounds);
        while let Some(other) = namesakes.next() {
            let judged = self.last_seen(other);
            let of_other = self.rounds(&question.about_namesake(other), until).await;
            if let Some(proof) = namesakes.judge(other, &of_other) {
                self.forget_moves(other, proof, &judged);
            }
        }
        let proof = namesakes.prove(&rounds)?;
        self.forget_moves(question.uuid, &proof, &judged);
        Ok(proof)
    }

    /// Returns the domains that moved away from this host, with their names.
    pub(crate) fn away_from_here(&self) -> BTreeMap<DomainId, String> {
        let away = self.hypervisors.iter().flat_map(|it| it.away());
        away.map(|(uuid, name)| (domain_id(uuid), name)).collect()
    }

    /// Looks everywhere for a domain that moved away from here, where nobody waits for the answer. Returns
    /// whether no place has it, none saw it end after that, and all could be asked: then it can't be called
    /// off. The move of a domain that is off is forgotten.
    pub(crate) async fn is_out_of_sight(&self, uuid: DomainId) -> bool {
        let (judged, question) = (self.last_seen(uuid), DomainQuestion::by_uuid_alone(uuid));
        let rounds = self.rounds(&question, Instant::now() + PROOF_LIMIT).await;
        if let Ok(proof) = ProvedOff::from_rounds(question.asked, &rounds) {
            self.forget_moves(uuid, &proof, &judged);
        }
        evidence::is_out_of_sight(&rounds)
    }

    /// Returns the last thing that was seen of a domain at each hypervisor.
    fn last_seen(&self, uuid: DomainId) -> Vec<Option<LastSeen>> {
        self.hypervisors.iter().map(|it| it.last_seen(libvirt_uuid(uuid))).collect()
    }

    /// Notes the moves of a domain away from here, before looks that may prove the domain off.
    fn moves_before(&self, uuid: DomainId) -> MovesBefore {
        MovesBefore::note(self.last_seen(uuid))
    }

    /// Forgets the moves of a domain that a proof has judged, if nothing came since its looks began: the
    /// domain ended after them.
    fn forget_moves(&self, uuid: DomainId, proof: &ProvedOff, judged: &[Option<LastSeen>]) {
        for (hypervisor, judged) in self.hypervisors.iter().zip(judged) {
            let is_meant =
                |it: &DomainSite| matches!(it, DomainSite::Hypervisor(uri) if uri == hypervisor.uri());
            if let (Some(judged), true) = (judged, proof.moved_from().iter().any(is_meant)) {
                hypervisor.record_proved_off(libvirt_uuid(uuid), *judged);
            }
        }
    }

    /// Looks at the hypervisors of this host and asks the other hosts, twice where there are several places,
    /// because a domain may move between two looks.
    async fn rounds(&self, question: &DomainQuestion, until: Instant) -> Vec<Vec<Finding>> {
        let mut rounds = Vec::with_capacity(2);
        let mut question = question.clone();
        while rounds.len() < 2 {
            let round = self.look_everywhere(&question, until).await;
            let is_decided = round.len() == 1
                || round.iter().any(|it| matches!(it.sight, Sight::On | Sight::Moving | Sight::Unknown(_)));
            rounds.push(round);
            if is_decided {
                break;
            }
            question = question.next_round();
        }
        rounds
    }

    /// Returns the hypervisor of this host that has an instance by this doubt.
    fn own_instance(&self, doubt: &Doubt) -> Option<usize> {
        let (Doubt::On(place) | Doubt::Moving(place)) = doubt else { return None };
        let DomainSite::Hypervisor(uri) = place else { return None };
        self.hypervisors.iter().position(|it| it.uri() == uri)
    }

    /// Finds the one domain of this host's hypervisors that a target means, on or off. Nothing in the result
    /// speaks of other hosts. The hosts of a cluster share a result for a UUID, whatever named it: so this is
    /// a domain that is meant by its name.
    pub(crate) async fn find_here(&self, target: &Target, until: Instant) -> Result<DomainHere, LocateError> {
        let SearchedDomain { mut here, silent } = self.search(target, until).await?;
        here.domain.by = TargetKind::Name;
        match here.sight {
            Sight::On | Sight::Moving => Ok(here),
            _ if silent.is_empty() => Ok(here),
            _ => Err(LocateError::Unavailable(silent.join("; "))),
        }
    }

    /// As [`Self::find_here`], with the reasons why hypervisors could not be asked.
    async fn search(&self, target: &Target, until: Instant) -> Result<SearchedDomain, LocateError> {
        let wanted = Arc::new(TargetQuery::new(target));
        let (mut found, unavailable) = self.matches(&wanted, until).await;
        // An instance that is there to stay, else one that comes or goes, else definitions, and last those
        // that stayed behind when the machine moved.
        let rank = |it: &MatchedDomain| match it.sight {
            Sight::On => 0,
            Sight::Moving => 1,
            Sight::MovedAway(_) => 3,
            _ => 2,
        };
        let best = found.iter().map(|(_, it)| rank(it)).min().unwrap_or(3);
        // What is the UUID of one and the name of another means neither, on or off.
        if !wanted.is_shared(&found) {
            found.retain(|(_, it)| rank(it) == best);
        }
        // One that was slow comes last.
        found.sort_by_key(|(home, _)| *home);
        let reasons = unavailable.iter().map(|(_, e)| e.to_string()).collect::<Vec<_>>();
        let here = |home: usize, it: &MatchedDomain| DomainHere {
            domain: it.reference(home, wanted.kind_for(it.uuid)),
            sight: it.sight.clone(),
            is_known: true,
        };
        match &found[..] {
            [] if reasons.is_empty() => {
                let ended = self.ended(&wanted).ok_or(LocateError::NotFound);
                ended.map(|here| SearchedDomain { here, silent: reasons })
            }
            [] => Err(LocateError::Unavailable(reasons.join("; "))),
            // One UUID is one domain, wherever it is defined or on. Of several hypervisors the first in the
            // order of the configuration will do: a power-off ends what the others have, too.
            [(home, one), rest @ ..] if rest.iter().all(|(_, it)| it.uuid == one.uuid) => {
                // A name says nothing when another domain had it on a hypervisor that can't be asked now.
                let another = unavailable.iter().any(|(home, _)| {
                    let seen = |name| self.hypervisors[*home].has_seen_another(name, one.uuid);
                    wanted.other_name(one).is_some_and(seen)
                });
                if another {
                    return Err(LocateError::Unavailable(reasons.join("; ")));
                }
                Ok(SearchedDomain { here: here(*home, one), silent: reasons })
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

    /// Returns the domains that match, and the hypervisors that could not be asked.
    async fn matches(
        &self,
        wanted: &Arc<TargetQuery>,
        until: Instant,
    ) -> (Vec<(usize, MatchedDomain)>, Vec<(usize, CallError)>) {
        let (mut found, mut unavailable) = (Vec::new(), Vec::new());
        let mut asked: Vec<usize> = (0..self.hypervisors.len()).collect();
        // One that hangs must not delay what another has: with several the first round is short.
        let first = if asked.len() > 1 { until.min(Instant::now() + SLOW_BACKEND_GRACE) } else { until };
        for limit in [first, until] {
            let looks = asked.iter().map(|home| {
                let (wanted, memory) = (Arc::clone(wanted), Arc::clone(&self.hypervisors[*home]));
                self.hypervisors[*home].ask(limit, move |connection| wanted.find(connection, &memory))
            });
            let (mut silent, mut down) = (Vec::new(), Vec::new());
            for (home, result) in asked.iter().copied().zip(join_all(looks).await) {
                match result {
                    Ok(domains) => found.extend(domains.into_iter().map(|it| (home, it))),
                    Err(
                        error @ (CallError::Slow { .. } | CallError::Late { .. } | CallError::Busy { .. }),
                    ) => {
                        silent.push((home, error));
                    }
                    Err(error) => down.push((home, error)),
                }
            }
            unavailable.extend(down);
            let is_on = found.iter().any(|(_, it): &(usize, MatchedDomain)| it.sight == Sight::On);
            if is_on || silent.is_empty() || limit == until {
                unavailable.extend(silent);
                break;
            }
            asked = silent.into_iter().map(|(home, _)| home).collect();
        }
        (found, unavailable)
    }

    /// Returns the domain without a definition whose last instance ended here: its name is known for a while.
    fn ended(&self, wanted: &TargetQuery) -> Option<DomainHere> {
        self.hypervisors.iter().enumerate().find_map(|(home, it)| {
            let (uuid, name) = it.ended(wanted.uuid(), wanted.name())?;
            let domain = DomainRef {
                name,
                uuid: domain_id(uuid),
                home: DomainHome::Here(home),
                by: wanted.kind_for(uuid),
            };
            Some(DomainHere { domain, sight: Sight::Ended(it.end_age(uuid)), is_known: false })
        })
    }

    async fn locate_domain(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let SearchedDomain { here: DomainHere { domain, sight, is_known }, silent } =
            match self.search(target, until).await {
                Err(LocateError::NotFound) => return Err(self.not_found(target, until).await),
                other => other?,
            };
        Ok(match sight {
            Sight::On => LocatedDomain::Here(domain),
            Sight::Moving => LocatedDomain::Moving(domain),
            _ if !silent.is_empty() => LocatedDomain::InDoubt(domain),
            sight if self.seems_off(&domain, &sight, until).await => match is_known {
                true => LocatedDomain::Off(domain),
                false => LocatedDomain::Undefined(domain),
            },
            _ => LocatedDomain::InDoubt(domain),
        })
    }

    /// Returns why a domain that this host does not know is not found: another host has it, or may have it
    /// and can't be asked.
    async fn not_found(&self, target: &Target, until: Instant) -> LocateError {
        let others = lock(&self.others).clone();
        let wanted = TargetQuery::new(target);
        let question =
            DomainQuestion::about_unknown(wanted.uuid().map(domain_id), wanted.name().unwrap_or_default());
        let looks = others.iter().map(|it| it.look(&question, until));
        let (mut doubts, mut down, mut is_known) = (Vec::new(), Vec::new(), false);
        for it in join_all(looks).await.into_iter().flatten() {
            match it.sight {
                Sight::Unknown(why) => doubts.push(why),
                Sight::On | Sight::Moving => doubts.push(format!(
                    "this host has no definition of the domain, {} has the domain on",
                    it.place
                )),
                Sight::Down(evidence) => down.push(format!("{} is down: {evidence}", it.place)),
                Sight::Off | Sight::Ended(_) | Sight::MovedAway(_) => is_known = true,
                Sight::Absent => {}
            }
        }
        if doubts.is_empty() && !is_known && !down.is_empty() {
            doubts.push(format!(
                "no such domain on this host. {}. The only definition of the domain may be there: if the \
                 name is right, define the domain at this host too (virsh define), then ask again",
                down.join("; ")
            ));
        }
        if doubts.is_empty() { LocateError::NotFound } else { LocateError::Unavailable(doubts.join("; ")) }
    }

    /// Returns whether a domain that was found here without an instance seems to be off at every place. The
    /// action proves it, so one look is enough; and where there is no other place, that of the search.
    async fn seems_off(&self, domain: &DomainRef, sight: &Sight, until: Instant) -> bool {
        if self.hypervisors.len() == 1 && lock(&self.others).is_empty() {
            return !matches!(sight, Sight::MovedAway(_) | Sight::Unknown(_));
        }
        let question = DomainQuestion::about(domain);
        let round = self.look_everywhere(&question, until).await;
        let by_name = Some(&domain.name).filter(|_| domain.by == TargetKind::Name);
        let meant = by_name.and_then(|it| meant_by_name(domain.uuid, it));
        let others = evidence::namesakes_in(&round).into_keys().take(MAX_NAMESAKES).chain(meant);
        let asks = others.map(|other| {
            let question = question.about_namesake(other);
            async move { evidence::seems_off(&self.look_everywhere(&question, until).await) }
        });
        evidence::seems_off(&round) && join_all(asks).await.into_iter().all(|it| it)
    }

    async fn check_power(&self, domain: &DomainRef, until: Instant) -> Result<SeenPower, ActionError> {
        // One that is here needs no other look.
        if let Ok(Sight::On | Sight::Moving) = self.look(domain, until).await {
            return Ok(SeenPower::On);
        }
        match self.prove_off_here(&DomainQuestion::about(domain), until).await {
            Ok(proof) => Ok(SeenPower::Off(proof)),
            Err(Doubt::On(_)) => Ok(SeenPower::On),
            Err(Doubt::Moving(_)) => Ok(SeenPower::Moving),
            Err(doubt) => Err(doubt.into()),
        }
    }

    /// Powers a domain off wherever this host has it, until that or a look at all places proves it off.
    async fn take_down(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let (asked, question) = (Instant::now(), DomainQuestion::about(domain));
        let (mut next, mut acted, mut source) = (self.home_of(domain)?, false, None);
        let mut second = self.seek_second(&question, lease.until());
        let (mut gave_way, mut is_twice, mut other_end) = (0, false, OtherEnd::NotSought);
        let (mut course, mut silent) = (DownCourse::default(), Vec::new());
        loop {
            let order = PowerOffOrder { uuid: libvirt_uuid(domain.uuid), for_reboot, other_end };
            let down = self.take_down_at(next, order, lease, &mut course).await;
            match down.map_err(|it| after(acted, it))? {
                PowerOffHere::Ended { look, start_from } => {
                    // Before others are waited for: none of them is told that the domain stays off.
                    let announced = start_from.as_ref().map(|_| self.announce(domain));
                    let here = self.also_on(next, &question, lease.until());
                    let (also_on, ran_elsewhere) = tokio::join!(here, second.is_found());
                    if also_on.is_none() && !ran_elsewhere && !is_twice {
                        let proof = ProvedOff::from_end(asked, &look).map_err(|it| after(true, it.into()))?;
                        let order = start_from.zip(announced).map(|(source, it)| (source, None, it));
                        let restart = order.map(|it| self.restart(next, domain, it, &course));
                        return Ok(PowerOffResult::settled(proof, false, restart));
                    }
                    // It ran twice: each instance is ended, and the end of one says nothing of the other.
                    (is_twice, acted) = (true, true);
                    source = source.or_else(|| start_from.map(|it| (next, it)));
                    if let Some(home) = also_on {
                        lease.check().map_err(|it| after(acted, it))?;
                        (next, other_end) = (home, OtherEnd::NotSought);
                        continue;
                    }
                }
                PowerOffHere::MayBeHalf { only_came_in } => {
                    let found = self.seek_other_end(next, &question, only_came_in, lease.until()).await;
                    (other_end, silent) = found.map_err(|it| after(acted, it))?;
                    continue;
                }
                PowerOffHere::EndedWhileMoving { start_from, is_handed_over } => {
                    acted = true;
                    self.note_handed_over(next, order, is_handed_over, &silent)?;
                    source = start_from.map(|it| (next, it)).or(source);
                }
                PowerOffHere::NothingHere => {}
            }
            // No instance that ran here was ended: every place has to say that it has none.
            let debt = lease.trail().intent().and_then(OpenIntent::debt).filter(|_| for_reboot);
            let starts = for_reboot && (acted || self.reboot_starts || debt.is_some());
            let (announced, moves) = (starts.then(|| self.announce(domain)), self.moves_before(domain.uuid));
            match self.place_to_end(&question, lease.until()).await {
                Ok(PlaceToEnd::Nowhere(proof)) => {
                    let saved = self.discard_other_memories(next, libvirt_uuid(domain.uuid), lease).await;
                    saved.map_err(|it| after(acted, it))?;
                    let source = source.or_else(|| self.source_of_debt(debt?));
                    let (home, source) = source.unwrap_or((next, StartSource::Definition));
                    let order = announced.map(|it| (source, moves.at(home), it));
                    let restart = order.map(|it| self.restart(home, domain, it, &course));
                    let note = debt.map(|_| TOOK_OVER.to_owned());
                    return Ok(PowerOffResult { note, ..PowerOffResult::settled(proof, !acted, restart) });
                }
                Err(Doubt::Moving(DomainSite::Host(_)))
                    if announced.is_some() && gave_way < REBOOT_GIVES_WAY && lease.check().is_ok() =>
                {
                    drop(announced);
                    other_end = OtherEnd::NotSought;
                    give_way(gave_way).await;
                    gave_way += 1;
                }
                Err(doubt) => return Err(second.failure(&doubt, after(acted, doubt.clone().into()))),
                Ok(PlaceToEnd::Hypervisor(home)) => {
                    lease.check().map_err(|it| after(acted, it))?;
                    (next, other_end) = (home, OtherEnd::NotSought);
                }
            }
        }
    }

    /// Returns the place where an instance is to be ended, after none was at the hypervisor that was tried.
    ///
    /// # Errors
    /// Reason why it may be on at a place where this host can't end it.
    async fn place_to_end(&self, question: &DomainQuestion, until: Instant) -> Result<PlaceToEnd, Doubt> {
        match self.prove_off_here(question, until).await {
            Ok(proof) => Ok(PlaceToEnd::Nowhere(proof)),
            Err(doubt) => self.own_instance(&doubt).map(PlaceToEnd::Hypervisor).ok_or(doubt),
        }
    }

    /// Says what an off or a reboot would do.
    async fn forecast_off(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        until: Instant,
    ) -> Result<PowerForecast, ActionError> {
        let question = DomainQuestion::about(domain);
        let (uuid, mut next) = (libvirt_uuid(domain.uuid), self.home_of(domain)?);
        // It may move while it is looked for; an action would follow it.
        for _ in 0..FORECAST_LOOKS {
            let (home, memory) = (&self.hypervisors[next], Arc::clone(&self.hypervisors[next]));
            let here = home.ask(until, move |c| act::forecast_end(c, uuid, &memory)).await?;
            if !matches!(here, EndForecast::NothingHere) {
                may_order(home, uuid, until).await?;
            }
            match here {
                EndForecast::Ends => {
                    let at = place_of(home);
                    let mut second = self.seek_second(&question, until);
                    return Ok(match second.is_found().await {
                        false => PowerForecast::PowersOff { at },
                        true => PowerForecast::Uncertain(second.forecast(&at)),
                    });
                }
                EndForecast::MayBeHalf { only_came_in, is_half } => {
                    self.seek_other_end(next, &question, only_came_in, until).await?;
                    let at = place_of(home);
                    if !is_half && self.has_no_other(next, &question, until).await {
                        return Ok(PowerForecast::PowersOff { at });
                    }
                    return Ok(PowerForecast::Uncertain(format!(
                        "{at}: the domain is paused there, or is being migrated, or came by a migration a \
                         moment ago, and only a power-off shows whether the end of the domain can be proved"
                    )));
                }
                EndForecast::NothingHere => {}
            }
            match self.place_to_end(&question, until).await? {
                PlaceToEnd::Hypervisor(home) => next = home,
                PlaceToEnd::Nowhere(_)
                    if for_reboot && self.reboot_starts && self.is_defined(home, domain, until).await? =>
                {
                    may_order(home, uuid, until).await?;
                    return Ok(PowerForecast::Starts { at: place_of(home) });
                }
                PlaceToEnd::Nowhere(_) => return Ok(PowerForecast::StaysOff),
            }
        }
        Ok(PowerForecast::Uncertain("the domain moves between the hypervisors of this host".to_owned()))
    }

    /// Returns whether every other place shows that it has nothing of the domain.
    async fn has_no_other(&self, home: usize, question: &DomainQuestion, until: Instant) -> bool {
        let own = DomainSite::Hypervisor(self.hypervisors[home].uri().to_owned());
        let round = self.look_everywhere(question, until).await;
        let has_none =
            |it: &Finding| matches!(it.sight, Sight::Off | Sight::Absent | Sight::Ended(_) | Sight::Down(_));
        round.iter().filter(|it| it.place != own).all(|it| has_none(it) && it.namesakes.is_empty())
    }

    /// Returns whether a domain that is off can be started at this hypervisor from a definition there.
    async fn is_defined(
        &self,
        home: &Arc<Hypervisor>,
        domain: &DomainRef,
        until: Instant,
    ) -> Result<bool, ActionError> {
        let uuid = libvirt_uuid(domain.uuid);
        Ok(home.ask(until, move |c| look(c, uuid)).await? != DomainReading::Gone)
    }

    /// Says what a start would do.
    async fn forecast_on(&self, domain: &DomainRef, until: Instant) -> Result<PowerForecast, ActionError> {
        let home = self.home(domain)?;
        if self.look(domain, until).await == Ok(Sight::On) {
            return Ok(PowerForecast::StaysOn);
        }
        let looks = self.prove_off_here(&DomainQuestion::about(domain), until).await;
        match (StartDecision::after(&looks), looks) {
            (StartDecision::IsOn, _) => Ok(PowerForecast::StaysOn),
            (StartDecision::Start, _) => {
                if !self.is_defined(home, domain, until).await? {
                    return Err(ActionError::Refused(act::no_definition(home.uri())));
                }
                may_order(home, libvirt_uuid(domain.uuid), until).await?;
                Ok(PowerForecast::Starts { at: place_of(home) })
            }
            (StartDecision::GiveWay, Err(doubt)) => Ok(PowerForecast::Uncertain(doubt.to_string())),
            (StartDecision::Fail | StartDecision::GiveWay, looks) => {
                Err(looks.err().map_or(ActionError::Gone, ActionError::from))
            }
        }
    }

    /// Returns another hypervisor of this host that has an instance too: a migration whose end was not heard
    /// leaves it on at both. One that is gone is not waited for, one that is slow not for long.
    async fn also_on(&self, home: usize, question: &DomainQuestion, until: Instant) -> Option<usize> {
        let until = until.min(Instant::now() + SLOW_BACKEND_GRACE);
        let others = self.hypervisors.iter().enumerate().filter(|(place, it)| *place != home && it.is_up());
        let looks = others.map(|(place, it)| async move { (place, look_at_one(it, question, until).await) });
        let found = join_all(looks).await;
        found
            .into_iter()
            .find(|(_, it)| matches!(it.sight, Sight::On | Sight::Moving))
            .map(|(place, _)| place)
    }

    /// Asks the other hosts whether one of them has an instance too.
    fn seek_second(&self, question: &DomainQuestion, until: Instant) -> SecondInstance {
        SecondInstance::seek(lock(&self.others).clone(), question, until)
    }

    /// Discards what a managed save of a domain that is off left at the hypervisors beside this one.
    async fn discard_other_memories(
        &self,
        home: usize,
        uuid: Uuid,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        for hypervisor in self.hypervisors.iter().enumerate().filter(|(it, _)| *it != home).map(|(_, it)| it)
        {
            let (memory, held) = (Arc::clone(hypervisor), lease.clone());
            let discarded =
                hypervisor.ask(lease.until(), move |c| act::discard_saved(c, uuid, &memory, &held)).await;
            discarded.map_err(ActionError::from)??;
        }
        Ok(())
    }

    /// Tells all hosts that ask that the domain is about to be started. Before any of them is asked.
    fn announce(&self, domain: &DomainRef) -> StartAnnouncement {
        lock(&self.starting).announce(domain.uuid);
        StartAnnouncement(Arc::new(AnnouncedStart {
            starting: Arc::clone(&self.starting),
            uuid: domain.uuid,
        }))
    }

    /// Looks at all other places for the other end of a migration that has an instance here, or left it here.
    /// The second value has the reasons of places that can't tell.
    ///
    /// # Errors
    /// The instance runs, a migration brought it here or was given up a moment ago, and a place that may be
    /// the other side can't be asked. What would be ended now could never be proved to be the machine; a
    /// little later it can.
    async fn seek_other_end(
        &self,
        home: usize,
        question: &DomainQuestion,
        only_came_in: bool,
        until: Instant,
    ) -> Result<(OtherEnd, Vec<String>), ActionError> {
        let (uuid, memory) = (libvirt_uuid(question.uuid), &self.hypervisors[home]);
        let half_since = memory.half_age(uuid).and_then(|it| Instant::now().checked_sub(it));
        let mut round = self.look_everywhere(question, until).await;
        round.retain(|it| it.place != DomainSite::Hypervisor(memory.uri().to_owned()));
        let silent = round.iter().filter_map(|it| match &it.sight {
            Sight::Unknown(why) => Some(why.clone()),
            _ => None,
        });
        let silent: Vec<_> = silent.collect();
        if let (true, false, Some(left)) = (only_came_in, silent.is_empty(), memory.settles_in(uuid)) {
            return Err(ActionError::Unavailable(format!(
                "a migration brought the domain here a moment ago, or was given up here, and the domain was \
                 not powered off: that would prove nothing while the other host of the migration can't be \
                 asked. Ask again in {} s; {}",
                left.as_secs() + 1,
                silent.join("; ")
            )));
        }
        let is_half = |it: &Finding| half_since.is_some_and(|since| evidence::ended_since(it, since));
        let has_it = |it: &Finding| matches!(it.sight, Sight::On | Sight::Moving) || is_half(it);
        let is_found = round.iter().any(has_it);
        Ok((if is_found { OtherEnd::Found } else { OtherEnd::NotFound }, silent))
    }

    /// Takes note of what was ended here: an instance that stood still for a migration is the machine only if
    /// no other place can have its other half.
    fn note_handed_over(
        &self,
        home: usize,
        order: PowerOffOrder,
        is_handed_over: bool,
        silent: &[String],
    ) -> Result<(), ActionError> {
        let memory = &self.hypervisors[home];
        match order.other_end {
            _ if !is_handed_over => Ok(()),
            // The place that has the other half is asked about it from now on.
            OtherEnd::Found => {
                memory.record_end(order.uuid);
                Ok(())
            }
            OtherEnd::NotFound | OtherEnd::NotSought => {
                memory.record_move(order.uuid);
                Err(ActionError::Unknown(handed_over(order.other_end, silent)))
            }
        }
    }

    /// Returns the source of a start that an earlier daemon owes, if it is XML, and its hypervisor.
    fn source_of_debt(&self, debt: &StartDebt) -> Option<(usize, StartSource)> {
        let (StartOwed::Xml { uri }, Some(xml)) = debt.source()? else { return None };
        let home = self.hypervisors.iter().position(|it| it.uri() == uri)?;
        Some((home, StartSource::Xml(xml.clone())))
    }

    fn home_of(&self, domain: &DomainRef) -> Result<usize, ActionError> {
        match domain.home {
            DomainHome::Here(place) if place < self.hypervisors.len() => Ok(place),
            _ => Err(ActionError::Gone),
        }
    }

    fn restart<'a>(
        &'a self,
        home: usize,
        domain: &DomainRef,
        // Without a judged move: one that libvirt tells of is younger than the end that was seen here.
        (source, judged, announced): (StartSource, Option<JudgedMove>, StartAnnouncement),
        course: &DownCourse,
    ) -> Box<dyn Restart + 'a> {
        let (home, uuid) = (Arc::clone(&self.hypervisors[home]), libvirt_uuid(domain.uuid));
        let check = Some(StartCheck::after(self, (domain, home.uri()), course));
        Box::new(LibvirtRestart { home, uuid, source, judged, announced, check, has_begun: true })
    }

    /// Powers a domain off at one hypervisor.
    async fn take_down_at(
        &self,
        home: usize,
        order: PowerOffOrder,
        lease: &Lease,
        course: &mut DownCourse,
    ) -> Result<PowerOffHere, ActionError> {
        let (home, began) = (&self.hypervisors[home], Instant::now());
        let watch = PowerOffWatch::new(home, order.uuid, lease);
        let mut gone = None;
        let result: Result<Infallible, ActionError> = loop {
            if let Err(lapsed) = lease.check() {
                break Err(gone.map_or(lapsed, ActionError::from));
            }
            // The watch has the signs of the lease: a call that hangs holds up no more than its order does.
            let (held, memory, mine) = (lease.watched(), Arc::clone(home), Arc::clone(&watch.progress));
            let under_way = watch.call();
            let work = move |c: &Connection| {
                let mut progress = lock(&mine);
                let result = ActFailure::separate(act::take_down(c, order, &held, &memory, &mut progress));
                drop(under_way);
                result
            };
            match home.call(lease.until(), work).await {
                // The order is to have it off, so it is given again over a new connection as long as the
                // client waits for it.
                Err(CallError::Lost(_)) => course.was_away = true,
                // Also if libvirtd stays away for longer: a machine that is half rebooted is to come up.
                Err(error @ CallError::Down { .. }) if watch.has_begun() => {
                    (gone, course.was_away) = (Some(error), true);
                    tokio::time::sleep(ORDER_PAUSE).await;
                }
                Err(error) => break Err(error.into()),
                Ok(Ok(done)) => {
                    watch.over();
                    course.note(began);
                    if course.was_away {
                        // What happened while nobody watched is known when libvirt's list is.
                        home.watches_again(lease.until()).await;
                    }
                    return Ok(done);
                }
                // Where libvirt was told, and no end was seen, the order may still take effect.
                Ok(failed) => return failed,
            }
        };
        match result {
            Err(error) if watch.has_begun() => {
                // What a reboot owes is started when the hypervisor is back.
                lease.trail().intent().into_iter().for_each(OpenIntent::cut_off);
                let stuck = home.process_of(|it| it.uuid == order.uuid).and_then(|it| it.stuck());
                Err(ActionError::Unknown(match stuck {
                    Some(stuck) => format!("{error}; {stuck}"),
                    None => error.to_string(),
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// Starts a domain that every place shows off.
    async fn start_domain(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        let mut gave_way = 0;
        let (announced, moves) = loop {
            lease.check()?;
            if self.look(domain, lease.until()).await == Ok(Sight::On) {
                return Ok(());
            }
            // Another host that is asked for the same start sees this, or this one sees the other's.
            let announced = self.announce(domain);
            let moves = self.moves_before(domain.uuid);
            let looks = self.prove_off_here(&DomainQuestion::about(domain), lease.until()).await;
            match (StartDecision::after(&looks), looks) {
                (StartDecision::Start, _) => break (announced, moves),
                (StartDecision::IsOn, _) => return Ok(()),
                (StartDecision::GiveWay, Err(doubt)) => {
                    drop(announced);
                    let pauses = tokio::time::timeout_at(lease.until().into(), give_way(gave_way));
                    pauses.await.map_err(|_| doubt)?;
                    gave_way += 1;
                }
                (StartDecision::Fail | StartDecision::GiveWay, looks) => {
                    return looks.map(drop).map_err(Into::into);
                }
            }
        };
        let place = self.home_of(domain)?;
        let (home, uuid) = (Arc::clone(&self.hypervisors[place]), libvirt_uuid(domain.uuid));
        let (source, judged) = (StartSource::Definition, moves.at(place));
        let check = Some(StartCheck::after(self, (domain, home.uri()), &DownCourse::default()));
        LibvirtRestart { home, uuid, source, judged, announced, check, has_begun: false }
            .bring_up(lease)
            .await
    }
}

/// Announcement of a start to the other hosts. Clones are the same one; it ends with the last of them.
#[derive(Clone)]
struct StartAnnouncement(#[expect(dead_code, reason = "held for its end")] Arc<AnnouncedStart>);

struct AnnouncedStart {
    starting: Arc<Mutex<PendingStarts>>,
    uuid: DomainId,
}

impl Drop for AnnouncedStart {
    fn drop(&mut self) {
        lock(&self.starting).withdraw(self.uuid);
    }
}

/// Place where an instance is to be ended.
enum PlaceToEnd {
    /// None: no place has one.
    Nowhere(ProvedOff),
    /// This hypervisor of this host.
    Hypervisor(usize),
}

/// Says before an order whether this hypervisor would refuse each one.
async fn may_order(home: &Arc<Hypervisor>, uuid: Uuid, until: Instant) -> Result<(), ActionError> {
    home.refuses_orders(uuid, until).await.map_or(Ok(()), |why| Err(ActionError::Refused(why)))
}

/// Returns a hypervisor of this host in words.
fn place_of(home: &Hypervisor) -> String {
    let name = nix::unistd::gethostname().ok().and_then(|it| it.into_string().ok());
    format!("host {}, libvirt at {}", name.as_deref().unwrap_or("without a name"), home.uri())
}

/// Returns the reason for an instance that stood still for a migration, where nobody knows its other end, and
/// the next step. While a place can't tell, the machine may run there, and is to be started nowhere.
fn handed_over(other_end: OtherEnd, silent: &[String]) -> String {
    if !silent.is_empty() {
        return format!(
            "{HANDED_OVER}, and a place that may be this end can't tell: repair that one first, and ask \
             again. {}",
            silent.join("; ")
        );
    }
    match other_end {
        OtherEnd::NotSought => format!("{HANDED_OVER}, and the other hosts were not asked. Ask again"),
        OtherEnd::NotFound | OtherEnd::Found => format!(
            "{HANDED_OVER}, and no other host that is asked has the machine. Power the machine off there, \
             then start the domain with virsh where it belongs; and name all other hosts in `peers`"
        ),
    }
}

/// Pauses after an announcement was taken back, for a time that differs from that of other hosts and grows
/// with the times that this host gave way before.
pub(crate) async fn give_way(times: u32) {
    let drawn = RandomState::new().build_hasher().finish();
    tokio::time::sleep(pause_after_giving_way(times, drawn)).await;
}

/// A domain that a hypervisor can start, or start again.
struct LibvirtRestart<'b> {
    home: Arc<Hypervisor>,
    uuid: Uuid,
    source: StartSource,
    /// Move away from the hypervisor that the proof before the start has judged.
    judged: Option<JudgedMove>,
    /// Stands until the instance is seen, or the hypervisor refused.
    announced: StartAnnouncement,
    /// Asked right before the order; none where the start is not ordered again if libvirt goes away.
    check: Option<StartCheck<'b>>,
    /// The domain was taken down for the start, or the start was ordered: an absent libvirtd is waited for.
    has_begun: bool,
}

/// Without the domain's XML, which may contain passwords.
impl fmt::Debug for LibvirtRestart<'_> {
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

impl LibvirtRestart<'_> {
    /// Starts the domain, and reports to the intent where that failed because the hypervisor was away.
    async fn bring_up(self, lease: &Lease) -> Result<(), ActionError> {
        let started = self.order_start(lease).await;
        if let Err(ActionError::Unavailable(_) | ActionError::Lapsed(_)) = &started {
            lease.trail().intent().into_iter().for_each(OpenIntent::cut_off);
        }
        started
    }

    async fn order_start(self, lease: &Lease) -> Result<(), ActionError> {
        let Self { home, uuid, source, judged, announced, mut check, mut has_begun } = self;
        let source = Arc::new(source);
        let mut gone = None;
        lease.check()?;
        // On disk before libvirt is told: the next daemon must know of a start that waits there.
        let watch = StartWatch::new(&home, uuid, lease).await;
        loop {
            if let Err(lapsed) = lease.check() {
                return Err(gone.map_or(lapsed, ActionError::from));
            }
            if let Some(it) = judged {
                it.await_events(uuid, &home, lease.until()).await;
            }
            let order_by = match &check {
                Some(it) if gone.is_none() || home.is_up() => it.ask(lease.until()).await?,
                // It may be back with the call: what is there is watched, and an order is asked about first.
                Some(_) => Instant::now(),
                None => Instant::now() + ANSWER_AGE,
            };
            let (held, source, memory) = (lease.clone(), Arc::clone(&source), Arc::clone(&home));
            // The call may go on when nobody waits for it any more, and the start with it.
            let (announced, under_way, may_come) = (announced.clone(), watch.call(), watch.may_come());
            let start = move |c: &OrdinaryConnection| {
                let order = StartOrder { uuid, source: &source, judged, order_by };
                let started = act::bring_up(c, &order, &memory, &held, &may_come);
                drop((announced, under_way));
                ActFailure::separate(started)
            };
            match home.call_worker(lease.until(), start).await {
                Err(error) => {
                    let is_lost = matches!(error, CallError::Lost(_));
                    let is_down = has_begun && matches!(error, CallError::Down { .. });
                    let Some(it) = check.as_mut().filter(|_| is_lost || is_down) else {
                        return Err(error.into());
                    };
                    (has_begun, it.was_away, gone) = (true, true, Some(error));
                    if is_down {
                        tokio::time::sleep(ORDER_PAUSE).await;
                    }
                }
                Ok(Ok(StartResult::On)) => return Ok(()),
                Ok(Ok(StartResult::TooLate)) if check.is_some() => gone = None,
                Ok(Ok(StartResult::TooLate)) => {
                    return Err(ActionError::Unavailable("libvirt kept the start waiting".to_owned()));
                }
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

impl Restart for LibvirtRestart<'_> {
    fn start<'a>(self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a,
    {
        Box::pin(self.bring_up(lease))
    }
}

impl Backend for LibvirtBackend {
    async fn locate(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        self.locate_domain(target, until).await
    }

    fn may_own(&self, target: &Target) -> bool {
        let wanted = TargetQuery::new(target);
        self.hypervisors.iter().any(|it| it.remembers(|uuid, name| wanted.means(uuid, name)))
    }

    async fn status(&self, domain: &DomainRef, lease: &Lease) -> Result<SeenPower, ActionError> {
        self.check_power(domain, lease.until()).await
    }

    async fn off(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let down = self.take_down(domain, for_reboot, lease).await?;
        // Whoever owes an older start of it must not make that good any more.
        self.hypervisors.iter().for_each(|it| it.record_use(libvirt_uuid(domain.uuid)));
        Ok(down)
    }

    async fn on(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        self.start_domain(domain, lease).await
    }

    async fn forecast(
        &self,
        domain: &DomainRef,
        action: PowerAction,
        lease: &Lease,
    ) -> Result<PowerForecast, ActionError> {
        match action {
            PowerAction::Off | PowerAction::Reboot => {
                self.forecast_off(domain, action == PowerAction::Reboot, lease.until()).await
            }
            PowerAction::On | PowerAction::Status => self.forecast_on(domain, lease.until()).await,
        }
    }

    async fn judge_at_places(&self, domain: &DomainRef, since: Duration, until: Instant) -> StartVerdict {
        const STARTED: &str = "somebody has started the domain since, and the domain is off again";
        let uuid = libvirt_uuid(domain.uuid);
        if self.hypervisors.iter().any(|it| it.was_started(uuid, since)) {
            return StartVerdict::Overtaken(STARTED.to_owned());
        }
        let (asked, question) = (Instant::now(), DomainQuestion::about(domain));
        let ended = |it: &Finding| match (&it.place, &it.sight) {
            (DomainSite::Host(_), Sight::Ended(Some(age))) => *age < since + asked.elapsed(),
            _ => false,
        };
        if self.look_everywhere(&question, until).await.iter().any(ended) {
            return StartVerdict::Overtaken(STARTED.to_owned());
        }
        let others = lock(&self.others).clone();
        let words = join_all(others.iter().map(|it| it.recall(&question, until))).await.concat();
        StartVerdict::of(since + asked.elapsed(), &words)
    }

    async fn start_owed(
        &self,
        domain: &DomainRef,
        xml: Option<(&str, &str)>,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        let Some((uri, xml)) = xml else { return self.start_domain(domain, lease).await };
        let place = self.hypervisors.iter().position(|it| it.uri() == uri).ok_or_else(|| {
            ActionError::Refused(format!("libvirt at {uri} is not in the configuration any more"))
        })?;
        let (announced, moves) = (self.announce(domain), self.moves_before(domain.uuid));
        let _proof = self.prove_off_here(&DomainQuestion::about(domain), lease.until()).await?;
        let (home, uuid) = (Arc::clone(&self.hypervisors[place]), libvirt_uuid(domain.uuid));
        let (source, judged) = (StartSource::Xml(Zeroizing::new(xml.to_owned())), moves.at(place));
        // Whoever owes the start has just judged it, and does so again if libvirt goes away.
        LibvirtRestart { home, uuid, source, judged, announced, check: None, has_begun: false }
            .bring_up(lease)
            .await
    }

    async fn order_settles(&self, order: &PendingOrder, domain: DomainId, until: Instant) {
        if order.is_start_at_hypervisor() {
            let uuid = libvirt_uuid(domain);
            // Whichever of them had the order.
            let starts = self.hypervisors.iter().map(|it| unseen_start::over(it, uuid));
            join_all(starts).await;
            return;
        }
        let question = DomainQuestion::new(domain, domain.to_string());
        while Instant::now() < until {
            let looked = self.look_at_all(&question, until).await;
            let may_run = |it: &Finding| matches!(it.sight, Sight::On | Sight::Moving | Sight::Unknown(_));
            if !looked.iter().any(may_run) {
                return;
            }
            tokio::time::sleep(ORDER_PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    async fn list(&self, until: Instant) -> Result<DomainListing, ActionError> {
        let looks = self.hypervisors.iter().map(|it| {
            let memory = Arc::clone(it);
            it.ask(until, move |c| {
                let mut records = memory.list(c)?;
                // What moved away is for its new host to list. libvirt itself forgets it when it is started
                // anew.
                records.retain(|it| match it.state {
                    State::MovedAway => false,
                    State::ShutOff => memory.move_age(it.uuid).is_none(),
                    _ => true,
                });
                Ok(with_power(records, |off| memory.held_by_processes(off)))
            })
        });
        let mut listing = DomainListing::default();
        for result in join_all(looks).await {
            match result {
                Ok(domains) => listing.domains.extend(domains),
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

impl StartPlaces for LibvirtBackend {
    fn others(&self) -> Vec<Arc<dyn PeerHosts>> {
        lock(&self.others).clone()
    }

    fn look_beside<'a>(
        &'a self,
        home: &'a str,
        question: &'a DomainQuestion,
        until: Instant,
    ) -> BoxedFuture<'a, Vec<Finding>> {
        let beside = self.hypervisors.iter().filter(move |it| it.uri() != home);
        Box::pin(join_all(beside.map(move |it| look_at_one(it, question, until))))
    }

    fn look<'a>(&'a self, question: &'a DomainQuestion, until: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(self.look_everywhere(question, until))
    }

    fn judge<'a>(
        &'a self,
        domain: &'a DomainRef,
        since: Duration,
        until: Instant,
    ) -> BoxedFuture<'a, StartVerdict> {
        Box::pin(self.judge_at_places(domain, since, until))
    }
}

impl OwnPlaces for LibvirtBackend {
    fn look_here<'a>(
        &'a self,
        question: &'a DomainQuestion,
        until: Instant,
    ) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(async move {
            let is_starting = || lock(&self.starting).is_announced(question.uuid);
            // A start may be announced while the hypervisors are asked, or be seen after they were.
            let was_starting = is_starting();
            let mut found = self.look_at_all(question, until).await;
            self.mark_saved(question, &mut found);
            if was_starting || is_starting() {
                found.iter_mut().for_each(|it| it.sight = about_to_start(&it.sight));
            }
            found
        })
    }

    fn saved_here<'a>(
        &'a self,
        uuid: DomainId,
        until: Instant,
    ) -> BoxedFuture<'a, Result<Option<String>, String>> {
        Box::pin(async move {
            let uuid = libvirt_uuid(uuid);
            let looks = self.hypervisors.iter().map(|it| it.keeps_saved_memory(uuid, until));
            for (hypervisor, saved) in self.hypervisors.iter().zip(join_all(looks).await) {
                if saved.map_err(|it| it.to_string())? {
                    return Ok(Some(hypervisor.uri().to_owned()));
                }
            }
            Ok(None)
        })
    }

    fn recall_here(&self, uuid: DomainId) -> PlaceMemory {
        let memories = self.hypervisors.iter().map(|it| it.use_memory(libvirt_uuid(uuid)));
        let shared = |one: PlaceMemory, other: PlaceMemory| PlaceMemory {
            noted_for: one.noted_for.min(other.noted_for),
            last: one.last.into_iter().chain(other.last).min(),
        };
        memories.reduce(shared).unwrap_or(PlaceMemory { noted_for: Duration::ZERO, last: None })
    }

    fn prove_moves<'a>(&'a self, others: Vec<DomainId>) -> BoxedFuture<'a, ()> {
        Box::pin(async move {
            let turn = lock(&self.proofs).begin(others, Instant::now());
            if turn.is_empty() {
                return;
            }
            for uuid in turn {
                let question = DomainQuestion::by_uuid_alone(uuid);
                let proof = self.prove_off(&question, Instant::now() + PROOF_LIMIT).await;
                debug!(domain = %uuid, is_off = proof.is_ok(), "looked for a domain that left this host");
            }
            lock(&self.proofs).end();
        })
    }
}

/// Returns rows of a list. A machine that libvirt lost is on: whoever merges lists takes the "off" of another
/// host's definition for a machine that is left out, and its host has a process of it. `held`: says which of
/// the machines that are off by libvirt's word a process has.
fn with_power(
    records: Vec<DomainRecord>,
    held: impl FnOnce(&HashSet<Uuid>) -> HashSet<Uuid>,
) -> Vec<ListedDomain> {
    let off = records.iter().filter(|it| it.state == State::ShutOff).map(|it| it.uuid).collect();
    let held = held(&off);
    let is_off = |it: &Uuid| off.contains(it) && !held.contains(it);
    let row = |it: DomainRecord| ListedDomain {
        power: if is_off(&it.uuid) { PowerState::Off } else { PowerState::On },
        name: it.name,
        uuid: domain_id(it.uuid),
    };
    records.into_iter().map(row).collect()
}

/// Looks at one hypervisor. Another domain with the name that is on there makes it unable to tell.
async fn look_at_one(hypervisor: &Arc<Hypervisor>, question: &DomainQuestion, until: Instant) -> Finding {
    let began = Instant::now();
    let (uuid, name) = (libvirt_uuid(question.uuid), question.name.clone());
    let memory = Arc::clone(hypervisor);
    let seen = hypervisor
        .ask(until, move |c| {
            let (reading, sight) = act::sight(c, uuid, &memory)?;
            let namesakes = match reading {
                DomainReading::On { .. } => NamesakesHere::default(),
                _ => {
                    // Whether it was a managed save is known while its file is there.
                    memory.look_at_save(uuid);
                    act::namesakes(c, &name, uuid, &memory)?
                }
            };
            Ok((sight, namesakes))
        })
        .await;
    let place = DomainSite::Hypervisor(hypervisor.uri().to_owned());
    let (sight, moved) = match seen {
        Ok((_, NamesakesHere { on: Some(other), moved })) => {
            (Sight::Unknown(namesake(&place, question, other)), moved)
        }
        Ok((sight, NamesakesHere { on: None, moved })) => (sight, moved),
        Err(error) => (Sight::Unknown(error.to_string()), Vec::new()),
    };
    let namesakes = moved.into_iter().map(domain_id).collect();
    Finding { place, sight, began, ended: Instant::now(), namesakes }
}

/// Returns why a place can't tell where a domain with the name of the question is on.
fn namesake(place: &DomainSite, question: &DomainQuestion, other: Uuid) -> String {
    let name = &question.name;
    if question.is_by_name_alone() {
        return format!(
            "{place} runs {name}, with the UUID {other}: the request must reach that host (with TCP: name \
             that host in the request)"
        );
    }
    format!("{place} runs another domain with the name {name}: {other}")
}

/// Corrects an error after an instance was ended: "nothing was done" would not be true.
fn after(acted: bool, error: ActionError) -> ActionError {
    match error {
        ActionError::Lapsed(why) if acted => ActionError::Unknown(format!(
            "an instance that was paused, or that a migration had here, or one of two, was ended, and then \
             {why}"
        )),
        ActionError::Unavailable(why) if acted => ActionError::Unknown(format!(
            "an instance that was paused, or that a migration had here, or one of two, was ended; {why}"
        )),
        other => other,
    }
}

impl From<CallError> for ActionError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(_) => Self::Refused(error.to_string()),
            CallError::Lost(_)
            | CallError::Down { .. }
            | CallError::Slow { .. }
            | CallError::Late { .. }
            | CallError::Busy { .. }
            | CallError::WorkersBusy { .. } => Self::Unavailable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod truth_tests;
