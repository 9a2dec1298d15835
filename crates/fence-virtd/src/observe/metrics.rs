// SPDX-License-Identifier: GPL-2.0-or-later
//! Counts and times of what the daemon does, for people who watch many hosts. docs/metrics.md names each one.
//!
//! Labels hold words of this program, URIs and devices of the configuration, never anything that a peer chose: their
//! number is bounded, whatever arrives. What is counted here is counted in passing and never waits.

use crate::observe::openmetrics::SECONDS;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use fence_wire::Response;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::request::record::{AuditRecord, RequestEnd};
use crate::util::locks::lock;

type LabelSet<const N: usize> = [(&'static str, &'static str); N];
type StageHistograms = Family<LabelSet<2>, Histogram, fn() -> Histogram>;

/// What requests leave behind as they end, and which listeners serve.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<LabelSet<3>, Counter>,
    pub(crate) stages: StageHistograms,
    /// Those of the configuration.
    pub(crate) listeners: Mutex<BTreeMap<&'static str, bool>>,
    pub(crate) started: SystemTime,
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

/// Mark of a listener that serves: it does so as long as the value lives.
pub(crate) struct ListenerUp(Arc<Metrics>, &'static str);

impl ListenerUp {
    pub(crate) fn new(metrics: Arc<Metrics>, name: &'static str) -> Self {
        metrics.listener(name, true);
        Self(metrics, name)
    }
}

impl Drop for ListenerUp {
    fn drop(&mut self) {
        self.0.listener(self.1, false);
    }
}
