// SPDX-License-Identifier: GPL-2.0-or-later
//! The search for the key of a packet, where a listener has many keys.
//!
//! A packet does not say which key made its hash. With a thousand keys a packet of nobody costs a thousand
//! hashes, and an honest one must not wait for these. So the likely keys are tried at once: those that fitted
//! last for the packet's address, and those whose groups name it. Packets that none of them fits wait: each
//! source has its own short queue, the sources take turns, and all of them together get a bounded number of
//! hashes in a second.
//!
//! Owns which key fitted where, and the packets that wait. Pure: time is a parameter, and packets alone
//! are hashed. An address proves nothing, since anybody can write it into a packet: it only says
//! which key is tried first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use fence_wire::{KeyTag, Received, RequestError, UnprovedRequest};

use crate::listener::keys::ListenerKeys;
use crate::listener::limits::{
    FEW_KEYS, MAX_FITTED_KEYS, MAX_FITTED_SOURCES, MAX_SEARCHES, MAX_SEARCHES_OF_SOURCE, SEARCH_BURST,
    SEARCH_RATE,
};

/// Keys that fitted last, by the source that the packets came from.
///
/// An entry is made by a packet that a key fits and that is no replay, and each key has a bounded number of
/// them: the holder of one key can only have entries of that key forgotten, and others can't make any.
#[derive(Debug)]
pub(super) struct FittedKeys<S> {
    of_sources: HashMap<S, VecDeque<KeyTag>>,
    of_keys: HashMap<KeyTag, VecDeque<S>>,
}

impl<S> Default for FittedKeys<S> {
    fn default() -> Self {
        Self { of_sources: HashMap::new(), of_keys: HashMap::new() }
    }
}

impl<S: Copy + Eq + Hash> FittedKeys<S> {
    /// Returns the tags of the keys that fitted for this source, the latest first.
    fn of(&self, source: S) -> impl Iterator<Item = &KeyTag> {
        self.of_sources.get(&source).into_iter().flatten()
    }

    /// Notes that the key at this place made the hash of a packet of this source.
    pub(super) fn note(&mut self, source: S, place: Option<usize>, keys: &ListenerKeys) {
        let Some(tag) = keys.tag(place) else { return };
        let tags = self.of_sources.entry(source).or_default();
        if tags.front() == Some(&tag) {
            return;
        }
        let was_known = tags.iter().position(|it| *it == tag).map(|it| tags.remove(it)).is_some();
        tags.push_front(tag);
        if tags.len() > MAX_FITTED_KEYS
            && let Some(lost) = tags.pop_back()
            && let Some(sources) = self.of_keys.get_mut(&lost)
        {
            sources.retain(|it| *it != source);
        }
        if !was_known {
            self.note_source(source, tag);
        }
        if self.of_keys.len() > keys.all().len() {
            self.forget_others(keys);
        }
    }

    fn note_source(&mut self, source: S, tag: KeyTag) {
        let sources = self.of_keys.entry(tag).or_default();
        sources.push_back(source);
        if sources.len() > MAX_FITTED_SOURCES
            && let Some(oldest) = sources.pop_front()
            && let Some(tags) = self.of_sources.get_mut(&oldest)
        {
            tags.retain(|it| *it != tag);
            if tags.is_empty() {
                self.of_sources.remove(&oldest);
            }
        }
    }

    /// Forgets keys that are none of the listener's any more.
    fn forget_others(&mut self, keys: &ListenerKeys) {
        self.of_keys.retain(|tag, _| keys.place_of(tag).is_some());
        self.of_sources.retain(|_, tags| {
            tags.retain(|it| keys.place_of(it).is_some());
            !tags.is_empty()
        });
    }
}

/// Result of a search for the key of a packet.
pub(super) type SearchResult = Result<Received, RequestError>;

/// Reads a packet if one of its likely keys made its hash, or if it carries none. With few keys all of them
/// are tried, so that the answer is final.
pub(super) fn likely<S: Copy + Eq + Hash>(
    packet: &UnprovedRequest,
    source: S,
    address: Option<IpAddr>,
    keys: &ListenerKeys,
    fitted: &FittedKeys<S>,
) -> Option<SearchResult> {
    if let Some(received) = packet.read_without_hash() {
        return Some(received);
    }
    if keys.all().len() <= FEW_KEYS {
        return Some(among_all(packet, keys));
    }
    let last = fitted.of(source).filter_map(|it| keys.place_of(it));
    let named = address.map_or(&[][..], |it| keys.of_address(it)).iter().copied();
    last.chain(named).find_map(|place| packet.read_with(keys.all(), place))
}

/// Reads a packet if one of all keys made its hash.
pub(super) fn among_all(packet: &UnprovedRequest, keys: &ListenerKeys) -> SearchResult {
    let all = 0..keys.all().len();
    all.into_iter()
        .find_map(|place| packet.read_with(keys.all(), place))
        .unwrap_or_else(|| Err(packet.no_key_fits()))
}

/// Packets that wait for the search among all keys, by their sources.
#[derive(Debug)]
pub(super) struct WaitingSearches<T> {
    of_sources: HashMap<IpAddr, VecDeque<T>>,
    /// Sources with waiting packets, in the order of their turns.
    turns: VecDeque<IpAddr>,
    count: usize,
    budget: SearchBudget,
}

impl<T> WaitingSearches<T> {
    pub(super) fn new(now: Instant) -> Self {
        let (of_sources, turns) = (HashMap::new(), VecDeque::new());
        Self { of_sources, turns, count: 0, budget: SearchBudget::new(now) }
    }

    /// Lets a packet wait. Returns a packet that has no place.
    ///
    /// Half of all places are for sources without a waiting packet. A source that is full loses its oldest
    /// packet: the sender of a newer one waits for its answer more likely.
    pub(super) fn add(&mut self, source: IpAddr, packet: T) -> Option<T> {
        let source = source.to_canonical();
        let waiting = self.of_sources.get(&source).map_or(0, VecDeque::len);
        let is_full = if waiting == 0 { self.count >= MAX_SEARCHES } else { self.count >= MAX_SEARCHES / 2 };
        if waiting == 0 && is_full {
            return Some(packet);
        }
        let queue = self.of_sources.entry(source).or_default();
        queue.push_back(packet);
        if waiting == 0 {
            self.turns.push_back(source);
        }
        if is_full || waiting >= MAX_SEARCHES_OF_SOURCE {
            return queue.pop_front();
        }
        self.count += 1;
        None
    }

    /// Returns the next packet whose key may be searched for now, among so many keys.
    pub(super) fn next(&mut self, now: Instant, keys: usize) -> Option<T> {
        if self.count == 0 || !self.budget.take(now, keys) {
            return None;
        }
        let source = self.turns.pop_front()?;
        let queue = self.of_sources.get_mut(&source)?;
        let packet = queue.pop_front();
        if queue.is_empty() {
            self.of_sources.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        self.count -= 1;
        packet
    }

    /// Returns the moment from which on a search may go on; none if nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.budget.due())
    }
}

/// Number of hashes that searches may make: a bucket that fills up with time. A search takes what it needs
/// and may overdraw, so that also one among very many keys has its turn.
#[derive(Debug)]
struct SearchBudget {
    hashes: i64,
    filled: Instant,
}

impl SearchBudget {
    fn new(now: Instant) -> Self {
        Self { hashes: SEARCH_BURST, filled: now }
    }

    fn take(&mut self, now: Instant, hashes: usize) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_micros();
        let gained = i64::try_from(passed).unwrap_or(i64::MAX).saturating_mul(SEARCH_RATE) / 1_000_000;
        if gained > 0 {
            self.hashes = self.hashes.saturating_add(gained).min(SEARCH_BURST);
            self.filled = now;
        }
        if self.hashes <= 0 {
            return false;
        }
        self.hashes = self.hashes.saturating_sub(i64::try_from(hashes).unwrap_or(i64::MAX));
        true
    }

    fn due(&self) -> Instant {
        let missing = u64::try_from(1_i64.saturating_sub(self.hashes)).unwrap_or(0);
        let micros = missing.saturating_mul(1_000_000) / SEARCH_RATE.unsigned_abs();
        self.filled + Duration::from_micros(micros + u64::from(missing > 0))
    }
}

#[cfg(test)]
mod tests {
    use fence_wire::{Action, HashType, Key, Request, Target};
    use proptest::prelude::*;

    use super::*;

    const MANY: usize = 1000;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn key(number: usize) -> Key {
        Key::new(format!("key {number}").as_bytes()).unwrap()
    }

    fn packet(key: &Key) -> UnprovedRequest {
        let target = Target::new("vm1", false).unwrap();
        let request = Request { action: Action::Off, target, call_back: None, nonce: [1; 6], sequence: 1 };
        UnprovedRequest::take(&request.encode(HashType::Sha256, key), HashType::Sha256).unwrap()
    }

    /// Among a thousand keys no more than the likely ones are tried for a packet as it comes.
    #[test]
    fn the_key_that_fitted_last_is_tried_first_and_no_other() {
        let keys = ListenerKeys::of((0..MANY).map(key));
        let mut fitted = FittedKeys::default();
        let (blue, red) = (address(1), address(2));
        let found = |fitted: &_, from| likely(&packet(&key(700)), from, Some(from), &keys, fitted);
        assert!(found(&fitted, blue).is_none());
        fitted.note(blue, Some(700), &keys);
        assert_eq!(found(&fitted, blue).unwrap().unwrap().key, Some(700));
        assert!(found(&fitted, red).is_none());
        assert_eq!(among_all(&packet(&key(700)), &keys).unwrap().key, Some(700));
        assert!(among_all(&packet(&key(MANY)), &keys).is_err());
        // A reload with other keys, in another order.
        let keys = ListenerKeys::of((600..800).map(key));
        let found = likely(&packet(&key(700)), blue, None, &keys, &fitted);
        assert_eq!(found.unwrap().unwrap().key, Some(100));
    }

    /// With few keys the answer is final at once.
    #[test]
    fn few_keys_are_all_tried() {
        let keys = ListenerKeys::of((0..FEW_KEYS).map(key));
        let fitted = FittedKeys::default();
        let found = |number| likely(&packet(&key(number)), address(1), None, &keys, &fitted).unwrap();
        assert_eq!(found(FEW_KEYS - 1).unwrap().key, Some(FEW_KEYS - 1));
        assert!(found(FEW_KEYS).is_err());
    }

    /// The holder of one key sends from as many addresses as it likes, those of others too: others are still
    /// tried first for theirs.
    #[test]
    fn a_key_with_many_addresses_costs_no_other_key_its_place() {
        let keys = ListenerKeys::of((0..MANY).map(key));
        let (mut fitted, blue) = (FittedKeys::default(), address(1));
        fitted.note(blue, Some(700), &keys);
        for round in 0..3 {
            for number in 0..10_000 {
                fitted.note(address(number), Some(3), &keys);
            }
            assert!(fitted.of(blue).any(|it| *it == keys.tag(Some(700)).unwrap()), "{round}");
            assert!(fitted.of_sources.len() <= MAX_FITTED_SOURCES + 1);
        }
        // All of another configuration: nothing of this one is kept.
        let others = ListenerKeys::of((MANY..MANY + 1).map(key));
        fitted.note(blue, Some(0), &others);
        assert_eq!((fitted.of_keys.len(), fitted.of_sources.len()), (1, 1));
    }

    /// 2,000 packets of nobody in a second, from one address and then from a hundred: an honest client that
    /// was never heard before has its key found within a few milliseconds of virtual time.
    #[test]
    fn a_flood_does_not_keep_a_newcomer_waiting() {
        for sources in [1, 100] {
            let start = Instant::now();
            let mut searches = WaitingSearches::new(start);
            let newcomer = address(u32::MAX);
            let (mut asked, mut waits, mut searched) = (None, Vec::new(), 0);
            for millisecond in 0..5000_u32 {
                let now = start + Duration::from_millis(millisecond.into());
                for it in 0..2 {
                    searches.add(address((2 * millisecond + it) % sources), "junk");
                }
                if millisecond % 1000 == 500 {
                    assert!(searches.add(newcomer, "honest").is_none());
                    asked = Some(now);
                }
                while let Some(packet) = searches.next(now, MANY) {
                    searched += MANY;
                    if packet == "honest" {
                        waits.extend(asked.take().map(|it: Instant| now - it));
                    }
                }
            }
            assert_eq!(waits.len(), 5, "{sources}");
            let limit = Duration::from_millis(2 + u64::from(sources));
            assert!(waits.iter().all(|it| *it <= limit), "{sources}: {waits:?}");
            let allowed = usize::try_from(SEARCH_BURST + 5 * SEARCH_RATE).unwrap() + MANY;
            assert!(searched <= allowed, "{searched}");
        }
    }

    proptest! {
        /// Whatever comes from whom: no more waits than has a place, a source without a waiting packet finds
        /// one while half of the places are free, and all of them have their turn in the end.
        #[test]
        fn places_are_bounded_and_nothing_is_lost(all in prop::collection::vec(0_u32..200, 0..3000)) {
            let start = Instant::now();
            let mut searches = WaitingSearches::new(start);
            let (mut lost, mut waiting) = (0, 0);
            for (number, source) in all.iter().enumerate() {
                let has_none = !searches.of_sources.contains_key(&address(*source));
                let refused = searches.add(address(*source), (*source, number));
                prop_assert!(!(has_none && waiting < MAX_SEARCHES && refused.is_some()));
                prop_assert!(refused.is_none_or(|(of, _)| of == *source));
                lost += usize::from(refused.is_some());
                waiting += usize::from(refused.is_none());
                prop_assert!(searches.count == waiting && waiting <= MAX_SEARCHES);
            }
            let (mut found, mut last) = (0, HashMap::new());
            let mut now = start;
            while let Some(due) = searches.due() {
                now = now.max(due);
                let (source, number) = searches.next(now, MANY).unwrap();
                // In the order of each source.
                prop_assert!(last.insert(source, number).is_none_or(|it| it < number));
                found += 1;
            }
            prop_assert_eq!(found + lost, all.len());
        }
    }
}
