// SPDX-License-Identifier: GPL-2.0-or-later
//! When a request may run, and when it must not run at all.
//!
//! Owns the requests between access and answer: which wait, which are in flight, which have joined another.
//! Pure: requests, events and the time go in, decisions come out. It must never read a clock, wait, log, or know
//! a socket or a hypervisor. One value for the whole daemon, whatever listener a request came by; the caller keeps
//! it behind a lock and carries the decisions out.
//!
//! # A request's way
//! [`Arbiter::submit`] says run, wait or joined. [`Decision::Run`] comes later to one that waits: the caller
//! then asks the peer for its proof, acts, and reports
//! - [`Arbiter::seen_off`] when a look after the action showed the target off,
//! - [`Arbiter::finished`] when the work is over and nothing of it can take effect any more, or
//! - [`Arbiter::abandoned`] when nothing was done (the proof failed, or the client left before the action).
//!
//! A joined request gets [`Decision::Deliver`]: the caller asks its peer for the proof and then tells it the
//! outcome of the work that it joined. So proof always follows the decision, for either kind, and never comes
//! before it. Every accepted request ends in exactly one of: a report by the caller (finished or abandoned),
//! [`Decision::Drop`], [`Decision::Deliver`].
//!
//! # What holds up what
//! | two requests | the later waits until the earlier is |
//! | --- | --- |
//! | off, on, reboot of one target (other than joined) | finished |
//! | off, reboot: the target of one may be where the other comes from | seen off, or finished without |
//! | anything else; whatever only looks | never |
//!
//! One target: "off already" must not be said of a domain that a reboot is about to start. Danger: once the
//! target is seen off neither can spoil the other, and the start after a reboot shoots nobody.
//!
//! "May be" is exact where the source is known. Where it is not, it is true, unless both come from one peer.
//! The order is that of submission, and a waiting request holds up later ones as one in flight does, so nothing
//! is overtaken by what it conflicts with. A request waits only for earlier ones or ones in flight, so there is no
//! deadlock; and each ends by its deadline at the latest, so there is no starvation.
//!
//! A request joins when the last request for its target that is not over asks the same; with another one between
//! (off, on, off) it takes its turn behind that, for it must not be told "off" of a domain that is started after.
//! A joined request holds up what conflicts with it for as long as what it joined is not seen off: if that one
//! comes to nothing, the first that joined it takes over, at its own place.
//!
//! # One survivor
//! Whatever a set of nodes sends for each other, one of them stays up, as far as this one daemon does the
//! shooting. Suppose that all were down. Let Z be the one that went down last, shot by a request from Y; Y itself
//! was shot before, by another node, and is still down. The two requests conflict: the target of one is where the
//! other comes from, and an unknown source counts as that. So their times, each from the order to run (before the
//! proof) to the target seen off, don't overlap, and the one that shot Y, who went down first, had the earlier
//! time. Then Y's request was not told to run before Y was seen off. With a known source it was dropped at that
//! moment, or refused, if it was submitted after: recent victims are remembered. With an unknown one nobody was
//! left to answer the challenge, for a machine that was started again knows nothing of the old stream. Either way
//! Z was not shot by it. (A fence that took effect and was never seen to, and so ended as a failure, leaves a
//! known source to the challenge as well, and on a serial line to its being closed. Without a challenge,
//! `auth = "none"`, and without a known source there is no such promise.)
//!
//! For the same reason a request in flight can't lose its source to another; a peer that shoots itself can.

use std::time::{Duration, Instant};

pub use self::grant::{Grant, REQUEST_LIMIT, Rejection, SharedResult, TARGET_LIMIT};

mod grant;
#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

/// How long a victim is remembered, and the most that may lie between a request's arrival and its submission.
pub const VICTIM_MEMORY: Duration = Duration::from_secs(120);
/// Victims remembered; of more the oldest is forgotten (late proof still stands).
const VICTIM_LIMIT: usize = 4096;

/// What is asked, of which domain: its UUID in canonical text (or what identifies it where there are no UUIDs).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArbitratedAction {
    /// Changes nothing: status, list, monitor, null, and requests that were refused already.
    Look,
    /// Start it.
    On(String),
    /// Take it down.
    Off(String),
    /// Take it down and start it again.
    Reboot(String),
}

/// Which domain a request comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestSource {
    /// This one, by UUID in the same form as targets.
    Known(String),
    /// Any one, or none. A peer that could not be matched with a domain is this too: that proves nothing.
    Unknown,
}

/// What tells one peer from another where its domain is not known. Equal values must mean one machine: the
/// address that a multicast call-back reached (with what else it takes to be unique on this host), a vsock CID;
/// never an address that stands behind a NAT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerId(pub String);

/// One request, its target found and its source allowed.
#[derive(Clone, Debug)]
pub struct ArbiterRequest {
    /// Its number, never used twice.
    pub id: u64,
    /// What it asks.
    pub work: ArbitratedAction,
    /// The domain it comes from.
    pub source: RequestSource,
    /// The peer it comes from; none where that can't be told from others.
    pub peer: Option<PeerId>,
    /// When its first packet came.
    pub arrived: Instant,
    /// It is not to be run, or answered with another's outcome, from this moment on.
    pub deadline: Instant,
}

/// What becomes of an accepted request at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubmitResult {
    /// Run it now.
    Run,
    /// A decision follows.
    Wait,
    /// The same work waits or is in flight, under this number; a decision follows.
    Joined(u64),
}

/// What the caller is to do now, in this order. Each number is that of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArbiterDecision {
    /// Ask for the proof and run it.
    Run(u64),
    /// It never ran and never will. It is over.
    Drop(u64, Rejection),
    /// Ask for the proof and answer it with the outcome that was reported just now. It is over.
    Deliver(u64),
}

/// The requests that are not over. See the module's head.
#[derive(Debug, Default)]
pub struct Arbiter {
    /// In order of submission.
    entries: Vec<ArbiterEntry>,
    /// Whom requests took down, and when they were last seen off; oldest first.
    victims: Vec<(String, Instant)>,
}

impl Arbiter {
    /// Takes a request in. What only looks runs at once and is forgotten; reports on it are ignored.
    ///
    /// # Errors
    /// The request is not accepted, and is over.
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
        let joins =
            same_target.next_back().filter(|it| it.request.work == request.work).map(ArbiterEntry::leader);
        let state = joins.map_or(EntryState::Waiting, EntryState::Joined);
        self.entries.push(ArbiterEntry { request, state });
        Ok(match joins {
            Some(leader) => SubmitResult::Joined(leader),
            None if self.start(self.entries.len() - 1) => SubmitResult::Run,
            None => SubmitResult::Wait,
        })
    }

    /// Takes in one that is in flight already, whatever it conflicts with.
    pub fn install(&mut self, request: ArbiterRequest) {
        self.entries.push(ArbiterEntry { request, state: EntryState::Running });
    }

    /// Which requests `id` waits for because one may shoot the other; not those that merely have the same target.
    pub fn endangered_by(&self, id: u64) -> Vec<u64> {
        let Some(place) = self.entries.iter().position(|it| it.request.id == id && !it.in_flight()) else {
            return Vec::new();
        };
        let request = &self.entries[place].request;
        let holds_up = |(other, it): &(usize, &ArbiterEntry)| {
            *other != place
                && (*other < place || it.in_flight())
                && it.request.may_shoot_or_be_shot_by(request)
                && !self.is_seen_off(it)
        };
        let others = self.entries.iter().enumerate().filter(holds_up);
        others.map(|(_, it)| it.request.id).collect()
    }

    /// A look after the action of `id` showed its target off, or it was off before. For a reboot: before the
    /// start.
    ///
    /// Releases what waited only because the target might have shot back, and drops what came from the target.
    pub fn seen_off(&mut self, now: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        let Some(entry) = self.entries.iter_mut().find(|it| it.request.id == id) else { return decisions };
        if !(entry.state == EntryState::Running && entry.request.work.takes_down()) {
            return decisions;
        }
        entry.state = EntryState::SeenOff;
        if let Some(victim) = entry.request.work.target().map(str::to_owned) {
            self.took_down(now, victim, &mut decisions);
        }
        self.go_on(now, &mut decisions);
        decisions
    }

    /// A domain was seen off, and not by a request that was submitted here. Drops what came from it.
    pub fn victim(&mut self, now: Instant, victim: &str) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.took_down(now, victim.to_owned(), &mut decisions);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// The work of `id` is over, well or badly, and nothing of it can take effect any more. A call to a hypervisor
    /// that has not returned is not over, even when its client was told of a failure long ago.
    ///
    /// Those that joined it are to be told the same outcome.
    pub fn finished(&mut self, now: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.drop_all(|it| now >= it.deadline, Rejection::DeadlinePassed, &mut decisions);
        self.entries.retain(|it| {
            let joined = it.state == EntryState::Joined(id);
            if joined {
                decisions.push(ArbiterDecision::Deliver(it.request.id));
            }
            !joined
        });
        self.remove(id);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// The request ends, and nothing was done for it: its proof failed, its client left before the action. In
    /// any state; the caller knows already, so there is no [`Decision::Drop`] for it. The first of those that
    /// joined it takes over.
    pub fn abandoned(&mut self, now: Instant, id: u64) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.remove(id);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Ends a request that waits or has joined another. One in flight goes on: no decision names it then.
    pub fn withdraw(&mut self, now: Instant, id: u64, why: Rejection) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.drop_all(|it| it.id == id, why, &mut decisions);
        self.go_on(now, &mut decisions);
        decisions
    }

    /// Time has passed. To be called at [`Arbiter::next_deadline`].
    pub fn tick(&mut self, now: Instant) -> Vec<ArbiterDecision> {
        let mut decisions = Vec::new();
        self.go_on(now, &mut decisions);
        decisions
    }

    /// When the next request that is not in flight must be dropped. Changes with every call that takes `self`
    /// mutably.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.entries.iter().filter(|it| !it.in_flight()).map(|it| it.request.deadline).min()
    }

    /// How many requests are in flight, and how many are not.
    pub fn counts(&self) -> (usize, usize) {
        let in_flight = self.entries.iter().filter(|it| it.in_flight()).count();
        (in_flight, self.entries.len() - in_flight)
    }

    /// Drops what is late and starts what nothing holds up any more.
    fn go_on(&mut self, now: Instant, decisions: &mut Vec<ArbiterDecision>) {
        self.drop_all(|it| now >= it.deadline, Rejection::DeadlinePassed, decisions);
        for place in 0..self.entries.len() {
            if self.entries[place].state == EntryState::Waiting && self.start(place) {
                decisions.push(ArbiterDecision::Run(self.entries[place].request.id));
            }
        }
    }

    /// Puts a waiting request in flight if nothing holds it up.
    fn start(&mut self, place: usize) -> bool {
        let held_up = self.entries.iter().enumerate().any(|(other, it)| {
            other != place
                && (other < place || it.in_flight())
                && self.holds_up(it, &self.entries[place].request)
        });
        if !held_up {
            self.entries[place].state = EntryState::Running;
        }
        !held_up
    }

    fn holds_up(&self, first: &ArbiterEntry, second: &ArbiterRequest) -> bool {
        first.request.same_target(second)
            || first.request.may_shoot_or_be_shot_by(second) && !self.is_seen_off(first)
    }

    fn is_seen_off(&self, entry: &ArbiterEntry) -> bool {
        match entry.state {
            EntryState::SeenOff => true,
            EntryState::Waiting | EntryState::Running => false,
            EntryState::Joined(leader) => {
                self.entries.iter().any(|it| it.request.id == leader && it.state == EntryState::SeenOff)
            }
        }
    }

    /// Drops those not in flight that `which` says.
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

    /// Forgets a request; the first that joined it waits in its own name, and the others join that one.
    fn remove(&mut self, id: u64) {
        self.entries.retain(|it| it.request.id != id);
        let mut heir = None;
        for it in self.entries.iter_mut().filter(|it| it.state == EntryState::Joined(id)) {
            it.state = heir.map_or(EntryState::Waiting, EntryState::Joined);
            heir.get_or_insert(it.request.id);
        }
    }

    fn took_down(&mut self, now: Instant, victim: String, decisions: &mut Vec<ArbiterDecision>) {
        self.drop_all(|it| it.is_from(&victim), Rejection::SourceFenced, decisions);
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
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EntryState {
    /// Its turn has not come.
    Waiting,
    /// Told to run; its target may go down at any moment.
    Running,
    /// In flight, its target seen off.
    SeenOff,
    /// It gets the outcome of this one, which is earlier and has not joined another.
    Joined(u64),
}

impl ArbiterEntry {
    fn in_flight(&self) -> bool {
        matches!(self.state, EntryState::Running | EntryState::SeenOff)
    }

    fn leader(&self) -> u64 {
        match self.state {
            EntryState::Joined(leader) => leader,
            EntryState::Waiting | EntryState::Running | EntryState::SeenOff => self.request.id,
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

    fn may_shoot_source_of(&self, other: &Self) -> bool {
        match &other.source {
            RequestSource::Known(source) => self.work.target() == Some(source),
            RequestSource::Unknown => !(self.peer.is_some() && self.peer == other.peer),
        }
    }
}

impl ArbitratedAction {
    fn target(&self) -> Option<&str> {
        match self {
            Self::Look => None,
            Self::On(target) | Self::Off(target) | Self::Reboot(target) => Some(target),
        }
    }

    fn takes_down(&self) -> bool {
        matches!(self, Self::Off(_) | Self::Reboot(_))
    }
}
