// SPDX-License-Identifier: GPL-2.0-or-later
//! Observer of incoming TCP connections, before any firewall of this machine. Used by diagnosis only.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use fence_wire::Family;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// Packet socket that sees the TCP connections which other machines begin, allowed by this machine's firewall
/// or not. Needs root (CAP_NET_RAW). Non-blocking; packets that arrive faster than they are read are lost.
#[derive(Debug)]
pub struct CallWatch(Socket);

impl CallWatch {
    /// Starts to watch all interfaces.
    ///
    /// # Errors
    /// Error of the kernel: no permission, or no packet sockets.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::V4 => libc::ETH_P_IP,
            Family::V6 => libc::ETH_P_IPV6,
        };
        let protocol = i32::from(u16::try_from(protocol).unwrap_or_default().to_be());
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(protocol)))?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Returns the connections that began since the last call: address of the peer, and our port. Reads at
    /// most some thousand packets.
    pub fn calls(&self) -> Vec<(IpAddr, u16)> {
        const PACKETS: usize = 4096;
        let (mut calls, mut buffer) = (Vec::new(), [0; 256]);
        for _ in 0..PACKETS {
            match (&self.0).read(&mut buffer) {
                Ok(n) => calls.extend(call(&buffer[..n])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        calls
    }
}

impl AsFd for CallWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the peer and our port if a packet, from its IP header on, is the first of a TCP connection.
fn call(packet: &[u8]) -> Option<(IpAddr, u16)> {
    const TCP: u8 = 6;
    const SYN: u8 = 2;
    const ACK: u8 = 0x10;
    let version = packet.first()? >> 4;
    let (from, tcp): (IpAddr, _) = match version {
        4 if *packet.get(9)? == TCP => {
            let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (Ipv4Addr::from(from).into(), packet.get(usize::from(packet[0] & 15) * 4..)?)
        }
        6 if *packet.get(6)? == TCP => {
            let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (Ipv6Addr::from(from).into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes([*tcp.get(2)?, *tcp.get(3)?]);
    (tcp.get(13)? & (SYN | ACK) == SYN).then_some((from, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(flags: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x80, 0, 0x04, 0xcd, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet
    }

    #[test]
    fn the_first_packet_of_a_connection_counts_alone() {
        assert_eq!(call(&v4(2)), Some(([10, 0, 0, 1].into(), 1229)));
        // SYN with ECN bits counts too; an answer, data and an end do not.
        assert!(call(&v4(0xc2)).is_some());
        assert!([0x12, 0x10, 0x18, 0x11, 4].iter().all(|flags| call(&v4(*flags)).is_none()));
        let mut udp = v4(2);
        udp[9] = 17;
        assert_eq!(call(&udp), None);
    }

    #[test]
    fn cut_packets_are_ignored() {
        let whole = v4(2);
        assert!((0..34).all(|end| call(&whole[..end]).is_none()));
        let mut v6 = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(&whole[20..]);
        assert_eq!(call(&v6), Some((Ipv6Addr::LOCALHOST.into(), 1229)));
        assert!((0..54).all(|end| call(&v6[..end]).is_none()));
    }
}
