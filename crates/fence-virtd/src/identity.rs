// SPDX-License-Identifier: GPL-2.0-or-later
//! Which domain a request comes from, as far as the transport can tell.
//!
//! Answers from what [`crate::inventory`] knows of the running domains and from the kernel's neighbour table; never
//! asks a hypervisor, so no request waits for one. What can't be told for certain is left out: two domains with one
//! MAC address are neither of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::access::Identity;
use crate::inventory::{Domain, Inventories};

/// A look into the neighbour table takes a fraction of a millisecond, unless the kernel's network lock is held.
const TABLE_LIMIT: Duration = Duration::from_millis(50);

/// What sources can be recognised by.
pub(crate) struct Sources {
    inventories: Inventories,
}

impl Sources {
    pub(crate) fn new(inventories: Inventories) -> Arc<Self> {
        Arc::new(Self { inventories })
    }

    /// The source with this address, which it has shown to be its own: over the neighbour table's MAC address to a
    /// domain. `ip` may be of a guest on this host, on another, or of anything else.
    pub(crate) async fn of_ip(&self, ip: IpAddr) -> Identity {
        let ip = ip.to_canonical();
        let mut identity = Identity { ip: Some(ip), ..Identity::default() };
        if ip.is_loopback() || self.inventories.is_empty() {
            return identity;
        }
        let look = tokio::task::spawn_blocking(move || fence_net::neighbours(ip));
        match tokio::time::timeout(TABLE_LIMIT, look).await {
            Ok(Ok(Ok(macs))) => {
                // An address may have an entry on each interface; all of them must be of one domain.
                let domains = macs.iter().map(|mac| self.inventories.by_mac(*mac));
                name(&mut identity, agreed(domains));
            }
            Ok(Ok(Err(error))) => debug!(%ip, "can't read the neighbour table: {error}"),
            Ok(Err(_)) | Err(_) => debug!(%ip, "no answer from the neighbour table in time"),
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

fn name(identity: &mut Identity, domain: Option<Arc<Domain>>) {
    if let Some(domain) = domain {
        identity.domain = Some(domain.uuid.clone());
        identity.name = Some(domain.name.clone());
    }
}

/// The one that all are; none where any is another, or unknown.
fn agreed(mut domains: impl Iterator<Item = Option<Arc<Domain>>>) -> Option<Arc<Domain>> {
    let first = domains.next()??;
    domains.all(|it| it.is_some_and(|it| it.uuid == first.uuid)).then_some(first)
}
