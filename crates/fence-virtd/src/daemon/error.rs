// SPDX-License-Identifier: GPL-2.0-or-later
//! The reasons why the daemon does not serve. Owns their texts, which say what to look at.

use super::address_space::TooLittleMemory;
use super::pid_file::PidFileError;
use crate::listener::manager::ListenerError;
use crate::peers::PeerError;

/// Reason why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum DaemonError {
    #[error("can't read {path}: {source}; -f names another file")]
    Config { path: String, source: std::io::Error },
    #[error("{0} has errors, see above")]
    BadConfig(String),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    Memory(#[from] TooLittleMemory),
    #[error(transparent)]
    Peers(#[from] PeerError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error("backend libvirt: {0}; -w waits for it; fence_virtd --check says more")]
    Backend(String),
    #[error("no random bytes: {0}")]
    Random(#[from] rand::rngs::SysError),
    #[error("{0}")]
    System(#[from] std::io::Error),
    #[error("{what} \"{name}\" is not part of this version")]
    Missing { what: &'static str, name: String },
}
