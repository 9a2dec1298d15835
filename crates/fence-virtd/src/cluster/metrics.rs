// SPDX-License-Identifier: GPL-2.0-or-later
//! The gauges of the cluster, as the exporter serves them. docs/metrics.md names each one.

use prometheus_client::registry::Registry;

use super::state::ClusterCounts;
use crate::observe::openmetrics::{count, gauge, gauges};

impl ClusterCounts {
    /// Adds the gauges to those that are served.
    pub(crate) fn register(&self, to: &mut Registry) {
        gauge(to, "corosync_up", "Whether this host is in the group of its cluster", self.joined.into());
        let hosts = [("new", self.hosts), ("old", self.legacy_hosts), ("not_heard", self.not_heard)];
        let hosts = hosts.map(|(kind, number)| (vec![("kind", kind.to_owned())], count(number)));
        gauges(to, "cluster_hosts", "Hosts of the cluster", hosts);
        let in_vain = self.asked_in_vain.iter().map(|it| (vec![("node", it.clone())], 1));
        let help = "A node that did not answer when it was asked last, or could not tell";
        gauges(to, "cluster_asked_in_vain", help, in_vain);
        let help = "Domains that were on at a host when it was heard last";
        gauge(to, "lost_domains", help, count(self.lost_domains));
        gauge(to, "claims_in_flight", "Requests of all hosts whose turn it is", count(self.claims_in_flight));
        gauge(
            to,
            "claims_waiting",
            "Requests of all hosts that wait for others to end",
            count(self.claims_waiting),
        );
        gauge(to, "asks", "Requests that were passed on to other hosts and are not over", count(self.asks));
    }
}
