// SPDX-License-Identifier: GPL-2.0-or-later
//! The task of a run, checked.
//!
//! Owns nothing, values only. Must never hold a value that cannot be carried out.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fence_net::{Family, LineFormat};
use fence_wire::{Action, ClientAuth, HashType, Key, REQUEST_LEN, Request, SentRequests, Target};

use crate::host::TcpHost;

/// Task of a run.
#[derive(Debug)]
pub enum ClientTask {
    /// Show the help.
    Help,
    /// Show the version.
    Version,
    /// Show the metadata.
    Metadata,
    /// Check the options, and ask no host.
    Validate(RequestPlan),
    /// Ask the host.
    Ask(RequestPlan),
    /// Ask the host for something harmless, and find out why no answer comes.
    Diagnose(RequestPlan),
}

/// Request and its transport.
#[derive(Clone, Debug)]
pub struct RequestPlan {
    /// Action that the host is asked for.
    pub action: Action,
    /// Domain of the request; none for actions that need none.
    pub target: Target,
    /// Time that the agent may take, without the delay.
    pub timeout: Duration,
    /// True if a question whose host works on it may take longer, since the user named no time.
    pub may_take_longer: bool,
    /// Time that the agent waits first; zero for actions that change nothing.
    pub delay: Duration,
    /// Hash of the request packet. A sealed hash also covers the challenge and the response.
    pub hash: HashType,
    /// Hash of the mutual challenge of classic requests; [`HashType::None`] for no challenge.
    pub auth: HashType,
    /// True if a host that fails is to say why. Only a sealed request can want that.
    pub wants_reason: bool,
    /// Action of which a sealed status asks what it would do. That action is never sent.
    pub dry_run: Option<Action>,
    /// Hash of the request of which a dry run asks: that of the cluster's own requests. Else [`Self::hash`].
    pub own_hash: HashType,
    /// Path of the key.
    pub key_file: PathBuf,
    /// True if the user named the key file.
    pub key_file_named: bool,
    /// Level of debug messages on standard error.
    pub debug: u32,
    /// Transport of the request.
    pub transport: Transport,
}

impl RequestPlan {
    /// Returns whether a key is needed. None is needed on lines, and where hash and challenge are both set to
    /// none.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        match self.transport {
            Transport::Multicast(_) | Transport::Tcp(_) | Transport::Vsock { .. } => {
                self.hash != HashType::None || self.auth != HashType::None
            }
            Transport::Serial { .. } | Transport::Channel(_) => false,
        }
    }

    /// Returns the status that is asked as the cluster asks, where a dry run is asked in another way: what
    /// a host says of a sealed question tells nothing about its taking a classic request.
    #[must_use]
    pub fn as_cluster_asks(&self) -> Option<Self> {
        (self.own_hash != self.hash).then(|| Self {
            hash: self.own_hash,
            dry_run: None,
            wants_reason: false,
            ..self.clone()
        })
    }

    /// Returns the proof that hosts must give. Every packet of [`RequestPlan::encode_packet`] must be added
    /// to it.
    #[must_use]
    pub fn client_auth<'k>(&self, key: Option<&'k Key>) -> ClientAuth<'k> {
        let Some(key) = key else { return ClientAuth::Open };
        match (self.hash.sealed(), self.auth.classic()) {
            (Some(hash), _) => ClientAuth::Sealed(SentRequests::new(hash), key),
            (None, Some(auth)) => ClientAuth::Classic(auth, key),
            (None, None) => ClientAuth::Open,
        }
    }

    /// Encodes a request, with the plan's hash.
    #[must_use]
    pub fn encode_packet(&self, request: &Request, key: Option<&Key>) -> [u8; REQUEST_LEN] {
        match (key, self.hash.sealed()) {
            (Some(key), Some(hash)) if let (Action::Status, Some(action)) = (self.action, self.dry_run) => {
                request.encode_dry_run(action, hash, key)
            }
            (Some(key), Some(hash)) if self.wants_reason => request.encode_wanting_reason(hash, key),
            (Some(key), _) => request.encode(self.hash, key),
            (None, _) => request.encode_unauthenticated(),
        }
    }
}

/// Transport of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Multicast request; the host calls back.
    Multicast(MulticastSettings),
    /// TCP connection to this host.
    Tcp(TcpHost),
    /// vsock connection.
    Vsock {
        /// Context id of the host.
        cid: u32,
        /// Port of the host.
        port: u16,
    },
    /// Serial line or virtio port.
    Serial {
        /// Device.
        device: PathBuf,
        /// Speed and format of a serial line.
        format: LineFormat,
    },
    /// VM channel: QEMU forwards this address to the host.
    Channel(SocketAddr),
}

/// Group and times of multicast requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MulticastSettings {
    /// Group of the hosts.
    pub group: IpAddr,
    /// Port of the group and of the call-back.
    pub port: u16,
    /// Time after which a request is sent again.
    pub retransmit: Duration,
    /// Quiet time: the wait for another host after a list or a failure.
    pub quiet: Duration,
}

impl MulticastSettings {
    /// Returns the address family of the group.
    #[must_use]
    pub fn family(&self) -> Family {
        if self.group.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}
