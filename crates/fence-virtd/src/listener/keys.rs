// SPDX-License-Identifier: GPL-2.0-or-later
//! The keys of a listener: its own, and those of the groups.
//!
//! Owns the loaded keys; runs on the caller's task. A listener starts only if all keys can be loaded. A key
//! that stands in several files is one key: the key of a packet's hash decides what its holder may fence, and
//! that must not depend on the order of the files. Nothing here may show a byte of a key.

use fence_core::access::{KeyProof, possible_sources};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use fence_cli::key_file::{self, ExposedKey, KeyFileError, KeyRule};
use fence_cli::shown as shown_path;
use fence_config::{Config, Group};
use fence_wire::{Key, KeyTag, escaped};

use crate::util::locks::lock;
use fence_core::access::group_title;
use fence_core::arbiter::PossibleSources;

/// Number of keys from which on their fingerprints are made only for those who ask for one of them: each
/// takes some ten milliseconds.
pub(crate) const MANY_KEYS: usize = 16;
/// Keys of groups that name one address, as many as are tried first for it.
const MAX_OF_ADDRESS: usize = 8;

/// Every key that a listener accepts, the listener's own first.
#[derive(Debug, Default)]
pub(crate) struct ListenerKeys {
    keys: Vec<Key>,
    proofs: Vec<Arc<KeyProof>>,
    tags: Vec<KeyTag>,
    places: HashMap<KeyTag, usize>,
    /// Places of the keys whose groups name an address.
    of_addresses: HashMap<IpAddr, Vec<usize>>,
    /// Number of the listener's own keys.
    own: usize,
}

/// Keys in use. What was made of a key once, its fingerprint and the states of its hashes, serves all
/// listeners and reloads. Keeps no key alive: a key that no listener and no request uses is forgotten.
#[derive(Debug, Default)]
pub(crate) struct KeysInUse(Mutex<Vec<Weak<ListenerKeys>>>);

/// Keys of all listeners of the configuration. Any domain may have them: what such a key opens for a listener
/// that has it as a group's alone comes from anybody, too.
#[derive(Debug)]
pub(crate) struct OpenKeys {
    tags: HashSet<KeyTag>,
    /// Number of names that one domain may have: a machine of the agent backend has a plug and an alias.
    pub(crate) names_of_one: usize,
}

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
        open: Option<&OpenKeys>,
    ) -> Result<(Self, Vec<KeyNotice>), KeysError> {
        Self::load_reusing(&KeysInUse::default(), files, groups, rule, open)
    }

    /// Loads every key file of a listener and of all groups; a key that is in use is not made anew. `open`
    /// are the keys of all listeners; none where they are not known: any key may be one.
    pub(crate) fn load_reusing(
        in_use: &KeysInUse,
        files: &[PathBuf],
        groups: &[Group],
        rule: KeyRule,
        open: Option<&OpenKeys>,
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
        let sources = |tag: &KeyTag, opened: &_| {
            let open = open.filter(|it| !it.has(tag))?;
            possible_sources(groups, opened, open.names_of_one).map(Arc::new)
        };
        let (mut keys, notices) = merge(loaded, name, &in_use.all(), sources);
        keys.note_addresses(groups);
        exposed.extend(notices);
        Ok((keys, exposed))
    }

    /// Returns a listener's keys without files.
    #[cfg(test)]
    pub(crate) fn of(keys: impl Iterator<Item = Key>) -> Self {
        let held = |key| HeldKey { holder: KeyHolder::Listener, file: Path::new("/k"), key };
        merge(keys.map(held).collect(), |_| String::new(), &[], |_, _| None).0
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

    /// Returns the tag of the key that made a packet's hash, by its index.
    pub(crate) fn tag(&self, index: Option<usize>) -> Option<KeyTag> {
        self.tags.get(index?).copied()
    }

    /// Returns the tags of all keys.
    pub(crate) fn tags(&self) -> &[KeyTag] {
        &self.tags
    }

    /// Returns the index of the key with this tag.
    pub(crate) fn place_of(&self, tag: &KeyTag) -> Option<usize> {
        self.places.get(tag).copied()
    }

    /// Returns the indices of some keys whose groups name this address.
    pub(crate) fn of_address(&self, address: IpAddr) -> &[usize] {
        self.of_addresses.get(&address.to_canonical()).map_or(&[], Vec::as_slice)
    }

    fn note_addresses(&mut self, groups: &[Group]) {
        for (place, proof) in self.proofs.iter().enumerate() {
            let named = proof.groups.iter().filter_map(|it| groups.get(*it)).flat_map(|it| &it.ips);
            for address in named.filter_map(|it| it.parse::<IpAddr>().ok()) {
                let of_address = self.of_addresses.entry(address.to_canonical()).or_default();
                if of_address.len() < MAX_OF_ADDRESS && !of_address.contains(&place) {
                    of_address.push(place);
                }
            }
        }
    }

    /// Returns true if the key with this index is one of the listener's own.
    pub(crate) fn is_own(&self, index: usize) -> bool {
        index < self.own
    }

    /// Returns true if the listener has a key of its own.
    pub(crate) fn has_own(&self) -> bool {
        self.own > 0
    }

    /// Returns the fingerprints of the listener's own keys, for the log.
    pub(crate) fn fingerprints(&self) -> String {
        shown(self.proofs[..self.own].iter())
    }

    /// Returns the fingerprints of the groups' keys, for the log.
    pub(crate) fn group_fingerprints(&self) -> String {
        shown(self.proofs.iter().filter(|it| !it.groups.is_empty()))
    }
}

impl OpenKeys {
    /// Loads the keys of all listeners; none where one can't be read, and a listener may have it later.
    pub(crate) fn load(config: &Config, rule: KeyRule) -> Option<Self> {
        let is_spared = config.groups.as_deref().is_some_and(have_keys);
        let mut tags = HashSet::new();
        for own in config.listeners.iter().filter_map(|it| it.keys()) {
            for file in &own.key_files {
                match key_file::load(file, rule) {
                    Ok(it) => drop(tags.insert(it.key.tag())),
                    Err(KeyFileError::Missing { .. }) if is_spared && !own.key_files_named => {}
                    Err(_) => return None,
                }
            }
        }
        let has_agents = config.backends.iter().any(|it| matches!(it, fence_config::Backend::Agent(_)));
        Some(Self { tags, names_of_one: if has_agents { 2 } else { 1 } })
    }

    /// Returns whether the key with this tag is one of them.
    pub(crate) fn has(&self, tag: &KeyTag) -> bool {
        self.tags.contains(tag)
    }
}

impl KeysInUse {
    /// Enters the keys of a listener.
    pub(crate) fn add(&self, keys: &Arc<ListenerKeys>) {
        let mut all = lock(&self.0);
        all.retain(|it| it.strong_count() > 0);
        all.push(Arc::downgrade(keys));
    }

    /// Returns the keys of all listeners.
    pub(crate) fn all(&self) -> Vec<Arc<ListenerKeys>> {
        lock(&self.0).iter().filter_map(Weak::upgrade).collect()
    }
}

/// Merges equal keys into one, and returns the duplicates as notices. `name` gives the text of a holder. A
/// key that is in use is taken from there.
fn merge(
    loaded: Vec<HeldKey<'_>>,
    name: impl Fn(KeyHolder) -> String,
    in_use: &[Arc<ListenerKeys>],
    sources_of: impl Fn(&KeyTag, &BTreeSet<usize>) -> Option<Arc<PossibleSources>>,
) -> (ListenerKeys, Vec<KeyNotice>) {
    let (mut keys, mut all_uses) = (ListenerKeys::default(), Vec::<Vec<(KeyHolder, &Path)>>::new());
    for HeldKey { holder, file, key } in loaded {
        let tag = key.tag();
        if let Some(place) = keys.place_of(&tag) {
            all_uses[place].push((holder, file));
            continue;
        }
        let same = in_use.iter().find_map(|it| it.keys.get(it.place_of(&tag)?));
        keys.places.insert(tag, keys.keys.len());
        keys.tags.push(tag);
        keys.keys.push(same.cloned().unwrap_or(key));
        all_uses.push(vec![(holder, file)]);
    }
    let mut notices = Vec::new();
    for ((key, tag), uses) in keys.keys.iter().zip(&keys.tags).zip(all_uses) {
        if uses.len() > 1 {
            notices.extend(duplicate_key_notices(&key.fingerprint(), &uses, &name));
        }
        let listener = uses.iter().any(|(holder, _)| *holder == KeyHolder::Listener);
        let groups = uses.iter().filter_map(|(holder, _)| match holder {
            KeyHolder::Group(place) => Some(*place),
            KeyHolder::Listener => None,
        });
        let groups = groups.collect();
        let sources = sources_of(tag, &groups).filter(|_| !listener);
        keys.proofs.push(Arc::new(KeyProof { key: key.clone(), listener, groups, sources }));
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
    let files =
        |of: KeyHolder| list(uses.iter().filter(|(it, _)| *it == of).map(|(_, file)| shown_path(file)));
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

/// Returns the fingerprints of keys for the log; of many keys only their number.
fn shown<'a>(proofs: impl Iterator<Item = &'a Arc<KeyProof>> + Clone) -> String {
    let count = proofs.clone().count();
    if count > MANY_KEYS {
        return format!("{count} keys");
    }
    list(proofs.map(|it| it.key.fingerprint()))
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

/// Returns true if every group has keys of its own.
pub(crate) fn have_keys(groups: &[Group]) -> bool {
    !groups.is_empty() && groups.iter().all(|it| !it.key_files.is_empty())
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
        ListenerKeys::load(files, groups, RULE, Some(&OpenKeys { tags: HashSet::new(), names_of_one: 1 }))
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
        assert!(proof.listener && proof.groups == BTreeSet::from([0, 1]));
        let [notice] = &notices[..] else { panic!("{notices:?}") };
        let text = notice.to_string();
        for part in ["the listener (", "group red (", "group blue (", &proof.key.fingerprint()]
            .into_iter()
            .chain([&a, &b, &c].map(|it| it.to_str().unwrap()))
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("same"));
    }

    #[test]
    fn a_key_in_use_is_not_made_anew_and_none_is_kept_alive() {
        let scratch = Scratch::new();
        let (a, b) = (scratch.file("a", "one key"), scratch.file("b", "another"));
        let load = |in_use: &_, files: &[&PathBuf]| {
            let files: Vec<_> = files.iter().copied().cloned().collect();
            ListenerKeys::load_reusing(in_use, &files, &[], RULE, None).unwrap().0
        };
        let in_use = KeysInUse::default();
        let first = Arc::new(load(&in_use, &[&a]));
        in_use.add(&first);
        let second = load(&in_use, &[&b, &a]);
        assert!(second.keys[1].shares_memory(&first.keys[0]));
        assert!(!second.keys[0].shares_memory(&first.keys[0]));
        drop(first);
        assert!(in_use.all().is_empty());
        assert!(!load(&in_use, &[&a]).keys[0].shares_memory(&second.keys[1]));
    }

    /// Loading and logging a thousand keys makes no fingerprint at all.
    #[test]
    fn the_fingerprints_of_many_keys_are_not_made_before_one_is_shown() {
        let scratch = Scratch::new();
        let files: Vec<_> =
            (0..1000).map(|it| scratch.file(&format!("k{it}"), &format!("key {it}"))).collect();
        let blocks: Vec<_> = files.iter().map(std::slice::from_ref).collect();
        let names: Vec<_> = (0..1000).map(|it| format!("g{it}")).collect();
        let refs: Vec<Vec<&PathBuf>> = blocks.iter().map(|it| it.iter().collect()).collect();
        let all: Vec<(&str, &[&PathBuf])> =
            names.iter().zip(&refs).map(|(name, files)| (name.as_str(), files.as_slice())).collect();
        let (keys, notices) = load(&[], &groups(&all)).unwrap();
        assert!(notices.is_empty());
        assert_eq!((keys.fingerprints().as_str(), keys.group_fingerprints().as_str()), ("none", "1000 keys"));
        assert!(keys.all().iter().all(|it| !it.has_fingerprint()));
        let proof = keys.proof(Some(7)).unwrap();
        assert_eq!(proof.key.fingerprint(), Key::new(b"key 7").unwrap().fingerprint());
        assert_eq!(keys.all().iter().filter(|it| it.has_fingerprint()).count(), 1);
    }

    #[test]
    fn an_address_leads_to_the_keys_of_its_groups() {
        let scratch = Scratch::new();
        let (red, blue) = (scratch.file("red", "red"), scratch.file("blue", "blue"));
        let mut groups = groups(&[("red", &[&red]), ("blue", &[&blue])]);
        groups[1].ips = vec!["10.0.0.1".to_owned(), "7".to_owned()];
        let (keys, _) = load(&[], &groups).unwrap();
        assert_eq!(keys.of_address("10.0.0.1".parse().unwrap()), [1]);
        assert_eq!(keys.of_address("::ffff:10.0.0.1".parse().unwrap()), [1]);
        assert!(keys.of_address("10.0.0.2".parse().unwrap()).is_empty());
        assert_eq!(keys.place_of(&keys.tag(Some(1)).unwrap()), Some(1));
    }

    #[test]
    fn a_key_of_groups_comes_from_their_members_unless_a_listener_has_it_too() {
        let scratch = Scratch::new();
        let (all, red, blue) =
            (scratch.file("all", "all"), scratch.file("red", "red"), scratch.file("blue", "blue"));
        let text = format!(
            "fence_virtd {{ listener = \"multicast, tcp\"; backend = \"libvirt\"; }} \
             listeners {{ multicast {{ key_file = \"{}\"; }} tcp {{ key_file = \"{}\"; }} }} \
             backends {{ libvirt {{ }} }} \
             groups {{ group {{ uuid = \"a\"; uuid = \"b\"; key_file = \"{}\"; }} \
             group {{ uuid = \"c\"; uuid = \"d\"; key_file = \"{}\"; }} }}",
            all.display(),
            blue.display(),
            red.display(),
            blue.display()
        );
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        let groups = config.groups.as_deref().unwrap();
        let open = OpenKeys::load(&config, RULE);
        let are_known = |open: Option<&OpenKeys>| {
            let (keys, _) = ListenerKeys::load(std::slice::from_ref(&all), groups, RULE, open).unwrap();
            [0, 1, 2].map(|it| keys.proof(Some(it)).unwrap().sources.is_some())
        };
        // The listener's own; red's; blue's, which the other listener has.
        assert_eq!(are_known(open.as_ref()), [false, true, false]);
        assert_eq!(are_known(None), [false, false, false]);
        fs::remove_file(&blue).unwrap();
        assert!(OpenKeys::load(&config, RULE).is_none());
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
