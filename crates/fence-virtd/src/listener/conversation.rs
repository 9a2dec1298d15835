// SPDX-License-Identifier: GPL-2.0-or-later
//! One stream with one client: the mutual challenge, the wait for the grant, the answer.
//!
//! The same for a multicast call-back, TCP and vsock. Each conversation is a task of its own, and each of its
//! waits has a limit, so that a slow or silent peer costs nothing but its own task.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::{
    Action, CHALLENGE_LEN, CallName, ClientRun, HASH_LEN, HostAwaitAnswer, HostAwaitChallenge, HostStream,
    ProofError, Proved, Response, ResponseWriter,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout_at;

use crate::listener::admission::AdmissionSlot;
use crate::listener::auth::{PacketProof, StreamAuth};
use crate::request::job::{ClientReply, RequestJob, RequestOutcome, ResolvedTarget};
use crate::request::lease::{Lease, LeaseEndReason};
use crate::request::record::AnswerDelivery;
use crate::service::Service;
use crate::service::client_link::{ClientLink, ProofFailure};

/// Time for the client to send its challenge.
const CHALLENGE_LIMIT: Duration = Duration::from_secs(10);
/// Time for the client to answer our challenge: it is alive now, or it is not.
const PROOF_LIMIT: Duration = Duration::from_secs(2);
/// Time for the packet of a newer request to be read, after its sender took a stream that was opened late.
const PACKET_GRACE: Duration = Duration::from_millis(10);
/// Time for the packets that are there to be read, before a stream in doubt may act. A flood of packets must
/// not hold it up for ever.
const READ_LIMIT: Duration = Duration::from_millis(200);
/// Pause between two looks whether they are read.
const READ_PAUSE: Duration = Duration::from_millis(1);

/// Reason why a stream ended before its request could run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConversationError {
    /// The client did not send its challenge.
    #[error("the client sent no challenge: {0}")]
    NoChallenge(StreamError),
    /// The client did not answer our challenge.
    #[error("the client did not prove that it holds the key: {cause}{}", hint(cause))]
    NoProof {
        /// The event that came instead.
        cause: StreamError,
    },
    /// The client answered wrongly.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The stream is another process's.
    #[error("a newer request came from the same address and port, and the stream may be its own")]
    Superseded,
    /// The slot was evicted before the client had sent its challenge.
    #[error("the client sent no challenge yet, and there were too many requests")]
    PushedOut,
    /// No random bytes from the system.
    #[error("no random bytes: {0}")]
    Random(rand::rngs::SysError),
}

impl ConversationError {
    fn failure(&self) -> ProofFailure {
        ProofFailure { reason: self.reason(), text: self.to_string() }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoChallenge(_) => "no-challenge",
            Self::NoProof { .. } => "no-proof",
            Self::Proof(ProofError::LooksLikeRequest) => "challenge-like-request",
            Self::Proof(_) => "wrong-proof",
            Self::Superseded => "superseded",
            Self::PushedOut => "pushed-out",
            Self::Random(_) => "no-random-bytes",
        }
    }
}

/// A client that finds our answer to its challenge wrong can only hang up.
fn hint(cause: &StreamError) -> &'static str {
    match cause {
        StreamError::Closed => {
            " after our answer to its challenge; its key or its auth type (-C) differs, or it gave up, or \
             another host answered it first, which is normal where several hosts share a key"
        }
        StreamError::Late | StreamError::Io(_) => "",
    }
}

/// Failure of a read or write.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("nothing came in time")]
    Late,
    #[error("it hung up")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Check whether a stream belongs to the process that sent the request.
///
/// A call-back may reach the next process at the same port, which asked something else. A classic answer does
/// not name its request, so that process would take it for its own. Our agents name their run in their
/// challenge, and read ours: then there is no doubt. The proof of a sealed request is made with its packet:
/// then there is none either. A C agent tells nothing.
///
/// A process passes its port on while it waits for its answer. So a newer request says something only of a
/// stream about which there is doubt, and only if it was sent before that stream's proof.
pub(crate) struct StreamOwnership {
    /// Run of the client that sent the request.
    pub(crate) run: ClientRun,
    /// Returns true if a newer request came from the same address and port.
    pub(crate) is_superseded: Box<dyn Fn() -> bool + Send + Sync>,
    /// Returns true if all packets that have come are read.
    pub(crate) has_read_all: Box<dyn Fn() -> bool + Send + Sync>,
    /// The stream was opened so late that the packet of the newer request may still be on its way.
    pub(crate) is_late: bool,
}

/// Stream with a client, and the slot that the client has. The slot settles when the client has sent its
/// challenge.
pub(crate) struct ClientStream<S> {
    pub(crate) stream: S,
    pub(crate) slot: AdmissionSlot,
}

/// Holds the conversation of `job` to its end, sealed or classic as its packet was. `resolved` is the target,
/// if it is known already; `ownership` is to be checked where this side opened the stream.
pub(crate) async fn converse<S>(
    service: Arc<Service>,
    ClientStream { stream, slot }: ClientStream<S>,
    auth: StreamAuth,
    packet: PacketProof,
    job: RequestJob,
    resolved: Option<ResolvedTarget>,
    ownership: Option<StreamOwnership>,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let (auth, run) = (&auth, ownership.as_ref().map(|it| it.run));
    let (is_proved, has_spoken) = (false, false);
    let service = &service;
    let mut link =
        StreamLink { service, slot, auth, packet, reader, writer, ownership, run, is_proved, has_spoken };
    service.run_request(&job, resolved, &mut link).await;
}

/// The stream to one client.
struct StreamLink<'a, S> {
    service: &'a Service,
    /// Slot of the client, until the conversation is over.
    slot: AdmissionSlot,
    auth: &'a StreamAuth,
    packet: PacketProof,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    /// Doubt whose stream this is; none where there can't be one.
    ownership: Option<StreamOwnership>,
    /// Run of the client, where this side opened the stream.
    run: Option<ClientRun>,
    is_proved: bool,
    /// The client hung up, or said something before it was asked.
    has_spoken: bool,
}

impl<'a, S: AsyncRead + AsyncWrite + Send> ClientLink for StreamLink<'a, S> {
    const HAS_HANDSHAKE: bool = true;
    type Opened = OpenedStream<'a>;
    type Proven = ResponseWriter;

    /// Steps 1 and 2 of the handshake, beside the search for the domain.
    async fn open(
        &mut self,
        job: &RequestJob,
        _: &Lease,
        resolving: impl Future<Output = ResolvedTarget> + Send,
    ) -> (Result<OpenedStream<'a>, ProofFailure>, ResolvedTarget) {
        let Self { service, slot, auth, packet, reader, writer, ownership, .. } = self;
        if packet.sealed.is_some() {
            // Nobody but the process that sent the packet can give the proof, whatever comes from its port.
            *ownership = None;
        }
        let begun = HostStream::begin(packet.sealed, auth.hash.classic(), auth.keys.key(packet.key));
        let opening = async {
            Ok::<_, ConversationError>(match begun? {
                HostStream::Open(proof, response) => OpenedStream::Unproved(proof, response),
                HostStream::Challenge(handshake) => {
                    OpenedStream::Answered(open(service, reader, writer, handshake, ownership, job).await?)
                }
            })
        };
        let opening = async {
            let opened = tokio::select! {
                opened = opening => opened?,
                () = slot.pushed_out() => return Err(ConversationError::PushedOut),
            };
            if slot.settle() { Ok(opened) } else { Err(ConversationError::PushedOut) }
        };
        let (opened, resolved) = tokio::join!(opening, resolving);
        (opened.map_err(|error: ConversationError| error.failure()), resolved)
    }

    async fn abandoned(&mut self) -> LeaseEndReason {
        if self.has_spoken {
            return std::future::pending().await;
        }
        if self.is_proved {
            hung_up(&mut self.reader).await;
        } else {
            // The client has nothing to say before it is asked.
            until_readable(&mut self.reader).await;
        }
        self.has_spoken = true;
        LeaseEndReason::HungUp
    }

    async fn prove(
        &mut self,
        job: &RequestJob,
        opened: OpenedStream<'a>,
    ) -> Result<(Proved, ResponseWriter), ProofFailure> {
        let proved = match opened {
            OpenedStream::Unproved(proof, response) => (proof, response),
            OpenedStream::Answered(handshake) => {
                let Self { service, reader, writer, run, .. } = self;
                let run = *run;
                prove(service, reader, writer, handshake, run, job).await.map_err(|error| error.failure())?
            }
        };
        // Whoever proved itself has sent its own packet before it took the stream.
        if let Some(ownership) = &self.ownership {
            let has_read_all = read_all(ownership).await;
            if (ownership.is_superseded)() {
                return Err(ConversationError::Superseded.failure());
            }
            if has_read_all {
                // What comes from now on is of a process that got the port after this one.
                self.ownership = None;
            }
        }
        self.is_proved = true;
        Ok(proved)
    }

    async fn deliver(
        &mut self,
        job: &RequestJob,
        response: ResponseWriter,
        outcome: &RequestOutcome,
        is_gone: bool,
    ) -> AnswerDelivery {
        if !is_gone && self.ownership.as_ref().is_some_and(|it| (it.is_superseded)()) {
            let ProofFailure { reason, text } = ConversationError::Superseded.failure();
            self.service.drops.note(job.transport, reason, &job.peer, &text);
            return AnswerDelivery::Withheld;
        }
        let sent = if is_gone {
            Err(StreamError::Closed)
        } else {
            send(&mut self.writer, answer_bytes(job, response, outcome), job.deadline()).await
        };
        if let Err(cause) = &sent {
            self.service.drops.note(job.transport, "answer-not-taken", &job.peer, cause);
        }
        AnswerDelivery::of(sent.is_ok())
    }
}

/// Waits until every packet is read that was sent before now, if that does not take too long. Returns whether
/// all are.
async fn read_all(ownership: &StreamOwnership) -> bool {
    if ownership.is_late {
        tokio::time::sleep(PACKET_GRACE).await;
    }
    let until = Instant::now() + READ_LIMIT;
    while !(ownership.has_read_all)() {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(READ_PAUSE).await;
    }
    true
}

/// State of a stream after steps 1 and 2 of the handshake.
enum OpenedStream<'k> {
    /// Neither side asks for a proof.
    Unproved(Proved, ResponseWriter),
    /// The client's challenge is answered; ours is to come.
    Answered(HostAwaitAnswer<'k>),
}

async fn open<'k, S: AsyncRead + AsyncWrite>(
    service: &Service,
    reader: &mut ReadHalf<S>,
    writer: &mut WriteHalf<S>,
    handshake: HostAwaitChallenge<'k>,
    ownership: &mut Option<StreamOwnership>,
    job: &RequestJob,
) -> Result<HostAwaitAnswer<'k>, ConversationError> {
    let until = job.deadline().min(Instant::now() + CHALLENGE_LIMIT);
    let c1: [u8; CHALLENGE_LEN] = receive(reader, until).await.map_err(ConversationError::NoChallenge)?;
    if service.is_reflected(&c1) {
        return Err(ConversationError::Proof(ProofError::Reflected));
    }
    match ownership.as_ref().map(|it| handshake.name_of_call(it.run, &c1)) {
        // The process that sent the request has the stream, whatever another one at its port asks.
        Some(CallName::Own) => *ownership = None,
        Some(CallName::Other) => return Err(ConversationError::Superseded),
        Some(CallName::Unnamed) if ownership.as_ref().is_some_and(|it| (it.is_superseded)()) => {
            return Err(ConversationError::Superseded);
        }
        Some(CallName::Unnamed) | None => {}
    }
    let (answer, handshake) = handshake.answer(&c1)?;
    transmit(writer, &answer, until).await.map_err(ConversationError::NoChallenge)?;
    Ok(handshake)
}

async fn prove<S: AsyncRead + AsyncWrite>(
    service: &Service,
    reader: &mut ReadHalf<S>,
    writer: &mut WriteHalf<S>,
    handshake: HostAwaitAnswer<'_>,
    run: Option<ClientRun>,
    job: &RequestJob,
) -> Result<(Proved, ResponseWriter), ConversationError> {
    let c2 = match run.zip(handshake.naming_key()) {
        Some((run, key)) => service.named_challenge(key, run),
        None => service.challenge(),
    };
    let c2 = c2.map_err(ConversationError::Random)?;
    let handshake = handshake.challenge(&c2.challenge)?;
    let until = job.deadline().min(Instant::now() + PROOF_LIMIT);
    transmit(writer, &c2.challenge, until).await.map_err(|cause| ConversationError::NoProof { cause })?;
    let answer: [u8; HASH_LEN] =
        receive(reader, until).await.map_err(|cause| ConversationError::NoProof { cause })?;
    Ok(handshake.verify(&answer)?)
}

/// Waits until the client hangs up. Bytes received meanwhile are discarded.
async fn hung_up<S: AsyncRead>(reader: &mut ReadHalf<S>) {
    let mut junk = [0; 256];
    while matches!(reader.read(&mut junk).await, Ok(1..)) {}
}

/// Waits until the client hangs up or says anything.
async fn until_readable<S: AsyncRead>(reader: &mut ReadHalf<S>) {
    let mut byte = [0; 1];
    let _ = reader.read(&mut byte).await;
}

/// Words of a denial for a client.
const DENIED: &str = "this guest may not fence this domain with its key; the log of the host says why";

/// Returns the bytes of an answer. Only a question that changes nothing is told why it failed: the reason of
/// an action may speak of other clients.
fn answer_bytes(job: &RequestJob, response: ResponseWriter, outcome: &RequestOutcome) -> Vec<u8> {
    if job.dry_run.is_some() {
        // Never a plain response: nothing was done, and nothing else was asked.
        let code = outcome.answer().response();
        // The reason of a denial names groups, and tells which domains others have.
        let denied = (code == Response::PermissionDenied).then_some(DENIED);
        return response.forecast(code, denied.or(outcome.reason()).unwrap_or_default());
    }
    let is_question = matches!(job.action, Action::Status | Action::Monitor);
    match (outcome.answer(), outcome.reason()) {
        (ClientReply::Response(Response::Failure), Some(why)) if is_question => response.failure(why),
        (ClientReply::Response(code), _) => response.response(*code),
        (ClientReply::List(entries, code), _) => response.list(entries, *code),
    }
}

async fn send<S: AsyncWrite>(
    writer: &mut WriteHalf<S>,
    bytes: Vec<u8>,
    until: Instant,
) -> Result<(), StreamError> {
    transmit(writer, &bytes, until).await?;
    let _ = timeout_at(until.into(), writer.shutdown()).await;
    Ok(())
}

async fn receive<const N: usize, S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    until: Instant,
) -> Result<[u8; N], StreamError> {
    let mut bytes = [0; N];
    timeout_at(until.into(), reader.read_exact(&mut bytes)).await.map_err(|_| StreamError::Late)??;
    Ok(bytes)
}

async fn transmit<S: AsyncWrite>(
    writer: &mut WriteHalf<S>,
    bytes: &[u8],
    until: Instant,
) -> Result<(), StreamError> {
    timeout_at(until.into(), writer.write_all(bytes)).await.map_err(|_| StreamError::Late)??;
    Ok(())
}
