// SPDX-License-Identifier: GPL-2.0-or-later
//! Reaping: all processes that belong to a run are found and killed.
//!
//! The supervisor of the run does that. Where it can't, because it was killed itself or hangs, the daemon
//! does it: a program hands its environment on to its children, and with it a tag that no other run has. So
//! even a child that left the process group is found in /proc, unless it has cleared its environment. Reaping
//! blocks, so it needs a thread of its own: the owner of a run that is dropped can't wait.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tracing::warn;

use super::lifeline::{self, Lifeline, SupervisorReport};

/// Environment variable of all processes of one run.
pub(super) const TAG: &str = "FENCE_VIRTD_RUN";
/// This daemon's part of the tag: its PID namespace, its process id there, and its start time.
static DAEMON: LazyLock<String> = LazyLock::new(|| {
    let me = Pid::this();
    format!("{}-{me}-{}", name_space(), start_time(me).unwrap_or_default())
});
/// Set when the daemon ends: no program is started any more.
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// Time for reaping the processes that a killed daemon left behind.
const ORPHAN_REAP_LIMIT: Duration = Duration::from_secs(2);
/// Time for reaping processes that don't die at once.
const REAP_LIMIT: Duration = Duration::from_secs(10);
/// Time for which the end of a killed program is waited for. The end comes at once, unless the kernel itself
/// hangs.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(1);
/// Searches without result after which nothing is left. A process forked by one that had just ended can be
/// missed once.
const QUIET_SEARCHES: u32 = 3;
/// Pause between two searches.
const SEARCH_PAUSE: Duration = Duration::from_millis(5);

/// Ends all runs when the daemon ends, because the tasks that own them may never run again. Blocks for a
/// moment. Must be called when nothing is started any more.
pub(crate) fn end_all() {
    IS_OVER.store(true, Ordering::SeqCst);
    lifeline::end_all(Instant::now() + KILL_WAIT);
    let tag = format!("{TAG}={}.", *DAEMON);
    reap_matching(Instant::now() + KILL_WAIT, |it| it.starts_with(tag.as_bytes()));
}

/// Ends the runs of daemons that were killed: no agent may act without a daemon that knows of it. Must be
/// called before the sandbox, which forbids signals to processes outside of it. Blocks for a moment.
pub(crate) fn end_orphans() {
    let reaped = reap_matching(Instant::now() + ORPHAN_REAP_LIMIT, |it| {
        it.strip_prefix(TAG.as_bytes()).and_then(|it| it.strip_prefix(b"=")).is_some_and(is_orphan)
    })
    .reaped;
    if reaped > 0 {
        warn!(
            "{reaped} processes of fence agents were still there that another daemon had left: \
             they were ended"
        );
    }
}

/// Returns whether the daemon ends, so that no program may be started.
pub(super) fn is_over() -> bool {
    IS_OVER.load(Ordering::SeqCst)
}

/// Returns whether the daemon of this tag is gone. Process ids of another PID namespace mean nothing here.
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

/// Result of [`reap_matching`].
struct ReapResult {
    /// Number of processes that were found by their environment.
    reaped: usize,
    /// Processes that were still there when the time was over.
    survivors: Vec<Pid>,
}

/// Kills all processes with a matching variable in their environment, and their descendants, until none is
/// left.
fn reap_matching(until: Instant, is_ours: impl Fn(&[u8]) -> bool) -> ReapResult {
    let mut reaped = HashSet::new();
    let mut quiet = 0;
    loop {
        let found = tagged_processes(&is_ours);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        // Descendants with an environment of their own are known only by their parents.
        let families: Vec<Pid> = if found.is_empty() { Vec::new() } else { descendants(&found) };
        kill_all(&found);
        kill_all(&families);
        reaped.extend(found.iter().copied());
        if quiet >= QUIET_SEARCHES || Instant::now() >= until {
            return ReapResult { reaped: reaped.len(), survivors: found };
        }
        sleep(SEARCH_PAUSE);
    }
}

/// Returns a tag for a run that no other process has in its environment: this daemon's part, and the run's.
pub(super) fn new_tag() -> io::Result<String> {
    let mut bytes = [0; 16];
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut bytes)
        .map_err(|it| io::Error::other(it.to_string()))?;
    let run: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    Ok(format!("{}.{run}", *DAEMON))
}

/// Returns the number of this process's PID namespace.
fn name_space() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().chars().filter(char::is_ascii_digit).collect()
}

/// Processes of one run that have to end. Dropping this makes the supervisor kill them.
pub(super) struct OrphanReaper {
    pub(super) supervisor: Child,
    pub(super) lifeline: Lifeline,
    pub(super) tag: String,
}

impl OrphanReaper {
    /// Kills the processes until none is left. Blocks. Returns whether the program was never started; false
    /// where nobody knows.
    pub(super) fn run(self) -> bool {
        if let Some(last) = self.lifeline.end(Instant::now() + KILL_WAIT) {
            return matches!(last, SupervisorReport::NotStarted(_));
        }
        let until = Instant::now() + REAP_LIMIT;
        if let Some(supervisor) = self.supervisor.id().map(|it| Pid::from_raw(it.cast_signed())) {
            // It hangs: as long as it lives, and has not been waited for, all of the run is below it.
            loop {
                let mut family = descendants(&[supervisor]);
                family.retain(|it| start_time(*it).is_some());
                kill_all(&family);
                if family.is_empty() || Instant::now() >= until {
                    break;
                }
                sleep(SEARCH_PAUSE);
            }
            kill_all(&[supervisor]);
        }
        let tag = format!("{TAG}={}", self.tag);
        let survivors = reap_matching(until, |it| it == tag.as_bytes()).survivors;
        if !survivors.is_empty() {
            warn!("processes of a program that was ended don't die: {survivors:?}");
        }
        false
    }
}

fn kill_all(pids: &[Pid]) {
    for pid in pids {
        let _ = kill(*pid, Signal::SIGKILL);
    }
}

/// Returns the children of this process, of all its threads.
pub(super) fn own_children() -> Vec<Pid> {
    let Some(lists) = std::fs::read_dir("/proc/self/task").ok().map(|tasks| {
        tasks.flatten().map(|it| std::fs::read_to_string(it.path().join("children"))).collect::<Vec<_>>()
    }) else {
        return Vec::new();
    };
    if lists.iter().all(Result::is_err) {
        // A kernel without these lists.
        let me = Some(Pid::this());
        return processes().filter(|it| parent(*it) == me).collect();
    }
    let lists: Vec<String> = lists.into_iter().flatten().collect();
    let pids = lists.iter().flat_map(|it| it.split_ascii_whitespace());
    pids.filter_map(|it| it.parse().ok().map(Pid::from_raw)).collect()
}

/// Returns all processes, by their directories in /proc.
fn processes() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|it| it.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// Returns the processes with a matching variable in their environment. Zombies have none.
fn tagged_processes(matches: impl Fn(&[u8]) -> bool) -> Vec<Pid> {
    processes().filter(|pid| environment(*pid).split(|byte| *byte == 0).any(&matches)).collect()
}

/// Returns the environment of a process; nothing if the process is not ours.
fn environment(pid: Pid) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/environ")) {
        // The kernel gives no more of it than this anyway.
        let _ = file.take(4 << 20).read_to_end(&mut bytes);
    }
    bytes
}

/// Returns children, their children, and so on.
fn descendants(of: &[Pid]) -> Vec<Pid> {
    let parents: Vec<(Pid, Pid)> = processes().filter_map(|it| Some((it, parent(it)?))).collect();
    let mut family = of.to_vec();
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        for (child, _) in parents.iter().filter(|(_, it)| *it == parent) {
            if !family.contains(child) {
                family.push(*child);
            }
        }
        next += 1;
    }
    family.split_off(of.len())
}

fn parent(pid: Pid) -> Option<Pid> {
    stat(pid, 1)?.parse().ok().map(Pid::from_raw)
}

/// Returns the start time of a process, in ticks of the kernel's clock; none for a zombie or an unknown
/// process.
fn start_time(pid: Pid) -> Option<u64> {
    if stat(pid, 0)? == "Z" { None } else { stat(pid, 19)?.parse().ok() }
}

/// Returns a word of `PID (name) state PPID …`, counted from the state; the name may hold anything.
fn stat(pid: Pid, index: usize) -> Option<String> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.iter().rposition(|it| *it == b')')? + 1;
    let mut words = std::str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace();
    words.nth(index).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far longer than anything here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    #[test]
    fn families_are_told_by_proc() {
        let (me, tag) = (Pid::this(), new_tag().unwrap());
        let mut child = std::process::Command::new("sleep").arg("1000").env(TAG, &tag).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        // The kernel shows the environment a moment after the program has begun.
        let begin = Instant::now();
        while environment(pid).is_empty() {
            assert!(begin.elapsed() < PATIENCE, "no environment");
            sleep(SEARCH_PAUSE);
        }
        assert_eq!(parent(pid), Some(me));
        assert!(descendants(&[me]).contains(&pid));
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
}
