// SPDX-License-Identifier: GPL-2.0-or-later
//! The authentication of a packet and of the stream that follows it: values only.

use std::sync::Arc;

use fence_wire::{HashType, Received, SealedRequest};

use crate::listener::keys::ListenerKeys;

/// Authentication of a listener's streams, as far as the packet does not decide it: a sealed packet has a
/// sealed stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamAuth {
    /// The hash of classic challenges; none: no challenge at all.
    pub(crate) hash: HashType,
    /// The listener's keys.
    pub(crate) keys: Arc<ListenerKeys>,
}

/// Proof of a packet, with which its stream goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PacketProof {
    /// The place of the key that made the packet's hash.
    pub(super) key: Option<usize>,
    /// The packet, if it is sealed.
    pub(super) sealed: Option<SealedRequest>,
}

impl PacketProof {
    /// Returns the proof of a request without a packet: its transport vouches for the source.
    pub(crate) fn none() -> Self {
        Self { key: None, sealed: None }
    }

    pub(crate) fn of(packet: &Received) -> Self {
        Self { key: packet.key, sealed: packet.sealed }
    }

    /// Returns the place of the key that made the packet's hash.
    pub(crate) fn key(&self) -> Option<usize> {
        self.key
    }
}
