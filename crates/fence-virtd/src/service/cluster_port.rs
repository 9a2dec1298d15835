// SPDX-License-Identifier: GPL-2.0-or-later
//! Other hosts, as a request of this host knows them: they have a say in whether it may run.
//!
//! The cluster implements this port. Nothing here knows how hosts talk to each other.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use fence_core::arbiter::{ArbiterRequest, Grant, LateEffect, Rejection};
use fence_wire::Response;

/// Permission of other hosts for a request that has its grant on this host.
pub(crate) trait ClusterPort: Send + Sync {
    /// Waits until the request may run, or must not. Dropping the future withdraws the claim.
    ///
    /// The claim knows no deadline: the caller watches it.
    fn claim<'a>(
        &'a self,
        request: &'a ArbiterRequest,
    ) -> Pin<Box<dyn Future<Output = ClusterGrant> + Send + 'a>>;

    /// Takes in work of an earlier daemon that is over, but whose effect may still come. To be called before
    /// the other hosts hear of this daemon.
    fn restore(&self, request: &ArbiterRequest) -> Box<dyn ClusterPermit>;
}

/// Result of waiting for the permission of all hosts.
pub(crate) type ClusterGrant = Grant<Box<dyn ClusterPermit>>;

/// A claim in flight. Dropping it without [`ClusterPermit::finished`] reports that nothing was done.
pub(crate) trait ClusterPermit: fmt::Debug + Send + Sync {
    /// Reports that the client has proved itself and the action is about to begin. An error says that the
    /// grant no longer holds: then the action must not begin.
    fn proved(&self) -> Result<(), Rejection>;

    /// Reports that a status check after the action showed the target off, and whether it may go off once
    /// more by another order.
    fn seen_off(&self, may_come_again: bool);

    /// Reports that the client has its answer, but that a part of the work may still take effect.
    fn answered(&self, effect: LateEffect, response: Response, reason: Option<&str>);

    /// Reports that the action is over and can take no effect any more.
    fn finished(self: Box<Self>, response: Response, reason: Option<&str>);
}
