// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of islands: which groups' requests to power off can wait for which.
//!
//! Reads key files, and nothing else. Must never show a byte of a key.

use std::collections::{BTreeMap, BTreeSet};

use fence_cli::key_file::{self, KeyRule};
use fence_config::{BackendKind, Config, Group};
use fence_core::access::possible_sources;
use fence_core::cluster::message::POSSIBLE_LIMIT;
use fence_core::domain::DomainId;
use fence_wire::KeyTag;

use super::finding::Finding;
use super::hosts::CheckedDomain;
use crate::listener::keys::{OpenKeys, shown_group};
use crate::util::{counted, first_names};

const CHECK: &str = "islands";

/// Reason why a group of several members may have one domain.
const SEVERAL_NAMES: &str = "its members may be names of one domain, which another machine fences (a name \
                             and a UUID; with the backend agent a plug and an alias): list its domains by \
                             UUID";

/// Most groups that a line shows.
const SHOWN: usize = 12;

/// Groups by their positions in the configuration.
type GroupPlaces = BTreeSet<usize>;

/// Says how many islands the groups make, and for each group which others its requests can wait for. `own`
/// are the domains of this host; none where they are not known as a whole.
pub(super) fn all(config: &Config, own: Option<&[CheckedDomain]>) -> Vec<Finding> {
    let Some(groups) = config.groups.as_deref() else {
        let text = "one: without groups every request to power off can wait for every other";
        return vec![Finding::ok(CHECK, "", text)];
    };
    // Without a member nothing can be fenced by it.
    let used: Vec<usize> = (0..groups.len()).filter(|it| !groups[*it].uuids.is_empty()).collect();
    if used.is_empty() {
        return Vec::new();
    }
    let rule = KeyRule::strict(config.daemon.strict_keys);
    let keys: Option<Vec<Vec<KeyTag>>> = groups.iter().map(|it| keys(it, rule)).collect();
    let Some(keys) = keys else {
        let next = "see the findings of the keys; run this as root";
        return vec![Finding::warning(CHECK, "", "not known: a key of a group can't be read", next)];
    };
    let open = OpenKeys::load(config, rule);
    let is_told = config.backends.iter().any(|it| it.kind() == BackendKind::Cpg);
    let of = |place: &usize| (*place, sources(*place, groups, &keys, open.as_ref(), is_told));
    let sources = used.iter().map(of).collect();
    lines(groups, &sources, own)
}

/// Returns the keys of a group; none where one can't be read.
fn keys(group: &Group, rule: KeyRule) -> Option<Vec<KeyTag>> {
    group.key_files.iter().map(|it| key_file::load(it, rule).ok().map(|it| it.key.tag())).collect()
}

/// Returns the groups whose members can be the source of a group's requests, or why any domain can. With
/// `is_told` other hosts order these requests, too, and have to be told of the members.
fn sources(
    place: usize,
    groups: &[Group],
    keys: &[Vec<KeyTag>],
    open: Option<&OpenKeys>,
    is_told: bool,
) -> Result<GroupPlaces, &'static str> {
    let group = &groups[place];
    if group.key_files.is_empty() {
        return Err("it has no key of its own (`key_file`)");
    }
    if !group.ips.is_empty() {
        return Err("its sources are addresses (`ip`)");
    }
    let mut all = GroupPlaces::new();
    for key in &keys[place] {
        let Some(open) = open.filter(|it| !it.has(key)) else {
            return Err("a listener may have its key, too");
        };
        let has_it = |it: &usize| keys[*it].iter().any(|other| other == key);
        let opened: GroupPlaces = (0..groups.len()).filter(has_it).collect();
        match possible_sources(groups, &opened, open.names_of_one) {
            Some(them) if is_told && them.count() > POSSIBLE_LIMIT => {
                return Err(
                    "its key is that of more domains than the hosts of the backend cpg tell each other",
                );
            }
            Some(_) => {}
            None if opened.len() == 1 && group.uuids.len() > 1 => return Err(SEVERAL_NAMES),
            None if opened.len() == 1 => return Err("it may have one domain, which another machine fences"),
            None => {
                return Err("another group with its key has addresses (`ip`), or both may have one domain");
            }
        }
        all.extend(opened);
    }
    Ok(all)
}

/// Returns the findings from the sources of each group.
fn lines(
    groups: &[Group],
    sources: &BTreeMap<usize, Result<GroupPlaces, &'static str>>,
    own: Option<&[CheckedDomain]>,
) -> Vec<Finding> {
    let title = |place: usize| shown_group(place, &groups[place]);
    let open: Vec<usize> = sources.iter().filter(|it| it.1.is_err()).map(|it| *it.0).collect();
    let waits = if open.is_empty() { waits(groups, sources, own) } else { BTreeMap::new() };
    let text = match (islands(&waits), sources.len()) {
        (_, 1) => "one: there is one group".to_owned(),
        _ if !open.is_empty() => "one: the requests of all groups can wait for each other".to_owned(),
        (1, _) => "one: each group can wait for others".to_owned(),
        (count, _) => format!("{count}: what hangs, or asks without end, in one holds up no other"),
    };
    let mut found = vec![Finding::ok(CHECK, "", text)];
    found.extend(sources.iter().map(|(place, of)| {
        let text = match of {
            Err(why) => format!("any domain may be the source of its requests: {why}"),
            Ok(_) if !open.is_empty() => {
                let names: Vec<_> = open.iter().map(|it| title(*it)).collect();
                format!("can wait for {}, of which any domain may be the source", first_names(&names, SHOWN))
            }
            Ok(_) => {
                let names: Vec<_> = waits[place].iter().map(|it| title(*it)).collect();
                match names.len() {
                    0 => "waits for no other group".to_owned(),
                    count => format!(
                        "can wait for {}: {}",
                        counted(count, "other group"),
                        first_names(&names, SHOWN)
                    ),
                }
            }
        };
        Finding::ok(CHECK, title(*place), text)
    }));
    found
}

/// Returns for each group the others with which it has a domain in common: as a target of both, or as a
/// target of one and a possible source of the other.
fn waits(
    groups: &[Group],
    sources: &BTreeMap<usize, Result<GroupPlaces, &'static str>>,
    own: Option<&[CheckedDomain]>,
) -> BTreeMap<usize, GroupPlaces> {
    let words: BTreeMap<usize, BTreeSet<String>> =
        sources.keys().map(|it| (*it, words(&groups[*it], own))).collect();
    let (mut targets, mut askers) =
        (BTreeMap::<&str, GroupPlaces>::new(), BTreeMap::<&str, GroupPlaces>::new());
    for (place, of) in sources {
        for word in &words[place] {
            targets.entry(word).or_default().insert(*place);
        }
        for word in of.iter().flatten().filter_map(|it| words.get(it)).flatten() {
            askers.entry(word).or_default().insert(*place);
        }
    }
    let mut waits: BTreeMap<usize, GroupPlaces> =
        sources.keys().map(|it| (*it, GroupPlaces::new())).collect();
    for (word, of) in &targets {
        for one in of {
            for other in of.iter().chain(askers.get(word).into_iter().flatten()).filter(|it| *it != one) {
                waits.entry(*one).or_default().insert(*other);
                waits.entry(*other).or_default().insert(*one);
            }
        }
    }
    waits
}

/// Returns the members of a group in each form that another group may name them by.
fn words(group: &Group, own: Option<&[CheckedDomain]>) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for member in &group.uuids {
        let uuid = DomainId::parse_any_dashes(member);
        words.insert(member.to_ascii_lowercase());
        words.extend(uuid.map(|it| it.to_string()));
        let is_it = |it: &&CheckedDomain| {
            it.name.eq_ignore_ascii_case(member) || uuid.is_some_and(|id| it.uuid == id)
        };
        for it in own.unwrap_or_default().iter().filter(is_it) {
            words.extend([it.name.to_ascii_lowercase(), it.uuid.to_string()]);
        }
    }
    words
}

/// Returns the number of sets of groups that wait for each other, directly or through others.
fn islands(waits: &BTreeMap<usize, GroupPlaces>) -> usize {
    let (mut seen, mut count) = (GroupPlaces::new(), 0);
    for first in waits.keys() {
        count += usize::from(!seen.contains(first));
        let mut next = vec![*first];
        while let Some(it) = next.pop() {
            if seen.insert(it) {
                next.extend(&waits[&it]);
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const UUID: &str = "11111111-2222-3333-4444-555555555555";

    /// The lines of `--check` for groups whose keys are the words after `key`. The listener's key is `all`.
    fn said(backend: &str, groups: &str, own: Option<&[CheckedDomain]>) -> Vec<String> {
        let scratch = tempfile::tempdir().unwrap();
        for key in ["all", "red", "blue", "green"] {
            let path = scratch.path().join(key);
            fs::write(&path, key).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let directory = scratch.path().display();
        let groups = groups.replace("key \"", &format!("key_file = \"{directory}/"));
        let text = format!(
            "fence_virtd {{ listener = \"multicast\"; backend = \"{backend}\"; }} \
             listeners {{ multicast {{ key_file = \"{directory}/all\"; }} }} \
             backends {{ {backend} {{ }} }} {groups}"
        );
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        all(&config, own).iter().map(|it| it.lines().trim_end().to_owned()).collect()
    }

    const RED: &str = "group { name = \"red\"; uuid = \"r1\"; uuid = \"r2\"; key \"red\"; }";
    const BLUE: &str = "group { name = \"blue\"; uuid = \"b1\"; uuid = \"b2\"; key \"blue\"; }";

    #[test]
    fn groups_with_keys_of_their_own_are_islands() {
        let found = said("libvirt", &format!("groups {{ {RED} {BLUE} group {{ }} }}"), None);
        assert_eq!(
            found,
            [
                "ok       islands: 2: what hangs, or asks without end, in one holds up no other",
                "ok       islands group red: waits for no other group",
                "ok       islands group blue: waits for no other group",
            ]
        );
    }

    #[test]
    fn a_domain_of_two_groups_joins_them() {
        let green = |member: &str| {
            let members = format!("uuid = \"{member}\"; uuid = \"g2\"; uuid = \"g3\";");
            let green = format!("group {{ name = \"green\"; {members} key \"green\"; }}");
            format!("groups {{ {RED} {BLUE} {green} }}")
        };
        let found = said("libvirt", &green("B1"), None);
        assert!(found[0].contains("islands: 2: "), "{found:?}");
        assert!(found[1].ends_with("group red: waits for no other group"), "{found:?}");
        assert!(found[2].ends_with("group blue: can wait for 1 other group: group green"), "{found:?}");
        assert!(found[3].ends_with("group green: can wait for 1 other group: group blue"), "{found:?}");
        // One lists its name, the other its UUID.
        let uuid = DomainId::parse_canonical(UUID).unwrap();
        let own = [CheckedDomain { uri: String::new(), uuid, name: "b1".to_owned(), is_on: true }];
        assert!(said("libvirt", &green(UUID), Some(&own))[0].contains("islands: 2: "));
        assert!(said("libvirt", &green(UUID), None)[0].contains("islands: 3: "));
    }

    #[test]
    fn one_key_of_two_groups_joins_them() {
        let found =
            said("libvirt", &format!("groups {{ {RED} {} }}", BLUE.replace("key \"blue", "key \"red")), None);
        assert!(found[0].contains("islands: one: each group can wait for others"), "{found:?}");
        assert!(found[1].ends_with("group red: can wait for 1 other group: group blue"), "{found:?}");
    }

    #[test]
    fn one_group_that_anybody_may_use_joins_all() {
        let by_address = RED.replace("key \"red\"", "key \"red\"; ip = \"10.0.0.1\"");
        for (group, why) in [
            ("group { uuid = \"c\"; uuid = \"d\"; }", "it has no key of its own (`key_file`)"),
            (
                "group { uuid = \"c\"; key \"green\"; }",
                "it may have one domain, which another machine fences",
            ),
            (&format!("group {{ uuid = \"c\"; uuid = \"{UUID}\"; key \"green\"; }}"), SEVERAL_NAMES),
            ("group { uuid = \"c\"; uuid = \"d\"; key \"all\"; }", "a listener may have its key, too"),
            (&by_address, "its sources are addresses (`ip`)"),
        ] {
            let found = said("libvirt", &format!("groups {{ {group} {BLUE} }}"), None);
            assert!(found[0].contains("islands: one: the requests of all groups"), "{found:?}");
            assert!(
                found[1].ends_with(&format!("any domain may be the source of its requests: {why}")),
                "{found:?}"
            );
            assert!(found[2].contains("group blue: can wait for group "), "{found:?}");
        }
    }

    #[test]
    fn no_groups_are_one_island_and_so_are_large_ones_with_the_backend_cpg() {
        assert!(said("libvirt", "", None)[0].contains("one: without groups"));
        let large: String = (0..=POSSIBLE_LIMIT).map(|it| format!("uuid = \"x{it}\"; ")).collect();
        let large = format!("groups {{ {RED} group {{ {large} key \"blue\"; }} }}");
        assert!(said("libvirt", &large, None)[0].contains("islands: 2: "));
        let found = said("cpg", &large, None);
        assert!(found[0].contains("one: ") && found[2].contains("more domains than the hosts"), "{found:?}");
        assert!(said("cpg", &format!("groups {{ {RED} {BLUE} }}"), None)[0].contains("islands: 2: "));
        assert_eq!(said("libvirt", "groups { }", None), [""; 0]);
        let one = said("libvirt", &format!("groups {{ {RED} }}"), None);
        assert!(one[0].contains("one: there is one group") && one[1].ends_with("no other group"), "{one:?}");
    }

    #[test]
    fn a_key_that_cannot_be_read_is_said() {
        let found = said("libvirt", "groups { group { uuid = \"c\"; key \"missing\"; } }", None);
        assert!(found[0].contains("not known: a key of a group can't be read"), "{found:?}");
    }
}
