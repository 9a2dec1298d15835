// SPDX-License-Identifier: GPL-2.0-or-later
//! What is known from one run to the next: which ports and lines an agent uses, or left without an answer.
//!
//! Answers on a call-back port or on a serial line don't say which request they belong to. So each such place has a
//! file: locked while an agent uses the place, and "busy" with a moment in it from before the first byte is sent until
//! the answer is there. A place that is busy and not locked was abandoned (time-out, SIGKILL), and stays so for
//! [`QUARANTINE`] after that request's deadline.
//!
//! The directory belongs to the user that runs the agent and nobody else can write it; links are not followed.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::geteuid;

/// How long an abandoned place is not trusted after the deadline of the request that it belonged to.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(300);

/// The directory of the records.
#[derive(Debug)]
pub(crate) struct Records {
    directory: File,
}

/// The record of one place, which no other agent uses as long as this lives.
#[derive(Debug)]
pub(crate) struct Record {
    file: File,
    abandoned: bool,
}

impl Records {
    /// The directory in /run, or one of the user's own in /tmp where /run cannot be written.
    ///
    /// # Errors
    /// Why the last of them cannot be used.
    pub(crate) fn open() -> io::Result<Self> {
        let own = format!("/tmp/fence_virt-{}", geteuid());
        Self::at(Path::new("/run/fence_virt")).or_else(|_| Self::at(Path::new(&own)))
    }

    /// This directory, made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made or written, or when somebody else has a hand in it.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        match mkdirat(nix::fcntl::AT_FDCWD, path, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = File::from(open(path, flags, Mode::empty())?);
        require_own(&directory, path)?;
        nix::unistd::faccessat(
            &directory,
            ".",
            nix::unistd::AccessFlags::W_OK,
            nix::fcntl::AtFlags::AT_EACCESS,
        )?;
        Ok(Self { directory })
    }

    /// The record of this place; none while another agent uses it.
    ///
    /// # Errors
    /// When it cannot be made, locked or read, or when somebody else has a hand in it.
    pub(crate) fn lock(&self, place: &str) -> io::Result<Option<Record>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let name = format!("{place}.lock");
        let mut file =
            File::from(openat(self.directory.as_fd(), name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        require_own(&file, Path::new(&name))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut text = Vec::new();
        (&file).take(RECORD_MAX).read_to_end(&mut text)?;
        let now = now()?;
        let abandoned = match Entry::parse(&text) {
            Some(Entry::Free) => false,
            // A busy record of an earlier boot, which only /tmp can hold, is over.
            Some(Entry::Busy { boot, until }) => {
                boot == boot_id() && now < until.saturating_add(QUARANTINE.as_secs())
            }
            None => {
                // Nobody knows what it was: as if it had been abandoned just now.
                write(&mut file, &Entry::Busy { boot: boot_id(), until: now })?;
                true
            }
        };
        Ok(Some(Record { file, abandoned }))
    }
}

impl Record {
    /// Whether a request was left without an answer here, and its answer may still come.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// A request is about to be sent, and its answer is awaited for `lifetime`.
    ///
    /// # Errors
    /// When that cannot be written: then nothing must be sent.
    pub(crate) fn begin(&mut self, lifetime: Duration) -> io::Result<()> {
        let until = now()?.saturating_add(lifetime.as_secs() + 1);
        write(&mut self.file, &Entry::Busy { boot: boot_id(), until })
    }

    /// The request has its answer, or was never sent, and the place was clean before.
    pub(crate) fn end(mut self) {
        // Kept a few minutes too long is all that can come of an error here.
        let _ = write(&mut self.file, &Entry::Free);
    }
}

/// What a place's file says. An empty file is free: nothing is sent before "busy" is written.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Entry {
    Free,
    /// In use, or abandoned, since the boot of this id and until this second of the boot's clock.
    Busy {
        boot: String,
        until: u64,
    },
}

/// Bytes of a record; all have this length, so that one is written over the other in place.
const RECORD_LEN: usize = 80;
const RECORD_MAX: u64 = 256;

impl Entry {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            [] | ["free"] => Some(Self::Free),
            ["busy", boot, until] => Some(Self::Busy { boot: boot.to_owned(), until: until.parse().ok()? }),
            _ => None,
        }
    }

    fn text(&self) -> String {
        let text = match self {
            Self::Free => "free".to_owned(),
            Self::Busy { boot, until } => format!("busy {boot} {until}"),
        };
        format!("{text:<width$}\n", width = RECORD_LEN - 1)
    }
}

fn write(file: &mut File, entry: &Entry) -> io::Result<()> {
    file.rewind()?;
    file.write_all(entry.text().as_bytes())
}

/// The text of a record that was busy until then, for tests.
#[cfg(test)]
pub(crate) fn busy(boot: &str, until: u64) -> String {
    Entry::Busy { boot: boot.to_owned(), until }.text()
}

/// Seconds since boot, suspended time included.
pub(crate) fn now() -> io::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(u64::try_from(time.tv_sec()).unwrap_or(0))
}

pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = id.trim();
    if id.is_empty() { "unknown".to_owned() } else { id.to_owned() }
}

fn require_own(file: &File, path: &Path) -> io::Result<()> {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    let metadata = file.metadata()?;
    let kind = metadata.is_dir() || metadata.is_file();
    if kind && metadata.uid() == geteuid().as_raw() && metadata.mode() & OTHERS_MAY_WRITE == 0 {
        return Ok(());
    }
    let text = format!("{} is not this user's own", path.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}
