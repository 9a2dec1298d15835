// SPDX-License-Identifier: GPL-2.0-or-later
//! Which domain a request comes from, as far as the transport can tell.
//!
//! Answers from what [`crate::hypervisor::inventory`] knows of the running domains and from the kernel's neighbour table; never
//! asks a hypervisor, so no request waits for one. What can't be told for certain is left out: two domains with one
//! MAC address are neither of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::debug;

use crate::hypervisor::inventory::{Inventories, RunningDomain};
use fence_core::access::Identity;

/// A look into the neighbour table takes a fraction of a millisecond, unless the kernel's network lock is held.
const TABLE_LIMIT: Duration = Duration::from_millis(50);
/// Looks that may be under way at once. One that hangs in the kernel keeps its thread, and the calls to hypervisors need
/// theirs.
const MAX_LOOKS: usize = 16;

/// What sources can be recognised by.
pub(crate) struct SourceResolver {
    inventories: Inventories,
    looks: Arc<Semaphore>,
}

impl SourceResolver {
    pub(crate) fn new(inventories: Inventories) -> Arc<Self> {
        Arc::new(Self { inventories, looks: Arc::new(Semaphore::new(MAX_LOOKS)) })
    }

    /// The source with this address, which it has shown to be its own: over the neighbour table's MAC address to a
    /// domain. `ip` may be of a guest on this host, on another, or of anything else.
    pub(crate) async fn of_ip(&self, ip: IpAddr) -> Identity {
        let ip = ip.to_canonical();
        let mut identity = Identity { ip: Some(ip), ..Identity::default() };
        if ip.is_loopback() || self.inventories.is_empty() {
            return identity;
        }
        match in_time(&self.looks, move || fence_net::neighbours(ip)).await {
            Some(Ok(macs)) => {
                // An address may have an entry on each interface; all of them must be of one domain.
                let domains = macs.iter().map(|mac| self.inventories.by_mac(*mac));
                name(&mut identity, agreed(domains));
            }
            Some(Err(error)) => debug!(%ip, "can't read the neighbour table: {error}"),
            None => debug!(%ip, "no answer from the neighbour table in time"),
        }
        identity
    }

    /// The source with this vsock context id, which the kernel vouches for.
    pub(crate) fn of_cid(&self, cid: u32) -> Identity {
        let mut identity = Identity { cid: Some(cid), ..Identity::default() };
        name(&mut identity, self.inventories.by_cid(cid));
        identity
    }
}

/// What `look` finds on a blocking thread; none when that, or the turn for it, takes longer than [`TABLE_LIMIT`].
async fn in_time<T: Send + 'static>(
    looks: &Arc<Semaphore>,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let looks = Arc::clone(looks);
    let found = async move {
        let permit = looks.acquire_owned().await.ok()?;
        let look = move || {
            let _permit = permit;
            look()
        };
        tokio::task::spawn_blocking(look).await.ok()
    };
    tokio::time::timeout(TABLE_LIMIT, found).await.ok()?
}

fn name(identity: &mut Identity, domain: Option<Arc<RunningDomain>>) {
    if let Some(domain) = domain {
        identity.domain = Some(domain.uuid.clone());
        identity.name = Some(domain.name.clone());
    }
}

/// The one that all are; none where any is another, or unknown.
fn agreed(mut domains: impl Iterator<Item = Option<Arc<RunningDomain>>>) -> Option<Arc<RunningDomain>> {
    let first = domains.next()??;
    domains.all(|it| it.is_some_and(|it| it.uuid == first.uuid)).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// However many ask, looks that hang in the kernel keep a few threads and no more.
    #[tokio::test]
    async fn looks_that_hang_leave_threads_for_others() {
        let looks = Arc::new(Semaphore::new(MAX_LOOKS));
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(std::sync::Mutex::new(hangs));
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..4 * MAX_LOOKS {
            let (looks, begun, hangs) = (Arc::clone(&looks), Arc::clone(&begun), Arc::clone(&hangs));
            all.spawn(async move {
                let look = move || {
                    begun.fetch_add(1, Ordering::Relaxed);
                    // Returns when the other end is gone.
                    let _ = hangs.lock().unwrap().recv();
                };
                in_time(&looks, look).await
            });
        }
        assert!(all.join_all().await.iter().all(Option::is_none));
        assert!(begun.load(Ordering::Relaxed) <= MAX_LOOKS);
        drop(release);
        // What hung comes back, and others are let in.
        assert!(looks.acquire_many(u32::try_from(MAX_LOOKS).unwrap()).await.is_ok());
    }
}
