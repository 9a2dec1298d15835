// SPDX-License-Identifier: GPL-2.0-or-later
//! The shared key and what is computed with it.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes that every hash takes on the wire; shorter digests are padded with zeros.
pub const HASH_LEN: usize = 64;
/// Bytes of a key file that count; what comes after them is ignored, as the reference does.
pub const KEY_MAX: usize = 4096;
/// Bytes that a key must have. An empty or one-byte key file is an accident, never a secret.
pub const KEY_MIN: usize = 2;

/// The keyed hash of a request packet, or of a challenge.
///
/// The order is the order of strength: a receiver refuses a packet whose type is below its minimum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum HashType {
    /// No hash: anybody may send it.
    None = 0,
    /// SHA-1, 20 bytes.
    Sha1 = 1,
    /// SHA-256, 32 bytes. The default of both ends.
    Sha256 = 2,
    /// SHA-512, 64 bytes.
    Sha512 = 3,
}

impl HashType {
    /// Every type, weakest first.
    pub const ALL: [Self; 4] = [Self::None, Self::Sha1, Self::Sha256, Self::Sha512];

    /// The byte on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The name in configuration and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The type that a name of configuration or command line stands for; case does not matter.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for HashType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The hash byte is of no type that this side knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown hash type {0}")]
pub struct UnknownHash(pub u8);

impl TryFrom<u8> for HashType {
    type Error = UnknownHash;

    fn try_from(number: u8) -> Result<Self, UnknownHash> {
        Self::ALL.get(usize::from(number)).copied().ok_or(UnknownHash(number))
    }
}

/// The content of a key file cannot serve as a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Fewer than [`KEY_MIN`] bytes.
    #[error("a key of {0} bytes is too short (at least {KEY_MIN}, better 512)")]
    TooShort(usize),
}

/// The secret that hosts and guests share. Wiped from memory when dropped; never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// A key from the content of a key file: all its bytes (a line end at its end included), up to
    /// [`KEY_MAX`].
    ///
    /// # Errors
    /// [`KeyError::TooShort`] for fewer than [`KEY_MIN`] bytes.
    pub fn new(content: &[u8]) -> Result<Self, KeyError> {
        if content.len() < KEY_MIN {
            return Err(KeyError::TooShort(content.len()));
        }
        Ok(Self(Zeroizing::new(content[..content.len().min(KEY_MAX)].to_vec())))
    }

    /// How many bytes of the file count.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Whether both are the same secret.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }

    /// Four hex digits by which two people can tell whether they hold the same key.
    ///
    /// Short and slow on purpose (16 bits of PBKDF2-HMAC-SHA-256 with 50 000 rounds, some ten milliseconds):
    /// a log line with it leaves a guesser of a weak key with one in 65 536 of his candidates, at a cost.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        const ROUNDS: u32 = 50_000;
        let keyed =
            HmacSha256::new_from_slice(&self.0).unwrap_or_else(|_| HmacSha256::new(&Default::default()));
        let once = |input: &[u8]| {
            let mut mac = keyed.clone();
            mac.update(input);
            mac.finalize().into_bytes()
        };
        let mut u = once(b"fence_virt key fingerprint\0\0\0\0\x01");
        let mut sum = u;
        for _ in 1..ROUNDS {
            u = once(&u);
            sum.iter_mut().zip(u).for_each(|(s, u)| *s ^= u);
        }
        format!("{:02x}{:02x}", sum[0], sum[1])
    }

    /// H(key ‖ data), zero-padded; all zeros for [`HashType::None`].
    pub(crate) fn hash(&self, hash: HashType, data: &[u8]) -> [u8; HASH_LEN] {
        fn digest<D: Digest>(key: &[u8], data: &[u8], padded: &mut [u8; HASH_LEN]) {
            let sum = D::new().chain_update(key).chain_update(data).finalize();
            padded[..sum.len()].copy_from_slice(&sum);
        }
        let mut padded = [0; HASH_LEN];
        match hash {
            HashType::None => {}
            HashType::Sha1 => digest::<Sha1>(&self.0, data, &mut padded),
            HashType::Sha256 => digest::<Sha256>(&self.0, data, &mut padded),
            HashType::Sha512 => digest::<Sha512>(&self.0, data, &mut padded),
        }
        padded
    }

    /// Whether `received` is H(key ‖ data), in a time that does not depend on where they differ.
    pub(crate) fn verifies(&self, hash: HashType, data: &[u8], received: &[u8; HASH_LEN]) -> bool {
        hash != HashType::None && self.hash(hash, data).ct_eq(received).into()
    }
}

type HmacSha256 = Hmac<Sha256>;

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_accidents_are_refused() {
        assert_eq!(Key::new(b"").unwrap_err(), KeyError::TooShort(0));
        assert_eq!(Key::new(b"\n").unwrap_err(), KeyError::TooShort(1));
        assert!(Key::new(b"ab").is_ok());
    }

    #[test]
    fn only_the_first_4096_bytes_count() {
        let mut long = vec![7; KEY_MAX];
        let short = Key::new(&long).unwrap();
        long.push(1);
        assert_eq!(Key::new(&long).unwrap().hash(HashType::Sha256, b"x"), short.hash(HashType::Sha256, b"x"));
        assert!(Key::new(&long).unwrap().is_same(&short));
        assert!(!Key::new(&long[1..100]).unwrap().is_same(&short));
    }

    #[test]
    fn a_key_is_never_shown() {
        assert_eq!(format!("{:?}", Key::new(b"secret").unwrap()), "Key(..)");
    }

    #[test]
    fn the_fingerprint_is_pbkdf2() {
        // hashlib.pbkdf2_hmac('sha256', b'secret', b'fence_virt key fingerprint\0', 50000)[:2].hex()
        assert_eq!(Key::new(b"secret").unwrap().fingerprint(), FINGERPRINT_OF_SECRET);
    }
    const FINGERPRINT_OF_SECRET: &str = "aafe";

    #[test]
    fn no_hash_verifies_nothing() {
        assert!(!Key::new(b"secret").unwrap().verifies(HashType::None, b"x", &[0; HASH_LEN]));
    }

    #[test]
    fn names_and_numbers_round_trip() {
        for t in HashType::ALL {
            assert_eq!(HashType::try_from(t.number()), Ok(t));
            assert_eq!(HashType::from_name(&t.name().to_uppercase()), Some(t));
        }
        assert_eq!(HashType::try_from(4), Err(UnknownHash(4)));
    }
}
