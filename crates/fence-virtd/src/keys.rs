// SPDX-License-Identifier: GPL-2.0-or-later
//! The keys of a listener: loaded at the start, or no listener.

use std::path::PathBuf;
use std::sync::Arc;

use fence_cli::key_file::{self, KeyFileError};
use fence_wire::Key;

/// Keys in the order of the configuration, each with its fingerprint.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    keys: Vec<Key>,
    fingerprints: Vec<Arc<str>>,
}

impl Keys {
    /// Loads every key file.
    pub(crate) fn load(files: &[PathBuf]) -> Result<Self, KeyFileError> {
        let keys = files.iter().map(|it| key_file::load(it)).collect::<Result<Vec<_>, _>>()?;
        let fingerprints = keys.iter().map(|it| it.fingerprint().into()).collect();
        Ok(Self { keys, fingerprints })
    }

    pub(crate) fn all(&self) -> &[Key] {
        &self.keys
    }

    /// The key at `place`; the first where a packet carried no hash that could tell.
    pub(crate) fn key(&self, place: Option<usize>) -> Option<&Key> {
        self.keys.get(place.unwrap_or_default())
    }

    pub(crate) fn fingerprint(&self, place: Option<usize>) -> Option<Arc<str>> {
        self.fingerprints.get(place?).cloned()
    }

    /// All fingerprints, for the log.
    pub(crate) fn fingerprints(&self) -> String {
        if self.fingerprints.is_empty() { "none".to_owned() } else { self.fingerprints.join(", ") }
    }
}
