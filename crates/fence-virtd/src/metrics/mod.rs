// SPDX-License-Identifier: GPL-2.0-or-later
//! Counts and times of what the daemon does, for people who watch many hosts. docs/metrics.md names each one.
//!
//! Labels hold words of this program, URIs and devices of the configuration, never anything that a peer chose: their
//! number is bounded, whatever arrives. What is counted here is counted in passing and never waits.

pub(crate) mod endpoint;
mod runs;
pub(crate) mod summary;

pub(crate) use self::runs::AgentRuns;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use fence_wire::Response;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::audit::{AuditRecord, RequestEnd};
#[cfg(feature = "cpg")]
use crate::cluster::{Cluster, ClusterCounts};
#[cfg(feature = "libvirt")]
use crate::hypervisor::Hypervisors;
use crate::inventory::RunningDomains;
use crate::locks::lock;
#[cfg(not(feature = "libvirt"))]
use crate::run::Hypervisors;
use crate::service::Service;

/// From what a local look takes to the longest that a client waits.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 600.0];

type LabelSet<const N: usize> = [(&'static str, &'static str); N];
type StageHistograms = Family<LabelSet<2>, Histogram, fn() -> Histogram>;

/// What requests leave behind as they end, and which listeners serve.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<LabelSet<3>, Counter>,
    stages: StageHistograms,
    /// Those of the configuration.
    listeners: Mutex<BTreeMap<&'static str, bool>>,
    started: SystemTime,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            stages: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            listeners: Mutex::default(),
            started: SystemTime::now(),
        }
    }
}

impl Metrics {
    /// A request is over.
    pub(crate) fn note(&self, record: &AuditRecord<'_>) {
        let action = record.job.action.name();
        let result = match record.end {
            RequestEnd::Answered { response: Response::Success, .. } => "success",
            RequestEnd::Answered { response: Response::Off, .. } => "off",
            RequestEnd::Answered { response: Response::Failure, .. } => "failure",
            RequestEnd::Answered { response: Response::PermissionDenied, .. } => "denied",
            RequestEnd::NotProved(_) => "not_proved",
            RequestEnd::NotRun(_) => "not_run",
        };
        let labels = [("transport", record.job.transport), ("action", action), ("result", result)];
        self.requests.get_or_create(&labels).inc();
        let stages = &record.stages;
        for (stage, time) in [
            ("connected", stages.connected),
            ("resolved", stages.resolved),
            ("turn", stages.turn),
            ("proved", stages.proved),
            ("done", stages.done),
        ] {
            if let Some(time) = time {
                let labels = [("action", action), ("stage", stage)];
                self.stages.get_or_create(&labels).observe(time.as_secs_f64());
            }
        }
    }

    /// These listeners, and no others, are to serve.
    pub(crate) fn listeners_are(&self, names: impl Iterator<Item = &'static str>) {
        let mut listeners = lock(&self.listeners);
        let old = std::mem::take(&mut *listeners);
        listeners.extend(names.map(|it| (it, old.get(it).copied().unwrap_or(false))));
    }

    fn listener(&self, name: &'static str, serves: bool) {
        lock(&self.listeners).insert(name, serves);
    }
}

/// A listener serves as long as the value lives.
pub(crate) struct ListenerUp(Arc<Service>, &'static str);

impl ListenerUp {
    pub(crate) fn new(service: Arc<Service>, name: &'static str) -> Self {
        service.metrics.listener(name, true);
        Self(service, name)
    }
}

impl Drop for ListenerUp {
    fn drop(&mut self) {
        self.0.metrics.listener(self.1, false);
    }
}

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
        let Metrics { requests, stages, listeners, started } = &self.service.metrics;
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
        if let Some(counted) = self.cluster.as_ref().map(|it| it.counted()) {
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
fn cluster(to: &mut Registry, counted: ClusterCounts) {
    gauge(to, "corosync_up", "Whether this host is in the group of its cluster", counted.joined.into());
    let hosts = [("new", counted.hosts), ("old", counted.old_hosts), ("not_heard", counted.not_heard)];
    let hosts = hosts.map(|(kind, number)| (vec![("kind", kind.to_owned())], count(number)));
    gauges(to, "cluster_hosts", "Hosts of the cluster", hosts);
    let help = "Domains that were on at a host when it was heard last";
    gauge(to, "lost_domains", help, count(counted.lost_domains));
    let (in_flight, waiting) = counted.claims;
    gauge(to, "claims_in_flight", "Requests of all hosts whose turn it is", count(in_flight));
    gauge(to, "claims_waiting", "Requests of all hosts that wait for others to end", count(waiting));
    gauge(to, "asks", "Requests that were passed on to other hosts and are not over", count(counted.asks));
}

fn gauge(to: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value);
    to.register(name, help, gauge);
}

fn gauges(
    to: &mut Registry,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<(&'static str, String)>, i64)>,
) {
    let family: Family<Vec<(&str, String)>, Gauge> = Family::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    to.register(name, help, family);
}

fn count(it: usize) -> i64 {
    it.try_into().unwrap_or(i64::MAX)
}
