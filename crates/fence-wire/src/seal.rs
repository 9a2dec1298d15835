// SPDX-License-Identifier: GPL-2.0-or-later
//! Binding of a sealed stream to its packet, and of a response to its stream.
//!
//! R is the 64-byte hash field of a sealed packet. The response of a sealed request is followed by its seal:
//!
//! ```text
//! HMAC(key, "fence_virt response\0" ‖ R ‖ C1 ‖ C2 ‖ every byte of the response), zero-padded to 64
//! ```
//!
//! A response with a reason is 254, the length of the text (2 bytes), the text, and the response byte. Only a
//! failure has one, and only where the packet wants it. A forecast has the same form, with 252 and any
//! response but "off"; only a packet that asks for one has it as its answer.
//!
//! A host has no other way to the bytes of a response than a [`ResponseWriter`], and a client no other way to
//! an answer than a [`ResponseSeal`]. Only the handshake makes them, since it knows whether the request was
//! sealed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::action::Action;
use crate::host_list::{HOST_LIST_END, HostListEntry};
use crate::key::{HASH_LEN, HashType, Key, KeyedMac, SealedHash, same};
use crate::layout::{
    ACTION, Challenge, DRY_RUN, DRY_RUN_ACTION, HASH, HASH_TYPE, REQUEST_LEN, SPARE, WANTS_REASON, field,
};
use crate::response::{FORECAST_FOLLOWS, HOST_LIST_FOLLOWS, REASON_FOLLOWS, REASON_MAX, Response};
use crate::text::cut;

const LABEL: &[u8] = b"fence_virt response\0";

/// Hash type and R of a sealed packet, which bind the answering stream to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedRequest {
    hash: SealedHash,
    r: [u8; HASH_LEN],
    wants: WantedText,
}

/// Text that a client wants with its response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WantedText {
    /// None.
    Nothing,
    /// Reason of a failure.
    Reason,
    /// Forecast of this action.
    Forecast(Action),
}

impl WantedText {
    fn of_packet(packet: &[u8; REQUEST_LEN]) -> Self {
        if field(packet, SPARE.start) == WANTS_REASON {
            return Self::Reason;
        }
        let is_dry_run = packet[ACTION] == Action::Status.number() && field(packet, SPARE.start) == DRY_RUN;
        match Action::try_from(packet[DRY_RUN_ACTION]) {
            Ok(action @ (Action::Off | Action::On | Action::Reboot)) if is_dry_run => Self::Forecast(action),
            _ => Self::Nothing,
        }
    }
}

impl SealedRequest {
    /// Returns none for classic packets. The hash field is not checked: the caller made it or has checked it.
    pub(crate) fn of_packet(packet: &[u8; REQUEST_LEN]) -> Option<Self> {
        let hash = HashType::try_from(packet[HASH_TYPE]).ok()?.sealed()?;
        Some(Self { hash, r: field(packet, HASH.start), wants: WantedText::of_packet(packet) })
    }

    /// Returns the text that the client wants.
    pub(crate) fn wants(&self) -> WantedText {
        self.wants
    }

    /// Returns the action of which the client asks what it would do.
    pub(crate) fn dry_run(&self) -> Option<Action> {
        match self.wants {
            WantedText::Forecast(action) => Some(action),
            WantedText::Nothing | WantedText::Reason => None,
        }
    }

    /// Begins HMAC(key, label ‖ R ‖ …).
    pub(crate) fn mac(&self, key: &Key, label: &[u8]) -> KeyedMac {
        key.mac(self.hash, label).with(&self.r)
    }

    /// Begins the HMAC that seals the response to this request.
    pub(crate) fn response_mac(&self, key: &Key, c1: &Challenge, c2: &Challenge) -> KeyedMac {
        self.mac(key, LABEL).with(c1).with(c2)
    }
}

/// Sealed packets that a client has sent for its request: a host may answer any of them, and no other.
///
/// The latest [`SentRequests::MAX`] are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SentRequests {
    hash: SealedHash,
    requests: Arc<VecDeque<SealedRequest>>,
}

impl SentRequests {
    /// Most packets whose answer is accepted. A client that repeats its request every tenth of a second on
    /// ten interfaces sends as many in 40 s.
    pub const MAX: usize = 4096;

    /// Makes a list without packets.
    #[must_use]
    pub fn new(hash: SealedHash) -> Self {
        Self { hash, requests: Arc::default() }
    }

    /// Records a packet before it is sent. A packet that is not sealed with this type is ignored: it has no
    /// sealed answer.
    pub fn add(&mut self, packet: &[u8; REQUEST_LEN]) {
        let Some(request) = SealedRequest::of_packet(packet).filter(|it| it.hash == self.hash) else {
            return;
        };
        let requests = Arc::make_mut(&mut self.requests);
        if requests.len() == Self::MAX {
            requests.pop_front();
        }
        requests.push_back(request);
    }

    /// Returns the packet for which HMAC(key, label ‖ R ‖ data) equals `received`.
    pub(crate) fn answered(
        &self,
        key: &Key,
        label: &[u8],
        data: &[u8],
        received: &[u8; HASH_LEN],
    ) -> Option<SealedRequest> {
        // The key may be long: it is hashed once for all packets.
        let keyed = key.mac(self.hash, label);
        let fits = |it: &&SealedRequest| same(&keyed.clone().with(&it.r).with(data).finish(), received);
        self.requests.iter().find(fits).copied()
    }
}

/// Host: the only way to the bytes of a response, which seals them if the request was sealed.
#[derive(Debug)]
#[must_use]
pub struct ResponseWriter {
    mac: Option<Box<KeyedMac>>,
    wants: WantedText,
}

impl ResponseWriter {
    pub(crate) fn classic() -> Self {
        Self { mac: None, wants: WantedText::Nothing }
    }

    pub(crate) fn sealed(mac: KeyedMac, wants: WantedText) -> Self {
        Self { mac: Some(Box::new(mac)), wants }
    }

    /// Returns all bytes of a response without a list.
    #[must_use]
    pub fn response(self, response: Response) -> Vec<u8> {
        self.finish(vec![response.number()])
    }

    /// Returns all bytes of a failure, with its reason where the client wants it.
    #[must_use]
    pub fn failure(self, reason: &str) -> Vec<u8> {
        if self.wants != WantedText::Reason || self.mac.is_none() || reason.is_empty() {
            return self.response(Response::Failure);
        }
        self.with_text(REASON_FOLLOWS, reason, Response::Failure)
    }

    /// Returns all bytes of the answer to a question what an action would do: success where it would be
    /// carried out. To a client that asked for something else it is a failure.
    #[must_use]
    pub fn forecast(self, response: Response, text: &str) -> Vec<u8> {
        if !matches!(self.wants, WantedText::Forecast(_)) || self.mac.is_none() {
            return self.response(Response::Failure);
        }
        self.with_text(FORECAST_FOLLOWS, text, response)
    }

    fn with_text(self, follows: u8, text: &str, response: Response) -> Vec<u8> {
        let text = cut(text, REASON_MAX);
        let mut bytes = vec![follows];
        bytes.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(response.number());
        self.finish(bytes)
    }

    /// Returns all bytes of a host list and the response after it.
    #[must_use]
    pub fn list(self, entries: &[HostListEntry], response: Response) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((entries.len() + 1) * HOST_LIST_END.len() + 2 + HASH_LEN);
        bytes.push(HOST_LIST_FOLLOWS);
        for entry in entries {
            bytes.extend_from_slice(&entry.encode());
        }
        bytes.extend_from_slice(&HOST_LIST_END);
        bytes.push(response.number());
        self.finish(bytes)
    }

    fn finish(self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some(mac) = self.mac {
            let seal = mac.with(&bytes).finish();
            bytes.extend_from_slice(&seal);
        }
        bytes
    }
}

/// Error for a sealed response that was changed on its way, or answers another request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the response's seal is wrong: somebody on the way changed it")]
pub struct WrongSeal;

/// Client: takes in every byte of the response, and makes a [`GenuineAnswer`] of the decoded answer.
#[derive(Debug)]
#[must_use]
pub struct ResponseSeal {
    mac: Option<Box<KeyedMac>>,
    wants: WantedText,
}

impl ResponseSeal {
    pub(crate) fn classic() -> Self {
        Self { mac: None, wants: WantedText::Nothing }
    }

    pub(crate) fn sealed(mac: KeyedMac, wants: WantedText) -> Self {
        Self { mac: Some(Box::new(mac)), wants }
    }

    /// Returns whether a seal of [`HASH_LEN`] bytes follows the response.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.mac.is_some()
    }

    /// Returns whether this byte, in the place of the response, says that the wanted text follows: its
    /// length in two bytes, the text, and the response.
    #[must_use]
    pub fn is_text(&self, byte: u8) -> bool {
        match self.wants {
            WantedText::Nothing => false,
            WantedText::Reason => byte == REASON_FOLLOWS,
            WantedText::Forecast(_) => byte == FORECAST_FOLLOWS,
        }
    }

    /// Returns whether the text is a forecast, not a reason.
    #[must_use]
    pub fn wants_forecast(&self) -> bool {
        matches!(self.wants, WantedText::Forecast(_))
    }

    /// Takes the next bytes of the response, each once and in order.
    pub fn take(&mut self, bytes: &[u8]) {
        if let Some(mac) = &mut self.mac {
            mac.update(bytes);
        }
    }

    /// Returns the answer to a classic request, which no seal protects.
    ///
    /// # Errors
    /// The seal itself, if the request was sealed: then only [`Self::verify`] makes an answer.
    pub fn unsealed<T>(self, answer: T) -> Result<GenuineAnswer<T>, Self> {
        if self.is_sealed() { Err(self) } else { Ok(GenuineAnswer(answer)) }
    }

    /// Returns the answer that was taken in, if `seal` is its seal.
    ///
    /// # Errors
    /// [`WrongSeal`], also for a request that was not sealed.
    pub fn verify<T>(self, answer: T, seal: &[u8; HASH_LEN]) -> Result<GenuineAnswer<T>, WrongSeal> {
        let ours = self.mac.ok_or(WrongSeal)?.finish();
        if same(&ours, seal) { Ok(GenuineAnswer(answer)) } else { Err(WrongSeal) }
    }
}

/// Answer that is as genuine as its request allows: with a verified seal if the request was sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GenuineAnswer<T>(T);

impl<T> GenuineAnswer<T> {
    /// Returns the answer.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T, E> GenuineAnswer<Result<T, E>> {
    /// Turns an answer that may be an error inside out.
    ///
    /// # Errors
    /// The error inside.
    pub fn transpose(self) -> Result<GenuineAnswer<T>, E> {
        self.0.map(GenuineAnswer)
    }
}
