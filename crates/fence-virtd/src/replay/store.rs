// SPDX-License-Identifier: GPL-2.0-or-later
//! The directory of the memory of packets.
//!
//! ```text
//! packets           the young generation, appended to
//! packets.old       the one before it
//! packets.new       a young one that is being made
//! packets.kept      packets of each key that were remembered when the young generation was half full
//! packets.kept.new  the file that is to replace it
//! lock              locked as long as a daemon uses the directory
//! ```
//!
//! `packets.kept` is written before the old generation is replaced, so that it has what the memory keeps of
//! that.
//!
//! Owns the directory, its lock and two threads. One thread appends, without a buffer, so that written
//! packets survive the death of the daemon. The other one syncs once a second, so that most of them survive
//! the death of the host, and writes `packets.kept`. No request may wait for either: [`ReplayStore::note`]
//! never blocks. Packets that the disk is too slow for are only in `packets.kept`, which is written
//! when the disk takes packets again.

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
use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use super::format::{self, HEADER_LEN, RECORD_LEN, ReplayFile};
use super::memory::{HashKey, MemorySize, PacketHashes, PacketRecord};
use crate::util::locks::lock;
use crate::util::outlet;

/// Packets that may wait for the disk.
const QUEUE: usize = 65_536;
/// Packets of one write.
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
/// Time after which the packets of each key are written once more when that failed.
const KEEP_AGAIN: Duration = Duration::from_secs(60);
/// Bytes of the disk that the packets of each key leave to others.
const ROOM_OF_OTHERS: u64 = 8 << 20;
/// Generations that are read of one file at most.
const READ_GENERATIONS: usize = 16;

const YOUNG: &str = "packets";
const OLD: &str = "packets.old";
const NEW: &str = "packets.new";
const KEPT: &str = "packets.kept";
const KEPT_NEW: &str = "packets.kept.new";
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
    /// The packets of earlier runs. A packet is entered here before it is handed to the store.
    pub(super) packets: Arc<Mutex<PacketHashes>>,
    pub(super) store: ReplayStore,
    /// Remarks on damaged files, for the log.
    pub(super) remarks: Vec<String>,
}

/// Queue of the packets that are to be written. The threads end when this value is dropped.
pub(super) struct ReplayStore {
    queue: SyncSender<StoreMessage>,
    health: Arc<StoreHealth>,
}

enum StoreMessage {
    Note(PacketRecord),
    /// Write and sync all earlier packets, then send a reply.
    Finish(SyncSender<()>),
}

/// Work for the disk.
#[derive(Clone, Copy, Debug)]
enum WriteOrder<'a> {
    /// Append packets.
    Append(&'a [PacketRecord]),
    /// Have all that was appended safe on disk.
    Sync,
    /// Have the packets of the memory written, since some were not appended.
    Keep,
}

/// State of the disk, shared by the threads and the callers.
#[derive(Default)]
struct StoreHealth {
    /// Begin of the current write, in milliseconds of [`now_ms`]; 0 without one.
    busy_since: AtomicU64,
    lost: AtomicU64,
    said: AtomicBool,
}

/// Files of earlier runs.
struct LoadedFiles {
    key: HashKey,
    old: Option<ReplayFile>,
    young: Option<ReplayFile>,
    kept: Option<ReplayFile>,
}

/// Opens the directory, makes it if it is missing, and reads its files.
pub(super) fn open(directory: &Path, size: MemorySize) -> Result<OpenedStore, StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("can't make", directory))?;
    let metadata = fs::metadata(directory).map_err(failed("can't look at", directory))?;
    if metadata.mode() & 0o022 != 0 {
        return Err(StoreError::OthersMayWrite(shown(directory)));
    }
    let (wake, woken) = sync_channel(1);
    let (files, remarks) = open_files(directory, size, wake)?;
    let packets = Arc::clone(&files.kept.memory);
    Ok(OpenedStore { packets, store: ReplayStore::start(files, woken)?, remarks })
}

/// Locks the directory, reads its files, and returns those that are written, with remarks for the log.
fn open_files(
    directory: &Path,
    size: MemorySize,
    wake: SyncSender<()>,
) -> Result<(GenerationFiles, Vec<String>), StoreError> {
    let held = hold(&directory.join(LOCK))?;
    let mut remarks = Vec::new();
    let loaded = load_all(directory, size, &mut remarks)?;
    let kept = Arc::new(KeptFile::new(directory, remembered(&loaded, size), held));
    let files = match &loaded.young {
        Some(contents) => GenerationFiles::go_on(kept, wake, loaded.key, size, contents),
        None => GenerationFiles::begin(kept, wake, loaded.key, size),
    };
    Ok((files.map_err(failed("can't write in", directory))?, remarks))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = shown(path);
    move |source| StoreError::Io { what, path, source }
}

/// Reads all files. Only those of the two generations must be readable: without the other one the memory is
/// as good as without shares.
fn load_all(
    directory: &Path,
    size: MemorySize,
    remarks: &mut Vec<String>,
) -> Result<LoadedFiles, StoreError> {
    let old = load(directory, OLD, size, remarks)?;
    let young = load(directory, YOUNG, size, remarks)?;
    let kept = load(directory, KEPT, size, remarks).unwrap_or_else(|error| {
        remarks.push(error.to_string());
        None
    });
    let key = match [&young, &old, &kept].into_iter().flatten().next() {
        Some(contents) => contents.key,
        None => HashKey::random()?,
    };
    let mut of_series = |name, contents: Option<ReplayFile>| {
        contents.filter(|it| {
            if it.key != key {
                remarks.push(format!(
                    "{name} is not of the same series as the other files: its packets are forgotten"
                ));
            }
            it.key == key
        })
    };
    let (old, kept) = (of_series(OLD, old), of_series(KEPT, kept));
    Ok(LoadedFiles { key, old, young, kept })
}

/// Reads a file, and notes what is wrong with it.
fn load(
    directory: &Path,
    name: &str,
    size: MemorySize,
    remarks: &mut Vec<String>,
) -> Result<Option<ReplayFile>, StoreError> {
    let path = directory.join(name);
    let bytes = match read(&path, READ_GENERATIONS * size.generation) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("can't read", &path)(error)),
    };
    let contents = format::read(&bytes).ok();
    match &contents {
        None => remarks.push(format!("{name} has no whole header: its packets are forgotten")),
        Some(ReplayFile { damaged, rest, .. }) if damaged + rest > 0 => remarks.push(format!(
            "{name} was damaged, probably by a crash: {damaged} records and {rest} bytes at its end are left \
             out"
        )),
        Some(_) => {}
    }
    Ok(contents)
}

/// Returns the memory as it was when the files were written, or a larger one.
fn remembered(files: &LoadedFiles, size: MemorySize) -> PacketHashes {
    let LoadedFiles { key, old, young, kept } = files;
    let records = |it| Option::<&ReplayFile>::map_or(it, &[][..], |it| it.records.as_slice());
    let mut packets = PacketHashes::new(*key, size);
    packets.set_all([old, young].map(|it| records(it.as_ref())));
    packets.set_kept(records(kept.as_ref()));
    for record in [old, young].into_iter().flatten().flat_map(|it| &it.records) {
        packets.enter_of_key(*record);
    }
    packets
}

impl ReplayStore {
    fn start(mut files: GenerationFiles, woken: Receiver<()>) -> Result<Self, StoreError> {
        let (written, kept) = (Arc::clone(&files.written), Arc::clone(&files.kept));
        thread::Builder::new()
            .name("replay-sync".to_owned())
            .spawn(move || keep_syncing(&written, &kept, &woken))
            .map_err(StoreError::Thread)?;
        Self::writing(move |order| match order {
            WriteOrder::Append(records) => files.append(records),
            WriteOrder::Sync => files.file.sync_data(),
            WriteOrder::Keep => {
                files.ask_for_kept();
                Ok(())
            }
        })
    }

    /// A store whose thread calls `write`.
    fn writing(
        write: impl FnMut(WriteOrder<'_>) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, StoreError> {
        let (queue, waiting) = sync_channel(QUEUE);
        let health = Arc::<StoreHealth>::default();
        let theirs = Arc::clone(&health);
        thread::Builder::new()
            .name("replay-write".to_owned())
            .spawn(move || keep_writing(&waiting, &theirs, write))
            .map_err(StoreError::Thread)?;
        Ok(Self { queue, health })
    }

    /// Hands a packet to the disk. Never waits.
    pub(super) fn note(&self, record: PacketRecord) {
        match self.queue.try_send(StoreMessage::Note(record)) {
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

    /// Returns the number of packets that were not written since the disk last took one.
    pub(super) fn lost(&self) -> u64 {
        self.health.lost.load(Ordering::Relaxed)
    }

    /// Waits until all earlier packets are on disk, at most `limit`.
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

    /// Notes that the disk took a write. Returns true if there were packets before that it did not take.
    fn well(&self) -> bool {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            info!(lost, "accepted packets are written to the state directory again");
        }
        lost > 0
    }
}

fn keep_writing(
    waiting: &Receiver<StoreMessage>,
    health: &StoreHealth,
    mut write: impl FnMut(WriteOrder<'_>) -> io::Result<()>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(first) = waiting.recv() {
        let mut finish = None;
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                StoreMessage::Note(record) => batch.push(record),
                StoreMessage::Finish(tell) => finish = Some(tell),
            }
            if batch.len() < BATCH && finish.is_none() {
                next = waiting.try_recv().ok();
            }
        }
        health.busy(true);
        let mut done = if batch.is_empty() { Ok(()) } else { write(WriteOrder::Append(&batch)) };
        if finish.is_some() && done.is_ok() {
            done = write(WriteOrder::Sync);
        }
        health.busy(false);
        if done.is_ok() && health.well() {
            done = write(WriteOrder::Keep);
        }
        match done {
            Ok(()) => {}
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

fn keep_syncing(written: &OpenReplayFile, kept: &KeptFile, woken: &Receiver<()>) {
    let (mut said, mut failed) = (false, None::<Instant>);
    while woken.recv_timeout(SYNC_EVERY) != Err(RecvTimeoutError::Disconnected) {
        if written.dirty.swap(false, Ordering::Relaxed)
            && let Some(Err(error)) = lock(&written.file).clone().map(|it| it.sync_data())
            && !std::mem::replace(&mut said, true)
        {
            warn!("accepted packets may not survive a crash of this host: {error}");
        }
        if failed.is_none_or(|it| it.elapsed() >= KEEP_AGAIN) {
            failed = (!kept.write_if_asked()).then(Instant::now);
        }
    }
}

/// File with the packets that are remembered for each key. Has the lock of the directory.
struct KeptFile {
    directory: PathBuf,
    memory: Arc<Mutex<PacketHashes>>,
    /// Number of times that it was asked for.
    asked: AtomicU64,
    /// That number at the begin of the last write that was done.
    written: Mutex<u64>,
    said: AtomicBool,
    _held: Flock<File>,
}

impl KeptFile {
    fn new(directory: &Path, memory: PacketHashes, held: Flock<File>) -> Self {
        let (directory, memory) = (directory.to_owned(), Arc::new(Mutex::new(memory)));
        let (asked, written, said) = (AtomicU64::new(0), Mutex::new(0), AtomicBool::new(false));
        Self { directory, memory, asked, written, said, _held: held }
    }

    /// Writes the file if it was asked for since it was written. Returns false if that failed, which is
    /// logged once.
    fn write_if_asked(&self) -> bool {
        let mut written = lock(&self.written);
        let asked = self.asked.load(Ordering::SeqCst);
        if *written == asked {
            return true;
        }
        if let Err(error) = self.write() {
            if !self.said.swap(true, Ordering::Relaxed) {
                warn!(
                    "the packets of each key can't be written to the state directory: {error}; requests go \
                     on, and after a restart those of one key may be forgotten when many of another come"
                );
            }
            return false;
        }
        *written = asked;
        true
    }

    /// Replaces the file by one with the packets of the memory.
    fn write(&self) -> io::Result<()> {
        self.check_room()?;
        let new = self.directory.join(KEPT_NEW);
        let made = self.fill(&new).and_then(|()| fs::rename(&new, self.directory.join(KEPT)));
        // Half a file must not take the room of records on a full disk.
        made.inspect_err(|_| drop(fs::remove_file(&new)))
    }

    /// Fails if the file would take room that records and other files need, even for a moment.
    fn check_room(&self) -> io::Result<()> {
        let needed = lock(&self.memory).kept_count();
        let disk = statvfs(&self.directory)?;
        let free = disk.blocks_available() * disk.fragment_size();
        if free < length(needed) + ROOM_OF_OTHERS {
            return Err(io::Error::other(format!("the disk has only {} MB left", free >> 20)));
        }
        Ok(())
    }

    /// Makes a file with the packets of the memory, which is locked for one key at a time.
    fn fill(&self, new: &Path) -> io::Result<()> {
        let mut file = created(new)?;
        let (key, keys) = {
            let memory = lock(&self.memory);
            (memory.hash_key(), memory.keys())
        };
        file.write_all(&format::header(key))?;
        for of_key in keys {
            let records = lock(&self.memory).kept_of(of_key);
            for some in records.chunks(BATCH) {
                file.write_all(&bytes(key, some))?;
            }
        }
        // Else a crash of the host could leave neither the file before nor this one.
        file.sync_data()
    }
}

/// The young generation's file, and its rotation when it is full.
struct GenerationFiles {
    kept: Arc<KeptFile>,
    /// Wakes the thread that writes the kept file. That thread ends with this value.
    wake: SyncSender<()>,
    key: HashKey,
    generation: usize,
    file: Arc<File>,
    /// Whole records in it.
    count: usize,
    /// The kept file was asked for in the time of this generation.
    has_asked: bool,
    written: Arc<OpenReplayFile>,
}

impl GenerationFiles {
    /// Opens the file of an earlier run. Cuts off the bytes after its last whole record: new records must
    /// begin at the place of a record.
    fn go_on(
        kept: Arc<KeptFile>,
        wake: SyncSender<()>,
        key: HashKey,
        size: MemorySize,
        contents: &ReplayFile,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = Arc::new(options.open(kept.directory.join(YOUNG))?);
        let count = contents.records.len() + contents.damaged;
        if contents.rest > 0 {
            file.set_len(length(count))?;
        }
        Ok(Self::with(kept, wake, key, size, file, count))
    }

    /// Makes a young file; what was young is old from now on.
    fn begin(kept: Arc<KeptFile>, wake: SyncSender<()>, key: HashKey, size: MemorySize) -> io::Result<Self> {
        let file = fresh(&kept.directory, key)?;
        Ok(Self::with(kept, wake, key, size, file, 0))
    }

    fn with(
        kept: Arc<KeptFile>,
        wake: SyncSender<()>,
        key: HashKey,
        size: MemorySize,
        file: Arc<File>,
        count: usize,
    ) -> Self {
        let written =
            OpenReplayFile { file: Mutex::new(Some(Arc::clone(&file))), dirty: AtomicBool::new(true) };
        let (written, generation) = (Arc::new(written), size.generation);
        Self { kept, wake, key, generation, file, count, has_asked: false, written }
    }

    /// Appends records in one write.
    fn append(&mut self, records: &[PacketRecord]) -> io::Result<()> {
        if self.count >= self.generation {
            self.rotate()?;
        }
        if let Err(error) = (&*self.file).write_all(&bytes(self.key, records)) {
            // Half a record would put all that follow it out of place.
            self.file.set_len(length(self.count))?;
            return Err(error);
        }
        self.count += records.len();
        self.written.dirty.store(true, Ordering::Relaxed);
        if self.count >= self.generation / 2 && !self.has_asked {
            self.ask_for_kept();
            self.has_asked = true;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if !self.has_asked {
            self.ask_for_kept();
        }
        // Done long ago as a rule, by the other thread. What can't be kept is remembered as without shares.
        self.kept.write_if_asked();
        let directory = &self.kept.directory;
        fs::rename(directory.join(YOUNG), directory.join(OLD)).or_else(|error| {
            // A rotation that failed half way before.
            if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
        })?;
        self.file = fresh(directory, self.key)?;
        (self.count, self.has_asked) = (0, false);
        *lock(&self.written.file) = Some(Arc::clone(&self.file));
        Ok(())
    }

    fn ask_for_kept(&self) {
        self.kept.asked.fetch_add(1, Ordering::SeqCst);
        let _ = self.wake.try_send(());
    }
}

/// Makes a new young file that has only its header, under its final name.
fn fresh(directory: &Path, key: HashKey) -> io::Result<Arc<File>> {
    let new = directory.join(NEW);
    let mut file = created(&new)?;
    file.write_all(&format::header(key))?;
    fs::rename(&new, directory.join(YOUNG))?;
    Ok(Arc::new(file))
}

/// Makes an empty file in the place of one that was left half made.
fn created(new: &Path) -> io::Result<File> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(new)
}

fn bytes(key: HashKey, records: &[PacketRecord]) -> Vec<u8> {
    records.iter().flat_map(|it| format::record(key, *it)).collect()
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
fn read(path: &Path, records: usize) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let longest = length(records);
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
