// SPDX-License-Identifier: GPL-2.0-or-later
//! A request to a host over TCP.
//!
//! Owns the connection. Runs on the agent's only thread. Must never connect to any other port than the
//! plan's.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use fence_sandbox::Tcp;
use fence_wire::Key;

use crate::answer::HostAnswer;
use crate::confine::confine;
use crate::connection::HostConnection;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::plan::RequestPlan;
use crate::stream::{self, HostAddress, StreamFailure};

/// Asks the host at `to`.
pub(crate) fn ask(
    plan: &RequestPlan,
    to: SocketAddr,
    key: Option<&Key>,
    deadline: Deadline,
    console: &Console,
) -> Result<HostAnswer, Box<StreamFailure>> {
    confine(Tcp::To(to.port()), console);
    stream::ask(plan, HostAddress::Tcp(to), key, deadline, |within| {
        let connection = connect(to, within)?;
        console.debug(&format_args!("connected to {to}"));
        Ok(connection)
    })
}

/// Connects to the host.
pub(crate) fn connect(to: SocketAddr, within: Duration) -> io::Result<HostConnection> {
    let stream = TcpStream::connect_timeout(&to, within)?;
    let _ = stream.set_nodelay(true);
    HostConnection::new(stream)
}
