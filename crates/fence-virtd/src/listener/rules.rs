// SPDX-License-Identifier: GPL-2.0-or-later
//! The rules of a listener: its keys, the weakest hash that it accepts, and the groups.
//!
//! Owns no task. Rules are loaded as a whole before anything is changed, and replaced as a whole while the
//! listener serves: so no packet is missed at a change of keys or groups. Each request keeps the rules under
//! which it arrived.

use std::sync::{Arc, RwLock};

use fence_cli::key_file::{KeyFileError, KeyRule};
use fence_config::{Config, Group, Listener as Settings};
use fence_wire::HashType;
use tracing::{info, warn};

use super::StartError;
use crate::listener::auth::StreamAuth;
use crate::listener::keys::{KeysError, KeysInUse, ListenerKeys};
use fence_core::access::AccessRules;

/// The rules of a listener, loaded.
#[derive(Debug)]
pub(crate) struct ListenerRules {
    /// The weakest packet hash that is accepted.
    pub(super) minimum: HashType,
    /// The authentication of classic streams.
    pub(super) auth: StreamAuth,
    /// The groups' rules for access.
    pub(super) access: Arc<AccessRules>,
}

/// The rules that are in force now.
#[derive(Debug)]
pub(crate) struct CurrentRules(RwLock<Arc<ListenerRules>>);

/// The `groups` of the configuration, with the keys in use and the rule for key files.
#[derive(Clone, Debug)]
pub(crate) struct GroupSettings {
    groups: Arc<[Group]>,
    access: Arc<AccessRules>,
    keys_in_use: Arc<KeysInUse>,
    key_rule: KeyRule,
}

impl GroupSettings {
    pub(crate) fn new(config: &Config, keys_in_use: &Arc<KeysInUse>) -> Self {
        let groups = config.groups.as_deref();
        Self {
            groups: groups.unwrap_or_default().into(),
            access: Arc::new(AccessRules::new(groups)),
            keys_in_use: Arc::clone(keys_in_use),
            key_rule: KeyRule::strict(config.daemon.strict_keys),
        }
    }
}

impl CurrentRules {
    pub(crate) fn new(rules: ListenerRules) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(rules))))
    }

    pub(crate) fn now(&self) -> Arc<ListenerRules> {
        Arc::clone(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Replaces the rules. Requests in flight keep the rules under which they arrived.
    pub(crate) fn replace(&self, rules: ListenerRules) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(rules);
    }
}

impl ListenerRules {
    /// Loads every key that the listener accepts.
    ///
    /// # Errors
    /// A key can't be used. Nothing is changed then.
    pub(crate) fn load(settings: &Settings, groups: &GroupSettings) -> Result<Self, StartError> {
        let access = Arc::clone(&groups.access);
        let Some(own) = settings.keys() else {
            // The serial line identifies the source.
            let auth = StreamAuth { hash: HashType::None, keys: Arc::default() };
            return Ok(Self { minimum: HashType::None, auth, access });
        };
        let (minimum, hash) = (own.hash, own.auth);
        let files = KeyFiles { files: &own.key_files, named: own.key_files_named };
        let keys = keys(files, groups, minimum, hash)?;
        // A packet without a hash shows no key. Such packets can't be served if the challenge needs a key and
        // the listener has none of its own.
        let minimum =
            if hash != HashType::None && !keys.has_own() { minimum.max(HashType::Sha1) } else { minimum };
        warn_unproved(settings, minimum, hash);
        let keys = Arc::new(keys);
        groups.keys_in_use.add(&keys);
        Ok(Self { minimum, auth: StreamAuth { hash, keys }, access })
    }

    /// Logs the rules, keys as fingerprints.
    pub(crate) fn log(&self, name: &str) {
        let StreamAuth { hash, keys } = &self.auth;
        let name = fence_wire::escaped(name);
        info!(
            listener = %name, hash = %self.minimum, auth = %hash, key = %keys.fingerprints(),
            group_keys = %keys.group_fingerprints(), "requests are taken by these rules"
        );
    }
}

/// Returns true if two settings of a listener differ in nothing but the [`ListenerRules`]: the same sockets
/// serve both.
pub(crate) fn same_sockets(old: &Settings, new: &Settings) -> bool {
    let mut old = old.clone();
    if let (Some(old), Some(new)) = (old.keys_mut(), new.keys()) {
        old.clone_from(new);
    }
    old == *new
}

/// The key files of a listener's block.
#[derive(Clone, Copy)]
struct KeyFiles<'a> {
    files: &'a [std::path::PathBuf],
    /// The block names the files; otherwise they are the default.
    named: bool,
}

/// Warns of a listener that accepts requests without a proof of the key.
fn warn_unproved(settings: &Settings, minimum: HashType, auth: HashType) {
    // Sealed streams are proved whatever `auth` says.
    if minimum == HashType::None || (auth == HashType::None && minimum.sealed().is_none()) {
        let listener = settings.kind();
        warn!(
            %listener, hash = %minimum, %auth,
            "this listener asks for no proof of the key: whoever reaches it may fence"
        );
    }
}

/// Loads the keys. Only a listener whose `hash` and `auth` are none may have no key.
fn keys(
    files: KeyFiles<'_>,
    groups: &GroupSettings,
    hash: HashType,
    auth: HashType,
) -> Result<ListenerKeys, KeysError> {
    let unproved = hash == HashType::None && auth == HashType::None;
    let load = |files| {
        let GroupSettings { groups, keys_in_use, key_rule, .. } = groups;
        let (keys, notices) = ListenerKeys::load_reusing(keys_in_use, files, groups, *key_rule)?;
        for notice in notices {
            warn!("{notice}");
        }
        Ok(keys)
    };
    match load(files.files) {
        Err(KeysError::Listener(_)) if unproved => load(&[]),
        // A key of no group would permit nothing here.
        Err(KeysError::Listener(KeyFileError::Missing { .. }))
            if !files.named && have_keys(&groups.groups) =>
        {
            let keys = load(&[])?;
            info!(
                file = %files.files[0].display(),
                "no such key file, and every group has keys of its own: only these count"
            );
            Ok(keys)
        }
        loaded => loaded,
    }
}

/// Returns true if every group has keys of its own.
pub(crate) fn have_keys(groups: &[Group]) -> bool {
    !groups.is_empty() && groups.iter().all(|it| !it.key_files.is_empty())
}
