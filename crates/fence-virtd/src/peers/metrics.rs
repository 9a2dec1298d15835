// SPDX-License-Identifier: GPL-2.0-or-later
//! Gauges and counters of the other hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fence_core::hosts::{HostKind, Respondent};
use fence_wire::escaped;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::left_out::left_out;
use super::settings::PeerMode;
use super::state::Peers;
use crate::observe::openmetrics::gauges;
use crate::util::locks::lock;

impl Peers {
    /// Returns the hosts that `peers = "none"` leaves out, and when each was heard last: since it is set, or
    /// not long before.
    fn unasked(&self) -> BTreeMap<String, u64> {
        if !self.settings().is_set {
            return BTreeMap::new();
        }
        let before = left_out(&lock(&self.table)).into_iter().map(|it| (it.name, it.last_heard));
        before.chain(lock(&self.unasked_hosts).all()).collect()
    }

    /// Adds the gauges and counters; nothing where no other host is asked.
    pub(crate) fn register(&self, to: &mut Registry) {
        let mode = self.settings().mode.clone();
        let unasked = self.unasked();
        if mode == PeerMode::Off && !unasked.is_empty() {
            let hosts = unasked
                .into_iter()
                .map(|(host, at)| (vec![("host", host)], i64::try_from(at).unwrap_or(i64::MAX)));
            let help = "When a host was last heard that peers = \"none\" leaves out, seconds since 1970";
            gauges(to, "peer_not_asked_seconds", help, hosts);
        }
        if mode == PeerMode::Off || ((mode.is_silent() || self.is_beside_nodes()) && self.known().is_empty())
        {
            return;
        }
        let hosts = self.known().into_iter().map(|host| {
            // The key tells hosts of one name apart.
            let (kind, key) = match host.kind {
                HostKind::Ours(_) => ("ours", host.id.to_string()),
                HostKind::Legacy => ("legacy", String::new()),
            };
            let name = escaped(&host.to_string()).to_string();
            let labels = vec![("host", name), ("key", key), ("kind", kind.to_owned())];
            (labels, i64::try_from(host.last_heard).unwrap_or(i64::MAX))
        });
        let help = "When another host was last heard, seconds since 1970";
        gauges(to, "peer_last_heard_seconds", help, hosts);
        let silent = self.known().into_iter().filter(|it| self.was_in_vain(Respondent::Host(it.id)));
        let silent = silent.map(|it| {
            let name = escaped(&it.to_string()).to_string();
            (vec![("host", name), ("key", it.id.to_string())], 1)
        });
        let help = "Other hosts that did not answer when they were asked last";
        gauges(to, "peer_did_not_answer", help, silent);
        let own = vec![("key", self.identity.id().to_string())];
        gauges(to, "peer_own_key", "The key of this host, as other hosts show it", [(own, 1)]);
        let pins: Vec<_> = lock(&self.table).pins().collect();
        let listed = self.listed();
        let pins = pins.into_iter().filter(|(at, _)| listed.contains(at)).map(|(at, id)| {
            let labels = vec![("address", at.to_string()), ("key", id.to_string())];
            (labels, 1)
        });
        gauges(to, "peer_pinned_key", "The key that an address of peers is bound to", pins);
        let unmet = self.unmet();
        let in_vain: Vec<_> =
            unmet.iter().copied().filter(|it| self.was_in_vain(Respondent::Address(*it))).collect();
        let unmet = unmet.into_iter().map(|at| (vec![("address", at.to_string())], 1));
        let help = "Addresses of peers at which no host ever answered";
        gauges(to, "peer_never_answered", help, unmet);
        let in_vain = in_vain.into_iter().map(|at| (vec![("address", at.to_string())], 1));
        let help = "Addresses among them that were asked a question since the start";
        gauges(to, "peer_asked_in_vain", help, in_vain);
        let other_keys = lock(&self.other_keys).lately(Instant::now());
        let other_keys = other_keys.into_iter().map(|at| (vec![("address", at.to_string())], 1));
        let help = "Addresses of hosts that use another key than this one";
        gauges(to, "peer_other_key", help, other_keys);
        let is_missing = i64::from(self.may_be_missing());
        gauges(
            to,
            "peer_missing",
            "Whether a host may have been heard that is not remembered",
            [(Vec::new(), is_missing)],
        );
        let counter = |it: &AtomicU64| {
            let counter: Counter = Counter::default();
            counter.inc_by(it.load(Ordering::Relaxed));
            counter
        };
        let counts = &self.counts;
        to.register("peer_questions", "Questions to other hosts about a domain", counter(&counts.asked));
        to.register("peer_silences", "Questions that a host did not answer", counter(&counts.silent));
        to.register("peer_answers", "Questions of other hosts that were answered", counter(&counts.answered));
    }

    fn was_in_vain(&self, who: Respondent) -> bool {
        lock(&self.silent).was_asked_in_vain(who)
    }

    /// Returns the addresses of `peers` at which no host ever answered.
    pub(super) fn unmet(&self) -> Vec<SocketAddr> {
        let listed = self.listed();
        let own = self.listed_own(&listed);
        let table = lock(&self.table);
        let is_legacy = |at: &SocketAddr| {
            let mut legacy = table.all().filter(|it| it.kind == HostKind::Legacy);
            legacy.any(|it| it.addresses.contains(&at.ip().to_canonical()))
        };
        let is_unmet = |at: &SocketAddr| table.pinned(at).is_none() && !own.contains(at) && !is_legacy(at);
        listed.iter().copied().filter(is_unmet).collect()
    }

    /// Returns whether a host may be missing, so that nothing is called off that does not run here. With
    /// `peers` the configuration has all, whatever is remembered.
    pub(super) fn may_be_missing(&self) -> bool {
        let mode = self.settings().mode.clone();
        let table = lock(&self.table);
        table.missing_now(Instant::now()).is_some()
            || (!matches!(mode, PeerMode::Listed(_)) && table.incomplete().is_some())
    }
}
