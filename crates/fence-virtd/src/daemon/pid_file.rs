// SPDX-License-Identifier: GPL-2.0-or-later
//! The pid file: one daemon for each file, held by a lock, removed after a clean end. Owns the file; runs
//! before the runtime. Must never remove another daemon's file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::util::process_name;

/// Pid file that this process holds. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Reason why there is no pid file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PidFileError {
    #[error(
        "{path} is held by another fence_virtd (pid {pid}); stop it first, or give this one a -p of its own"
    )]
    Held { path: String, pid: String },
    #[error("can't write the pid file {path}: {source}")]
    Io { path: String, source: io::Error },
}

impl PidFile {
    /// Takes the file, or returns the pid of its holder.
    pub(crate) fn take(path: &Path) -> Result<Self, PidFileError> {
        let shown = || fence_cli::shown(path);
        let failed = |source| PidFileError::Io { path: shown(), source };
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
                .open(path)
                .map_err(failed)?;
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                    let mut pid = String::new();
                    let _ = file.read_to_string(&mut pid);
                    let pid = pid.trim().parse::<u32>().map_or("unknown".to_owned(), |it| it.to_string());
                    return Err(PidFileError::Held { path: shown(), pid });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // The C program holds no lock.
            if let Some(pid) = living_holder(&mut lock) {
                return Err(PidFileError::Held { path: shown(), pid: pid.to_string() });
            }
            // The earlier holder may have removed the file between our open and our lock: then nobody else
            // will find the file that we locked.
            let ours = lock.metadata().map_err(failed)?;
            match fs::metadata(path) {
                Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {}
                _ => continue,
            }
            lock.set_len(0).map_err(failed)?;
            lock.rewind().map_err(failed)?;
            writeln!(&*lock, "{}", std::process::id()).map_err(failed)?;
            return Ok(Self { path: path.to_owned(), _lock: lock });
        }
    }
}

/// Returns the pid in the file if another process with this program's name has it.
fn living_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let pid: u32 = text.trim().parse().ok().filter(|it| *it != std::process::id())?;
    (process_name(pid)? == process_name(std::process::id())?).then_some(pid)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Before the lock is released, so that the next daemon never finds our file unlocked.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_nothing_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "99999999\n").unwrap();
        let held = PidFile::take(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        let error = PidFile::take(&path).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        assert!(!path.exists());
        PidFile::take(&path).unwrap();
    }

    /// The C program writes its pid, and holds no lock.
    #[test]
    fn the_file_of_a_living_daemon_without_a_lock_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let own = process_name(std::process::id()).unwrap();
        fs::write(&path, format!("{}\n", child.id())).unwrap();
        drop(PidFile::take(&path).unwrap());
        assert!(!path.exists(), "a pid of another program is old");
        let program = dir.path().join(&own);
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let mut child = std::process::Command::new(&program).arg("600").spawn().unwrap();
        // The kernel gives it its name a moment after the start of the program has succeeded.
        while process_name(child.id()).unwrap() != own {
            std::thread::yield_now();
        }
        fs::write(&path, format!("{}\n", child.id())).unwrap();
        let error = PidFile::take(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", child.id())), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
