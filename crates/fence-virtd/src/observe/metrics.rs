// SPDX-License-Identifier: GPL-2.0-or-later
//! Counters of requests and their times, and the state of the listeners. docs/metrics.md names each metric.
//!
//! Owns the counters. Runs on the caller's task and must never wait. Labels have words of this program, URIs
//! and devices of the configuration, and nothing that a peer chose: so their number is bounded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use fence_wire::Response;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::observe::openmetrics::SECONDS;
use crate::request::record::{AuditRecord, RequestEnd};
use crate::util::locks::lock;

type LabelSet<const N: usize> = [(&'static str, &'static str); N];
type StageHistograms = Family<LabelSet<2>, Histogram, fn() -> Histogram>;

/// Counters and times of requests that are over, and the state of each listener.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<LabelSet<3>, Counter>,
    pub(crate) stages: StageHistograms,
    /// The listeners of the configuration; true while a listener serves.
    pub(crate) listeners: Mutex<BTreeMap<String, bool>>,
    pub(crate) started: SystemTime,
    exposed_keys: AtomicUsize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            stages: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            listeners: Mutex::default(),
            started: SystemTime::now(),
            exposed_keys: AtomicUsize::new(0),
        }
    }
}

impl Metrics {
    /// Counts a request that is over.
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

    /// Enters the listeners of the configuration. The state of a listener that stays is kept.
    pub(crate) fn set_listeners(&self, names: impl Iterator<Item = String>) {
        let mut listeners = lock(&self.listeners);
        let old = std::mem::take(&mut *listeners);
        listeners.extend(names.map(|it| {
            let serves = old.get(&it).copied().unwrap_or(false);
            (it, serves)
        }));
    }

    /// Enters the number of key files in use that every user can read.
    pub(crate) fn set_exposed_keys(&self, number: usize) {
        self.exposed_keys.store(number, Ordering::Relaxed);
    }

    /// Returns the number of key files in use that every user can read.
    pub(crate) fn exposed_keys(&self) -> usize {
        self.exposed_keys.load(Ordering::Relaxed)
    }

    fn set_up(&self, name: String, serves: bool) {
        lock(&self.listeners).insert(name, serves);
    }
}

/// Mark of a listener that serves, until the mark is dropped.
pub(crate) struct ListenerUp {
    metrics: Arc<Metrics>,
    name: Arc<ListenerName>,
}

/// Name of a listener. It changes where a reload makes it one of several multicast blocks, or the only one.
#[derive(Debug)]
pub(crate) struct ListenerName(Mutex<String>);

impl ListenerName {
    pub(crate) fn new(name: String) -> Arc<Self> {
        Arc::new(Self(Mutex::new(name)))
    }

    /// Returns the name of now.
    pub(crate) fn now(&self) -> String {
        lock(&self.0).clone()
    }

    /// Changes the name of a listener that serves.
    pub(crate) fn change(&self, name: String, metrics: &Metrics) {
        let before = std::mem::replace(&mut *lock(&self.0), name.clone());
        if before != name {
            let mut listeners = lock(&metrics.listeners);
            let serves = listeners.remove(&before).unwrap_or(false);
            listeners.insert(name, serves);
        }
    }
}

impl ListenerUp {
    pub(crate) fn new(metrics: Arc<Metrics>, name: Arc<ListenerName>) -> Self {
        metrics.set_up(name.now(), true);
        Self { metrics, name }
    }
}

impl Drop for ListenerUp {
    fn drop(&mut self) {
        self.metrics.set_up(self.name.now(), false);
    }
}
