// SPDX-License-Identifier: GPL-2.0-or-later
//! Other programs: run within a deadline, with limited output.
//!
//! A program gets nothing of the daemon's: an environment of its own, `/` as its directory, and no input but
//! the caller's. The sandbox forbids to start any program if the configuration needs none.
//!
//! [`run_contained`] leaves no process behind, whatever the program does.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fence_wire::escaped;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::{sleep, timeout, timeout_at};
use tracing::warn;
use zeroize::Zeroizing;

use super::hunt::{KILL_WAIT, OrphanReaper, is_over, new_tag};
use super::lifeline::{Lifeline, SupervisorReport as Report};
use super::supervisor;

/// Bytes of standard output, and of standard error, at most.
const OUTPUT: usize = 1 << 20;
/// Bytes at the end of standard error in which the last line is looked for.
const COMPLAINT: usize = 4096;
/// Time after the program's end for output of processes that it left behind.
const REST: Duration = Duration::from_secs(1);
/// Bytes of one read.
const CHUNK: usize = 1 << 16;
/// Pause after each chunk of discarded output: a program that floods us slows down itself alone.
const FLOOD_PAUSE: Duration = Duration::from_millis(1);
/// Pause before a program that could not be started for a reason that passes is started again.
const START_PAUSE: Duration = Duration::from_millis(20);

/// Result of a program that ended by itself.
#[derive(Debug)]
pub(crate) struct ProcessOutput {
    /// Exit code, or the signal that ended the program.
    pub(crate) status: ExitStatus,
    /// All of standard output.
    pub(crate) output: Vec<u8>,
    /// Last line of standard error, escaped; often empty.
    pub(crate) complaint: String,
}

/// Reason why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("can't be started: {0}")]
    Start(#[source] io::Error),
    /// This host can't start any program now, or not this one: that says nothing of the program.
    #[error("can't be started now: {0}")]
    NoRoom(#[source] io::Error),
    #[error("{0}")]
    Wait(#[source] io::Error),
    #[error("did not end in time, and was killed")]
    TooLong,
    #[error("wrote more than {OUTPUT} bytes, and was killed")]
    TooMuch,
}

/// Runs a program. Processes that are left in its process group are killed at the deadline, and when the
/// future is dropped.
///
/// # Errors
/// The program did not run to its end. Exit codes are no errors.
pub(crate) async fn run(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    until: Instant,
) -> Result<ProcessOutput, ProcessError> {
    let mut command = Command::new(program);
    set_apart(&mut command).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let mut tree = ProcessTree::new(command.spawn().map_err(ProcessError::Start)?);
    let (mut output, mut complaints) = (OutputHead::new(OUTPUT), OutputHead::new(OUTPUT));
    let work = tree.work(&mut output, &mut complaints);
    let (status, writer_left) = timeout_at(until.into(), work).await.map_err(|_| ProcessError::TooLong)??;
    if writer_left {
        tree.kill_group();
    }
    tree.disarm();
    Ok(ProcessOutput {
        status,
        output: std::mem::take(&mut *output.bytes),
        complaint: last_line(&complaints.bytes),
    })
}

/// Result of [`run_contained`].
pub(crate) struct ContainedOutput {
    pub(crate) end: ProcessEnd,
    /// Head of standard output.
    pub(crate) output: OutputHead,
    /// Head of standard error.
    pub(crate) complaints: OutputHead,
}

/// End of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProcessEnd {
    /// The program ended by itself, with this exit code.
    Exit(i32),
    /// A signal ended the program, and it was not ours.
    Signal(i32),
    /// The program was killed, because it had not ended in time.
    TooLong,
    /// The program was killed, because nobody could see how it goes on.
    Unseen,
}

/// Head of a program's output. It may hold secrets, so it is never shown.
pub(crate) struct OutputHead {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    /// True if there was more, which was discarded.
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
/// On return the program has ended. All processes that it started are being killed; after the deadline, they
/// are dead. They are killed as well when the future is dropped, and when the daemon dies.
///
/// # Errors
/// The program could not be started.
pub(crate) async fn run_contained(
    program: &Path,
    input: Zeroizing<Vec<u8>>,
    most: usize,
    until: Instant,
) -> Result<ContainedOutput, ProcessError> {
    let tag = new_tag().map_err(ProcessError::NoRoom)?;
    loop {
        if is_over() {
            // Whoever asks again does so slowly.
            sleep(START_PAUSE).await;
            return Err(ProcessError::NoRoom(io::Error::other("the daemon ends")));
        }
        if Instant::now() >= until {
            return Err(ProcessError::NoRoom(io::Error::other("the time is over")));
        }
        let (mut output, mut complaints) = (OutputHead::new(most), OutputHead::new(most));
        let result = match SupervisedRun::start(program, &tag) {
            Err(error) => Err(error),
            Ok(mut run) => {
                let work = run.work(&input, &mut output, &mut complaints);
                let end = timeout_at(until.into(), work).await;
                let end = end.unwrap_or(Ok(ProcessEnd::TooLong));
                let is_killed = matches!(end, Ok(ProcessEnd::TooLong | ProcessEnd::Unseen));
                if run.end(is_killed).await {
                    Err(io::Error::other("the time was over before it was started"))
                } else {
                    end
                }
            }
        };
        match result {
            Ok(end) => return Ok(ContainedOutput { end, output, complaints }),
            Err(error) if is_passing(&error) && Instant::now() < until => sleep(START_PAUSE).await,
            Err(error) if is_passing(&error) || error.raw_os_error().is_none() => {
                return Err(ProcessError::NoRoom(error));
            }
            Err(error) => return Err(ProcessError::Start(error)),
        }
    }
}

/// A program beneath a supervisor. On drop both end, with everything that the program started.
struct SupervisedRun {
    supervisor: Option<Child>,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    stream: UnixStream,
    lifeline: Option<Lifeline>,
    tag: String,
}

impl SupervisedRun {
    fn start(program: &Path, tag: &str) -> io::Result<Self> {
        let (ours, its) = std::os::unix::net::UnixStream::pair()?;
        let lifeline = Lifeline::new(ours.try_clone()?);
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from_std(ours)?;
        let mut command = supervisor::command();
        set_apart(&mut command).arg(program).arg(tag).stdin(OwnedFd::from(its));
        // Whatever is the matter, it says nothing of the program.
        let failed = |it| if is_passing(&it) { it } else { io::Error::other(format!("no supervisor: {it}")) };
        let mut child = command.spawn().map_err(failed)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (supervisor, lifeline) = (Some(child), Some(lifeline));
        Ok(Self { supervisor, out, err, stream, lifeline, tag: tag.to_owned() })
    }

    /// Hands the input over, reads the output, and waits for the end of the program.
    ///
    /// # Errors
    /// The program was not started.
    async fn work(
        &mut self,
        input: &[u8],
        output: &mut OutputHead,
        complaints: &mut OutputHead,
    ) -> io::Result<ProcessEnd> {
        let (mut from, mut to) = self.stream.split();
        // What has not said this has started nothing, and does not before it has all of the input.
        if next_report(&mut from).await != Some(Report::Ready) {
            return Err(io::Error::other("its supervisor ended at once"));
        }
        let sent = async {
            to.write_all(&(input.len() as u64).to_le_bytes()).await?;
            to.write_all(input).await
        };
        let _ = sent.await;
        let mut reading = Box::pin(async {
            let (out, err) = (self.out.take(), self.err.take());
            tokio::try_join!(
                output.read(out, ExcessPolicy::IsDropped),
                complaints.read(err, ExcessPolicy::IsDropped)
            )
            .is_ok()
        });
        let mut report = Box::pin(next_report(&mut from));
        let report = tokio::select! {
            all = &mut reading => if all { report.await } else { None },
            report = &mut report => {
                // What was not started has no output, and that is known at once, whenever the time is over.
                if !matches!(report, Some(Report::NotStarted(_))) {
                    // Without a report nobody has ended what holds the output open.
                    let rest = if report.is_some() { REST } else { Duration::ZERO };
                    let _ = timeout(rest, reading).await;
                }
                report
            }
        };
        match report {
            Some(Report::Exit(code)) => Ok(ProcessEnd::Exit(code)),
            Some(Report::Signal(number)) => Ok(ProcessEnd::Signal(number)),
            Some(Report::NotStarted(0)) => Err(io::Error::other("its supervisor could not start it")),
            Some(Report::NotStarted(errno)) => Err(io::Error::from_raw_os_error(errno)),
            // It was started, and may have acted.
            Some(Report::Ready | Report::Empty) | None => Ok(ProcessEnd::Unseen),
        }
    }

    /// Kills all processes of the run. If the program was `killed`, waits for their end, within a limit.
    /// Returns whether the program was never started; false where that is not known.
    async fn end(mut self, killed: bool) -> bool {
        let Some(reaper) = self.take_reaper() else { return false };
        let reaped = tokio::task::spawn_blocking(move || reaper.run());
        killed && matches!(timeout(KILL_WAIT * 2, reaped).await, Ok(Ok(true)))
    }

    fn take_reaper(&mut self) -> Option<OrphanReaper> {
        let (supervisor, lifeline) = (self.supervisor.take()?, self.lifeline.take()?);
        Some(OrphanReaper { supervisor, lifeline, tag: std::mem::take(&mut self.tag) })
    }
}

impl Drop for SupervisedRun {
    fn drop(&mut self) {
        let Some(reaper) = self.take_reaper() else { return };
        let thread = std::thread::Builder::new().name("hunt".to_owned());
        // If no thread can be started, the closure is dropped, and with it the lifeline of the supervisor.
        if let Err(error) = thread.spawn(move || reaper.run()) {
            warn!("can't start a thread that ends what a program started: {error}");
        }
    }
}

async fn next_report(from: &mut (impl AsyncRead + Unpin)) -> Option<Report> {
    let mut bytes = [0; Report::LEN];
    from.read_exact(&mut bytes).await.ok()?;
    Report::read(bytes)
}

/// Returns whether a start failed for a reason that passes: no descriptor, process or memory was left; or the
/// program is being installed at this moment, or was, and a child of ours still has the file open.
fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::ETXTBSY, Errno::EAGAIN, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE];
    error.raw_os_error().is_some_and(|it| passing.contains(&Errno::from_raw(it)))
}

/// Gives a program nothing of the daemon's, and a process group of its own.
fn set_apart(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C"), ("TZ", "UTC"), ("HOME", "/")])
        .current_dir("/")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
}

/// Treatment of output beyond the limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExcessPolicy {
    /// The run fails.
    Fails,
    /// The excess is read and discarded.
    IsDropped,
}

/// A program and its process group. They are killed on drop, unless [`disarm`](Self::disarm) was called.
struct ProcessTree {
    child: Child,
    /// Process group. The number belongs to it as long as the child has not been waited for.
    group: Option<Pid>,
}

impl ProcessTree {
    fn new(child: Child) -> Self {
        let group = child.id().map(|it| Pid::from_raw(it.cast_signed()));
        Self { child, group }
    }

    /// Reads the output, and waits for the end of the program. The Boolean is true if another process still
    /// holds the output open.
    async fn work(
        &mut self,
        output: &mut OutputHead,
        complaints: &mut OutputHead,
    ) -> Result<(ExitStatus, bool), ProcessError> {
        let (out, err) = (self.child.stdout.take(), self.child.stderr.take());
        let mut reading = Box::pin(async {
            tokio::try_join!(output.read(out, ExcessPolicy::Fails), complaints.read(err, ExcessPolicy::Fails))
        });
        tokio::select! {
            read = &mut reading => {
                read?;
                // No process holds the output open any more.
                let status = self.child.wait().await.map_err(ProcessError::Wait)?;
                Ok((status, false))
            }
            status = self.child.wait() => {
                let status = status.map_err(ProcessError::Wait)?;
                match timeout(REST, reading).await {
                    Ok(read) => read.map(|_| (status, false)),
                    Err(_) => Ok((status, true)),
                }
            }
        }
    }

    fn kill_group(&self) {
        // A process of the group still held the output open, so the group exists.
        if let Some(group) = self.group {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    /// Leaves the remaining processes alone: the program has ended.
    fn disarm(mut self) {
        self.group = None;
    }
}

impl Drop for ProcessTree {
    fn drop(&mut self) {
        self.kill_group();
    }
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

    async fn contained(script: &str, input: &[u8], most: usize, limit: Duration) -> ContainedOutput {
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
        let ended = contained(script, b"a=1\nb=2\n", 100, PATIENCE).await;
        assert_eq!(ended.end, ProcessEnd::Exit(7));
        assert_eq!((&ended.output.bytes[..], ended.output.is_cut), (&b"a=1\n"[..], false));
        assert_eq!(&ended.complaints.bytes[..], b"complaint\nb=2\n");
        let ended = contained("kill -15 $$", b"", 100, PATIENCE).await;
        assert_eq!(ended.end, ProcessEnd::Signal(15));
        let missing =
            run_contained(Path::new("/nosuch"), Zeroizing::default(), 1, Instant::now() + PATIENCE).await;
        assert!(matches!(missing, Err(ProcessError::Start(_))));
    }

    /// More than any pipe takes, in both directions at once.
    #[tokio::test]
    async fn input_and_output_do_not_wait_for_each_other() {
        let input = vec![b'x'; 4 << 20];
        let ended = contained("cat", &input, 5 << 20, PATIENCE).await;
        assert_eq!(
            (ended.end, ended.output.bytes.len(), ended.output.is_cut),
            (ProcessEnd::Exit(0), input.len(), false)
        );
        // One that never reads.
        for script in ["exit 4", "exec <&-; echo x; exit 4"] {
            let ended = contained(script, &input, 10, PATIENCE).await;
            assert_eq!(ended.end, ProcessEnd::Exit(4), "{script}");
        }
    }

    #[tokio::test]
    async fn a_flood_leaves_its_head() {
        // However long the shell takes to get there.
        let mut limit = Duration::from_secs(1);
        let ended = loop {
            let ended = contained("yes abc & yes >&2", b"", 8, limit).await;
            assert_eq!(ended.end, ProcessEnd::TooLong);
            if ended.output.is_cut && ended.complaints.is_cut {
                break ended;
            }
            limit *= 2;
        };
        assert_eq!(&ended.output.bytes[..], b"abc\nabc\n");
        assert_eq!(&ended.complaints.bytes[..], b"y\ny\ny\ny\n");
    }

    /// Returns a script that writes the ids of all its processes to a file, and then waits. One process
    /// leaves the group, one is an orphan, and one an orphan with an environment of its own.
    fn family(pids: &Path) -> String {
        let pids = pids.display();
        format!(
            "sleep 1000 & \
             setsid sh -c 'echo $$ >> {pids}; sleep 1000 & echo $! >> {pids}; touch {pids}.a; wait' &\n\
             (setsid sh -c 'echo $$ >> {pids}; touch {pids}.b; sleep 1000; :' &)\n\
             (env -i setsid sh -c 'trap \"\" TERM HUP; echo $$ >> {pids}; touch {pids}.c; sleep 1000; :' &)\n\
             echo $! $$ >> {pids}\n\
             for it in a b c; do while [ ! -e {pids}.$it ]; do sleep 0.1; done; done"
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
                assert_eq!(contained(&script, b"", 100, limit).await.end, ending);
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
        let run = contained(&script, b"", 100, PATIENCE);
        tokio::select! {
            ended = run => panic!("{:?}", ended.end),
            () = async { while !done.exists() { sleep(Duration::from_millis(10)).await } } => {}
        }
        assert_ended(&std::fs::read_to_string(&pids).unwrap()).await;
    }

    /// The run's own supervisor can't end it any more: the daemon does.
    #[tokio::test]
    async fn nothing_outlives_a_supervisor_that_hangs_or_was_killed() {
        for signal in ["STOP", "KILL"] {
            let dir = tempfile::tempdir().unwrap();
            let (pids, done) = (dir.path().join("pids"), dir.path().join("done"));
            let script = format!(
                "(setsid sleep 1000 & echo $! >> {0})\ntouch {1}\nkill -{signal} $PPID\nsleep 1000",
                pids.display(),
                done.display()
            );
            let is_stopped = signal == "STOP";
            let expected = if is_stopped { ProcessEnd::TooLong } else { ProcessEnd::Unseen };
            let mut limit = if is_stopped { Duration::from_secs(1) } else { PATIENCE };
            while !done.exists() {
                let _ = std::fs::remove_file(&pids);
                assert_eq!(contained(&script, b"", 100, limit).await.end, expected, "{signal}");
                limit *= 2;
            }
            assert_ended(&std::fs::read_to_string(&pids).unwrap()).await;
        }
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
