// SPDX-License-Identifier: GPL-2.0-or-later
//! Self-confinement of a program: capabilities, files (Landlock), system calls (seccomp), core dumps.
//!
//! Owns the lists of forbidden things. Runs on the caller's thread: a program names its [`Needs`] once,
//! while it has a single thread. Later threads and child processes inherit the limits; older threads do not.
//! There is no way back.
//!
//! Must never keep a fence from being carried out: a refusal is an error of that one call (`EPERM`,
//! `EACCES`), never the end of the program. A kernel that lacks a part leaves that part out, and
//! [`Protection`] says so.
#![forbid(unsafe_code)]

mod calls;
mod capabilities;
mod files;
mod needs;
mod protection;

pub use caps::Capability;
// The short names are those of the call sites that still use them.
pub use needs::{Needs, SystemCalls, SystemCalls as Calls, TcpAccess, TcpAccess as Tcp};
pub use protection::{Enforcement, Enforcement as State, Protection};

/// Drops the ambient capabilities of this thread, for a process that confines nothing else.
///
/// Programs that this thread and its later threads start do not inherit them. (A program that runs as root
/// has root's capabilities all the same.)
pub fn no_capabilities_for_programs() {
    capabilities::none_for_programs();
}

impl Needs {
    /// Takes everything else away from this thread and its later threads.
    #[must_use]
    pub fn confine(&self) -> Protection {
        // Keys must reach neither core files nor another process of the same user.
        let _ = nix::sys::prctl::set_dumpable(false);
        let capabilities = capabilities::keep(&self.capabilities);
        // Before seccomp, which leaves no way to do any of it.
        let files = files::confine(self);
        Protection { files, calls: calls::confine(self.calls), capabilities }
    }
}
