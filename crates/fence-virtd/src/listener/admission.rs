// SPDX-License-Identifier: GPL-2.0-or-later
//! Admission: a bounded table of slots for peers in service, so that no peer and no key can take all of them.
//!
//! A peer that has said nothing yet that only a holder of its key can say (a silent connection, an address
//! that does not answer) has an *unsettled* slot. Where no slot is left for a new peer, the oldest unsettled
//! slot of the same peer, or else of the same key, is evicted for it. A *settled* slot is kept to the end. An
//! honest peer settles within milliseconds; only a whole table of new peers with its key in that time could
//! keep it out.
//!
//! Slots are shared by key: the slots of one key are at most [`SHARE`] times those that are free. So whoever
//! holds one key, or none, leaves room to the others, however many peers it has and whatever they prove.
//!
//! Owns the table. Runs on the caller's task; nothing here waits but [`AdmissionSlot::pushed_out`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fence_wire::KeyTag;
use tokio::sync::Notify;

use crate::util::locks::lock;

/// Slots that one key may have for each free one: of an empty table two thirds.
const SHARE: usize = 2;

/// The table of slots.
#[derive(Debug)]
pub(crate) struct AdmissionTable<P> {
    total: usize,
    of_peer: usize,
    /// Time for which an unsettled slot can't be evicted.
    grace: Duration,
    state: Mutex<AdmissionState<P>>,
}

#[derive(Debug)]
struct AdmissionState<P> {
    next: u64,
    /// All slots by number, which is the order of arrival.
    slots: BTreeMap<u64, TakenSlot<P>>,
    of_holder: HashMap<SlotHolder<P>, usize>,
    of_key: HashMap<Option<KeyTag>, usize>,
}

/// Peer with the key that it has shown; none before it has shown any.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct SlotHolder<P> {
    key: Option<KeyTag>,
    peer: P,
}

#[derive(Debug)]
struct TakenSlot<P> {
    holder: SlotHolder<P>,
    since: Instant,
    /// Notice for its task; none once it has settled.
    evicted: Option<Arc<Notify>>,
}

/// One slot, until it is dropped.
pub(crate) struct AdmissionSlot {
    table: Arc<dyn SlotKeeper>,
    number: u64,
    evicted: Arc<Notify>,
}

/// Table of slots as a slot knows it.
trait SlotKeeper: Send + Sync {
    /// Settles a slot. Returns false if the slot was evicted.
    fn settle(&self, number: u64) -> bool;

    /// Frees a slot, if it was not evicted.
    fn free(&self, number: u64);
}

/// Result of the admission of a peer.
#[derive(Debug)]
pub(crate) enum Admission<P> {
    /// A slot was free.
    Granted(AdmissionSlot),
    /// The slot of the peer in the second field was evicted for this one.
    GrantedByEvicting(AdmissionSlot, P),
    /// All slots that the peer may have are settled, or can't be evicted yet.
    Refused,
}

impl<P: Copy + Eq + Hash + Send + 'static> AdmissionTable<P> {
    /// Returns a table of `total` slots, and `of_peer` for each peer with one key.
    pub(crate) fn new(total: usize, of_peer: usize) -> Arc<Self> {
        Self::with_grace(total, of_peer, Duration::ZERO)
    }

    /// Returns a table whose slots can be evicted only after some time: new peers are refused meanwhile, and
    /// so are admitted at a limited rate.
    pub(crate) fn with_grace(total: usize, of_peer: usize, grace: Duration) -> Arc<Self> {
        let state = AdmissionState {
            next: 0,
            slots: BTreeMap::new(),
            of_holder: HashMap::new(),
            of_key: HashMap::new(),
        };
        Arc::new(Self { total, of_peer, grace, state: Mutex::new(state) })
    }

    /// Takes an unsettled slot for a peer with this key.
    pub(crate) fn take(self: &Arc<Self>, peer: P, key: Option<KeyTag>, now: Instant) -> Admission<P> {
        let mut state = self.state();
        let holder = SlotHolder { key, peer };
        let of_key = state.of_key.get(&key).copied().unwrap_or_default();
        let is_old = |it: &TakenSlot<P>| now.saturating_duration_since(it.since) >= self.grace;
        let free = self.total.saturating_sub(state.slots.len());
        let evicted = if state.of_holder.get(&holder).is_some_and(|it| *it >= self.of_peer) {
            Some(state.evict_oldest(|it| it.holder == holder && is_old(it)))
        } else if of_key >= SHARE * free && of_key > 0 {
            Some(state.evict_oldest(|it| it.holder.key == key && is_old(it)))
        } else if free == 0 {
            // Many keys have all they may: the one with the most gives a slot to the one that has fewer.
            let most = state.most_of_unsettled(is_old);
            Some(most.and_then(|key| state.evict_oldest(|it| it.holder.key == key && is_old(it))))
        } else {
            None
        };
        if matches!(evicted, Some(None)) {
            return Admission::Refused;
        }
        let (number, notice) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        *state.of_holder.entry(holder).or_default() += 1;
        *state.of_key.entry(key).or_default() += 1;
        state.slots.insert(number, TakenSlot { holder, since: now, evicted: Some(Arc::clone(&notice)) });
        drop(state);
        let table: Arc<dyn SlotKeeper> = Arc::<Self>::clone(self);
        let slot = AdmissionSlot { table, number, evicted: notice };
        match evicted.flatten() {
            None => Admission::Granted(slot),
            Some(loser) => Admission::GrantedByEvicting(slot, loser),
        }
    }

    /// Takes a slot in the share of the key that a peer has shown, in place of its slot in that of nobody.
    /// None if that one was evicted.
    pub(crate) fn show_key(
        self: &Arc<Self>,
        slot: AdmissionSlot,
        key: Option<KeyTag>,
        now: Instant,
    ) -> Option<Admission<P>> {
        let peer = self.state().slots.get(&slot.number)?.holder.peer;
        drop(slot);
        Some(self.take(peer, key, now))
    }

    fn state(&self) -> MutexGuard<'_, AdmissionState<P>> {
        lock(&self.state)
    }
}

impl<P: Copy + Eq + Hash> AdmissionState<P> {
    /// Evicts the oldest unsettled slot that fits, and returns its peer. The slot is free at once, although
    /// the task of that peer may take a moment to end.
    fn evict_oldest(&mut self, fits: impl Fn(&TakenSlot<P>) -> bool) -> Option<P> {
        let number = *self.slots.iter().find(|(_, it)| it.evicted.is_some() && fits(it))?.0;
        let slot = self.remove(number)?;
        slot.evicted.iter().for_each(|it| it.notify_one());
        Some(slot.holder.peer)
    }

    /// Returns the key with the most slots among those with an unsettled slot that fits.
    fn most_of_unsettled(&self, fits: impl Fn(&TakenSlot<P>) -> bool) -> Option<Option<KeyTag>> {
        let unsettled = self.slots.values().filter(|it| it.evicted.is_some() && fits(it));
        unsettled.map(|it| it.holder.key).max_by_key(|it| self.of_key.get(it))
    }

    fn remove(&mut self, number: u64) -> Option<TakenSlot<P>> {
        let slot = self.slots.remove(&number)?;
        count_down(&mut self.of_holder, &slot.holder);
        count_down(&mut self.of_key, &slot.holder.key);
        Some(slot)
    }
}

fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl<P: Copy + Eq + Hash + Send + 'static> SlotKeeper for AdmissionTable<P> {
    fn settle(&self, number: u64) -> bool {
        self.state().slots.get_mut(&number).map(|it| it.evicted = None).is_some()
    }

    fn free(&self, number: u64) {
        // One that was evicted is not in the map.
        self.state().remove(number);
    }
}

impl AdmissionSlot {
    /// Waits until the slot is evicted.
    pub(crate) async fn pushed_out(&self) {
        self.evicted.notified().await;
    }

    /// Returns true for a slot of this table.
    pub(crate) fn is_of<P: Send + 'static>(&self, table: &Arc<AdmissionTable<P>>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.table), Arc::as_ptr(table))
    }

    /// Settles the slot, which can't be evicted from then on. Returns false if it was evicted already.
    pub(crate) fn settle(&self) -> bool {
        self.table.settle(self.number)
    }
}

impl fmt::Debug for AdmissionSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdmissionSlot({})", self.number)
    }
}

impl Drop for AdmissionSlot {
    fn drop(&mut self) {
        self.table.free(self.number);
    }
}

#[cfg(test)]
mod tests {
    use fence_wire::Key;
    use proptest::prelude::*;

    use super::*;

    fn tag(name: &str) -> Option<KeyTag> {
        Some(Key::new(name.as_bytes()).unwrap().tag())
    }

    fn free<P>(taken: Admission<P>) -> AdmissionSlot {
        match taken {
            Admission::Granted(place) => place,
            Admission::GrantedByEvicting(..) | Admission::Refused => panic!("no free place"),
        }
    }

    fn instead<P>(taken: Admission<P>) -> (AdmissionSlot, P) {
        match taken {
            Admission::GrantedByEvicting(place, loser) => (place, loser),
            Admission::Granted(_) | Admission::Refused => panic!("nobody was pushed out"),
        }
    }

    #[test]
    fn a_peer_with_too_many_loses_its_own_oldest() {
        let (places, now) = (AdmissionTable::new(10, 2), Instant::now());
        let _other = free(places.take('b', None, now));
        let (first, second) = (free(places.take('a', None, now)), free(places.take('a', None, now)));
        // With a key of its own it is another holder.
        let _keyed = free(places.take('a', tag("red"), now));
        let (_third, loser) = instead(places.take('a', None, now));
        assert_eq!(loser, 'a');
        assert!(!first.settle(), "the oldest has lost its place");
        assert!(second.settle());
    }

    #[test]
    fn a_full_share_makes_room_by_age_whoever_it_is() {
        let (places, now) = (AdmissionTable::new(6, 6), Instant::now());
        let [a, b, c, _d] = ['a', 'b', 'c', 'd'].map(|it| free(places.take(it, None, now)));
        assert!(a.settle());
        let (_e, loser) = instead(places.take('e', None, now));
        assert_eq!(loser, 'b', "a has settled");
        drop((b, c));
        free(places.take('f', None, now));
    }

    #[test]
    fn the_settled_keep_their_places() {
        let (places, now) = (AdmissionTable::new(3, 3), Instant::now());
        let kept = ['a', 'b'].map(|it| free(places.take(it, None, now)));
        assert!(kept.iter().all(AdmissionSlot::settle));
        assert!(matches!(places.take('c', None, now), Admission::Refused));
        // Another key has its share all the same.
        let blue = free(places.take('a', tag("blue"), now));
        assert!(matches!(places.take('a', tag("red"), now), Admission::GrantedByEvicting(_, 'a')));
        assert!(!blue.settle(), "a key without a place gets one of those that have most and are not settled");
        drop(kept);
        free(places.take('c', None, now));
    }

    #[test]
    fn a_place_is_safe_for_a_while() {
        let (grace, start) = (Duration::from_millis(100), Instant::now());
        let places = AdmissionTable::with_grace(1, 1, grace);
        let _first = free(places.take('a', None, start));
        assert!(matches!(places.take('b', None, start + grace / 2), Admission::Refused));
        let (_third, loser) = instead(places.take('c', None, start + grace));
        assert_eq!(loser, 'a');
    }

    #[test]
    fn a_key_that_is_shown_moves_the_slot_into_its_share() {
        let (places, now) = (AdmissionTable::new(3, 1), Instant::now());
        let slot = free(places.take('a', None, now));
        let slot = free(places.show_key(slot, tag("red"), now).unwrap());
        assert!(slot.settle() && slot.is_of(&places) && !slot.is_of(&AdmissionTable::<char>::new(3, 1)));
        // One that was evicted shows nothing.
        let lost = free(places.take('a', None, now));
        let (_next, _) = instead(places.take('a', None, now));
        assert!(places.show_key(lost, tag("red"), now).is_none());
    }

    #[tokio::test]
    async fn the_loser_hears_of_it() {
        let places = AdmissionTable::new(1, 1);
        let first = free(places.take('a', None, Instant::now()));
        let (_second, _) = instead(places.take('b', None, Instant::now()));
        first.pushed_out().await;
    }

    /// Peers with a key that take as many slots as they get, up to a number, and settle them or not.
    #[derive(Clone, Copy, Debug)]
    struct Crowd {
        key: usize,
        count: usize,
        settles: bool,
        stays: bool,
    }

    fn crowd(keys: usize) -> impl Strategy<Value = Crowd> {
        (0..keys, 1_usize..700, any::<bool>(), any::<bool>()).prop_map(|(key, count, settles, stays)| Crowd {
            key,
            count,
            settles,
            stays,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever the holders of four keys, and those of none, take, and whether they settle it or not, a
        /// peer with another key gets a slot at once. The table is never over its limit, and is empty when
        /// all have gone.
        #[test]
        fn a_key_leaves_room_to_others(
            total in 729_usize..800,
            crowds in prop::collection::vec(crowd(5), 1..8),
        ) {
            let (places, now) = (AdmissionTable::new(total, total), Instant::now());
            let keys = [None, tag("red"), tag("green"), tag("gold"), tag("grey")];
            let mut held = Vec::new();
            for it in crowds {
                let mut of_crowd = Vec::new();
                for peer in 0..it.count {
                    if let Admission::Granted(slot) | Admission::GrantedByEvicting(slot, _) =
                        places.take(peer, keys[it.key], now)
                    {
                        prop_assert!(!it.settles || slot.settle());
                        of_crowd.push(slot);
                    }
                }
                if it.stays {
                    held.append(&mut of_crowd);
                }
                prop_assert!(places.state().slots.len() <= total);
                let blue = places.take(0, tag("blue"), now);
                prop_assert!(matches!(&blue, Admission::Granted(_)), "{blue:?}");
            }
            held.clear();
            let state = places.state();
            prop_assert_eq!((state.slots.len(), state.of_holder.len(), state.of_key.len()), (0, 0, 0));
        }
    }
}
