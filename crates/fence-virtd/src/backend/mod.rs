// SPDX-License-Identifier: GPL-2.0-or-later
//! The port to whatever powers domains off and on, and the promises that every backend keeps.
//!
//! A backend locates domains, checks their status and changes their power. It never reports a wish: "off" and
//! every power-off carry a [`ProvedOff`], which only looks after the request came can make. It knows nothing
//! of requests, peers, keys or other hosts' messages. Blocking libraries stay behind it, each call with a
//! deadline of its own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use fence_core::domain::{
    ActionError, DomainId, DomainListing, DomainRef, LocateError, LocatedDomain, PowerAction, SeenPower,
};
use fence_core::evidence::ProvedOff;
use fence_core::intent::PendingOrder;
use fence_core::owed_start::StartVerdict;
use fence_wire::Target;

use crate::request::lease::Lease;

pub(crate) mod agent;
#[cfg(feature = "libvirt")]
pub(crate) mod combined;
pub(crate) mod elsewhere;
#[cfg(feature = "libvirt")]
pub(crate) mod libvirt;

/// Time for which a silent part is waited for while another part has the domain.
const SLOW_BACKEND_GRACE: Duration = Duration::from_secs(1);

/// Boxed future, for a call whose implementation is chosen at run time.
pub(crate) type BoxedFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to power domains off and on. The module's head has the promises of each implementation.
///
/// Callers that choose a backend at run time hold a [`DynBackend`].
pub(crate) trait Backend: Send + Sync {
    /// Finds the one domain that a target means: by UUID where the target reads as one, then by name.
    fn locate(
        &self,
        target: &Target,
        until: Instant,
    ) -> impl Future<Output = Result<LocatedDomain, LocateError>> + Send;

    /// Returns whether an unreachable backend last had a domain that matches the target. If not, its silence
    /// does not block other backends. Never blocks.
    fn may_own(&self, target: &Target) -> bool;

    /// Waits until something of a power-off or a start can begin, or until it is clear that nothing will. The
    /// request has no turn meanwhile, so nobody waits for what it waits for. Changes nothing, and proves
    /// nothing: what follows looks for itself.
    ///
    /// # Errors
    /// The action would fail, for this reason.
    fn ready(
        &self,
        _: &LocatedDomain,
        _lease: &Lease,
    ) -> impl Future<Output = Result<(), ActionError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Checks the domain's power. Harmless after the end of the lease, which the caller watches.
    fn status(
        &self,
        domain: &DomainRef,
        lease: &Lease,
    ) -> impl Future<Output = Result<SeenPower, ActionError>> + Send;

    /// Powers the domain off, hard, and returns when a status check showed it off. Off already is success.
    ///
    /// With `for_reboot` the result has the means of the restart; none for a domain that was off already and
    /// is to stay off.
    fn off<'a>(
        &'a self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> impl Future<Output = Result<PowerOffResult<'a>, ActionError>> + Send;

    /// Starts a domain from its definition and returns when a status check showed it on; at once if it is on.
    fn on(&self, domain: &DomainRef, lease: &Lease) -> impl Future<Output = Result<(), ActionError>> + Send;

    /// Says what an action would do to the domain now, and changes nothing: what decides is what decides in
    /// [`Backend::off`] and [`Backend::on`]. The error is the one with which the action would fail, as far as
    /// that can be told before it.
    fn forecast(
        &self,
        domain: &DomainRef,
        action: PowerAction,
        lease: &Lease,
    ) -> impl Future<Output = Result<PowerForecast, ActionError>> + Send;

    /// Judges whether a start that has been owed for this long still stands, by what the places remember
    /// that can have the domain.
    fn judge_at_places(
        &self,
        _: &DomainRef,
        _since: Duration,
        _until: Instant,
    ) -> impl Future<Output = StartVerdict> + Send {
        async { StartVerdict::Stands }
    }

    /// Judges the same by the requests of all hosts of a cluster. Waits for nothing.
    fn judge_by_requests(&self, _: &DomainRef, _since: Duration) -> StartVerdict {
        StartVerdict::Stands
    }

    /// Starts a domain whose start an earlier daemon owes, once every place showed it off: from its
    /// definition, or from XML at the hypervisor with this URI.
    fn start_owed(
        &self,
        domain: &DomainRef,
        xml: Option<(&str, &str)>,
        lease: &Lease,
    ) -> impl Future<Output = Result<(), ActionError>> + Send {
        async move {
            match xml {
                None => self.on(domain, lease).await,
                Some(_) => {
                    Err(ActionError::Refused("there is no hypervisor for the XML of the domain".to_owned()))
                }
            }
        }
    }

    /// Returns the longest time for which an order may take effect after its agent ended; zero where nothing
    /// takes effect late.
    fn longest_effect(&self) -> Duration {
        Duration::ZERO
    }

    /// Waits until an order of an earlier daemon can take effect no more: its device shows the effect, or it
    /// is `until`.
    fn order_settles(
        &self,
        _: &PendingOrder,
        _: DomainId,
        until: Instant,
    ) -> impl Future<Output = ()> + Send {
        tokio::time::sleep_until(until.into())
    }

    /// Returns all domains, sorted by name, and the names of the parts that can't be reached. Fails only when
    /// nothing can be reached.
    fn list(&self, until: Instant) -> impl Future<Output = Result<DomainListing, ActionError>> + Send;

    /// Checks whether the backend could work now, without a status check of every domain. Returns a line for
    /// each part that can't be reached, and fails when nothing can.
    fn health(&self, until: Instant) -> impl Future<Output = Result<Vec<String>, ActionError>> + Send;
}

/// A [`Backend`] that was chosen at run time: the same calls, each with a boxed future.
///
/// Every backend is one; nothing implements this trait by hand.
pub(crate) trait DynBackend: Send + Sync {
    /// Calls [`Backend::locate`].
    fn locate<'a>(
        &'a self,
        target: &'a Target,
        until: Instant,
    ) -> BoxedFuture<'a, Result<LocatedDomain, LocateError>>;

    /// Calls [`Backend::may_own`].
    fn may_own(&self, target: &Target) -> bool;

    /// Calls [`Backend::ready`].
    fn ready<'a>(
        &'a self,
        located: &'a LocatedDomain,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<(), ActionError>>;

    /// Calls [`Backend::status`].
    fn status<'a>(
        &'a self,
        domain: &'a DomainRef,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<SeenPower, ActionError>>;

    /// Calls [`Backend::off`].
    fn off<'b, 'a: 'b>(
        &'a self,
        domain: &'b DomainRef,
        for_reboot: bool,
        lease: &'b Lease,
    ) -> BoxedFuture<'b, Result<PowerOffResult<'a>, ActionError>>;

    /// Calls [`Backend::on`].
    fn on<'a>(&'a self, domain: &'a DomainRef, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>;

    /// Calls [`Backend::forecast`].
    fn forecast<'a>(
        &'a self,
        domain: &'a DomainRef,
        action: PowerAction,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<PowerForecast, ActionError>>;

    /// Calls [`Backend::judge_at_places`].
    fn judge_at_places<'a>(
        &'a self,
        domain: &'a DomainRef,
        since: Duration,
        until: Instant,
    ) -> BoxedFuture<'a, StartVerdict>;

    /// Calls [`Backend::judge_by_requests`].
    fn judge_by_requests(&self, domain: &DomainRef, since: Duration) -> StartVerdict;

    /// Calls [`Backend::start_owed`].
    fn start_owed<'a>(
        &'a self,
        domain: &'a DomainRef,
        xml: Option<(&'a str, &'a str)>,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<(), ActionError>>;

    /// Calls [`Backend::longest_effect`].
    fn longest_effect(&self) -> Duration;

    /// Calls [`Backend::order_settles`].
    fn order_settles<'a>(
        &'a self,
        order: &'a PendingOrder,
        domain: DomainId,
        until: Instant,
    ) -> BoxedFuture<'a, ()>;

    /// Calls [`Backend::list`].
    fn list(&self, until: Instant) -> BoxedFuture<'_, Result<DomainListing, ActionError>>;

    /// Calls [`Backend::health`].
    fn health(&self, until: Instant) -> BoxedFuture<'_, Result<Vec<String>, ActionError>>;
}

impl<B: Backend> DynBackend for B {
    fn locate<'a>(
        &'a self,
        target: &'a Target,
        until: Instant,
    ) -> BoxedFuture<'a, Result<LocatedDomain, LocateError>> {
        Box::pin(Backend::locate(self, target, until))
    }

    fn may_own(&self, target: &Target) -> bool {
        Backend::may_own(self, target)
    }

    fn ready<'a>(
        &'a self,
        located: &'a LocatedDomain,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<(), ActionError>> {
        Box::pin(Backend::ready(self, located, lease))
    }

    fn status<'a>(
        &'a self,
        domain: &'a DomainRef,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<SeenPower, ActionError>> {
        Box::pin(Backend::status(self, domain, lease))
    }

    fn off<'b, 'a: 'b>(
        &'a self,
        domain: &'b DomainRef,
        for_reboot: bool,
        lease: &'b Lease,
    ) -> BoxedFuture<'b, Result<PowerOffResult<'a>, ActionError>> {
        Box::pin(Backend::off(self, domain, for_reboot, lease))
    }

    fn on<'a>(&'a self, domain: &'a DomainRef, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>> {
        Box::pin(Backend::on(self, domain, lease))
    }

    fn forecast<'a>(
        &'a self,
        domain: &'a DomainRef,
        action: PowerAction,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<PowerForecast, ActionError>> {
        Box::pin(Backend::forecast(self, domain, action, lease))
    }

    fn judge_at_places<'a>(
        &'a self,
        domain: &'a DomainRef,
        since: Duration,
        until: Instant,
    ) -> BoxedFuture<'a, StartVerdict> {
        Box::pin(Backend::judge_at_places(self, domain, since, until))
    }

    fn judge_by_requests(&self, domain: &DomainRef, since: Duration) -> StartVerdict {
        Backend::judge_by_requests(self, domain, since)
    }

    fn start_owed<'a>(
        &'a self,
        domain: &'a DomainRef,
        xml: Option<(&'a str, &'a str)>,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<(), ActionError>> {
        Box::pin(Backend::start_owed(self, domain, xml, lease))
    }

    fn longest_effect(&self) -> Duration {
        Backend::longest_effect(self)
    }

    fn order_settles<'a>(
        &'a self,
        order: &'a PendingOrder,
        domain: DomainId,
        until: Instant,
    ) -> BoxedFuture<'a, ()> {
        Box::pin(Backend::order_settles(self, order, domain, until))
    }

    fn list(&self, until: Instant) -> BoxedFuture<'_, Result<DomainListing, ActionError>> {
        Box::pin(Backend::list(self, until))
    }

    fn health(&self, until: Instant) -> BoxedFuture<'_, Result<Vec<String>, ActionError>> {
        Box::pin(Backend::health(self, until))
    }
}

/// Effect that an action would have now, if nothing changes before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PowerForecast {
    /// The domain is on, and would be powered off at this place.
    PowersOff {
        /// The place, in words.
        at: String,
    },
    /// The domain is off everywhere, and an off or a reboot would leave that so.
    StaysOff,
    /// The domain is off everywhere, and would be started at this place.
    Starts {
        /// The place, in words.
        at: String,
    },
    /// The domain is on, and a start would leave that so.
    StaysOn,
    /// The action would be begun, and whether it would succeed shows only then.
    Uncertain(String),
}

/// A domain that was powered off.
#[derive(Debug)]
pub(crate) struct PowerOffResult<'a> {
    /// Proof that the domain was off, or that the instance of the request's time has ended.
    pub(crate) proof: ProvedOff,
    /// The domain was off before the backend acted.
    pub(crate) was_off: bool,
    /// Means to start the domain again; none where it is to stay off.
    pub(crate) restart: Option<Box<dyn Restart + 'a>>,
    /// Name of the other host that acted, or what else people should know of how the domain came to be off.
    pub(crate) note: Option<String>,
    /// The domain may go off once more, by another order than the one that took it down.
    pub(crate) may_come_again: bool,
}

impl<'a> PowerOffResult<'a> {
    /// Returns the result of this host's own doing, of which nothing may come late.
    pub(crate) fn settled(proof: ProvedOff, was_off: bool, restart: Option<Box<dyn Restart + 'a>>) -> Self {
        Self { proof, was_off, restart, note: None, may_come_again: false }
    }
}

/// Means to start a domain again at the place where a reboot powered it off.
///
/// Each backend keeps in its own type what that needs: a definition, the XML of a transient domain, another
/// host.
pub(crate) trait Restart: fmt::Debug + Send {
    /// Starts the domain and returns when a status check showed it on. On already is success.
    fn start<'a>(self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a;
}
