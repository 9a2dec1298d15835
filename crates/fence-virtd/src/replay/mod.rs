// SPDX-License-Identifier: GPL-2.0-or-later
//! Every packet that was accepted, so that none is accepted twice: honest packets are never equal to the byte (each
//! has fresh random bytes), and an equal one is a replay.
//!
//! One memory for all listeners: what was recorded on one transport must not be played to another. It is kept on
//! disk as well, because a recorded packet does not grow old when the daemon restarts. Fencing goes first: whatever
//! the disk does, no request waits for it, and a directory that can't be used costs the memory of earlier runs and
//! nothing else.
//!
//! [`memory`] and [`format`](mod@format) are pure; [`store`] owns the directory, its lock, and two threads of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fence_config::{DEFAULT_STATE_DIR, StateDir};
use tracing::{info, warn};

use self::memory::{HashKey, PacketHashes};
use self::store::{OpenedStore, ReplayStore, StoreError};
use crate::util::locks::lock;

mod format;
mod memory;
mod store;

/// Packets of one generation. Two are kept, and the older one is forgotten as a whole.
const GENERATION: usize = 500_000;
/// How long the start waits for the directory.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// How long the end waits for the disk.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// See the module's head.
pub(crate) struct ReplayMemory {
    packets: Mutex<PacketHashes>,
    store: Option<ReplayStore>,
}

/// Where to remember: what the configuration says, else what systemd says, else the usual place; none: in memory
/// alone. `from_systemd` is `$STATE_DIRECTORY`, a list with colons of which the first counts.
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
    /// A memory that ends with the process.
    pub(crate) fn in_memory() -> Result<Self, rand::rngs::SysError> {
        Ok(Self { packets: Mutex::new(PacketHashes::new(HashKey::random()?, GENERATION)), store: None })
    }

    /// The memory that is kept in `directory`. Says in the log what is wrong with it and goes on without.
    pub(crate) fn open(directory: Option<&Path>) -> Result<Self, rand::rngs::SysError> {
        let Some(directory) = directory else {
            info!("accepted packets are remembered in memory alone");
            return Self::in_memory();
        };
        let shown = fence_cli::shown(directory);
        let since = Instant::now();
        match opened_in_time(directory.to_owned()) {
            Ok(OpenedStore { key, generations: [old, young], store, remarks }) => {
                for it in remarks {
                    warn!(directory = %shown, "{it}");
                }
                let packets = PacketHashes::with(key, GENERATION, old, young);
                let (count, ms) = (packets.len(), since.elapsed().as_millis());
                info!(directory = %shown, packets = count, ms, "packets of earlier runs are remembered");
                Ok(Self { packets: Mutex::new(packets), store: Some(store) })
            }
            Err(error) => {
                warn!(
                    directory = %shown,
                    "accepted packets are remembered in memory alone, so that after a restart a recorded one could \
                     be played again: {error}"
                );
                Self::in_memory()
            }
        }
    }

    /// Whether a packet whose hash fits was never here before. It is remembered.
    pub(crate) fn is_new(&self, packet: &[u8]) -> bool {
        let Some(hash) = lock(&self.packets).note(packet) else { return false };
        if let Some(store) = &self.store {
            store.note(hash);
        }
        true
    }

    /// How many packets are remembered, whether on disk too, and how many of them the disk did not take.
    pub(crate) fn counts(&self) -> (usize, bool, u64) {
        let lost = self.store.as_ref().map(ReplayStore::lost);
        (lock(&self.packets).len(), lost.is_some(), lost.unwrap_or_default())
    }

    /// Comes back when nobody keeps the memory locked.
    pub(crate) fn touch(&self) {
        drop(lock(&self.packets));
    }

    /// The daemon ends: what was accepted is on disk when this returns, if the disk is quick enough.
    pub(crate) fn finish(&self) {
        if let Some(store) = &self.store {
            store.finish(FINISH_LIMIT);
        }
    }
}

/// A directory on a disk or a server that hangs must not keep the daemon from its work.
fn opened_in_time(directory: PathBuf) -> Result<OpenedStore, StoreError> {
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("replay-open".to_owned())
        .spawn(move || drop(tell.send(store::open(&directory, GENERATION))))
        .map_err(StoreError::Thread)?;
    told.recv_timeout(OPEN_LIMIT).unwrap_or(Err(StoreError::Late(OPEN_LIMIT)))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// The writing thread of an earlier one has the directory until all is on disk, and a machine may be slow.
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
        assert!(first.is_new(b"one") && first.is_new(b"two") && !first.is_new(b"one"));
        first.finish();
        drop(first);
        let second = kept(&place);
        assert!(!second.is_new(b"one") && !second.is_new(b"two") && second.is_new(b"three"));
    }

    #[test]
    fn what_cannot_be_kept_is_remembered_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for place in [Some(file.as_path()), Some(&file.join("x")), Some(Path::new("/proc/none")), None] {
            let replays = ReplayMemory::open(place).unwrap();
            assert!(replays.is_new(b"one") && !replays.is_new(b"one"));
            replays.finish();
        }
    }
}
