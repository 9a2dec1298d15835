// SPDX-License-Identifier: GPL-2.0-or-later
//! When a request may run, with all hosts of the cluster having a say.
//!
//! Owns this host's claims, what it does for other hosts under theirs, and its replica of the common arbiter. Pure:
//! what corosync delivers and what becomes of this host's requests go in, [`Effect`]s come out. It must never read a
//! clock, wait, log, or let anything decide that is not the same on every host: hash maps have no place here.
//! The caller keeps it behind a lock, hands in everything in corosync's order, and carries the effects out, in order,
//! before it lets the lock go (so that what is sent has the order in which it was decided).
//!
//! # One order
//! All members of a group see its messages and the changes of its membership in one order. The replica of each is made
//! of nothing but what was delivered since the last change, so replicas that saw the same are the same. A request runs
//! when the replica of *its own* host says so; what others make of it is the same decision, and nobody asks for it.
//! Nothing here knows of time: a claim whose deadline passed, or whose client left, is withdrawn by its host.
//!
//! # A claim's way
//! [`Claims::claim`] says `claim` to all and waits. When that is delivered it takes its place in the replicas.
//! [`Effect::Run`]: the client is asked for its proof, then [`Claims::proved`] says whether the decision still stands;
//! then the work, [`Claims::seen_off`], [`Claims::finished`]; or [`Claims::withdraw`], at any time: nothing was done. A
//! withdrawal may cross the decision to run it; the host itself knows that it won't, and the others hear it.
//!
//! Another host that carries a claim's work out holds it too, from its `taken` to its `reply`. A claim in flight is over
//! when nobody holds it any more: not when its asker has no patience left, or is gone.
//!
//! # When the membership changes
//! Every replica is thrown away. Each member says anew what it has under way (`sync`): its claims, in flight or waiting, and
//! the claims of others that it carries out (their asker may be gone). The new replica takes in what is in flight first, whatever it conflicts
//! with (two halves of a cluster may have met), then what waits, in the order in which the syncs were delivered, then
//! what was said since. Until all syncs are there nothing new runs.
//!
//! What is delivered after a change may have been sent before its sender saw that change. Such messages of a sender come
//! before its sync, and the sync says what they said: they are passed over. A sync itself may come too late like that, when there were
//! two changes: so it counts only with the `ready` that its sender says when its *latest* sync is delivered to it. A member
//! that does not speak (its daemon is stopped or stuck) must not keep all others from fencing:
//! [`Claims::pass_over`] lets them go on with what it was known to have in flight. It speaks again with a new sync.
//!
//! A claim that waits for what another host has in flight, or was to run first, never runs when that host goes and nobody tells how
//! that ended: it may be alive behind a cut, and its shot under way.
//!
//! # Without the group
//! A host that lost corosync ([`Claims::lost`]; also one that never found it) decides alone, in the same way: a group of one. What was decided before it lost the others, or
//! found them again, and is not proved yet, must be decided again ([`Claims::proved`]); what is in flight goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fence_wire::Response;

use super::message::{
    ActingClaim, AskEnd, AskOutcome, ClaimMessage, HostMessage, InFlightClaim, Member, StateSync,
};
use crate::arbiter::{
    Arbiter, ArbiterDecision, ArbiterRequest, Grant, PeerId, Rejection, RequestSource, SharedResult,
    SubmitResult,
};

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

/// This host in its group of one.
const ALONE: Member = Member { node: 0, pid: 0 };
/// No claim waits as long as that: its host withdraws it.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Claims of this host that are not over; one more is refused. A sync must fit into one message.
const CLAIM_LIMIT: usize = 256;

/// See the module's head.
#[derive(Debug)]
pub struct ClusterArbiter {
    /// This host in the group; none while it is alone.
    me: Option<Member>,
    /// The number of the next claim.
    next: u64,
    /// Syncs that were sent.
    syncs: u64,
    own: BTreeMap<u64, OwnClaim>,
    /// What others ask of this host under their claims: by asker and number of the ask.
    asked: BTreeMap<(Member, u64), ClaimMessage>,
    /// What this host does of that, or is about to.
    acting: BTreeMap<(Member, u64), InFlightClaim>,
    view: Epoch,
    /// The latest replica that was complete, and of which members, for [`Claims::pass_over`].
    before: ReplicatedArbiter,
    before_of: BTreeSet<Member>,
    /// What the arbiter is told that the time is; it never passes.
    start: Instant,
    effects: Vec<ClaimEffect>,
}

/// What the caller is to do, in this order. Numbers are those of [`Claims::claim`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClaimEffect {
    /// Send it to the group.
    Send(HostMessage),
    /// Its turn has come.
    Run(u64),
    /// Another host did the same work. It is over.
    Coalesced(u64, SharedResult),
    /// It does not run. It is over.
    Rejected(u64, Rejection),
    /// Another host saw this domain off.
    Victim(String),
}

/// A claim of this host that is not over.
#[derive(Debug)]
struct OwnClaim {
    claim: ClaimMessage,
    stage: ClaimStage,
    /// Whoever waits for it was told that it may run.
    told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClaimStage {
    Asked,
    Granted,
    /// Granted, and its source went down before it had proved itself.
    Void,
    Proved,
    SeenOff,
}

impl ClusterArbiter {
    /// `first` is the number of the first claim: drawn, and far from the end of all numbers, so that claims of an earlier
    /// daemon of the same process id are no claims of this one.
    pub fn new(first: u64, now: Instant) -> Self {
        Self {
            me: None,
            next: first,
            syncs: first,
            own: BTreeMap::new(),
            asked: BTreeMap::new(),
            acting: BTreeMap::new(),
            view: Epoch::of(&BTreeSet::new(), now),
            before: ReplicatedArbiter::new(now),
            before_of: BTreeSet::new(),
            start: now,
            effects: Vec::new(),
        }
    }

    /// This host joined the group, as this member. A change follows.
    pub fn joined(&mut self, me: Member) -> Vec<ClaimEffect> {
        self.me = Some(me);
        self.reset_unproved_grants(|_| false);
        self.view = Epoch::of(&BTreeSet::new(), self.start);
        self.take_effects()
    }

    /// This host lost corosync, or does not find it. Until that, or [`Claims::joined`], is known, all wait.
    pub fn lost(&mut self) -> Vec<ClaimEffect> {
        self.reject_blocked_by_departed(&BTreeSet::new());
        self.me = None;
        self.asked.clear();
        self.reset_unproved_grants(|_| false);
        self.begin_alone();
        self.take_effects()
    }

    /// Whether it is not known yet that the group is there, or not; all wait for that.
    pub fn is_looking(&self) -> bool {
        self.me.is_none() && !self.view.begun
    }

    /// The membership of the group is this from now on.
    pub fn change(&mut self, members: &BTreeSet<Member>) -> Vec<ClaimEffect> {
        let Some(me) = self.me else { return Vec::new() };
        self.reject_blocked_by_departed(members);
        self.asked.retain(|(asker, _), _| members.contains(asker));
        let view = Epoch::of(members, self.start);
        let last = std::mem::replace(&mut self.view, view);
        if last.begun {
            self.before = last.table;
            self.before_of = last.speakers.into_keys().collect();
        }
        if members.contains(&me) {
            self.sync();
        }
        self.take_effects()
    }

    /// A message of the group.
    pub fn message(&mut self, from: Member, message: &HostMessage) -> Vec<ClaimEffect> {
        let Some(me) = self.me else { return Vec::new() };
        if !self.view.speakers.contains_key(&from) {
            return Vec::new();
        }
        match message {
            HostMessage::Sync(sync) => {
                self.view.synced(from, sync);
                if from == me && sync.n == self.syncs {
                    self.effects.push(ClaimEffect::Send(HostMessage::Ready { n: sync.n }));
                }
            }
            HostMessage::Ready { n } => {
                let turns = self.view.ready(from, *n);
                self.deliver_grants(turns);
            }
            HostMessage::PassOver { member, in_flight, acting } => {
                if self.view.passed_over(*member, in_flight, acting) && *member == me {
                    // What others don't know of holds nothing up there.
                    self.reset_unproved_grants(|id| in_flight.iter().any(|it| it.claim.id == id));
                    self.sync();
                }
                let turns = self.view.begin();
                self.deliver_grants(turns);
            }
            HostMessage::Ask(ask) if ask.to == me => {
                if let Some(claim) = &ask.claim {
                    self.asked.insert((from, ask.ask), claim.clone());
                }
            }
            HostMessage::Cancel { to, ask } if *to == me => drop(self.asked.remove(&(from, *ask))),
            _ => {
                let turns = self.view.said(from, message);
                self.deliver_grants(turns);
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

    /// A request of this host wants its turn; its number.
    ///
    /// # Errors
    /// It does not get one.
    pub fn claim(&mut self, request: &ArbiterRequest) -> Result<(u64, Vec<ClaimEffect>), Rejection> {
        if self.own.len() >= CLAIM_LIMIT {
            return Err(Rejection::ClaimsFull);
        }
        let id = self.next;
        let claim = ClaimMessage::of(id, &request.work, &request.source, request.peer.as_ref());
        self.next += 1;
        self.own.insert(id, OwnClaim { claim: claim.clone(), stage: ClaimStage::Asked, told: false });
        self.say(HostMessage::Claim(claim));
        Ok((id, self.take_effects()))
    }

    /// What another host is to be asked for under this claim.
    pub fn of(&self, id: u64) -> Option<&ClaimMessage> {
        self.own.get(&id).map(|it| &it.claim)
    }

    /// The client of a claim that may run has proved itself, and its work is about to begin.
    ///
    /// # Errors
    /// It must not: what was decided holds no more. To be withdrawn.
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

    /// The target was seen off.
    pub fn seen_off(&mut self, id: u64) -> Vec<ClaimEffect> {
        if let Some(own) = self.own.get_mut(&id) {
            own.stage = ClaimStage::SeenOff;
            let victim = own.claim.target.clone();
            self.say(HostMessage::SeenOff { id, victim: victim.clone() });
            self.source_is_down(&victim);
        }
        self.take_effects()
    }

    /// The work is over, and nothing that this host does of it can take effect any more.
    pub fn finished(&mut self, id: u64, response: Response, reason: Option<&str>) -> Vec<ClaimEffect> {
        if self.own.remove(&id).is_some() {
            self.say(HostMessage::Finished { id, outcome: AskOutcome::new(response, reason) });
        }
        self.take_effects()
    }

    /// Nothing was done for it, and nothing will be. Whoever waits for it is told nothing.
    pub fn withdraw(&mut self, id: u64) -> Vec<ClaimEffect> {
        if self.own.remove(&id).is_some() {
            self.say(HostMessage::Withdraw { id });
        }
        self.take_effects()
    }

    /// This host says `taken`, `progress` or `reply` to an asker, now, whether the group is there to hear it or not.
    pub fn says(&mut self, message: &HostMessage) -> Vec<ClaimEffect> {
        match message {
            HostMessage::Taken { asker, ask, .. } => {
                if let Some(claim) = self.asked.get(&(*asker, *ask)) {
                    let held = InFlightClaim { claim: claim.clone(), seen_off: false };
                    self.acting.insert((*asker, *ask), held);
                }
            }
            HostMessage::Progress { asker, ask, victim, .. } => {
                if let Some(held) = self.acting.get_mut(&(*asker, *ask)) {
                    held.seen_off = true;
                }
                self.source_is_down(victim);
            }
            HostMessage::Reply { asker, ask, .. } => {
                self.asked.remove(&(*asker, *ask));
                self.acting.remove(&(*asker, *ask));
            }
            _ => return Vec::new(),
        }
        if self.me.is_none() {
            let turns = self.view.said(ALONE, message);
            self.deliver_grants(turns);
        }
        self.take_effects()
    }

    /// Members that have not said what they have under way, while all others wait for that; and whether this host knows
    /// it of each. One that does should speak first.
    pub fn silent(&self) -> Vec<(Member, bool)> {
        if self.view.begun {
            return Vec::new();
        }
        let silent = self.view.speakers.iter().filter(|(_, it)| !it.is_accounted_for());
        silent.map(|(member, _)| (*member, self.before_of.contains(member))).collect()
    }

    /// All are to go on without this one's word, for it has been silent for too long.
    pub fn pass_over(&mut self, member: Member) -> Vec<ClaimEffect> {
        if self.silent().iter().any(|(it, _)| *it == member) {
            let (in_flight, acting) = self.before.held_by(member);
            self.effects.push(ClaimEffect::Send(HostMessage::PassOver { member, in_flight, acting }));
        }
        self.take_effects()
    }

    /// Claims in flight and waiting, of all hosts.
    pub fn counts(&self) -> (usize, usize) {
        self.view.table.arbiter.counts()
    }

    /// Says it to all; alone, to itself.
    fn say(&mut self, message: HostMessage) {
        if self.me.is_none() {
            let turns = self.view.said(ALONE, &message);
            self.deliver_grants(turns);
        } else {
            self.effects.push(ClaimEffect::Send(message));
        }
    }

    fn sync(&mut self) {
        self.syncs += 1;
        let sync = self.under_way();
        self.effects.push(ClaimEffect::Send(HostMessage::Sync(sync)));
    }

    fn under_way(&self) -> StateSync {
        let of = |waiting| self.own.values().filter(move |it| (it.stage == ClaimStage::Asked) == waiting);
        let held = |it: &OwnClaim| InFlightClaim {
            claim: it.claim.clone(),
            seen_off: it.stage == ClaimStage::SeenOff,
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
            acting: self.acting.iter().map(acting).collect(),
        }
    }

    fn begin_alone(&mut self) {
        self.view = Epoch::of(&BTreeSet::from([ALONE]), self.start);
        self.view.synced(ALONE, &self.under_way());
        let turns = self.view.ready(ALONE, self.syncs);
        self.deliver_grants(turns);
    }

    /// What was decided among others than those that decide now is not decided, unless it is proved.
    fn reset_unproved_grants(&mut self, stands: impl Fn(u64) -> bool) {
        for (id, own) in &mut self.own {
            if own.stage == ClaimStage::Granted && !stands(*id) {
                own.stage = ClaimStage::Asked;
            }
        }
    }

    /// Ends what waits for something whose end nobody will tell, now that only these members are left.
    fn reject_blocked_by_departed(&mut self, members: &BTreeSet<Member>) {
        let me = self.me();
        let table = if self.view.begun { &self.view.table } else { &self.before };
        let stays = |it: &Member| *it == me || members.contains(it);
        let lost: Vec<u64> = self
            .own
            .iter()
            .filter(|(id, own)| own.stage == ClaimStage::Asked && table.endangered_by((me, **id), stays))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.end(id, Rejection::HostsApart);
        }
    }

    /// What came from a domain that went down does not run.
    fn source_is_down(&mut self, victim: &str) {
        let from_it = |it: &OwnClaim| it.claim.source.as_deref() == Some(victim);
        let waiting = self.own.iter().filter(|(_, it)| from_it(it) && it.stage == ClaimStage::Asked);
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id, Rejection::SourceFenced);
        }
        for own in self.own.values_mut().filter(|it| from_it(it) && it.stage == ClaimStage::Granted) {
            own.stage = ClaimStage::Void;
        }
    }

    /// Ends a claim that waits, by this host's own decision.
    fn end(&mut self, id: u64, why: Rejection) {
        self.own.remove(&id);
        self.effects.push(ClaimEffect::Rejected(id, why));
        self.say(HostMessage::Withdraw { id });
    }

    fn me(&self) -> Member {
        self.me.unwrap_or(ALONE)
    }

    /// Takes what was decided of this host's claims. What it knows to be over already is no matter.
    fn deliver_grants(&mut self, turns: Vec<(ClaimKey, Grant<()>)>) {
        let me = self.me();
        for ((_, id), turn) in turns.into_iter().filter(|((member, _), _)| *member == me) {
            let Some(own) = self.own.get_mut(&id).filter(|it| it.stage == ClaimStage::Asked) else {
                continue;
            };
            match turn {
                Grant::Run(()) => {
                    own.stage = ClaimStage::Granted;
                    if !std::mem::replace(&mut own.told, true) {
                        self.effects.push(ClaimEffect::Run(id));
                    }
                }
                Grant::Coalesced(told) => {
                    self.own.remove(&id);
                    self.effects.push(ClaimEffect::Coalesced(id, told));
                }
                Grant::Rejected(why) => {
                    self.own.remove(&id);
                    self.effects.push(ClaimEffect::Rejected(id, why));
                }
            }
        }
    }

    fn take_effects(&mut self) -> Vec<ClaimEffect> {
        std::mem::take(&mut self.effects)
    }
}

/// A claim: whose, and its number there.
type ClaimKey = (Member, u64);

/// What was delivered since the membership changed last, and what it makes.
#[derive(Debug)]
struct Epoch {
    speakers: BTreeMap<Member, MemberState>,
    /// Messages so far.
    heard: u64,
    /// Every member's word is there, or it was passed over.
    begun: bool,
    table: ReplicatedArbiter,
}

/// A member, and what it said.
#[derive(Debug, Default)]
struct MemberState {
    sync: Option<StateSync>,
    /// When that was delivered, and what it said after, each with the time: that of [`View::heard`].
    at: u64,
    later: Vec<(u64, HostMessage)>,
    /// Its sync counts.
    ready: bool,
    /// Nobody waits for it.
    passed_over: bool,
}

impl MemberState {
    fn is_accounted_for(&self) -> bool {
        self.ready || self.passed_over
    }
}

impl Epoch {
    fn of(members: &BTreeSet<Member>, start: Instant) -> Self {
        let speakers = members.iter().map(|it| (*it, MemberState::default())).collect();
        Self { speakers, heard: 0, begun: false, table: ReplicatedArbiter::new(start) }
    }

    fn synced(&mut self, from: Member, sync: &StateSync) {
        self.heard += 1;
        if let Some(speaker) = self.speakers.get_mut(&from).filter(|it| !it.ready) {
            speaker.sync = Some(sync.clone());
            speaker.at = self.heard;
            speaker.later.clear();
        }
    }

    fn ready(&mut self, from: Member, n: u64) -> Vec<(ClaimKey, Grant<()>)> {
        self.heard += 1;
        let Some(speaker) = self.speakers.get_mut(&from) else { return Vec::new() };
        if speaker.ready || speaker.sync.as_ref().is_none_or(|it| it.n != n) {
            return Vec::new();
        }
        speaker.ready = true;
        if !self.begun {
            return self.begin();
        }
        // It was passed over, and speaks again.
        let sync = speaker.sync.take().unwrap_or_default();
        let later = std::mem::take(&mut speaker.later);
        let mut turns = Vec::new();
        self.table.release_all_but(from, &sync, &mut turns);
        let seen_off = self.table.install_all(from, &sync.in_flight, &sync.acting);
        self.table.submit_all(from, &sync.waiting, &mut turns);
        self.table.all_seen_off(&seen_off, &mut turns);
        for (_, message) in later {
            self.table.said(from, &message, &mut turns);
        }
        turns
    }

    /// Whether that is new.
    fn passed_over(&mut self, member: Member, in_flight: &[InFlightClaim], acting: &[ActingClaim]) -> bool {
        self.heard += 1;
        if self.begun {
            return false;
        }
        let Some(speaker) = self.speakers.get_mut(&member).filter(|it| !it.is_accounted_for()) else {
            return false;
        };
        speaker.passed_over = true;
        speaker.sync = None;
        speaker.later.clear();
        let seen_off = self.table.install_all(member, in_flight, acting);
        // Nothing waits yet.
        self.table.all_seen_off(&seen_off, &mut Vec::new());
        true
    }

    /// Begins if all are there.
    fn begin(&mut self) -> Vec<(ClaimKey, Grant<()>)> {
        let mut turns = Vec::new();
        if self.begun
            || self.speakers.is_empty()
            || !self.speakers.values().all(MemberState::is_accounted_for)
        {
            return turns;
        }
        self.begun = true;
        let mut spoke: Vec<(u64, Member, StateSync)> = Vec::new();
        let mut later: Vec<(u64, Member, HostMessage)> = Vec::new();
        for (member, speaker) in self.speakers.iter_mut().filter(|(_, it)| it.ready) {
            spoke.extend(speaker.sync.take().map(|it| (speaker.at, *member, it)));
            later.extend(speaker.later.drain(..).map(|(at, it)| (at, *member, it)));
        }
        spoke.sort_by_key(|(at, ..)| *at);
        later.sort_by_key(|(at, ..)| *at);
        for (_, member, sync) in &spoke {
            // It may have been passed over first.
            self.table.release_all_but(*member, sync, &mut turns);
        }
        let mut seen_off = Vec::new();
        for (_, member, sync) in &spoke {
            seen_off.extend(self.table.install_all(*member, &sync.in_flight, &sync.acting));
        }
        for (_, member, sync) in &spoke {
            self.table.submit_all(*member, &sync.waiting, &mut turns);
        }
        self.table.all_seen_off(&seen_off, &mut turns);
        for (_, member, message) in &later {
            self.table.said(*member, message, &mut turns);
        }
        turns
    }

    /// Anything but what makes the view.
    fn said(&mut self, from: Member, message: &HostMessage) -> Vec<(ClaimKey, Grant<()>)> {
        let mut turns = Vec::new();
        if !is_of_table(message) {
            return turns;
        }
        self.heard += 1;
        let Some(speaker) = self.speakers.get_mut(&from) else { return turns };
        if self.begun && speaker.ready {
            self.table.said(from, message, &mut turns);
        } else if speaker.sync.is_some() {
            speaker.later.push((self.heard, message.clone()));
        }
        turns
    }
}

/// Whether [`Table::said`] makes anything of it.
fn is_of_table(message: &HostMessage) -> bool {
    matches!(
        message,
        HostMessage::Claim(_)
            | HostMessage::Withdraw { .. }
            | HostMessage::SeenOff { .. }
            | HostMessage::Finished { .. }
            | HostMessage::Taken { .. }
            | HostMessage::Progress { .. }
            | HostMessage::Reply { .. }
    )
}

/// The common arbiter, and who holds what.
#[derive(Debug)]
struct ReplicatedArbiter {
    arbiter: Arbiter,
    /// The arbiter's numbers of claims, and back.
    numbers: BTreeMap<ClaimKey, u64>,
    entries: BTreeMap<u64, ClaimEntry>,
    next: u64,
    /// The arbiter's time counts what happens: see [`Table::now`].
    start: Instant,
    happened: u64,
}

#[derive(Debug)]
struct ClaimEntry {
    key: ClaimKey,
    claim: ClaimMessage,
    in_flight: bool,
    seen_off: bool,
    /// Who may still do something for it.
    holders: BTreeSet<ClaimHolder>,
    /// What its asker said of its end, or who acted in its place.
    outcome: Option<AskOutcome>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum ClaimHolder {
    Asker,
    /// This one, with this ask.
    Owner(Member, u64),
}

impl ReplicatedArbiter {
    fn new(start: Instant) -> Self {
        Self {
            arbiter: Arbiter::default(),
            numbers: BTreeMap::new(),
            entries: BTreeMap::new(),
            next: 1,
            start,
            happened: 0,
        }
    }

    /// Later than ever before, and the same on every host but for the start.
    fn now(&mut self) -> Instant {
        self.happened += 1;
        self.start + Duration::from_nanos(self.happened)
    }

    fn said(&mut self, from: Member, message: &HostMessage, turns: &mut Vec<(ClaimKey, Grant<()>)>) {
        match message {
            HostMessage::Claim(claim) => self.submit((from, claim.id), claim, turns),
            HostMessage::Withdraw { id } => self.release((from, *id), ClaimHolder::Asker, None, turns),
            HostMessage::Finished { id, outcome } => {
                self.release((from, *id), ClaimHolder::Asker, Some(outcome), turns);
            }
            HostMessage::SeenOff { id, victim } => self.seen_off((from, *id), victim, turns),
            HostMessage::Taken { asker, ask, claim } => {
                let number = self.numbers.get(&(*asker, *claim));
                if let Some(entry) = number.and_then(|it| self.entries.get_mut(it)).filter(|it| it.in_flight)
                {
                    entry.holders.insert(ClaimHolder::Owner(from, *ask));
                }
            }
            HostMessage::Progress { asker, claim, victim, .. } => {
                self.seen_off((*asker, *claim), victim, turns);
            }
            HostMessage::Reply { asker, ask, claim: Some(claim), end } => {
                let outcome = match end {
                    AskEnd::Done(outcome) => Some(outcome),
                    AskEnd::NotHere | AskEnd::NothingDone(_) => None,
                };
                self.release((*asker, *claim), ClaimHolder::Owner(from, *ask), outcome, turns);
            }
            _ => {}
        }
    }

    /// Takes in what a member has in flight; gives what of it was seen off.
    fn install_all(
        &mut self,
        member: Member,
        in_flight: &[InFlightClaim],
        acting: &[ActingClaim],
    ) -> Vec<(ClaimKey, String)> {
        let own = in_flight.iter().map(|it| ((member, it.claim.id), it, ClaimHolder::Asker));
        let of_others = acting
            .iter()
            .map(|it| ((it.asker, it.held.claim.id), &it.held, ClaimHolder::Owner(member, it.ask)));
        let mut seen_off = Vec::new();
        for (key, held, holder) in own.chain(of_others) {
            let number = match self.numbers.get(&key) {
                Some(number) => *number,
                None => {
                    let number = self.number(key, &held.claim, true);
                    let request = self.request(number, key, &held.claim);
                    self.arbiter.install(request);
                    number
                }
            };
            if let Some(entry) = self.entries.get_mut(&number) {
                entry.holders.insert(holder);
            }
            if held.seen_off {
                seen_off.push((key, held.claim.target.clone()));
            }
        }
        seen_off
    }

    fn submit_all(
        &mut self,
        member: Member,
        waiting: &[ClaimMessage],
        turns: &mut Vec<(ClaimKey, Grant<()>)>,
    ) {
        for claim in waiting {
            self.submit((member, claim.id), claim, turns);
        }
    }

    fn all_seen_off(&mut self, seen_off: &[(ClaimKey, String)], turns: &mut Vec<(ClaimKey, Grant<()>)>) {
        for (key, victim) in seen_off {
            self.seen_off(*key, victim, turns);
        }
    }

    fn submit(&mut self, key: ClaimKey, claim: &ClaimMessage, turns: &mut Vec<(ClaimKey, Grant<()>)>) {
        if self.numbers.contains_key(&key) {
            return;
        }
        let number = self.number(key, claim, false);
        let request = self.request(number, key, claim);
        match self.arbiter.submit(request.arrived, request) {
            Ok(SubmitResult::Run) => self.carry_out(vec![ArbiterDecision::Run(number)], None, turns),
            Ok(SubmitResult::Wait | SubmitResult::Joined(_)) => {}
            Err(why) => self.carry_out(vec![ArbiterDecision::Drop(number, why)], None, turns),
        }
    }

    fn seen_off(&mut self, key: ClaimKey, victim: &str, turns: &mut Vec<(ClaimKey, Grant<()>)>) {
        let now = self.now();
        let mut decisions = Vec::new();
        if let Some(number) = self.numbers.get(&key)
            && let Some(entry) = self.entries.get_mut(number)
        {
            entry.seen_off = true;
            decisions = self.arbiter.seen_off(now, *number);
        }
        // Also of what is in flight no more, or never was here.
        decisions.extend(self.arbiter.victim(now, victim));
        self.carry_out(decisions, None, turns);
    }

    /// One of those that held a claim does nothing for it any more.
    fn release(
        &mut self,
        key: ClaimKey,
        holder: ClaimHolder,
        outcome: Option<&AskOutcome>,
        turns: &mut Vec<(ClaimKey, Grant<()>)>,
    ) {
        let Some(number) = self.numbers.get(&key).copied() else { return };
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if !entry.holders.remove(&holder) {
            return;
        }
        // The asker's word counts; where it is gone, that of who acted.
        if entry.outcome.is_none()
            && (holder == ClaimHolder::Asker || !entry.holders.contains(&ClaimHolder::Asker))
        {
            entry.outcome = outcome.cloned();
        }
        if !entry.holders.is_empty() {
            return;
        }
        let ended = entry.outcome.take().filter(|_| entry.in_flight);
        self.entries.remove(&number);
        self.numbers.remove(&key);
        let now = self.now();
        let decisions = match ended {
            Some(_) => self.arbiter.finished(now, number),
            None => self.arbiter.abandoned(now, number),
        };
        let told = ended.map(|it| SharedResult {
            response: it.response,
            reason: it.reason,
            by: format!("one of node {}", key.0.node),
        });
        self.carry_out(decisions, told.as_ref(), turns);
    }

    /// A member that was passed over has said what it has: what it was thought to have besides is over.
    fn release_all_but(&mut self, member: Member, sync: &StateSync, turns: &mut Vec<(ClaimKey, Grant<()>)>) {
        let own = sync.in_flight.iter().map(|it| ((member, it.claim.id), ClaimHolder::Asker));
        let of_others =
            sync.acting.iter().map(|it| ((it.asker, it.held.claim.id), ClaimHolder::Owner(member, it.ask)));
        let held: BTreeSet<(ClaimKey, ClaimHolder)> = own.chain(of_others).collect();
        let mut over = Vec::new();
        for entry in self.entries.values() {
            let of_member = entry.holders.iter().filter(|it| match it {
                ClaimHolder::Asker => entry.key.0 == member,
                ClaimHolder::Owner(owner, _) => *owner == member,
            });
            over.extend(of_member.map(|it| (entry.key, *it)).filter(|it| !held.contains(it)));
        }
        for (key, holder) in over {
            self.release(key, holder, None, turns);
        }
    }

    /// What a member has in flight.
    fn held_by(&self, member: Member) -> (Vec<InFlightClaim>, Vec<ActingClaim>) {
        let (mut in_flight, mut acting) = (Vec::new(), Vec::new());
        for entry in self.entries.values().filter(|it| it.in_flight) {
            let held = || InFlightClaim { claim: entry.claim.clone(), seen_off: entry.seen_off };
            for holder in &entry.holders {
                match holder {
                    ClaimHolder::Asker if entry.key.0 == member => in_flight.push(held()),
                    ClaimHolder::Owner(owner, ask) if *owner == member => {
                        acting.push(ActingClaim { asker: entry.key.0, ask: *ask, held: held() });
                    }
                    ClaimHolder::Asker | ClaimHolder::Owner(..) => {}
                }
            }
        }
        (in_flight, acting)
    }

    /// Whether a claim that waits may be shot by, or shoot the source of, one before it that nobody will tell the end
    /// of.
    fn endangered_by(&self, key: ClaimKey, stays: impl Fn(&Member) -> bool) -> bool {
        let Some(number) = self.numbers.get(&key) else { return false };
        self.arbiter.endangered_by(*number).iter().filter_map(|it| self.entries.get(it)).any(|it| {
            !it.holders.iter().any(|holder| match holder {
                ClaimHolder::Asker => stays(&it.key.0),
                ClaimHolder::Owner(owner, _) => stays(owner),
            })
        })
    }

    fn carry_out(
        &mut self,
        decisions: Vec<ArbiterDecision>,
        told: Option<&SharedResult>,
        turns: &mut Vec<(ClaimKey, Grant<()>)>,
    ) {
        for decision in decisions {
            match decision {
                ArbiterDecision::Run(number) => {
                    if let Some(entry) = self.entries.get_mut(&number) {
                        entry.in_flight = true;
                        turns.push((entry.key, Grant::Run(())));
                    }
                }
                ArbiterDecision::Drop(number, why) => {
                    turns.extend(self.forget(number).map(|key| (key, Grant::Rejected(why))));
                }
                ArbiterDecision::Deliver(number) => {
                    // Without an outcome nothing is delivered.
                    let key = self.forget(number);
                    turns.extend(key.zip(told).map(|(key, told)| (key, Grant::Coalesced(told.clone()))));
                }
            }
        }
    }

    fn forget(&mut self, number: u64) -> Option<ClaimKey> {
        let entry = self.entries.remove(&number)?;
        self.numbers.remove(&entry.key);
        Some(entry.key)
    }

    fn number(&mut self, key: ClaimKey, claim: &ClaimMessage, in_flight: bool) -> u64 {
        let number = self.next;
        self.next += 1;
        self.numbers.insert(key, number);
        // What waits is its asker's alone.
        let holders = if in_flight { BTreeSet::new() } else { BTreeSet::from([ClaimHolder::Asker]) };
        let claim = claim.clone();
        self.entries
            .insert(number, ClaimEntry { key, claim, in_flight, seen_off: false, holders, outcome: None });
        number
    }

    fn request(&mut self, id: u64, key: ClaimKey, claim: &ClaimMessage) -> ArbiterRequest {
        let now = self.now();
        ArbiterRequest {
            id,
            work: claim.work(),
            source: claim.source.clone().map_or(RequestSource::Unknown, RequestSource::Known),
            // An address, or a context id, is known by this only on the host that saw it.
            peer: claim.peer.as_ref().map(|it| PeerId(format!("{} {it}", key.0))),
            arrived: now,
            deadline: now + FOR_EVER,
        }
    }
}
