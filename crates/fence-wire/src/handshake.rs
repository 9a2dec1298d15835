// SPDX-License-Identifier: GPL-2.0-or-later
//! The mutual challenge on TCP and vsock streams, for both roles.
//!
//! ```text
//! client                                    host
//!   1  C1, 64 random bytes            --->
//!   2                                 <---  H(key ‖ C1), zero-padded to 64
//!   3                                 <---  C2, 64 random bytes
//!   4  H(key ‖ C2), zero-padded to 64 --->
//! ```
//!
//! Each state is a type, and each step consumes it, so that no step can be left out, repeated or taken out of
//! order. The host's way ends in [`Proved`], which is the only thing that lets a request run. The host decides
//! when it sends C2: a client waits for it as long as its own time-out, and only an answer to a *late* C2
//! shows that the client is alive now.
//!
//! Where both ends are set to authenticate with `none`, no byte of this is exchanged.

use subtle::ConstantTimeEq;

use crate::key::{HASH_LEN, HashType, Key};

/// Bytes of a challenge.
pub const CHALLENGE_LEN: usize = 64;
/// 64 random bytes. The caller draws them; one challenge must never be used twice.
pub type Challenge = [u8; CHALLENGE_LEN];

/// Why the peer is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProofError {
    /// The answer to our challenge is wrong: the peer has another key or another type of hash.
    #[error("wrong answer to the challenge: another key, or another auth type, on the peer's side")]
    WrongAnswer,
    /// The peer sent our own challenge back, to have us answer it for him.
    #[error("the peer sent our own challenge back")]
    Reflected,
}

/// The peer has shown that it holds the key, now. Made only by [`HostProven::verify`] and, where the
/// configuration asks for no authentication by name, by [`Proved::unauthenticated`].
#[derive(Debug)]
pub struct Proved(());

impl Proved {
    /// For listeners whose transport identifies the peer (serial lines), and for `auth = "none"`.
    #[must_use]
    pub fn unauthenticated() -> Self {
        Self(())
    }
}

/// Host: waits for C1.
#[derive(Debug)]
pub struct HostAwaitChallenge<'k> {
    auth: HashType,
    key: &'k Key,
}

impl<'k> HostAwaitChallenge<'k> {
    /// A handshake with one client. `auth` must not be [`HashType::None`]: there is no handshake then.
    #[must_use]
    pub fn new(auth: HashType, key: &'k Key) -> Self {
        Self { auth, key }
    }

    /// Step 1 came, this is step 2: the bytes to send.
    #[must_use]
    pub fn answer(self, c1: &Challenge) -> ([u8; HASH_LEN], HostAwaitAnswer<'k>) {
        (self.key.hash(self.auth, c1), HostAwaitAnswer { auth: self.auth, key: self.key, c1: *c1 })
    }
}

/// Host: has answered C1 and may send C2 whenever it wants the proof.
#[derive(Debug)]
pub struct HostAwaitAnswer<'k> {
    auth: HashType,
    key: &'k Key,
    c1: Challenge,
}

impl<'k> HostAwaitAnswer<'k> {
    /// Step 3: `c2` is sent, and its answer is awaited.
    ///
    /// # Errors
    /// [`ProofError::Reflected`] when `c2` is the challenge that the client sent.
    pub fn challenge(self, c2: &Challenge) -> Result<HostProven<'k>, ProofError> {
        if *c2 == self.c1 {
            return Err(ProofError::Reflected);
        }
        Ok(HostProven { auth: self.auth, key: self.key, c2: *c2 })
    }
}

/// Host: has sent C2 and waits for its answer.
#[derive(Debug)]
pub struct HostProven<'k> {
    auth: HashType,
    key: &'k Key,
    c2: Challenge,
}

impl HostProven<'_> {
    /// Step 4 came.
    ///
    /// # Errors
    /// [`ProofError::WrongAnswer`].
    pub fn verify(self, answer: &[u8; HASH_LEN]) -> Result<Proved, ProofError> {
        if bool::from(self.key.hash(self.auth, &self.c2).ct_eq(answer)) {
            Ok(Proved(()))
        } else {
            Err(ProofError::WrongAnswer)
        }
    }
}

/// Client: has sent C1 and waits for its answer.
#[derive(Debug)]
pub struct ClientHandshake<'k> {
    auth: HashType,
    key: &'k Key,
    c1: Challenge,
}

impl<'k> ClientHandshake<'k> {
    /// A handshake with one host; the caller sends `c1`. `auth` must not be [`HashType::None`].
    #[must_use]
    pub fn new(auth: HashType, key: &'k Key, c1: Challenge) -> Self {
        Self { auth, key, c1 }
    }

    /// Step 2 came.
    ///
    /// # Errors
    /// [`ProofError::WrongAnswer`]: this host does not hold the key and nothing it says may be believed.
    pub fn verify(self, answer: &[u8; HASH_LEN]) -> Result<ClientAnswer<'k>, ProofError> {
        if bool::from(self.key.hash(self.auth, &self.c1).ct_eq(answer)) {
            Ok(ClientAnswer { auth: self.auth, key: self.key, c1: self.c1 })
        } else {
            Err(ProofError::WrongAnswer)
        }
    }
}

/// Client: believes the host and waits for C2.
#[derive(Debug)]
pub struct ClientAnswer<'k> {
    auth: HashType,
    key: &'k Key,
    c1: Challenge,
}

impl ClientAnswer<'_> {
    /// Step 3 came, this is step 4: the bytes to send.
    ///
    /// # Errors
    /// [`ProofError::Reflected`]: the host sent C1 back.
    pub fn answer(self, c2: &Challenge) -> Result<[u8; HASH_LEN], ProofError> {
        if *c2 == self.c1 {
            return Err(ProofError::Reflected);
        }
        Ok(self.key.hash(self.auth, c2))
    }
}
