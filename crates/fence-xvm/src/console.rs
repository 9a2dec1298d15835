// SPDX-License-Identifier: GPL-2.0-or-later
//! Words for people, on standard error. Standard output belongs to cluster managers.

use std::fmt::Display;
use std::io::{self, Write};

use crate::options::Program;

/// Standard error, with the program's name before every message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    program: Program,
    level: u32,
}

impl Console {
    /// A console that shows no debug messages yet.
    pub(crate) fn new(program: Program) -> Self {
        Self { program, level: 0 }
    }

    /// Shows debug messages from level 1 on.
    pub(crate) fn set_level(&mut self, level: u32) {
        self.level = level;
    }

    /// A message for everybody. That standard error is closed must not change what the agent does.
    pub(crate) fn say(&self, message: &dyn Display) {
        let _ = writeln!(io::stderr(), "{}: {message}", self.program.name());
    }

    /// A message for those who asked for more.
    pub(crate) fn debug(&self, message: &dyn Display) {
        if self.level > 0 {
            self.say(message);
        }
    }
}
