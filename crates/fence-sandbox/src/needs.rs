// SPDX-License-Identifier: GPL-2.0-or-later
//! List of what a program still needs after it confined itself. Values only.

use std::path::PathBuf;

use caps::Capability;

/// Things that a program still needs. Everything else of its kind is taken away; the default needs nothing.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files to read, and directories in which everything may be read.
    pub read: Vec<PathBuf>,
    /// Directories in which files may be made, read, written, renamed and removed. Also single files that
    /// exist already, which may be read and written.
    pub write: Vec<PathBuf>,
    /// Directories from which a file may be removed, and no more.
    pub remove: Vec<PathBuf>,
    /// Capabilities to keep, if the program has them. Programs that it starts have none, not even root's.
    pub capabilities: Vec<Capability>,
    /// TCP connections to make, and permission to bind TCP ports.
    pub tcp: TcpAccess,
    /// Unusual groups of system calls.
    pub calls: SystemCalls,
}

/// TCP that a program begins itself. Accepted connections, other protocols and open sockets are not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TcpAccess {
    /// No TCP at all.
    #[default]
    None,
    /// Connections to this port, of any address.
    To(u16),
    /// Binding these ports, from the first to the last, and no connection.
    Bind(u16, u16),
    /// No limit.
    Any,
}

/// System calls, grouped by purpose. Calls that no program of ours makes are always refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SystemCalls {
    /// Open files. Landlock limits which.
    pub open_files: bool,
    /// Start threads.
    pub threads: bool,
    /// Start other programs. They inherit all limits, so their usual calls are allowed too, and with them
    /// signals to other processes.
    pub programs: bool,
    /// Use the kernel's key rings: libraries such as Kerberos do.
    pub key_rings: bool,
    /// Connect to sockets in the abstract name space of processes outside.
    pub abstract_sockets: bool,
}
