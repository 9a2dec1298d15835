// SPDX-License-Identifier: GPL-2.0-or-later
//! Actions whose effect may still come after the request, and how long they hold up conflicting requests.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_core::agent::plan::StatusReading;
use fence_core::domain::{DomainId, PowerState};
use tokio::time::sleep_until;

use super::route::Route;
use super::run::RunContext;
use super::slots::RunPurpose;
use crate::intent::WrittenOrder;
use crate::request::lease::Lease;
use crate::util::join::join_all;
use crate::util::locks::lock;

/// Time for which the effect of a killed agent's action may still come after its device showed it.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);
/// Time for which an action that failed may still take effect: its connection may have broken after the
/// order, or its agent gave up.
const FAILED_SETTLE: Duration = Duration::from_secs(10);
/// Pause between status checks that wait for an effect.
const EFFECT_POLL: Duration = Duration::from_secs(1);
/// Machines of which it is remembered which devices were ordered.
const MAX_MACHINES: usize = 4096;

/// Pending effects: actions whose agents were killed or abandoned, or reported a success that their device
/// has not shown. They may still take effect, whatever became of the request. Conflicting requests wait until
/// the device shows the effect, or its `effect_timeout` is over.
pub(super) struct PendingEffects {
    pub(super) lease: Lease,
    pub(super) open: Vec<UnconfirmedAction>,
}

/// Action that may still take effect.
pub(super) struct UnconfirmedAction {
    /// Position of the device in the plan.
    pub(super) place: usize,
    pub(super) route: Route,
    /// State that the action leads to.
    pub(super) to: PowerState,
    /// Time when the run ended; none while it is in flight.
    pub(super) ended: Option<Instant>,
    /// True if the agent reported success.
    pub(super) is_claimed: bool,
    /// Failure that the agent reported; none if the order was given.
    pub(super) failed: Option<OrderFailure>,
    /// True if a status check of the device showed the effect after the run had ended.
    pub(super) is_seen: bool,
    pub(super) mark: OrderMark,
    /// The order on disk; none where nothing is written down.
    pub(super) order: Option<WrittenOrder>,
}

/// Failure of an action that an agent reported, without a word of its having given the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OrderFailure {
    /// At once: if the device tells a state afterwards, nothing comes of the order.
    AtOnce,
    /// After a time in which the order may have been given.
    Slow,
}

/// Orders to devices to change the power of each machine. A device that shows an effect
/// proves by that that an order was carried out only if it was the only one: none was given since, and no
/// earlier one could still take effect. Clones share it.
#[derive(Clone, Default)]
pub(super) struct OrderHistory(Arc<Mutex<OrderTable>>);

#[derive(Default)]
struct OrderTable {
    last: u64,
    /// Number of the last order about each machine.
    machines: HashMap<DomainId, u64>,
    /// Orders that may still take effect, by number.
    open: BTreeMap<u64, (DomainId, PowerState)>,
    /// Orders up to this one are forgotten.
    forgotten: u64,
}

/// One order in the history.
pub(super) struct OrderMark {
    history: OrderHistory,
    machine: DomainId,
    number: u64,
    before: Option<u64>,
    /// An earlier order of the same kind could take effect after this one was given: what the device shows
    /// may be that one's doing, and this one may come later.
    is_second: bool,
}

impl OrderHistory {
    /// Notes that a device is ordered now to take a machine to this state.
    pub(super) fn order(&self, machine: DomainId, to: PowerState) -> OrderMark {
        let mut table = lock(&self.0);
        if table.machines.len() >= MAX_MACHINES && !table.machines.contains_key(&machine) {
            table.machines.clear();
            table.forgotten = table.last;
        }
        table.last += 1;
        let number = table.last;
        let before = table.machines.insert(machine, number);
        let is_second = table.open.values().any(|it| *it == (machine, to));
        table.open.insert(number, (machine, to));
        OrderMark { history: self.clone(), machine, number, before, is_second }
    }
}

impl OrderMark {
    /// Returns whether another order may have the effect that the device shows: then nothing tells that this
    /// one was carried out.
    fn is_covered(&self) -> bool {
        let table = lock(&self.history.0);
        self.is_second
            || self.number <= table.forgotten
            || table.machines.get(&self.machine).is_some_and(|last| *last > self.number)
    }

    /// Notes that the order failed, so that what a later one shows is taken for that one's effect.
    pub(super) fn failed(&self) {
        lock(&self.history.0).open.remove(&self.number);
    }

    /// Takes the order back: it was never given.
    pub(super) fn take_back(&self) {
        let mut table = lock(&self.history.0);
        if table.machines.get(&self.machine) != Some(&self.number) {
            return;
        }
        match self.before {
            Some(before) => table.machines.insert(self.machine, before),
            None => table.machines.remove(&self.machine),
        };
    }
}

impl Drop for OrderMark {
    fn drop(&mut self) {
        lock(&self.history.0).open.remove(&self.number);
    }
}

impl PendingEffects {
    /// Takes a status of a device; no action was in flight meanwhile.
    pub(super) fn looked(&mut self, place: usize, reading: StatusReading) {
        for it in self.open.iter_mut().filter(|it| it.place == place && !it.mark.is_covered()) {
            it.is_seen |= reading == StatusReading::Is(it.to);
        }
        // A device that failed at once and can be asked did not act, or has acted.
        let is_told = matches!(reading, StatusReading::Is(_));
        let is_over =
            |it: &UnconfirmedAction| it.failed == Some(OrderFailure::AtOnce) && it.place == place && is_told;
        // What was claimed has come.
        for it in self.open.extract_if(.., |it| it.is_claimed && it.is_seen || is_over(it)) {
            it.order.into_iter().for_each(WrittenOrder::settled);
        }
    }

    /// Returns whether an action is open of which nothing shows that it has had its effect.
    pub(super) fn may_come_again(&self) -> bool {
        self.open.iter().any(|it| !it.is_seen && it.failed != Some(OrderFailure::AtOnce))
    }
}

impl UnconfirmedAction {
    /// Returns the longest time for which the action may take effect after its run.
    pub(super) fn longest(&self) -> Duration {
        let longest = self.route.device.effect_timeout;
        match self.failed {
            None => longest,
            Some(OrderFailure::AtOnce | OrderFailure::Slow) => longest.min(FAILED_SETTLE),
        }
    }

    /// Waits until the action can take no effect any more.
    async fn settled(self) {
        let until = self.ended.unwrap_or_else(Instant::now) + self.longest();
        self.settled_by(until).await;
    }

    /// Waits until the device shows the effect, or it is `until`.
    pub(super) async fn settled_by(self, until: Instant) {
        let mut is_seen = self.is_seen;
        while !is_seen {
            if Instant::now() >= until {
                break;
            }
            if self.mark.is_covered() {
                sleep_until(until.into()).await;
                break;
            }
            let context = RunContext { purpose: RunPurpose::Request, lease: None, until };
            let reading = self.route.status(context).await.reading;
            is_seen = reading == StatusReading::Is(self.to) && !self.mark.is_covered();
            if !is_seen {
                sleep_until(until.min(Instant::now() + EFFECT_POLL).into()).await;
            }
        }
        if is_seen && !self.is_claimed {
            sleep_until(until.min(Instant::now() + EFFECT_SETTLE).into()).await;
        }
        self.order.into_iter().for_each(WrittenOrder::settled);
    }
}

impl Drop for PendingEffects {
    fn drop(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.is_empty() {
            return;
        }
        // Where only power-offs may come, another off of this machine need not wait.
        let late_off = self.lease.late_off();
        let longest = open.iter().map(UnconfirmedAction::longest).max().unwrap_or_default();
        let starts = open.iter().any(|it| it.to == PowerState::On);
        let held = starts.then(|| self.lease.detached(Instant::now() + longest));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            join_all(open.into_iter().map(UnconfirmedAction::settled)).await;
            drop((held, late_off));
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Event at one machine that two devices can power off.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A device is told to power it off, if that device shows it on.
        Order(usize),
        /// One of the orders, by a drawn number, takes effect.
        Effect(usize),
        /// Somebody starts the machine.
        Start,
        /// A device is asked.
        Look(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_usize..2).prop_map(Event::Order),
            any::<usize>().prop_map(Event::Effect),
            Just(Event::Start),
            (0_usize..2).prop_map(Event::Look),
        ]
    }

    proptest! {
        /// An order that is settled by what its device shows was carried out: it does not come later.
        #[test]
        fn what_is_settled_does_not_come_later(events in prop::collection::vec(event(), 0..40)) {
            let (history, machine) = (OrderHistory::default(), DomainId::from_bytes([7; 16]));
            let mut is_on = true;
            // Each order that is not settled: its device, its mark, and whether it was carried out.
            let mut open: Vec<(usize, OrderMark, bool)> = Vec::new();
            for it in events {
                match it {
                    Event::Order(device) if is_on => {
                        open.push((device, history.order(machine, PowerState::Off), false));
                    }
                    Event::Effect(drawn) => {
                        let count = open.iter().filter(|it| !it.2).count().max(1);
                        if let Some(order) = open.iter_mut().filter(|it| !it.2).nth(drawn % count) {
                            (order.2, is_on) = (true, false);
                        }
                    }
                    Event::Start => is_on = true,
                    Event::Look(device) if !is_on => {
                        let shown = |it: &mut (usize, OrderMark, bool)| it.0 == device && !it.1.is_covered();
                        for (_, mark, was_carried_out) in open.extract_if(.., shown) {
                            prop_assert!(was_carried_out, "order {} comes later", mark.number);
                        }
                    }
                    Event::Order(_) | Event::Look(_) => {}
                }
            }
        }
    }

    #[test]
    fn an_only_order_is_settled_by_what_its_device_shows() {
        let (history, machine) = (OrderHistory::default(), DomainId::from_bytes([7; 16]));
        let first = history.order(machine, PowerState::Off);
        assert!(!first.is_covered());
        drop(first);
        let next = history.order(machine, PowerState::Off);
        assert!(!next.is_covered(), "the first one was settled");
        let start = history.order(machine, PowerState::On);
        assert!(!start.is_covered(), "a start shows another state");
        next.failed();
        let again = history.order(machine, PowerState::Off);
        assert!(!again.is_covered(), "one that failed is no other order");
        assert!(next.is_covered());
    }
}
