// SPDX-License-Identifier: GPL-2.0-or-later
//! A request over a line with the host at its other end: a serial line, a virtio port, or the VM channel.
//!
//! There is no key, because the line itself tells the host which guest asks. But a response does not name its
//! request, and a busy host may answer long after the agent gave up. Therefore:
//!
//! - one agent at a time uses a line; others wait for it within their own deadline;
//! - a request is sent once. A host that reads a repetition late takes it for a new request, and would answer
//!   it when no agent waits any more;
//! - a line on which a request was left without an answer is settled first: see [`OpenLine::settle`].
//!
//! Owns the line and its record. Runs on the agent's only thread. Must never take a response for its own
//! while an older one may be on its way.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use fence_net::{LineFormat, open_line};
use fence_sandbox::Tcp;
use fence_wire::{Action, Response, SERIAL_RESPONSE_LEN, SerialRequest, SerialScanner, Target, escaped};
use nix::sys::stat::{major, minor};
use rand::rngs::SysError;

use crate::answer::HostAnswer;
use crate::confine::confine;
use crate::connection::HostConnection;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::exchange::{ExchangeError, LIST_RESULT_WAIT};
use crate::frames::ResponseFrames;
use crate::plan::RequestPlan;
use crate::ports::network_namespace;
use crate::random::random_bytes;
use crate::records::{UseRecord, UseRecords};
use crate::stream::{describe_error, has_timed_out};
use crate::words::describe_request;

/// Asks the host over a device: a serial line (a terminal) or a virtio port.
pub(crate) fn ask_device(
    plan: &RequestPlan,
    device: &Path,
    format: LineFormat,
    deadline: Deadline,
    console: &Console,
) -> Result<HostAnswer, Box<LineFailure>> {
    let name = escaped(device.as_os_str().as_encoded_bytes()).to_string();
    // The record is named by the device's number, because a device may have several names.
    let record_name = fs::metadata(device)
        .map(|metadata| format!("line-{}-{}", major(metadata.rdev()), minor(metadata.rdev())));
    let open = || {
        let line = open_line(device, format)?;
        let kind = if line.is_terminal { LineKind::Serial } else { LineKind::Port };
        Ok((HostConnection::new(line.file)?, kind))
    };
    ask_line(plan, (LineKind::Device, name), record_name, open, deadline, console)
}

/// Asks the host over the VM channel: QEMU forwards connections to this address to the host.
pub(crate) fn ask_channel(
    plan: &RequestPlan,
    to: SocketAddr,
    deadline: Deadline,
    console: &Console,
) -> Result<HostAnswer, Box<LineFailure>> {
    let record_name = network_namespace().map(|inode| format!("channel-{}-{}-{inode}", to.ip(), to.port()));
    let open = || {
        let stream = TcpStream::connect_timeout(&to, deadline.remaining_or_timed_out()?)?;
        let _ = stream.set_nodelay(true);
        Ok((HostConnection::new(stream)?, LineKind::Channel))
    };
    ask_line(plan, (LineKind::Channel, to.to_string()), record_name, open, deadline, console)
}

/// Pause between two attempts to take a line that another agent uses.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

fn ask_line(
    plan: &RequestPlan,
    (kind, name): (LineKind, String),
    record_name: io::Result<String>,
    open: impl Fn() -> io::Result<(HostConnection, LineKind)>,
    deadline: Deadline,
    console: &Console,
) -> Result<HostAnswer, Box<LineFailure>> {
    let mut evidence = LineEvidence { kind, ..LineEvidence::default() };
    let answer = record_name.map_err(LineCause::Open).and_then(|record_name| {
        let mut record = lock_line(&record_name, deadline, console)?;
        let (connection, kind) = retry_until_free(deadline, || match open() {
            Err(error) if is_in_use(&error) => Ok(None),
            opened => opened.map(Some),
        })
        .map_err(LineCause::Open)?
        .ok_or(LineCause::InUse)?;
        evidence.kind = kind;
        let known_clean = record.as_ref().is_some_and(|it| !it.is_abandoned());
        let is_recorded = mark_busy(record.as_mut(), deadline, console);
        // The line and its record are open. Nothing else will be opened.
        confine(Tcp::None, console);
        let mut line = OpenLine { plan, connection, deadline, evidence: &mut evidence, console };
        let answer = line.run(known_clean && is_recorded);
        // A request that was sent and not answered may still be answered.
        let is_clean = matches!(answer, Ok((_, true))) || (known_clean && evidence.sent == 0);
        if let (true, Some(record)) = (is_clean, record) {
            record.mark_free();
        }
        answer.map(|(answer, _)| answer)
    });
    answer.map_err(|cause| {
        let request = describe_request(plan);
        Box::new(LineFailure { request, name, evidence, cause })
    })
}

/// Locks the line's record as soon as no other agent uses the line; none when there is nowhere to keep
/// records.
fn lock_line(
    record_name: &str,
    deadline: Deadline,
    console: &Console,
) -> Result<Option<UseRecord>, LineCause> {
    match UseRecords::open().and_then(|records| retry_until_free(deadline, || records.lock(record_name))) {
        Ok(None) => Err(LineCause::InUse),
        Ok(record) => Ok(record),
        Err(error) => {
            console.say(&format_args!(
                "cannot record that the line is in use ({error}): the line is settled before the request"
            ));
            Ok(None)
        }
    }
}

/// Records that a request is about to be sent, and returns whether that was possible.
fn mark_busy(record: Option<&mut UseRecord>, deadline: Deadline, console: &Console) -> bool {
    let lifetime = deadline.remaining().unwrap_or_default();
    match record.map(|it| it.mark_busy(lifetime)) {
        None => false,
        Some(Ok(())) => true,
        Some(Err(error)) => {
            console.say(&format_args!(
                "cannot record that the line is in use ({error}): the line is settled before the request"
            ));
            false
        }
    }
}

/// Repeats `attempt` until it gives a value; none when time ran out.
fn retry_until_free<T>(
    deadline: Deadline,
    attempt: impl Fn() -> io::Result<Option<T>>,
) -> io::Result<Option<T>> {
    loop {
        match attempt()? {
            None if deadline.remaining().is_none() => return Ok(None),
            None => std::thread::sleep(RETRY_PAUSE.min(deadline.remaining().unwrap_or_default())),
            value => return Ok(value),
        }
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ResourceBusy)
}

/// Line that is open and that no other agent uses.
struct OpenLine<'a> {
    plan: &'a RequestPlan,
    connection: HostConnection,
    deadline: Deadline,
    evidence: &'a mut LineEvidence,
    console: &'a Console,
}

/// Number of expected responses in a row that settle a line: by chance once in 65536 times.
const SETTLED_AFTER: u32 = 16;
/// Time without bytes after which older answers count as read.
const QUIET_TIME: Duration = Duration::from_millis(300);
/// Time to wait for the response to a question of [`OpenLine::settle`] before the next question.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest number of older bytes that are discarded.
const STALE_MAX: usize = 1 << 20;

impl OpenLine<'_> {
    /// Sends the request and returns its answer, and whether no more bytes can follow.
    fn run(&mut self, is_clean: bool) -> Result<(HostAnswer, bool), LineCause> {
        if is_clean {
            self.discard_stale()?;
        } else {
            self.console.debug(&"an earlier request may still be answered on this line: settling it");
            self.evidence.settling = true;
            self.settle()?;
            self.evidence.settling = false;
        }
        self.send(self.plan.action, &self.plan.target)?;
        let mut frames = ResponseFrames::new(self.plan.action);
        let (mut patience, mut buffer) = (self.deadline, [0; 4096]);
        while !frames.is_done() {
            if frames.is_list_complete() {
                patience = patience.min(Deadline::after(LIST_RESULT_WAIT));
            }
            match self.receive(&mut buffer, patience) {
                Ok(n) => frames.receive(&buffer[..n]).map_err(LineCause::Failed)?,
                Err(_) if frames.is_list_complete() => break,
                Err(cause) => {
                    self.evidence.entries = frames.partial_entry_count();
                    self.supersede();
                    return Err(cause);
                }
            }
        }
        let is_done = frames.is_done();
        frames.close().map(|answer| (answer, is_done)).ok_or(LineCause::HungUp)
    }

    /// Supersedes the request, because no agent waits for its answer any more. On a line nothing else tells
    /// the host: a newer request, even the action null, ends an older one that the host has not carried out
    /// yet. Sent only if the line takes it at once.
    fn supersede(&mut self) {
        if self.plan.action.changes_state() {
            let sent_before = self.evidence.sent;
            // The message counts the bytes of the request that failed. This one is for the host alone.
            let _ = self.send(Action::Null, &Target::none());
            self.evidence.sent = sent_before;
        }
    }

    /// Makes sure that the next response belongs to our next request, however many older answers are on their
    /// way.
    ///
    /// The host answers in order. So the agent asks harmless questions, one after the other, at random
    /// monitor (expected: success) or null (expected: failure). With an older answer on its way every
    /// response comes one question too late, and is wrong half the time. Then the agent reads until the line
    /// is quiet, and begins again.
    fn settle(&mut self) -> Result<(), LineCause> {
        self.read_until_quiet()?;
        let mut matches = 0;
        while matches < SETTLED_AFTER {
            let [bits] = random_bytes::<1>()?;
            let (question, expected) = if bits & 1 == 0 {
                (Action::Monitor, Response::Success)
            } else {
                (Action::Null, Response::Failure)
            };
            self.send(question, &Target::none())?;
            if self.read_single_response()? == Some(expected.number()) {
                matches += 1;
            } else {
                matches = 0;
                self.read_until_quiet()?;
            }
        }
        Ok(())
    }

    /// Reads one response; none when no response came, or more than one.
    fn read_single_response(&mut self) -> Result<Option<u8>, LineCause> {
        let mut scanner = SerialScanner::<SERIAL_RESPONSE_LEN>::new();
        let until = self.deadline.min(Deadline::after(QUESTION_TIMEOUT));
        let mut buffer = [0; 512];
        loop {
            let n = match self.receive(&mut buffer, until) {
                Ok(n) => n,
                Err(LineCause::TimedOut) if self.deadline.remaining().is_some() => return Ok(None),
                Err(cause) => return Err(cause),
            };
            let mut codes = buffer[..n].iter().filter_map(|byte| scanner.push(*byte)).map(|[.., code]| code);
            match (codes.next(), codes.next()) {
                (Some(code), None) => return Ok(Some(code)),
                (Some(_), Some(_)) => return Ok(None),
                (None, _) => {}
            }
        }
    }

    /// Reads until no byte has come for the quiet time.
    fn read_until_quiet(&mut self) -> Result<(), LineCause> {
        let mut buffer = [0; 4096];
        loop {
            match self.receive(&mut buffer, self.deadline.min(Deadline::after(QUIET_TIME))) {
                Ok(_) => {}
                Err(LineCause::TimedOut) if self.deadline.remaining().is_some() => return Ok(()),
                // A virtio port without a host: one may still connect.
                Err(LineCause::HungUp) if self.evidence.kind != LineKind::Channel => return Ok(()),
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Discards bytes that were there before the request.
    fn discard_stale(&mut self) -> Result<(), LineCause> {
        let (mut buffer, mut dropped) = ([0; 4096], 0);
        while dropped < STALE_MAX {
            match self.connection.try_receive(&mut buffer) {
                Ok(None | Some(0)) => break,
                Ok(Some(n)) => dropped += n,
                Err(error) => return Err(LineCause::Broken(error)),
            }
        }
        if dropped > 0 {
            self.console.debug(&format_args!("dropped {dropped} bytes that were there before the request"));
        }
        Ok(())
    }

    fn send(&mut self, action: Action, target: &Target) -> Result<(), LineCause> {
        let sequence = u32::from_le_bytes(random_bytes()?);
        let frame = SerialRequest { action, target: target.clone(), sequence }.encode();
        let mut rest = &frame[..];
        let sent = self.connection.send(&mut rest, self.deadline);
        self.evidence.sent += frame.len() - rest.len();
        sent.map_err(|error| if is_timeout(&error) { LineCause::TimedOut } else { LineCause::Broken(error) })
    }

    fn receive(&mut self, buffer: &mut [u8], until: Deadline) -> Result<usize, LineCause> {
        match self.connection.receive(buffer, until) {
            Ok(0) => Err(LineCause::HungUp),
            Ok(n) => {
                let wanted = LineEvidence::FIRST.saturating_sub(self.evidence.first.len()).min(n);
                self.evidence.first.extend_from_slice(&buffer[..wanted]);
                self.evidence.received += n;
                Ok(n)
            }
            Err(error) if is_timeout(&error) => Err(LineCause::TimedOut),
            Err(error) => Err(LineCause::Broken(error)),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    error.kind() == ErrorKind::TimedOut
}

/// Kind of a line.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum LineKind {
    /// Device that is not open yet.
    #[default]
    Device,
    /// Terminal.
    Serial,
    /// Virtio port.
    Port,
    /// Connection that QEMU forwards.
    Channel,
}

/// Events on a line, for the message about a failure.
#[derive(Default, Debug)]
struct LineEvidence {
    kind: LineKind,
    sent: usize,
    received: usize,
    /// First bytes that came.
    first: Vec<u8>,
    /// Number of entries of an incomplete list.
    entries: Option<usize>,
    /// True if the request was not sent yet, because the line was not settled.
    settling: bool,
}

impl LineEvidence {
    const FIRST: usize = 24;
}

/// Failure of a request over a line. Shown in three lines: what happened, what went over the line, what to
/// check.
#[derive(Debug)]
pub(crate) struct LineFailure {
    request: String,
    /// Name of the line.
    name: String,
    evidence: LineEvidence,
    cause: LineCause,
}

#[derive(Debug, thiserror::Error)]
enum LineCause {
    #[error("Timed out waiting for response")]
    TimedOut,
    #[error("Timed out waiting for another program that uses the line")]
    InUse,
    #[error("cannot open the line: {}", describe_error(.0))]
    Open(io::Error),
    #[error("no random bytes: {0}")]
    Random(#[from] SysError),
    #[error("the line failed: {}", describe_error(.0))]
    Broken(io::Error),
    #[error("the host hung up before it answered")]
    HungUp,
    #[error("{0}")]
    Failed(ExchangeError),
}

impl fmt::Display for LineFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, name, evidence, cause } = self;
        write!(f, "no answer to {request} by {name}: {cause}\n  ")?;
        if evidence.settling {
            f.write_str(
                "an earlier request on this line was left without an answer, and the host did not get past \
                 it, so ours was not sent; ",
            )?;
        }
        write!(f, "bytes sent: {}, bytes that came back: {}", evidence.sent, evidence.received)?;
        if let Some(entries) = evidence.entries {
            write!(f, ", in them {entries} entries of a list that did not end")?;
        } else if evidence.received > 0 {
            write!(f, ", first of them \"{}\"", escaped(&evidence.first))?;
        }
        write!(f, "\n  {}", self.next_check())
    }
}

impl std::error::Error for LineFailure {}

impl LineFailure {
    /// Returns whether the request ran out of time.
    pub(crate) fn is_time_out(&self) -> bool {
        match &self.cause {
            LineCause::TimedOut | LineCause::InUse => true,
            LineCause::Open(error) | LineCause::Broken(error) => has_timed_out(error),
            LineCause::Random(_) | LineCause::HungUp | LineCause::Failed(_) => false,
        }
    }

    /// Returns what to check next.
    fn next_check(&self) -> &'static str {
        match (&self.cause, self.evidence.kind) {
            (LineCause::InUse, _) => {
                "another agent, or a program that locks or keeps the device, has it: ps, fuser; a getty must \
                 not run there"
            }
            (LineCause::Open(_), LineKind::Channel) => {
                "asked without -D, -T or -S: does the domain have a <channel> with target type 'guestfwd', \
                 this address and port, and a network of type 'user'? Or choose one of those options"
            }
            (LineCause::Open(_), _) => {
                "does the domain have a <serial> or <channel> with a UNIX socket (mode 'bind') that is this \
                 device, is the virtio_console module loaded, may this user open the device?"
            }
            (LineCause::Random(_), _) => "the kernel gives no random bytes: nothing can be asked",
            (_, LineKind::Port) if self.evidence.sent == 0 => {
                "no host is connected to the port: is fence_virtd running with listener serial, mode \
                 vmchannel, and is the channel's name org.clusterlabs.fence_virt.*, or its socket in `path`?"
            }
            (LineCause::Failed(_), _) => "the host's log says how it treated the request",
            _ if self.evidence.received > 0 => {
                "something answers on the line: is it the right one, and no console or getty at either end? \
                 The host's log says how it treated the request"
            }
            (_, LineKind::Serial | LineKind::Device) => {
                "is fence_virtd running with listener serial and connected to this domain's socket (its log \
                 says so), and is this device the <serial> with that socket?"
            }
            (_, LineKind::Port | LineKind::Channel) => {
                "is fence_virtd running with listener serial, mode vmchannel, and connected to this domain's \
                 socket (the host's log says so)?"
            }
        }
    }
}
