// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line: options, exit codes, and output before there is a log.
//!
//! Runs on the main thread, before any runtime. Must never import another folder of the daemon.

pub(crate) mod exit_code;
pub(crate) mod options;
pub(crate) mod print;
