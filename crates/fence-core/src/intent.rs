// SPDX-License-Identifier: GPL-2.0-or-later
//! Intents: what a daemon was about to do, kept on disk so that the next one can finish it.
//!
//! Owns the format of the file and the judgement of what is left in it. One line for each event, each with a
//! check of its own: a line that is damaged is left out, and costs no other. Nothing that is damaged can make
//! a start: a start that is owed counts only if all that follows the intent in the file is whole. An order to
//! a device is the other way round: it may still take effect unless a whole line says that it can't any more.
//! Pure; time is a parameter.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

/// Age up to which a start that is owed is made good, in milliseconds since the boot of the host.
pub const START_AGE_MS: u64 = 120_000;
/// Longest time for which an order is believed to take effect after its agent ended, in milliseconds.
pub const EFFECT_LIMIT_MS: u64 = 600_000;
/// Time for which a hypervisor may still carry out the power-off of a daemon that ended, in milliseconds:
/// libvirt gives a QEMU 10 s to end, and 5 s more after SIGKILL.
pub const HYPERVISOR_EFFECT_MS: u64 = 15_000;
/// Time for which a hypervisor may still carry out the start of a daemon that ended, in milliseconds:
/// libvirt waits 30 s for the end of other work on the domain (a managed save), and 5 s are for the machine
/// to appear.
pub const HYPERVISOR_START_MS: u64 = 35_000;
/// Home of a domain of this host, and name of its hypervisors among devices.
pub const HYPERVISOR_HOME: &str = "a hypervisor of this host";
/// Home of a domain that devices power.
pub const DEVICE_HOME: &str = "a device";
/// Bytes of the check in front of a line.
const CHECK_LEN: usize = 16;

/// Action that a daemon is about to carry out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Number in this file.
    pub number: u64,
    /// Boot of the host, by the kernel's id.
    pub boot: String,
    /// Milliseconds since that boot.
    pub at_ms: u64,
    /// Number of the request in its run of the daemon.
    pub id: u64,
    /// Transport of the request.
    pub transport: String,
    /// Address of the peer.
    pub peer: String,
    /// Domain from which the request came, if it is known.
    pub source_domain: Option<String>,
    /// Hash that proved the packet.
    pub hash: String,
    /// Fingerprint of the key.
    pub key: Option<String>,
    /// Action: off, on, reboot.
    pub action: String,
    /// Target as it was requested.
    pub target: String,
    /// Name of the domain.
    pub domain: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Place of the domain, in words.
    pub home: String,
    /// Domain from which the request came, as far as the arbiter may rely on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_source: Option<String>,
    /// Mark that tells the peer from others, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_id: Option<String>,
}

/// Order to a device or a hypervisor, which may take effect after its agent or daemon is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceOrder {
    /// Number of the order in this file.
    pub order: u64,
    /// Name of the device in the configuration.
    pub device: String,
    /// Plug at the device.
    pub plug: String,
    /// True for a power-on, false for a power-off.
    pub starts: bool,
    /// Milliseconds for which the order may take effect after its agent ended.
    pub effect_ms: u64,
}

/// End of the time in which an order may take effect, once its agent has ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OrderExpiry {
    /// Boot of the host, by the kernel's id.
    pub boot: String,
    /// Milliseconds since that boot.
    pub until_ms: u64,
    /// The agent reported success.
    pub is_claimed: bool,
}

/// Order that may still take effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingOrder {
    /// The order.
    pub order: DeviceOrder,
    /// End of its time; none if its agent may have run until the daemon ended.
    pub expiry: Option<OrderExpiry>,
    /// Another order about the same machine was given since, or could take effect when this one was given:
    /// what the device shows may be the other's doing.
    pub is_covered: bool,
}

/// Source of a start that a reboot owes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartOwed {
    /// The definition at its hypervisor, or the device that powered the domain off.
    Definition,
    /// XML in a file beside this one, for the hypervisor at this URI: a transient domain has no definition.
    Xml {
        /// URI of the hypervisor.
        uri: String,
    },
}

/// Event of an intent: one line of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentEvent {
    /// The action is about to begin.
    Begun(Box<Intent>),
    /// The domain is about to be powered off for a reboot, and a start is owed from then on.
    Owes {
        /// Number of the intent.
        number: u64,
        /// Source of the start.
        start: StartOwed,
    },
    /// The action has ended; the audit record is about to be written.
    Ended {
        /// Number of the intent.
        number: u64,
        /// Line of the audit file; empty if there is no file.
        record: String,
    },
    /// The audit record is written: nothing is left to do, but to wait for orders that are not settled.
    Audited {
        /// Number of the intent.
        number: u64,
    },
    /// A device is about to be told to change the power, or a hypervisor to start the domain: it may do so
    /// late.
    Ordered {
        /// Number of the intent.
        number: u64,
        /// The order.
        order: DeviceOrder,
    },
    /// The agent that carried the order has ended, and its effect was not seen.
    Expires {
        /// Number of the intent.
        number: u64,
        /// Number of the order.
        order: u64,
        /// End of the time in which it may take effect.
        expiry: OrderExpiry,
    },
    /// The order can take effect no more.
    Settled {
        /// Number of the intent.
        number: u64,
        /// Number of the order.
        order: u64,
    },
    /// Sign that everything was waited for that damaged lines before this one may have said.
    Cleared {},
}

/// Intent that an earlier daemon left without its last line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnfinishedIntent {
    /// Action that was under way.
    pub intent: Intent,
    /// Remainder that is left to do.
    pub remainder: IntentRemainder,
    /// Orders to devices that may still take effect, in their order.
    pub orders: Vec<PendingOrder>,
}

/// Remainder of an intent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IntentRemainder {
    /// The end is not known. `start` is the start that a reboot owes, as far as the file can be trusted.
    Open {
        /// Source of the start that is owed.
        start: Option<StartOwed>,
    },
    /// The action has ended, and this line may be missing in the audit file.
    Record(String),
    /// Nothing, but to wait for orders that may still take effect.
    Orders,
}

/// Contents of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IntentFile {
    /// Intents without their last line, in their order.
    pub unfinished: Vec<UnfinishedIntent>,
    /// Lines that are damaged.
    pub damaged: usize,
    /// A line is damaged that may have told of an order which can still take effect.
    pub hides_order: bool,
    /// Number above all numbers of the file.
    pub next: u64,
}

/// Intents that are not over, by number.
#[derive(Clone, Debug, Default)]
pub struct IntentTable(BTreeMap<u64, UnfinishedIntent>);

impl IntentEvent {
    /// Returns the event as a line of the file, with its end.
    pub fn line(&self) -> String {
        // These values have no map with other keys than text, so this can't fail.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{} {json}\n", check(json.as_bytes()))
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let (found, rest) = line.split_at_checked(CHECK_LEN)?;
        let json = rest.strip_prefix(b" ")?;
        (found == check(json).as_bytes()).then(|| serde_json::from_slice(json).ok())?
    }
}

impl IntentFile {
    /// Reads a whole file, whatever is in it.
    pub fn read(bytes: &[u8]) -> Self {
        let mut file = Self::default();
        let mut table = IntentTable::default();
        // Intents for which no start is believed, whatever follows.
        let mut startless: BTreeSet<u64> = BTreeSet::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            // A line without its end is one that was being written.
            let event = line.strip_suffix(b"\n").and_then(IntentEvent::parse);
            let Some(event) = event else {
                file.damaged += 1;
                file.hides_order = true;
                // It may have been the end of any of these, or a later request for the same domain.
                startless.extend(table.0.keys());
                continue;
            };
            file.next = file.next.max(event.last_number() + 1);
            match &event {
                IntentEvent::Begun(intent) => {
                    // Whoever asked later for the same domain decides what becomes of it.
                    let same = table.0.values().filter(|it| it.intent.uuid == intent.uuid);
                    startless.extend(same.map(|it| it.intent.number));
                }
                IntentEvent::Cleared {} => file.hides_order = false,
                _ => {}
            }
            table.apply(&event);
        }
        for number in startless {
            if let Some(UnfinishedIntent { remainder: IntentRemainder::Open { start }, .. }) =
                table.0.get_mut(&number)
            {
                *start = None;
            }
        }
        file.unfinished = table.0.into_values().collect();
        file
    }

    /// Returns the numbers of the intents that are left.
    pub fn numbers(&self) -> BTreeSet<u64> {
        self.unfinished.iter().map(|it| it.intent.number).collect()
    }

    /// Returns the intents that are left, by number.
    pub fn table(&self) -> IntentTable {
        IntentTable(self.unfinished.iter().map(|it| (it.intent.number, it.clone())).collect())
    }
}

impl IntentTable {
    /// Returns whether nothing is left to do nor to wait for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes an event in. One of an intent that is not known, or is over, changes nothing.
    pub fn apply(&mut self, event: &IntentEvent) {
        if let IntentEvent::Begun(intent) = event {
            let remainder = IntentRemainder::Open { start: None };
            let new = UnfinishedIntent { intent: (**intent).clone(), remainder, orders: Vec::new() };
            self.0.insert(intent.number, new);
        }
        let is_covered = match event {
            IntentEvent::Ordered { number, order } => self.cover(*number, order),
            _ => false,
        };
        let Some(number) = event.number() else { return };
        let Some(it) = self.0.get_mut(&number) else { return };
        match event {
            IntentEvent::Begun(_) | IntentEvent::Cleared {} => {}
            IntentEvent::Owes { start, .. } => {
                if it.remainder == (IntentRemainder::Open { start: None }) {
                    it.remainder = IntentRemainder::Open { start: Some(start.clone()) };
                }
            }
            IntentEvent::Ended { record, .. } => it.remainder = IntentRemainder::Record(record.clone()),
            IntentEvent::Audited { .. } => it.remainder = IntentRemainder::Orders,
            IntentEvent::Ordered { order, .. } => {
                it.orders.retain(|other| other.order.order != order.order);
                it.orders.push(PendingOrder { order: order.clone(), expiry: None, is_covered });
            }
            IntentEvent::Expires { order, expiry, .. } => {
                if let Some(order) = it.orders.iter_mut().find(|it| it.order.order == *order) {
                    order.expiry = Some(expiry.clone());
                }
            }
            IntentEvent::Settled { order, .. } => it.orders.retain(|it| it.order.order != *order),
        }
        if it.remainder == IntentRemainder::Orders && it.orders.is_empty() {
            self.0.remove(&number);
        }
    }

    /// Notes at the earlier orders about the same machine that one more was given. Returns whether there
    /// are any: one of them may have the effect that the device of the new one shows.
    fn cover(&mut self, number: u64, order: &DeviceOrder) -> bool {
        let Some(uuid) = self.0.get(&number).map(|it| it.intent.uuid.clone()) else { return false };
        let same = self.0.values_mut().filter(|it| it.intent.uuid == uuid).flat_map(|it| &mut it.orders);
        let mut is_second = false;
        for it in same.filter(|it| it.order.order != order.order && it.order.starts == order.starts) {
            it.is_covered = true;
            is_second = true;
        }
        is_second
    }
}

impl DeviceOrder {
    /// Returns an order to a hypervisor of this host, without a number.
    pub fn at_hypervisor(starts: bool) -> Self {
        let effect_ms = if starts { HYPERVISOR_START_MS } else { HYPERVISOR_EFFECT_MS };
        Self { order: 0, device: HYPERVISOR_HOME.to_owned(), plug: String::new(), starts, effect_ms }
    }
}

impl PendingOrder {
    /// Returns the milliseconds for which the order may still take effect, at the start of a daemon. All of
    /// its time where its agent may have run until now. The same after a boot of the host: the device has
    /// not booted, and nobody knows how long ago the order was.
    pub fn rest_ms(&self, boot: &str, now_ms: u64) -> u64 {
        let whole = self.order.effect_ms.min(EFFECT_LIMIT_MS);
        match &self.expiry {
            Some(it) if !boot.is_empty() && it.boot == boot => it.until_ms.saturating_sub(now_ms).min(whole),
            _ => whole,
        }
    }

    /// Returns whether a hypervisor of this host has the order, and no device.
    pub fn is_at_hypervisor(&self) -> bool {
        self.order.device == HYPERVISOR_HOME
    }

    /// Returns whether a hypervisor of this host was told to start the domain.
    pub fn is_start_at_hypervisor(&self) -> bool {
        self.is_at_hypervisor() && self.order.starts
    }

    /// Returns whether the agent of the order had reported success.
    pub fn is_claimed(&self) -> bool {
        self.expiry.as_ref().is_some_and(|it| it.is_claimed)
    }
}

impl UnfinishedIntent {
    /// Returns the orders that may still take effect. `longest_ms` is the longest time of any device: an
    /// action that was under way at a device may have been ordered though no line tells of it. So may a
    /// power-off at a hypervisor, in this boot of the host. A start there is never without its line.
    pub fn orders_left(&self, longest_ms: u64, boot: &str) -> Vec<PendingOrder> {
        let IntentRemainder::Open { start } = &self.remainder else { return self.orders.clone() };
        if self.orders.is_empty() && self.intent.home == HYPERVISOR_HOME {
            return self.hypervisor_order(boot).into_iter().collect();
        }
        if !self.orders.is_empty() || self.intent.home != DEVICE_HOME || longest_ms == 0 {
            return self.orders.clone();
        }
        let order = |starts| PendingOrder {
            order: DeviceOrder {
                order: 0,
                device: String::new(),
                plug: String::new(),
                starts,
                effect_ms: longest_ms,
            },
            expiry: None,
            is_covered: false,
        };
        match self.intent.action.as_str() {
            "on" => vec![order(true)],
            "reboot" if start.is_some() => vec![order(false), order(true)],
            _ => vec![order(false)],
        }
    }

    /// Returns whether an order can take effect no more, because its hypervisor ended with an earlier boot.
    pub fn is_over_with_boot(&self, order: &PendingOrder, boot: &str) -> bool {
        let is_known = !boot.is_empty() && !self.intent.boot.is_empty();
        order.is_start_at_hypervisor() && is_known && self.intent.boot != boot
    }

    /// Returns the power-off that a hypervisor of this host may still carry out.
    fn hypervisor_order(&self, boot: &str) -> Option<PendingOrder> {
        let is_there = !boot.is_empty() && self.intent.boot == boot && self.intent.action != "on";
        let order = DeviceOrder::at_hypervisor(false);
        is_there.then_some(PendingOrder { order, expiry: None, is_covered: false })
    }

    /// Returns the start that this host has to make good now.
    ///
    /// # Errors
    /// Reason why there is none, in words.
    pub fn start_due(&self, boot: &str, now_ms: u64) -> Result<&StartOwed, &'static str> {
        let IntentRemainder::Open { start: Some(start) } = &self.remainder else {
            return Err("no start is known to be owed");
        };
        if boot.is_empty() || self.intent.boot != boot {
            return Err("the host has booted since, so the domain is not started");
        }
        if now_ms.checked_sub(self.intent.at_ms).is_none_or(|age| age > START_AGE_MS) {
            return Err("too long ago to start the domain now");
        }
        Ok(start)
    }
}

impl IntentEvent {
    /// Returns the number of the intent that the event is about.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Begun(intent) => Some(intent.number),
            Self::Owes { number, .. }
            | Self::Ended { number, .. }
            | Self::Audited { number }
            | Self::Ordered { number, .. }
            | Self::Expires { number, .. }
            | Self::Settled { number, .. } => Some(*number),
            Self::Cleared {} => None,
        }
    }

    /// Returns the greatest number that the event uses.
    fn last_number(&self) -> u64 {
        let order = if let Self::Ordered { order, .. } = self { order.order } else { 0 };
        self.number().unwrap_or(0).max(order)
    }
}

fn check(bytes: &[u8]) -> String {
    Sha1::digest(bytes).iter().take(CHECK_LEN / 2).map(|it| format!("{it:02x}")).collect()
}

#[cfg(test)]
mod tests;
