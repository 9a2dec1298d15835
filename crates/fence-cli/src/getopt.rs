// SPDX-License-Identifier: GPL-2.0-or-later
//! Command lines as getopt(3) of the GNU C library accepts them, and long options beside them.
//!
//! Owns the forms of the command line and the texts about errors in it. Must never guess an option.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Command line split into options and operands.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CommandLine {
    /// Options in their order.
    pub options: Vec<ParsedOption>,
    /// All arguments that are no options, in their order, from any place of the command line.
    pub operands: Vec<OsString>,
}

/// Option with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedOption {
    /// Name as the user wrote it.
    pub name: OptionName,
    /// Value, for options that take one.
    pub value: Option<OsString>,
}

/// Name of an option. Shown as the user wrote it: `-t`, `--timeout`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionName {
    /// Letter, without the dash.
    Letter(char),
    /// Long name, without the dashes.
    Long(&'static str),
}

impl fmt::Display for OptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Letter(letter) => write!(f, "-{}", letter.escape_default()),
            Self::Long(name) => write!(f, "--{name}"),
        }
    }
}

/// Long option of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongOption {
    /// Name, without the dashes.
    pub name: &'static str,
    /// Kind of value.
    pub takes: ArgumentKind,
}

// The name at call sites that have not switched yet.
pub use self::OptionName as Name;

/// Kind of value that an option takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgumentKind {
    /// No value.
    Nothing,
    /// A value, always: `-t5`, `-t 5`, `--timeout=5`, `--timeout 5`.
    Value,
    /// An attached value or none: `-S5`, `--vsock=5`.
    MayHaveValue,
}

/// Error in a command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetoptError {
    /// An option that the program does not have.
    #[error("unknown option {0}")]
    Unknown(String),
    /// A long option that the program does not have, and the one that was perhaps meant.
    #[error("unknown option {0}, did you mean --{1}?")]
    Misspelt(String, &'static str),
    /// A value was attached to an option that takes none.
    #[error("option {0} takes no value")]
    NoValueTaken(String),
    /// An option that takes a value stands last without one.
    #[error("option {0} needs a value")]
    MissingValue(String),
}

/// Splits a command line (without the program's name) by a getopt string such as `"dt:S::"`: a letter, with
/// `:` when the option takes a value (`-tVALUE` or `-t VALUE`), with `::` when it may have one (`-SVALUE`
/// only).
///
/// Flags may stand together (`-dv`). Options and operands may stand in any order. All arguments after `--`
/// are operands, and so is `-`.
///
/// Long options (`--name VALUE`, `--name=VALUE`) must be written in full. A beginning that is unique today
/// could become ambiguous with the next option.
///
/// # Errors
/// The first option that is unknown or lacks a value.
pub fn parse<I>(spec: &str, long: &[LongOption], arguments: I) -> Result<CommandLine, GetoptError>
where
    I: IntoIterator<Item = OsString>,
{
    let mut line = CommandLine::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let letters = match argument.as_bytes() {
            b"--" => {
                line.operands.extend(arguments);
                break;
            }
            [b'-', b'-', written @ ..] => {
                line.options.push(long_option(long, written, &mut arguments)?);
                continue;
            }
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => {
                line.operands.push(argument);
                continue;
            }
        };
        let mut rest = letters;
        while let [letter, after @ ..] = rest {
            let (letter, attached) = (char::from(*letter), !after.is_empty());
            let name = OptionName::Letter(letter);
            let value = match takes(spec, letter).ok_or_else(|| GetoptError::Unknown(name.to_string()))? {
                ArgumentKind::Nothing => None,
                ArgumentKind::Value if !attached => {
                    Some(arguments.next().ok_or_else(|| GetoptError::MissingValue(name.to_string()))?)
                }
                ArgumentKind::MayHaveValue if !attached => None,
                ArgumentKind::Value | ArgumentKind::MayHaveValue => Some(OsString::from_vec(after.to_vec())),
            };
            rest = if value.is_some() { &[] } else { after };
            line.options.push(ParsedOption { name, value });
        }
    }
    Ok(line)
}

/// Parses a long option from the text after the dashes.
fn long_option(
    long: &[LongOption],
    written: &[u8],
    arguments: &mut impl Iterator<Item = OsString>,
) -> Result<ParsedOption, GetoptError> {
    let end = written.iter().position(|&it| it == b'=').unwrap_or(written.len());
    let (name, attached) = (&written[..end], written.get(end + 1..));
    let Some(option) = long.iter().find(|it| it.name.as_bytes() == name) else {
        let shown = format!("--{}", fence_wire::escaped(name));
        return Err(match nearest(long.iter().map(|it| it.name), name) {
            Some(meant) => GetoptError::Misspelt(shown, meant),
            None => GetoptError::Unknown(shown),
        });
    };
    let name = OptionName::Long(option.name);
    let attached = attached.map(|it| OsString::from_vec(it.to_vec()));
    let value = match (option.takes, attached) {
        (ArgumentKind::Nothing, Some(_)) => return Err(GetoptError::NoValueTaken(name.to_string())),
        (ArgumentKind::Value, None) => {
            Some(arguments.next().ok_or_else(|| GetoptError::MissingValue(name.to_string()))?)
        }
        (_, attached) => attached,
    };
    Ok(ParsedOption { name, value })
}

/// Returns the name that was probably meant: it begins with the written text or differs in few letters. `-`
/// and `_` count as equal.
pub fn nearest<'n>(names: impl IntoIterator<Item = &'n str>, written: &[u8]) -> Option<&'n str> {
    // The distance takes time in proportion to the length, and nobody mistypes a name into a long one.
    let written = std::str::from_utf8(written).ok().filter(|it| it.len() <= 40)?.replace('_', "-");
    let written = written.to_ascii_lowercase();
    let distance = |name: &str| match name.replace('_', "-") {
        name if written.len() > 2 && name.starts_with(&written) => 0,
        name => strsim::damerau_levenshtein(&written, &name),
    };
    names
        .into_iter()
        .map(|it| (distance(it), it))
        .filter(|&(distance, name)| distance <= (name.len() / 3).clamp(1, 3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

fn takes(spec: &str, letter: char) -> Option<ArgumentKind> {
    if letter == ':' || !letter.is_ascii() {
        return None;
    }
    let (_, after) = spec.split_once(letter)?;
    Some(if after.starts_with("::") {
        ArgumentKind::MayHaveValue
    } else if after.starts_with(':') {
        ArgumentKind::Value
    } else {
        ArgumentKind::Nothing
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "dt:S::n:?h";
    const LONG: &[LongOption] = &[
        LongOption { name: "debug", takes: ArgumentKind::Nothing },
        LongOption { name: "timeout", takes: ArgumentKind::Value },
        LongOption { name: "vsock", takes: ArgumentKind::MayHaveValue },
        LongOption { name: "key-file", takes: ArgumentKind::Value },
    ];

    fn taken(arguments: &[&str]) -> Result<(Vec<String>, Vec<String>), GetoptError> {
        let line = parse(SPEC, LONG, arguments.iter().map(OsString::from))?;
        let text = |s: OsString| s.into_string().unwrap();
        let options = line.options.into_iter().map(|o| {
            let name = match o.name {
                OptionName::Letter(letter) => letter.to_string(),
                OptionName::Long(name) => name.to_owned(),
            };
            match o.value {
                Some(value) => format!("{name}={}", text(value)),
                None => name,
            }
        });
        Ok((options.collect(), line.operands.into_iter().map(text).collect()))
    }

    fn options(arguments: &[&str]) -> Vec<String> {
        taken(arguments).unwrap().0
    }

    #[test]
    fn forms() {
        assert_eq!(options(&[]), [""; 0]);
        assert_eq!(options(&["-d", "-?"]), ["d", "?"]);
        assert_eq!(options(&["-ddh"]), ["d", "d", "h"]);
        assert_eq!(options(&["-t5", "-t", "6"]), ["t=5", "t=6"]);
        assert_eq!(options(&["-dt5"]), ["d", "t=5"]);
        assert_eq!(options(&["-dt", "5"]), ["d", "t=5"]);
        assert_eq!(options(&["-S", "-S3", "-dS4"]), ["S", "S=3", "d", "S=4"]);
        // A value may look like anything, and may be empty.
        assert_eq!(options(&["-t", "-d", "-n", "--", "-n", ""]), ["t=-d", "n=--", "n="]);
        assert_eq!(options(&["-t:"]), ["t=:"]);
    }

    #[test]
    fn long_forms() {
        assert_eq!(options(&["--debug", "-d"]), ["debug", "d"]);
        assert_eq!(
            options(&["--timeout=5", "--timeout", "6", "--timeout="]),
            ["timeout=5", "timeout=6", "timeout="]
        );
        assert_eq!(options(&["--timeout", "--debug"]), ["timeout=--debug"]);
        assert_eq!(options(&["--key-file=a=b"]), ["key-file=a=b"]);
        let (options, operands) = taken(&["--vsock", "3", "--vsock=4", "--", "--debug"]).unwrap();
        assert_eq!(
            (options, operands),
            (vec!["vsock".into(), "vsock=4".into()], vec!["3".into(), "--debug".into()])
        );
    }

    #[test]
    fn operands_anywhere() {
        let (options, operands) = taken(&["a", "-d", "-", "-S", "3", "--", "-t", "b"]).unwrap();
        assert_eq!(options, ["d", "S"]);
        assert_eq!(operands, ["a", "-", "3", "-t", "b"]);
    }

    #[test]
    fn errors_name_the_option() {
        let say = |a: &[&str]| taken(a).unwrap_err().to_string();
        assert_eq!(say(&["-dZ"]), "unknown option -Z");
        assert_eq!(say(&["-:"]), "unknown option -:");
        assert_eq!(say(&["-d\u{1b}"]), "unknown option -\\u{1b}");
        assert_eq!(say(&["-\u{e4}"]), "unknown option -\\u{c3}");
        assert_eq!(say(&["--help"]), "unknown option --help");
        assert_eq!(say(&["--timout=5"]), "unknown option --timout, did you mean --timeout?");
        assert_eq!(say(&["--time"]), "unknown option --time, did you mean --timeout?");
        assert_eq!(say(&["--Key_File", "x"]), "unknown option --Key_File, did you mean --key-file?");
        assert_eq!(say(&["--=x"]), "unknown option --");
        assert_eq!(say(&["--\u{1b}"]), "unknown option --\\x1b");
        assert_eq!(say(&["--timeout"]), "option --timeout needs a value");
        assert_eq!(say(&["--debug=1"]), "option --debug takes no value");
        assert_eq!(say(&["-dt"]), "option -t needs a value");
    }
}
