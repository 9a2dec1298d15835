// SPDX-License-Identifier: GPL-2.0-or-later
//! This host's claims: when a request may run, decided together with all hosts of the cluster.
//!
//! Owns this host's claims, its work for other hosts under their claims, and its replica of the common
//! arbiter ([`super::replica`]). Pure: events of corosync and of this host's requests go in, [`ClaimEffect`]s
//! come out. It must never read a clock, wait, log, or let anything decide that is not the same on every
//! host: hash maps have no place here. The caller keeps it behind a lock and hands in everything in
//! corosync's order. It carries the effects out, in order, before it releases the lock. So messages are sent
//! in the order in which they were decided.
//!
//! # One order
//! All members of a group see its messages and its membership changes in one order. Each replica is built
//! only from messages delivered since the last change, so replicas that saw the same messages are the same. A
//! request runs when the replica of *its own* host grants it; the other replicas decide the same, and no host
//! asks for it. No time is used here: a claim whose deadline passed, or whose client left, is withdrawn by
//! its host. Where that host stands still the others say so, when an order of it can take effect no more
//! ([`super::claim_ends`]).
//!
//! # Life of a claim
//! [`ClusterArbiter::claim`] sends `claim` to all members and waits. When that message is delivered, the
//! claim takes its place in the replicas. After [`ClaimEffect::Run`] the client is asked for its proof, and
//! [`ClusterArbiter::proved`] says whether the grant still holds. Then come the work,
//! [`ClusterArbiter::seen_off`] and [`ClusterArbiter::finished`]. Or [`ClusterArbiter::withdraw`], at any
//! time: nothing was done. A withdrawal may cross the grant; the host itself does not run the request, and
//! the others receive the withdrawal.
//!
//! Another host that carries a claim's work out holds the claim too, from its `taken` to its `reply`. A claim
//! in flight is over when no host holds it any more. It is not over when its asker gives up or is gone.
//!
//! # When the membership changes
//! Every replica is thrown away. Each member sends its state (`sync`): its claims, in flight or waiting, and
//! the claims of others that it carries out (their asker may be gone). The new replica takes in the claims in
//! flight first, even if they conflict (two halves of a cluster may have met). Then come the waiting claims,
//! in the order in which the syncs were delivered, and then later messages. No new claim runs until all syncs
//! are there.
//!
//! A message delivered after a change may have been sent before its sender saw that change. Such messages
//! come before the sender's sync, and the sync includes them: they are ignored. After two changes a sync
//! itself may come too late like that. So a sync counts only with the `ready` that its sender sends when its
//! *latest* sync is delivered to it. A silent member (its daemon is stopped or hangs) must not keep all
//! others from fencing: [`ClusterArbiter::pass_over`] lets them go on with its operations in flight as far as
//! they are known. That member later takes part again with a new sync.
//!
//! A member that leaves in the middle of a power-off tells no end of it, and its hypervisor or device may
//! carry it out later. So each member that knows of it keeps its claim ([`super::orphans`]): until a daemon
//! of that host has told what is left, until the target was seen off, or for a limited time. It conflicts
//! as any claim does whose effect may come late: a further off of the same target does not wait for it.
//!
//! A power-off that hangs in a hypervisor may come at any later time. When each host that holds its claim
//! says so (`hangs`), the claim conflicts only with what has the same target, and with what is known to come
//! from there.
//!
//! Where all daemons were started anew nobody may know of such an order. Then a claim that it may concern is
//! held back by its own host ([`super::unknown_orders`]), and takes its place in the order later.
//!
//! A waiting claim may be blocked by an operation of another host, in flight or to run first. When that host
//! leaves and no member can report how the operation ended, the claim never runs: the host may be alive
//! behind a cut, and its operation may still take effect.
//!
//! # Without the group
//! A host that lost corosync ([`ClusterArbiter::lost`]), or never found it, decides alone, in the same way: a
//! group of one. Grants from before it lost the others, or found them again, that are not proved yet are
//! decided again ([`ClusterArbiter::proved`]); operations in flight go on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fence_wire::Response;

use super::claim_ends::ClaimEnds;
use super::message::{
    ActingClaim, AskEnd, AskOutcome, ClaimMessage, HostMessage, InFlightClaim, Member, StateSync,
};
use super::orphans::{OrphanTable, OrphanTerms};
use super::replica::{ClaimKey, Epoch, ReplicatedArbiter};
use super::unknown_orders::UnknownOrders;
use crate::arbiter::{ArbiterRequest, Grant, LateEffect, Rejection, SharedResult};

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

/// Member that this host is in its group of one.
const ALONE: Member = Member { node: 0, pid: 0 };
/// Reason with which a host gives up an order that it kept for a daemon which is gone.
const ORPHAN_OVER: &str = "the order of a daemon that ended can take effect no more";
/// Most claims of this host that are not over; more are refused, because a sync must fit into one message.
const CLAIM_LIMIT: usize = 256;

/// Claims of this host, and its replica of the common arbiter.
#[derive(Debug)]
pub struct ClusterArbiter {
    /// Member that this host is in the group; none while it is alone.
    me: Option<Member>,
    /// Number of the next claim.
    next: u64,
    /// Number of the latest sync that was sent.
    syncs: u64,
    own: BTreeMap<u64, OwnClaim>,
    /// Claims under which others ask this host for work, by asker and number of the ask.
    asked: BTreeMap<(Member, u64), ClaimMessage>,
    /// The claims of `asked` whose work this host does, or is about to do.
    acting: BTreeMap<(Member, u64), InFlightClaim>,
    epoch: Epoch,
    /// Latest complete replica before this epoch, for [`Self::pass_over`].
    last_replica: ReplicatedArbiter,
    /// Members of which `last_replica` knows the state.
    last_members: BTreeSet<Member>,
    /// Time that the arbiter gets; it never passes.
    start: Instant,
    /// Orders of daemons that are gone.
    orphans: OrphanTable,
    /// This host's syncs tell of all orders of earlier daemons of this host.
    tells_earlier: bool,
    /// Members whose latest sync does the same.
    tellers: BTreeSet<Member>,
    /// Orders of which nobody may know.
    unknown: UnknownOrders,
    /// Ends of the claims of other members.
    ends: ClaimEnds,
    effects: Vec<ClaimEffect>,
}

/// Order to the caller, to be carried out in sequence. Numbers are those of [`ClusterArbiter::claim`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClaimEffect {
    /// Send this message to the group.
    Send(HostMessage),
    /// The claim is granted.
    Run(u64),
    /// Another host did the same work; the claim is over.
    Coalesced(u64, SharedResult),
    /// The claim does not run and is over.
    Rejected(u64, Rejection),
    /// Another host saw this domain off: reject the requests that came from it.
    Victim(String),
}

/// Claim of this host that is not over.
#[derive(Debug)]
struct OwnClaim {
    claim: ClaimMessage,
    stage: ClaimStage,
    /// Nodes that have the domain from which the request comes; none if that is not known.
    source_at: Option<Vec<u32>>,
    /// The waiting request heard of a grant.
    is_run_told: bool,
    /// The target may go off once more after it was seen off.
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClaimStage {
    /// Not made yet: an order of which nobody knows may concern the claim.
    Held,
    Asked,
    Granted,
    /// Granted, and its source was seen off before its proof.
    Void,
    Proved,
    SeenOff,
    /// The client has its answer, and any part of the work may come late.
    Answered,
    /// The work is over, and its effect may come late.
    Lingering,
    /// The same, and nobody can tell when it comes.
    Hanging,
}

impl ClusterArbiter {
    /// Begins with no group, and with `first` as the number of the first claim. That number should be random,
    /// and far from the largest one: so claims of an earlier daemon with the same process id are no claims of
    /// this one.
    pub fn new(first: u64, now: Instant) -> Self {
        Self {
            me: None,
            next: first,
            syncs: first,
            own: BTreeMap::new(),
            asked: BTreeMap::new(),
            acting: BTreeMap::new(),
            epoch: Epoch::of(&BTreeSet::new(), now),
            last_replica: ReplicatedArbiter::new(now),
            last_members: BTreeSet::new(),
            start: now,
            orphans: OrphanTable::default(),
            tells_earlier: false,
            tellers: BTreeSet::new(),
            unknown: UnknownOrders::default(),
            ends: ClaimEnds::default(),
            effects: Vec::new(),
        }
    }

    /// Notes that this host joined the group, as this member. A change follows.
    pub fn joined(&mut self, me: Member) -> Vec<ClaimEffect> {
        self.me = Some(me);
        self.reset_unproved_grants(|_| false);
        self.unknown.forget();
        self.epoch = Epoch::of(&BTreeSet::new(), self.start);
        self.hold();
        self.take_effects()
    }

    /// Notes that this host lost corosync, or does not find it. All claims wait until this or
    /// [`Self::joined`].
    pub fn lost(&mut self) -> Vec<ClaimEffect> {
        self.reject_blocked_by_departed(&BTreeSet::new());
        self.adopt_orphans(&BTreeSet::new());
        self.me = None;
        self.asked.clear();
        self.unknown.forget();
        self.reset_unproved_grants(|_| false);
        self.begin_alone();
        self.take_effects()
    }

    /// Returns true while it is not known whether the group is there; all claims wait for that.
    pub fn is_joining(&self) -> bool {
        self.me.is_none() && !self.epoch.has_begun
    }

    /// Returns true while this host decides with the group, and knows the state of all its members.
    pub fn is_in_step(&self) -> bool {
        self.me.is_some() && self.epoch.has_begun
    }

    /// Returns true if a start of the domain is in flight for this member, and nothing else on the domain: no
    /// other start can begin before it is over.
    pub fn is_start_of(&self, member: Member, uuid: &str) -> bool {
        self.is_in_step() && self.epoch.replica.is_start_of(member, uuid)
    }

    /// Begins a new epoch with these members.
    pub fn change(&mut self, members: &BTreeSet<Member>) -> Vec<ClaimEffect> {
        let Some(me) = self.me else { return Vec::new() };
        self.reject_blocked_by_departed(members);
        self.adopt_orphans(members);
        self.tellers.retain(|it| members.contains(it));
        self.unknown.members(members);
        self.ends.forget();
        self.asked.retain(|(asker, _), _| members.contains(asker));
        let epoch = Epoch::of(members, self.start);
        let last = std::mem::replace(&mut self.epoch, epoch);
        if last.has_begun {
            self.last_replica = last.replica;
            self.last_members = last.members.into_keys().collect();
        }
        if members.contains(&me) {
            self.sync();
        }
        self.take_effects()
    }

    /// Takes a message of the group.
    pub fn message(&mut self, from: Member, message: &HostMessage) -> Vec<ClaimEffect> {
        let Some(me) = self.me else { return Vec::new() };
        if !self.epoch.members.contains_key(&from) {
            return Vec::new();
        }
        match message {
            HostMessage::Sync(sync) => {
                self.epoch.synced(from, sync);
                if sync.tells_earlier {
                    self.tellers.insert(from);
                }
                self.unknown.told(from, sync.knows_orders);
                if from == me && sync.n == self.syncs {
                    self.effects.push(ClaimEffect::Send(HostMessage::Ready { n: sync.n }));
                }
            }
            HostMessage::Ready { n } => {
                let grants = self.epoch.ready(from, *n);
                self.deliver_grants(grants);
                if self.epoch.is_ready(from) {
                    let told = self.orphans.told_by(from, self.tellers.contains(&from));
                    self.give_up(told);
                }
                self.note_begun();
            }
            HostMessage::PassOver { member, in_flight, acting } => {
                if self.epoch.passed_over(*member, in_flight, acting) && *member == me {
                    // Claims that the others do not know of block nothing there.
                    self.reset_unproved_grants(|id| in_flight.iter().any(|it| it.claim.id == id));
                    self.sync();
                }
                let grants = self.epoch.begin();
                self.deliver_grants(grants);
                self.note_begun();
            }
            HostMessage::Ask(ask) if ask.to == me => {
                if let Some(claim) = &ask.claim {
                    self.asked.insert((from, ask.ask), claim.clone());
                }
            }
            HostMessage::Cancel { to, ask } if *to == me => drop(self.asked.remove(&(from, *ask))),
            _ => {
                let grants = self.epoch.deliver(from, message);
                self.deliver_grants(grants);
                if matches!(message, HostMessage::Overdue { member, .. } if *member == me) {
                    // A grant that was not used in time is none: the others go on.
                    let replica = &self.epoch.replica;
                    let kept: Vec<_> =
                        self.own.keys().filter(|it| replica.has((me, **it))).copied().collect();
                    self.reset_unproved_grants(|id| kept.contains(&id));
                }
                if let HostMessage::SeenOff { victim, .. } | HostMessage::Progress { victim, .. } = message {
                    if from != me {
                        self.effects.push(ClaimEffect::Victim(victim.clone()));
                    }
                    self.source_is_down(victim);
                }
            }
        }
        self.take_effects()
    }

    /// Makes a claim for a request of this host. `source_at` are the nodes that have the domain from which
    /// the request comes; none if that is not known. `term` is the time after which no order is given for the
    /// request any more; none if an order may take effect at any time. Returns the claim's number.
    ///
    /// # Errors
    /// There are too many claims.
    pub fn claim(
        &mut self,
        request: &ArbiterRequest,
        source_at: Option<Vec<u32>>,
        term: Option<Duration>,
    ) -> Result<(u64, Vec<ClaimEffect>), Rejection> {
        if self.own.len() >= CLAIM_LIMIT {
            return Err(Rejection::ClaimsFull);
        }
        let id = self.next;
        let claim = ClaimMessage::of(id, request);
        let claim = claim.with_term(term);
        self.next += 1;
        let stage = if claim.takes_down() { ClaimStage::Held } else { ClaimStage::Asked };
        let own = OwnClaim { claim: claim.clone(), stage, source_at, is_run_told: false, again: false };
        self.own.insert(id, own);
        if stage == ClaimStage::Asked {
            self.send(HostMessage::Claim(claim));
        }
        Ok((id, self.take_effects()))
    }

    /// Takes in work of an earlier daemon of this host that is over, but whose effect may still come. To be
    /// called before this host has joined or lost the group: the claim is in flight from its first sync on.
    /// Returns the claim's number.
    pub fn restore(&mut self, request: &ArbiterRequest) -> u64 {
        let id = self.next;
        let claim = ClaimMessage::of(id, request);
        self.next += 1;
        let stage = ClaimStage::Lingering;
        self.own.insert(id, OwnClaim { claim, stage, source_at: None, is_run_told: true, again: false });
        id
    }

    /// Notes that all orders of earlier daemons of this host that may still take effect were taken in with
    /// [`Self::restore`]. To be called before this host has joined or lost the group.
    pub fn tell_earlier(&mut self) {
        self.tells_earlier = true;
    }

    /// Ends orders of daemons that are gone, once their time is over, and sets the time of new ones, by their
    /// targets and the daemons that gave them. To be called after each change of the membership, and every
    /// now and then. `unknown_limit` is the time in which an order of which nobody knows can take effect.
    pub fn expire_orphans(
        &mut self,
        now: Instant,
        unknown_limit: Duration,
        terms: impl Fn(&str, Option<Member>) -> OrphanTerms,
    ) -> Vec<ClaimEffect> {
        let ended = self.orphans.expire(now, &terms);
        self.give_up(ended);
        if let Some(me) = self.me {
            self.unknown.expire(now, unknown_limit);
            if self.epoch.has_begun {
                let holds: Vec<_> = self.epoch.replica.holds().collect();
                let due = self.ends.due(now, me, &holds, |target| terms(target, None).limit);
                self.effects.extend(due.into_iter().map(ClaimEffect::Send));
            }
        }
        self.take_effects()
    }

    /// Takes the nodes that corosync hears, and on which no C daemon runs.
    pub fn heard_nodes(&mut self, nodes: BTreeSet<u32>) -> Vec<ClaimEffect> {
        self.unknown.heard(nodes);
        self.take_effects()
    }

    /// Returns the claims that are held back, each with the nodes whose daemons have to tell what was left
    /// there.
    pub fn held(&self) -> impl Iterator<Item = (&ClaimMessage, Vec<u32>)> {
        let held = self.own.values().filter(|it| it.stage == ClaimStage::Held);
        held.map(|it| (&it.claim, self.unknown.untold(it.source_at.as_deref(), |node| self.has_told(node))))
    }

    /// Returns the claim with this number, for an ask under it.
    pub fn of(&self, id: u64) -> Option<&ClaimMessage> {
        self.own.get(&id).map(|it| &it.claim)
    }

    /// Notes that the client of a granted claim has proved itself, and that the work is about to begin.
    ///
    /// # Errors
    /// The grant holds no longer: the work must not begin, and the claim is to be withdrawn.
    pub fn proved(&mut self, id: u64) -> Result<(), Rejection> {
        match self.own.get_mut(&id) {
            Some(own) if own.stage == ClaimStage::Granted => {
                own.stage = ClaimStage::Proved;
                Ok(())
            }
            Some(own) if own.stage == ClaimStage::Void => Err(Rejection::SourceFenced),
            _ => Err(Rejection::TurnLost),
        }
    }

    /// Notes that the target was seen off.
    pub fn seen_off(&mut self, id: u64) -> Vec<ClaimEffect> {
        if let Some(own) = self.own.get_mut(&id) {
            own.stage = ClaimStage::SeenOff;
            let victim = own.claim.target.clone();
            self.send(HostMessage::SeenOff { id, victim: victim.clone() });
            self.source_is_down(&victim);
        }
        self.take_effects()
    }

    /// Notes before [`Self::seen_off`] that the target may go off once more, by another order that is not
    /// settled.
    pub fn may_come_again(&mut self, id: u64) -> Vec<ClaimEffect> {
        if let Some(own) = self.own.get_mut(&id) {
            own.again = true;
            self.send(HostMessage::Again { id });
        }
        self.take_effects()
    }

    /// Notes that the client of a claim has its answer, and that a part of the work may come late.
    pub fn answered(
        &mut self,
        id: u64,
        effect: LateEffect,
        response: Response,
        reason: Option<&str>,
    ) -> Vec<ClaimEffect> {
        let me = self.me();
        if let Some(own) = self.own.get_mut(&id) {
            let outcome = AskOutcome::new(response, reason);
            let was = own.stage;
            let (stage, message) = match effect {
                LateEffect::Any => (ClaimStage::Answered, HostMessage::Answered { id, outcome }),
                LateEffect::PowerOff => (ClaimStage::Lingering, HostMessage::Lingers { id, outcome }),
                LateEffect::HangingOff => {
                    (ClaimStage::Hanging, HostMessage::Hangs { asker: me, claim: id, ask: None })
                }
            };
            own.stage = stage;
            if stage == ClaimStage::Hanging && !matches!(was, ClaimStage::Answered | ClaimStage::Lingering) {
                let outcome = AskOutcome::new(response, reason);
                self.send(HostMessage::Lingers { id, outcome });
            }
            self.send(message);
        }
        self.take_effects()
    }

    /// Ends a claim: no part of this host's work for it can take effect any more.
    pub fn finished(&mut self, id: u64, response: Response, reason: Option<&str>) -> Vec<ClaimEffect> {
        if self.own.remove(&id).is_some() {
            self.send(HostMessage::Finished { id, outcome: AskOutcome::new(response, reason) });
        }
        self.take_effects()
    }

    /// Ends a claim for which nothing was done. No effect for the waiting request follows.
    pub fn withdraw(&mut self, id: u64) -> Vec<ClaimEffect> {
        if self.own.remove(&id).is_some_and(|it| it.stage != ClaimStage::Held) {
            self.send(HostMessage::Withdraw { id });
        }
        self.take_effects()
    }

    /// Notes that this host sends `taken`, `progress`, `hangs` or `reply` to an asker now, even if the group
    /// is not there.
    pub fn record_owner_message(&mut self, message: &HostMessage) -> Vec<ClaimEffect> {
        match message {
            HostMessage::Taken { asker, ask, .. } => {
                if let Some(claim) = self.asked.get(&(*asker, *ask)) {
                    let (claim, no) = (claim.clone(), false);
                    let held = InFlightClaim { claim, seen_off: no, lingers: no, answered: no, hangs: no };
                    self.acting.insert((*asker, *ask), held);
                }
            }
            HostMessage::Progress { asker, ask, victim, .. } => {
                if let Some(held) = self.acting.get_mut(&(*asker, *ask)) {
                    held.seen_off = true;
                }
                self.source_is_down(victim);
            }
            HostMessage::Hangs { asker, ask: Some(ask), .. } => {
                if let Some(held) = self.acting.get_mut(&(*asker, *ask)) {
                    held.hangs = true;
                }
            }
            HostMessage::Reply { asker, ask, .. } => {
                self.asked.remove(&(*asker, *ask));
                self.acting.remove(&(*asker, *ask));
            }
            _ => return Vec::new(),
        }
        if self.me.is_none() {
            let grants = self.epoch.deliver(ALONE, message);
            self.deliver_grants(grants);
        }
        self.take_effects()
    }

    /// Returns the members without a sync, while all others wait for it, each with true if this host has a
    /// copy of its state. Hosts with a copy should propose first to pass the member over.
    pub fn silent(&self) -> Vec<(Member, bool)> {
        if self.epoch.has_begun {
            return Vec::new();
        }
        let silent = self.epoch.members.iter().filter(|(_, it)| !it.is_accounted_for());
        silent.map(|(member, _)| (*member, self.last_members.contains(member))).collect()
    }

    /// Proposes to all to go on without the sync of this member, which has been silent for too long.
    pub fn pass_over(&mut self, member: Member) -> Vec<ClaimEffect> {
        if self.silent().iter().any(|(it, _)| *it == member) {
            let (in_flight, acting) = self.last_replica.held_by(member);
            self.effects.push(ClaimEffect::Send(HostMessage::PassOver { member, in_flight, acting }));
        }
        self.take_effects()
    }

    /// Returns the numbers of claims in flight and of waiting claims, of all hosts.
    pub fn counts(&self) -> (usize, usize) {
        self.epoch.replica.arbiter.counts()
    }

    /// Sends a message to all members; without a group, to this host's replica alone.
    fn send(&mut self, message: HostMessage) {
        if self.me.is_none() {
            let grants = self.epoch.deliver(ALONE, &message);
            self.deliver_grants(grants);
        } else {
            self.effects.push(ClaimEffect::Send(message));
        }
    }

    fn sync(&mut self) {
        self.syncs += 1;
        let sync = self.state_sync();
        self.effects.push(ClaimEffect::Send(HostMessage::Sync(sync)));
    }

    fn state_sync(&self) -> StateSync {
        let is_made = |it: &&OwnClaim| it.stage != ClaimStage::Held;
        let all = || self.own.values().filter(is_made);
        let of = |waiting| all().filter(move |it| (it.stage == ClaimStage::Asked) == waiting);
        let held = |it: &OwnClaim| InFlightClaim {
            claim: it.claim.clone(),
            // Others take it for one that is not past, and so it is.
            seen_off: it.stage == ClaimStage::SeenOff && !it.again,
            lingers: matches!(it.stage, ClaimStage::Lingering | ClaimStage::Hanging),
            answered: it.stage == ClaimStage::Answered,
            hangs: it.stage == ClaimStage::Hanging,
        };
        let acting = |((asker, ask), held): (&(Member, u64), &InFlightClaim)| ActingClaim {
            asker: *asker,
            ask: *ask,
            held: held.clone(),
        };
        StateSync {
            n: self.syncs,
            in_flight: of(false).map(held).collect(),
            waiting: of(true).map(|it| it.claim.clone()).collect(),
            acting: self.acting.iter().map(acting).chain(self.orphans.kept()).collect(),
            tells_earlier: self.tells_earlier,
            knows_orders: self.unknown.is_informed(),
        }
    }

    /// Takes note that the syncs of all members may count by now.
    fn note_begun(&mut self) {
        if self.epoch.has_begun {
            self.unknown.begun(&self.tellers, |it| self.epoch.is_ready(it));
        }
    }

    /// Holds waiting claims back that an unknown order may concern.
    fn hold(&mut self) {
        let is_held = |it: &OwnClaim| it.stage == ClaimStage::Asked && it.claim.takes_down();
        let held = self.own.iter().filter(|(_, it)| is_held(it) && self.may_be_concerned(it));
        for id in held.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(own) = self.own.get_mut(&id) {
                own.stage = ClaimStage::Held;
            }
        }
    }

    /// Makes the claims that no unknown order may concern any more.
    fn make_held(&mut self) {
        for id in self.own.keys().copied().collect::<Vec<_>>() {
            let Some(own) = self.own.get(&id).filter(|it| it.stage == ClaimStage::Held) else { continue };
            if self.may_be_concerned(own) {
                continue;
            }
            let claim = own.claim.clone();
            if let Some(own) = self.own.get_mut(&id) {
                own.stage = ClaimStage::Asked;
            }
            self.send(HostMessage::Claim(claim));
        }
    }

    /// Returns whether an order of which nobody knows may take down the domain from which a claim comes.
    fn may_be_concerned(&self, own: &OwnClaim) -> bool {
        if self.me.is_none() {
            // Alone it knows what it can.
            return !self.epoch.has_begun;
        }
        self.unknown.may_be_at(own.source_at.as_deref(), |it| self.has_told(it))
    }

    /// Returns whether the daemon of a node has told what earlier ones left there.
    fn has_told(&self, node: u32) -> bool {
        let mut of_node = self.tellers.iter().filter(|it| it.node == node);
        self.unknown.has_told(node) || self.epoch.has_begun && of_node.any(|it| self.epoch.is_ready(*it))
    }

    fn begin_alone(&mut self) {
        self.epoch = Epoch::of(&BTreeSet::from([ALONE]), self.start);
        self.epoch.synced(ALONE, &self.state_sync());
        let grants = self.epoch.ready(ALONE, self.syncs);
        self.deliver_grants(grants);
    }

    /// Takes back grants of an earlier epoch that are not proved, but those that still stand: they are
    /// decided again.
    fn reset_unproved_grants(&mut self, stands: impl Fn(u64) -> bool) {
        for (id, own) in &mut self.own {
            if own.stage == ClaimStage::Granted && !stands(*id) {
                own.stage = ClaimStage::Asked;
            }
        }
    }

    /// Rejects own claims that wait for an operation whose holders have left: its outcome can no longer be
    /// learned.
    fn reject_blocked_by_departed(&mut self, members: &BTreeSet<Member>) {
        let me = self.me();
        let replica = if self.epoch.has_begun { &self.epoch.replica } else { &self.last_replica };
        let stays = |it: &Member| *it == me || members.contains(it);
        let lost: Vec<u64> = self
            .own
            .iter()
            .filter(|(id, own)| own.stage == ClaimStage::Asked && replica.endangered_by((me, **id), stays))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.end(id, Rejection::HostsApart);
        }
    }

    /// Keeps the orders of members that leave, which may still take effect.
    fn adopt_orphans(&mut self, members: &BTreeSet<Member>) {
        let (me, epoch) = (self.me(), &self.epoch);
        let is_gone = |it: &Member| *it != me && epoch.members.contains_key(it) && !members.contains(it);
        let replica = if epoch.has_begun { &epoch.replica } else { &self.last_replica };
        let mut orphans = replica.orphans_of(is_gone);
        orphans.extend(epoch.untold_orphans_of(is_gone));
        self.orphans.adopt(orphans);
    }

    /// Tells all that these orphaned orders are kept no more: asker, ask and claim.
    fn give_up(&mut self, orders: Vec<(Member, u64, u64)>) {
        for (asker, ask, claim) in orders {
            let end = AskEnd::NothingDone(ORPHAN_OVER.to_owned());
            self.send(HostMessage::Reply { asker, ask, claim: Some(claim), end });
        }
    }

    /// Rejects own claims that came from a domain which was seen off, and ends what was to take it down.
    fn source_is_down(&mut self, victim: &str) {
        let over = self.orphans.seen_off(victim);
        self.give_up(over);
        let from_it = |it: &OwnClaim| it.claim.source.as_deref() == Some(victim);
        let is_waiting = |it: &OwnClaim| matches!(it.stage, ClaimStage::Held | ClaimStage::Asked);
        let waiting = self.own.iter().filter(|(_, it)| from_it(it) && is_waiting(it));
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id, Rejection::SourceFenced);
        }
        for own in self.own.values_mut().filter(|it| from_it(it) && it.stage == ClaimStage::Granted) {
            own.stage = ClaimStage::Void;
        }
    }

    /// Ends a waiting claim by this host's own decision.
    fn end(&mut self, id: u64, why: Rejection) {
        self.own.remove(&id);
        self.effects.push(ClaimEffect::Rejected(id, why));
        self.send(HostMessage::Withdraw { id });
    }

    fn me(&self) -> Member {
        self.me.unwrap_or(ALONE)
    }

    /// Turns grants of this host's claims into effects. Grants of claims that are over are ignored.
    fn deliver_grants(&mut self, grants: Vec<(ClaimKey, Grant<()>)>) {
        let me = self.me();
        for ((_, id), grant) in grants.into_iter().filter(|((member, _), _)| *member == me) {
            let Some(own) = self.own.get_mut(&id).filter(|it| it.stage == ClaimStage::Asked) else {
                continue;
            };
            match grant {
                Grant::Run(()) => {
                    own.stage = ClaimStage::Granted;
                    if !std::mem::replace(&mut own.is_run_told, true) {
                        self.effects.push(ClaimEffect::Run(id));
                    }
                }
                Grant::Coalesced(result) => {
                    self.own.remove(&id);
                    self.effects.push(ClaimEffect::Coalesced(id, result));
                }
                Grant::Rejected(why) => {
                    self.own.remove(&id);
                    self.effects.push(ClaimEffect::Rejected(id, why));
                }
            }
        }
    }

    fn take_effects(&mut self) -> Vec<ClaimEffect> {
        self.make_held();
        std::mem::take(&mut self.effects)
    }
}
