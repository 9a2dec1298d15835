// SPDX-License-Identifier: GPL-2.0-or-later
//! Command lines as getopt(3) of the GNU C library takes them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A command line taken apart.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CommandLine {
    /// The options in their order.
    pub options: Vec<Opt>,
    /// Everything that is no option, in its order, wherever it stood.
    pub operands: Vec<OsString>,
}

/// One option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opt {
    /// Its letter.
    pub letter: char,
    /// Its value, for options that take one.
    pub value: Option<OsString>,
}

/// What is wrong with a command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetoptError {
    /// An option that the program does not have.
    #[error("unknown option {0}")]
    Unknown(String),
    /// An option that takes a value stands last without one.
    #[error("option {0} needs a value")]
    MissingValue(String),
}

/// Takes a command line (without the program's name) apart by a getopt string such as `"dt:S::"`: a letter, with
/// `:` when the option takes a value (`-tVALUE` or `-t VALUE`), with `::` when it may have one (`-SVALUE` only).
///
/// Flags may stand together (`-dv`), options and operands in any order; all after `--` is operands, and so is `-`.
///
/// # Errors
/// The first option that is unknown or lacks its value.
pub fn parse<I>(spec: &str, arguments: I) -> Result<CommandLine, GetoptError>
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
            [b'-', b'-', ..] => return Err(GetoptError::Unknown(shown(&argument))),
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => {
                line.operands.push(argument);
                continue;
            }
        };
        let mut rest = letters;
        while let [letter, after @ ..] = rest {
            let (letter, attached) = (char::from(*letter), !after.is_empty());
            let name = || format!("-{}", letter.escape_default());
            let value = match takes(spec, letter).ok_or_else(|| GetoptError::Unknown(name()))? {
                Takes::Nothing => None,
                Takes::Value if !attached => {
                    Some(arguments.next().ok_or_else(|| GetoptError::MissingValue(name()))?)
                }
                Takes::MayHaveValue if !attached => None,
                Takes::Value | Takes::MayHaveValue => Some(OsString::from_vec(after.to_vec())),
            };
            rest = if value.is_some() { &[] } else { after };
            line.options.push(Opt { letter, value });
        }
    }
    Ok(line)
}

enum Takes {
    Nothing,
    Value,
    MayHaveValue,
}

fn takes(spec: &str, letter: char) -> Option<Takes> {
    if letter == ':' || !letter.is_ascii() {
        return None;
    }
    let (_, after) = spec.split_once(letter)?;
    Some(if after.starts_with("::") {
        Takes::MayHaveValue
    } else if after.starts_with(':') {
        Takes::Value
    } else {
        Takes::Nothing
    })
}

fn shown(argument: &OsStr) -> String {
    fence_wire::escaped(argument.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "dt:S::n:?h";

    fn taken(arguments: &[&str]) -> Result<(Vec<String>, Vec<String>), GetoptError> {
        let line = parse(SPEC, arguments.iter().map(OsString::from))?;
        let text = |s: OsString| s.into_string().unwrap();
        let options = line.options.into_iter().map(|o| match o.value {
            Some(value) => format!("{}={}", o.letter, text(value)),
            None => o.letter.to_string(),
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
        assert_eq!(say(&["-dt"]), "option -t needs a value");
    }
}
