// SPDX-License-Identifier: GPL-2.0-or-later
//! Order of the requests of one host: when each may run, and which never run.
//!
//! Owns the requests between access and reply: which wait, which are in flight, which have joined another.
//! Pure: requests, events and the time go in, decisions come out. One value for the whole daemon, for all
//! listeners; the caller keeps it behind a lock and carries the decisions out. Must never read a clock, wait,
//! log, or know a socket or a hypervisor.
//!
//! # A request's way
//! [`Arbiter::submit`] returns run, wait or joined. A waiting request gets [`ArbiterDecision::Run`] later:
//! the caller then asks the peer for its proof, acts, and reports
//! - [`Arbiter::seen_off`] when a status check after the action showed the target off,
//! - [`Arbiter::answered`] when the client has its answer, and a part of the work may take effect late,
//! - [`Arbiter::finished`] when the work is over and nothing of it can take effect any more, or
//! - [`Arbiter::abandoned`] when nothing was done (the proof failed, or the client left before the action).
//!
//! A joined request gets [`ArbiterDecision::Deliver`]: the caller asks its peer for the proof and then sends
//! the result of the work that it joined. So proof always follows the decision, for either kind, and never
//! comes before it. Every accepted request ends in exactly one of: a report by the caller (finished or
//! abandoned), [`ArbiterDecision::Drop`], [`ArbiterDecision::Deliver`].
//!
//! # What holds up what
//! | two requests | the later waits until the earlier is |
//! | --- | --- |
//! | off, on, reboot of one target (other than joined) | finished |
//! | off, reboot: the target of one may be where the other comes from | seen off, or finished without |
//! | anything else; whatever only looks | never |
//!
//! Seen off by the doing of one order, a target may go off once more by another that was given for the same
//! request and is not settled ([`Arbiter::may_come_again`]). Such a request is a danger to its very end: its
//! target may be started meanwhile, and shoot.
//!
//! One that was answered is held: it still holds up what it conflicts with, and none may join it, for its
//! result is that of finished work ([`EntryState::Held`] has no place for one that joined). If nothing but a
//! power-off can come of it ([`LateEffect::PowerOff`]), it does not hold up an off or a reboot of its target:
//! what may still come late is what they want, and a node that is not down yet must not wait for it. All else
//! waits as before; an "on" would be undone. The same holds for orders that an earlier daemon gave
//! ([`Arbiter::install_late`]): a start that may come late does not hold up an "on".
//!
//! A power-off that hangs ([`LateEffect::HangingOff`]) may come at any later moment, or never. It holds up
//! only what has its target, and what is known to come from there. What waits for that end is overtaken by
//! all others, holds up none, and none joins it.
//!
//! One target: "off already" must not be said of a domain that a reboot is about to start. Danger: once the
//! target is seen off neither can spoil the other, and the start after a reboot shoots nobody.
//!
//! "May be" is exact where the source is known. Where it is not, the source is one of the domains that can
//! have shown the key ([`PossibleSources`]), or any domain, and never one that the same peer shoots at. So
//! sets of domains with keys of their own are islands: where no target of one is a target or a possible
//! source of the other, nothing of one waits for the other, whatever hangs there.
//!
//! The order is that of submission, but for what goes behind (below), and a waiting request holds up later
//! ones as one in flight does, so nothing else is overtaken by what it conflicts with. A request waits only
//! for earlier ones or ones in flight, so there is no deadlock; and each ends by its deadline at the latest,
//! so there is no starvation.
//!
//! A request joins when the last request for its target that is not over asks the same. With another one
//! between (off, on, off) it takes its turn behind that, for it must not be told "off" of a domain that is
//! started after. A joined request holds up what conflicts with it for as long as what it joined is not seen
//! off: if that one comes to nothing, the first that joined it takes over, at its own place.
//!
//! A look at the target says nothing to a request that arrived after that look began: the domain may have
//! been started in between. So when a target is seen off, those that joined and arrived too late for that
//! look take their turn, and of those that are submitted later only one that arrived before it may join.
//!
//! Who lets turns pass goes behind. A request that was told to run and whose client gives no proof holds up
//! what conflicts with it for as long as a proof may take. So each such turn of a sender ([`SenderId`],
//! [`Arbiter::wasted`]) puts what else it has waiting behind all conflicting requests of senders with fewer
//! of them. A proof ([`Arbiter::proved`]), or [`VICTIM_MEMORY`] without a further one, makes up for all. At
//! any moment all that wait stand in one line, so there is no deadlock; and no request waits behind others
//! for what it joined: it leaves one that falls behind it.
//!
//! # One survivor
//! Whatever a set of nodes sends for each other, one of them stays up, as far as this one daemon does the
//! shooting. It stands on this: a known source is the source, and the source is missing in no
//! [`PossibleSources`] of its requests. These say what the key meant when the request came, so requests from
//! before and after a change of the groups may meet: each has its own source.
//!
//! Suppose that all were down. Let Z be the one that went down last, shot by a request from Y; Y itself was
//! shot before, by a request from X, and is still down. The two requests conflict: the target of the second,
//! Y, is where the first comes from, as its known source or as one of its possible ones. So their times, each
//! from the order to run (before the proof) to the target seen off, don't overlap, and the one that shot Y,
//! who went down first, had the earlier time. Then Y's request was not told to run before Y was seen off.
//! With a known source it was dropped at that moment, or refused, if it was submitted after: recent victims
//! are remembered. With an unknown one nobody was left to answer the challenge, for a machine that was
//! started again knows nothing of the old stream. Either way Z was not shot by it. (A fence that took effect
//! and was never seen to, and so ended as a failure, leaves a known source to the challenge as well, and on a
//! serial line to its being closed. Without a challenge, `auth = "none"`, and without a known source there is
//! no such promise.)
//!
//! X, Y and Z may be of islands that overlap. Nothing counts but that Y is among those that can have its key:
//! the more others can have it, the more requests conflict.
//!
//! For the same reason a request in flight can't lose its source to another; a peer that shoots itself can.
//!
//! Power-offs that hang may come after all others, at any moment. Where each source is known the rule
//! stands. Suppose again that all were down. Let Z be the last one that went down in time, by no power-off
//! that hung, shot by Y. If Y went down in time too, it did so before Z, and the above holds. Else X shot Y
//! by one that hung. Whatever Y shot was over before that one was told to run, for from then on all that
//! comes from Y waits. So Z was down by then, and X was up, for it gave its proof. X went down later than
//! Z, so by one that hung as well, from W; and that one was told to run after the one of X for Y. So it
//! goes on from X to W, each time to a power-off that was told to run later, and there is no end of that:
//! but there is an end of nodes. (If none went down in time, begin with any of them.)
//!
//! Where a source is not known it may be V. Such requests are not held up by a power-off that hangs: else
//! nothing could be fenced while a hypervisor stands still. So V may be one of those that shoot, and go down
//! later itself. That is given up, from the moment on when the caller says that the power-off hangs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::domain::{PowerAction, TargetKind};

pub use self::grant::{Grant, HoldUp, REQUEST_LIMIT, Rejection, SharedResult, TARGET_LIMIT};

mod grant;
#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

/// Time for which a victim is remembered, and longest time between a request's arrival and its submission.
pub const VICTIM_MEMORY: Duration = Duration::from_secs(120);
/// Victims that are remembered; of more the oldest is forgotten (late proof still stands).
const VICTIM_LIMIT: usize = 4096;
/// Senders whose wasted turns are remembered; of more the oldest is forgotten.
const SENDER_LIMIT: usize = 4096;

/// Requested action and its target: a UUID in canonical text. Text, because claims come from other hosts, and
/// any identifier in them orders requests as well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArbitratedAction {
    /// Action that changes nothing: status, list, monitor, null, and requests that were denied already.
    Look,
    /// Start this domain.
    On(String),
    /// Power this domain off.
    Off(String),
    /// Power this domain off and start it again.
    Reboot(String),
}

/// Domain from which a request comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestSource {
    /// Known source, by UUID in the same form as targets.
    Known(String),
    /// Unknown source that has shown a key which only these domains can have.
    OneOf(Arc<PossibleSources>),
    /// Unknown source: any domain, or none. A peer that could not be matched with a domain is unknown too:
    /// that proves nothing.
    Unknown,
}

/// Domains that can have shown the key of a request: an island, or several. Each is kept as a mark, which
/// another domain may have as well: then that one counts as possible too, and more requests conflict.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct PossibleSources {
    uuids: BTreeSet<u32>,
    names: BTreeSet<u32>,
}

/// Name of a target, as groups compare names: a mark of its small letters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TargetName(u32);

/// Identifier that tells one peer from another where its domain is not known. Equal values must mean one
/// machine: the address that a multicast call-back reached (with everything that makes it unique on this
/// host), or a vsock context id. Never an address behind a NAT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerId(pub String);

/// Identifier of the address that a request comes from, for the order of turns alone. Machines behind a NAT
/// share one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SenderId(pub String);

/// Request whose target was resolved and whose source is allowed.
#[derive(Clone, Debug)]
pub struct ArbiterRequest {
    /// Number of the request, never used twice.
    pub id: u64,
    /// Action of the request.
    pub work: ArbitratedAction,
    /// Name of the target; none where only the UUID is known. Groups list domains by either.
    pub name: Option<TargetName>,
    /// Source of the request.
    pub source: RequestSource,
    /// Peer of the request; none where it can't be told from others.
    pub peer: Option<PeerId>,
    /// Sender of the request; none where its requests always keep the order of submission.
    pub sender: Option<SenderId>,
    /// Word that names the target: what is found of one UUID is no result for its name, nor the other way
    /// round. So these never join.
    pub by: TargetKind,
    /// Arrival of the first packet.
    pub arrived: Instant,
    /// Moment from which on the request must neither run nor get another's result.
    pub deadline: Instant,
}

/// First result for an accepted request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubmitResult {
    /// The request runs now.
    Run,
    /// The request waits; a decision follows.
    Wait,
    /// The request has joined the same work, which waits or is in flight under this number; a decision
    /// follows.
    Joined(u64),
}

/// Decision that the caller carries out, in the order of the list. Each number is that of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArbiterDecision {
    /// The caller asks for the proof and runs the request.
    Run(u64),
    /// The request never ran and never will. It is over.
    Drop(u64, Rejection),
    /// The caller asks for the proof and answers with the result that was reported just now. The request is
    /// over.
    Deliver(u64),
}

/// Effect that work may still have after its client got the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LateEffect {
    /// A power-off of the target, and nothing else. Of a start that an earlier daemon ordered: that start.
    PowerOff,
    /// A power-off of the target, and nobody can tell when: it hangs, longer than any that is carried out.
    HangingOff,
    /// Each part of the work: the target may be started, too.
    Any,
}

/// Arbiter of all requests that are not over; the head of this module has its rules.
#[derive(Debug, Default)]
pub struct Arbiter {
    /// Requests in order of submission.
    entries: Vec<ArbiterEntry>,
    /// Number of submissions so far.
    submitted: u64,
    /// Domains that requests powered off, with the time when each was last seen off; oldest first.
    victims: Vec<(String, Instant)>,
    /// Senders that let turns pass: the number of turns since the last proof, and the time of the last one.
    wasted: HashMap<SenderId, (u32, Instant)>,
}

impl Arbiter {
    /// Accepts a request. A read-only action runs at once and is forgotten; reports on it are ignored.
    ///
    /// # Errors
    /// The request is rejected, and is over.
    pub fn submit(&mut self, now: Instant, request: ArbiterRequest) -> Result<SubmitResult, Rejection> {
        if now >= request.deadline || now.saturating_duration_since(request.arrived) >= VICTIM_MEMORY {
            return Err(Rejection::DeadlinePassed);
        }
        if self.victims.iter().any(|(victim, when)| request.is_from(victim) && request.arrived <= *when) {
            return Err(Rejection::SourceFenced);
        }
        let Some(target) = request.work.target() else { return Ok(SubmitResult::Run) };
        if self.entries.len() >= REQUEST_LIMIT {
            return Err(Rejection::QueueFull);
        }
        let mut same_target = self.entries.iter().filter(|it| it.request.work.target() == Some(target));
        if same_target.clone().count() >= TARGET_LIMIT {
            return Err(Rejection::TargetQueueFull);
        }
        let is_same = |it: &&ArbiterEntry| it.request.work == request.work && it.request.by == request.by;
        let same_work = same_target.next_back().filter(is_same);
        let joins = same_work.map(ArbiterEntry::leader).filter(|it| self.may_join(*it, &request));
        let state = joins.map_or(EntryState::Waiting, EntryState::Joined);
        self.push(request, state);
        Ok(match joins {
            Some(leader) => SubmitResult::Joined(leader),
            None if self.start(self.entries.len() - 1) => SubmitResult::Run,
            None => SubmitResult::Wait,
        })
    }

    fn push(&mut self, request: ArbiterRequest, state: EntryState) {
        let line = (self.rank(&request), self.submitted);
        self.submitted += 1;
        self.entries.push(ArbiterEntry { request, state, again: false, line });
    }

    /// Adds a request that is in flight already, whatever it conflicts with.
    pub fn install(&mut self, request: ArbiterRequest) {
        self.push(request, EntryState::Running(OpenTo::All));
    }

    /// Adds work of an earlier daemon that is over, but whose effect may still come. None may join it.
    pub fn install_late(&mut self, request: ArbiterRequest) {
        self.install_answered(request, LateEffect::PowerOff);
    }

    /// Adds a request that was answered already, and of which a part may still take effect. None may join it.
    pub fn install_answered(&mut self, request: ArbiterRequest, effect: LateEffect) {
        let state = EntryState::Held { effect, is_seen_off: false };
        self.push(request, state);
    }

    /// Returns whether a request that is not in flight is to take the target of `id` down.
    pub fn has_rival(&self, id: u64) -> bool {
        let Some(own) = self.entries.iter().find(|it| it.request.id == id) else { return false };
        let mut waiting = self.entries.iter().filter(|it| it.request.id != id && !it.in_flight());
        waiting.any(|it| it.request.work.takes_down() && it.request.same_target(&own.request))
    }

    /// Records that the target of `id` was seen off already, where [`Arbiter::seen_off`] follows only after
    /// other requests were submitted: none of them may join it.
    pub fn close(&mut self, id: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|it| it.request.id == id)
            && let EntryState::Running(open) | EntryState::SeenOff(open) = &mut entry.state
        {
            *open = OpenTo::None;
        }
    }

    /// Returns the requests that `id` waits for because one may fence the other's source. Requests that
    /// merely have the same target do not count.
    pub fn endangered_by(&self, id: u64) -> Vec<u64> {
        let Some(place) = self.entries.iter().position(|it| it.request.id == id && !it.in_flight()) else {
            return Vec::new();
        };
        let request = &self.entries[place].request;
        let holds_up = |(other, it): &(usize, &ArbiterEntry)| {
            *other != place && self.comes_first(it, &self.entries[place]) && self.endangers(it, request)
        };
        let others = self.entries.iter().enumerate().filter(holds_up);
        others.map(|(_, it)| it.request.id).collect()
    }

    /// Records that a status check after the action of `id` showed its target off, or that it was off before.
    /// For a reboot: before the start. `since` is the moment when the look began.
    ///
    /// Releases requests that waited only because the target might have shot back, and drops requests from
    /// the target. Those that joined `id` and arrived after `since` take their own turn.
    pub fn seen_off(&mut self, now: Instant, since: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        let Some(entry) = self.entries.iter_mut().find(|it| it.request.id == id) else { return decisions };
        entry.state = match entry.state {
            _ if !entry.request.work.takes_down() => return decisions,
            EntryState::Running(OpenTo::All) => EntryState::SeenOff(OpenTo::ArrivedBy(since)),
            EntryState::Running(open) => EntryState::SeenOff(open),
            EntryState::Held { effect, is_seen_off: false } => EntryState::Held { effect, is_seen_off: true },
            _ => return decisions,
        };
        let victim = entry.request.work.target().map(str::to_owned);
        self.release_joined(id, |it| it.request.arrived > since);
        if let Some(victim) = victim {
            self.took_down(now, victim, &mut decisions);
        }
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Records that a power-off of the target of `id` may come even after [`Arbiter::seen_off`], which
    /// follows: several orders were given, and one of them is not settled.
    pub fn may_come_again(&mut self, id: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|it| it.request.id == id) {
            entry.again = true;
        }
    }

    /// Returns the first request in flight that would hold this one up now.
    pub fn holds_up_now(&self, request: &ArbiterRequest) -> Option<HoldUp> {
        let is_other = |it: &&ArbiterEntry| it.in_flight() && it.request.id != request.id;
        let first = self.entries.iter().filter(is_other).find(|it| self.holds_up(it, request))?;
        let is_answered = matches!(first.state, EntryState::Held { .. });
        let ArbiterRequest { id, work, .. } = &first.request;
        Some(HoldUp { id: *id, action: work.action(), target: work.target()?.to_owned(), is_answered })
    }

    /// Records that a domain was seen off, and not by a request that was submitted here. Drops requests from
    /// that domain. No request may join what is in flight for it, which may get its result from elsewhere.
    pub fn victim(&mut self, now: Instant, victim: &str) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.took_down(now, victim.to_owned(), &mut decisions);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Records that the work of `id` is over, well or badly, and that nothing of it can take effect any more.
    /// A call to a hypervisor that has not returned is not over, even when its client got a failure long ago.
    ///
    /// The requests that joined it get the same result.
    pub fn finished(&mut self, now: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.drop_all(|it| now >= it.deadline, Rejection::DeadlinePassed, &mut decisions);
        self.deliver(id, &mut decisions);
        self.remove(id);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Records that the client of `id` has its answer, but that a part of the work may still take effect. The
    /// caller reports [`Arbiter::finished`] when it can't any more; before that perhaps another effect.
    ///
    /// The requests that joined it get the same result if that is a success; else they take their own turn.
    /// None joins it from now on.
    pub fn answered(
        &mut self,
        now: Instant,
        id: u64,
        is_success: bool,
        effect: LateEffect,
    ) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.drop_all(|it| now >= it.deadline, Rejection::DeadlinePassed, &mut decisions);
        if is_success {
            self.deliver(id, &mut decisions);
        } else {
            self.release_joined(id, |_| true);
        }
        if let Some(entry) = self.entries.iter_mut().find(|it| it.request.id == id) {
            let is_seen_off =
                matches!(entry.state, EntryState::SeenOff(_) | EntryState::Held { is_seen_off: true, .. });
            entry.state = EntryState::Held { effect, is_seen_off };
        }
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Records that the client of `id`, which was told to run, gave no proof in its turn.
    /// [`Arbiter::abandoned`] follows.
    pub fn wasted(&mut self, now: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        let Some(sender) = self.sender(id) else { return decisions };
        if !self.wasted.contains_key(&sender) && self.wasted.len() >= SENDER_LIMIT {
            let oldest = self.wasted.iter().min_by_key(|(_, (_, last))| *last).map(|(it, _)| it.clone());
            if let Some(oldest) = oldest {
                self.wasted.remove(&oldest);
            }
        }
        let (count, last) = self.wasted.entry(sender).or_insert((0, now));
        (*count, *last) = (count.saturating_add(1), now);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Records that the client of `id`, which was told to run, gave its proof.
    pub fn proved(&mut self, now: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        if self.sender(id).is_some_and(|it| self.wasted.remove(&it).is_some()) {
            self.go_on(now, &mut decisions);
        }
        decisions
    }

    /// Records that a request ends and nothing was done for it: its proof failed, or its client left before
    /// the action. Allowed in any state. The caller knows already, so there is no [`ArbiterDecision::Drop`]
    /// for it. The first request that joined it takes over.
    pub fn abandoned(&mut self, now: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.remove(id);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Ends a request that waits or has joined another. A request in flight goes on: then no decision names
    /// it.
    pub fn withdraw(&mut self, now: Instant, id: u64, why: Rejection) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.drop_all(|it| it.id == id, why, &mut decisions);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Applies the time that has passed. To be called at [`Arbiter::next_deadline`].
    pub fn tick(&mut self, now: Instant) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Returns the time at which the next request that is not in flight must be dropped. Changes with every
    /// call that takes `self` mutably.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.entries.iter().filter(|it| !it.in_flight()).map(|it| it.request.deadline).min()
    }

    /// Returns the number of requests in flight, and the number of those that are not.
    pub fn counts(&self) -> (usize, usize) {
        let in_flight = self.entries.iter().filter(|it| it.in_flight()).count();
        (in_flight, self.entries.len() - in_flight)
    }

    /// Ends the requests that joined `id` with its result.
    fn deliver(&mut self, id: u64, decisions: &mut Vec<ArbiterDecision>) {
        self.entries.retain(|it| {
            let joined = it.state == EntryState::Joined(id);
            if joined {
                decisions.push(ArbiterDecision::Deliver(it.request.id));
            }
            !joined
        });
    }

    /// Drops late requests and starts those that nothing holds up any more.
    fn go_on(&mut self, now: Instant, decisions: &mut Vec<ArbiterDecision>) {
        self.drop_all(|it| now >= it.deadline, Rejection::DeadlinePassed, decisions);
        self.leave_stuck();
        self.rank_all(now);
        let mut places: Vec<usize> = (0..self.entries.len()).collect();
        places.sort_by_key(|it| self.entries[*it].line);
        for place in places {
            if self.entries[place].state == EntryState::Waiting && self.start(place) {
                decisions.push(ArbiterDecision::Run(self.entries[place].request.id));
            }
        }
    }

    /// Brings the ranks up to date. Whoever joined a request that fell behind it takes its own turn.
    fn rank_all(&mut self, now: Instant) {
        self.wasted.retain(|_, (_, last)| now.saturating_duration_since(*last) < VICTIM_MEMORY);
        for place in 0..self.entries.len() {
            self.entries[place].line.0 = self.rank(&self.entries[place].request);
        }
        let waiting = self.entries.iter().filter(|it| it.state == EntryState::Waiting && it.line.0 > 0);
        for (id, line) in waiting.map(|it| (it.request.id, it.line)).collect::<Vec<_>>() {
            self.release_joined(id, |it| it.line < line);
        }
    }

    fn rank(&self, request: &ArbiterRequest) -> u32 {
        request.sender.as_ref().and_then(|it| self.wasted.get(it)).map_or(0, |(count, _)| *count)
    }

    fn sender(&self, id: u64) -> Option<SenderId> {
        self.entries.iter().find(|it| it.request.id == id)?.request.sender.clone()
    }

    /// Puts a waiting request in flight if no other request holds it up.
    fn start(&mut self, place: usize) -> bool {
        let held_up = self.entries.iter().enumerate().any(|(other, it)| {
            other != place
                && self.comes_first(it, &self.entries[place])
                && self.holds_up(it, &self.entries[place].request)
        });
        if !held_up {
            self.entries[place].state = EntryState::Running(OpenTo::All);
        }
        !held_up
    }

    /// Returns whether an entry has its turn before another one with which it conflicts.
    fn comes_first(&self, entry: &ArbiterEntry, other: &ArbiterEntry) -> bool {
        entry.in_flight() || entry.line < other.line && !self.is_stuck(&entry.request)
    }

    /// Returns whether a request waits for a power-off that hangs, since it comes from the target.
    fn is_stuck(&self, request: &ArbiterRequest) -> bool {
        let RequestSource::Known(source) = &request.source else { return false };
        request.work.takes_down()
            && request.work.target() != Some(source)
            && self.entries.iter().any(|it| {
                matches!(it.state, EntryState::Held { effect: LateEffect::HangingOff, .. })
                    && it.request.is_known_victim(request)
                    && !self.is_seen_off(it)
            })
    }

    /// Takes requests out of those which they joined, and which wait for a power-off that hangs.
    fn leave_stuck(&mut self) {
        let is_stuck = |it: &&ArbiterEntry| !it.in_flight() && self.is_stuck(&it.request);
        let stuck: HashSet<u64> = self.entries.iter().filter(is_stuck).map(|it| it.request.id).collect();
        for id in &stuck {
            self.release_joined(*id, |it| !stuck.contains(&it.request.id));
        }
    }

    fn holds_up(&self, first: &ArbiterEntry, second: &ArbiterRequest) -> bool {
        if first.request.same_target(second) {
            let only_goes_off =
                matches!(first.state, EntryState::Held { effect, .. } if effect != LateEffect::Any);
            return !(only_goes_off && first.request.work.takes_down() == second.work.takes_down());
        }
        self.endangers(first, second)
    }

    /// Returns whether one of the two may fence the source of the other, and the first has not done that yet.
    fn endangers(&self, first: &ArbiterEntry, second: &ArbiterRequest) -> bool {
        let is_danger = match first.state {
            EntryState::Held { effect: LateEffect::HangingOff, .. } => first.request.is_known_victim(second),
            _ => first.request.may_shoot_or_be_shot_by(second),
        };
        is_danger && !self.is_seen_off(first)
    }

    fn is_seen_off(&self, entry: &ArbiterEntry) -> bool {
        match entry.state {
            EntryState::SeenOff(_) => !entry.again,
            EntryState::Held { is_seen_off, .. } => is_seen_off && !entry.again,
            EntryState::Waiting | EntryState::Running(_) => false,
            EntryState::Joined(leader) => {
                let leader = self.entries.iter().find(|it| it.request.id == leader);
                leader.is_some_and(|it| matches!(it.state, EntryState::SeenOff(_)) && !it.again)
            }
        }
    }

    /// Returns whether a request may join this one, by when it arrived and by its place in the line.
    fn may_join(&self, leader: u64, request: &ArbiterRequest) -> bool {
        let leader = self.entries.iter().find(|it| it.request.id == leader);
        leader.is_some_and(|it| match it.state {
            EntryState::Waiting => !self.is_stuck(&it.request) && it.line.0 <= self.rank(request),
            EntryState::Running(open) | EntryState::SeenOff(open) => match open {
                OpenTo::All => true,
                OpenTo::ArrivedBy(since) => request.arrived <= since,
                OpenTo::None => false,
            },
            EntryState::Held { .. } | EntryState::Joined(_) => false,
        })
    }

    /// Drops the requests not in flight that `which` selects.
    fn drop_all(
        &mut self,
        which: impl Fn(&ArbiterRequest) -> bool,
        why: Rejection,
        decisions: &mut Vec<ArbiterDecision>,
    ) {
        let dropped = self.entries.iter().filter(|it| !it.in_flight() && which(&it.request));
        for id in dropped.map(|it| it.request.id).collect::<Vec<_>>() {
            self.remove(id);
            decisions.push(ArbiterDecision::Drop(id, why));
        }
    }

    /// Forgets a request. The first that joined it waits in its own name, and the others join that one.
    fn remove(&mut self, id: u64) {
        self.entries.retain(|it| it.request.id != id);
        self.release_joined(id, |_| true);
    }

    /// Takes these of the requests that joined `id` out of it. The first of them waits in its own name, and
    /// the others join that one.
    fn release_joined(&mut self, id: u64, which: impl Fn(&ArbiterEntry) -> bool) {
        let leaves = |it: &ArbiterEntry| it.state == EntryState::Joined(id) && which(it);
        let leaving = self.entries.iter().filter(|it| leaves(it));
        let Some(heir) = leaving.min_by_key(|it| it.line).map(|it| it.request.id) else { return };
        for it in self.entries.iter_mut().filter(|it| leaves(it)) {
            it.state = if it.request.id == heir { EntryState::Waiting } else { EntryState::Joined(heir) };
        }
    }

    fn took_down(&mut self, now: Instant, victim: String, decisions: &mut Vec<ArbiterDecision>) {
        self.drop_all(|it| it.is_from(&victim), Rejection::SourceFenced, decisions);
        let is_for_it = |it: &&mut ArbiterEntry| it.request.work.target() == Some(&victim);
        for it in self.entries.iter_mut().filter(is_for_it) {
            if let EntryState::Running(open) = &mut it.state {
                *open = OpenTo::None;
            }
        }
        self.remember(now, victim);
    }

    fn remember(&mut self, now: Instant, victim: String) {
        self.victims
            .retain(|(it, when)| *it != victim && now.saturating_duration_since(*when) < VICTIM_MEMORY);
        if self.victims.len() >= VICTIM_LIMIT {
            self.victims.remove(0);
        }
        self.victims.push((victim, now));
    }
}

#[derive(Debug)]
struct ArbiterEntry {
    request: ArbiterRequest,
    state: EntryState,
    /// Marks one whose target may go off once more after it was seen off.
    again: bool,
    /// Number of turns that its sender let pass, and number of the submission: those with less come first.
    line: (u32, u64),
}

/// Requests that may join a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OpenTo {
    /// Every request for the same work: the target was not seen off yet.
    All,
    /// Requests that arrived by the moment when the look began that showed the target off.
    ArrivedBy(Instant),
    /// No request: somebody saw the target off, and it is not known when.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EntryState {
    /// The request waits for its grant.
    Waiting,
    /// The request was told to run; its target may go down at any moment.
    Running(OpenTo),
    /// The request is in flight, and its target was seen off.
    SeenOff(OpenTo),
    /// The client has its answer, and a part of the work may still take effect. None has joined it or may.
    Held { effect: LateEffect, is_seen_off: bool },
    /// The request gets the result of this one, which is earlier and has not joined another.
    Joined(u64),
}

impl ArbiterEntry {
    fn in_flight(&self) -> bool {
        matches!(self.state, EntryState::Running(_) | EntryState::SeenOff(_) | EntryState::Held { .. })
    }

    fn leader(&self) -> u64 {
        match self.state {
            EntryState::Joined(leader) => leader,
            _ => self.request.id,
        }
    }
}

impl ArbiterRequest {
    fn is_from(&self, domain: &str) -> bool {
        matches!(&self.source, RequestSource::Known(it) if it == domain)
    }

    fn same_target(&self, other: &Self) -> bool {
        self.work.target().is_some() && self.work.target() == other.work.target()
    }

    fn may_shoot_or_be_shot_by(&self, other: &Self) -> bool {
        let both = self.work.takes_down() && other.work.takes_down();
        both && (self.may_shoot_source_of(other) || other.may_shoot_source_of(self))
    }

    /// Returns whether this one is to take down where the other, which powers off, is known to come from.
    fn is_known_victim(&self, other: &Self) -> bool {
        let both = self.work.takes_down() && other.work.takes_down();
        both && self.work.target().is_some_and(|it| other.is_from(it))
    }

    fn may_shoot_source_of(&self, other: &Self) -> bool {
        let Some(target) = self.work.target() else { return false };
        let is_one_peer = self.peer.is_some() && self.peer == other.peer;
        match &other.source {
            RequestSource::Known(source) => target == source,
            RequestSource::OneOf(sources) => !is_one_peer && sources.hold(target, self.name.as_ref()),
            RequestSource::Unknown => !is_one_peer,
        }
    }
}

impl PossibleSources {
    /// Takes domains by UUID, in the same form as targets, and by name, in any case of letters.
    pub fn new(
        uuids: impl IntoIterator<Item = impl AsRef<str>>,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Self {
        Self {
            uuids: uuids.into_iter().map(|it| mark(it.as_ref())).collect(),
            names: names.into_iter().map(|it| TargetName::from(it.as_ref()).0).collect(),
        }
    }

    /// Returns whether this domain is one of them. One whose name is not known may be.
    pub fn hold(&self, uuid: &str, name: Option<&TargetName>) -> bool {
        self.uuids.contains(&mark(uuid)) || name.is_none_or(|it| self.names.contains(&it.0))
    }

    /// Returns the number of UUIDs and names.
    pub fn count(&self) -> usize {
        self.uuids.len() + self.names.len()
    }
}

impl From<&str> for TargetName {
    fn from(name: &str) -> Self {
        Self(mark(&name.to_ascii_lowercase()))
    }
}

/// Returns the mark of a text (FNV-1a of 32 bits): the same on all hosts, whatever their release.
fn mark(text: &str) -> u32 {
    text.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl ArbitratedAction {
    /// Returns a power action on this target, as the arbiter orders it.
    pub fn of(action: PowerAction, target: String) -> Self {
        match action {
            PowerAction::Status => Self::Look,
            PowerAction::On => Self::On(target),
            PowerAction::Off => Self::Off(target),
            PowerAction::Reboot => Self::Reboot(target),
        }
    }

    /// Returns the power action; status for every action that changes nothing.
    pub fn action(&self) -> PowerAction {
        match self {
            Self::Look => PowerAction::Status,
            Self::On(_) => PowerAction::On,
            Self::Off(_) => PowerAction::Off,
            Self::Reboot(_) => PowerAction::Reboot,
        }
    }

    /// Returns the target of an action that changes the target's power.
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Look => None,
            Self::On(target) | Self::Off(target) | Self::Reboot(target) => Some(target),
        }
    }

    fn takes_down(&self) -> bool {
        matches!(self, Self::Off(_) | Self::Reboot(_))
    }
}
