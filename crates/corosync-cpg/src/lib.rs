// SPDX-License-Identifier: GPL-2.0-or-later
//! The only door to corosync.
//!
//! Offers [`ProcessGroup`], the membership of this process in a process group of corosync (CPG, agreed
//! order), with its messages and membership changes, and the nodes that corosync hears; and [`NodeList`], the
//! nodes of corosync.conf. All of it is safe and silent: every failure goes to the caller as an [`Error`].
//!
//! Owns the calls into libcpg and libcmap. Runs on the caller's thread.
//!
//! Rules for the caller
//! - Use a thread of its own for a [`ProcessGroup`] and a [`NodeList`], with a stack of at least 2 MiB
//!   (libcpg puts a message of 1 MiB on it). Joining, leaving, dropping and reading nodes wait for corosync,
//!   without limit while corosync is stopped (`SIGSTOP`). [`ProcessGroup::dispatch`],
//!   [`ProcessGroup::send`] and [`NodeList::changed`] never wait.
//! - The end of corosync shows as an error of kind [`ErrorKind::Gone`]: drop all values and join again.
//! - Corosync knows a member by node and process id: a process can be in one group only once.
//!
//! Must never log, print, retry, or depend on another crate of this project.
#![allow(unsafe_code)] // Calls into C: this crate exists so that no other one needs them.

mod error;
mod group;
mod nodes;
mod sys;

pub use error::{Error, ErrorKind};
// `Event`, `Group`, `Reason` and `Sent` are the names at call sites that have not switched yet.
pub use group::{
    ChangeReason, ChangeReason as Reason, GroupEvent, GroupEvent as Event, Member, ProcessGroup,
    ProcessGroup as Group, SendResult, SendResult as Sent,
};
pub use nodes::{Node, NodeList};
