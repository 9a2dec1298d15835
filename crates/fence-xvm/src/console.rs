// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages for people, on standard error.
//!
//! Pacemaker reads them too: a text with "timed out" or "timeout" makes the result "timed out", whatever
//! happened, and "unrecognised action" makes it "not supported". Pacemaker gives its options on standard
//! input. There, only a message about a request that ran out of time has these words, and every other one is
//! written so that it does not read like them.
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
    source: OptionSource,
    level: u32,
}

/// Source of the options, and with it the reader of the messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OptionSource {
    /// Command line: people read the messages, and options are named as they are.
    CommandLine,
    /// Standard input: a cluster manager reads the messages too.
    StandardInput,
}

/// Words that Pacemaker looks for in a failed agent's messages, in any case, each with the place at which
/// it is parted and the text that goes there.
const READ_WORDS: [(&str, usize, &str); 4] = [
    ("timeout", 4, "-"),
    ("imed out", 4, "-"),
    ("unrecognised action", 12, ": "),
    ("unrecognized action", 12, ": "),
];

impl Console {
    /// Returns a console that shows no debug messages yet.
    pub(crate) fn new(program: ClientProgram, source: OptionSource) -> Self {
        Self { program, source, level: 0 }
    }

    /// Shows debug messages from level 1 on.
    pub(crate) fn set_level(&mut self, level: u32) {
        self.level = level;
    }

    /// Shows a message that is not about time. A closed standard error must not change the agent's behaviour.
    pub(crate) fn say(&self, message: &dyn Display) {
        self.write(&self.worded(&message.to_string()));
    }

    /// Shows that the request ran out of time, in the words that cluster managers look for.
    pub(crate) fn say_timed_out(&self, message: &dyn Display) {
        self.write(&message.to_string());
    }

    /// Returns the name that the program was called by.
    pub(crate) fn program(&self) -> ClientProgram {
        self.program
    }

    fn write(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{}: {text}", self.program.name());
    }

    /// Returns the message in words for its readers.
    pub(crate) fn worded(&self, message: &str) -> String {
        match self.source {
            OptionSource::CommandLine => message.to_owned(),
            OptionSource::StandardInput => part_read_words(message),
        }
    }

    /// Shows a message if the user asked for debug messages.
    pub(crate) fn debug(&self, message: &dyn Display) {
        if self.level > 0 {
            self.say(message);
        }
    }
}

/// Returns the text with each of [`READ_WORDS`] parted, so that none of them is left.
fn part_read_words(text: &str) -> String {
    READ_WORDS.into_iter().fold(text.to_owned(), |text, (word, place, mark)| {
        // Lower case of ASCII letters alone, so that all positions stay the same.
        let lower = text.to_ascii_lowercase();
        let (mut parted, mut done) = (String::with_capacity(text.len()), 0);
        for (at, _) in lower.match_indices(word) {
            parted.push_str(&text[done..at + place]);
            parted.push_str(mark);
            // A blank gives way to the mark.
            done = at + place + usize::from(word.as_bytes()[place] == b' ');
        }
        parted.push_str(&text[done..]);
        parted
    })
}

/// Returns whether Pacemaker would read this text as something other than a failure.
#[cfg(test)]
pub(crate) fn has_read_words(text: &str) -> bool {
    READ_WORDS.iter().any(|(word, ..)| text.to_lowercase().contains(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_that_pacemaker_reads_are_parted() {
        for (text, parted) in [
            ("timeout: 'abc' is not seconds", "time-out: 'abc' is not seconds"),
            ("TIMEOUT, Timed out, timed out", "TIME-OUT, Timed-out, timed-out"),
            ("Unrecognised action, unrecognized action", "Unrecognised: action, unrecognized: action"),
            ("n\u{e4}hme timeoutimed out", "n\u{e4}hme time-outimed-out"),
        ] {
            assert_eq!(part_read_words(text), parted);
        }
    }

    proptest! {
        #[test]
        fn no_text_keeps_them(
            parts in prop::collection::vec(
                prop_oneof!["[a-zA-Z \u{e4}\u{130}]{0,4}", "(?i)timeout", "(?i)time", "(?i)timed out",
                    "(?i)unrecogni[sz]ed action"], 0..8)
        ) {
            let parted = part_read_words(&parts.concat());
            prop_assert!(!has_read_words(&parted), "{parted}");
        }
    }
}
