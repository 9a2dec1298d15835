// SPDX-License-Identifier: GPL-2.0-or-later
//! One socket of one domain: connected as long as the domain runs, one request after the other.
//!
//! An answer does not name its request. So no answer may be on the line when its client is gone: a newer
//! request ends the older one, whose answer is not sent. An answer that comes too late is not sent either.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_cli::shown;
use fence_wire::{
    HOST_LIST_END, HOST_LIST_FOLLOWS, HashType, Proved, SERIAL_MAGIC, SERIAL_REQUEST_LEN, SerialRequest,
    SerialScanner, escaped, serial_response,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::timeout_at;
use tracing::{debug, info, warn};

use crate::hypervisor::inventory::RunningDomain;
use crate::listener::auth::PacketProof;
use crate::listener::limits::{FRAME_LIMIT, LINE_BACKOFF, SERIAL_ANSWER_LIMIT};
use crate::listener::rules::CurrentRules;
use crate::request::job::{Arrival, ClientReply, RequestJob, RequestOutcome, ResolvedTarget};
use crate::request::lease::{Lease, LeaseEndReason};
use crate::request::record::AnswerDelivery;
use crate::service::Service;
use crate::service::client_link::{ClientLink, ProofFailure, watched};
use crate::util::backoff::OncePerReason;
use fence_core::access::Identity;
use fence_core::history::REPEAT_WINDOW;

const NAME: &str = "serial";
/// Time after which a connection counts as good: the next attempt comes soon.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);
/// Time for which a missing socket is not logged: QEMU opens it a moment after the domain's start.
const MISSING_SOCKET_GRACE: Duration = Duration::from_secs(3);

/// The line of one domain. The module's head has its rules.
pub(super) struct SerialConnection {
    service: Arc<Service>,
    rules: Arc<CurrentRules>,
    identity: Identity,
    /// The domain's name, for people.
    domain: String,
    path: PathBuf,
    /// Closed when the domain no longer runs.
    gone: watch::Receiver<()>,
    last: Option<(SerialRequest, Instant)>,
}

/// Range of the target in a frame.
const TARGET: std::ops::Range<usize> = 6..70;

type Frame = [u8; SERIAL_REQUEST_LEN];

impl SerialConnection {
    pub(super) fn new(
        service: Arc<Service>,
        rules: Arc<CurrentRules>,
        domain: &RunningDomain,
        path: PathBuf,
        gone: watch::Receiver<()>,
    ) -> Self {
        let identity =
            Identity { domain: Some(domain.uuid), name: Some(domain.name.clone()), ..Identity::default() };
        let domain = escaped(&domain.name).to_string();
        Self { service, rules, identity, domain, path, gone, last: None }
    }

    /// Connects, serves, and connects again, until the domain is gone.
    pub(super) async fn keep(mut self) {
        let path = shown(&self.path);
        let (mut backoff, mut logged, mut trouble) = (LINE_BACKOFF, OncePerReason::default(), None);
        loop {
            match UnixStream::connect(&self.path).await {
                Ok(stream) => {
                    info!(domain = %self.domain, path, "connected to the domain's socket");
                    logged.forget();
                    trouble = None;
                    let since = Instant::now();
                    self.serve(stream).await;
                    if since.elapsed() >= GOOD_CONNECTION {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    let passing =
                        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
                            && trouble.get_or_insert_with(Instant::now).elapsed() < MISSING_SOCKET_GRACE;
                    let reason = explain(&error);
                    if !passing && logged.is_new(&reason) {
                        warn!(
                            domain = %self.domain, path,
                            "no requests from this domain: can't connect to its socket: {reason}"
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_pause()) => {}
                () = until_gone(&mut self.gone) => break,
            }
        }
        debug!(domain = %self.domain, path, "the domain's socket is no longer served");
    }

    /// Serves one connection to its end.
    async fn serve(&mut self, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut input = FrameReader::new(reader);
        self.last = None;
        let mut next = None;
        loop {
            let request = match next.take() {
                Some(request) => request,
                None => {
                    let frame = tokio::select! {
                        frame = input.frame() => frame,
                        () = until_gone(&mut self.gone) => return,
                    };
                    match frame {
                        Ok(frame) => match self.read(&frame, &mut input) {
                            Some(request) => request,
                            None => continue,
                        },
                        Err(error) => {
                            debug!(domain = %self.domain, "the domain's socket: {error}");
                            return;
                        }
                    }
                }
            };
            match self.answer(request, &mut input, &mut writer).await {
                AfterReply::Wait => {}
                AfterReply::Request(request) => next = Some(request),
                AfterReply::HangUp => return,
            }
        }
    }

    /// Reads a frame; none for one that is no request, or a repetition.
    fn read(&mut self, frame: &Frame, input: &mut FrameReader) -> Option<SerialRequest> {
        let request = match SerialRequest::decode(frame) {
            Ok(request) if is_padded(frame) && !ends_with_another(frame) => request,
            Ok(_) => {
                self.service.drops.note(NAME, "two-frames", &self.domain, &"another frame began inside it");
                input.rescan(frame);
                return None;
            }
            Err(error) => {
                self.service.drops.note(NAME, "frame", &self.domain, &error);
                input.rescan(frame);
                return None;
            }
        };
        let now = Instant::now();
        let is_repeated = |(last, since): &(SerialRequest, Instant)| {
            is_same(last, &request) && now.saturating_duration_since(*since) < REPEAT_WINDOW
        };
        if self.last.as_ref().is_some_and(is_repeated) {
            debug!(domain = %self.domain, action = %request.action, "repeated");
            return None;
        }
        self.last = Some((request.clone(), now));
        Some(request)
    }

    /// Carries out one request and answers it. Reads the line meanwhile, for a newer request or a hang-up.
    async fn answer(
        &mut self,
        request: SerialRequest,
        input: &mut FrameReader,
        writer: &mut OwnedWriteHalf,
    ) -> AfterReply {
        let service = Arc::clone(&self.service);
        let rules = self.rules.now();
        let job = service.accept(Arrival {
            arrived: Instant::now(),
            transport: NAME,
            peer: self.domain.clone(),
            identity: self.identity.clone(),
            hash: HashType::None,
            key: None,
            access: Arc::clone(&rules.access),
            rules: Some(self.rules.judge(&rules, PacketProof::none(), HashType::None)),
            action: request.action,
            target: request.target,
            dry_run: None,
        });
        let target = escaped(job.target.as_str());
        debug!(id = job.id, peer = %job.peer, action = %job.action, %target, "heard");
        let is_self = self.is_self(&job);
        let mut link =
            LineLink { line: self, input, writer, is_self, newer: None, hung_up: false, unsent: false };
        service.run_request(&job, None, &mut link).await;
        match link.newer {
            _ if link.hung_up || link.unsent => AfterReply::HangUp,
            Some(request) => AfterReply::Request(request),
            None => AfterReply::Wait,
        }
    }

    fn is_self(&self, job: &RequestJob) -> bool {
        let target = job.target.as_str();
        let is = |mine: &str| mine.eq_ignore_ascii_case(target);
        self.identity.domain.is_some_and(|it| is(&it.to_string()))
            || self.identity.name.as_deref().is_some_and(is)
    }

    /// Sends the answer. Returns whether the whole of it went out in time. If not, the caller hangs up:
    /// nothing may follow half an answer.
    async fn send(&self, writer: &mut OwnedWriteHalf, answer: &ClientReply, deadline: Instant) -> bool {
        let bytes = match answer {
            ClientReply::Response(response) => serial_response(response.number()).to_vec(),
            ClientReply::List(entries, response) => {
                let mut bytes = serial_response(HOST_LIST_FOLLOWS).to_vec();
                for entry in entries {
                    bytes.extend_from_slice(&entry.encode());
                }
                bytes.extend_from_slice(&HOST_LIST_END);
                bytes.extend_from_slice(&serial_response(response.number()));
                bytes
            }
        };
        let now = Instant::now();
        if now >= deadline {
            let why = "it came too late for the client";
            self.service.drops.note(NAME, "answer-too-late", &self.domain, &why);
            return false;
        }
        let until = deadline.min(now + SERIAL_ANSWER_LIMIT);
        let why: &dyn std::fmt::Display = match timeout_at(until.into(), writer.write_all(&bytes)).await {
            Ok(Ok(())) => return true,
            Ok(Err(_)) => &"the domain's socket was closed",
            Err(_) => &"the guest did not read it in time",
        };
        self.service.drops.note(NAME, "answer-not-taken", &self.domain, why);
        false
    }
}

/// The line while one of its requests is in flight.
struct LineLink<'a> {
    line: &'a mut SerialConnection,
    input: &'a mut FrameReader,
    writer: &'a mut OwnedWriteHalf,
    /// The request is about the line's own domain.
    is_self: bool,
    /// A newer request that came meanwhile. The request in flight gets no answer then.
    newer: Option<SerialRequest>,
    hung_up: bool,
    /// The answer did not go out whole.
    unsent: bool,
}

impl ClientLink for LineLink<'_> {
    const HAS_HANDSHAKE: bool = false;
    type Opened = ();
    type Proven = ();

    async fn open(
        &mut self,
        _: &RequestJob,
        lease: &Lease,
        resolving: impl Future<Output = ResolvedTarget> + Send,
    ) -> (Result<(), ProofFailure>, ResolvedTarget) {
        let resolved = watched(self, lease, resolving).await;
        (Ok(()), resolved)
    }

    async fn abandoned(&mut self) -> LeaseEndReason {
        while !self.hung_up {
            let Ok(frame) = self.input.frame().await else {
                self.hung_up = true;
                // A domain that asked for its own power-off hangs up by that. After a reboot it is to start
                // again.
                if self.is_self {
                    break;
                }
                return LeaseEndReason::HungUp;
            };
            if let Some(request) = self.line.read(&frame, self.input) {
                let why = "a newer request came by the same line; this one is not answered";
                self.line.service.drops.note(NAME, "superseded", &self.line.domain, &why);
                self.newer = Some(request);
                return LeaseEndReason::Superseded;
            }
        }
        std::future::pending().await
    }

    async fn prove(&mut self, _: &RequestJob, (): ()) -> Result<(Proved, ()), ProofFailure> {
        Ok((Proved::unauthenticated(), ()))
    }

    async fn deliver(
        &mut self,
        job: &RequestJob,
        (): (),
        outcome: &RequestOutcome,
        _: bool,
    ) -> AnswerDelivery {
        if self.newer.is_some() {
            return AnswerDelivery::Withheld;
        }
        if self.hung_up {
            return AnswerDelivery::NotTaken;
        }
        let sent = self.line.send(self.writer, outcome.answer(), job.deadline()).await;
        self.unsent = !sent;
        AnswerDelivery::of(sent)
    }
}

/// Next step after a reply.
enum AfterReply {
    Wait,
    /// The next request, which came meanwhile.
    Request(SerialRequest),
    HangUp,
}

/// Reader of the frames of a line. A wait that is cancelled loses no byte.
struct FrameReader {
    reader: OwnedReadHalf,
    scanner: SerialScanner<SERIAL_REQUEST_LEN>,
    buffer: [u8; 512],
    /// Bytes in the buffer that are not scanned yet.
    rest: std::ops::Range<usize>,
    /// Deadline of the frame that has begun.
    until: Option<Instant>,
}

impl FrameReader {
    fn new(reader: OwnedReadHalf) -> Self {
        Self { reader, scanner: SerialScanner::new(), buffer: [0; 512], rest: 0..0, until: None }
    }

    /// Scans the bytes of a rejected frame again: they may hold the beginning of the next frame.
    fn rescan(&mut self, frame: &Frame) {
        for byte in &frame[1..] {
            // These are too few bytes to complete a frame.
            let _ = self.scanner.push(*byte);
        }
        self.until = self.scanner.is_partial().then(|| Instant::now() + FRAME_LIMIT);
    }

    /// Returns the next whole frame.
    async fn frame(&mut self) -> io::Result<Frame> {
        loop {
            while let Some(place) = self.rest.next() {
                let frame = self.scanner.push(self.buffer[place]);
                self.until = self
                    .scanner
                    .is_partial()
                    .then(|| self.until.unwrap_or_else(|| Instant::now() + FRAME_LIMIT));
                if let Some(frame) = frame {
                    return Ok(frame);
                }
            }
            let read = self.reader.read(&mut self.buffer);
            let length = match self.until {
                None => read.await?,
                Some(until) => match timeout_at(until.into(), read).await {
                    Ok(length) => length?,
                    Err(_) => {
                        // The writer of this half is gone. Its bytes must not swallow the start of the next
                        // frame.
                        (self.scanner, self.until) = (SerialScanner::new(), None);
                        continue;
                    }
                },
            };
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.rest = 0..length;
        }
    }
}

/// Returns whether the target's field holds nothing after its NUL. A client that was killed while it wrote
/// leaves half a frame. The next client's frame would complete it to a request that nobody waits for.
fn is_padded(frame: &Frame) -> bool {
    frame[TARGET].iter().skip_while(|it| **it != 0).all(|it| *it == 0)
}

/// Returns whether the sequence number ends with the beginning of another frame: the client was killed right
/// before it wrote the number. One or two bytes of the magic number prove nothing: a real number may have
/// them.
fn ends_with_another(frame: &Frame) -> bool {
    frame.ends_with(&SERIAL_MAGIC) || frame.ends_with(&SERIAL_MAGIC[..3])
}

/// Compares two requests, names without case, as the history of the other listeners does.
fn is_same(a: &SerialRequest, b: &SerialRequest) -> bool {
    a.action == b.action
        && a.sequence == b.sequence
        && a.target.as_str().to_lowercase() == b.target.as_str().to_lowercase()
}

async fn until_gone(gone: &mut watch::Receiver<()>) {
    while gone.changed().await.is_ok() {}
}

/// Returns the error with a hint for the administrator.
fn explain(error: &io::Error) -> String {
    let next = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; fence_virtd must run as root or in QEMU's group (the service puts it there when it starts: \
             docs, sandbox.md), and SELinux or AppArmor must let it connect to QEMU's sockets"
        }
        io::ErrorKind::NotFound => "; do the domains of this uri run on this machine?",
        io::ErrorKind::ConnectionRefused => "; QEMU does not listen there",
        io::ErrorKind::WouldBlock => "; another program is connected to it",
        _ => "",
    };
    format!("{error}{next}")
}
