// SPDX-License-Identifier: GPL-2.0-or-later
//! The answer to a request that waits for permission to run: values only.

use fence_wire::Response;

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

/// Reason why an accepted request never runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejection {
    /// Its source is down: nobody asks any more.
    #[error("its source was fenced after it arrived")]
    SourceFenced,
    /// Its client has given up, or is about to.
    #[error("its deadline passed before its turn came")]
    DeadlinePassed,
    /// The same client asked something newer.
    #[error("superseded by a newer request of the same client")]
    Superseded,
    /// The client hung up.
    #[error("the client hung up before its turn came")]
    HungUp,
    /// See [`REQUEST_LIMIT`].
    #[error("queue full: {REQUEST_LIMIT} requests are under way")]
    QueueFull,
    /// See [`TARGET_LIMIT`].
    #[error("queue full: {TARGET_LIMIT} requests for this domain are under way")]
    TargetQueueFull,
    /// This host has as many under way among all hosts as it can tell them of.
    #[error("queue full: the other hosts are asked about too many requests of this one")]
    ClaimsFull,
    /// Other hosts have a say, and can't be heard.
    #[error("the hosts lost each other while it waited for what another host has in flight; ask again")]
    HostsApart,
    /// The same, between its turn and its proof.
    #[error("the hosts lost each other before the client had proved itself; ask again")]
    TurnLost,
}

impl Rejection {
    /// The client may still be there, and is told.
    pub fn is_for_the_client(self) -> bool {
        matches!(
            self,
            Self::QueueFull | Self::TargetQueueFull | Self::ClaimsFull | Self::HostsApart | Self::TurnLost
        )
    }
}
