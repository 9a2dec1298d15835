// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon's life: start, reload, signals and end; its log, its pid file and its sandbox.
//!
//! `run` is one task that starts everything and waits for signals; the log writer is one thread. Must never
//! import `check` or `configure`.

mod address_space;
mod assemble;
mod daemonise;
mod error;
pub(crate) mod exit;
mod exposed;
pub(crate) mod in_use;
mod load;
mod log;
mod notify;
mod pid_file;
pub(crate) mod run;
pub(crate) mod sandbox;
mod signals;
