// SPDX-License-Identifier: GPL-2.0-or-later
//! Mutual challenge on TCP and vsock streams, classic and sealed, for both roles.
//!
//! ```text
//! client                     host    classic       sealed
//!   1  64 random bytes       --->    C1            C1
//!   2                        <---    H(key ‖ C1)   HMAC(key, "fence_virt host\0" ‖ R ‖ C1)
//!   3                        <---    C2            C2
//!   4                        --->    H(key ‖ C2)   HMAC(key, "fence_virt client\0" ‖ R ‖ C1 ‖ C2)
//! ```
//!
//! All hashes are zero-padded to 64 bytes. R is the hash field of the sealed packet that is answered.
//!
//! Each state is a type, and each step consumes it: no step can be left out, repeated or taken out of order.
//! The host's states end in a [`VerifiedProof`], without which no request runs, and in the [`ResponseWriter`]
//! that seals its response. The client's states end in the [`ResponseSeal`], without which no response
//! counts. The host decides when it sends C2: a client waits for it until its own time-out. Only an answer to
//! a *late* C2 shows that the client is alive now.
//!
//! The packet alone decides whether a stream is sealed. After a classic packet, where both ends have auth
//! `none`, no byte of the handshake is exchanged.
//!
//! Classic hashes can be extended without the key: for keys of some lengths, H(key ‖ C) is an intermediate
//! state of the hash of a packet that begins with C. So neither role answers a classic challenge that reads
//! like the beginning of a request, and neither makes one: see [`draw_challenge`].

use crate::call_name::{CallName, CallRole, ClientRun, call_name};
use crate::key::{ClassicHash, HASH_LEN, HashType, Key, same};
use crate::layout::{CHALLENGE_LEN, Challenge, REQUEST_LEN};
use crate::request::begins_request;
use crate::seal::{ResponseSeal, ResponseWriter, SealedRequest, SentRequests};

const HOST_LABEL: &[u8] = b"fence_virt host\0";
const CLIENT_LABEL: &[u8] = b"fence_virt client\0";

/// Draws a challenge from the system's random bytes, which `fill` writes. A challenge that a careful peer
/// would refuse, one in 34 million, is drawn again.
///
/// # Errors
/// Errors of `fill`.
pub fn draw_challenge<E>(mut fill: impl FnMut(&mut Challenge) -> Result<(), E>) -> Result<Challenge, E> {
    let mut challenge = [0; CHALLENGE_LEN];
    loop {
        fill(&mut challenge)?;
        if !begins_request(&challenge) {
            return Ok(challenge);
        }
    }
}

/// Reason why the peer is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProofError {
    /// The answer to our challenge is wrong: the peer has another key or another hash type.
    #[error("wrong answer to the challenge: another key, or another auth type, on the peer's side")]
    WrongAnswer,
    /// The answer to our challenge is right with another hash type: the key is the same, the auth type is
    /// not.
    #[error("wrong answer to the challenge: the peer has the same key, and auth type {0}")]
    OtherAuth(HashType),
    /// The answer to our challenge is not the sealed answer to our packet.
    #[error(
        "wrong answer to the challenge: another key on the peer's side, or it speaks of another request than \
         this one"
    )]
    WrongSealedAnswer,
    /// The peer sent our own challenge back, so that we would answer it for him.
    #[error("the peer sent our own challenge back")]
    Reflected,
    /// The peer's challenge begins like a request; our answer could be extended to the hash of one.
    #[error(
        "the peer's challenge reads like a request: chance (once in 34 million), or an attempt to forge one"
    )]
    LooksLikeRequest,
    /// The stream needs authentication, and there is no key.
    #[error("there is no key")]
    NoKey,
}

/// Proof that the peer holds the key, now. Made only by [`HostProven::verify`] and, where the configuration
/// sets no authentication by name, by [`HostStream::begin`] and [`VerifiedProof::unauthenticated`].
#[derive(Debug)]
pub struct VerifiedProof(());

impl VerifiedProof {
    /// Makes a proof for listeners whose transport identifies the peer (serial lines).
    #[must_use]
    pub fn unauthenticated() -> Self {
        Self(())
    }
}

/// Host: beginning of a stream.
#[derive(Debug)]
pub enum HostStream<'k> {
    /// Nothing is exchanged before the response.
    Open(VerifiedProof, ResponseWriter),
    /// The mutual challenge comes first.
    Challenge(HostAwaitChallenge<'k>),
}

impl<'k> HostStream<'k> {
    /// Begins the stream that answers a packet. `sealed` is that of the packet
    /// ([`ReceivedRequest::sealed`](crate::ReceivedRequest)) and decides. `auth` is the listener's setting
    /// for classic packets: none if they are not challenged.
    ///
    /// # Errors
    /// [`ProofError::NoKey`].
    pub fn begin(
        sealed: Option<SealedRequest>,
        auth: Option<ClassicHash>,
        key: Option<&'k Key>,
    ) -> Result<Self, ProofError> {
        let mode = match (sealed, auth) {
            (Some(sealed), _) => HandshakeMode::Sealed(sealed),
            (None, Some(auth)) => HandshakeMode::Classic(auth),
            (None, None) => return Ok(Self::Open(VerifiedProof(()), ResponseWriter::classic())),
        };
        Ok(Self::Challenge(HostAwaitChallenge { mode, key: key.ok_or(ProofError::NoKey)? }))
    }
}

#[derive(Clone, Copy, Debug)]
enum HandshakeMode {
    Classic(ClassicHash),
    Sealed(SealedRequest),
}

impl HandshakeMode {
    /// Computes step 4.
    fn client_answer(&self, key: &Key, c1: &Challenge, c2: &Challenge) -> [u8; HASH_LEN] {
        match self {
            Self::Classic(hash) => key.hash(*hash, c2),
            Self::Sealed(request) => request.mac(key, CLIENT_LABEL).with(c1).with(c2).finish(),
        }
    }

    /// Checks that a peer's challenge may be answered.
    fn check(&self, theirs: &Challenge) -> Result<(), ProofError> {
        // Sealed hashes cannot be extended: an HMAC ends in a hash of its own.
        if matches!(self, Self::Classic(_)) && begins_request(theirs) {
            return Err(ProofError::LooksLikeRequest);
        }
        Ok(())
    }

    fn wrong_answer(&self) -> ProofError {
        match self {
            Self::Classic(_) => ProofError::WrongAnswer,
            Self::Sealed(_) => ProofError::WrongSealedAnswer,
        }
    }
}

/// Host: waits for C1.
#[derive(Debug)]
pub struct HostAwaitChallenge<'k> {
    mode: HandshakeMode,
    key: &'k Key,
}

impl<'k> HostAwaitChallenge<'k> {
    /// Begins a handshake with a classic client, without its packet. [`HostStream::begin`] decides by the
    /// packet.
    #[must_use]
    pub fn classic(auth: ClassicHash, key: &'k Key) -> Self {
        Self { mode: HandshakeMode::Classic(auth), key }
    }

    /// Returns the run of a client that a client's challenge names. A sealed stream names its packet by
    /// itself.
    #[must_use]
    pub fn name_of_call(&self, run: ClientRun, c1: &Challenge) -> CallName {
        match self.mode {
            HandshakeMode::Classic(_) => call_name(self.key, CallRole::Client, run, c1),
            HandshakeMode::Sealed(_) => CallName::Unnamed,
        }
    }

    /// Takes step 1; returns the bytes of step 2.
    ///
    /// # Errors
    /// [`ProofError::LooksLikeRequest`]: nothing may be sent.
    pub fn answer(self, c1: &Challenge) -> Result<([u8; HASH_LEN], HostAwaitAnswer<'k>), ProofError> {
        let Self { mode, key } = self;
        mode.check(c1)?;
        let answer = match mode {
            HandshakeMode::Classic(hash) => key.hash(hash, c1),
            HandshakeMode::Sealed(request) => request.mac(key, HOST_LABEL).with(c1).finish(),
        };
        Ok((answer, HostAwaitAnswer { mode, key, c1: *c1 }))
    }
}

/// Host: has answered C1 and may send C2 when the grant is there.
#[derive(Debug)]
pub struct HostAwaitAnswer<'k> {
    mode: HandshakeMode,
    key: &'k Key,
    c1: Challenge,
}

impl<'k> HostAwaitAnswer<'k> {
    /// Returns the key with which a challenge is to name its request; none on a sealed stream, which names it
    /// by itself.
    #[must_use]
    pub fn naming_key(&self) -> Option<&'k Key> {
        matches!(self.mode, HandshakeMode::Classic(_)).then_some(self.key)
    }

    /// Takes step 3: the caller sends `c2`, and its answer is awaited.
    ///
    /// # Errors
    /// [`ProofError::Reflected`] when `c2` is the challenge that the client sent.
    pub fn challenge(self, c2: &Challenge) -> Result<HostProven<'k>, ProofError> {
        if *c2 == self.c1 {
            return Err(ProofError::Reflected);
        }
        Ok(HostProven { mode: self.mode, key: self.key, c1: self.c1, c2: *c2 })
    }
}

/// Host: has sent C2 and waits for its answer.
#[derive(Debug)]
pub struct HostProven<'k> {
    mode: HandshakeMode,
    key: &'k Key,
    c1: Challenge,
    c2: Challenge,
}

impl HostProven<'_> {
    /// Takes step 4. The request may run, and its response goes through the writer.
    ///
    /// # Errors
    /// [`ProofError::WrongAnswer`] or [`ProofError::WrongSealedAnswer`].
    pub fn verify(self, answer: &[u8; HASH_LEN]) -> Result<(VerifiedProof, ResponseWriter), ProofError> {
        let Self { mode, key, c1, c2 } = self;
        if !same(&mode.client_answer(key, &c1, &c2), answer) {
            return Err(mode.wrong_answer());
        }
        let writer = match mode {
            HandshakeMode::Classic(_) => ResponseWriter::classic(),
            HandshakeMode::Sealed(request) => {
                ResponseWriter::sealed(request.response_mac(key, &c1, &c2), request.wants())
            }
        };
        Ok((VerifiedProof(()), writer))
    }
}

/// Client: form of its packets, which decides the form of the stream that answers them.
#[derive(Clone, Debug)]
pub enum ClientAuth<'k> {
    /// A classic packet, and no challenge.
    Open,
    /// A classic packet, and a challenge with this hash.
    Classic(ClassicHash, &'k Key),
    /// Sealed packets, sent so far.
    Sealed(SentRequests, &'k Key),
}

impl ClientAuth<'_> {
    /// Records a packet before it is sent: of sealed packets, an answer to this one is accepted from now on.
    pub fn add(&mut self, packet: &[u8; REQUEST_LEN]) {
        if let Self::Sealed(sent, _) = self {
            sent.add(packet);
        }
    }
}

/// Client: beginning of a stream.
#[derive(Debug)]
pub enum ClientStream<'k> {
    /// The response is awaited at once.
    Open(ResponseSeal),
    /// C1 is to be sent.
    Challenge(ClientHandshake<'k>),
}

impl<'k> ClientStream<'k> {
    /// Begins a stream with one host; the caller sends `c1` unless the stream is open.
    #[must_use]
    pub fn begin(auth: ClientAuth<'k>, c1: Challenge) -> Self {
        match auth {
            ClientAuth::Open => Self::Open(ResponseSeal::classic()),
            auth => Self::Challenge(ClientHandshake { auth, c1 }),
        }
    }
}

/// Client: has sent C1 and waits for its answer.
#[derive(Debug)]
pub struct ClientHandshake<'k> {
    auth: ClientAuth<'k>,
    c1: Challenge,
}

impl<'k> ClientHandshake<'k> {
    /// Takes step 2.
    ///
    /// # Errors
    /// [`ProofError::WrongAnswer`], [`ProofError::OtherAuth`] or [`ProofError::WrongSealedAnswer`]: this host
    /// does not hold the key, or has another auth type, or answers a packet that this client did not send.
    /// Nothing that it sends may be believed.
    pub fn verify(self, answer: &[u8; HASH_LEN]) -> Result<ClientAnswer<'k>, ProofError> {
        let c1 = self.c1;
        let (mode, key) = match self.auth {
            ClientAuth::Open => return Err(ProofError::NoKey),
            ClientAuth::Classic(hash, key) if same(&key.hash(hash, &c1), answer) => {
                (HandshakeMode::Classic(hash), key)
            }
            ClientAuth::Classic(_, key) => return Err(other_auth(key, &c1, answer)),
            ClientAuth::Sealed(sent, key) => {
                let request =
                    sent.answered(key, HOST_LABEL, &c1, answer).ok_or(ProofError::WrongSealedAnswer)?;
                (HandshakeMode::Sealed(request), key)
            }
        };
        Ok(ClientAnswer { mode, key, c1 })
    }
}

/// Returns the reason why a classic answer is wrong, for people who look for the fault. It is refused in any
/// case.
fn other_auth(key: &Key, c1: &Challenge, answer: &[u8; HASH_LEN]) -> ProofError {
    let types = [HashType::Sha1, HashType::Sha256, HashType::Sha512];
    let is_of = |it: &HashType| it.classic().is_some_and(|hash| same(&key.hash(hash, c1), answer));
    types.into_iter().find(is_of).map_or(ProofError::WrongAnswer, ProofError::OtherAuth)
}

/// Client: believes the host and waits for C2.
#[derive(Debug)]
pub struct ClientAnswer<'k> {
    mode: HandshakeMode,
    key: &'k Key,
    c1: Challenge,
}

impl ClientAnswer<'_> {
    /// Returns the run of a client that the host's challenge names. A sealed stream was named before.
    #[must_use]
    pub fn name_of_call(&self, run: ClientRun, c2: &Challenge) -> CallName {
        match self.mode {
            HandshakeMode::Classic(_) => call_name(self.key, CallRole::Host, run, c2),
            HandshakeMode::Sealed(_) => CallName::Own,
        }
    }

    /// Takes step 3; returns the bytes of step 4, and the seal that checks the response.
    ///
    /// # Errors
    /// [`ProofError::Reflected`]: the host sent C1 back. [`ProofError::LooksLikeRequest`]. Nothing may be
    /// sent then.
    pub fn answer(self, c2: &Challenge) -> Result<([u8; HASH_LEN], ResponseSeal), ProofError> {
        let Self { mode, key, c1 } = self;
        if *c2 == c1 {
            return Err(ProofError::Reflected);
        }
        mode.check(c2)?;
        let seal = match mode {
            HandshakeMode::Classic(_) => ResponseSeal::classic(),
            HandshakeMode::Sealed(request) => {
                ResponseSeal::sealed(request.response_mac(key, &c1, c2), request.wants())
            }
        };
        Ok((mode.client_answer(key, &c1, c2), seal))
    }
}
