// SPDX-License-Identifier: GPL-2.0-or-later
//! Shared key, and the hashes under it.
//!
//! Owns the key's bytes and every computation with them. Must never show a byte of the key, nor compare
//! hashes in a time that depends on them.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of every hash on the wire in bytes; shorter digests are padded with zeros.
pub const HASH_LEN: usize = 64;
/// Bytes of a key file that count. The bytes after them are ignored, as the C programs do.
pub const KEY_MAX: usize = 4096;
/// Least number of bytes of a key. An empty or one-byte key file is an accident, never a secret.
pub const KEY_MIN: usize = 2;

/// Hash type of a request packet: classic types have a plain keyed hash, sealed ones an HMAC.
///
/// The order is that of strength: a receiver refuses a packet whose type is below its minimum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum HashType {
    /// No hash: any machine may send the packet.
    None = 0,
    /// SHA-1, 20 bytes.
    Sha1 = 1,
    /// SHA-256, 32 bytes. The default of both ends.
    Sha256 = 2,
    /// SHA-512, 64 bytes.
    Sha512 = 3,
    /// Sealed: HMAC with SHA-256, 32 bytes.
    HmacSha256 = 0x12,
    /// Sealed: HMAC with SHA-512, 64 bytes.
    HmacSha512 = 0x13,
}

impl HashType {
    /// Every type, weakest first.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Sha1, Self::Sha256, Self::Sha512, Self::HmacSha256, Self::HmacSha512];

    /// Returns the byte on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the name in configuration and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha512 => "hmac-sha512",
        }
    }

    /// Returns the type with this name of configuration or command line; case does not matter.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Returns the plain keyed hash; none for other types.
    #[must_use]
    pub fn classic(self) -> Option<ClassicHash> {
        match self {
            Self::Sha1 => Some(ClassicHash::Sha1),
            Self::Sha256 => Some(ClassicHash::Sha256),
            Self::Sha512 => Some(ClassicHash::Sha512),
            Self::None | Self::HmacSha256 | Self::HmacSha512 => None,
        }
    }

    /// Returns the HMAC; none for other types.
    #[must_use]
    pub fn sealed(self) -> Option<SealedHash> {
        match self {
            Self::HmacSha256 => Some(SealedHash::HmacSha256),
            Self::HmacSha512 => Some(SealedHash::HmacSha512),
            Self::None | Self::Sha1 | Self::Sha256 | Self::Sha512 => None,
        }
    }
}

/// Plain keyed hash H(key ‖ data) of classic packets and challenges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClassicHash {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// HMAC of sealed packets, streams and responses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SealedHash {
    /// HMAC with SHA-256.
    HmacSha256,
    /// HMAC with SHA-512.
    HmacSha512,
}

impl From<SealedHash> for HashType {
    fn from(hash: SealedHash) -> Self {
        match hash {
            SealedHash::HmacSha256 => Self::HmacSha256,
            SealedHash::HmacSha512 => Self::HmacSha512,
        }
    }
}

impl fmt::Display for HashType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Error for a hash byte that is of no known type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown hash type {0}")]
pub struct UnknownHash(pub u8);

impl TryFrom<u8> for HashType {
    type Error = UnknownHash;

    fn try_from(number: u8) -> Result<Self, UnknownHash> {
        Self::ALL.into_iter().find(|it| it.number() == number).ok_or(UnknownHash(number))
    }
}

/// Error for file content that cannot serve as a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Fewer than [`KEY_MIN`] bytes.
    #[error("a key of {0} bytes is too short (at least {KEY_MIN}, better 512)")]
    TooShort(usize),
}

/// Secret that hosts and guests share. Wiped from memory when dropped; never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// Makes a key from the content of a key file: all its bytes (a line end at its end included), up to
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

    /// Makes a key from bytes that were computed, not read from a file.
    pub(crate) fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes of the file that count.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Returns whether both are the same secret.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }

    /// Returns the fingerprint: four hex digits by which two people can tell whether they hold the same key.
    ///
    /// Short and slow on purpose: 16 bits of PBKDF2-HMAC-SHA-256 with 50 000 rounds, some ten milliseconds. A
    /// log line with it reduces a weak key's candidates to one in 65 536, at a cost for each.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        const ROUNDS: u32 = 50_000;
        let keyed: HmacSha256 = keyed(&self.0);
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

    /// Returns H(key ‖ data), zero-padded.
    pub(crate) fn hash(&self, hash: ClassicHash, data: &[u8]) -> [u8; HASH_LEN] {
        fn digest<D: Digest>(key: &[u8], data: &[u8]) -> [u8; HASH_LEN] {
            padded(&D::new().chain_update(key).chain_update(data).finalize())
        }
        match hash {
            ClassicHash::Sha1 => digest::<Sha1>(&self.0, data),
            ClassicHash::Sha256 => digest::<Sha256>(&self.0, data),
            ClassicHash::Sha512 => digest::<Sha512>(&self.0, data),
        }
    }

    /// Begins HMAC(key, label ‖ …); the caller adds the rest.
    pub(crate) fn mac(&self, hash: SealedHash, label: &[u8]) -> KeyedMac {
        let mut keyed = match hash {
            SealedHash::HmacSha256 => KeyedMac::Sha256(keyed(&self.0)),
            SealedHash::HmacSha512 => KeyedMac::Sha512(keyed(&self.0)),
        };
        keyed.update(label);
        keyed
    }
}

/// Returns whether two hashes are equal, in a time that does not depend on the place of a difference.
pub(crate) fn same(a: &[u8; HASH_LEN], b: &[u8; HASH_LEN]) -> bool {
    a.ct_eq(b).into()
}

/// HMAC in progress.
#[derive(Clone)]
pub(crate) enum KeyedMac {
    Sha256(HmacSha256),
    Sha512(Hmac<Sha512>),
}

impl KeyedMac {
    pub(crate) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(mac) => mac.update(data),
            Self::Sha512(mac) => mac.update(data),
        }
    }

    pub(crate) fn with(mut self, data: &[u8]) -> Self {
        self.update(data);
        self
    }

    /// Returns the HMAC, zero-padded.
    pub(crate) fn finish(self) -> [u8; HASH_LEN] {
        match self {
            Self::Sha256(mac) => padded(&mac.finalize().into_bytes()),
            Self::Sha512(mac) => padded(&mac.finalize().into_bytes()),
        }
    }
}

impl fmt::Debug for KeyedMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyed(..)")
    }
}

fn padded(sum: &[u8]) -> [u8; HASH_LEN] {
    core::array::from_fn(|i| sum.get(i).copied().unwrap_or(0))
}

fn keyed<M: Mac + KeyInit>(key: &[u8]) -> M {
    // HMAC is defined for keys of every length. No answer is better than one under another key.
    M::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"))
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
        assert_eq!(
            Key::new(&long).unwrap().hash(ClassicHash::Sha256, b"x"),
            short.hash(ClassicHash::Sha256, b"x")
        );
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
    fn names_and_numbers_round_trip() {
        for t in HashType::ALL {
            assert_eq!(HashType::try_from(t.number()), Ok(t));
            assert_eq!(HashType::from_name(&t.name().to_uppercase()), Some(t));
        }
        for unknown in [4, 0x10, 0x11, 0x14, 0xff] {
            assert_eq!(HashType::try_from(unknown), Err(UnknownHash(unknown)));
        }
    }

    #[test]
    fn every_type_is_of_one_kind_and_sealed_is_stronger() {
        let kinds = |t: HashType| (t == HashType::None, t.classic().is_some(), t.sealed().is_some());
        for t in HashType::ALL {
            let (none, classic, sealed) = kinds(t);
            assert_eq!(u8::from(none) + u8::from(classic) + u8::from(sealed), 1, "{t}");
            assert_eq!(sealed, t > HashType::Sha512, "{t}");
        }
        assert!(HashType::ALL.is_sorted() && HashType::ALL.is_sorted_by_key(|t| t.number()));
    }

    #[test]
    fn padding_counts_in_comparisons() {
        let sum = Key::new(b"secret").unwrap().mac(SealedHash::HmacSha256, b"x").finish();
        assert!(same(&sum, &sum) && sum[32..] == [0; 32]);
        for at in 0..HASH_LEN {
            let mut changed = sum;
            changed[at] ^= 1;
            assert!(!same(&sum, &changed));
        }
    }
}
