// SPDX-License-Identifier: GPL-2.0-or-later
//! A host's answer.
//!
//! Owns nothing, values only. Must never be made of anything but a host's own response to this run's own
//! request.

use fence_wire::{HostListEntry, Response};

/// Answer of a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostAnswer {
    /// Answer to every action but list. Also to a list that the host refuses, or whose rows are printed
    /// already.
    Response(Response),
    /// Failure, with the host's reason: only to a sealed request that wants it.
    Failed(String),
    /// Forecast of an action, which was not done: only to a sealed question for that.
    Forecast {
        /// Success if the action would be carried out.
        response: Response,
        /// The host's words.
        text: String,
    },
    /// Answer to list.
    List {
        /// Domains in the host's order.
        entries: Vec<HostListEntry>,
        /// Result of the list, from hosts that send one after it.
        response: Option<Response>,
    },
}
