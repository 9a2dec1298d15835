// SPDX-License-Identifier: GPL-2.0-or-later
//! The other hosts of a host that is a node of a corosync cluster.
//!
//! Corosync knows the nodes. A host that is none and has the key of the hosts is asked as any other, for it
//! may have the same domains: one that was not changed to the cpg backend yet, or that was never made a
//! node. Must never hold up a cluster without such a host, and never count a node twice.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use fence_core::hosts::{HostRun, Respondent};
use fence_wire::{HostHello, HostId, escaped};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::limits::{MEET_NODES, NODES_PAUSE, NODES_ROUND, NODES_SETTLE};
use super::state::Peers;
use crate::backend::elsewhere::NodeHosts;
use crate::nodes::keys::NodeKey;
use crate::util::locks::lock;

impl Peers {
    /// Takes the cluster whose node this host is. Before it serves.
    pub(crate) fn use_nodes(&self, nodes: Arc<dyn NodeHosts>) {
        let _ = self.nodes.set(nodes);
    }

    /// Tells the other nodes the key of this host. Also one that speaks to no other host: they may remember
    /// it as one, of the time before it was a node.
    pub(super) fn tell_nodes(self: &Arc<Self>) {
        let Some(nodes) = self.nodes.get() else { return };
        let peers = Arc::downgrade(self);
        let on_change = Arc::new(move || {
            if let Some(peers) = peers.upgrade() {
                peers.say_hello_soon();
            }
        });
        nodes.tell_host(self.identity.id(), self.run, on_change);
    }

    /// Waits until the nodes know each other: before that they would take each other for other hosts.
    pub(super) async fn meet_nodes(&self) {
        let Some(nodes) = self.nodes.get() else { return };
        let known = async {
            while !nodes.are_known() {
                sleep(NODES_PAUSE).await;
            }
            // The word of this host is on its way to the other daemons.
            sleep(NODES_SETTLE).await;
        };
        if timeout(MEET_NODES, known).await.is_err() {
            debug!("the nodes of the cluster do not know each other yet; hello is said all the same");
        }
        let _ = self.has_met_nodes.set(());
    }

    /// Returns true if other nodes may hear a hello of this host.
    pub(super) fn may_speak(&self) -> bool {
        self.nodes.get().is_none() || self.has_met_nodes.get().is_some()
    }

    /// Returns true if this host is a node of a corosync cluster, and looks for hosts that are none.
    pub(super) fn is_beside_nodes(&self) -> bool {
        self.settings().has_nodes
    }

    /// Returns true for a node without corosync: it can't tell nodes from other hosts.
    pub(super) fn is_without_its_nodes(&self) -> bool {
        self.is_beside_nodes() && self.nodes.get().is_some_and(|it| !it.are_known())
    }

    /// Returns true for a hello of a node of this cluster.
    pub(super) fn is_of_node(&self, hello: &HostHello) -> bool {
        let id = HostId::of(&hello.public);
        self.nodes.get().is_some_and(|it| it.is_node(id, Some(hello.run)))
    }

    /// Returns true for the key of a node that is not asked as another host.
    pub(super) fn is_node_key(&self, id: HostId) -> bool {
        lock(&self.table).host(id).is_none() && self.nodes.get().is_some_and(|it| it.is_node(id, None))
    }

    /// Returns true for a host that is asked by its address of `peers`, or would be, and is a node.
    pub(super) fn is_listed_node(&self, address: &SocketAddr, who: Respondent) -> bool {
        // Where it is not known who answers, another host may be meant.
        let Some(nodes) = self.nodes.get().filter(|_| self.doubt(who).is_none()) else { return false };
        let ip = address.ip().to_canonical();
        match who {
            Respondent::Host(id) => {
                let run = lock(&self.table).latest_run(id);
                nodes.is_node(id, run) || nodes.is_node_at(Some(id), ip)
            }
            // Nobody ever answered there. Corosync's list names the same host by the same address.
            Respondent::Address(_) => nodes.is_node_at(None, ip),
        }
    }

    /// Returns the addresses of `peers` whose hosts are nodes of this cluster.
    pub(super) fn listed_nodes(&self) -> Vec<SocketAddr> {
        let who =
            |it: &SocketAddr| lock(&self.table).pinned(it).map_or(Respondent::Address(*it), Respondent::Host);
        self.listed().into_iter().filter(|it| self.is_listed_node(it, who(it))).collect()
    }

    /// Drops the nodes of this cluster, which may have been heard before they were nodes. Those that `peers`
    /// names stay bound to their addresses, and are not asked.
    pub(super) fn drop_nodes(&self) {
        let Some(nodes) = self.nodes.get() else { return };
        // A run is known for certain only where its successor would be heard.
        let is_heard = self.is_on();
        let is_node = |id, run: Option<HostRun>| nodes.is_node(id, run.filter(|_| is_heard));
        let dropped = lock(&self.table).drop_nodes(&self.listed(), is_node);
        if !dropped.is_empty() {
            self.changed.notify_one();
        }
        for host in dropped {
            debug!(host = %escaped(&host.to_string()), "a node of this cluster: corosync asks it");
        }
    }

    /// Returns the end of the time in which hosts that are no nodes are heard for the first time. Corosync
    /// names the others, so a multicast listener that is not up holds nothing up after that.
    pub(super) fn first_round_limit(&self, until: Instant) -> Instant {
        if self.is_beside_nodes() { until.min(self.made + MEET_NODES + NODES_ROUND) } else { until }
    }
}

/// The nodes as the daemon wrote them down, for a program beside it.
pub(super) struct WrittenNodes(pub(super) Vec<NodeKey>);

impl NodeHosts for WrittenNodes {
    fn tell_host(&self, _: HostId, _: HostRun, _: Arc<dyn Fn() + Send + Sync>) {}

    fn are_known(&self) -> bool {
        true
    }

    fn is_node(&self, id: HostId, run: Option<HostRun>) -> bool {
        self.0.iter().any(|it| it.has(id, run))
    }

    fn is_node_at(&self, id: Option<HostId>, address: IpAddr) -> bool {
        self.0.iter().any(|it| it.is_at(id, address))
    }
}
