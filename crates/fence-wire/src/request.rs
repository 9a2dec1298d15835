// SPDX-License-Identifier: GPL-2.0-or-later
//! The request packet: one UDP datagram, or the first bytes of a TCP or vsock stream.
//!
//! Offsets and lengths stand in `layout`. The hash covers the packet with its own 64 bytes zero:
//!
//! ```text
//! classic  H(key ‖ packet)
//! sealed   HMAC(key, "fence_virt request\0" ‖ packet)
//! ```

use core::net::IpAddr;

use crate::action::{Action, UnknownAction};
use crate::key::{HASH_LEN, HashType, Key, UnknownHash, same};
use crate::layout::{
    ACTION, ADDRESS, ADDRESS_LEN, FAMILY, FAMILY_IPV4, FAMILY_IPV6, FLAGS, HASH, HASH_TYPE, NONCE, PORT,
    REQUEST_LEN, SEQUENCE, TARGET, UUID_FLAG, field,
};
use crate::seal::SealedRequest;
use crate::text::{cut, until_nul};

/// Label at the beginning of a sealed packet's HMAC.
const LABEL: &[u8] = b"fence_virt request\0";

/// A request as a client makes it and a host understands it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is asked.
    pub action: Action,
    /// The domain it is about; empty where the action needs none.
    pub target: Target,
    /// Where the host is to call back; none on TCP and vsock.
    pub call_back: Option<CallBack>,
    /// Fresh random bytes in every transmission.
    pub nonce: [u8; 6],
    /// The client's number for the request, the same in every retransmission.
    pub sequence: u32,
}

/// Where a client listens for its host on multicast.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CallBack {
    /// The client's address on the network that the datagram left by.
    pub address: IpAddr,
    /// The client's TCP port.
    pub port: u16,
}

impl Request {
    /// The packet, with its keyed hash. [`HashType::None`] leaves the hash zero.
    #[must_use]
    pub fn encode(&self, hash: HashType, key: &Key) -> [u8; REQUEST_LEN] {
        let mut packet = self.encode_unhashed(hash);
        if let Some(sum) = packet_hash(&packet, hash, key) {
            packet[HASH].copy_from_slice(&sum);
        }
        packet
    }

    /// The packet of a client that was told to use neither hash nor key.
    #[must_use]
    pub fn encode_unauthenticated(&self) -> [u8; REQUEST_LEN] {
        self.encode_unhashed(HashType::None)
    }

    /// Reads a packet and checks that one of `keys` made its hash.
    ///
    /// Gives the request, its hash type, and the place in `keys` of the key that fits (none where the packet
    /// carries no hash and `minimum` allows that).
    ///
    /// # Errors
    /// Why the packet must be dropped. Nothing in a packet is believed before its hash fits; only length,
    /// action and hash type are looked at earlier.
    pub fn decode(packet: &[u8], minimum: HashType, keys: &[Key]) -> Result<Received, RequestError> {
        let packet: &[u8; REQUEST_LEN] = packet.try_into().map_err(|_| RequestError::Length(packet.len()))?;
        let action = Action::try_from(packet[ACTION])?;
        let hash = HashType::try_from(packet[HASH_TYPE])?;
        if hash < minimum {
            return Err(RequestError::HashTooWeak { hash, minimum });
        }
        let key = if hash == HashType::None { None } else { Some(fitting_key(packet, hash, keys)?) };
        // Nobody sends others, and `is_request_like` counts on that.
        if packet[FLAGS] & !UUID_FLAG != 0 {
            return Err(RequestError::Flags(packet[FLAGS]));
        }
        let target = Target::decode(&packet[TARGET], packet[FLAGS] & UUID_FLAG != 0)?;
        if action.needs_target() && target.as_str().is_empty() {
            return Err(RequestError::Target(TargetError::Empty));
        }
        let request = Self {
            action,
            target,
            call_back: call_back(packet)?,
            nonce: field(packet, NONCE.start),
            sequence: u32::from_le_bytes(field(packet, SEQUENCE.start)),
        };
        let sealed = SealedRequest::of_packet(packet);
        Ok(Received { request, hash, key, sealed })
    }

    fn encode_unhashed(&self, hash: HashType) -> [u8; REQUEST_LEN] {
        let mut packet = [0; REQUEST_LEN];
        packet[ACTION] = self.action.number();
        packet[HASH_TYPE] = hash.number();
        packet[FLAGS] = if self.target.is_uuid() { UUID_FLAG } else { 0 };
        self.target.encode(&mut packet[TARGET]);
        if let Some(call_back) = self.call_back {
            let family = match call_back.address {
                IpAddr::V4(v4) => {
                    packet[ADDRESS_LEN] = 4;
                    packet[ADDRESS][..4].copy_from_slice(&v4.octets());
                    FAMILY_IPV4
                }
                IpAddr::V6(v6) => {
                    packet[ADDRESS_LEN] = 16;
                    packet[ADDRESS][..16].copy_from_slice(&v6.octets());
                    FAMILY_IPV6
                }
            };
            packet[PORT].copy_from_slice(&call_back.port.to_le_bytes());
            packet[FAMILY].copy_from_slice(&family.to_le_bytes());
        }
        packet[NONCE].copy_from_slice(&self.nonce);
        packet[SEQUENCE].copy_from_slice(&self.sequence.to_le_bytes());
        packet
    }
}

/// A request packet that was read and whose hash fits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// The request.
    pub request: Request,
    /// The type of hash that protected it.
    pub hash: HashType,
    /// Which of the receiver's keys made the hash; none where there was no hash.
    pub key: Option<usize>,
    /// What binds the stream to a sealed packet; none where the packet is classic.
    pub sealed: Option<SealedRequest>,
}

/// Why a request packet is dropped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Not exactly [`REQUEST_LEN`] bytes.
    #[error("{0} bytes instead of {REQUEST_LEN}")]
    Length(usize),
    /// No such action.
    #[error(transparent)]
    Action(#[from] UnknownAction),
    /// No such hash type.
    #[error(transparent)]
    Hash(#[from] UnknownHash),
    /// The packet's hash is of a type weaker than the receiver asks for.
    #[error("hash {hash} is weaker than {minimum}, the minimum here (the agent's -c or hash=)")]
    HashTooWeak {
        /// What the packet has.
        hash: HashType,
        /// What the receiver asks for.
        minimum: HashType,
    },
    /// None of the receiver's keys made the hash: the sender has another key, or somebody changed the packet.
    #[error("the {0} hash does not fit: another key on the sender's side, or a changed packet")]
    HashMismatch(HashType),
    /// Flags that do not exist.
    #[error("unknown flags {0:#04x}")]
    Flags(u8),
    /// The address to call back is of no known form.
    #[error("call-back address of family {family} and {length} bytes")]
    Address {
        /// The family's number in the packet.
        family: u32,
        /// The length of the address in the packet.
        length: u8,
    },
    /// The port to call back is 0.
    #[error("call-back port 0")]
    Port,
    /// The target is not a usable name.
    #[error("target {0}")]
    Target(#[from] TargetError),
}

impl RequestError {
    /// A short word for counters: one for each variant, never with anything of the peer's in it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Length(_) => "length",
            Self::Action(_) => "unknown-action",
            Self::Hash(_) => "unknown-hash",
            Self::HashTooWeak { .. } => "hash-too-weak",
            Self::HashMismatch(_) => "hash-mismatch",
            Self::Flags(_) => "unknown-flags",
            Self::Address { .. } => "address",
            Self::Port => "port",
            Self::Target(TargetError::NoNul) => "target-no-nul",
            Self::Target(TargetError::NotUtf8) => "target-not-utf8",
            Self::Target(TargetError::Control) => "target-control-character",
            Self::Target(TargetError::Empty) => "target-empty",
            Self::Target(TargetError::TooLong(_)) => "target-too-long",
        }
    }
}

/// The domain that a request is about, as the client wrote it: a name, or a UUID in text form.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    text: String,
    uuid: bool,
}

/// Why some text is no target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TargetError {
    /// The field has no NUL in its 64 bytes.
    #[error("without a NUL in its 64 bytes")]
    NoNul,
    /// Not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Has control characters.
    #[error("has control characters")]
    Control,
    /// Empty although the action needs one.
    #[error("is empty")]
    Empty,
    /// Longer than the 63 bytes that the field takes.
    #[error("of {0} bytes is longer than 63")]
    TooLong(usize),
}

impl Target {
    /// Bytes that a target may have.
    pub const MAX: usize = 63;

    /// No target, for actions that need none.
    #[must_use]
    pub fn none() -> Self {
        Self { text: String::new(), uuid: false }
    }

    /// A target from text, checked as the receiver checks it.
    ///
    /// # Errors
    /// [`TargetError::TooLong`] or [`TargetError::Control`].
    pub fn new(text: &str, uuid: bool) -> Result<Self, TargetError> {
        if text.len() > Self::MAX {
            return Err(TargetError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(TargetError::Control);
        }
        Ok(Self { text: text.to_owned(), uuid })
    }

    /// The name or UUID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether the target is the beginning of `name` that fits into a request: the client cut a
    /// longer name.
    #[must_use]
    pub fn is_cut_from(&self, name: &str) -> bool {
        !self.uuid && name.len() > Self::MAX && cut(name, Self::MAX) == self.text
    }

    /// Whether the client says that it is a UUID.
    #[must_use]
    pub fn is_uuid(&self) -> bool {
        self.uuid
    }

    pub(crate) fn decode(field: &[u8], uuid: bool) -> Result<Self, TargetError> {
        let text = until_nul(field).ok_or(TargetError::NoNul)?;
        Self::new(core::str::from_utf8(text).map_err(|_| TargetError::NotUtf8)?, uuid)
    }

    pub(crate) fn encode(&self, field: &mut [u8]) {
        let text = cut(&self.text, Self::MAX);
        field[..text.len()].copy_from_slice(text.as_bytes());
    }
}

fn fitting_key(packet: &[u8; REQUEST_LEN], hash: HashType, keys: &[Key]) -> Result<usize, RequestError> {
    let received: [u8; HASH_LEN] = field(packet, HASH.start);
    let mut unhashed = *packet;
    unhashed[HASH].fill(0);
    let fits = |key| packet_hash(&unhashed, hash, key).is_some_and(|ours| same(&ours, &received));
    keys.iter().position(fits).ok_or(RequestError::HashMismatch(hash))
}

/// The hash of a packet whose hash bytes are zero; none for the type that has none.
fn packet_hash(unhashed: &[u8; REQUEST_LEN], hash: HashType, key: &Key) -> Option<[u8; HASH_LEN]> {
    match (hash.classic(), hash.sealed()) {
        (Some(classic), _) => Some(key.hash(classic, unhashed)),
        (None, Some(sealed)) => Some(key.mac(sealed, LABEL).with(unhashed).finish()),
        (None, None) => None,
    }
}

/// Whether 64 bytes read as the beginning of a classic request: whoever has them hashed as a challenge has,
/// for some lengths of the key, the hash of a whole packet that begins with them (see `handshake`).
pub(crate) fn begins_request(bytes: &[u8; 64]) -> bool {
    let [action, hash, length, flags, ..] = *bytes;
    Action::try_from(action).is_ok()
        && HashType::try_from(hash).is_ok_and(|it| it.classic().is_some())
        && matches!(length, 0 | 4 | 16)
        && flags & !UUID_FLAG == 0
}

fn call_back(packet: &[u8; REQUEST_LEN]) -> Result<Option<CallBack>, RequestError> {
    let length = packet[ADDRESS_LEN];
    let family = u32::from_le_bytes(field(packet, FAMILY.start));
    let address = match (length, family) {
        (0, _) => return Ok(None),
        (4, FAMILY_IPV4) => IpAddr::from(field::<4>(packet, ADDRESS.start)),
        (16, FAMILY_IPV6) => IpAddr::from(field::<16>(packet, ADDRESS.start)),
        _ => return Err(RequestError::Address { family, length }),
    };
    match u16::from_le_bytes(field(packet, PORT.start)) {
        0 => Err(RequestError::Port),
        port => Ok(Some(CallBack { address, port })),
    }
}
