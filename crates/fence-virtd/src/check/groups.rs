// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of the `groups`: who may fence whom, and members that are no domain of this host.
//!
//! Values only; must never ask anybody.

use fence_config::{Config, Group};
use fence_core::domain::DomainId;
use fence_wire::escaped;

use super::finding::Finding;
use super::hosts::CheckedDomain;
use crate::listener::keys::shown_group;
use crate::util::first_names;

/// Most names that a line shows.
const SHOWN: usize = 12;

/// Says for each group who may fence whom, and warns of members that name no domain. `own` are the domains of
/// this host; none where they are not known as a whole.
pub(super) fn all(config: &Config, own: Option<&[CheckedDomain]>) -> Vec<Finding> {
    let groups = config.groups.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for (place, group) in groups.iter().enumerate() {
        let title = shown_group(place, group);
        found.push(Finding::ok("groups", title.clone(), rule(config, group)));
        let unknown = own.map(|own| unknown_members(group, own)).unwrap_or_default();
        if !unknown.is_empty() {
            let text =
                format!("no domain of this host has the name or UUID {}", first_names(&unknown, SHOWN));
            let next = "look for a mistyped name with: virsh list --all; a domain of another host, or one \
                        that is made later, is no mistake";
            found.push(Finding::warning("groups", title, text, next));
        }
    }
    found
}

/// Returns the rule of a group in words.
fn rule(config: &Config, group: &Group) -> String {
    let mut sources: Vec<String> = group.ips.iter().map(|it| escaped(it.as_str()).to_string()).collect();
    let has_own_key = !group.key_files.is_empty();
    // A serial line shows no key. By a network a domain is known only where the group lists no address.
    let by_serial = config.serial().is_some() && !has_own_key;
    let by_network = config.listeners.iter().any(|it| it.keys().is_some());
    let by_cards = by_network && sources.is_empty() && !has_own_key;
    let known_by = match (by_cards, by_serial) {
        (true, true) => Some("network cards or serial lines"),
        (true, false) => Some("network cards"),
        (false, true) => Some("serial lines"),
        (false, false) => None,
    };
    if let Some(known_by) = known_by.filter(|_| !group.uuids.is_empty()) {
        sources.push(format!("its domains, known by their {known_by},"));
    }
    let members: Vec<String> = group.uuids.iter().map(|it| escaped(it.as_str()).to_string()).collect();
    let whom = if members.is_empty() { "nobody".to_owned() } else { first_names(&members, SHOWN) };
    if sources.is_empty() && has_own_key {
        return format!("whoever has a key of the group (`key_file`) may fence {whom}, from any address");
    }
    let who = if sources.is_empty() {
        "nobody (the group has no `ip` and no `uuid`)".to_owned()
    } else {
        first_names(&sources, SHOWN)
    };
    let key = if has_own_key { "a key of its own" } else { "the listener's key" };
    format!("{who} may fence {whom}, with {key}")
}

/// Returns the members that name no domain of this host.
fn unknown_members(group: &Group, own: &[CheckedDomain]) -> Vec<String> {
    let is_known = |member: &str| {
        let uuid = DomainId::parse_any_dashes(member);
        own.iter().any(|it| it.name.eq_ignore_ascii_case(member) || uuid.is_some_and(|uuid| it.uuid == uuid))
    };
    let unknown = group.uuids.iter().filter(|it| !is_known(it));
    unknown.map(|it| escaped(it.as_str()).to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::FindingLevel;
    use super::*;

    const UUID: &str = "11111111-2222-3333-4444-555555555555";

    fn said(listeners: &str, groups: &str, own: Option<&[CheckedDomain]>) -> Vec<(FindingLevel, String)> {
        let text = format!(
            "fence_virtd {{ listener = \"multicast\"; backend = \"libvirt\"; }} listeners {{ {listeners} }} \
             backends {{ libvirt {{ }} }} groups {{ {groups} }}"
        );
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        all(&config, own).iter().map(|it| (it.result, it.lines())).collect()
    }

    fn domain(name: &str) -> CheckedDomain {
        let uuid = DomainId::parse_canonical(UUID).unwrap();
        CheckedDomain { uri: "qemu:///system".to_owned(), uuid, name: name.to_owned(), is_on: true }
    }

    #[test]
    fn who_may_fence_whom_is_a_line_for_each_group() {
        let found = said(
            "multicast { }",
            "group { name = \"web\"; ip = \"10.0.0.1\"; ip = \"10.0.0.2\"; uuid = \"web1\"; \
             uuid = \"web2\"; } group { uuid = \"db1\"; }",
            None,
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].1.contains("10.0.0.1, 10.0.0.2 may fence web1, web2, with the listener's key"),
            "{found:?}"
        );
        assert!(found[1].1.contains("its domains, known by their network cards, may fence db1"), "{found:?}");
    }

    #[test]
    fn a_key_of_its_own_opens_a_group_without_addresses() {
        let serial = "multicast { } serial { uri = \"u\"; mode = \"vmchannel\"; }";
        for listeners in ["multicast { }", serial] {
            let group = "group { key_file = \"/etc/cluster/red.key\"; uuid = \"web1\"; }";
            let found = said(listeners, group, None);
            let words = "whoever has a key of the group (`key_file`) may fence web1, from any address";
            assert!(found[0].1.contains(words), "{found:?}");
        }
    }

    #[test]
    fn a_member_that_is_no_domain_of_this_host_is_named() {
        let group =
            format!("group {{ ip = \"10.0.0.1\"; uuid = \"web1\"; uuid = \"wbe2\"; uuid = \"{UUID}\"; }}");
        let own = [domain("web1")];
        let found = said("multicast { }", &group, Some(&own));
        let warned: Vec<_> = found.iter().filter(|it| it.0 == FindingLevel::Warning).collect();
        assert!(
            warned.len() == 1 && warned[0].1.contains("name or UUID wbe2") && !warned[0].1.contains("web1,"),
            "{found:?}"
        );
        // Not known as a whole: nothing is missing for certain.
        assert!(said("multicast { }", &group, None).iter().all(|it| it.0 == FindingLevel::Ok));
    }
}
