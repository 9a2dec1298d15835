// SPDX-License-Identifier: GPL-2.0-or-later
//! The only door to corosync.
//!
//! What it offers: [`Group`], a process group of corosync (CPG, agreed order) that this process is a member
//! of: its messages, who comes and goes, and which nodes corosync itself hears; and [`NodeList`], the nodes
//! that corosync.conf names. All of it is safe and silent: every failure goes to the caller as an [`Error`].
//!
//! Rules for the caller
//! - A thread of its own for a [`Group`] and a [`NodeList`], with a stack of at least 2 MiB (libcpg puts a
//!   message of 1 MiB on it): joining, leaving, dropping and asking for nodes wait for corosync, without
//!   limit where corosync is stopped (`SIGSTOP`). [`Group::dispatch`], [`Group::send`] and
//!   [`NodeList::changed`] never wait.
//! - Corosync that ended is seen as an error of kind [`ErrorKind::Gone`]: drop what there is and join again.
//! - Corosync knows a member by node and process id: a process can be in one group only once.
//!
//! It must never log, print, retry, or depend on another crate of this project.
#![allow(unsafe_code)] // Calls into C: this crate exists so that no other one needs them.

mod error;
mod group;
mod nodes;
mod sys;

pub use error::{Error, ErrorKind};
pub use group::{Event, Group, Member, Reason, Sent};
pub use nodes::{Node, NodeList};
