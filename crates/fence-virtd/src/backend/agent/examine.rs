// SPDX-License-Identifier: GPL-2.0-or-later
//! Examination of devices for `--check`: all at once, by real runs of `metadata`, `monitor` and `list`. It
//! changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_cli::getopt::nearest;
use fence_config::{AgentBackend, AgentDevice, is_secret_option};

use super::device::FenceDevice;
use super::options::{file_of, is_a_word};
use super::program::find;
use super::run::RunContext;
use super::secret;
use super::slots::{RunPurpose, RunSlots};
use crate::observe::agent_runs::AgentRuns;
use fence_core::agent::listing::PlugList;
use fence_core::agent::metadata::{Metadata, one_spelling};

/// Result of the examination of a device. The texts have no secrets in them and are escaped.
pub(crate) struct DeviceExamination {
    /// Path of the agent, or the reason why it may not be run.
    pub(crate) program: Result<PathBuf, String>,
    /// Capabilities of the agent by its metadata. Without them nothing below is known.
    pub(crate) about: Result<AgentCapabilities, String>,
    /// Options that are secrets and stand in the configuration itself.
    pub(crate) open_secrets: Vec<String>,
    /// The files that options are read from: option, file, whether that can be done.
    pub(crate) secret_files: Vec<(String, PathBuf, Result<(), String>)>,
    /// Duration of a successful `monitor`, or its failure; none if it could not be run.
    pub(crate) monitor: Option<Result<Duration, String>>,
    /// Summary of the list: number of plugs, and configured domains that it lacks.
    pub(crate) list: Option<Result<ListSummary, String>>,
}

impl DeviceExamination {
    /// Returns whether `monitor` has succeeded.
    pub(crate) fn is_well(&self) -> bool {
        matches!(self.monitor, Some(Ok(_)))
    }
}

/// Capabilities of an agent by its metadata.
pub(crate) struct AgentCapabilities {
    /// True if the agent has no metadata.
    pub(crate) is_silent: bool,
    /// True if the agent takes a plug.
    pub(crate) takes_plug: bool,
    /// True if the agent has a list.
    pub(crate) lists: bool,
    /// Options that it has not, each with the one that is perhaps meant.
    pub(crate) unknown: Vec<(String, Option<String>)>,
    /// Options that name files which it reads itself.
    pub(crate) own_files: Vec<(String, PathBuf)>,
}

/// Summary of a list.
pub(crate) struct ListSummary {
    pub(crate) count: usize,
    pub(crate) missing: Vec<String>,
    /// There was more in it than could be understood.
    pub(crate) is_noisy: bool,
}

/// Looks at each device of the backend; in their order.
pub(crate) async fn examine(backend: &AgentBackend) -> Vec<DeviceExamination> {
    let count = backend.devices.len();
    // Room for all of them at once.
    let slots = RunSlots::new(4 * count, backend.devices.iter().map(|_| 4));
    let runs = AgentRuns::new(backend.devices.iter().map(|it| it.name.clone()));
    let tasks: Vec<_> = backend
        .devices
        .iter()
        .enumerate()
        .map(|(place, it)| {
            let (device, settings) = (FenceDevice::new(place, it, slots.clone(), runs.clone()), it.clone());
            tokio::spawn(async move { look(&device, &settings).await })
        })
        .collect();
    let mut seen = Vec::with_capacity(count);
    for it in tasks {
        // A task that panics ends the program.
        seen.extend(it.await.ok());
    }
    seen
}

async fn look(device: &FenceDevice, settings: &AgentDevice) -> DeviceExamination {
    // Each run has its own end.
    let context = || RunContext {
        purpose: RunPurpose::Request,
        lease: None,
        until: Instant::now() + settings.status_timeout,
    };
    let program = find(&settings.agent).map(|(path, _)| path);
    let metadata = device.metadata(context()).await;
    let unknown = Arc::new(Metadata::default());
    let known = metadata.as_ref().unwrap_or(&unknown);
    let secret_files = settings.options.iter().filter_map(|it| file_of(it, known));
    let secret_files = secret_files
        .map(|(option, path)| {
            let read = secret::read(&path).map(drop).map_err(|it| it.to_string());
            (option, path, read)
        })
        .collect();
    let open_secrets = settings.options.iter().filter(|(name, value)| {
        is_secret_option(name) && !one_spelling(name).ends_with("_file") && !is_a_word(value.as_str())
    });
    let open_secrets = open_secrets.map(|(name, _)| name.clone()).collect();
    let mut about = match &metadata {
        Ok(it) => Ok(AgentCapabilities::of(it, settings)),
        Err(why) => Err(why.clone()),
    };
    let (mut monitor, mut list) = (None, None);
    if let Ok(about) = &mut about {
        about.takes_plug =
            settings.plug_option.is_some() || !known.plug_options(|it| device.is_on(it)).is_empty();
        let begun = Instant::now();
        let mut result = Ok(());
        // Where the plug says which endpoint it is, each has to be well.
        let plugs = settings.plugs.named.iter().map(|it| Some(it.plug.as_str()));
        let plugs: Vec<_> = if device.is_monitored_by_plug() { plugs.collect() } else { vec![None] };
        for plug in plugs {
            if result.is_ok() {
                result = device.monitor(plug, context()).await;
            }
        }
        let is_well = result.is_ok();
        monitor = Some(result.map(|()| begun.elapsed()));
        if about.lists && is_well {
            let listed = device.listing(Duration::ZERO, context()).await;
            list = Some(listed.map(|it| ListSummary::of(&it, settings)));
        }
    }
    let (program, about) = (program.map_err(String::from), about.map_err(String::from));
    DeviceExamination { program, about, open_secrets, secret_files, monitor, list }
}

impl AgentCapabilities {
    fn of(metadata: &Metadata, settings: &AgentDevice) -> Self {
        let is_silent = metadata.is_unknown();
        let written = settings.options.iter().filter(|_| !is_silent);
        let of_agent = written.clone().map(|it| match file_of(it, metadata) {
            Some((option, _)) => option,
            None => it.0.clone(),
        });
        let plug_option = settings.plug_option.iter().filter(|_| !is_silent).cloned();
        let unknown = of_agent.chain(plug_option).filter(|it| !metadata.has_option(it));
        let unknown = unknown
            .map(|it| {
                let meant = nearest(metadata.options(), it.as_bytes()).map(str::to_owned);
                (it, meant)
            })
            .collect();
        let own_files = written
            .filter(|(name, _)| one_spelling(name).ends_with("_file") && metadata.has_option(name))
            .map(|(name, value)| (name.clone(), PathBuf::from(value.as_str())))
            .collect();
        let lists = metadata.has_action("list") || metadata.has_action("list-status");
        Self { is_silent, takes_plug: true, lists: lists || is_silent, unknown, own_files }
    }
}

impl ListSummary {
    fn of(plugs: &PlugList, settings: &AgentDevice) -> Self {
        let has =
            |name: &str| plugs.entries.iter().any(|it| it.plug == name || it.alias.as_deref() == Some(name));
        let missing = settings.plugs.named.iter().filter(|it| !has(&it.plug));
        Self {
            count: plugs.entries.len(),
            missing: missing.map(|it| it.domain.clone()).collect(),
            is_noisy: plugs.noise > 0,
        }
    }
}
