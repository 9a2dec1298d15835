// SPDX-License-Identifier: GPL-2.0-or-later
//! Asks between hosts: the tables of both ends.
//!
//! ```text
//! asker                     owner
//!   ask      ────────────▶   checks whether it has the domain
//!            ◀────────────   taken       (not for a status)
//!   go       ────────────▶   acts
//!            ◀────────────   progress    (off and reboot: seen off)
//!            ◀────────────   early_reply (done, but for a power-off that may come late)
//!            ◀────────────   reply       (nothing of it can take effect any more)
//!   cancel   ────────────▶   (the asker waits no more: work that has not begun must not begin)
//! ```
//!
//! "Go" says how much time is left, and the owner counts it from the moment when it said "taken": however
//! late a message comes, the owner never acts after the asker's deadline, and no clocks are compared. An
//! asker that left the group, or whose client did, says no "go".
//!
//! Pure but for the channels that it tells: it sends nothing and waits for nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fence_config::MAX_CLIENT_TIMEOUT;
use tokio::sync::{mpsc, oneshot};

use crate::request::lease::{LateOffGuard, Lease, LeaseCanceller, LeaseEndReason, LeaseReleased};
use fence_core::cluster::message::{AskEnd, AskMessage, HostMessage, Member};
use fence_core::domain::ActionError;

/// Most asks of other hosts that this host executes at once.
const MAX_SERVED: usize = 1024;
/// No client waits longer, whatever the asker's configuration says: its client's time counts, not that of
/// this host's.
pub(super) const MAX_LEFT: Duration = MAX_CLIENT_TIMEOUT;

/// Asks of this host to others.
#[derive(Debug)]
pub(super) struct OutgoingAsks {
    next: u64,
    pending: HashMap<u64, OutgoingAsk>,
}

#[derive(Debug)]
struct OutgoingAsk {
    to: Member,
    /// UUID of the domain that the owner is to start.
    starts: Option<String>,
    tell: mpsc::UnboundedSender<AskEvent>,
    /// Lease, held as long as any part of the work may still take effect.
    lease: Lease,
    /// Sign in its place that a power-off hangs at the owner.
    hanging: Option<LateOffGuard>,
    /// The owner got a "go".
    went: bool,
}

/// Event of an ask, for its asker.
#[derive(Debug)]
pub(super) enum AskEvent {
    /// A status check after the action showed the domain off.
    SeenOff {
        was_off: bool,
        starts: bool,
    },
    Reply(AskEnd),
    /// The owner, or this host, left the group.
    Lost(String),
}

impl OutgoingAsks {
    /// `first` should be drawn: a daemon that was started anew with the same process id must not take answers
    /// that were meant for the one before.
    pub(super) fn new(first: u64) -> Self {
        Self { next: first, pending: HashMap::new() }
    }

    /// Registers an ask to `to`. Returns its number and its events. `starts`: UUID of the domain that is to
    /// be on in the end.
    pub(super) fn begin(
        &mut self,
        to: Member,
        starts: Option<&str>,
        lease: &Lease,
    ) -> (u64, mpsc::UnboundedReceiver<AskEvent>) {
        let ask = self.next;
        self.next = self.next.wrapping_add(1);
        let (tell, told) = mpsc::unbounded_channel();
        self.pending.insert(
            ask,
            OutgoingAsk {
                to,
                starts: starts.map(str::to_owned),
                tell,
                lease: lease.clone(),
                hanging: None,
                went: false,
            },
        );
        (ask, told)
    }

    /// Returns whether this member has the word of this host to start the domain.
    pub(super) fn has_start_at(&self, to: Member, uuid: &str) -> bool {
        self.pending.values().any(|it| it.to == to && it.went && it.starts.as_deref() == Some(uuid))
    }

    /// Forgets an ask that was not sent.
    pub(super) fn forget(&mut self, ask: u64) {
        self.pending.remove(&ask);
    }

    /// Notes that no request waits for this ask any more. An owner without a "go" never begins, and may be
    /// stuck: nothing waits for its reply.
    pub(super) fn give_up(&mut self, ask: u64) {
        if self.pending.get(&ask).is_some_and(|it| !it.went) {
            self.pending.remove(&ask);
        }
    }

    /// Takes the "taken" of an owner. Returns the message to send back: "go" or "cancel".
    pub(super) fn taken(&mut self, from: Member, ask: u64, now: Instant) -> HostMessage {
        match self.pending.get_mut(&ask).filter(|it| it.to == from) {
            Some(it) if it.lease.check().is_ok() => {
                it.went = true;
                let left = it.lease.until().saturating_duration_since(now);
                HostMessage::Go { to: from, ask, left_ms: left.as_millis().try_into().unwrap_or(u64::MAX) }
            }
            _ => HostMessage::Cancel { to: from, ask },
        }
    }

    /// Takes the progress of an owner: it saw the domain off.
    pub(super) fn seen_off(&self, from: Member, ask: u64, was_off: bool, starts: bool) {
        if let Some(it) = self.pending.get(&ask).filter(|it| it.to == from) {
            // The request may have ended.
            let _ = it.tell.send(AskEvent::SeenOff { was_off, starts });
        }
    }

    /// Takes the result of an owner's work of which a power-off may still come: the lease is held on.
    pub(super) fn early_reply(&self, from: Member, ask: u64, end: AskEnd) {
        if let Some(it) = self.pending.get(&ask).filter(|it| it.to == from && it.went) {
            // The request may have ended.
            let _ = it.tell.send(AskEvent::Reply(end));
        }
    }

    /// Takes the word of an owner that nothing is left of its work but a power-off that hangs.
    pub(super) fn hangs(&mut self, from: Member, ask: u64) {
        if let Some(it) =
            self.pending.get_mut(&ask).filter(|it| it.to == from && it.went && it.hanging.is_none())
        {
            let mut late_off = it.lease.late_off();
            late_off.hangs();
            (it.hanging, it.lease) = (Some(late_off), it.lease.watched());
        }
    }

    /// Takes the reply of an owner.
    pub(super) fn reply(&mut self, from: Member, ask: u64, end: AskEnd) {
        if self.pending.get(&ask).is_some_and(|it| it.to == from)
            && let Some(it) = self.pending.remove(&ask)
        {
            let _ = it.tell.send(AskEvent::Reply(end));
        }
    }

    /// Ends the asks to a member that left, or all asks if this host left (`None`): no reply comes any more.
    /// Returns their leases: the owner may be in the middle of the action.
    pub(super) fn lost(&mut self, gone: Option<Member>, why: &str) -> Vec<Lease> {
        let is_lost = |it: &OutgoingAsk| gone.is_none_or(|gone| it.to == gone);
        let asks: Vec<u64> = self.pending.iter().filter(|(_, it)| is_lost(it)).map(|(ask, _)| *ask).collect();
        let lost = asks.into_iter().filter_map(|ask| self.pending.remove(&ask));
        lost.map(|it| {
            let _ = it.tell.send(AskEvent::Lost(why.to_owned()));
            it.lease
        })
        .collect()
    }

    /// Returns the number of asks that are not over.
    pub(super) fn count(&self) -> usize {
        self.pending.len()
    }
}

/// Converts an owner's reply for the asker; `owner` is the name of that host.
pub(super) fn result(
    end: AskEnd,
    owner: &str,
) -> Result<fence_core::cluster::message::AskOutcome, ActionError> {
    match end {
        AskEnd::Done(outcome) => Ok(outcome),
        AskEnd::NotHere => Err(ActionError::Gone),
        AskEnd::NothingDone(why) => Err(ActionError::Refused(format!("{owner}: {why}"))),
    }
}

/// Asks of other hosts to this one.
#[derive(Debug, Default)]
pub(super) struct IncomingAsks {
    served: HashMap<(Member, u64), AskStage>,
}

#[derive(Debug)]
enum AskStage {
    /// Locates the domain here.
    Locating,
    /// Waits for "go", since the "taken" of this moment.
    Taken(Instant, oneshot::Sender<(Lease, LeaseReleased)>),
    /// Acts.
    Acting(LeaseCanceller),
}

impl IncomingAsks {
    /// Registers an ask. Returns false if there are too many, or if it is registered already.
    pub(super) fn begin(&mut self, from: Member, ask: &AskMessage) -> bool {
        if self.served.len() >= MAX_SERVED || self.served.contains_key(&(from, ask.ask)) {
            return false;
        }
        self.served.insert((from, ask.ask), AskStage::Locating);
        true
    }

    /// Notes that "taken" is sent now. The lease comes with "go"; the channel closes if the asker waits no
    /// more.
    pub(super) fn taken(
        &mut self,
        from: Member,
        ask: u64,
        now: Instant,
    ) -> oneshot::Receiver<(Lease, LeaseReleased)> {
        let (tell, told) = oneshot::channel();
        if let Some(stage @ AskStage::Locating) = self.served.get_mut(&(from, ask)) {
            *stage = AskStage::Taken(now, tell);
        }
        told
    }

    /// Takes the "go" of the asker.
    pub(super) fn go(&mut self, from: Member, ask: u64, left_ms: u64) {
        let Some(stage) = self.served.get_mut(&(from, ask)) else { return };
        let AskStage::Taken(since, _) = stage else { return };
        let left = Duration::from_millis(left_ms).min(MAX_LEFT);
        let (lease, settled) = Lease::new(*since + left, ask);
        if let AskStage::Taken(_, tell) = std::mem::replace(stage, AskStage::Acting(lease.canceller())) {
            // Without a receiver the work has ended by itself.
            let _ = tell.send((lease, settled));
        }
    }

    /// Takes the "cancel" of the asker.
    pub(super) fn cancel(&mut self, from: Member, ask: u64) {
        match self.served.get(&(from, ask)) {
            Some(AskStage::Acting(ender)) => ender.end(LeaseEndReason::HungUp),
            Some(AskStage::Locating | AskStage::Taken(..)) => drop(self.served.remove(&(from, ask))),
            None => {}
        }
    }

    /// Cancels the asks of a member that left, or all if this host left (`None`).
    pub(super) fn lost(&mut self, gone: Option<Member>) {
        let is_lost = |from: &Member| gone.is_none_or(|gone| *from == gone);
        let asks: Vec<_> = self.served.keys().filter(|(from, _)| is_lost(from)).copied().collect();
        for (from, ask) in asks {
            self.cancel(from, ask);
        }
    }

    /// Forgets an ask that is over.
    pub(super) fn over(&mut self, from: Member, ask: u64) {
        self.served.remove(&(from, ask));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fence_core::arbiter::LateEffect;
    use fence_core::cluster::message::AskAction;

    const OWNER: Member = Member { node: 2, pid: 20 };
    const OTHER: Member = Member { node: 3, pid: 30 };
    /// Far longer than a test takes.
    const TIME: Duration = Duration::from_secs(600);

    fn lease() -> Lease {
        Lease::new(Instant::now() + TIME, 7).0
    }

    fn ask(number: u64) -> AskMessage {
        let (uuid, name) = ("u".to_owned(), "n".to_owned());
        AskMessage {
            to: OWNER,
            ask: number,
            what: AskAction::Off,
            uuid,
            name,
            rests: false,
            claim: None,
            left_ms: 1,
            request: 7,
            dry_run: None,
        }
    }

    #[test]
    fn go_is_said_while_somebody_waits_and_to_nobody_else() {
        let (mut asks, now) = (OutgoingAsks::new(40), Instant::now());
        let lease = lease();
        let (number, _told) = asks.begin(OWNER, None, &lease);
        assert_eq!(number, 40);
        let left = |message| match message {
            HostMessage::Go { to: OWNER, ask: 40, left_ms } => Some(left_ms),
            _ => None,
        };
        let millis = left(asks.taken(OWNER, 40, now)).unwrap();
        assert!((599_000..=600_000).contains(&millis), "{millis}");
        let no = |to, ask| HostMessage::Cancel { to, ask };
        assert_eq!(asks.taken(OTHER, 40, now), no(OTHER, 40), "it was not asked");
        assert_eq!(asks.taken(OWNER, 41, now), no(OWNER, 41), "an ask of an earlier daemon");
        lease.end(LeaseEndReason::HungUp);
        assert_eq!(asks.taken(OWNER, 40, now), no(OWNER, 40));
    }

    #[test]
    fn the_owner_alone_is_believed_and_its_reply_ends_it() {
        let mut asks = OutgoingAsks::new(1);
        let (lease, mut settled) = Lease::new(Instant::now() + TIME, 7);
        let (number, mut told) = asks.begin(OWNER, None, &lease);
        drop(lease);
        asks.seen_off(OTHER, number, true, false);
        asks.reply(OTHER, number, AskEnd::NotHere);
        assert!(told.try_recv().is_err() && !settled.is_now());
        asks.seen_off(OWNER, number, false, true);
        assert!(matches!(told.try_recv(), Ok(AskEvent::SeenOff { was_off: false, starts: true })));
        assert!(!settled.is_now(), "it may still take effect");
        asks.reply(OWNER, number, AskEnd::NotHere);
        assert!(matches!(told.try_recv(), Ok(AskEvent::Reply(AskEnd::NotHere))));
        assert!(settled.is_now());
        assert_eq!(asks.count(), 0);
    }

    #[test]
    fn an_owner_that_left_may_still_be_at_it() {
        let mut asks = OutgoingAsks::new(1);
        let (lease, mut settled) = Lease::new(Instant::now() + TIME, 7);
        let (_, mut told) = asks.begin(OWNER, None, &lease);
        let (_, mut other) = asks.begin(OTHER, None, &lease);
        drop(lease);
        let held = asks.lost(Some(OWNER), "it left");
        assert!(matches!(told.try_recv(), Ok(AskEvent::Lost(why)) if why == "it left"));
        assert!(other.try_recv().is_err());
        drop(asks.lost(None, "this host left"));
        assert!(matches!(other.try_recv(), Ok(AskEvent::Lost(_))));
        assert!(!settled.is_now(), "whoever holds what was lost says when");
        drop(held);
        assert!(settled.is_now());
    }

    #[test]
    fn the_time_that_is_left_counts_from_taken() {
        let mut served = IncomingAsks::default();
        let taken = Instant::now();
        for (number, left_ms, until) in
            [(1, 5_000, taken + Duration::from_secs(5)), (2, u64::MAX, taken + MAX_LEFT)]
        {
            assert!(served.begin(OTHER, &ask(number)));
            assert!(!served.begin(OTHER, &ask(number)), "twice");
            served.go(OTHER, number, left_ms);
            let mut told = served.taken(OTHER, number, taken);
            assert!(told.try_recv().is_err(), "go before taken is none");
            served.go(OTHER, number, left_ms);
            let (lease, _settled) = told.try_recv().unwrap();
            assert_eq!(lease.until(), until);
            served.go(OTHER, number, 1);
            assert!(lease.end_reason().is_none());
        }
    }

    #[test]
    fn nothing_begins_for_one_that_left_and_what_has_begun_hears_of_it() {
        let mut served = IncomingAsks::default();
        for number in [1, 2, 3] {
            assert!(served.begin(OTHER, &ask(number)));
        }
        assert!(served.begin(OWNER, &ask(1)));
        let mut waiting = served.taken(OTHER, 1, Instant::now());
        let mut acting = served.taken(OTHER, 2, Instant::now());
        served.go(OTHER, 2, 60_000);
        let (lease, mut settled) = acting.try_recv().unwrap();
        let mut mine = served.taken(OWNER, 1, Instant::now());
        served.lost(Some(OTHER));
        assert!(matches!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert_eq!(lease.end_reason(), Some(LeaseEndReason::HungUp));
        drop(lease);
        assert!(settled.is_now(), "the table holds nothing up");
        assert!(matches!(mine.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        // The domain is located only now.
        let mut late = served.taken(OTHER, 3, Instant::now());
        served.go(OTHER, 3, 60_000);
        assert!(late.try_recv().is_err());
    }

    /// Otherwise a stuck owner would block all requests that conflict with the ask, for as long as it is
    /// stuck.
    #[test]
    fn an_owner_that_was_not_told_to_go_on_holds_nothing_up() {
        let now = Instant::now();
        let ask = || {
            let (lease, settled) = Lease::new(now + Duration::from_secs(60), 1);
            let mut asks = OutgoingAsks::new(1);
            let (ask, _told) = asks.begin(OWNER, None, &lease);
            (asks, ask, settled)
        };
        let (mut asks, number, mut settled) = ask();
        asks.give_up(number);
        assert!(settled.is_now());
        assert_eq!(asks.taken(OWNER, number, now), HostMessage::Cancel { to: OWNER, ask: number });
        let (mut asks, number, mut settled) = ask();
        assert!(matches!(asks.taken(OWNER, number, now), HostMessage::Go { .. }));
        asks.give_up(number);
        assert!(!settled.is_now(), "it may be at work");
        asks.reply(OWNER, number, AskEnd::NotHere);
        assert!(settled.is_now());
    }

    #[test]
    fn an_early_reply_tells_the_client_and_holds_the_lease() {
        let mut asks = OutgoingAsks::new(1);
        let (lease, mut released) = Lease::new(Instant::now() + TIME, 7);
        let (ask, mut events) = asks.begin(OWNER, None, &lease);
        drop(lease);
        let end = || AskEnd::NothingDone("why".to_owned());
        // Nothing was begun.
        asks.early_reply(OWNER, ask, end());
        asks.taken(OWNER, ask, Instant::now());
        asks.early_reply(OTHER, ask, end());
        assert!(events.try_recv().is_err());
        asks.early_reply(OWNER, ask, end());
        assert!(matches!(events.try_recv(), Ok(AskEvent::Reply(_))));
        asks.give_up(ask);
        assert_eq!(released.effect(), Some(LateEffect::Any));
        for it in [OTHER, OWNER, OWNER] {
            asks.hangs(it, ask);
            let effect = if it == OWNER { LateEffect::HangingOff } else { LateEffect::Any };
            assert_eq!(released.effect(), Some(effect));
        }
        asks.reply(OWNER, ask, end());
        assert!(released.is_now());
    }
}
