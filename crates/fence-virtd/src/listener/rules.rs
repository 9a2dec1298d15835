// SPDX-License-Identifier: GPL-2.0-or-later
//! What a listener goes by: its keys, the weakest hash it takes, and the groups. Read as a whole before anything is
//! changed, and exchanged as a whole while the listener serves, so that keys and groups change without a moment of
//! deafness. Each request keeps the rules that it came under.

use std::sync::{Arc, RwLock};

use fence_cli::key_file::KeyFileError;
use fence_config::{Group, Listener as Settings};
use fence_wire::HashType;
use tracing::{info, warn};

use super::StartError;
use crate::listener::conversation::StreamAuth;
use crate::listener::keys::{FingerprintCache, KeysError, ListenerKeys};
use fence_core::access::AccessRules;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct ListenerRules {
    /// The weakest packet hash that is accepted.
    pub(super) minimum: HashType,
    /// How streams of classic packets are authenticated.
    pub(super) auth: StreamAuth,
    /// Who may fence what.
    pub(super) access: Arc<AccessRules>,
}

/// The rules of now.
#[derive(Debug)]
pub(crate) struct CurrentRules(RwLock<Arc<ListenerRules>>);

/// The `groups` of the configuration, as listeners need them.
#[derive(Clone, Debug)]
pub(crate) struct GroupSettings {
    groups: Arc<[Group]>,
    access: Arc<AccessRules>,
    keys_in_use: Arc<FingerprintCache>,
}

impl GroupSettings {
    pub(crate) fn new(groups: Option<&[Group]>, keys_in_use: &Arc<FingerprintCache>) -> Self {
        Self {
            groups: groups.unwrap_or_default().into(),
            access: Arc::new(AccessRules::new(groups)),
            keys_in_use: Arc::clone(keys_in_use),
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

    /// Requests that are under way end by the rules that they came under.
    pub(crate) fn replace(&self, rules: ListenerRules) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(rules);
    }
}

impl ListenerRules {
    /// Loads every key that the listener takes.
    ///
    /// # Errors
    /// Why the listener can't go by these settings; nothing is changed then.
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
        // A packet without a hash tells no key. Where the challenge needs one, and the listener has none that it could
        // take for that, such packets can't be served.
        let minimum =
            if hash != HashType::None && !keys.has_own() { minimum.max(HashType::Sha1) } else { minimum };
        warn_unproved(settings, minimum, hash);
        let keys = Arc::new(keys);
        groups.keys_in_use.add(&keys);
        Ok(Self { minimum, auth: StreamAuth { hash, keys }, access })
    }

    /// Says what the listener goes by.
    pub(crate) fn log(&self, name: &str) {
        let StreamAuth { hash, keys } = &self.auth;
        info!(
            listener = name, hash = %self.minimum, auth = %hash, key = %keys.fingerprints(),
            group_keys = %keys.group_fingerprints(), "requests are taken by these rules"
        );
    }
}

/// Whether two settings of a listener differ in what [`Rules`] are made of at most: the same sockets serve both.
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
    /// They stand in the block; otherwise it is the default.
    named: bool,
}

fn warn_unproved(settings: &Settings, minimum: HashType, auth: HashType) {
    // Sealed streams are proved whatever `auth` says.
    if minimum == HashType::None || (auth == HashType::None && minimum.sealed().is_none()) {
        let listener = settings.kind();
        warn!(%listener, hash = %minimum, %auth, "this listener asks for no proof of the key: whoever reaches it may fence");
    }
}

/// Loads the keys. Only a listener that was told by name to use neither hash nor challenge does without.
fn keys(
    files: KeyFiles<'_>,
    groups: &GroupSettings,
    hash: HashType,
    auth: HashType,
) -> Result<ListenerKeys, KeysError> {
    let unproved = hash == HashType::None && auth == HashType::None;
    let load = |files| {
        let (keys, notices) =
            ListenerKeys::load_reusing_fingerprints(&groups.keys_in_use, files, &groups.groups)?;
        for it in notices {
            warn!("{it}");
        }
        Ok(keys)
    };
    match load(files.files) {
        Err(KeysError::Listener(_)) if unproved => load(&[]),
        // Whoever has the key of no group could use nothing here.
        Err(KeysError::Listener(KeyFileError::Missing { .. }))
            if !files.named && have_keys(&groups.groups) =>
        {
            let keys = load(&[])?;
            info!(file = %files.files[0].display(), "no such key file, and every group has keys of its own: only these count");
            Ok(keys)
        }
        loaded => loaded,
    }
}

pub(crate) fn have_keys(groups: &[Group]) -> bool {
    !groups.is_empty() && groups.iter().all(|it| !it.key_files.is_empty())
}
