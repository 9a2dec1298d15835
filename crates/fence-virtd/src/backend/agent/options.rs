// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of an agent, as lines of its standard input.

use std::path::PathBuf;

use fence_config::OptionValue;
use fence_core::agent::listing::SEPARATOR;
use fence_core::agent::metadata::Metadata;
use zeroize::Zeroizing;

/// Standard input of an agent.
pub(super) struct OptionLines {
    pub(super) text: Zeroizing<Vec<u8>>,
    /// True if the agent strips blanks and a pair of quotes from values.
    pub(super) quotes: bool,
}

/// Some agents read lines as Python's `splitlines` does.
fn ends_a_line(it: char) -> bool {
    it.is_control() || matches!(it, '\u{2028}' | '\u{2029}')
}

impl OptionLines {
    pub(super) fn add(&mut self, name: &str, value: &str) -> Result<(), String> {
        // A line end in a value would be the next option.
        if value.contains(|it: char| it != SEPARATOR && ends_a_line(it)) {
            return Err(format!("the value of its option {name} has a control character in it"));
        }
        let is_quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
        let quote = if self.quotes && (is_quoted || value.trim() != value) { "\"" } else { "" };
        for part in [name, "=", quote, value, quote, "\n"] {
            self.text.extend_from_slice(part.as_bytes());
        }
        Ok(())
    }
}

/// The option that is read from a file, and the file, if this option means one.
pub(super) fn file_of(
    (name, value): &(String, OptionValue),
    metadata: &Metadata,
) -> Option<(String, PathBuf)> {
    let option = name.strip_suffix("_file").or_else(|| name.strip_suffix("-file"))?;
    (!option.is_empty() && !metadata.has_option(name))
        .then(|| (option.to_owned(), PathBuf::from(value.as_str())))
}

/// Returns whether the value is a common word, and so no secret, whatever the option is called.
pub(super) fn is_a_word(value: &str) -> bool {
    ["0", "1", "yes", "no", "on", "off", "true", "false"].iter().any(|it| value.eq_ignore_ascii_case(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(quotes: bool, value: &str) -> Result<String, String> {
        let mut lines = OptionLines { text: Zeroizing::default(), quotes };
        lines.add("x", value).map(|()| String::from_utf8(lines.text.to_vec()).unwrap())
    }

    /// The library strips blanks and one pair of quotes; others take all that comes after the `=`.
    #[test]
    fn an_agent_reads_what_is_meant() {
        for (value, quoted) in [
            ("a=b", "a=b"),
            ("", ""),
            (" a ", "\" a \""),
            ("\"a\"", "\"\"a\"\""),
            ("a\"", "a\""),
            ("\"", "\""),
        ] {
            assert_eq!(line(true, value), Ok(format!("x={quoted}\n")));
            assert_eq!(line(false, value), Ok(format!("x={value}\n")));
        }
    }

    #[test]
    fn no_value_makes_a_second_line() {
        for value in ["a\nb", "a\rb", "a\0", "\n", "\u{85}", "\u{b}"] {
            let error = line(true, value).unwrap_err();
            assert_eq!(error, "the value of its option x has a control character in it");
        }
    }
}
