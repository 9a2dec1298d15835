// SPDX-License-Identifier: GPL-2.0-or-later
//! The hosts of a corosync cluster as one service: docs/cpg.md.
//!
//! Owns this daemon's membership of the two process groups, the directory of the other hosts' domains, the
//! claims, and the asks between hosts. One task receives the events of both groups, in corosync's order, and
//! never waits for anything else. Messages are handed to a link under the lock, so they are sent in the order
//! in which they were decided.
//!
//! [`state`] holds the data and the lock, with [`waiting`], [`silence`], [`legacy_table`] and [`asks`] below.
//! Above are [`claiming`], [`asker`], [`owner`], [`legacy`] and [`events`]; they know the data, and not each
//! other, but that events start work. [`elsewhere`] asks all other nodes before a domain is called off.
//! [`gone`] has the nodes that were taken out of the cluster.
//! [`survey`] asks all nodes for `--check`.
//! [`node_keys`] tells nodes from the hosts that corosync does not know.

mod asker;
mod asks;
mod away;
pub(crate) mod backend;
mod claiming;
mod elsewhere;
mod events;
mod gone;
mod legacy;
mod legacy_table;
pub(crate) mod link;
mod metrics;
#[cfg(test)]
#[path = "../../../corosync-cpg/tests/node/mod.rs"]
pub(crate) mod node;
mod node_keys;
pub(crate) mod own_domains;
mod owner;
mod resolve;
mod silence;
mod state;
mod survey;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use fence_config::CpgBackend as Settings;
use tokio::sync::watch;

use self::asks::{IncomingAsks, OutgoingAsks};
use self::elsewhere::OtherNodes;
use self::legacy_table::LegacyHosts;
use self::link::{Link, LinkReceiver};
use self::node_keys::NodeKeys;
use self::own_domains::OwnDomains;
use self::silence::NodeSilences;
use self::state::ClusterState;
use self::waiting::WaitingClaims;
use crate::backend::libvirt::LibvirtBackend;
use crate::host_down::{DownEvidence, clock};
use crate::nodes::NodeStore;
use crate::service::Service;
use fence_core::cluster::claims::ClusterArbiter;
use fence_core::cluster::directory::Directory;
use fence_core::cluster::recent_offs::RecentOffs;

pub(crate) use self::claiming::ClusterClaims;
pub(crate) use self::state::Cluster;

/// Events of both groups, kept until [`Cluster::serve`].
pub(crate) struct LinkEvents {
    events: LinkReceiver,
    legacy_events: LinkReceiver,
}

impl Cluster {
    /// Joins the groups, as soon as corosync is there. Must run inside the runtime.
    ///
    /// # Errors
    /// No threads or descriptors.
    pub(crate) fn start(
        settings: &Settings,
        local: Arc<LibvirtBackend>,
    ) -> io::Result<(Arc<Self>, LinkEvents)> {
        // The second group first, so that no host takes this one for a legacy host.
        let (link, events) = Link::start(&format!("{}-2", settings.group))?;
        let (legacy_link, legacy_events) = Link::start(&settings.group)?;
        let mut number = [0; 8];
        rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut number)
            .map_err(|error| io::Error::other(error.to_string()))?;
        // Far from the largest number, so that counting up does not wrap.
        let first_number = u64::from_le_bytes(number) >> 1;
        let state = ClusterState {
            me: None,
            why_not: "corosync has not answered yet".to_owned(),
            members: BTreeSet::new(),
            nodes: BTreeMap::new(),
            old_names: BTreeMap::new(),
            keys: NodeKeys::default(),
            asked_in_vain: BTreeSet::new(),
            silences: NodeSilences::default(),
            own: BTreeMap::new(),
            is_own_begun: false,
            is_own_complete: false,
            directory: Directory::default(),
            legacy: LegacyHosts::new(),
            legacy_since: BTreeMap::new(),
            ring: BTreeSet::new(),
            node_up_since: BTreeMap::new(),
            lost_nodes: BTreeMap::new(),
            joined_at: clock::now(),
            claims: ClusterArbiter::new(first_number, Instant::now()),
            waiting: WaitingClaims::default(),
            recent_offs: RecentOffs::default(),
            outgoing_asks: OutgoingAsks::new(first_number),
            incoming_asks: IncomingAsks::default(),
            stopping: false,
        };
        let this = Arc::new(Self {
            local,
            state: Mutex::new(state),
            link,
            legacy_link,
            name_mode: settings.name_mode,
            down_evidence: DownEvidence::new(&settings.host_down),
            changes: watch::Sender::new(0),
            service: OnceLock::new(),
        });
        this.local.ask_others(Arc::new(OtherNodes(Arc::downgrade(&this))));
        Ok((this, LinkEvents { events, legacy_events }))
    }

    /// Begins to work for other hosts. `state`: the state directory.
    pub(crate) fn serve(self: &Arc<Self>, started: LinkEvents, service: &Arc<Service>, state: Option<&Path>) {
        let _ = self.service.set(Arc::downgrade(service));
        if service.remembers_orders() {
            self.state().claims.tell_earlier();
        }
        let cluster = Arc::downgrade(self);
        OwnDomains::follow(self.local.hypervisors(), move |reading| {
            if let Some(cluster) = cluster.upgrade() {
                cluster.publish(reading);
            }
        });
        tokio::spawn(Arc::clone(self).run_dispatcher(started.events, started.legacy_events));
        tokio::spawn(Arc::clone(self).fail_late_legacy_requests());
        tokio::spawn(Arc::clone(self).exclude_silent_members());
        tokio::spawn(self.down_evidence.clone().watch_clock());
        tokio::spawn(Arc::clone(self).keep_nodes(state.map(NodeStore::at)));
        if let Some(state) = state {
            tokio::spawn(Arc::clone(self).keep_away(NodeStore::at(state)));
            tokio::spawn(Arc::clone(self).keep_survey(NodeStore::at(state)));
        }
    }

    /// Refuses further asks of other hosts: the daemon is about to end.
    pub(crate) fn stop(&self) {
        self.state().stopping = true;
    }

    /// Leaves the groups, so that the other hosts learn of it at once.
    pub(crate) async fn leave(&self) {
        tokio::join!(self.link.leave(), self.legacy_link.leave());
    }
}
