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

use super::message::{Acting, Claim, End, Held, Member, Message, Outcome, Sync};
use crate::arbiter::{Arbiter, Decision, PeerId, Request, Source, Verdict, Why};
use crate::turns::Told;

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
pub(crate) struct Claims {
    /// This host in the group; none while it is alone.
    me: Option<Member>,
    /// The number of the next claim.
    next: u64,
    /// Syncs that were sent.
    syncs: u64,
    own: BTreeMap<u64, Own>,
    /// What others ask of this host under their claims: by asker and number of the ask.
    asked: BTreeMap<(Member, u64), Claim>,
    /// What this host does of that, or is about to.
    acting: BTreeMap<(Member, u64), Held>,
    view: View,
    /// The latest replica that was complete, and of which members, for [`Claims::pass_over`].
    before: Table,
    before_of: BTreeSet<Member>,
    /// What the arbiter is told that the time is; it never passes.
    start: Instant,
    effects: Vec<Effect>,
}

/// What the caller is to do, in this order. Numbers are those of [`Claims::claim`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Send it to the group.
    Send(Message),
    /// Its turn has come.
    Run(u64),
    /// Another host did the same work. It is over.
    Told(u64, Told),
    /// It does not run. It is over.
    Never(u64, Why),
    /// Another host saw this domain off.
    Victim(String),
}

/// A claim of this host that is not over.
#[derive(Debug)]
struct Own {
    claim: Claim,
    stage: Stage,
    /// Whoever waits for it was told that it may run.
    told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Asked,
    Granted,
    /// Granted, and its source went down before it had proved itself.
    Void,
    Proved,
    SeenOff,
}

impl Claims {
    /// `first` is the number of the first claim: drawn, and far from the end of all numbers, so that claims of an earlier
    /// daemon of the same process id are no claims of this one.
    pub(crate) fn new(first: u64, now: Instant) -> Self {
        Self {
            me: None,
            next: first,
            syncs: first,
            own: BTreeMap::new(),
            asked: BTreeMap::new(),
            acting: BTreeMap::new(),
            view: View::of(&BTreeSet::new(), now),
            before: Table::new(now),
            before_of: BTreeSet::new(),
            start: now,
            effects: Vec::new(),
        }
    }

    /// This host joined the group, as this member. A change follows.
    pub(crate) fn joined(&mut self, me: Member) -> Vec<Effect> {
        self.me = Some(me);
        self.decide_again(|_| false);
        self.view = View::of(&BTreeSet::new(), self.start);
        self.take_effects()
    }

    /// This host lost corosync, or does not find it. Until that, or [`Claims::joined`], is known, all wait.
    pub(crate) fn lost(&mut self) -> Vec<Effect> {
        self.drop_what_nobody_tells(&BTreeSet::new());
        self.me = None;
        self.asked.clear();
        self.decide_again(|_| false);
        self.begin_alone();
        self.take_effects()
    }

    /// Whether it is not known yet that the group is there, or not; all wait for that.
    pub(crate) fn is_looking(&self) -> bool {
        self.me.is_none() && !self.view.begun
    }

    /// The membership of the group is this from now on.
    pub(crate) fn change(&mut self, members: &BTreeSet<Member>) -> Vec<Effect> {
        let Some(me) = self.me else { return Vec::new() };
        self.drop_what_nobody_tells(members);
        self.asked.retain(|(asker, _), _| members.contains(asker));
        let view = View::of(members, self.start);
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
    pub(crate) fn message(&mut self, from: Member, message: &Message) -> Vec<Effect> {
        let Some(me) = self.me else { return Vec::new() };
        if !self.view.speakers.contains_key(&from) {
            return Vec::new();
        }
        match message {
            Message::Sync(sync) => {
                self.view.synced(from, sync);
                if from == me && sync.n == self.syncs {
                    self.effects.push(Effect::Send(Message::Ready { n: sync.n }));
                }
            }
            Message::Ready { n } => {
                let turns = self.view.ready(from, *n);
                self.take(turns);
            }
            Message::PassOver { member, in_flight, acting } => {
                if self.view.passed_over(*member, in_flight, acting) && *member == me {
                    // What others don't know of holds nothing up there.
                    self.decide_again(|id| in_flight.iter().any(|it| it.claim.id == id));
                    self.sync();
                }
                let turns = self.view.begin();
                self.take(turns);
            }
            Message::Ask(ask) if ask.to == me => {
                if let Some(claim) = &ask.claim {
                    self.asked.insert((from, ask.ask), claim.clone());
                }
            }
            Message::Cancel { to, ask } if *to == me => drop(self.asked.remove(&(from, *ask))),
            _ => {
                let turns = self.view.said(from, message);
                self.take(turns);
                if let Message::SeenOff { victim, .. } | Message::Progress { victim, .. } = message {
                    if from != me {
                        self.effects.push(Effect::Victim(victim.clone()));
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
    pub(crate) fn claim(&mut self, request: &Request) -> Result<(u64, Vec<Effect>), Why> {
        if self.own.len() >= CLAIM_LIMIT {
            return Err(Why::ClaimsFull);
        }
        let id = self.next;
        let claim = Claim::of(id, &request.work, &request.source, request.peer.as_ref());
        self.next += 1;
        self.own.insert(id, Own { claim: claim.clone(), stage: Stage::Asked, told: false });
        self.say(Message::Claim(claim));
        Ok((id, self.take_effects()))
    }

    /// What another host is to be asked for under this claim.
    pub(crate) fn of(&self, id: u64) -> Option<&Claim> {
        self.own.get(&id).map(|it| &it.claim)
    }

    /// The client of a claim that may run has proved itself, and its work is about to begin.
    ///
    /// # Errors
    /// It must not: what was decided holds no more. To be withdrawn.
    pub(crate) fn proved(&mut self, id: u64) -> Result<(), Why> {
        match self.own.get_mut(&id) {
            Some(own) if own.stage == Stage::Granted => {
                own.stage = Stage::Proved;
                Ok(())
            }
            Some(own) if own.stage == Stage::Void => Err(Why::SourceFenced),
            _ => Err(Why::TurnLost),
        }
    }

    /// The target was seen off.
    pub(crate) fn seen_off(&mut self, id: u64) -> Vec<Effect> {
        if let Some(own) = self.own.get_mut(&id) {
            own.stage = Stage::SeenOff;
            let victim = own.claim.target.clone();
            self.say(Message::SeenOff { id, victim: victim.clone() });
            self.source_is_down(&victim);
        }
        self.take_effects()
    }

    /// The work is over, and nothing that this host does of it can take effect any more.
    pub(crate) fn finished(&mut self, id: u64, response: Response, reason: Option<&str>) -> Vec<Effect> {
        if self.own.remove(&id).is_some() {
            self.say(Message::Finished { id, outcome: Outcome::new(response, reason) });
        }
        self.take_effects()
    }

    /// Nothing was done for it, and nothing will be. Whoever waits for it is told nothing.
    pub(crate) fn withdraw(&mut self, id: u64) -> Vec<Effect> {
        if self.own.remove(&id).is_some() {
            self.say(Message::Withdraw { id });
        }
        self.take_effects()
    }

    /// This host says `taken`, `progress` or `reply` to an asker, now, whether the group is there to hear it or not.
    pub(crate) fn says(&mut self, message: &Message) -> Vec<Effect> {
        match message {
            Message::Taken { asker, ask, .. } => {
                if let Some(claim) = self.asked.get(&(*asker, *ask)) {
                    let held = Held { claim: claim.clone(), seen_off: false };
                    self.acting.insert((*asker, *ask), held);
                }
            }
            Message::Progress { asker, ask, victim, .. } => {
                if let Some(held) = self.acting.get_mut(&(*asker, *ask)) {
                    held.seen_off = true;
                }
                self.source_is_down(victim);
            }
            Message::Reply { asker, ask, .. } => {
                self.asked.remove(&(*asker, *ask));
                self.acting.remove(&(*asker, *ask));
            }
            _ => return Vec::new(),
        }
        if self.me.is_none() {
            let turns = self.view.said(ALONE, message);
            self.take(turns);
        }
        self.take_effects()
    }

    /// Members that have not said what they have under way, while all others wait for that; and whether this host knows
    /// it of each. One that does should speak first.
    pub(crate) fn silent(&self) -> Vec<(Member, bool)> {
        if self.view.begun {
            return Vec::new();
        }
        let silent = self.view.speakers.iter().filter(|(_, it)| !it.counts());
        silent.map(|(member, _)| (*member, self.before_of.contains(member))).collect()
    }

    /// All are to go on without this one's word, for it has been silent for too long.
    pub(crate) fn pass_over(&mut self, member: Member) -> Vec<Effect> {
        if self.silent().iter().any(|(it, _)| *it == member) {
            let (in_flight, acting) = self.before.held_by(member);
            self.effects.push(Effect::Send(Message::PassOver { member, in_flight, acting }));
        }
        self.take_effects()
    }

    /// Claims in flight and waiting, of all hosts.
    pub(crate) fn counts(&self) -> (usize, usize) {
        self.view.table.arbiter.counts()
    }

    /// Says it to all; alone, to itself.
    fn say(&mut self, message: Message) {
        if self.me.is_none() {
            let turns = self.view.said(ALONE, &message);
            self.take(turns);
        } else {
            self.effects.push(Effect::Send(message));
        }
    }

    fn sync(&mut self) {
        self.syncs += 1;
        let sync = self.under_way();
        self.effects.push(Effect::Send(Message::Sync(sync)));
    }

    fn under_way(&self) -> Sync {
        let of = |waiting| self.own.values().filter(move |it| (it.stage == Stage::Asked) == waiting);
        let held = |it: &Own| Held { claim: it.claim.clone(), seen_off: it.stage == Stage::SeenOff };
        let acting = |((asker, ask), held): (&(Member, u64), &Held)| Acting {
            asker: *asker,
            ask: *ask,
            held: held.clone(),
        };
        Sync {
            n: self.syncs,
            in_flight: of(false).map(held).collect(),
            waiting: of(true).map(|it| it.claim.clone()).collect(),
            acting: self.acting.iter().map(acting).collect(),
        }
    }

    fn begin_alone(&mut self) {
        self.view = View::of(&BTreeSet::from([ALONE]), self.start);
        self.view.synced(ALONE, &self.under_way());
        let turns = self.view.ready(ALONE, self.syncs);
        self.take(turns);
    }

    /// What was decided among others than those that decide now is not decided, unless it is proved.
    fn decide_again(&mut self, stands: impl Fn(u64) -> bool) {
        for (id, own) in &mut self.own {
            if own.stage == Stage::Granted && !stands(*id) {
                own.stage = Stage::Asked;
            }
        }
    }

    /// Ends what waits for something whose end nobody will tell, now that only these members are left.
    fn drop_what_nobody_tells(&mut self, members: &BTreeSet<Member>) {
        let me = self.me();
        let table = if self.view.begun { &self.view.table } else { &self.before };
        let stays = |it: &Member| *it == me || members.contains(it);
        let lost: Vec<u64> = self
            .own
            .iter()
            .filter(|(id, own)| own.stage == Stage::Asked && table.endangered_by((me, **id), stays))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.end(id, Why::HostsApart);
        }
    }

    /// What came from a domain that went down does not run.
    fn source_is_down(&mut self, victim: &str) {
        let from_it = |it: &Own| it.claim.source.as_deref() == Some(victim);
        let waiting = self.own.iter().filter(|(_, it)| from_it(it) && it.stage == Stage::Asked);
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id, Why::SourceFenced);
        }
        for own in self.own.values_mut().filter(|it| from_it(it) && it.stage == Stage::Granted) {
            own.stage = Stage::Void;
        }
    }

    /// Ends a claim that waits, by this host's own decision.
    fn end(&mut self, id: u64, why: Why) {
        self.own.remove(&id);
        self.effects.push(Effect::Never(id, why));
        self.say(Message::Withdraw { id });
    }

    fn me(&self) -> Member {
        self.me.unwrap_or(ALONE)
    }

    /// Takes what was decided of this host's claims. What it knows to be over already is no matter.
    fn take(&mut self, turns: Vec<(Key, Turn)>) {
        let me = self.me();
        for ((_, id), turn) in turns.into_iter().filter(|((member, _), _)| *member == me) {
            let Some(own) = self.own.get_mut(&id).filter(|it| it.stage == Stage::Asked) else { continue };
            match turn {
                Turn::Run => {
                    own.stage = Stage::Granted;
                    if !std::mem::replace(&mut own.told, true) {
                        self.effects.push(Effect::Run(id));
                    }
                }
                Turn::Told(told) => {
                    self.own.remove(&id);
                    self.effects.push(Effect::Told(id, told));
                }
                Turn::Never(why) => {
                    self.own.remove(&id);
                    self.effects.push(Effect::Never(id, why));
                }
            }
        }
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }
}

/// A claim: whose, and its number there.
type Key = (Member, u64);

/// What is decided of a claim.
#[derive(Debug)]
enum Turn {
    Run,
    Told(Told),
    Never(Why),
}

/// What was delivered since the membership changed last, and what it makes.
#[derive(Debug)]
struct View {
    speakers: BTreeMap<Member, Speaker>,
    /// Messages so far.
    heard: u64,
    /// Every member's word is there, or it was passed over.
    begun: bool,
    table: Table,
}

/// A member, and what it said.
#[derive(Debug, Default)]
struct Speaker {
    sync: Option<Sync>,
    /// When that was delivered, and what it said after, each with the time: that of [`View::heard`].
    at: u64,
    later: Vec<(u64, Message)>,
    /// Its sync counts.
    ready: bool,
    /// Nobody waits for it.
    passed_over: bool,
}

impl Speaker {
    fn counts(&self) -> bool {
        self.ready || self.passed_over
    }
}

impl View {
    fn of(members: &BTreeSet<Member>, start: Instant) -> Self {
        let speakers = members.iter().map(|it| (*it, Speaker::default())).collect();
        Self { speakers, heard: 0, begun: false, table: Table::new(start) }
    }

    fn synced(&mut self, from: Member, sync: &Sync) {
        self.heard += 1;
        if let Some(speaker) = self.speakers.get_mut(&from).filter(|it| !it.ready) {
            speaker.sync = Some(sync.clone());
            speaker.at = self.heard;
            speaker.later.clear();
        }
    }

    fn ready(&mut self, from: Member, n: u64) -> Vec<(Key, Turn)> {
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
    fn passed_over(&mut self, member: Member, in_flight: &[Held], acting: &[Acting]) -> bool {
        self.heard += 1;
        if self.begun {
            return false;
        }
        let Some(speaker) = self.speakers.get_mut(&member).filter(|it| !it.counts()) else { return false };
        speaker.passed_over = true;
        speaker.sync = None;
        speaker.later.clear();
        let seen_off = self.table.install_all(member, in_flight, acting);
        // Nothing waits yet.
        self.table.all_seen_off(&seen_off, &mut Vec::new());
        true
    }

    /// Begins if all are there.
    fn begin(&mut self) -> Vec<(Key, Turn)> {
        let mut turns = Vec::new();
        if self.begun || self.speakers.is_empty() || !self.speakers.values().all(Speaker::counts) {
            return turns;
        }
        self.begun = true;
        let mut spoke: Vec<(u64, Member, Sync)> = Vec::new();
        let mut later: Vec<(u64, Member, Message)> = Vec::new();
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
    fn said(&mut self, from: Member, message: &Message) -> Vec<(Key, Turn)> {
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
fn is_of_table(message: &Message) -> bool {
    matches!(
        message,
        Message::Claim(_)
            | Message::Withdraw { .. }
            | Message::SeenOff { .. }
            | Message::Finished { .. }
            | Message::Taken { .. }
            | Message::Progress { .. }
            | Message::Reply { .. }
    )
}

/// The common arbiter, and who holds what.
#[derive(Debug)]
struct Table {
    arbiter: Arbiter,
    /// The arbiter's numbers of claims, and back.
    numbers: BTreeMap<Key, u64>,
    entries: BTreeMap<u64, Entry>,
    next: u64,
    /// The arbiter's time counts what happens: see [`Table::now`].
    start: Instant,
    happened: u64,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    claim: Claim,
    in_flight: bool,
    seen_off: bool,
    /// Who may still do something for it.
    holders: BTreeSet<Holder>,
    /// What its asker said of its end, or who acted in its place.
    outcome: Option<Outcome>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Holder {
    Asker,
    /// This one, with this ask.
    Owner(Member, u64),
}

impl Table {
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

    fn said(&mut self, from: Member, message: &Message, turns: &mut Vec<(Key, Turn)>) {
        match message {
            Message::Claim(claim) => self.submit((from, claim.id), claim, turns),
            Message::Withdraw { id } => self.release((from, *id), Holder::Asker, None, turns),
            Message::Finished { id, outcome } => {
                self.release((from, *id), Holder::Asker, Some(outcome), turns);
            }
            Message::SeenOff { id, victim } => self.seen_off((from, *id), victim, turns),
            Message::Taken { asker, ask, claim } => {
                let number = self.numbers.get(&(*asker, *claim));
                if let Some(entry) = number.and_then(|it| self.entries.get_mut(it)).filter(|it| it.in_flight)
                {
                    entry.holders.insert(Holder::Owner(from, *ask));
                }
            }
            Message::Progress { asker, claim, victim, .. } => self.seen_off((*asker, *claim), victim, turns),
            Message::Reply { asker, ask, claim: Some(claim), end } => {
                let outcome = match end {
                    End::Done(outcome) => Some(outcome),
                    End::NotHere | End::NothingDone(_) => None,
                };
                self.release((*asker, *claim), Holder::Owner(from, *ask), outcome, turns);
            }
            _ => {}
        }
    }

    /// Takes in what a member has in flight; gives what of it was seen off.
    fn install_all(&mut self, member: Member, in_flight: &[Held], acting: &[Acting]) -> Vec<(Key, String)> {
        let own = in_flight.iter().map(|it| ((member, it.claim.id), it, Holder::Asker));
        let of_others =
            acting.iter().map(|it| ((it.asker, it.held.claim.id), &it.held, Holder::Owner(member, it.ask)));
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

    fn submit_all(&mut self, member: Member, waiting: &[Claim], turns: &mut Vec<(Key, Turn)>) {
        for claim in waiting {
            self.submit((member, claim.id), claim, turns);
        }
    }

    fn all_seen_off(&mut self, seen_off: &[(Key, String)], turns: &mut Vec<(Key, Turn)>) {
        for (key, victim) in seen_off {
            self.seen_off(*key, victim, turns);
        }
    }

    fn submit(&mut self, key: Key, claim: &Claim, turns: &mut Vec<(Key, Turn)>) {
        if self.numbers.contains_key(&key) {
            return;
        }
        let number = self.number(key, claim, false);
        let request = self.request(number, key, claim);
        match self.arbiter.submit(request.arrived, request) {
            Ok(Verdict::Run) => self.carry_out(vec![Decision::Run(number)], None, turns),
            Ok(Verdict::Wait | Verdict::Joined(_)) => {}
            Err(why) => self.carry_out(vec![Decision::Drop(number, why)], None, turns),
        }
    }

    fn seen_off(&mut self, key: Key, victim: &str, turns: &mut Vec<(Key, Turn)>) {
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
    fn release(&mut self, key: Key, holder: Holder, outcome: Option<&Outcome>, turns: &mut Vec<(Key, Turn)>) {
        let Some(number) = self.numbers.get(&key).copied() else { return };
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if !entry.holders.remove(&holder) {
            return;
        }
        // The asker's word counts; where it is gone, that of who acted.
        if entry.outcome.is_none() && (holder == Holder::Asker || !entry.holders.contains(&Holder::Asker)) {
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
        let told = ended.map(|it| Told {
            response: it.response,
            reason: it.reason,
            by: format!("one of node {}", key.0.node),
        });
        self.carry_out(decisions, told.as_ref(), turns);
    }

    /// A member that was passed over has said what it has: what it was thought to have besides is over.
    fn release_all_but(&mut self, member: Member, sync: &Sync, turns: &mut Vec<(Key, Turn)>) {
        let own = sync.in_flight.iter().map(|it| ((member, it.claim.id), Holder::Asker));
        let of_others =
            sync.acting.iter().map(|it| ((it.asker, it.held.claim.id), Holder::Owner(member, it.ask)));
        let held: BTreeSet<(Key, Holder)> = own.chain(of_others).collect();
        let mut over = Vec::new();
        for entry in self.entries.values() {
            let of_member = entry.holders.iter().filter(|it| match it {
                Holder::Asker => entry.key.0 == member,
                Holder::Owner(owner, _) => *owner == member,
            });
            over.extend(of_member.map(|it| (entry.key, *it)).filter(|it| !held.contains(it)));
        }
        for (key, holder) in over {
            self.release(key, holder, None, turns);
        }
    }

    /// What a member has in flight.
    fn held_by(&self, member: Member) -> (Vec<Held>, Vec<Acting>) {
        let (mut in_flight, mut acting) = (Vec::new(), Vec::new());
        for entry in self.entries.values().filter(|it| it.in_flight) {
            let held = || Held { claim: entry.claim.clone(), seen_off: entry.seen_off };
            for holder in &entry.holders {
                match holder {
                    Holder::Asker if entry.key.0 == member => in_flight.push(held()),
                    Holder::Owner(owner, ask) if *owner == member => {
                        acting.push(Acting { asker: entry.key.0, ask: *ask, held: held() });
                    }
                    Holder::Asker | Holder::Owner(..) => {}
                }
            }
        }
        (in_flight, acting)
    }

    /// Whether a claim that waits may be shot by, or shoot the source of, one before it that nobody will tell the end
    /// of.
    fn endangered_by(&self, key: Key, stays: impl Fn(&Member) -> bool) -> bool {
        let Some(number) = self.numbers.get(&key) else { return false };
        self.arbiter.endangered_by(*number).iter().filter_map(|it| self.entries.get(it)).any(|it| {
            !it.holders.iter().any(|holder| match holder {
                Holder::Asker => stays(&it.key.0),
                Holder::Owner(owner, _) => stays(owner),
            })
        })
    }

    fn carry_out(&mut self, decisions: Vec<Decision>, told: Option<&Told>, turns: &mut Vec<(Key, Turn)>) {
        for decision in decisions {
            match decision {
                Decision::Run(number) => {
                    if let Some(entry) = self.entries.get_mut(&number) {
                        entry.in_flight = true;
                        turns.push((entry.key, Turn::Run));
                    }
                }
                Decision::Drop(number, why) => {
                    turns.extend(self.forget(number).map(|key| (key, Turn::Never(why))));
                }
                Decision::Deliver(number) => {
                    // Without an outcome nothing is delivered.
                    let key = self.forget(number);
                    turns.extend(key.zip(told).map(|(key, told)| (key, Turn::Told(told.clone()))));
                }
            }
        }
    }

    fn forget(&mut self, number: u64) -> Option<Key> {
        let entry = self.entries.remove(&number)?;
        self.numbers.remove(&entry.key);
        Some(entry.key)
    }

    fn number(&mut self, key: Key, claim: &Claim, in_flight: bool) -> u64 {
        let number = self.next;
        self.next += 1;
        self.numbers.insert(key, number);
        // What waits is its asker's alone.
        let holders = if in_flight { BTreeSet::new() } else { BTreeSet::from([Holder::Asker]) };
        let claim = claim.clone();
        self.entries.insert(number, Entry { key, claim, in_flight, seen_off: false, holders, outcome: None });
        number
    }

    fn request(&mut self, id: u64, key: Key, claim: &Claim) -> Request {
        let now = self.now();
        Request {
            id,
            work: claim.work(),
            source: claim.source.clone().map_or(Source::Unknown, Source::Known),
            // An address, or a context id, is known by this only on the host that saw it.
            peer: claim.peer.as_ref().map(|it| PeerId(format!("{} {it}", key.0))),
            arrived: now,
            deadline: now + FOR_EVER,
        }
    }
}
