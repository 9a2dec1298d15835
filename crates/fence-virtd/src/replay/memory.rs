// SPDX-License-Identifier: GPL-2.0-or-later
//! The hashes of accepted packets: pure, bounded, in two generations.
//!
//! A packet is known by 8 bytes of a keyed hash: without the key nobody can make two packets with one hash.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use siphasher::sip::SipHasher24;

/// The key of the hash, drawn once for a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HashKey(pub(super) [u8; 16]);

impl HashKey {
    pub(super) fn random() -> Result<Self, rand::rngs::SysError> {
        let mut key = [0; 16];
        rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut key)?;
        Ok(Self(key))
    }

    pub(super) fn hash(&self, bytes: &[u8]) -> u64 {
        SipHasher24::new_with_key(&self.0).hash(bytes)
    }
}

/// The hashes of two generations; 20 MB when both are full.
pub(super) struct PacketHashes {
    key: HashKey,
    old: Hashes,
    young: Hashes,
    generation: usize,
}

impl PacketHashes {
    pub(super) fn new(key: HashKey, generation: usize) -> Self {
        Self { key, old: Hashes::default(), young: Hashes::default(), generation }
    }

    /// Returns the memory with the hashes of earlier runs, the older generation first.
    pub(super) fn with(key: HashKey, generation: usize, old: Vec<u64>, young: Vec<u64>) -> Self {
        Self { key, old: old.into_iter().collect(), young: young.into_iter().collect(), generation }
    }

    /// Enters a packet and returns its hash; none if an equal packet was entered before.
    pub(super) fn note(&mut self, packet: &[u8]) -> Option<u64> {
        let hash = self.key.hash(packet);
        if self.old.contains(&hash) || !self.young.insert(hash) {
            return None;
        }
        if self.young.len() >= self.generation {
            self.old = std::mem::take(&mut self.young);
        }
        Some(hash)
    }

    pub(super) fn len(&self) -> usize {
        self.old.len() + self.young.len()
    }
}

type Hashes = HashSet<u64, BuildHasherDefault<AsItIs>>;

/// Hasher that changes nothing: the keys are keyed hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(generation: usize) -> PacketHashes {
        PacketHashes::new(HashKey([7; 16]), generation)
    }

    #[test]
    fn the_same_bytes_are_never_honest() {
        let mut packets = packets(10);
        assert!(packets.note(b"1").is_some());
        assert!(packets.note(b"2").is_some());
        assert!(packets.note(b"1").is_none());
    }

    #[test]
    fn the_last_generation_is_known_whole_and_the_memory_bounded() {
        let mut packets = packets(100);
        for number in 0..10_000_u32 {
            assert!(packets.note(&number.to_le_bytes()).is_some());
            assert!(packets.len() <= 200);
            let oldest = number.saturating_sub(99);
            assert!((oldest..=number).all(|it| packets.note(&it.to_le_bytes()).is_none()), "{number}");
        }
    }

    #[test]
    fn another_key_is_another_hash() {
        assert_ne!(HashKey([1; 16]).hash(b"x"), HashKey([2; 16]).hash(b"x"));
    }
}
