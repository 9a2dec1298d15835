// SPDX-License-Identifier: GPL-2.0-or-later
//! The audit record: one structured event for each request that was authenticated, however it ended.
//!
//! The file is written by a thread of its own, and no request waits for it: a disk that hangs, or a pipe that nobody
//! reads, costs records and no fence. What did not fit into the queue meanwhile is counted, and that is said; the log has
//! those records all the same.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fence_cli::shown;
use fence_wire::{Response, escaped};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tracing::{error, info, warn};

use crate::backend::DomainRef;
use crate::outlet::{Outlet, Pushed, Sink};
use crate::service::Job;

/// A request that is over.
pub(crate) struct Record<'a> {
    pub(crate) job: &'a Job,
    /// The domain that its target meant.
    pub(crate) domain: Option<&'a DomainRef>,
    pub(crate) end: End<'a>,
    pub(crate) stages: Stages,
}

/// How it ended.
#[derive(Clone, Copy)]
pub(crate) enum End<'a> {
    /// It ran, or was refused, and the client was sent this.
    Answered { response: Response, reason: Option<&'a str>, delivered: bool },
    /// It never ran: the peer did not prove itself.
    NotProved(&'a str),
    /// It never ran, for this reason.
    NotRun(&'a str),
}

/// When each stage was over, counted from the arrival.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Stages {
    pub(crate) connected: Option<Duration>,
    pub(crate) resolved: Option<Duration>,
    pub(crate) turn: Option<Duration>,
    pub(crate) proved: Option<Duration>,
    pub(crate) done: Option<Duration>,
}

impl Stages {
    pub(crate) fn since(arrived: Instant) -> Duration {
        arrived.elapsed()
    }
}

/// Where records go: the log always, and a file of JSON lines where the configuration names one.
#[derive(Debug, Default)]
pub(crate) struct Audit(Option<AuditFile>);

/// Records that may wait for the file.
const QUEUE: usize = 4096;
/// How long the end waits for the file.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct AuditFile {
    outlet: Outlet<Item>,
    /// The thread is to open the file anew.
    reopen: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Item {
    /// A request's number, and its line.
    Line(u64, String),
    /// Nothing to be written.
    Look,
}

/// The thread's side.
struct Writer {
    path: PathBuf,
    file: File,
    reopen: Arc<AtomicBool>,
}

impl Audit {
    /// Opens the file, where there is to be one: created with mode 0640, appended to.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        Ok(Self(path.map(AuditFile::open).transpose()?))
    }

    /// Has the file opened anew, for log rotation.
    pub(crate) fn reopen(&self) {
        let Some(file) = &self.0 else { return };
        file.reopen.store(true, Ordering::Release);
        // With a full queue the thread sees it at the next record.
        let _ = file.outlet.offer(Item::Look);
    }

    /// Writes a record.
    pub(crate) fn write(&self, record: &Record<'_>) {
        log(record);
        let Some(file) = &self.0 else { return };
        let mut line = plain(&json(record).to_string());
        line.push('\n');
        file.write(record.job.id, line);
    }

    /// The daemon ends: all records are in the file when this returns, if it is quick enough.
    pub(crate) fn finish(&self) {
        if let Some(file) = &self.0 {
            file.finish(FINISH_LIMIT);
        }
    }
}

impl AuditFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let reopen = Arc::new(AtomicBool::new(false));
        let writer = Writer { path: path.to_owned(), file, reopen: Arc::clone(&reopen) };
        Ok(Self { outlet: Outlet::start("audit", QUEUE, writer)?, reopen })
    }

    fn write(&self, id: u64, line: String) {
        // Once: a disk that hangs would fill the log.
        if self.outlet.push(Item::Line(id, line)) == Pushed::FirstLost {
            error!(
                id,
                "the audit file takes no records: {QUEUE} wait for it; requests go on, and what finds no room is in the \
                 log alone"
            );
        }
    }

    fn finish(&self, limit: Duration) {
        if !self.outlet.finish(limit) {
            warn!("the audit file does not answer: the last records are in the log alone");
        }
    }
}

impl Sink<Item> for Writer {
    fn write(&mut self, item: Item) {
        if self.reopen.swap(false, Ordering::Acquire) {
            match append(&self.path) {
                Ok(new) => {
                    self.file = new;
                    info!(file = %shown(&self.path), "audit file opened anew");
                }
                // The old one goes on: a record in a moved file is better than none.
                Err(error) => error!(file = %shown(&self.path), "can't open the audit file anew: {error}"),
            }
        }
        // One write for one line, so that lines never mix and a reader never sees half of one.
        if let Item::Line(id, line) = item
            && let Err(error) = self.file.write_all(line.as_bytes())
        {
            error!(file = %shown(&self.path), id, "can't write the audit file: {error}");
        }
    }

    fn caught_up(&mut self, lost: u64) {
        warn!(file = %shown(&self.path), lost, "the audit file takes records again; {lost} are in the log alone");
    }
}

/// The same JSON without characters that a terminal acts on or that turn text round: JSON lets them stand as they are.
fn plain(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        let is_unsafe = c > '~' && escaped(c.encode_utf8(&mut [0; 4])).to_string().starts_with('\\');
        if is_unsafe {
            line.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            line.push(c);
        }
    }
    line
}

fn append(path: &Path) -> io::Result<File> {
    // To open a pipe that nobody has open for reading is an error then; it would be waited for otherwise.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(flags).open(path)?;
    // The thread waits for the file; a pipe that is full for a moment loses nothing.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file)
}

/// One record as JSON. Values of peers stay as they are: JSON and [`plain`] escape what needs it.
fn json(record: &Record<'_>) -> serde_json::Value {
    let Record { job, domain, end, stages } = record;
    let ended = Ended::of(*end);
    let millis = |it: Option<Duration>| it.map(|it| (it.as_secs_f64() * 10_000.0).round() / 10.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    serde_json::json!({
        "time": (now.as_secs_f64() * 1000.0).round() / 1000.0,
        "id": job.id,
        "transport": job.transport,
        "peer": job.peer,
        "source_domain": job.identity.domain,
        "hash": job.hash.name(),
        "key": job.key.as_ref().map(|it| it.fingerprint.as_str()),
        "action": job.action.name(),
        "target": job.target.as_str(),
        "domain": domain.map(|it| it.name.as_str()),
        "uuid": domain.map(|it| it.uuid.as_str()),
        "decision": ended.decision,
        "result": ended.result,
        "reason": ended.reason,
        "delivered": ended.delivered,
        "connected_ms": millis(stages.connected),
        "resolved_ms": millis(stages.resolved),
        "turn_ms": millis(stages.turn),
        "proved_ms": millis(stages.proved),
        "done_ms": millis(stages.done),
    })
}

/// [`End`] in words.
struct Ended<'a> {
    decision: &'static str,
    result: Option<String>,
    reason: Option<&'a str>,
    delivered: bool,
    fine: bool,
}

impl<'a> Ended<'a> {
    fn of(end: End<'a>) -> Self {
        match end {
            End::Answered { response, reason, delivered } => Self {
                decision: if response == Response::PermissionDenied { "denied" } else { "run" },
                result: Some(response.to_string()),
                reason,
                delivered,
                fine: delivered && matches!(response, Response::Success | Response::Off),
            },
            End::NotProved(reason) | End::NotRun(reason) => Self {
                decision: "not run",
                result: None,
                reason: Some(reason),
                delivered: false,
                fine: false,
            },
        }
    }
}

fn log(record: &Record<'_>) {
    let Record { job, domain, end, stages } = record;
    let ended = Ended::of(*end);
    let target = escaped(job.target.as_str());
    let (name, uuid) = domain.map_or(("-", "-"), |it| (it.name.as_str(), it.uuid.as_str()));
    let name = escaped(name);
    let key = job.key.as_ref().map_or("none", |it| it.fingerprint.as_str());
    let source = escaped(job.identity.name.as_deref().unwrap_or("-"));
    let source_uuid = job.identity.domain.as_deref().unwrap_or("-");
    let decision = ended.decision;
    let result = match (ended.result, ended.delivered) {
        (None, _) => "not run".to_owned(),
        (Some(result), true) => result,
        (Some(result), false) => format!("{result} (the client did not take the answer)"),
    };
    let reason = escaped(ended.reason.unwrap_or("-"));
    let blank = if job.target.as_str().is_empty() { "" } else { " " };
    macro_rules! event {
        ($level:ident) => {
            $level!(
                target: "audit",
                id = job.id, transport = job.transport, peer = %job.peer, source = %source, source_uuid, hash = %job.hash, key, action = %job.action, target = %target,
                domain = %name, uuid, decision, result, reason = %reason,
                connected_ms = %Millis(stages.connected), resolved_ms = %Millis(stages.resolved),
                turn_ms = %Millis(stages.turn), proved_ms = %Millis(stages.proved), done_ms = %Millis(stages.done),
                "{}{blank}{target}: {result}", job.action
            )
        };
    }
    if ended.fine { event!(info) } else { event!(warn) }
}

struct Millis(Option<Duration>);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(it) => write!(f, "{:.1}", it.as_secs_f64() * 1000.0),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use nix::sys::stat::Mode;

    use super::*;

    /// Far longer than anything here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    fn line(number: u64) -> String {
        format!("{number} {}\n", "x".repeat(400))
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert!(AuditFile::open(&path).is_err(), "nobody has it open");
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let audit = AuditFile::open(&path).unwrap();
        // More than pipe and queue hold: were any of them waited for, this would never end.
        let all = 3 * QUEUE as u64;
        for number in 0..all {
            audit.write(number, line(number));
        }
        let lost = audit.outlet.lost();
        assert!(lost > 0);
        audit.finish(Duration::from_millis(1));
        // Whoever reads at last gets what was kept, in order and in whole lines.
        let mut lines = BufReader::new(reader).lines();
        let mut kept = Vec::new();
        for _ in 0..all - lost {
            let text = lines.next().unwrap().unwrap();
            kept.push(text.split(' ').next().unwrap().parse::<u64>().unwrap());
        }
        assert!(kept.is_sorted_by(|a, b| a < b), "{kept:?}");
        audit.write(all, line(all));
        assert_eq!(lines.next().unwrap().unwrap(), line(all).trim_end());
        let end = Instant::now() + PATIENCE;
        while audit.outlet.lost() > 0 {
            assert!(Instant::now() < end, "it was never said that records are written again");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_end_waits_for_the_file_and_a_moved_one_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("audit"), dir.path().join("audit.1"));
        let audit = Audit(Some(AuditFile::open(&path).unwrap()));
        let file = audit.0.as_ref().unwrap();
        (0..1000).for_each(|it| file.write(it, line(it)));
        file.finish(PATIENCE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), (0..1000).map(line).collect::<String>());
        std::fs::rename(&path, &moved).unwrap();
        file.write(1000, line(1000));
        file.finish(PATIENCE);
        audit.reopen();
        file.write(1001, line(1001));
        file.finish(PATIENCE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(1001));
        assert_eq!(std::fs::read_to_string(&moved).unwrap().lines().count(), 1001);
    }
}
