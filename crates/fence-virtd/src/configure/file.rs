// SPDX-License-Identifier: GPL-2.0-or-later
//! The configuration file on disk: read whole, replaced whole or not at all. Owns the path through symbolic
//! links, and the owner and mode of the new file. Runs on the main thread. Must never leave half a file under
//! the name that the daemon reads.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

pub(crate) use fence_cli::shown;
use nix::fcntl::OFlag;

/// Links that are followed, as many as by the kernel.
const MAX_LINKS: usize = 40;

/// Configuration file as it was read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// Path of the file, or of a file that is to be made, behind all symbolic links.
    target: PathBuf,
    /// Content; none where there is no such file.
    pub(crate) content: Option<Vec<u8>>,
}

/// Reason why the file can't be read or replaced. The old file is unchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{path} can't be read: {source}")]
    Unreadable { path: String, source: io::Error },
    #[error("{path} is not a regular file")]
    NotAFile { path: String },
    #[error("there is no directory {path}; make it first, or name another file with -f")]
    NoDirectory { path: String },
    #[error("{path} can't be written: {source}; it is as it was")]
    Unwritable { path: String, source: io::Error },
    #[error("somebody else has changed {path} meanwhile; it is as they left it, start again")]
    Changed { path: String },
}

impl ConfigFile {
    /// Reads `path`. A missing file is no error; a missing directory is one.
    pub(crate) fn read(path: &Path) -> Result<ConfigFile, FileError> {
        let target =
            behind_links(path).map_err(|source| FileError::Unreadable { path: shown(path), source })?;
        let content = content(&target)?;
        let directory = directory(&target);
        if content.is_none() && !directory.is_dir() {
            return Err(FileError::NoDirectory { path: shown(directory) });
        }
        Ok(ConfigFile { target, content })
    }

    /// Replaces the content that was read by `new`: a new file beside the old one, flushed to the disk and
    /// then renamed. The new file has mode 0600, or less where the old one had less, and the owner of the old
    /// one.
    pub(crate) fn replace(&self, new: &[u8]) -> Result<(), FileError> {
        if content(&self.target)? != self.content {
            return Err(FileError::Changed { path: shown(&self.target) });
        }
        self.write(new).map_err(|source| FileError::Unwritable { path: shown(&self.target), source })
    }

    fn write(&self, new: &[u8]) -> io::Result<()> {
        let directory = directory(&self.target);
        let mut file = tempfile::Builder::new().prefix(".fence_virt.conf.").tempfile_in(directory)?;
        file.write_all(new)?;
        let mut mode = 0o600;
        if let Ok(old) = fs::metadata(&self.target) {
            mode &= old.mode();
            let made = file.as_file().metadata()?;
            if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
                fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
            }
        }
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(&self.target).map_err(|error| error.error)?;
        // The file is complete under its name by now; an error of the directory's flush changes nothing.
        let _ = File::open(directory).and_then(|it| it.sync_all());
        Ok(())
    }
}

/// Returns the file's content, at most one byte more than the limit; none when there is no such file. Never
/// waits on a pipe.
fn content(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let unreadable = |source| FileError::Unreadable { path: shown(path), source };
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(FileError::NotAFile { path: shown(path) });
    }
    let mut content = Vec::new();
    file.take(fence_config::MAX_FILE_SIZE as u64 + 1).read_to_end(&mut content).map_err(unreadable)?;
    Ok(Some(content))
}

/// Follows symbolic links, also to a file that is missing.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = directory(&target).join(next),
            // EINVAL: not a link.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(target);
            }
            Err(error) => return Err(error),
        }
    }
    Err(nix::errno::Errno::ELOOP.into())
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn new_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.conf");
        let found = ConfigFile::read(&path).unwrap();
        assert_eq!(found.content, None);
        found.replace(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn modes() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.conf");
        for (old, new) in [(0o644, 0o600), (0o640, 0o600), (0o600, 0o600), (0o400, 0o400)] {
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(old)).unwrap();
            ConfigFile::read(&path).unwrap().replace(b"new").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, new);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn links_stay_links() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("there")).unwrap();
        let (link, middle) = (place.path().join("x.conf"), place.path().join("there/y.conf"));
        symlink("there/y.conf", &link).unwrap();
        symlink("z.conf", &middle).unwrap();
        for content in [&b"one"[..], b"two"] {
            ConfigFile::read(&link).unwrap().replace(content).unwrap();
            assert_eq!(fs::read(place.path().join("there/z.conf")).unwrap(), content);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert!(fs::symlink_metadata(&middle).unwrap().is_symlink());
        }
        symlink("loop", place.path().join("loop")).unwrap();
        assert!(matches!(ConfigFile::read(&place.path().join("loop")), Err(FileError::Unreadable { .. })));
    }

    #[test]
    fn what_is_no_file() {
        let place = tempfile::tempdir().unwrap();
        assert!(matches!(ConfigFile::read(place.path()), Err(FileError::NotAFile { .. })));
        let error = ConfigFile::read(&place.path().join("none/x.conf")).unwrap_err().to_string();
        assert!(error.contains(&format!("no directory {}/none;", place.path().display())), "{error}");
    }

    #[test]
    fn changed_meanwhile() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.conf");
        let found = ConfigFile::read(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(matches!(found.replace(b"ours"), Err(FileError::Changed { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
