// SPDX-License-Identifier: GPL-2.0-or-later
//! The other hosts, where no corosync knows them: who they are, what they have, and what they are told.
//!
//! Owns the key pair of this host, the table of hosts with its file, the sockets of their messages, the
//! questions of both directions, and the search for hosts. One task says hello, one writes the file, one
//! reads each socket, one answers each question. A request waits here only when it is about to call a domain
//! off that does not run at this host.
//!
//! Must never leave a known host out of a finding, never take silence for an answer, and never send anything
//! with `peers = "none"`, or by an interface that did not join the multicast group.

mod answering;
mod asking;
mod discovery;
mod doubts;
mod down;
pub(crate) mod forget;
mod identity;
mod incoming;
mod kept;
pub(crate) mod left_out;
mod legacy;
mod legacy_questions;
mod limits;
mod links;
mod metrics;
mod nodes;
mod other_keys;
mod patience;
pub(crate) mod probe;
mod recalling;
pub(crate) mod settings;
mod state;
pub(crate) mod store;
#[cfg(test)]
mod tests;

pub(crate) use self::asking::{HELLO_KEPT, leave_peers};
pub(crate) use self::links::GroupLink;
pub(crate) use self::settings::{PeerError, PeerSettings, peer_key_file};
pub(crate) use self::state::Peers;
