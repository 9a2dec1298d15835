// SPDX-License-Identifier: GPL-2.0-or-later
//! The files `moves` and `moves.watched` of the state directory: ends and moves of domains, for the next
//! daemon.
//!
//! ```text
//! fence_virt moves 1
//! moved UUID NANOSECONDS-SINCE-BOOT BOOT-ID URI NAME
//! ended UUID NANOSECONDS-SINCE-BOOT BOOT-ID URI NAME
//! saved UUID NANOSECONDS-SINCE-BOOT BOOT-ID URI NAME
//! end LINES
//!
//! fence_virt watched 1
//! watched NANOSECONDS-SINCE-BOOT BOOT-ID URI
//! end LINES
//! ```
//!
//! Owns both files and the thread that writes them. `moves` is written when something changes, as a new file
//! that takes the old one's place; `moves.watched` every two seconds, and only while all changes are in
//! `moves`. So after a failure of the disk the next daemon takes it that nobody watched since, and what is on
//! disk counts less. No request waits for the disk.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fence_core::domain::DomainId;
use fence_core::evidence::Sight;
use fence_core::evidence::recall::{BootMoment, PastEvent, WatchGap};
use libvirt_host::Uuid;
use tracing::warn;

use super::uuid::domain_id;
use crate::util::backoff::OncePerReason;
use crate::util::boot_clock::since_boot;
use crate::util::locks::lock;

const FILE: &str = "moves";
const WATCHED: &str = "moves.watched";
const HEADER: &str = "fence_virt moves 1";
const WATCHED_HEADER: &str = "fence_virt watched 1";
/// Ends and moves on disk. Above that ends are forgotten, the oldest first, and then the oldest moves.
const MAX_PAST_EVENTS: usize = 4096;
/// Bytes of a file that are read: more than the largest file has.
const MAX_FILE: u64 = 8 * 1024 * 1024;
/// Pause between two writings of the moment until which the hypervisors were watched.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Time to read the files at the start, and to write the last changes at the end.
const DISK_LIMIT: Duration = Duration::from_secs(2);

/// Ends and moves that outlive this process. Clones share them.
#[derive(Clone)]
pub(super) struct PastEvents {
    table: Arc<Mutex<PastTable>>,
    orders: SyncSender<Option<SyncSender<()>>>,
}

/// End or move of a domain, with its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NamedEvent {
    pub(super) name: String,
    pub(super) event: PastEvent,
}

/// Domain that an earlier or the running daemon saw leave this host, or end here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WrittenEvent {
    pub(crate) uuid: DomainId,
    pub(crate) name: String,
    /// Age of the move, or of the save to a file, or of the end.
    pub(crate) sight: Sight,
}

/// Returns what the file `moves` of a state directory has, for a program beside the daemon; nothing where it
/// can't be read. `boot`: the kernel's id of this boot.
pub(crate) fn written_events(directory: &Path, boot: &str) -> Vec<WrittenEvent> {
    let mut found = Vec::new();
    let text = read_file(&directory.join(FILE)).ok().flatten().unwrap_or_default();
    let now = BootMoment::at(since_boot());
    read_lines(&text, HEADER, &mut |line| {
        let ((_, uuid), (of, NamedEvent { name, event })) = event_of(line)?;
        // Nothing is known of the time between two boots: the move may be a moment ago.
        let age = |when| if *of == *boot { now.since(when) } else { Duration::ZERO };
        let sight = match event {
            PastEvent::Ended(when) => Sight::Ended((*of == *boot).then(|| now.since(when))),
            PastEvent::MovedAway(when) | PastEvent::Saved(when) => Sight::MovedAway(age(when)),
        };
        found.push(WrittenEvent { uuid: domain_id(uuid), name, sight });
        Some(())
    });
    found
}

/// Hypervisor and domain.
type PlaceOfDomain = (String, Uuid);

/// Event, and the boot of the host by whose clock its moment is.
type DatedEvent = (Arc<str>, NamedEvent);

/// Moment, and the boot of the host by whose clock it is.
type DatedMoment = (Arc<str>, BootMoment);

#[derive(Default)]
struct PastTable {
    boot: Arc<str>,
    /// Ends and moves by hypervisor and domain, each with the boot of its moment.
    events: HashMap<PlaceOfDomain, DatedEvent>,
    /// Moment until which each hypervisor was watched, by this daemon or an earlier one.
    watched: HashMap<String, DatedMoment>,
    /// Hypervisors that are watched now.
    watching: HashSet<String>,
    /// Hypervisors whose earlier events were taken.
    recalled: HashSet<String>,
    /// Something is not on disk.
    is_changed: bool,
}

impl PastEvents {
    /// Reads what an earlier daemon left in the state directory, and starts the thread that writes there.
    /// Waits for [`DISK_LIMIT`] at most.
    ///
    /// # Errors
    /// The thread can't be started, or the disk does not answer in time.
    pub(super) fn open(directory: &Path, boot: &str) -> io::Result<Self> {
        let (orders, waiting) = sync_channel::<Option<SyncSender<()>>>(1);
        let (tell, told) = sync_channel(1);
        let files = PastFiles { directory: directory.to_owned() };
        let table = Arc::new(Mutex::new(PastTable { boot: boot.into(), ..PastTable::default() }));
        let (started, weak) = (files.clone(), Arc::downgrade(&table));
        thread::Builder::new().name("moves".to_owned()).spawn(move || {
            let _ = tell.send(started.read());
            let mut logged = OncePerReason::default();
            loop {
                let order = match waiting.recv_timeout(WATCH_EVERY) {
                    Ok(order) => order,
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let Some(table) = weak.upgrade() else { return };
                files.write_changes(&table, &mut logged);
                if let Some(done) = order {
                    let _ = done.try_send(());
                }
            }
        })?;
        let late = |_| io::Error::other(format!("the disk did not answer within {} s", DISK_LIMIT.as_secs()));
        let (events, watched) = told.recv_timeout(DISK_LIMIT).map_err(late)?;
        {
            let mut table = lock(&table);
            (table.events, table.watched) = (events, watched);
        }
        Ok(Self { table, orders })
    }

    /// Returns what an earlier daemon saw at a hypervisor, as far as it still counts. Called when events are
    /// watched again; only the first call has a result.
    pub(super) fn recall(&self, uri: &str) -> Vec<(Uuid, NamedEvent)> {
        let mut table = lock(&self.table);
        if !table.recalled.insert(uri.to_owned()) {
            return Vec::new();
        }
        let now = BootMoment::at(since_boot());
        let (boot, watched) = (Arc::clone(&table.boot), table.watched.get(uri).cloned());
        let of_this = table.events.iter().filter(|((at, _), _)| at == uri);
        let recalled = of_this.filter_map(|((_, uuid), (of, NamedEvent { name, event }))| {
            let last_watch = watched.as_ref().filter(|it| it.0 == *of).map(|it| it.1);
            let gap = WatchGap { last_watch, is_new_boot: *of != boot, watched_again: now };
            Some((*uuid, NamedEvent { name: name.clone(), event: gap.recall(*event)? }))
        });
        let recalled: Vec<_> = recalled.collect();
        table.events.retain(|(at, _), _| at != uri);
        for (uuid, event) in &recalled {
            table.events.insert((uri.to_owned(), *uuid), (Arc::clone(&boot), event.clone()));
        }
        table.is_changed = true;
        recalled
    }

    /// Takes note of the last thing that happened to a domain at a hypervisor; none: nothing that outlives
    /// this process. Never waits.
    pub(super) fn put(&self, uri: &str, uuid: Uuid, event: Option<NamedEvent>) {
        let mut table = lock(&self.table);
        let boot = Arc::clone(&table.boot);
        let key = (uri.to_owned(), uuid);
        let is_changed = match event {
            Some(event) => {
                let new = (boot, event);
                let is_new = table.events.get(&key) != Some(&new);
                if is_new {
                    table.events.insert(key, new);
                    table.make_room();
                }
                is_new
            }
            None => table.events.remove(&key).is_some(),
        };
        if is_changed {
            table.is_changed = true;
            drop(table);
            // A full queue: the thread is about to look.
            let _ = self.orders.try_send(None);
        }
    }

    /// Takes note that a hypervisor is watched from now on, or is not any more.
    pub(super) fn set_watching(&self, uri: &str, is_watching: bool) {
        let mut table = lock(&self.table);
        if is_watching {
            table.watching.insert(uri.to_owned());
        } else if table.watching.remove(uri) {
            let now = (Arc::clone(&table.boot), BootMoment::at(since_boot()));
            table.watched.insert(uri.to_owned(), now);
        }
    }

    /// Waits until all changes are on disk, at most [`DISK_LIMIT`]. On a thread that may block.
    pub(super) fn finish(&self) {
        let (tell, told) = sync_channel(1);
        let (mut order, until) = (Some(tell), Instant::now() + DISK_LIMIT);
        // The queue has one place, which the thread empties at once unless the disk hangs.
        while let Err(TrySendError::Full(waits)) = self.orders.try_send(order) {
            if Instant::now() >= until {
                return;
            }
            order = waits;
            thread::sleep(Duration::from_millis(1));
        }
        let _ = told.recv_timeout(DISK_LIMIT);
    }
}

impl PastTable {
    fn make_room(&mut self) {
        while self.events.len() > MAX_PAST_EVENTS {
            let oldest = self.events.iter().min_by_key(|(_, (_, it))| match it.event {
                PastEvent::Ended(when) => (false, when),
                PastEvent::MovedAway(when) | PastEvent::Saved(when) => (true, when),
            });
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.events.remove(&key);
        }
    }
}

/// The two files.
#[derive(Clone)]
struct PastFiles {
    directory: PathBuf,
}

type ReadPast = (HashMap<PlaceOfDomain, DatedEvent>, HashMap<String, DatedMoment>);

impl PastFiles {
    /// Reads both files. Of files that are damaged moves alone are left, of unknown age.
    fn read(&self) -> ReadPast {
        let (mut events, mut watched) = (HashMap::new(), HashMap::new());
        let whole = |file: &str, header: &str, take: &mut dyn FnMut(&str) -> Option<()>| {
            let path = self.directory.join(file);
            match read_file(&path) {
                Ok(None) => true,
                Ok(Some(text)) => {
                    let is_whole = read_lines(&text, header, take);
                    if !is_whole {
                        warn!(
                            "{} is damaged, probably by a crash: what can be read of it counts less",
                            fence_cli::shown(&path)
                        );
                    }
                    is_whole
                }
                Err(error) => {
                    warn!(
                        "{}: {error}; moves of domains before this start are not known",
                        fence_cli::shown(&path)
                    );
                    false
                }
            }
        };
        let is_whole = whole(FILE, HEADER, &mut |line| {
            let (key, event) = event_of(line)?;
            events.insert(key, event);
            Some(())
        }) & whole(WATCHED, WATCHED_HEADER, &mut |line| {
            let (uri, moment) = watched_of(line)?;
            watched.insert(uri, moment);
            Some(())
        });
        if !is_whole {
            watched.clear();
        }
        (events, watched)
    }

    /// Writes what has changed, and until when was watched.
    fn write_changes(&self, table: &Mutex<PastTable>, logged: &mut OncePerReason) {
        let (events, watched) = {
            let mut table = lock(table);
            // Events that come from here on are in the next writing, and so is the time.
            let now = (Arc::clone(&table.boot), BootMoment::at(since_boot()));
            for uri in table.watching.clone() {
                table.watched.insert(uri, now.clone());
            }
            let events = std::mem::take(&mut table.is_changed).then(|| events_text(&table));
            (events, watched_text(&table))
        };
        let written = events.map_or(Ok(()), |text| self.replace(FILE, &text, true));
        if written.is_err() {
            lock(table).is_changed = true;
        }
        match written.and_then(|()| self.replace(WATCHED, &watched, false)) {
            Ok(()) => logged.forget(),
            Err(error) => {
                if logged.is_new(&error.to_string()) {
                    warn!(
                        directory = %fence_cli::shown(&self.directory),
                        "moves of domains can't be written down: {error}. Fencing goes on. If fence_virtd \
                         is started anew now, the daemon may not know of a machine that moved to a host \
                         that is not asked"
                    );
                }
            }
        }
    }

    fn replace(&self, name: &str, text: &str, to_disk: bool) -> io::Result<()> {
        let (new, path) = (self.directory.join(format!("{name}.new")), self.directory.join(name));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        if to_disk {
            file.sync_all()?;
        }
        fs::rename(new, path)?;
        if to_disk { File::open(&self.directory)?.sync_all() } else { Ok(()) }
    }
}

fn read_file(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Reads as many lines as can be read; false if that is not all of a file.
fn read_lines(text: &str, header: &str, take: &mut dyn FnMut(&str) -> Option<()>) -> bool {
    let mut lines = text.split_inclusive('\n');
    if lines.next().and_then(|it| it.strip_suffix('\n')) != Some(header) {
        return false;
    }
    let (mut count, mut is_whole) = (0_usize, true);
    for line in lines {
        let Some(line) = line.strip_suffix('\n') else { return false };
        if let Some(end) = line.strip_prefix("end ") {
            return is_whole && end.parse() == Ok(count);
        }
        count += 1;
        is_whole &= take(line).is_some();
    }
    false
}

fn events_text(table: &PastTable) -> String {
    let mut text = format!("{HEADER}\n");
    for ((uri, uuid), (boot, NamedEvent { name, event })) in &table.events {
        let (kind, when) = match event {
            PastEvent::Ended(when) => ("ended", when),
            PastEvent::MovedAway(when) => ("moved", when),
            PastEvent::Saved(when) => ("saved", when),
        };
        // Writing to a string can't fail.
        let _ = writeln!(text, "{kind} {uuid} {} {} {} {}", when.nanos(), word(boot), word(uri), word(name));
    }
    let _ = writeln!(text, "end {}", table.events.len());
    text
}

fn watched_text(table: &PastTable) -> String {
    let mut text = format!("{WATCHED_HEADER}\n");
    for (uri, (boot, when)) in &table.watched {
        let _ = writeln!(text, "watched {} {} {}", when.nanos(), word(boot), word(uri));
    }
    let _ = writeln!(text, "end {}", table.watched.len());
    text
}

fn event_of(line: &str) -> Option<(PlaceOfDomain, DatedEvent)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [kind, uuid, when, boot, uri, name] = fields[..] else { return None };
    let when = BootMoment::from_nanos(when.parse().ok()?);
    let event = match kind {
        "moved" => PastEvent::MovedAway(when),
        "ended" => PastEvent::Ended(when),
        "saved" => PastEvent::Saved(when),
        _ => return None,
    };
    let key = (text_of(uri)?, uuid.parse().ok()?);
    Some((key, (text_of(boot)?.into(), NamedEvent { name: text_of(name)?, event })))
}

fn watched_of(line: &str) -> Option<(String, DatedMoment)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let ["watched", when, boot, uri] = fields[..] else { return None };
    Some((text_of(uri)?, (text_of(boot)?.into(), BootMoment::from_nanos(when.parse().ok()?))))
}

/// Returns a text as one word: white space, control characters and `%` as `%` and two hex digits.
fn word(text: &str) -> String {
    let mut word = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c.is_ascii_graphic() && c != '%' || !c.is_ascii() && !c.is_whitespace() {
            word.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(word, "%{byte:02x}");
            }
        }
    }
    // An empty word would be no field.
    if word.is_empty() { "%".to_owned() } else { word }
}

/// Reads what [`word`] made.
fn text_of(word: &str) -> Option<String> {
    if word == "%" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "qemu:///system";

    fn uuid(number: u8) -> Uuid {
        Uuid::from_bytes([number; 16])
    }

    fn moved(name: &str) -> NamedEvent {
        NamedEvent { name: name.to_owned(), event: PastEvent::MovedAway(BootMoment::at(since_boot())) }
    }

    fn ended(name: &str) -> NamedEvent {
        NamedEvent { name: name.to_owned(), event: PastEvent::Ended(BootMoment::at(since_boot())) }
    }

    fn recalled(past: &PastEvents, uri: &str) -> HashMap<Uuid, NamedEvent> {
        past.recall(uri).into_iter().collect()
    }

    #[test]
    fn what_one_daemon_saw_the_next_one_knows() {
        let dir = tempfile::tempdir().unwrap();
        let open = |boot| PastEvents::open(dir.path(), boot).unwrap();
        let (first, second) = (moved("web % 1\n"), ended(""));
        let past = open("boot");
        assert!(recalled(&past, HERE).is_empty());
        past.set_watching(HERE, true);
        past.put(HERE, uuid(1), Some(first.clone()));
        past.put(HERE, uuid(2), Some(second.clone()));
        past.put(HERE, uuid(3), Some(moved("gone")));
        past.put(HERE, uuid(3), None);
        past.put("qemu+ssh://other/system", uuid(1), Some(moved("there")));
        past.finish();
        drop(past);
        let past = open("boot");
        let found = recalled(&past, HERE);
        assert_eq!(found, HashMap::from([(uuid(1), first.clone()), (uuid(2), second.clone())]));
        assert!(recalled(&past, HERE).is_empty(), "once");
        // Taken is not gone.
        past.finish();
        drop(past);
        assert_eq!(recalled(&open("boot"), HERE), found);
        let found = recalled(&open("another boot"), HERE);
        assert!(matches!(found[&uuid(1)].event, PastEvent::MovedAway(_)) && !found.contains_key(&uuid(2)));
    }

    #[test]
    fn what_is_left_of_damaged_files_are_moves_of_unknown_age() {
        let dir = tempfile::tempdir().unwrap();
        let past = PastEvents::open(dir.path(), "boot").unwrap();
        past.set_watching(HERE, true);
        past.put(HERE, uuid(1), Some(moved("x")));
        past.put(HERE, uuid(2), Some(ended("y")));
        past.finish();
        drop(past);
        let whole = [FILE, WATCHED].map(|it| fs::read_to_string(dir.path().join(it)).unwrap());
        for (at, text) in whole.iter().enumerate() {
            for length in 0..text.len() {
                let files = [FILE, WATCHED];
                fs::write(dir.path().join(files[1 - at]), &whole[1 - at]).unwrap();
                fs::write(dir.path().join(files[at]), &text[..length]).unwrap();
                let (_, watched) = PastFiles { directory: dir.path().to_owned() }.read();
                assert!(watched.is_empty(), "{length} bytes of {}", files[at]);
            }
        }
        fs::write(dir.path().join(FILE), &whole[0]).unwrap();
        fs::remove_file(dir.path().join(WATCHED)).unwrap();
        let found = recalled(&PastEvents::open(dir.path(), "boot").unwrap(), HERE);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&uuid(1)], "an end may be older than a move");
    }

    /// Then the moment until which was watched is that of the last good writing.
    #[test]
    fn a_disk_that_fails_makes_the_gap_long() {
        let dir = tempfile::tempdir().unwrap();
        let past = PastEvents::open(dir.path(), "boot").unwrap();
        past.set_watching(HERE, true);
        past.put(HERE, uuid(1), Some(ended("x")));
        past.finish();
        let watched = || fs::read_to_string(dir.path().join(WATCHED)).unwrap();
        let before = watched();
        past.finish();
        assert_ne!(watched(), before);
        // A directory in its place can't be opened for writing.
        fs::create_dir(dir.path().join("moves.new")).unwrap();
        past.put(HERE, uuid(1), Some(moved("x")));
        past.finish();
        let before = watched();
        past.finish();
        assert_eq!(watched(), before);
        fs::remove_dir(dir.path().join("moves.new")).unwrap();
        past.finish();
        assert!(fs::read_to_string(dir.path().join(FILE)).unwrap().contains("moved "));
        assert_ne!(watched(), before);
    }

    #[test]
    fn moves_go_last_when_the_table_is_full() {
        let mut table = PastTable::default();
        for number in 0..MAX_PAST_EVENTS + 2 {
            let id = u16::try_from(number).unwrap().to_be_bytes();
            let uuid = Uuid::from_bytes(std::array::from_fn(|it| id[it % 2]));
            let event = if number == 0 { moved("x") } else { ended("y") };
            table.events.insert((HERE.to_owned(), uuid), (Arc::default(), event));
        }
        table.make_room();
        assert_eq!(table.events.len(), MAX_PAST_EVENTS);
        assert!(table.events.contains_key(&(HERE.to_owned(), uuid(0))));
    }

    #[test]
    fn words_are_read_as_they_were() {
        for text in
            ["", " ", "a b", "%", "a%20b", "\u{e9}\u{a0}\u{2028}x", "\t\n", "qemu+ssh://u@h/system?k=v"]
        {
            let word = word(text);
            assert!(!word.is_empty() && !word.contains(char::is_whitespace), "{word}");
            assert_eq!(text_of(&word).as_deref(), Some(text));
        }
    }
}
