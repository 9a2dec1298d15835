// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages for people, on standard error.
//!
//! Owns the debug level. Runs on the agent's only thread. Must never write to standard output, which cluster
//! managers read.

use std::fmt::Display;
use std::io::{self, Write};

use crate::options::ClientProgram;

/// Standard error, with the program's name before every message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    program: ClientProgram,
    level: u32,
}

impl Console {
    /// Returns a console that shows no debug messages yet.
    pub(crate) fn new(program: ClientProgram) -> Self {
        Self { program, level: 0 }
    }

    /// Shows debug messages from level 1 on.
    pub(crate) fn set_level(&mut self, level: u32) {
        self.level = level;
    }

    /// Shows a message. A closed standard error must not change the agent's behaviour.
    pub(crate) fn say(&self, message: &dyn Display) {
        let _ = writeln!(io::stderr(), "{}: {message}", self.program.name());
    }

    /// Shows a message if the user asked for debug messages.
    pub(crate) fn debug(&self, message: &dyn Display) {
        if self.level > 0 {
            self.say(message);
        }
    }
}
