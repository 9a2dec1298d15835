// SPDX-License-Identifier: GPL-2.0-or-later
//! One question to the host, by the plan's transport.

use fence_cli::key_file::{self, KeyFileError};
use fence_wire::Key;

use crate::answer::Answer;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::plan::{Plan, Transport};
use crate::{confine, line, multicast, tcp, vsock, words};

/// Asks the host, by the plan's transport; each is one function with the same shape.
pub(crate) fn ask(plan: &Plan, console: &Console) -> Result<Answer, Failure> {
    let deadline = Deadline::after(plan.delay + plan.timeout);
    let key = load_key(plan)?;
    let key = key.as_ref();
    if plan.debug > 0 && key.is_some() {
        // Slow to make, so only for those who look at it.
        console.debug(&words::key_in_words(plan, key));
    }
    // A serial device may be named by a descriptor that was handed to us.
    if !matches!(plan.transport, Transport::Serial { .. }) {
        confine::close_inherited();
    }
    std::thread::sleep(plan.delay);
    match &plan.transport {
        Transport::Multicast(to) => Ok(multicast::ask(plan, *to, key, deadline, console)?),
        Transport::Tcp(to) => Ok(tcp::ask(plan, *to, key, deadline, console)?),
        Transport::Vsock { cid, port } => Ok(vsock::ask(plan, (*cid, *port), key, deadline, console)?),
        Transport::Serial { device, format } => {
            Ok(line::ask_device(plan, device, *format, deadline, console)?)
        }
        Transport::Channel(to) => Ok(line::ask_channel(plan, *to, deadline, console)?),
    }
}

/// The key, unless the plan asks by name to do without.
pub(crate) fn load_key(plan: &Plan) -> Result<Option<Key>, KeyFileError> {
    if plan.needs_key() { key_file::load(&plan.key_file).map(Some) } else { Ok(None) }
}
