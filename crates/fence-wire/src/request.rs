// SPDX-License-Identifier: GPL-2.0-or-later
//! Request packet: one UDP datagram, or the first bytes of a TCP or vsock stream.
//!
//! Offsets and lengths stand in `layout`. The hash covers the packet with its own 64 bytes zero:
//!
//! ```text
//! classic  H(key ‖ packet)
//! sealed   HMAC(key, "fence_virt request\0" ‖ packet)
//! ```

use core::net::IpAddr;

use crate::action::{Action, UnknownAction};
use crate::key::{HASH_LEN, HashType, Key, SealedHash, UnknownHash, same};
use crate::layout::{
    ACTION, ADDRESS, ADDRESS_LEN, DRY_RUN, DRY_RUN_ACTION, FAMILY, FAMILY_IPV4, FAMILY_IPV6, FLAGS,
    FROM_HOST, HASH, HASH_TYPE, NONCE, PORT, REQUEST_LEN, SEQUENCE, SPARE, TARGET, UUID_FLAG, WANTS_REASON,
    field,
};
use crate::seal::SealedRequest;
use crate::text::{cut, until_nul};

/// Label at the beginning of a sealed packet's HMAC.
const LABEL: &[u8] = b"fence_virt request\0";

/// Request, as a client makes it and a host understands it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Action of the request.
    pub action: Action,
    /// Domain of the request; empty where the action needs none.
    pub target: Target,
    /// Address for the call-back; none on TCP and vsock.
    pub call_back: Option<CallBack>,
    /// Random bytes, fresh in every transmission.
    pub nonce: [u8; 6],
    /// The client's number of the request, the same in every retransmission.
    pub sequence: u32,
}

/// Address on which a client waits for the call-back after a multicast request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CallBack {
    /// The client's address on the network by which the datagram left.
    pub address: IpAddr,
    /// The client's TCP port.
    pub port: u16,
}

impl Request {
    /// Returns the packet, with its keyed hash. [`HashType::None`] leaves the hash zero.
    #[must_use]
    pub fn encode(&self, hash: HashType, key: &Key) -> [u8; REQUEST_LEN] {
        let mut packet = self.encode_unhashed(hash);
        if let Some(sum) = packet_hash(&packet, hash, key) {
            packet[HASH].copy_from_slice(&sum);
        }
        packet
    }

    /// Returns the packet of a host that asks the other hosts as a client would; without a key it has no
    /// hash. Daemons of ours drop it: they are asked by host messages.
    #[must_use]
    pub fn encode_from_host(&self, hash: HashType, key: Option<&Key>) -> [u8; REQUEST_LEN] {
        let mut packet = self.encode_unhashed(if key.is_some() { hash } else { HashType::None });
        packet[SPARE].copy_from_slice(&FROM_HOST);
        if let Some(sum) = key.and_then(|it| packet_hash(&packet, hash, it)) {
            packet[HASH].copy_from_slice(&sum);
        }
        packet
    }

    /// Returns the sealed packet of a client that wants the reason of a failure. A host that can't tell
    /// reasons answers as it answers all others.
    #[must_use]
    pub fn encode_wanting_reason(&self, hash: SealedHash, key: &Key) -> [u8; REQUEST_LEN] {
        let mut packet = self.encode_unhashed(hash.into());
        packet[SPARE].copy_from_slice(&WANTS_REASON);
        let sum = key.mac(hash, LABEL).with(&packet).finish();
        packet[HASH].copy_from_slice(&sum);
        packet
    }

    /// Returns the sealed packet of a client that asks what `action` would do. The packet itself is a status,
    /// so that a host that does not know such questions does nothing else.
    #[must_use]
    pub fn encode_dry_run(&self, action: Action, hash: SealedHash, key: &Key) -> [u8; REQUEST_LEN] {
        let mut packet = self.encode_unhashed(hash.into());
        packet[ACTION] = Action::Status.number();
        packet[SPARE][..DRY_RUN.len()].copy_from_slice(&DRY_RUN);
        packet[DRY_RUN_ACTION] = action.number();
        let sum = key.mac(hash, LABEL).with(&packet).finish();
        packet[HASH].copy_from_slice(&sum);
        packet
    }

    /// Returns the packet of a client that uses neither hash nor key.
    #[must_use]
    pub fn encode_unauthenticated(&self) -> [u8; REQUEST_LEN] {
        self.encode_unhashed(HashType::None)
    }

    /// Reads a packet and checks that one of `keys` made its hash.
    ///
    /// Returns the request, its hash type, and the index in `keys` of the matching key (none if the packet
    /// carries no hash and `minimum` allows that).
    ///
    /// # Errors
    /// The reason why the packet must be dropped. Nothing in a packet is believed before its hash matches;
    /// only length, action and hash type are read earlier.
    pub fn decode(packet: &[u8], minimum: HashType, keys: &[Key]) -> Result<ReceivedRequest, RequestError> {
        let unproved = UnprovedRequest::take(packet, minimum)?;
        match unproved.read_without_hash() {
            Some(received) => received,
            None => (0..keys.len())
                .find_map(|place| unproved.read_with(keys, place))
                .unwrap_or_else(|| Err(unproved.no_key_fits())),
        }
    }

    /// Reads a packet of which the hash fits, or that may be without one.
    fn read(packet: &[u8; REQUEST_LEN]) -> Result<Self, RequestError> {
        if field(packet, SPARE.start) == FROM_HOST {
            return Err(RequestError::FromHost);
        }
        // No client sends other flags, and `begins_request` relies on that.
        if packet[FLAGS] & !UUID_FLAG != 0 {
            return Err(RequestError::Flags(packet[FLAGS]));
        }
        let action = Action::try_from(packet[ACTION])?;
        let target = Target::decode(&packet[TARGET], packet[FLAGS] & UUID_FLAG != 0)?;
        if action.needs_target() && target.as_str().is_empty() {
            return Err(RequestError::Target(TargetError::Empty));
        }
        Ok(Self {
            action,
            target,
            call_back: call_back(packet)?,
            nonce: field(packet, NONCE.start),
            sequence: u32::from_le_bytes(field(packet, SEQUENCE.start)),
        })
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

/// Packet whose hash is still to be checked: for receivers with so many keys that they choose their order.
///
/// Nothing of the packet but its hash type can be had from here before a key fits.
#[derive(Clone)]
pub struct UnprovedRequest {
    packet: [u8; REQUEST_LEN],
    /// The packet with its hash bytes zero, as the hash covers it.
    unhashed: [u8; REQUEST_LEN],
    hash: HashType,
}

impl UnprovedRequest {
    /// Takes a packet. Only length, action and hash type are read.
    ///
    /// # Errors
    /// The reason why the packet must be dropped, whatever its hash.
    pub fn take(packet: &[u8], minimum: HashType) -> Result<Self, RequestError> {
        let packet: [u8; REQUEST_LEN] = packet.try_into().map_err(|_| RequestError::Length(packet.len()))?;
        Action::try_from(packet[ACTION])?;
        let hash = HashType::try_from(packet[HASH_TYPE])?;
        if hash < minimum {
            return Err(RequestError::HashTooWeak { hash, minimum });
        }
        let mut unhashed = packet;
        unhashed[HASH].fill(0);
        Ok(Self { packet, unhashed, hash })
    }

    /// Returns the bytes of the packet.
    #[must_use]
    pub fn packet(&self) -> &[u8; REQUEST_LEN] {
        &self.packet
    }

    /// Reads the packet if it carries no hash, which the minimum allowed.
    #[must_use]
    pub fn read_without_hash(&self) -> Option<Result<ReceivedRequest, RequestError>> {
        (self.hash == HashType::None).then(|| self.read(None))
    }

    /// Reads the packet if the key at this place made its hash; none if not, and none of a packet without a
    /// hash.
    #[must_use]
    pub fn read_with(&self, keys: &[Key], place: usize) -> Option<Result<ReceivedRequest, RequestError>> {
        let received: [u8; HASH_LEN] = field(&self.packet, HASH.start);
        let ours = packet_hash(&self.unhashed, self.hash, keys.get(place)?)?;
        same(&ours, &received).then(|| self.read(Some(place)))
    }

    /// Returns the reason to drop the packet once no key fits.
    #[must_use]
    pub fn no_key_fits(&self) -> RequestError {
        RequestError::HashMismatch(self.hash)
    }

    fn read(&self, key: Option<usize>) -> Result<ReceivedRequest, RequestError> {
        let request = Request::read(&self.packet)?;
        let sealed = SealedRequest::of_packet(&self.packet);
        let dry_run = sealed.and_then(|it| it.dry_run());
        Ok(ReceivedRequest { request, hash: self.hash, key, sealed, dry_run })
    }
}

/// Request packet that was read and whose hash matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceivedRequest {
    /// The request.
    pub request: Request,
    /// Hash type that protected the request.
    pub hash: HashType,
    /// Index of the receiver's key that made the hash; none without a hash.
    pub key: Option<usize>,
    /// Binding of the stream to a sealed packet; none for a classic packet.
    pub sealed: Option<SealedRequest>,
    /// Action of which a sealed status asks what it would do. The action must not be carried out.
    pub dry_run: Option<Action>,
}

/// Reason why a request packet is dropped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The length is not [`REQUEST_LEN`].
    #[error("{0} bytes instead of {REQUEST_LEN}")]
    Length(usize),
    /// The action is unknown.
    #[error(transparent)]
    Action(#[from] UnknownAction),
    /// The hash type is unknown.
    #[error(transparent)]
    Hash(#[from] UnknownHash),
    /// The hash type of the packet is weaker than the receiver's minimum.
    #[error("hash {hash} is weaker than {minimum}, the minimum here (the agent's -c or hash=)")]
    HashTooWeak {
        /// Hash type of the packet.
        hash: HashType,
        /// Minimum of the receiver.
        minimum: HashType,
    },
    /// None of the receiver's keys made the hash: the sender has another key, or the packet was changed.
    #[error("the {0} hash does not fit: another key on the sender's side, or a changed packet")]
    HashMismatch(HashType),
    /// Another host asks, and it asks daemons of ours by host messages.
    #[error("another host asks, as it asks C daemons; daemons of ours have its host messages")]
    FromHost,
    /// A flag is unknown.
    #[error("unknown flags {0:#04x}")]
    Flags(u8),
    /// The call-back address has no known form.
    #[error("call-back address of family {family} and {length} bytes")]
    Address {
        /// Number of the family in the packet.
        family: u32,
        /// Length of the address in the packet.
        length: u8,
    },
    /// The call-back port is 0.
    #[error("call-back port 0")]
    Port,
    /// The target is not a usable name.
    #[error("target {0}")]
    Target(#[from] TargetError),
}

impl RequestError {
    /// Returns a short word for counters: one for each variant, without any text of the peer.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Length(_) => "length",
            Self::Action(_) => "unknown-action",
            Self::Hash(_) => "unknown-hash",
            Self::HashTooWeak { .. } => "hash-too-weak",
            Self::HashMismatch(_) => "hash-mismatch",
            Self::FromHost => "from-host",
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

/// Domain of a request, as the client wrote it: a name, or a UUID in text form.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    text: String,
    uuid: bool,
}

/// Reason why a text is no target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TargetError {
    /// The field has no NUL in its 64 bytes.
    #[error("without a NUL in its 64 bytes")]
    NoNul,
    /// The field is not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// The text has control characters.
    #[error("has control characters")]
    Control,
    /// The text is empty although the action needs a target.
    #[error("is empty")]
    Empty,
    /// The text is longer than the 63 bytes of the field.
    #[error("of {0} bytes is longer than 63")]
    TooLong(usize),
}

impl Target {
    /// Most bytes of a target.
    pub const MAX: usize = 63;

    /// Returns no target, for actions that need none.
    #[must_use]
    pub fn none() -> Self {
        Self { text: String::new(), uuid: false }
    }

    /// Makes a target from text, checked as the receiver checks it.
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

    /// Returns the name or UUID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether the target is the beginning of `name` that fits into a request: the client cut a
    /// longer name.
    #[must_use]
    pub fn is_cut_from(&self, name: &str) -> bool {
        !self.is_only_uuid() && name.len() > Self::MAX && cut(name, Self::MAX) == self.text
    }

    /// Returns whether the client says that the target is a UUID.
    #[must_use]
    pub fn is_uuid(&self) -> bool {
        self.uuid
    }

    /// Returns whether the target can only be a UUID: the client says so, and the text has the digits of one.
    /// Any other text can only be a name, whatever the client says.
    #[must_use]
    pub fn is_only_uuid(&self) -> bool {
        let digits: Vec<u8> = self.text.trim().bytes().filter(|it| *it != b'-').collect();
        self.uuid && digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit)
    }

    /// Returns whether the client says that the target is a UUID, and it is none.
    #[must_use]
    pub fn is_misnamed(&self) -> bool {
        self.uuid && !self.text.is_empty() && !self.is_only_uuid()
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

/// Returns the hash of a packet whose hash bytes are zero; none for the type without a hash.
fn packet_hash(unhashed: &[u8; REQUEST_LEN], hash: HashType, key: &Key) -> Option<[u8; HASH_LEN]> {
    match (hash.classic(), hash.sealed()) {
        (Some(classic), _) => Some(key.hash(classic, unhashed)),
        (None, Some(sealed)) => Some(key.mac(sealed, LABEL).with(unhashed).finish()),
        (None, None) => None,
    }
}

/// Returns whether 64 bytes read as the beginning of a classic request. For some lengths of the key, the hash
/// of such a challenge can be extended to the hash of a whole packet that begins with it (see `handshake`).
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
