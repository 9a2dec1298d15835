// SPDX-License-Identifier: GPL-2.0-or-later
//! The files of intents: `intents`, and `owed-N.xml` for the start of a transient domain.
//!
//! Owns the files, the lock on the first, and the thread that writes. Files have mode 0600. XML may hold
//! passwords: its file is removed as soon as the intent has ended, and at the start when nobody owes it.
//!
//! Room for lines to come is kept on the disk behind the end of the file, and for one XML in `owed-spare`, so
//! that a disk which fills up later does not end this memory. A disk that is full all the same takes no new
//! line, so the file may say of a start that it is owed when it was made, or when somebody has asked for off
//! since. Then the last line is damaged in its place, which needs no room: no start is believed that was owed
//! before a damaged line.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use fence_core::intent::{
    IntentEvent, IntentFile, IntentRemainder, IntentTable, StartOwed, UnfinishedIntent,
};
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, fallocate};
use zeroize::Zeroizing;

/// Time to open and read the files at the start.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of the file from which it is emptied when no intent is open.
const EMPTY_FROM: u64 = 64 * 1024;
/// Bytes of the file above which nothing more is written.
const LONGEST: u64 = 4 * 1024 * 1024;
/// Bytes for which room is kept behind the end of the file, at least half of them at any time.
const KEPT_ROOM: u64 = 2 * EMPTY_FROM;
const NAME: &str = "intents";
/// File that becomes that of an XML: there is room for it on the disk.
const SPARE: &str = "owed-spare";
/// Bytes of that room.
const XML_ROOM: i64 = 64 * 1024;
/// Byte that no line has before its end.
const DAMAGE: &[u8] = b"!";
/// Orders that may wait for the disk.
const QUEUE: usize = 1024;

/// Intent that an earlier daemon left, with the XML of the start that it owes.
#[derive(Debug)]
pub(crate) struct LeftIntent {
    pub(crate) unfinished: UnfinishedIntent,
    pub(crate) xml: Option<Zeroizing<String>>,
}

/// Contents of the file that an earlier daemon left.
#[derive(Debug, Default)]
pub(crate) struct LeftIntents {
    /// Intents that are not over.
    pub(crate) intents: Vec<LeftIntent>,
    /// Lines that are damaged.
    pub(crate) damaged: usize,
    /// A damaged line may have told of an order to a device that can still take effect.
    pub(crate) hides_order: bool,
}

/// Order to the thread: an event, with the XML that it needs. Without an event there is nothing to write.
pub(super) struct StoreOrder {
    pub(super) event: Option<IntentEvent>,
    pub(super) xml: Option<Zeroizing<String>>,
    /// Told when the order is carried out, and whether it could be.
    pub(super) tell: Box<dyn FnOnce(bool) + Send>,
}

/// Files that were opened.
pub(super) struct OpenedIntents {
    pub(super) orders: SyncSender<StoreOrder>,
    pub(super) left: LeftIntents,
    pub(super) next: u64,
}

/// The thread's side.
struct IntentWriter {
    directory: PathBuf,
    file: Flock<File>,
    /// The same file, to write in the middle of it.
    within: File,
    /// Bytes of the file above which nothing more is written.
    longest: u64,
    /// Bytes of the file for which there is room on the disk, whoever fills it; 0 where that is not known.
    kept: u64,
    /// Intents that are not over.
    open: IntentTable,
    /// Intents with a file of XML.
    with_xml: BTreeSet<u64>,
    /// The file has damaged lines, which were told. It is emptied when nothing in it is open.
    has_damage: bool,
    /// One of them may have told of an order that can still take effect.
    hides_order: bool,
}

/// Opens the files on a thread of its own, since a disk that hangs must not delay the daemon.
pub(super) fn open_in_time(directory: PathBuf) -> io::Result<OpenedIntents> {
    let (tell, told) = sync_channel(1);
    thread::Builder::new()
        .name("intents-open".to_owned())
        .spawn(move || drop(tell.send(IntentWriter::open(directory))))?;
    let late = || io::Error::other(format!("the disk did not answer within {} s", OPEN_LIMIT.as_secs()));
    let (writer, file) = told.recv_timeout(OPEN_LIMIT).map_err(|_| late())??;
    let IntentFile { damaged, hides_order, next, .. } = file;
    let intents = file.unfinished.into_iter().map(|unfinished| {
        let owes_xml =
            matches!(unfinished.remainder, IntentRemainder::Open { start: Some(StartOwed::Xml { .. }) });
        let number = unfinished.intent.number;
        let xml = owes_xml.then(|| read_xml(&xml_path(&writer.directory, number)).ok()).flatten();
        LeftIntent { unfinished, xml }
    });
    let left = LeftIntents { intents: intents.collect(), damaged, hides_order };
    let (orders, waiting) = sync_channel(QUEUE);
    thread::Builder::new().name("intents".to_owned()).spawn(move || writer.run(&waiting))?;
    Ok(OpenedIntents { orders, left, next })
}

impl IntentWriter {
    fn open(directory: PathBuf) -> io::Result<(Self, IntentFile)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        if fs::metadata(&directory)?.mode() & 0o022 != 0 {
            return Err(io::Error::other("others than its owner can write the directory; chmod go-w helps"));
        }
        let path = directory.join(NAME);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = Flock::lock(options.open(&path)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| io::Error::other(format!("another fence_virtd uses it ({errno})")))?;
        let mut bytes = Vec::new();
        (&*file).take(2 * LONGEST).read_to_end(&mut bytes)?;
        let contents = IntentFile::read(&bytes);
        if bytes.last().is_some_and(|it| *it != b'\n') {
            // What is written next must begin a line.
            (&*file).write_all(b"\n")?;
        }
        let owed = contents.unfinished.iter().filter(|it| {
            matches!(it.remainder, IntentRemainder::Open { start: Some(StartOwed::Xml { .. }) })
        });
        let with_xml: BTreeSet<u64> = owed.map(|it| it.intent.number).collect();
        let open = contents.table();
        let (has_damage, hides_order) = (contents.damaged > 0, contents.hides_order);
        let within =
            OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)?;
        let (longest, kept) = (LONGEST, 0);
        let mut writer =
            Self { directory, file, within, longest, kept, open, with_xml, has_damage, hides_order };
        if writer.is_over(0) {
            writer.empty()?;
        }
        writer.keep_room(writer.file.metadata()?.len());
        writer.remove_stale_xml()?;
        writer.keep_spare();
        Ok((writer, contents))
    }

    /// Removes the XML files that nobody owes.
    fn remove_stale_xml(&self) -> io::Result<()> {
        let wanted: BTreeSet<PathBuf> =
            self.with_xml.iter().map(|it| xml_path(&self.directory, *it)).collect();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
            if name.starts_with("owed-") && name.ends_with(".xml") && !wanted.contains(&path) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn run(mut self, waiting: &Receiver<StoreOrder>) {
        while let Ok(StoreOrder { event, xml, tell }) = waiting.recv() {
            let written = event.map_or(Ok(()), |it| self.write(&it, xml.as_deref().map(String::as_str)));
            tell(written.is_ok());
        }
    }

    fn write(&mut self, event: &IntentEvent, xml: Option<&str>) -> io::Result<()> {
        if let (IntentEvent::Owes { number, .. }, Some(xml)) = (event, xml) {
            self.write_xml(&xml_path(&self.directory, *number), xml)?;
            self.with_xml.insert(*number);
        }
        self.open.apply(event);
        self.hides_order &= !matches!(event, IntentEvent::Cleared {});
        let length = self.file.metadata()?.len();
        if self.is_over(length) {
            // The event was the last one, and says that nothing is left to do nor to wait for.
            return self.empty();
        }
        if let Err(error) = self.append(event, length) {
            self.disown(event)?;
            return Err(error);
        }
        // The end of an intent need not survive a crash of the host: no start is owed after one.
        // The same holds for the end of an order: without it the next daemon waits longer.
        if matches!(event, IntentEvent::Begun(_) | IntentEvent::Owes { .. } | IntentEvent::Ordered { .. }) {
            self.file.sync_data()?;
        }
        if let IntentEvent::Ended { number, .. } = event
            && self.with_xml.remove(number)
        {
            fs::remove_file(xml_path(&self.directory, *number))?;
            self.keep_spare();
        }
        Ok(())
    }

    fn write_xml(&self, path: &Path, xml: &str) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A disk that is full has no room for another file.
        let is_spare = fs::rename(self.directory.join(SPARE), path).is_ok();
        let mut options = OpenOptions::new();
        options.write(true).create_new(!is_spare).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        let mut file = options.open(path)?;
        file.write_all(xml.as_bytes())?;
        file.set_len(xml.len() as u64)?;
        file.sync_all()?;
        self.keep_spare();
        Ok(())
    }

    /// Keeps room for one XML. Where there is none, one that then finds no room is told.
    fn keep_spare(&self) {
        let path = self.directory.join(SPARE);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        let Ok(file) = options.open(&path) else { return };
        if fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, XML_ROOM).is_err() {
            let _ = fs::remove_file(path);
        }
    }

    /// Returns whether a file of this length can be emptied: nothing in it is left to do nor to wait for, and
    /// it is long, or its damage would be told again at each start.
    fn is_over(&self, length: u64) -> bool {
        let is_due = length >= EMPTY_FROM || (self.has_damage && !self.hides_order);
        self.open.is_empty() && is_due
    }

    fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.has_damage, self.hides_order) = (false, false);
        // The kernel gives back what is kept behind a file that is cut.
        self.kept = 0;
        self.keep_room(0);
        Ok(())
    }

    /// Keeps room for lines to come. Where the file system has no such call, or no room, the daemon goes on
    /// without it: a line that then finds no room is told.
    fn keep_room(&mut self, length: u64) {
        if length + EMPTY_FROM <= self.kept {
            return;
        }
        let wanted = length + KEPT_ROOM;
        let bytes = wanted.try_into().unwrap_or(i64::MAX);
        if fallocate(&*self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes).is_ok() {
            self.kept = wanted;
        }
    }

    fn append(&mut self, event: &IntentEvent, length: u64) -> io::Result<()> {
        if length >= self.longest {
            return Err(io::Error::other("the file of intents is full"));
        }
        let line = event.line();
        (&*self.file).write_all(line.as_bytes()).or_else(|error| {
            // Half a line would damage the next one.
            self.file.set_len(length)?;
            self.kept = 0;
            Err(error)
        })?;
        self.keep_room(length + line.len() as u64);
        Ok(())
    }

    /// Makes the file owe no start, after an event that it could not take: it may have been the end of one
    /// that is owed, or a later request for its domain.
    fn disown(&mut self, event: &IntentEvent) -> io::Result<()> {
        match event {
            // Without these the next daemon waits for longer, and that is all.
            IntentEvent::Expires { .. } | IntentEvent::Settled { .. } | IntentEvent::Cleared {} => {
                return Ok(());
            }
            IntentEvent::Begun(_)
            | IntentEvent::Owes { .. }
            | IntentEvent::Ended { .. }
            | IntentEvent::Audited { .. }
            | IntentEvent::Ordered { .. } => {}
        }
        if self.open.is_empty() {
            return self.empty();
        }
        // The end of the last line stays: what is written next begins a line.
        let Some(last) = self.file.metadata()?.len().checked_sub(2) else { return Ok(()) };
        self.within.write_all_at(DAMAGE, last)?;
        self.within.sync_data()
    }
}

fn xml_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("owed-{number}.xml"))
}

fn read_xml(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)?;
    let mut text = Zeroizing::new(String::new());
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
