// SPDX-License-Identifier: GPL-2.0-or-later
//! Bodies of host messages, 84 bytes each.
//!
//! ```text
//! hello   0 public key 32 · 32 port 2 · 34 number of domains 2 · 36 name of the host 40, NUL-padded ·
//!        76 run of the daemon 8
//! ask     0 UUID 16 · 16 milliseconds left 2 (bit 15: takes reasons in parts; bit 14: takes namesakes;
//!        bit 13: asks for a memory; bit 12: by UUID) · 18 name of the domain 64, NUL-padded, cut after
//!        63 bytes
//! answer  0 UUID 16 · 16 sight 1 · 17 number of namesakes 1 · 18 reason 58, NUL-padded, or with namesakes
//!         their UUIDs, 16 each · 76 age in milliseconds 8, and 1 more; 0: not known. With a memory: 17 is
//!         128 · 18 reason 50 · 68 noted for, in milliseconds 4 · 72 age of the last thing 4, and 1 more
//! reason  0 UUID 16 · 16 number of this part 1 · 17 number of parts 1 · 18 text 66, NUL-padded
//! ```

use super::parts::{HostId, HostMessageError};
use crate::text::{cut, until_nul};

const HELLO_NAME: core::ops::Range<usize> = 36..76;
const HELLO_RUN: core::ops::Range<usize> = 76..84;
const ASK_NAME: core::ops::Range<usize> = 18..82;
const REASON: core::ops::Range<usize> = 18..76;
/// Reason of an answer that has a memory.
const SHORT_REASON: core::ops::Range<usize> = 18..68;
/// Number of namesakes that stands for a memory in their place.
const HAS_MEMORY: u8 = 0x80;
const PART: core::ops::Range<usize> = 18..84;
/// Most parts of a reason.
pub const REASON_PARTS: usize = 4;
/// Bit of the milliseconds of a question. A daemon that does not know it takes the time for a long one, and
/// looks for as long as any look may take.
const TAKES_PARTS: u16 = 0x8000;
/// Another such bit.
const TAKES_NAMESAKES: u16 = 0x4000;
/// Another such bit.
const ASKS_MEMORY: u16 = 0x2000;
/// Another such bit. No asker that does not know it ever waits for so long.
const IS_BY_UUID: u16 = 0x1000;
const MAX_LEFT: u16 = IS_BY_UUID - 1;
/// Most namesakes of an answer.
pub const ANSWER_NAMESAKES: usize = 3;

/// Presentation of a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostHello {
    /// Public key (X25519); the sender of the message is its [`HostId`].
    pub public: [u8; 32],
    /// UDP port at which the host takes messages; 0: by the multicast group alone.
    pub port: u16,
    /// Domains that it has, running or not; 65535 for more.
    pub domains: u16,
    /// Name of the host, cut after 39 bytes.
    pub name: String,
    /// Bytes that the daemon drew when it started. Two that are in turn with one key are two daemons.
    pub run: [u8; 8],
}

/// Question about one domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAsk {
    /// UUID of the domain.
    pub uuid: [u8; 16],
    /// Milliseconds for which the asker waits, 4095 at most.
    pub left_ms: u16,
    /// The asker takes a reason that is longer than an answer has room for, in parts.
    pub takes_parts: bool,
    /// The asker takes the UUIDs of other domains with the name that left the host, and asks about them. One
    /// that does not must be told that the host can't tell.
    pub takes_namesakes: bool,
    /// The asker wants to know what the host remembers of the domain, and takes no namesakes beside.
    pub asks_memory: bool,
    /// The request names the domain by its UUID, so it is about no other domain with the name: the answer
    /// tells none that left the host, however many there are.
    pub is_by_uuid: bool,
    /// Name of the domain, cut after 63 bytes as in a request.
    pub name: String,
}

/// Answer about one domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAnswer {
    /// UUID of the question.
    pub uuid: [u8; 16],
    /// Sight.
    pub sight: HostSight,
    /// Milliseconds between the end or the move that the sight shows and the look, if that is known. Such an
    /// end is not older, and such a move not younger.
    pub age_ms: Option<u64>,
    /// Why nothing can be said, or more about the sight; cut after 57 bytes, after 49 with a
    /// memory. None with namesakes.
    pub reason: String,
    /// UUIDs of other domains with the name that left the host for another one, [`ANSWER_NAMESAKES`] at most.
    /// For an asker that takes them.
    pub namesakes: Vec<[u8; 16]>,
    /// Memory of the domain, if the question asked for it. Then no namesakes are told.
    pub memory: Option<HostMemory>,
}

/// Memory of a domain at a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostMemory {
    /// Milliseconds for which the host has noted without a gap what happened there.
    pub noted_ms: u32,
    /// Milliseconds since an instance was there for the last time, or a request was told there that the
    /// domain is off; none if neither was noted.
    pub last_ms: Option<u32>,
}

/// Part of the reason of an answer, sent before the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostReason {
    /// UUID of the question.
    pub uuid: [u8; 16],
    /// Number of this part, from 0.
    pub part: u8,
    /// Number of parts, [`REASON_PARTS`] at most.
    pub parts: u8,
    /// The text; cut after 65 bytes.
    pub text: String,
}

/// Result of a look at a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum HostSight {
    /// Running, or in a state that holds its disks.
    On = 1,
    /// Paused by a migration, coming or going.
    Moving = 2,
    /// Defined, and off.
    Off = 3,
    /// Not known there.
    Absent = 4,
    /// Gone to another host.
    MovedAway = 5,
    /// Could not be looked at.
    Unknown = 6,
    /// An instance ran there and was seen to end for good, and nothing happened to the domain since.
    Ended = 7,
}

impl HostSight {
    /// Every sight.
    pub const ALL: [Self; 7] =
        [Self::On, Self::Moving, Self::Off, Self::Absent, Self::MovedAway, Self::Unknown, Self::Ended];

    fn decode(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|it| *it as u8 == number)
    }
}

impl HostHello {
    pub(super) fn encode(&self, body: &mut [u8]) {
        body[..32].copy_from_slice(&self.public);
        body[32..34].copy_from_slice(&self.port.to_le_bytes());
        body[34..36].copy_from_slice(&self.domains.to_le_bytes());
        put(&mut body[HELLO_NAME], &self.name);
        body[HELLO_RUN].copy_from_slice(&self.run);
    }

    pub(super) fn decode(body: &[u8; 84], sender: HostId) -> Result<Self, HostMessageError> {
        let public = core::array::from_fn(|i| body[i]);
        if HostId::of(&public) != sender {
            return Err(HostMessageError::Field("public key"));
        }
        let name = text(&body[HELLO_NAME], "name of the host")?;
        if name.is_empty() {
            return Err(HostMessageError::Field("name of the host"));
        }
        let run = core::array::from_fn(|i| body[HELLO_RUN.start + i]);
        Ok(Self { public, port: number(body, 32), domains: number(body, 34), name, run })
    }
}

impl HostAsk {
    /// Returns whether a name fits into a question as it is. Of another one a host sees only a part.
    #[must_use]
    pub fn can_name(name: &str) -> bool {
        name.len() < ASK_NAME.len() && !name.chars().any(char::is_control)
    }

    pub(super) fn encode(&self, body: &mut [u8]) {
        body[..16].copy_from_slice(&self.uuid);
        let takes_parts = if self.takes_parts { TAKES_PARTS } else { 0 };
        let takes_namesakes = if self.takes_namesakes { TAKES_NAMESAKES } else { 0 };
        let asks_memory = if self.asks_memory { ASKS_MEMORY } else { 0 };
        let is_by_uuid = if self.is_by_uuid { IS_BY_UUID } else { 0 };
        let bits = takes_parts | takes_namesakes | asks_memory | is_by_uuid;
        let left = self.left_ms.min(MAX_LEFT) | bits;
        body[16..18].copy_from_slice(&left.to_le_bytes());
        put(&mut body[ASK_NAME], &self.name);
    }

    pub(super) fn decode(body: &[u8; 84]) -> Result<Self, HostMessageError> {
        let name = text(&body[ASK_NAME], "name of the domain")?;
        if body[ASK_NAME.end..] != [0; 2] {
            return Err(HostMessageError::Field("pad"));
        }
        let left = number(body, 16);
        Ok(Self {
            uuid: core::array::from_fn(|i| body[i]),
            left_ms: left & MAX_LEFT,
            takes_parts: left & TAKES_PARTS != 0,
            takes_namesakes: left & TAKES_NAMESAKES != 0,
            asks_memory: left & ASKS_MEMORY != 0,
            is_by_uuid: left & IS_BY_UUID != 0,
            name,
        })
    }
}

impl HostReason {
    pub(super) fn encode(&self, body: &mut [u8]) {
        body[..16].copy_from_slice(&self.uuid);
        (body[16], body[17]) = (self.part, self.parts);
        put(&mut body[PART], &self.text);
    }

    pub(super) fn decode(body: &[u8; 84]) -> Result<Self, HostMessageError> {
        let (part, parts) = (body[16], body[17]);
        if part >= parts || usize::from(parts) > REASON_PARTS {
            return Err(HostMessageError::Field("part"));
        }
        let text = text(&body[PART], "reason")?;
        Ok(Self { uuid: core::array::from_fn(|i| body[i]), part, parts, text })
    }
}

impl HostAnswer {
    /// Returns the reason in parts, to be sent before the answer; none if the answer has room for it. What is
    /// longer than all parts together is cut.
    #[must_use]
    pub fn reason_in_parts(&self) -> Vec<HostReason> {
        let room = if self.memory.is_some() { SHORT_REASON } else { REASON };
        if self.reason.len() < room.len() {
            return Vec::new();
        }
        let (mut rest, mut texts) = (self.reason.as_str(), Vec::new());
        while !rest.is_empty() && texts.len() < REASON_PARTS {
            let text = cut(rest, PART.len() - 1);
            rest = &rest[text.len()..];
            texts.push(text.to_owned());
        }
        let parts = u8::try_from(texts.len()).unwrap_or(0);
        let part = |(part, text)| HostReason { uuid: self.uuid, part, parts, text };
        (0..).zip(texts).map(part).collect()
    }

    pub(super) fn encode(&self, body: &mut [u8]) {
        body[..16].copy_from_slice(&self.uuid);
        body[16] = self.sight as u8;
        let age = self.age_ms.map_or(0, |it| it.saturating_add(1));
        body[REASON.end..].copy_from_slice(&age.to_le_bytes());
        if let Some(HostMemory { noted_ms, last_ms }) = self.memory {
            body[17] = HAS_MEMORY;
            put(&mut body[SHORT_REASON], &self.reason);
            let last = last_ms.map_or(0, |it| it.saturating_add(1));
            body[SHORT_REASON.end..][..4].copy_from_slice(&noted_ms.to_le_bytes());
            body[SHORT_REASON.end + 4..][..4].copy_from_slice(&last.to_le_bytes());
            return;
        }
        let namesakes = self.namesakes.iter().take(ANSWER_NAMESAKES);
        body[17] = u8::try_from(namesakes.len()).unwrap_or(0);
        if self.namesakes.is_empty() {
            put(&mut body[REASON], &self.reason);
        }
        for (uuid, field) in namesakes.zip(body[REASON].chunks_exact_mut(16)) {
            field.copy_from_slice(uuid);
        }
    }

    pub(super) fn decode(body: &[u8; 84]) -> Result<Self, HostMessageError> {
        let (count, reason, memory) = match body[17] {
            HAS_MEMORY => {
                let word = |at| u32::from_le_bytes(core::array::from_fn(|i| body[SHORT_REASON.end + at + i]));
                let memory = HostMemory { noted_ms: word(0), last_ms: word(4).checked_sub(1) };
                (0, SHORT_REASON, Some(memory))
            }
            count => (usize::from(count), REASON, None),
        };
        if count > ANSWER_NAMESAKES {
            return Err(HostMessageError::Field("number of namesakes"));
        }
        let (uuids, rest) = body[REASON].split_at(count * 16);
        if count > 0 && rest.iter().any(|it| *it != 0) {
            return Err(HostMessageError::Field("pad"));
        }
        Ok(Self {
            uuid: core::array::from_fn(|i| body[i]),
            sight: HostSight::decode(body[16]).ok_or(HostMessageError::Field("sight"))?,
            age_ms: u64::from_le_bytes(core::array::from_fn(|i| body[REASON.end + i])).checked_sub(1),
            reason: if count > 0 { String::new() } else { text(&body[reason], "reason")? },
            namesakes: uuids.chunks_exact(16).map(|it| core::array::from_fn(|i| it[i])).collect(),
            memory,
        })
    }
}

fn number(body: &[u8; 84], at: usize) -> u16 {
    u16::from_le_bytes([body[at], body[at + 1]])
}

/// Writes a text without control characters, which the receiver refuses, and with a NUL behind it.
fn put(field: &mut [u8], text: &str) {
    let text: String = text.chars().map(|it| if it.is_control() { '?' } else { it }).collect();
    let text = cut(&text, field.len() - 1);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

fn text(field: &[u8], what: &'static str) -> Result<String, HostMessageError> {
    let bytes = until_nul(field).ok_or(HostMessageError::Field(what))?;
    let text = core::str::from_utf8(bytes).map_err(|_| HostMessageError::Field(what))?;
    let rest = &field[bytes.len()..];
    if text.chars().any(char::is_control) || rest.iter().any(|it| *it != 0) {
        return Err(HostMessageError::Field(what));
    }
    Ok(text.to_owned())
}
