// SPDX-License-Identifier: GPL-2.0-or-later
//! The right to act for a request until a deadline: values only.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fence_core::arbiter::LateEffect;
use fence_core::domain::ActionError;
use fence_core::host_down::Moment;
use tokio::sync::{mpsc, watch};

use crate::request::trail::AgentRunTrail;
use crate::util::boot_clock::since_boot;

/// The right to act for a request until a deadline.
///
/// A request whose client is gone, or whose time is up, must not be carried out later. Code that is about to
/// act checks the lease first, and holds a clone as long as its action may still take effect.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    request: u64,
    /// Moment when the lease was made, by both clocks.
    began: Moment,
    made: Instant,
    until: Instant,
    ended: watch::Sender<Option<LeaseEndReason>>,
    trail: AgentRunTrail,
    /// None for a lease that holds nothing up by itself: see [`Lease::watched`].
    alive: Option<LeaseSigns>,
    late_seen: Arc<OnceLock<Instant>>,
}

/// Signs of a lease: nothing is ever sent, and each channel closes with its last sender.
#[derive(Clone, Debug)]
struct LeaseSigns {
    /// Any part of the work may take effect.
    _any: mpsc::Sender<Infallible>,
    late_off: LateOffSigns,
}

/// The part of these signs that a [`LateOffGuard`] has.
#[derive(Clone, Debug)]
struct LateOffSigns {
    /// A power-off may take effect, within a time that is known.
    bounded: mpsc::Sender<Infallible>,
    /// A power-off may take effect at any time.
    ever: mpsc::Sender<Infallible>,
}

/// Sign that a power-off may still take effect, and nothing else that was done under the lease.
#[derive(Debug)]
pub(crate) struct LateOffGuard {
    _bounded: Option<mpsc::Sender<Infallible>>,
    _ever: Option<mpsc::Sender<Infallible>>,
    seen: Arc<OnceLock<Instant>>,
}

impl LateOffGuard {
    /// Notes that the power-off hangs: nobody can tell when it takes effect.
    pub(crate) fn hangs(&mut self) {
        self._bounded = None;
    }

    /// Notes that a look which began at this moment showed the domain off.
    pub(crate) fn seen_off(&self, since: Instant) {
        let _ = self.seen.set(since);
    }
}

/// Ends a lease from elsewhere without holding it; see [`Lease::canceller`].
#[derive(Debug)]
pub(crate) struct LeaseCanceller(watch::Sender<Option<LeaseEndReason>>);

impl LeaseCanceller {
    /// Ends the lease, as [`Lease::end`] does.
    pub(crate) fn end(&self, why: LeaseEndReason) {
        self.0.send_if_modified(|it| it.replace(why).is_none());
    }
}

/// Reason why a request must not be carried out any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeaseEndReason {
    /// The client hung up.
    HungUp,
    /// The client sent a newer request.
    Superseded,
    /// A reload forbade the request. Its client waits for an answer.
    Forbidden,
}

/// Signals that all clones of a lease were dropped. After that no action taken under the lease can take
/// effect.
#[derive(Debug)]
pub(crate) struct LeaseReleased {
    any: mpsc::Receiver<Infallible>,
    bounded: mpsc::Receiver<Infallible>,
    ever: mpsc::Receiver<Infallible>,
    late_seen: Arc<OnceLock<Instant>>,
}

impl Lease {
    /// Returns the lease of the request with this number.
    pub(crate) fn new(until: Instant, request: u64) -> (Self, LeaseReleased) {
        let [(any_sign, any), (bounded_sign, bounded), (ever_sign, ever)] =
            [(); 3].map(|()| mpsc::channel(1));
        let (ended, trail) = (watch::Sender::new(None), AgentRunTrail::default());
        let late_seen = Arc::default();
        let released = LeaseReleased { any, bounded, ever, late_seen: Arc::clone(&late_seen) };
        let late_off = LateOffSigns { bounded: bounded_sign, ever: ever_sign };
        let alive = Some(LeaseSigns { _any: any_sign, late_off });
        let (began, made) = (Moment(since_boot()), Instant::now());
        (Self { request, began, made, until, ended, trail, alive, late_seen }, released)
    }

    /// Returns the lease with another trail for the agent runs under it.
    pub(crate) fn with_trail(self, trail: AgentRunTrail) -> Self {
        Self { trail, ..self }
    }

    /// Returns the trail of the agent runs of the request.
    pub(crate) fn trail(&self) -> &AgentRunTrail {
        &self.trail
    }

    /// Returns the lease for a part of the work. That ends at `limit` if that is earlier.
    pub(crate) fn within(&self, limit: Instant) -> Self {
        Self { until: self.until.min(limit), ..self.clone() }
    }

    /// Returns the number of the request.
    pub(crate) fn request(&self) -> u64 {
        self.request
    }

    /// Returns the moment when the lease was made, which is after the request came.
    pub(crate) fn began(&self) -> Moment {
        self.began
    }

    /// Returns the moment after which nothing may begin and nobody waits for the answer.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Ends the lease: nobody waits for the request any more, or a reload forbade it.
    pub(crate) fn end(&self, why: LeaseEndReason) {
        self.ended.send_if_modified(|it| it.replace(why).is_none());
    }

    /// Returns a handle that can end the lease, and that does not count as a clone.
    pub(crate) fn canceller(&self) -> LeaseCanceller {
        LeaseCanceller(self.ended.clone())
    }

    /// Returns a lease until `until` that the client's end does not end. For the rest of an action that has
    /// begun and must not be left half done.
    pub(crate) fn detached(&self, until: Instant) -> Self {
        Self { until, ended: watch::Sender::new(None), ..self.clone() }
    }

    /// Returns the lease for work that somebody watches who has the signs: it holds nothing up by itself.
    pub(crate) fn watched(&self) -> Self {
        Self { alive: None, ..self.clone() }
    }

    /// Returns the sign that a power-off may still take effect.
    pub(crate) fn late_off(&self) -> LateOffGuard {
        let signs = self.alive.as_ref().map(|it| it.late_off.clone());
        let (bounded, ever) = signs.map(|LateOffSigns { bounded, ever }| (bounded, ever)).unzip();
        LateOffGuard { _bounded: bounded, _ever: ever, seen: Arc::clone(&self.late_seen) }
    }

    /// Returns the reason why the lease ended, once it has.
    pub(crate) fn end_reason(&self) -> Option<LeaseEndReason> {
        *self.ended.borrow()
    }

    /// Waits until the lease ends before its time.
    pub(crate) async fn ended(&self) -> LeaseEndReason {
        let mut watcher = self.ended.subscribe();
        // The sender lives in `self`, so there is always an end to wait for.
        match watcher.wait_for(Option::is_some).await {
            Ok(why) => why.unwrap_or(LeaseEndReason::HungUp),
            Err(_) => LeaseEndReason::HungUp,
        }
    }

    /// Returns whether the time is up on the clock that goes on while this machine is suspended, as the other
    /// hosts do.
    fn slept_over(&self) -> bool {
        Moment(since_boot()).since(self.began) >= self.until.saturating_duration_since(self.made)
    }

    /// Checks that an action may begin now.
    pub(crate) fn check(&self) -> Result<(), ActionError> {
        if let Some(why) = self.end_reason() {
            Err(ActionError::Lapsed(match why {
                LeaseEndReason::HungUp => "the client is gone",
                LeaseEndReason::Superseded => "the same client asked something newer",
                LeaseEndReason::Forbidden => "a reload forbade it",
            }))
        } else if Instant::now() >= self.until || self.slept_over() {
            Err(ActionError::Lapsed("the client's time is up"))
        } else {
            Ok(())
        }
    }
}

impl LeaseReleased {
    /// Returns whether all clones are gone now, and no power-off can come any more.
    pub(crate) fn is_now(&mut self) -> bool {
        self.effect().is_none()
    }

    /// Returns what may still take effect; none: nothing.
    pub(crate) fn effect(&mut self) -> Option<LateEffect> {
        if is_closed(&mut self.ever) {
            return None;
        }
        Some(match (is_closed(&mut self.any), is_closed(&mut self.bounded)) {
            (false, _) => LateEffect::Any,
            (true, false) => LateEffect::PowerOff,
            (true, true) => LateEffect::HangingOff,
        })
    }

    /// Waits until another effect than this one may still come. Returns that one; none: nothing can any more.
    pub(crate) async fn effect_after(&mut self, effect: LateEffect) -> Option<LateEffect> {
        let sign = match effect {
            LateEffect::Any => &mut self.any,
            LateEffect::PowerOff => &mut self.bounded,
            LateEffect::HangingOff => &mut self.ever,
        };
        while sign.recv().await.is_some() {}
        self.effect()
    }

    /// Waits until all clones are gone, and no power-off can come any more.
    pub(crate) async fn wait(&mut self) {
        while self.ever.recv().await.is_some() {}
    }

    /// Returns the beginning of the look that showed the domain off after the request had ended.
    pub(crate) fn late_seen_off(&self) -> Option<Instant> {
        self.late_seen.get().copied()
    }
}

fn is_closed(sign: &mut mpsc::Receiver<Infallible>) -> bool {
    matches!(sign.try_recv(), Err(mpsc::error::TryRecvError::Disconnected))
}
