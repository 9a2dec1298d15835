// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages of legacy hosts: the `cpg` backend of the C daemon sends them in a corosync process group.
//!
//! ```text
//! every message, 156 bytes   request, reply              domain
//! offset size field          offset size field           offset size field
//!      0    4 kind               16  128 target, NUL-padded  16   65 name, NUL-padded
//!      4    4 sequence number   144    4 action              81   65 UUID text, NUL-padded
//!      8    4 to: a node id     148    4 client's number    146    2 pad
//!     12    4 pad               152    4 response           148    4 owner: a node id
//!     16  140 body                                          152    4 libvirt's number of the state
//! ```
//!
//! Pads and bytes behind a NUL are leftovers of the C daemon's memory: a receiver must not interpret them.
//! Corosync names the sender; the message does not.

use crate::action::Action;
use crate::response::Response;
use crate::text::{cut, until_nul};

/// Process group of the C daemons of Debian 12.
pub const CPG_GROUP: &str = "fence-agents";
/// Length of every message in bytes.
pub const CPG_MESSAGE_LEN: usize = 156;
/// Node id of a message to all nodes.
pub const CPG_EVERYBODY: u32 = u32::MAX;
/// Length of the longest target that fits into a request, in bytes.
pub const CPG_TARGET_MAX: usize = 127;

const REQUEST: u32 = 0;
const REPLY: u32 = 1;
const DOMAIN: u32 = 2;

const TARGET: core::ops::Range<usize> = 16..144;
const NAME: core::ops::Range<usize> = 16..81;
const UUID: core::ops::Range<usize> = 81..146;
/// Bytes of a name or UUID that the C daemon fills; the byte after them is not always a NUL.
const TEXT_MAX: usize = 64;

/// Message of the process group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CpgMessage {
    /// Request to all nodes: the owner of the domain carries it out and replies.
    Request {
        /// The sender's number of this request, from 1 in each run of its daemon; the reply repeats it.
        sequence: u32,
        /// The request.
        request: CpgRequest,
    },
    /// Reply of the host that carried the request out.
    Reply {
        /// Node of the host that sent the request.
        to: u32,
        /// That host's number of the request.
        sequence: u32,
        /// The request, repeated.
        request: CpgRequest,
        /// Result. A number that is no response was decoded as a failure.
        response: Response,
    },
    /// Notice to all nodes: the sender has this domain.
    Domain(CpgDomain),
}

/// Request, as its reply repeats it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpgRequest {
    /// Action; none for a number that is no action. The C daemon sends off, reboot, on and status only.
    pub action: Option<Action>,
    /// Name of the domain or its UUID in text form, as the client wrote it. Bytes that are not UTF-8 were
    /// replaced.
    pub target: String,
    /// The client's number of its request; 0 for status and reboot. Hosts make no use of it.
    pub client_sequence: u32,
}

/// Domain of a host, running or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpgDomain {
    /// Name; when encoded, cut after 64 bytes, between two characters. Bytes that are not UTF-8 were
    /// replaced.
    pub name: String,
    /// UUID in text form.
    pub uuid: String,
    /// Node id of the sender.
    pub owner: u32,
    /// libvirt's number of the domain's state: only 5, shut off, counts as off.
    pub state: i32,
}

impl CpgDomain {
    /// State of a domain that is off.
    pub const SHUT_OFF: i32 = 5;
    /// State to publish of a domain that is on.
    pub const RUNNING: i32 = 1;

    /// Returns whether the domain is on: every domain that is not shut off holds its disks.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.state != Self::SHUT_OFF
    }
}

/// Reason why a message is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpgMessageError {
    /// The length is not that of a message.
    #[error("{0} bytes instead of {CPG_MESSAGE_LEN}")]
    Length(usize),
    /// The kind is unknown.
    #[error("unknown kind {0}")]
    Kind(u32),
    /// The target of a request fills its field without a NUL.
    #[error("target without an end")]
    Target,
}

/// Error for a target that has more bytes than [`CPG_TARGET_MAX`], or a NUL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("target of {0} bytes does not fit a message between hosts")]
pub struct CpgTargetError(pub usize);

impl CpgMessage {
    /// Returns the bytes of the message.
    ///
    /// # Errors
    /// The target does not fit.
    pub fn encode(&self) -> Result<[u8; CPG_MESSAGE_LEN], CpgTargetError> {
        let mut bytes = [0; CPG_MESSAGE_LEN];
        let (kind, sequence, to) = match self {
            Self::Request { sequence, .. } => (REQUEST, *sequence, CPG_EVERYBODY),
            Self::Reply { to, sequence, .. } => (REPLY, *sequence, *to),
            Self::Domain(_) => (DOMAIN, 0, CPG_EVERYBODY),
        };
        put(&mut bytes, 0, kind);
        put(&mut bytes, 4, sequence);
        put(&mut bytes, 8, to);
        match self {
            Self::Request { request, .. } => request.encode(0, &mut bytes)?,
            Self::Reply { request, response, .. } => request.encode(response.number(), &mut bytes)?,
            Self::Domain(domain) => {
                for (field, text) in [(NAME, &domain.name), (UUID, &domain.uuid)] {
                    let text = cut(text, TEXT_MAX);
                    bytes[field][..text.len()].copy_from_slice(text.as_bytes());
                }
                put(&mut bytes, 148, domain.owner);
                put(&mut bytes, 152, domain.state.cast_unsigned());
            }
        }
        Ok(bytes)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// The reason why the message must be dropped.
    pub fn decode(bytes: &[u8]) -> Result<Self, CpgMessageError> {
        let bytes: &[u8; CPG_MESSAGE_LEN] =
            bytes.try_into().map_err(|_| CpgMessageError::Length(bytes.len()))?;
        let sequence = number(bytes, 4);
        Ok(match number(bytes, 0) {
            REQUEST => Self::Request { sequence, request: CpgRequest::decode(bytes)? },
            REPLY => Self::Reply {
                to: number(bytes, 8),
                sequence,
                request: CpgRequest::decode(bytes)?,
                response: u8::try_from(number(bytes, 152))
                    .ok()
                    .and_then(Response::from_number)
                    .unwrap_or(Response::Failure),
            },
            DOMAIN => {
                let text = |field: &[u8]| {
                    let field = &field[..TEXT_MAX];
                    String::from_utf8_lossy(until_nul(field).unwrap_or(field)).into_owned()
                };
                Self::Domain(CpgDomain {
                    name: text(&bytes[NAME]),
                    uuid: text(&bytes[UUID]),
                    owner: number(bytes, 148),
                    state: number(bytes, 152).cast_signed(),
                })
            }
            kind => return Err(CpgMessageError::Kind(kind)),
        })
    }
}

impl CpgRequest {
    fn encode(&self, response: u8, bytes: &mut [u8; CPG_MESSAGE_LEN]) -> Result<(), CpgTargetError> {
        let target = self.target.as_bytes();
        if target.len() > CPG_TARGET_MAX || target.contains(&0) {
            return Err(CpgTargetError(target.len()));
        }
        bytes[TARGET][..target.len()].copy_from_slice(target);
        put(bytes, 144, self.action.unwrap_or(Action::Null).number().into());
        put(bytes, 148, self.client_sequence);
        put(bytes, 152, response.into());
        Ok(())
    }

    fn decode(bytes: &[u8; CPG_MESSAGE_LEN]) -> Result<Self, CpgMessageError> {
        let target = until_nul(&bytes[TARGET]).ok_or(CpgMessageError::Target)?;
        // Lossy: a target with a replaced byte names no domain, but the sender still waits for an answer. The
        // target may grow, which does no harm: a replaced byte is three bytes long.
        let target = String::from_utf8_lossy(target);
        Ok(Self {
            action: u8::try_from(number(bytes, 144)).ok().and_then(|it| Action::try_from(it).ok()),
            target: cut(&target, CPG_TARGET_MAX).to_owned(),
            client_sequence: number(bytes, 148),
        })
    }
}

fn number(bytes: &[u8; CPG_MESSAGE_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put(bytes: &mut [u8; CPG_MESSAGE_LEN], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

    use super::*;

    fn request(target: &str) -> CpgRequest {
        CpgRequest { action: Some(Action::Off), target: target.to_owned(), client_sequence: 7 }
    }

    #[test]
    fn other_lengths_and_kinds_are_refused() {
        let bytes = CpgMessage::Request { sequence: 1, request: request("vm1") }.encode().unwrap();
        for length in [0, 3, 16, CPG_MESSAGE_LEN - 1] {
            assert_eq!(CpgMessage::decode(&bytes[..length]), Err(CpgMessageError::Length(length)));
        }
        assert_eq!(CpgMessage::decode(&[0; CPG_MESSAGE_LEN + 1]), Err(CpgMessageError::Length(157)));
        let mut other = bytes;
        other[0] = 3;
        assert_eq!(CpgMessage::decode(&other), Err(CpgMessageError::Kind(3)));
    }

    #[test]
    fn a_target_that_does_not_fit_is_refused() {
        let longest = "v".repeat(CPG_TARGET_MAX);
        let message = CpgMessage::Request { sequence: 1, request: request(&longest) };
        assert_eq!(CpgMessage::decode(&message.encode().unwrap()), Ok(message));
        for (target, length) in [("v".repeat(128), 128), ("a\0b".to_owned(), 3)] {
            let message = CpgMessage::Request { sequence: 1, request: request(&target) };
            assert_eq!(message.encode(), Err(CpgTargetError(length)));
        }
        let mut endless = CpgMessage::Request { sequence: 1, request: request("") }.encode().unwrap();
        endless[TARGET].fill(b'v');
        assert_eq!(CpgMessage::decode(&endless), Err(CpgMessageError::Target));
    }

    #[test]
    fn a_reply_to_every_request_can_be_encoded() {
        let mut bytes = CpgMessage::Request { sequence: 1, request: request("") }.encode().unwrap();
        bytes[16..143].fill(0xff);
        bytes[144..148].copy_from_slice(&(-1_i32).to_le_bytes());
        let CpgMessage::Request { sequence, request } = CpgMessage::decode(&bytes).unwrap() else {
            unreachable!()
        };
        assert_eq!(request.action, None);
        let reply = CpgMessage::Reply { to: 2, sequence, request, response: Response::Failure };
        assert!(reply.encode().is_ok());
    }

    #[test]
    fn a_response_that_is_none_is_a_failure() {
        let reply =
            CpgMessage::Reply { to: 2, sequence: 9, request: request("vm1"), response: Response::Success };
        for (number, meaning) in [(0, Response::Success), (2, Response::Off), (4, Response::Failure)] {
            let mut bytes = reply.encode().unwrap();
            bytes[152] = number;
            let CpgMessage::Reply { response, .. } = CpgMessage::decode(&bytes).unwrap() else {
                unreachable!()
            };
            assert_eq!(response, meaning);
        }
        let mut bytes = reply.encode().unwrap();
        bytes[152..].fill(0xff);
        let CpgMessage::Reply { response, .. } = CpgMessage::decode(&bytes).unwrap() else { unreachable!() };
        assert_eq!(response, Response::Failure);
    }

    #[test]
    fn a_long_name_is_cut_between_two_characters() {
        let domain = CpgDomain {
            name: format!("{}\u{e4}", "v".repeat(63)),
            uuid: "6f2b5bd5-9e33-4c4a-9b0e-2f5d2f7f6c01".to_owned(),
            owner: 3,
            state: CpgDomain::RUNNING,
        };
        let mut bytes = CpgMessage::Domain(domain.clone()).encode().unwrap();
        // The last byte of a full field is not part of it.
        bytes[16 + 63] = b'w';
        bytes[16 + 64] = b'x';
        let CpgMessage::Domain(read) = CpgMessage::decode(&bytes).unwrap() else { unreachable!() };
        assert_eq!(read.name, format!("{}w", "v".repeat(63)));
        assert_eq!((read.uuid, read.owner, read.state), (domain.uuid, domain.owner, domain.state));
    }
}
