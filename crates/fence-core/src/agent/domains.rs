// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains of the agent backend, from the configuration and the devices' lists, with the plug of each at each
//! device.
//!
//! Owns the rule which plugs mean one machine. A name in the configuration is one domain, whatever its plugs
//! are called. Listed plugs are one domain where plug and alias are equal, or the plug is the same UUID. A
//! name that two domains have means neither. Runs on the caller's task; must never run an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fence_config::AgentDevice;
use fence_wire::Target;
use sha1::{Digest as _, Sha1};

use super::listing::{PlugEntry, PlugList};
use crate::domain::DomainId;

/// Name space of the UUIDs that are made from names, equal on every host.
const NAME_SPACE: [u8; 16] =
    [0x9c, 0x1f, 0x5e, 0x0b, 0x5d, 0x3a, 0x4b, 0x5c, 0x8f, 0x21, 0x6e, 0x0d, 0xd4, 0x7a, 0x30, 0x12];
/// Length of the shortest name that may have been cut: a cut may fall up to three bytes earlier, between two
/// characters.
const SHORTEST_CUT_NAME: usize = Target::MAX - 3;

/// Domain behind at least one device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentDomain {
    /// Name of the domain.
    pub name: String,
    /// UUID of the domain.
    pub uuid: DomainId,
    /// Other names by which a target may mean the domain.
    other_names: BTreeSet<String>,
    /// Devices that serve the domain, in their order, with its plug at each.
    pub ways: Vec<(usize, String)>,
    /// True for a domain that the configuration names.
    is_named: bool,
}

impl AgentDomain {
    /// Returns the domain's plug at a device.
    pub fn plug_at(&self, device: usize) -> Option<&str> {
        self.ways.iter().find(|it| it.0 == device).map(|it| it.1.as_str())
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.other_names.contains(name)
    }
}

/// Returns all domains. `lists` holds the list of each device that has one, none where the list is not known.
pub fn all(devices: &[AgentDevice], lists: &[Option<Arc<PlugList>>]) -> Vec<AgentDomain> {
    let mut domains = named(devices);
    let mut listed: BTreeMap<(String, String), AgentDomain> = BTreeMap::new();
    for (place, (device, list)) in devices.iter().zip(lists).enumerate() {
        let entries = list.iter().filter(|_| device.plugs.listed).flat_map(|it| &it.entries);
        for entry in entries {
            if let Some(domain) = domains.iter_mut().find(|it| is_it(it, place, entry)) {
                add(domain, place, entry);
                continue;
            }
            let alias = entry.alias.clone().unwrap_or_default();
            // A UUID means the same machine, whatever its alias is at the moment.
            let second = if uuid_in(&entry.plug).is_some() { String::new() } else { alias.clone() };
            let domain = listed.entry((entry.plug.clone(), second)).or_insert_with(|| AgentDomain {
                name: if alias.is_empty() { entry.plug.clone() } else { alias },
                // Until the names are settled.
                uuid: uuid_for(&entry.plug),
                other_names: BTreeSet::new(),
                ways: Vec::new(),
                is_named: false,
            });
            add(domain, place, entry);
        }
    }
    domains.extend(listed.into_values());
    settle_names(&mut domains);
    domains.sort_by(|a, b| (&a.name, a.uuid).cmp(&(&b.name, b.uuid)));
    domains
}

/// Returns the domains whose requests are recognised by their cards: the name, the UUID, and the MAC
/// addresses of each.
pub fn sources(devices: &[AgentDevice]) -> Vec<(String, DomainId, BTreeSet<String>)> {
    let cards = |name: &str| {
        let plugs = devices.iter().flat_map(|it| &it.plugs.named).filter(|it| it.domain == name);
        plugs.flat_map(|it| it.sources.iter().cloned()).collect::<BTreeSet<_>>()
    };
    let domains = named(devices).into_iter().map(|it| (cards(&it.name), it));
    domains.filter(|it| !it.0.is_empty()).map(|(cards, it)| (it.name, it.uuid, cards)).collect()
}

/// Returns the domains that a target means, by UUID or by name. More than one where the target is ambiguous:
/// also where it is the UUID of one and the name of another.
pub fn meant<'a>(domains: &'a [AgentDomain], target: &Target) -> Vec<&'a AgentDomain> {
    let text = target.as_str();
    let uuid = uuid_in(text);
    let is_meant = |it: &&AgentDomain| uuid == Some(it.uuid) || !target.is_only_uuid() && it.answers_to(text);
    let found: Vec<_> = domains.iter().filter(is_meant).collect();
    if !found.is_empty() || target.is_only_uuid() || !(SHORTEST_CUT_NAME..=Target::MAX).contains(&text.len())
    {
        return found;
    }
    domains.iter().filter(|it| target.is_cut_from(&it.name)).collect()
}

/// Returns the UUID that a text reads as.
pub fn uuid_in(text: &str) -> Option<DomainId> {
    DomainId::parse(text)
}

/// Returns the UUID of version 5 for a name, equal on every host.
fn uuid_for(name: &str) -> DomainId {
    let hash = Sha1::new().chain_update(NAME_SPACE).chain_update(name).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x50;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    DomainId::from_bytes(bytes)
}

/// Returns the domains that the configuration names.
fn named(devices: &[AgentDevice]) -> Vec<AgentDomain> {
    let mut domains: Vec<AgentDomain> = Vec::new();
    let mut configured: BTreeMap<String, DomainId> = BTreeMap::new();
    for (place, device) in devices.iter().enumerate() {
        for it in &device.plugs.named {
            let known = domains.iter().position(|domain| domain.name == it.domain);
            let at = known.unwrap_or(domains.len());
            if known.is_none() {
                domains.push(AgentDomain {
                    name: it.domain.clone(),
                    uuid: uuid_for(&it.domain),
                    other_names: BTreeSet::new(),
                    ways: Vec::new(),
                    is_named: true,
                });
            }
            let domain = &mut domains[at];
            if let Some(uuid) = it.uuid.as_deref().and_then(DomainId::parse) {
                configured.insert(it.domain.clone(), uuid);
            }
            domain.ways.push((place, it.plug.clone()));
        }
    }
    for it in &mut domains {
        let by_plug = || it.ways.iter().find_map(|(_, plug)| uuid_in(plug));
        let read = || uuid_in(&it.name).or_else(by_plug);
        if let Some(uuid) = configured.get(&it.name).copied().or_else(read) {
            it.uuid = uuid;
        }
    }
    domains
}

/// Returns true where a listed plug is this domain of the configuration.
fn is_it(domain: &AgentDomain, device: usize, entry: &PlugEntry) -> bool {
    if let Some(plug) = domain.plug_at(device) {
        return plug == entry.plug;
    }
    let uuid = uuid_in(&entry.plug);
    let same_plug = domain.ways.iter().any(|(_, plug)| *plug == entry.plug);
    let same_name = entry.alias.as_ref().unwrap_or(&entry.plug) == &domain.name;
    uuid.is_some_and(|it| it == domain.uuid || same_plug) || same_plug && same_name
}

fn add(domain: &mut AgentDomain, device: usize, entry: &PlugEntry) {
    if domain.plug_at(device).is_none() {
        domain.ways.push((device, entry.plug.clone()));
        domain.ways.sort();
    }
    domain.other_names.extend([Some(&entry.plug), entry.alias.as_ref()].into_iter().flatten().cloned());
}

/// Gives each listed domain a name and a UUID that no other has, as far as there are any.
fn settle_names(domains: &mut [AgentDomain]) {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for it in &*domains {
        *count.entry(it.name.clone()).or_default() += 1;
    }
    for it in domains.iter_mut().filter(|it| !it.is_named) {
        let plug = it.ways.first().map(|it| it.1.clone()).unwrap_or_default();
        let alone = count.get(&it.name).is_some_and(|it| *it == 1);
        let by_alias = || uuid_in(&it.name).filter(|_| alone);
        let made = || uuid_for(if alone { &it.name } else { &plug });
        it.uuid = uuid_in(&plug).or_else(by_alias).unwrap_or_else(made);
        if !alone {
            let alias = std::mem::replace(&mut it.name, plug);
            it.other_names.insert(alias);
        }
    }
}

#[cfg(test)]
mod tests {
    use fence_config::Backend;
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";

    fn devices(blocks: &[&str]) -> Vec<AgentDevice> {
        let blocks: String = blocks
            .iter()
            .enumerate()
            .map(|(it, block)| format!("device = \"d{it}\" {{ agent = \"a\"; {block} }}\n"))
            .collect();
        let text = format!("fence_virtd {{ backend = \"agent\"; }} backends {{ agent {{ {blocks} }} }}");
        let mut config = fence_config::load(text.as_bytes()).config.unwrap();
        let Backend::Agent(it) = config.backends.remove(0) else { panic!() };
        it.devices
    }

    fn list(entries: &[(&str, &str)]) -> Option<Arc<PlugList>> {
        let entry = |(plug, alias): &(&str, &str)| PlugEntry {
            plug: (*plug).to_owned(),
            alias: (!alias.is_empty()).then(|| (*alias).to_owned()),
            power: None,
        };
        Some(Arc::new(PlugList { entries: entries.iter().map(entry).collect(), noise: 0 }))
    }

    fn find<'a>(domains: &'a [AgentDomain], text: &str) -> Vec<&'a str> {
        let target = Target::new(text, uuid_in(text).is_some()).unwrap();
        meant(domains, &target).into_iter().map(|it| it.name.as_str()).collect()
    }

    #[test]
    fn names_of_the_configuration_are_one_domain_each() {
        let devices = devices(&[
            "plugs = \"web1:101, web2\";",
            "plugs = \"web1:x\";",
            &format!("domain = \"db\" {{ uuid = \"{UUID}\"; }}"),
        ]);
        let domains = all(&devices, &[None, None, None]);
        assert_eq!(find(&domains, "web1"), ["web1"]);
        assert_eq!(
            meant(&domains, &Target::new("web1", false).unwrap())[0].ways,
            [(0, "101".to_owned()), (1, "x".to_owned())]
        );
        // The plug is no name of a domain that has one.
        assert!(find(&domains, "101").is_empty());
        assert_eq!((find(&domains, UUID), find(&domains, "db")), (vec!["db"], vec!["db"]));
        let uuid = &meant(&domains, &Target::new("web1", false).unwrap())[0].uuid;
        // The client says "UUID" of a text that is none: it can only be a name.
        assert_eq!(&meant(&domains, &Target::new("web1", true).unwrap())[0].uuid, uuid);
        let text = uuid.to_string();
        assert_eq!(uuid_in(&text), Some(*uuid));
        assert_eq!((&text[14..15], find(&domains, &text)), ("5", vec!["web1"]));
        assert_eq!(uuid_for("web1"), *uuid);
    }

    proptest! {
        /// The domain that is recognised as a source is the one that a request for its name means, whatever
        /// the lists say.
        #[test]
        fn a_source_is_the_domain_that_its_name_means(
            named in prop::collection::vec((0..3_usize, 0..3_usize, 0..3_usize, 0..3_usize), 0..6),
            listed in prop::collection::vec((0..4_usize, 0..4_usize), 0..5),
        ) {
            let plugs = ["101", UUID, "x", "y"];
            let names = ["web1", "web2", "db", "x"];
            let mut blocks: Vec<Vec<String>> = vec![vec!["plugs = \"*\";".to_owned()]; 3];
            let mut taken = BTreeSet::new();
            for (device, name, plug, card) in named {
                // A device has each name and each plug once.
                if taken.insert((device, 'n', name)) && taken.insert((device, 'p', plug)) {
                    blocks[device].push(format!(
                        "domain = \"{}\" {{ plug = \"{}\"; source = \"52:54:00:00:0{card}:0{name}\"; }}",
                        names[name], plugs[plug]
                    ));
                }
            }
            let blocks: Vec<_> = blocks.iter().map(|it| it.join(" ")).collect();
            let devices = devices(&blocks.iter().map(String::as_str).collect::<Vec<_>>());
            let entries: Vec<_> = listed.iter().map(|(plug, name)| (plugs[*plug], names[*name])).collect();
            let domains = all(&devices, &[list(&entries), None, list(&[])]);
            for (name, uuid, cards) in sources(&devices) {
                let of_name: Vec<_> = domains.iter().filter(|it| it.is_named && it.name == name).collect();
                prop_assert_eq!(of_name.iter().map(|it| it.uuid).collect::<Vec<_>>(), [uuid]);
                let place = names.iter().position(|it| *it == name).unwrap();
                prop_assert!(cards.iter().all(|it| it.ends_with(&format!("0{place}"))), "{:?}", cards);
            }
        }
    }

    #[test]
    fn members_of_a_pool_have_the_same_domains() {
        let devices = devices(&["plugs = \"*\";", "plugs = \"*\";"]);
        let pool = || list(&[(UUID, "web 1"), ("102", "db"), ("103", "")]);
        let domains = all(&devices, &[pool(), pool()]);
        assert_eq!(domains.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["103", "db", "web 1"]);
        assert!(domains.iter().all(|it| it.ways.len() == 2), "{domains:?}");
        for name in [UUID, "web 1"] {
            assert_eq!(find(&domains, name), ["web 1"]);
        }
        assert_eq!(
            (find(&domains, "102"), find(&domains, "db"), find(&domains, "103")),
            (vec!["db"], vec!["db"], vec!["103"])
        );
        // Renamed, and one of them has not heard of it.
        let domains = all(&devices, &[list(&[(UUID, "new")]), list(&[(UUID, "old")])]);
        assert_eq!(domains.len(), 1);
        assert_eq!((find(&domains, "old").len(), find(&domains, "new").len()), (1, 1));
    }

    #[test]
    fn a_name_that_two_plugs_have_means_neither() {
        let devices = devices(&["plugs = \"*\";", "plugs = \"*\";"]);
        let domains = all(&devices, &[list(&[("101", "web"), ("102", "web")]), list(&[])]);
        assert_eq!(find(&domains, "web"), ["101", "102"]);
        assert_eq!(find(&domains, "101"), ["101"]);
        assert_ne!(domains[0].uuid, domains[1].uuid);
        // Two clusters that number their machines alike.
        let domains = all(&devices, &[list(&[("101", "web")]), list(&[("101", "db")])]);
        assert_eq!(
            (find(&domains, "101").len(), find(&domains, "web"), find(&domains, "db")),
            (2, vec!["web"], vec!["db"])
        );
        // What is one's plug and another's alias.
        let domains = all(&devices, &[list(&[("a", "b"), ("b", "c")]), list(&[])]);
        assert_eq!(find(&domains, "b").len(), 2);
    }

    #[test]
    fn a_name_that_is_the_uuid_of_another_means_neither() {
        let devices = devices(&[&format!("domain = \"db\" {{ uuid = \"{UUID}\"; }}"), "plugs = \"*\";"]);
        let domains = all(&devices, &[None, list(&[("7", UUID)])]);
        let meant = |only_uuid| {
            let found = meant(&domains, &Target::new(UUID, only_uuid).unwrap());
            found.iter().map(|it| it.ways.clone()).collect::<Vec<_>>()
        };
        let (db, other) = (vec![(0, "db".to_owned())], vec![(1, "7".to_owned())]);
        assert_eq!(meant(false).len(), 2, "{domains:?}");
        assert!(meant(false).contains(&db) && meant(false).contains(&other));
        assert_eq!(find(&domains, "db"), ["db"]);
    }

    #[test]
    fn what_is_named_and_listed() {
        let devices = devices(&[
            &format!("plugs = \"*\"; domain = \"Web\" {{ plug = \"{UUID}\"; }}"),
            "plugs = \"*\";",
        ]);
        let domains = all(&devices, &[list(&[(UUID, "web1"), ("2", "db")]), list(&[(UUID, "web1")])]);
        assert_eq!(find(&domains, "web1"), ["Web"]);
        assert_eq!(meant(&domains, &Target::new(UUID, true).unwrap())[0].ways.len(), 2);
        // The same name, and another plug: who knows.
        let devices = self::devices(&["plugs = \"web:7\";", "plugs = \"*\";"]);
        let domains = all(&devices, &[None, list(&[("8", "web")])]);
        assert_eq!(find(&domains, "web").len(), 2);
        let domains = all(&devices, &[None, list(&[("7", "web")])]);
        assert_eq!((find(&domains, "web").len(), domains[0].ways.len()), (1, 2));
        let domains = all(&devices, &[None, list(&[("7", "other")])]);
        assert_eq!((domains.len(), domains[0].ways.len()), (2, 1));
    }

    #[test]
    fn names_that_came_cut() {
        let long = "x".repeat(Target::MAX + 5);
        let devices = devices(&[&format!("plugs = \"{long}\";")]);
        let domains = all(&devices, &[None]);
        assert_eq!(find(&domains, &long[..Target::MAX]).len(), 1);
        assert!(find(&domains, &long[..Target::MAX - 1]).is_empty());
    }

    #[test]
    fn what_reads_as_a_uuid() {
        for text in ["5A40A06F-1a5b-4d2e-9d2c-8b3f0b1f4f1c", "5a40a06f1a5b4d2e9d2c8b3f0b1f4f1c", UUID] {
            assert_eq!(uuid_in(text).map(|it| it.to_string()).as_deref(), Some(UUID));
        }
        for text in [
            "",
            "web",
            "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1",
            "5a40a06f-1a5b4-d2e-9d2c-8b3f0b1f4f1c",
            "gg40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c",
        ] {
            assert_eq!(uuid_in(text), None, "{text}");
        }
    }
}
