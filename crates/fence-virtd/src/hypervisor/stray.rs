// SPDX-License-Identifier: GPL-2.0-or-later
//! Processes of this host that have machines.
//!
//! libvirt's word "shut off" is not enough. A QEMU whose storage hangs outlives SIGKILL: libvirt gives up and
//! says "shut off", and the process may still write. And a libvirtd that lost the status file of a running
//! domain (a wiped `/run`, a file of another version) says so while QEMU runs. So a sight without an instance
//! needs [`ProcessesGone`]: a search of /proc that began after libvirt's answer.
//!
//! Found processes are remembered with the times of their start: one that is ending may have no arguments
//! any more. A search may hang on a process that hangs, so it runs on a thread of its own, is waited for a
//! limited time, and the next one leaves that process out. Requests at the same time share a search.
//!
//! A process can write what it likes into its arguments. So those of users who log in do not count, unless
//! they are in libvirt's part of the control groups, nor those of containers. What counts can never make an
//! "off": it only takes one away.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use libvirt_host::Uuid;
use tracing::{debug, warn};

use crate::util::locks::lock;

/// Processes that are remembered for one hypervisor.
const MAX_PROCESSES: usize = 4096;
/// Searches of one hypervisor that may hang at once.
const MAX_SEARCHES: usize = 16;
/// Searches that are begun anew for one look, each without the process on which the one before hangs.
const MAX_TRIES: usize = 4;
/// Time for one search.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);
/// Time after which the reading of one process hangs.
const READ_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two looks whether a search hangs.
const SEARCH_POLL: Duration = Duration::from_millis(100);
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
/// `PF_EXITING` and `PF_KTHREAD` of `/proc/PID/stat`.
const EXITING: u64 = 0x4;
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Names of the host in a text for other hosts and guests, and in one for who reads it at that host.
const THAT_HOST: &str = "that host";
const THIS_HOST: &str = "this host";

/// Proof that no process of a machine was there, by a search that began after libvirt had said that no
/// instance is. Only a search makes one.
#[must_use]
#[derive(Debug)]
pub(crate) struct ProcessesGone(());

impl ProcessesGone {
    /// Returns the proof for a hypervisor whose machines are no processes of this host.
    pub(super) fn not_of_this_host() -> Self {
        Self(())
    }
}

/// A process that has a machine by its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MachineProcess {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// Time of its start, in ticks of the kernel's clock: with the pid that is one process.
    started: u64,
}

/// A QEMU that has no readable arguments: it is ending, or whoever reads them hangs.
#[derive(Clone, PartialEq, Eq, Debug)]
struct UnnamedProcess {
    pid: u32,
    started: u64,
    /// Name of the machine by its control group, as far as that tells it.
    group: Option<String>,
}

/// Process that takes an "off" away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Remnant {
    pid: u32,
    started: u64,
    is_named: bool,
}

/// Fact about a process that has a machine which libvirt does not have on, and next step, a sentence each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RemnantWords {
    pub(crate) fact: String,
    pub(crate) step: String,
}

/// Processes of this host that have machines.
#[derive(Default)]
pub(crate) struct MachineProcesses {
    table: Mutex<ProcessTable>,
    /// Moment when the last search began. Held during a search.
    turn: Mutex<Option<Instant>>,
    searches: AtomicUsize,
}

#[derive(Default)]
struct ProcessTable {
    found: Vec<MachineProcess>,
    unnamed: Vec<UnnamedProcess>,
    /// Processes on which a search hangs.
    hanging: Vec<u32>,
    /// Processes that need not be read again.
    others: Arc<OtherPrograms>,
    /// Processes that were told to the log.
    told: HashSet<(u32, u64)>,
}

/// Place at which a search is.
#[derive(Default)]
struct ReadPoint {
    /// Process that is read, and since when.
    at: Option<(u32, Instant)>,
    /// Nobody waits for the search any more: it hung on this process, or took too long.
    given_up: Option<Option<u32>>,
}

/// Processes with other programs, by pid, time of the start, and name of the program, which changes with it.
type OtherPrograms = HashSet<(u32, u64, String)>;

#[derive(Default, Debug)]
struct FoundProcesses {
    machines: Vec<MachineProcess>,
    unnamed: Vec<UnnamedProcess>,
    others: OtherPrograms,
}

impl MachineProcesses {
    /// Searches this host's processes, unless a search has begun since `asked`. Runs on a blocking thread.
    ///
    /// # Errors
    /// Reason why the search did not come to its end.
    pub(crate) fn search(self: &Arc<Self>, asked: Instant) -> Result<(), String> {
        let mut last = lock(&self.turn);
        if last.is_some_and(|it| it >= asked) {
            return Ok(());
        }
        for _ in 0..MAX_TRIES {
            let began = Instant::now();
            if self.try_search()? {
                *last = Some(began);
                return Ok(());
            }
        }
        Err("can't look at the processes of this host: looks hang on processes that hang".to_owned())
    }

    /// Searches once. False if that hangs on a process, which is left out from now on.
    fn try_search(self: &Arc<Self>) -> Result<bool, String> {
        let failed = |why: &str| format!("can't look at the processes of this host: {why}");
        if self.searches.fetch_add(1, Ordering::Relaxed) >= MAX_SEARCHES {
            self.searches.fetch_sub(1, Ordering::Relaxed);
            return Err(failed("earlier looks hang"));
        }
        let (this, point) = (Arc::clone(self), Arc::new(Mutex::new(ReadPoint::default())));
        let (done, ended) = mpsc::channel();
        let (hanging, others) = {
            let table = lock(&self.table);
            (table.hanging.clone(), Arc::clone(&table.others))
        };
        let reads = Arc::clone(&point);
        let begun = std::thread::Builder::new().name("processes".to_owned()).spawn(move || {
            let found = search_below(Path::new("/proc"), &hanging, &others, &reads);
            this.searches.fetch_sub(1, Ordering::Relaxed);
            match lock(&reads).given_up {
                // It can be read now, or is gone.
                Some(hung) => lock(&this.table).hanging.retain(|it| Some(*it) != hung),
                None => drop(done.send(found)),
            }
        });
        if let Err(error) = begun {
            self.searches.fetch_sub(1, Ordering::Relaxed);
            return Err(failed(&error.to_string()));
        }
        let until = Instant::now() + SEARCH_LIMIT;
        loop {
            let mut result = ended.recv_timeout(SEARCH_POLL);
            // It may have ended at this moment; while the point is held it does not.
            let mut point = lock(&point);
            if result.is_err() {
                result = ended.try_recv().or(result);
            }
            match result {
                Ok(found) => {
                    lock(&self.table).take(found);
                    return Ok(true);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(failed("the look was cut off")),
                Err(RecvTimeoutError::Timeout) => {}
            }
            match point.at {
                Some((pid, since)) if since.elapsed() >= READ_LIMIT => {
                    warn!(pid, "the arguments of a process can't be read: whoever reads them hangs");
                    point.given_up = Some(Some(pid));
                    lock(&self.table).hanging.push(pid);
                    return Ok(false);
                }
                _ if Instant::now() >= until => {
                    point.given_up = Some(None);
                    return Err(failed("that takes too long"));
                }
                _ => {}
            }
        }
    }

    /// Logs each machine that is not on in libvirt's list, once.
    pub(super) fn tell_lost(&self, uri: &str, on: &HashSet<Uuid>) {
        let mut table = lock(&self.table);
        let lost = table.found.iter().filter(|it| !on.contains(&it.uuid) && it.exists());
        for it in lost.cloned().collect::<Vec<_>>() {
            if table.told.insert((it.pid, it.started)) {
                warn!(
                    %uri, domain = %fence_wire::escaped(&it.name), uuid = %it.uuid, pid = it.pid,
                    "a process has a machine that is not on by libvirt's list: libvirt lost the machine, or \
                     the process is another's, or can't end. Status and off of this domain fail while the \
                     process is there"
                );
            }
        }
    }

    /// Returns the proof that no process of the machine is there, by a search that began at `asked` or later.
    /// `name`: the domain's name, as far as it is known.
    ///
    /// # Errors
    /// Reason why one may be there.
    pub(super) fn gone(
        self: &Arc<Self>,
        uri: &str,
        (uuid, name): (Uuid, Option<&str>),
        asked: Instant,
    ) -> Result<ProcessesGone, String> {
        self.search(asked).map_err(|why| format!("libvirt at {uri}: {why}"))?;
        match lock(&self.table).remnant(uuid, name) {
            None => Ok(ProcessesGone(())),
            Some(it) => Err(it.reason(uri)),
        }
    }

    /// Returns the proof that the processes which had the machine are gone; none where none was found.
    ///
    /// # Errors
    /// Reason why one is not.
    pub(super) fn all_gone(uri: &str, noted: &[MachineProcess]) -> Option<Result<ProcessesGone, String>> {
        let left = noted.iter().find(|it| it.exists());
        (!noted.is_empty()).then(|| left.map_or(Ok(ProcessesGone(())), |it| Err(it.remnant().reason(uri))))
    }

    /// Returns the processes that have the machine. If none is known, searches for them.
    pub(super) fn note(self: &Arc<Self>, uuid: Uuid) -> Vec<MachineProcess> {
        let known = || {
            let table = lock(&self.table);
            table.found.iter().filter(|it| it.uuid == uuid && it.exists()).cloned().collect::<Vec<_>>()
        };
        let found = known();
        if !found.is_empty() {
            return found;
        }
        if let Err(why) = self.search(Instant::now()) {
            debug!(%uuid, "the process of a machine is not known: {why}");
        }
        known()
    }

    /// Returns which of these machines, of which libvirt says that they are off, a process has. Does not
    /// search: each connection to libvirt and each start of a machine has done so, and libvirt loses no
    /// machine but with the connection.
    pub(super) fn held(&self, off: &HashSet<Uuid>) -> HashSet<Uuid> {
        let table = lock(&self.table);
        let held = table.found.iter().filter(|it| off.contains(&it.uuid) && it.exists());
        held.map(|it| it.uuid).collect()
    }

    /// Returns what is to be said at this host of a machine that libvirt says is off, if a process has or may
    /// have it, by the last search. True with a process that has it by its arguments.
    pub(crate) fn words_of_lost(&self, uri: &str, uuid: Uuid, name: &str) -> Option<(RemnantWords, bool)> {
        let remnant = lock(&self.table).remnant(uuid, Some(name))?;
        Some((remnant.words(uri, THIS_HOST), remnant.is_named))
    }

    /// Returns the processes that are there and have machines, by the last search.
    pub(crate) fn all(&self) -> Vec<MachineProcess> {
        lock(&self.table).found.iter().filter(|it| it.exists()).cloned().collect()
    }

    /// Returns a process that is there and has such a machine, by the last search.
    pub(super) fn find(&self, is_meant: impl Fn(&MachineProcess) -> bool) -> Option<MachineProcess> {
        lock(&self.table).found.iter().find(|it| is_meant(it) && it.exists()).cloned()
    }

    /// Returns whether a process of the machine is there that is ending, by the last search.
    pub(super) fn is_ending(&self, uuid: Uuid, name: Option<&str>) -> bool {
        let remnant = lock(&self.table).remnant(uuid, name);
        remnant.is_some_and(|it| it.ending().is_some())
    }
}

impl ProcessTable {
    fn take(&mut self, found: FoundProcesses) {
        self.found.retain(MachineProcess::exists);
        for it in found.machines {
            if self.found.contains(&it) {
                continue;
            }
            if self.found.len() >= MAX_PROCESSES {
                warn!("more than {MAX_PROCESSES} processes have machines: the rest is not remembered");
                break;
            }
            self.found.push(it);
        }
        let is_known = |it: &UnnamedProcess| {
            self.found.iter().any(|known| (known.pid, known.started) == (it.pid, it.started))
        };
        self.others = Arc::new(found.others);
        self.unnamed = found.unnamed.into_iter().filter(|it| !is_known(it)).collect();
        self.told.retain(|known| self.found.iter().any(|it| (it.pid, it.started) == *known));
    }

    fn remnant(&self, uuid: Uuid, name: Option<&str>) -> Option<Remnant> {
        let named = self.found.iter().filter(|it| it.uuid == uuid).map(MachineProcess::remnant);
        let unnamed = self.unnamed.iter().filter(|it| it.may_have(name)).map(|it| Remnant {
            pid: it.pid,
            started: it.started,
            is_named: false,
        });
        named.chain(unnamed).find(|it| it.exists())
    }
}

impl MachineProcess {
    /// Returns whether this very process is still there, with any of its threads, or can't be asked.
    pub(crate) fn exists(&self) -> bool {
        self.remnant().exists()
    }

    /// Returns whether this very process is still there, and was killed or is ending.
    pub(crate) fn is_ending(&self) -> bool {
        self.exists() && self.remnant().ending().is_some()
    }

    /// Returns in words that this very process was killed and is still there; none otherwise.
    pub(crate) fn stuck(&self) -> Option<String> {
        let stuck = self.remnant().stuck(THAT_HOST).filter(|_| self.exists());
        stuck.map(|it| it.to_string())
    }

    /// Returns why a hypervisor without an instance can't tell: this process has the machine.
    pub(crate) fn reason(&self, uri: &str) -> String {
        self.remnant().reason(uri)
    }

    fn remnant(&self) -> Remnant {
        Remnant { pid: self.pid, started: self.started, is_named: true }
    }
}

impl UnnamedProcess {
    /// Returns whether it may have the machine with this name: libvirt makes the names of control groups from
    /// those of the machines, without the signs that are not allowed there, and cuts them.
    fn may_have(&self, name: Option<&str>) -> bool {
        let letters = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>();
        match (&self.group, name) {
            (Some(group), Some(name)) => letters(name).starts_with(&letters(group)),
            _ => true,
        }
    }
}

impl Remnant {
    fn exists(self) -> bool {
        match read_stat(&process_directory(Path::new("/proc"), self.pid)) {
            Ok(stat) => stat.is_none_or(|it| it.started == self.started && it.runs()),
            Err(error) => !is_gone(&error),
        }
    }

    /// Returns the states of its threads if the process was killed or is ending; none while it runs on.
    fn ending(self) -> Option<String> {
        ending_below(&process_directory(Path::new("/proc"), self.pid))
    }

    /// Returns in words that the process was killed and is still there; none otherwise.
    fn stuck(self, host: &str) -> Option<RemnantWords> {
        let states = self.ending()?;
        let pid = self.pid;
        let fact = format!(
            "the QEMU of the domain is still there: process {pid} of {host} was killed and can't end \
             (threads in state {states})"
        );
        Some(RemnantWords { fact, step: stuck_step(host) })
    }

    /// Returns why a hypervisor without an instance can't tell.
    fn reason(self, uri: &str) -> String {
        self.words(uri, THAT_HOST).to_string()
    }

    /// Returns the same as fact and step. `host`: as the reader calls the host of the process.
    fn words(self, uri: &str, host: &str) -> RemnantWords {
        let Self { pid, is_named, .. } = self;
        let says = format!("libvirt at {uri} says that the domain is shut off, and");
        if !is_named {
            let fact = format!(
                "{says} process {pid} of {host}, a QEMU whose arguments can't be read any more, may have the \
                 machine"
            );
            return RemnantWords { fact, step: stuck_step(host) };
        }
        if let Some(stuck) = self.stuck(host) {
            return RemnantWords { fact: format!("{says} {}", stuck.fact), ..stuck };
        }
        let fact = format!("{says} process {pid} of {host} has the machine: libvirt lost its status file");
        let step = format!("See ps -fp {pid}; if that is the machine: kill {pid}, and ask again");
        RemnantWords { fact, step }
    }
}

impl fmt::Display for RemnantWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}", self.fact, self.step)
    }
}

/// Returns what a process means that was killed and can't end, and the next step.
fn stuck_step(host: &str) -> String {
    format!(
        "Such a process waits for storage, and may still write. Look at the storage of {host}; once the \
         process is gone, ask again. If the process stays: only power-off of {host} is sure"
    )
}

/// Returns the states of a process's threads, as letters, if it was killed or is ending.
fn ending_below(process: &Path) -> Option<String> {
    let stat = read_stat(process).ok().flatten()?;
    let is_killed = || {
        let status = read_file(&process.join("status"), MAX_FILE).unwrap_or_default();
        let status = String::from_utf8_lossy(&status).into_owned();
        let sigkill = 1_u64 << 8;
        status.lines().any(|it| {
            let mask = it.strip_prefix("ShdPnd:").or_else(|| it.strip_prefix("SigPnd:"));
            mask.is_some_and(|it| u64::from_str_radix(it.trim(), 16).is_ok_and(|it| it & sigkill != 0))
        })
    };
    if !matches!(stat.state, b'Z' | b'X') && stat.flags & EXITING == 0 && !is_killed() {
        return None;
    }
    let mut states: Vec<u8> =
        threads(process).filter_map(|it| read_stat(&it).ok().flatten()).map(|it| it.state).collect();
    states.sort_unstable();
    states.dedup();
    Some(states.into_iter().map(char::from).map(String::from).collect::<Vec<_>>().join(", "))
}

/// Returns the directories of a process's threads.
fn threads(process: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(process.join("task")).into_iter().flatten().flatten().map(|it| it.path())
}

/// Part of `/proc/PID/stat`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct MachineStat {
    /// Name of the program, cut to 15 bytes.
    comm: String,
    state: u8,
    flags: u64,
    threads: u64,
    started: u64,
}

impl MachineStat {
    /// Returns whether something of the process is there: its first thread may have ended before the others.
    fn runs(&self) -> bool {
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
fn read_stat(process: &Path) -> std::io::Result<Option<MachineStat>> {
    let stat = read_file(&process.join("stat"), MAX_FILE)?;
    let parse = || {
        let after = stat.iter().rposition(|it| *it == b')')? + 1;
        let before = stat.iter().position(|it| *it == b'(')? + 1;
        let words: Vec<_> = std::str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace().collect();
        let state = *words.first()?.as_bytes().first()?;
        Some(MachineStat {
            comm: String::from_utf8_lossy(stat.get(before..after - 1)?).into_owned(),
            state,
            flags: words.get(6)?.parse().ok()?,
            threads: words.get(17)?.parse().ok()?,
            started: words.get(19)?.parse().ok()?,
        })
    };
    Ok(parse())
}

/// Returns the processes that count and have machines. `others` are not read again.
fn search_below(
    proc: &Path,
    hanging: &[u32],
    others: &OtherPrograms,
    point: &Mutex<ReadPoint>,
) -> FoundProcesses {
    let mut found = FoundProcesses::default();
    let entries = match fs::read_dir(proc) {
        Ok(entries) => entries,
        Err(error) => {
            warn!("can't look for processes that have machines: {}: {error}", proc.display());
            return found;
        }
    };
    let pids = entries.flatten().filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        {
            let mut point = lock(point);
            if point.given_up.is_some() {
                break;
            }
            point.at = Some((pid, Instant::now()));
        }
        match examine(&process_directory(proc, pid), pid, hanging.contains(&pid), others) {
            Ok(ExaminedProcess::Machine(it)) => found.machines.push(it),
            Ok(ExaminedProcess::Unnamed(it)) => found.unnamed.push(it),
            Ok(ExaminedProcess::Program(it)) => drop(found.others.insert(it)),
            Ok(ExaminedProcess::Other) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => debug!(pid, "can't read a process: {error}"),
        }
    }
    found
}

/// Meaning of processes that can't be seen.
const HIDDEN: &str = "can't see the processes of other users (hidepid of /proc, ProtectProc of the unit): a \
                      machine that libvirt lost, or that can't end, is not noticed";

/// Returns that the processes of other users can't be seen, where that is so.
pub(crate) fn hidden() -> Option<&'static str> {
    File::open("/proc/1/status").is_err().then_some(HIDDEN)
}

/// Warns where the processes of other users can't be seen.
pub(super) fn warn_if_hidden() {
    if let Some(why) = hidden() {
        warn!("{why}");
    }
}

/// One process, as a search sees it.
#[derive(PartialEq, Eq, Debug)]
enum ExaminedProcess {
    Machine(MachineProcess),
    Unnamed(UnnamedProcess),
    /// Another program, which has no machine as long as it is that program.
    Program((u32, u64, String)),
    /// No machine, or nothing that counts.
    Other,
}

/// Reads one process. `hangs`: its arguments are not to be read.
fn examine(
    process: &Path,
    pid: u32,
    hangs: bool,
    others: &OtherPrograms,
) -> std::io::Result<ExaminedProcess> {
    let Some(before) = read_stat(process)? else { return Ok(ExaminedProcess::Other) };
    let program = (pid, before.started, before.comm.clone());
    if others.contains(&program) {
        return Ok(ExaminedProcess::Program(program));
    }
    // What does not count is not read: a process can make a reader of its arguments wait.
    if before.flags & KERNEL_THREAD != 0 || !before.runs() || !counts(process)? {
        return Ok(ExaminedProcess::Other);
    }
    let arguments = if hangs { Vec::new() } else { arguments_of(process)? };
    // Else the arguments may be those of another process with this pid.
    if !read_stat(process)?.is_some_and(|it| it.started == before.started && it.runs()) {
        return Ok(ExaminedProcess::Other);
    }
    let started = before.started;
    let is_emulator = before.comm.contains("qemu") || before.comm.contains("kvm");
    if !arguments.is_empty() {
        return Ok(match machine_of(&arguments) {
            Some((uuid, name)) => ExaminedProcess::Machine(MachineProcess { uuid, name, pid, started }),
            // The kernel shows the arguments a moment after the program has begun.
            None if is_emulator => ExaminedProcess::Other,
            None => ExaminedProcess::Program(program),
        });
    }
    let groups = read_file(&process.join("cgroup"), MAX_FILE)?;
    let group = machine_group(&groups);
    Ok(match is_emulator || group.is_some() {
        true => ExaminedProcess::Unnamed(UnnamedProcess { pid, started, group }),
        false => ExaminedProcess::Other,
    })
}

/// Returns the arguments of a process; none if none of its threads has the memory with them any more. The
/// first thread may have ended before the others.
fn arguments_of(process: &Path) -> std::io::Result<Vec<u8>> {
    let arguments = read_file(&process.join("cmdline"), MAX_ARGUMENTS)?;
    if !arguments.is_empty() {
        return Ok(arguments);
    }
    let of_threads = threads(process).filter_map(|it| read_file(&it.join("cmdline"), MAX_ARGUMENTS).ok());
    Ok(of_threads.into_iter().find(|it| !it.is_empty()).unwrap_or_default())
}

/// Returns the name of the machine by the control group of its QEMU: `machine-qemu\x2dID\x2dNAME.scope` or
/// `qemu-ID-NAME.libvirt-qemu`.
fn machine_group(groups: &[u8]) -> Option<String> {
    let groups = String::from_utf8_lossy(groups).replace("\\x2d", "-");
    let mut parts = groups.split(['/', '\n']).filter_map(|it| {
        let scope = it.strip_prefix("machine-").and_then(|it| it.split_once(".scope"));
        scope.or_else(|| it.split_once(".libvirt-qemu")).map(|(name, _)| name.to_owned())
    });
    let name = parts.next()?;
    let (id, name) = name.strip_prefix("qemu-")?.split_once('-')?;
    id.bytes().all(|it| it.is_ascii_digit()).then(|| name.to_owned())
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
