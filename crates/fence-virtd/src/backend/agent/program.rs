// SPDX-License-Identifier: GPL-2.0-or-later
//! The program of an agent: where it is, and whether it may be run.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fence_config::AgentProgram;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use super::not_ready::{NotReady, NotRunCause};
use super::secret;

/// Directories in which agents are found by their names.
pub(crate) const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"];

/// Returns the path of the program, and its fingerprint.
pub(super) fn find(program: &AgentProgram) -> Result<(PathBuf, u64), NotReady> {
    match program {
        AgentProgram::At(path) => about(path).map(|it| (path.clone(), it)),
        AgentProgram::Named(name) => {
            let places = DIRECTORIES.iter().map(|it| Path::new(it).join(name));
            let Some(path) = places.into_iter().find(|it| it.exists()) else {
                let places = DIRECTORIES.join(", ");
                return Err(format!("no {name} in {places}: install it, or give its path").into());
            };
            about(&path).map(|it| (path, it))
        }
    }
}

/// Returns the fingerprint of a program; an error if it may not be run.
fn about(path: &Path) -> Result<u64, NotReady> {
    let shown = path.display();
    let about = std::fs::metadata(path)
        .map_err(|it| NotReady::of_file(&it, format!("can't look at {shown}: {it}")))?;
    if !about.is_file() || about.mode() & 0o111 == 0 {
        return Err(format!("{shown} is no program").into());
    }
    if !secret::is_ours(&about) {
        return Err(format!("{shown} belongs to user {}: chown it to root", about.uid()).into());
    }
    if about.mode() & 0o022 != 0 {
        return Err(format!("others can write {shown}: chmod go-w it").into());
    }
    let mut fingerprint = DefaultHasher::new();
    (
        path,
        about.dev(),
        about.ino(),
        about.size(),
        about.mtime(),
        about.mtime_nsec(),
        about.ctime(),
        about.ctime_nsec(),
    )
        .hash(&mut fingerprint);
    Ok(fingerprint.finish())
}

/// Reads files on a blocking thread, because a file system can hang.
pub(super) async fn blocking<T: Send + 'static>(
    files: &Arc<Semaphore>,
    until: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotReady> {
    let looks = async {
        // A look that hangs keeps its thread: no more of them than this.
        let permit = Arc::clone(files).acquire_owned().await.ok()?;
        let work = move || (work(), permit);
        tokio::task::spawn_blocking(work).await.ok().map(|(it, _)| it)
    };
    match timeout_at(until.into(), looks).await {
        Ok(Some(it)) => Ok(it),
        Ok(None) => Err(NotReady::new(NotRunCause::NoRoom, "the daemon ends")),
        Err(_) => Err(NotReady::new(NotRunCause::TooLate, "files can't be read in time")),
    }
}
