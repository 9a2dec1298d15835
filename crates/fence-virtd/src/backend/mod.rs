// SPDX-License-Identifier: GPL-2.0-or-later
//! What can power domains off and on, and what every such backend promises.
//!
//! A backend finds domains, looks at them and acts on them. It never reports a wish: `Off` and every success
//! come from a look at the domain after the action. It knows nothing of requests, peers or keys. Blocking
//! libraries stay behind it, each call with a deadline of its own.

use crate::request::lease::Lease;
use fence_core::domain::{ActionError, DomainListing, DomainRef, LocateError, LocatedDomain, PowerState};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use fence_wire::Target;

pub(crate) mod agent;
#[cfg(feature = "libvirt")]
pub(crate) mod combined;
#[cfg(feature = "libvirt")]
pub(crate) mod libvirt;

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
    fn off<'b, 'a: 'b>(
        &'a self,
        domain: &'b DomainRef,
        for_reboot: bool,
        lease: &'b Lease,
    ) -> BoxedFuture<'b, Result<PowerOffResult<'a>, ActionError>>;

    /// Starts a domain from its definition and returns when a status check showed it on. On already is success.
    fn on<'a>(&'a self, domain: &'a DomainRef, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>;

    /// All domains, sorted by name. What can't be reached is left out and named in the second part; an error
    /// only when nothing can be reached.
    fn list(&self, until: Instant) -> BoxedFuture<'_, Result<DomainListing, ActionError>>;

    /// Whether work could be done now, without looking at every domain: an error when nothing can be reached,
    /// else a line for each part that can't.
    fn health(&self, until: Instant) -> BoxedFuture<'_, Result<Vec<String>, ActionError>>;
}

/// A domain that was powered off.
#[derive(Debug)]
pub(crate) struct PowerOffResult<'a> {
    /// The domain was off before the backend acted.
    pub(crate) was_off: bool,
    /// Means to start the domain again; none where it is to stay off.
    pub(crate) restart: Option<Box<dyn Restart + 'a>>,
    /// Name of the other host that acted, or what else people should know of how the domain came to be off.
    pub(crate) note: Option<String>,
}

/// Means to start a domain again at the place where a reboot powered it off.
///
/// Each backend keeps in its own type what that needs: a definition, the XML of a transient domain, another host.
pub(crate) trait Restart: fmt::Debug + Send {
    /// Starts the domain and returns when a status check showed it on. On already is success.
    fn start<'a>(self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a;
}
