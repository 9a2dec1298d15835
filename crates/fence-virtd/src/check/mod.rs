// SPDX-License-Identifier: GPL-2.0-or-later
//! `fence_virtd --check`: the checks that an administrator would make by hand before trusting a host with
//! fencing.
//!
//! Runs instead of the daemon, in its own process, beside a running daemon or not. Must never change
//! anything, and sends nothing but the messages that open the configured hypervisors, the questions of the
//! daemon to the other hosts, and the requests of a client for their lists.

mod agents;
#[cfg(feature = "cpg")]
mod cluster;
mod down_command;
mod files;
mod finding;
mod firewall;
mod groups;
mod hosts;
#[cfg(feature = "libvirt")]
mod hypervisors;
mod islands;
#[cfg(feature = "libvirt")]
mod lost_machines;
mod network;
mod processes;
mod running;
mod sockets;

use std::io;
use std::io::Write as _;
use std::path::Path;

use fence_cli::config_file::{self, ConfigText};
use fence_cli::shown;
use fence_config::{Backend, BackendKind, Config, MAX_FILE_SIZE, MetricsAddress, Severity};
use fence_sandbox::State;
use nix::unistd::geteuid;

use self::finding::{Finding, FindingLevel, words};
use self::running::RunningDaemon;
use crate::cli::exit_code::{FAILURE, SUCCESS};
use crate::daemon::sandbox;
use crate::replay;

/// Makes all checks and prints their findings, as lines for people or as JSON. Exit code 1 when one of them
/// failed.
pub(crate) fn run(file: &Path, json: bool) -> u8 {
    // Before the first thread, as the daemon does.
    fence_sandbox::no_capabilities_for_programs();
    let findings = all(file);
    let text = if json {
        // Findings have neither maps nor numbers that JSON lacks: this can't fail.
        serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n"
    } else {
        findings.iter().map(Finding::lines).collect()
    };
    if io::stdout().write_all(text.as_bytes()).is_err()
        || findings.iter().any(|it| it.result == FindingLevel::Failed)
    {
        return FAILURE;
    }
    SUCCESS
}

fn all(file: &Path) -> Vec<Finding> {
    let read = config_file::read(file, MAX_FILE_SIZE);
    let (config, mut found) = configuration(file, &read);
    let source = read.map(|it| it.source).unwrap_or_default();
    found.push(user());
    let Some(config) = config else { return found };
    let state = replay::directory(&config.daemon.state_dir, std::env::var_os("STATE_DIRECTORY").as_deref());
    let running = RunningDaemon::look(&config, state.as_deref());
    found.extend(running.findings(&config, file, &source));
    found.extend(files::keys(&config));
    found.extend(network::interfaces(&config, Path::new(network::CLASS)));
    found.extend(network::snooping(&config, Path::new(network::CLASS)));
    found.extend(sockets::ports(&config, |pid| running.is_another(pid)));
    found.extend(firewall::hints(&config));
    found.push(files::state(state.as_deref()));
    found.extend(config.daemon.audit_log.as_deref().map(files::audit_log));
    if let Some(MetricsAddress::Unix(it)) = &config.daemon.metrics {
        found.push(files::metrics(it));
    }
    #[cfg(feature = "libvirt")]
    let (own, is_whole, answers, cards) = {
        let seen = hypervisors::all(&config);
        let is_whole = seen.is_whole && !has_other_domains(&config);
        found.extend(seen.found);
        (seen.own, is_whole, seen.is_whole, seen.cards)
    };
    #[cfg(not(feature = "libvirt"))]
    let (own, is_whole, answers, cards) = (Vec::new(), false, true, None);
    found.extend(network::without_guests(&config, cards.as_ref(), Path::new(network::CLASS)));
    found.extend(groups::all(&config, is_whole.then_some(&own[..])));
    found.extend(islands::all(&config, is_whole.then_some(&own[..])));
    found.extend(down_command::all(&config));
    found.extend(hosts::all(&config, state.as_deref(), &running, (&own, answers)));
    #[cfg(feature = "cpg")]
    found.extend(cluster::all(&config, state.as_deref()));
    found.extend(agents::all(&config));
    found.extend(config.backends.iter().filter(|it| !is_built_in(it)).map(|it| {
        let next = "name another backend in the fence_virtd block; fence_virtd -l lists those that there are";
        Finding::failed("backend", it.kind().as_str(), "is not part of this program", next)
    }));
    // Last, because this check limits the process itself.
    found.push(confined(&config, file, state.as_deref()));
    found
}

/// Returns whether requests are about domains that no hypervisor of this host has.
fn has_other_domains(config: &Config) -> bool {
    config.backends.iter().any(|it| it.uris().is_empty() || it.kind() == BackendKind::Cpg)
}

fn is_built_in(backend: &Backend) -> bool {
    match backend {
        Backend::Libvirt(_) => cfg!(feature = "libvirt"),
        Backend::Cpg(_) => cfg!(feature = "cpg"),
        Backend::Agent(_) => true,
    }
}

fn configuration(file: &Path, read: &io::Result<ConfigText>) -> (Option<Config>, Vec<Finding>) {
    const CHECK: &str = "configuration";
    let shown = shown(file);
    let ConfigText { source, doubt } = match read {
        Ok(read) => read,
        Err(error) => {
            let next = match error.kind() {
                io::ErrorKind::PermissionDenied if !geteuid().is_root() => "run this as root",
                io::ErrorKind::NotFound => "name the file with -f, make one with: fence_virtd -c",
                _ => "name the file with -f",
            };
            return (None, vec![Finding::failed(CHECK, shown, format!("can't be read: {error}"), next)]);
        }
    };
    let loaded = fence_config::load(source);
    let mut found: Vec<_> = loaded
        .diagnostics
        .iter()
        .map(|it| Finding {
            check: CHECK,
            subject: format!("{shown}:{}:{}", it.line, it.column),
            result: if it.severity == Severity::Error { FindingLevel::Failed } else { FindingLevel::Warning },
            text: it.message.clone(),
            next: Some(
                it.help.clone().unwrap_or_else(|| "correct the line; see fence_virt.conf(5)".to_owned()),
            ),
            excerpt: Some(it.render(&shown, source)),
        })
        .collect();
    found.extend(doubt.as_ref().map(|it| match it.is_of_everybody() {
        true => Finding::failed(CHECK, shown.clone(), it.to_string(), it.remedy()),
        false => Finding::warning(CHECK, shown.clone(), it.to_string(), it.remedy()),
    }));
    if let Some(config) = &loaded.config {
        let names: Vec<_> = config.listeners.iter().map(|it| config.name_of(it)).collect();
        let listeners = words(names.iter().map(String::as_str));
        let backends = words(config.backends.iter().map(|it| it.kind().as_str()));
        let groups = match config.groups.as_ref().map(Vec::len) {
            None => "no groups: whoever has the key may fence every domain".to_owned(),
            Some(0) => "an empty block groups: nobody may fence anything".to_owned(),
            Some(count) => format!("groups: {count}"),
        };
        let text = format!("listeners: {listeners}; backend: {backends}; {groups}");
        found.push(Finding::ok(CHECK, shown, text));
    }
    (loaded.config, found)
}

fn user() -> Finding {
    let id = geteuid();
    let name = nix::unistd::User::from_uid(id).ok().flatten().map_or_else(|| id.to_string(), |it| it.name);
    if id.is_root() {
        return Finding::ok(
            "user",
            name,
            "sees everything; under systemd the daemon runs as fence_virt and may see less",
        );
    }
    let text =
        "can't see whose sockets are whose, nor the firewall; files are judged as this user reads them";
    Finding::warning("user", name, text, "run this as root")
}

fn confined(config: &Config, file: &Path, state: Option<&Path>) -> Finding {
    if !config.daemon.sandbox {
        let next = "remove the line, unless sandbox.md says that this host needs it";
        return Finding::warning("sandbox", "", "off: sandbox = \"no\"", next);
    }
    let protection = sandbox::try_on(config, file, state);
    let text = protection.to_string();
    if protection.is_complete() {
        Finding::ok("sandbox", "", text)
    } else if protection.files == State::Partly && protection.capabilities.is_ok() {
        Finding::ok("sandbox", "", format!("{text}; a newer kernel does more"))
    } else {
        let next = "nothing has to be done for fencing; a kernel with Landlock and seccomp protects this \
                    host better";
        Finding::warning("sandbox", "", text, next)
    }
}
