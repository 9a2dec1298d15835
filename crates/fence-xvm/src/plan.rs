// SPDX-License-Identifier: GPL-2.0-or-later
//! What the user asked for, checked: a [`Plan`] has no value that cannot be carried out.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fence_net::{Family, LineFormat};
use fence_wire::{Action, ClientAuth, HashType, Key, REQUEST_LEN, Request, SentRequests, Target};

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Show the help.
    Help,
    /// Show the version.
    Version,
    /// Show the metadata.
    Metadata,
    /// Check the options and no more.
    Validate(Plan),
    /// Ask the host.
    Ask(Plan),
    /// Ask the host for something harmless, and find out why it does not answer.
    Diagnose(Plan),
}

/// A request and the way it goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the host is asked for.
    pub action: Action,
    /// The domain it is about; none for actions that need none.
    pub target: Target,
    /// How long the agent may take, the delay not counted.
    pub timeout: Duration,
    /// How long it waits first; zero for actions that change nothing.
    pub delay: Duration,
    /// The hash of the request packet; a sealed one is that of the challenge and the response too.
    pub hash: HashType,
    /// The hash of the mutual challenge of classic requests; [`HashType::None`] for no challenge.
    pub auth: HashType,
    /// Where the key is.
    pub key_file: PathBuf,
    /// Whether the user named the key file.
    pub key_file_named: bool,
    /// How much is said on standard error.
    pub debug: u32,
    /// The way to the host.
    pub transport: Transport,
}

impl Plan {
    /// Whether a key is needed: unless neither hash nor challenge is wanted, and both were refused by name.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        match self.transport {
            Transport::Multicast(_) | Transport::Tcp(_) | Transport::Vsock { .. } => {
                self.hash != HashType::None || self.auth != HashType::None
            }
            Transport::Serial { .. } | Transport::Channel(_) => false,
        }
    }

    /// How hosts are to prove themselves. What [`Plan::packet`] gives is to be added to it.
    #[must_use]
    pub fn auth_with<'k>(&self, key: Option<&'k Key>) -> ClientAuth<'k> {
        let Some(key) = key else { return ClientAuth::Open };
        match (self.hash.sealed(), self.auth.classic()) {
            (Some(hash), _) => ClientAuth::Sealed(SentRequests::new(hash), key),
            (None, Some(auth)) => ClientAuth::Classic(auth, key),
            (None, None) => ClientAuth::Open,
        }
    }

    /// The packet of a request, hashed as the plan says.
    #[must_use]
    pub fn packet(&self, request: &Request, key: Option<&Key>) -> [u8; REQUEST_LEN] {
        match key {
            Some(key) => request.encode(self.hash, key),
            None => request.encode_unauthenticated(),
        }
    }
}

/// The way to the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A multicast request; the host calls back.
    Multicast(Multicast),
    /// A TCP connection to this host.
    Tcp(SocketAddr),
    /// A vsock connection.
    Vsock {
        /// The host's context id.
        cid: u32,
        /// Its port.
        port: u16,
    },
    /// A serial line.
    Serial {
        /// Its device.
        device: PathBuf,
        /// Its speed and format.
        format: LineFormat,
    },
    /// A VM channel: QEMU forwards this address to it.
    Channel(SocketAddr),
}

/// Where multicast requests go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Multicast {
    /// The hosts' group.
    pub group: IpAddr,
    /// Its port, and the call-back's.
    pub port: u16,
    /// After what time a request is sent again.
    pub retransmit: Duration,
    /// How long another host is waited for after a list or a failure.
    pub quiet: Duration,
}

impl Multicast {
    /// The group's family.
    #[must_use]
    pub fn family(&self) -> Family {
        if self.group.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}
