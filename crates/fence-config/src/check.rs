// SPDX-License-Identifier: GPL-2.0-or-later
//! From the tree to the typed configuration: keys, their types, their defaults.
//!
//! Unknown names only warn, since files written for other versions must load. Blocks that `listener` and
//! `backend` do not name are checked too, but their errors only warn.

mod agent;
mod backends;
mod checker;
mod daemon;
mod groups;
mod known;
mod listeners;
mod peers;
mod text;
mod values;

use checker::{BlockBody, Checker};
pub use known::{MAX_URIS, keys};

use crate::diagnostic::Findings;
use crate::schema::{Config, WordSet};
use crate::tree::Tree;

/// Returns the configuration, with defaults in place of wrong values. The caller discards it when there are
/// errors.
pub(crate) fn check(tree: &Tree, findings: &mut Findings) -> Config {
    let mut checker = Checker { findings, soft: false, multicast_named: 0 };
    let root = checker.read_block("", &tree.items);
    let daemon = checker.read_daemon(&root);

    let listeners =
        root.block("listeners").map(|it| checker.read_block("listeners", &it.items)).unwrap_or_default();
    checker.check_unused_blocks(&listeners, &daemon.listeners, Checker::read_listener);
    let backends =
        root.block("backends").map(|it| checker.read_block("backends", &it.items)).unwrap_or_default();
    checker.check_unused_blocks(&backends, &daemon.backends, |checker, section, kind| {
        checker.read_backend(section, kind, daemon.name_mode)
    });

    checker.report_swapped_backends(&backends, &daemon.backends);

    Config {
        listeners: checker.read_listeners(&listeners, &daemon.listeners),
        backends: daemon
            .backends
            .iter()
            .map(|&kind| checker.read_backend(&backends, kind, daemon.name_mode))
            .collect(),
        groups: root.block("groups").map(|it| checker.read_groups(it)),
        daemon,
    }
}

impl Checker<'_> {
    /// Checks the blocks that are not in use.
    fn check_unused_blocks<K: WordSet + PartialEq, T>(
        &mut self,
        section: &BlockBody<'_>,
        used: &[K],
        mut read: impl FnMut(&mut Self, &BlockBody<'_>, K) -> T,
    ) {
        self.soft = true;
        for &(name, kind) in K::WORDS {
            if !used.contains(&kind) && section.block(name).is_some() {
                read(self, section, kind);
            }
        }
        self.soft = false;
    }
}
