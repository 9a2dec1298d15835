// SPDX-License-Identifier: GPL-2.0-or-later
//! Processes of this host with the name of the daemon, which that of the C programs has too. Runs in the
//! process of `--check`. Must never end one.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::util::process_name;

/// Name of the daemon in /proc.
pub(super) const OURS: &str = "fence_virtd";

/// Process that may hold a socket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SocketHolder {
    pub(super) name: String,
    pub(super) pid: u32,
}

/// Returns the step where another daemon runs in the place of the one of this program.
pub(super) fn stop_other(pid: u32) -> String {
    format!("end that daemon first, in the way it was started, or: kill {pid}. Then systemctl start {OURS}")
}

/// Returns a fence_virtd of this network that is another program than this one, as that of the C programs is.
pub(super) fn other_daemon() -> Option<u32> {
    let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = std::process::id();
    let is_other = |it: &SocketHolder| {
        it.name == OURS && it.pid != own && is_other_program(it.pid) && network(it.pid) == network(own)
    };
    processes().find(is_other).map(|it| it.pid)
}

/// Returns true if a process runs another program than this one; false where that can't be told.
pub(super) fn is_other_program(pid: u32) -> bool {
    let file = |pid| fs::metadata(format!("/proc/{pid}/exe")).ok().map(|it| (it.dev(), it.ino()));
    file(pid).is_some_and(|it| file(std::process::id()).is_some_and(|own| own != it))
}

/// Returns all processes that this user may see.
pub(super) fn processes() -> impl Iterator<Item = SocketHolder> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|it| {
        let pid = it.file_name().to_str()?.parse().ok()?;
        Some(SocketHolder { name: process_name(pid)?, pid })
    })
}
