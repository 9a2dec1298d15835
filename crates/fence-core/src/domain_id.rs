// SPDX-License-Identifier: GPL-2.0-or-later
//! Identity of a domain, in all its spellings.
//!
//! Owns one value, which any task may hold. Must never do I/O.

use std::fmt;

/// Identity of a domain: its UUID. Displays as lower-case `8-4-4-4-12` text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(u128);

impl DomainId {
    /// Parses 32 hexadecimal digits of any case, alone or with dashes as in the canonical text, with white
    /// space around.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
        let is_canonical =
            text.len() == 36 && text.bytes().enumerate().all(|(at, byte)| (byte == b'-') == is_dash(at));
        Self::parse_any_dashes(text).filter(|_| is_canonical || text.len() == 32)
    }

    /// Parses 32 hexadecimal digits of any case, with dashes anywhere, as groups of the configuration may
    /// have them.
    pub fn parse_any_dashes(text: &str) -> Option<Self> {
        let mut digits = 0_usize;
        let value = text.chars().filter(|it| *it != '-').try_fold(0_u128, |value, it| {
            digits += 1;
            // After 32 digits the first ones are gone, and the count says so.
            Some(value << 4 | u128::from(it.to_digit(16)?))
        })?;
        (digits == 32).then_some(Self(value))
    }

    /// Parses the text that [`Display`](fmt::Display) writes, and no other.
    pub fn parse_canonical(text: &str) -> Option<Self> {
        Self::parse(text).filter(|it| it.to_string() == text)
    }

    /// Returns the identity of these bytes, in the order of the text.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Returns the bytes, in the order of the text.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        f.write_str(&parts.join("-"))
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_id_is_displayed_as_canonical_text() {
        let text = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";
        for other in [text.to_owned(), text.to_uppercase(), text.replace('-', ""), format!(" {text}\n")] {
            let id = DomainId::parse(&other).unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(DomainId::from_bytes(id.to_bytes()), id);
        }
        let zeros = "00000000-0000-0000-0000-00000000000a";
        assert_eq!(DomainId::parse(zeros).unwrap().to_string(), zeros);
        let canonical = DomainId::parse_canonical;
        assert_eq!((canonical(text), canonical(zeros)), (DomainId::parse(text), Some(DomainId(10))));
        for other in [text.to_uppercase(), text.replace('-', ""), format!(" {text}\n"), "web".to_owned()] {
            assert_eq!(canonical(&other), None, "{other}");
        }
        let odd = "5a40-a06f1a5b-4d2e-9d2c-8b3f0b1f4f1c";
        assert_eq!(DomainId::parse(odd), None);
        assert_eq!(DomainId::parse_any_dashes(odd), DomainId::parse(text));
        for wrong in ["", "web", &text[1..], &format!("{text}0"), &text.replace('5', "g")] {
            assert_eq!((DomainId::parse(wrong), DomainId::parse_any_dashes(wrong)), (None, None), "{wrong}");
        }
    }

    #[test]
    fn a_domain_id_may_have_dashes_anywhere() {
        let value = Some(DomainId(0x1234_5678_9abc_def0_1234_5678_9abc_def0));
        for text in [
            "12345678-9abc-def0-1234-56789abcdef0",
            "12345678-9ABC-DEF0-1234-56789ABCDEF0",
            "123456789abcdef0123456789abcdef0",
            "-123456789abcdef0-123456789abcdef0-",
        ] {
            assert_eq!(DomainId::parse_any_dashes(text), value, "{text}");
        }
        for text in [
            "",
            "-",
            "vm1",
            "12345678-9abc-def0-1234-56789abcdef",
            "12345678-9abc-def0-1234-56789abcdef00",
            "012345678-9abc-def0-1234-56789abcdef0",
            "12345678-9abc-def0-1234-56789abcdefg",
            "+2345678-9abc-def0-1234-56789abcdef0",
            "12345678 9abc def0 1234 56789abcdef0",
            "\u{ff11}2345678-9abc-def0-1234-56789abcdef0",
        ] {
            assert_eq!(DomainId::parse_any_dashes(text), None, "{text}");
        }
    }
}
