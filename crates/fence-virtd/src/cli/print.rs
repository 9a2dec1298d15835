// SPDX-License-Identifier: GPL-2.0-or-later
//! Output before there is a log. Owns the form of an error line; must never be used once logging has started.

use std::fmt;
use std::io::Write;

use super::exit_code::{FAILURE, SUCCESS};

/// Writes a text to standard output and returns the exit code.
pub(crate) fn print(text: &str) -> u8 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => SUCCESS,
        Err(_) => FAILURE,
    }
}

/// Writes an error to standard error, for the administrator who typed the command.
pub(crate) fn print_error(what: &dyn fmt::Display) {
    let _ = writeln!(std::io::stderr(), "fence_virtd: {what}");
}
