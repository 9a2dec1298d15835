// SPDX-License-Identifier: GPL-2.0-or-later
//! The hashes of accepted packets: pure, bounded, in two generations, of all keys and of each key.
//!
//! A packet is known by 8 bytes of a keyed hash: without the key nobody can make two packets with one hash.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use fence_wire::KeyTag;
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

    fn id(&self, tag: &KeyTag) -> KeyId {
        let [a, b, c, d, ..] = self.hash(tag.bytes()).to_le_bytes();
        KeyId(u32::from_le_bytes([a, b, c, d]).max(1))
    }
}

/// Key of packets, as far as the memory and its files know it: a hash of its tag with the key of the
/// directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct KeyId(pub(super) u32);

impl KeyId {
    /// Key of packets that an earlier version remembered without it.
    pub(super) const UNKNOWN: Self = Self(0);
}

/// An accepted packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PacketRecord {
    pub(super) key: KeyId,
    pub(super) hash: u64,
}

/// Sizes of a memory, in packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemorySize {
    /// One generation of all packets, and one of a key at most.
    pub(super) generation: usize,
    /// One generation of each key in use, together.
    pub(super) of_keys: usize,
}

/// Mark in the place of a hash: what follows is of the younger generation.
pub(super) const END_OF_OLD: u64 = 0;

/// The hashes of packets, twice: those of all keys together in two generations, and those of each key in two
/// generations of its own.
///
/// A packet is known if it is in either. So no number of packets of one key makes the memory forget those of
/// another, and a key of which alone many packets come loses nothing by the others' shares.
///
/// A key that is not in use keeps its packets, since it may come back. There are two generations of such
/// packets at most: then the key that has most of them loses its own.
pub(super) struct PacketHashes {
    key: HashKey,
    size: MemorySize,
    all: Generations,
    of_keys: HashMap<KeyId, Generations>,
    in_use: HashSet<KeyId>,
}

/// Two generations of hashes. The older one is forgotten as a whole.
#[derive(Default)]
struct Generations {
    old: Hashes,
    young: Hashes,
}

impl PacketHashes {
    pub(super) fn new(key: HashKey, size: MemorySize) -> Self {
        let (all, of_keys, in_use) = (Generations::default(), HashMap::new(), HashSet::new());
        Self { key, size, all, of_keys, in_use }
    }

    /// Sets the keys that are in use from now on.
    pub(super) fn set_keys<'a>(&mut self, tags: impl Iterator<Item = &'a KeyTag>) {
        self.in_use = tags.map(|it| self.key.id(it)).collect();
        let retired = self.of_keys.iter().filter(|(key, _)| !self.in_use.contains(*key));
        let mut retired: Vec<_> = retired.map(|(key, it)| (it.len(), *key)).collect();
        retired.sort_unstable();
        let mut count: usize = retired.iter().map(|(count, _)| count).sum();
        while count > 2 * self.size.generation
            && let Some((most, key)) = retired.pop()
        {
            self.of_keys.remove(&key);
            count -= most;
        }
    }

    /// Enters a packet of the key with this tag; none if an equal packet was entered before.
    pub(super) fn note(&mut self, tag: &KeyTag, packet: &[u8]) -> Option<PacketRecord> {
        let record = PacketRecord { key: self.key.id(tag), hash: self.key.hash(packet) };
        if self.knows(record) {
            return None;
        }
        self.in_use.insert(record.key);
        self.all.enter(record.hash, self.size.generation);
        self.enter_of_key(record);
        Some(record)
    }

    /// Returns true if a packet was entered before, as far as that is remembered.
    pub(super) fn knows(&self, PacketRecord { key, hash }: PacketRecord) -> bool {
        let has = |key| self.of_keys.get(&key).is_some_and(|it| it.has(hash));
        self.all.has(hash) || has(key) || has(KeyId::UNKNOWN)
    }

    /// Enters a packet among those of its key.
    pub(super) fn enter_of_key(&mut self, record: PacketRecord) {
        let share = (self.size.of_keys / self.in_use.len().max(1)).clamp(1, self.size.generation);
        self.of_keys.entry(record.key).or_default().enter(record.hash, share);
    }

    /// Sets the generations of all keys together, as they are in the files of an earlier run.
    pub(super) fn set_all(&mut self, [old, young]: [&[PacketRecord]; 2]) {
        let hashes = |records: &[PacketRecord]| records.iter().map(|it| it.hash).collect();
        self.all = Generations { old: hashes(old), young: hashes(young) };
    }

    /// Returns the number of packets, as far as it is known without comparing all: there are no fewer.
    pub(super) fn len(&self) -> usize {
        self.all.len().max(self.count_of_keys())
    }

    /// Returns the number of packets that are remembered for keys.
    pub(super) fn count_of_keys(&self) -> usize {
        self.of_keys.values().map(Generations::len).sum()
    }

    /// Returns the number of records of [`Self::kept_of`] for all keys.
    pub(super) fn kept_count(&self) -> usize {
        self.count_of_keys() + self.of_keys.len()
    }

    /// Returns the key of the hash.
    pub(super) fn hash_key(&self) -> HashKey {
        self.key
    }

    /// Returns all keys with packets.
    pub(super) fn keys(&self) -> Vec<KeyId> {
        self.of_keys.keys().copied().collect()
    }

    /// Returns the packets of a key: the older generation, a mark, and the younger one.
    pub(super) fn kept_of(&self, key: KeyId) -> Vec<PacketRecord> {
        let Some(packets) = self.of_keys.get(&key) else { return Vec::new() };
        let hashes = packets.old.iter().chain(std::iter::once(&END_OF_OLD)).chain(&packets.young);
        hashes.map(|hash| PacketRecord { key, hash: *hash }).collect()
    }

    /// Sets the packets of each key to those of [`Self::kept_of`]. Leaves out packets of [`Self::set_all`]:
    /// these are younger than all others, and are entered afterwards in their order.
    pub(super) fn set_kept(&mut self, records: &[PacketRecord]) {
        let mut ended = HashSet::new();
        for PacketRecord { key, hash } in records {
            if *hash == END_OF_OLD {
                ended.insert(*key);
                continue;
            }
            if self.all.has(*hash) {
                continue;
            }
            let packets = self.of_keys.entry(*key).or_default();
            let hashes = if ended.contains(key) { &mut packets.young } else { &mut packets.old };
            hashes.insert(*hash);
        }
    }
}

impl Generations {
    fn has(&self, hash: u64) -> bool {
        self.old.contains(&hash) || self.young.contains(&hash)
    }

    /// Enters a hash that is new. The young generation becomes the old one when it has `size` of them.
    fn enter(&mut self, hash: u64, size: usize) {
        if self.old.contains(&hash) || !self.young.insert(hash) {
            return;
        }
        if self.young.len() >= size {
            self.old = std::mem::take(&mut self.young);
        }
    }

    fn len(&self) -> usize {
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
    use fence_wire::Key;

    use super::*;

    const KEY: HashKey = HashKey([7; 16]);

    fn packets(generation: usize) -> PacketHashes {
        PacketHashes::new(KEY, MemorySize { generation, of_keys: generation })
    }

    fn tag(name: &str) -> KeyTag {
        Key::new(name.as_bytes()).unwrap().tag()
    }

    #[test]
    fn the_same_bytes_are_never_honest() {
        let (mut packets, red) = (packets(10), tag("red"));
        assert!(packets.note(&red, b"1").is_some());
        assert!(packets.note(&red, b"2").is_some());
        assert!(packets.note(&red, b"1").is_none());
    }

    #[test]
    fn the_last_generation_is_known_whole_and_the_memory_bounded() {
        let (mut packets, red) = (packets(100), tag("red"));
        for number in 0..10_000_u32 {
            assert!(packets.note(&red, &number.to_le_bytes()).is_some());
            assert!(packets.len() <= 200);
            let oldest = number.saturating_sub(99);
            assert!((oldest..=number).all(|it| packets.note(&red, &it.to_le_bytes()).is_none()), "{number}");
        }
    }

    /// However many packets the holder of one key sends, no packet of another key is accepted again.
    #[test]
    fn a_flood_of_one_key_has_no_packet_of_another_forgotten() {
        let (mut packets, red, blue) = (packets(100), tag("red"), tag("blue"));
        packets.set_keys([&red, &blue].into_iter());
        assert!(packets.note(&blue, b"off").is_some());
        for number in 0..10_000_u32 {
            assert!(packets.note(&red, &number.to_le_bytes()).is_some());
        }
        assert!(packets.note(&blue, b"off").is_none());
    }

    /// A key that was flooded with, and that is taken away, costs no other key its packets.
    #[test]
    fn a_key_that_is_not_in_use_keeps_its_packets_while_there_is_room() {
        let (mut packets, [red, blue, green]) = (packets(100), ["red", "blue", "green"].map(tag));
        assert!(packets.note(&blue, b"off").is_some());
        packets.set_keys([&red].into_iter());
        assert!(packets.note(&blue, b"off").is_none());
        for (key, name) in [(&red, "red"), (&green, "green")] {
            packets.set_keys([key].into_iter());
            for number in 0..500_u32 {
                packets.note(key, format!("{name} {number}").as_bytes());
            }
        }
        packets.set_keys([].into_iter());
        assert!(packets.keys().len() == 2 && packets.len() <= 200);
        assert!(packets.note(&blue, b"off").is_none());
    }

    /// Packets of an earlier version, which tells no keys, are known with every key.
    #[test]
    fn a_packet_of_an_unknown_key_is_known_with_every_key() {
        let mut packets = packets(10);
        packets.enter_of_key(PacketRecord { key: KeyId::UNKNOWN, hash: KEY.hash(b"off") });
        assert!(packets.note(&tag("red"), b"off").is_none() && packets.note(&tag("blue"), b"off").is_none());
        assert!(packets.note(&tag("red"), b"on").is_some());
    }

    #[test]
    fn another_key_is_another_hash() {
        assert_ne!(HashKey([1; 16]).hash(b"x"), HashKey([2; 16]).hash(b"x"));
        assert_ne!(HashKey([1; 16]).id(&tag("red")), HashKey([1; 16]).id(&tag("blue")));
        assert_ne!(HashKey([1; 16]).id(&tag("red")), HashKey([2; 16]).id(&tag("red")));
    }
}
