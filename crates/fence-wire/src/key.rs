// SPDX-License-Identifier: GPL-2.0-or-later
//! Shared key, and the hashes under it.
//!
//! Owns the key's bytes and every computation with them. Must never show a byte of the key, nor compare
//! hashes in a time that depends on them.

use core::fmt;
use std::sync::{Arc, OnceLock};

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

/// Secret that hosts and guests share. Wiped from memory when the last copy is dropped; never shown.
///
/// A clone is the same memory. The hashes go on from a state that is made once, so that a long key costs a
/// packet no more than a short one. These states are as secret as the key, and are wiped with it.
#[derive(Clone)]
pub struct Key(Arc<KeySecret>);

/// Bytes of a key, and everything that is made of them once.
struct KeySecret {
    bytes: Zeroizing<Vec<u8>>,
    sha1: OnceLock<Sha1>,
    sha256: OnceLock<Sha256>,
    sha512: OnceLock<Sha512>,
    hmac_sha256: OnceLock<HmacSha256>,
    hmac_sha512: OnceLock<Hmac<Sha512>>,
    fingerprint: OnceLock<String>,
}

/// Tag of a key, by which a daemon tells keys apart without their bytes. Whoever has it can test candidates
/// for the key, as with a packet that was recorded: it must never be shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyTag([u8; 32]);

impl KeyTag {
    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for KeyTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyTag(..)")
    }
}

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
        Ok(Self::from_bytes(Zeroizing::new(content[..content.len().min(KEY_MAX)].to_vec())))
    }

    /// Makes a key from bytes that were computed, not read from a file.
    pub(crate) fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Arc::new(KeySecret {
            bytes,
            sha1: OnceLock::new(),
            sha256: OnceLock::new(),
            sha512: OnceLock::new(),
            hmac_sha256: OnceLock::new(),
            hmac_sha512: OnceLock::new(),
            fingerprint: OnceLock::new(),
        }))
    }

    /// Returns the number of bytes of the file that count.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.bytes.len()
    }

    /// Returns whether both are the same secret.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.shares_memory(other) || bool::from(self.0.bytes.as_slice().ct_eq(other.0.bytes.as_slice()))
    }

    /// Returns the fingerprint: four hex digits by which two people can tell whether they hold the same key.
    ///
    /// Short and slow on purpose: 16 bits of PBKDF2-HMAC-SHA-256 with 50 000 rounds, some ten milliseconds. A
    /// log line with it reduces a weak key's candidates to one in 65 536, at a cost for each.
    /// It is made when it is first asked for, and once for all clones of a key.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint.get_or_init(|| self.slow_fingerprint()).clone()
    }

    /// Returns whether the fingerprint was made before.
    #[must_use]
    pub fn has_fingerprint(&self) -> bool {
        self.0.fingerprint.get().is_some()
    }

    /// Returns whether both are clones of one key: what is made of one is made of the other.
    #[must_use]
    pub fn shares_memory(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn slow_fingerprint(&self) -> String {
        const ROUNDS: u32 = 50_000;
        let keyed = self.0.hmac_sha256();
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

    /// Returns the tag of the key.
    #[must_use]
    pub fn tag(&self) -> KeyTag {
        let sum = self.mac(SealedHash::HmacSha256, b"fence_virt key tag\0").finish();
        KeyTag(core::array::from_fn(|i| sum[i]))
    }

    /// Returns H(key ‖ data), zero-padded.
    pub(crate) fn hash(&self, hash: ClassicHash, data: &[u8]) -> [u8; HASH_LEN] {
        fn digest<D: Digest + Clone>(key: &[u8], state: &OnceLock<D>, data: &[u8]) -> [u8; HASH_LEN] {
            let keyed = state.get_or_init(|| D::new().chain_update(key));
            padded(&keyed.clone().chain_update(data).finalize())
        }
        let secret = &*self.0;
        match hash {
            ClassicHash::Sha1 => digest(&secret.bytes, &secret.sha1, data),
            ClassicHash::Sha256 => digest(&secret.bytes, &secret.sha256, data),
            ClassicHash::Sha512 => digest(&secret.bytes, &secret.sha512, data),
        }
    }

    /// Begins HMAC(key, label ‖ …); the caller adds the rest.
    pub(crate) fn mac(&self, hash: SealedHash, label: &[u8]) -> KeyedMac {
        let mut keyed = match hash {
            SealedHash::HmacSha256 => KeyedMac::Sha256(self.0.hmac_sha256().clone()),
            SealedHash::HmacSha512 => {
                KeyedMac::Sha512(self.0.hmac_sha512.get_or_init(|| keyed(&self.0.bytes)).clone())
            }
        };
        keyed.update(label);
        keyed
    }
}

impl KeySecret {
    fn hmac_sha256(&self) -> &HmacSha256 {
        self.hmac_sha256.get_or_init(|| keyed(&self.bytes))
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
        let key = Key::new(b"secret").unwrap();
        assert_eq!(format!("{key:?} {:?}", key.tag()), "Key(..) KeyTag(..)");
    }

    /// A state from which a hash can be made is a key.
    #[test]
    fn states_are_wiped_as_keys_are() {
        use sha2::digest::block_api::EagerHash;
        fn is_wiped<T: zeroize::ZeroizeOnDrop>() {}
        is_wiped::<Sha1>();
        is_wiped::<Sha256>();
        is_wiped::<Sha512>();
        // An HMAC is two of these.
        is_wiped::<<Sha256 as EagerHash>::Core>();
        is_wiped::<<Sha512 as EagerHash>::Core>();
    }

    /// A kept state gives what the whole key gives, for lengths around the blocks of each hash.
    #[test]
    fn a_hash_from_the_kept_state_is_that_of_the_whole_key() {
        for length in [2, 55, 56, 63, 64, 65, 111, 112, 127, 128, 129, 512, KEY_MAX - 1, KEY_MAX] {
            let bytes: Vec<u8> = (0..length).map(|it| u8::try_from(it % 251).unwrap()).collect();
            let key = Key::new(&bytes).unwrap();
            for data in [b"one".as_slice(), &[9; 176], b""] {
                let all = [&bytes[..], data].concat();
                assert_eq!(key.hash(ClassicHash::Sha1, data), padded(&Sha1::digest(&all)), "{length}");
                assert_eq!(key.hash(ClassicHash::Sha256, data), padded(&Sha256::digest(&all)), "{length}");
                assert_eq!(key.hash(ClassicHash::Sha512, data), padded(&Sha512::digest(&all)), "{length}");
                let (mut short, mut long) = (keyed::<HmacSha256>(&bytes), keyed::<Hmac<Sha512>>(&bytes));
                short.update(data);
                long.update(data);
                let ours =
                    [SealedHash::HmacSha256, SealedHash::HmacSha512].map(|it| key.mac(it, data).finish());
                assert_eq!(ours[0], padded(&short.finalize().into_bytes()), "{length}");
                assert_eq!(ours[1], padded(&long.finalize().into_bytes()), "{length}");
            }
        }
    }

    /// A key of 4096 bytes costs a packet no more than one of 64: the ratio of the best times of one run.
    #[test]
    fn a_long_key_costs_a_packet_no_more_than_a_short_one() {
        let [short, long] = [64, KEY_MAX].map(|it| Key::new(&vec![7; it]).unwrap());
        let packets = |work: &dyn Fn()| {
            let once = || {
                let since = std::time::Instant::now();
                (0..200).for_each(|_| work());
                since.elapsed()
            };
            (0..50).map(|_| once()).min().unwrap()
        };
        for classic in [ClassicHash::Sha256, ClassicHash::Sha512] {
            let [short, long] = [&short, &long]
                .map(|key| packets(&|| drop(std::hint::black_box(key.hash(classic, &[1; 176]).to_vec()))));
            assert!(long < short * 3, "{classic:?}: {short:?}, {long:?}");
        }
        for sealed in [SealedHash::HmacSha256, SealedHash::HmacSha512] {
            let [short, long] = [&short, &long].map(|key| {
                packets(&|| drop(std::hint::black_box(key.mac(sealed, &[1; 195]).finish().to_vec())))
            });
            assert!(long < short * 3, "{sealed:?}: {short:?}, {long:?}");
        }
    }

    #[test]
    fn a_clone_is_the_same_memory_and_a_tag_tells_keys_apart() {
        let key = Key::new(b"secret").unwrap();
        let clone = key.clone();
        assert!(clone.is_same(&key) && clone.0.fingerprint.get().is_none());
        assert_eq!(Some(&key.fingerprint()), clone.0.fingerprint.get());
        assert_eq!(key.tag(), Key::new(b"secret").unwrap().tag());
        assert_ne!(key.tag(), Key::new(b"secre").unwrap().tag());
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
