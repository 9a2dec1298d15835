// SPDX-License-Identifier: GPL-2.0-or-later
//! Text of a peer, made safe for a log or a terminal.
//!
//! Must never pass a character on that moves a cursor, ends a line or changes the writing direction.

use core::fmt::{self, Write as _};

/// Shows bytes of unknown origin on one line, without anything that a terminal or a log reader acts on.
///
/// Valid UTF-8 stays readable. Control characters (C0, DEL, C1), line and paragraph separators, marks that
/// change the writing direction, backslashes and bytes that are not UTF-8 appear as `\xNN` or `\u{N}`.
pub fn escaped<T: AsRef<[u8]> + ?Sized>(bytes: &T) -> EscapedText<'_> {
    EscapedText(bytes.as_ref())
}

/// Bytes to be shown by [`escaped`].
#[derive(Clone, Copy)]
pub struct EscapedText<'a>(&'a [u8]);

impl fmt::Display for EscapedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
                    c if is_unsafe_to_show(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for EscapedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

fn is_unsafe_to_show(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{61c}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns the bytes before the first NUL of a fixed field; none when the field has no NUL.
pub(crate) fn until_nul(field: &[u8]) -> Option<&[u8]> {
    field.iter().position(|&b| b == 0).map(|end| &field[..end])
}

/// Returns the longest beginning of `text` that fits into `room` bytes and ends between two characters.
pub(crate) fn cut(text: &str, room: usize) -> &str {
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_with_an_effect_on_a_terminal_are_escaped() {
        let show = |b: &[u8]| escaped(b).to_string();
        assert_eq!(show(b"vm-1 \xc3\xa4"), "vm-1 \u{e4}");
        assert_eq!(show(b"\x1b[2J\n\r\x7f\\"), "\\x1b[2J\\x0a\\x0d\\x7f\\\\");
        assert_eq!(show(b"a\xffb\xc3"), "a\\xffb\\xc3");
        assert_eq!(show("\u{9b}31m\u{202e}x\u{2028}".as_bytes()), "\\u{9b}31m\\u{202e}x\\u{2028}");
    }

    #[test]
    fn cut_keeps_characters_whole() {
        assert_eq!(cut("a\u{e4}", 2), "a");
        assert_eq!(cut("a\u{e4}", 3), "a\u{e4}");
    }
}
