// SPDX-License-Identifier: GPL-2.0-or-later
//! The supervisor of a fence agent: this program once more, as a process of its own between the daemon and
//! the agent.
//!
//! It is a child subreaper. Whatever the agent starts stays below it: a process that leaves its group and its
//! session, gives up its parents and clears its environment becomes the supervisor's own child. So when the
//! line to the daemon is shut, all of the run is found and killed, also when the daemon died.
//!
//! Children are killed, not their children: the number of a child belongs to it until it is waited for, which
//! is done here alone. The children of who was killed become the supervisor's, and are next.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout};
use zeroize::Zeroizing;

use super::hunt::{TAG, own_children};
use super::lifeline::SupervisorReport;
use crate::util::locks::lock;

/// Name of the process, and what tells it that it is no daemon.
const NAME: &str = "fence_agent_run";
/// Pause between two rounds of killing.
const ROUND_PAUSE: Duration = Duration::from_millis(1);

/// Returns the command of a supervisor. Its arguments are those of [`run`], its standard input is the line.
#[cfg(not(test))]
pub(super) fn command() -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg0(NAME);
    command
}

/// Carries out the command line if it is a supervisor's, and returns the exit code.
pub(crate) fn run_if_asked() -> Option<u8> {
    let mut arguments = std::env::args_os();
    if arguments.next()? != NAME {
        return None;
    }
    Some(run(&arguments.next()?, &arguments.next()?))
}

/// Runs the program beneath this process, until no process of it is left. Returns the exit code.
fn run(program: &OsStr, tag: &OsStr) -> u8 {
    match supervise(program, tag) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn supervise(program: &OsStr, tag: &OsStr) -> io::Result<()> {
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    let _ = prctl::set_name(c"fence_agent_run");
    prctl::set_child_subreaper(true)?;
    say(&line, SupervisorReport::Ready)?;
    let Ok(input) = read_input(&mut line) else { return say(&line, SupervisorReport::NotStarted(0)) };
    let reaping = Arc::new(Mutex::new(()));
    let started = watch(line.try_clone()?, Arc::clone(&reaping)).and_then(|()| start(program, tag, input));
    let agent = match started {
        Ok(it) => it,
        Err(error) => return say(&line, SupervisorReport::NotStarted(error.raw_os_error().unwrap_or(0))),
    };
    // Whoever reads the agent's output sees its end. From here on nothing but the end of all processes ends
    // this one.
    let _ = dup2_stdout(&null).and_then(|()| dup2_stderr(&null));
    loop {
        let ended = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) => continue,
            // No process is left.
            Err(_) => return say(&line, SupervisorReport::Empty),
            Ok(it) => it,
        };
        let Some(child) = ended.pid() else { continue };
        if child == agent {
            let _ = match ended {
                WaitStatus::Signaled(_, signal, _) => say(&line, SupervisorReport::Signal(signal as i32)),
                WaitStatus::Exited(_, code) => say(&line, SupervisorReport::Exit(code)),
                _ => Ok(()),
            };
        }
        let _guard = lock(&reaping);
        let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    }
}

fn say(mut line: &UnixStream, report: SupervisorReport) -> io::Result<()> {
    line.write_all(&report.to_bytes())
}

/// Returns all of the input. Fails if the line ends before: nothing must be started then.
fn read_input(line: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut length = [0; 8];
    line.read_exact(&mut length)?;
    let mut input = Zeroizing::new(vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap_or(0)]);
    line.read_exact(&mut input)?;
    Ok(input)
}

/// Starts the program in a group of its own, and the thread that hands it the input.
fn start(program: &OsStr, tag: &OsStr, input: Zeroizing<Vec<u8>>) -> io::Result<Pid> {
    let (stdin, mut writer) = io::pipe()?;
    // It may end, or close its input, without reading: the exit code says how that ended.
    thread::Builder::new().spawn(move || writer.write_all(&input))?;
    let child = Command::new(program).env(TAG, tag).stdin(stdin).process_group(0).spawn()?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Starts the thread that waits for the end of the line, and then kills whatever there is.
fn watch(mut line: UnixStream, reaping: Arc<Mutex<()>>) -> io::Result<()> {
    thread::Builder::new().spawn(move || {
        // Nothing comes after the input but the end.
        let _ = line.read_to_end(&mut Vec::new());
        loop {
            let guard = lock(&reaping);
            for child in own_children() {
                let _ = kill(child, Signal::SIGKILL);
            }
            drop(guard);
            thread::sleep(ROUND_PAUSE);
        }
    })?;
    Ok(())
}

#[cfg(test)]
pub(super) use tests::command;

#[cfg(test)]
mod tests {
    use super::*;

    /// Name of the variable that tells the test below that it is a supervisor.
    const MARK: &str = "FENCE_VIRTD_TEST_SUPERVISOR";

    /// Returns the command of a supervisor that is this test program, whose own words go nowhere.
    pub(in super::super) fn command() -> tokio::process::Command {
        let mut command = tokio::process::Command::new("/bin/sh");
        let name = concat!(module_path!(), "::supervisor_of_tests").split_once("::").unwrap().1;
        command.args(["-c", &format!("export {MARK}=1; exec 3>&1 >/dev/null; exec \"$@\""), "sh"]);
        command.arg(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture"]);
        command
    }

    /// No test of its own: it is what [`command`] starts.
    #[test]
    fn supervisor_of_tests() {
        if std::env::var_os(MARK).is_none() {
            return;
        }
        let arguments: Vec<_> = std::env::args_os().collect();
        let [.., program, tag] = arguments.as_slice() else { panic!("{arguments:?}") };
        dup2_stdout(File::options().write(true).open("/proc/self/fd/3").unwrap()).unwrap();
        nix::unistd::close(3).unwrap();
        std::process::exit(run(program, tag).into());
    }

    #[test]
    fn reports_are_read_as_they_are_said() {
        use SupervisorReport::{Empty, Exit, NotStarted, Ready, Signal};
        for report in [Ready, NotStarted(26), Exit(0), Exit(255), Signal(9), Empty] {
            assert_eq!(SupervisorReport::read(report.to_bytes()), Some(report));
        }
        assert_eq!(SupervisorReport::read([0; SupervisorReport::LEN]), None);
    }
}
