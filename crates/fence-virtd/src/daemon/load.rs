// SPDX-License-Identifier: GPL-2.0-or-later
//! The configuration: read at the start, and read again while the daemon serves.
//!
//! Runs in the caller's task and reads one file. Must never apply part of a configuration: a file with
//! errors, or with listeners that can't all start, changes nothing.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use fence_cli::config_file::{self, ConfigText};
use fence_config::{Config, DaemonSection, MAX_FILE_SIZE, Peers as PeersKey, Severity};
use tracing::{error, info, warn};

use super::error::DaemonError;
use super::in_use::ConfigHash;
use super::{exposed, sandbox};
use crate::cli::print::print_error;
use crate::listener::manager::ListenerManager;
use crate::observe::metrics::Metrics;
use crate::peers::{PeerSettings, Peers};

/// A configuration as it was read, and the hash of its file.
pub(super) struct ReadConfig {
    pub(super) config: Config,
    pub(super) hash: ConfigHash,
}

/// Outcome of a reload that is in force.
pub(super) struct ReloadResult {
    pub(super) hash: ConfigHash,
    /// True if the file has changes that a reload does not take up.
    pub(super) waits_for_restart: bool,
}

/// Reads the configuration before there is a log. With `prints` errors and warnings go to standard error,
/// with line and caret.
pub(super) fn read(path: &Path, prints: bool) -> Result<ReadConfig, DaemonError> {
    load(path, &mut |severity, text| {
        if prints {
            print_error(&text);
        } else {
            debug_assert!(severity != Severity::Error);
        }
    })
}

/// Reads the file again and applies it as a whole, or refuses it as a whole. Names the changes that need a
/// restart. `started` is the configuration of the start, to which the sandbox holds. Returns which changes
/// are in force; none of a file that was refused.
pub(super) async fn reload(
    path: &Path,
    started: &Config,
    config: &mut Config,
    listeners: &mut ListenerManager,
    peers: &Arc<Peers>,
    metrics: &Metrics,
) -> Option<ReloadResult> {
    let refuse = |reason: &dyn fmt::Display| {
        error!("SIGHUP: the new configuration is refused, and the old one stays: {reason}");
    };
    let ReadConfig { config: mut new, hash } = match load(path, &mut |severity, text| match severity {
        Severity::Error => error!("{text}"),
        Severity::Warning => warn!("{text}"),
    }) {
        Ok(new) => new,
        Err(error) => {
            refuse(&error);
            return None;
        }
    };
    keep_what_can_run(started, config, &mut new);
    let prepared = PeerSettings::load_for_daemon(&new, false)
        .and_then(|it| peers.prepare(&it).map(|sockets| (it, sockets)));
    let (settings, sockets) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            refuse(&error);
            warn_of_sandbox(config);
            return None;
        }
    };
    let _quiet = peers.without_call_backs().await;
    if let Err(error) = listeners.change(&new).await {
        refuse(&error);
        warn_of_sandbox(config);
        return None;
    }
    peers.change(settings, sockets);
    let waits_for_restart = warn_of_restart(config, &new);
    config.listeners = new.listeners;
    config.daemon.peers = new.daemon.peers;
    config.daemon.peer_key_file = new.daemon.peer_key_file;
    config.daemon.peer_port = new.daemon.peer_port;
    config.daemon.peer_down_command = new.daemon.peer_down_command;
    config.daemon.strict_keys = new.daemon.strict_keys;
    config.groups = new.groups;
    exposed::count(config, metrics);
    info!("SIGHUP: the new configuration is in force");
    Some(ReloadResult { hash, waits_for_restart })
}

/// Names the changes that a reload does not take up. Returns true if there are any.
fn warn_of_restart(config: &Config, new: &Config) -> bool {
    // What is reloaded, or compared below.
    let unchanged = |it: &DaemonSection| DaemonSection {
        listeners: Vec::new(),
        backends: Vec::new(),
        peers: PeersKey::default(),
        peer_key_file: None,
        peer_port: 0,
        peer_down_command: None,
        strict_keys: false,
        ..it.clone()
    };
    let has_daemon = unchanged(&new.daemon) != unchanged(&config.daemon);
    if has_daemon {
        warn!(
            "SIGHUP: of the fence_virtd block only the listeners, strict_keys and the other hosts are \
             reloaded; every other change there needs a restart"
        );
    }
    let has_backends = new.backends != config.backends;
    if has_backends {
        warn!("SIGHUP: the backends changed: that needs a restart, and the old ones stay in use");
    }
    has_daemon || has_backends
}

fn warn_of_sandbox(config: &Config) {
    if config.daemon.sandbox {
        warn!(
            "files and sockets that were not in the configuration at the start may need a restart: \
             sandbox = \"yes\""
        );
    }
}

/// Keeps the command that is in use if the sandbox of the start would refuse to run another one.
fn keep_what_can_run(started: &Config, config: &Config, new: &mut Config) {
    let command = &new.daemon.peer_down_command;
    if command.is_none() || *command == config.daemon.peer_down_command || sandbox::may_run_programs(started)
    {
        return;
    }
    error!(
        "SIGHUP: peer_down_command is not used: the sandbox of this daemon lets it start no program, because \
         none was in the configuration at the start; restart fence_virtd to use it. Until then a silent host \
         is not proved down"
    );
    new.daemon.peer_down_command.clone_from(&config.daemon.peer_down_command);
}

/// Reads the configuration and hands each error and warning to `report`.
fn load(path: &Path, report: &mut dyn FnMut(Severity, String)) -> Result<ReadConfig, DaemonError> {
    let shown = fence_cli::shown(path);
    let ConfigText { source, doubt } = config_file::read(path, MAX_FILE_SIZE)
        .map_err(|source| DaemonError::Config { path: shown.clone(), source })?;
    if let Some(doubt) = doubt {
        let text = format!("{shown}: {doubt}. It is used all the same; {}", doubt.remedy());
        report(Severity::Warning, text);
    }
    let loaded = fence_config::load(&source);
    for diagnostic in &loaded.diagnostics {
        report(diagnostic.severity, diagnostic.render(&shown, &source));
    }
    let config = loaded.config.ok_or(DaemonError::BadConfig(shown))?;
    Ok(ReadConfig { config, hash: ConfigHash::of(&source) })
}
