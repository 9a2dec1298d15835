// SPDX-License-Identifier: GPL-2.0-or-later
//! The fence_xvm wire protocol, sans-I/O.
//!
//! Requests, the mutual challenge, responses, host lists and serial frames: bytes in, values out, and back,
//! for both roles (host and client).
//!
//! Owns the format, and every check of bytes from a peer: each refusal is a variant of an error enum, so that
//! it can be counted and named. Runs on the caller's thread, values only. Must never open a socket, read a
//! clock, draw random bytes (the caller passes nonces and challenges in) or log.
//!
//! All integers are little-endian on the wire. Strings are NUL-terminated inside fixed fields.
#![forbid(unsafe_code)]

mod action;
mod call_name;
mod cpg;
mod family;
mod handshake;
mod host_list;
mod host_message;
mod key;
mod layout;
mod request;
mod response;
mod seal;
mod serial;
mod text;

// `Proved`, `Received` and `Genuine` are the names at call sites that have not switched yet.
pub use action::{Action, UnknownAction};
pub use call_name::{CallName, CallRole, ClientRun, call_name, draw_named_challenge};
pub use cpg::{
    CPG_EVERYBODY, CPG_GROUP, CPG_MESSAGE_LEN, CPG_TARGET_MAX, CpgDomain, CpgMessage, CpgMessageError,
    CpgRequest, CpgTargetError,
};
pub use family::{DEFAULT_GROUP_V4, DEFAULT_GROUP_V6, Family};
pub use handshake::{
    ClientAnswer, ClientAuth, ClientHandshake, ClientStream, HostAwaitAnswer, HostAwaitChallenge, HostProven,
    HostStream, ProofError, VerifiedProof, VerifiedProof as Proved, draw_challenge,
};
pub use host_list::{HOST_LIST_END, HOST_LIST_ENTRY_LEN, HostListEntry, HostListItem};
pub use host_message::{
    ANSWER_NAMESAKES, HOST_MAGIC, HOST_MESSAGE_LEN, HostAnswer, HostAsk, HostBody, HostHello, HostId,
    HostMemory, HostMessage, HostMessageError, HostNonce, HostReason, HostSight, HostsKey, PairKey,
    REASON_PARTS, ReceivedHostMessage,
};
pub use key::{
    ClassicHash, HASH_LEN, HashType, KEY_MAX, KEY_MIN, Key, KeyError, KeyTag, SealedHash, UnknownHash,
};
pub use layout::{CHALLENGE_LEN, Challenge, REQUEST_LEN, UUID_FLAG};
pub use request::{
    CallBack, ReceivedRequest, ReceivedRequest as Received, Request, RequestError, Target, TargetError,
    UnprovedRequest,
};
pub use response::{FORECAST_UNCERTAIN, HOST_LIST_FOLLOWS, REASON_MAX, Response};
pub use seal::{
    GenuineAnswer, GenuineAnswer as Genuine, ResponseSeal, ResponseWriter, SealedRequest, SentRequests,
    WrongSeal,
};
pub use serial::{
    SERIAL_MAGIC, SERIAL_REQUEST_LEN, SERIAL_RESPONSE_LEN, SerialRequest, SerialRequestError, SerialScanner,
    serial_response,
};
pub use text::{EscapedText, escaped};

/// Default port of every transport: UDP multicast, the client's call-back port, TCP, vsock and the guestfwd
/// channel.
pub const DEFAULT_PORT: u16 = 1229;
/// Time to live (IPv4) and hop limit (IPv6) of a request datagram.
pub const MULTICAST_TTL: u32 = 2;
/// Default address inside a guest that QEMU forwards to the VM channel.
pub const CHANNEL_ADDRESS: core::net::Ipv4Addr = core::net::Ipv4Addr::new(10, 0, 2, 179);
/// Default key file of both ends.
pub const DEFAULT_KEY_FILE: &str = "/etc/cluster/fence_xvm.key";
