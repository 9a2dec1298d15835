// SPDX-License-Identifier: GPL-2.0-or-later
//! The audit record: one structured event for each request that was authenticated, however it ended.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fence_cli::shown;
use fence_wire::{Response, escaped};
use tracing::{error, info, warn};

use crate::backend::DomainRef;
use crate::locks::lock;
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

#[derive(Debug)]
struct AuditFile {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Audit {
    /// Opens the file, where there is to be one: created with mode 0640, appended to.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = Mutex::new(Some(append(path)?));
        Ok(Self(Some(AuditFile { path: path.to_owned(), file })))
    }

    /// Opens the file anew, for log rotation.
    pub(crate) fn reopen(&self) {
        let Some(AuditFile { path, file }) = &self.0 else { return };
        match append(path) {
            Ok(new) => {
                *lock(file) = Some(new);
                info!(file = %shown(path), "audit file opened anew");
            }
            // The old one goes on: a record in a moved file is better than none.
            Err(error) => error!(file = %shown(path), "can't open the audit file anew: {error}"),
        }
    }

    /// Writes a record.
    pub(crate) fn write(&self, record: &Record<'_>) {
        log(record);
        let Some(AuditFile { path, file }) = &self.0 else { return };
        let mut line = plain(&json(record).to_string());
        line.push('\n');
        // One write for one line, so that lines never mix and a reader never sees half of one.
        if let Some(file) = &mut *lock(file)
            && let Err(error) = file.write_all(line.as_bytes())
        {
            error!(file = %shown(path), id = record.job.id, "can't write the audit file: {error}");
        }
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
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
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
