// SPDX-License-Identifier: GPL-2.0-or-later
//! What can power domains off and on, and what every such backend promises.
//!
//! A backend finds domains, looks at them and acts on them. It never reports a wish: `Off` and every success
//! come from a look at the domain after the action. It knows nothing of requests, peers or keys. Blocking
//! libraries stay behind it, each call with a deadline of its own.

use fence_core::domain::{ActionError, DomainListing, DomainRef, LocateError, LocatedDomain, PowerState};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::Target;
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

pub(crate) mod agent;
#[cfg(feature = "cpg")]
pub(crate) mod cpg;
#[cfg(feature = "libvirt")]
pub(crate) mod libvirt;
#[cfg(feature = "libvirt")]
pub(crate) mod several;
mod trail;

pub(crate) use self::trail::{AgentRun, AgentRunEnd, AgentRunTrail, TrailSnapshot};

/// How long one part that does not answer is waited for while another has what is looked for.
const SLOW_BACKEND_GRACE: Duration = Duration::from_secs(1);

/// A piece of a backend's work; boxed, so that a backend can be chosen at run time.
pub(crate) type BoxedFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What can power domains off and on. See the module's head for what each implementation promises.
pub(crate) trait Backend: Send + Sync {
    /// Finds the one domain that a target means: by UUID where it reads as one, then by name.
    fn locate<'a>(
        &'a self,
        target: &'a Target,
        until: Instant,
    ) -> BoxedFuture<'a, Result<LocatedDomain, LocateError>>;

    /// Whether it had a domain that this target could mean when it was last heard: asked of one that can't be asked
    /// now. What it never had, it does not keep from others. Answers at once.
    fn may_own(&self, target: &Target) -> bool;

    /// Looks at the domain. It does no harm after the lease has ended, so that is for whoever waits to look at.
    fn status<'a>(
        &'a self,
        domain: &'a DomainRef,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<PowerState, ActionError>>;

    /// Powers the domain off, hard, and returns when a look showed it off. Off already is success.
    ///
    /// With `for_reboot` it also gives what is needed to start it again; none for a domain that was off already
    /// and is to stay so.
    fn off<'a>(
        &'a self,
        domain: &'a DomainRef,
        for_reboot: bool,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<PowerOffResult, ActionError>>;

    /// Starts a domain and returns when a look showed it on. On already is success.
    fn on<'a>(
        &'a self,
        domain: &'a DomainRef,
        how: Restart,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<(), ActionError>>;

    /// All domains, sorted by name. What can't be reached is left out and named in the second part; an error
    /// only when nothing can be reached.
    fn list(&self, until: Instant) -> BoxedFuture<'_, Result<DomainListing, ActionError>>;

    /// Whether work could be done now, without looking at every domain: an error when nothing can be reached,
    /// else a line for each part that can't.
    fn health(&self, until: Instant) -> BoxedFuture<'_, Result<Vec<String>, ActionError>>;
}

/// A domain that was taken down.
#[derive(Debug)]
pub(crate) struct PowerOffResult {
    /// It was off before we acted.
    pub(crate) was_off: bool,
    /// How to start it again.
    pub(crate) restart: Option<Restart>,
    /// Which other host did it, or what else there is to say of how it came to be off.
    pub(crate) note: Option<String>,
}

/// What a domain is started from.
pub(crate) enum Restart {
    /// Its definition.
    Definition,
    /// Its XML, passwords included: a transient domain has no definition.
    Xml(Arc<Zeroizing<String>>),
    /// At this very host, which took it down, whatever is known of others.
    #[cfg(feature = "cpg")]
    Own(DomainRef, Box<Restart>),
    /// Nothing that this host has: the one that took it down starts it again.
    #[cfg(feature = "cpg")]
    There(crate::cluster::PendingAsk),
    /// What this host of the C daemon has.
    #[cfg(feature = "cpg")]
    Old(crate::cluster::Member),
}

impl fmt::Debug for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Definition => "Definition",
            Self::Xml(_) => "Xml(..)",
            #[cfg(feature = "cpg")]
            Self::Own(..) => "Own(..)",
            #[cfg(feature = "cpg")]
            Self::There(_) => "There(..)",
            #[cfg(feature = "cpg")]
            Self::Old(_) => "Old(..)",
        })
    }
}

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

/// Waits for all at once; in the order given.
pub(crate) async fn join_all<F>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future + Send,
{
    let mut pending: Vec<_> = futures.into_iter().map(|it| (Box::pin(it), None)).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => all = false,
                }
            }
        }
        if all { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pending.into_iter().filter_map(|(_, output)| output).collect()
}
