// SPDX-License-Identifier: GPL-2.0-or-later
//! Other programs: run to their end within a deadline, or ended wholly, with no more output than was asked
//! for.
//!
//! A program gets nothing of the daemon's: no environment, no input but what it is handed, `/` as its
//! directory. Where the configuration asks for none, the sandbox lets none be started.
//!
//! [`run_wholly`] leaves nothing behind, whatever the program does. What it starts inherits its environment,
//! and with it a tag that nobody else has: so even a child that left the process group is found in /proc and
//! killed. That takes a thread of its own, since the one who drops a run can't wait.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fence_wire::escaped;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout, timeout_at};
use tracing::warn;
use zeroize::Zeroizing;

/// Bytes of standard output, and of standard error, at most.
const OUTPUT: usize = 1 << 20;
/// Where the last complaint is looked for, bytes from the end.
const COMPLAINT: usize = 4096;
/// How long output may come after the program's end, from those that it left behind.
const REST: Duration = Duration::from_secs(1);
/// What is read at once.
const CHUNK: usize = 1 << 16;
/// The pause after each chunk of what is dropped: a program that floods us slows down itself alone.
const FLOOD_PAUSE: Duration = Duration::from_millis(1);
/// The variable in the environment of all that belongs to one run.
const TAG: &str = "FENCE_VIRTD_RUN";
/// This process's part of it: its PID namespace, its number there, and when it began.
static DAEMON: LazyLock<String> = LazyLock::new(|| {
    let me = Pid::this();
    format!("{}-{me}-{}", name_space(), start_time(me).unwrap_or_default())
});
/// Nothing is started any more.
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// How long those are hunted for that a killed daemon left behind.
const ORPHAN_REAP_LIMIT: Duration = Duration::from_secs(2);
/// How long those are hunted for that don't die at once.
const REAP_LIMIT: Duration = Duration::from_secs(10);
/// How long the end of a killed program is waited for: it comes at once, unless the kernel itself hangs over
/// it.
const KILL_WAIT: Duration = Duration::from_secs(1);
/// The pause before a program is started again that somebody was writing.
const BEING_WRITTEN: Duration = Duration::from_millis(20);

/// How a program ended by itself.
#[derive(Debug)]
pub(crate) struct ProcessOutput {
    /// Its exit code, or the signal that ended it.
    pub(crate) status: ExitStatus,
    /// What it wrote to standard output.
    pub(crate) output: Vec<u8>,
    /// The last line that it wrote to standard error, escaped; often empty.
    pub(crate) complaint: String,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("can't be started: {0}")]
    Start(#[source] io::Error),
    #[error("{0}")]
    Wait(#[source] io::Error),
    #[error("did not end in time, and was killed")]
    TooLong,
    #[error("wrote more than {OUTPUT} bytes, and was killed")]
    TooMuch,
}

/// Runs a program. Whatever it started and left in its process group is killed at the deadline, and when this
/// is dropped.
///
/// # Errors
/// It did not run to its end. Exit codes are no errors.
pub(crate) async fn run(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    until: Instant,
) -> Result<ProcessOutput, ProcessError> {
    let mut command = command(program);
    command.args(arguments).stdin(Stdio::null());
    let mut tree = ProcessTree::new(command.spawn().map_err(ProcessError::Start)?, None);
    let (mut output, mut complaints) = (OutputHead::new(OUTPUT), OutputHead::new(OUTPUT));
    let work = tree.work(None, &mut output, &mut complaints, ExcessPolicy::Fails);
    let (status, left) = timeout_at(until.into(), work).await.map_err(|_| ProcessError::TooLong)??;
    if left {
        tree.kill_group();
    }
    tree.disarm();
    Ok(ProcessOutput {
        status,
        output: std::mem::take(&mut *output.bytes),
        complaint: last_line(&complaints.bytes),
    })
}

/// How a program that was run by [`run_wholly`] ended.
pub(crate) struct ContainedOutput {
    pub(crate) end: ProcessEnd,
    /// The head of what it wrote to standard output.
    pub(crate) output: OutputHead,
    /// The head of what it wrote to standard error.
    pub(crate) complaints: OutputHead,
}

/// How a program came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProcessEnd {
    /// By itself, with this exit code.
    Exit(i32),
    /// A signal that was not ours.
    Signal(i32),
    /// We killed it: it had not ended in time.
    TooLong,
}

/// The head of a program's output. May hold what nobody is to see, so it is never shown.
pub(crate) struct OutputHead {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    /// There was more, which was dropped.
    pub(crate) is_cut: bool,
    most: usize,
}

impl fmt::Debug for OutputHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes{}", self.bytes.len(), if self.is_cut { ", and more" } else { "" })
    }
}

/// Runs a program without arguments, hands it `input`, and keeps `most` bytes of each of its outputs.
///
/// When this returns the program has ended, and all that it started is dead or about to be; after a kill,
/// dead. The same becomes of them when this is dropped.
///
/// # Errors
/// It could not be started or waited for.
pub(crate) async fn run_contained(
    program: &Path,
    input: Zeroizing<Vec<u8>>,
    most: usize,
    until: Instant,
) -> Result<ContainedOutput, ProcessError> {
    let tag = tag().map_err(ProcessError::Start)?;
    let child = loop {
        if IS_OVER.load(Ordering::SeqCst) {
            return Err(ProcessError::Start(io::Error::other("the daemon ends")));
        }
        let spawned = command(program).env(TAG, &tag).stdin(Stdio::piped()).spawn();
        match spawned {
            // It is being installed this moment, or was, and a child of ours has not yet closed the file.
            Err(it) if it.raw_os_error() == Some(Errno::ETXTBSY as i32) && Instant::now() < until => {
                sleep(BEING_WRITTEN).await;
            }
            other => break other.map_err(ProcessError::Start)?,
        }
    };
    let mut tree = ProcessTree::new(child, Some(tag));
    let (mut output, mut complaints) = (OutputHead::new(most), OutputHead::new(most));
    let work = tree.work(Some(input), &mut output, &mut complaints, ExcessPolicy::IsDropped);
    let end = match timeout_at(until.into(), work).await {
        Ok(ended) => {
            let (status, left) = ended?;
            if left {
                tree.kill_group();
            }
            match status.code() {
                Some(code) => ProcessEnd::Exit(code),
                None => ProcessEnd::Signal(status.signal().unwrap_or_default()),
            }
        }
        Err(_) => ProcessEnd::TooLong,
    };
    tree.end(end == ProcessEnd::TooLong).await;
    Ok(ContainedOutput { end, output, complaints })
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C"), ("TZ", "UTC"), ("HOME", "/")])
        .current_dir("/")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// The daemon ends: all that [`run_wholly`] started ends before. Blocks for a moment. To be called when
/// nothing is started any more: who was to end a run then may not have come to it.
pub(crate) fn end_all() {
    IS_OVER.store(true, Ordering::SeqCst);
    let tag = format!("{TAG}={}.", *DAEMON);
    reap_matching(Instant::now() + KILL_WAIT, |it| it.starts_with(tag.as_bytes()));
}

/// Ends what [`run_wholly`] started in daemons that were killed: it must not come to its end when nobody
/// knows of it any more. To be called before the sandbox, which lets nobody outside of it be signalled.
/// Blocks for a moment.
pub(crate) fn end_orphans() {
    let ended = reap_matching(Instant::now() + ORPHAN_REAP_LIMIT, |it| {
        it.strip_prefix(TAG.as_bytes()).and_then(|it| it.strip_prefix(b"=")).is_some_and(is_orphan)
    });
    if ended > 0 {
        warn!(
            "{ended} processes of fence agents were still there that another daemon had left: they were ended"
        );
    }
}

/// Whether the daemon of this tag is gone. What another PID namespace calls its processes nobody here knows.
fn is_orphan(tag: &[u8]) -> bool {
    let parts = || {
        let (daemon, _) = std::str::from_utf8(tag).ok()?.split_once('.')?;
        let mut parts = daemon.split('-');
        Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse::<u64>().ok()?))
    };
    parts().is_some_and(|(space, pid, when)| {
        space == name_space() && start_time(Pid::from_raw(pid)).is_none_or(|it| it != when)
    })
}

/// Kills those that have such a variable in their environment, and their descendants, until none is left. How
/// many there were.
fn reap_matching(until: Instant, is_ours: impl Fn(&[u8]) -> bool) -> usize {
    let mut ended = HashSet::new();
    let mut quiet = 0;
    while quiet < 3 && Instant::now() < until {
        let found = tagged_processes(&is_ours);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        // Those of them that have an environment of their own are told by their parents alone.
        let families: Vec<Pid> = found.iter().flat_map(|it| descendants(*it)).collect();
        kill_all(&found);
        kill_all(&families);
        ended.extend(found);
        std::thread::sleep(Duration::from_millis(5));
    }
    ended.len()
}

/// What no other process has in its environment: this daemon's part, and the run's.
fn tag() -> io::Result<String> {
    let mut bytes = [0; 16];
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut bytes)
        .map_err(|it| io::Error::other(it.to_string()))?;
    let run: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    Ok(format!("{}.{run}", *DAEMON))
}

/// The number of this process's PID namespace.
fn name_space() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().chars().filter(char::is_ascii_digit).collect()
}

/// What becomes of output that is too much.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExcessPolicy {
    Fails,
    IsDropped,
}

/// A program and all that it starts. Ends with this, unless it is over.
struct ProcessTree {
    child: Option<Child>,
    /// Its process group. Safe to be told apart by its number as long as the child has not been waited for.
    group: Option<Pid>,
    tag: Option<String>,
}

impl ProcessTree {
    fn new(child: Child, tag: Option<String>) -> Self {
        let group = child.id().map(|it| Pid::from_raw(it.cast_signed()));
        Self { child: Some(child), group, tag }
    }

    /// Hands it the input, reads what it says, and waits for its end. Also gives whether somebody is left who
    /// writes.
    async fn work(
        &mut self,
        input: Option<Zeroizing<Vec<u8>>>,
        output: &mut OutputHead,
        complaints: &mut OutputHead,
        excess: ExcessPolicy,
    ) -> Result<(ExitStatus, bool), ProcessError> {
        let Some(child) = &mut self.child else { return Err(ProcessError::Wait(Errno::ECHILD.into())) };
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let stdin = child.stdin.take();
        let mut writing = Box::pin(write(stdin, input));
        let mut reading = Box::pin(async {
            tokio::try_join!(output.read(out, excess), complaints.read(err, excess)).map(drop)
        });
        let mut written = false;
        loop {
            tokio::select! {
                () = &mut writing, if !written => written = true,
                read = &mut reading => {
                    read?;
                    // Nobody is left who writes.
                    let status = child.wait().await.map_err(ProcessError::Wait)?;
                    return Ok((status, false));
                }
                status = child.wait() => {
                    let status = status.map_err(ProcessError::Wait)?;
                    return match timeout(REST, reading).await {
                        Ok(read) => read.map(|()| (status, false)),
                        Err(_) => Ok((status, true)),
                    };
                }
            }
        }
    }

    fn kill_group(&self) {
        // It exists as long as somebody in it does, and who wrote last is in it.
        if let Some(it) = self.group {
            let _ = killpg(it, Signal::SIGKILL);
        }
    }

    /// It has ended, and what it left is its own affair.
    fn disarm(mut self) {
        self.child = None;
        self.group = None;
        self.tag = None;
    }

    /// Everything of it ends. When it was `killed`, that is waited for, as long as it makes sense.
    async fn end(mut self, killed: bool) {
        let Some(mut hunt) = self.hunt() else { return };
        if !killed {
            hunt.group = None;
        }
        let hunted = tokio::task::spawn_blocking(move || hunt.run());
        if killed {
            let _ = timeout(KILL_WAIT, async {
                if let Ok(Some(mut child)) = hunted.await {
                    let _ = child.wait().await;
                }
            })
            .await;
        }
    }

    fn hunt(&mut self) -> Option<OrphanReaper> {
        let (child, group, tag) = (self.child.take(), self.group.take(), self.tag.take());
        (child.is_some() || group.is_some() || tag.is_some()).then_some(OrphanReaper { child, group, tag })
    }
}

impl Drop for ProcessTree {
    fn drop(&mut self) {
        let Some(hunt) = self.hunt() else { return };
        if hunt.tag.is_none() {
            return drop(hunt.kill());
        }
        let mut hunt = Some(hunt);
        let thread = std::thread::Builder::new().name("hunt".to_owned());
        // Where no thread is to be had the closure is dropped, and its content kills what it knows.
        let started = thread.spawn({
            let hunt = hunt.take();
            move || drop(hunt.map(OrphanReaper::run))
        });
        if let Err(error) = started {
            warn!("can't start a thread that ends what a program started: {error}");
        }
    }
}

/// The end of a program and all that it started.
struct OrphanReaper {
    child: Option<Child>,
    group: Option<Pid>,
    tag: Option<String>,
}

impl OrphanReaper {
    /// Kills them, until none is left. Blocks; gives back the child, to be waited for.
    fn run(self) -> Option<Child> {
        let tag = self.tag.as_ref().map(|it| format!("{TAG}={it}"));
        let child = self.kill();
        if let Some(tag) = tag {
            let until = Instant::now() + REAP_LIMIT;
            // One that was forked by one that had just ended can be missed once.
            let mut quiet = 0;
            while quiet < 2 {
                let found = tagged_processes(|it| it == tag.as_bytes());
                quiet = if found.is_empty() { quiet + 1 } else { 0 };
                kill_all(&found);
                if !found.is_empty() {
                    if Instant::now() >= until {
                        warn!("processes of a program that was ended don't die: {found:?}");
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        child
    }

    /// Kills the group, and those of its descendants that can be told by their parents.
    fn kill(mut self) -> Option<Child> {
        if let Some(group) = self.group.take() {
            // While it has not been waited for, its number is its own.
            let descendants = if self.tag.is_some() { descendants(group) } else { Vec::new() };
            let _ = killpg(group, Signal::SIGKILL);
            kill_all(&descendants);
        }
        self.child.take()
    }
}

impl Drop for OrphanReaper {
    fn drop(&mut self) {
        if let Some(it) = self.group {
            let _ = killpg(it, Signal::SIGKILL);
        }
    }
}

fn kill_all(these: &[Pid]) {
    for it in these {
        let _ = kill(*it, Signal::SIGKILL);
    }
}

/// All processes, by their directories in /proc.
fn processes() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|it| it.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// Those that have such a variable in their environment. Zombies have none.
fn tagged_processes(is_it: impl Fn(&[u8]) -> bool) -> Vec<Pid> {
    processes().filter(|it| environment(*it).split(|it| *it == 0).any(&is_it)).collect()
}

/// Empty for those that are not ours.
fn environment(pid: Pid) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/environ")) {
        // The kernel gives no more of it than this anyway.
        let _ = file.take(4 << 20).read_to_end(&mut bytes);
    }
    bytes
}

/// Children, their children, and so on.
fn descendants(of: Pid) -> Vec<Pid> {
    let parents: Vec<(Pid, Pid)> = processes().filter_map(|it| Some((it, parent(it)?))).collect();
    let mut family = vec![of];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, it)| *it == parent).map(|(child, _)| *child));
        next += 1;
    }
    family.split_off(1)
}

fn parent(pid: Pid) -> Option<Pid> {
    stat(pid, 1)?.parse().ok().map(Pid::from_raw)
}

/// When it was started, in ticks of the kernel's clock. None for one that is not there, or only as a zombie.
fn start_time(pid: Pid) -> Option<u64> {
    if stat(pid, 0)? == "Z" { None } else { stat(pid, 19)?.parse().ok() }
}

/// A word of `PID (name) state PPID …`, counted from the state; the name may hold anything.
fn stat(pid: Pid, place: usize) -> Option<String> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.iter().rposition(|it| *it == b')')? + 1;
    let mut words = std::str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace();
    words.nth(place).map(str::to_owned)
}

async fn write(to: Option<ChildStdin>, input: Option<Zeroizing<Vec<u8>>>) {
    let (Some(mut to), Some(input)) = (to, input) else { return };
    // It may end, or close it, without reading: its exit code tells what it thinks of that.
    let _ = to.write_all(&input).await;
}

impl OutputHead {
    fn new(most: usize) -> Self {
        Self { bytes: Zeroizing::default(), is_cut: false, most }
    }

    async fn read(
        &mut self,
        from: Option<impl AsyncRead + Unpin>,
        excess: ExcessPolicy,
    ) -> Result<(), ProcessError> {
        let Some(mut from) = from else { return Ok(()) };
        let mut chunk = Zeroizing::new(vec![0; CHUNK]);
        loop {
            let read = from.read(&mut chunk).await.map_err(ProcessError::Wait)?;
            if read == 0 {
                return Ok(());
            }
            let room = self.most - self.bytes.len();
            self.bytes.extend_from_slice(&chunk[..read.min(room)]);
            if read > room {
                self.is_cut = true;
                if excess == ExcessPolicy::Fails {
                    return Err(ProcessError::TooMuch);
                }
                sleep(FLOOD_PAUSE).await;
            }
        }
    }
}

fn last_line(text: &[u8]) -> String {
    let end = &text[text.len().saturating_sub(COMPLAINT)..];
    let line = end.split(|it| *it == b'\n').rfind(|it| !it.trim_ascii().is_empty());
    escaped(line.unwrap_or_default().trim_ascii()).to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Long enough for a shell to start on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn sh(script: &str, limit: Duration) -> Result<ProcessOutput, ProcessError> {
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
        assert!(matches!(missing, Err(ProcessError::Start(_))), "{missing:?}");
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
            assert!(matches!(result, Err(ProcessError::TooLong)), "{result:?}");
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
            assert!(matches!(result, Err(ProcessError::TooMuch)), "{result:?}");
        }
    }

    async fn wholly(script: &str, input: &[u8], most: usize, limit: Duration) -> ContainedOutput {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        let input = Zeroizing::new(input.to_vec());
        run_contained(&path, input, most, Instant::now() + limit).await.unwrap()
    }

    #[tokio::test]
    async fn input_is_handed_over_and_both_outputs_are_kept() {
        let script = "read line; echo \"$line\"; echo complaint >&2; cat >&2; exit 7";
        let whole = wholly(script, b"a=1\nb=2\n", 100, PATIENCE).await;
        assert_eq!(whole.end, ProcessEnd::Exit(7));
        assert_eq!((&whole.output.bytes[..], whole.output.is_cut), (&b"a=1\n"[..], false));
        assert_eq!(&whole.complaints.bytes[..], b"complaint\nb=2\n");
        let whole = wholly("kill -15 $$", b"", 100, PATIENCE).await;
        assert_eq!(whole.end, ProcessEnd::Signal(15));
        let missing =
            run_contained(Path::new("/nosuch"), Zeroizing::default(), 1, Instant::now() + PATIENCE).await;
        assert!(matches!(missing, Err(ProcessError::Start(_))));
    }

    /// More than any pipe takes, in both directions at once.
    #[tokio::test]
    async fn input_and_output_do_not_wait_for_each_other() {
        let input = vec![b'x'; 4 << 20];
        let whole = wholly("cat", &input, 5 << 20, PATIENCE).await;
        assert_eq!(
            (whole.end, whole.output.bytes.len(), whole.output.is_cut),
            (ProcessEnd::Exit(0), input.len(), false)
        );
        // One that never reads.
        for script in ["exit 4", "exec <&-; echo x; exit 4"] {
            let whole = wholly(script, &input, 10, PATIENCE).await;
            assert_eq!(whole.end, ProcessEnd::Exit(4), "{script}");
        }
    }

    #[tokio::test]
    async fn a_flood_leaves_its_head() {
        // However long the shell takes to get there.
        let mut limit = Duration::from_secs(1);
        let whole = loop {
            let whole = wholly("yes abc & yes >&2", b"", 8, limit).await;
            assert_eq!(whole.end, ProcessEnd::TooLong);
            if whole.output.is_cut && whole.complaints.is_cut {
                break whole;
            }
            limit *= 2;
        };
        assert_eq!(&whole.output.bytes[..], b"abc\nabc\n");
        assert_eq!(&whole.complaints.bytes[..], b"y\ny\ny\ny\n");
    }

    /// What writes the ids of all its processes to a file, and then waits; one of them left the process
    /// group, and one is no child of anybody's.
    fn family(pids: &Path) -> String {
        let pids = pids.display();
        format!(
            "sleep 1000 & setsid sh -c 'echo $$ >> {pids}; sleep 1000 & echo $! >> {pids}; touch {pids}.a; wait' &\n\
             (setsid sh -c 'echo $$ >> {pids}; touch {pids}.b; sleep 1000; :' &)\n\
             echo $! $$ >> {pids}\n\
             while [ ! -e {pids}.a ] || [ ! -e {pids}.b ]; do sleep 0.1; done"
        )
    }

    #[tokio::test]
    async fn whoever_left_the_group_is_killed_too() {
        for (end, ending) in [
            ("sleep 1000", ProcessEnd::TooLong),
            ("exec >&- 2>&-; sleep 1000", ProcessEnd::TooLong),
            ("exit 0", ProcessEnd::Exit(0)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let pids = dir.path().join("pids");
            let done = dir.path().join("done");
            let mut limit = if ending == ProcessEnd::TooLong { Duration::from_secs(1) } else { PATIENCE };
            while !done.exists() {
                let script = format!("{}\ntouch {}\n{end}", family(&pids), done.display());
                let _ = std::fs::remove_file(&pids);
                assert_eq!(wholly(&script, b"", 100, limit).await.end, ending);
                limit *= 2;
            }
            assert_ended(&std::fs::read_to_string(&pids).unwrap()).await;
        }
    }

    #[tokio::test]
    async fn nothing_outlives_a_run_that_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (pids, done) = (dir.path().join("pids"), dir.path().join("done"));
        let script = format!("{}\ntouch {}\nsleep 1000", family(&pids), done.display());
        let run = wholly(&script, b"", 100, PATIENCE);
        tokio::select! {
            whole = run => panic!("{:?}", whole.end),
            () = async { while !done.exists() { sleep(Duration::from_millis(10)).await } } => {}
        }
        assert_ended(&std::fs::read_to_string(&pids).unwrap()).await;
    }

    #[test]
    fn families_are_told_by_proc() {
        let (me, tag) = (Pid::this(), tag().unwrap());
        let mut child = std::process::Command::new("sleep").arg("1000").env(TAG, &tag).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert_eq!(parent(pid), Some(me));
        assert!(descendants(me).contains(&pid));
        let variable = format!("FENCE_VIRTD_RUN={tag}");
        assert_eq!(tagged_processes(|it| it == variable.as_bytes()), [pid]);
        assert_eq!(tagged_processes(|it| it == &variable.as_bytes()[..variable.len() - 1]), []);
        assert!(!is_orphan(tag.as_bytes()));
        let of = |space: &str, pid: u32, when: u64| format!("{space}-{pid}-{when}.12");
        let (space, when) = (name_space(), start_time(pid).unwrap());
        assert!(!is_orphan(of(&space, child.id(), when).as_bytes()));
        assert!(is_orphan(of(&space, child.id(), when + 1).as_bytes()));
        assert!(!is_orphan(of("1", child.id(), when + 1).as_bytes()));
        for none in ["", ".", "--.", "12"] {
            assert!(!is_orphan(none.as_bytes()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(parent(pid), None);
        assert!(is_orphan(of(&space, child.id(), when).as_bytes()));
    }

    /// The processes with these ids end, or have ended.
    async fn assert_ended(pids: &str) {
        let begin = Instant::now();
        for pid in pids.split_whitespace() {
            // One that nobody waits for is a zombie, whose command line is empty.
            while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty()) {
                assert!(begin.elapsed() < PATIENCE, "{pid} lives on");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}
