// SPDX-License-Identifier: GPL-2.0-or-later
//! The file `hosts` of the state directory: every host that was heard, one a line.
//!
//! ```text
//! fence_virt hosts 1
//! host ID proved PUBLIC-KEY DOMAINS FIRST LAST ADDRESS,ADDRESS NAME
//! host ID ours PUBLIC-KEY DOMAINS FIRST LAST ADDRESS,ADDRESS NAME
//! host ID legacy - DOMAINS FIRST LAST ADDRESS NAME
//! pin ADDRESS:PORT ID
//! rival ADDRESS:PORT ID
//! twins ID ADDRESS
//! missing WHY
//! incomplete WHY
//! end LINES
//! ```
//!
//! A host that only said hello, and never proved its key pair, is not written there, and no daemon starts
//! with one. Such hosts stand in `hosts.hello`, with the same lines, for `--check` and `--forget` alone: the
//! daemon that runs waits for them.
//!
//! Owns the file and `hosts.forget`, in which an administrator's program names hosts for the daemon to
//! forget. Only the daemon writes `hosts`, as a new file that takes the old one's place, so a crash leaves
//! one of them whole. Where it can't be written, the old one is renamed to `hosts.stale`, which a full disk
//! still lets happen. What can't be read is never taken for "no other hosts": the table says that one may
//! be missing.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fence_cli::shown;
use fence_core::hosts::{HostKind, KnownHost, KnownHosts, MAX_HOST_ADDRESSES};
use fence_wire::HostId;

const FILE: &str = "hosts";
const NEW: &str = "hosts.new";
const STALE: &str = "hosts.stale";
const HELLO: &str = "hosts.hello";
const FORGET: &str = "hosts.forget";
const HEADER: &str = "fence_virt hosts 1";
/// Bytes of the file at most: 64 hosts with long names and addresses are far below.
const MAX_FILE: u64 = 256 * 1024;
/// Time after which `hosts.hello` is of a daemon that does not run: it is written every minute.
const HELLO_KEPT: Duration = Duration::from_secs(180);
/// Names that wait in `hosts.forget` at most.
const MAX_FORGET: u64 = 16 * 1024;

/// Directory in which the hosts are remembered.
#[derive(Clone, Debug)]
pub(crate) struct HostStore {
    directory: PathBuf,
}

impl HostStore {
    pub(crate) fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Reads the hosts of earlier runs. A file that can't be read, or not wholly, leaves a table that says
    /// that a host may be missing. `hosts.forget` is not looked at.
    pub(crate) fn read(&self) -> KnownHosts {
        let path = self.directory.join(FILE);
        let mut table = KnownHosts::default();
        let damaged = |what: &dyn std::fmt::Display| {
            format!(
                "{}: {what}; if no other host can have the same domains, or all say hello again: \
                 fence_virtd --forget all",
                shown(&path)
            )
        };
        let stale = self.directory.join(STALE);
        let text = match read_file(&path, MAX_FILE) {
            Ok(None) => read_file(&stale, MAX_FILE).inspect(|it| {
                if it.is_some() {
                    let why = "could not be written lately, so hosts that were heard since are not in it";
                    table.note_incomplete(format!("{} {why}", shown(&path)));
                }
            }),
            other => other,
        };
        match text {
            Ok(None) => {}
            Ok(Some(text)) => {
                if let Err(line) = parse(&text, &mut table) {
                    table.note_missing(damaged(&format!("line {line} can't be read")));
                }
            }
            Err(error) => table.note_missing(damaged(&error)),
        }
        table
    }

    /// Reads the hosts of earlier runs, and those that only said hello to a daemon that runs, which waits for
    /// them too. For programs beside the daemon.
    pub(crate) fn read_with_announced(&self) -> KnownHosts {
        let (mut table, mut announced) = (self.read(), KnownHosts::default());
        let path = self.directory.join(HELLO);
        let is_new = fs::metadata(&path).and_then(|it| it.modified()).is_ok_and(|at| {
            // A clock that was set back makes it no older.
            at.elapsed().map_or(true, |it| it < HELLO_KEPT)
        });
        if let (true, Ok(Some(text))) = (is_new, read_file(&path, MAX_FILE)) {
            // No table of record: what can't be read is left out.
            let _ = parse(&text, &mut announced);
        }
        for host in announced.all() {
            if table.host(host.id).is_none() {
                table.restore(host.clone());
            }
        }
        table
    }

    /// Writes the hosts that only said hello, for programs beside the daemon.
    pub(super) fn write_announced(&self, table: &KnownHosts) -> io::Result<()> {
        let path = self.directory.join(HELLO);
        let mut announced = KnownHosts::default();
        table.announced_only().for_each(|it| announced.restore(it.clone()));
        if announced.all().next().is_none() {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let new = self.directory.join("hosts.hello.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(written(&announced).as_bytes())?;
        fs::rename(new, path)
    }

    /// Returns true if no table was ever written here, or it is gone.
    pub(super) fn is_empty(&self) -> bool {
        [FILE, STALE].iter().all(|it| fs::symlink_metadata(self.directory.join(it)).is_err())
    }

    /// Writes the table in the place of the one before, which is not trusted any more if that fails. Waits
    /// for the disk.
    pub(super) fn write(&self, table: &KnownHosts) -> io::Result<()> {
        let written = self.write_new(table).and_then(|new| fs::rename(new, self.directory.join(FILE)));
        match written {
            Ok(()) => {
                let _ = fs::remove_file(self.directory.join(STALE));
                File::open(&self.directory)?.sync_all()
            }
            Err(error) => {
                let _ = fs::rename(self.directory.join(FILE), self.directory.join(STALE));
                Err(error)
            }
        }
    }

    /// Checks that a table can be written, and leaves the one that is there.
    pub(super) fn try_write(&self, table: &KnownHosts) -> io::Result<()> {
        self.write_new(table).map(drop)
    }

    fn write_new(&self, table: &KnownHosts) -> io::Result<PathBuf> {
        let new = self.directory.join(NEW);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(written(table).as_bytes())?;
        file.sync_all()?;
        Ok(new)
    }

    /// Asks the daemon to forget a host, by name, address or id, or `all`. It does so within a
    /// second or two, or at its start.
    pub(crate) fn request_forget(&self, host: &str) -> io::Result<()> {
        let path = self.directory.join(FORGET);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        // One write: two programs at once leave two whole lines.
        file.write_all(format!("{}\n", host.replace('\n', " ")).as_bytes())?;
        file.sync_all()
    }

    /// Takes the hosts that are to be forgotten out of `hosts.forget`.
    pub(super) fn take_forgotten(&self) -> io::Result<Vec<String>> {
        let path = self.directory.join(FORGET);
        // Renamed first: what is added meanwhile goes into a new file.
        let taken = self.directory.join("hosts.forget.taken");
        match fs::rename(&path, &taken) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
        let text = read_file(&taken, MAX_FORGET)?.unwrap_or_default();
        fs::remove_file(&taken)?;
        Ok(text.lines().map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect())
    }
}

fn read_file(path: &Path, most: u64) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(most).read_to_string(&mut text)?;
    Ok(Some(text))
}

fn written(table: &KnownHosts) -> String {
    let mut text = format!("{HEADER}\n");
    let mut lines = 0;
    for host in table.remembered() {
        let (kind, public) = match &host.kind {
            HostKind::Ours(public) => (if host.is_proved { "proved" } else { "ours" }, hex(public)),
            HostKind::Legacy => ("legacy", "-".to_owned()),
        };
        let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
        let KnownHost { id, domains, first_heard, last_heard, name, .. } = host;
        let addresses = addresses.join(",");
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "host {id} {kind} {public} {domains} {first_heard} {last_heard} {addresses} {name}"
        );
        lines += 1;
    }
    for (address, id) in table.pins() {
        let _ = writeln!(text, "pin {address} {id}");
        lines += 1;
    }
    for (address, id) in table.rivals() {
        let _ = writeln!(text, "rival {address} {id}");
        lines += 1;
    }
    for (id, address) in table.twins() {
        let _ = writeln!(text, "twins {id} {address}");
        lines += 1;
    }
    if let Some(why) = table.missing() {
        let _ = writeln!(text, "missing {}", why.replace('\n', " "));
        lines += 1;
    }
    if let Some(why) = table.incomplete() {
        let _ = writeln!(text, "incomplete {}", why.replace('\n', " "));
        lines += 1;
    }
    let _ = writeln!(text, "end {lines}");
    text
}

/// Reads as many lines as can be read; the error is the number of the first one that can't.
fn parse(text: &str, table: &mut KnownHosts) -> Result<(), usize> {
    let mut lines = text.split_inclusive('\n').enumerate().map(|(at, line)| (at + 1, line));
    if lines.next().map(|(_, line)| line) != Some(&format!("{HEADER}\n")) {
        return Err(1);
    }
    let (mut count, mut bad) = (0, None);
    let mut last = 1;
    for (number, line) in lines {
        last = number;
        let Some(line) = line.strip_suffix('\n') else { break };
        if let Some(end) = line.strip_prefix("end ") {
            let is_whole = end.parse() == Ok(count) && text.ends_with(&format!("end {end}\n"));
            return bad.or((!is_whole).then_some(number)).map_or(Ok(()), Err);
        }
        count += 1;
        if parse_line(line, table).is_none() {
            bad.get_or_insert(number);
        }
    }
    Err(bad.unwrap_or(last))
}

fn parse_line(line: &str, table: &mut KnownHosts) -> Option<()> {
    let (word, rest) = line.split_once(' ')?;
    match word {
        "host" => table.restore(host(rest)?),
        "pin" => {
            let (address, id) = rest.split_once(' ')?;
            table.pin(address.parse().ok()?, HostId::from_text(id)?);
        }
        "rival" => {
            let (address, id) = rest.split_once(' ')?;
            table.restore_rival(address.parse().ok()?, HostId::from_text(id)?);
        }
        "twins" => {
            let (id, address) = rest.split_once(' ')?;
            table.note_two_daemons(HostId::from_text(id)?, address.parse().ok()?);
        }
        "missing" => table.note_missing(rest.to_owned()),
        "incomplete" => table.note_incomplete(rest.to_owned()),
        _ => return None,
    }
    Some(())
}

fn host(line: &str) -> Option<KnownHost> {
    let mut fields = line.splitn(8, ' ');
    let mut next = || fields.next();
    let id = HostId::from_text(next()?)?;
    let word = next()?;
    let kind = match (word, next()?) {
        ("ours" | "proved", public) => HostKind::Ours(unhex(public).filter(|it| HostId::of(it) == id)?),
        ("legacy", "-") => HostKind::Legacy,
        _ => return None,
    };
    let domains = next()?.parse().ok()?;
    let (first_heard, last_heard) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let addresses: Option<Vec<IpAddr>> = next()?.split(',').map(|it| it.parse().ok()).collect();
    let addresses = addresses.filter(|it| it.len() <= MAX_HOST_ADDRESSES)?;
    let (name, is_proved) = (next()?.to_owned(), word != "ours");
    Some(KnownHost { id, kind, name, addresses, is_proved, domains, first_heard, last_heard })
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |at: usize| text.get(at * 2..at * 2 + 2).and_then(|it| u8::from_str_radix(it, 16).ok());
    let bytes: Vec<u8> = (0..32).map_while(byte).collect();
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use fence_core::hosts::MAX_HOSTS;
    use fence_wire::HostHello;
    use proptest::prelude::*;

    use super::*;

    fn hello(host: u8, name: &str) -> HostHello {
        HostHello { public: [host; 32], port: 0, domains: host.into(), name: name.to_owned(), run: [0; 8] }
    }

    fn table() -> KnownHosts {
        let mut table = KnownHosts::default();
        for host in 1..=3 {
            table.heard(&hello(host, &format!("host {host}")), IpAddr::from([10, 0, 0, host]), 1000);
            if host < 3 {
                let (told, from) = (hello(host, &format!("h{host}")), IpAddr::from([10, 0, 0, host]));
                table.heard_proved(&told, from, 1500, true);
            }
        }
        table.heard_proved(&hello(2, "host 2"), "fe80::2".parse().unwrap(), 2000, true);
        table.heard_legacy(IpAddr::from([10, 0, 0, 9]), 4, 3000);
        table.pin("10.0.0.2:1229".parse().unwrap(), HostId::of(&[2; 32]));
        table.pin("10.0.0.2:1229".parse().unwrap(), HostId::of(&[3; 32]));
        table.note_two_daemons(HostId::of(&[1; 32]), IpAddr::from([10, 0, 0, 7]));
        table
    }

    fn store() -> (tempfile::TempDir, HostStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = HostStore::at(dir.path());
        (dir, store)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_dir, store) = store();
        assert_eq!(store.read(), KnownHosts::default());
        store.write(&table()).unwrap();
        assert_eq!(store.read(), table());
        let mut missing = table();
        missing.note_missing("no room".to_owned());
        missing.note_incomplete("not all were heard".to_owned());
        store.write(&missing).unwrap();
        assert_eq!(store.read(), missing);
    }

    /// A crash, a full disk, a bad sector: whatever is left of the file, a host that is not read from it is
    /// missing, and the table says so.
    #[test]
    fn a_torn_file_is_never_no_hosts() {
        let (dir, store) = store();
        let whole = written(&table());
        for length in 0..whole.len() {
            fs::write(dir.path().join(FILE), &whole[..length]).unwrap();
            let read = store.read();
            assert!(read.missing().is_some_and(|it| it.contains("--forget all")), "{length} bytes");
        }
        for other in ["\u{0}".repeat(300), "fence_virt hosts 2\nend 0\n".into(), format!("{whole}x")] {
            fs::write(dir.path().join(FILE), other).unwrap();
            assert!(store.read().missing().is_some());
        }
        fs::write(dir.path().join(FILE), [0xff, 0xfe]).unwrap();
        assert!(store.read().missing().is_some());
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::create_dir(dir.path().join(FILE)).unwrap();
        assert!(store.read().missing().is_some());
    }

    /// A full disk or one that can't be written: what was heard since is not in the file.
    #[test]
    fn a_file_that_could_not_be_replaced_is_not_whole() {
        let (dir, store) = store();
        store.write(&table()).unwrap();
        // A directory in its place can't be opened for writing.
        fs::create_dir(dir.path().join(NEW)).unwrap();
        let mut later = table();
        later.heard(&hello(4, "host 4"), IpAddr::from([10, 0, 0, 4]), 4000);
        store.write(&later).unwrap_err();
        store.try_write(&later).unwrap_err();
        let mut read = store.read();
        assert!(read.incomplete().is_some_and(|it| it.contains("could not be written")), "{read:?}");
        assert!(read.note_complete() && read == table(), "what is there counts all the same");
        store.write(&later).unwrap_err();
        assert!(store.read().incomplete().is_some(), "a second failure loses nothing");
        fs::remove_dir(dir.path().join(NEW)).unwrap();
        store.write(&later).unwrap();
        assert_eq!(store.read(), later);
        store.try_write(&table()).unwrap();
        assert_eq!(store.read(), later);
    }

    proptest! {
        #[test]
        fn a_changed_byte_loses_no_host_silently(at in 0..400_usize, by in 1..=u8::MAX) {
            let (dir, store) = store();
            let mut bytes = written(&table()).into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= by;
            fs::write(dir.path().join(FILE), bytes).unwrap();
            let read = store.read();
            // Numbers, names and addresses may be changed by it; a host may not be gone.
            let ids = |table: &KnownHosts| table.all().map(|it| it.id).collect::<Vec<_>>();
            prop_assert!(read.missing().is_some() || ids(&read).len() == ids(&table()).len());
        }
    }

    proptest! {
        /// Whatever happened to the table: the next daemon waits for the same hosts, and doubts the same.
        #[test]
        fn what_binds_is_read_as_it_was_written(
            events in proptest::collection::vec((0..7_u8, 1..90_u8, any::<bool>()), 0..150)
        ) {
            let (_dir, store) = store();
            let (mut table, now) = (KnownHosts::default(), std::time::Instant::now());
            for (event, host, flag) in events {
                let (from, id) = (IpAddr::from([10, 0, 0, host]), HostId::of(&[host; 32]));
                let told = hello(host, &format!("h {host}"));
                match event {
                    0 => drop(table.announced(&told, from, 7, now)),
                    1 => drop(table.heard_proved(&told, from, 7, flag)),
                    2 => drop(table.heard_legacy(from, host.into(), 7)),
                    3 => drop(table.pin((from, 1229).into(), HostId::of(&[host + u8::from(flag); 32]))),
                    4 => drop(table.note_two_daemons(id, from)),
                    5 => drop(table.forget(&from.to_string())),
                    _ if host < 5 => table.note_incomplete(format!("line\n{host}").replace('\n', " ")),
                    _ => drop(table.note_complete()),
                }
            }
            store.write(&table).unwrap();
            prop_assert_eq!(store.read().bound(), table.bound());
        }
    }

    #[test]
    fn the_largest_table_fits() {
        let (_dir, store) = store();
        let mut table = KnownHosts::default();
        for host in 0..u8::try_from(MAX_HOSTS).unwrap() {
            for address in 0..4_u16 {
                let long = IpAddr::from([0xfd00, 1, 2, 3, 4, 5, 6, address]);
                table.heard_proved(&hello(host, &"\u{20ac}".repeat(15)), long, u64::MAX, true);
            }
            table.pin(([10, 0, 0, host], 65535).into(), HostId::of(&[host; 32]));
        }
        store.write(&table).unwrap();
        assert!(u64::try_from(written(&table).len()).unwrap() < MAX_FILE / 2);
        assert_eq!(store.read(), table);
    }

    /// The daemon waits for such a host, and starts without it.
    #[test]
    fn hosts_that_only_said_hello_are_for_programs_beside_the_daemon() {
        let (dir, store) = store();
        let mut table = table();
        let now = std::time::Instant::now();
        table.announced(&hello(5, "h5"), IpAddr::from([10, 0, 0, 5]), 4000, now);
        store.write(&table).unwrap();
        store.write_announced(&table).unwrap();
        let id = HostId::of(&[5; 32]);
        assert!(store.read().host(id).is_none());
        let beside = store.read_with_announced();
        assert!(beside.host(id).is_some_and(|it| it.name == "h5" && !it.is_proved), "{beside:?}");
        assert_eq!(beside.all().count(), table.all().count());
        // A daemon that does not run waits for nobody.
        let old = std::time::SystemTime::now() - HELLO_KEPT;
        File::options().write(true).open(dir.path().join(HELLO)).unwrap().set_modified(old).unwrap();
        assert!(store.read_with_announced().host(id).is_none());
        table.heard_proved(&hello(5, "h5"), IpAddr::from([10, 0, 0, 5]), 4000, true);
        store.write_announced(&table).unwrap();
        assert!(!dir.path().join(HELLO).exists());
    }

    #[test]
    fn hosts_to_forget_are_taken_once() {
        let (_dir, store) = store();
        assert!(store.take_forgotten().unwrap().is_empty());
        store.request_forget("h2").unwrap();
        store.request_forget("10.0.0.9").unwrap();
        assert_eq!(store.take_forgotten().unwrap(), ["h2", "10.0.0.9"]);
        assert!(store.take_forgotten().unwrap().is_empty());
    }
}
