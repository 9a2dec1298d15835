// SPDX-License-Identifier: GPL-2.0-or-later
//! Text on standard output, and the exit code of a failure.
//!
//! Owns nothing. Runs on the agent's only thread. Must never print anything but texts that the user asked
//! for: cluster managers read standard output. Must never take a reader that has gone for a failure.

use std::io::{self, Write};

/// Exit code of every request that was not carried out, or is not known to be.
pub(crate) const FAILURE: u8 = 1;

/// Prints the text and returns the exit code.
pub(crate) fn print(text: &str) -> u8 {
    match unless_reader_gone(io::stdout().write_all(text.as_bytes())) {
        Ok(()) => 0,
        Err(_) => FAILURE,
    }
}

/// Passes on the result of writing. A reader that has read enough and gone (`| grep -q`, `| head`) is no
/// error.
pub(crate) fn unless_reader_gone(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
