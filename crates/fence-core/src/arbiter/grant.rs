// SPDX-License-Identifier: GPL-2.0-or-later
//! Result of waiting for permission to run: the grant, and the reasons for a rejection. Owns values only,
//! which any task may hold. Must never do I/O.

use std::fmt;

use fence_wire::Response;

use crate::domain::PowerAction;

/// Requests that are not over, in all; one more is refused.
pub const REQUEST_LIMIT: usize = 1024;
/// Requests that are not over, for one target; one more is refused.
pub const TARGET_LIMIT: usize = 64;

/// Result of waiting for permission to run.
#[derive(Debug)]
pub enum Grant<R> {
    /// The permission: the proof is asked for, the work runs, and its progress is reported by the value.
    Run(R),
    /// The same work was done for another request: the proof is asked for, and its result is the reply.
    Coalesced(SharedResult),
    /// The request does not run.
    Rejected(Rejection),
}

impl<R> Grant<R> {
    /// Returns the same grant with another permission in the place of this one.
    pub fn map<S>(self, change: impl FnOnce(R) -> S) -> Grant<S> {
        match self {
            Self::Run(permit) => Grant::Run(change(permit)),
            Self::Coalesced(result) => Grant::Coalesced(result),
            Self::Rejected(rejection) => Grant::Rejected(rejection),
        }
    }
}

/// Result shared by all requests that were coalesced into one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedResult {
    /// The response of the operation.
    pub response: Response,
    /// The reason of that response, for people.
    pub reason: Option<String>,
    /// The request that ran, in words.
    pub by: String,
}

/// Request in flight that another one waits for. Displays as words for the host's own records: it names a
/// domain that the other's client may not know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldUp {
    /// Number of the request in flight.
    pub id: u64,
    /// Action of the request in flight.
    pub action: PowerAction,
    /// Target of that action.
    pub target: String,
    /// Says that the client of the request has the answer, and the action may still take effect.
    pub is_answered: bool,
}

impl fmt::Display for HoldUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, action, target, is_answered } = self;
        write!(f, "{action} of {target} (request {id}) comes first")?;
        if *is_answered {
            f.write_str(
                ", was begun, and may still take effect. See the log for that domain; if its libvirtd hangs, \
                 restart that libvirtd",
            )?;
        }
        Ok(())
    }
}

/// Reason why an accepted request never runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejection {
    /// The source is down: nobody waits for the result any more.
    #[error("the source of the request was fenced after the request arrived")]
    SourceFenced,
    /// The client has given up, or is about to.
    #[error("the deadline of the request passed before its turn came")]
    DeadlinePassed,
    /// The same client has sent a newer request.
    #[error("superseded by a newer request of the same client")]
    Superseded,
    /// The client hung up.
    #[error("the client hung up before the turn of the request came")]
    HungUp,
    /// A reload of the configuration forbade the request.
    #[error("a reload forbade the request before its turn came")]
    Forbidden,
    /// [`REQUEST_LIMIT`] is reached.
    #[error("queue full: {REQUEST_LIMIT} requests are under way")]
    QueueFull,
    /// [`TARGET_LIMIT`] is reached.
    #[error("queue full: {TARGET_LIMIT} requests for this domain are under way")]
    TargetQueueFull,
    /// This host has as many claims in flight as it can send to the other hosts.
    #[error("queue full: the other hosts are asked about too many requests of this one")]
    ClaimsFull,
    /// The other hosts must grant the request too, and this host can't hear them.
    #[error(
        "the hosts lost each other while the request waited for what another host has in flight; ask again"
    )]
    HostsApart,
    /// The other hosts were lost between the grant and the proof.
    #[error("the hosts lost each other before the client had proved itself; ask again")]
    TurnLost,
}

impl Rejection {
    /// Returns true where the request waited for its turn, and that did not come in time.
    pub fn is_without_turn(self) -> bool {
        matches!(self, Self::DeadlinePassed | Self::HungUp)
    }

    /// Returns true where the client may still be there, and gets an answer.
    pub fn is_for_the_client(self) -> bool {
        matches!(
            self,
            Self::Forbidden
                | Self::QueueFull
                | Self::TargetQueueFull
                | Self::ClaimsFull
                | Self::HostsApart
                | Self::TurnLost
        )
    }
}
