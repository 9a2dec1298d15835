// SPDX-License-Identifier: GPL-2.0-or-later
//! Loading of the shared key from a file that only its owner should read.
//!
//! Owns the rules for key files and the texts about them. Runs on the caller's thread and waits for no pipe
//! or device. Must never show a byte of the key, and must never let a key file that can't be used lead to
//! unauthenticated operation: that is an error.
//!
//! A key that every user can read is lost already: to refuse it costs a fence and brings the secret not back.
//! So the key of root is used all the same, with an [`ExposedKey`] that the caller has to show. A file that
//! others can write, or that is not root's, is another matter: somebody else may have put the key there.

use std::fmt;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fence_wire::{KEY_MAX, KEY_MIN, Key};
use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::path::shown;

/// Rule for a key file that every user can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// The key is used if the file is root's, and its holder is warned.
    WarnOfExposed,
    /// The key is refused.
    RefuseExposed,
}

impl KeyRule {
    /// Returns the rule for a value of `strict_keys`.
    #[must_use]
    pub fn strict(strict: bool) -> Self {
        if strict { Self::RefuseExposed } else { Self::WarnOfExposed }
    }
}

/// A key that was loaded from its file.
#[derive(Debug)]
#[must_use = "an exposed key must be shown to the administrator"]
pub struct LoadedKey {
    /// The key.
    pub key: Key,
    /// The file can be read by every user.
    pub exposed: Option<ExposedKey>,
}

/// Notice that every user of this machine can read a key file that is in use. The text is a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExposedKey {
    path: PathBuf,
    mode: u32,
}

impl fmt::Display for ExposedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, mode) = (shown(&self.path), self.mode);
        write!(
            f,
            "key file {path} can be read by every user of this machine (mode {mode:04o}), and whoever has \
             the key can fence. It is used all the same; chmod 600 {path}"
        )
    }
}

/// Reason why a key was not loaded. The text names the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file does not exist.
    #[error(
        "key file {path} does not exist; copy it from a machine that has it{}",
        or_make_one("", .path), path = shown(.path)
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
        "key file {path} has {length} {}, a key has at least {KEY_MIN} and better 512; copy it from a \
         machine that has it{}",
        if *length == 1 { "byte" } else { "bytes" },
        or_make_one(&format!("rm {}; ", shown(.path)), .path), path = shown(.path)
    )]
    TooShort {
        /// Path of the file.
        path: PathBuf,
        /// Length of the file in bytes.
        length: usize,
    },
}

/// Loads the key in `path`: the first 4096 bytes of the file; the rest is ignored. Never waits on a pipe or a
/// device. The rule decides about a file that every user can read.
///
/// # Errors
/// The reason why there is no usable key.
pub fn load(path: &Path, rule: KeyRule) -> Result<LoadedKey, KeyFileError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing { path: path.to_owned() },
        _ => KeyFileError::Unreadable { path: path.to_owned(), source },
    };
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile { path: path.to_owned() });
    }
    let exposed = judge(path, FileAccess::of(&metadata), rule)?;
    // The whole room from the start: a buffer that grows leaves copies of the key that are not wiped.
    let mut content = Zeroizing::new(Vec::with_capacity(KEY_MAX + 1));
    file.take(KEY_MAX as u64).read_to_end(&mut content).map_err(unreadable)?;
    let key = Key::new(&content)
        .map_err(|_| KeyFileError::TooShort { path: path.to_owned(), length: content.len() })?;
    Ok(LoadedKey { key, exposed })
}

/// Owner and permission bits of a file.
#[derive(Clone, Copy)]
struct FileAccess {
    owner: u32,
    mode: u32,
}

impl FileAccess {
    fn of(metadata: &Metadata) -> Self {
        Self { owner: metadata.uid(), mode: metadata.mode() & 0o7777 }
    }
}

/// Decides whether a file with this owner and mode may hold a key.
fn judge(path: &Path, file: FileAccess, rule: KeyRule) -> Result<Option<ExposedKey>, KeyFileError> {
    let FileAccess { owner, mode } = file;
    let path = path.to_owned();
    if mode & 0o022 != 0 {
        return Err(KeyFileError::Writable { path, mode });
    }
    match (mode & 0o004 != 0, rule) {
        (false, _) => Ok(None),
        (true, KeyRule::WarnOfExposed) if owner == 0 => Ok(Some(ExposedKey { path, mode })),
        (true, _) => Err(KeyFileError::WorldReadable { path, mode }),
    }
}

/// Returns the next step after an error of the system.
fn remedy(path: &Path, error: &io::Error) -> String {
    let path = shown(path);
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("run this as root, or as its owner: ls -l {path}"),
        _ => format!("look for the cause with: namei -l {path}"),
    }
}

/// Returns the other way to a key, at a host alone: one that is made in a guest fits no host.
fn or_make_one(before: &str, path: &Path) -> String {
    match program() {
        daemon @ "fence_virtd" => {
            format!(", or make a new one, once for all, with: {before}{daemon} --keygen {}", shown(path))
        }
        _ => ": the key of the host, which no guest can make (scp -p, mode 0600)".to_owned(),
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

    fn strict(path: &Path) -> Result<LoadedKey, KeyFileError> {
        load(path, KeyRule::RefuseExposed)
    }

    fn key_of(path: &Path) -> Key {
        let loaded = load(path, KeyRule::WarnOfExposed).unwrap();
        assert_eq!(loaded.exposed, None);
        loaded.key
    }

    /// All modes, each with root as the owner and with another.
    #[test]
    fn only_a_key_of_root_that_others_can_no_more_than_read_is_used_with_a_notice() {
        let path = Path::new("/k");
        for (mode, owner) in (0..0o10000).flat_map(|mode| [(mode, 0), (mode, 1000)]) {
            let file = FileAccess { owner, mode };
            let [lenient, strict] =
                [KeyRule::WarnOfExposed, KeyRule::RefuseExposed].map(|it| judge(path, file, it));
            let (read, written) = (mode & 0o004 != 0, mode & 0o022 != 0);
            if written {
                assert!(matches!(lenient, Err(KeyFileError::Writable { .. })), "{mode:o}");
            } else if !read {
                assert_eq!(lenient.unwrap(), None, "{mode:o}");
            } else if owner == 0 {
                let text = lenient.unwrap().unwrap().to_string();
                assert!(text.contains(&format!("every user of this machine (mode {mode:04o})")), "{text}");
                assert!(text.ends_with("; chmod 600 /k"), "{text}");
            } else {
                assert!(matches!(lenient, Err(KeyFileError::WorldReadable { .. })), "{mode:o}");
            }
            assert_eq!(strict.is_ok(), !read && !written, "{mode:o}");
        }
    }

    #[test]
    fn good_keys() {
        let scratch = ScratchDir::new();
        assert_eq!(key_of(&scratch.file(b"secret", 0o600)).length(), 6);
        assert_eq!(key_of(&scratch.file(&[1; 5000], 0o440)).length(), 4096);
        let target = scratch.file(b"secret", 0o640);
        let link = scratch.0.path().join("link");
        std::os::unix::fs::symlink(target, &link).unwrap();
        let key = key_of(&link);
        assert_eq!(key.fingerprint(), Key::new(b"secret").unwrap().fingerprint());
    }

    #[test]
    fn errors_say_the_fix() {
        let scratch = ScratchDir::new();
        let say = |path: &Path| strict(path).unwrap_err().to_string();
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
            assert!(matches!(strict(&path), Err(KeyFileError::Writable { mode: m, .. }) if m == mode));
        }
        assert!(matches!(strict(&scratch.file(b"", 0o600)), Err(KeyFileError::TooShort { length: 0, .. })));
        let short = scratch.file(b"\n", 0o600);
        assert!(
            say(&short).contains("has 1 byte") && say(&short).contains(&format!("rm {}; ", short.display()))
        );
    }

    #[test]
    fn only_regular_files_are_read() {
        let scratch = ScratchDir::new();
        assert!(matches!(strict(scratch.0.path()), Err(KeyFileError::NotAFile { .. })));
        let fifo = scratch.0.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(strict(&fifo), Err(KeyFileError::NotAFile { .. })));
        assert!(matches!(strict(Path::new("/dev/zero")), Err(KeyFileError::NotAFile { .. })));
        let beneath = scratch.file(b"secret", 0o600).join("x");
        assert!(matches!(strict(&beneath), Err(KeyFileError::Unreadable { .. })));
        let text = strict(&beneath).unwrap_err().to_string();
        assert!(text.ends_with(&format!("namei -l {}", beneath.display())), "{text}");
    }
}
