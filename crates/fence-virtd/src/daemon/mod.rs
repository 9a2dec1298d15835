// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon's life: start, reload, signals and end; its log, its pid file and its sandbox.

pub(crate) mod daemonise;
pub(crate) mod exit;
pub(crate) mod log;
pub(crate) mod notify;
pub(crate) mod pid_file;
pub(crate) mod run;
pub(crate) mod sandbox;
