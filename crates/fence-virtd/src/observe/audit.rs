// SPDX-License-Identifier: GPL-2.0-or-later
//! The audit record: one structured event for each authenticated request, however it ended.
//!
//! Owns the audit file, which a thread of its own opens and writes. No request may wait for it: a disk that
//! hangs or is read-only, or a pipe without a reader, costs records and no fence. Records that find the queue
//! full, or the file closed, are counted, and that is logged; they are in the log alone.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fence_cli::shown;
use fence_core::intent::Intent;
use fence_wire::{Response, escaped};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tracing::{debug, error, info, warn};

use crate::intent::OpenIntent;
use crate::request::record::{AnswerDelivery, AuditRecord, RequestEnd};
use crate::request::trail::{AgentRun, AgentRunEnd as RunEnded, TrailSnapshot};
use crate::util::backoff::{Backoff, OncePerReason};
use crate::util::fault;
use crate::util::outlet::{Outlet, PushResult, Sink};

/// Writer of audit records: always to the log, and to a file of JSON lines if the configuration names one.
#[derive(Debug, Default)]
pub(crate) struct Audit(Option<AuditFile>);

/// Records that may wait for the file.
const QUEUE: usize = 4096;
/// Bytes at the end of the file among which a line of an earlier daemon is looked for.
const LOOKED_THROUGH: u64 = 1024 * 1024;
/// Bytes of a run's output in the log.
const LOGGED_OUTPUT: usize = 120;
/// Time for the last records to reach the file when the daemon ends.
const FINISH_LIMIT: Duration = Duration::from_secs(1);
/// Time for the file to be opened when the daemon starts. A disk that hangs delays the start no longer.
const OPEN_LIMIT: Duration = Duration::from_secs(1);
/// Pauses between two attempts to open the file; each record is an attempt too.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct AuditFile {
    path: PathBuf,
    outlet: Outlet<AuditItem>,
    /// Set when the thread must open the file anew.
    reopen: Arc<AtomicBool>,
    state: Arc<AuditFileState>,
}

/// State of the audit file, which the metrics show.
#[derive(Debug, Default)]
pub(crate) struct AuditFileState {
    /// The file is open, and took the last record.
    takes_records: AtomicBool,
    /// Records that are in the log alone.
    missing: AtomicU64,
}

impl AuditFileState {
    /// Returns whether the file takes records.
    pub(crate) fn takes_records(&self) -> bool {
        self.takes_records.load(Ordering::Relaxed)
    }

    /// Returns the number of records that are in the log alone.
    pub(crate) fn missing(&self) -> u64 {
        self.missing.load(Ordering::Relaxed)
    }

    fn misses_one(&self) {
        self.missing.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum AuditItem {
    /// The line of a request with this number, and the intent that it ends.
    Line(u64, String, Option<OpenIntent>),
    /// A line of an earlier daemon that may be in the file already, and the intent that it ends.
    Earlier(String, OpenIntent),
    /// No line: the thread only opens the file, or reads the flag to do it anew.
    Reopen,
}

/// The thread's side.
struct AuditWriter {
    path: PathBuf,
    /// None while the file can't be opened, or can't be written.
    file: Option<File>,
    /// The file ends in the middle of a line: the disk was full, or the machine lost its power.
    is_cut: bool,
    reopen: Arc<AtomicBool>,
    state: Arc<AuditFileState>,
    pauses: Backoff,
    /// Moment of the next attempt to open the file.
    next_attempt: Instant,
    logged: OncePerReason,
    /// Records that the file did not get since it last took one.
    missing: u64,
}

impl Audit {
    /// Opens the file, if the configuration names one: created with mode 0640, and appended to. A file that
    /// can't be opened is logged, and tried again.
    ///
    /// # Errors
    /// No thread can be started for it.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        Ok(Self(path.map(AuditFile::open).transpose()?))
    }

    /// Opens the file anew, after log rotation.
    pub(crate) fn reopen(&self) {
        let Some(file) = &self.0 else { return };
        file.reopen.store(true, Ordering::Release);
        // If the queue is full, the thread reads the flag at the next record.
        let _ = file.outlet.offer(AuditItem::Reopen);
    }

    /// Returns the state of the file, if the configuration names one.
    pub(crate) fn file_state(&self) -> Option<&AuditFileState> {
        self.0.as_ref().map(|it| &*it.state)
    }

    /// Writes a record, which ends the request's intent where nothing is left to do.
    pub(crate) fn write(&self, record: &AuditRecord<'_>, ends_intent: bool) {
        log(record);
        let intent = record.job.trail.intent().filter(|_| ends_intent).cloned();
        let Some(file) = &self.0 else { return intent.iter().for_each(OpenIntent::closed) };
        let mut line = plain(&json(record).to_string());
        line.push('\n');
        file.write(record.job.id, line, intent.as_ref());
    }

    /// Writes the record of what became of an action that was under way when an earlier daemon ended, or of
    /// the start that was owed when the request had ended.
    pub(crate) fn write_unfinished(&self, intent: &Intent, (end, reason): (&str, &str), open: &OpenIntent) {
        let Intent { id, action, domain, uuid, transport, peer, .. } = intent;
        let (target, domain) = (escaped(&intent.target), escaped(domain));
        warn!(
            target: "audit",
            id, transport, peer = %escaped(peer), action, target = %target, domain = %domain, uuid,
            reason = %escaped(reason),
            "{action} {target}: {end}"
        );
        let Some(file) = &self.0 else { return open.closed() };
        let mut line = plain(&unfinished_json(intent, reason).to_string());
        line.push('\n');
        file.write(*id, line, Some(open));
    }

    /// Writes the line of an earlier daemon, unless the file has it.
    pub(crate) fn write_earlier(&self, line: &str, open: OpenIntent) {
        match &self.0 {
            Some(file) if !line.is_empty() => {
                let _ = file.outlet.push(AuditItem::Earlier(line.to_owned(), open));
            }
            _ => open.closed(),
        }
    }

    /// Waits at the end of the daemon until all records are in the file, at most [`FINISH_LIMIT`].
    pub(crate) fn finish(&self) {
        if let Some(file) = &self.0 {
            file.finish(FINISH_LIMIT);
        }
    }
}

impl AuditFile {
    fn open(path: &Path) -> io::Result<Self> {
        let (reopen, state) = (Arc::<AtomicBool>::default(), Arc::<AuditFileState>::default());
        let writer = AuditWriter::new(path, &reopen, &state);
        let file =
            Self { path: path.to_owned(), outlet: Outlet::start("audit", QUEUE, writer)?, reopen, state };
        // The log is to say before the daemon serves that the file can't be opened.
        if !(file.outlet.offer(AuditItem::Reopen) && file.outlet.finish(OPEN_LIMIT)) {
            error!(
                file = %shown(path),
                "the audit file does not answer: records wait for it, {QUEUE} at most, and requests go on"
            );
        }
        Ok(file)
    }

    fn write(&self, id: u64, line: String, intent: Option<&OpenIntent>) {
        let pushed = self.outlet.push(AuditItem::Line(id, line, intent.cloned()));
        if pushed != PushResult::Taken {
            self.state.misses_one();
            intent.into_iter().for_each(OpenIntent::closed);
        }
        // Once: a disk that hangs would fill the log.
        if pushed == PushResult::FirstLost {
            error!(
                id, file = %shown(&self.path),
                "the audit file takes no records: {QUEUE} wait for it; requests go on, and what finds no \
                 room is in the log alone"
            );
        }
    }

    fn finish(&self, limit: Duration) {
        if !self.outlet.finish(limit) {
            warn!(file = %shown(&self.path), "the audit file does not answer: the last records are in the \
            log alone");
        }
    }
}

impl Sink<AuditItem> for AuditWriter {
    fn write(&mut self, item: AuditItem) {
        if self.reopen.swap(false, Ordering::Acquire) {
            self.open_anew();
        } else if self.file.is_none() {
            self.open();
        }
        match item {
            AuditItem::Line(id, line, intent) => {
                if let Some(it) = &intent {
                    it.ended(&line);
                }
                self.append_line(id, &line);
                fault::reached("audit_written");
                if let Some(it) = intent {
                    it.audited();
                }
            }
            AuditItem::Earlier(line, intent) => {
                if !has_line(&self.path, &line) {
                    self.append_line(0, &line);
                }
                intent.audited();
            }
            AuditItem::Reopen => {}
        }
    }

    fn pause(&self) -> Option<Duration> {
        self.file.is_none().then(|| self.next_attempt.saturating_duration_since(Instant::now()))
    }

    fn wake(&mut self) {
        if self.file.is_none() {
            self.open();
        }
    }

    fn caught_up(&mut self, lost: u64) {
        warn!(file = %shown(&self.path), lost, "the audit file takes records again; {lost} are in the log \
        alone");
    }
}

impl AuditWriter {
    fn new(path: &Path, reopen: &Arc<AtomicBool>, state: &Arc<AuditFileState>) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            is_cut: false,
            reopen: Arc::clone(reopen),
            state: Arc::clone(state),
            pauses: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
            next_attempt: Instant::now(),
            logged: OncePerReason::default(),
            missing: 0,
        }
    }

    /// Opens a file that is not open.
    fn open(&mut self) {
        match append(&self.path) {
            Ok(file) => {
                (self.file, self.is_cut) = (Some(file), ends_cut(&self.path));
                self.takes_records();
            }
            Err(error) => self.failed("can't open the audit file", &error),
        }
    }

    /// Opens a file that may be open.
    fn open_anew(&mut self) {
        match append(&self.path) {
            Ok(file) => {
                (self.file, self.is_cut) = (Some(file), ends_cut(&self.path));
                info!(file = %shown(&self.path), "audit file opened anew");
                self.takes_records();
            }
            Err(error) if self.file.is_none() => {
                self.logged.forget();
                self.failed("can't open the audit file", &error);
            }
            // The old file stays in use: a record in a moved file is better than none.
            Err(error) => error!(file = %shown(&self.path), "can't open the audit file anew: {error}"),
        }
    }

    fn append_line(&mut self, id: u64, line: &str) {
        let Some(file) = &mut self.file else {
            self.missing += 1;
            return self.state.misses_one();
        };
        // A line that was cut stays alone.
        let begin = if self.is_cut { "\n" } else { "" };
        let (written, result) = write_counted(file, [begin, line].concat().as_bytes());
        self.is_cut = match written {
            0 => self.is_cut,
            written => result.is_err() && written > begin.len(),
        };
        match result {
            Ok(()) => self.takes_records(),
            Err(error) => {
                self.missing += 1;
                self.state.misses_one();
                debug!(file = %shown(&self.path), id, "not in the audit file");
                self.failed("can't write the audit file", &error);
                // The file may be another one by now, or be usable only if it is opened anew.
                self.file = None;
            }
        }
    }

    /// Notes that the file takes records, and logs how many it did not take before.
    fn takes_records(&mut self) {
        self.state.takes_records.store(true, Ordering::Relaxed);
        self.pauses.reset();
        self.logged.forget();
        match std::mem::take(&mut self.missing) {
            0 => {}
            missing => warn!(
                file = %shown(&self.path), missing,
                "the audit file takes records again; {missing} are in the log alone"
            ),
        }
    }

    /// Logs a fault of the file, each once, and plans the next attempt.
    fn failed(&mut self, what: &str, error: &io::Error) {
        self.state.takes_records.store(false, Ordering::Relaxed);
        self.next_attempt = Instant::now() + self.pauses.next_pause();
        if self.logged.is_new(&format!("{what}: {error}")) {
            error!(
                file = %shown(&self.path),
                "{what}: {error}. Records are in this log alone until it can be written; that is tried again \
                 at each record, after growing pauses, and at SIGHUP. fence_virtd --check says what it lacks"
            );
        }
    }
}

/// Writes all, and returns the number of bytes that were written. One write for each line, so that lines
/// never mix and a reader never sees half a line; more only where the disk has no room for all of it.
fn write_counted(file: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Returns whether a file ends in the middle of a line. A pipe never does.
fn ends_cut(path: &Path) -> bool {
    let last = || -> io::Result<Option<u8>> {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        let about = file.metadata()?;
        if !about.is_file() || about.len() == 0 {
            return Ok(None);
        }
        let mut last = [0];
        file.read_exact_at(&mut last, about.len() - 1)?;
        Ok(Some(last[0]))
    };
    last().is_ok_and(|it| it.is_some_and(|it| it != b'\n'))
}

/// Returns whether the end of a file has this line.
fn has_line(path: &Path, line: &str) -> bool {
    let found = || -> io::Result<bool> {
        let mut file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_THROUGH)))?;
        let mut end = Vec::new();
        file.take(LOOKED_THROUGH).read_to_end(&mut end)?;
        Ok(end.split_inclusive(|byte| *byte == b'\n').any(|it| it == line.as_bytes()))
    };
    found().unwrap_or(false)
}

/// Escapes control and bidirectional-override characters, which JSON itself allows.
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
    // Without this flag the daemon would wait for a reader if the file is a pipe; with it that is an error.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(flags).open(path)?;
    // From now on a write waits: a pipe that is full for a moment loses no record.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file)
}

/// Returns a record as JSON. Values of peers are not changed: JSON and [`plain`] escape them as needed.
fn json(record: &AuditRecord<'_>) -> serde_json::Value {
    let AuditRecord { job, domain, end, stages } = record;
    let ended = EndInWords::of(*end);
    let millis = |it: Option<Duration>| it.map(|it| (it.as_secs_f64() * 10_000.0).round() / 10.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut json = serde_json::json!({
        "time": (now.as_secs_f64() * 1000.0).round() / 1000.0,
        "id": job.id,
        "transport": job.transport,
        "peer": job.peer,
        "source_domain": job.identity.domain.map(|it| it.to_string()),
        "hash": job.hash.name(),
        "key": job.key.as_ref().map(|it| it.key.fingerprint()),
        "action": job.action.name(),
        "target": job.target.as_str(),
        "domain": domain.map(|it| it.name.as_str()),
        "uuid": domain.map(|it| it.uuid.to_string()),
        "decision": ended.decision,
        "result": ended.result,
        "reason": ended.reason,
        "delivered": ended.delivered == AnswerDelivery::Taken,
        "connected_ms": millis(stages.connected),
        "resolved_ms": millis(stages.resolved),
        "turn_ms": millis(stages.turn),
        "proved_ms": millis(stages.proved),
        "done_ms": millis(stages.done),
    });
    if let Some(asked) = job.dry_run {
        json["dry_run"] = asked.to_string().into();
    }
    if job.target.is_misnamed() {
        json["target_as"] = "name".into();
    }
    let TrailSnapshot { kept, left_out, .. } = job.trail.runs();
    if !kept.is_empty() {
        json["runs"] = kept
            .iter()
            .map(|it| {
                serde_json::json!({
                    "device": it.device,
                    "agent": it.agent,
                    "action": it.action,
                    "exit": match it.ended {
                        RunEnded::Exit(code) => Some(code),
                        RunEnded::Signal(_) | RunEnded::Killed(_) | RunEnded::NotRun(_) => None,
                    },
                    "ended": it.ended.to_string(),
                    "ms": millis(Some(it.took)),
                    "output": it.output,
                })
            })
            .collect();
    }
    if left_out > 0 {
        json["runs_left_out"] = left_out.into();
    }
    json
}

/// Returns the record of an action whose end nobody saw, with the keys of every other record.
fn unfinished_json(intent: &Intent, reason: &str) -> serde_json::Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    serde_json::json!({
        "time": (now.as_secs_f64() * 1000.0).round() / 1000.0,
        "id": intent.id,
        "transport": intent.transport,
        "peer": intent.peer,
        "source_domain": intent.source_domain,
        "hash": intent.hash,
        "key": intent.key,
        "action": intent.action,
        "target": intent.target,
        "domain": intent.domain,
        "uuid": intent.uuid,
        "decision": "run",
        "result": null,
        "reason": reason,
        "delivered": false,
        "connected_ms": null,
        "resolved_ms": null,
        "turn_ms": null,
        "proved_ms": null,
        "done_ms": null,
    })
}

/// [`RequestEnd`] in words.
struct EndInWords<'a> {
    decision: &'static str,
    result: Option<String>,
    reason: Option<&'a str>,
    delivered: AnswerDelivery,
    fine: bool,
}

impl<'a> EndInWords<'a> {
    fn of(end: RequestEnd<'a>) -> Self {
        match end {
            RequestEnd::Answered { response, reason, delivered } => Self {
                decision: if response == Response::PermissionDenied { "denied" } else { "run" },
                result: Some(response.to_string()),
                reason,
                delivered,
                fine: delivered == AnswerDelivery::Taken
                    && matches!(response, Response::Success | Response::Off),
            },
            RequestEnd::NotProved(reason) | RequestEnd::NotRun(reason) => Self {
                decision: "not run",
                result: None,
                reason: Some(reason),
                delivered: AnswerDelivery::NotTaken,
                fine: false,
            },
        }
    }
}

fn log(record: &AuditRecord<'_>) {
    let AuditRecord { job, domain, end, stages } = record;
    let ended = EndInWords::of(*end);
    let target = escaped(job.target.as_str());
    let (name, uuid) = domain.map_or(("-", "-".to_owned()), |it| (it.name.as_str(), it.uuid.to_string()));
    let name = escaped(name);
    let key = job.key.as_ref().map_or_else(|| "none".to_owned(), |it| it.key.fingerprint());
    let source = escaped(job.identity.name.as_deref().unwrap_or("-"));
    let source_uuid = job.identity.domain.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let decision = ended.decision;
    let result = match (ended.result, ended.delivered) {
        (None, _) => "not run".to_owned(),
        (Some(result), AnswerDelivery::Taken) => result,
        (Some(result), AnswerDelivery::NotTaken) => format!("{result} (the client did not take the answer)"),
        (Some(result), AnswerDelivery::Withheld) => {
            format!("{result} (the answer was not sent: the same client sent a newer request)")
        }
    };
    let reason = escaped(ended.reason.unwrap_or("-"));
    let runs = job.trail.runs();
    let runs = (!runs.kept.is_empty()).then(|| tracing::field::display(InShort(&runs)));
    let blank = if job.target.as_str().is_empty() { "" } else { " " };
    let dry_run = job.dry_run.map(|it| it.to_string());
    let question = dry_run.as_ref().map(|it| format!(", a question what {it} would do, nothing was done"));
    let question = question.unwrap_or_default();
    let taken_as = if job.target.is_misnamed() { " (no UUID, taken for a name)" } else { "" };
    macro_rules! event {
        ($level:ident) => {
            $level!(
                target: "audit",
                id = job.id, transport = job.transport, peer = %job.peer, source = %source, source_uuid,
                hash = %job.hash, key, action = %job.action, target = %target, dry_run,
                domain = %name, uuid, decision, result, reason = %reason,
                connected_ms = %Millis(stages.connected), resolved_ms = %Millis(stages.resolved),
                turn_ms = %Millis(stages.turn), proved_ms = %Millis(stages.proved),
                done_ms = %Millis(stages.done), runs,
                "{}{blank}{target}{taken_as}{question}: {result}", job.action
            )
        };
    }
    if ended.fine { event!(info) } else { event!(warn) }
}

/// Agent runs for a line of the log; of a failed run also the last line of its output.
struct InShort<'a>(&'a TrailSnapshot);

impl fmt::Display for InShort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TrailSnapshot { kept, left_out, .. } = self.0;
        for (place, AgentRun { device, action, ended, took, output, .. }) in kept.iter().enumerate() {
            if place > 0 {
                f.write_str("; ")?;
            }
            if place == TrailSnapshot::FIRST && *left_out > 0 {
                write!(f, "({left_out} more); ")?;
            }
            let (device, ended_text) = (escaped(device), ended.to_string());
            write!(f, "{device} {action} {}, {} ms", escaped(&ended_text), took.as_millis())?;
            let last = last_line(output);
            if !matches!(ended, RunEnded::Exit(0 | 2)) && !last.is_empty() {
                write!(f, " ({last})")?;
            }
        }
        Ok(())
    }
}

/// Returns the last line of an output, or the end of it that fits into a line of the log.
fn last_line(output: &str) -> &str {
    let line = output.trim_end().rsplit('\n').next().unwrap_or_default();
    let mut start = line.len().saturating_sub(LOGGED_OUTPUT);
    while !line.is_char_boundary(start) {
        start += 1;
    }
    &line[start..]
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
    use nix::sys::stat::Mode;
    use std::io::{BufRead, BufReader};

    use super::*;
    use crate::request::job::RequestJob;
    use crate::request::record::StageTimes;
    use crate::request::trail::AgentRunTrail;

    /// Far longer than any step here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// A request for which a program ran this often, ended so and wrote this.
    fn job(runs: usize, ended: &RunEnded, output: &str) -> RequestJob {
        let trail = AgentRunTrail::default();
        for _ in 0..runs {
            trail.note(AgentRun {
                device: "pool 1".to_owned(),
                agent: "fence_test".to_owned(),
                action: "off",
                ended: ended.clone(),
                took: Duration::from_millis(1250),
                output: output.to_owned(),
            });
        }
        RequestJob {
            id: 7,
            arrived: Instant::now(),
            patience: Duration::from_secs(30),
            transport: "test",
            peer: String::new(),
            identity: fence_core::access::Identity::default(),
            rules: None,
            hash: fence_wire::HashType::None,
            key: None,
            access: Arc::new(fence_core::access::AccessRules::new(None)),
            action: fence_wire::Action::Off,
            target: fence_wire::Target::new("b", false).unwrap(),
            dry_run: None,
            trail,
        }
    }

    fn json_of(job: &RequestJob) -> serde_json::Value {
        let end = RequestEnd::Answered {
            response: Response::Success,
            reason: None,
            delivered: AnswerDelivery::Taken,
        };
        json(&AuditRecord { job, domain: None, end, stages: StageTimes::default() })
    }

    #[test]
    fn a_target_that_was_taken_for_a_name_is_in_the_record() {
        let uuid = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";
        for (text, says_uuid, taken_as) in [
            ("b", false, None),
            ("b", true, Some("name")),
            (uuid, true, None),
            (uuid, false, None),
            ("", true, None),
        ] {
            let target = fence_wire::Target::new(text, says_uuid).unwrap();
            let record = json_of(&RequestJob { target, ..job(0, &RunEnded::Exit(0), "") });
            assert_eq!(record.get("target_as").and_then(|it| it.as_str()), taken_as, "{text} {says_uuid}");
        }
    }

    #[test]
    fn what_was_run_is_in_the_record() {
        let without = json_of(&job(0, &RunEnded::Exit(0), ""));
        assert!(without.get("runs").is_none() && without.get("runs_left_out").is_none());
        let killed = RunEnded::Killed("its time was up".to_owned());
        for (ended, exit, text) in [
            (RunEnded::Exit(1), serde_json::json!(1), "exit 1"),
            (RunEnded::Signal(9), serde_json::Value::Null, "signal 9"),
            (killed, serde_json::Value::Null, "killed: its time was up"),
        ] {
            let record = json_of(&job(1, &ended, "a\nb"));
            let expected = serde_json::json!([{
                "device": "pool 1", "agent": "fence_test", "action": "off", "exit": exit, "ended": text,
                "ms": 1250.0, "output": "a\nb",
            }]);
            assert_eq!(record["runs"], expected);
        }
        let many = json_of(&job(100, &RunEnded::Exit(0), &"\u{1b}".repeat(10_000)));
        assert_eq!(many["runs_left_out"].as_u64(), Some(100 - many["runs"].as_array().unwrap().len() as u64));
        assert!(plain(&many.to_string()).len() < 300_000);
    }

    #[test]
    fn the_log_has_the_runs_in_short() {
        let short = |runs, ended, output: &str| InShort(&job(runs, &ended, output).trail.runs()).to_string();
        assert_eq!(short(1, RunEnded::Exit(0), "said"), "pool 1 off exit 0, 1250 ms");
        assert_eq!(short(1, RunEnded::Exit(2), "said"), "pool 1 off exit 2, 1250 ms");
        assert_eq!(
            short(2, RunEnded::Exit(1), "first\nlast \u{1b}[m\n\n"),
            "pool 1 off exit 1, 1250 ms (last \\x1b[m); pool 1 off exit 1, 1250 ms (last \\x1b[m)"
        );
        let long = format!("x{}", "\u{e9}".repeat(200));
        assert_eq!(
            short(1, RunEnded::Signal(9), &long),
            format!("pool 1 off signal 9, 1250 ms ({})", "\u{e9}".repeat(LOGGED_OUTPUT / 2))
        );
        let many = short(100, RunEnded::Exit(0), "");
        assert_eq!(many.matches("pool 1 off").count(), 16);
        assert!(many.contains("; (84 more); "), "{many}");
    }

    fn line(number: u64) -> String {
        format!("{number} {}\n", "x".repeat(400))
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let audit = AuditFile::open(&path).unwrap();
        assert!(!audit.state.takes_records(), "nobody has it open");
        drop(audit);
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let audit = AuditFile::open(&path).unwrap();
        // More than pipe and queue hold: were any of them waited for, this would never end.
        let all = 3 * QUEUE as u64;
        for number in 0..all {
            audit.write(number, line(number), None);
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
        audit.write(all, line(all), None);
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
        (0..1000).for_each(|it| file.write(it, line(it), None));
        file.finish(PATIENCE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), (0..1000).map(line).collect::<String>());
        std::fs::rename(&path, &moved).unwrap();
        file.write(1000, line(1000), None);
        file.finish(PATIENCE);
        audit.reopen();
        file.write(1001, line(1001), None);
        file.finish(PATIENCE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(1001));
        assert_eq!(std::fs::read_to_string(&moved).unwrap().lines().count(), 1001);
    }

    /// The daemon starts without the file, and writes to it as soon as it can be opened.
    #[test]
    fn a_file_that_can_not_be_opened_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/audit");
        let file = AuditFile::open(&path).unwrap();
        file.write(1, line(1), None);
        file.finish(PATIENCE);
        assert_eq!((file.state.takes_records(), file.state.missing()), (false, 1));
        std::fs::create_dir(dir.path().join("none")).unwrap();
        // Nobody asks for it.
        let end = Instant::now() + PATIENCE;
        while !file.state.takes_records() {
            assert!(Instant::now() < end, "it was never tried again");
            std::thread::sleep(Duration::from_millis(1));
        }
        file.write(2, line(2), None);
        file.finish(PATIENCE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(2));
        assert_eq!((file.state.takes_records(), file.state.missing()), (true, 1));
    }

    /// A record, and a signal, are an attempt at once.
    #[test]
    fn the_file_is_tried_at_each_record_and_at_a_signal() {
        let dir = tempfile::tempdir().unwrap();
        for is_signal in [false, true] {
            let path = dir.path().join(format!("{is_signal}/audit"));
            let audit = Audit(Some(AuditFile::open(&path).unwrap()));
            let file = audit.0.as_ref().unwrap();
            std::fs::create_dir(path.parent().unwrap()).unwrap();
            match is_signal {
                true => audit.reopen(),
                false => file.write(1, line(1), None),
            }
            file.finish(PATIENCE);
            assert_eq!((file.state.takes_records(), file.state.missing()), (true, 0));
        }
    }

    /// A disk with room for this many bytes.
    struct SmallDisk(usize, Vec<u8>);

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0 - self.1.len());
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn it_is_known_how_much_a_full_disk_took() {
        for room in 0..8 {
            let mut disk = SmallDisk(room, Vec::new());
            let (written, result) = write_counted(&mut disk, b"record\n");
            assert_eq!((written, result.is_ok()), (room.min(7), room >= 7), "{room}");
        }
    }

    /// A record that was cut, by a full disk or the end of the machine, takes no other one with it.
    #[test]
    fn a_record_after_a_cut_one_is_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        for (before, expected) in
            [("", "1\n2\n"), ("whole\n", "whole\n1\n2\n"), ("{\"cu", "{\"cu\n1\n2\n"), ("\n", "\n1\n2\n")]
        {
            // At the start, and after a rotation that copies the file.
            for is_reopened in [false, true] {
                std::fs::write(&path, if is_reopened { "" } else { before }).unwrap();
                let audit = Audit(Some(AuditFile::open(&path).unwrap()));
                let file = audit.0.as_ref().unwrap();
                if is_reopened {
                    std::fs::write(&path, before).unwrap();
                    audit.reopen();
                }
                file.write(1, "1\n".to_owned(), None);
                file.write(2, "2\n".to_owned(), None);
                file.finish(PATIENCE);
                assert_eq!(std::fs::read_to_string(&path).unwrap(), expected, "{before:?} {is_reopened}");
            }
        }
    }

    /// Wherever the record was cut, those after it are whole lines.
    #[test]
    fn a_disk_that_gets_full_cuts_one_record_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        for left_over in 0..6 {
            std::fs::write(&path, &"old\nfirst\n"[..4 + left_over]).unwrap();
            // As after a write that failed in the middle.
            let mut writer = AuditWriter::new(&path, &Arc::default(), &Arc::default());
            (writer.file, writer.is_cut) = (Some(append(&path).unwrap()), left_over > 0);
            writer.append_line(2, "second\n");
            writer.append_line(3, "third\n");
            assert!(!writer.is_cut);
            let text = std::fs::read_to_string(&path).unwrap();
            let whole: Vec<_> = text.lines().filter(|it| ["old", "second", "third"].contains(it)).collect();
            assert_eq!(whole, ["old", "second", "third"], "{left_over}: {text:?}");
        }
    }
}
