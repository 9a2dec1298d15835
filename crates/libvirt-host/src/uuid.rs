// SPDX-License-Identifier: GPL-2.0-or-later
//! Identity of a domain, as libvirt reads and writes it.

use std::fmt;
use std::str::FromStr;

/// UUID of a domain: 16 bytes, in the order of the text.
///
/// Displays as lower-case `8-4-4-4-12` text. Parses every text that libvirt accepts: 32 hexadecimal digits of
/// any case, with `-` and blanks anywhere between (not inside) pairs, and white space around.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid([u8; 16]);

/// Error for a text that is no UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID")]
pub struct ParseUuidError;

impl Uuid {
    /// Makes the UUID of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for Uuid {
    type Err = ParseUuidError;

    fn from_str(text: &str) -> Result<Self, ParseUuidError> {
        let mut bytes = [0; 16];
        let mut rest = text.trim_matches(|c: char| c.is_ascii_whitespace()).bytes();
        for byte in &mut bytes {
            let high = rest.by_ref().find(|b| !matches!(b, b'-' | b' ')).ok_or(ParseUuidError)?;
            let low = rest.next().ok_or(ParseUuidError)?;
            *byte = (digit(high)? << 4) | digit(low)?;
        }
        if rest.next().is_some() {
            return Err(ParseUuidError);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn digit(byte: u8) -> Result<u8, ParseUuidError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(ParseUuidError),
    }
}
