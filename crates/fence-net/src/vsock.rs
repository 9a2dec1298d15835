// SPDX-License-Identifier: GPL-2.0-or-later
//! vsock: connections from a guest to its host without a network.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// Connects to `port` of the machine with this context id, within the given time. The stream is blocking.
///
/// # Errors
/// Error of the kernel: `EAFNOSUPPORT` or `ENODEV` without vsock, `ECONNRESET` without a listener,
/// `TimedOut`.
pub fn vsock_connect(cid: u32, port: u32, within: Duration) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::vsock(cid, port), within)?;
    Ok(socket.into())
}
