// SPDX-License-Identifier: GPL-2.0-or-later
//! Multicast sockets: the listener of the host and the sender of the client.
//!
//! Owns the options of both sockets and the joining of interfaces. Must never read a datagram's content.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use crate::interface::{InterfaceAddress, interfaces};
use crate::ports::ports;

/// Interfaces by which a listener receives its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MulticastScope {
    /// All interfaces that are up and do multicast, loopback too. Ports of bridges and the like are left out:
    /// their packets arrive at the bridge, and there is room for only 20 memberships
    /// (net.ipv4.igmp_max_memberships).
    All,
    /// The interface with this index.
    Interface(u32),
}

/// Socket that receives a multicast group.
#[derive(Debug)]
pub struct MulticastListener {
    /// The socket, blocking. It receives only datagrams to the group, and only by joined interfaces. (With an
    /// IPv6 link-local group it also receives unicast datagrams to the port: the kernel cannot bind to such a
    /// group on more than one interface.)
    pub socket: UdpSocket,
    /// Interfaces that joined the group.
    pub joined: Vec<JoinedInterface>,
    /// With [`MulticastScope::All`]: interfaces that should have joined the group and could not.
    pub failed: Vec<FailedInterface>,
}

/// Interface that joined the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinedInterface {
    /// Index of the interface.
    pub index: u32,
    /// Name of the interface.
    pub name: String,
}

/// Interface that could not join the group.
#[derive(Debug)]
pub struct FailedInterface {
    /// Index of the interface.
    pub index: u32,
    /// Name of the interface.
    pub name: String,
    /// Error of the kernel.
    pub error: io::Error,
}

/// Opens a socket that receives `group` at `port`.
///
/// Several sockets on one machine may receive the same group and port; each gets every datagram.
///
/// # Errors
/// `InvalidInput` for a `group` that is no multicast address. `NotFound` when [`MulticastScope::All`] finds
/// no interface to join, or when no interface has the index. Otherwise the kernel's error of socket, bind or
/// join.
pub fn multicast_listener(group: IpAddr, port: u16, scope: MulticastScope) -> io::Result<MulticastListener> {
    require_multicast(group)?;
    let (socket, local) = match group {
        IpAddr::V4(v4) => {
            let socket = udp(Domain::IPV4)?;
            // Without this option the socket gets the datagrams of every membership on the machine.
            socket.set_multicast_all_v4(false)?;
            (socket, SocketAddr::from((v4, port)))
        }
        IpAddr::V6(v6) => {
            let socket = udp(Domain::IPV6)?;
            socket.set_only_v6(true)?;
            socket.set_multicast_all_v6(false)?;
            let local = if needs_scope(v6) { Ipv6Addr::UNSPECIFIED } else { v6 };
            (socket, SocketAddr::from((local, port)))
        }
    };
    let (mut joined, mut failed) = (Vec::new(), Vec::new());
    let ports = if scope == MulticastScope::All { ports()? } else { HashSet::new() };
    for interface in interfaces()? {
        let (index, name) = (interface.index, interface.name.clone());
        match scope {
            MulticastScope::Interface(wanted) if wanted != index => {}
            MulticastScope::All if !interface.takes_multicast() || ports.contains(&index) => {}
            _ => match join(&socket, group, index) {
                Ok(()) => joined.push(JoinedInterface { index, name }),
                Err(error) if scope == MulticastScope::All => {
                    failed.push(FailedInterface { index, name, error });
                }
                Err(error) => return Err(error),
            },
        }
    }
    if joined.is_empty() {
        return Err(failed.pop().map_or_else(
            || io::Error::new(io::ErrorKind::NotFound, "no interface to hear the multicast group by"),
            |f| f.error,
        ));
    }
    // Bind last: a caller that sees the port bound can rely on the memberships.
    socket.bind(&local.into())?;
    Ok(MulticastListener { socket: UdpSocket::from(socket), joined, failed })
}

/// Joins `group` on the interface with this index. Joining it again is no error.
///
/// # Errors
/// Error of the kernel; `NoSuchDevice` (`ENODEV`) when no interface has the index.
pub fn join(socket: &impl AsFd, group: IpAddr, index: u32) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    let result = match group {
        IpAddr::V4(v4) => socket.join_multicast_v4_n(&v4, &InterfaceIndexOrAddress::Index(index)),
        IpAddr::V6(v6) => socket.join_multicast_v6(&v6, index),
    };
    match result {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(()),
        other => other,
    }
}

/// Leaves a group after [`join`]. A membership also ends when its interface goes away, but the socket keeps a
/// dead entry for it (of at most 20, net.ipv4.igmp_max_memberships) until this call.
///
/// # Errors
/// Error of the kernel; `AddrNotAvailable` when there is no such membership.
pub fn leave(socket: &impl AsFd, group: IpAddr, index: u32) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    match group {
        IpAddr::V4(v4) => socket.leave_multicast_v4_n(&v4, &InterfaceIndexOrAddress::Index(index)),
        IpAddr::V6(v6) => socket.leave_multicast_v6(&v6, index),
    }
}

/// Socket that sends to a multicast group from one address.
#[derive(Debug)]
pub struct MulticastSender {
    socket: UdpSocket,
    group: SocketAddr,
}

impl MulticastSender {
    /// Opens a sender from `source`, an address of the interface `index`, by that interface, `ttl` hops far.
    /// Listeners on this machine receive its datagrams too.
    ///
    /// # Errors
    /// `InvalidInput` for a `group` that is no multicast address, or a source of the other family. Otherwise
    /// the kernel's error of socket, bind or an option.
    pub fn open(
        source: InterfaceAddress,
        index: u32,
        group: IpAddr,
        port: u16,
        ttl: u32,
    ) -> io::Result<Self> {
        require_multicast(group)?;
        let (socket, group) = match (source.ip, group) {
            (IpAddr::V4(source), IpAddr::V4(group)) => {
                let socket = udp(Domain::IPV4)?;
                socket.set_multicast_if_v4(&source)?;
                socket.set_multicast_ttl_v4(ttl)?;
                socket.set_multicast_loop_v4(true)?;
                socket.bind(&SocketAddr::from((source, 0)).into())?;
                (socket, SocketAddr::from((group, port)))
            }
            (IpAddr::V6(ip), IpAddr::V6(group)) => {
                let socket = udp(Domain::IPV6)?;
                socket.set_only_v6(true)?;
                socket.set_multicast_if_v6(index)?;
                socket.set_multicast_hops_v6(ttl)?;
                socket.set_multicast_loop_v6(true)?;
                socket.bind(&SocketAddr::from(SocketAddrV6::new(ip, 0, 0, source.scope)).into())?;
                let scope = if needs_scope(group) { index } else { 0 };
                (socket, SocketAddr::from(SocketAddrV6::new(group, port, 0, scope)))
            }
            _ => return Err(invalid("source address and multicast group are of different families")),
        };
        Ok(Self { socket: socket.into(), group })
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// Error of the kernel.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, self.group).map(drop)
    }
}

fn udp(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn require_multicast(group: IpAddr) -> io::Result<()> {
    if group.is_multicast() { Ok(()) } else { Err(invalid("not a multicast address")) }
}

/// Returns whether a group needs an interface to have a meaning: interface-local (ff01::) and link-local
/// (ff02::).
fn needs_scope(group: Ipv6Addr) -> bool {
    matches!(group.octets()[1] & 0x0f, 1 | 2)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn only_multicast_addresses_are_groups() {
        let unicast = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let error = multicast_listener(unicast, 0, MulticastScope::All).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let source = InterfaceAddress { ip: unicast, scope: 0 };
        let error = MulticastSender::open(source, 1, unicast, 9, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn families_must_agree() {
        let source = InterfaceAddress { ip: Ipv4Addr::LOCALHOST.into(), scope: 0 };
        let group = "ff05::3:1".parse().unwrap();
        let error = MulticastSender::open(source, 1, group, 9, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
