// SPDX-License-Identifier: GPL-2.0-or-later
//! Traces of secrets in text: pieces of them, however they are written.
//!
//! The mask finds a secret in the forms in which programs write it. What it can't find is looked for here,
//! and a text with such a trace is not shown at all: a secret in an encoding within another one, in letters
//! of another case, or with blanks, line ends, controls or a terminal's escapes in it. Pure.

use std::collections::HashSet;

use zeroize::{Zeroize as _, Zeroizing};

/// Bytes of a secret in a row that are a trace of it.
const PIECE: usize = 8;
/// Encodings within each other that are read.
const DEPTH: usize = 2;
/// Digits of a hexadecimal or base64 text that is read: shorter ones have no piece of a secret.
const MIN_RUN: usize = 8;

/// Pieces of secrets. Each is as long as [`PIECE`], or a whole secret that is shorter.
pub(super) struct SecretTraces {
    pieces: HashSet<Vec<u8>>,
    lengths: Vec<usize>,
}

/// View of a text with one encoding taken off.
type Decoder = fn(&[u8]) -> Vec<u8>;

const DECODERS: [Decoder; 5] = [percent, backslashes, entities, hexadecimal, base64];

impl SecretTraces {
    /// Takes the pieces of secrets that have at least this many bytes.
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>, shortest: usize) -> Self {
        let mut pieces = HashSet::new();
        for secret in secrets.into_iter().filter(|it| it.len() >= shortest) {
            let plain = Zeroizing::new(folded(secret.as_bytes()));
            let length = plain.len().min(PIECE);
            // What is left of blanks alone is in any text.
            if length >= shortest.min(PIECE) {
                pieces.extend(plain.windows(length).map(<[u8]>::to_vec));
            }
        }
        let lengths: HashSet<usize> = pieces.iter().map(Vec::len).collect();
        Self { pieces, lengths: lengths.into_iter().collect() }
    }

    /// Returns whether a piece of a secret is in the text, in any of the ways to write it known here.
    pub(super) fn are_in(&self, text: &[u8]) -> bool {
        if self.pieces.is_empty() {
            return false;
        }
        let mut views = vec![Zeroizing::new(text.to_vec())];
        for depth in 0..=DEPTH {
            if views.iter().any(|it| self.are_plain_in(it)) {
                return true;
            }
            if depth == DEPTH {
                break;
            }
            let both = views.iter().flat_map(|it| [it.to_vec(), squeezed(it)]).map(Zeroizing::new);
            let both: Vec<_> = both.collect();
            let decoded = both.iter().flat_map(|view| {
                // What is the same as before has nothing new.
                let all = DECODERS.iter().map(|decode| Zeroizing::new(decode(view)));
                all.filter(|it| **it != **view && it.len() >= self.shortest()).collect::<Vec<_>>()
            });
            let mut next: Vec<_> = decoded.collect();
            next.sort_unstable_by(|one, other| one.as_slice().cmp(other.as_slice()));
            next.dedup();
            views = next;
        }
        false
    }

    fn shortest(&self) -> usize {
        self.lengths.iter().copied().min().unwrap_or_default()
    }

    fn are_plain_in(&self, text: &[u8]) -> bool {
        let text = Zeroizing::new(folded(text));
        let has = |length: &usize| text.windows(*length).any(|it| self.pieces.contains(it));
        self.lengths.iter().any(has)
    }
}

impl Drop for SecretTraces {
    fn drop(&mut self) {
        self.pieces.drain().for_each(|mut it| it.zeroize());
    }
}

/// Returns the text without blanks, controls and escapes.
fn squeezed(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            // ESC [ … letter, and ESC with one more character.
            0x1b => {
                let is_sequence = rest.first() == Some(&b'[');
                let end = if is_sequence {
                    rest.iter().skip(1).position(|it| (0x40..0x7f).contains(it)).map(|it| it + 2)
                } else {
                    Some(1)
                };
                // One that does not end is a control like others.
                rest = rest.get(end.unwrap_or(0)..).unwrap_or_default();
            }
            0..=0x20 | 0x7f => {}
            it => out.push(*it),
        }
    }
    out
}

/// Returns the same in small letters.
fn folded(text: &[u8]) -> Vec<u8> {
    squeezed(text).to_ascii_lowercase()
}

fn hex_value(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.is_empty() || !text.bytes().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

fn push_char(out: &mut Vec<u8>, number: u32) -> Option<()> {
    let it = char::from_u32(number)?;
    out.extend_from_slice(it.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

/// Replaces what `take` can read at a place; it returns the number of bytes that it has read.
fn replaced(text: &[u8], take: impl Fn(&[u8], &mut Vec<u8>) -> Option<usize>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match take(&text[at..], &mut out) {
            Some(length) => at += length.max(1),
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

/// Reads URLs and the bodies of forms.
fn percent(text: &[u8]) -> Vec<u8> {
    replaced(text, |it, out| {
        if it.first() == Some(&b'+') {
            out.push(b' ');
            return Some(1);
        }
        let digits = it.strip_prefix(b"%")?.get(..2)?;
        out.push(u8::try_from(hex_value(digits)?).ok()?);
        Some(3)
    })
}

/// Reads JSON, and strings of shells and programming languages.
fn backslashes(text: &[u8]) -> Vec<u8> {
    replaced(text, |it, out| {
        let (kind, rest) = it.strip_prefix(b"\\")?.split_first()?;
        match kind {
            b'u' => push_char(out, hex_value(rest.get(..4)?)?).map(|()| 6),
            b'U' => push_char(out, hex_value(rest.get(..8)?)?).map(|()| 10),
            b'x' => {
                out.push(u8::try_from(hex_value(rest.get(..2)?)?).ok()?);
                Some(4)
            }
            b'0'..=b'3' => {
                let digits = std::str::from_utf8(it.get(1..4)?).ok()?;
                out.push(u8::from_str_radix(digits, 8).ok()?);
                Some(4)
            }
            b'n' | b'r' | b't' => Some(2),
            other => {
                out.push(*other);
                Some(2)
            }
        }
    })
}

/// Reads XML and HTML.
fn entities(text: &[u8]) -> Vec<u8> {
    const LONGEST: usize = 12;
    const NAMED: [(&[u8], u8); 6] =
        [(b"amp", b'&'), (b"lt", b'<'), (b"gt", b'>'), (b"quot", b'"'), (b"apos", b'\''), (b"nbsp", b' ')];
    replaced(text, |it, out| {
        let body = it.strip_prefix(b"&")?;
        let length = body.iter().take(LONGEST).position(|it| *it == b';')?;
        let name = &body[..length];
        if let Some((_, it)) = NAMED.iter().find(|(it, _)| *it == name) {
            out.push(*it);
        } else {
            let number = match name.strip_prefix(b"#")? {
                [b'x' | b'X', digits @ ..] => hex_value(digits)?,
                digits => std::str::from_utf8(digits).ok()?.parse().ok()?,
            };
            push_char(out, number)?;
        }
        Some(length + 2)
    })
}

/// Reads hexadecimal digits, also with signs, blanks or a prefix between the bytes, wherever the encoded text
/// begins in its digits.
fn hexadecimal(text: &[u8]) -> Vec<u8> {
    replaced(text, |it, out| {
        let (bytes, length) = hex_bytes(it);
        if bytes.len() < MIN_RUN / 2 {
            return None;
        }
        out.extend_from_slice(&bytes);
        // Not to be taken for one text with what follows.
        out.extend_from_slice(b"\xff\xff");
        out.extend_from_slice(&hex_bytes(&it[1..]).0);
        out.extend_from_slice(b"\xff\xff");
        Some(length)
    })
}

/// Returns the bytes that these digits begin with, and the length of their digits.
fn hex_bytes(digits: &[u8]) -> (Zeroizing<Vec<u8>>, usize) {
    let mut bytes = Zeroizing::new(Vec::new());
    let mut at = 0;
    while let Some(value) = digits.get(at..at + 2).and_then(hex_value) {
        bytes.extend(u8::try_from(value));
        at += 2;
        at += between_bytes(&digits[at..]);
    }
    (bytes, at)
}

/// Returns the length of what stands between two bytes in hexadecimal: `0x53, 0x33`, `53:33`, `=53=33`.
fn between_bytes(digits: &[u8]) -> usize {
    const LONGEST: usize = 3;
    let is_sign = |it: &&u8| it.is_ascii_whitespace() || b",;:.=-_%$'\"\\|/".contains(it);
    let signs = digits.iter().take(LONGEST).take_while(is_sign).count();
    let rest = &digits[signs..];
    let prefix = match rest {
        [b'0', b'x' | b'X', ..] => 2,
        [b'x' | b'X', ..] => 1,
        _ => 0,
    };
    let is_next = rest.get(prefix..prefix + 2).is_some_and(is_hex);
    if is_next { signs + prefix } else { 0 }
}

fn is_hex(digits: &[u8]) -> bool {
    hex_value(digits).is_some()
}

/// Reads base64, of either alphabet, wherever the encoded text begins in its digits.
fn base64(text: &[u8]) -> Vec<u8> {
    let digit = |it: &u8| match it {
        b'A'..=b'Z' => Some(it - b'A'),
        b'a'..=b'z' => Some(it - b'a' + 26),
        b'0'..=b'9' => Some(it - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    let mut out = Vec::with_capacity(4 * text.len());
    for run in text.split(|it| digit(it).is_none()).filter(|it| it.len() >= MIN_RUN) {
        for skipped in 0..4 {
            let mut bits = 0_u32;
            let mut count = 0;
            for it in run.iter().skip(skipped).filter_map(digit) {
                bits = bits << 6 | u32::from(it);
                count += 6;
                if count >= 8 {
                    count -= 8;
                    out.push(u8::try_from(bits >> count & 0xff).unwrap_or_default());
                }
            }
            // Not to be taken for one text with what follows.
            out.extend_from_slice(b"\xff\xff");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn traces(secret: &str) -> SecretTraces {
        SecretTraces::new([secret], 4)
    }

    fn hex_of(text: &[u8]) -> Vec<u8> {
        text.iter().flat_map(|it| format!("{it:02x}").into_bytes()).collect()
    }

    fn base64_of(text: &[u8]) -> Vec<u8> {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let chunk = |it: &[u8]| {
            let bits = (0..3).fold(0_u32, |sum, place| sum << 8 | u32::from(*it.get(place).unwrap_or(&0)));
            let digits = (0..=it.len()).map(|place| DIGITS[(bits >> (18 - 6 * place) & 63) as usize]);
            digits.collect::<Vec<u8>>()
        };
        text.chunks(3).flat_map(chunk).collect()
    }

    /// Name of a way to write a text, and the way.
    type Encoder = (&'static str, Decoder);

    /// Ways to write a text.
    const ENCODERS: [Encoder; 12] = [
        ("as it is", |it| it.to_vec()),
        ("percent", |it| it.iter().flat_map(|it| format!("%{it:02X}").into_bytes()).collect()),
        ("JSON", |it| it.iter().flat_map(|it| format!("\\u{:04x}", u32::from(*it)).into_bytes()).collect()),
        ("quotes", |it| {
            it.iter()
                .flat_map(|it| if b"\"\\'".contains(it) { vec![b'\\', *it] } else { vec![*it] })
                .collect()
        }),
        ("entities", |it| it.iter().flat_map(|it| format!("&#{it};").into_bytes()).collect()),
        ("entities, hexadecimal", |it| it.iter().flat_map(|it| format!("&#x{it:x};").into_bytes()).collect()),
        ("hexadecimal", hex_of),
        ("bytes of C", |it| it.iter().flat_map(|it| format!("0x{it:02x}, ").into_bytes()).collect()),
        ("quoted-printable", |it| it.iter().flat_map(|it| format!("={it:02X}").into_bytes()).collect()),
        ("base64", base64_of),
        ("UTF-16", |it| it.iter().flat_map(|it| [*it, 0]).collect()),
        ("lines", |it| it.chunks(3).collect::<Vec<_>>().join(&b"\r\n"[..])),
    ];

    #[test]
    fn a_secret_is_found_in_what_terminals_show() {
        let traces = traces("Correct-Horse");
        for text in [
            &b"correct-horse"[..],
            b"CORRECT-HORSE!",
            b"Cor\x1b[31mrect\x1b[0m-Ho\x1bMrse",
            b"C o r r e c t - H o r s e",
            b"xCorrect-\rHorse",
            b"login=Correct-",
        ] {
            assert!(traces.are_in(text), "{}", String::from_utf8_lossy(text));
        }
        for text in
            [&b"Correct, Horse"[..], b"", b"Correct", b"the horse is correct", b"\x1b[", b"\x1b", b"%4\\u12"]
        {
            assert!(!traces.are_in(text), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_short_secret_is_found_as_a_whole() {
        let traces = traces("s3cr");
        assert!(traces.are_in(b"x S3CR") && traces.are_in(b"%73%33%63%72") && !traces.are_in(b"s3c 4r3"));
        assert!(!SecretTraces::new(["s3cr"], 8).are_in(b"s3cr"));
        assert!(!SecretTraces::new(["    "], 4).are_in(b"   x     "), "blanks are in any text");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A secret with two encodings, one within the other, is found, whatever is around it; so is one with
        /// one encoding that is broken into lines.
        #[test]
        fn two_encodings_hide_nothing(
            secret in "[!-~]{8,20}",
            first in 0..ENCODERS.len(),
            second in 0..ENCODERS.len(),
            before in "[ -~]{0,12}",
            after in "[ -~]{0,12}",
        ) {
            let (first, second) = (ENCODERS[first], ENCODERS[second]);
            // Line ends within an encoding are read as part of it.
            prop_assume!(first.0 != "lines" || ["as it is", "lines", "UTF-16"].contains(&second.0));
            let text = second.1(&first.1(secret.as_bytes()));
            // A digit beside digits, and a backslash before one, are part of the text.
            let text = [before.as_bytes(), b" \t", &text, b" \t", after.as_bytes()].concat();
            prop_assert!(traces(&secret).are_in(&text), "{} in {}", first.0, second.0);
        }

        /// No text of other letters is hidden.
        #[test]
        fn other_text_has_no_trace(secret in "[g-m]{8,20}", text in "[n-zA-F0-9:, ]{0,200}") {
            prop_assert!(!traces(&secret).are_in(text.as_bytes()) || text.len() > 30);
        }
    }
}
