// SPDX-License-Identifier: GPL-2.0-or-later
//! Events of both process groups, in corosync's order, and the domains that this host publishes.
//!
//! One task receives the events. It never waits for anything else: work that takes time is a task of its own.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use corosync_cpg::{Node, Reason};
use libvirt_host::Uuid;
use tracing::{debug, info, warn};

use super::link::{LinkEvent, LinkReceiver};
use super::own_domains::{OwnDomain, OwnPower, OwnReading};
use super::owner;
use super::state::{Cluster, ClusterState, hold_leases};
use crate::backend::libvirt::DomainHere;
use crate::host_down::{LostHost, clock};
use crate::hypervisor::uuid::libvirt_uuid;
use fence_core::cluster::message::{
    AskEnd, AskMessage, HostMessage, Member, PublishedDomain, PublishedState,
};
use fence_core::domain::{DomainId, LocateError};
use fence_core::evidence::Sight;

/// Both groups.
impl Cluster {
    /// Receives the events of both groups until the links end.
    pub(super) async fn run_dispatcher(self: Arc<Self>, mut events: LinkReceiver, mut legacy: LinkReceiver) {
        loop {
            tokio::select! {
                // The second group tells members from legacy hosts, so its events come first.
                biased;
                event = events.next() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                event = legacy.next() => match event {
                    Some(event) => self.on_legacy_event(event),
                    None => return,
                },
            }
            self.notify_waiters();
        }
    }

    fn on_event(self: &Arc<Self>, event: LinkEvent) {
        match event {
            LinkEvent::Joined { me, nodes } => self.on_joined(member(me), nodes),
            LinkEvent::NodeList { nodes } => {
                let mut state = self.state();
                state.set_nodes(nodes);
                self.update_losses(&mut state);
            }
            LinkEvent::Ring { nodes } => self.on_ring(&nodes),
            LinkEvent::Message { from, data } => self.on_message(member(from), &data),
            LinkEvent::Change { members, left, joined } => self.on_change(&members, &left, &joined),
            LinkEvent::Lost(why) => self.on_lost(why),
        }
    }

    fn on_legacy_event(self: &Arc<Self>, event: LinkEvent) {
        match event {
            LinkEvent::Joined { me, .. } => self.legacy_joined(me.node),
            LinkEvent::Message { from, data } => self.legacy_message(member(from), &data),
            LinkEvent::Change { members, left, .. } => {
                let left: Vec<Member> = left.iter().map(|(it, _)| member(*it)).collect();
                self.legacy_change(members.into_iter().map(member).collect(), &left);
            }
            LinkEvent::Lost(_) => self.legacy_lost(),
            // The second group reports the same.
            LinkEvent::NodeList { .. } | LinkEvent::Ring { .. } => {}
        }
    }
}

/// The second group.
impl Cluster {
    /// Notes the nodes that corosync hears now, whatever runs on them.
    fn on_ring(&self, nodes: &[u32]) {
        let mut state = self.state();
        // Nodes that were there before this host count from the moment when this host joined.
        let came = if state.node_up_since.is_empty() { state.joined_at } else { clock::now() };
        for node in nodes {
            state.node_up_since.entry(*node).or_insert(came);
        }
        state.ring = nodes.iter().copied().collect();
        self.update_losses(&mut state);
        let victims = self.note_nodes(&mut state);
        drop(state);
        self.report_victims(victims);
    }

    fn update_losses(&self, state: &mut ClusterState) {
        let known: BTreeSet<u32> = state.nodes.keys().chain(state.node_up_since.keys()).copied().collect();
        for node in known {
            if state.ring.contains(&node) {
                if let Some(loss) = state.lost_nodes.remove(&node) {
                    loss.ended();
                }
            } else if !state.lost_nodes.contains_key(&node) {
                let name = state.nodes.get(&node).cloned().flatten();
                let name = name.or_else(|| state.old_names.get(&node).cloned());
                let since = state.node_up_since.remove(&node).unwrap_or(state.joined_at);
                state.lost_nodes.insert(node, self.down_evidence.lost(node, name, since));
            }
        }
    }

    fn on_joined(&self, me: Member, nodes: Option<Vec<Node>>) {
        let mut state = self.state();
        state.me = Some(me);
        state.joined_at = clock::now();
        state.keys.joined();
        state.recent_offs.joined(Instant::now());
        state.set_nodes(nodes);
        let effects = state.claims.joined(me);
        let victims = self.carry_out(&mut state, effects);
        drop(state);
        self.report_victims(victims);
        info!(node = me.node, "joined the process group of this cluster's hosts");
    }

    fn on_lost(&self, why: String) {
        warn!("corosync is lost: {why}; only what runs here can be fenced until it is back");
        let mut state = self.state();
        state.members.clear();
        state.refresh_members();
        state.incoming_asks.lost(None);
        let held = state.outgoing_asks.lost(None, "this host lost corosync");
        state.me = None;
        state.why_not = why;
        state.recent_offs.lost();
        let effects = state.claims.lost();
        let mut victims = self.carry_out(&mut state, effects);
        victims.extend(self.keep_orphans(&mut state));
        // A host may now come back and be lost again without an event here, so the evidence of a loss holds
        // no longer.
        mem::take(&mut state.lost_nodes).values().for_each(LostHost::ended);
        state.node_up_since.clear();
        state.ring.clear();
        drop(state);
        self.report_victims(victims);
        hold_leases(held);
    }

    fn on_change(
        &self,
        members: &[corosync_cpg::Member],
        left: &[(corosync_cpg::Member, Reason)],
        joined: &[(corosync_cpg::Member, Reason)],
    ) {
        let mut state = self.state();
        let Some(me) = state.me else { return };
        let mut held = Vec::new();
        for (gone, reason) in left {
            let gone = member(*gone);
            let name = state.name(gone.node);
            warn!(node = %name, ?reason, "a host left the process group");
            state.incoming_asks.lost(Some(gone));
            let why = format!("{name} left ({})", leave_reason(*reason));
            held.extend(state.outgoing_asks.lost(Some(gone), &why));
        }
        for (new, _) in joined.iter().filter(|(it, _)| member(*it) != me) {
            info!(node = %state.name(new.node), "a host joined the process group");
        }
        state.members = members.iter().copied().map(member).collect();
        state.refresh_members();
        let (all, now) = (state.members.clone(), Instant::now());
        let is_cut = left.iter().any(|(_, reason)| *reason == Reason::NodeDown);
        state.recent_offs.members(&all, is_cut, now);
        if !joined.is_empty() {
            // Before the sync: a new daemon knows them when its first claim is granted.
            let offs = state.recent_offs.telling(now);
            offs.into_iter().chain(state.keys.telling()).for_each(|it| _ = self.send(&it));
        }
        let effects = state.claims.change(&all);
        let mut victims = self.carry_out(&mut state, effects);
        victims.extend(self.keep_orphans(&mut state));
        self.publish_all_to_legacy(&state);
        if !joined.is_empty() {
            self.publish_all(&state);
        }
        drop(state);
        self.report_victims(victims);
        hold_leases(held);
    }

    fn on_message(self: &Arc<Self>, from: Member, data: &[u8]) {
        let message = match HostMessage::decode(data) {
            Ok(Some(message)) => message,
            Ok(None) => return debug!(%from, "a message of a kind that this version does not know"),
            Err(error) => return warn!(%from, "a message of another host is dropped: {error}"),
        };
        let mut state = self.state();
        let Some(me) = state.me.filter(|_| state.members.contains(&from)) else { return };
        state.recent_offs.message(from, &message, Instant::now());
        let effects = state.claims.message(from, &message);
        let victims = self.carry_out(&mut state, effects);
        match message {
            HostMessage::Inventory { first, last, domains } => {
                state.directory.inventory(from, first, last, domains);
            }
            HostMessage::NodeGone { node } => state.on_node_gone(from, node),
            HostMessage::HostKey { id, run } => state.keys.note(from, &id, run),
            HostMessage::Domain(domain) => state.directory.domain(from, domain),
            HostMessage::DomainGone { uuid } => state.directory.gone(from, &uuid),
            HostMessage::Ask(ask) if ask.to == me => self.on_ask(&mut state, from, ask),
            HostMessage::Go { to, ask, left_ms } if to == me => state.incoming_asks.go(from, ask, left_ms),
            HostMessage::Cancel { to, ask } if to == me => state.incoming_asks.cancel(from, ask),
            HostMessage::Taken { asker, ask, .. } if asker == me => {
                let go = state.outgoing_asks.taken(from, ask, Instant::now());
                self.send(&go);
            }
            HostMessage::Progress { asker, ask, was_off, starts, .. } if asker == me => {
                state.outgoing_asks.seen_off(from, ask, was_off, starts);
            }
            HostMessage::EarlyReply { asker, ask, end } if asker == me => {
                state.outgoing_asks.early_reply(from, ask, end);
            }
            HostMessage::Hangs { asker, ask: Some(ask), .. } if asker == me => {
                state.outgoing_asks.hangs(from, ask);
            }
            HostMessage::Reply { asker, ask, end, .. } if asker == me => {
                state.outgoing_asks.reply(from, ask, end);
            }
            _ => {}
        }
        drop(state);
        self.report_victims(victims);
    }

    fn on_ask(self: &Arc<Self>, state: &mut ClusterState, from: Member, ask: AskMessage) {
        let refusal = match self.service().filter(|_| !state.stopping) {
            None => "the daemon there is about to end",
            Some(_) if !state.incoming_asks.begin(from, &ask) => {
                "that host does too much for other hosts already"
            }
            Some(service) => return drop(tokio::spawn(owner::serve(Arc::clone(self), service, from, ask))),
        };
        let end = AskEnd::NothingDone(refusal.to_owned());
        let claim = ask.claim.as_ref().map(|it| it.id);
        self.send_as_owner(state, &HostMessage::Reply { asker: from, ask: ask.ask, claim, end });
    }
}

/// This host's own domains.
impl Cluster {
    /// Publishes changes of this host's domains, those of each hypervisor as soon as that was read. The list
    /// is not complete before all of them were: so other hosts do not believe that a domain which is not read
    /// yet is not here.
    pub(super) fn publish(&self, reading: OwnReading) {
        let OwnReading { changes, is_first, is_complete } = reading;
        let mut state = self.state();
        state.is_own_complete = is_complete;
        state.is_own_begun = true;
        for (uuid, own) in changes {
            let message = match &own {
                Some(own) => HostMessage::Domain(published(uuid, own.clone())),
                None => HostMessage::DomainGone { uuid: uuid.to_string() },
            };
            match own {
                Some(own) => {
                    self.publish_to_legacy(&state, uuid, &own);
                    state.own.insert(uuid, own);
                }
                None => drop(state.own.remove(&uuid)),
            }
            if state.me.is_some() && !is_first {
                self.send(&message);
            }
        }
        if is_first {
            self.publish_all(&state);
        }
        drop(state);
        self.notify_waiters();
    }

    /// Compares what was found here for a UUID with what was published.
    pub(super) fn check_found(&self, uuid: &str, found: &Result<DomainHere, LocateError>) {
        match (DomainId::parse_canonical(uuid), found) {
            (Some(uuid), Ok(here)) => self.check_published(uuid, &here.sight),
            (Some(uuid), Err(LocateError::NotFound)) => self.check_published(uuid, &Sight::Absent),
            (_, Err(_)) | (None, Ok(_)) => {}
        }
    }

    /// Compares what a hypervisor of this host showed of a domain with what was published, and has the domain
    /// read and published again where they differ. No event tells of a machine whose end libvirt finds at its
    /// own start.
    pub(super) fn check_published(&self, uuid: DomainId, seen: &Sight) {
        let is_on = match seen {
            Sight::On => true,
            Sight::Off | Sight::Ended(_) | Sight::Absent | Sight::MovedAway(_) => false,
            Sight::Moving | Sight::Down(_) | Sight::Unknown(_) => return,
        };
        let uuid = libvirt_uuid(uuid);
        let published = self.state().own.get(&uuid).is_some_and(|it| it.power == OwnPower::On);
        if published != is_on {
            debug!(%uuid, is_on, "another power of a domain was published; the domain is read again");
            self.local.hypervisors().iter().for_each(|it| it.read_again(uuid));
        }
    }

    fn publish_all(&self, state: &ClusterState) {
        if state.me.is_some() && state.is_own_begun {
            let own: Vec<PublishedDomain> =
                state.own.iter().map(|(uuid, own)| published(*uuid, own.clone())).collect();
            for part in HostMessage::inventory(&own, state.is_own_complete) {
                self.send(&part);
            }
        }
    }
}

fn member(it: corosync_cpg::Member) -> Member {
    Member { node: it.node, pid: it.pid }
}

fn published(uuid: Uuid, own: OwnDomain) -> PublishedDomain {
    let state = match own.power {
        OwnPower::On => PublishedState::On,
        OwnPower::Gone => PublishedState::Gone,
        // Not `Off`: hosts of the last release would take what was seen here for evidence about all nodes.
        OwnPower::Resting | OwnPower::Away => PublishedState::Rests,
    };
    let is_away = own.power == OwnPower::Away;
    PublishedDomain { uuid: uuid.to_string(), name: own.name, state, is_away }
}

fn leave_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Leave => "the daemon there ended",
        Reason::ProcDown => "the daemon there died",
        Reason::NodeDown => "corosync does not hear that node any more",
        _ => "for a reason that is not known",
    }
}
