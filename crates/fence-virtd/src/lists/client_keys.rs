// SPDX-License-Identifier: GPL-2.0-or-later
//! Keys and hashes of a client. Values only; must never show a byte of a key.

use fence_wire::{HashType, Key};

/// Keys and hashes with which a host is asked: those of a client of this listener.
#[derive(Clone, Debug)]
pub(crate) struct ClientKeys {
    pub(crate) hash: HashType,
    pub(crate) auth: HashType,
    /// The same question is asked with each. None: nothing is proved.
    pub(crate) keys: Vec<Key>,
    /// Port for the call-backs, if it is free; 0 for any free one.
    pub(crate) call_back_port: u16,
}
