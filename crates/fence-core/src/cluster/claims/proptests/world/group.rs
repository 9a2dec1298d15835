// SPDX-License-Identifier: GPL-2.0-or-later
//! Corosync's part of the world: one order for all members of a component.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Heard, Host, Packet, Place, Step, World, node};
use crate::cluster::claims::ClusterArbiter;
use crate::cluster::message::{HostMessage, Member};

impl World {
    pub(super) fn begin(&mut self, place: Place) {
        let member = Member { node: node(place), pid: self.next_pid };
        self.next_pid += 1;
        self.hosts[place] = Some(Host {
            member,
            claims: ClusterArbiter::new(u64::from(member.pid) << 32, self.start),
            jobs: BTreeMap::new(),
            served: BTreeMap::new(),
            out: VecDeque::new(),
            inbox: VecDeque::new(),
            members: BTreeSet::new(),
            at: (0, 0),
            next_ask: u64::from(member.pid) << 32,
            restored: BTreeMap::new(),
            stopped: false,
            joined: false,
        });
        // Each second daemon has a file of intents.
        if member.pid.is_multiple_of(2) {
            self.restore(place);
        }
        self.connect(place);
    }

    pub(super) fn connect(&mut self, place: Place) {
        self.host(place).inbox.push_back(Heard::Joined);
        self.component[place] = Some(self.component.iter().flatten().copied().min().unwrap_or(0));
        self.change(self.component[place]);
    }

    pub(super) fn leave(&mut self, place: Place) {
        let from = self.component[place].take();
        if from.is_some() {
            self.change(from);
        }
    }

    pub(super) fn members(&self, component: usize) -> BTreeSet<Member> {
        let all = self.hosts.iter().zip(&self.component);
        all.filter(|(_, it)| **it == Some(component))
            .filter_map(|(host, _)| Some(host.as_ref()?.member))
            .collect()
    }

    pub(super) fn change(&mut self, component: Option<usize>) {
        let members = self.members(component.unwrap_or(usize::MAX));
        self.change_to(component, &members);
    }

    pub(super) fn change_to(&mut self, component: Option<usize>, members: &BTreeSet<Member>) {
        self.changes += 1;
        for (host, at) in self.hosts.iter_mut().zip(&self.component) {
            if let Some(host) = host.as_mut().filter(|_| *at == component) {
                host.inbox.push_back(Heard::Change(self.changes, members.clone()));
            }
        }
    }

    pub(super) fn order(&mut self, place: Place) {
        let component = self.component[place];
        let host = self.host(place);
        let (from, packet) = (host.member, host.out.pop_front().unwrap());
        self.note_order(from, &packet);
        for (host, at) in self.hosts.iter_mut().zip(&self.component) {
            if let Some(host) = host.as_mut().filter(|_| *at == component) {
                host.inbox.push_back(Heard::Packet(from, packet.clone()));
            }
        }
    }

    /// Notes where in the order a claim is made, and where its target is seen off.
    fn note_order(&mut self, from: Member, packet: &Packet) {
        let Packet::Said(message) = packet else { return };
        let now = self.event;
        match message {
            HostMessage::Claim(claim) => drop(self.claimed.entry((from, claim.id)).or_insert(now)),
            HostMessage::SeenOff { id, .. } => drop(self.seen.entry((from, *id)).or_insert(now)),
            HostMessage::Progress { asker, claim, .. } => {
                self.seen.entry((*asker, *claim)).or_insert(now);
            }
            HostMessage::Sync(sync) => {
                let own = sync.in_flight.iter().map(|it| (from, it));
                let of_others = sync.acting.iter().map(|it| (it.asker, &it.held));
                for (asker, held) in own.chain(of_others).filter(|(_, it)| it.seen_off) {
                    self.seen.entry((asker, held.claim.id)).or_insert(now);
                }
                for claim in &sync.waiting {
                    self.claimed.entry((from, claim.id)).or_insert(now);
                }
            }
            _ => {}
        }
    }

    pub(super) fn hear(&mut self, place: Place) {
        let nodes = (0..self.hosts.len()).map(node).collect();
        let host = self.hosts[place].as_mut().expect("a daemon");
        let me = host.member;
        let heard = host.inbox.pop_front().unwrap();
        host.at.1 += 1;
        let effects = match heard {
            Heard::Joined => {
                host.joined = true;
                let mut effects = host.claims.joined(me);
                // Corosync runs at all hosts.
                effects.extend(host.claims.heard_nodes(nodes));
                effects
            }
            Heard::Lost => {
                for id in host.jobs.keys() {
                    self.claimed.entry((me, *id)).or_insert(self.event);
                }
                host.joined = false;
                host.members.clear();
                host.out.clear();
                host.at = (0, 0);
                host.claims.lost()
            }
            Heard::Change(number, members) => {
                host.at = (number, 0);
                host.members.clone_from(&members);
                host.claims.change(&members)
            }
            Heard::Packet(from, Packet::Said(message)) => {
                let effects = host.claims.message(from, &message);
                self.obey(place, effects);
                self.take_ask_message(place, from, message);
                Vec::new()
            }
            Heard::Packet(from, Packet::Go(to, ask, left)) => {
                if to == me
                    && let Some(served) = host.served.get_mut(&(from, ask))
                {
                    served.step = Step::Acting;
                    served.until += left;
                }
                Vec::new()
            }
        };
        self.obey(place, effects);
        self.expire(place);
        self.end_lost_asks(place);
        self.compare(place);
    }

    /// Asserts that replicas of hosts that heard the same are the same.
    pub(super) fn compare(&mut self, place: Place) {
        let host = self.host(place);
        let (at, view) = (host.at, &host.claims.epoch);
        if at.0 > 0 {
            let replica = format!("{view:?}");
            let known = self.replicas.entry(at).or_insert_with(|| replica.clone());
            assert!(*known == replica, "replicas differ at {at:?}:\n{known}\n{replica}");
        }
    }

    pub(super) fn send(&mut self, place: Place, packet: Packet) {
        let host = self.host(place);
        if host.joined {
            host.out.push_back(packet);
        }
    }

    /// Cuts a host off from corosync; it loses all that it has not sent or heard.
    pub(super) fn disconnect(&mut self, place: Place) {
        self.leave(place);
        let host = self.host(place);
        host.out.clear();
        host.inbox = VecDeque::from([Heard::Lost]);
    }

    /// Cuts a component in two, before this host.
    pub(super) fn split(&mut self, place: Place) {
        let from = self.component[place];
        let free = (0..).find(|it| !self.component.contains(&Some(*it)));
        self.component[place] = free;
        // The hosts behind it go with it, or not.
        for other in place + 1..self.hosts.len() {
            if self.component[other] == from && (other + self.plans.len()).is_multiple_of(2) {
                self.component[other] = free;
            }
        }
        self.change(from);
        self.change(free);
    }

    /// Joins two components.
    pub(super) fn merge(&mut self, first: usize, second: usize) {
        // One side may see the others come one by one.
        let mut some = self.members(first);
        some.extend(self.members(second).into_iter().next());
        if self.plans.len().is_multiple_of(2) {
            self.change_to(Some(first), &some);
        }
        for it in &mut self.component {
            *it = if *it == Some(second) { Some(first) } else { *it };
        }
        self.change(Some(first));
    }
}
