// SPDX-License-Identifier: GPL-2.0-or-later
//! Asking the host by vsock.

use fence_net::vsock_connect;
use fence_sandbox::Tcp;
use fence_wire::Key;

use crate::answer::Answer;
use crate::confine::confine;
use crate::connection::Wire;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::plan::Plan;
use crate::stream::{self, Host, StreamFailure};

/// Asks the machine with this context id.
pub(crate) fn ask(
    plan: &Plan,
    (cid, port): (u32, u16),
    key: Option<&Key>,
    deadline: Deadline,
    console: &Console,
) -> Result<Answer, Box<StreamFailure>> {
    let port = u32::from(port);
    confine(Tcp::None, console);
    stream::ask(plan, Host::Vsock { cid, port }, key, deadline, |within| {
        let stream = vsock_connect(cid, port, within)?;
        console.debug(&format_args!("connected to vsock CID {cid} port {port}"));
        Wire::new(stream)
    })
}
