// SPDX-License-Identifier: GPL-2.0-or-later
//! The right to act for a request until a deadline: values only.

use crate::request::trail::AgentRunTrail;
use fence_core::domain::ActionError;
use std::convert::Infallible;
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// Until when, and for whom, something may be done. A request whose client has gone, or whose time is up, must
/// not be carried out later: whoever is about to act asks the lease first, and holds a clone as long as what it does
/// may still take effect.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    request: u64,
    until: Instant,
    ended: watch::Sender<Option<LeaseEndReason>>,
    trail: AgentRunTrail,
    /// Nothing is ever sent: the channel closes with the last clone.
    _alive: mpsc::Sender<Infallible>,
}

/// See [`Lease::ender`].
#[cfg(feature = "cpg")]
#[derive(Debug)]
pub(crate) struct LeaseCanceller(watch::Sender<Option<LeaseEndReason>>);

#[cfg(feature = "cpg")]
impl LeaseCanceller {
    /// As [`Lease::end`].
    pub(crate) fn end(&self, why: LeaseEndReason) {
        self.0.send_if_modified(|it| it.replace(why).is_none());
    }
}

/// Why nobody waits for a request any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeaseEndReason {
    /// Its client hung up.
    HungUp,
    /// Its client asked something newer.
    Superseded,
}

/// Tells when every clone of a lease is gone: from then on nothing that was done under it can take effect.
#[derive(Debug)]
pub(crate) struct LeaseReleased(mpsc::Receiver<Infallible>);

impl Lease {
    /// For the request with this number.
    pub(crate) fn new(until: Instant, request: u64) -> (Self, LeaseReleased) {
        let (alive, gone) = mpsc::channel(1);
        let (ended, trail) = (watch::Sender::new(None), AgentRunTrail::default());
        (Self { request, until, ended, trail, _alive: alive }, LeaseReleased(gone))
    }

    /// The same, and what runs under it is noted there.
    pub(crate) fn with_trail(self, trail: AgentRunTrail) -> Self {
        Self { trail, ..self }
    }

    /// Where what runs for the request is noted.
    pub(crate) fn trail(&self) -> &AgentRunTrail {
        &self.trail
    }

    /// The same lease for a part of the work: it ends at `limit` if that is earlier.
    pub(crate) fn within(&self, limit: Instant) -> Self {
        Self { until: self.until.min(limit), ..self.clone() }
    }

    /// The number of the request that it is for.
    pub(crate) fn request(&self) -> u64 {
        self.request
    }

    /// The moment after which nothing may be started and nobody waits for the answer.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Nobody waits for it any more.
    pub(crate) fn end(&self, why: LeaseEndReason) {
        self.ended.send_if_modified(|it| it.replace(why).is_none());
    }

    /// What ends it from elsewhere, and holds nothing up.
    #[cfg(feature = "cpg")]
    pub(crate) fn ender(&self) -> LeaseCanceller {
        LeaseCanceller(self.ended.clone())
    }

    /// For the rest of something that was begun and must not be left half done, whoever waits for it: until `until`,
    /// whatever becomes of the client.
    pub(crate) fn detached(&self, until: Instant) -> Self {
        Self { until, ended: watch::Sender::new(None), ..self.clone() }
    }

    /// Why nobody waits for it any more, once that is so.
    pub(crate) fn end_reason(&self) -> Option<LeaseEndReason> {
        *self.ended.borrow()
    }

    /// Returns when nobody waits for it any more.
    pub(crate) async fn ended(&self) -> LeaseEndReason {
        let mut watcher = self.ended.subscribe();
        // The sender lives in `self`, so there is always an end to wait for.
        match watcher.wait_for(Option::is_some).await {
            Ok(why) => why.unwrap_or(LeaseEndReason::HungUp),
            Err(_) => LeaseEndReason::HungUp,
        }
    }

    /// May something be done now?
    pub(crate) fn check(&self) -> Result<(), ActionError> {
        if let Some(why) = self.end_reason() {
            Err(ActionError::Lapsed(match why {
                LeaseEndReason::HungUp => "the client is gone",
                LeaseEndReason::Superseded => "the same client asked something newer",
            }))
        } else if Instant::now() >= self.until {
            Err(ActionError::Lapsed("the client's time is up"))
        } else {
            Ok(())
        }
    }
}

impl LeaseReleased {
    /// Whether it is so now.
    pub(crate) fn is_now(&mut self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::error::TryRecvError::Disconnected))
    }

    /// Waits until it is so.
    pub(crate) async fn wait(mut self) {
        while self.0.recv().await.is_some() {}
    }
}
