// SPDX-License-Identifier: GPL-2.0-or-later
//! Nodes that were taken out of corosync's list of nodes.
//!
//! Nobody asks such a node any more, and what it had last stays in doubt: it may run there. An administrator
//! ends that with `fence_virtd --forget` at one node, which tells all members. Must never forget a node that
//! is in the list, that corosync hears, or that has a daemon in either group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fence_wire::escaped;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::state::{Cluster, ClusterState};
use crate::nodes::keys::NodeKey;
use crate::nodes::{KnownNode, NodeState, NodeStore, word_for};
use crate::util::backoff::OncePerReason;
use fence_core::cluster::message::{HostMessage, Member};

/// Pause between two looks at the nodes, and at those that are to be forgotten.
const PAUSE: Duration = Duration::from_secs(1);

impl Cluster {
    /// Tells of nodes that were taken out of the list, forgets those that an administrator names, and writes
    /// down what tells the nodes from other hosts. Never returns.
    pub(super) async fn keep_nodes(self: Arc<Self>, store: Option<NodeStore>) {
        let (mut written, mut gone) = (None, BTreeSet::new());
        let mut written_keys = self.restore_keys(store.clone()).await;
        let mut to_forget = BTreeSet::new();
        let mut logged = OncePerReason::default();
        loop {
            let nodes = self.state().known_nodes();
            log_gone(&nodes, &mut gone);
            if let Some(store) = &store {
                let new = Some(nodes).filter(|it| written.as_ref() != Some(it));
                let keys = self.state().keys.remembered();
                let new_keys = Some(keys).filter(|it| !it.is_empty() && written_keys != *it);
                match spawn_blocking({
                    let (store, new, new_keys) = (store.clone(), new.clone(), new_keys.clone());
                    move || {
                        new.map_or(Ok(()), |it| store.write(&it))?;
                        new_keys.map_or(Ok(()), |it| store.write_keys(&it))?;
                        store.take_forgotten()
                    }
                })
                .await
                {
                    Ok(Ok(asked)) => {
                        to_forget.extend(asked);
                        written = new.or(written);
                        written_keys = new_keys.unwrap_or(written_keys);
                        logged.forget();
                    }
                    Ok(Err(error)) if logged.is_new(&error.to_string()) => {
                        warn!("can't keep the nodes in the state directory: {error}; is it full?");
                    }
                    Ok(Err(_)) => {}
                    Err(_) => return,
                }
            }
            to_forget.retain(|node| !self.tell_forgotten(*node));
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads and takes what was known of the nodes in an earlier run.
    async fn restore_keys(&self, store: Option<NodeStore>) -> Vec<NodeKey> {
        let Some(store) = store else { return Vec::new() };
        let keys = spawn_blocking(move || store.read_keys()).await.unwrap_or_default();
        self.state().keys.restore(keys.clone());
        keys
    }

    /// Tells all members that a node is gone for good, unless it is not. Returns false while nobody can be
    /// told.
    fn tell_forgotten(&self, node: u32) -> bool {
        let state = self.state();
        if state.me.is_none() || state.nodes.is_empty() {
            return false;
        }
        match state.why_kept(node) {
            Some(why) => {
                warn!("{} is not forgotten: {why}", state.name(node));
                true
            }
            None => self.send(&HostMessage::NodeGone { node }),
        }
    }
}

/// Warns of nodes that are gone since the last look.
fn log_gone(nodes: &[KnownNode], before: &mut BTreeSet<u32>) {
    let is_gone = |it: &&KnownNode| it.state == NodeState::Gone;
    for node in nodes.iter().filter(is_gone).filter(|it| !before.contains(&it.id)) {
        warn!(
            domains = node.domains,
            "{node} was taken out of corosync's list of nodes: nobody asks that node any more. Power \
             that node off. Then, and not before: fence_virtd --forget {} on one node, so that domains that \
             were last seen there are called off again",
            word_for(node, nodes)
        );
    }
    *before = nodes.iter().filter(is_gone).map(|it| it.id).collect();
}

impl ClusterState {
    /// Forgets a node, by the word of an administrator at this member.
    pub(super) fn on_node_gone(&mut self, from: Member, node: u32) {
        let name = self.name(node);
        if let Some(why) = self.why_kept(node) {
            warn!(%from, "{name} is not forgotten: {why}");
            return;
        }
        let domains = self.directory.forget_lost(node);
        // Requests that wait for its proof go on to do so: what they looked at was before this word.
        self.lost_nodes.remove(&node);
        self.node_up_since.remove(&node);
        self.old_names.remove(&node);
        warn!(
            %from, domains,
            "an administrator said that {name} is gone for good: domains that were last seen there are \
             called off from now on without asking that node. One that had moved there from another node \
             may stay in doubt: fence_virtd --check on the node that the domain left names it"
        );
    }

    /// Returns why a node may not be forgotten; none if it may.
    fn why_kept(&self, node: u32) -> Option<&'static str> {
        let has_daemon = || self.members.iter().chain(self.legacy.members()).any(|it| it.node == node);
        if self.me.is_none() || self.nodes.is_empty() {
            Some("corosync's list of nodes is not known")
        } else if self.nodes.contains_key(&node) {
            Some("that node is in corosync's list of nodes")
        } else if self.ring.contains(&node) || has_daemon() {
            Some("that node is heard")
        } else {
            None
        }
    }

    /// Returns what an administrator can do about a node that is not heard, as the end of a reason; nothing
    /// for a node that is in the list.
    pub(super) fn step_for_gone(&self, node: u32) -> String {
        if self.why_kept(node).is_some() {
            return String::new();
        }
        let nodes = self.known_nodes();
        let word = nodes.iter().find(|it| it.id == node).map(|it| word_for(it, &nodes));
        format!(
            "; {} is no longer in corosync's list of nodes. If that node is gone for good and powered off: \
             fence_virtd --forget {} on one node",
            self.name(node),
            escaped(&word.unwrap_or_else(|| node.to_string()))
        )
    }

    /// Returns the nodes of the list, and those that were taken out of it and are not forgotten; none while
    /// the list is not known.
    fn known_nodes(&self) -> Vec<KnownNode> {
        if self.me.is_none() || self.nodes.is_empty() {
            return Vec::new();
        }
        let out = self.old_names.keys().chain(self.lost_nodes.keys()).chain(&self.ring);
        let lost = self.directory.lost_nodes();
        let ids: BTreeSet<u32> = self.nodes.keys().chain(out).copied().chain(lost).collect();
        let node = |id: u32| KnownNode {
            id,
            state: match self.why_kept(id) {
                None => NodeState::Gone,
                Some(_) if self.nodes.contains_key(&id) => NodeState::Listed,
                Some(_) => NodeState::Heard,
            },
            domains: self.directory.lost_at(id),
            name: self.nodes.get(&id).cloned().flatten().or_else(|| self.old_names.get(&id).cloned()),
        };
        ids.into_iter().map(node).collect()
    }
}
