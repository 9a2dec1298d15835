// SPDX-License-Identifier: GPL-2.0-or-later
//! Other programs: run to their end within a deadline, or ended wholly, with no more output than was asked for.
//!
//! A program gets nothing of the daemon's: no environment, no input, `/` as its directory. Where the configuration asks
//! for none, the sandbox lets none be started.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fence_wire::escaped;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::{timeout, timeout_at};

/// Bytes of standard output, and of standard error, at most.
const OUTPUT: u64 = 1 << 20;
/// Where the last complaint is looked for, bytes from the end.
const COMPLAINT: usize = 4096;
/// How long output may come after the program's end, from those that it left behind.
const REST: Duration = Duration::from_secs(1);

/// How a program ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code, or the signal that ended it.
    pub(crate) status: ExitStatus,
    /// What it wrote to standard output.
    pub(crate) output: Vec<u8>,
    /// The last line that it wrote to standard error, escaped; often empty.
    pub(crate) complaint: String,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("can't be started: {0}")]
    Start(#[source] io::Error),
    #[error("{0}")]
    Wait(#[source] io::Error),
    #[error("did not end in time, and was killed")]
    TooLong,
    #[error("wrote more than {OUTPUT} bytes, and was killed")]
    TooMuch,
}

/// Runs a program. Whatever it started and left in its process group is killed at the deadline, and when this is dropped.
///
/// # Errors
/// It did not run to its end. Exit codes are no errors.
pub(crate) async fn run(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    until: Instant,
) -> Result<Ended, RunError> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C"), ("TZ", "UTC"), ("HOME", "/")])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(RunError::Start)?;
    let mut group = Group(child.id().map(|it| Pid::from_raw(it.cast_signed())));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (mut output, mut complaints) = (Vec::new(), Vec::new());
    let work = async {
        let mut reading = Box::pin(async {
            tokio::try_join!(read(out, &mut output), read(err, &mut complaints)).map(drop)
        });
        tokio::select! {
            read = &mut reading => {
                read?;
                // Nobody is left who writes: what else is left is the program's own affair.
                let status = child.wait().await.map_err(RunError::Wait)?;
                Ok((status, None))
            }
            status = child.wait() => {
                let status = status.map_err(RunError::Wait)?;
                match timeout(REST, reading).await {
                    Ok(read) => read.map(|()| (status, None)),
                    Err(_) => Ok((status, group.0)),
                }
            }
        }
    };
    let (status, left) = timeout_at(until.into(), work).await.map_err(|_| RunError::TooLong)??;
    group.0 = left;
    Ok(Ended { status, output, complaint: last_line(&complaints) })
}

/// A process group that ends with this, unless it is taken out.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // It exists as long as somebody in it does, and who wrote last is in it.
        if let Some(it) = self.0 {
            let _ = killpg(it, Signal::SIGKILL);
        }
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> Result<(), RunError> {
    let Some(from) = from else { return Ok(()) };
    from.take(OUTPUT + 1).read_to_end(into).await.map_err(RunError::Wait)?;
    if u64::try_from(into.len()).is_ok_and(|it| it <= OUTPUT) { Ok(()) } else { Err(RunError::TooMuch) }
}

fn last_line(text: &[u8]) -> String {
    let end = &text[text.len().saturating_sub(COMPLAINT)..];
    let line = end.split(|it| *it == b'\n').rfind(|it| !it.trim_ascii().is_empty());
    escaped(line.unwrap_or_default().trim_ascii()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for a shell to start on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn sh(script: &str, limit: Duration) -> Result<Ended, RunError> {
        run(Path::new("/bin/sh"), ["-c", script, "sh", "an argument"], Instant::now() + limit).await
    }

    #[tokio::test]
    async fn output_exit_code_and_the_last_complaint() {
        let script = "echo \"$1\"; echo first >&2; printf 'last \\033[2J\\n\\n' >&2; exit 3";
        let ended = sh(script, PATIENCE).await.unwrap();
        assert_eq!(ended.output, b"an argument\n");
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.complaint, escaped("last \x1b[2J").to_string());
        let ended = sh("kill -9 $$", PATIENCE).await.unwrap();
        assert_eq!((ended.status.code(), ended.complaint.as_str()), (None, ""));
        let missing = run(Path::new("/nosuch"), [""; 0], Instant::now() + PATIENCE).await;
        assert!(matches!(missing, Err(RunError::Start(_))), "{missing:?}");
    }

    #[tokio::test]
    async fn nothing_of_the_daemons_is_handed_on() {
        let ended = sh("env | cut -d= -f1 | sort | tr '\n' ' '; pwd", PATIENCE).await.unwrap();
        let said = String::from_utf8(ended.output).unwrap();
        let (environment, rest) = said.split_once('/').unwrap();
        assert_eq!(environment.replace("_ ", "").replace("PWD ", ""), "HOME LC_ALL PATH TZ ");
        assert_eq!(rest, "\n");
    }

    #[tokio::test]
    async fn at_the_deadline_everything_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let script = format!("sleep 1000 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", file.display());
        // However long the shell takes to get there.
        let mut limit = Duration::from_millis(500);
        while !file.exists() {
            let result = sh(&script, limit).await;
            assert!(matches!(result, Err(RunError::TooLong)), "{result:?}");
            limit *= 2;
        }
        assert_ended(&std::fs::read_to_string(&file).unwrap()).await;
    }

    #[tokio::test]
    async fn what_is_left_behind_and_still_writes_is_killed() {
        let ended = sh("sleep 1000 & echo $!", PATIENCE).await.unwrap();
        assert_eq!(ended.status.code(), Some(0));
        assert_ended(&String::from_utf8(ended.output).unwrap()).await;
    }

    #[tokio::test]
    async fn endless_output_is_no_output() {
        for script in ["yes", "yes >&2"] {
            let result = sh(script, PATIENCE).await;
            assert!(matches!(result, Err(RunError::TooMuch)), "{result:?}");
        }
    }

    /// The processes with these ids end, or have ended.
    async fn assert_ended(pids: &str) {
        let begin = Instant::now();
        for pid in pids.split_whitespace() {
            // One that nobody waits for is a zombie, whose command line is empty.
            while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty()) {
                assert!(begin.elapsed() < PATIENCE, "{pid} lives on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}
