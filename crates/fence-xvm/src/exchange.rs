// SPDX-License-Identifier: GPL-2.0-or-later
//! One exchange with a host over a stream, sans-I/O: bytes in, bytes out, and the answer at the end.
//!
//! ```text
//! [request]  challenge    -->
//!                         <--  answer to it           the host is proven
//!                         <--  the host's challenge   held until the caller calls "prove"
//! answer                  -->
//!                         <--  response, or 253 and a host list; of a sealed request, with its seal,
//!                              and with the reason of a failure, if the request wants it
//! ```
//!
//! Our answer to the host's challenge lets the host carry the request out. So the caller says when it is
//! sent: of several hosts that call back, only one gets it at a time.
//!
//! Owns the bytes of one stream. Pure: no sockets, no clock. Must never give an answer to a sealed request
//! before its seal is verified.

use std::fmt;
use std::time::Duration;

use fence_wire::{
    Action, CHALLENGE_LEN, CallName, Challenge, ClientAnswer, ClientAuth, ClientHandshake, ClientRun,
    ClientStream, Genuine, HASH_LEN, HOST_LIST_ENTRY_LEN, HOST_LIST_FOLLOWS, HostListEntry, HostListItem,
    ProofError, REASON_MAX, Response, ResponseSeal, WrongSeal,
};

use crate::answer::HostAnswer;

/// Exchange with a host over one stream.
#[derive(Debug)]
pub struct HostExchange<'k> {
    action: Action,
    /// Run that the host's challenge should name; none where the stream can be no other run's.
    run: Option<ClientRun>,
    state: ExchangeState<'k>,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Reason why an exchange gives no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The peer does not hold the key.
    #[error("{0}")]
    Proof(#[from] ProofError),
    /// The host closed the stream before it proved that it holds the key.
    #[error(
        "closed before it proved that it holds the key: did the host drop the request? The host's log says \
         why"
    )]
    ClosedUnproven,
    /// One byte came instead of the whole proof, and nothing after it.
    #[error("sent one byte and closed, without the proof that it holds the key: is its auth type none?")]
    ResponseUnproven,
    /// The host closed the stream after its proof and before its challenge.
    #[error("closed before it asked for our proof")]
    ClosedProven,
    /// The host closed the stream after our proof: it did not accept the proof, or it died.
    #[error("closed without a response: do key, hash and auth type agree with the host's?")]
    ClosedUnanswered,
    /// The host sent bytes while it had to wait for our proof.
    #[error("sent something before it had our proof")]
    OutOfTurn,
    /// The response byte is not valid for this action.
    #[error("response {0} has no meaning here")]
    Response(u8),
    /// The host sent success and no list.
    #[error("answered a list with success and sent none")]
    NoList,
    /// The list ended before its last entry.
    #[error("the list broke off after {0} entries")]
    ListBrokeOff(usize),
    /// The seal does not fit the response.
    #[error("{0}: the host's log says what it answered")]
    Seal(#[from] WrongSeal),
    /// The stream was closed between the response and the end of its seal.
    #[error("the response came without its seal: somebody on the way changed it, or the host broke off")]
    NoSeal,
    /// The reason of a failure is too long.
    #[error("the reason is longer than {REASON_MAX} bytes")]
    ReasonTooLong,
    /// The list does not end.
    #[error("the list has more than {LIST_MAX} entries")]
    ListTooLong,
}

impl ExchangeError {
    /// Returns whether the peer never proved that it holds the key.
    #[must_use]
    pub fn is_from_unproven_peer(self) -> bool {
        matches!(self, Self::Proof(_) | Self::ClosedUnproven | Self::ResponseUnproven)
    }

    /// Returns whether the host closed the stream before its response: it may have lost it, or was started
    /// anew.
    #[must_use]
    pub fn is_broken_off(self) -> bool {
        matches!(self, Self::ClosedUnproven | Self::ClosedProven | Self::ClosedUnanswered)
    }

    /// Returns whether the host had begun its response: then there is no better one to wait for.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Response(_)
                | Self::NoList
                | Self::Seal(_)
                | Self::NoSeal
                | Self::ListBrokeOff(_)
                | Self::ListTooLong
                | Self::ReasonTooLong
        )
    }
}

/// Step that an exchange waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "Display describes each")]
pub enum AwaitedStep {
    Proof,
    Challenge,
    Turn,
    Response,
    List,
    Seal,
    Nothing,
}

impl fmt::Display for AwaitedStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proof => "the proof that it holds the key (step 2)",
            Self::Challenge => "its challenge (step 3): it is proven and has not let the request run",
            Self::Turn => "our proof (step 4), which another host got first",
            Self::Response => "its response, after our proof",
            Self::List => "the rest of the list",
            Self::Seal => "the response's seal",
            Self::Nothing => "nothing",
        })
    }
}

/// Time that a complete list waits for the result after it, which not every host sends.
pub(crate) const LIST_RESULT_WAIT: Duration = Duration::from_secs(1);

/// Largest number of entries of a list.
pub const LIST_MAX: usize = 100_000;

#[derive(Debug)]
enum ExchangeState<'k> {
    AwaitAnswer(ClientHandshake<'k>),
    AwaitChallenge(ClientAnswer<'k>),
    /// The host's challenge is here; our answer to it is held back.
    HeldProof([u8; HASH_LEN], ResponseSeal, CallName),
    AwaitResponse(ResponseSeal),
    /// The host says why it fails, or what an action would do: the length of the text, once it is here.
    InReason(Option<usize>, ResponseSeal),
    InList(Vec<HostListEntry>, ResponseSeal),
    /// The list is complete. Its result may follow, and must where a seal follows it.
    AfterList(Vec<HostListEntry>, ResponseSeal),
    /// The response, or the reason why it is not valid, until the seal proves that it is the host's.
    AwaitSeal(Result<HostAnswer, ExchangeError>, ResponseSeal),
    Done(Genuine<HostAnswer>),
    Failed(ExchangeError),
}

/// State while a step is taken.
const MOVED: ExchangeState<'static> = ExchangeState::Failed(ExchangeError::ClosedUnanswered);

/// Returns the state after a complete response: a seal follows, or the exchange is done.
fn after_response<'k>(
    answer: Result<HostAnswer, ExchangeError>,
    seal: ResponseSeal,
) -> Result<ExchangeState<'k>, ExchangeError> {
    if seal.is_sealed() {
        return Ok(ExchangeState::AwaitSeal(answer, seal));
    }
    Ok(ExchangeState::Done(seal.unsealed(answer?).map_err(|_| ExchangeError::NoSeal)?))
}

/// Returns the answer that a response byte without a list is for this action.
pub(crate) fn answer_from_byte(action: Action, byte: u8) -> Result<HostAnswer, ExchangeError> {
    match Response::from_number(byte).ok_or(ExchangeError::Response(byte))? {
        Response::Success if action == Action::List => Err(ExchangeError::NoList),
        Response::Off if action != Action::Status => Err(ExchangeError::Response(byte)),
        response => Ok(HostAnswer::Response(response)),
    }
}

impl<'k> HostExchange<'k> {
    /// Starts an exchange with a host that called back for one of this run's packets, or of another run's.
    #[must_use]
    pub fn called_back(action: Action, auth: ClientAuth<'k>, run: ClientRun, c1: Challenge) -> Self {
        Self { run: Some(run), ..Self::new(action, auth, None, c1) }
    }

    /// Starts an exchange. `request` is sent first; none where the host has it already. `auth` is how it was
    /// sent. `c1` must be a fresh challenge.
    #[must_use]
    pub fn new(action: Action, auth: ClientAuth<'k>, request: Option<&[u8]>, c1: Challenge) -> Self {
        let mut output = request.unwrap_or_default().to_vec();
        let state = match ClientStream::begin(auth, c1) {
            ClientStream::Challenge(handshake) => {
                output.extend(c1);
                ExchangeState::AwaitAnswer(handshake)
            }
            ClientStream::Open(seal) => ExchangeState::AwaitResponse(seal),
        };
        Self { action, run: None, state, input: Vec::new(), output }
    }

    /// Takes the bytes that are to be sent now.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// The reason why the stream must be closed. It stays the same afterwards.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ExchangeError> {
        self.input.extend_from_slice(bytes);
        loop {
            let length = self.input.len();
            match self.advance() {
                Ok(()) if self.input.len() == length => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    self.state = ExchangeState::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// Ends the exchange, because the host closed the stream or time ran out, and returns its answer.
    ///
    /// # Errors
    /// The reason why there is no answer, by the step that was reached.
    pub fn close(&mut self) -> Result<HostAnswer, ExchangeError> {
        let state =
            std::mem::replace(&mut self.state, ExchangeState::Failed(ExchangeError::ClosedUnanswered));
        Err(match state {
            ExchangeState::Done(answer) => return Ok(answer.into_inner()),
            ExchangeState::AfterList(entries, seal) => {
                let answer = seal.unsealed(HostAnswer::List { entries, response: None });
                return answer.map(Genuine::into_inner).map_err(|_| ExchangeError::NoSeal);
            }
            ExchangeState::AwaitAnswer(_) if self.input.len() == 1 => ExchangeError::ResponseUnproven,
            ExchangeState::AwaitAnswer(_) => ExchangeError::ClosedUnproven,
            ExchangeState::AwaitChallenge(_) | ExchangeState::HeldProof(..) => ExchangeError::ClosedProven,
            ExchangeState::AwaitResponse(_) | ExchangeState::InReason(..) => ExchangeError::ClosedUnanswered,
            ExchangeState::InList(entries, _) => ExchangeError::ListBrokeOff(entries.len()),
            ExchangeState::AwaitSeal(..) => ExchangeError::NoSeal,
            ExchangeState::Failed(error) => error,
        })
    }

    /// Returns whether the answer is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, ExchangeState::Done(_))
    }

    /// Returns whether the whole list is here and only its result is missing, which not every host sends. A
    /// sealed list has no end before its seal.
    #[must_use]
    pub fn is_list_complete(&self) -> bool {
        matches!(&self.state, ExchangeState::AfterList(_, seal) if !seal.is_sealed())
    }

    /// Returns whether the peer is believed: it holds the key, or the plan asks for no proof.
    #[must_use]
    pub fn is_believed(&self) -> bool {
        !matches!(self.state, ExchangeState::AwaitAnswer(_) | ExchangeState::Failed(_))
    }

    /// Returns whether the host waits for our proof.
    #[must_use]
    pub fn is_asking_for_proof(&self) -> bool {
        matches!(self.state, ExchangeState::HeldProof(..))
    }

    /// Returns the run that the host's challenge names, while the host waits for our proof.
    #[must_use]
    pub fn call_name(&self) -> Option<CallName> {
        match self.state {
            ExchangeState::HeldProof(_, _, name) => Some(name),
            _ => None,
        }
    }

    /// Answers the host's challenge, if it is here.
    pub fn prove(&mut self) {
        self.state = match std::mem::replace(&mut self.state, MOVED) {
            ExchangeState::HeldProof(answer, seal, _) => {
                self.output.extend(answer);
                ExchangeState::AwaitResponse(seal)
            }
            other => other,
        };
    }

    /// Returns the step that the exchange waits for.
    #[must_use]
    pub fn awaited_step(&self) -> AwaitedStep {
        match self.state {
            ExchangeState::AwaitAnswer(_) => AwaitedStep::Proof,
            ExchangeState::AwaitChallenge(_) => AwaitedStep::Challenge,
            ExchangeState::HeldProof(..) => AwaitedStep::Turn,
            ExchangeState::AwaitResponse(_) | ExchangeState::InReason(..) => AwaitedStep::Response,
            ExchangeState::InList(..) => AwaitedStep::List,
            ExchangeState::AfterList(_, ref seal) if seal.is_sealed() => AwaitedStep::List,
            ExchangeState::AwaitSeal(..) => AwaitedStep::Seal,
            ExchangeState::AfterList(..) | ExchangeState::Done(_) | ExchangeState::Failed(_) => {
                AwaitedStep::Nothing
            }
        }
    }

    /// Takes at most one message.
    fn advance(&mut self) -> Result<(), ExchangeError> {
        self.state = match std::mem::replace(&mut self.state, MOVED) {
            ExchangeState::AwaitAnswer(handshake) => match self.take::<HASH_LEN>() {
                Some(answer) => ExchangeState::AwaitChallenge(handshake.verify(&answer)?),
                None => ExchangeState::AwaitAnswer(handshake),
            },
            ExchangeState::AwaitChallenge(client) => match self.take::<CHALLENGE_LEN>() {
                Some(c2) => {
                    let name = self.run.map_or(CallName::Own, |run| client.name_of_call(run, &c2));
                    let (answer, seal) = client.answer(&c2)?;
                    ExchangeState::HeldProof(answer, seal, name)
                }
                None => ExchangeState::AwaitChallenge(client),
            },
            ExchangeState::HeldProof(..) if !self.input.is_empty() => return Err(ExchangeError::OutOfTurn),
            ExchangeState::AwaitResponse(mut seal) => match self.take_sealed::<1>(&mut seal) {
                Some([HOST_LIST_FOLLOWS]) if self.action == Action::List => {
                    ExchangeState::InList(Vec::new(), seal)
                }
                Some([byte]) if seal.is_text(byte) => ExchangeState::InReason(None, seal),
                Some([byte]) => after_response(answer_from_byte(self.action, byte), seal)?,
                None => ExchangeState::AwaitResponse(seal),
            },
            ExchangeState::InReason(None, mut seal) => match self.take_sealed::<2>(&mut seal) {
                Some(length) => ExchangeState::InReason(Some(usize::from(u16::from_le_bytes(length))), seal),
                None => ExchangeState::InReason(None, seal),
            },
            ExchangeState::InReason(Some(length), mut seal) => match self.take_text(length, &mut seal)? {
                Some(failed) => after_response(failed, seal)?,
                None => ExchangeState::InReason(Some(length), seal),
            },
            ExchangeState::InList(mut entries, mut seal) => {
                match self.take_sealed::<HOST_LIST_ENTRY_LEN>(&mut seal) {
                    Some(entry) => match HostListEntry::decode(&entry) {
                        HostListItem::End => ExchangeState::AfterList(entries, seal),
                        HostListItem::Domain(_) if entries.len() == LIST_MAX => {
                            return Err(ExchangeError::ListTooLong);
                        }
                        HostListItem::Domain(domain) => {
                            entries.push(domain);
                            ExchangeState::InList(entries, seal)
                        }
                    },
                    None => ExchangeState::InList(entries, seal),
                }
            }
            ExchangeState::AfterList(entries, mut seal) => match self.take_sealed::<1>(&mut seal) {
                Some([byte]) => {
                    let response = Response::from_number(byte).ok_or(ExchangeError::Response(byte));
                    after_response(response.map(|it| HostAnswer::List { entries, response: Some(it) }), seal)?
                }
                None => ExchangeState::AfterList(entries, seal),
            },
            ExchangeState::AwaitSeal(answer, seal) => match self.take::<HASH_LEN>() {
                Some(received) => {
                    // Also that a response is not valid is known only of the host's own response.
                    ExchangeState::Done(seal.verify(answer, &received)?.transpose()?)
                }
                None => ExchangeState::AwaitSeal(answer, seal),
            },
            // Bytes after the end are discarded.
            ExchangeState::Done(answer) => {
                self.input.clear();
                ExchangeState::Done(answer)
            }
            ExchangeState::Failed(error) => return Err(error),
            held @ ExchangeState::HeldProof(..) => held,
        };
        Ok(())
    }

    /// Takes a reason and the response after it, which must be a failure; or a forecast and its response.
    fn take_text(
        &mut self,
        length: usize,
        seal: &mut ResponseSeal,
    ) -> Result<Option<Result<HostAnswer, ExchangeError>>, ExchangeError> {
        if length > REASON_MAX {
            return Err(ExchangeError::ReasonTooLong);
        }
        let Some((text, [response, ..])) = self.input.split_at_checked(length) else { return Ok(None) };
        let answer = match Response::from_number(*response) {
            Some(response @ (Response::Success | Response::Failure | Response::PermissionDenied))
                if seal.wants_forecast() =>
            {
                Ok(HostAnswer::Forecast { response, text: String::from_utf8_lossy(text).into_owned() })
            }
            Some(Response::Failure) if !seal.wants_forecast() => {
                Ok(HostAnswer::Failed(String::from_utf8_lossy(text).into_owned()))
            }
            _ => Err(ExchangeError::Response(*response)),
        };
        seal.take(&self.input[..=length]);
        self.input.drain(..=length);
        Ok(Some(answer))
    }

    /// Takes a part of the response, which the seal covers.
    fn take_sealed<const N: usize>(&mut self, seal: &mut ResponseSeal) -> Option<[u8; N]> {
        let part = self.take()?;
        seal.take(&part);
        Some(part)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let message = *self.input.first_chunk::<N>()?;
        self.input.drain(..N);
        Some(message)
    }
}
