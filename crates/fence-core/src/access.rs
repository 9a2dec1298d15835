// SPDX-License-Identifier: GPL-2.0-or-later
//! Access rules: the `groups` of the configuration.
//!
//! Owns the decision whether a source may fence a domain. One group must hold both, and the key that the
//! source has proved must open that group. Without a `groups` block everybody who has the key may fence
//! everything. Runs on the caller's task; must never do I/O.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use fence_config::Group;
use fence_wire::Key;

use crate::arbiter::PossibleSources;
use crate::domain::DomainId;

/// Access rules, read once.
#[derive(Debug)]
pub struct AccessRules {
    groups: Option<Vec<GroupRule>>,
}

/// Proved facts of a source. Every part is proved or absent, never guessed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Address that the request came from, or that the call-back reached.
    pub ip: Option<IpAddr>,
    /// Context id on vsock.
    pub cid: Option<u32>,
    /// UUID of the source's domain.
    pub domain: Option<DomainId>,
    /// Name of the source's domain.
    pub name: Option<String>,
    /// The domain's MAC address has other addresses as well: the domain may answer for other machines.
    pub answers_for_others: bool,
}

/// Object of a request, as far as it was found.
#[derive(Clone, Copy, Debug)]
pub enum AccessSubject<'a> {
    /// Domain that was located.
    Domain {
        /// UUID of the domain.
        uuid: DomainId,
        /// Name of the domain.
        name: &'a str,
    },
    /// Target for which no domain was located.
    Text(&'a str),
}

/// Decision about one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccessDecision {
    /// Allowed without groups, by the listener's key.
    AllowedByKey,
    /// Allowed by this group.
    AllowedBy(String),
    /// Denied by all groups; the rule says what is missing.
    Denied(Denial),
}

/// Rule that denied a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denial {
    /// The source is in no group that its key opens.
    UnknownSource,
    /// The source is in groups, and none of them holds the domain.
    NotInItsGroups,
    /// This group holds the domain, perhaps the source too, and has keys of its own. The source has proved
    /// none of them.
    NotItsKey(String),
    /// This group holds the domain and has no key of its own, so the listener's key opens it. The source has
    /// proved another group's key.
    NotTheListenersKey(String),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSource => f.write_str("the source is in no group"),
            Self::NotInItsGroups => f.write_str("no group of the source has the domain"),
            Self::NotItsKey(group) => {
                write!(
                    f,
                    "the domain is in {group}, which has a key of its own, and the source has not shown it"
                )
            }
            Self::NotTheListenersKey(group) => {
                write!(
                    f,
                    "the domain is in {group}, which asks for the listener's key, \
                     and the source has shown another"
                )
            }
        }
    }
}

#[derive(Debug)]
struct GroupRule {
    name: String,
    title: String,
    /// The group has keys of its own, without which nobody may use it.
    own_key: bool,
    ips: Vec<IpAddr>,
    cids: Vec<u32>,
    /// Names and UUIDs of the domains, as written.
    members: HashSet<String>,
    /// The same in small letters: the C program compares without regard to case.
    small_members: HashSet<String>,
    /// Members of all groups, as written. A domain that one of them names exactly is no other's.
    exact: Arc<HashSet<String>>,
    /// UUIDs among the members. A list asks for each domain of the host. With a walk through the members a
    /// group of a thousand would keep a worker from other requests for a second.
    uuids: HashSet<DomainId>,
}

/// Returns the title of a group in messages, from its position in the configuration.
pub fn group_title(place: usize, group: &Group) -> String {
    match &group.name {
        Some(name) => format!("group {name}"),
        None => format!("group {}", place + 1),
    }
}

/// Returns the domains that can have a key which opens these groups, by their positions, and nothing else:
/// the members of the groups. None where others may have it: then any domain can.
///
/// A group that lists addresses has its sources there, and its members may be none of them. A group of one
/// has a member to fence, and its key is in other hands: nobody fences itself. So has one that lists a domain
/// by all its names, of which one domain has up to `names_of_one`.
///
/// Whoever else has the key is taken for a member: a machine that is none must not have it.
pub fn possible_sources(
    groups: &[Group],
    opened: &BTreeSet<usize>,
    names_of_one: usize,
) -> Option<PossibleSources> {
    let opened = opened.iter().map(|place| groups.get(*place)).collect::<Option<Vec<_>>>()?;
    if opened.iter().any(|it| it.key_files.is_empty() || !it.ips.is_empty()) {
        return None;
    }
    let members = || opened.iter().flat_map(|it| &it.uuids);
    let uuids: BTreeSet<_> = members().filter_map(|it| DomainId::parse_any_dashes(it)).collect();
    let is_name = |it: &&String| DomainId::parse_any_dashes(it).is_none();
    let names: BTreeSet<_> = members().filter(is_name).map(|it| it.to_ascii_lowercase()).collect();
    // Names and a UUID may be those of one domain.
    let are_several = uuids.len() > 1 || names.len() > names_of_one;
    are_several.then(|| PossibleSources::new(uuids.iter().map(ToString::to_string), members()))
}

impl AccessRules {
    /// Reads the groups of the configuration.
    pub fn new(groups: Option<&[Group]>) -> Self {
        let members = groups.unwrap_or_default().iter().flat_map(|it| it.uuids.iter().cloned());
        let exact: Arc<HashSet<String>> = Arc::new(members.collect());
        let rule = |(place, group): (usize, &Group)| GroupRule {
            name: group.name.clone().unwrap_or_else(|| format!("group {}", place + 1)),
            title: group_title(place, group),
            own_key: !group.key_files.is_empty(),
            ips: group.ips.iter().filter_map(|it| it.parse().ok()).collect(),
            cids: group.ips.iter().filter_map(|it| it.parse().ok()).collect(),
            members: group.uuids.iter().cloned().collect(),
            small_members: group.uuids.iter().map(|it| it.to_ascii_lowercase()).collect(),
            exact: Arc::clone(&exact),
            uuids: group.uuids.iter().filter_map(|it| DomainId::parse_any_dashes(it)).collect(),
        };
        Self { groups: groups.map(|all| all.iter().enumerate().map(rule).collect()) }
    }

    /// Decides whether the source may fence the subject. `key` is the key that the source has proved; none
    /// where it has proved no key (serial lines, packets without a hash).
    pub fn decide(
        &self,
        source: &Identity,
        key: Option<&KeyProof>,
        subject: AccessSubject<'_>,
    ) -> AccessDecision {
        let Some(groups) = &self.groups else { return AccessDecision::AllowedByKey };
        let of_source =
            || groups.iter().enumerate().filter(|(place, it)| it.opens(*place, key) && it.has_source(source));
        if let Some((_, group)) = of_source().find(|(_, it)| it.has_subject(subject)) {
            return AccessDecision::AllowedBy(group.name.clone());
        }
        // Nothing is allowed from here on: the rest only finds the rule to name.
        let closed = |(place, it): &(usize, &GroupRule)| !it.opens(*place, key) && it.has_subject(subject);
        AccessDecision::Denied(match groups.iter().enumerate().find(closed) {
            Some((_, group)) if group.own_key => Denial::NotItsKey(group.title.clone()),
            Some((_, group)) => Denial::NotTheListenersKey(group.title.clone()),
            None if of_source().next().is_some() => Denial::NotInItsGroups,
            None => Denial::UnknownSource,
        })
    }

    /// Returns true where a list for this source shows the domain.
    pub fn shows(&self, source: &Identity, key: Option<&KeyProof>, uuid: DomainId, name: &str) -> bool {
        !matches!(self.decide(source, key, AccessSubject::Domain { uuid, name }), AccessDecision::Denied(_))
    }
}

impl GroupRule {
    /// Returns true where the proved key opens this group, which stands at `place`. A group's key opens that
    /// group alone; without any key the group is as open as the listener.
    fn opens(&self, place: usize, key: Option<&KeyProof>) -> bool {
        match (self.own_key, key) {
            (true, Some(key)) => key.groups.contains(&place),
            (true, None) => false,
            (false, Some(key)) => key.listener,
            (false, None) => true,
        }
    }

    /// Returns true where the group holds the source. Called only where the key fits.
    fn has_source(&self, source: &Identity) -> bool {
        let ip = source.ip.map(|it| it.to_canonical());
        if ip.is_some_and(|it| self.ips.iter().any(|mine| mine.to_canonical() == it))
            || source.cid.is_some_and(|it| self.cids.contains(&it))
        {
            return true;
        }
        let by_address = !(self.ips.is_empty() && self.cids.is_empty());
        // The key alone names the sources of such a group.
        if self.own_key && !by_address {
            return true;
        }
        // A group that lists addresses means these sources and no others; its domains are only targets for
        // sources that come by a network. So old files keep their meaning. On a serial line there is no other
        // name.
        let by_network = source.ip.is_some() || source.cid.is_some();
        if by_network && by_address {
            return false;
        }
        source.domain.is_some_and(|it| self.uuids.contains(&it))
            || source.name.as_ref().is_some_and(|it| self.has_name(it))
    }

    fn has_subject(&self, subject: AccessSubject<'_>) -> bool {
        match subject {
            AccessSubject::Domain { uuid, name } => self.uuids.contains(&uuid) || self.has_name(name),
            AccessSubject::Text(text) => self.has_name(text) || self.has_uuid(text),
        }
    }

    /// Returns whether a member is this name, in any case, unless a group has the very same name.
    fn has_name(&self, name: &str) -> bool {
        self.members.contains(name)
            || (!self.exact.contains(name) && self.small_members.contains(&name.to_ascii_lowercase()))
    }

    fn has_uuid(&self, text: &str) -> bool {
        DomainId::parse_any_dashes(text).is_some_and(|it| self.uuids.contains(&it))
    }
}

/// Proof that a peer has one of the keys.
#[derive(Debug)]
pub struct KeyProof {
    /// The key, of which people are shown the fingerprint. That is slow to make, so it is not made before.
    pub key: Key,
    /// The key is one of the listener's: it opens every group that has none of its own.
    pub listener: bool,
    /// Groups that have this key, by their positions in the configuration.
    pub groups: BTreeSet<usize>,
    /// Domains that can have this key; none where any can.
    pub sources: Option<Arc<PossibleSources>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DomainId = DomainId::from_bytes([0x11; 16]);
    const B: DomainId = DomainId::from_bytes([0x22; 16]);
    /// Without keys of groups it makes no difference whether the listener's was shown: old files know one
    /// key.
    const OWN: Option<&KeyProof> = None;

    fn access(groups: &str) -> AccessRules {
        AccessRules::new(Some(&groups_of(groups)))
    }

    fn groups_of(groups: &str) -> Vec<Group> {
        let file = format!(
            "fence_virtd {{ listener = \"multicast\"; backend = \"libvirt\"; }}\ngroups {{ {groups} }}"
        );
        fence_config::load(file.as_bytes()).config.unwrap().groups.unwrap()
    }

    fn from_ip(text: &str) -> Identity {
        Identity { ip: Some(text.parse().unwrap()), ..Identity::default() }
    }

    #[test]
    fn without_groups_the_key_decides() {
        let subject = AccessSubject::Domain { uuid: A, name: "a" };
        assert_eq!(
            AccessRules::new(None).decide(&Identity::default(), OWN, subject),
            AccessDecision::AllowedByKey
        );
    }

    #[test]
    fn an_empty_group_and_no_group_allow_nobody() {
        for groups in ["", "group { }", "group { ip = \"10.0.0.1\"; }", "group { uuid = \"a\"; }"] {
            let decision = access(groups).decide(
                &from_ip("10.0.0.1"),
                OWN,
                AccessSubject::Domain { uuid: A, name: "a" },
            );
            assert!(matches!(decision, AccessDecision::Denied(_)), "{groups}: {decision:?}");
        }
    }

    #[test]
    fn both_must_be_in_one_group() {
        let rules = access(
            "group { name = \"red\"; ip = \"10.0.0.1\"; uuid = \"a\"; } \
             group { ip = \"10.0.0.2\"; uuid = \"b\"; }",
        );
        let one = from_ip("10.0.0.1");
        assert_eq!(
            rules.decide(&one, OWN, AccessSubject::Domain { uuid: A, name: "a" }),
            AccessDecision::AllowedBy("red".into())
        );
        assert_eq!(
            rules.decide(&one, OWN, AccessSubject::Domain { uuid: B, name: "b" }),
            AccessDecision::Denied(Denial::NotInItsGroups)
        );
        assert_eq!(
            rules.decide(&from_ip("10.0.0.3"), OWN, AccessSubject::Domain { uuid: A, name: "a" }),
            AccessDecision::Denied(Denial::UnknownSource)
        );
    }

    #[test]
    fn members_are_names_or_uuids_in_any_form() {
        for member in ["a", &A.to_string(), "11111111111111111111111111111111"] {
            let rules = access(&format!("group {{ ip = \"10.0.0.1\"; uuid = \"{member}\"; }}"));
            assert!(rules.shows(&from_ip("10.0.0.1"), OWN, A, "a"), "{member}");
            assert!(!rules.shows(&from_ip("10.0.0.1"), OWN, B, "b"), "{member}");
        }
    }

    /// As the C program compares; but a name that some group has exactly is no other's.
    #[test]
    fn names_count_in_any_case_unless_a_group_has_the_very_name() {
        let rules = access("group { ip = \"10.0.0.1\"; uuid = \"VM1\"; uuid = \"Web2\"; uuid = \"db\"; }");
        let one = from_ip("10.0.0.1");
        for name in ["vm1", "VM1", "Vm1", "web2", "WEB2", "Web2", "db", "DB"] {
            assert!(rules.shows(&one, OWN, A, name), "{name}");
        }
        assert!(!rules.shows(&one, OWN, A, "vm"));
        let rules = access(
            "group { ip = \"10.0.0.1\"; uuid = \"WEB\"; } group { ip = \"10.0.0.2\"; uuid = \"web\"; }",
        );
        let two = from_ip("10.0.0.2");
        assert!(rules.shows(&one, OWN, A, "WEB") && rules.shows(&two, OWN, B, "web"));
        assert!(!rules.shows(&one, OWN, B, "web") && !rules.shows(&two, OWN, A, "WEB"));
    }

    #[test]
    fn a_source_is_an_address_a_cid_or_a_domain() {
        let rules =
            access(&format!("group {{ ip = \"fd00::1\"; ip = \"7\"; uuid = \"{A}\"; uuid = \"b\"; }}"));
        let mapped = access("group { ip = \"10.0.0.1\"; uuid = \"b\"; }");
        let target = AccessSubject::Domain { uuid: B, name: "b" };
        let allowed = |rules: &AccessRules, it: &Identity| {
            matches!(rules.decide(it, OWN, target), AccessDecision::AllowedBy(_))
        };
        assert!(allowed(&rules, &from_ip("fd00:0::1")));
        assert!(allowed(&rules, &Identity { cid: Some(7), ..Identity::default() }));
        assert!(!allowed(&rules, &Identity { cid: Some(8), ..Identity::default() }));
        assert!(allowed(&rules, &Identity { domain: Some(A), ..Identity::default() }));
        let called =
            |name: &str| Identity { domain: Some(B), name: Some(name.into()), ..Identity::default() };
        assert!(!allowed(&rules, &called("c")));
        assert!(allowed(&rules, &called("b")), "a group may name it, too");
        assert!(allowed(&mapped, &from_ip("::ffff:10.0.0.1")));
    }

    #[test]
    fn domains_of_a_group_with_addresses_are_only_targets_on_a_network() {
        let by_address = access("group { ip = \"10.0.0.1\"; uuid = \"b\"; uuid = \"c\"; }");
        let by_domain = access("group { uuid = \"b\"; uuid = \"c\"; }");
        let b = Identity { domain: Some(B), name: Some("b".into()), ..from_ip("10.0.0.2") };
        let on_a_line = Identity { ip: None, ..b.clone() };
        let c = AccessSubject::Domain { uuid: A, name: "c" };
        assert_eq!(by_address.decide(&b, OWN, c), AccessDecision::Denied(Denial::UnknownSource));
        assert!(matches!(by_address.decide(&on_a_line, OWN, c), AccessDecision::AllowedBy(_)));
        assert!(matches!(by_domain.decide(&b, OWN, c), AccessDecision::AllowedBy(_)));
    }

    fn some_key() -> Key {
        Key::new(b"a key").unwrap()
    }

    #[test]
    fn the_key_of_groups_comes_from_their_members() {
        let groups = format!(
            "group {{ uuid = \"{A}\"; uuid = \"Web\"; uuid = \"db\"; key_file = \"/red\"; }} \
             group {{ uuid = \"b\"; uuid = \"22222222222222222222222222222222\"; uuid = \"d\"; \
             key_file = \"/blue\"; }} \
             group {{ uuid = \"c\"; uuid = \"e\"; key_file = \"/green\"; ip = \"10.0.0.1\"; }} \
             group {{ uuid = \"c\"; uuid = \"e\"; }} group {{ key_file = \"/nobody\"; }} \
             group {{ uuid = \"c\"; key_file = \"/one\"; }} group {{ uuid = \"f\"; key_file = \"/one\"; }} \
             group {{ uuid = \"c\"; uuid = \"{A}\"; key_file = \"/name-and-uuid\"; }} \
             group {{ uuid = \"c\"; uuid = \"C\"; key_file = \"/twice\"; }}"
        );
        let groups = groups_of(&groups);
        let sources = |opened: &[usize]| possible_sources(&groups, &opened.iter().copied().collect(), 1);
        let (a, b) = (A.to_string(), B.to_string());
        let has = |it: &PossibleSources, uuid: &str, name: &str| it.hold(uuid, Some(&name.into()));
        let red = sources(&[0]).unwrap();
        assert!(has(&red, &a, "x") && has(&red, &b, "wEB") && !has(&red, &b, "b"));
        // The name of one may be the UUID of another.
        assert!(has(&red, &b, &a));
        let blue = sources(&[1]).unwrap();
        assert!(has(&blue, &b, "x") && has(&blue, &a, "B") && !has(&blue, &a, "x"));
        let both = sources(&[0, 1]).unwrap();
        assert!(has(&both, &a, "x") && has(&both, &b, "x") && !has(&both, "other", "c"));
        // By address, by the listener's key, nobody, groups of one, a domain by both its names, a key of
        // other rules.
        for open in [&[][..], &[2], &[0, 2], &[3], &[0, 3], &[4], &[5], &[6], &[7], &[8], &[9], &[0, 9]] {
            assert_eq!(sources(open), None, "{open:?}");
        }
        assert!(sources(&[5, 6]).is_some() && sources(&[0, 5]).is_some(), "each key opens two");
        // Where a domain has two names, two names may be one domain.
        let of_agents = |opened: &[usize]| possible_sources(&groups, &opened.iter().copied().collect(), 2);
        assert!(of_agents(&[5, 6]).is_none() && of_agents(&[0]).is_none() && of_agents(&[0, 5]).is_some());
    }

    fn key(listener: bool, groups: &[usize]) -> KeyProof {
        let groups = groups.iter().copied().collect();
        KeyProof { key: some_key(), listener, groups, sources: None }
    }

    const TWO_CLUSTERS: &str = r#"
        group { name = "red"; uuid = "a"; uuid = "shared"; key_file = "/red"; }
        group { name = "blue"; uuid = "b"; uuid = "shared"; ip = "10.0.0.1"; key_file = "/blue"; }
        group { name = "plain"; uuid = "c"; ip = "10.0.0.1"; }"#;

    fn about(name: &str) -> AccessSubject<'_> {
        AccessSubject::Domain { uuid: DomainId::from_bytes([0x33; 16]), name }
    }

    #[test]
    fn a_key_is_the_name_of_its_group() {
        let (rules, red) = (access(TWO_CLUSTERS), key(false, &[0]));
        let anywhere = [Identity::default(), from_ip("10.0.0.1"), from_ip("10.9.9.9")];
        for source in &anywhere {
            let decide = |name| rules.decide(source, Some(&red), about(name));
            assert_eq!(decide("a"), AccessDecision::AllowedBy("red".into()));
            assert_eq!(decide("shared"), AccessDecision::AllowedBy("red".into()));
            assert_eq!(decide("b"), AccessDecision::Denied(Denial::NotItsKey("group blue".into())));
            assert_eq!(decide("c"), AccessDecision::Denied(Denial::NotTheListenersKey("group plain".into())));
            assert_eq!(decide("d"), AccessDecision::Denied(Denial::NotInItsGroups));
        }
    }

    #[test]
    fn a_key_and_an_address_are_both_needed() {
        let (rules, blue) = (access(TWO_CLUSTERS), key(false, &[1]));
        let decide = |ip, name| rules.decide(&from_ip(ip), Some(&blue), about(name));
        assert_eq!(decide("10.0.0.1", "b"), AccessDecision::AllowedBy("blue".into()));
        assert_eq!(decide("10.0.0.2", "b"), AccessDecision::Denied(Denial::UnknownSource));
        assert!(matches!(decide("10.0.0.2", "shared"), AccessDecision::Denied(_)));
        // Nor does it help to be one of its domains.
        let b = Identity { name: Some("b".into()), ..from_ip("10.0.0.2") };
        assert!(matches!(rules.decide(&b, Some(&blue), about("b")), AccessDecision::Denied(_)));
    }

    #[test]
    fn who_shows_no_key_opens_no_group_that_has_one() {
        let rules = access(TWO_CLUSTERS);
        let source = Identity { domain: Some(A), name: Some("a".into()), ..from_ip("10.0.0.1") };
        let on_a_line = Identity { ip: None, ..source.clone() };
        for name in ["a", "b", "shared"] {
            for source in [&source, &on_a_line] {
                assert!(
                    matches!(rules.decide(source, None, about(name)), AccessDecision::Denied(_)),
                    "{name}"
                );
            }
        }
        assert_eq!(rules.decide(&source, None, about("c")), AccessDecision::AllowedBy("plain".into()));
        assert_eq!(
            rules.decide(&source, None, about("a")),
            AccessDecision::Denied(Denial::NotItsKey("group red".into()))
        );
    }

    #[test]
    fn a_key_that_is_both_is_both() {
        let (rules, both) = (access(TWO_CLUSTERS), key(true, &[0, 1]));
        let decide = |ip, name| rules.decide(&from_ip(ip), Some(&both), about(name));
        for name in ["a", "b", "c", "shared"] {
            assert!(matches!(decide("10.0.0.1", name), AccessDecision::AllowedBy(_)), "{name}");
        }
        assert!(matches!(decide("10.0.0.2", "c"), AccessDecision::Denied(_)));
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        const NAMES: [&str; 4] = ["a", "b", "c", "d"];

        /// Groups of any shape: which names, which addresses, a key of its own or not.
        fn blocks() -> impl Strategy<Value = Vec<(u8, u8, bool)>> {
            prop::collection::vec((0_u8..16, 0_u8..4, any::<bool>()), 0..5)
        }

        fn rules(blocks: &[(u8, u8, bool)]) -> AccessRules {
            let text: String = blocks
                .iter()
                .enumerate()
                .map(|(place, (names, ips, own_key))| {
                    let mut block = format!("group {{ name = \"{place}\"; ");
                    for (_, name) in NAMES.iter().enumerate().filter(|(bit, _)| names >> bit & 1 == 1) {
                        block.push_str(&format!("uuid = \"{name}\"; "));
                    }
                    for bit in (0..2).filter(|bit| ips >> bit & 1 == 1) {
                        block.push_str(&format!("ip = \"10.0.0.{bit}\"; "));
                    }
                    if *own_key {
                        block.push_str("key_file = \"/k\"; ");
                    }
                    block + "}"
                })
                .collect();
            access(&text)
        }

        proptest! {
            /// Whoever is allowed is so by a group that holds the domain, whose key was shown, and, where it
            /// names addresses, one of which is the source's.
            #[test]
            fn nothing_is_allowed_without_its_reasons(
                blocks in blocks(), target in 0_usize..4, ip in 0_u8..3, source in 0_usize..4,
                shown in prop::option::of((any::<bool>(), prop::collection::btree_set(0_usize..5, 0..3))),
            ) {
                let rules = rules(&blocks);
                let proof =
                    |(listener, groups)| KeyProof { key: some_key(), listener, groups, sources: None };
                let key = shown.map(proof);
                let who = Identity { name: Some(NAMES[source].into()), ..from_ip(&format!("10.0.0.{ip}")) };
                let decision = rules.decide(&who, key.as_ref(), about(NAMES[target]));
                let fits = |(place, (names, ips, own)): (usize, &(u8, u8, bool))| {
                    let opened = match (&key, own) {
                        (Some(key), true) => key.groups.contains(&place),
                        (Some(key), false) => key.listener,
                        (None, own) => !own,
                    };
                    let by_address = ip < 2 && ips >> ip & 1 == 1;
                    let here = if *ips == 0 { *own || names >> source & 1 == 1 } else { by_address };
                    opened && here && names >> target & 1 == 1
                };
                let expected = blocks.iter().enumerate().find(|it| fits(*it));
                let expected = expected.map(|(place, _)| place.to_string());
                match decision {
                    AccessDecision::AllowedBy(group) => prop_assert_eq!(Some(group), expected),
                    AccessDecision::Denied(_) => prop_assert_eq!(None, expected),
                    AccessDecision::AllowedByKey => prop_assert!(false, "there are groups"),
                }
            }

            /// One cluster's key opens nothing of another's, whatever else is in the file.
            #[test]
            fn a_groups_key_opens_that_group_alone(
                blocks in blocks(), place in 0_usize..5, target in 0_usize..4, ip in 0_u8..3,
            ) {
                let (rules, key) = (rules(&blocks), key(false, &[place]));
                let who = from_ip(&format!("10.0.0.{ip}"));
                let decision = rules.decide(&who, Some(&key), about(NAMES[target]));
                if let AccessDecision::AllowedBy(group) = decision {
                    prop_assert_eq!(group, place.to_string());
                    prop_assert!(blocks[place].2);
                }
            }
        }
    }
}
