// SPDX-License-Identifier: GPL-2.0-or-later
//! vsock: a guest's way to its host without a network.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// Connects to `port` of the machine with this context id, within the time; the stream is blocking.
///
/// # Errors
/// What the kernel says: `EAFNOSUPPORT` or `ENODEV` where there is no vsock, `ECONNRESET` where nobody listens,
/// `TimedOut`.
pub fn vsock_connect(cid: u32, port: u32, within: Duration) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::vsock(cid, port), within)?;
    Ok(socket.into())
}
