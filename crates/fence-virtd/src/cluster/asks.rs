// SPDX-License-Identifier: GPL-2.0-or-later
//! Work that hosts ask each other for: both ends' tables of what is under way.
//!
//! ```text
//! asker                     owner
//!   ask      ────────────▶   looks whether it has the domain
//!            ◀────────────   taken       (not for a look alone)
//!   go       ────────────▶   acts
//!            ◀────────────   progress    (off and reboot: seen off)
//!            ◀────────────   reply       (nothing of it can take effect any more)
//!   cancel   ────────────▶   (nobody waits any more: what has not begun does not)
//! ```
//!
//! "Go" says how much time is left, and the owner counts it from the moment when it said "taken": however late a
//! message comes, the owner never acts after the asker's deadline, and no clocks are compared. An asker that left the
//! group, or whose client did, says no "go".
//!
//! Pure but for the channels that it tells: it sends nothing and waits for nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::message::{Ask, End, Member, Message};
use crate::backend::{ActError, Lease, LeaseEnd, LeaseEnder, Settled};

/// Asks of other hosts that are worked on at once.
const MAX_SERVED: usize = 1024;
/// No client waits longer.
const MAX_LEFT: Duration = Duration::from_secs(30);

/// What this host asked others for.
#[derive(Debug)]
pub(super) struct Asks {
    next: u64,
    pending: HashMap<u64, Pending>,
}

#[derive(Debug)]
struct Pending {
    to: Member,
    tell: mpsc::UnboundedSender<Word>,
    /// Held as long as something of it may still take effect.
    lease: Lease,
}

/// What an asker hears.
#[derive(Debug)]
pub(super) enum Word {
    /// A look after the action showed the domain off.
    SeenOff {
        was_off: bool,
        starts: bool,
    },
    Reply(End),
    /// The owner, or this host, left the group.
    Lost(String),
}

impl Asks {
    /// `first` should be drawn: a daemon that was started anew with the same process id must not take answers that were
    /// meant for the one before.
    pub(super) fn new(first: u64) -> Self {
        Self { next: first, pending: HashMap::new() }
    }

    /// Notes down what is asked of `to` now. Gives its number.
    pub(super) fn begin(&mut self, to: Member, lease: &Lease) -> (u64, mpsc::UnboundedReceiver<Word>) {
        let ask = self.next;
        self.next = self.next.wrapping_add(1);
        let (tell, told) = mpsc::unbounded_channel();
        self.pending.insert(ask, Pending { to, tell, lease: lease.clone() });
        (ask, told)
    }

    /// It was not sent.
    pub(super) fn forget(&mut self, ask: u64) {
        self.pending.remove(&ask);
    }

    /// An owner says that it is about to act. Gives what it is to be told.
    pub(super) fn taken(&self, from: Member, ask: u64, now: Instant) -> Message {
        match self.pending.get(&ask).filter(|it| it.to == from) {
            Some(it) if it.lease.check().is_ok() => {
                let left = it.lease.until().saturating_duration_since(now);
                Message::Go { to: from, ask, left_ms: left.as_millis().try_into().unwrap_or(u64::MAX) }
            }
            _ => Message::Cancel { to: from, ask },
        }
    }

    /// An owner saw the domain off.
    pub(super) fn seen_off(&self, from: Member, ask: u64, was_off: bool, starts: bool) {
        if let Some(it) = self.pending.get(&ask).filter(|it| it.to == from) {
            // Nobody may be there to hear it.
            let _ = it.tell.send(Word::SeenOff { was_off, starts });
        }
    }

    /// An owner is done.
    pub(super) fn reply(&mut self, from: Member, ask: u64, end: End) {
        if self.pending.get(&ask).is_some_and(|it| it.to == from)
            && let Some(it) = self.pending.remove(&ask)
        {
            let _ = it.tell.send(Word::Reply(end));
        }
    }

    /// A member left, or this host did (`None`): nothing more is heard of what it was asked for. Gives the leases of that:
    /// the owner may be in the middle of the action.
    pub(super) fn lost(&mut self, gone: Option<Member>, why: &str) -> Vec<Lease> {
        let is_lost = |it: &Pending| gone.is_none_or(|gone| it.to == gone);
        let asks: Vec<u64> = self.pending.iter().filter(|(_, it)| is_lost(it)).map(|(ask, _)| *ask).collect();
        let lost = asks.into_iter().filter_map(|ask| self.pending.remove(&ask));
        lost.map(|it| {
            let _ = it.tell.send(Word::Lost(why.to_owned()));
            it.lease
        })
        .collect()
    }

    /// How many are under way.
    pub(super) fn count(&self) -> usize {
        self.pending.len()
    }
}

/// What an owner's end means to the asker; `owner` is that host's name.
pub(super) fn result(end: End, owner: &str) -> Result<super::message::Outcome, ActError> {
    match end {
        End::Done(outcome) => Ok(outcome),
        End::NotHere => Err(ActError::Gone),
        End::NothingDone(why) => Err(ActError::Refused(format!("{owner}: {why}"))),
    }
}

/// What this host does for others.
#[derive(Debug, Default)]
pub(super) struct Served {
    served: HashMap<(Member, u64), Stage>,
}

#[derive(Debug)]
enum Stage {
    /// It looks whether the domain is here.
    Looking,
    /// It said "taken" at this moment and waits for "go".
    Taken(Instant, oneshot::Sender<(Lease, Settled)>),
    /// It acts.
    Acting(LeaseEnder),
}

impl Served {
    /// Takes an ask in; false: there are too many, or it is here already.
    pub(super) fn begin(&mut self, from: Member, ask: &Ask) -> bool {
        if self.served.len() >= MAX_SERVED || self.served.contains_key(&(from, ask.ask)) {
            return false;
        }
        self.served.insert((from, ask.ask), Stage::Looking);
        true
    }

    /// "Taken" is being said now. The lease comes with "go"; an error instead: nobody waits any more.
    pub(super) fn taken(
        &mut self,
        from: Member,
        ask: u64,
        now: Instant,
    ) -> oneshot::Receiver<(Lease, Settled)> {
        let (tell, told) = oneshot::channel();
        if let Some(stage @ Stage::Looking) = self.served.get_mut(&(from, ask)) {
            *stage = Stage::Taken(now, tell);
        }
        told
    }

    /// The asker says "go".
    pub(super) fn go(&mut self, from: Member, ask: u64, left_ms: u64) {
        let Some(stage) = self.served.get_mut(&(from, ask)) else { return };
        let Stage::Taken(since, _) = stage else { return };
        let left = Duration::from_millis(left_ms).min(MAX_LEFT);
        let (lease, settled) = Lease::new(*since + left, ask);
        if let Stage::Taken(_, tell) = std::mem::replace(stage, Stage::Acting(lease.ender())) {
            // Nobody there to hear it: it has ended by itself.
            let _ = tell.send((lease, settled));
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn cancel(&mut self, from: Member, ask: u64) {
        match self.served.get(&(from, ask)) {
            Some(Stage::Acting(ender)) => ender.end(LeaseEnd::HungUp),
            Some(Stage::Looking | Stage::Taken(..)) => drop(self.served.remove(&(from, ask))),
            None => {}
        }
    }

    /// A member left, or this host did (`None`): nobody waits for what it asked.
    pub(super) fn lost(&mut self, gone: Option<Member>) {
        let is_lost = |from: &Member| gone.is_none_or(|gone| *from == gone);
        let asks: Vec<_> = self.served.keys().filter(|(from, _)| is_lost(from)).copied().collect();
        for (from, ask) in asks {
            self.cancel(from, ask);
        }
    }

    /// It is over.
    pub(super) fn over(&mut self, from: Member, ask: u64) {
        self.served.remove(&(from, ask));
    }
}
