// SPDX-License-Identifier: GPL-2.0-or-later
//! The directory where packets are remembered.
//!
//! ```text
//! packets        the young generation, appended to
//! packets.old    the one before it
//! packets.new    a young one that is being made
//! lock           locked as long as a daemon uses the directory
//! ```
//!
//! Two threads: one appends, without a buffer of its own, so that what it wrote survives the daemon's death; the
//! other asks the disk for what was written, once a second, so that most of it survives the host's. Neither may be
//! waited for: [`Store::note`] never blocks, and what the disk is too slow for is not kept, which is said once.

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
/// A write that takes longer than this is said.
const SLOW: Duration = Duration::from_secs(2);
/// How often the disk is asked for what was written.
const SYNC_EVERY: Duration = Duration::from_secs(1);

const YOUNG: &str = "packets";
const OLD: &str = "packets.old";
const NEW: &str = "packets.new";
const LOCK: &str = "lock";

/// Why nothing can be kept there. Never a reason not to serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{what} {path}: {source}; state_dir in the fence_virtd block names another directory")]
    Io { what: &'static str, path: String, source: io::Error },
    #[error(
        "{0} can be written by others than its owner; chmod go-w {0}, or name another directory with state_dir in \
         the fence_virtd block"
    )]
    OthersMayWrite(String),
    #[error(
        "another fence_virtd uses it; give this one a directory of its own with state_dir in the fence_virtd block"
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
    /// What was odd, for the log.
    pub(super) remarks: Vec<String>,
}

/// Takes the hashes that are to be kept. Dropping it ends the threads.
pub(super) struct ReplayStore {
    queue: SyncSender<StoreMessage>,
    health: Arc<StoreHealth>,
    /// Closed with this value: then the other thread ends.
    _alive: Option<SyncSender<()>>,
}

enum StoreMessage {
    Note(u64),
    /// Write what came before, have it on disk, then say so.
    Finish(SyncSender<()>),
}

/// What the threads and those who note tell each other.
#[derive(Default)]
struct StoreHealth {
    /// When the write under way began, in milliseconds of [`now_ms`]; 0: none is.
    busy_since: AtomicU64,
    lost: AtomicU64,
    said: AtomicBool,
}

/// Opens the directory, which is made where it is missing, and reads what is there.
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
                "{name} was damaged, probably by a crash: {damaged} records and {rest} bytes at its end are left out"
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

    /// A store whose thread calls `append` with each batch of hashes; with none of them, what was appended is to be
    /// safe on disk.
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

    /// Has everything on disk that was noted before, unless that takes longer than `limit`.
    pub(super) fn finish(&self, limit: Duration) {
        outlet::finish(&self.queue, StoreMessage::Finish, limit);
    }
}

impl StoreHealth {
    /// Once: a disk that hangs would fill the log.
    fn say(&self, why: &dyn std::fmt::Display) {
        if !self.said.swap(true, Ordering::Relaxed) {
            warn!(
                "accepted packets can't be written to the state directory: {why}; requests go on, and a restart \
                 forgets these packets"
            );
        }
    }

    fn busy(&self, is: bool) {
        self.busy_since.store(if is { now_ms().max(1) } else { 0 }, Ordering::Relaxed);
    }

    /// The disk took something.
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

/// What was written and is not known to be on disk yet.
#[derive(Default)]
struct Written {
    file: Mutex<Option<Arc<File>>>,
    dirty: AtomicBool,
}

fn keep_syncing(written: &Written, ended: &Receiver<()>) {
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

/// The young generation's file, and what becomes of it when it is full.
struct GenerationFiles {
    directory: PathBuf,
    key: HashKey,
    generation: usize,
    file: Arc<File>,
    /// Whole records in it.
    count: usize,
    written: Arc<Written>,
}

impl GenerationFiles {
    /// Appends to the file that is there. What follows its last whole record is cut off: new records must not stand
    /// across it.
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
        let written = Written { file: Mutex::new(Some(Arc::clone(&file))), dirty: AtomicBool::new(true) };
        Self { directory: directory.to_owned(), key, generation, file, count, written: Arc::new(written) }
    }

    /// Appends records in one write. Without any: has what was written on disk.
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

/// A new young file with nothing but its header, under its final name.
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

/// One daemon for one directory.
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
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StoreError::Held,
        other => failed(other.into()),
    })
}

/// The file, and no more of it than a daemon could have written.
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

/// Milliseconds of a clock that nobody sets.
fn now_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(since).unwrap_or(u64::MAX) + 1
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GENERATION: usize = 1000;

    fn all(opened: &OpenedStore) -> Vec<u64> {
        opened.generations.concat()
    }

    fn noted(place: &Path, hashes: std::ops::Range<u64>) {
        let opened = open(place, GENERATION).unwrap();
        hashes.for_each(|it| opened.store.note(it));
        opened.store.finish(Duration::from_secs(60));
    }

    /// The lock goes with the writing thread, which ends a moment after its store is dropped.
    fn again(place: &Path) -> OpenedStore {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match open(place, GENERATION) {
                Err(StoreError::Held) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                other => return other.map_err(|it| it.to_string()).unwrap(),
            }
        }
    }

    #[test]
    fn what_was_noted_is_there_again_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        noted(&place, 0..100);
        let opened = again(&place);
        assert_eq!(all(&opened), (0..100).collect::<Vec<_>>());
        assert!(opened.remarks.is_empty());
        for (path, mode) in [(place.clone(), 0o700), (place.join(YOUNG), 0o600), (place.join(LOCK), 0o600)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{path:?}");
        }
    }

    #[test]
    fn it_is_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path(), GENERATION).unwrap();
        opened.store.note(7);
        let end = Instant::now() + Duration::from_secs(60);
        // Neither the end of the daemon nor a full batch is waited for.
        while fs::metadata(dir.path().join(YOUNG)).unwrap().len() < length(1) {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
        drop(opened);
        assert_eq!(all(&again(dir.path())), [7]);
    }

    #[test]
    fn two_generations_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let count = 10 * GENERATION as u64;
        noted(dir.path(), 0..count);
        let opened = again(dir.path());
        let kept = all(&opened);
        assert!((GENERATION..=2 * (GENERATION + BATCH)).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept, (count - kept.len() as u64..count).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_file_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        noted(dir.path(), 0..10);
        drop(again(dir.path()));
        let path = dir.path().join(YOUNG);
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER_LEN + 3 * RECORD_LEN] ^= 1;
        bytes.truncate(bytes.len() - 5);
        fs::write(&path, &bytes).unwrap();
        let opened = again(dir.path());
        assert_eq!(all(&opened), [0, 1, 2, 4, 5, 6, 7, 8]);
        assert!(opened.remarks[0].contains("1 records and 11 bytes"), "{:?}", opened.remarks);
        opened.store.note(10);
        opened.store.finish(Duration::from_secs(60));
        drop(opened);
        assert_eq!(all(&again(dir.path())), [0, 1, 2, 4, 5, 6, 7, 8, 10]);
    }

    #[test]
    fn without_a_header_the_other_generation_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        noted(dir.path(), 0..3 * GENERATION as u64);
        drop(again(dir.path()));
        let old = format::read(&fs::read(dir.path().join(OLD)).unwrap()).ok().unwrap().hashes;
        fs::write(dir.path().join(YOUNG), b"junk").unwrap();
        let opened = again(dir.path());
        assert_eq!(all(&opened), old);
        assert!(opened.remarks[0].contains("no whole header"));
        drop(opened);
        // A rotation that was cut off between its two renames.
        let opened = again(dir.path());
        drop(opened);
        fs::remove_file(dir.path().join(YOUNG)).unwrap();
        fs::write(dir.path().join(NEW), b"half").unwrap();
        assert_eq!(all(&again(dir.path())), old);
    }

    #[test]
    fn a_directory_of_one_daemon_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path(), GENERATION).unwrap();
        assert!(matches!(open(dir.path(), GENERATION), Err(StoreError::Held)));
        drop(opened);
        drop(again(dir.path()));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(open(dir.path(), GENERATION), Err(StoreError::OthersMayWrite(_))));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (place, victim) = (dir.path().join("state"), dir.path().join("victim"));
        fs::write(&victim, "mine").unwrap();
        for name in [YOUNG, LOCK] {
            let _ = fs::remove_dir_all(&place);
            DirBuilder::new().mode(0o700).create(&place).unwrap();
            std::os::unix::fs::symlink(&victim, place.join(name)).unwrap();
            assert!(open(&place, GENERATION).is_err(), "{name}");
        }
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
    }

    /// A disk that hangs costs persistence and no time.
    #[test]
    fn a_disk_that_hangs_is_not_waited_for() {
        let (release, hangs) = sync_channel::<()>(0);
        let store = ReplayStore::writing(move |_| {
            let _ = hangs.recv();
            Ok(())
        })
        .unwrap();
        // More than can wait: were any of them waited for, this would never end.
        for hash in 0..3 * QUEUE as u64 {
            store.note(hash);
        }
        assert!(store.health.lost.load(Ordering::Relaxed) >= QUEUE as u64);
        assert!(store.health.said.load(Ordering::Relaxed));
        store.finish(Duration::from_millis(1));
        drop(release);
    }

    #[test]
    fn an_error_is_not_the_end() {
        let mut calls = 0;
        let (tell, told) = sync_channel(16);
        let store = ReplayStore::writing(move |hashes| {
            calls += 1;
            if calls == 1 {
                return Err(io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32));
            }
            tell.send(hashes.to_vec()).map_err(io::Error::other)
        })
        .unwrap();
        store.note(1);
        let end = Instant::now() + Duration::from_secs(60);
        while !store.health.said.load(Ordering::Relaxed) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        store.note(2);
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(vec![2]));
    }
}
