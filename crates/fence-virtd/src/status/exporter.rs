// SPDX-License-Identifier: GPL-2.0-or-later
//! Everything that can be told of the daemon, in the OpenMetrics text format.

#[cfg(feature = "cpg")]
use crate::cluster::{Cluster, ClusterCounts};
use crate::hypervisor::Hypervisors;
use crate::hypervisor::inventory::RunningDomains;
use crate::observe::agent_runs::AgentRuns;
use crate::observe::metrics::Metrics;
use crate::observe::openmetrics::{count, gauge, gauges};
use crate::service::Service;
use crate::util::locks::lock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tokio::sync::watch;

/// Everything that can be told of the daemon.
pub(crate) struct Exporter {
    pub(crate) service: Arc<Service>,
    pub(crate) known: Hypervisors,
    /// The running domains of each hypervisor of the backend, by its URI.
    pub(crate) running: Vec<(String, watch::Receiver<RunningDomains>)>,
    /// The agent backend's, where there is one.
    pub(crate) agent: Option<AgentRuns>,
    /// The other hosts, where there are any.
    #[cfg(feature = "cpg")]
    pub(crate) cluster: Option<Arc<Cluster>>,
}

impl Exporter {
    /// All of it in the OpenMetrics text format, as it is at this moment.
    pub(crate) fn text(&self) -> String {
        let Metrics { requests, stages, listeners, started } = &*self.service.metrics;
        let mut to = Registry::with_prefix("fence_virtd");
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauges(&mut to, "build_info", "The version that runs", [(version, 1)]);
        let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        gauge(
            &mut to,
            "start_time_seconds",
            "When the daemon started, seconds since 1970",
            started.cast_signed(),
        );
        to.register("requests", "Authenticated requests that are over", requests.clone());
        to.register(
            "stage_seconds",
            "Seconds from a request's arrival to the end of a stage",
            stages.clone(),
        );
        let drops: Family<Vec<(&str, String)>, Counter> = Family::default();
        for ((transport, reason), count) in self.service.drops.counts() {
            let labels = vec![("transport", transport.to_owned()), ("reason", reason.to_owned())];
            drops.get_or_create(&labels).inc_by(count);
        }
        to.register("drops", "Input that was dropped", drops);
        let (in_flight, waiting) = self.service.requests_now();
        gauge(&mut to, "requests_in_flight", "Requests whose turn it is", count(in_flight));
        gauge(&mut to, "requests_waiting", "Requests that wait for others to end", count(waiting));
        let name = |it: &&'static str| vec![("listener", (*it).to_owned())];
        let up = lock(listeners).iter().map(|(it, up)| (name(it), i64::from(*up))).collect::<Vec<_>>();
        gauges(&mut to, "listener_up", "Whether a listener of the configuration serves", up);
        let uri = |it: &str| vec![("uri", it.to_owned())];
        #[cfg(feature = "libvirt")]
        {
            let up = self.known.all().into_iter().map(|it| (uri(it.uri()), i64::from(it.is_up())));
            gauges(&mut to, "libvirt_up", "Whether there is a connection to libvirt", up);
        }
        #[cfg(not(feature = "libvirt"))]
        let _ = &self.known;
        let running = self.running.iter().map(|(it, running)| (uri(it), count(running.borrow().len())));
        gauges(&mut to, "domains_running", "Running domains as last seen", running);
        if let Some(agent) = &self.agent {
            agent.tell(&mut to);
        }
        #[cfg(feature = "cpg")]
        if let Some(counted) = self.cluster.as_ref().map(|it| it.counts()) {
            cluster(&mut to, counted);
        }
        let (packets, kept, lost) = self.service.remembered();
        gauge(&mut to, "remembered_packets", "Packets that are not accepted again", count(packets));
        gauge(&mut to, "remembered_on_disk", "Whether they outlive a restart", i64::from(kept));
        let unwritten = "Packets that the disk did not take since it last took one";
        gauge(&mut to, "remembered_unwritten_packets", unwritten, lost.try_into().unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &to);
        text
    }
}

#[cfg(feature = "cpg")]
pub(crate) fn cluster(to: &mut Registry, counted: ClusterCounts) {
    gauge(to, "corosync_up", "Whether this host is in the group of its cluster", counted.joined.into());
    let hosts = [("new", counted.hosts), ("old", counted.legacy_hosts), ("not_heard", counted.not_heard)];
    let hosts = hosts.map(|(kind, number)| (vec![("kind", kind.to_owned())], count(number)));
    gauges(to, "cluster_hosts", "Hosts of the cluster", hosts);
    let help = "Domains that were on at a host when it was heard last";
    gauge(to, "lost_domains", help, count(counted.lost_domains));
    let help = "Requests of all hosts whose turn it is";
    gauge(to, "claims_in_flight", help, count(counted.claims_in_flight));
    let help = "Requests of all hosts that wait for others to end";
    gauge(to, "claims_waiting", help, count(counted.claims_waiting));
    gauge(to, "asks", "Requests that were passed on to other hosts and are not over", count(counted.asks));
}
