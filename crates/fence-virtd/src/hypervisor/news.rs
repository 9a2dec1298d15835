// SPDX-License-Identifier: GPL-2.0-or-later
//! News of a hypervisor's domains, and the domains that are to be read again because of them.

use std::collections::HashSet;
use std::time::Duration;

use libvirt_host::Uuid;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Event after which followers of a hypervisor read domains again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DomainEvent {
    /// Something happened to this domain.
    Domain(Uuid),
    /// The connection is new: anything may have happened.
    Everything,
}

/// Domains that a follower of a hypervisor has to read again.
pub(crate) enum RefreshScope {
    Everything,
    These(HashSet<Uuid>),
}

impl RefreshScope {
    /// Waits for an event and takes all events that have piled up.
    pub(crate) async fn next(news: &mut broadcast::Receiver<DomainEvent>) -> Self {
        let mut domains = HashSet::new();
        match news.recv().await {
            Ok(DomainEvent::Domain(uuid)) => drop(domains.insert(uuid)),
            Ok(DomainEvent::Everything) | Err(RecvError::Lagged(_)) => return Self::Everything,
            Err(RecvError::Closed) => std::future::pending().await,
        }
        loop {
            match news.try_recv() {
                Ok(DomainEvent::Domain(uuid)) => drop(domains.insert(uuid)),
                Ok(DomainEvent::Everything) | Err(TryRecvError::Lagged(_)) => return Self::Everything,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Self::These(domains),
            }
        }
    }

    /// Waits after a failed reading until the connection is new, or for `pause` at most. Everything has to be
    /// read then, because the failed reading showed nothing.
    pub(crate) async fn after_failure(news: &mut broadcast::Receiver<DomainEvent>, pause: Duration) -> Self {
        let new = async {
            while !matches!(news.recv().await, Ok(DomainEvent::Everything) | Err(RecvError::Closed)) {}
        };
        let _ = tokio::time::timeout(pause, new).await;
        Self::Everything
    }
}
