// SPDX-License-Identifier: GPL-2.0-or-later
//! One request to the host, on the plan's transport.
//!
//! Owns the order of the steps: key, descriptors, delay, request. Runs on the agent's only thread until the
//! deadline. Must never send anything before the key is loaded.

use fence_cli::key_file::{self, KeyFileError, KeyRule};
use fence_wire::Key;

use crate::answer::HostAnswer;
use crate::attempts::HostFailure;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::failure::ClientFailure;
use crate::plan::{RequestPlan, Transport};
use crate::stream::StreamTries;
use crate::{confine, line, multicast, tcp, vsock, words};

/// Asks the host on the plan's transport. Returns the hosts that answered with a failure as well, where there
/// may be several.
pub(crate) fn ask(
    plan: &RequestPlan,
    console: &Console,
) -> Result<(HostAnswer, Vec<HostFailure>), ClientFailure> {
    let deadline = Deadline::after(plan.delay + plan.timeout);
    let key = load_key(plan, console)?;
    let key = key.as_ref();
    if plan.debug > 0 && key.is_some() {
        // The fingerprint takes time, so it is made only where it is shown.
        console.debug(&words::describe_key(plan, key));
    }
    // A serial device may be the name of an inherited descriptor.
    if !matches!(plan.transport, Transport::Serial { .. }) {
        confine::close_inherited();
    }
    std::thread::sleep(plan.delay);
    let answer = match &plan.transport {
        Transport::Multicast(to) => return Ok(multicast::ask(plan, *to, key, deadline, console)?),
        Transport::Tcp(to) => {
            let addresses = tcp::resolve(plan, to, key, deadline)?;
            tcp::ask(plan, to, &addresses, key, deadline, StreamTries::Several(console), console)?
        }
        Transport::Vsock { cid, port } => {
            vsock::ask(plan, (*cid, *port), key, deadline, StreamTries::Several(console), console)?
        }
        Transport::Serial { device, format } => line::ask_device(plan, device, *format, deadline, console)?,
        Transport::Channel(to) => line::ask_channel(plan, *to, deadline, console)?,
    };
    Ok((answer, Vec::new()))
}

/// Loads the key, unless the plan says by name that none is wanted. Warns of a key that every user can read.
pub(crate) fn load_key(plan: &RequestPlan, console: &Console) -> Result<Option<Key>, KeyFileError> {
    if !plan.needs_key() {
        return Ok(None);
    }
    let loaded = key_file::load(&plan.key_file, KeyRule::WarnOfExposed)?;
    if let Some(exposed) = &loaded.exposed {
        console.say(&format_args!("warning: {exposed}"));
    }
    Ok(Some(loaded.key))
}
