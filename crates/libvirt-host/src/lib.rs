// SPDX-License-Identifier: GPL-2.0-or-later
//! The only door to libvirt.
//!
//! Offers [`Connection`] (open, list, look up, define, watch), [`Domain`] (state, power, XML), [`Uuid`],
//! [`DomainState`], lifecycle events, and the notice of a lost connection. All of it is safe, blocking, and
//! silent: libvirt's own error printing is switched off, and every error goes to the caller as an [`Error`].
//!
//! Owns two threads for the life of the process, started by [`init`]. `libvirt-events` runs libvirt's event
//! loop (keepalive, lifecycle events, loss of connections). `libvirt-closer` does all that may block or may
//! not happen inside a call-back: closing connections and cancelling subscriptions. All else runs on the
//! caller's thread.
//!
//! Rules for the caller
//! - Calls block, and a blocked call can't be cancelled: make them on threads of their own, with a deadline
//!   outside. Against a hypervisor that stopped answering, keepalive ends a call (default: after 15 to 20 s,
//!   with [`ErrorKind::Connection`]); only [`Connection::open`] has nothing that ends it.
//! - One connection makes one call at a time; other threads wait their turn, behind a slow call too. So keep
//!   several connections per URI: they are cheap (about 1 ms to open) and independent. Why: libvirt's
//!   keepalive ends only one of several calls in progress on a connection that went silent.
//! - [`Connection`] and [`Domain`] have the calls that libvirtd answers from reserved workers. Those of
//!   [`OrdinaryConnection`] wait as long as all its ordinary workers are busy: nothing that a power-off needs
//!   may wait for one.
//! - Anything may be dropped on any thread, in call-backs too, and dropping never blocks.
//! - A program with threads of its own that come here ends by [`leave`], not by a return from `main`.
//!
//! Must never log, print, retry, or depend on another crate of this project.
#![allow(unsafe_code)] // Calls into C: this crate exists so that no other one needs them.

mod connection;
mod domain;
mod error;
mod event;
mod ordinary;
mod runtime;
mod uuid;

pub use connection::{Connection, DomainRecord, KeepAlive};
// `State` is the name at call sites that have not switched yet.
pub use domain::{Domain, DomainState, DomainState as State};
pub use error::{Error, ErrorKind};
pub use event::{CloseReason, EventSubscription, LifecycleEvent, LifecycleKind};
pub use ordinary::{OrdinaryConnection, OrdinaryDomain, XmlKind};
pub use runtime::{init, leave, share_memory_of_threads};
pub use uuid::{ParseUuidError, Uuid};
