// SPDX-License-Identifier: GPL-2.0-or-later
//! The rules of a listener: its keys, the weakest hash that it accepts, and the groups.
//!
//! Owns no task. Rules are loaded as a whole before anything is changed, and replaced as a whole while the
//! listener serves: so no packet is missed at a change of keys or groups. Each request is taken by the rules
//! under which it arrived, and judged once more at each change until it has run.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fence_cli::key_file::{KeyFileError, KeyRule};
use fence_config::{Config, Group, Listener as Settings};
use fence_wire::HashType;
use tokio::sync::watch;
use tracing::{info, warn};

use super::StartError;
use crate::listener::auth::{PacketProof, StreamAuth};
use crate::listener::keys::{KeysError, KeysInUse, ListenerKeys, OpenKeys, have_keys};
use crate::request::rules_now::{JudgedAgain, RulesNow};
use fence_core::access::{AccessRules, KeyProof};

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
pub(crate) struct CurrentRules {
    rules: watch::Sender<Arc<ListenerRules>>,
    /// A reload closed the listener: nobody can ask by it any more.
    is_closed: AtomicBool,
}

/// Rules under which a request came, and those that are in force now.
#[derive(Debug)]
struct ArrivalRules {
    current: Arc<CurrentRules>,
    at_arrival: Arc<ListenerRules>,
    packet: PacketProof,
    /// Type of the packet's hash.
    hash: HashType,
}

/// The `groups` of the configuration, with the keys in use and the rule for key files.
#[derive(Clone, Debug)]
pub(crate) struct GroupSettings {
    groups: Arc<[Group]>,
    access: Arc<AccessRules>,
    keys_in_use: Arc<KeysInUse>,
    key_rule: KeyRule,
    /// Keys of all listeners; none where they are not known.
    open: Option<Arc<OpenKeys>>,
}

impl GroupSettings {
    pub(crate) fn new(config: &Config, keys_in_use: &Arc<KeysInUse>) -> Self {
        let groups = config.groups.as_deref();
        let key_rule = KeyRule::strict(config.daemon.strict_keys);
        Self {
            groups: groups.unwrap_or_default().into(),
            access: Arc::new(AccessRules::new(groups)),
            keys_in_use: Arc::clone(keys_in_use),
            key_rule,
            open: OpenKeys::load(config, key_rule).map(Arc::new),
        }
    }
}

impl CurrentRules {
    pub(crate) fn new(rules: ListenerRules) -> Arc<Self> {
        Arc::new(Self { rules: watch::Sender::new(Arc::new(rules)), is_closed: AtomicBool::new(false) })
    }

    pub(crate) fn now(&self) -> Arc<ListenerRules> {
        Arc::clone(&self.rules.borrow())
    }

    /// Replaces the rules. Requests that wait are asked by the new ones at once.
    pub(crate) fn replace(&self, rules: ListenerRules) {
        self.rules.send_replace(Arc::new(rules));
    }

    /// Ends the rules with their listener: requests that wait do not run. Not for the end of the daemon,
    /// which lets them run.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.rules.send_modify(|_| {});
    }

    /// Returns whether a reload closed the listener.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Returns the judge of a request that came under these rules, as long as it has not run.
    pub(crate) fn judge(
        self: &Arc<Self>,
        at_arrival: &Arc<ListenerRules>,
        packet: PacketProof,
        hash: HashType,
    ) -> Arc<dyn RulesNow> {
        let (current, at_arrival) = (Arc::clone(self), Arc::clone(at_arrival));
        Arc::new(ArrivalRules { current, at_arrival, packet, hash })
    }
}

impl RulesNow for ArrivalRules {
    fn judge_again(&self) -> JudgedAgain {
        if self.current.is_closed() {
            return JudgedAgain::Refused("the listener by which it came was closed or changed".to_owned());
        }
        let now = self.current.now();
        if Arc::ptr_eq(&now, &self.at_arrival) {
            return JudgedAgain::Same;
        }
        match now.key_of_earlier(&self.at_arrival, self.packet, self.hash) {
            Ok(key) => JudgedAgain::Changed { access: Arc::clone(&now.access), key },
            Err(why) => JudgedAgain::Refused(why),
        }
    }

    fn reloaded(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut rules = self.current.rules.subscribe();
        Box::pin(async move {
            if rules.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
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

    /// Returns the proof of a request's key, of a request that came under earlier rules.
    ///
    /// # Errors
    /// By these rules the request would not be taken.
    fn key_of_earlier(
        &self,
        earlier: &Self,
        packet: PacketProof,
        hash: HashType,
    ) -> Result<Option<Arc<KeyProof>>, String> {
        if hash < self.minimum {
            return Err(format!(
                "its packet has hash {hash}, and the listener takes none below {}",
                self.minimum
            ));
        }
        // Sealed streams are proved whatever `auth` says.
        if packet.sealed.is_none() && earlier.auth.hash < self.auth.hash {
            let (old, new) = (earlier.auth.hash, self.auth.hash);
            return Err(format!("it was proved with auth {old}, and the listener asks for {new}"));
        }
        let Some(key) = earlier.auth.keys.key(packet.key) else { return Ok(None) };
        let place = self.auth.keys.place_of(&key.tag());
        match (packet.key, place) {
            (Some(_), Some(_)) => Ok(self.auth.keys.proof(place)),
            // Without a hash in the packet its key is one of the listener's own, or none was asked for.
            (None, Some(place)) if self.auth.keys.is_own(place) => Ok(None),
            (None, _) if earlier.auth.hash == HashType::None => Ok(None),
            _ => Err(format!("its key {} was taken away", key.fingerprint())),
        }
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

/// Returns whether every client must prove that it lives when its request runs. Otherwise the packet alone is
/// enough, also that of a machine which is down by now.
pub(super) fn asks_for_late_proof(minimum: HashType, auth: HashType) -> bool {
    // Sealed streams are proved whatever `auth` says.
    auth != HashType::None || minimum.sealed().is_some()
}

/// The key files of a listener's block.
#[derive(Clone, Copy)]
struct KeyFiles<'a> {
    files: &'a [std::path::PathBuf],
    /// The block names the files; otherwise they are the default.
    named: bool,
}

/// Warns of a listener that does without a proof of the key.
fn warn_unproved(settings: &Settings, minimum: HashType, auth: HashType) {
    if let Some(words) = missing_proof(minimum, auth) {
        warn!(listener = %settings.kind(), hash = %minimum, %auth, "this listener {words}");
    }
}

/// Returns what a listener does without a proof of the key; none where both the request and its client are
/// proved.
pub(crate) fn missing_proof(minimum: HashType, auth: HashType) -> Option<&'static str> {
    match (minimum == HashType::None, !asks_for_late_proof(minimum, auth)) {
        (true, true) => Some("asks for no proof of the key: whoever reaches it may fence"),
        (true, false) => Some(
            "takes requests without a signature: only the challenge keeps out whoever does not have the key",
        ),
        (false, true) => Some(
            "asks for no proof that a client lives (auth is none): the signature of its request is enough, \
             also after the machine that asked has been powered off",
        ),
        (false, false) => None,
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
        let GroupSettings { groups, keys_in_use, key_rule, open, .. } = groups;
        let (keys, notices) =
            ListenerKeys::load_reusing(keys_in_use, files, groups, *key_rule, open.as_deref())?;
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

#[cfg(test)]
mod tests;
