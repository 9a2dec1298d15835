// SPDX-License-Identifier: GPL-2.0-or-later
//! Asking a host by TCP.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use fence_sandbox::Tcp;
use fence_wire::Key;

use crate::answer::Answer;
use crate::confine::confine;
use crate::connection::Wire;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::plan::Plan;
use crate::stream::{self, Host, StreamFailure};

/// Asks the host at `to`.
pub(crate) fn ask(
    plan: &Plan,
    to: SocketAddr,
    key: Option<&Key>,
    deadline: Deadline,
    console: &Console,
) -> Result<Answer, Box<StreamFailure>> {
    confine(Tcp::To(to.port()), console);
    stream::ask(plan, Host::Tcp(to), key, deadline, |within| {
        let wire = connect(to, within)?;
        console.debug(&format_args!("connected to {to}"));
        Ok(wire)
    })
}

/// A connection to the host.
pub(crate) fn connect(to: SocketAddr, within: Duration) -> io::Result<Wire> {
    let stream = TcpStream::connect_timeout(&to, within)?;
    let _ = stream.set_nodelay(true);
    Wire::new(stream)
}
