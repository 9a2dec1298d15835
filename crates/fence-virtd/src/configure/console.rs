// SPDX-License-Identifier: GPL-2.0-or-later
//! Questions and answers, line by line, over a terminal or a pipe. Owns the form of a prompt. Runs on the
//! main thread. Must never know the meaning of a question.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use std::os::fd::AsFd;
use std::time::Duration;

use fence_wire::escaped;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest answer, in bytes: that of a path.
const MAX_ANSWER: u64 = 4096;

/// Terminal, pipe or script that answers the questions.
pub(crate) struct Console {
    input: Box<dyn BufRead>,
    output: Box<dyn Write>,
    errors: Box<dyn Write>,
    terminal: bool,
    /// The descriptor behind `input`, where one can wait for an answer.
    polled: Option<io::Stdin>,
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
            polled: Some(io::stdin()),
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
            polled: None,
            ended: false,
        }
    }

    /// Asks as [`confirm`](Self::confirm) does, and takes silence for no: a script that types at a terminal
    /// knows nothing of the question, and waits for the end of the program.
    pub(crate) fn confirm_within(&mut self, prompt: &str, wait: Duration) -> io::Result<bool> {
        write!(self.output, "{prompt} [y/N]? ")?;
        self.output.flush()?;
        if !self.has_input(wait)? {
            self.output.write_all(b"\n")?;
            return Ok(false);
        }
        Ok(matches!(self.line()?.first(), Some(b'y' | b'Y')))
    }

    fn has_input(&self, wait: Duration) -> io::Result<bool> {
        let Some(terminal) = &self.polled else { return Ok(true) };
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
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
