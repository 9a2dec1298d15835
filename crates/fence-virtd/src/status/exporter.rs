// SPDX-License-Identifier: GPL-2.0-or-later
//! The exporter: counters and gauges of the whole daemon, in the OpenMetrics text format.
//!
//! Reads every layer and is read by none of them. Runs on the task of the reader, and must never wait: what
//! it reads is in memory.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::hypervisor::Hypervisors;
use crate::hypervisor::inventory::RunningDomains;
use crate::observe::agent_runs::AgentRuns;
use crate::observe::metrics::Metrics;
use crate::observe::openmetrics::{count, gauge, gauges};
use crate::service::Service;
use crate::util::locks::lock;

/// Gauges of a part that not every build has.
pub(crate) type MetricsSection = Box<dyn Fn(&mut Registry) + Send + Sync>;

/// The parts of the daemon that counters and gauges are read from.
pub(crate) struct Exporter {
    pub(crate) service: Arc<Service>,
    pub(crate) hypervisors: Hypervisors,
    /// The running domains of each hypervisor of the backend, by its URI.
    pub(crate) running: Vec<(String, watch::Receiver<RunningDomains>)>,
    /// The agent backend's, where there is one.
    pub(crate) agent: Option<AgentRuns>,
    /// The cluster's, where there are other hosts.
    pub(crate) cluster: Option<MetricsSection>,
    /// The other hosts that corosync does not know.
    pub(crate) peers: MetricsSection,
}

impl Exporter {
    /// Returns all counters and gauges as they are now, in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut registry = Registry::with_prefix("fence_virtd");
        self.add_requests(&mut registry);
        self.add_connections(&mut registry);
        if let Some(agent) = &self.agent {
            agent.register(&mut registry);
        }
        if let Some(cluster) = &self.cluster {
            cluster(&mut registry);
        }
        (self.peers)(&mut registry);
        self.add_replay_memory(&mut registry);
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    /// Adds the daemon's version and start, its requests and drops.
    fn add_requests(&self, to: &mut Registry) {
        let Metrics { requests, stages, started, .. } = &*self.service.metrics;
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauges(to, "build_info", "The version that runs", [(version, 1)]);
        let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let help = "When the daemon started, seconds since 1970";
        gauge(to, "start_time_seconds", help, started.cast_signed());
        to.register("requests", "Authenticated requests that are over", requests.clone());
        let help = "Seconds from a request's arrival to the end of a stage";
        to.register("stage_seconds", help, stages.clone());
        let drops: Family<Vec<(&str, String)>, Counter> = Family::default();
        for ((transport, reason), count) in self.service.drops.counts() {
            let labels = vec![("transport", transport.to_owned()), ("reason", reason.to_owned())];
            drops.get_or_create(&labels).inc_by(count);
        }
        to.register("drops", "Input that was dropped", drops);
        if let Some(file) = self.service.audit_file() {
            let up = i64::from(file.takes_records());
            gauge(to, "audit_log_up", "Whether the file audit_log takes records", up);
            let missing = Counter::<u64>::default();
            missing.inc_by(file.missing());
            to.register("audit_records_missing", "Audit records that are in the log alone", missing);
        }
        let (in_flight, waiting) = self.service.requests_now();
        gauge(to, "requests_in_flight", "Requests whose turn it is", count(in_flight));
        gauge(to, "requests_waiting", "Requests that wait for others to end", count(waiting));
    }

    /// Adds the listeners and the hypervisors.
    fn add_connections(&self, to: &mut Registry) {
        let listeners = lock(&self.service.metrics.listeners).clone();
        let up = listeners.into_iter().map(|(it, up)| (vec![("listener", it.to_owned())], i64::from(up)));
        let exposed = count(self.service.metrics.exposed_keys());
        gauge(to, "exposed_keys", "Key files in use that every user can read", exposed);
        gauges(to, "listener_up", "Whether a listener of the configuration serves", up);
        let uri = |it: &str| vec![("uri", it.to_owned())];
        let up = self.hypervisors.all().into_iter().map(|it| (uri(it.uri()), i64::from(it.is_up())));
        gauges(to, "libvirt_up", "Whether there is a connection to libvirt", up);
        let running = self.running.iter().map(|(it, running)| (uri(it), count(running.borrow().len())));
        gauges(to, "domains_running", "Running domains as last seen", running);
    }

    /// Adds the memory of accepted packets, and of intents.
    fn add_replay_memory(&self, to: &mut Registry) {
        let (packets, kept, lost) = self.service.remembered();
        gauge(to, "remembered_packets", "Packets that are not accepted again", count(packets));
        gauge(to, "remembered_on_disk", "Whether they outlive a restart", i64::from(kept));
        let unwritten = "Packets that the disk did not take since it last took one";
        gauge(to, "remembered_unwritten_packets", unwritten, lost.try_into().unwrap_or(i64::MAX));
        let unwritten = "Events of actions that the disk did not take in time";
        gauge(to, "unwritten_intents", unwritten, self.service.intents_lost().try_into().unwrap_or(i64::MAX));
        gauge(to, "starts_owed", "Reboots whose start is owed", count(self.service.starts_owed()));
    }
}
