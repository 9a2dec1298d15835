// SPDX-License-Identifier: GPL-2.0-or-later
//! What a host answered.

use fence_wire::{HostListEntry, Response};

/// A host's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To everything but a list; and to a list that the host does not give, or whose rows are printed already.
    Response(Response),
    /// To a list.
    List {
        /// The domains, in the host's order.
        entries: Vec<HostListEntry>,
        /// How the list went, from hosts that say so after it.
        response: Option<Response>,
    },
}
