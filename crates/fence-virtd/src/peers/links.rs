// SPDX-License-Identifier: GPL-2.0-or-later
//! The ways to other hosts: the multicast groups of the listeners, and sockets of `peer_port`.
//!
//! Owns the sockets that send. Whatever goes to the group goes by the interfaces that joined it, and by no
//! other. Must never read a message.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use fence_net::{JoinedInterface, MulticastSender};
use fence_wire::{HOST_MESSAGE_LEN, MULTICAST_TTL, escaped};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tracing::debug;

use super::settings::PeerError;
use crate::util::locks::{Mutex, lock};

/// The multicast group of a listener, as long as the listener is there.
#[derive(Debug)]
pub(crate) struct GroupLink {
    pub(crate) group: IpAddr,
    pub(crate) port: u16,
    /// The interface of the configuration; none for all interfaces.
    pub(crate) only: Option<String>,
    /// The interfaces that joined, shared with the listener, which follows their changes.
    pub(crate) joined: Arc<Mutex<Vec<JoinedInterface>>>,
}

impl GroupLink {
    /// Returns address, port and interface of the group, as the configuration has them.
    pub(super) fn place(&self) -> (IpAddr, u16, Option<&str>) {
        (self.group, self.port, self.only.as_deref())
    }

    /// Sends messages to the group by each interface that joined it. Waits for nothing.
    pub(super) fn send(&self, messages: &[[u8; HOST_MESSAGE_LEN]]) {
        let joined = lock(&self.joined).clone();
        let interfaces = match fence_net::interfaces() {
            Ok(interfaces) => interfaces,
            Err(error) => return debug!("can't list the interfaces for messages to other hosts: {error}"),
        };
        for interface in &interfaces {
            if !joined.iter().any(|it| it.index == interface.index && it.name == interface.name) {
                continue;
            }
            let source = interface.addresses.iter().find(|it| it.ip.is_ipv4() == self.group.is_ipv4());
            let Some(source) = source else { continue };
            let sent = MulticastSender::open(*source, interface.index, self.group, self.port, MULTICAST_TTL)
                .and_then(|it| messages.iter().try_for_each(|message| it.send(message)));
            if let Err(error) = sent {
                debug!(interface = %escaped(&interface.name), "can't send to other hosts: {error}");
            }
        }
    }
}

/// Sockets for the hosts of `peers`, one for each family that they have.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerSockets(Vec<Arc<UdpSocket>>);

impl PeerSockets {
    /// Opens the sockets at this port. Must run inside the runtime.
    pub(super) fn open(peers: &[SocketAddr], port: u16) -> Result<Self, PeerError> {
        let mut sockets = Vec::new();
        for is_v4 in [true, false] {
            if peers.iter().any(|it| it.is_ipv4() == is_v4) {
                let socket = open(is_v4, port).map_err(|source| PeerError::Socket { port, source })?;
                sockets.push(Arc::new(socket));
            }
        }
        Ok(Self(sockets))
    }

    /// Opens the sockets of a process that asks beside the daemon: at this port if nobody has it, else at
    /// any. Must run inside the runtime.
    pub(super) fn beside(peers: &[SocketAddr], port: u16) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for is_v4 in [true, false] {
            if peers.iter().any(|it| it.is_ipv4() == is_v4) {
                let socket = open_alone(is_v4, port).or_else(|_| open_alone(is_v4, 0))?;
                sockets.push(Arc::new(socket));
            }
        }
        Ok(Self(sockets))
    }

    pub(super) fn all(&self) -> &[Arc<UdpSocket>] {
        &self.0
    }

    /// Sends messages to one host. Waits for nothing: a full buffer loses them, and they are repeated.
    pub(super) fn send(&self, to: SocketAddr, messages: &[[u8; HOST_MESSAGE_LEN]]) {
        let has_family =
            |it: &&Arc<UdpSocket>| it.local_addr().is_ok_and(|local| local.is_ipv4() == to.is_ipv4());
        let Some(socket) = self.0.iter().find(has_family) else { return };
        for message in messages {
            if let Err(error) = socket.try_send_to(message, to) {
                debug!(host = %to, "can't send to another host: {error}");
            }
        }
    }
}

/// Opens a socket for unicast datagrams. The multicast listener has the same port at its group: the group's
/// datagrams must not arrive here too.
fn open(is_v4: bool, port: u16) -> io::Result<UdpSocket> {
    let socket = new_socket(is_v4)?;
    socket.set_reuse_address(true)?;
    bound(socket, is_v4, port)
}

/// Opens a socket at a port that nobody has. A daemon that starts meanwhile gets the port all the same.
fn open_alone(is_v4: bool, port: u16) -> io::Result<UdpSocket> {
    let socket = bound(new_socket(is_v4)?, is_v4, port)?;
    socket2::SockRef::from(&socket).set_reuse_address(true)?;
    Ok(socket)
}

fn new_socket(is_v4: bool) -> io::Result<Socket> {
    let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
}

fn bound(socket: Socket, is_v4: bool, port: u16) -> io::Result<UdpSocket> {
    let any: IpAddr = if is_v4 {
        socket.set_multicast_all_v4(false)?;
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        socket.set_only_v6(true)?;
        socket.set_multicast_all_v6(false)?;
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    UdpSocket::from_std(socket.into())
}

/// Way by which a message came, and by which the answer goes.
#[derive(Clone, Debug)]
pub(super) enum MessageWay {
    Group,
    Unicast(SocketAddr),
}
