// SPDX-License-Identifier: GPL-2.0-or-later
//! Rights that libvirt gives to a connection: the words for an order that it refuses for want of them, and
//! the question before any order.

use std::sync::Arc;
use std::time::Instant;

use libvirt_host::{Error, ErrorKind, Uuid};

use super::pool::Hypervisor;

/// Statement about a connection that may only read.
pub(crate) const READ_ONLY: &str =
    "this connection may only read, and libvirt refuses each off, on and reboot";
/// Next step for such a connection.
pub(crate) const READ_ONLY_STEP: &str = "put the URI of libvirt's writable socket (libvirt-sock, not \
                                         libvirt-sock-ro) into the configuration, then restart fence_virtd";
/// Next step where rules of libvirt forbid the order.
const RULES_STEP: &str = "let the user of fence_virtd do this: the polkit rules of libvirt (access_drivers \
                          in libvirtd.conf), or the groups of that user";

/// Returns the refusal of an order with the next step, where libvirt refused it for want of rights.
pub(crate) fn denial(uri: &str, error: &Error) -> Option<String> {
    let step = match error.kind {
        _ if error.is_for_read_only() => READ_ONLY_STEP,
        ErrorKind::AccessDenied => RULES_STEP,
        _ => return None,
    };
    Some(format!("libvirt at {uri} refused: {error}. Next step: {step}"))
}

impl Hypervisor {
    /// Returns why libvirt would refuse each order that comes from here; none if it would not, or does not
    /// tell in time.
    pub(crate) async fn refuses_orders(self: &Arc<Self>, uuid: Uuid, until: Instant) -> Option<String> {
        let until = until.min(Instant::now() + self.worker_patience());
        let is_read_only = self.call_worker(until, move |c| match c.domain_by_uuid(uuid)? {
            Some(domain) => c.of(&domain).is_read_only(),
            None => Ok(false),
        });
        let is_read_only = is_read_only.await.unwrap_or(false);
        is_read_only.then(|| format!("libvirt at {}: {READ_ONLY}. Next step: {READ_ONLY_STEP}", self.uri()))
    }
}
