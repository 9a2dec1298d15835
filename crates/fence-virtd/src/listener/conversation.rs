// SPDX-License-Identifier: GPL-2.0-or-later
//! One stream with one client: the mutual challenge, the request's turn, the answer.
//!
//! The same for a multicast call-back, TCP and vsock. Each conversation is a task of its own, and each of its waits
//! has a limit, so that a slow or silent peer costs nothing but its own task.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::{
    CHALLENGE_LEN, HASH_LEN, HashType, HostAwaitAnswer, HostAwaitChallenge, HostStream, ProofError, Proved,
    Received, Response, ResponseWriter, SealedRequest,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout_at;

use crate::listener::keys::ListenerKeys;
use crate::request::job::{ClientReply, RequestJob, RequestOutcome, ResolvedTarget};
use crate::request::lease::LeaseEndReason;
use crate::request::record::{AuditRecord, RequestEnd, StageTimes};
use crate::service::Service;
use fence_core::arbiter::Grant;

/// How long the client may take to send its challenge.
const CHALLENGE_LIMIT: Duration = Duration::from_secs(10);
/// How long the client may take to answer ours: it is alive now, or it is not.
const PROOF_LIMIT: Duration = Duration::from_secs(2);

/// How a stream is authenticated, as far as the packet does not say: sealed ones are sealed whatever stands here.
#[derive(Clone, Debug)]
pub(crate) struct StreamAuth {
    /// The hash of classic challenges; none: no challenge at all.
    pub(crate) hash: HashType,
    /// The listener's keys.
    pub(crate) keys: Arc<ListenerKeys>,
}

/// How the packet was proved: what its stream goes on with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PacketProof {
    /// The place of the key that made its hash.
    key: Option<usize>,
    sealed: Option<SealedRequest>,
}

impl PacketProof {
    pub(crate) fn of(packet: &Received) -> Self {
        Self { key: packet.key, sealed: packet.sealed }
    }

    /// The place of the key that made the packet's hash.
    pub(crate) fn key(&self) -> Option<usize> {
        self.key
    }
}

/// Why a stream ended before its request could run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConversationError {
    /// The client did not send its challenge.
    #[error("the client sent no challenge: {0}")]
    NoChallenge(StreamError),
    /// The client did not answer ours.
    #[error("the client did not prove that it holds the key: {cause}{}", hint(cause))]
    NoProof {
        /// What happened instead.
        cause: StreamError,
    },
    /// The client answered wrongly.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// No random bytes from the system.
    #[error("no random bytes: {0}")]
    Random(rand::rngs::SysError),
}

impl ConversationError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoChallenge(_) => "no-challenge",
            Self::NoProof { .. } => "no-proof",
            Self::Proof(ProofError::LooksLikeRequest) => "challenge-like-request",
            Self::Proof(_) => "wrong-proof",
            Self::Random(_) => "no-random-bytes",
        }
    }
}

/// A client that finds our answer to its challenge wrong can only hang up.
fn hint(cause: &StreamError) -> &'static str {
    match cause {
        StreamError::Closed => {
            " after our answer to its challenge; its key or its auth type (-C) differs, or it gave up"
        }
        StreamError::Late | StreamError::Io(_) => "",
    }
}

/// What happened to a read or write.
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

/// Holds the conversation of `job` to its end, sealed or classic as its packet was. `resolved` is what the request
/// came to, where somebody looked already.
pub(crate) async fn converse<S>(
    service: Arc<Service>,
    stream: S,
    auth: StreamAuth,
    packet: PacketProof,
    job: RequestJob,
    resolved: Option<ResolvedTarget>,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let _under_way = service.begin_request();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut stages = StageTimes { connected: Some(StageTimes::since(job.arrived)), ..StageTimes::default() };
    let begun = HostStream::begin(packet.sealed, auth.hash.classic(), auth.keys.key(packet.key));
    // Step 1 and 2 while the domain is looked up: neither waits for the other.
    let opening = async {
        Ok(match begun? {
            HostStream::Open(proof, response) => OpenedStream::Unproved(proof, response),
            HostStream::Challenge(handshake) => {
                OpenedStream::Answered(open(&service, &mut reader, &mut writer, handshake, &job).await?)
            }
        })
    };
    let resolving = async {
        match resolved {
            Some(resolved) => resolved,
            None => service.resolve(&job).await,
        }
    };
    let (opened, resolved) = tokio::join!(opening, resolving);
    stages.resolved = Some(StageTimes::since(job.arrived));
    let domain = resolved.domain().cloned();
    let record = |end: RequestEnd<'_>, stages| {
        service.audit(&AuditRecord { job: &job, domain: domain.as_ref(), end, stages });
    };
    let broken = |error: &ConversationError, stages| {
        service.drops.note(job.transport, error.reason(), &job.peer, error);
        record(RequestEnd::NotProved(&error.to_string()), stages);
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return broken(&error, stages),
    };
    let (lease, settled) = Service::lease(&job);
    // The proof comes as late as it can: only a client that is alive when its turn comes can give it.
    let go = {
        let turn = service.wait_for_grant(&job, &resolved, &lease);
        tokio::pin!(turn);
        tokio::select! {
            biased;
            go = &mut turn => go,
            // It has nothing to say before it is asked.
            () = until_readable(&mut reader) => {
                lease.end(LeaseEndReason::HungUp);
                turn.await
            }
        }
    };
    stages.turn = Some(StageTimes::since(job.arrived));
    let unproved = match &go {
        Grant::Rejected(why) if !why.is_for_the_client() => Some(why),
        Grant::Rejected(_) | Grant::Run(_) | Grant::Coalesced(_) => None,
    };
    if let Some(why) = unproved {
        return record(RequestEnd::NotRun(&why.to_string()), stages);
    }
    let proved = match opened {
        OpenedStream::Answered(handshake) => prove(&service, &mut reader, &mut writer, handshake, &job).await,
        OpenedStream::Unproved(proof, response) => Ok((proof, response)),
    };
    let (proof, response) = match proved {
        Ok(proved) => proved,
        Err(error) => return broken(&error, stages),
    };
    stages.proved = Some(StageTimes::since(job.arrived));
    let (outcome, gone) = match go {
        Grant::Coalesced(told) => (RequestOutcome::from(told), false),
        Grant::Rejected(why) => (RequestOutcome::because(Response::Failure, why), false),
        Grant::Run(running) => {
            let outcome = {
                let work = service.execute(&job, resolved, proof, &running, &lease);
                tokio::pin!(work);
                tokio::select! {
                    outcome = &mut work => outcome,
                    () = hung_up(&mut reader) => {
                        lease.end(LeaseEndReason::HungUp);
                        work.await
                    }
                }
            };
            let gone = lease.end_reason().is_some();
            Service::complete(running, &outcome, lease, settled);
            (outcome, gone)
        }
    };
    stages.done = Some(StageTimes::since(job.arrived));
    let sent = if gone {
        Err(StreamError::Closed)
    } else {
        send(&mut writer, response, &outcome.answer, job.deadline()).await
    };
    if let Err(cause) = &sent {
        service.record_undelivered(&job, domain.as_ref(), &outcome);
        service.drops.note(job.transport, "answer-not-taken", &job.peer, cause);
    }
    let response = outcome.answer.response();
    record(
        RequestEnd::Answered { response, reason: outcome.reason.as_deref(), delivered: sent.is_ok() },
        stages,
    );
}

/// What steps 1 and 2 came to.
enum OpenedStream<'k> {
    /// Nobody asks for more.
    Unproved(Proved, ResponseWriter),
    /// The client's challenge is answered; ours is to come.
    Answered(HostAwaitAnswer<'k>),
}

async fn open<'k, S: AsyncRead + AsyncWrite>(
    service: &Service,
    reader: &mut ReadHalf<S>,
    writer: &mut WriteHalf<S>,
    handshake: HostAwaitChallenge<'k>,
    job: &RequestJob,
) -> Result<HostAwaitAnswer<'k>, ConversationError> {
    let until = job.deadline().min(Instant::now() + CHALLENGE_LIMIT);
    let c1: [u8; CHALLENGE_LEN] = receive(reader, until).await.map_err(ConversationError::NoChallenge)?;
    if service.is_reflected(&c1) {
        return Err(ConversationError::Proof(ProofError::Reflected));
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
    job: &RequestJob,
) -> Result<(Proved, ResponseWriter), ConversationError> {
    let c2 = service.challenge().map_err(ConversationError::Random)?;
    let handshake = handshake.challenge(&c2.challenge)?;
    let until = job.deadline().min(Instant::now() + PROOF_LIMIT);
    transmit(writer, &c2.challenge, until).await.map_err(|cause| ConversationError::NoProof { cause })?;
    let answer: [u8; HASH_LEN] =
        receive(reader, until).await.map_err(|cause| ConversationError::NoProof { cause })?;
    Ok(handshake.verify(&answer)?)
}

/// Returns when the client hangs up; what it sends meanwhile is nobody's.
async fn hung_up<S: AsyncRead>(reader: &mut ReadHalf<S>) {
    let mut junk = [0; 256];
    while matches!(reader.read(&mut junk).await, Ok(1..)) {}
}

/// Returns when the client hangs up or says anything.
async fn until_readable<S: AsyncRead>(reader: &mut ReadHalf<S>) {
    let mut byte = [0; 1];
    let _ = reader.read(&mut byte).await;
}

async fn send<S: AsyncWrite>(
    writer: &mut WriteHalf<S>,
    response: ResponseWriter,
    answer: &ClientReply,
    until: Instant,
) -> Result<(), StreamError> {
    let bytes = match answer {
        ClientReply::Response(code) => response.response(*code),
        ClientReply::List(entries, code) => response.list(entries, *code),
    };
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
