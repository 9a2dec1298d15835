// SPDX-License-Identifier: GPL-2.0-or-later
//! Orders to devices, and the plugs that they are about.
//!
//! Owns the rule which orders are about one machine: those for one domain, and those at one plug of a device,
//! whatever the domain at it is called. A machine that gets another name in its hypervisor is another domain
//! to everybody else, and an order that was given for the old one still comes to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use fence_core::domain::{ActionError, DomainId, PowerState};
use fence_wire::escaped;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::request::lease::Lease;
use crate::util::locks::lock;

/// Domains and plugs of which the last order is remembered.
const MAX_ORDERED: usize = 16_384;

/// Plug of a device.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct DevicePlug {
    pub(super) device: String,
    pub(super) plug: String,
}

/// Domain as it is called now, with its plugs.
#[derive(Clone, Debug)]
pub(super) struct MachinePlugs {
    pub(super) machine: DomainId,
    pub(super) name: String,
    pub(super) plugs: Vec<DevicePlug>,
}

/// Orders to devices to change the power of each machine. A device that shows an effect
/// proves by that that an order was carried out only if it was the only one: none was given since, and no
/// earlier one could still take effect. Clones share it.
#[derive(Clone, Default)]
pub(super) struct OrderHistory(Arc<SharedOrders>);

#[derive(Default)]
struct SharedOrders {
    table: Mutex<OrderTable>,
    /// Told when something that others may wait for has ended.
    ended: Notify,
}

#[derive(Default)]
struct OrderTable {
    last: u64,
    /// Number of the last order about each machine.
    newest: HashMap<OrderSubject, u64>,
    /// Orders that may still take effect, and courses that last, by number.
    held: BTreeMap<u64, HeldPlugs>,
    /// Orders up to this one are forgotten.
    forgotten: u64,
}

/// Subject that two orders have in common if they are about one machine.
#[derive(Clone, PartialEq, Eq, Hash)]
enum OrderSubject {
    Machine(DomainId),
    Plug(DevicePlug),
}

struct HeldPlugs {
    of: MachinePlugs,
    to: PowerState,
    kind: HeldKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HeldKind {
    Course,
    Order,
    /// Order that failed: what a later one shows is taken for that one's effect.
    FailedOrder,
}

/// One order in the history.
pub(super) struct OrderMark {
    history: OrderHistory,
    subjects: Vec<OrderSubject>,
    number: u64,
    before: Vec<Option<u64>>,
    /// An earlier order of the same kind could take effect after this one was given: what the device shows
    /// may be that one's doing, and this one may come later.
    is_second: bool,
}

/// Course that takes a machine to a state. While it lasts, a later one for another domain at the same plugs
/// waits if it leads elsewhere.
pub(super) struct PlugClaim {
    history: OrderHistory,
    number: u64,
}

impl MachinePlugs {
    fn subjects(&self) -> Vec<OrderSubject> {
        let plugs = self.plugs.iter().cloned().map(OrderSubject::Plug);
        [OrderSubject::Machine(self.machine)].into_iter().chain(plugs).collect()
    }

    fn shared_plug(&self, other: &Self) -> Option<&DevicePlug> {
        self.plugs.iter().find(|it| other.plugs.contains(it))
    }
}

impl OrderHistory {
    /// Notes that a device is ordered now to take a machine to this state.
    pub(super) fn order(&self, of: &MachinePlugs, at: DevicePlug, to: PowerState) -> OrderMark {
        let mut of = of.clone();
        if !of.plugs.contains(&at) {
            of.plugs.push(at);
        }
        let subjects = of.subjects();
        let mut table = lock(&self.0.table);
        if table.newest.len() >= MAX_ORDERED {
            table.newest.clear();
            table.forgotten = table.last;
        }
        table.last += 1;
        let number = table.last;
        let before = subjects.iter().map(|it| table.newest.insert(it.clone(), number)).collect();
        let is_same = |it: &HeldPlugs| {
            let shared = || it.of.subjects().iter().any(|subject| subjects.contains(subject));
            it.kind == HeldKind::Order && it.to == to && shared()
        };
        let is_second = table.held.values().any(is_same);
        table.held.insert(number, HeldPlugs { of, to, kind: HeldKind::Order });
        OrderMark { history: self.clone(), subjects, number, before, is_second }
    }

    /// Notes a course that begins now.
    pub(super) fn claim(&self, of: MachinePlugs, to: PowerState) -> PlugClaim {
        let mut table = lock(&self.0.table);
        table.last += 1;
        let number = table.last;
        table.held.insert(number, HeldPlugs { of, to, kind: HeldKind::Course });
        PlugClaim { history: self.clone(), number }
    }

    fn ended(&self, number: u64) {
        lock(&self.0.table).held.remove(&number);
        self.0.ended.notify_waiters();
    }
}

impl OrderTable {
    /// Returns what a course waits for: an order that may still take the same plug elsewhere, or an earlier
    /// course that does, for a domain of another name. What concerns the same domain is the arbiter's.
    fn in_the_way(&self, number: u64) -> Option<(&HeldPlugs, &DevicePlug)> {
        let own = self.held.get(&number)?;
        self.held.iter().find_map(|(other, it)| {
            let is_before = it.kind != HeldKind::Course || *other < number;
            let is_against = is_before && it.to != own.to && it.of.machine != own.of.machine;
            let shared = own.of.shared_plug(&it.of).filter(|_| is_against);
            shared.map(|plug| (it, plug))
        })
    }
}

impl PlugClaim {
    /// Waits for what is in the way. Returns whether there was anything: the domain may have other plugs
    /// then.
    pub(super) async fn turn(&self, lease: &Lease) -> Result<bool, ActionError> {
        let mut has_waited = false;
        loop {
            let ended = self.history.0.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let Some(words) = self.in_the_way() else { return Ok(has_waited) };
            has_waited = true;
            tokio::select! {
                () = ended => {}
                _ = lease.ended() => lease.check()?,
                () = sleep_until(lease.until().into()) => return Err(ActionError::Unavailable(words)),
            }
        }
    }

    fn in_the_way(&self) -> Option<String> {
        let table = lock(&self.history.0.table);
        let (held, at) = table.in_the_way(self.number)?;
        let action = if held.to == PowerState::On { "on" } else { "off" };
        let (plug, name) = (escaped(&at.plug), escaped(&held.of.name));
        Some(format!(
            "plug {plug} of device {} was the domain {name} a moment ago, and a request to power that \
             {action} is not settled",
            at.device
        ))
    }
}

impl Drop for PlugClaim {
    fn drop(&mut self) {
        self.history.ended(self.number);
    }
}

impl OrderMark {
    /// Returns whether another order may have the effect that the device shows: then nothing tells that this
    /// one was carried out.
    pub(super) fn is_covered(&self) -> bool {
        let table = lock(&self.history.0.table);
        let is_later = |it: &OrderSubject| table.newest.get(it).is_some_and(|last| *last > self.number);
        self.is_second || self.number <= table.forgotten || self.subjects.iter().any(is_later)
    }

    /// Notes that the order failed, so that what a later one shows is taken for that one's effect.
    pub(super) fn failed(&self) {
        if let Some(it) = lock(&self.history.0.table).held.get_mut(&self.number) {
            it.kind = HeldKind::FailedOrder;
        }
    }

    /// Takes the order back: it was never given.
    pub(super) fn take_back(&self) {
        let mut table = lock(&self.history.0.table);
        for (subject, before) in self.subjects.iter().zip(&self.before) {
            if table.newest.get(subject) != Some(&self.number) {
                continue;
            }
            match before {
                Some(before) => table.newest.insert(subject.clone(), *before),
                None => table.newest.remove(subject),
            };
        }
    }
}

impl Drop for OrderMark {
    fn drop(&mut self) {
        self.history.ended(self.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Event at one machine that two devices can power off, and that has two names in turn.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A device is told to power it off by the name that it has, if that device shows it on.
        Order(usize),
        /// One of the orders, by a drawn number, takes effect.
        Effect(usize),
        /// Somebody starts the machine.
        Start,
        /// A device is asked.
        Look(usize),
        /// The machine gets its other name.
        Rename,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_usize..2).prop_map(Event::Order),
            any::<usize>().prop_map(Event::Effect),
            Just(Event::Start),
            (0_usize..2).prop_map(Event::Look),
            Just(Event::Rename),
        ]
    }

    fn plug(device: usize) -> DevicePlug {
        DevicePlug { device: format!("d{device}"), plug: "1".to_owned() }
    }

    fn domain(name: u8, devices: &[usize]) -> MachinePlugs {
        MachinePlugs {
            machine: DomainId::from_bytes([name; 16]),
            name: format!("web{name}"),
            plugs: devices.iter().map(|it| plug(*it)).collect(),
        }
    }

    proptest! {
        /// An order that is settled by what its device shows was carried out: it does not come later.
        #[test]
        fn what_is_settled_does_not_come_later(events in prop::collection::vec(event(), 0..40)) {
            let history = OrderHistory::default();
            let (mut name, mut is_on) = (0, true);
            // Each order that is not settled: its device, its mark, and whether it was carried out.
            let mut open: Vec<(usize, OrderMark, bool)> = Vec::new();
            for it in events {
                match it {
                    Event::Order(device) if is_on => {
                        let mark = history.order(&domain(name, &[0, 1]), plug(device), PowerState::Off);
                        open.push((device, mark, false));
                    }
                    Event::Effect(drawn) => {
                        let count = open.iter().filter(|it| !it.2).count().max(1);
                        if let Some(order) = open.iter_mut().filter(|it| !it.2).nth(drawn % count) {
                            (order.2, is_on) = (true, false);
                        }
                    }
                    Event::Start => is_on = true,
                    Event::Rename => name = 1 - name,
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

        /// No course runs beside an order or another course that takes one of its plugs elsewhere under
        /// another name, and each gets its turn when the others end.
        #[test]
        fn courses_at_one_plug_take_turns(
            courses in prop::collection::vec((0_u8..3, 0_usize..3, any::<bool>(), any::<bool>()), 1..12),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let history = OrderHistory::default();
            let mut waiting: Vec<PlugClaim> = Vec::new();
            // Courses that run, and orders that are left of those that ended: domain and state.
            let mut running = Vec::<(Option<PlugClaim>, Option<OrderMark>, MachinePlugs, PowerState)>::new();
            let mut drawn = courses.into_iter();
            let mut ends = ends.into_iter();
            loop {
                if let Some((name, devices, is_on, _)) = drawn.next() {
                    let devices: &[usize] = [&[0][..], &[1], &[0, 1]][devices];
                    let to = if is_on { PowerState::On } else { PowerState::Off };
                    waiting.push(history.claim(domain(name, devices), to));
                }
                for it in waiting.extract_if(.., |it| it.in_the_way().is_none()) {
                    let (of, to) = {
                        let table = lock(&history.0.table);
                        (table.held[&it.number].of.clone(), table.held[&it.number].to)
                    };
                    for (_, _, other, state) in &running {
                        let is_other = other.machine != of.machine && *state != to;
                        let is_at_one_plug = of.plugs.iter().any(|it| other.plugs.contains(it));
                        prop_assert!(!is_other || !is_at_one_plug, "{of:?} beside {other:?}");
                    }
                    let mark = history.order(&of, of.plugs[0].clone(), to);
                    running.push((Some(it), Some(mark), of, to));
                }
                if running.is_empty() {
                    prop_assert!(waiting.is_empty(), "nothing runs, and somebody waits");
                    if drawn.len() == 0 {
                        break;
                    }
                    continue;
                }
                let Some(end) = ends.next() else { break };
                let count = running.len();
                let it = &mut running[end.index(count)];
                // First the course, then its order, which may come late.
                if it.0.take().is_none() {
                    it.1 = None;
                }
                running.retain(|it| it.1.is_some());
            }
        }
    }

    #[test]
    fn an_only_order_is_settled_by_what_its_device_shows() {
        let (history, machine) = (OrderHistory::default(), domain(7, &[0]));
        let order = |to| history.order(&machine, plug(0), to);
        let first = order(PowerState::Off);
        assert!(!first.is_covered());
        drop(first);
        let next = order(PowerState::Off);
        assert!(!next.is_covered(), "the first one was settled");
        let start = order(PowerState::On);
        assert!(!start.is_covered(), "a start shows another state");
        next.failed();
        let again = order(PowerState::Off);
        assert!(!again.is_covered(), "one that failed is no other order");
        assert!(next.is_covered());
    }
}
