// SPDX-License-Identifier: GPL-2.0-or-later
//! Text on standard output, and the exit code of a failure.
//!
//! Owns nothing. Runs on the agent's only thread. Must never print anything but texts that the user asked
//! for: cluster managers read standard output.

use std::io::{self, Write};

/// Exit code of every request that was not carried out, or is not known to be.
pub(crate) const FAILURE: u8 = 1;

/// Prints the text and returns the exit code.
pub(crate) fn print(text: &str) -> u8 {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => FAILURE,
    }
}
