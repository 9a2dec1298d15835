// SPDX-License-Identifier: GPL-2.0-or-later
//! Questions and answers, line by line, over a terminal or a pipe. Owns the form of a prompt. Runs on the
//! main thread. Must never know the meaning of a question.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use fence_wire::escaped;

/// Longest answer, in bytes: that of a path.
const MAX_ANSWER: u64 = 4096;

/// Terminal, pipe or script that answers the questions.
pub(crate) struct Console {
    input: Box<dyn BufRead>,
    output: Box<dyn Write>,
    errors: Box<dyn Write>,
    terminal: bool,
    ended: bool,
}

impl Console {
    /// Console of the user who started the program.
    pub(crate) fn standard() -> Self {
        Self {
            input: Box::new(io::stdin().lock()),
            output: Box::new(io::stdout().lock()),
            errors: Box::new(io::stderr()),
            terminal: io::stdin().is_terminal(),
            ended: false,
        }
    }

    /// Console of a script in memory; with `terminal` as if a user typed it. Output is discarded.
    #[cfg(test)]
    pub(crate) fn scripted(answers: &str, terminal: bool) -> Self {
        Self {
            input: Box::new(io::Cursor::new(answers.as_bytes().to_vec())),
            output: Box::new(io::sink()),
            errors: Box::new(io::sink()),
            terminal,
            ended: false,
        }
    }

    /// Returns true for a terminal. A script answers only questions that the C daemon asks too.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Returns true when no more answers come.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Writes part of the conversation.
    pub(crate) fn say(&mut self, text: &[u8]) -> io::Result<()> {
        self.output.write_all(text)
    }

    /// Writes a warning, which must be seen even where the conversation goes to /dev/null.
    pub(crate) fn warn(&mut self, text: &str) -> io::Result<()> {
        self.output.flush()?;
        writeln!(self.errors, "{text}")
    }

    /// Asks `prompt [default]: `. The answer has no blanks around it; empty means the default, and so does
    /// the end of the input.
    pub(crate) fn ask(&mut self, prompt: &str, default: &[u8]) -> io::Result<Vec<u8>> {
        write!(self.output, "{prompt} [{}]: ", escaped(default))?;
        self.line()
    }

    /// Asks `prompt [y/N]? `. What is neither yes nor no means `default`.
    pub(crate) fn confirm(&mut self, prompt: &str, default: bool) -> io::Result<bool> {
        write!(self.output, "{prompt} [{}]? ", if default { "Y/n" } else { "y/N" })?;
        Ok(match self.line()?.first() {
            Some(b'y' | b'Y') => true,
            Some(b'n' | b'N') => false,
            _ => default,
        })
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        self.output.flush()?;
        let mut line = Vec::new();
        if !self.ended {
            (&mut self.input).take(MAX_ANSWER).read_until(b'\n', &mut line)?;
            self.ended = line.is_empty();
        }
        if line.len() as u64 == MAX_ANSWER && !line.ends_with(b"\n") {
            let text = format!("the answer has more than {MAX_ANSWER} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        // A terminal has shown the line feed that was typed.
        if !self.terminal || self.ended {
            self.output.write_all(b"\n")?;
        }
        Ok(line.trim_ascii().to_vec())
    }
}
