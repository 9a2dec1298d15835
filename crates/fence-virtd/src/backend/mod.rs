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
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::Target;
use zeroize::Zeroizing;

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
