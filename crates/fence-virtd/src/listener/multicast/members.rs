// SPDX-License-Identifier: GPL-2.0-or-later
//! Membership in the multicast group, kept up while interfaces come and go.
//!
//! A membership ends with its interface, and a bridge that is made again under the same name is another interface
//! to the kernel: nothing would be heard by it, for ever and silently. Part of the listener's task; it wakes up only
//! when the kernel says that something changed.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use fence_net::{Interface, JoinedInterface, LinkWatch};
use fence_wire::escaped;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tracing::{info, warn};

use crate::listener::limits::INTERFACES_SETTLE;
use crate::util::locks::lock;

/// The pause after a failure that should not be.
const BREATH: Duration = Duration::from_secs(1);

/// The group and by which interfaces it is heard.
pub(super) struct GroupMembership {
    pub(super) watch: AsyncFd<LinkWatch>,
    pub(super) group: IpAddr,
    /// The one interface of the configuration; none: all.
    pub(super) only: Option<String>,
    pub(super) joined: Mutex<Vec<JoinedInterface>>,
}

impl GroupMembership {
    /// Must run inside the runtime, and before the interfaces are looked at, so that no change falls between.
    #[expect(
        deprecated,
        reason = "what replaces it is an unsafe function; a LinkWatch keeps its one descriptor"
    )]
    pub(super) fn watch() -> io::Result<AsyncFd<LinkWatch>> {
        LinkWatch::open().and_then(AsyncFd::new)
    }

    /// Follows the interfaces for ever.
    pub(super) async fn keep(&self, socket: &UdpSocket) {
        // What could not be joined is said once, not with every change.
        let mut failed = Vec::new();
        loop {
            if let Err(error) = self.changed().await {
                warn!("can't watch the network interfaces: {error}");
                tokio::time::sleep(BREATH).await;
            }
            match fence_net::interfaces().and_then(|all| Ok((all, fence_net::ports()?))) {
                Ok((interfaces, ports)) => self.follow(socket, &interfaces, &ports, &mut failed),
                Err(error) => warn!("can't list the network interfaces: {error}"),
            }
        }
    }

    /// Waits for a change and for the rest of it.
    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.watch.readable().await?;
            let changed = ready.get_inner().changed();
            ready.clear_ready();
            if changed? {
                tokio::time::sleep(INTERFACES_SETTLE).await;
                return self.watch.get_ref().changed().map(drop);
            }
        }
    }

    fn follow(
        &self,
        socket: &UdpSocket,
        interfaces: &[Interface],
        ports: &HashSet<u32>,
        failed: &mut Vec<u32>,
    ) {
        let mut joined = lock(&self.joined);
        let group = self.group;
        joined.retain(|it| {
            let is_there = interfaces.iter().any(|now| now.index == it.index && now.name == it.name);
            if !is_there {
                // The kernel has ended the membership; this frees its place in the socket.
                let _ = fence_net::leave(socket, group, it.index);
                warn!(interface = %escaped(&it.name), %group, "the interface is gone; no requests are heard by it");
                return false;
            }
            // A tap that was seen before its bridge got it.
            let is_port = self.only.is_none() && ports.contains(&it.index);
            if is_port {
                let _ = fence_net::leave(socket, group, it.index);
            }
            !is_port
        });
        failed.retain(|it| interfaces.iter().any(|now| now.index == *it));
        for interface in interfaces {
            let Interface { name, index, .. } = interface;
            let wanted = match &self.only {
                Some(only) => only == name,
                None => interface.takes_multicast() && !ports.contains(index),
            };
            if !wanted || joined.iter().any(|it| it.index == *index) {
                continue;
            }
            match fence_net::join(socket, group, *index) {
                Ok(()) => {
                    info!(interface = %escaped(name), %group, "requests are heard by this interface from now on");
                    joined.push(JoinedInterface { index: *index, name: name.clone() });
                    failed.retain(|it| it != index);
                }
                Err(error) if !failed.contains(index) => {
                    warn!(interface = %escaped(name), %group, "can't hear multicast there: {error}");
                    failed.push(*index);
                }
                Err(_) => {}
            }
        }
    }
}
