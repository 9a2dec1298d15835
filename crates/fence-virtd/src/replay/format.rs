// SPDX-License-Identifier: GPL-2.0-or-later
//! A file of packets. Pure: bytes to values and back.
//!
//! ```text
//! offset  size  field
//!      0     8  "FVREPLY1"
//!      8    16  key of the hash
//!     24     8  SipHash-2-4 of bytes 0 to 23, with a key of zeros
//!     32    16  record: 8 bytes hash of a packet, 4 bytes id of its key, 4 bytes of the hash of these 12;
//!               and so on to the end
//! ```
//!
//! Records of an earlier version have no key: 8 bytes hash of a packet, 8 bytes hash of these. A file may
//! have both forms. That version takes the new ones for damaged, leaves them out and goes on.
//!
//! All integers are little-endian. Each record stands for itself: one that is damaged is left out, and costs
//! no other. After a crash the end of the file may be half a record, zeros or junk; none of that is believed.

use super::memory::{HashKey, KeyId, PacketRecord};

pub(super) const HEADER_LEN: usize = 32;
pub(super) const RECORD_LEN: usize = 16;
const MAGIC: &[u8; 8] = b"FVREPLY1";

/// Contents of a file.
#[derive(PartialEq, Eq)]
pub(super) struct ReplayFile {
    pub(super) key: HashKey,
    /// The packets, in their order.
    pub(super) records: Vec<PacketRecord>,
    /// Number of whole records whose check does not fit.
    pub(super) damaged: usize,
    /// Bytes after the last whole record.
    pub(super) rest: usize,
}

/// A header that is damaged, or not of this format: no record of the file counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadHeader;

pub(super) fn header(key: HashKey) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..24].copy_from_slice(&key.0);
    let check = header_check(&bytes[..24]);
    bytes[24..].copy_from_slice(&check);
    bytes
}

pub(super) fn record(key: HashKey, record: PacketRecord) -> [u8; RECORD_LEN] {
    let mut bytes = [0; RECORD_LEN];
    bytes[..8].copy_from_slice(&record.hash.to_le_bytes());
    bytes[8..12].copy_from_slice(&record.key.0.to_le_bytes());
    let check = key.hash(&bytes[..12]).to_le_bytes();
    bytes[12..].copy_from_slice(&check[..4]);
    bytes
}

/// Reads a whole file, whatever is in it.
pub(super) fn read(bytes: &[u8]) -> Result<ReplayFile, BadHeader> {
    let (head, records) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(BadHeader)?;
    if !head.starts_with(MAGIC) || head[24..] != header_check(&head[..24]) {
        return Err(BadHeader);
    }
    let key = HashKey(std::array::from_fn(|i| head[8 + i]));
    let (slots, rest) = records.as_chunks::<RECORD_LEN>();
    let mut records = Vec::with_capacity(slots.len());
    records.extend(slots.iter().filter_map(|it| read_record(key, it)));
    let damaged = slots.len() - records.len();
    Ok(ReplayFile { key, records, damaged, rest: rest.len() })
}

fn read_record(key: HashKey, bytes: &[u8; RECORD_LEN]) -> Option<PacketRecord> {
    let hash = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    let id = u32::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
    if bytes[12..] == key.hash(&bytes[..12]).to_le_bytes()[..4] {
        return Some(PacketRecord { key: KeyId(id), hash });
    }
    let is_without_key = bytes[8..] == key.hash(&bytes[..8]).to_le_bytes();
    is_without_key.then_some(PacketRecord { key: KeyId::UNKNOWN, hash })
}

fn header_check(bytes: &[u8]) -> [u8; 8] {
    HashKey([0; 16]).hash(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(hash: u64) -> PacketRecord {
        PacketRecord { key: KeyId(u32::try_from(hash >> 3 & 0xffff).unwrap()), hash }
    }

    fn file(key: HashKey, hashes: &[u64]) -> Vec<u8> {
        let mut bytes = header(key).to_vec();
        hashes.iter().for_each(|it| bytes.extend(record(key, of(*it))));
        bytes
    }

    fn hashes(contents: &ReplayFile) -> Vec<u64> {
        assert!(contents.records.iter().all(|it| *it == of(it.hash)));
        contents.records.iter().map(|it| it.hash).collect()
    }

    fn counted() -> HashKey {
        HashKey(std::array::from_fn(|i| u8::try_from(i).unwrap()))
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks(2).map(|it| std::str::from_utf8(it).unwrap());
        digits.map(|it| u8::from_str_radix(it, 16).unwrap()).collect()
    }

    /// The layout does not change unseen: a daemon must be able to read what the one before it wrote.
    #[test]
    fn literal_bytes() {
        let packet = PacketRecord { key: KeyId(0x0a0b_0c0d), hash: 0x0102_0304_0506_0708 };
        assert_eq!(header(counted()), *bytes(HEADER));
        assert_eq!(record(counted(), packet), *bytes(RECORD));
        let contents = read(&bytes(&[HEADER, RECORD, RECORD_WITHOUT_KEY].concat())).unwrap();
        assert!(contents.key == counted() && contents.damaged == 0);
        assert_eq!(contents.records, [packet, PacketRecord { key: KeyId::UNKNOWN, ..packet }]);
    }
    /// Made by another implementation of SipHash-2-4.
    const HEADER: &str = "46565245504c5931000102030405060708090a0b0c0d0e0f30ecc2200b578acd";
    const RECORD: &str = "08070605040302010d0c0b0a54194901";
    const RECORD_WITHOUT_KEY: &str = "080706050403020199166e942d12da15";

    #[test]
    fn zeros_are_no_records() {
        let mut bytes = file(HashKey([0; 16]), &[5]);
        bytes.extend([0; 4 * RECORD_LEN + 3]);
        let contents = read(&bytes).unwrap();
        assert_eq!((hashes(&contents), contents.damaged, contents.rest), (vec![5], 4, 3));
    }

    #[test]
    fn a_header_that_is_not_ours() {
        let good = file(HashKey([3; 16]), &[1]);
        assert!(read(b"").is_err() && read(&good[..31]).is_err() && read(&good[..32]).is_ok());
        for place in 0..HEADER_LEN {
            let mut bytes = good.clone();
            bytes[place] ^= 1;
            assert!(read(&bytes).is_err(), "{place}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(key in any::<[u8; 16]>(), all in prop::collection::vec(any::<u64>(), 0..100)) {
            let contents = read(&file(HashKey(key), &all)).unwrap();
            prop_assert!(contents.key == HashKey(key));
            prop_assert_eq!((hashes(&contents), contents.damaged, contents.rest), (all, 0, 0));
        }

        /// Cut anywhere: what was whole before the cut is read.
        #[test]
        fn a_cut_costs_what_is_behind_it(
            all in prop::collection::vec(any::<u64>(), 0..50),
            cut in 0_usize..900,
        ) {
            let mut bytes = file(HashKey([9; 16]), &all);
            bytes.truncate(cut);
            match read(&bytes) {
                Err(BadHeader) => prop_assert!(bytes.len() < HEADER_LEN),
                Ok(contents) => {
                    let whole = (bytes.len() - HEADER_LEN) / RECORD_LEN;
                    prop_assert_eq!(hashes(&contents), &all[..whole]);
                    prop_assert_eq!(contents.rest, (bytes.len() - HEADER_LEN) % RECORD_LEN);
                }
            }
        }

        /// Bytes that changed: only the records that they are in are lost, and none is invented.
        #[test]
        fn damage_costs_what_it_hits(
            all in prop::collection::vec(any::<u64>(), 1..50),
            hits in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..10),
            tail in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = file(HashKey([9; 16]), &all);
            let mut hit = std::collections::BTreeSet::new();
            for (place, change) in hits {
                let place = place.index(bytes.len() - HEADER_LEN);
                bytes[HEADER_LEN + place] ^= change;
                hit.insert(place / RECORD_LEN);
            }
            bytes.extend(&tail);
            let contents = read(&bytes).unwrap();
            let intact =
                all.iter().enumerate().filter(|(place, _)| !hit.contains(place)).map(|(_, hash)| *hash);
            let read = hashes(&contents);
            let mut found = read.iter();
            for hash in intact {
                prop_assert!(found.any(|it| *it == hash));
            }
            // Two changes of one byte may undo each other; nothing else may be read that was not written.
            prop_assert!(read.iter().all(|it| all.contains(it)));
        }

        #[test]
        fn any_bytes_at_all(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read(&[&header(HashKey([1; 16]))[..], &bytes].concat());
        }
    }
}
