// SPDX-License-Identifier: GPL-2.0-or-later
//! The source of a request: the domain that sent it, as far as the transport proves it.
//!
//! Reads the running domains of [`crate::hypervisor::inventory`] and the kernel's neighbour table. Must never
//! ask a hypervisor, so that no request waits for one. An uncertain source is unknown: of two domains with
//! one MAC address, neither counts as the source. Runs on the caller's task; reads of the neighbour table on
//! blocking threads.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::debug;

use crate::hypervisor::inventory::{Inventories, RunningDomain};
use fence_core::access::Identity;

/// Limit of one read of the neighbour table. It takes a fraction of a millisecond, unless the kernel's
/// network lock is held.
const TABLE_LIMIT: Duration = Duration::from_millis(50);
/// Reads of the neighbour table at once. A read that hangs in the kernel keeps its thread, and calls to
/// hypervisors need threads too.
const MAX_TABLE_READS: usize = 16;

/// Inventories and neighbour table, by which sources are recognised.
pub(crate) struct SourceResolver {
    inventories: Inventories,
    table_reads: Arc<Semaphore>,
}

impl SourceResolver {
    pub(crate) fn new(inventories: Inventories) -> Arc<Self> {
        Arc::new(Self { inventories, table_reads: Arc::new(Semaphore::new(MAX_TABLE_READS)) })
    }

    /// Returns the source with an address that it has proved to be its own: the neighbour table gives the MAC
    /// address, and that the domain. `ip` may belong to a guest on this host or on another, or to any other
    /// machine.
    pub(crate) async fn of_ip(&self, ip: IpAddr) -> Identity {
        let ip = ip.to_canonical();
        let mut identity = Identity { ip: Some(ip), ..Identity::default() };
        if ip.is_loopback() || self.inventories.is_empty() {
            return identity;
        }
        match read_in_time(&self.table_reads, move || fence_net::neighbours(ip)).await {
            Some(Ok(entries)) => {
                // An address may have an entry on each interface; all entries must lead to one domain.
                let domains = entries.macs.iter().map(|mac| self.inventories.by_mac(*mac));
                set_domain(&mut identity, agreed(domains));
                // Whichever of its cards the other address is at.
                let source = identity.domain;
                let is_source = |mac: &[u8; 6]| {
                    source.is_some_and(|it| self.inventories.by_mac(*mac).is_some_and(|at| at.uuid == it))
                };
                identity.answers_for_others = entries.others.iter().any(is_source);
            }
            Some(Err(error)) => debug!(%ip, "can't read the neighbour table: {error}"),
            None => debug!(%ip, "no answer from the neighbour table in time"),
        }
        identity
    }

    /// Returns the source with a vsock context id, which the kernel proves.
    pub(crate) fn of_cid(&self, cid: u32) -> Identity {
        let mut identity = Identity { cid: Some(cid), ..Identity::default() };
        set_domain(&mut identity, self.inventories.by_cid(cid));
        identity
    }
}

/// Runs `read` on a blocking thread and returns its result; none if that, with the wait for a permit, takes
/// longer than [`TABLE_LIMIT`].
async fn read_in_time<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let permits = Arc::clone(permits);
    let result = async move {
        let permit = permits.acquire_owned().await.ok()?;
        let read = move || {
            let _permit = permit;
            read()
        };
        tokio::task::spawn_blocking(read).await.ok()
    };
    tokio::time::timeout(TABLE_LIMIT, result).await.ok()?
}

/// Enters the domain, if one was found.
fn set_domain(identity: &mut Identity, domain: Option<Arc<RunningDomain>>) {
    if let Some(domain) = domain {
        identity.domain = Some(domain.uuid);
        identity.name = Some(domain.name.clone());
    }
}

/// Returns the domain of all entries; none if two entries differ or one is unknown.
fn agreed(mut domains: impl Iterator<Item = Option<Arc<RunningDomain>>>) -> Option<Arc<RunningDomain>> {
    let first = domains.next()??;
    domains.all(|domain| domain.is_some_and(|it| it.uuid == first.uuid)).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Reads that hang in the kernel keep a few threads and no more, however many requests arrive.
    #[tokio::test]
    async fn reads_that_hang_leave_threads_for_others() {
        let permits = Arc::new(Semaphore::new(MAX_TABLE_READS));
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(std::sync::Mutex::new(hangs));
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..4 * MAX_TABLE_READS {
            let (permits, begun, hangs) = (Arc::clone(&permits), Arc::clone(&begun), Arc::clone(&hangs));
            all.spawn(async move {
                let read = move || {
                    begun.fetch_add(1, Ordering::Relaxed);
                    // Returns when the other end is gone.
                    let _ = hangs.lock().unwrap().recv();
                };
                read_in_time(&permits, read).await
            });
        }
        assert!(all.join_all().await.iter().all(Option::is_none));
        assert!(begun.load(Ordering::Relaxed) <= MAX_TABLE_READS);
        drop(release);
        // The hung reads end, and further ones are admitted.
        assert!(permits.acquire_many(u32::try_from(MAX_TABLE_READS).unwrap()).await.is_ok());
    }
}
