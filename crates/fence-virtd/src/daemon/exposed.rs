// SPDX-License-Identifier: GPL-2.0-or-later
//! Number of key files in use that every user can read, for the metrics.
//!
//! Runs in the caller's task, at the start and after each reload. Those who load a key warn of it in the log;
//! here the files are looked at together, because one file may be in use at several places.

use std::collections::BTreeSet;
use std::path::Path;

use fence_cli::key_file::{self, KeyRule};
use fence_config::{Config, Listener};

use crate::observe::metrics::Metrics;
use crate::peers::peer_key_file;

/// Counts the exposed key files of the configuration that is in force.
pub(super) fn count(config: &Config, metrics: &Metrics) {
    let rule = KeyRule::strict(config.daemon.strict_keys);
    let is_exposed = |file: &&Path| key_file::load(file, rule).is_ok_and(|it| it.exposed.is_some());
    metrics.set_exposed_keys(files(config).into_iter().filter(is_exposed).count());
}

/// Returns the key files of the configuration, each once.
fn files(config: &Config) -> BTreeSet<&Path> {
    let own: Vec<_> = config.listeners.iter().filter_map(Listener::keys).collect();
    // Only listeners with keys ask for those of the groups.
    let groups = config.groups.iter().flatten().filter(|_| !own.is_empty()).flat_map(|it| &it.key_files);
    let files = own.iter().flat_map(|it| &it.key_files).chain(groups).map(AsRef::as_ref);
    files.chain(peer_key_file(config)).collect()
}
