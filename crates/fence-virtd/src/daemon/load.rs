// SPDX-License-Identifier: GPL-2.0-or-later
//! The configuration: read at the start, and read again while the daemon serves.
//!
//! Runs in the caller's task and reads one file. Must never apply part of a configuration: a file with
//! errors, or with listeners that can't all start, changes nothing.

use std::fmt;
use std::fs;
use std::path::Path;

use fence_config::{Config, DaemonSection, Peers as PeersKey, Severity};
use tracing::{error, info, warn};

use super::error::DaemonError;
use crate::cli::print::print_error;
use crate::listener::manager::ListenerManager;
use crate::peers::{PeerSettings, Peers};

/// Reads the configuration before there is a log. With `prints` errors and warnings go to standard error,
/// with line and caret.
pub(super) fn read(path: &Path, prints: bool) -> Result<Config, DaemonError> {
    load(path, &mut |severity, text| {
        if prints {
            print_error(&text);
        } else {
            debug_assert!(severity != Severity::Error);
        }
    })
}

/// Reads the file again and applies it as a whole, or refuses it as a whole. Names the changes that need a
/// restart.
pub(super) async fn reload(path: &Path, config: &mut Config, listeners: &mut ListenerManager, peers: &Peers) {
    let refuse = |reason: &dyn fmt::Display| {
        error!("SIGHUP: the new configuration is refused, and the old one stays: {reason}");
    };
    let new = match load(path, &mut |severity, text| match severity {
        Severity::Error => error!("{text}"),
        Severity::Warning => warn!("{text}"),
    }) {
        Ok(new) => new,
        Err(error) => return refuse(&error),
    };
    let prepared = PeerSettings::load(&new).and_then(|it| peers.prepare(&it).map(|sockets| (it, sockets)));
    let (settings, sockets) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return refuse(&error),
    };
    let _quiet = peers.without_call_backs().await;
    if let Err(error) = listeners.change(&new).await {
        refuse(&error);
        if config.daemon.sandbox {
            warn!(
                "files and sockets that were not in the configuration at the start may need a restart: \
                 sandbox = \"yes\""
            );
        }
        return;
    }
    peers.change(settings, sockets);
    // What is reloaded, or compared below.
    let unchanged = |it: &DaemonSection| DaemonSection {
        listeners: Vec::new(),
        backends: Vec::new(),
        peers: PeersKey::default(),
        peer_key_file: None,
        peer_port: 0,
        peer_down_command: None,
        ..it.clone()
    };
    if unchanged(&new.daemon) != unchanged(&config.daemon) {
        warn!(
            "SIGHUP: of the fence_virtd block only the listeners and the other hosts are reloaded; \
             every other change there needs a restart"
        );
    }
    if new.backends != config.backends {
        warn!("SIGHUP: the backends changed: that needs a restart, and the old ones stay in use");
    }
    config.listeners = new.listeners;
    config.daemon.peers = new.daemon.peers;
    config.daemon.peer_key_file = new.daemon.peer_key_file;
    config.daemon.peer_port = new.daemon.peer_port;
    config.daemon.peer_down_command = new.daemon.peer_down_command;
    config.groups = new.groups;
    info!("SIGHUP: the new configuration is in force");
}

/// Reads the configuration and hands each error and warning to `report`.
fn load(path: &Path, report: &mut dyn FnMut(Severity, String)) -> Result<Config, DaemonError> {
    let shown = fence_cli::shown(path);
    let source = fs::read(path).map_err(|source| DaemonError::Config { path: shown.clone(), source })?;
    let loaded = fence_config::load(&source);
    for diagnostic in &loaded.diagnostics {
        report(diagnostic.severity, diagnostic.render(&shown, &source));
    }
    loaded.config.ok_or(DaemonError::BadConfig(shown))
}
