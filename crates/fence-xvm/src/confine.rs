// SPDX-License-Identifier: GPL-2.0-or-later
//! Confinement of the agent before it talks to a host. The agent often runs as root, and anybody may call
//! back.
//!
//! Owns nothing. Runs once, on the agent's only thread, after the key is read, the port or line reserved and
//! its record opened. From then on an exchange needs open files and sockets alone: no capability, no file, no
//! other program, no TCP connection but the one that it is about to open. Must never keep a node from being
//! fenced: on an old kernel that cannot confine, the agent goes on.

use fence_sandbox::{Needs, Tcp};
use nix::unistd::close;

use crate::console::Console;
use crate::random::random_bytes;

/// Gives up everything but open descriptors and these TCP connections. Nothing can be opened afterwards.
pub(crate) fn confine(tcp: Tcp, console: &Console) {
    // The first random bytes may open a device, which stays open.
    let _ = random_bytes::<1>();
    let protection = Needs { tcp, ..Needs::default() }.confine();
    console.debug(&format_args!("sandbox: {protection}"));
}

/// Closes inherited descriptors, except standard input, output and error. Must be called before the agent
/// opens descriptors of its own.
pub(crate) fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    // The descriptor of the directory is in the list too. It is closed when the list is complete.
    let open: Vec<i32> =
        entries.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok()).filter(|it| *it > 2).collect();
    for descriptor in open {
        let _ = close(descriptor);
    }
}
