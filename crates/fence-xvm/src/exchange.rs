// SPDX-License-Identifier: GPL-2.0-or-later
//! One stream with a host, sans-I/O: bytes in, bytes out, and the answer at its end.
//!
//! ```text
//! [request]  challenge    -->
//!                         <--  answer to it           the host is proven
//!                         <--  the host's challenge   held until the caller says "prove"
//! answer                  -->
//!                         <--  response, or 253 and a host list; of a sealed request, with its seal
//! ```
//!
//! There is no answer to a sealed request before its seal is verified.
//!
//! Answering the host's challenge lets it carry the request out, so this waits for the caller's word: of several
//! hosts that call back, only one is answered at a time.

use std::fmt;
use std::time::Duration;

use fence_wire::{
    Action, CHALLENGE_LEN, Challenge, ClientAnswer, ClientAuth, ClientHandshake, ClientStream, Genuine,
    HASH_LEN, HOST_LIST_ENTRY_LEN, HOST_LIST_FOLLOWS, HostListEntry, HostListItem, ProofError, Response,
    ResponseSeal, WrongSeal,
};

use crate::answer::Answer;

/// One stream with a host.
#[derive(Debug)]
pub struct Exchange<'k> {
    action: Action,
    state: State<'k>,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Why a stream gives no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer does not hold the key.
    #[error("{0}")]
    Proof(#[from] ProofError),
    /// The host ended the stream before it proved that it holds the key.
    #[error("closed before it proved that it holds the key: did it drop the request? Its log says why")]
    ClosedUnproven,
    /// A byte came where a whole proof should, and nothing after it.
    #[error("said one byte and closed, without the proof that it holds the key: is its auth type none?")]
    ResponseUnproven,
    /// The host ended the stream after that, before its challenge.
    #[error("closed before it asked for our proof")]
    ClosedProven,
    /// The host ended the stream when it had our proof: it did not accept that, or it died.
    #[error("closed without a response: do key, hash and auth type agree with the host's?")]
    ClosedUnanswered,
    /// The host said something when it was not its turn.
    #[error("spoke out of turn")]
    OutOfTurn,
    /// A byte that is no response.
    #[error("response {0} has no meaning here")]
    Response(u8),
    /// Success of a list without a list.
    #[error("said success to a list and sent none")]
    NoList,
    /// The list broke off.
    #[error("the list broke off after {0} entries")]
    ListBrokeOff(usize),
    /// The seal does not fit what came.
    #[error("{0}: the host's log says what it answered")]
    Seal(#[from] WrongSeal),
    /// The stream ended between the response and the end of its seal.
    #[error("the response came without its seal: somebody on the way changed it, or the host broke off")]
    NoSeal,
    /// A list that does not end.
    #[error("the list has more than {LIST_MAX} entries")]
    ListTooLong,
}

impl Refusal {
    /// Whether the peer never proved that it holds the key.
    #[must_use]
    pub fn is_of_stranger(self) -> bool {
        matches!(self, Self::Proof(_) | Self::ClosedUnproven | Self::ResponseUnproven)
    }

    /// Whether the host had begun its response: then there is no better one to wait for.
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
        )
    }
}

/// What a stream waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the words say what each is")]
pub enum Wait {
    Proof,
    Challenge,
    Turn,
    Response,
    List,
    Seal,
    Nothing,
}

impl fmt::Display for Wait {
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

/// How long a complete list waits for what comes after it, which not every host sends.
pub(crate) const LAST_BYTE: Duration = Duration::from_secs(1);

/// Entries of a list that are taken.
pub const LIST_MAX: usize = 100_000;

#[derive(Debug)]
enum State<'k> {
    AwaitAnswer(ClientHandshake<'k>),
    AwaitChallenge(ClientAnswer<'k>),
    /// Holds the answer to the host's challenge back.
    Asked([u8; HASH_LEN], ResponseSeal),
    AwaitResponse(ResponseSeal),
    InList(Vec<HostListEntry>, ResponseSeal),
    /// The list has ended; one byte may come yet, and must where a seal follows it.
    AfterList(Vec<HostListEntry>, ResponseSeal),
    /// Holds what the response says, or why it says nothing, until it is known to be the host's.
    AwaitSeal(Result<Answer, Refusal>, ResponseSeal),
    Done(Genuine<Answer>),
    Refused(Refusal),
}

/// While a step is being taken.
const MOVED: State<'static> = State::Refused(Refusal::ClosedUnanswered);

/// All of the response is here, and its seal may be awaited.
fn said<'k>(answer: Result<Answer, Refusal>, seal: ResponseSeal) -> Result<State<'k>, Refusal> {
    if seal.is_sealed() {
        return Ok(State::AwaitSeal(answer, seal));
    }
    Ok(State::Done(seal.unsealed(answer?).map_err(|_| Refusal::NoSeal)?))
}

/// What a response byte without a list means as the answer to this action.
pub(crate) fn plain(action: Action, byte: u8) -> Result<Answer, Refusal> {
    match Response::from_number(byte).ok_or(Refusal::Response(byte))? {
        Response::Success if action == Action::List => Err(Refusal::NoList),
        Response::Off if action != Action::Status => Err(Refusal::Response(byte)),
        response => Ok(Answer::Response(response)),
    }
}

impl<'k> Exchange<'k> {
    /// A stream on which the request is known (`request` none) or comes first. `auth` is how it was sent; `c1` must
    /// be a fresh challenge.
    #[must_use]
    pub fn new(action: Action, auth: ClientAuth<'k>, request: Option<&[u8]>, c1: Challenge) -> Self {
        let mut output = request.unwrap_or_default().to_vec();
        let state = match ClientStream::begin(auth, c1) {
            ClientStream::Challenge(handshake) => {
                output.extend(c1);
                State::AwaitAnswer(handshake)
            }
            ClientStream::Open(seal) => State::AwaitResponse(seal),
        };
        Self { action, state, input: Vec::new(), output }
    }

    /// Takes what is to be sent now.
    #[must_use]
    pub fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes bytes that came.
    ///
    /// # Errors
    /// Why the stream must be closed; it stays so.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.input.extend_from_slice(bytes);
        loop {
            let waiting = self.input.len();
            match self.step() {
                Ok(()) if self.input.len() == waiting => return Ok(()),
                Ok(()) => {}
                Err(refusal) => {
                    self.state = State::Refused(refusal);
                    return Err(refusal);
                }
            }
        }
    }

    /// The host has closed the stream, or there is no more time: the answer if the stream has one.
    ///
    /// # Errors
    /// How far it came.
    pub fn close(&mut self) -> Result<Answer, Refusal> {
        let state = std::mem::replace(&mut self.state, State::Refused(Refusal::ClosedUnanswered));
        Err(match state {
            State::Done(answer) => return Ok(answer.into_inner()),
            State::AfterList(entries, seal) => {
                let answer = seal.unsealed(Answer::List { entries, response: None });
                return answer.map(Genuine::into_inner).map_err(|_| Refusal::NoSeal);
            }
            State::AwaitAnswer(_) if self.input.len() == 1 => Refusal::ResponseUnproven,
            State::AwaitAnswer(_) => Refusal::ClosedUnproven,
            State::AwaitChallenge(_) | State::Asked(..) => Refusal::ClosedProven,
            State::AwaitResponse(_) => Refusal::ClosedUnanswered,
            State::InList(entries, _) => Refusal::ListBrokeOff(entries.len()),
            State::AwaitSeal(..) => Refusal::NoSeal,
            State::Refused(refusal) => refusal,
        })
    }

    /// Whether the answer is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Whether all of a list is here; only the byte is missing that some hosts do not send. A sealed list has no end
    /// before its seal.
    #[must_use]
    pub fn list_has_ended(&self) -> bool {
        matches!(&self.state, State::AfterList(_, seal) if !seal.is_sealed())
    }

    /// Whether the peer may be believed: it holds the key, or nobody asks for that.
    #[must_use]
    pub fn is_believed(&self) -> bool {
        !matches!(self.state, State::AwaitAnswer(_) | State::Refused(_))
    }

    /// Whether the host asks for our proof.
    #[must_use]
    pub fn asks_for_proof(&self) -> bool {
        matches!(self.state, State::Asked(..))
    }

    /// Answers the host's challenge, if it asks.
    pub fn prove(&mut self) {
        self.state = match std::mem::replace(&mut self.state, MOVED) {
            State::Asked(answer, seal) => {
                self.output.extend(answer);
                State::AwaitResponse(seal)
            }
            other => other,
        };
    }

    /// What the stream waits for.
    #[must_use]
    pub fn waits_for(&self) -> Wait {
        match self.state {
            State::AwaitAnswer(_) => Wait::Proof,
            State::AwaitChallenge(_) => Wait::Challenge,
            State::Asked(..) => Wait::Turn,
            State::AwaitResponse(_) => Wait::Response,
            State::InList(..) => Wait::List,
            State::AfterList(_, ref seal) if seal.is_sealed() => Wait::List,
            State::AwaitSeal(..) => Wait::Seal,
            State::AfterList(..) | State::Done(_) | State::Refused(_) => Wait::Nothing,
        }
    }

    /// Goes on by at most one message.
    fn step(&mut self) -> Result<(), Refusal> {
        self.state = match std::mem::replace(&mut self.state, MOVED) {
            State::AwaitAnswer(handshake) => match self.take::<HASH_LEN>() {
                Some(answer) => State::AwaitChallenge(handshake.verify(&answer)?),
                None => State::AwaitAnswer(handshake),
            },
            State::AwaitChallenge(client) => match self.take::<CHALLENGE_LEN>() {
                Some(c2) => {
                    let (answer, seal) = client.answer(&c2)?;
                    State::Asked(answer, seal)
                }
                None => State::AwaitChallenge(client),
            },
            State::Asked(..) if !self.input.is_empty() => return Err(Refusal::OutOfTurn),
            State::AwaitResponse(mut seal) => match self.take_sealed::<1>(&mut seal) {
                Some([HOST_LIST_FOLLOWS]) if self.action == Action::List => State::InList(Vec::new(), seal),
                Some([byte]) => said(plain(self.action, byte), seal)?,
                None => State::AwaitResponse(seal),
            },
            State::InList(mut entries, mut seal) => {
                match self.take_sealed::<HOST_LIST_ENTRY_LEN>(&mut seal) {
                    Some(entry) => match HostListEntry::decode(&entry) {
                        HostListItem::End => State::AfterList(entries, seal),
                        HostListItem::Domain(_) if entries.len() == LIST_MAX => {
                            return Err(Refusal::ListTooLong);
                        }
                        HostListItem::Domain(domain) => {
                            entries.push(domain);
                            State::InList(entries, seal)
                        }
                    },
                    None => State::InList(entries, seal),
                }
            }
            State::AfterList(entries, mut seal) => match self.take_sealed::<1>(&mut seal) {
                Some([byte]) => {
                    let response = Response::from_number(byte).ok_or(Refusal::Response(byte));
                    said(response.map(|it| Answer::List { entries, response: Some(it) }), seal)?
                }
                None => State::AfterList(entries, seal),
            },
            State::AwaitSeal(answer, seal) => match self.take::<HASH_LEN>() {
                Some(theirs) => {
                    // Even that a response means nothing is only known of the host's own.
                    State::Done(seal.verify(answer, &theirs)?.transpose()?)
                }
                None => State::AwaitSeal(answer, seal),
            },
            // What comes after the end is nobody's.
            State::Done(answer) => {
                self.input.clear();
                State::Done(answer)
            }
            State::Refused(refusal) => return Err(refusal),
            asked @ State::Asked(..) => asked,
        };
        Ok(())
    }

    /// A part of the response, which its seal covers.
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
