// SPDX-License-Identifier: GPL-2.0-or-later
//! Records of the lines that agents use, or left without an answer. They outlive a run.
//!
//! An answer on a serial line does not name its request. So each line has a file. The file is locked while
//! an agent uses the line. It says "busy", with an instant, from before the first byte is sent until the
//! answer is there. A record that is busy and not locked was abandoned (time-out, SIGKILL). It stays
//! abandoned for [`QUARANTINE`] after the deadline of that request. Ports have files beside these, see
//! `ports`.
//!
//! Owns the directory of the records. Runs on the agent's only thread. Must never use a directory or file
//! that another user can write, nor follow a link.

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

/// Time after the deadline of an abandoned request in which its port or line is not trusted.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(300);

/// Directory of the records.
#[derive(Debug)]
pub(crate) struct UseRecords {
    directory: File,
}

/// Locked record of one port or line, which no other agent uses meanwhile.
#[derive(Debug)]
pub(crate) struct UseRecord {
    file: File,
    abandoned: bool,
}

impl UseRecords {
    /// Opens the directory in /run, or the user's own in /tmp where /run cannot be written.
    ///
    /// # Errors
    /// The reason why the directory in /tmp cannot be used either.
    pub(crate) fn open() -> io::Result<Self> {
        let own = format!("/tmp/fence_virt-{}", geteuid());
        Self::at(Path::new("/run/fence_virt")).or_else(|_| Self::at(Path::new(&own)))
    }

    /// Opens this directory, and makes it when it is missing.
    ///
    /// # Errors
    /// When it cannot be made or written, or when another user can write it.
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

    /// Opens the file of the record with this name, and makes it when it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or when another user can write it.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let name = format!("{name}.lock");
        let file =
            File::from(openat(self.directory.as_fd(), name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        require_own(&file, Path::new(&name))?;
        Ok(file)
    }

    /// Locks the record of this name; none while another agent holds it.
    ///
    /// # Errors
    /// When it cannot be made, locked or read, or when another user can write it.
    pub(crate) fn lock(&self, name: &str) -> io::Result<Option<UseRecord>> {
        let mut file = self.file(name)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut text = Vec::new();
        (&file).take(RECORD_MAX).read_to_end(&mut text)?;
        let now = boot_seconds()?;
        let abandoned = match RecordState::parse(&text) {
            Some(RecordState::Free) => false,
            // A busy record of an earlier boot does not count. Only /tmp can hold one.
            Some(RecordState::Busy { boot, until }) => {
                boot == read_boot_id() && now < until.saturating_add(QUARANTINE.as_secs())
            }
            None => {
                // The text has no meaning: the record counts as abandoned just now.
                write_state(&mut file, &RecordState::Busy { boot: read_boot_id(), until: now })?;
                true
            }
        };
        Ok(Some(UseRecord { file, abandoned }))
    }
}

impl UseRecord {
    /// Returns whether a request was left without an answer, and its answer may still come.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Records that a request is about to be sent, whose answer is awaited for `lifetime`.
    ///
    /// # Errors
    /// When the record cannot be written: then nothing must be sent.
    pub(crate) fn mark_busy(&mut self, lifetime: Duration) -> io::Result<()> {
        let until = boot_seconds()?.saturating_add(lifetime.as_secs() + 1);
        write_state(&mut self.file, &RecordState::Busy { boot: read_boot_id(), until })
    }

    /// Records that the request was answered or never sent, on a port or line that was clean before.
    pub(crate) fn mark_free(mut self) {
        // After an error the port or line is not used for a few minutes, no more.
        let _ = write_state(&mut self.file, &RecordState::Free);
    }
}

/// Content of a record. An empty file is free: nothing is sent before "busy" is written.
#[derive(Clone, PartialEq, Eq, Debug)]
enum RecordState {
    /// No request is on its way.
    Free,
    /// A request is on its way, or was abandoned, in the boot of this id, until this second of the boot's
    /// clock.
    Busy { boot: String, until: u64 },
}

/// Length of every record in bytes, so that one is written over the other in place.
const RECORD_LEN: usize = 80;
/// Largest number of bytes that are read of a record.
const RECORD_MAX: u64 = 256;

impl RecordState {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            [] | ["free"] => Some(Self::Free),
            ["busy", boot, until] => Some(Self::Busy { boot: boot.to_owned(), until: until.parse().ok()? }),
            _ => None,
        }
    }

    fn to_text(&self) -> String {
        let text = match self {
            Self::Free => "free".to_owned(),
            Self::Busy { boot, until } => format!("busy {boot} {until}"),
        };
        format!("{text:<width$}\n", width = RECORD_LEN - 1)
    }
}

fn write_state(file: &mut File, state: &RecordState) -> io::Result<()> {
    file.rewind()?;
    file.write_all(state.to_text().as_bytes())
}

/// Returns the seconds since boot, suspended time included.
pub(crate) fn boot_seconds() -> io::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(u64::try_from(time.tv_sec()).unwrap_or(0))
}

/// Returns the id of this boot.
pub(crate) fn read_boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = id.trim();
    if id.is_empty() { "unknown".to_owned() } else { id.to_owned() }
}

/// Checks that the file belongs to this user, and that no other user can write it.
fn require_own(file: &File, path: &Path) -> io::Result<()> {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    let metadata = file.metadata()?;
    let is_plain = metadata.is_dir() || metadata.is_file();
    if is_plain && metadata.uid() == geteuid().as_raw() && metadata.mode() & OTHERS_MAY_WRITE == 0 {
        return Ok(());
    }
    let text = format!("{} is not this user's own", path.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}
