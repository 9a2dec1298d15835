// SPDX-License-Identifier: GPL-2.0-or-later
//! TCP sockets for the call-back.
//!
//! Owns the listener's options. Must never share its port with another listener.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use fence_wire::Family;
use socket2::{Domain, Protocol, Socket, Type};

/// Opens a client's listener for the call-back: `port` (0: any free one) on all addresses of the family.
///
/// # Errors
/// Error of the kernel; `AddrInUse` when another program listens there. Connections of earlier runs in
/// TIME-WAIT do not matter.
pub fn call_back_listener(family: Family, port: u16) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 1024;
    let (domain, any): (_, SocketAddr) = match family {
        Family::V4 => (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()),
        Family::V6 => (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()),
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&any.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_listener() {
        let first = call_back_listener(Family::V4, 0).unwrap();
        let port = first.local_addr().unwrap().port();
        assert_eq!(call_back_listener(Family::V4, port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        // Another program may have taken the port in between.
        let again = call_back_listener(Family::V4, port);
        assert!(again.is_ok() || TcpListener::bind(("0.0.0.0", port)).is_err());
    }

    #[test]
    fn families_do_not_meet() {
        // Another program may have just this port of the other family, but not one after the other.
        assert!((0..20).any(|_| {
            let Ok(first) = call_back_listener(Family::V6, 0) else {
                return true; // A kernel without IPv6.
            };
            let port = first.local_addr().unwrap().port();
            call_back_listener(Family::V4, port).is_ok()
        }));
    }
}
