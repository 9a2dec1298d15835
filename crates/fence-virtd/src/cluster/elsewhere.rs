// SPDX-License-Identifier: GPL-2.0-or-later
//! Looks at all other nodes of the cluster, before a domain is called off.
//!
//! Every node of corosync's node list is a place where a domain may be. Its daemon is asked, after the
//! request came; a node whose daemon is not heard must be proved down, for this request. What the directory
//! says is no look: only of a legacy host, which can't be asked, it counts after the host has published its
//! domains once more. This code must never leave a node out, and never take silence for an answer.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fence_wire::{Action, HostId};

use super::state::Cluster;
use crate::backend::BoxedFuture;
use crate::backend::elsewhere::{DomainQuestion, NodeHosts, PeerHosts};
use crate::request::lease::Lease;
use crate::util::join::join_all;
use fence_core::cluster::directory::OtherNode;
use fence_core::cluster::message::{Member, PublishedState};
use fence_core::domain::{ActionError, DomainHome, DomainRef, TargetKind};
use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_core::hosts::HostRun;
use fence_core::owed_start::PlaceWord;

/// The other nodes, for the libvirt backend of this host.
pub(super) struct OtherNodes(pub(super) Weak<Cluster>);

impl PeerHosts for OtherNodes {
    fn shares_results(&self) -> bool {
        true
    }

    fn look<'a>(&'a self, question: &'a DomainQuestion, until: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(async move {
            // The nodes are not asked beside each power-off: they have one order of all requests. People who
            // start machines beside it are not in that order.
            if question.seeks_instance && !question.is_before_start {
                return Vec::new();
            }
            match self.0.upgrade() {
                Some(cluster) if question.seeks_instance => cluster.seek_elsewhere(question, until).await,
                Some(cluster) => cluster.look_elsewhere(question, until).await,
                None => vec![unknown("the cluster", "this daemon is about to end")],
            }
        })
    }

    /// Returns nothing: all nodes remember together, see [`Cluster::judge_owed_start`].
    fn recall<'a>(
        &'a self,
        _: &'a DomainQuestion,
        _: Instant,
    ) -> BoxedFuture<'a, Vec<(DomainSite, PlaceWord)>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

impl Cluster {
    /// Looks at each other node: one finding for each.
    pub(super) async fn look_elsewhere(
        self: &Arc<Self>,
        question: &DomainQuestion,
        until: Instant,
    ) -> Vec<Finding> {
        let nodes = match self.other_nodes(question) {
            Ok(nodes) => nodes,
            Err(why) => return vec![unknown("the cluster", &why)],
        };
        let is_legacy = |it: &OtherNode| matches!(it, OtherNode::Legacy(_));
        let (began, has_legacy) = (Instant::now(), nodes.iter().any(is_legacy));
        let poll = async { if has_legacy { self.poll_legacy_hosts(until).await } else { Vec::new() } };
        let asks = nodes.iter().filter_map(|it| match it {
            OtherNode::Heard(member) => Some(self.look_at(*member, question, until)),
            OtherNode::Legacy(_) | OtherNode::NotHeard(_) => None,
        });
        let (mut findings, silent) = tokio::join!(join_all(asks), poll);
        for it in &nodes {
            let OtherNode::Legacy(member) = it else { continue };
            // One of ours is in the first group a moment before it is in the second.
            findings.push(if self.is_legacy(*member) {
                self.look_at_legacy(*member, question, &silent, began)
            } else {
                self.look_at(*member, question, until).await
            });
        }
        // One that has it decides. A proof that others are down would only be waited for in vain.
        let is_on = findings.iter().any(|it| matches!(it.sight, Sight::On | Sight::Moving));
        let until = if is_on { began } else { until };
        let proofs = nodes.iter().filter_map(|it| match it {
            OtherNode::NotHeard(node) => Some(self.look_at_silence(*node, question, until)),
            OtherNode::Heard(_) | OtherNode::Legacy(_) => None,
        });
        findings.extend(join_all(proofs).await);
        findings
    }

    /// Looks at each other node that is heard. Those with an instance that is there to stay count: what only
    /// comes or goes may be a start that a node owes, of this very request.
    async fn seek_elsewhere(self: &Arc<Self>, question: &DomainQuestion, until: Instant) -> Vec<Finding> {
        let nodes = self.other_nodes(question).unwrap_or_default();
        let asks = nodes.iter().filter_map(|it| match it {
            OtherNode::Heard(member) => Some(self.look_at(*member, question, until)),
            OtherNode::Legacy(_) | OtherNode::NotHeard(_) => None,
        });
        join_all(asks).await.into_iter().filter(|it| it.sight == Sight::On).collect()
    }

    /// Returns all nodes but this one, and the one where the domain was on last, if that is lost.
    ///
    /// # Errors
    /// They are not known: why.
    pub(super) fn other_nodes(&self, question: &DomainQuestion) -> Result<Vec<OtherNode>, String> {
        let state = self.state();
        let Some(me) = state.me else { return Err(state.standalone_reason()) };
        if state.nodes.is_empty() {
            return Err("corosync.conf names no nodes, so the domain may be at one that is not heard".into());
        }
        let nodes = state.nodes.keys().copied();
        Ok(state.directory.other_nodes(me, nodes, &question.uuid.to_string()))
    }

    pub(super) async fn look_at(
        self: &Arc<Self>,
        member: Member,
        question: &DomainQuestion,
        until: Instant,
    ) -> Finding {
        let began = Instant::now();
        let domain = DomainRef {
            name: question.name.clone(),
            uuid: question.uuid,
            home: DomainHome::Elsewhere,
            by: TargetKind::Name,
        };
        // No client can end a look early; the deadline does.
        let (lease, _settled) = Lease::new(until, 0);
        let seen = match self.ask(member, Action::Status, &domain, true, &lease) {
            Ok(ask) => ask.sight(&lease).await,
            Err(error) => Err(error),
        };
        let (sight, namesakes) = match seen {
            Ok(seen) => seen,
            Err(ActionError::Gone) => (Sight::Absent, Vec::new()),
            Err(error) => (Sight::Unknown(error.to_string()), Vec::new()),
        };
        self.state().note_answer(member.node, !matches!(sight, Sight::Unknown(_)));
        Finding { place: self.site(member.node), sight, began, ended: Instant::now(), namesakes }
    }

    /// Reads what a legacy host has published since `began`, unless it is one of these silent ones.
    fn look_at_legacy(
        &self,
        member: Member,
        question: &DomainQuestion,
        silent: &[Member],
        began: Instant,
    ) -> Finding {
        let sight = if silent.contains(&member) {
            Sight::Unknown(format!("{} does not say whether the domain is on there", self.name(member)))
        } else if self.state().directory.has_namesake_on(member, &question.name, &question.uuid.to_string()) {
            Sight::Unknown(format!("{} runs another domain with this name", self.name(member)))
        } else {
            match self.published(member, question.uuid) {
                Some(PublishedState::On) => Sight::On,
                // It does not say when, nor of a machine that moved away that it did.
                Some(PublishedState::Off | PublishedState::Rests) => Sight::Off,
                Some(PublishedState::Gone) | None => Sight::Absent,
            }
        };
        Finding::without_namesakes(self.site(member.node), sight, began, Instant::now())
    }

    /// Asks whether a node without a daemon is down.
    async fn look_at_silence(&self, node: u32, question: &DomainQuestion, until: Instant) -> Finding {
        let began = Instant::now();
        // Then the instance has ended with the node, and no host has had another one since: it would not be
        // lost any more.
        let was_on = self.state().directory.is_lost_at(node, &question.uuid.to_string());
        let proof = self.prove_down(node, question.request_came, until).await;
        let sight = match proof.as_ref().map_err(Clone::clone).and_then(|it| it.evidence()) {
            Ok(_) if was_on => Sight::Ended(Some(Duration::ZERO)),
            Ok(evidence) => Sight::Down(evidence.to_owned()),
            Err(why) => Sight::Unknown(why),
        };
        Finding::without_namesakes(self.site(node), sight, began, Instant::now())
    }

    fn site(&self, node: u32) -> DomainSite {
        DomainSite::Host(self.state().name(node))
    }
}

impl NodeHosts for Cluster {
    fn tell_host(&self, id: HostId, run: HostRun, on_change: Arc<dyn Fn() + Send + Sync>) {
        let mut state = self.state();
        state.keys.own = Some((id, run));
        state.keys.on_change = Some(on_change);
        if let (true, Some(own)) = (state.me.is_some(), state.keys.telling()) {
            self.send(&own);
        }
    }

    fn are_known(&self) -> bool {
        let state = self.state();
        state.keys.are_known(state.me, &state.members)
    }

    fn is_node(&self, id: HostId, run: Option<HostRun>) -> bool {
        let state = self.state();
        // Without corosync nobody asks the nodes. They are nodes again when it is back.
        state.me.is_some() && state.keys.has(id, run)
    }

    fn is_node_at(&self, id: Option<HostId>, address: IpAddr) -> bool {
        let state = self.state();
        state.me.is_some() && state.keys.has_at(id, address)
    }
}

fn unknown(place: &str, why: &str) -> Finding {
    let now = Instant::now();
    let place = DomainSite::Host(place.to_owned());
    Finding::without_namesakes(place, Sight::Unknown(why.to_owned()), now, now)
}
