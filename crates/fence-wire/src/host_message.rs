// SPDX-License-Identifier: GPL-2.0-or-later
//! Host message: what daemons of ours say to each other where no corosync joins them.
//!
//! ```text
//! offset  size  field
//!      0     1  0x48: no action of a request
//!      1     1  3: the hash type SHA-512, so that a C daemon checks a hash, which never fits
//!      2     1  version, 1
//!      3     1  kind: 1 hello, 2 hello answer, 3 ask, 4 answer, 5 part of a reason
//!      4     8  sender: the first bytes of SHA-256(its public key)
//!     12     8  recipient; zero for all
//!     20     8  nonce; an answer repeats that of the question
//!     28    84  body, see `body`
//!    112    32  HMAC-SHA-256(key of the two hosts, label ‖ bytes 0..112); zero where there is none
//!    144    32  HMAC-SHA-256(key of all hosts, label ‖ bytes 0..144)
//! ```
//!
//! A message is as long as a request packet: a C daemon that gets a datagram of another length runs the
//! request before again. Owns the format and both proofs. Must never believe a byte before the proof of the
//! key of all hosts fits, nor an answer without the proof of the two hosts.

mod body;
mod parts;

use core::fmt;

use zeroize::Zeroizing;

pub use self::body::{
    ANSWER_NAMESAKES, HostAnswer, HostAsk, HostHello, HostMemory, HostReason, HostSight, REASON_PARTS,
};
pub use self::parts::{HOST_MESSAGE_LEN, HostId, HostMessageError};
use crate::key::{Key, KeyedMac, SealedHash, same};
use crate::layout::field;

/// First byte of a host message: no action has this number.
pub const HOST_MAGIC: u8 = 0x48;

const HASH_TYPE: u8 = 3;
const VERSION: u8 = 1;
const BODY: core::ops::Range<usize> = 28..112;
const PAIR_PROOF: core::ops::Range<usize> = 112..144;
const GROUP_PROOF: core::ops::Range<usize> = 144..HOST_MESSAGE_LEN;
const PROOF_LEN: usize = 32;
const NOBODY: [u8; 8] = [0; 8];

/// Random bytes of a question; its answers repeat them.
pub type HostNonce = [u8; 8];

/// Key of all hosts: whoever holds it can say hello and ask.
#[derive(Clone)]
pub struct HostsKey(Key);

/// Key of two hosts: nobody else can make an answer of one to the other.
#[derive(Clone)]
pub struct PairKey(Key);

impl HostsKey {
    /// Returns whether both are the same secret.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }

    /// Makes the key of all hosts from a listener's key, or from the key for hosts alone.
    #[must_use]
    pub fn of(key: &Key) -> Self {
        Self(derived(key, b"fence_virt hosts\0"))
    }

    /// Makes the key of hosts whose listeners ask for no key: whoever reaches them is believed.
    #[must_use]
    pub fn without_a_key() -> Self {
        Self(Key::from_bytes(Zeroizing::new(b"fence_virt hosts without a key".to_vec())))
    }
}

impl PairKey {
    /// Makes the key of two hosts from the secret that both compute of their key pairs (X25519).
    #[must_use]
    pub fn of(shared_secret: &[u8; 32]) -> Self {
        let secret = Key::from_bytes(Zeroizing::new(shared_secret.to_vec()));
        Self(derived(&secret, b"fence_virt two hosts\0"))
    }
}

impl fmt::Debug for HostsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostsKey(..)")
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKey(..)")
    }
}

/// Message between hosts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostMessage {
    /// The host that sent it. In a hello, that of the public key.
    pub sender: HostId,
    /// The host that it is for; none: for all.
    pub recipient: Option<HostId>,
    /// Random bytes of the question.
    pub nonce: HostNonce,
    /// Content.
    pub body: HostBody,
}

/// Content of a host message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostBody {
    /// I am here; who else is?
    Hello(HostHello),
    /// I am here too.
    HelloAnswer(HostHello),
    /// A question: who has this domain, and in which state?
    Ask(HostAsk),
    /// Result of a look that began after the question came.
    Answer(HostAnswer),
    /// Part of the reason of the answer that follows.
    Reason(HostReason),
}

impl HostBody {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::HelloAnswer(_) => 2,
            Self::Ask(_) => 3,
            Self::Answer(_) => 4,
            Self::Reason(_) => 5,
        }
    }
}

/// Message that was read. The proof of the key of all hosts fits.
#[derive(Clone, Debug)]
pub struct ReceivedHostMessage {
    message: HostMessage,
    key: usize,
    bytes: [u8; HOST_MESSAGE_LEN],
}

impl HostMessage {
    /// Returns the bytes of a message without a proof of the two hosts: a hello, an ask.
    #[must_use]
    pub fn encode(&self, hosts: &HostsKey) -> [u8; HOST_MESSAGE_LEN] {
        self.sealed(hosts, None)
    }

    /// Returns the bytes of an answer to a hello or an ask, with the proof of the two hosts.
    #[must_use]
    pub fn encode_for(&self, hosts: &HostsKey, pair: &PairKey) -> [u8; HOST_MESSAGE_LEN] {
        self.sealed(hosts, Some(pair))
    }

    fn sealed(&self, hosts: &HostsKey, pair: Option<&PairKey>) -> [u8; HOST_MESSAGE_LEN] {
        let mut bytes = [0; HOST_MESSAGE_LEN];
        bytes[..4].copy_from_slice(&[HOST_MAGIC, HASH_TYPE, VERSION, self.body.kind()]);
        bytes[4..12].copy_from_slice(&self.sender.0);
        bytes[12..20].copy_from_slice(&self.recipient.map_or(NOBODY, |it| it.0));
        bytes[20..28].copy_from_slice(&self.nonce);
        match &self.body {
            HostBody::Hello(hello) | HostBody::HelloAnswer(hello) => hello.encode(&mut bytes[BODY]),
            HostBody::Ask(ask) => ask.encode(&mut bytes[BODY]),
            HostBody::Answer(answer) => answer.encode(&mut bytes[BODY]),
            HostBody::Reason(reason) => reason.encode(&mut bytes[BODY]),
        }
        if let Some(pair) = pair {
            let proof = proof(&pair.0, &bytes[..PAIR_PROOF.start]);
            bytes[PAIR_PROOF].copy_from_slice(&proof);
        }
        let proof = proof(&hosts.0, &bytes[..GROUP_PROOF.start]);
        bytes[GROUP_PROOF].copy_from_slice(&proof);
        bytes
    }

    /// Reads a message and checks that one of `keys` made its proof.
    ///
    /// # Errors
    /// The reason why the message must be dropped.
    pub fn decode(bytes: &[u8], keys: &[HostsKey]) -> Result<ReceivedHostMessage, HostMessageError> {
        let bytes: &[u8; HOST_MESSAGE_LEN] =
            bytes.try_into().map_err(|_| HostMessageError::Length(bytes.len()))?;
        if bytes[0] != HOST_MAGIC || bytes[1] != HASH_TYPE {
            return Err(HostMessageError::Magic);
        }
        let (shown, signed) = (&bytes[GROUP_PROOF], &bytes[..GROUP_PROOF.start]);
        let fits = |key: &HostsKey| is_same(&proof(&key.0, signed), shown);
        let key = keys.iter().position(fits).ok_or(HostMessageError::Proof)?;
        if bytes[2] != VERSION {
            return Err(HostMessageError::Version(bytes[2]));
        }
        let body: [u8; 84] = field(bytes, BODY.start);
        let sender = HostId(field(bytes, 4));
        let body = match bytes[3] {
            1 => HostBody::Hello(HostHello::decode(&body, sender)?),
            2 => HostBody::HelloAnswer(HostHello::decode(&body, sender)?),
            3 => HostBody::Ask(HostAsk::decode(&body)?),
            4 => HostBody::Answer(HostAnswer::decode(&body)?),
            5 => HostBody::Reason(HostReason::decode(&body)?),
            kind => return Err(HostMessageError::Kind(kind)),
        };
        let may_prove = matches!(body, HostBody::Answer(_) | HostBody::HelloAnswer(_) | HostBody::Reason(_));
        if !may_prove && bytes[PAIR_PROOF] != [0; PROOF_LEN] {
            return Err(HostMessageError::Field("proof of the two hosts"));
        }
        let recipient = Some(field(bytes, 12)).filter(|it| *it != NOBODY).map(HostId);
        let message = Self { sender, recipient, nonce: field(bytes, 20), body };
        Ok(ReceivedHostMessage { message, key, bytes: *bytes })
    }
}

impl ReceivedHostMessage {
    /// Returns the message, which any holder of the key of all hosts may have made.
    #[must_use]
    pub fn message(&self) -> &HostMessage {
        &self.message
    }

    /// Returns the index of the key that made the proof.
    #[must_use]
    pub fn key(&self) -> usize {
        self.key
    }

    /// Returns true if the two hosts' key made the message.
    #[must_use]
    pub fn is_proved(&self, pair: &PairKey) -> bool {
        let ours = proof(&pair.0, &self.bytes[..PAIR_PROOF.start]);
        is_same(&ours, &self.bytes[PAIR_PROOF])
    }

    /// Returns the answer, if the two hosts' key made it: no third host, and no guest, can have.
    #[must_use]
    pub fn proved_answer(&self, pair: &PairKey) -> Option<&HostAnswer> {
        let HostBody::Answer(answer) = &self.message.body else { return None };
        self.is_proved(pair).then_some(answer)
    }
}

fn proof(key: &Key, bytes: &[u8]) -> [u8; PROOF_LEN] {
    head(key.mac(SealedHash::HmacSha256, b"fence_virt host message\0").with(bytes))
}

fn derived(key: &Key, label: &[u8]) -> Key {
    Key::from_bytes(Zeroizing::new(head(key.mac(SealedHash::HmacSha256, label)).to_vec()))
}

fn head(mac: KeyedMac) -> [u8; PROOF_LEN] {
    let sum = mac.finish();
    core::array::from_fn(|i| sum[i])
}

/// Compares in a time that does not depend on the place of a difference.
fn is_same(ours: &[u8; PROOF_LEN], theirs: &[u8]) -> bool {
    let padded = |it: &[u8]| core::array::from_fn(|i| it.get(i).copied().unwrap_or(0));
    same(&padded(ours), &padded(theirs))
}
