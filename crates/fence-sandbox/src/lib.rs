// SPDX-License-Identifier: GPL-2.0-or-later
//! What a program takes from itself once it knows what it needs: capabilities, files (Landlock), system calls
//! (seccomp), core dumps.
//!
//! A program says what it [`Needs`], once, while it has a single thread: threads that are started later have the same
//! limits, threads that run already have not. There is no way back, and child processes inherit everything.
//!
//! Best effort: a kernel that lacks a part leaves that part out and [`Protection`] says so. Nothing here may ever keep
//! a fence from being carried out, so what is refused is an error of that one call (`EPERM`, `EACCES`), never the end
//! of the program.
#![forbid(unsafe_code)]

mod calls;
mod capabilities;
mod files;

use std::fmt;
use std::path::PathBuf;

pub use caps::Capability;

/// What a program still needs. Everything else of its kind is taken from it; the default needs nothing.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files to read, and directories in which everything may be read.
    pub read: Vec<PathBuf>,
    /// Directories in which files may be made, read, written, renamed and removed; and single files that are there
    /// already, which may be read and written.
    pub write: Vec<PathBuf>,
    /// Directories from which a file may be removed, and no more.
    pub remove: Vec<PathBuf>,
    /// Capabilities that it keeps, where it has them. Programs that it starts have none, root's neither.
    pub capabilities: Vec<Capability>,
    /// Which TCP connections it makes, and whether it binds TCP ports.
    pub tcp: Tcp,
    /// What it does that most programs never do.
    pub calls: Calls,
}

/// TCP that a program begins itself. Connections that it accepts, other protocols and open sockets are not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tcp {
    /// None.
    #[default]
    None,
    /// Connections to this port, of whatever address.
    To(u16),
    /// Whatever it likes.
    Any,
}

/// System calls by what they are for. Those that no program of ours makes are refused whatever is said here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Calls {
    /// It opens files. Landlock says which.
    pub open_files: bool,
    /// It starts threads.
    pub threads: bool,
    /// It starts other programs. They inherit all limits, so that calls of theirs are let through too, and with them
    /// signals to other processes.
    pub programs: bool,
    /// Its libraries keep things in the kernel's key rings (Kerberos does).
    pub key_rings: bool,
    /// Its sockets may lie in the abstract name space of processes outside.
    pub abstract_sockets: bool,
}

/// For a process that takes nothing else from itself: the capabilities of this thread, and of those it will start, don't
/// reach the programs that they start. (Those of root have root's all the same.)
pub fn no_capabilities_for_programs() {
    capabilities::none_for_programs();
}

/// What is on.
#[derive(Clone, Debug)]
pub struct Protection {
    /// Landlock: files, TCP, signals.
    pub files: State,
    /// seccomp: system calls.
    pub calls: State,
    /// The capabilities that are left, or why more than the needed ones are.
    pub capabilities: Result<Vec<Capability>, String>,
}

/// How much of one part is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// All of it.
    On,
    /// What this kernel can do, which is not all.
    Partly,
    /// Nothing, for this reason.
    Off(String),
}

impl Needs {
    /// Takes everything else away from this thread and those it will start.
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

impl Protection {
    /// Whether all parts are on.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.files == State::On && self.calls == State::On && self.capabilities.is_ok()
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "files {}, system calls {}, ", self.files, self.calls)?;
        match &self.capabilities {
            Ok(kept) if kept.is_empty() => f.write_str("no capabilities"),
            Ok(kept) => {
                f.write_str("capabilities")?;
                kept.iter().try_for_each(|it| write!(f, " {}", it.to_string().to_lowercase()))
            }
            Err(why) => write!(f, "capabilities not limited ({why})"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => f.write_str("limited"),
            Self::Partly => f.write_str("limited as far as this kernel can"),
            Self::Off(why) => write!(f, "not limited ({why})"),
        }
    }
}
