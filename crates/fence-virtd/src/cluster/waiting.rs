// SPDX-License-Identifier: GPL-2.0-or-later
//! Claims of this host's requests that wait for their grant. Pure but for the channels that it tells.

use std::collections::HashMap;

use fence_core::arbiter::Grant;
use tokio::sync::oneshot;

/// Claims of this host's requests that are not over, and the channels to those that wait for their grant.
#[derive(Default)]
pub(super) struct WaitingClaims {
    /// Channels by number of the claim.
    channels: HashMap<u64, oneshot::Sender<Grant<()>>>,
    /// Number of the claim by request.
    of_request: HashMap<u64, u64>,
}

impl WaitingClaims {
    /// Registers a claim for a request. Returns the channel on which its grant comes.
    pub(super) fn register(&mut self, id: u64, request: u64) -> oneshot::Receiver<Grant<()>> {
        let (sender, grant) = oneshot::channel();
        self.channels.insert(id, sender);
        self.of_request.insert(request, id);
        grant
    }

    /// Returns the claim of this request.
    pub(super) fn claim_of(&self, request: u64) -> Option<u64> {
        self.of_request.get(&request).copied()
    }

    /// Delivers the grant of a claim. The receiver may be gone: then the claim is being withdrawn.
    pub(super) fn deliver(&mut self, id: u64, grant: Grant<()>) {
        if let Some(sender) = self.channels.remove(&id) {
            let _ = sender.send(grant);
        }
    }

    /// Forgets a claim that is over.
    pub(super) fn forget(&mut self, id: u64, request: u64) {
        self.channels.remove(&id);
        self.of_request.remove(&request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fence_core::arbiter::Rejection;

    #[test]
    fn a_grant_reaches_the_request_of_its_claim_once() {
        let mut waiting = WaitingClaims::default();
        let mut grant = waiting.register(7, 70);
        let mut other = waiting.register(8, 80);
        assert_eq!((waiting.claim_of(70), waiting.claim_of(8)), (Some(7), None));
        waiting.deliver(7, Grant::Run(()));
        waiting.deliver(7, Grant::Rejected(Rejection::TurnLost));
        assert!(matches!(grant.try_recv(), Ok(Grant::Run(()))));
        assert_eq!(waiting.claim_of(70), Some(7), "in flight, and asks are made under it");
        assert!(matches!(other.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        waiting.forget(8, 80);
        assert!(matches!(other.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert_eq!(waiting.claim_of(80), None);
    }
}
