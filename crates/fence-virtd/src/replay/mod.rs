// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory of accepted packets, so that no packet is accepted twice. Two honest packets are never equal
//! (each has fresh random bytes); an equal packet is a replay.
//!
//! One memory for all listeners: a packet that was recorded on one transport must not be replayed on another.
//! But the last packets of each key are remembered apart: nobody without that key can have them forgotten.
//!
//! The memory is on disk too, because a recorded packet stays valid when the daemon restarts. No request may
//! wait for the disk, and a directory that can't be used costs only the memory of earlier runs.
//!
//! [`memory`] and [`format`](mod@format) are pure; [`store`] owns the directory, its lock, and two threads.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::{DEFAULT_STATE_DIR, StateDir};
use fence_wire::KeyTag;
use tracing::{info, warn};

use self::memory::{HashKey, MemorySize, PacketHashes};
use self::store::{OpenedStore, ReplayStore, StoreError};
use crate::util::locks::lock;

mod format;
mod memory;
mod store;

/// Packets of one generation. Two generations are kept, and the older one is forgotten as a whole.
const GENERATION: usize = 500_000;
/// Packets of one generation of each key alone, which all keys in use share.
const OF_KEYS: usize = 1_000_000;
const SIZE: MemorySize = MemorySize { generation: GENERATION, of_keys: OF_KEYS };
/// Time to open and read the directory at the start.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Time to write the last packets when the daemon ends.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// The memory of accepted packets, with its store on disk.
pub(crate) struct ReplayMemory {
    packets: Arc<Mutex<PacketHashes>>,
    store: Option<ReplayStore>,
}

/// Returns the directory of the memory: that of the configuration, else that of systemd, else the default.
/// None if the memory is to be in memory alone. `from_systemd` is `$STATE_DIRECTORY`, a list with colons of
/// which the first counts.
pub(crate) fn directory(setting: &StateDir, from_systemd: Option<&OsStr>) -> Option<PathBuf> {
    match setting {
        StateDir::Nowhere => None,
        StateDir::At(path) => Some(path.clone()),
        StateDir::Default => {
            let first = from_systemd.and_then(|it| it.as_encoded_bytes().split(|b| *b == b':').next());
            let first = first.filter(|it| !it.is_empty()).and_then(|it| std::str::from_utf8(it).ok());
            Some(first.unwrap_or(DEFAULT_STATE_DIR).into())
        }
    }
}

impl ReplayMemory {
    /// Returns a memory that ends with the process.
    pub(crate) fn in_memory() -> Result<Self, rand::rngs::SysError> {
        let packets = PacketHashes::new(HashKey::random()?, SIZE);
        Ok(Self { packets: Arc::new(Mutex::new(packets)), store: None })
    }

    /// Opens the memory in `directory`. If that fails, logs the reason and goes on in memory alone.
    pub(crate) fn open(directory: Option<&Path>) -> Result<Self, rand::rngs::SysError> {
        let Some(directory) = directory else {
            info!("accepted packets are remembered in memory alone");
            return Self::in_memory();
        };
        let shown = fence_cli::shown(directory);
        let since = Instant::now();
        match opened_in_time(directory.to_owned()) {
            Ok(OpenedStore { packets, store, remarks }) => {
                for remark in remarks {
                    warn!(directory = %shown, "{remark}");
                }
                let (count, ms) = (lock(&packets).len(), since.elapsed().as_millis());
                info!(directory = %shown, packets = count, ms, "packets of earlier runs are remembered");
                Ok(Self { packets, store: Some(store) })
            }
            Err(error) => {
                warn!(
                    directory = %shown,
                    "accepted packets are remembered in memory alone, so that after a restart a recorded \
                     one could be played again: {error}"
                );
                Self::in_memory()
            }
        }
    }

    /// Enters a packet of which the key with this tag made the hash. Returns false if the packet is a replay.
    pub(crate) fn is_new(&self, tag: &KeyTag, packet: &[u8]) -> bool {
        let Some(record) = lock(&self.packets).note(tag, packet) else { return false };
        if let Some(store) = &self.store {
            store.note(record);
        }
        true
    }

    /// Sets the keys that share the memory from now on.
    pub(crate) fn set_keys<'a>(&self, tags: impl Iterator<Item = &'a KeyTag>) {
        lock(&self.packets).set_keys(tags);
    }

    /// Returns the number of packets, whether they are on disk too, and the number that the disk did not
    /// take.
    pub(crate) fn counts(&self) -> (usize, bool, u64) {
        let lost = self.store.as_ref().map(ReplayStore::lost);
        (lock(&self.packets).len(), lost.is_some(), lost.unwrap_or_default())
    }

    /// Returns once the memory is not locked: a check that the daemon responds.
    pub(crate) fn touch(&self) {
        drop(lock(&self.packets));
    }

    /// Waits at the end of the daemon until all packets are on disk, at most [`FINISH_LIMIT`].
    pub(crate) fn finish(&self) {
        if let Some(store) = &self.store {
            store.finish(FINISH_LIMIT);
        }
    }
}

/// Opens the directory on a thread of its own, since a disk or a server that hangs must not delay the daemon.
fn opened_in_time(directory: PathBuf) -> Result<OpenedStore, StoreError> {
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("replay-open".to_owned())
        .spawn(move || drop(tell.send(store::open(&directory, SIZE))))
        .map_err(StoreError::Thread)?;
    told.recv_timeout(OPEN_LIMIT).unwrap_or(Err(StoreError::Late(OPEN_LIMIT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> KeyTag {
        fence_wire::Key::new(name.as_bytes()).unwrap().tag()
    }

    #[test]
    fn the_configuration_goes_before_systemd() {
        let systemd = |text: &'static str| Some(OsStr::new(text));
        let default = |it| directory(&StateDir::Default, it);
        assert_eq!(default(None), Some("/var/lib/fence_virt".into()));
        assert_eq!(default(systemd("")), Some("/var/lib/fence_virt".into()));
        assert_eq!(default(systemd("/var/lib/a:/var/lib/b")), Some("/var/lib/a".into()));
        assert_eq!(directory(&StateDir::At("/x".into()), systemd("/y")), Some("/x".into()));
        assert_eq!(directory(&StateDir::Nowhere, systemd("/y")), None);
    }

    /// The writing thread of an earlier one has the directory until all is on disk, and a machine may be
    /// slow.
    fn kept(place: &Path) -> ReplayMemory {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let replays = ReplayMemory::open(Some(place)).unwrap();
            if replays.store.is_some() {
                return replays;
            }
            assert!(Instant::now() < end, "the directory can't be had");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_packet_is_known_to_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state");
        let first = kept(&place);
        let (red, blue) = (tag("red"), tag("blue"));
        assert!(first.is_new(&red, b"one") && first.is_new(&blue, b"two") && !first.is_new(&red, b"one"));
        first.finish();
        drop(first);
        let second = kept(&place);
        second.set_keys([&blue].into_iter());
        assert!(!second.is_new(&red, b"one") && !second.is_new(&blue, b"two"));
        assert!(second.is_new(&red, b"three"));
    }

    #[test]
    fn what_cannot_be_kept_is_remembered_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for place in [Some(file.as_path()), Some(&file.join("x")), Some(Path::new("/proc/none")), None] {
            let replays = ReplayMemory::open(place).unwrap();
            assert!(replays.is_new(&tag("red"), b"one") && !replays.is_new(&tag("red"), b"one"));
            replays.finish();
        }
    }
}
