// SPDX-License-Identifier: GPL-2.0-or-later
//! Loading of the shared key from a file that only its owner can read.
//!
//! Owns the rules for key files and the texts about them. Runs on the caller's thread and waits for no pipe
//! or device. Must never show a byte of the key, and must never let a missing or world-readable key file lead
//! to unauthenticated operation: both are errors.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fence_wire::{KEY_MAX, KEY_MIN, Key};
use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::path::shown;

/// Reason why a key was not loaded. The text names the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file does not exist.
    #[error(
        "key file {path} does not exist; copy it from a machine that has it, or make a new one, once for \
         all, with: {program} --keygen {path}",
        path = shown(.path), program = program()
    )]
    Missing {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file cannot be opened or read.
    #[error("key file {} cannot be read: {source}; {}", shown(.path), remedy(.path, .source))]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The path is that of a directory, a device, a pipe or a socket.
    #[error("key file {path} is not a regular file; see what it is with: ls -ld {path}", path = shown(.path))]
    NotAFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// Every user of the machine can read the file.
    #[error(
        "key file {path} can be read by every user (mode {mode:04o}); chmod 600 {path}",
        path = shown(.path)
    )]
    WorldReadable {
        /// Path of the file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// Users other than the owner can write the file.
    #[error(
        "key file {path} can be written by others than its owner (mode {mode:04o}); chmod 600 {path}",
        path = shown(.path)
    )]
    Writable {
        /// Path of the file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// The file is empty, or too short to be a key.
    #[error(
        "key file {path} has {length} bytes, a key has at least {KEY_MIN} and better 512; copy it from a \
         machine that has it, or make a new one, once for all, with: rm {path}; {program} --keygen {path}",
        path = shown(.path), program = program()
    )]
    TooShort {
        /// Path of the file.
        path: PathBuf,
        /// Length of the file in bytes.
        length: usize,
    },
}

/// Loads the key in `path`: the first 4096 bytes of the file; the rest is ignored. Never waits on a pipe or a
/// device.
///
/// # Errors
/// The reason why there is no usable key.
pub fn load(path: &Path) -> Result<Key, KeyFileError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing { path: path.to_owned() },
        _ => KeyFileError::Unreadable { path: path.to_owned(), source },
    };
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile { path: path.to_owned() });
    }
    if mode & 0o004 != 0 {
        return Err(KeyFileError::WorldReadable { path: path.to_owned(), mode });
    }
    if mode & 0o022 != 0 {
        return Err(KeyFileError::Writable { path: path.to_owned(), mode });
    }
    // The whole room from the start: a buffer that grows leaves copies of the key that are not wiped.
    let mut content = Zeroizing::new(Vec::with_capacity(KEY_MAX + 1));
    file.take(KEY_MAX as u64).read_to_end(&mut content).map_err(unreadable)?;
    Key::new(&content).map_err(|_| KeyFileError::TooShort { path: path.to_owned(), length: content.len() })
}

/// Returns the next step after an error of the system.
fn remedy(path: &Path, error: &io::Error) -> String {
    let path = shown(path);
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("run this as root, or as its owner: ls -l {path}"),
        _ => format!("look for the cause with: namei -l {path}"),
    }
}

/// Returns the name of this program for a command that the user types; of other names, that of the daemon.
pub(crate) fn program() -> &'static str {
    let called = std::env::args_os().next().unwrap_or_default();
    let called = Path::new(&called).file_name().unwrap_or_default();
    ["fence_xvm", "fence_virt"].into_iter().find(|it| called == *it).unwrap_or("fence_virtd")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct ScratchDir(tempfile::TempDir);

    impl ScratchDir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, content: &[u8], mode: u32) -> PathBuf {
            let path = self.0.path().join("key");
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    #[test]
    fn good_keys() {
        let scratch = ScratchDir::new();
        assert_eq!(load(&scratch.file(b"secret", 0o600)).unwrap().length(), 6);
        assert_eq!(load(&scratch.file(&[1; 5000], 0o440)).unwrap().length(), 4096);
        let target = scratch.file(b"secret", 0o640);
        let link = scratch.0.path().join("link");
        std::os::unix::fs::symlink(target, &link).unwrap();
        let key = load(&link).unwrap();
        assert_eq!(key.fingerprint(), Key::new(b"secret").unwrap().fingerprint());
    }

    #[test]
    fn errors_say_the_fix() {
        let scratch = ScratchDir::new();
        let say = |path: &Path| load(path).unwrap_err().to_string();
        let missing = scratch.0.path().join("none");
        assert!(say(&missing).ends_with(&format!("with: fence_virtd --keygen {}", missing.display())));
        for mode in [0o644, 0o604] {
            let path = scratch.file(b"secret", mode);
            let text = say(&path);
            assert!(text.contains(&format!("(mode {mode:04o})")), "{text}");
            assert!(text.ends_with(&format!("chmod 600 {}", path.display())), "{text}");
        }
        for mode in [0o660, 0o602] {
            let path = scratch.file(b"secret", mode);
            assert!(matches!(load(&path), Err(KeyFileError::Writable { mode: m, .. }) if m == mode));
        }
        assert!(matches!(load(&scratch.file(b"", 0o600)), Err(KeyFileError::TooShort { length: 0, .. })));
        let short = scratch.file(b"\n", 0o600);
        assert!(
            say(&short).contains("has 1 bytes") && say(&short).contains(&format!("rm {}; ", short.display()))
        );
    }

    #[test]
    fn only_regular_files_are_read() {
        let scratch = ScratchDir::new();
        assert!(matches!(load(scratch.0.path()), Err(KeyFileError::NotAFile { .. })));
        let fifo = scratch.0.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(load(&fifo), Err(KeyFileError::NotAFile { .. })));
        assert!(matches!(load(Path::new("/dev/zero")), Err(KeyFileError::NotAFile { .. })));
        let beneath = scratch.file(b"secret", 0o600).join("x");
        assert!(matches!(load(&beneath), Err(KeyFileError::Unreadable { .. })));
        let text = load(&beneath).unwrap_err().to_string();
        assert!(text.ends_with(&format!("namei -l {}", beneath.display())), "{text}");
    }
}
