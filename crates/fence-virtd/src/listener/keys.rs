// SPDX-License-Identifier: GPL-2.0-or-later
//! The keys of a listener: its own, and those of the groups.
//!
//! Owns the loaded keys; runs on the caller's task. A listener starts only if all keys can be loaded. A key
//! that stands in several files is one key: the key of a packet's hash decides what its holder may fence, and
//! that must not depend on the order of the files. Nothing here may show a byte of a key.

use fence_core::access::KeyProof;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use fence_cli::key_file::{self, ExposedKey, KeyFileError, KeyRule};
use fence_cli::shown;
use fence_config::Group;
use fence_wire::{Key, escaped};

use crate::util::locks::lock;
use fence_core::access::group_title;

/// Every key that a listener accepts, the listener's own first.
#[derive(Debug, Default)]
pub(crate) struct ListenerKeys {
    keys: Vec<Key>,
    proofs: Vec<Arc<KeyProof>>,
    /// Number of the listener's own keys.
    own: usize,
}

/// Keys in use, with their fingerprints. A fingerprint is slow to compute, so that of one key is computed
/// once for all listeners and reloads. Keeps no key alive: a key that no listener and no request uses is
/// forgotten.
#[derive(Debug, Default)]
pub(crate) struct FingerprintCache(Mutex<Vec<Weak<ListenerKeys>>>);

/// Reason why a listener's keys can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// A key of the listener.
    #[error(transparent)]
    Listener(#[from] KeyFileError),
    /// A key of a group.
    #[error("{group}: {source}")]
    Group { group: String, source: KeyFileError },
}

/// A mistake in the key files that an administrator should look at. The keys can be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyNotice {
    /// One key in several files of one holder.
    Twice { fingerprint: String, holder: String, files: String },
    /// One key of several holders: a client with this key counts as all of them.
    Shared { fingerprint: String, holders: String },
    /// A key file that every user can read.
    Exposed(ExposedKey),
}

impl fmt::Display for KeyNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exposed(exposed) => exposed.fmt(f),
            Self::Twice { fingerprint, holder, files } => {
                write!(f, "{holder} has the key {fingerprint} twice: {files}")
            }
            Self::Shared { fingerprint, holders } => {
                write!(
                    f,
                    "the key {fingerprint} stands for several: {holders}; whoever holds it is all of them"
                )
            }
        }
    }
}

/// Owner of a key file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyHolder {
    Listener,
    Group(usize),
}

/// A key with its file and holder.
struct HeldKey<'a> {
    holder: KeyHolder,
    file: &'a Path,
    key: Key,
}

impl ListenerKeys {
    /// Loads every key file of a listener and of all groups.
    pub(crate) fn load(
        files: &[PathBuf],
        groups: &[Group],
        rule: KeyRule,
    ) -> Result<(Self, Vec<KeyNotice>), KeysError> {
        Self::load_reusing_fingerprints(&FingerprintCache::default(), files, groups, rule)
    }

    /// Loads every key file of a listener and of all groups; takes the fingerprints of keys in use from the
    /// cache.
    pub(crate) fn load_reusing_fingerprints(
        in_use: &FingerprintCache,
        files: &[PathBuf],
        groups: &[Group],
        rule: KeyRule,
    ) -> Result<(Self, Vec<KeyNotice>), KeysError> {
        let (mut loaded, mut exposed) = (Vec::new(), Vec::new());
        let mut add = |holder, file, key_file::LoadedKey { key, exposed: notice }| {
            loaded.push(HeldKey { holder, file, key });
            exposed.extend(notice.map(KeyNotice::Exposed));
        };
        for file in files {
            add(KeyHolder::Listener, file.as_path(), key_file::load(file, rule)?);
        }
        for (place, group) in groups.iter().enumerate() {
            for file in &group.key_files {
                let key = key_file::load(file, rule)
                    .map_err(|source| KeysError::Group { group: shown_group(place, group), source })?;
                add(KeyHolder::Group(place), file, key);
            }
        }
        let name = |holder| match holder {
            KeyHolder::Listener => "the listener".to_owned(),
            KeyHolder::Group(place) => shown_group(place, &groups[place]),
        };
        let (keys, notices) = merge(loaded, name, |key| in_use.fingerprint(key));
        exposed.extend(notices);
        Ok((keys, exposed))
    }

    pub(crate) fn all(&self) -> &[Key] {
        &self.keys
    }

    /// Returns the key with this index; without an index (the packet had no hash) the first of the listener's
    /// own, because a group's key must be proved, not assumed.
    pub(crate) fn key(&self, index: Option<usize>) -> Option<&Key> {
        match index {
            Some(index) => self.keys.get(index),
            None => self.keys[..self.own].first(),
        }
    }

    /// Returns the proof of a peer whose packet has a hash of the key with this index.
    pub(crate) fn proof(&self, index: Option<usize>) -> Option<Arc<KeyProof>> {
        self.proofs.get(index?).cloned()
    }

    fn fingerprint_of(&self, key: &Key) -> Option<&str> {
        let index = self.keys.iter().position(|it| it.is_same(key))?;
        Some(&self.proofs[index].fingerprint)
    }

    /// Returns true if the listener has a key of its own.
    pub(crate) fn has_own(&self) -> bool {
        self.own > 0
    }

    /// Returns the fingerprints of the listener's own keys, for the log.
    pub(crate) fn fingerprints(&self) -> String {
        list(self.proofs[..self.own].iter().map(|it| it.fingerprint.as_str()))
    }

    /// Returns the fingerprints of the groups' keys, for the log.
    pub(crate) fn group_fingerprints(&self) -> String {
        list(self.proofs.iter().filter(|it| !it.groups.is_empty()).map(|it| it.fingerprint.as_str()))
    }
}

impl FingerprintCache {
    /// Enters the keys of a listener.
    pub(crate) fn add(&self, keys: &Arc<ListenerKeys>) {
        let mut all = lock(&self.0);
        all.retain(|it| it.strong_count() > 0);
        all.push(Arc::downgrade(keys));
    }

    fn fingerprint(&self, key: &Key) -> String {
        let all: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        let known = all.iter().find_map(|it| it.fingerprint_of(key));
        known.map_or_else(|| key.fingerprint(), str::to_owned)
    }
}

/// Merges equal keys into one, and returns the duplicates as notices. `name` gives the text of a holder.
fn merge(
    loaded: Vec<HeldKey<'_>>,
    name: impl Fn(KeyHolder) -> String,
    fingerprint_of: impl Fn(&Key) -> String,
) -> (ListenerKeys, Vec<KeyNotice>) {
    let mut merged: Vec<(Key, Vec<(KeyHolder, &Path)>)> = Vec::new();
    for HeldKey { holder, file, key } in loaded {
        match merged.iter_mut().find(|(known, _)| known.is_same(&key)) {
            Some((_, uses)) => uses.push((holder, file)),
            None => merged.push((key, vec![(holder, file)])),
        }
    }
    let (mut keys, mut notices) = (ListenerKeys::default(), Vec::new());
    for (key, uses) in merged {
        let fingerprint = fingerprint_of(&key);
        notices.extend(duplicate_key_notices(&fingerprint, &uses, &name));
        let listener = uses.iter().any(|(holder, _)| *holder == KeyHolder::Listener);
        let groups = uses.iter().filter_map(|(holder, _)| match holder {
            KeyHolder::Group(place) => Some(*place),
            KeyHolder::Listener => None,
        });
        keys.proofs.push(Arc::new(KeyProof { fingerprint, listener, groups: groups.collect() }));
        keys.keys.push(key);
        // The listener's files come first, and so do its keys.
        keys.own += usize::from(listener);
    }
    (keys, notices)
}

fn duplicate_key_notices(
    fingerprint: &str,
    uses: &[(KeyHolder, &Path)],
    name: &impl Fn(KeyHolder) -> String,
) -> Vec<KeyNotice> {
    let mut holders: Vec<KeyHolder> = Vec::new();
    for (holder, _) in uses {
        if !holders.contains(holder) {
            holders.push(*holder);
        }
    }
    let files = |of: KeyHolder| list(uses.iter().filter(|(it, _)| *it == of).map(|(_, file)| shown(file)));
    let count = |of: KeyHolder| uses.iter().filter(|(it, _)| *it == of).count();
    let mut notices: Vec<_> = holders
        .iter()
        .filter(|it| count(**it) > 1)
        .map(|it| KeyNotice::Twice {
            fingerprint: fingerprint.to_owned(),
            holder: name(*it),
            files: files(*it),
        })
        .collect();
    if holders.len() > 1 {
        let holders = list(holders.iter().map(|it| format!("{} ({})", name(*it), files(*it))));
        notices.push(KeyNotice::Shared { fingerprint: fingerprint.to_owned(), holders });
    }
    notices
}

fn list<T: AsRef<str>>(items: impl Iterator<Item = T>) -> String {
    let mut text = String::new();
    for item in items {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(item.as_ref());
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

pub(crate) fn shown_group(place: usize, group: &Group) -> String {
    escaped(&group_title(place, group)).to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const RULE: KeyRule = KeyRule::WarnOfExposed;

    fn load(files: &[PathBuf], groups: &[Group]) -> Result<(ListenerKeys, Vec<KeyNotice>), KeysError> {
        ListenerKeys::load(files, groups, RULE)
    }

    struct Scratch(tempfile::TempDir);

    impl Scratch {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        }
    }

    fn groups(of: &[(&str, &[&PathBuf])]) -> Vec<Group> {
        let block = |(name, files): &(&str, &[&PathBuf])| {
            let files: String = files.iter().map(|it| format!("key_file = \"{}\"; ", it.display())).collect();
            format!("group {{ name = \"{name}\"; uuid = \"vm\"; {files} }}")
        };
        let blocks: String = of.iter().map(block).collect();
        let file = format!("fence_virtd {{ }} groups {{ {blocks} }}");
        fence_config::load(file.as_bytes()).config.unwrap().groups.unwrap()
    }

    #[test]
    fn a_key_is_of_whoever_names_it() {
        let scratch = Scratch::new();
        let (old, new, red) =
            (scratch.file("old", "old"), scratch.file("new", "new"), scratch.file("red", "red"));
        let groups = groups(&[("plain", &[]), ("red", &[&red])]);
        let (keys, notices) = load(&[old, new], &groups).unwrap();
        assert!(notices.is_empty());
        assert_eq!((keys.all().len(), keys.has_own()), (3, true));
        let shown = |place| {
            let proof = keys.proof(Some(place)).unwrap();
            (proof.listener, proof.groups.iter().copied().collect::<Vec<_>>())
        };
        assert_eq!([shown(0), shown(1), shown(2)], [(true, vec![]), (true, vec![]), (false, vec![1])]);
        assert!(keys.proof(None).is_none() && keys.proof(Some(3)).is_none());
        assert!(keys.key(None).unwrap().is_same(&Key::new(b"old").unwrap()));
    }

    #[test]
    fn without_a_key_of_the_listener_none_is_assumed() {
        let scratch = Scratch::new();
        let red = scratch.file("red", "red");
        let (keys, _) = load(&[], &groups(&[("red", &[&red])])).unwrap();
        assert!(keys.key(None).is_none() && !keys.has_own());
        assert!(keys.key(Some(0)).is_some());
        assert_eq!(keys.fingerprints(), "none");
        assert_eq!(keys.group_fingerprints(), Key::new(b"red").unwrap().fingerprint());
    }

    #[test]
    fn one_secret_is_one_key_and_that_is_said() {
        let scratch = Scratch::new();
        let (a, b, c) = (scratch.file("a", "same"), scratch.file("b", "same"), scratch.file("c", "same"));
        let (keys, notices) = load(&[a.clone(), a.clone()], &[]).unwrap();
        assert_eq!(keys.all().len(), 1);
        let text = notices[0].to_string();
        assert!(notices.len() == 1 && text.contains("the listener has the key"), "{text}");

        let (keys, notices) =
            load(std::slice::from_ref(&a), &groups(&[("red", &[&b]), ("blue", &[&c])])).unwrap();
        assert_eq!(keys.all().len(), 1);
        let proof = keys.proof(Some(0)).unwrap();
        assert!(proof.listener && proof.groups == std::collections::BTreeSet::from([0, 1]));
        let [notice] = &notices[..] else { panic!("{notices:?}") };
        let text = notice.to_string();
        for part in ["the listener (", "group red (", "group blue (", &proof.fingerprint]
            .into_iter()
            .chain([&a, &b, &c].map(|it| it.to_str().unwrap()))
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("same"));
    }

    #[test]
    fn the_fingerprint_of_a_key_in_use_is_not_made_again() {
        let scratch = Scratch::new();
        let (a, b) = (scratch.file("a", "one key"), scratch.file("b", "another"));
        let load = |in_use: &_, file: &PathBuf| {
            ListenerKeys::load_reusing_fingerprints(in_use, std::slice::from_ref(file), &[], RULE).unwrap().0
        };
        let in_use = FingerprintCache::default();
        let mut first = load(&in_use, &a);
        // Told from one that is made.
        first.proofs = vec![Arc::new(KeyProof { fingerprint: "known".into(), ..KeyProof::default() })];
        let first = Arc::new(first);
        in_use.add(&first);
        assert_eq!(load(&in_use, &a).fingerprints(), "known");
        assert_eq!(load(&in_use, &b).fingerprints(), Key::new(b"another").unwrap().fingerprint());
        drop(first);
        assert_eq!(load(&in_use, &a).fingerprints(), Key::new(b"one key").unwrap().fingerprint());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_group() {
        let scratch = Scratch::new();
        let missing = scratch.0.path().join("none");
        let error = load(&[], &groups(&[("red", &[&missing])])).unwrap_err().to_string();
        assert!(error.starts_with(&format!("group red: key file {}", missing.display())), "{error}");
        assert!(matches!(load(&[missing], &[]), Err(KeysError::Listener(_))));
    }
}
