// SPDX-License-Identifier: GPL-2.0-or-later
//! Orders of an earlier daemon that devices or hypervisors may still carry out: what conflicts waits.
//!
//! Runs at the start of the daemon, before the first request and before other hosts hear of it; then one task
//! for each order. Must never make anything happen to a domain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::arbiter::{ArbiterRequest, ArbitratedAction, PeerId, RequestSource};
use fence_core::domain::{DomainId, TargetKind};
use fence_core::intent::{Intent, PendingOrder};
use fence_wire::{Response, escaped};
use tracing::{info, warn};

use super::Service;
use super::turns::RunPermit;
use crate::intent::store::LeftIntents;
use crate::intent::{WrittenOrder, in_ms, since_boot_ms};

/// Orders of an earlier daemon that are waited for one by one. Of more, everything waits for the longest.
const LEFT_ORDERS: usize = 64;
/// Target of an order whose line can't be read: no domain has this name, and its unknown source may be any.
const UNKNOWN_TARGET: &str = "unknown";

/// Order of an earlier daemon that may still take effect.
struct LeftOrder {
    pending: PendingOrder,
    rest: Duration,
    domain: DomainId,
    request: ArbiterRequest,
    written: WrittenOrder,
}

impl Service {
    /// Holds up what conflicts with orders that an earlier daemon gave and that may still take effect, each
    /// for the rest of its time. To be called before anything can ask for a grant.
    pub(crate) fn hold_left(self: &Arc<Self>, left: &LeftIntents) {
        let (boot, now_ms) = (self.intents.boot().to_owned(), since_boot_ms());
        let longest = self.backend.longest_effect();
        let mut unknown = if left.hides_order { longest } else { Duration::ZERO };
        let mut count = 0;
        for it in &left.intents {
            let (intent, open) = (&it.unfinished.intent, self.intents.adopt(it));
            for pending in it.unfinished.orders_left(in_ms(longest), &boot) {
                let rest = Duration::from_millis(pending.rest_ms(&boot, now_ms));
                let written = open.take_over(&pending.order);
                let domain = DomainId::parse_canonical(&intent.uuid);
                let is_over = rest.is_zero() || it.unfinished.is_over_with_boot(&pending, &boot);
                let Some(domain) = domain.filter(|_| !is_over) else {
                    written.settled();
                    continue;
                };
                count += 1;
                if count > LEFT_ORDERS {
                    unknown = unknown.max(rest);
                    continue;
                }
                // Known to one more daemon that may end before it is over. The time of a start at a
                // hypervisor begins with the hypervisor's answer, for each daemon anew.
                if !pending.is_start_at_hypervisor() {
                    written.expires(rest, pending.is_claimed());
                }
                let request = self.late_request(intent, pending.order.starts);
                self.hold(LeftOrder { pending, rest, domain, request, written }, intent);
            }
        }
        if unknown.is_zero() {
            if left.hides_order {
                self.intents.cleared();
            }
            return;
        }
        self.hold_all(unknown);
    }

    /// Holds up what conflicts with one order.
    fn hold(self: &Arc<Self>, left: LeftOrder, intent: &Intent) {
        let LeftOrder { pending, rest, domain, request, written } = left;
        if pending.is_start_at_hypervisor() {
            warn!(
                domain = %escaped(&intent.domain), uuid = intent.uuid,
                "an earlier daemon was starting this machine when it ended, and libvirt may still do it: the \
                 machine is not called off until it stays on, for {} s at most after libvirt answers",
                rest.as_secs_f32().ceil()
            );
        } else if pending.is_at_hypervisor() {
            warn!(
                domain = %escaped(&intent.domain), uuid = intent.uuid,
                "an earlier daemon was powering this machine off when it ended, and libvirt may still do it: \
                 requests that conflict with that wait until the machine is seen off, for {} s at most",
                rest.as_secs_f32().ceil()
            );
        } else {
            Self::warn_of_device(&pending, rest, intent);
        }
        let permit = self.grants.install_late(request, self.cluster.as_deref());
        // Other hosts that ask are not told that it is off, nor is anybody here.
        let late = pending.is_start_at_hypervisor().then(|| self.intents.starts_late(domain));
        let service = Arc::clone(self);
        tokio::spawn(async move {
            service.backend.order_settles(&pending, domain, Instant::now() + rest).await;
            info!(uuid = %domain, "the earlier daemon's order can take effect no more");
            written.settled();
            drop(late);
            release(permit);
        });
    }

    fn warn_of_device(pending: &PendingOrder, rest: Duration, intent: &Intent) {
        let action = if pending.order.starts { "on" } else { "off" };
        warn!(
            domain = %escaped(&intent.domain), uuid = intent.uuid, device = %escaped(&pending.order.device),
            "an earlier daemon ordered this machine {action}, and its device may still do it: requests that \
             conflict with that wait until the device shows it, for {} s at most",
            rest.as_secs_f32().ceil()
        );
    }

    /// Holds up everything that powers off.
    fn hold_all(self: &Arc<Self>, rest: Duration) {
        warn!(
            "the file of intents does not tell all orders of an earlier daemon that devices may still carry \
             out: no machine is powered off for {} s",
            rest.as_secs_f32().ceil()
        );
        let work = ArbitratedAction::Off(UNKNOWN_TARGET.to_owned());
        let permit = self.grants.install_late(self.late(work, None, None), self.cluster.as_deref());
        let service = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(rest).await;
            service.intents.cleared();
            release(permit);
        });
    }

    fn late_request(&self, intent: &Intent, starts: bool) -> ArbiterRequest {
        let uuid = intent.uuid.clone();
        let work = if starts { ArbitratedAction::On(uuid) } else { ArbitratedAction::Off(uuid) };
        // An address, or a context id, may be another machine's after a boot.
        let peer = intent.peer_id.clone().filter(|_| intent.boot == self.intents.boot());
        self.late(work, intent.known_source.clone(), peer)
    }

    fn late(&self, work: ArbitratedAction, source: Option<String>, peer: Option<String>) -> ArbiterRequest {
        let now = Instant::now();
        ArbiterRequest {
            id: self.next_request(),
            work,
            // The domain may have another name by now: it may be a source wherever a group lists names.
            name: None,
            // What keys open may have changed: a source that is not known may be any domain.
            source: source.map_or(RequestSource::Unknown, RequestSource::Known),
            peer: peer.map(PeerId),
            sender: None,
            by: TargetKind::Name,
            arrived: now,
            deadline: now,
        }
    }
}

fn release(permit: RunPermit) {
    permit.finished(Response::Failure, None);
}
