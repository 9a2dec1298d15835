// SPDX-License-Identifier: GPL-2.0-or-later
//! Intents on disk: what this daemon is about to do is written down before it is done.
//!
//! A daemon that dies in the middle of a reboot leaves the machine off and no audit record. The next one
//! reads what was under way, writes the missing record, and starts what is owed. It also holds up what
//! conflicts with an order that a device may still carry out. No request may fail because of the disk, and
//! none waits for it longer than [`DISK_LIMIT`]: fencing goes on without this memory.
//!
//! The format and its judgement are in `fence_core::intent`; [`store`] owns the files and their thread.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fence_core::domain::DomainId;
use fence_core::intent::{
    DeviceOrder, Intent, IntentEvent, IntentRemainder, OrderExpiry, StartOwed, UnfinishedIntent,
};
use tokio::sync::oneshot;
use tracing::{info, warn};
use zeroize::Zeroizing;

use self::store::{LeftIntent, LeftIntents, StoreOrder, open_in_time};
use crate::util::boot_clock::since_boot;
use crate::util::fault;
use crate::util::locks::lock;

pub(crate) mod store;

/// Longest time for which a request waits until its intent is on disk.
pub(crate) const DISK_LIMIT: Duration = Duration::from_secs(1);

/// The intents of this daemon. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct IntentLog(Arc<IntentLogState>);

#[derive(Debug)]
struct IntentLogState {
    boot: String,
    /// None: nothing is written, and only this process knows what is owed.
    orders: Option<SyncSender<StoreOrder>>,
    next: AtomicU64,
    /// Starts that are owed, by the number of the intent.
    owing: Mutex<BTreeMap<u64, Arc<StartDebt>>>,
    /// Starts that earlier daemons owe, or reboots of this one that were cut off from the hypervisor.
    debts: Mutex<BTreeMap<u64, Arc<StartDebt>>>,
    /// Domains that a hypervisor may still start for an earlier daemon, with the number of such orders.
    late_starts: Mutex<BTreeMap<DomainId, usize>>,
    /// Last request for each domain that began to act while any start was owed, by the domain's UUID.
    begun: Mutex<BTreeMap<String, BegunRequest>>,
    /// Events that the disk did not take in time.
    lost: AtomicU64,
    /// Set while the disk does not answer: nobody waits for it then.
    is_slow: AtomicBool,
}

/// Start that is owed.
#[derive(Debug)]
pub(crate) struct StartDebt {
    unfinished: UnfinishedIntent,
    xml: Option<Zeroizing<String>>,
}

/// Request of this daemon that began to act.
#[derive(Debug)]
struct BegunRequest {
    intent: u64,
    id: u64,
    action: String,
    takes_over: bool,
}

/// One intent under way. Clones are the same intent.
#[derive(Clone, Debug)]
pub(crate) struct OpenIntent {
    log: IntentLog,
    intent: Arc<Intent>,
    /// Start of an earlier request that this reboot has taken over.
    debt: Option<Arc<StartDebt>>,
}

/// Values of an intent that its request knows.
pub(crate) struct IntentSubject {
    pub(crate) id: u64,
    pub(crate) transport: String,
    pub(crate) peer: String,
    pub(crate) source_domain: Option<String>,
    pub(crate) hash: String,
    pub(crate) key: Option<String>,
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) domain: String,
    pub(crate) uuid: String,
    pub(crate) home: &'static str,
    pub(crate) known_source: Option<String>,
    pub(crate) peer_id: Option<String>,
}

/// Order to a device that is on disk, and may still take effect.
#[derive(Clone, Debug)]
pub(crate) struct WrittenOrder {
    open: OpenIntent,
    order: u64,
}

/// Start that a hypervisor may still carry out for an earlier daemon; see [`IntentLog::starts_late`].
#[derive(Debug)]
pub(crate) struct LateStart {
    log: IntentLog,
    uuid: DomainId,
}

/// Source of a start that is owed, with everything that it needs.
pub(crate) enum OwedSource<'a> {
    /// The definition, or the device.
    Definition,
    /// The XML of a transient domain, passwords included, and the URI of its hypervisor.
    Xml(&'a str, &'a str),
}

/// Returns the kernel's id of this boot; empty if it can't be read. Before the sandbox is on.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

impl IntentLog {
    /// Opens the log in the state directory, and returns what an earlier daemon left unfinished. If it can't
    /// be opened, logs the reason and goes on in memory alone.
    pub(crate) fn open(directory: Option<&Path>, boot: String) -> (Self, LeftIntents) {
        let Some(directory) = directory else {
            info!("actions are not written down before they begin: there is no state directory");
            return (Self::with(boot, None, 0), LeftIntents::default());
        };
        match open_in_time(directory.to_owned()) {
            Ok(opened) => {
                if opened.left.damaged > 0 {
                    warn!(
                        lines = opened.left.damaged,
                        "the file of intents was damaged, probably by a crash: these lines are left out"
                    );
                }
                (Self::with(boot, Some(opened.orders), opened.next), opened.left)
            }
            Err(error) => {
                warn!(
                    directory = %fence_cli::shown(directory),
                    "actions are not written down before they begin, so a daemon that is killed in the \
                     middle of a reboot leaves the machine off: {error}"
                );
                (Self::with(boot, None, 0), LeftIntents::default())
            }
        }
    }

    fn with(boot: String, orders: Option<SyncSender<StoreOrder>>, next: u64) -> Self {
        Self(Arc::new(IntentLogState {
            boot,
            orders,
            next: AtomicU64::new(next.max(1)),
            owing: Mutex::default(),
            debts: Mutex::default(),
            late_starts: Mutex::default(),
            begun: Mutex::default(),
            lost: AtomicU64::new(0),
            is_slow: false.into(),
        }))
    }

    /// Returns the boot of this host.
    pub(crate) fn boot(&self) -> &str {
        &self.0.boot
    }

    /// Writes an intent down, and waits until it is on disk, at most [`DISK_LIMIT`].
    pub(crate) async fn begin(&self, subject: IntentSubject) -> OpenIntent {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let IntentSubject { id, transport, peer, source_domain, hash, key, .. } = subject;
        let IntentSubject { action, target, domain, uuid, home, known_source, peer_id, .. } = subject;
        let (boot, home) = (self.0.boot.clone(), home.to_owned());
        let debt = self.debt_of(&uuid).filter(|_| action == "reboot");
        if self.owing() > 0 {
            let takes_over = debt.is_some();
            let begun = BegunRequest { intent: number, id, action: action.clone(), takes_over };
            lock(&self.0.begun).insert(uuid.clone(), begun);
        } else {
            lock(&self.0.begun).clear();
        }
        let intent = Intent {
            number,
            boot,
            at_ms: since_boot_ms(),
            id,
            transport,
            peer,
            source_domain,
            hash,
            key,
            action,
            target,
            domain,
            uuid,
            home,
            known_source,
            peer_id,
        };
        self.write(IntentEvent::Begun(Box::new(intent.clone())), None).await;
        let open = self.opened(intent, debt.clone());
        if let Some((start, xml)) = debt.as_deref().and_then(StartDebt::source)
            && open.note_owed(start, xml)
        {
            // The line above made the older one void.
            self.write(IntentEvent::Owes { number, start: start.clone() }, xml.cloned()).await;
        }
        fault::reached("intent_written");
        open
    }

    fn opened(&self, intent: Intent, debt: Option<Arc<StartDebt>>) -> OpenIntent {
        OpenIntent { log: self.clone(), intent: Arc::new(intent), debt }
    }

    /// Returns the start of a domain that an earlier request owes and that is to be made good now.
    fn debt_of(&self, uuid: &str) -> Option<Arc<StartDebt>> {
        let is_due = |it: &&Arc<StartDebt>| {
            let intent = &it.unfinished;
            intent.intent.uuid == uuid && intent.start_due(&self.0.boot, since_boot_ms()).is_ok()
        };
        lock(&self.0.debts).values().find(is_due).cloned()
    }

    /// Returns whether intents are kept on disk, and those of earlier daemons were read.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.0.orders.is_some()
    }

    /// Returns the open intent of an earlier daemon, or of a request that has ended, to be ended beside the
    /// requests.
    pub(crate) fn adopt(&self, left: &LeftIntent) -> OpenIntent {
        let open = self.opened(left.unfinished.intent.clone(), None);
        if matches!(left.unfinished.remainder, IntentRemainder::Open { start: Some(_) }) {
            let debt = StartDebt { unfinished: left.unfinished.clone(), xml: left.xml.clone() };
            let debt = Arc::new(debt);
            lock(&self.0.owing).insert(open.number(), Arc::clone(&debt));
            lock(&self.0.debts).insert(open.number(), debt);
        }
        open
    }

    /// Writes down that everything was waited for that damaged lines may have said. Never waits.
    pub(crate) fn cleared(&self) {
        self.write_later(IntentEvent::Cleared {});
    }

    /// Returns the request of this daemon that decides about a start which is owed, in words: it began to act
    /// on the domain, and a reboot or start did not fail.
    pub(crate) fn decided_by(&self, uuid: &str) -> Option<String> {
        lock(&self.0.begun).get(uuid).map(|it| {
            let BegunRequest { id, action, .. } = it;
            if it.takes_over {
                format!("the {action} of request {id} has taken over the start that the reboot owed")
            } else {
                format!(
                    "somebody asked for the domain since ({action}, request {id}), so the domain is not \
                     started"
                )
            }
        })
    }

    /// Returns whether a start of the domain is owed now, or may come late: whatever is seen of it, it is
    /// about to be on.
    pub(crate) fn owes_start(&self, uuid: &str) -> bool {
        let is_late = || DomainId::parse_canonical(uuid).is_some_and(|it| self.may_start_late(it));
        lock(&self.0.owing).values().any(|it| it.unfinished.intent.uuid == uuid) || is_late()
    }

    /// Returns the domains that are owed a start now, by name and UUID.
    pub(crate) fn domains_owed(&self) -> Vec<(String, DomainId)> {
        let named = |it: &Arc<StartDebt>| {
            let intent = &it.unfinished.intent;
            Some((intent.domain.clone(), DomainId::parse_canonical(&intent.uuid)?))
        };
        lock(&self.0.owing).values().filter_map(named).collect()
    }

    /// Returns whether a hypervisor may still start the domain for an earlier daemon.
    pub(crate) fn may_start_late(&self, uuid: DomainId) -> bool {
        lock(&self.0.late_starts).contains_key(&uuid)
    }

    /// Notes that a hypervisor may start the domain for an earlier daemon, as long as the value lives.
    pub(crate) fn starts_late(&self, uuid: DomainId) -> LateStart {
        *lock(&self.0.late_starts).entry(uuid).or_default() += 1;
        LateStart { log: self.clone(), uuid }
    }

    /// Returns the number of starts that are owed now.
    pub(crate) fn owing(&self) -> usize {
        lock(&self.0.owing).len()
    }

    /// Returns the number of events that the disk did not take in time.
    pub(crate) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Waits at the end of the daemon until all events are written, at most [`DISK_LIMIT`].
    pub(crate) fn finish(&self) {
        self.write_blocking(None, None);
    }

    /// Hands an event over and waits until it is written. A disk that was too slow once is not waited for
    /// until it has caught up.
    async fn write(&self, event: IntentEvent, xml: Option<Zeroizing<String>>) {
        let (tell, told) = oneshot::channel();
        let tell = Box::new(move |written| {
            let _ = tell.send(written);
        });
        if self.hand_over(StoreOrder { event: Some(event), xml, tell }) {
            let written = tokio::time::timeout(self.patience(), told).await;
            self.note(written.ok().and_then(Result::ok));
        }
    }

    /// As [`Self::write`], on a thread that may block. Without an event: waits for all earlier ones.
    fn write_blocking(&self, event: Option<IntentEvent>, xml: Option<Zeroizing<String>>) {
        let (tell, told) = sync_channel(1);
        let tell = Box::new(move |written| {
            let _ = tell.try_send(written);
        });
        if self.hand_over(StoreOrder { event, xml, tell }) {
            self.note(told.recv_timeout(self.patience()).ok());
        }
    }

    fn write_later(&self, event: IntentEvent) {
        self.hand_over(StoreOrder { event: Some(event), xml: None, tell: Box::new(drop) });
    }

    /// Returns whether the order will be carried out.
    fn hand_over(&self, order: StoreOrder) -> bool {
        let Some(orders) = &self.0.orders else { return false };
        let is_taken = orders.try_send(order).is_ok();
        if !is_taken {
            self.note(None);
        }
        is_taken
    }

    fn patience(&self) -> Duration {
        if self.0.is_slow.load(Ordering::Relaxed) { Duration::ZERO } else { DISK_LIMIT }
    }

    /// Notes what became of an event; none if that is not known in time.
    fn note(&self, written: Option<bool>) {
        let why = match written {
            Some(true) => {
                if self.0.is_slow.swap(false, Ordering::Relaxed) {
                    info!("actions are written down before they begin again");
                }
                return;
            }
            Some(false) => "the file of intents can't be written",
            None => "the disk of the file of intents does not answer",
        };
        self.0.lost.fetch_add(1, Ordering::Relaxed);
        // Once: a disk that hangs would fill the log.
        if !self.0.is_slow.swap(true, Ordering::Relaxed) {
            warn!(
                "{why}: fencing goes on, and what is begun now is not known after a crash; look at the state \
                 directory and its disk"
            );
        }
    }
}

impl Drop for LateStart {
    fn drop(&mut self) {
        let mut all = lock(&self.log.0.late_starts);
        if let Some(count) = all.get_mut(&self.uuid) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.uuid);
            }
        }
    }
}

impl StartDebt {
    /// Returns the source of the start, with the XML where it needs one. None where the XML was not kept.
    pub(crate) fn source(&self) -> Option<(&StartOwed, Option<&Zeroizing<String>>)> {
        match &self.unfinished.remainder {
            IntentRemainder::Open { start: Some(StartOwed::Definition) } => {
                Some((&StartOwed::Definition, None))
            }
            IntentRemainder::Open { start: Some(start @ StartOwed::Xml { .. }) } => {
                self.xml.as_ref().map(|xml| (start, Some(xml)))
            }
            _ => None,
        }
    }
}

impl OpenIntent {
    fn number(&self) -> u64 {
        self.intent.number
    }

    /// Writes down that a device is about to be told to change the power, and waits until that is on disk, at
    /// most [`DISK_LIMIT`]. `effect` is the time for which it may do so after its agent ended.
    pub(crate) async fn ordered(
        &self,
        device: String,
        plug: String,
        starts: bool,
        effect: Duration,
    ) -> WrittenOrder {
        let order = DeviceOrder { order: 0, device, plug, starts, effect_ms: in_ms(effect) };
        let written = self.write_order(&order).await;
        fault::reached("order_written");
        written
    }

    /// Writes an order down that has no number yet, and waits until that is on disk, at most [`DISK_LIMIT`].
    pub(crate) async fn write_order(&self, order: &DeviceOrder) -> WrittenOrder {
        let number = self.log.0.next.fetch_add(1, Ordering::Relaxed);
        let order = DeviceOrder { order: number, ..order.clone() };
        self.log.write(IntentEvent::Ordered { number: self.number(), order }, None).await;
        WrittenOrder { open: self.clone(), order: number }
    }

    /// Returns an order of an earlier daemon that this one waits for. One that no line tells of is written
    /// down, for one more daemon. Never waits.
    pub(crate) fn take_over(&self, order: &DeviceOrder) -> WrittenOrder {
        let mut number = order.order;
        if number == 0 {
            number = self.log.0.next.fetch_add(1, Ordering::Relaxed);
            let order = DeviceOrder { order: number, ..order.clone() };
            self.log.write_later(IntentEvent::Ordered { number: self.number(), order });
        }
        WrittenOrder { open: self.clone(), order: number }
    }

    /// Writes down that a start is owed from now on, before the domain is powered off. Blocks for at most
    /// [`DISK_LIMIT`].
    pub(crate) fn owes(&self, source: &OwedSource<'_>) {
        let (start, xml) = match source {
            OwedSource::Definition => (StartOwed::Definition, None),
            OwedSource::Xml(uri, xml) => {
                (StartOwed::Xml { uri: (*uri).to_owned() }, Some(Zeroizing::new((*xml).to_owned())))
            }
        };
        if !self.note_owed(&start, xml.as_ref()) {
            return;
        }
        self.log.write_blocking(Some(IntentEvent::Owes { number: self.number(), start }), xml);
    }

    /// Writes down that a start from the definition is owed, unless one is owed already.
    pub(crate) async fn owes_definition(&self) {
        let start = StartOwed::Definition;
        if self.note_owed(&start, None) {
            self.log.write(IntentEvent::Owes { number: self.number(), start }, None).await;
        }
    }

    /// Returns whether none was owed before.
    fn note_owed(&self, start: &StartOwed, xml: Option<&Zeroizing<String>>) -> bool {
        let mut owing = lock(&self.log.0.owing);
        if owing.contains_key(&self.number()) {
            return false;
        }
        let remainder = IntentRemainder::Open { start: Some(start.clone()) };
        let unfinished = UnfinishedIntent { intent: (*self.intent).clone(), remainder, orders: Vec::new() };
        owing.insert(self.number(), Arc::new(StartDebt { unfinished, xml: xml.cloned() }));
        true
    }

    /// Reports that the action ends while the hypervisor is away: a start that is owed is owed still when
    /// nobody waits for the request any more.
    pub(crate) fn cut_off(&self) {
        let debt = lock(&self.log.0.owing).get(&self.number()).cloned();
        if let Some(debt) = debt {
            lock(&self.log.0.debts).insert(self.number(), debt);
        }
    }

    /// Returns what is left to do after the request has ended, if a start is owed from which it was cut off.
    pub(crate) fn left(&self) -> Option<LeftIntent> {
        let debt = lock(&self.log.0.debts).get(&self.number()).cloned()?;
        Some(LeftIntent { unfinished: debt.unfinished.clone(), xml: debt.xml.clone() })
    }

    /// Reports that a reboot or start failed, or left the domain off: a start that was owed before is owed
    /// still.
    pub(crate) fn came_to_nothing(&self) {
        let mut begun = lock(&self.log.0.begun);
        if begun.get(&self.intent.uuid).is_some_and(|it| it.intent == self.number()) {
            begun.remove(&self.intent.uuid);
        }
    }

    /// Returns the start of an earlier request that this reboot has taken over.
    pub(crate) fn debt(&self) -> Option<&StartDebt> {
        self.debt.as_deref()
    }

    /// Reports that the start is not owed any more: the domain is started, or can't be.
    pub(crate) fn settled(&self) {
        lock(&self.log.0.owing).remove(&self.number());
        lock(&self.log.0.debts).remove(&self.number());
    }

    /// Writes down that the action has ended, with the line that goes to the audit file next. Blocks for at
    /// most [`DISK_LIMIT`].
    pub(crate) fn ended(&self, record: &str) {
        self.settled();
        self.log.write_blocking(
            Some(IntentEvent::Ended { number: self.number(), record: record.to_owned() }),
            None,
        );
        fault::reached("done_written");
    }

    /// Writes down that the audit record is written: nothing is left to do. Never waits.
    pub(crate) fn audited(&self) {
        self.log.write_later(IntentEvent::Audited { number: self.number() });
    }

    /// Writes down that the action has ended, where there is no audit file. Never waits.
    pub(crate) fn closed(&self) {
        self.settled();
        self.log.write_later(IntentEvent::Ended { number: self.number(), record: String::new() });
        self.audited();
    }
}

impl WrittenOrder {
    /// Writes down that the order's agent has ended, and for how long the order may still take effect. Never
    /// waits.
    pub(crate) fn expires(&self, rest: Duration, is_claimed: bool) {
        let until_ms = since_boot_ms().saturating_add(in_ms(rest));
        let expiry = OrderExpiry { boot: self.open.log.0.boot.clone(), until_ms, is_claimed };
        let (number, order) = (self.open.number(), self.order);
        self.open.log.write_later(IntentEvent::Expires { number, order, expiry });
    }

    /// Writes down that the order can take effect no more. Never waits.
    pub(crate) fn settled(self) {
        let (number, order) = (self.open.number(), self.order);
        self.open.log.write_later(IntentEvent::Settled { number, order });
    }
}

/// Returns a time in milliseconds, as the file has it.
pub(crate) fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Returns milliseconds since the boot of the host, times of sleep included.
pub(crate) fn since_boot_ms() -> u64 {
    in_ms(since_boot())
}
