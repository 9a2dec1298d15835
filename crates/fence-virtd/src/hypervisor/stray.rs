// SPDX-License-Identifier: GPL-2.0-or-later
//! Processes of this host that have a machine of which libvirt says that no instance is here.
//!
//! A libvirtd that lost the status file of a running domain (a wiped `/run`, a file of another version) says
//! "shut off" while QEMU runs. So /proc is searched once at each connection to libvirt, and what is found and
//! not on in libvirt's list is remembered. A later look at such a domain asks the kernel whether this process
//! still runs. The search may hang on a process that hangs, so it runs on a thread of its own and is waited
//! for a limited time.
//!
//! A process can write what it likes into its arguments. So those of users who log in do not count, unless
//! they are in libvirt's part of the control groups, nor those of containers. What counts can never make an
//! "off": it only takes one away.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use libvirt_host::Uuid;
use tracing::{debug, warn};

use crate::util::locks::lock;

/// Processes that are remembered for one hypervisor.
const MAX_STRAYS: usize = 1024;
/// Searches of one hypervisor that may hang at once.
const MAX_SEARCHES: usize = 4;
/// Time for which a connection waits for the search.
const SEARCH_LIMIT: Duration = Duration::from_secs(2);
/// Most bytes of arguments that are read. The kernel lets no program have more.
const MAX_ARGUMENTS: u64 = 8 << 20;
/// Most bytes of any other file of /proc that are read.
const MAX_FILE: u64 = 64 << 10;
/// Most bytes of a machine's name. libvirt's are file names.
const MAX_NAME: usize = 1024;
/// Users below this one are those of the system.
const FIRST_LOGIN_USER: u32 = 1000;
/// More users of the system: of packages (Debian's `libvirt-qemu`), and dynamic ones of systemd. Below are
/// those whose homes systemd manages, 65534 is nobody.
const HIGH_SYSTEM_USERS: std::ops::RangeInclusive<u32> = 60_514..=65_533;
/// Roots of the control groups in which libvirt and systemd-machined put machines.
const MACHINE_GROUPS: [&str; 2] = ["/machine", "/machine.slice"];

/// A process that has a machine by its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StrayProcess {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// Time of its start, in ticks of the kernel's clock: with the pid that is one process.
    started: u64,
}

/// Processes that have a machine which a hypervisor did not list as on.
#[derive(Default)]
pub(super) struct StrayProcesses {
    found: Mutex<Vec<StrayProcess>>,
    searches: AtomicUsize,
}

impl StrayProcesses {
    /// Searches this host's processes for machines that are not on in libvirt's list, and returns when that
    /// is done, or after a limited time. Runs on a blocking thread.
    pub(super) fn search(self: &Arc<Self>, uri: &str, on: HashSet<Uuid>) {
        lock(&self.found).retain(|it| !on.contains(&it.uuid));
        if self.searches.fetch_add(1, Ordering::Relaxed) >= MAX_SEARCHES {
            self.searches.fetch_sub(1, Ordering::Relaxed);
            warn!(%uri, "can't look for machines that libvirt lost: earlier looks at the processes hang");
            return;
        }
        let (this, named) = (Arc::clone(self), uri.to_owned());
        let (done, ended) = mpsc::channel::<()>();
        let begun = std::thread::Builder::new().name("strays".to_owned()).spawn(move || {
            search_below(Path::new("/proc"), |it| {
                if !on.contains(&it.uuid) {
                    this.remember(&named, it);
                }
            });
            this.searches.fetch_sub(1, Ordering::Relaxed);
            drop(done);
        });
        match begun {
            Err(error) => {
                self.searches.fetch_sub(1, Ordering::Relaxed);
                warn!(%uri, "can't look for machines that libvirt lost: {error}");
            }
            Ok(_) if matches!(ended.recv_timeout(SEARCH_LIMIT), Err(mpsc::RecvTimeoutError::Timeout)) => {
                warn!(%uri, "the search for machines that libvirt lost takes long: a process hangs");
            }
            Ok(_) => {}
        }
    }

    fn remember(&self, uri: &str, stray: StrayProcess) {
        let mut found = lock(&self.found);
        if found.len() < MAX_STRAYS && !found.contains(&stray) {
            warn!(
                %uri, domain = %fence_wire::escaped(&stray.name), uuid = %stray.uuid, pid = stray.pid,
                "a process has a machine that is not on by libvirt's list: libvirt lost the machine, or the \
                 process is another's. Status and off of this domain fail while the process runs"
            );
            found.push(stray);
        }
    }

    /// Returns a process that still runs and has such a machine.
    pub(super) fn find(&self, is_meant: impl Fn(&StrayProcess) -> bool) -> Option<StrayProcess> {
        let mut found = lock(&self.found);
        found.retain(|it| !is_meant(it) || it.runs());
        found.iter().find(|it| is_meant(it)).cloned()
    }
}

impl StrayProcess {
    /// Returns whether this very process still runs, or can't be asked.
    fn runs(&self) -> bool {
        match read_stat(&process_directory(Path::new("/proc"), self.pid)) {
            Ok(stat) => stat.is_none_or(|it| it.started == self.started && it.runs()),
            Err(error) => !is_gone(&error),
        }
    }
}

/// Part of `/proc/PID/stat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct StrayState {
    state: u8,
    threads: u64,
    started: u64,
}

impl StrayState {
    /// Returns whether something of the process runs: its first thread may have ended before the others.
    fn runs(self) -> bool {
        !matches!(self.state, b'Z' | b'X') || self.threads > 1
    }
}

/// Returns whether the error means that there is no such process.
fn is_gone(error: &std::io::Error) -> bool {
    // Of one that ends while it is read: ESRCH.
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

fn process_directory(proc: &Path, pid: u32) -> PathBuf {
    proc.join(pid.to_string())
}

fn read_file(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads `PID (name) state PPID …`; none if it has another form. The name may hold anything.
fn read_stat(process: &Path) -> std::io::Result<Option<StrayState>> {
    let stat = read_file(&process.join("stat"), MAX_FILE)?;
    let parse = || {
        let after = stat.iter().rposition(|it| *it == b')')? + 1;
        let words: Vec<_> = std::str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace().collect();
        let state = *words.first()?.as_bytes().first()?;
        Some(StrayState {
            state,
            threads: words.get(17)?.parse().ok()?,
            started: words.get(19)?.parse().ok()?,
        })
    };
    Ok(parse())
}

/// Calls `found` with each process that counts and has a machine.
fn search_below(proc: &Path, mut found: impl FnMut(StrayProcess)) {
    let entries = match fs::read_dir(proc) {
        Ok(entries) => entries,
        Err(error) => return warn!("can't look for machines that libvirt lost: {}: {error}", proc.display()),
    };
    if File::open(proc.join("1/status")).is_err() {
        warn!(
            "can't see the processes of other users (hidepid of /proc, ProtectProc of the unit): a machine \
             that libvirt lost is not noticed"
        );
    }
    let pids = entries.flatten().filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        match examine(&process_directory(proc, pid), pid) {
            Ok(Some(stray)) => found(stray),
            Ok(None) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => debug!(pid, "can't read a process: {error}"),
        }
    }
}

/// Reads one process; none if it does not count, or has no machine.
fn examine(process: &Path, pid: u32) -> std::io::Result<Option<StrayProcess>> {
    // What does not count is not read: a process can make a reader of its arguments wait.
    if !counts(process)? {
        return Ok(None);
    }
    let Some(before) = read_stat(process)? else { return Ok(None) };
    let arguments = read_file(&process.join("cmdline"), MAX_ARGUMENTS)?;
    let Some((uuid, name)) = machine_of(&arguments) else { return Ok(None) };
    // Else the arguments may be those of another process with this pid.
    let is_same = read_stat(process)?.is_some_and(|it| it.started == before.started && it.runs());
    Ok(is_same.then_some(StrayProcess { uuid, name, pid, started: before.started }))
}

/// Returns whether a process counts: it is in the PID namespace of /proc, and belongs to the system, not to a
/// user who logs in.
fn counts(process: &Path) -> std::io::Result<bool> {
    let status = read_file(&process.join("status"), MAX_FILE)?;
    let status = String::from_utf8_lossy(&status);
    let words = |field: &str| {
        let line = status.lines().find_map(|it| it.strip_prefix(field));
        line.map(|it| it.split_ascii_whitespace().map(str::parse::<u32>).collect::<Result<Vec<_>, _>>())
    };
    // One more number for each namespace below: the process is a container's. Old kernels have no such line.
    if !words("NSpid:").is_none_or(|it| it.is_ok_and(|it| it.len() == 1)) {
        return Ok(false);
    }
    // Real, effective, saved and file system's: a user who logs in may have started what runs as root.
    let Some(Ok(users)) = words("Uid:") else { return Ok(false) };
    let is_system = |it: &u32| *it < FIRST_LOGIN_USER || HIGH_SYSTEM_USERS.contains(it);
    if !users.is_empty() && users.iter().all(is_system) {
        return Ok(true);
    }
    // libvirt runs QEMU as any user that a domain's XML names.
    Ok(is_in_machine_group(&read_file(&process.join("cgroup"), MAX_FILE)?))
}

/// Returns whether a line of `/proc/PID/cgroup` (`number:controllers:path`) has a group of machines.
fn is_in_machine_group(groups: &[u8]) -> bool {
    groups.split(|it| *it == b'\n').any(|line| {
        let path = line.splitn(3, |it| *it == b':').nth(2).unwrap_or_default();
        MACHINE_GROUPS
            .iter()
            .any(|root| path.strip_prefix(root.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'/')))
    })
}

/// Returns the machine of the arguments of a QEMU that libvirt started: `-name guest=NAME,…`, `-uuid UUID`.
fn machine_of(arguments: &[u8]) -> Option<(Uuid, String)> {
    let value = |option: &[u8]| {
        let mut words = arguments.split(|it| *it == 0);
        words.find(|it| *it == option)?;
        std::str::from_utf8(words.next()?).ok()
    };
    let uuid = value(b"-uuid")?.parse().ok()?;
    let name = value(b"-name")?;
    let name = first_value(name.strip_prefix("guest=").unwrap_or(name));
    (name.len() <= MAX_NAME).then_some((uuid, name))
}

/// Returns the text up to the first comma that is not doubled: a doubled one stands for one.
fn first_value(text: &str) -> String {
    let mut value = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            break;
        }
        value.push(letter);
    }
    value
}

#[cfg(test)]
mod tests;
