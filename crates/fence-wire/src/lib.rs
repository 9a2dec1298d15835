// SPDX-License-Identifier: GPL-2.0-or-later
//! The fence_xvm wire protocol, sans-I/O.
//!
//! Bytes in, values out, and back: requests, the mutual challenge, responses, host lists and serial frames,
//! for both roles (host and client). This crate owns the format and nothing else: no sockets, no clock, no
//! randomness (the caller hands nonces and challenges in), no logging. What a peer sent is checked here and
//! nowhere else; every refusal is a variant of an error enum so that it can be counted and named.
//!
//! All integers are little-endian on the wire. Strings are NUL-terminated inside fixed fields.
#![forbid(unsafe_code)]

mod action;
mod cpg;
mod family;
mod handshake;
mod host_list;
mod key;
mod layout;
mod request;
mod response;
mod seal;
mod serial;
mod text;

pub use action::{Action, UnknownAction};
pub use cpg::{
    CPG_EVERYBODY, CPG_GROUP, CPG_MESSAGE_LEN, CPG_TARGET_MAX, CpgDomain, CpgMessage, CpgMessageError,
    CpgRequest, CpgTargetError,
};
pub use family::{DEFAULT_GROUP_V4, DEFAULT_GROUP_V6, Family};
pub use handshake::{
    ClientAnswer, ClientAuth, ClientHandshake, ClientStream, HostAwaitAnswer, HostAwaitChallenge, HostProven,
    HostStream, ProofError, Proved, draw_challenge,
};
pub use host_list::{HOST_LIST_END, HOST_LIST_ENTRY_LEN, HostListEntry, HostListItem};
pub use key::{ClassicHash, HASH_LEN, HashType, KEY_MAX, KEY_MIN, Key, KeyError, SealedHash, UnknownHash};
pub use layout::{CHALLENGE_LEN, Challenge, REQUEST_LEN, UUID_FLAG};
pub use request::{CallBack, Received, Request, RequestError, Target, TargetError};
pub use response::{HOST_LIST_FOLLOWS, Response};
pub use seal::{Genuine, ResponseSeal, ResponseWriter, SealedRequest, SentRequests, WrongSeal};
pub use serial::{
    SERIAL_MAGIC, SERIAL_REQUEST_LEN, SERIAL_RESPONSE_LEN, SerialRequest, SerialRequestError, SerialScanner,
    serial_response,
};
pub use text::{Escaped, escaped};

/// The port that everything listens on by default: UDP multicast, the client's call-back port, TCP, vsock and
/// the guestfwd channel.
pub const DEFAULT_PORT: u16 = 1229;
/// The time to live (IPv4) and hop limit (IPv6) of a request datagram.
pub const MULTICAST_TTL: u32 = 2;
/// The address inside a guest that QEMU forwards to the VM channel by default.
pub const CHANNEL_ADDRESS: core::net::Ipv4Addr = core::net::Ipv4Addr::new(10, 0, 2, 179);
/// Where both ends look for the shared key by default.
pub const DEFAULT_KEY_FILE: &str = "/etc/cluster/fence_xvm.key";
