// SPDX-License-Identifier: GPL-2.0-or-later
//! Orders of which no daemon of the group knows: those that were given before all of its daemons began.
//!
//! A daemon that joins is told by the others of each order that a daemon which ended has left behind
//! ([`super::orphans`]), and a daemon tells of the orders of the one before it on its host. If fence_virtd
//! was started anew at all hosts, nobody is left to tell of the orders of a host whose daemon is not there
//! yet. Such an order may take any domain of that host down. So a request that powers off, and that may come
//! from such a domain, is not claimed before that daemon has told what it left, or the time is over in which
//! an order can take effect. Pure: time and limits are parameters. [`super::claims`] holds the claims.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::message::Member;

/// Knowledge of the orders that may still take effect.
#[derive(Debug, Default)]
pub(super) struct UnknownOrders {
    /// Nodes that corosync hears, and on which no C daemon runs. Empty: not known yet.
    nodes: BTreeSet<u32>,
    /// This host knows all orders, but those of which nobody can tell.
    is_informed: bool,
    /// End of the time in which an order of before this host joined may take effect. None until the first
    /// [`UnknownOrders::expire`].
    until: Option<Instant>,
    /// Members whose latest sync says that they know all orders.
    informers: BTreeSet<Member>,
    /// Nodes whose daemon has told what was left there, and that corosync heard ever since. What such a
    /// daemon began later is known, even if it has ended ([`super::orphans`]).
    told: BTreeSet<u32>,
}

impl UnknownOrders {
    /// Returns whether this host can tell others of all orders.
    pub(super) fn is_informed(&self) -> bool {
        self.is_informed
    }

    /// Forgets everything: this host was not in the group, and does not know what was ordered meanwhile.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes the nodes that corosync hears, and on which no C daemon runs.
    pub(super) fn heard(&mut self, nodes: BTreeSet<u32>) {
        // A daemon that is not heard may begin what nobody here knows.
        self.told.retain(|it| nodes.contains(it));
        self.nodes = nodes;
    }

    /// Takes the present members.
    pub(super) fn members(&mut self, members: &BTreeSet<Member>) {
        self.informers.retain(|it| members.contains(it));
    }

    /// Takes what a member's sync says.
    pub(super) fn told(&mut self, from: Member, knows_orders: bool) {
        if knows_orders {
            self.informers.insert(from);
        } else {
            self.informers.remove(&from);
        }
    }

    /// Takes note that the syncs of these members count: this host now knows what they know. `tellers` are
    /// the members that tell what was left at their hosts.
    pub(super) fn begun(&mut self, tellers: &BTreeSet<Member>, is_ready: impl Fn(Member) -> bool) {
        self.is_informed |= self.informers.iter().any(|it| is_ready(*it));
        self.told.extend(tellers.iter().filter(|it| is_ready(**it)).map(|it| it.node));
    }

    /// Returns whether the daemon of a node has told what was left there, at any time since this host joined.
    pub(super) fn has_told(&self, node: u32) -> bool {
        self.told.contains(&node)
    }

    /// Takes the time. `limit` is the longest time in which an order takes effect.
    pub(super) fn expire(&mut self, now: Instant, limit: Duration) {
        let until = *self.until.get_or_insert(now + limit);
        self.is_informed |= now >= until;
    }

    /// Returns whether there may be an order, of which this host does not know, on a domain of these nodes,
    /// or of any node. `has_told`: the daemon of that node has told what was left there.
    pub(super) fn may_be_at(&self, nodes: Option<&[u32]>, has_told: impl Fn(u32) -> bool) -> bool {
        if self.is_informed {
            return false;
        }
        let is_any_known = nodes.is_some() || !self.nodes.is_empty();
        !is_any_known || !self.untold(nodes, has_told).is_empty()
    }

    /// Returns those of these nodes, or of all, whose daemons have not told what was left there.
    pub(super) fn untold(&self, nodes: Option<&[u32]>, has_told: impl Fn(u32) -> bool) -> Vec<u32> {
        let all: Vec<u32> = nodes.map_or_else(|| self.nodes.iter().copied().collect(), <[u32]>::to_vec);
        all.into_iter().filter(|it| !has_told(*it)).collect()
    }
}
