// SPDX-License-Identifier: GPL-2.0-or-later
//! Directory: the domains of all hosts, as they publish them.
//!
//! Pure: memberships and published domains go in, places where a domain may be come out. A host is believed
//! about its own domains alone. The directory is never enough for an answer: the hosts that it names are
//! asked.

use std::collections::{BTreeMap, BTreeSet};

use fence_wire::Target;

use super::message::{Member, PublishedDomain, PublishedState};

/// Bytes of a name that fit into a request. Longer names arrive cut, up to three bytes earlier.
const NAME_ON_WIRE: usize = Target::MAX;
/// Most domains of a lost host that are remembered.
const MAX_LOST: usize = 65_536;

/// Published domains of all members, and those of nodes that are lost.
#[derive(Debug, Default)]
pub struct Directory {
    hosts: BTreeMap<Member, HostEntry>,
    /// Domains of a node when it was heard last, by UUID. One that was on there is on at no host since.
    lost: BTreeMap<u32, BTreeMap<String, LostDomain>>,
}

/// Domain of a lost node.
#[derive(Debug)]
struct LostDomain {
    name: String,
    state: PublishedState,
    is_away: bool,
}

#[derive(Debug, Default)]
struct HostEntry {
    /// The host runs the C daemon.
    is_legacy: bool,
    /// All domains of the host are known.
    is_complete: bool,
    /// The first part of the latest inventory came since the host is a member. The rest of an earlier one
    /// does not count.
    has_begun: bool,
    domains: BTreeMap<String, PublishedDomain>,
}

/// Location of a domain, as published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DirectoryAnswer {
    /// On at these members; at several while the domain migrates.
    On(Vec<Member>),
    /// Off at these members, and on at none.
    ///
    /// It may be on at a host that is not heard, whatever these have seen.
    Off {
        /// Members that have the domain, off. First those that have a definition.
        at: Vec<Member>,
    },
    /// Last known on at this node, whose daemon is not in its group.
    Lost(u32),
    /// At no host that is heard. Last known off at this node, whose daemon is not in its group.
    LostOff(u32),
    /// At no host.
    Unknown,
}

/// Node where a domain may be, as it can be asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OtherNode {
    /// A host that runs this daemon.
    Heard(Member),
    /// A host that runs the C daemon.
    Legacy(Member),
    /// A node whose daemon is not heard.
    NotHeard(u32),
}

/// Domain of several that a name means, at a member that has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namesake {
    /// UUID of the domain.
    pub uuid: String,
    /// Member that has the domain.
    pub member: Member,
    /// True if the domain is on there.
    pub is_on: bool,
}

impl Directory {
    /// Returns all nodes but the own one where the domain with this UUID may be: those of corosync's node
    /// list, those of the members, and a lost one where the domain was last. Whatever a member has published,
    /// each of them must be looked at before the domain is off.
    pub fn other_nodes(&self, me: Member, nodes: impl Iterator<Item = u32>, uuid: &str) -> Vec<OtherNode> {
        let members = self.hosts.iter().filter(|(it, _)| **it != me).map(|(member, host)| {
            if host.is_legacy { OtherNode::Legacy(*member) } else { OtherNode::Heard(*member) }
        });
        let is_heard = |node: &u32| self.hosts.keys().any(|it| it.node == *node);
        let mut silent: BTreeSet<u32> = nodes.filter(|it| *it != me.node && !is_heard(it)).collect();
        let last_at = match self.find(uuid) {
            DirectoryAnswer::LostOff(node) => Some(node),
            _ => None,
        };
        let is_lost = |node: &u32| self.is_lost_at(*node, uuid) || last_at == Some(*node);
        silent.extend(self.lost.keys().filter(|node| is_lost(node) && !is_heard(node)));
        members.chain(silent.into_iter().map(OtherNode::NotHeard)).collect()
    }

    /// Takes the present members: hosts that run this daemon, and legacy hosts. Domains of members
    /// that left are remembered.
    pub fn members(&mut self, new: &BTreeSet<Member>, legacy: &BTreeSet<Member>) {
        let gone: Vec<Member> =
            self.hosts.keys().filter(|it| !new.contains(it) && !legacy.contains(it)).copied().collect();
        for member in gone {
            let Some(host) = self.hosts.remove(&member) else { continue };
            let lost = self.lost.entry(member.node).or_default();
            // Those that may still run come first, where not all can be remembered.
            let (on, off): (Vec<_>, Vec<_>) =
                host.domains.into_values().partition(|it| it.state == PublishedState::On);
            for PublishedDomain { uuid, name, state, is_away } in on.into_iter().chain(off) {
                let is_known_on = lost.get(&uuid).is_some_and(|it| it.state == PublishedState::On);
                if !is_known_on && (lost.len() < MAX_LOST || lost.contains_key(&uuid)) {
                    lost.insert(uuid, LostDomain { name, state, is_away });
                }
            }
        }
        for member in new {
            self.hosts.entry(*member).or_default().is_legacy = false;
        }
        for member in legacy {
            self.hosts.entry(*member).or_default().is_legacy = true;
        }
        // A lost domain that is on elsewhere is not lost any more.
        self.forget_found();
    }

    /// Takes a part of a member's inventory: `first` begins it anew, and `last` completes it.
    pub fn inventory(&mut self, from: Member, first: bool, last: bool, domains: Vec<PublishedDomain>) {
        let Some(host) = self.hosts.get_mut(&from) else { return };
        if first {
            host.domains.clear();
        }
        host.has_begun |= first;
        host.domains.extend(domains.into_iter().map(|it| (it.uuid.clone(), it)));
        host.is_complete = last && host.has_begun;
        if host.is_complete {
            // The inventory replaces all that was known of that node.
            self.lost.remove(&from.node);
        }
        self.forget_found();
    }

    /// Takes a change of one domain of a member.
    pub fn domain(&mut self, from: Member, domain: PublishedDomain) {
        let Some(host) = self.hosts.get_mut(&from) else { return };
        let is_on = domain.state == PublishedState::On;
        for (node, lost) in &mut self.lost {
            let found = |it: &LostDomain| *node == from.node || is_on && it.state == PublishedState::On;
            if lost.get(&domain.uuid).is_some_and(found) {
                lost.remove(&domain.uuid);
            }
        }
        host.domains.insert(domain.uuid.clone(), domain);
    }

    /// Notes that a member does not have this domain any more.
    pub fn gone(&mut self, from: Member, uuid: &str) {
        if let Some(host) = self.hosts.get_mut(&from) {
            host.domains.remove(uuid);
        }
    }

    /// Notes that a legacy host has just published all its domains: these UUIDs.
    pub fn only(&mut self, from: Member, uuids: &BTreeSet<String>) {
        let Some(host) = self.hosts.get_mut(&from) else { return };
        host.domains.retain(|uuid, _| uuids.contains(uuid));
        host.is_complete = true;
        self.lost.remove(&from.node);
    }

    /// Returns name and UUID of each domain that a target may mean, by UUID or by name.
    ///
    /// A name means no ended domain without a definition where another domain has it: a machine that is made
    /// anew with its old name has a new UUID.
    pub fn named(&self, text: &str, only_uuid: bool) -> Vec<(String, String)> {
        let here = self.hosts.values().flat_map(|it| it.domains.values()).map(|it| (&it.name, &it.uuid));
        let lost = self.lost.values().flatten().map(|(uuid, it)| (&it.name, uuid));
        let all: Vec<(&String, &String)> = here.chain(lost).collect();
        let is_meant = |(name, uuid): &&(&String, &String)| {
            uuid.eq_ignore_ascii_case(text) || !only_uuid && *name == text
        };
        let mut found: Vec<_> = all.iter().filter(is_meant).collect();
        if found.is_empty() && !only_uuid {
            found = all.iter().filter(|(name, _)| is_cut(name, text)).collect();
        }
        let mut named: Vec<(String, String)> = Vec::new();
        for (name, uuid) in found {
            if named.iter().all(|(_, it)| it != *uuid) {
                named.push(((*name).clone(), (*uuid).clone()));
            }
        }
        if named.len() > 1 && named.iter().any(|(_, uuid)| !self.has_only_ended(uuid)) {
            named.retain(|(_, uuid)| uuid.eq_ignore_ascii_case(text) || !self.has_only_ended(uuid));
        }
        named
    }

    /// Returns whether the domain ran and has ended, and is defined nowhere, as far as any host has said.
    pub fn has_only_ended(&self, uuid: &str) -> bool {
        let here = self.hosts.values().filter_map(|it| it.domains.get(uuid)).map(|it| it.state);
        let lost = self.lost.values().filter_map(|it| it.get(uuid)).map(|it| it.state);
        here.chain(lost).all(|it| it == PublishedState::Gone)
    }

    /// Forgets the domains of a lost node, which is gone for good. Returns their number.
    pub fn forget_lost(&mut self, node: u32) -> usize {
        self.lost.remove(&node).map_or(0, |it| it.len())
    }

    /// Returns the lost nodes of which any domain is remembered.
    pub fn lost_nodes(&self) -> impl Iterator<Item = u32> {
        self.lost.keys().copied()
    }

    /// Returns the number of domains that were at a lost node when it was heard last, on or off.
    pub fn lost_at(&self, node: u32) -> usize {
        self.lost.get(&node).map_or(0, BTreeMap::len)
    }

    /// Returns the location of the domain with this UUID.
    pub fn find(&self, uuid: &str) -> DirectoryAnswer {
        let with = |state: PublishedState| -> Vec<Member> {
            let has = |it: &HostEntry| it.domains.get(uuid).is_some_and(|it| it.state == state);
            self.hosts.iter().filter(|(_, it)| has(it)).map(|(member, _)| *member).collect()
        };
        let on = with(PublishedState::On);
        if !on.is_empty() {
            return DirectoryAnswer::On(on);
        }
        if let Some(node) = self.lost.keys().find(|node| self.is_lost_at(**node, uuid)) {
            return DirectoryAnswer::Lost(*node);
        }
        // Those with a definition come first: they can start it.
        let mut at = with(PublishedState::Off);
        at.extend(with(PublishedState::Rests));
        at.extend(with(PublishedState::Gone));
        let last_at = || self.lost.iter().find(|(_, it)| it.contains_key(uuid));
        match last_at() {
            _ if !at.is_empty() => DirectoryAnswer::Off { at },
            Some((node, _)) => DirectoryAnswer::LostOff(*node),
            None => DirectoryAnswer::Unknown,
        }
    }

    /// Returns the domains that are on at several members: UUID, name, and members. A domain that migrates is
    /// one of them.
    pub fn on_at_several(&self) -> Vec<(String, String, Vec<Member>)> {
        let mut on: BTreeMap<&str, (&str, Vec<Member>)> = BTreeMap::new();
        for (member, host) in &self.hosts {
            for it in host.domains.values().filter(|it| it.state == PublishedState::On) {
                on.entry(&it.uuid).or_insert((&it.name, Vec::new())).1.push(*member);
            }
        }
        let several = on.into_iter().filter(|(_, (_, at))| at.len() > 1);
        several.map(|(uuid, (name, at))| (uuid.to_owned(), name.to_owned(), at)).collect()
    }

    /// Returns the names that mean several domains, and so none, and where these are.
    pub fn ambiguous_names(&self) -> Vec<(String, Vec<Namesake>)> {
        let mut of_name: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for it in self.hosts.values().flat_map(|it| it.domains.values()) {
            of_name.entry(&it.name).or_default().insert(&it.uuid);
        }
        let is_uuid = |name: &str| self.hosts.values().any(|it| it.domains.contains_key(name));
        let may_be = of_name.into_iter().filter(|(name, uuids)| uuids.len() > 1 || is_uuid(name));
        let ambiguous = may_be.filter_map(|(name, _)| {
            let uuids: Vec<String> = self.named(name, false).into_iter().map(|it| it.1).collect();
            if uuids.len() < 2 || self.split_rivals(name, &uuids).is_some() {
                return None;
            }
            let at = |uuid: &String| {
                let has = |(member, host): (&Member, &HostEntry)| {
                    let it = host.domains.get(uuid).filter(|it| it.state != PublishedState::Gone)?;
                    let is_on = it.state == PublishedState::On;
                    Some(Namesake { uuid: uuid.clone(), member: *member, is_on })
                };
                self.hosts.iter().filter_map(has).collect::<Vec<_>>()
            };
            Some((name.to_owned(), uuids.iter().flat_map(at).collect()))
        });
        ambiguous.collect()
    }

    /// Returns the members whose domains are not all known yet.
    pub fn incomplete(&self) -> impl Iterator<Item = Member> {
        self.hosts.iter().filter(|(_, it)| !it.is_complete && !it.is_legacy).map(|(member, _)| *member)
    }

    /// Returns the state of a domain as this member published it.
    pub fn state(&self, member: Member, uuid: &str) -> Option<PublishedState> {
        self.hosts.get(&member)?.domains.get(uuid).map(|it| it.state)
    }

    /// Returns true if this member published the domain, on or off.
    pub fn has(&self, member: Member, uuid: &str) -> bool {
        self.hosts.get(&member).is_some_and(|it| it.domains.contains_key(uuid))
    }

    /// Returns true if this node published any domain.
    pub fn has_any(&self, node: u32) -> bool {
        self.hosts.iter().any(|(it, host)| it.node == node && !host.domains.is_empty())
    }

    /// Returns a domain that this member published, and that no other host has.
    pub fn one_of(&self, member: Member) -> Option<&PublishedDomain> {
        let others =
            |uuid: &str| self.hosts.iter().any(|(it, host)| *it != member && host.domains.contains_key(uuid));
        self.hosts.get(&member)?.domains.values().find(|it| !others(&it.uuid))
    }

    /// Returns the domains of all members but this one.
    pub fn others(&self, me: Member) -> impl Iterator<Item = &PublishedDomain> {
        self.hosts.iter().filter(move |(it, _)| **it != me).flat_map(|(_, it)| it.domains.values())
    }

    /// Returns the domains of lost nodes with the state in which they were seen last: name, UUID and state.
    /// Those that were on there are on at no host since; the others may be of hosts that are heard, too.
    /// Without those that had migrated away from there.
    pub fn last_seen(&self) -> impl Iterator<Item = (&str, &str, PublishedState)> {
        let domains = self.lost.values().flatten().filter(|(_, it)| !it.is_away);
        domains.map(|(uuid, it)| (it.name.as_str(), uuid.as_str(), it.state))
    }

    /// Returns whether the domain was on at this node when it was heard last, and at no host since.
    pub fn is_lost_at(&self, node: u32, uuid: &str) -> bool {
        let lost = self.lost.get(&node).and_then(|it| it.get(uuid));
        lost.is_some_and(|it| it.state == PublishedState::On)
    }

    /// Returns whether no host that is heard has the domain, and a node that is not heard had it last. It may
    /// run there all the same.
    pub fn is_only_lost(&self, uuid: &str) -> bool {
        let has = |it: &HostEntry| it.domains.get(uuid).is_some_and(|it| it.state != PublishedState::Gone);
        !self.hosts.values().any(has) && self.lost.values().any(|it| it.contains_key(uuid))
    }

    /// Returns which of several domains that a name means is the one to ask for, and the others, its rivals:
    /// if each of these is proved off, the name is not ambiguous. None where more than one of them is at a
    /// host that is heard: off as they may be, either can be started. None too where the text is the UUID of
    /// one: that one is meant, and not another one that has the UUID for a name.
    pub fn split_rivals(&self, text: &str, named: &[String]) -> Option<(usize, Vec<usize>)> {
        if named.iter().any(|it| it.eq_ignore_ascii_case(text)) {
            return None;
        }
        let is_rival = |place: &usize| self.is_only_lost(&named[*place]);
        let (rivals, heard): (Vec<usize>, Vec<usize>) = (0..named.len()).partition(is_rival);
        match (&heard[..], &rivals[..]) {
            ([one], _) => Some((*one, rivals)),
            ([], [first, others @ ..]) => Some((*first, others.to_vec())),
            _ => None,
        }
    }

    /// Returns whether another domain with this name is on at a member.
    pub fn has_namesake_on(&self, member: Member, name: &str, uuid: &str) -> bool {
        let is_namesake =
            |it: &PublishedDomain| it.state == PublishedState::On && it.name == name && it.uuid != uuid;
        self.hosts.get(&member).is_some_and(|it| it.domains.values().any(is_namesake))
    }

    /// Returns the number of domains that were on at each lost node when it was heard last.
    pub fn lost(&self) -> impl Iterator<Item = (u32, usize)> {
        let count = |it: &BTreeMap<String, LostDomain>| {
            it.values().filter(|it| it.state == PublishedState::On).count()
        };
        self.lost.iter().map(move |(node, it)| (*node, count(it))).filter(|(_, count)| *count > 0)
    }

    fn forget_found(&mut self) {
        for lost in self.lost.values_mut() {
            lost.retain(|uuid, lost| {
                let is_on =
                    |it: &HostEntry| it.domains.get(uuid).is_some_and(|it| it.state == PublishedState::On);
                lost.state != PublishedState::On || !self.hosts.values().any(is_on)
            });
        }
        self.lost.retain(|_, it| !it.is_empty());
    }
}

/// Returns true if `text` is a name cut to the length that fits into a request.
fn is_cut(name: &str, text: &str) -> bool {
    name.len() > NAME_ON_WIRE
        && name.starts_with(text)
        && name.floor_char_boundary(NAME_ON_WIRE) == text.len()
}

#[cfg(test)]
mod proptests;

#[cfg(test)]
mod tests {
    use super::*;

    const A: Member = Member { node: 1, pid: 10 };
    const B: Member = Member { node: 2, pid: 20 };

    fn domain(uuid: &str, name: &str, state: PublishedState) -> PublishedDomain {
        PublishedDomain::new(uuid.to_owned(), name.to_owned(), state)
    }

    fn both() -> Directory {
        let mut directory = Directory::default();
        directory.members(&[A, B].into(), &BTreeSet::new());
        directory
    }

    #[test]
    fn on_anywhere_comes_before_off_and_lost() {
        let mut directory = both();
        directory.inventory(A, true, true, vec![domain("u", "n", PublishedState::Rests)]);
        assert_eq!(directory.find("u"), DirectoryAnswer::Off { at: vec![A] });
        directory.domain(B, domain("u", "n", PublishedState::On));
        assert_eq!(directory.find("u"), DirectoryAnswer::On(vec![B]));
        directory.domain(A, domain("u", "n", PublishedState::On));
        assert_eq!(directory.find("u"), DirectoryAnswer::On(vec![A, B]));
        assert_eq!(directory.on_at_several(), [("u".to_owned(), "n".to_owned(), vec![A, B])]);
        directory.domain(A, domain("u", "n", PublishedState::Off));
        assert!(directory.on_at_several().is_empty());
        directory.gone(B, "u");
        assert_eq!(directory.find("u"), DirectoryAnswer::Off { at: vec![A] });
        assert_eq!(directory.find("v"), DirectoryAnswer::Unknown);
    }

    #[test]
    fn a_name_that_means_several_domains_is_found_as_a_request_finds_it() {
        let mut directory = both();
        directory.domain(A, domain("u", "n", PublishedState::On));
        directory.domain(B, domain("u", "n", PublishedState::Off));
        assert!(directory.ambiguous_names().is_empty(), "one domain at two hosts");
        directory.domain(B, domain("v", "n", PublishedState::Gone));
        assert!(directory.ambiguous_names().is_empty(), "made anew");
        directory.domain(B, domain("v", "n", PublishedState::Rests));
        let at = |uuid: &str, member, is_on| Namesake { uuid: uuid.to_owned(), member, is_on };
        let found = vec![at("u", A, true), at("u", B, false), at("v", B, false)];
        assert_eq!(directory.ambiguous_names(), [("n".to_owned(), found)]);
        directory.domain(B, domain("v", "u", PublishedState::Off));
        let (name, found) = directory.ambiguous_names().remove(0);
        assert_eq!((name.as_str(), found.len()), ("u", 3), "a name that is a UUID");
        directory.members(&[A].into(), &BTreeSet::new());
        assert!(directory.ambiguous_names().is_empty(), "one of a lost host may be proved off");
    }

    /// The host that can start it is asked first, and no list has a definition that the machine left behind.
    #[test]
    fn a_definition_comes_before_a_name_and_one_that_stayed_behind_is_not_listed() {
        let mut directory = both();
        directory.domain(A, domain("u", "n", PublishedState::Gone));
        let away = PublishedDomain { is_away: true, ..domain("u", "n", PublishedState::Rests) };
        directory.domain(B, away);
        assert_eq!(directory.find("u"), DirectoryAnswer::Off { at: vec![B, A] });
        assert_eq!(directory.named("n", false), [("n".to_owned(), "u".to_owned())]);
        directory.domain(B, domain("w", "m", PublishedState::Rests));
        directory.members(&[A].into(), &BTreeSet::new());
        assert_eq!(directory.last_seen().map(|it| it.1).collect::<Vec<_>>(), ["w"]);
    }

    #[test]
    fn what_was_on_at_a_lost_host_is_lost_until_it_is_seen() {
        let on_b = |directory: &mut Directory| directory.domain(B, domain("u", "n", PublishedState::On));
        let lost = || {
            let mut directory = both();
            directory.inventory(A, true, true, vec![domain("u", "n", PublishedState::Rests)]);
            on_b(&mut directory);
            directory.domain(B, domain("w", "m", PublishedState::Off));
            directory.members(&[A].into(), &BTreeSet::new());
            assert_eq!(directory.find("u"), DirectoryAnswer::Lost(2), "whatever definition rests elsewhere");
            assert_eq!(directory.find("w"), DirectoryAnswer::LostOff(2), "it was off");
            assert_eq!(directory.named("m", false), [("m".to_owned(), "w".to_owned())]);
            assert_eq!(directory.lost().collect::<Vec<_>>(), [(2, 1)]);
            assert_eq!(directory.named("n", false), [("n".to_owned(), "u".to_owned())]);
            directory
        };
        // It is on elsewhere.
        let mut directory = lost();
        directory.domain(A, domain("u", "n", PublishedState::On));
        directory.domain(A, domain("u", "n", PublishedState::Off));
        assert_eq!(directory.find("u"), DirectoryAnswer::Off { at: vec![A] });
        // The node is back and says what it has, with another process.
        let mut directory = lost();
        let again = Member { node: 2, pid: 21 };
        directory.members(&[A, again].into(), &BTreeSet::new());
        assert_eq!(directory.find("u"), DirectoryAnswer::Lost(2), "it has not said yet");
        directory.inventory(again, true, false, vec![]);
        assert_eq!(directory.find("u"), DirectoryAnswer::Lost(2), "it has not said all yet");
        directory.inventory(again, false, true, vec![]);
        assert_eq!(directory.find("u"), DirectoryAnswer::Off { at: vec![A] });
        assert_eq!(directory.find("w"), DirectoryAnswer::Unknown);
        assert_eq!(directory.named("m", false), []);
    }

    /// A definition stays at its node: what goes on elsewhere does not change that.
    #[test]
    fn what_was_off_at_a_lost_host_is_remembered_until_the_host_is_back() {
        let mut directory = both();
        directory.domain(B, domain("w", "m", PublishedState::Rests));
        directory.members(&[A].into(), &BTreeSet::new());
        assert_eq!(directory.find("w"), DirectoryAnswer::LostOff(2));
        let me = Member { node: 3, pid: 30 };
        let nodes = || directory.other_nodes(me, [1, 3].into_iter(), "w");
        assert!(nodes().contains(&OtherNode::NotHeard(2)), "it may have been started there");
        directory.domain(A, domain("w", "m", PublishedState::On));
        assert_eq!(directory.find("w"), DirectoryAnswer::On(vec![A]));
        directory.gone(A, "w");
        assert_eq!(directory.find("w"), DirectoryAnswer::LostOff(2));
        assert!(!directory.is_lost_at(2, "w"), "it was not on there");
        // It was off when it was heard, and then it was on when it was heard again.
        let again = Member { node: 2, pid: 21 };
        directory.members(&[A, again].into(), &BTreeSet::new());
        directory.domain(again, domain("w", "m", PublishedState::On));
        directory.members(&[A].into(), &BTreeSet::new());
        assert_eq!(directory.find("w"), DirectoryAnswer::Lost(2));
    }

    #[test]
    fn a_node_that_is_gone_for_good_is_asked_no_more() {
        let mut directory = both();
        directory.domain(A, domain("u", "n", PublishedState::Rests));
        for (uuid, state) in [("u", PublishedState::On), ("w", PublishedState::Rests)] {
            directory.domain(B, domain(uuid, uuid, state));
        }
        assert_eq!(directory.forget_lost(2), 0, "it is a member");
        directory.members(&[A].into(), &BTreeSet::new());
        let other_nodes = |it: &Directory| it.other_nodes(A, [1].into_iter(), "u");
        assert_eq!(other_nodes(&directory), [OtherNode::NotHeard(2)]);
        assert_eq!((directory.lost_at(2), directory.forget_lost(2), directory.lost_at(2)), (2, 2, 0));
        assert_eq!(directory.find("u"), DirectoryAnswer::Off { at: vec![A] });
        assert_eq!(directory.find("w"), DirectoryAnswer::Unknown);
        assert_eq!(other_nodes(&directory), []);
        // It comes back as a new one.
        let again = Member { node: 2, pid: 21 };
        directory.members(&[A, again].into(), &BTreeSet::new());
        assert!(directory.incomplete().any(|it| it == again));
        directory.domain(again, domain("u", "n", PublishedState::On));
        assert_eq!(directory.find("u"), DirectoryAnswer::On(vec![again]));
    }

    #[test]
    fn a_machine_that_is_made_anew_has_its_old_name() {
        let mut directory = both();
        directory.domain(A, domain("u", "n", PublishedState::Gone));
        assert_eq!(directory.named("n", false), [("n".to_owned(), "u".to_owned())]);
        for state in [PublishedState::On, PublishedState::Rests] {
            directory.domain(B, domain("v", "n", state));
            assert_eq!(directory.named("n", false), [("n".to_owned(), "v".to_owned())]);
            assert_eq!(directory.named("u", false), [("n".to_owned(), "u".to_owned())]);
        }
        // One that may run, or that can be started, is meant as well.
        directory.domain(B, domain("u", "n", PublishedState::Rests));
        assert_eq!(directory.named("n", false).len(), 2);
        directory.domain(B, domain("u", "n", PublishedState::On));
        directory.members(&[A].into(), &BTreeSet::new());
        assert_eq!(directory.named("n", false).len(), 2);
    }

    #[test]
    fn a_target_may_mean_several() {
        let mut directory = both();
        directory.domain(A, domain("u", "n", PublishedState::On));
        directory.domain(B, domain("v", "n", PublishedState::Rests));
        assert_eq!(directory.named("n", false).len(), 2);
        assert_eq!(directory.named("n", true), []);
        assert_eq!(directory.named("U", false), [("n".to_owned(), "u".to_owned())]);
        directory.domain(B, domain("w", "u", PublishedState::On));
        // The UUID of one is the name of another: it means neither, but where it is said to be a UUID.
        let both = [("n".to_owned(), "u".to_owned()), ("u".to_owned(), "w".to_owned())];
        assert_eq!(directory.named("u", false), both);
        assert_eq!(directory.named("u", true), both[..1]);
        let long = "x".repeat(NAME_ON_WIRE + 9);
        directory.domain(B, domain("y", &long, PublishedState::On));
        assert_eq!(directory.named(&long[..NAME_ON_WIRE], false), [(long.clone(), "y".to_owned())]);
        assert_eq!(directory.named(&long[..NAME_ON_WIRE - 9], false), []);
    }

    #[test]
    fn an_old_host_that_said_all_has_nothing_else() {
        let mut directory = Directory::default();
        directory.members(&[A].into(), &[B].into());
        directory.domain(B, domain("u", "n", PublishedState::On));
        directory.domain(B, domain("v", "m", PublishedState::On));
        directory.only(B, &["v".to_owned()].into());
        assert_eq!(directory.find("u"), DirectoryAnswer::Unknown);
        assert_eq!(directory.find("v"), DirectoryAnswer::On(vec![B]));
        assert_eq!(directory.incomplete().collect::<Vec<_>>(), [A]);
    }

    /// The first parts of the inventory were delivered before the membership changed.
    #[test]
    fn the_rest_of_an_inventory_says_not_all() {
        let mut directory = both();
        directory.inventory(B, true, true, vec![domain("u", "n", PublishedState::On)]);
        directory.inventory(B, true, false, vec![domain("u", "n", PublishedState::On)]);
        directory.members(&[A].into(), &BTreeSet::new());
        directory.members(&[A, B].into(), &BTreeSet::new());
        directory.inventory(B, false, true, vec![domain("w", "m", PublishedState::On)]);
        assert_eq!(directory.find("u"), DirectoryAnswer::Lost(2), "it is not among the rest");
        assert!(directory.incomplete().any(|it| it == B));
        directory.inventory(B, true, false, vec![domain("w", "m", PublishedState::On)]);
        directory.inventory(B, false, true, vec![]);
        assert_eq!(directory.find("u"), DirectoryAnswer::Unknown);
    }

    #[test]
    fn who_is_no_member_says_nothing() {
        let mut directory = both();
        let other = Member { node: 2, pid: 99 };
        directory.domain(other, domain("u", "n", PublishedState::On));
        directory.inventory(other, true, true, vec![domain("u", "n", PublishedState::On)]);
        assert_eq!(directory.find("u"), DirectoryAnswer::Unknown);
    }
}
