// SPDX-License-Identifier: GPL-2.0-or-later
//! Counters of agent runs and their times, and which devices answered their last status check.
//!
//! Owns the counters of every run, also of runs that are for no request. Runs on the caller's task and must
//! never wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::openmetrics::{SECONDS, gauges};
use crate::request::trail::{AgentRun, AgentRunEnd};
use crate::util::locks::lock;

type Labels = Vec<(&'static str, String)>;

/// Counters of the runs of all devices of the configuration. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct AgentRuns {
    runs: Family<Labels, Counter>,
    times: Family<Labels, Histogram, fn() -> Histogram>,
    devices: Arc<Mutex<BTreeMap<String, DeviceRuns>>>,
}

/// State of one device, by its runs.
#[derive(Default, Debug)]
struct DeviceRuns {
    /// The last run that reads a status or a list was answered.
    answers: bool,
    /// Some run succeeded: so exit code 2 is not that of a broken program.
    is_proved: bool,
}

impl AgentRuns {
    /// Returns counters at zero for these devices.
    pub(crate) fn new(devices: impl IntoIterator<Item = String>) -> Self {
        let devices = devices.into_iter().map(|it| (it, DeviceRuns::default())).collect();
        Self {
            runs: Family::default(),
            times: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            devices: Arc::new(Mutex::new(devices)),
        }
    }

    /// Counts a run that has ended.
    pub(crate) fn note(&self, run: &AgentRun) {
        let device = || ("device", run.device.clone());
        let action = || ("action", run.action.to_owned());
        let result = ("result", run.ended.word().to_owned());
        self.runs.get_or_create(&vec![device(), action(), result]).inc();
        self.times.get_or_create(&vec![device(), action()]).observe(run.took.as_secs_f64());
        if matches!(run.action, "status" | "list" | "list-status" | "monitor") {
            let mut devices = lock(&self.devices);
            let device = devices.entry(run.device.clone()).or_default();
            device.answers = match run.ended {
                AgentRunEnd::Exit(0) => {
                    device.is_proved = true;
                    true
                }
                // Off; or a program that could not even be read.
                AgentRunEnd::Exit(2) => run.action == "status" && device.is_proved,
                _ => false,
            };
        }
    }

    /// Adds the counters to those that are served.
    pub(crate) fn register(&self, to: &mut Registry) {
        to.register("agent_runs", "Runs of fence agents that have ended", self.runs.clone());
        to.register("agent_run_seconds", "Seconds that runs of fence agents took", self.times.clone());
        let devices = lock(&self.devices);
        let up = devices.iter().map(|(name, it)| (vec![("device", name.clone())], i64::from(it.answers)));
        gauges(to, "agent_device_up", "Whether a device answered when it was looked at last", up);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text(runs: &AgentRuns) -> String {
        let mut to = Registry::with_prefix("fence_virtd");
        runs.register(&mut to);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &to).unwrap();
        text
    }

    #[test]
    fn a_device_is_up_when_a_look_at_it_was_answered() {
        let runs = AgentRuns::new(["d".to_owned(), "other".to_owned()]);
        let up = || {
            let text = text(&runs);
            assert!(text.contains("fence_virtd_agent_device_up{device=\"other\"} 0\n"), "{text}");
            text.contains("fence_virtd_agent_device_up{device=\"d\"} 1\n")
        };
        assert!(!up(), "it was never looked at");
        for (action, ended, is_up) in [
            ("status", AgentRunEnd::Exit(2), false),
            ("on", AgentRunEnd::Exit(0), false),
            ("monitor", AgentRunEnd::Exit(0), true),
            ("off", AgentRunEnd::Exit(1), true),
            ("status", AgentRunEnd::Exit(2), true),
            ("list", AgentRunEnd::Exit(2), false),
            ("status", AgentRunEnd::Exit(2), true),
            ("status", AgentRunEnd::Killed("its time was up".to_owned()), false),
            ("status", AgentRunEnd::Exit(0), true),
            ("monitor", AgentRunEnd::Signal(11), false),
        ] {
            let (device, agent, output) = ("d".to_owned(), "fence_test".to_owned(), String::new());
            let took = Duration::from_millis(20);
            runs.note(&AgentRun { device, agent, action, ended: ended.clone(), took, output });
            assert_eq!(up(), is_up, "{action} {ended}");
        }
        let text = text(&runs);
        for line in [
            "fence_virtd_agent_runs_total{device=\"d\",action=\"status\",result=\"exit_2\"} 3",
            "fence_virtd_agent_runs_total{device=\"d\",action=\"monitor\",result=\"signal\"} 1",
            "fence_virtd_agent_run_seconds_count{device=\"d\",action=\"status\"} 5",
            "fence_virtd_agent_run_seconds_bucket{le=\"0.01\",device=\"d\",action=\"off\"} 0",
            "fence_virtd_agent_run_seconds_bucket{le=\"0.025\",device=\"d\",action=\"off\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }
}
