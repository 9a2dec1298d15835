// SPDX-License-Identifier: GPL-2.0-or-later
//! What the agent gives up before it talks to anybody: it often runs as root, and who calls back may be anybody.
//!
//! After the key is read, the port or line claimed and its record opened, an exchange needs open files and sockets and
//! nothing else: no capability, no file, no other program, no TCP but what it is about to open. All of it is best
//! effort: an old kernel that can't do it must not keep a node from being fenced.

use fence_sandbox::{Needs, Tcp};
use nix::unistd::close;

use crate::console::Console;
use crate::random::random_bytes;

/// Gives up all but the descriptors that are open and these TCP connections. Nothing can be opened afterwards.
pub(crate) fn confine(tcp: Tcp, console: &Console) {
    // The first of them may open a device, which stays open.
    let _ = random_bytes::<1>();
    let protection = Needs { tcp, ..Needs::default() }.confine();
    console.debug(&format_args!("sandbox: {protection}"));
}

/// Closes what whoever started us left open, beside standard input, output and error. Must be called before anything
/// of our own is open.
pub(crate) fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    // The directory's own descriptor is among them, and closed when the list is complete.
    let open: Vec<i32> =
        entries.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok()).filter(|it| *it > 2).collect();
    for it in open {
        let _ = close(it);
    }
}
