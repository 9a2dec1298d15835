// SPDX-License-Identifier: GPL-2.0-or-later
//! The journal: events and their fields in journald's native protocol, one datagram each.
//!
//! Owns the socket to journald. One thread sends, as soon as the daemon is confined. Only that thread waits
//! for a journald that hangs or restarts; entries without room meanwhile are counted, and the number is
//! logged later. Must never block a caller.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer};

use crate::util::locks::lock;
use crate::util::outlet::{Outlet, Sink};

/// Socket of journald.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Time limit of one try to send.
const TRY: Duration = Duration::from_secs(1);
/// Pause between two tries to find a missing socket.
const RETRY: Duration = Duration::from_millis(100);

/// journald reads a file in memory with all of these only.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE)
    .union(SealFlag::F_SEAL_SEAL);

/// Layer that turns events into entries; clones share one journal.
#[derive(Clone)]
pub(super) struct Journal {
    socket: Arc<JournalSocket>,
    /// Entries from before the thread started.
    early: Arc<Mutex<Vec<JournalEntry>>>,
    outlet: Arc<OnceLock<Outlet<JournalEntry>>>,
}

impl Journal {
    /// Opens the journal. An error where nobody listens.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let socket = JournalSocket { socket: UnixDatagram::unbound()?, path: path.to_owned() };
        socket.socket.set_write_timeout(Some(TRY))?;
        match socket.send(&[]) {
            // The journald hangs, but it is there.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => other?,
        }
        Ok(Self { socket: Arc::new(socket), early: Arc::default(), outlet: Arc::default() })
    }

    /// Starts the thread that sends, with room for `queue` entries. Before that, nothing is sent.
    pub(super) fn in_background(&self, queue: usize) -> io::Result<()> {
        let outlet = Outlet::start("log", queue, JournalSender(Arc::clone(&self.socket)))?;
        for entry in lock(&self.early).drain(..) {
            let _ = outlet.push(entry);
        }
        let first = self.outlet.set(outlet).is_ok();
        debug_assert!(first, "twice in the background");
        Ok(())
    }

    /// Waits until everything is sent, but no longer than `limit`.
    pub(super) fn finish(&self, limit: Duration) {
        if let Some(outlet) = self.outlet.get() {
            outlet.finish(limit);
            return;
        }
        // The daemon ends before it was confined.
        for JournalEntry(bytes) in lock(&self.early).drain(..) {
            if self.socket.send(&bytes).is_err() {
                return;
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let entry = JournalEntry::of(event);
        match self.outlet.get() {
            // The thread tells how many were lost.
            Some(outlet) => {
                let _ = outlet.push(entry);
            }
            None => lock(&self.early).push(entry),
        }
    }
}

/// The bytes of one entry: fields, each `NAME\n`, the length of the value in 8 bytes, the value, `\n`. There
/// is a shorter form for values without line breaks; this one is right for all.
#[derive(Debug)]
struct JournalEntry(Vec<u8>);

impl JournalEntry {
    fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut entry = Self::new(*metadata.level(), metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            entry.put("CODE_FILE", file);
            entry.put("CODE_LINE", line);
        }
        event.record(&mut entry);
        entry
    }

    /// About the journal itself.
    fn ours(message: fmt::Arguments<'_>) -> Self {
        let mut entry = Self::new(Level::WARN, module_path!());
        entry.put("MESSAGE", message);
        entry
    }

    fn new(level: Level, target: &str) -> Self {
        let mut entry = Self(Vec::with_capacity(1024));
        // The numbers of syslog. Debugging has two levels there: "informational" is the upper one.
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 5,
            Level::DEBUG => 6,
            Level::TRACE => 7,
        };
        entry.put("PRIORITY", priority);
        entry.put("TARGET", target);
        entry.put("SYSLOG_IDENTIFIER", "fence_virtd");
        // The journal's own time is that of its arrival there.
        let mut time = String::new();
        if SystemTime.format_time(&mut Writer::new(&mut time)).is_ok() {
            entry.put("SYSLOG_TIMESTAMP", time);
        }
        entry
    }

    fn put(&mut self, name: &str, value: impl fmt::Display) {
        let bytes = &mut self.0;
        bytes.extend(name.bytes());
        bytes.extend([b'\n'; 9]);
        let start = bytes.len();
        let _ = write!(bytes, "{value}");
        let length = (bytes.len() - start) as u64;
        bytes[start - 8..start].copy_from_slice(&length.to_le_bytes());
        bytes.push(b'\n');
    }
}

/// Fields of the event have a prefix, so that none is taken for one of the journal's; the message is one of
/// those.
impl Visit for JournalEntry {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format_args!("{value:?}");
        match field.name() {
            "message" => self.put("MESSAGE", value),
            name => self.put(&format!("F_{}", name.to_ascii_uppercase().replace('.', "_")), value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

struct JournalSocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl JournalSocket {
    /// Looks the journal up each time: it may be another one than before.
    fn send(&self, entry: &[u8]) -> io::Result<()> {
        match self.socket.send_to(entry, &self.path) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => self.send_as_file(entry),
            other => other.map(drop),
        }
    }

    /// Sends an entry that is too long for a datagram as a sealed file in memory.
    fn send_as_file(&self, entry: &[u8]) -> io::Result<()> {
        let file = memfd_create(c"fence_virtd", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC)?;
        let mut file = File::from(file);
        file.write_all(entry)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
        let (files, to) = ([file.as_raw_fd()], UnixAddr::new(&self.path)?);
        let control = [ControlMessage::ScmRights(&files)];
        sendmsg(self.socket.as_raw_fd(), &[], &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }
}

/// The thread's side.
struct JournalSender(Arc<JournalSocket>);

impl Sink<JournalEntry> for JournalSender {
    fn write(&mut self, JournalEntry(bytes): JournalEntry) {
        loop {
            let Err(error) = self.0.send(&bytes) else { return };
            match error.kind() {
                // It hangs.
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                // It is being started anew.
                io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset => {
                    thread::sleep(RETRY);
                }
                _ => {
                    let length = bytes.len();
                    let said =
                        JournalEntry::ours(format_args!("an entry of {length} bytes can't be sent: {error}"));
                    let _ = self.0.send(&said.0);
                    return;
                }
            }
        }
    }

    fn caught_up(&mut self, lost: u64) {
        self.write(JournalEntry::ours(format_args!(
            "the journal took nothing for a while: {lost} entries are lost"
        )));
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::fd::RawFd;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::daemon::log::QUEUE;

    /// Far longer than anything here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// A journald that reads when it is told to.
    struct Reader(UnixDatagram);

    impl Reader {
        fn at(path: &Path) -> Self {
            let socket = UnixDatagram::bind(path).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            Self(socket)
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; 1 << 20];
            let length = self.0.recv(&mut bytes).unwrap();
            bytes.truncate(length);
            bytes
        }

        fn fields(&self) -> Vec<(String, String)> {
            fields(&self.bytes())
        }

        fn message(&self) -> String {
            message(&self.fields())
        }
    }

    fn fields(mut bytes: &[u8]) -> Vec<(String, String)> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let (name, rest) = bytes.split_at(bytes.iter().position(|it| *it == b'\n').unwrap());
            let (length, rest) = rest[1..].split_first_chunk().unwrap();
            let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
            let text = |it: &[u8]| String::from_utf8(it.to_vec()).unwrap();
            out.push((text(name), text(value)));
            bytes = rest.strip_prefix(b"\n").unwrap();
        }
        out
    }

    fn message(fields: &[(String, String)]) -> String {
        fields.iter().find(|it| it.0 == "MESSAGE").unwrap().1.clone()
    }

    struct Scene {
        directory: tempfile::TempDir,
        reader: Reader,
        journal: Journal,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let reader = Reader::at(&directory.path().join("socket"));
            let journal = Journal::at(&directory.path().join("socket")).unwrap();
            assert_eq!(reader.bytes(), b"");
            Self { directory, reader, journal }
        }

        fn logs<T>(&self, what: impl FnOnce() -> T) -> T {
            let subscriber = tracing_subscriber::registry().with(self.journal.clone());
            tracing::subscriber::with_default(subscriber, what)
        }
    }

    #[test]
    fn an_event_is_sent_field_by_field() {
        let scene = Scene::new();
        let (peer, none) = ("10.0.0.1", None::<u8>);
        let line = line!() + 2;
        let warning = || {
            tracing::warn!(target: "audit", id = 7, %peer, r#type = ?none, a.b = true, "off \"vm1\":\n{}", 1);
        };
        scene.logs(warning);
        scene.journal.finish(PATIENCE);
        let bytes = scene.reader.bytes();
        assert!(
            bytes.starts_with(b"PRIORITY\n\x01\0\0\0\0\0\0\x004\nTARGET\n\x05\0\0\0\0\0\0\0audit\n"),
            "{bytes:?}"
        );
        let mut fields = fields(&bytes);
        let time = fields.iter().position(|it| it.0 == "SYSLOG_TIMESTAMP").unwrap();
        assert!(fields.remove(time).1.ends_with('Z'));
        let expected = [
            ("PRIORITY", "4"),
            ("TARGET", "audit"),
            ("SYSLOG_IDENTIFIER", "fence_virtd"),
            ("CODE_FILE", file!()),
            ("CODE_LINE", &line.to_string()),
            ("MESSAGE", "off \"vm1\":\n1"),
            ("F_ID", "7"),
            ("F_PEER", "10.0.0.1"),
            ("F_TYPE", "None"),
            ("F_A_B", "true"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn each_level_has_its_priority() {
        let scene = Scene::new();
        let priority = || scene.reader.fields()[0].1.clone();
        scene.logs(|| {
            tracing::error!("x");
            tracing::info!("x");
            tracing::debug!("x");
        });
        scene.journal.in_background(QUEUE).unwrap();
        scene.logs(|| tracing::trace!("x"));
        assert_eq!([priority(), priority(), priority(), priority()], ["3", "5", "6", "7"]);
    }

    #[test]
    fn what_is_too_long_for_a_datagram_is_sent_as_a_sealed_file() {
        let scene = Scene::new();
        scene.journal.in_background(QUEUE).unwrap();
        let long = "long ".repeat(1 << 20);
        scene.logs(|| tracing::info!("{long}"));
        let mut space = nix::cmsg_space!(RawFd);
        let mut nothing = [0; 16];
        let mut parts = [IoSliceMut::new(&mut nothing)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received =
            recvmsg::<UnixAddr>(scene.reader.0.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
        assert_eq!(received.bytes, 0);
        let Some(ControlMessageOwned::ScmRights(files)) = received.cmsgs().unwrap().next() else {
            panic!("no file")
        };
        let path = format!("/proc/self/fd/{}", files[0]);
        let seals = fcntl(File::open(&path).unwrap(), FcntlArg::F_GET_SEALS).unwrap();
        assert_eq!(SealFlag::from_bits_retain(seals), SEALS);
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(message(&fields(&bytes)), long);
    }

    #[test]
    fn a_journal_that_is_started_anew_gets_all_of_it() {
        let mut scene = Scene::new();
        scene.journal.in_background(QUEUE).unwrap();
        scene.logs(|| tracing::info!("before"));
        assert_eq!(scene.reader.message(), "before");
        let path = scene.directory.path().join("socket");
        // Nobody listens; then there is no socket.
        scene.reader = Reader(UnixDatagram::unbound().unwrap());
        scene.logs(|| tracing::info!("1"));
        std::fs::remove_file(&path).unwrap();
        scene.logs(|| tracing::info!("2"));
        assert!(!scene.journal.outlet.get().unwrap().finish(2 * RETRY));
        scene.reader = Reader::at(&path);
        assert_eq!([scene.reader.message(), scene.reader.message()], ["1", "2"]);
    }

    #[test]
    fn a_journal_that_hangs_is_not_waited_for() {
        let scene = Scene::new();
        scene.journal.in_background(QUEUE).unwrap();
        // More than socket and queue hold: were any of them waited for, this would never end.
        let all = 3 * QUEUE;
        scene.logs(|| (0..all).for_each(|it| tracing::info!("{it}")));
        let outlet = scene.journal.outlet.get().unwrap();
        let lost = usize::try_from(outlet.lost()).unwrap();
        assert!(lost > 0);
        scene.journal.finish(Duration::from_millis(1));
        // Whoever reads at last gets what was kept, in order.
        let kept: Vec<usize> = (0..all - lost).map(|_| scene.reader.message().parse().unwrap()).collect();
        assert!(kept.is_sorted_by(|a, b| a < b), "{kept:?}");
        assert!(scene.reader.message().ends_with(&format!(": {lost} entries are lost")));
        scene.logs(|| tracing::info!("on it goes"));
        assert_eq!(scene.reader.message(), "on it goes");
    }

    #[test]
    fn a_journal_that_hangs_is_there_and_one_that_nobody_reads_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(Journal::at(&path).is_err());
        let reader = Reader::at(&path);
        // One sender alone comes to its own limit first.
        loop {
            let sender = UnixDatagram::unbound().unwrap();
            sender.set_nonblocking(true).unwrap();
            if sender.send_to(b"x", &path).is_err() {
                break;
            }
            while sender.send_to(b"x", &path).is_ok() {}
        }
        assert!(Journal::at(&path).is_ok());
        drop(reader);
        assert!(Journal::at(&path).is_err());
    }
}
