// SPDX-License-Identifier: GPL-2.0-or-later
//! The ways in. A listener owns its sockets, speaks its transport, and knows nothing of domains.

use crate::listener::keys::KeysError;

pub(crate) mod admission;
pub(crate) mod conversation;
pub(crate) mod keys;
pub(crate) mod limits;
pub(crate) mod manager;
pub(crate) mod multicast;
pub(crate) mod rules;
#[cfg(feature = "libvirt")]
pub(crate) mod serial;
pub(crate) mod sources;
mod stream;
pub(crate) mod tcp;
pub(crate) mod vsock;

/// Why a listener can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Key(#[from] KeysError),
    #[error("{0}")]
    Socket(String),
    #[cfg(feature = "libvirt")]
    #[error("{0}; -w waits for it")]
    Hypervisor(String),
    #[cfg(not(feature = "libvirt"))]
    #[error("is not part of this build: it needs libvirt")]
    Missing,
}
