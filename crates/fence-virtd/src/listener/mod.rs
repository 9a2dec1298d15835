// SPDX-License-Identifier: GPL-2.0-or-later
//! The listeners: multicast, TCP, vsock and serial, and what they share.
//!
//! A listener owns its sockets and speaks its transport; the conversation with a client is the same for TCP,
//! vsock and multicast. One task for each listener, one for each request. A listener must never look for a
//! domain or change its power: that is the service's.

use crate::listener::keys::KeysError;

pub(crate) mod admission;
pub(crate) mod auth;
pub(crate) mod conversation;
pub(crate) mod kept;
mod key_search;
pub(crate) mod keys;
pub(crate) mod limits;
pub(crate) mod manager;
pub(crate) mod multicast;
pub(crate) mod rules;
#[cfg(feature = "libvirt")]
pub(crate) mod serial;
#[cfg(not(feature = "libvirt"))]
#[path = "serial_absent.rs"]
pub(crate) mod serial;
pub(crate) mod sources;
mod stream;
pub(crate) mod tcp;
pub(crate) mod vsock;

/// Reason why a listener can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Key(#[from] KeysError),
    /// A socket, or the network interface for it.
    #[error("{0}")]
    Socket(String),
    /// A port that has another socket.
    #[error("{0}")]
    InUse(String),
    /// The hypervisor whose domains a serial listener serves.
    #[error("{0}")]
    Serial(String),
}
