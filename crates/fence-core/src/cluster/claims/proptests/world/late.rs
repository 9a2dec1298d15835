// SPDX-License-Identifier: GPL-2.0-or-later
//! Orders of daemons that were killed: hypervisors and devices of the world may carry them out later.

use std::collections::BTreeSet;
use std::time::Duration;

use fence_wire::Response;

use super::{Guest, Place, Plan, Step, World};
use crate::arbiter::ArbiterRequest;
use crate::cluster::claims::ClusterArbiter;
use crate::cluster::message::Member;
use crate::cluster::orphans::OrphanTerms;
use crate::domain::TargetKind;
use crate::schedules::{Kind, source, uuid};

pub(super) const TICK: Duration = Duration::from_secs(1);
/// Time for which a client waits: no order is given later.
pub(super) const TERM: Duration = Duration::from_secs(6);
/// Longest time for which an order may take effect after its daemon was killed.
pub(super) const LIMIT: Duration = Duration::from_secs(4);

/// Order that may still take effect.
#[derive(Debug)]
pub(super) struct LateOrder {
    plan: Plan,
    /// Host of the hypervisor or device.
    place: Place,
    until: std::time::Instant,
    /// Claims under which the order is known.
    keys: BTreeSet<(Member, u64)>,
    /// There was a time in which no daemon knew of the order.
    was_unknown: bool,
}

/// Returns whether a guest is a hypervisor's: an order can't take effect after the guest has ended.
fn is_hypervisors(target: Guest) -> bool {
    target.is_multiple_of(2)
}

fn terms(target: &str, _: Option<Member>) -> OrphanTerms {
    let guest = target.rsplit(' ').next().and_then(|it| it.parse().ok()).expect("a guest");
    OrphanTerms { limit: LIMIT, ends_with_off: is_hypervisors(guest) }
}

impl World {
    /// Kills a daemon. Orders that it gave, and that have not taken effect, may come late.
    pub(super) fn kill(&mut self, place: Place) {
        self.leave_orders(place);
        self.hosts[place] = None;
        let hosts = &self.hosts;
        let is_known = |key| hosts.iter().flatten().any(|it| it.claims.knows(key));
        for order in self.late.values_mut() {
            order.was_unknown |= !order.keys.iter().any(|key| is_known(*key));
        }
    }

    /// Leaves the orders that a daemon gives at this moment to its hypervisors and devices.
    pub(super) fn leave_orders(&mut self, place: Place) {
        let Some(host) = &self.hosts[place] else { return };
        let now = self.now;
        let own = host.jobs.iter().map(|(id, it)| ((host.member, *id), it.step, it.plan, it.until));
        let of_others =
            host.served.iter().map(|((asker, _), it)| ((*asker, it.claim), it.step, it.plan, it.until));
        let acts =
            |step: Step, plan: Plan, until| step == Step::Acting && plan.kind != Kind::On && now < until;
        for (key, _, plan, _) in
            own.chain(of_others).filter(|(_, step, plan, until)| acts(*step, *plan, *until))
        {
            let number = self.event * 100 + u64::try_from(self.late.len()).unwrap();
            let order = LateOrder {
                plan,
                place,
                until: self.now + LIMIT,
                keys: BTreeSet::from([key]),
                was_unknown: false,
            };
            self.late.insert(number, order);
        }
    }

    /// Returns whether the order of a claim has not returned from the hypervisor or device.
    pub(super) fn hangs(&self, key: (Member, u64)) -> bool {
        self.late.values().any(|it| it.keys.contains(&key))
    }

    /// Takes in the orders of earlier daemons of this host.
    pub(super) fn restore(&mut self, place: Place) {
        let sights: Vec<_> = self.sight.iter().map(|it| it.known).collect();
        let (late, start) = (&mut self.late, self.start);
        let host = self.hosts[place].as_mut().expect("a daemon");
        host.claims.tell_earlier();
        for (number, order) in late.iter_mut().filter(|(_, it)| it.place == place) {
            let from = order.plan.from;
            let request = ArbiterRequest {
                name: None,
                id: 0,
                work: order.plan.kind.work(uuid(order.plan.target)),
                source: source(sights.get(from).copied().unwrap_or(false), from),
                peer: None,
                sender: None,
                by: TargetKind::Name,
                arrived: start,
                deadline: start,
            };
            let id = host.claims.restore(&request);
            order.keys.insert((host.member, id));
            host.restored.insert(id, *number);
        }
    }

    pub(super) fn settle(&mut self, place: Place, id: u64) {
        let host = self.host(place);
        host.restored.remove(&id);
        let effects = host.claims.finished(id, Response::Failure, None);
        self.obey(place, effects);
    }

    pub(super) fn take_effect(&mut self, number: u64) {
        let order = self.late.remove(&number).expect("a late order");
        self.take_down(order.plan);
    }

    /// Forgets the orders that can't take effect after this guest has ended.
    pub(super) fn ended(&mut self, guest: Guest) {
        self.late.retain(|_, it| it.plan.target != guest || !is_hypervisors(guest));
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        self.late.retain(|_, it| it.until > now);
        for place in 0..self.hosts.len() {
            self.expire(place);
        }
    }

    /// Ends what a daemon keeps for too long.
    pub(super) fn expire(&mut self, place: Place) {
        let now = self.now;
        let Some(host) = self.hosts[place].as_mut().filter(|it| !it.stopped) else { return };
        let effects = host.claims.expire_orphans(now, LIMIT, terms);
        let late: Vec<_> = host.jobs.iter().filter(|(_, it)| now >= it.until).collect();
        let late: Vec<_> = late.into_iter().map(|(id, it)| (*id, it.step)).collect();
        self.obey(place, effects);
        for (id, step) in late {
            match step {
                Step::Waiting | Step::Proving => self.withdraw(place, id),
                Step::Asking => self.give_up(place, id),
                Step::Acting | Step::Down | Step::SeenOff | Step::Ending => {}
            }
        }
    }

    /// Asserts that nobody loses the source of a late order while it takes effect. Of an order that nobody
    /// knew of it is enough that its target does not take its source down.
    pub(super) fn assert_not_exposed(&self, by: Plan) {
        let exposed = |it: &&LateOrder| {
            it.plan.from == by.target
                && by.from != by.target
                && it.plan.target != by.target
                && (!it.was_unknown || it.plan.target == by.from)
        };
        let shot = self.late.values().find(exposed);
        assert!(shot.is_none(), "{by:?} takes the source of {shot:?} down");
    }
}

impl ClusterArbiter {
    /// Returns whether this host knows of a claim.
    fn knows(&self, key: (Member, u64)) -> bool {
        let replica = if self.epoch.has_begun { &self.epoch.replica } else { &self.last_replica };
        replica.numbers.contains_key(&key)
            || self.own.contains_key(&key.1)
            || self.orphans.has(key)
            || self.epoch.untold_orphans_of(|_| true).iter().any(|it| (it.asker, it.claim.id) == key)
    }
}
