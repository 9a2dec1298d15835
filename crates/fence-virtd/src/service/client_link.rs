// SPDX-License-Identifier: GPL-2.0-or-later
//! The way to one client, as the main path of a request uses it.
//!
//! Each transport implements it: a stream with a handshake, a serial line, a legacy host. Nothing here knows
//! sockets.

use std::future::Future;

use fence_wire::Proved;

use crate::request::job::{RequestJob, RequestOutcome, ResolvedTarget};
use crate::request::lease::{Lease, LeaseEndReason};
use crate::request::record::AnswerDelivery;

/// One client that waits for the answer to one request.
pub(crate) trait ClientLink: Send {
    /// The client proves itself in a handshake. Without one, the transport vouches for it.
    const HAS_HANDSHAKE: bool;
    /// The client is told of every rejection, also of those that other clients never hear of.
    const HEARS_ALL_REJECTIONS: bool = false;
    /// State between the opening of the link and the proof.
    type Opened: Send;
    /// State between the proof and the answer.
    type Proven: Send;

    /// Opens the link while `resolving` looks for the domain: neither waits for the other.
    fn open(
        &mut self,
        job: &RequestJob,
        lease: &Lease,
        resolving: impl Future<Output = ResolvedTarget> + Send,
    ) -> impl Future<Output = (Result<Self::Opened, ProofFailure>, ResolvedTarget)> + Send;

    /// Waits until the client no longer waits for the answer. Called again, it waits for the next sign of
    /// that, for ever if there can be none. Dropping the future loses nothing.
    fn abandoned(&mut self) -> impl Future<Output = LeaseEndReason> + Send;

    /// Lets the client prove itself.
    fn prove(
        &mut self,
        job: &RequestJob,
        opened: Self::Opened,
    ) -> impl Future<Output = Result<(Proved, Self::Proven), ProofFailure>> + Send;

    /// Sends the answer, with the reason of a failure where the client wants it, and returns what became of
    /// it. With `is_gone` nobody waits for it any more.
    fn deliver(
        &mut self,
        job: &RequestJob,
        proven: Self::Proven,
        outcome: &RequestOutcome,
        is_gone: bool,
    ) -> impl Future<Output = AnswerDelivery> + Send;
}

/// A client that did not prove itself.
pub(crate) struct ProofFailure {
    /// Drop reason.
    pub(crate) reason: &'static str,
    /// Text for people.
    pub(crate) text: String,
}

/// Works to the end and ends the lease as soon as the client no longer waits.
pub(crate) async fn watched<L: ClientLink, T>(
    link: &mut L,
    lease: &Lease,
    work: impl Future<Output = T> + Send,
) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            why = link.abandoned() => lease.end(why),
        }
    }
}
