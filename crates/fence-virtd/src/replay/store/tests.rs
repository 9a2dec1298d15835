// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests of the store: files, generations, damage, and a disk that hangs.

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
            return Err(io::Error::from_raw_os_error(Errno::ENOSPC as i32));
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
