// SPDX-License-Identifier: GPL-2.0-or-later
//! The key pairs by which nodes of this cluster are known in the messages between hosts.
//!
//! A host that is heard by these messages is asked by them, unless it is a node: corosync knows a node, asks
//! it and tells of its end. Each daemon tells the others its key pair in the process group, where corosync
//! vouches for the sender. Owns what was told, over restarts too: a node that is down tells nothing. Must
//! never take a host for a node that corosync's node list does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::cluster::message::{HostMessage, Member};
use fence_core::hosts::HostRun;
use fence_wire::HostId;

use crate::nodes::keys::NodeKey;

/// Time after this host joined in which the others tell their keys. Those of older versions tell none.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// Keys that the nodes told.
#[derive(Default)]
pub(super) struct NodeKeys {
    pub(super) own: Option<(HostId, HostRun)>,
    /// By node: the last daemon there that told its key; none of an earlier run of this one.
    told: BTreeMap<u32, (Option<Member>, HostId, HostRun)>,
    /// Moment when this host joined.
    joined: Option<Instant>,
    /// Nodes of corosync's list with their addresses, when they were compared last.
    nodes: BTreeMap<u32, Vec<IpAddr>>,
    pub(super) on_change: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl NodeKeys {
    pub(super) fn joined(&mut self) {
        self.joined = Some(Instant::now());
    }

    /// Notes what a daemon told.
    pub(super) fn note(&mut self, from: Member, id: &str, run: u64) {
        if let Some(id) = HostId::from_text(id) {
            self.told.insert(from.node, (Some(from), id, run.to_be_bytes()));
        }
    }

    /// Takes the keys that were told to an earlier run. A node that has told one since is known better.
    pub(super) fn restore(&mut self, keys: Vec<NodeKey>) {
        for NodeKey { node, told, .. } in keys {
            if let Some((id, run)) = told {
                self.told.entry(node).or_insert((None, id, run));
            }
        }
    }

    /// Returns what a later run must know of the nodes of the list; none while the list is not known.
    pub(super) fn remembered(&self) -> Vec<NodeKey> {
        let key = |(node, addresses): (&u32, &Vec<IpAddr>)| NodeKey {
            node: *node,
            told: self.told.get(node).map(|(_, id, run)| (*id, *run)),
            addresses: addresses.clone(),
        };
        self.nodes.iter().map(key).collect()
    }

    /// Returns the message with the key of this host; none while there is nothing to tell.
    pub(super) fn telling(&self) -> Option<HostMessage> {
        let (id, run) = self.own?;
        Some(HostMessage::HostKey { id: id.to_string(), run: u64::from_be_bytes(run) })
    }

    /// Takes corosync's list. A node that was taken out of it is asked by messages from now on, and must be
    /// heard soon for that: returns whom to call then.
    pub(super) fn listed(
        &mut self,
        nodes: BTreeMap<u32, Vec<IpAddr>>,
    ) -> Option<Arc<dyn Fn() + Send + Sync>> {
        let is_out = self.nodes.keys().any(|it| !nodes.contains_key(it));
        self.nodes = nodes;
        self.on_change.clone().filter(|_| is_out)
    }

    /// Returns true if a node of the list told this key, and this run if one is given.
    pub(super) fn has(&self, id: HostId, run: Option<HostRun>) -> bool {
        self.remembered().iter().any(|it| it.has(id, run))
    }

    /// Returns true if a node of the list has this address, and told this key if one is given.
    pub(super) fn has_at(&self, id: Option<HostId>, address: IpAddr) -> bool {
        self.remembered().iter().any(|it| it.is_at(id, address))
    }

    pub(super) fn are_known(&self, me: Option<Member>, members: &BTreeSet<Member>) -> bool {
        let has_told = |it: &Member| self.told.get(&it.node).is_some_and(|(member, ..)| *member == Some(*it));
        let is_late = self.joined.is_some_and(|it| it.elapsed() >= TELL_LIMIT);
        me.is_some_and(|me| has_told(&me)) && (is_late || members.iter().all(has_told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: HostRun = [7; 8];

    fn id(number: u8) -> HostId {
        HostId([number; 8])
    }

    fn told() -> NodeKeys {
        let mut keys = NodeKeys::default();
        keys.listed([(1, Vec::new()), (2, Vec::new())].into());
        for node in [1, 2] {
            let member = Member { node, pid: 10 };
            keys.note(member, &id(node.try_into().unwrap()).to_string(), u64::from_be_bytes(RUN));
        }
        keys
    }

    #[test]
    fn a_host_that_corosync_does_not_list_is_no_node() {
        let mut keys = told();
        assert!(keys.has(id(2), Some(RUN)) && keys.has(id(2), None));
        assert!(!keys.has(id(3), None), "a host that told nothing");
        // A copy of its state directory at a host that is no node.
        assert!(!keys.has(id(2), Some([8; 8])));
        keys.listed([(1, Vec::new())].into());
        assert!(!keys.has(id(2), Some(RUN)), "it was taken out, and may run domains");
        keys.listed(BTreeMap::new());
        assert!(!keys.has(id(1), Some(RUN)), "nobody knows the nodes");
    }

    #[test]
    fn a_node_that_is_down_is_known_after_a_restart() {
        let mut old = told();
        old.listed([(1, Vec::new()), (2, vec![IpAddr::from([10, 0, 0, 2])])].into());
        let mut keys = NodeKeys::default();
        keys.restore(old.remembered());
        assert!(!keys.has(id(2), None), "the list is not known yet");
        keys.listed([(1, Vec::new()), (2, vec![IpAddr::from([10, 0, 0, 2])])].into());
        assert!(keys.has(id(2), None) && !keys.has(id(2), Some([8; 8])));
        assert!(keys.has_at(Some(id(2)), IpAddr::from([10, 0, 0, 2])));
        // A node that is installed anew.
        keys.note(Member { node: 2, pid: 11 }, &id(5).to_string(), 1);
        keys.restore(old.remembered());
        assert!(keys.has(id(5), None) && !keys.has(id(2), None));
        // One that was taken out of the list is not written down.
        keys.listed([(1, Vec::new())].into());
        assert!(keys.remembered().iter().all(|it| it.node == 1));
    }

    #[test]
    fn this_host_speaks_when_all_were_told_or_those_that_tell_nothing_had_time() {
        let mut keys = told();
        let [me, other, old] = [(1, 10), (2, 10), (3, 10)].map(Member::from);
        assert!(!keys.are_known(None, &[me].into()));
        assert!(keys.are_known(Some(me), &[me, other].into()));
        assert!(!keys.are_known(Some(me), &[me, other, old].into()));
        assert!(
            !keys.are_known(Some(Member { node: 1, pid: 11 }), &[other].into()),
            "told by another daemon"
        );
        keys.joined = Instant::now().checked_sub(TELL_LIMIT);
        assert!(keys.are_known(Some(me), &[me, other, old].into()));
    }
}
