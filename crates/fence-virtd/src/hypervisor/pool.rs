// SPDX-License-Identifier: GPL-2.0-or-later
//! One hypervisor: its connections, kept up; calls to it, each on a blocking thread with a deadline; and what was
//! seen of its domains.
//!
//! One task per hypervisor (`keep_up`) opens the first connection, listens to lifecycle events and, when the
//! connection is lost, opens another, for ever. A connection makes one call at a time, so each call takes an idle one
//! or opens another. A blocked call can't be cancelled: it keeps its thread, its connection and its permit until
//! libvirt's keepalive ends it; nobody waits for it longer than its deadline.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libvirt_host::{Connection, Error, ErrorKind, EventSubscription, LifecycleEvent, LifecycleKind, Uuid};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tracing::{debug, info, warn};

use crate::util::locks::lock;

/// Calls to one hypervisor that may be under way at once, each on a connection of its own.
const MAX_CALLS: usize = 64;
/// Connections that are kept when nothing is to be done.
const KEPT_CONNECTIONS: usize = 8;
/// The pause before a lost connection is opened again: doubled each time, from and to these.
const RECONNECT_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long after the loss of a connection calls wait for another: libvirtd restarts in less.
const RECONNECT_GRACE: Duration = Duration::from_secs(3);
/// How long the start waits for a first connection.
const FIRST_ATTEMPT: Duration = Duration::from_secs(10);
/// Domains that are remembered.
const MAX_REMEMBERED: usize = 16_384;
/// Lifecycle events that are kept for those who have not looked at them yet.
const EVENT_QUEUE: usize = 1024;
/// How long "it went off here" stands for a domain that left no definition. After that it may well live elsewhere.
const POWER_OFF_TTL: Duration = Duration::from_secs(600);

/// Every hypervisor that the daemon has to do with, by URI: whoever needs one shares its connections, and what a
/// test driver reads from a file is the same for all.
#[derive(Clone, Default)]
pub(crate) struct Hypervisors(Arc<Mutex<Vec<Arc<Hypervisor>>>>);

impl Hypervisors {
    /// The hypervisor at `uri`; connects to it when it is asked for the first time. Must run inside the runtime.
    pub(crate) fn at(&self, uri: &str) -> Arc<Hypervisor> {
        let mut all = lock(&self.0);
        if let Some(known) = all.iter().find(|it| it.uri == uri) {
            return Arc::clone(known);
        }
        let new = Hypervisor::start(uri);
        all.push(Arc::clone(&new));
        new
    }

    /// Those that were asked for.
    pub(crate) fn all(&self) -> Vec<Arc<Hypervisor>> {
        lock(&self.0).clone()
    }
}

/// One hypervisor, by its URI.
pub(crate) struct Hypervisor {
    uri: String,
    permits: Arc<Semaphore>,
    pool: Mutex<Vec<Arc<PooledConnection>>>,
    status: watch::Sender<ConnectionStatus>,
    memory: Mutex<SeenDomains>,
    news: broadcast::Sender<DomainEvent>,
}

/// What others may want to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DomainEvent {
    /// Something happened to this domain.
    Domain(Uuid),
    /// The connection is new: anything may have happened.
    Everything,
}

/// What whoever follows a hypervisor's domains is to look at.
pub(crate) enum RefreshScope {
    Everything,
    These(HashSet<Uuid>),
}

impl RefreshScope {
    /// Waits for news and takes all that have piled up.
    pub(crate) async fn next(news: &mut broadcast::Receiver<DomainEvent>) -> Self {
        let mut domains = HashSet::new();
        match news.recv().await {
            Ok(DomainEvent::Domain(uuid)) => drop(domains.insert(uuid)),
            Ok(DomainEvent::Everything) | Err(RecvError::Lagged(_)) => return Self::Everything,
            Err(RecvError::Closed) => std::future::pending().await,
        }
        loop {
            match news.try_recv() {
                Ok(DomainEvent::Domain(uuid)) => drop(domains.insert(uuid)),
                Ok(DomainEvent::Everything) | Err(TryRecvError::Lagged(_)) => return Self::Everything,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Self::These(domains),
            }
        }
    }

    /// After a look that failed, so that nothing was learnt and it has to be everything: returns when the connection is new,
    /// or after a pause.
    pub(crate) async fn again(news: &mut broadcast::Receiver<DomainEvent>, pause: Duration) -> Self {
        let new = async {
            while !matches!(news.recv().await, Ok(DomainEvent::Everything) | Err(RecvError::Closed)) {}
        };
        let _ = tokio::time::timeout(pause, new).await;
        Self::Everything
    }
}

/// Why a call to a hypervisor has no result.
#[derive(Debug)]
pub(crate) enum CallError {
    /// libvirt refused or failed.
    Refused(UriError),
    /// The connection was lost during the call.
    Lost(UriError),
    /// There is no connection.
    Down { uri: String, reason: String },
    /// No answer in time.
    Slow { uri: String },
    /// Too many calls are under way: most of them hang.
    Busy { uri: String },
}

/// libvirt's error with the URI it came from.
#[derive(Debug)]
pub(crate) struct UriError {
    uri: String,
    error: Error,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(it) => write!(f, "libvirt at {}: {}", it.uri, it.error),
            Self::Lost(it) => write!(f, "lost libvirt at {}: {}", it.uri, it.error),
            Self::Down { uri, reason } => write!(f, "no connection to libvirt at {uri}: {reason}"),
            Self::Slow { uri } => write!(f, "libvirt at {uri} did not answer in time"),
            Self::Busy { uri } => {
                write!(f, "libvirt at {uri} is busy: {MAX_CALLS} calls wait for it already")
            }
        }
    }
}

impl std::error::Error for CallError {}

#[derive(Clone)]
enum ConnectionStatus {
    /// The first attempt is under way.
    Starting,
    Up,
    /// Not reachable, for this reason, since then.
    Down(String, Instant),
}

struct PooledConnection {
    connection: Connection,
    calls: AtomicUsize,
}

impl Hypervisor {
    /// Starts the task that keeps the connection up. Must run inside the runtime.
    fn start(uri: &str) -> Arc<Self> {
        let this = Arc::new(Self {
            uri: uri.to_owned(),
            permits: Arc::new(Semaphore::new(MAX_CALLS)),
            pool: Mutex::default(),
            status: watch::Sender::new(ConnectionStatus::Starting),
            memory: Mutex::default(),
            news: broadcast::Sender::new(EVENT_QUEUE),
        });
        tokio::spawn(Arc::clone(&this).maintain_connection());
        this
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        matches!(*self.status.borrow(), ConnectionStatus::Up)
    }

    /// What happens from now on. Who falls behind by more than [`NEWS`] has to look at everything.
    pub(crate) fn news(&self) -> broadcast::Receiver<DomainEvent> {
        self.news.subscribe()
    }

    /// Waits for the end of the first attempt to connect.
    pub(crate) async fn first_attempt(&self) -> Result<(), CallError> {
        let mut status = self.status.subscribe();
        let ended = status.wait_for(|it| !matches!(it, ConnectionStatus::Starting));
        match tokio::time::timeout(FIRST_ATTEMPT, ended).await {
            Ok(Ok(status)) => match &*status {
                ConnectionStatus::Down(reason, _) => Err(self.down(reason)),
                ConnectionStatus::Up | ConnectionStatus::Starting => Ok(()),
            },
            Ok(Err(_)) | Err(_) => Err(self.slow()),
        }
    }

    /// A call that only looks: may be made again on another connection when one is lost.
    pub(crate) async fn ask<T, F>(self: &Arc<Self>, until: Instant, look: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<T, Error> + Send + Sync + 'static,
    {
        let look = Arc::new(look);
        loop {
            let again = Arc::clone(&look);
            match self.call(until, move |connection| again(connection)).await {
                Err(CallError::Lost(lost)) if Instant::now() < until => {
                    debug!(uri = %self.uri, error = %lost.error, "asking again");
                }
                other => return other,
            }
        }
    }

    /// Runs `work` on a blocking thread with a connection. Waits for a connection, and for the work, until `until`
    /// and no longer; work that was begun goes on.
    pub(crate) async fn call<T, F>(self: &Arc<Self>, until: Instant, work: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        let deadline = tokio::time::Instant::from_std(until);
        let permit = tokio::time::timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(CallError::Busy { uri: self.uri.clone() }) };
        self.wait_until_up(deadline).await?;
        let this = Arc::clone(self);
        let running = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let slot = this.slot()?;
            let result = work(&slot.connection);
            this.give_back(&slot);
            result.map_err(|error| this.sorted(error))
        });
        match tokio::time::timeout_at(deadline, running).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.down("the call was cut off")),
            Err(_) => Err(self.slow()),
        }
    }

    /// Waits for a connection until `deadline`; no longer than [`PATIENCE`] after it was lost, so that what is gone
    /// for good delays nobody.
    async fn wait_until_up(&self, deadline: tokio::time::Instant) -> Result<(), CallError> {
        let mut status = self.status.subscribe();
        loop {
            let until = match &*status.borrow_and_update() {
                ConnectionStatus::Up => return Ok(()),
                ConnectionStatus::Starting => deadline,
                ConnectionStatus::Down(_, since) => deadline.min((*since + RECONNECT_GRACE).into()),
            };
            match tokio::time::timeout_at(until, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        let status = self.status.borrow().clone();
        match status {
            ConnectionStatus::Up => Ok(()),
            ConnectionStatus::Down(reason, _) => Err(self.down(&reason)),
            ConnectionStatus::Starting => Err(self.slow()),
        }
    }

    /// An idle connection, or a new one. On a blocking thread.
    fn slot(&self) -> Result<Arc<PooledConnection>, CallError> {
        {
            let pool = lock(&self.pool);
            let alive = || pool.iter().filter(|it| it.connection.is_alive());
            let idle = alive().find(|it| it.calls.load(Ordering::Relaxed) == 0);
            let chosen = if self.may_have_several() { idle } else { alive().next() };
            if let Some(slot) = chosen {
                slot.calls.fetch_add(1, Ordering::Relaxed);
                return Ok(Arc::clone(slot));
            }
            if pool.is_empty() || !self.may_have_several() {
                return Err(self.down("the connection was lost a moment ago"));
            }
        }
        let connection = Connection::open(&self.uri).map_err(|error| self.sorted(error))?;
        let slot = Arc::new(PooledConnection { connection, calls: AtomicUsize::new(1) });
        lock(&self.pool).push(Arc::clone(&slot));
        Ok(slot)
    }

    fn give_back(&self, slot: &Arc<PooledConnection>) {
        slot.calls.fetch_sub(1, Ordering::Relaxed);
        let mut pool = lock(&self.pool);
        let too_many = pool.len() > KEPT_CONNECTIONS && !pool.first().is_some_and(|it| Arc::ptr_eq(it, slot));
        if too_many || !slot.connection.is_alive() {
            pool.retain(|it| !Arc::ptr_eq(it, slot));
        }
    }

    /// Every connection to a test driver that reads a file has domains of its own.
    fn may_have_several(&self) -> bool {
        !self.uri.starts_with("test:///") || self.uri == "test:///default"
    }

    fn sorted(&self, error: Error) -> CallError {
        let lost = error.kind == ErrorKind::Connection;
        let named = UriError { uri: self.uri.clone(), error };
        if lost { CallError::Lost(named) } else { CallError::Refused(named) }
    }

    fn down(&self, reason: &str) -> CallError {
        CallError::Down { uri: self.uri.clone(), reason: reason.to_owned() }
    }

    fn slow(&self) -> CallError {
        CallError::Slow { uri: self.uri.clone() }
    }

    fn set_down(&self, reason: String) {
        self.status.send_modify(|it| {
            let since = match it {
                ConnectionStatus::Down(_, since) => *since,
                ConnectionStatus::Starting | ConnectionStatus::Up => Instant::now(),
            };
            *it = ConnectionStatus::Down(reason, since);
        });
    }

    async fn maintain_connection(self: Arc<Self>) {
        let mut pause = RECONNECT_BACKOFF.0;
        let mut said = None;
        loop {
            match self.connect().await {
                Ok((count, _events, mut lost)) => {
                    info!(uri = %self.uri, domains = count, "connected to libvirt");
                    (pause, said) = (RECONNECT_BACKOFF.0, None);
                    self.status.send_replace(ConnectionStatus::Up);
                    let _ = self.news.send(DomainEvent::Everything);
                    let why = lost.recv().await.unwrap_or_else(|| "closed".to_owned());
                    warn!(uri = %self.uri, reason = %why, "lost libvirt; requests for its domains fail until it is back");
                    self.set_down(why);
                    lock(&self.pool).clear();
                    lock(&self.memory).forget_power_offs();
                }
                Err(error) => {
                    let reason = error.to_string();
                    // Once for each reason: it is tried again every few seconds, perhaps for hours.
                    if said.as_ref() != Some(&reason) {
                        warn!(uri = %self.uri, reason = %reason, "can't connect to libvirt; trying again");
                        said = Some(reason.clone());
                    }
                    self.set_down(reason);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_BACKOFF.1);
        }
    }

    /// Opens the first connection, listens to its events, and looks at all domains once.
    async fn connect(
        self: &Arc<Self>,
    ) -> Result<(usize, EventSubscription, mpsc::UnboundedReceiver<String>), Error> {
        let this = Arc::clone(self);
        let (lost, lost_rx) = mpsc::unbounded_channel();
        let opened = tokio::task::spawn_blocking(move || {
            let connection = Connection::open(&this.uri)?;
            connection.on_close(move |reason| drop(lost.send(format!("{reason:?}"))));
            // A weak reference: the connection must not keep its own keeper alive.
            let weak = Arc::downgrade(&this);
            let events = connection.watch_lifecycle(move |event| {
                if let Some(this) = weak.upgrade() {
                    lock(&this.memory).saw(&event);
                    let _ = this.news.send(DomainEvent::Domain(event.uuid));
                }
            })?;
            let records = connection.domains()?;
            let mut memory = lock(&this.memory);
            for record in &records {
                memory.record_present(record.uuid, &record.name);
            }
            drop(memory);
            lock(&this.pool).push(Arc::new(PooledConnection { connection, calls: AtomicUsize::new(0) }));
            Ok((records.len(), events))
        });
        match opened.await {
            Ok(Ok((count, events))) => Ok((count, events, lost_rx)),
            Ok(Err(error)) => Err(error),
            Err(cut_off) => std::panic::resume_unwind(cut_off.into_panic()),
        }
    }

    /// Whether the domain was here when this hypervisor was last heard of.
    pub(crate) fn has_seen(&self, uuid: Uuid) -> bool {
        lock(&self.memory).domains.get(&uuid).is_some_and(|it| it.went_off.is_none())
    }

    /// Whether another domain with this name was here when this hypervisor was last heard of.
    pub(crate) fn has_seen_another(&self, name: &str, uuid: Uuid) -> bool {
        let memory = lock(&self.memory);
        memory.domains.iter().any(|(it, known)| *it != uuid && known.name == name && known.went_off.is_none())
    }

    /// Whether one of the domains that were seen here is such a one. Those that have gone since are among them.
    pub(crate) fn remembers(&self, is_it: impl Fn(Uuid, &str) -> bool) -> bool {
        lock(&self.memory).domains.iter().any(|(uuid, known)| is_it(*uuid, &known.name))
    }

    /// A domain that is no longer defined and was seen to go off here, within the last ten minutes and with
    /// lifecycle events watched all the time since.
    pub(crate) fn gone_off(&self, uuid: Option<Uuid>, name: Option<&str>) -> Option<(Uuid, String)> {
        let memory = lock(&self.memory);
        let (uuid, record) = match uuid.and_then(|it| memory.domains.get_key_value(&it)) {
            Some(found) => found,
            None => {
                let name = name?;
                let mut called = memory.domains.iter().filter(|(_, it)| it.name == name);
                let found = called.next()?;
                if called.next().is_some() {
                    return None;
                }
                found
            }
        };
        let went_off = record.went_off?;
        (went_off.elapsed() < POWER_OFF_TTL).then(|| (*uuid, record.name.clone()))
    }

    /// Our own action ended it.
    pub(crate) fn saw_gone_off(&self, uuid: Uuid) {
        if let Some(record) = lock(&self.memory).domains.get_mut(&uuid) {
            record.went_off = Some(Instant::now());
        }
    }
}

/// What was seen of a hypervisor's domains. Needed for one question only: whether a domain that is no longer there
/// went off here, or went away.
#[derive(Default)]
struct SeenDomains {
    domains: HashMap<Uuid, SeenDomain>,
}

struct SeenDomain {
    name: String,
    /// When it was last seen to go off for good, here: not moved to another host, not saved.
    went_off: Option<Instant>,
}

impl SeenDomains {
    fn record_present(&mut self, uuid: Uuid, name: &str) {
        if self.domains.len() >= MAX_REMEMBERED && !self.domains.contains_key(&uuid) {
            self.forget_some();
        }
        self.domains.insert(uuid, SeenDomain { name: name.to_owned(), went_off: None });
    }

    fn saw(&mut self, event: &LifecycleEvent) {
        // VIR_DOMAIN_EVENT_STOPPED_*: SHUTDOWN 0, DESTROYED 1, CRASHED 2, MIGRATED 3, SAVED 4, FAILED 5,
        // FROM_SNAPSHOT 6. What was migrated or saved may be on elsewhere.
        let for_good = matches!(event.detail, 0 | 1 | 2 | 5);
        match event.kind {
            LifecycleKind::Stopped => {
                if !self.domains.contains_key(&event.uuid) {
                    self.record_present(event.uuid, &event.name);
                }
                if let Some(record) = self.domains.get_mut(&event.uuid) {
                    record.went_off = for_good.then(Instant::now);
                }
            }
            // Say nothing about power.
            LifecycleKind::Undefined | LifecycleKind::DevicesChanged => {}
            _ => self.record_present(event.uuid, &event.name),
        }
    }

    /// Events may have been missed: what is not there any more may have gone anywhere.
    fn forget_power_offs(&mut self) {
        for record in self.domains.values_mut() {
            record.went_off = None;
        }
    }

    fn forget_some(&mut self) {
        self.domains.retain(|_, it| it.went_off.is_none());
        if self.domains.len() >= MAX_REMEMBERED {
            self.domains.clear();
        }
    }
}
