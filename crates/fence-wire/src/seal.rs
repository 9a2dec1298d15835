// SPDX-License-Identifier: GPL-2.0-or-later
//! What binds a sealed stream to its packet, and a response to its stream.
//!
//! R is the 64-byte hash field of a sealed packet. The response of a sealed request is followed by its seal:
//!
//! ```text
//! HMAC(key, "fence_virt response\0" ‖ R ‖ C1 ‖ C2 ‖ every byte of the response), zero-padded to 64
//! ```
//!
//! A host has no other way to bytes of a response than a [`ResponseWriter`], and a client none to an answer
//! than a [`ResponseSeal`]. Both come out of the handshake alone, which knows whether the request was sealed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::host_list::{HOST_LIST_END, HostListEntry};
use crate::key::{HASH_LEN, HashType, Key, Keyed, SealedHash, same};
use crate::layout::{Challenge, HASH, HASH_TYPE, REQUEST_LEN, field};
use crate::response::{HOST_LIST_FOLLOWS, Response};

const LABEL: &[u8] = b"fence_virt response\0";

/// A sealed packet's type and R, by which the stream that answers it is bound to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedRequest {
    hash: SealedHash,
    r: [u8; HASH_LEN],
}

impl SealedRequest {
    /// None for classic packets. The hash field is taken as it stands: the caller made it or has checked it.
    pub(crate) fn of_packet(packet: &[u8; REQUEST_LEN]) -> Option<Self> {
        let hash = HashType::try_from(packet[HASH_TYPE]).ok()?.sealed()?;
        Some(Self { hash, r: field(packet, HASH.start) })
    }

    /// HMAC(key, label ‖ R ‖ …).
    pub(crate) fn mac(&self, key: &Key, label: &[u8]) -> Keyed {
        key.mac(self.hash, label).with(&self.r)
    }

    /// What the response to it must be sealed with.
    pub(crate) fn response_mac(&self, key: &Key, c1: &Challenge, c2: &Challenge) -> Keyed {
        self.mac(key, LABEL).with(c1).with(c2)
    }
}

/// The sealed packets that a client has sent for its request: a host may answer any of them, and no other.
///
/// The latest [`SentRequests::MAX`] are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SentRequests {
    hash: SealedHash,
    requests: Arc<VecDeque<SealedRequest>>,
}

impl SentRequests {
    /// Packets that an answer is taken to. A client that repeats its request each tenth of a second on ten
    /// interfaces sends as many in 40 s.
    pub const MAX: usize = 4096;

    /// None sent yet.
    #[must_use]
    pub fn new(hash: SealedHash) -> Self {
        Self { hash, requests: Arc::default() }
    }

    /// A packet is about to be sent. One that is not sealed with this type is nothing that could be answered
    /// here.
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

    /// The packet under which HMAC(key, label ‖ R ‖ data) is `received`.
    pub(crate) fn answered(
        &self,
        key: &Key,
        label: &[u8],
        data: &[u8],
        received: &[u8; HASH_LEN],
    ) -> Option<SealedRequest> {
        // The key may be long: it is taken in once for all packets.
        let keyed = key.mac(self.hash, label);
        let fits = |it: &&SealedRequest| same(&keyed.clone().with(&it.r).with(data).finish(), received);
        self.requests.iter().find(fits).copied()
    }
}

/// Host: the one way to the bytes of a response. It seals them where the request was sealed.
#[derive(Debug)]
#[must_use]
pub struct ResponseWriter(Option<Box<Keyed>>);

impl ResponseWriter {
    pub(crate) fn classic() -> Self {
        Self(None)
    }

    pub(crate) fn sealed(mac: Keyed) -> Self {
        Self(Some(Box::new(mac)))
    }

    /// All bytes of a response without a list.
    #[must_use]
    pub fn response(self, response: Response) -> Vec<u8> {
        self.finish(vec![response.number()])
    }

    /// All bytes of a host list and the response after it.
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
        if let Some(mac) = self.0 {
            let seal = mac.with(&bytes).finish();
            bytes.extend_from_slice(&seal);
        }
        bytes
    }
}

/// A sealed response was changed on its way, or is the answer to something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the response's seal is wrong: somebody on the way changed it")]
pub struct WrongSeal;

/// Client: takes in every byte of the response, and makes a [`Genuine`] answer of what they say.
#[derive(Debug)]
#[must_use]
pub struct ResponseSeal(Option<Box<Keyed>>);

impl ResponseSeal {
    pub(crate) fn classic() -> Self {
        Self(None)
    }

    pub(crate) fn sealed(mac: Keyed) -> Self {
        Self(Some(Box::new(mac)))
    }

    /// Whether a seal of [`HASH_LEN`] bytes follows the response.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.0.is_some()
    }

    /// The next bytes of the response, each once and in their order.
    pub fn take(&mut self, bytes: &[u8]) {
        if let Some(mac) = &mut self.0 {
            mac.update(bytes);
        }
    }

    /// The answer to a classic request, which nothing vouches for.
    ///
    /// # Errors
    /// The seal back, when the request was sealed: its answer is none without [`Self::verify`].
    pub fn unsealed<T>(self, answer: T) -> Result<Genuine<T>, Self> {
        if self.is_sealed() { Err(self) } else { Ok(Genuine(answer)) }
    }

    /// The answer that was taken in, when `seal` is its seal.
    ///
    /// # Errors
    /// [`WrongSeal`], also for a request that was not sealed.
    pub fn verify<T>(self, answer: T, seal: &[u8; HASH_LEN]) -> Result<Genuine<T>, WrongSeal> {
        let ours = self.0.ok_or(WrongSeal)?.finish();
        if same(&ours, seal) { Ok(Genuine(answer)) } else { Err(WrongSeal) }
    }
}

/// An answer as genuine as the request made it: with its seal verified where the request was sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genuine<T>(T);

impl<T> Genuine<T> {
    /// The answer.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T, E> Genuine<Result<T, E>> {
    /// A genuine answer, or why what was said is none.
    ///
    /// # Errors
    /// What was inside.
    pub fn transpose(self) -> Result<Genuine<T>, E> {
        self.0.map(Genuine)
    }
}
