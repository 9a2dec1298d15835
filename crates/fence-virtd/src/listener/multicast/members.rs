// SPDX-License-Identifier: GPL-2.0-or-later
//! Membership in the multicast group, maintained while network interfaces appear and disappear.
//!
//! A membership ends with its interface. A bridge that is made anew under the same name is another interface
//! to the kernel: without a new membership no request would arrive by it, silently and for ever. Runs on the
//! listener's task, and wakes up only when the kernel reports a change.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fence_net::{Interface, JoinedInterface, LinkWatch};
use fence_wire::escaped;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tracing::{info, warn};

use crate::listener::limits::INTERFACES_SETTLE;
use crate::peers::Peers;
use crate::util::locks::lock;

/// Pause after a failure, so that one that repeats takes no processor.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// The group, and the interfaces that joined it.
pub(super) struct GroupMembership {
    pub(super) watch: AsyncFd<LinkWatch>,
    pub(super) group: IpAddr,
    /// The interface of the configuration; none for all interfaces.
    pub(super) only: Option<String>,
    pub(super) joined: Arc<Mutex<Vec<JoinedInterface>>>,
    pub(super) peers: Arc<Peers>,
}

impl GroupMembership {
    /// Opens the watch for changes. Must run inside the runtime, and before the interfaces are listed, so
    /// that no change is missed.
    #[expect(
        deprecated,
        reason = "what replaces it is an unsafe function; a LinkWatch keeps its one descriptor"
    )]
    pub(super) fn watch() -> io::Result<AsyncFd<LinkWatch>> {
        LinkWatch::open().and_then(AsyncFd::new)
    }

    /// Follows the interfaces for ever.
    pub(super) async fn keep(&self, socket: &UdpSocket) {
        // A failure to join is logged once for each interface, not with every change.
        let mut failed = Vec::new();
        loop {
            if let Err(error) = self.changed().await {
                warn!("can't watch the network interfaces: {error}");
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
            match fence_net::interfaces().and_then(|all| Ok((all, fence_net::ports()?))) {
                Ok((interfaces, ports)) => self.follow(socket, &interfaces, &ports, &mut failed),
                Err(error) => warn!("can't list the network interfaces: {error}"),
            }
        }
    }

    /// Waits for a change and for further changes right after it.
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

    /// Leaves interfaces that are gone or became ports of a bridge, and joins new ones.
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
                // The kernel has ended the membership; this frees its entry in the socket.
                let _ = fence_net::leave(socket, group, it.index);
                warn!(
                    interface = %escaped(&it.name), %group,
                    "the interface is gone; no requests are heard by it"
                );
                return false;
            }
            // A tap device that was joined before it became the port of a bridge.
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
                    info!(
                        interface = %escaped(name), %group,
                        "requests are heard by this interface from now on"
                    );
                    joined.push(JoinedInterface { index: *index, name: name.clone() });
                    // Others may be there.
                    self.peers.say_hello_soon();
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
