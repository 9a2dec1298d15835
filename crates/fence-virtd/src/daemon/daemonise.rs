// SPDX-License-Identifier: GPL-2.0-or-later
//! The way into the background, without a fork of a process that has threads. The program starts itself again
//! as its own child, in a session of its own, and waits until the child serves.
//!
//! So the caller gets exit code 0 only when the daemon listens, and sees its errors. Owns the child's
//! environment variable and the message of the child; runs before the runtime.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use tracing::warn;

use crate::cli::exit_code::{FAILURE, SUCCESS};

/// Environment variable of the child.
const MARK: &str = "FENCE_VIRTD_IN_BACKGROUND";
/// Name by which pgrep and killall find the daemon.
const NAME: &str = "fence_virtd";
const READY: &[u8] = b"ready\n";

/// Returns true in the child.
pub(crate) fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the child, waits for it, and returns the exit code of the parent.
pub(crate) fn start_child() -> io::Result<u8> {
    // The file itself, even if another one has its name by now.
    let mut child = Command::new("/proc/self/exe")
        .arg0(std::env::args_os().next().unwrap_or_else(|| NAME.into()))
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(READY.len() as u64).read_to_end(&mut said)?;
    }
    if said == READY {
        return Ok(SUCCESS);
    }
    let status = child.wait()?;
    Ok(status.code().and_then(|it| u8::try_from(it).ok()).filter(|it| *it != 0).unwrap_or(FAILURE))
}

/// Takes the daemon's name, and leaves the terminal and every directory that somebody may want to unmount.
/// First step of the child.
pub(crate) fn detach() -> io::Result<()> {
    // Otherwise it is the last part of the path by which the child was started: "exe". Without the name
    // everything works.
    let _ = std::fs::write("/proc/self/comm", NAME);
    setsid()?;
    std::env::set_current_dir("/")
}

/// Lets the parent end, when the child serves. Last step of the child.
pub(crate) fn ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(READY)?;
    stdout.flush()?;
    // Without it the streams of the caller stay open, and nothing else is lost.
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else {
        warn!("/dev/null can't be opened: the standard streams of the caller stay open");
        return Ok(());
    };
    dup2_stdin(null.as_fd())?;
    dup2_stdout(null.as_fd())?;
    // A log file stays open; a terminal or a pipe of the caller is closed.
    let stderr = nix::sys::stat::fstat(io::stderr().as_fd())?;
    if stderr.st_mode & nix::sys::stat::SFlag::S_IFMT.bits() != nix::sys::stat::SFlag::S_IFREG.bits() {
        dup2_stderr(null.as_fd())?;
    }
    Ok(())
}
