// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to one hypervisor, and calls to it, each on a blocking thread with a deadline.
//!
//! One task per hypervisor (`maintain_connection`) opens the first connection, listens to lifecycle events
//! and, when the connection is lost, opens another, for ever. A connection makes one call at a time, so each
//! call takes an idle connection or opens another. A blocked call can't be cancelled: it keeps its thread,
//! its connection and its permit until libvirt's keepalive ends it. Callers wait for it until their deadline
//! and no longer.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_core::evidence::last_seen::{LastSeen, LeaveKind};
use fence_core::owed_start::PlaceMemory;
use libvirt_host::{
    Connection, DomainRecord, Error, ErrorKind, EventSubscription, LifecycleKind, OrdinaryConnection, State,
    Uuid,
};
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, watch};
use tracing::{debug, info, warn};

use super::bulk::BulkList;
use super::memory::{InstanceCourse, SeenDomains, is_migration, is_save};
use super::news::DomainEvent;
use super::past::PastEvents;
pub(crate) use super::past::{WrittenEvent, written_events};
use super::stray::{MachineProcess, MachineProcesses, ProcessesGone, warn_if_hidden};
use super::uri::Uri;
use crate::util::backoff::{Backoff, OncePerReason};
use crate::util::locks::lock;

/// Calls to one hypervisor that may be in flight at once, each on a connection of its own.
const MAX_CALLS: usize = 64;
/// Time in which a free worker of libvirtd takes a call. After it the call is answered late or never.
const WORKER_PATIENCE: Duration = Duration::from_secs(1);
/// The same while an earlier call waits for longer than that.
const WORKER_PATIENCE_IN_DOUBT: Duration = Duration::from_millis(200);
/// Idle connections that are kept.
const KEPT_CONNECTIONS: usize = 8;
/// Pause before a lost connection is opened again.
const RECONNECT_BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// Time after the loss of a connection for which calls wait for another: libvirtd restarts in less. Also the
/// longest wait of a later call for the try that it asks for.
const RECONNECT_GRACE: Duration = Duration::from_secs(3);
/// Least time between the beginnings of two tries to connect that calls ask for.
const TRY_SPACING: Duration = Duration::from_millis(300);
/// Time in which libvirt can be expected to answer. With less, silence says nothing of it.
const LEAST_TIME: Duration = Duration::from_millis(200);
/// Time that the start of the daemon waits for a first connection.
const FIRST_ATTEMPT: Duration = Duration::from_secs(10);
/// Time that the start then waits for the list of all domains: libvirt gives none while it ends a QEMU that
/// is slow to die.
const FIRST_LIST: Duration = Duration::from_secs(1);
/// Readings of a domain in a new connection's list whose events overtake them.
const MAX_READ_AGAIN: usize = 8;
/// Time by which an event may be later than a reading.
pub(crate) const EVENT_LAG: Duration = Duration::from_secs(1);
/// Pause before it is looked again whether an event came.
const EVENT_POLL: Duration = Duration::from_millis(2);
/// Lifecycle events that are kept for a follower that has not read them yet.
const EVENT_QUEUE: usize = 1024;

/// All hypervisors that the daemon uses, by URI. All users of one share its connections, so that all see the
/// same domains of a test driver that reads a file.
#[derive(Clone, Default)]
pub(crate) struct Hypervisors {
    all: Arc<Mutex<Vec<Arc<Hypervisor>>>>,
    /// A domain came or went by a migration.
    migrated: Arc<Notify>,
    /// Ends and moves on disk, where there is a state directory.
    past: Option<PastEvents>,
    /// Machines that were saved to files are watched.
    notes_saves: bool,
}

impl Hypervisors {
    /// Builds the table, with a memory of ends and moves in the state directory. If it can't be opened, logs
    /// the reason and goes on without.
    pub(crate) fn open(state: Option<&Path>, boot: &str) -> Self {
        let past = state.and_then(|directory| {
            let opened = PastEvents::open(directory, boot);
            let log = |error: &std::io::Error| {
                warn!(
                    directory = %fence_cli::shown(directory),
                    "moves of domains are not remembered over a restart of fence_virtd: {error}"
                );
            };
            opened.inspect_err(log).ok()
        });
        Self { past, notes_saves: true, ..Self::default() }
    }

    /// Waits at the end of the daemon until ends and moves are on disk, for a limited time.
    pub(crate) fn finish(&self) {
        if let Some(past) = &self.past {
            past.finish();
        }
    }

    /// Returns the hypervisor at `uri`. The first call connects to it. Must run inside the runtime.
    pub(crate) fn at(&self, uri: &str) -> Arc<Hypervisor> {
        let mut all = lock(&self.all);
        if let Some(known) = all.iter().find(|it| it.uri == uri) {
            return Arc::clone(known);
        }
        let memory = match self.notes_saves {
            true => SeenDomains::on_disk(self.past.clone(), uri),
            false => SeenDomains::default(),
        };
        let new = Hypervisor::start(uri, memory, Arc::clone(&self.migrated));
        all.push(Arc::clone(&new));
        new
    }

    /// Returns all hypervisors that are in use.
    pub(crate) fn all(&self) -> Vec<Arc<Hypervisor>> {
        lock(&self.all).clone()
    }

    /// Waits until a domain comes or goes by a migration at one of them.
    pub(crate) async fn migration(&self) {
        self.migrated.notified().await;
    }
}

/// One hypervisor, by its URI.
pub(crate) struct Hypervisor {
    uri: String,
    permits: Arc<Semaphore>,
    /// Permits of the calls that need an ordinary worker of libvirtd: when all of these hang, the others are
    /// made all the same.
    ordinary_permits: Arc<Semaphore>,
    /// Calls to ordinary workers for which nobody waits any more, and that have not returned.
    unanswered: Arc<AtomicUsize>,
    /// All ordinary workers were busy when they were last asked, and have not answered since.
    are_workers_busy: Arc<AtomicBool>,
    /// Turn to ask whether there is a free worker.
    worker_turn: tokio::sync::Mutex<()>,
    pool: Mutex<Vec<Arc<PooledConnection>>>,
    status: watch::Sender<ConnectionStatus>,
    memory: Mutex<SeenDomains>,
    /// Processes of this host that have machines; none where the machines are no processes of this host.
    processes: Option<Arc<MachineProcesses>>,
    /// A search of the processes waits for its turn, because a machine was started.
    notes_start: AtomicBool,
    news: broadcast::Sender<DomainEvent>,
    migrated: Arc<Notify>,
    /// Number of tries to connect that have begun.
    tries: AtomicU64,
    /// A call waits for a try.
    try_wanted: Notify,
}

/// Reason why a call to a hypervisor has no result.
#[derive(Debug)]
pub(crate) enum CallError {
    /// libvirt refused or failed.
    Refused(UriError),
    /// The connection was lost during the call.
    Lost(UriError),
    /// There is no connection. `is_gone`: at a try to connect that began after the call did, nobody listened
    /// at libvirt's socket on this host.
    Down { uri: String, reason: String, is_gone: bool },
    /// No answer in time.
    Slow { uri: String },
    /// The time of the request was over, or nearly, before it was asked.
    Late { uri: String },
    /// Too many calls are in flight: most of them hang.
    Busy { uri: String },
    /// No answer in time, because all ordinary workers of libvirtd are busy.
    WorkersBusy { uri: String },
}

/// libvirt's error with the URI it came from.
#[derive(Debug)]
pub(crate) struct UriError {
    uri: String,
    error: Error,
}

/// Beginning of the reason for a hypervisor that was not asked, since something before took the time.
pub(crate) const NO_TIME_LEFT: &str = "no time was left to ask";

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(it) => write!(f, "libvirt at {}: {}", it.uri, it.error),
            Self::Lost(it) => write!(f, "lost libvirt at {}: {}", it.uri, it.error),
            Self::Down { uri, reason, .. } => write!(f, "no connection to libvirt at {uri}: {reason}"),
            Self::Slow { uri } => write!(f, "libvirt at {uri} did not answer in time"),
            Self::Late { uri } => {
                write!(f, "{NO_TIME_LEFT} libvirt at {uri}: what came before took it")
            }
            Self::Busy { uri } => {
                write!(f, "libvirt at {uri} is busy: {MAX_CALLS} calls wait for it already")
            }
            Self::WorkersBusy { uri } => write!(f, "{}", workers_busy(uri)),
        }
    }
}

impl std::error::Error for CallError {}

impl CallError {
    /// Returns whether libvirt may still answer, and has not.
    pub(crate) fn is_without_answer(&self) -> bool {
        matches!(self, Self::Slow { .. } | Self::Late { .. } | Self::Busy { .. } | Self::WorkersBusy { .. })
    }

    /// Separates libvirt's own error from all other reasons.
    pub(crate) fn into_error(self) -> Result<Error, Self> {
        match self {
            Self::Refused(it) | Self::Lost(it) => Ok(it.error),
            other => Err(other),
        }
    }
}

#[derive(Clone)]
enum ConnectionStatus {
    /// The first attempt has not ended.
    Starting,
    /// The same, and libvirt has answered, but not with the list of its domains.
    Listing,
    Up,
    /// Not reachable: the reason, since when, and the try that failed last.
    Down(String, Instant, FailedTry),
}

/// Try to connect that failed, or whose connection was lost later.
#[derive(Clone, Copy)]
struct FailedTry {
    number: u64,
    /// Nobody listened at libvirt's socket on this host.
    is_gone: bool,
}

struct PooledConnection {
    connection: Connection,
    calls: AtomicUsize,
}

impl Hypervisor {
    /// Starts the task that keeps the connection up. Must run inside the runtime.
    fn start(uri: &str, memory: SeenDomains, migrated: Arc<Notify>) -> Arc<Self> {
        let this = Arc::new(Self {
            uri: uri.to_owned(),
            permits: Arc::new(Semaphore::new(MAX_CALLS)),
            ordinary_permits: Arc::new(Semaphore::new(MAX_CALLS)),
            unanswered: Arc::default(),
            are_workers_busy: Arc::default(),
            worker_turn: tokio::sync::Mutex::default(),
            pool: Mutex::default(),
            status: watch::Sender::new(ConnectionStatus::Starting),
            memory: Mutex::new(memory),
            processes: Uri::of(uri).has_processes_here().then(Arc::default),
            notes_start: AtomicBool::new(false),
            news: broadcast::Sender::new(EVENT_QUEUE),
            migrated,
            tries: AtomicU64::new(0),
            try_wanted: Notify::new(),
        });
        tokio::spawn(Arc::clone(&this).maintain_connection());
        this
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Returns whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        matches!(*self.status.borrow(), ConnectionStatus::Up)
    }

    /// Returns the events from now on. A follower that is more than [`EVENT_QUEUE`] behind has to read
    /// everything.
    pub(crate) fn news(&self) -> broadcast::Receiver<DomainEvent> {
        self.news.subscribe()
    }

    /// Has all followers read a domain again, as after an event.
    pub(crate) fn read_again(&self, uuid: Uuid) {
        let _ = self.news.send(DomainEvent::Domain(uuid));
    }

    /// Waits until libvirt's events are watched again, and what it lists is known.
    pub(crate) async fn watches_again(&self, until: Instant) {
        let mut status = self.status.subscribe();
        let is_up = status.wait_for(|it| matches!(it, ConnectionStatus::Up));
        let _ = tokio::time::timeout_at(until.into(), is_up).await;
    }

    /// Waits for the first answer of libvirt.
    ///
    /// # Errors
    /// There is none, or it is a refusal.
    pub(crate) async fn first_answer(&self) -> Result<(), CallError> {
        let mut status = self.status.subscribe();
        let ended = status.wait_for(|it| !matches!(it, ConnectionStatus::Starting));
        match tokio::time::timeout(FIRST_ATTEMPT, ended).await {
            Ok(Ok(status)) => match &*status {
                ConnectionStatus::Down(reason, ..) => Err(self.down(reason)),
                ConnectionStatus::Listing | ConnectionStatus::Up | ConnectionStatus::Starting => Ok(()),
            },
            Ok(Err(_)) | Err(_) => Err(self.slow()),
        }
    }

    /// Waits for the first answer of libvirt, and a moment for its first list of all domains.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    pub(crate) async fn first_attempt(&self) -> Result<(), CallError> {
        self.first_answer().await?;
        self.first_list().await
    }

    /// Waits a moment for the first list of all domains, if libvirt has answered.
    ///
    /// # Errors
    /// There is none, and libvirt is not busy.
    pub(crate) async fn first_list(&self) -> Result<(), CallError> {
        let mut status = self.status.subscribe();
        let listed = status.wait_for(|it| !matches!(it, ConnectionStatus::Listing));
        match tokio::time::timeout(FIRST_LIST, listed).await {
            Ok(Ok(status)) => match &*status {
                ConnectionStatus::Down(reason, ..) => Err(self.down(reason)),
                _ => Ok(()),
            },
            Ok(Err(_)) | Err(_) => {
                warn!(
                    uri = %self.uri,
                    "libvirt is busy, perhaps with a machine that is slow to end, and does not list its \
                     domains: requests for them wait until it does"
                );
                Ok(())
            }
        }
    }

    /// Notes that libvirt has answered at the first attempt.
    fn set_listing(&self) {
        self.status.send_if_modified(|it| {
            let is_first = matches!(it, ConnectionStatus::Starting);
            if is_first {
                *it = ConnectionStatus::Listing;
            }
            is_first
        });
    }

    /// Makes a call that only reads. When its connection is lost, the call is repeated on another.
    pub(crate) async fn ask<T, F>(self: &Arc<Self>, until: Instant, read: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<T, Error> + Send + Sync + 'static,
    {
        let read = Arc::new(read);
        loop {
            let again = Arc::clone(&read);
            match self.call(until, move |connection| again(connection)).await {
                Err(CallError::Lost(lost)) if Instant::now() < until => {
                    debug!(uri = %self.uri, error = %lost.error, "asking again");
                }
                other => return other,
            }
        }
    }

    /// Runs `work` on a blocking thread with a connection. Waits for a connection, and for the work, until
    /// `until` and no longer; work that has begun goes on. Nothing in it may need an ordinary worker of
    /// libvirtd, so that a power-off does not wait for others' calls.
    pub(crate) async fn call<T, F>(self: &Arc<Self>, until: Instant, work: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        self.call_with(&self.permits, until, work).await
    }

    /// Runs work that needs an ordinary worker of libvirtd, as [`Self::call`] does the rest.
    pub(crate) async fn call_worker<T, F>(self: &Arc<Self>, until: Instant, work: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&OrdinaryConnection) -> Result<T, Error> + Send + 'static,
    {
        let returns = UnansweredCall::new(&self.unanswered);
        let gives_up = returns.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "the one way to ordinary calls, with permits of its own"
        )]
        let running = self.call_with(&self.ordinary_permits, until, move |connection| {
            let result = work(&OrdinaryConnection::new(connection));
            returns.returned();
            result
        });
        tokio::pin!(running);
        let patience = Instant::now() + WORKER_PATIENCE;
        // A short wait ends before it is known why.
        let (result, are_busy) = if until <= patience {
            (running.await, false)
        } else {
            match tokio::time::timeout_at(patience.into(), &mut running).await {
                Ok(result) => (result, false),
                Err(_) => tokio::join!(running, self.check_workers()),
            }
        };
        let Err(CallError::Slow { uri }) = result else { return result };
        gives_up.given_up();
        if until <= patience {
            tokio::spawn(Arc::clone(self).log_workers());
        }
        Err(if are_busy { CallError::WorkersBusy { uri } } else { CallError::Slow { uri } })
    }

    /// Asks an ordinary worker of libvirtd beside a call that needs none, and waits for a moment only. Runs
    /// on a blocking thread.
    pub(crate) fn ask_beside<T, F>(self: &Arc<Self>, work: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&OrdinaryConnection) -> Result<T, Error> + Send + 'static,
    {
        self.call_worker_beside(Instant::now() + self.worker_patience(), work)
    }

    /// Runs work that needs an ordinary worker beside a call that needs none. Runs on a blocking thread.
    pub(crate) fn call_worker_beside<T, F>(self: &Arc<Self>, until: Instant, work: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&OrdinaryConnection) -> Result<T, Error> + Send + 'static,
    {
        // Not with the timers of the runtime on this thread: they can't be used any more when it ends.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let this = Arc::clone(self);
        tokio::runtime::Handle::current().spawn(async move {
            let _ = tell.send(this.call_worker(until, work).await);
        });
        told.recv().unwrap_or_else(|_| Err(CallError::Late { uri: self.uri.clone() }))
    }

    /// Returns all domains with their states. While a call waits for an ordinary worker, none is asked. Runs
    /// on a blocking thread, with the connection of a call.
    pub(crate) fn list(self: &Arc<Self>, connection: &Connection) -> Result<Vec<DomainRecord>, Error> {
        let (tell, bulk) = BulkList::new();
        if self.unanswered.load(Ordering::Relaxed) == 0 {
            let this = Arc::clone(self);
            tokio::runtime::Handle::current().spawn(async move {
                let list = move |c: &OrdinaryConnection| {
                    let _ = tell.send(c.domains_in_bulk());
                    Ok(())
                };
                // A late answer is taken too.
                let _ = this.call_worker(Instant::now() + WORKER_PATIENCE, list).await;
            });
        } else {
            drop(tell);
        }
        bulk.or_one_by_one(|is_in_vain| connection.domains_unless(is_in_vain))
    }

    /// Returns the same before there is a pool.
    fn first_list_by(self: &Arc<Self>, connection: &Connection) -> Result<Vec<DomainRecord>, Error> {
        let (tell, bulk) = BulkList::new();
        let (this, only) = (Arc::clone(self), connection.clone());
        tokio::task::spawn_blocking(move || {
            let beside = if this.may_have_several() { Connection::open(&this.uri) } else { Ok(only) };
            #[expect(clippy::disallowed_methods, reason = "a call beside those that need no worker")]
            let list = beside.and_then(|it| OrdinaryConnection::new(&it).domains_in_bulk());
            let _ = tell.send(list);
        });
        bulk.or_one_by_one(|is_in_vain| connection.domains_unless(is_in_vain))
    }

    /// Returns the time in which a free worker takes a call.
    pub(crate) fn worker_patience(&self) -> Duration {
        match self.unanswered.load(Ordering::Relaxed) {
            0 => WORKER_PATIENCE,
            _ => WORKER_PATIENCE_IN_DOUBT,
        }
    }

    async fn log_workers(self: Arc<Self>) {
        self.check_workers().await;
    }

    /// Returns whether all ordinary workers of libvirtd are busy: it answers what needs none of them, and
    /// nothing else. Logs it when that changes.
    async fn check_workers(self: &Arc<Self>) -> bool {
        let _turn = self.worker_turn.lock().await;
        if self.are_workers_busy.load(Ordering::Relaxed) {
            return true;
        }
        let until = Instant::now() + WORKER_PATIENCE;
        let has_answered = Arc::new(AtomicBool::default());
        let (answered, are_busy, uri) =
            (Arc::clone(&has_answered), Arc::clone(&self.are_workers_busy), self.uri.clone());
        #[expect(clippy::disallowed_methods, reason = "asks whether there is a free worker")]
        let worker = self.call_with(&self.ordinary_permits, until, move |c| {
            let result = OrdinaryConnection::new(c).ping_worker();
            answered.store(true, Ordering::SeqCst);
            if are_busy.swap(false, Ordering::SeqCst) {
                info!(%uri, "libvirtd has free workers again");
            }
            result
        });
        let (worker, reserved) = tokio::join!(worker, self.call(until, Connection::ping));
        if !matches!(worker, Err(CallError::Slow { .. })) || reserved.is_err() {
            return false;
        }
        self.are_workers_busy.store(true, Ordering::SeqCst);
        warn!(uri = %self.uri, "{}", workers_busy(&self.uri));
        // The answer may have come a moment too early to be noted.
        if has_answered.load(Ordering::SeqCst) {
            self.are_workers_busy.store(false, Ordering::SeqCst);
        }
        true
    }

    async fn call_with<T, F>(
        self: &Arc<Self>,
        permits: &Arc<Semaphore>,
        until: Instant,
        work: F,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        // Whoever reads of a slow libvirt looks for the cause there.
        let is_late = until.saturating_duration_since(Instant::now()) < LEAST_TIME;
        match self.call_in_time(permits, until, work).await {
            Err(CallError::Slow { uri } | CallError::Busy { uri }) if is_late => Err(CallError::Late { uri }),
            other => other,
        }
    }

    async fn call_in_time<T, F>(
        self: &Arc<Self>,
        permits: &Arc<Semaphore>,
        until: Instant,
        work: F,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        let deadline = tokio::time::Instant::from_std(until);
        let permit = tokio::time::timeout_at(deadline, Arc::clone(permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(CallError::Busy { uri: self.uri.clone() }) };
        self.wait_until_up(deadline).await?;
        let this = Arc::clone(self);
        let running = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let pooled = this.take_connection()?;
            let result = work(&pooled.connection);
            this.give_back(&pooled);
            result.map_err(|error| this.call_error(error))
        });
        match tokio::time::timeout_at(deadline, running).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.down("the call was cut off")),
            Err(_) => Err(self.slow()),
        }
    }

    /// Waits for a connection until `deadline`. The answer of an earlier try proves nothing: a call asks for
    /// a try of its own, and waits for its end, but no longer than [`RECONNECT_GRACE`], so that a hypervisor
    /// that is gone for good delays nobody.
    async fn wait_until_up(&self, deadline: tokio::time::Instant) -> Result<(), CallError> {
        let mut status = self.status.subscribe();
        let begun_before = self.tries.load(Ordering::Relaxed);
        let patience = deadline.min((Instant::now() + RECONNECT_GRACE).into());
        loop {
            let until = match &*status.borrow_and_update() {
                ConnectionStatus::Up => return Ok(()),
                ConnectionStatus::Starting | ConnectionStatus::Listing => deadline,
                ConnectionStatus::Down(_, since, failed) => {
                    let is_tried = failed.number > begun_before && since.elapsed() >= RECONNECT_GRACE;
                    self.try_wanted.notify_one();
                    if is_tried { tokio::time::Instant::now() } else { patience }
                }
            };
            match tokio::time::timeout_at(until, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        let status = self.status.borrow().clone();
        match status {
            ConnectionStatus::Up => Ok(()),
            ConnectionStatus::Down(reason, _, failed) => {
                let is_gone = failed.is_gone && failed.number > begun_before;
                Err(CallError::Down { uri: self.uri.clone(), reason, is_gone })
            }
            ConnectionStatus::Starting | ConnectionStatus::Listing => Err(self.slow()),
        }
    }

    /// Returns an idle connection, or a new one. Runs on a blocking thread.
    fn take_connection(&self) -> Result<Arc<PooledConnection>, CallError> {
        {
            let pool = lock(&self.pool);
            let alive = || pool.iter().filter(|it| it.connection.is_alive());
            let idle = alive().find(|it| it.calls.load(Ordering::Relaxed) == 0);
            let chosen = if self.may_have_several() { idle } else { alive().next() };
            if let Some(pooled) = chosen {
                pooled.calls.fetch_add(1, Ordering::Relaxed);
                return Ok(Arc::clone(pooled));
            }
            if pool.is_empty() || !self.may_have_several() {
                return Err(self.down("the connection was lost a moment ago"));
            }
        }
        let connection = Connection::open(&self.uri).map_err(|error| self.call_error(error))?;
        let pooled = Arc::new(PooledConnection { connection, calls: AtomicUsize::new(1) });
        lock(&self.pool).push(Arc::clone(&pooled));
        Ok(pooled)
    }

    fn give_back(&self, pooled: &Arc<PooledConnection>) {
        pooled.calls.fetch_sub(1, Ordering::Relaxed);
        let mut pool = lock(&self.pool);
        let too_many =
            pool.len() > KEPT_CONNECTIONS && !pool.first().is_some_and(|it| Arc::ptr_eq(it, pooled));
        if too_many || !pooled.connection.is_alive() {
            pool.retain(|it| !Arc::ptr_eq(it, pooled));
        }
    }

    /// Returns whether several connections see the same domains. Each connection to a test driver that reads
    /// a file has domains of its own.
    fn may_have_several(&self) -> bool {
        !self.uri.starts_with("test:///") || self.uri == "test:///default"
    }

    fn call_error(&self, error: Error) -> CallError {
        let lost = error.kind == ErrorKind::Connection;
        let named = UriError { uri: self.uri.clone(), error };
        if lost { CallError::Lost(named) } else { CallError::Refused(named) }
    }

    fn down(&self, reason: &str) -> CallError {
        CallError::Down { uri: self.uri.clone(), reason: reason.to_owned(), is_gone: false }
    }

    fn slow(&self) -> CallError {
        CallError::Slow { uri: self.uri.clone() }
    }

    /// Enters the loss of the connection, or that a try failed.
    fn set_down(&self, reason: String, failed: FailedTry) {
        self.status.send_modify(|it| {
            let since = match it {
                ConnectionStatus::Down(_, since, _) => *since,
                ConnectionStatus::Starting | ConnectionStatus::Listing | ConnectionStatus::Up => {
                    Instant::now()
                }
            };
            *it = ConnectionStatus::Down(reason, since, failed);
        });
    }

    /// Waits before the next try: for the pause, or until a call wants a try.
    async fn pause(&self, began: Instant, pause: Duration) {
        let wanted = async {
            self.try_wanted.notified().await;
            tokio::time::sleep_until((began + TRY_SPACING).into()).await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wanted => {}
        }
    }

    async fn maintain_connection(self: Arc<Self>) {
        let (mut backoff, mut logged) = (RECONNECT_BACKOFF, OncePerReason::default());
        loop {
            let began = Instant::now();
            let number = self.tries.fetch_add(1, Ordering::Relaxed) + 1;
            match self.connect().await {
                Ok((count, _events, mut lost)) => {
                    info!(uri = %self.uri, domains = count, "connected to libvirt");
                    backoff.reset();
                    logged.forget();
                    self.status.send_replace(ConnectionStatus::Up);
                    let _ = self.news.send(DomainEvent::Everything);
                    let reason = lost.recv().await.unwrap_or_else(|| "closed".to_owned());
                    warn!(
                        uri = %self.uri, %reason,
                        "lost libvirt: requests for its domains fail until the connection is restored"
                    );
                    self.set_down(reason, FailedTry { number, is_gone: false });
                    lock(&self.pool).clear();
                    lock(&self.memory).begin_gap();
                }
                Err(error) => {
                    let reason = error.to_string();
                    if logged.is_new(&reason) {
                        warn!(uri = %self.uri, %reason, "can't connect to libvirt; trying again");
                    }
                    let is_gone = Uri::of(&self.uri).is_local() && error.is_without_listener();
                    self.set_down(reason, FailedTry { number, is_gone });
                }
            }
            self.pause(began, backoff.next_pause()).await;
        }
    }

    /// Opens the first connection, subscribes to its events, and lists all domains once.
    async fn connect(
        self: &Arc<Self>,
    ) -> Result<(usize, EventSubscription, mpsc::UnboundedReceiver<String>), Error> {
        let this = Arc::clone(self);
        let (lost, lost_rx) = mpsc::unbounded_channel();
        let opened = tokio::task::spawn_blocking(move || {
            let connection = Connection::open(&this.uri)?;
            connection.on_close(move |reason| drop(lost.send(reason.to_string())));
            // A weak reference, so that the connection does not keep its owner alive.
            let weak = Arc::downgrade(&this);
            let runtime = tokio::runtime::Handle::current();
            let events = connection.watch_lifecycle(move |event| {
                if let Some(this) = weak.upgrade() {
                    lock(&this.memory).record_event(&event);
                    // Nothing that is read of a domain changes by a copy of its memory.
                    if event.kind != LifecycleKind::MemoryCopied {
                        let _ = this.news.send(DomainEvent::Domain(event.uuid));
                    }
                    if event.kind == LifecycleKind::Started {
                        this.note_start(&runtime);
                    }
                    if is_migration(&event) {
                        this.migrated.notify_one();
                    }
                    if is_save(&event) {
                        runtime.spawn(Arc::clone(&this).check_save(event.uuid));
                    }
                }
            })?;
            this.set_listing();
            let count = this.read_list(&connection)?;
            lock(&this.pool).push(Arc::new(PooledConnection { connection, calls: AtomicUsize::new(0) }));
            Ok((count, events))
        });
        match opened.await {
            Ok(Ok((count, events))) => Ok((count, events, lost_rx)),
            Ok(Err(error)) => Err(error),
            Err(cut_off) => std::panic::resume_unwind(cut_off.into_panic()),
        }
    }

    /// Lists all domains of a hypervisor whose events are watched again, and returns their number. Runs on a
    /// blocking thread.
    fn read_list(self: &Arc<Self>, connection: &Connection) -> Result<usize, Error> {
        let mut asked = lock(&self.memory).event_mark();
        let mut records = self.first_list_by(connection)?;
        let count = records.len();
        let on = records.iter().filter(|it| !matches!(it.state, State::ShutOff | State::MovedAway));
        let on: HashSet<_> = on.map(|it| it.uuid).collect();
        let mut memory = lock(&self.memory);
        memory.end_gap();
        memory.recall();
        records.retain(|it| !memory.record_listed(it, asked));
        drop(memory);
        // What an event has overtaken is read again. If that never ends, what the events said stands.
        for _ in 0..MAX_READ_AGAIN {
            if records.is_empty() {
                break;
            }
            asked = lock(&self.memory).event_mark();
            records = read_again(connection, records)?;
            let mut memory = lock(&self.memory);
            records.retain(|it| !memory.record_listed(it, asked));
        }
        if let Some(processes) = &self.processes {
            warn_if_hidden();
            if let Err(why) = processes.search(Instant::now()) {
                warn!(uri = %self.uri, "{why}");
            }
            processes.tell_lost(&self.uri, &on);
        }
        Ok(count)
    }

    /// Looks in the background for the process of a machine that was started: later its arguments may be
    /// gone.
    fn note_start(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        let Some(processes) = self.processes.clone() else { return };
        if self.notes_start.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = Arc::clone(self);
        runtime.spawn_blocking(move || {
            // One that starts from here on needs another search.
            this.notes_start.store(false, Ordering::Relaxed);
            if let Err(why) = processes.search(Instant::now()) {
                debug!(uri = %this.uri, "{why}");
            }
        });
    }

    /// Looks whether a save was a managed one, as long as libvirt knows it.
    async fn check_save(self: Arc<Self>, uuid: Uuid) {
        let looked =
            self.call_worker(Instant::now() + FIRST_ATTEMPT, move |c| has_saved_memory(c, uuid)).await;
        match looked {
            Ok(is_managed) => {
                if is_managed {
                    self.record_managed_save(uuid);
                }
                debug!(%uuid, is_managed, "a domain was saved");
            }
            Err(error) => debug!(%uuid, "can't look whether a save was a managed one: {error}"),
        }
    }

    /// Looks whether a save was a managed one: its file belongs to the definition. With no answer it counts
    /// as another. Runs on a blocking thread.
    pub(crate) fn look_at_save(self: &Arc<Self>, uuid: Uuid) {
        if self.save_age(uuid).is_some()
            && matches!(self.ask_beside(move |c| has_saved_memory(c, uuid)), Ok(true))
        {
            self.record_managed_save(uuid);
        }
    }

    /// Returns whether a domain without an instance keeps the memory of a managed save. If no worker
    /// answers, libvirt's list does.
    pub(crate) async fn keeps_saved_memory(
        self: &Arc<Self>,
        uuid: Uuid,
        until: Instant,
    ) -> Result<bool, CallError> {
        let patience = until.min(Instant::now() + self.worker_patience());
        let told = match self.call_worker(patience, move |c| has_saved_memory(c, uuid)).await {
            Err(error) if error.is_without_answer() => {
                self.ask(until, move |c| c.lists_saved_memory(uuid)).await?
            }
            told => told?,
        };
        let is_off = move |c: &Connection| match c.domain_by_uuid(uuid)? {
            Some(domain) => Ok(!domain.is_active()?),
            None => Ok(false),
        };
        Ok(told && self.ask(until, is_off).await?)
    }

    /// Waits for the event that tells of the end of an instance that ran here. Returns whether it ran until
    /// then, and never stood still since it was seen to run: no save was under way.
    ///
    /// Runs on a blocking thread.
    pub(crate) fn ended_running(&self, uuid: Uuid) -> bool {
        self.await_course(uuid).is_some_and(|it| !it.stood_still)
    }

    /// Returns whether also its memory was not copied: no migration was under way.
    pub(crate) fn ended_undisturbed(&self, uuid: Uuid) -> bool {
        self.await_course(uuid).is_some_and(InstanceCourse::is_undisturbed)
    }

    /// Returns whether the instance that is here has not stood still, and its memory was not copied.
    pub(crate) fn runs_undisturbed(&self, uuid: Uuid) -> bool {
        let course = lock(&self.memory).course(uuid);
        course.is_some_and(|it| !it.has_ended && it.is_undisturbed())
    }

    /// Returns whether the instance that is here is known since it was last seen to begin or to go on, and
    /// its memory was not copied since: no migration took it to another place.
    pub(crate) fn was_never_copied(&self, uuid: Uuid) -> bool {
        lock(&self.memory).course(uuid).is_some_and(InstanceCourse::was_never_copied)
    }

    /// Returns the course of an instance after the event of its end, which may be late.
    fn await_course(&self, uuid: Uuid) -> Option<InstanceCourse> {
        let until = Instant::now() + EVENT_LAG;
        loop {
            match lock(&self.memory).course(uuid) {
                Some(course) if course.has_ended => return Some(course),
                Some(_) if Instant::now() < until => {}
                _ => return None,
            }
            std::thread::sleep(EVENT_POLL);
        }
    }

    /// Records that a save was a managed one.
    pub(crate) fn record_managed_save(&self, uuid: Uuid) {
        lock(&self.memory).record_managed_save(uuid);
    }

    /// Records whether libvirt itself tells, in a look that showed no instance, that the machine moved away.
    pub(crate) fn record_reading(&self, uuid: Uuid, stays_behind: bool) {
        lock(&self.memory).record_reading(uuid, stays_behind);
    }

    /// Returns the last thing that was seen of a domain.
    pub(crate) fn last_seen(&self, uuid: Uuid) -> Option<LastSeen> {
        lock(&self.memory).last(uuid)
    }

    /// Returns the proof that no process of the machine is there, by a search that begins now: after libvirt
    /// said that no instance is. Runs on a blocking thread.
    ///
    /// # Errors
    /// Reason why one may be there.
    pub(crate) fn processes_gone(&self, uuid: Uuid) -> Result<ProcessesGone, String> {
        let Some(processes) = &self.processes else { return Ok(ProcessesGone::not_of_this_host()) };
        processes.gone(&self.uri, (uuid, self.name_of(uuid).as_deref()), Instant::now())
    }

    /// Returns the processes that have the machine, before it is ended. Runs on a blocking thread.
    pub(crate) fn note_processes(&self, uuid: Uuid) -> Vec<MachineProcess> {
        self.processes.as_ref().map(|it| it.note(uuid)).unwrap_or_default()
    }

    /// Returns the proof that these processes, which had the machine, are gone. Where none was noted, as
    /// [`Self::processes_gone`].
    ///
    /// # Errors
    /// Reason why one may be there.
    pub(crate) fn noted_processes_gone(
        &self,
        uuid: Uuid,
        noted: &[MachineProcess],
    ) -> Result<ProcessesGone, String> {
        MachineProcesses::all_gone(&self.uri, noted).unwrap_or_else(|| self.processes_gone(uuid))
    }

    /// Returns a process that is there and has such a machine, by the last search.
    pub(crate) fn process_of(&self, is_meant: impl Fn(&MachineProcess) -> bool) -> Option<MachineProcess> {
        self.processes.as_ref()?.find(is_meant)
    }

    /// Returns which of these machines, of which libvirt says that they are off, a process has, by what
    /// searches found.
    pub(crate) fn held_by_processes(&self, off: &HashSet<Uuid>) -> HashSet<Uuid> {
        self.processes.as_ref().map(|it| it.held(off)).unwrap_or_default()
    }

    /// Returns whether a process of the machine is there that is ending, by the last search.
    pub(crate) fn has_ending_process(&self, uuid: Uuid) -> bool {
        let name = self.name_of(uuid);
        self.processes.as_ref().is_some_and(|it| it.is_ending(uuid, name.as_deref()))
    }

    fn name_of(&self, uuid: Uuid) -> Option<String> {
        lock(&self.memory).name_of(uuid)
    }

    /// Records a proof that the machine is off, which judged the move or the save that is given.
    pub(crate) fn record_proved_off(&self, uuid: Uuid, judged: LastSeen) {
        lock(&self.memory).record_proved_off(uuid, judged);
    }

    /// Returns how long ago, at least, the machine was saved here to a file that can be restored anywhere.
    pub(crate) fn save_age(&self, uuid: Uuid) -> Option<Duration> {
        lock(&self.memory).save_age(uuid)
    }

    /// Returns the other domains that left this hypervisor under this name: each may be on at another place.
    pub(crate) fn namesakes_away(&self, name: &str, uuid: Uuid, leave: LeaveKind) -> Vec<Uuid> {
        lock(&self.memory).namesakes_away(name, uuid, leave)
    }

    /// Returns the domains that left this hypervisor, with their names.
    pub(crate) fn away(&self) -> Vec<(Uuid, String)> {
        lock(&self.memory).away()
    }

    /// Returns whether another domain with this name was here when this hypervisor could last be read.
    pub(crate) fn has_seen_another(&self, name: &str, uuid: Uuid) -> bool {
        lock(&self.memory).is_another_present(name, uuid)
    }

    /// Returns whether a domain that was seen here, gone or not, has the property.
    pub(crate) fn remembers(&self, has_property: impl Fn(Uuid, &str) -> bool) -> bool {
        lock(&self.memory).any(has_property)
    }

    /// Returns the domain with this UUID, or else with this name, whose last instance ended here for good
    /// within the last ten minutes, with lifecycle events watched all the time since. It may be on elsewhere.
    pub(crate) fn ended(&self, uuid: Option<Uuid>, name: Option<&str>) -> Option<(Uuid, String)> {
        lock(&self.memory).ended(uuid, name)
    }

    /// Returns how long ago the domain's last instance ended here for good, with lifecycle events watched all
    /// the time since. It may be on elsewhere.
    pub(crate) fn end_age(&self, uuid: Uuid) -> Option<Duration> {
        lock(&self.memory).end_age(uuid)
    }

    /// Returns whether the migration that brought the running instance here is over at the other side too.
    pub(crate) fn has_settled(&self, uuid: Uuid) -> bool {
        lock(&self.memory).has_settled(uuid)
    }

    /// Returns how long ago, at least, the machine moved from here to another place, after a look that shows
    /// no instance here.
    pub(crate) fn move_age(&self, uuid: Uuid) -> Option<Duration> {
        lock(&self.memory).move_age(uuid)
    }

    /// Returns whether an instance of the domain was seen to start here, or to come in, at most so long ago.
    pub(crate) fn was_started(&self, uuid: Uuid, since: Duration) -> bool {
        lock(&self.memory).was_started(uuid, since)
    }

    /// Returns what is remembered of a domain for a host that owes a start of it.
    pub(crate) fn use_memory(&self, uuid: Uuid) -> PlaceMemory {
        lock(&self.memory).use_memory(uuid)
    }

    /// Records that a request is told here that the domain is off.
    pub(crate) fn record_use(&self, uuid: Uuid) {
        lock(&self.memory).record_use(uuid);
    }

    /// Records that a look that began at this time, since boot, showed an instance.
    pub(crate) fn record_instance(&self, uuid: Uuid, began: Duration) {
        lock(&self.memory).record_instance(uuid, began);
    }

    /// Records an event as if libvirt had told of it.
    #[cfg(test)]
    pub(crate) fn tell(&self, event: &libvirt_host::LifecycleEvent) {
        lock(&self.memory).record_event(event);
    }

    /// Waits for the event that tells how the instance went, after a look that showed none. It may be late,
    /// and after a restart of libvirtd it may never come. Runs on a blocking thread.
    pub(crate) fn await_end(&self, uuid: Uuid) {
        let until = Instant::now() + EVENT_LAG;
        while lock(&self.memory).awaits_end(uuid) {
            if Instant::now() >= until {
                return lock(&self.memory).record_awaited(uuid);
            }
            std::thread::sleep(EVENT_POLL);
        }
    }

    /// Returns whether the instance that a look shows may be one half of a migration: then its end is no end
    /// of the machine.
    pub(crate) fn is_half(&self, uuid: Uuid, state: State) -> bool {
        lock(&self.memory).is_half(uuid, state)
    }

    /// Returns whether an instance came in here, and was not seen to run or to end.
    pub(crate) fn only_came_in(&self, uuid: Uuid) -> bool {
        lock(&self.memory).only_came_in(uuid)
    }

    /// Returns whether an instance that was restored paused stands still since, and was in no migration.
    pub(crate) fn stands_still_since_restore(&self, uuid: Uuid) -> bool {
        lock(&self.memory).stands_still_since_restore(uuid)
    }

    /// Returns how long the instance here has been one half of a migration, as far as that was seen.
    pub(crate) fn half_age(&self, uuid: Uuid) -> Option<Duration> {
        lock(&self.memory).half_age(uuid)
    }

    /// Returns the time until the migration that brought the running instance here is over at the other side
    /// too; none if it is.
    pub(crate) fn settles_in(&self, uuid: Uuid) -> Option<Duration> {
        lock(&self.memory).settles_in(uuid)
    }

    /// Writes down that the machine may be at another place, before an action of ours ends what is here.
    pub(crate) fn write_move(&self, uuid: Uuid) {
        lock(&self.memory).write_move(uuid);
    }

    /// Records that a migration may have handed the machine over to another place.
    pub(crate) fn record_move(&self, uuid: Uuid) {
        lock(&self.memory).record_move(uuid);
    }

    /// Records that an action of ours ended the instance that ran here.
    pub(crate) fn record_end(&self, uuid: Uuid) {
        lock(&self.memory).record_end(uuid);
    }
}

/// Call to an ordinary worker, counted from the moment at which nobody waits for it to its return.
#[derive(Clone)]
struct UnansweredCall {
    count: Arc<AtomicUsize>,
    /// Returned, or given up: whichever is first.
    is_over: Arc<Mutex<Option<bool>>>,
}

impl UnansweredCall {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        Self { count: Arc::clone(count), is_over: Arc::default() }
    }

    fn returned(&self) {
        let is_given_up = lock(&self.is_over).replace(false);
        if is_given_up == Some(true) {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn given_up(&self) {
        let mut is_over = lock(&self.is_over);
        if is_over.is_none() {
            *is_over = Some(true);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Returns the message that all ordinary workers of libvirtd are busy, and what to do.
fn workers_busy(uri: &str) -> String {
    format!(
        "libvirt at {uri} answers look-ups, but all its ordinary workers are busy, and a start, an XML and \
         a saved memory need one. Most probably calls wait for a machine that hangs. Find it: virsh \
         domcontrol says \"occupied\" of it. Fence it, or stop the program that asks about it"
    )
}

/// Returns whether libvirt knows of a memory that a managed save left.
pub(crate) fn has_saved_memory(connection: &OrdinaryConnection, uuid: Uuid) -> Result<bool, Error> {
    match connection.domain_by_uuid(uuid)? {
        Some(domain) => connection.of(&domain).has_saved_memory(),
        None => Ok(false),
    }
}

/// Reads the states of domains again; one that is gone is left out.
fn read_again(connection: &Connection, records: Vec<DomainRecord>) -> Result<Vec<DomainRecord>, Error> {
    let mut found = Vec::with_capacity(records.len());
    for record in records {
        let Some(domain) = connection.domain_by_uuid(record.uuid)? else { continue };
        match domain.state() {
            Ok(state) => found.push(DomainRecord { state, ..record }),
            Err(error) if error.kind == ErrorKind::NoDomain => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::hypervisor::Hypervisors;

    /// Only then can no order be carried out any more that was given before. A libvirtd of another host may
    /// run though nobody listens, and one that hangs up may still be there.
    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_is_there_only_if_nobody_listens_at_a_socket_of_this_host() {
        let dir = tempfile::tempdir().unwrap();
        let socket = |name: &str| dir.path().join(name);
        let refusing = UnixListener::bind(socket("refuses")).unwrap();
        drop(refusing);
        let hanging_up = UnixListener::bind(socket("hangs-up")).unwrap();
        std::thread::spawn(move || hanging_up.incoming().for_each(drop));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let unix = |name| format!("test+unix:///default?socket={}", socket(name).display());
        for (uri, wanted) in [
            (unix("absent"), true),
            (unix("refuses"), true),
            (unix("hangs-up"), false),
            (format!("test+tcp://127.0.0.1:{port}/default"), false),
        ] {
            let home = Hypervisors::default().at(&uri);
            home.first_answer().await.unwrap_err();
            let status = home.status.borrow().clone();
            let ConnectionStatus::Down(reason, _, failed) = status else { panic!("{uri}") };
            assert_eq!(failed.is_gone, wanted, "{uri}: {reason}");
        }
    }
}
