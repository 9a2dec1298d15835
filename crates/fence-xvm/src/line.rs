// SPDX-License-Identifier: GPL-2.0-or-later
//! Asking by a line that the host has at its other end: a serial line, a virtio port, or the VM channel.
//!
//! There is no key, because the line itself tells the host who asks. But a response does not say which request it
//! belongs to, and a busy host may answer long after the asker gave up. Therefore:
//!
//! - one agent at a time uses a line; others wait for it within their own deadline;
//! - a request is sent once. A host takes a repetition for a new request when it comes to it late, and would answer it
//!   when nobody waits any more;
//! - a line on which a request was left without an answer is settled first: see [`Line::settle`].

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

use crate::answer::Answer;
use crate::confine::confine;
use crate::connection::Wire;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::exchange::{LAST_BYTE, Refusal};
use crate::frames::Frames;
use crate::plan::Plan;
use crate::ports::network_namespace;
use crate::random::random_bytes;
use crate::records::{Record, Records};
use crate::words::request_in_words;

/// Asks by the device, which is a serial line (a terminal) or a virtio port.
pub(crate) fn ask_device(
    plan: &Plan,
    device: &Path,
    format: LineFormat,
    deadline: Deadline,
    console: &Console,
) -> Result<Answer, Box<LineFailure>> {
    let name = escaped(device.as_os_str().as_encoded_bytes()).to_string();
    // By its number: it may have several names.
    let place = fs::metadata(device).map(|it| format!("line-{}-{}", major(it.rdev()), minor(it.rdev())));
    let open = || {
        let line = open_line(device, format)?;
        let kind = if line.is_terminal { Kind::Serial } else { Kind::Port };
        Ok((Wire::new(line.file)?, kind))
    };
    ask(plan, (Kind::Device, name), place, open, deadline, console)
}

/// Asks by the VM channel: QEMU forwards connections to this address to the host.
pub(crate) fn ask_channel(
    plan: &Plan,
    to: SocketAddr,
    deadline: Deadline,
    console: &Console,
) -> Result<Answer, Box<LineFailure>> {
    let place = network_namespace().map(|it| format!("channel-{}-{}-{it}", to.ip(), to.port()));
    let open = || {
        let stream = TcpStream::connect_timeout(&to, deadline.remaining_or_timed_out()?)?;
        let _ = stream.set_nodelay(true);
        Ok((Wire::new(stream)?, Kind::Channel))
    };
    ask(plan, (Kind::Channel, to.to_string()), place, open, deadline, console)
}

/// How often it is looked whether a line that another agent uses is free.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn ask(
    plan: &Plan,
    (kind, name): (Kind, String),
    place: io::Result<String>,
    open: impl Fn() -> io::Result<(Wire, Kind)>,
    deadline: Deadline,
    console: &Console,
) -> Result<Answer, Box<LineFailure>> {
    let mut seen = Seen { kind, ..Seen::default() };
    let answer = place.map_err(Cause::Open).and_then(|place| {
        let mut record = claim(&place, deadline, console)?;
        let (wire, kind) = when_free(deadline, || match open() {
            Err(error) if is_in_use(&error) => Ok(None),
            opened => opened.map(Some),
        })
        .map_err(Cause::Open)?
        .ok_or(Cause::InUse)?;
        seen.kind = kind;
        let known_clean = record.as_ref().is_some_and(|it| !it.is_abandoned());
        let recorded = begin(record.as_mut(), deadline, console);
        // The line and its record are open, and nothing else will be.
        confine(Tcp::None, console);
        let mut line = Line { plan, wire, deadline, seen: &mut seen, console };
        let answer = line.run(known_clean && recorded);
        // What was sent and not answered may be answered yet.
        let is_clean = matches!(answer, Ok((_, true))) || (known_clean && seen.sent == 0);
        if let (true, Some(record)) = (is_clean, record) {
            record.end();
        }
        answer.map(|(answer, _)| answer)
    });
    answer.map_err(|cause| {
        let request = request_in_words(plan);
        Box::new(LineFailure { request, name, seen, cause })
    })
}

/// The line's record, when no other agent uses it any more; none when there is nowhere to keep one.
fn claim(place: &str, deadline: Deadline, console: &Console) -> Result<Option<Record>, Cause> {
    match Records::open().and_then(|records| when_free(deadline, || records.lock(place))) {
        Ok(None) => Err(Cause::InUse),
        Ok(record) => Ok(record),
        Err(error) => {
            console.say(&format_args!("cannot record that the line is in use: {error}"));
            Ok(None)
        }
    }
}

/// Whether it is recorded that a request is about to be sent.
fn begin(record: Option<&mut Record>, deadline: Deadline, console: &Console) -> bool {
    let lifetime = deadline.remaining().unwrap_or_default();
    match record.map(|it| it.begin(lifetime)) {
        None => false,
        Some(Ok(())) => true,
        Some(Err(error)) => {
            console.say(&format_args!("cannot record that the line is in use: {error}"));
            false
        }
    }
}

/// What `attempt` gives, as soon as it gives something; none when there is no more time.
fn when_free<T>(deadline: Deadline, attempt: impl Fn() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    loop {
        match attempt()? {
            None if deadline.remaining().is_none() => return Ok(None),
            None => std::thread::sleep(LOOK_AGAIN.min(deadline.remaining().unwrap_or_default())),
            given => return Ok(given),
        }
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ResourceBusy)
}

/// A line that is open and ours.
struct Line<'a> {
    plan: &'a Plan,
    wire: Wire,
    deadline: Deadline,
    seen: &'a mut Seen,
    console: &'a Console,
}

/// Right responses in a row that make a line settled: by chance once in 65536 times.
const SETTLED: u32 = 16;
/// How long nothing may come before what is left of older answers counts as read.
const QUIET: Duration = Duration::from_millis(300);
/// How long a question of [`Line::settle`] is waited for before it is asked anew.
const QUESTION: Duration = Duration::from_secs(3);
/// Bytes that were there before us and are dropped at most.
const STALE_MAX: usize = 1 << 20;

impl Line<'_> {
    /// The answer, and whether nothing more can come.
    fn run(&mut self, is_clean: bool) -> Result<(Answer, bool), Cause> {
        if is_clean {
            self.discard()?;
        } else {
            self.console.debug(&"an earlier request may still be answered on this line: settling it");
            self.seen.settling = true;
            self.settle()?;
            self.seen.settling = false;
        }
        self.send(self.plan.action, &self.plan.target)?;
        let mut frames = Frames::new(self.plan.action);
        let (mut patience, mut buffer) = (self.deadline, [0; 4096]);
        while !frames.is_done() {
            if frames.list_has_ended() {
                patience = patience.min(Deadline::after(LAST_BYTE));
            }
            match self.receive(&mut buffer, patience) {
                Ok(n) => frames.receive(&buffer[..n]).map_err(Cause::Refused)?,
                Err(_) if frames.list_has_ended() => break,
                Err(cause) => {
                    self.seen.entries = frames.entries();
                    self.call_off();
                    return Err(cause);
                }
            }
        }
        let is_done = frames.is_done();
        frames.close().map(|answer| (answer, is_done)).ok_or(Cause::HungUp)
    }

    /// Nobody waits for the answer any more, and on a line nothing else tells the host: a newer request, if only for
    /// nothing, ends an older one that it has not carried out yet. Goes out only if there is room for it.
    fn call_off(&mut self) {
        if self.plan.action.changes_state() {
            let of_request = self.seen.sent;
            // The request that failed has its own words, and its own count; this is for the host.
            let _ = self.send(Action::Null, &Target::none());
            self.seen.sent = of_request;
        }
    }

    /// Makes sure that the next response is to our next request, however many older answers are on their way.
    ///
    /// The host answers in order. So it is asked harmless questions, one after the other, at random one with the answer
    /// "success" (monitor) or one with the answer "failure" (null); when an older answer stands before theirs, every
    /// response is one too late, and wrong half the time. Then all that comes is read until it is quiet, and the
    /// questions begin anew.
    fn settle(&mut self) -> Result<(), Cause> {
        self.quiet()?;
        let mut right = 0;
        while right < SETTLED {
            let [bits] = random_bytes::<1>()?;
            let (question, expected) = if bits & 1 == 0 {
                (Action::Monitor, Response::Success)
            } else {
                (Action::Null, Response::Failure)
            };
            self.send(question, &Target::none())?;
            if self.only_response()? == Some(expected.number()) {
                right += 1;
            } else {
                right = 0;
                self.quiet()?;
            }
        }
        Ok(())
    }

    /// The response that came, if one came and no more than one.
    fn only_response(&mut self) -> Result<Option<u8>, Cause> {
        let mut scanner = SerialScanner::<SERIAL_RESPONSE_LEN>::new();
        let until = self.deadline.min(Deadline::after(QUESTION));
        let mut buffer = [0; 512];
        loop {
            let n = match self.receive(&mut buffer, until) {
                Ok(n) => n,
                Err(Cause::TimedOut) if self.deadline.remaining().is_some() => return Ok(None),
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

    /// Reads until nothing has come for a while.
    fn quiet(&mut self) -> Result<(), Cause> {
        let mut buffer = [0; 4096];
        loop {
            match self.receive(&mut buffer, self.deadline.min(Deadline::after(QUIET))) {
                Ok(_) => {}
                Err(Cause::TimedOut) if self.deadline.remaining().is_some() => return Ok(()),
                // A port that has no host yet: one may still come.
                Err(Cause::HungUp) if self.seen.kind != Kind::Channel => return Ok(()),
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Drops what is there already.
    fn discard(&mut self) -> Result<(), Cause> {
        let (mut buffer, mut dropped) = ([0; 4096], 0);
        while dropped < STALE_MAX {
            match self.wire.receive_now(&mut buffer) {
                Ok(None | Some(0)) => break,
                Ok(Some(n)) => dropped += n,
                Err(error) => return Err(Cause::Broken(error)),
            }
        }
        if dropped > 0 {
            self.console.debug(&format_args!("dropped {dropped} bytes that were there before the request"));
        }
        Ok(())
    }

    fn send(&mut self, action: Action, target: &Target) -> Result<(), Cause> {
        let sequence = u32::from_le_bytes(random_bytes()?);
        let frame = SerialRequest { action, target: target.clone(), sequence }.encode();
        let mut rest = &frame[..];
        let sent = self.wire.send(&mut rest, self.deadline);
        self.seen.sent += frame.len() - rest.len();
        sent.map_err(|error| if is_late(&error) { Cause::TimedOut } else { Cause::Broken(error) })
    }

    fn receive(&mut self, buffer: &mut [u8], until: Deadline) -> Result<usize, Cause> {
        match self.wire.receive(buffer, until) {
            Ok(0) => Err(Cause::HungUp),
            Ok(n) => {
                let wanted = Seen::FIRST.saturating_sub(self.seen.first.len()).min(n);
                self.seen.first.extend_from_slice(&buffer[..wanted]);
                self.seen.received += n;
                Ok(n)
            }
            Err(error) if is_late(&error) => Err(Cause::TimedOut),
            Err(error) => Err(Cause::Broken(error)),
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    error.kind() == ErrorKind::TimedOut
}

/// What a line is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Kind {
    /// A device that is not open.
    #[default]
    Device,
    /// A terminal.
    Serial,
    /// A virtio port.
    Port,
    /// A connection that QEMU forwards.
    Channel,
}

/// What happened on a line.
#[derive(Default, Debug)]
struct Seen {
    kind: Kind,
    sent: usize,
    received: usize,
    /// The first bytes that came.
    first: Vec<u8>,
    /// Entries of the list that did not end.
    entries: Option<usize>,
    /// The request was not sent yet, because the line was not settled.
    settling: bool,
}

impl Seen {
    const FIRST: usize = 24;
}

/// Why a line gave no answer. Shown in three lines: what happened, what went over the line, what to check.
#[derive(Debug)]
pub(crate) struct LineFailure {
    request: String,
    /// The line's name.
    name: String,
    seen: Seen,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("Timed out waiting for response")]
    TimedOut,
    #[error("Timed out waiting for another program that uses the line")]
    InUse,
    #[error("cannot open the line: {0}")]
    Open(io::Error),
    #[error("no random bytes: {0}")]
    Random(#[from] SysError),
    #[error("the line broke: {0}")]
    Broken(io::Error),
    #[error("the host hung up before it answered")]
    HungUp,
    #[error("{0}")]
    Refused(Refusal),
}

impl fmt::Display for LineFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, name, seen, cause } = self;
        write!(f, "no answer to {request} by {name}: {cause}\n  ")?;
        if seen.settling {
            write!(
                f,
                "an earlier request on this line was left without an answer, and the host did not get past it, "
            )?;
            write!(f, "so ours was not sent; ")?;
        }
        write!(f, "bytes sent: {}, bytes that came back: {}", seen.sent, seen.received)?;
        if let Some(entries) = seen.entries {
            write!(f, ", in them {entries} entries of a list that did not end")?;
        } else if seen.received > 0 {
            write!(f, ", first of them \"{}\"", escaped(&seen.first))?;
        }
        write!(f, "\n  {}", self.next_check())
    }
}

impl std::error::Error for LineFailure {}

impl LineFailure {
    pub(crate) fn next_check(&self) -> &'static str {
        match (&self.cause, self.seen.kind) {
            (Cause::InUse, _) => {
                "another agent, or a program that locks or keeps the device, has it: ps, fuser; a getty must not run there"
            }
            (Cause::Open(_), Kind::Channel) => {
                "asked without -D, -T or -S: does the domain have a <channel> with target type 'guestfwd', this address and \
                 port, and a network of type 'user'? Or choose one of those options"
            }
            (Cause::Open(_), _) => {
                "does the domain have a <serial> or <channel> with a UNIX socket (mode 'bind') that is this device, is the \
                 virtio_console module loaded, may this user open the device?"
            }
            (Cause::Random(_), _) => "the kernel gives no random bytes: nothing can be asked",
            (_, Kind::Port) if self.seen.sent == 0 => {
                "no host is connected to the port: is fence_virtd running with listener serial, mode vmchannel, and is the \
                 channel's name org.clusterlabs.fence_virt.*, or its socket in `path`?"
            }
            (Cause::Refused(_), _) => "the host's log says what it made of the request",
            _ if self.seen.received > 0 => {
                "something speaks on the line: is it the right one, and no console or getty at either end? The host's log \
                 says what it made of the request"
            }
            (_, Kind::Serial | Kind::Device) => {
                "is fence_virtd running with listener serial and connected to this domain's socket (its log says so), and is \
                 this device the <serial> with that socket?"
            }
            (_, Kind::Port | Kind::Channel) => {
                "is fence_virtd running with listener serial, mode vmchannel, and connected to this domain's socket (its log \
                 says so)?"
            }
        }
    }
}
