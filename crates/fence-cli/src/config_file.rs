// SPDX-License-Identifier: GPL-2.0-or-later
//! Reading of the configuration file: a regular file, up to a greatest length, and what is odd about its
//! owner and mode. Runs on the caller's thread, and waits for no pipe or device.

use std::fmt;
use std::fs::{FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{Uid, User, geteuid};

use crate::path::shown;

/// Content of a configuration file, with a remark about its owner or mode where there is one.
#[derive(Debug)]
pub struct ConfigText {
    /// Content of the file.
    pub source: Vec<u8>,
    /// Remark that others can change the file.
    pub doubt: Option<FileDoubt>,
}

/// Remark that others than the administrator can change the file. It is used all the same.
#[derive(Debug)]
pub struct FileDoubt {
    path: PathBuf,
    kind: DoubtKind,
}

#[derive(Debug)]
enum DoubtKind {
    /// Every user can write the file, which has this mode.
    Everybody(u32),
    /// The file belongs to the user of this name.
    Owner(String),
}

impl FileDoubt {
    /// Returns true if every user of this machine can write the file.
    #[must_use]
    pub fn is_of_everybody(&self) -> bool {
        matches!(self.kind, DoubtKind::Everybody(_))
    }

    /// Returns the command that mends it.
    #[must_use]
    pub fn remedy(&self) -> String {
        let path = shown(&self.path);
        match self.kind {
            DoubtKind::Everybody(_) => format!("look whether it was changed; then: chmod o-w {path}"),
            DoubtKind::Owner(_) => format!("chown root {path}"),
        }
    }

    fn of(path: &Path, file: &Metadata, this_user: Uid) -> Option<Self> {
        let kind = match file.mode() & 0o7777 {
            mode if mode & 0o002 != 0 => DoubtKind::Everybody(mode),
            _ => DoubtKind::Owner(stranger(file.uid(), this_user)?),
        };
        Some(Self { path: path.to_owned(), kind })
    }
}

impl fmt::Display for FileDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DoubtKind::Everybody(mode) => write!(
                f,
                "every user of this machine can write it (mode {mode:04o}), and so decide who may fence what"
            ),
            DoubtKind::Owner(name) => {
                write!(f, "it belongs to the user {name}, who can so decide who may fence what")
            }
        }
    }
}

/// Returns the name of the owner of a file who is neither root nor this user.
#[must_use]
pub fn stranger(owner: u32, this_user: Uid) -> Option<String> {
    if owner == 0 || owner == this_user.as_raw() {
        return None;
    }
    let user = User::from_uid(Uid::from_raw(owner)).ok().flatten();
    Some(user.map_or_else(|| owner.to_string(), |it| it.name))
}

/// Reads a configuration file: of one that has more than `most` bytes one more than these.
///
/// # Errors
/// The file can't be read, or is no regular file. The text of the error says so.
pub fn read(path: &Path, most: usize) -> io::Result<ConfigText> {
    regular(&std::fs::metadata(path)?)?;
    // Meanwhile it may be another file. Without O_NONBLOCK, opening a FIFO waits for a writer.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    regular(&metadata)?;
    let mut source = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut source)?;
    Ok(ConfigText { source, doubt: FileDoubt::of(path, &metadata, geteuid()) })
}

fn regular(file: &Metadata) -> io::Result<()> {
    match kind_of(file.file_type()) {
        None => Ok(()),
        Some(kind) => {
            let text = format!("it is {kind}; only a regular file is read");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

/// Returns what a file is that is no regular one, in words.
#[must_use]
pub fn kind_of(file: FileType) -> Option<&'static str> {
    Some(match file {
        it if it.is_file() => return None,
        it if it.is_dir() => "a directory",
        it if it.is_fifo() => "a named pipe (FIFO)",
        it if it.is_socket() => "a socket",
        it if it.is_char_device() || it.is_block_device() => "a device",
        _ => "no regular file",
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const MOST: usize = 1000;

    fn refused(path: &Path) -> String {
        read(path, MOST).unwrap_err().to_string()
    }

    #[test]
    fn only_a_regular_file_is_read_and_no_more_than_its_greatest_length() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for (path, kind) in [
            (fifo.as_path(), "a named pipe (FIFO)"),
            (Path::new("/dev/zero"), "a device"),
            (link.as_path(), "a device"),
            (dir.path(), "a directory"),
            (socket.as_path(), "a socket"),
        ] {
            assert_eq!(refused(path), format!("it is {kind}; only a regular file is read"));
        }
        let long = dir.path().join("long");
        let file = fs::File::create(&long).unwrap();
        file.set_len(1 << 42).unwrap();
        assert_eq!(read(&long, MOST).unwrap().source.len(), MOST + 1);
        assert_eq!(read(Path::new("/nosuch"), MOST).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_others_can_change_is_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conf");
        fs::write(&path, "x").unwrap();
        for (mode, doubt) in [(0o600, false), (0o664, false), (0o666, true), (0o602, true)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = read(&path, MOST).unwrap();
            assert_eq!(read.source, b"x");
            assert_eq!(read.doubt.is_some_and(|it| it.is_of_everybody()), doubt, "{mode:o}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let owner = metadata.uid();
        assert!(FileDoubt::of(&path, &metadata, Uid::from_raw(owner)).is_none());
        let other = FileDoubt::of(&path, &metadata, Uid::from_raw(owner + 1));
        assert_eq!(other.is_some_and(|it| !it.is_of_everybody()), owner != 0);
        // No user has this number.
        let nobody = 4_000_000_000;
        let strangers = [0, 1, nobody].map(|it| stranger(it, Uid::from_raw(1)));
        assert_eq!(strangers, [None, None, Some(nobody.to_string())]);
    }
}
