// SPDX-License-Identifier: GPL-2.0-or-later
//! Output before there is a log.

use crate::daemon::exit::{FAILURE, SUCCESS};
use std::fmt;
use std::io::Write;

pub(crate) fn print(text: &str) -> u8 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => SUCCESS,
        Err(_) => FAILURE,
    }
}

/// What must reach the one who typed the command, before there is a log.
pub(crate) fn print_error(what: &dyn fmt::Display) {
    let _ = writeln!(std::io::stderr(), "fence_virtd: {what}");
}
