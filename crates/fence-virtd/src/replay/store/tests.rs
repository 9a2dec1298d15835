// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests of the store: files, generations, damage, and a disk that hangs.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;

use fence_wire::{Key, KeyTag};
use proptest::prelude::*;

use super::super::memory::{END_OF_OLD, KeyId};
use super::*;

const GENERATION: usize = 1000;
const SIZE: MemorySize = MemorySize { generation: GENERATION, of_keys: GENERATION };

fn of(hash: u64) -> PacketRecord {
    PacketRecord { key: KeyId(1), hash }
}

/// Packet of another key.
const BLUE: PacketRecord = PacketRecord { key: KeyId(2), hash: u64::MAX };

fn all(opened: &OpenedStore) -> Vec<u64> {
    let packets = lock(&opened.packets);
    let mut all: Vec<u64> =
        packets.keys().into_iter().flat_map(|it| packets.kept_of(it)).map(|it| it.hash).collect();
    all.sort_unstable();
    all.retain(|it| *it != END_OF_OLD);
    all
}

fn note(opened: &OpenedStore, record: PacketRecord) {
    lock(&opened.packets).enter_of_key(record);
    opened.store.note(record);
}

fn noted(place: &Path, hashes: std::ops::Range<u64>) {
    let opened = open(place, SIZE).unwrap();
    hashes.for_each(|it| note(&opened, of(it)));
    opened.store.finish(Duration::from_secs(60));
}

fn in_file(place: &Path, name: &str) -> Vec<PacketRecord> {
    let contents = fs::read(place.join(name)).ok().and_then(|it| format::read(&it).ok());
    contents.map(|it| it.records).unwrap_or_default()
}

fn wait_until(what: &str, is_done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_done() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The lock goes with the writing thread, which ends a moment after its store is dropped.
fn again(place: &Path) -> OpenedStore {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match open(place, SIZE) {
            Err(StoreError::Held) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
            other => return other.map_err(|it| it.to_string()).unwrap(),
        }
    }
}

#[test]
fn what_was_noted_is_there_again_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("a/b");
    noted(&place, 1..100);
    let opened = again(&place);
    assert_eq!(all(&opened), (1..100).collect::<Vec<_>>());
    assert!(opened.remarks.is_empty());
    for (path, mode) in [(place.clone(), 0o700), (place.join(YOUNG), 0o600), (place.join(LOCK), 0o600)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{path:?}");
    }
}

#[test]
fn it_is_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), SIZE).unwrap();
    note(&opened, of(7));
    // Neither the end of the daemon nor a full batch is waited for.
    wait_until("a record", || !in_file(dir.path(), YOUNG).is_empty());
    drop(opened);
    assert_eq!(all(&again(dir.path())), [7]);
}

#[test]
fn two_generations_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let count = 10 * GENERATION as u64;
    noted(dir.path(), 1..count);
    let opened = again(dir.path());
    let of_files = [OLD, YOUNG].map(|it| in_file(dir.path(), it)).concat();
    assert!((GENERATION..=2 * (GENERATION + BATCH)).contains(&of_files.len()), "{}", of_files.len());
    assert_eq!(of_files, (count - of_files.len() as u64..count).map(of).collect::<Vec<_>>());
    let packets = lock(&opened.packets);
    assert!(of_files.into_iter().all(|it| packets.knows(it)));
}

/// After a flood of one key, and a restart, the packets of another are known, though neither generation has
/// them.
#[test]
fn a_flood_of_one_key_leaves_the_packets_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path(), SIZE).unwrap();
    note(&opened, BLUE);
    for run in 0..3 {
        let first = 1 + run * 10 * GENERATION as u64;
        (first..first + 5 * GENERATION as u64).for_each(|it| note(&opened, of(it)));
        opened.store.finish(Duration::from_secs(60));
        drop(opened);
        opened = again(dir.path());
        assert!(lock(&opened.packets).knows(BLUE), "{run}");
        assert!([OLD, YOUNG].iter().all(|it| !in_file(dir.path(), it).contains(&BLUE)), "{run}");
    }
}

/// Without the file of single keys there is as much as without shares.
#[test]
fn without_the_kept_file_the_generations_still_count() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(KEPT_NEW)).unwrap();
    let count = 5 * GENERATION as u64;
    noted(dir.path(), 1..count);
    // Until its threads have ended.
    drop(again(dir.path()));
    fs::remove_dir(dir.path().join(KEPT_NEW)).unwrap();
    assert!(!dir.path().join(KEPT).exists());
    fs::write(dir.path().join(KEPT), "junk").unwrap();
    for kept in ["junk", "link"] {
        let opened = again(dir.path());
        let packets = lock(&opened.packets);
        assert!((count - GENERATION as u64..count).all(|it| packets.knows(of(it))), "{kept}");
        assert!(opened.remarks.iter().any(|it| it.contains(KEPT)), "{:?}", opened.remarks);
        drop(packets);
        drop(opened);
        drop(again(dir.path()));
        fs::remove_file(dir.path().join(KEPT)).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join(KEPT)).unwrap();
    }
}

/// Files of an earlier version have no keys. Their packets are there, and so are those that follow.
#[test]
fn the_files_of_an_earlier_version_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let key = HashKey([5; 16]);
    for (name, hash) in [(OLD, 1_u64), (YOUNG, 2)] {
        let mut bytes = format::header(key).to_vec();
        bytes.extend(hash.to_le_bytes());
        bytes.extend(key.hash(&hash.to_le_bytes()).to_le_bytes());
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let opened = open(dir.path(), SIZE).unwrap();
    assert_eq!((all(&opened), opened.remarks.as_slice()), (vec![1, 2], &[][..]));
    note(&opened, BLUE);
    opened.store.finish(Duration::from_secs(60));
    drop(opened);
    let opened = again(dir.path());
    assert_eq!((all(&opened), opened.remarks.as_slice()), (vec![1, 2, BLUE.hash], &[][..]));
    let packets = lock(&opened.packets);
    assert!([1, 2].into_iter().all(|hash| packets.knows(PacketRecord { hash, ..BLUE })));
}

/// Packets that a disk did not take are there after a restart, once it takes others.
#[test]
fn packets_that_were_not_taken_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), SIZE).unwrap();
    lock(&opened.packets).enter_of_key(BLUE);
    opened.store.health.lost.fetch_add(1, Ordering::Relaxed);
    note(&opened, of(1));
    wait_until("the kept file", || in_file(dir.path(), KEPT).contains(&BLUE));
    assert_eq!(opened.store.lost(), 0);
    drop(opened);
    assert_eq!(all(&again(dir.path())), [1, BLUE.hash]);
}

#[test]
fn a_damaged_file_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    noted(dir.path(), 1..9);
    drop(again(dir.path()));
    let path = dir.path().join(YOUNG);
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER_LEN + 3 * RECORD_LEN] ^= 1;
    bytes.truncate(bytes.len() - 5);
    fs::write(&path, &bytes).unwrap();
    let opened = again(dir.path());
    assert_eq!(all(&opened), [1, 2, 3, 5, 6, 7]);
    assert!(opened.remarks[0].contains("1 records and 11 bytes"), "{:?}", opened.remarks);
    note(&opened, of(10));
    opened.store.finish(Duration::from_secs(60));
    drop(opened);
    assert_eq!(all(&again(dir.path())), [1, 2, 3, 5, 6, 7, 10]);
}

#[test]
fn without_a_header_the_other_files_still_count() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), SIZE).unwrap();
    (1..3 * GENERATION as u64).for_each(|it| note(&opened, of(it)));
    opened.store.finish(Duration::from_secs(60));
    drop(opened);
    drop(again(dir.path()));
    let old = in_file(dir.path(), OLD);
    let known = |opened: &OpenedStore| {
        let packets = lock(&opened.packets);
        assert!(old.iter().all(|it| packets.knows(*it)));
    };
    fs::write(dir.path().join(YOUNG), b"junk").unwrap();
    let opened = again(dir.path());
    known(&opened);
    assert!(opened.remarks[0].contains("no whole header"));
    drop(opened);
    // A rotation that was cut off between its two renames.
    let opened = again(dir.path());
    drop(opened);
    fs::remove_file(dir.path().join(YOUNG)).unwrap();
    for name in [NEW, KEPT_NEW] {
        fs::write(dir.path().join(name), b"half").unwrap();
    }
    known(&again(dir.path()));
}

#[test]
fn a_directory_of_one_daemon_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), SIZE).unwrap();
    assert!(matches!(open(dir.path(), SIZE), Err(StoreError::Held)));
    drop(opened);
    drop(again(dir.path()));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(open(dir.path(), SIZE), Err(StoreError::OthersMayWrite(_))));
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
        assert!(open(&place, SIZE).is_err(), "{name}");
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
        store.note(of(hash));
    }
    assert!(store.health.lost.load(Ordering::Relaxed) >= QUEUE as u64);
    assert!(store.health.said.load(Ordering::Relaxed));
    store.finish(Duration::from_millis(1));
    drop(release);
}

/// Packets that a full disk did not take are written when it takes packets again.
#[test]
fn an_error_is_not_the_end_and_nothing_is_missing() {
    let mut calls = 0;
    let (tell, told) = sync_channel(16);
    let store = ReplayStore::writing(move |order| {
        calls += 1;
        if calls == 1 {
            return Err(io::Error::from_raw_os_error(Errno::ENOSPC as i32));
        }
        tell.send(format!("{order:?}")).map_err(io::Error::other)
    })
    .unwrap();
    store.note(of(1));
    wait_until("the error", || store.health.said.load(Ordering::Relaxed));
    assert_eq!(store.lost(), 1);
    store.note(of(2));
    let next = || told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(next(), format!("{:?}", WriteOrder::Append(&[of(2)])));
    assert_eq!(next(), format!("{:?}", WriteOrder::Keep));
    store.finish(Duration::from_secs(60));
    assert_eq!((next(), store.lost()), (format!("{:?}", WriteOrder::Sync), 0));
}

/// The memory and the files as they were without shares: two generations, whatever the keys.
#[derive(Default)]
struct SharedMemory {
    memory: [HashSet<usize>; 2],
    files: [Vec<usize>; 2],
}

impl SharedMemory {
    fn append(&mut self, packets: &[usize], generation: usize) {
        for packet in packets {
            let [old, young] = &mut self.memory;
            young.insert(*packet);
            if young.len() >= generation {
                *old = std::mem::take(young);
            }
        }
        let [old, young] = &mut self.files;
        if young.len() >= generation {
            *old = std::mem::take(young);
        }
        young.extend(packets);
    }

    fn restart(&mut self) {
        self.memory = [0, 1].map(|it| self.files[it].iter().copied().collect());
    }

    fn known(&self) -> impl Iterator<Item = usize> {
        self.memory.iter().flatten().copied()
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Packets of one key, written at once.
    Packets(usize, usize),
    /// A configuration with some of the keys.
    Reload([bool; 4]),
    /// A turn of the thread that writes the packets of each key.
    Keep,
    /// A kill and a new start.
    Restart,
}

/// A memory with its files, and packets that were sent.
struct SentPackets {
    files: GenerationFiles,
    tags: [KeyTag; 4],
    sent: Vec<PacketRecord>,
    /// Places of the packets of each key since it was last forgotten.
    of_keys: [Vec<usize>; 4],
}

impl SentPackets {
    fn open(directory: &Path, size: MemorySize) -> GenerationFiles {
        let (wake, _) = sync_channel(1);
        open_files(directory, size, wake).unwrap().0
    }

    fn send(&mut self, key: usize, count: usize) -> Vec<usize> {
        let first = self.sent.len();
        let packets = &self.files.kept.memory;
        let records =
            (first..first + count).map(|it| lock(packets).note(&self.tags[key], &it.to_le_bytes()).unwrap());
        self.sent.extend(records);
        self.files.append(&self.sent[first..]).unwrap();
        self.of_keys[key].extend(first..first + count);
        (first..first + count).collect()
    }

    /// Changes the keys. One loses its packets only if there are too many of keys that are not in use.
    fn reload(&mut self, in_use: [bool; 4], generation: usize) {
        let tags = self.tags.iter().zip(in_use).filter(|(_, it)| *it).map(|(tag, _)| tag);
        let mut packets = lock(&self.files.kept.memory);
        let count = packets.count_of_keys();
        packets.set_keys(tags);
        for (sent, in_use) in self.of_keys.iter_mut().zip(in_use) {
            if sent.last().is_some_and(|it| packets.kept_of(self.sent[*it].key).is_empty()) {
                assert!(!in_use && count > 2 * generation);
                sent.clear();
            }
        }
    }

    fn check(&self, shared: &SharedMemory, share: usize) {
        let packets = lock(&self.files.kept.memory);
        for it in shared.known() {
            assert!(packets.knows(self.sent[it]), "{it} is known without shares");
        }
        for it in self.of_keys.iter().flat_map(|it| it.iter().rev().take(share)) {
            assert!(packets.knows(self.sent[*it]), "{it} is of its key's last ones");
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0_usize..4, 1_usize..40).prop_map(|(key, count)| Step::Packets(key, count)),
        2 => any::<[bool; 4]>().prop_map(Step::Reload),
        2 => Just(Step::Keep),
        2 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In any order of packets, reloads and kills, with the directory as it is then: what a memory without
    /// shares would know is known, and so are the last packets of each key, as many as its smallest share.
    #[test]
    fn nothing_is_forgotten_earlier_than_without_shares(
        steps in steps(),
        generation in 4_usize..60,
        of_keys in 4_usize..120,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let size = MemorySize { generation, of_keys };
        let tags = ["red", "blue", "green", "gold"].map(|it| Key::new(it.as_bytes()).unwrap().tag());
        let files = SentPackets::open(dir.path(), size);
        let mut ours = SentPackets { files, tags, sent: Vec::new(), of_keys: Default::default() };
        let mut shared = SharedMemory::default();
        for step in steps {
            match step {
                Step::Packets(key, count) => shared.append(&ours.send(key, count), generation),
                Step::Reload(in_use) => ours.reload(in_use, generation),
                Step::Keep => assert!(ours.files.kept.write_if_asked()),
                Step::Restart => {
                    let SentPackets { files, tags, sent, of_keys } = ours;
                    drop(files);
                    let files = SentPackets::open(dir.path(), size);
                    ours = SentPackets { files, tags, sent, of_keys };
                    shared.restart();
                }
            }
            ours.check(&shared, (of_keys / 4).clamp(1, generation));
        }
    }
}
