// SPDX-License-Identifier: GPL-2.0-or-later
//! A request to the host over vsock.
//!
//! Owns the connection. Runs on the agent's only thread. Must never open a TCP connection.

use fence_net::vsock_connect;
use fence_sandbox::Tcp;
use fence_wire::Key;

use crate::answer::HostAnswer;
use crate::confine::confine;
use crate::connection::HostConnection;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::plan::RequestPlan;
use crate::stream::{self, HostAddress, StreamFailure, StreamTries};

/// Asks the machine with this context id.
pub(crate) fn ask(
    plan: &RequestPlan,
    (cid, port): (u32, u16),
    key: Option<&Key>,
    deadline: Deadline,
    tries: StreamTries<'_>,
    console: &Console,
) -> Result<HostAnswer, Box<StreamFailure>> {
    let port = u32::from(port);
    confine(Tcp::None, console);
    stream::ask(plan, HostAddress::Vsock { cid, port }, key, deadline, tries, |within| {
        let stream = vsock_connect(cid, port, within)?;
        console.debug(&format_args!("connected to vsock CID {cid} port {port}"));
        HostConnection::new(stream)
    })
}
