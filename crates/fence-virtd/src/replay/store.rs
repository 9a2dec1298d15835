// SPDX-License-Identifier: GPL-2.0-or-later
//! The directory of the memory of packets.
//!
//! ```text
//! packets        the young generation, appended to
//! packets.old    the one before it
//! packets.new    a young one that is being made
//! lock           locked as long as a daemon uses the directory
//! ```
//!
//! Owns the directory, its lock and two threads. One thread appends, without a buffer, so that written
//! packets survive the death of the daemon. The other one syncs once a second, so that most of them survive
//! the death of the host. No request may wait for either: [`ReplayStore::note`] never blocks. Packets that
//! the disk is too slow for are not kept, which is logged once.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fence_cli::shown;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use tracing::{info, warn};

use super::format::{self, HEADER_LEN, RECORD_LEN, ReplayFile};
use super::memory::HashKey;
use crate::util::locks::lock;
use crate::util::outlet;

/// Hashes that may wait for the disk.
const QUEUE: usize = 65_536;
/// Hashes of one write.
const BATCH: usize = 1024;
/// Duration from which a write is logged as slow.
const SLOW: Duration = Duration::from_secs(2);
/// Time for a daemon that is just ending to let go of the directory: without it, the new one would go on
/// without a directory for all of its life.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(3);
/// Pause between two looks whether the directory is free.
const HELD_PAUSE: Duration = Duration::from_millis(50);
/// Time between two syncs of the file.
const SYNC_EVERY: Duration = Duration::from_secs(1);

const YOUNG: &str = "packets";
const OLD: &str = "packets.old";
const NEW: &str = "packets.new";
const LOCK: &str = "lock";

/// Reason why no packet can be kept on disk. The daemon serves all the same.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{what} {path}: {source}; state_dir in the fence_virtd block names another directory")]
    Io { what: &'static str, path: String, source: io::Error },
    #[error(
        "{0} can be written by others than its owner; chmod go-w {0}, or name another directory with \
         state_dir in the fence_virtd block"
    )]
    OthersMayWrite(String),
    #[error(
        "another fence_virtd uses it. If that one has ended since, restart this one; else give this one a \
         directory of its own with state_dir in the fence_virtd block"
    )]
    Held,
    #[error("the disk did not answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
    #[error("no random bytes: {0}")]
    Random(#[from] rand::rngs::SysError),
}

/// A directory that is in use.
pub(super) struct OpenedStore {
    pub(super) key: HashKey,
    /// The hashes of earlier runs, the older generation first.
    pub(super) generations: [Vec<u64>; 2],
    pub(super) store: ReplayStore,
    /// Remarks on damaged files, for the log.
    pub(super) remarks: Vec<String>,
}

/// Queue of the hashes that are to be written. The threads end when this value is dropped.
pub(super) struct ReplayStore {
    queue: SyncSender<StoreMessage>,
    health: Arc<StoreHealth>,
    /// Closed with this value: then the other thread ends.
    _alive: Option<SyncSender<()>>,
}

enum StoreMessage {
    Note(u64),
    /// Write and sync all earlier hashes, then send a reply.
    Finish(SyncSender<()>),
}

/// State of the disk, shared by the threads and the callers.
#[derive(Default)]
struct StoreHealth {
    /// Begin of the current write, in milliseconds of [`now_ms`]; 0 without one.
    busy_since: AtomicU64,
    lost: AtomicU64,
    said: AtomicBool,
}

/// Opens the directory, makes it if it is missing, and reads its files.
pub(super) fn open(directory: &Path, generation: usize) -> Result<OpenedStore, StoreError> {
    let failed = |what: &'static str, path: &Path| {
        let path = shown(path);
        move |source| StoreError::Io { what, path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("can't make", directory))?;
    let metadata = fs::metadata(directory).map_err(failed("can't look at", directory))?;
    if metadata.mode() & 0o022 != 0 {
        return Err(StoreError::OthersMayWrite(shown(directory)));
    }
    let held = hold(&directory.join(LOCK))?;
    let mut remarks = Vec::new();
    let mut load = |name: &str| {
        let path = directory.join(name);
        match read(&path, generation) {
            Ok(bytes) => {
                let contents = format::read(&bytes).ok();
                if contents.is_none() {
                    remarks.push(format!("{name} has no whole header: its packets are forgotten"));
                }
                Ok(contents)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("can't read", &path)(error)),
        }
    };
    let (old, young) = (load(OLD)?, load(YOUNG)?);
    let key = match young.as_ref().or(old.as_ref()) {
        Some(contents) => contents.key,
        None => HashKey::random()?,
    };
    let old = old.filter(|it| {
        let fits = it.key == key;
        if !fits {
            remarks.push(format!("{OLD} is not of the same series as {YOUNG}: its packets are forgotten"));
        }
        fits
    });
    for (name, contents) in [(OLD, &old), (YOUNG, &young)] {
        if let Some(ReplayFile { damaged, rest, .. }) = contents
            && damaged + rest > 0
        {
            remarks.push(format!(
                "{name} was damaged, probably by a crash: {damaged} records and {rest} bytes at its end are \
                 left out"
            ));
        }
    }
    let files = match &young {
        Some(contents) => GenerationFiles::go_on(directory, key, generation, contents),
        None => GenerationFiles::begin(directory, key, generation),
    };
    let files = files.map_err(failed("can't write in", directory))?;
    let hashes = |it: Option<ReplayFile>| it.map(|it| it.hashes).unwrap_or_default();
    let store = ReplayStore::start(files, held)?;
    Ok(OpenedStore { key, generations: [hashes(old), hashes(young)], store, remarks })
}

impl ReplayStore {
    fn start(mut files: GenerationFiles, held: Flock<File>) -> Result<Self, StoreError> {
        let (alive, ended) = sync_channel(0);
        let written = Arc::clone(&files.written);
        thread::Builder::new()
            .name("replay-sync".to_owned())
            .spawn(move || keep_syncing(&written, &ended))
            .map_err(StoreError::Thread)?;
        let mut store = Self::writing(move |hashes| {
            // The lock is this thread's: it goes when nothing is written any more.
            let _ = &held;
            files.append(hashes)
        })?;
        store._alive = Some(alive);
        Ok(store)
    }

    /// A store whose thread calls `append` with each batch of hashes; with none of them, what was appended is
    /// to be safe on disk.
    fn writing(append: impl FnMut(&[u64]) -> io::Result<()> + Send + 'static) -> Result<Self, StoreError> {
        let (queue, waiting) = sync_channel(QUEUE);
        let health = Arc::<StoreHealth>::default();
        let theirs = Arc::clone(&health);
        thread::Builder::new()
            .name("replay-write".to_owned())
            .spawn(move || keep_writing(&waiting, &theirs, append))
            .map_err(StoreError::Thread)?;
        Ok(Self { queue, health, _alive: None })
    }

    /// Hands a hash to the disk. Never waits.
    pub(super) fn note(&self, hash: u64) {
        match self.queue.try_send(StoreMessage::Note(hash)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.health.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        let since = self.health.busy_since.load(Ordering::Relaxed);
        let slow = since != 0 && Duration::from_millis(now_ms().saturating_sub(since)) > SLOW;
        if slow || self.health.lost.load(Ordering::Relaxed) > 0 {
            self.health.say(&"the disk does not answer");
        }
    }

    /// Hashes that were not written since the disk last took one.
    pub(super) fn lost(&self) -> u64 {
        self.health.lost.load(Ordering::Relaxed)
    }

    /// Waits until all earlier hashes are on disk, at most `limit`.
    pub(super) fn finish(&self, limit: Duration) {
        outlet::finish(&self.queue, StoreMessage::Finish, limit);
    }
}

impl StoreHealth {
    /// Once: a disk that hangs would fill the log.
    fn say(&self, why: &dyn std::fmt::Display) {
        if !self.said.swap(true, Ordering::Relaxed) {
            warn!(
                "accepted packets can't be written to the state directory: {why}; requests go on, and a \
                 restart forgets these packets"
            );
        }
    }

    fn busy(&self, is: bool) {
        self.busy_since.store(if is { now_ms().max(1) } else { 0 }, Ordering::Relaxed);
    }

    /// Notes that the disk took a write.
    fn well(&self) {
        if self.said.load(Ordering::Relaxed) {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                info!(lost, "accepted packets are written to the state directory again");
            }
        }
    }
}

fn keep_writing(
    waiting: &Receiver<StoreMessage>,
    health: &StoreHealth,
    mut append: impl FnMut(&[u64]) -> io::Result<()>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(first) = waiting.recv() {
        let mut finish = None;
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                StoreMessage::Note(hash) => batch.push(hash),
                StoreMessage::Finish(tell) => finish = Some(tell),
            }
            if batch.len() < BATCH && finish.is_none() {
                next = waiting.try_recv().ok();
            }
        }
        health.busy(true);
        let mut done = if batch.is_empty() { Ok(()) } else { append(&batch) };
        if finish.is_some() && done.is_ok() {
            done = append(&[]);
        }
        health.busy(false);
        match done {
            Ok(()) => health.well(),
            Err(error) => {
                health.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                health.say(&error);
            }
        }
        batch.clear();
        if let Some(tell) = finish {
            let _ = tell.send(());
        }
    }
}

/// The file that the records go to. `dirty` is true while it has bytes that are not synced.
#[derive(Default)]
struct OpenReplayFile {
    file: Mutex<Option<Arc<File>>>,
    dirty: AtomicBool,
}

fn keep_syncing(written: &OpenReplayFile, ended: &Receiver<()>) {
    let mut said = false;
    while ended.recv_timeout(SYNC_EVERY) == Err(RecvTimeoutError::Timeout) {
        if !written.dirty.swap(false, Ordering::Relaxed) {
            continue;
        }
        let file = lock(&written.file).clone();
        if let Some(Err(error)) = file.map(|it| it.sync_data())
            && !std::mem::replace(&mut said, true)
        {
            warn!("accepted packets may not survive a crash of this host: {error}");
        }
    }
}

/// The young generation's file, and its rotation when it is full.
struct GenerationFiles {
    directory: PathBuf,
    key: HashKey,
    generation: usize,
    file: Arc<File>,
    /// Whole records in it.
    count: usize,
    written: Arc<OpenReplayFile>,
}

impl GenerationFiles {
    /// Opens the file of an earlier run. Cuts off the bytes after its last whole record: new records must
    /// begin at the place of a record.
    fn go_on(directory: &Path, key: HashKey, generation: usize, contents: &ReplayFile) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = Arc::new(options.open(directory.join(YOUNG))?);
        let count = contents.hashes.len() + contents.damaged;
        if contents.rest > 0 {
            file.set_len(length(count))?;
        }
        Ok(Self::with(directory, key, generation, file, count))
    }

    /// Makes a young file; what was young is old from now on.
    fn begin(directory: &Path, key: HashKey, generation: usize) -> io::Result<Self> {
        let file = fresh(directory, key)?;
        Ok(Self::with(directory, key, generation, file, 0))
    }

    fn with(directory: &Path, key: HashKey, generation: usize, file: Arc<File>, count: usize) -> Self {
        let written =
            OpenReplayFile { file: Mutex::new(Some(Arc::clone(&file))), dirty: AtomicBool::new(true) };
        Self { directory: directory.to_owned(), key, generation, file, count, written: Arc::new(written) }
    }

    /// Appends records in one write. Without records: syncs the file.
    fn append(&mut self, hashes: &[u64]) -> io::Result<()> {
        if hashes.is_empty() {
            return self.file.sync_data();
        }
        if self.count >= self.generation {
            fs::rename(self.directory.join(YOUNG), self.directory.join(OLD)).or_else(|error| {
                // A rotation that failed half way before.
                if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
            })?;
            self.file = fresh(&self.directory, self.key)?;
            self.count = 0;
            *lock(&self.written.file) = Some(Arc::clone(&self.file));
        }
        let mut bytes = Vec::with_capacity(hashes.len() * RECORD_LEN);
        hashes.iter().for_each(|it| bytes.extend(format::record(self.key, *it)));
        if let Err(error) = (&*self.file).write_all(&bytes) {
            // Half a record would put all that follow it out of place.
            self.file.set_len(length(self.count))?;
            return Err(error);
        }
        self.count += hashes.len();
        self.written.dirty.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Makes a new young file that has only its header, under its final name.
fn fresh(directory: &Path, key: HashKey) -> io::Result<Arc<File>> {
    let new = directory.join(NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&new)?;
    file.write_all(&format::header(key))?;
    fs::rename(&new, directory.join(YOUNG))?;
    Ok(Arc::new(file))
}

fn length(records: usize) -> u64 {
    (HEADER_LEN + records * RECORD_LEN) as u64
}

/// Locks the directory for this daemon.
fn hold(path: &Path) -> Result<Flock<File>, StoreError> {
    let failed = |source| StoreError::Io { what: "can't lock", path: shown(path), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(failed)?;
    let until = Instant::now() + PREDECESSOR_LIMIT;
    let mut open = file;
    loop {
        match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((file, Errno::EWOULDBLOCK)) if Instant::now() < until => open = file,
            Err((_, Errno::EWOULDBLOCK)) => return Err(StoreError::Held),
            Err((_, other)) => return Err(failed(other.into())),
        }
        thread::sleep(HELD_PAUSE);
    }
}

/// Reads a file, and no more of it than a daemon could have written.
fn read(path: &Path, generation: usize) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let longest = length(generation + BATCH);
    let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len().min(longest)).unwrap_or(0));
    file.take(longest).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns milliseconds of a monotonic clock.
fn now_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(since).unwrap_or(u64::MAX) + 1
}

#[cfg(test)]
mod tests;
