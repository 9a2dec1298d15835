// SPDX-License-Identifier: GPL-2.0-or-later
//! Who has which domain, as far as this host heard. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;
use super::message::{Domain, Member, Message, State};

#[derive(Default)]
pub(super) struct Book {
    hosts: BTreeMap<Member, Host>,
}

#[derive(Default)]
struct Host {
    whole: bool,
    domains: BTreeMap<String, Domain>,
}

impl Book {
    pub(super) fn members(&mut self, members: &BTreeSet<Member>) {
        self.hosts.retain(|it, _| members.contains(it));
        for it in members {
            self.hosts.entry(*it).or_default();
        }
    }

    pub(super) fn heard(&mut self, from: Member, message: &Message) {
        let Some(host) = self.hosts.get_mut(&from) else { return };
        match message {
            Message::Inventory { first, last, domains } => {
                if *first {
                    host.domains.clear();
                }
                host.domains.extend(domains.iter().map(|it| (it.uuid.clone(), it.clone())));
                host.whole = *last;
            }
            Message::Domain(domain) => drop(host.domains.insert(domain.uuid.clone(), domain.clone())),
            Message::DomainGone { uuid } => drop(host.domains.remove(uuid)),
            _ => {}
        }
    }

    pub(super) fn named(&self, text: &str, only_uuid: bool) -> Vec<(String, String)> {
        let all = || self.hosts.values().flat_map(|it| it.domains.values());
        let mut found: Vec<_> = all().filter(|it| it.uuid.eq_ignore_ascii_case(text)).collect();
        if found.is_empty() && !only_uuid {
            found = all().filter(|it| it.name == text).collect();
        }
        let mut named: Vec<(String, String)> = Vec::new();
        for it in found {
            if named.iter().all(|(_, uuid)| *uuid != it.uuid) {
                named.push((it.name.clone(), it.uuid.clone()));
            }
        }
        named
    }

    pub(super) fn place(&self, uuid: &str, missing: &[String]) -> Place {
        let with = |state: fn(State) -> bool| -> Vec<Member> {
            self.hosts
                .iter()
                .filter(|(_, it)| it.domains.get(uuid).is_some_and(|it| state(it.state)))
                .map(|(member, _)| *member)
                .collect()
        };
        let on = with(|it| it == State::On);
        if !on.is_empty() {
            return Place::On(on);
        }
        let (off, rests) = (with(|it| it == State::Off), with(|it| it == State::Rests));
        if off.is_empty() && rests.is_empty() {
            return Place::Unknown;
        }
        if !off.is_empty() || missing.is_empty() && self.hosts.values().all(|it| it.whole) {
            return Place::Off(off.into_iter().chain(rests).collect());
        }
        Place::Doubt(format!("it is off wherever it is known, and it may be on at {}", missing.join(", ")))
    }

    pub(super) fn others(&self, me: Member) -> impl Iterator<Item = &Domain> {
        self.hosts.iter().filter(move |(it, _)| **it != me).flat_map(|(_, it)| it.domains.values())
    }
}
