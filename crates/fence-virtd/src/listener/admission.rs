// SPDX-License-Identifier: GPL-2.0-or-later
//! Admission: a bounded table of slots for peers in service, so that no peer can take all of them.
//!
//! A peer that has proved nothing yet (a silent connection, an address that does not answer) has an
//! *unsettled* slot. When the table is full, the oldest unsettled slot is evicted for a new peer: a slot of
//! the same peer if that peer has too many, of any peer if all slots are taken. A *settled* slot is kept to
//! the end. An honest peer settles within milliseconds; only a whole table of new peers in that time could
//! keep it out.
//!
//! Owns the table. Runs on the caller's task; nothing here waits but [`AdmissionSlot::pushed_out`].

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::util::locks::lock;

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
    taken: usize,
    of_peer: HashMap<P, usize>,
    /// Unsettled slots by number, which is the order of arrival.
    unsettled: BTreeMap<u64, UnsettledSlot<P>>,
}

#[derive(Debug)]
struct UnsettledSlot<P> {
    peer: P,
    since: Instant,
    evicted: Arc<Notify>,
}

/// One unsettled slot, until it is dropped.
#[derive(Debug)]
pub(crate) struct AdmissionSlot<P: Copy + Eq + Hash> {
    table: Arc<AdmissionTable<P>>,
    number: u64,
    peer: P,
    evicted: Arc<Notify>,
}

/// Result of the admission of a peer.
#[derive(Debug)]
pub(crate) enum Admission<P: Copy + Eq + Hash> {
    /// A slot was free.
    Granted(AdmissionSlot<P>),
    /// The slot of the peer in the second field was evicted for this one.
    GrantedByEvicting(AdmissionSlot<P>, P),
    /// All slots are settled, or can't be evicted yet.
    Refused,
}

impl<P: Copy + Eq + Hash> AdmissionTable<P> {
    /// Returns a table of `total` slots, and `of_peer` for each peer.
    pub(crate) fn new(total: usize, of_peer: usize) -> Arc<Self> {
        Self::with_grace(total, of_peer, Duration::ZERO)
    }

    /// Returns a table whose slots can be evicted only after some time: new peers are refused meanwhile, and
    /// so are admitted at a limited rate.
    pub(crate) fn with_grace(total: usize, of_peer: usize, grace: Duration) -> Arc<Self> {
        let state = AdmissionState { next: 0, taken: 0, of_peer: HashMap::new(), unsettled: BTreeMap::new() };
        Arc::new(Self { total, of_peer, grace, state: Mutex::new(state) })
    }

    /// Takes an unsettled slot for a peer.
    pub(crate) fn take(self: &Arc<Self>, peer: P, now: Instant) -> Admission<P> {
        let mut state = self.state();
        let too_many_of_peer = state.of_peer.get(&peer).is_some_and(|it| *it >= self.of_peer);
        let old = |it: &UnsettledSlot<P>| now.saturating_duration_since(it.since) >= self.grace;
        let evicted_peer = if too_many_of_peer {
            state.evict_oldest(|it| it.peer == peer && old(it))
        } else if state.taken >= self.total {
            state.evict_oldest(old)
        } else {
            None
        };
        if evicted_peer.is_none() && (too_many_of_peer || state.taken >= self.total) {
            return Admission::Refused;
        }
        let (number, evicted) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.taken += 1;
        *state.of_peer.entry(peer).or_default() += 1;
        let unsettled = UnsettledSlot { peer, since: now, evicted: Arc::clone(&evicted) };
        state.unsettled.insert(number, unsettled);
        drop(state);
        let slot = AdmissionSlot { table: Arc::clone(self), number, peer, evicted };
        match evicted_peer {
            None => Admission::Granted(slot),
            Some(loser) => Admission::GrantedByEvicting(slot, loser),
        }
    }

    fn state(&self) -> MutexGuard<'_, AdmissionState<P>> {
        lock(&self.state)
    }
}

impl<P: Copy + Eq + Hash> AdmissionState<P> {
    /// Evicts the oldest unsettled slot that fits, and returns its peer. The slot is free at once, although
    /// the task of that peer may take a moment to end.
    fn evict_oldest(&mut self, fits: impl Fn(&UnsettledSlot<P>) -> bool) -> Option<P> {
        let number = *self.unsettled.iter().find(|(_, slot)| fits(slot))?.0;
        let UnsettledSlot { peer, evicted, .. } = self.unsettled.remove(&number)?;
        evicted.notify_one();
        self.free(peer);
        Some(peer)
    }

    fn free(&mut self, peer: P) {
        self.taken -= 1;
        if let Some(count) = self.of_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(&peer);
            }
        }
    }
}

/// A settled slot, until it is dropped.
#[derive(Debug)]
pub(crate) struct SettledSlot<P: Copy + Eq + Hash> {
    table: Arc<AdmissionTable<P>>,
    peer: P,
}

impl<P: Copy + Eq + Hash> AdmissionSlot<P> {
    /// Waits until the slot is evicted.
    pub(crate) async fn pushed_out(&self) {
        self.evicted.notified().await;
    }

    /// Returns true for a slot of this table.
    pub(crate) fn is_of(&self, table: &Arc<AdmissionTable<P>>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// Settles the slot, which can't be evicted from then on. None if the slot was evicted already.
    pub(crate) fn settle(self) -> Option<SettledSlot<P>> {
        self.table.state().unsettled.remove(&self.number)?;
        Some(SettledSlot { table: Arc::clone(&self.table), peer: self.peer })
    }
}

impl<P: Copy + Eq + Hash> Drop for AdmissionSlot<P> {
    fn drop(&mut self) {
        let mut state = self.table.state();
        // A slot that was evicted or settled is not in the map: its count is settled elsewhere.
        if state.unsettled.remove(&self.number).is_some() {
            state.free(self.peer);
        }
    }
}

impl<P: Copy + Eq + Hash> Drop for SettledSlot<P> {
    fn drop(&mut self) {
        self.table.state().free(self.peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free<P: Copy + Eq + Hash>(taken: Admission<P>) -> AdmissionSlot<P> {
        match taken {
            Admission::Granted(place) => place,
            Admission::GrantedByEvicting(..) | Admission::Refused => panic!("no free place"),
        }
    }

    fn instead<P: Copy + Eq + Hash>(taken: Admission<P>) -> (AdmissionSlot<P>, P) {
        match taken {
            Admission::GrantedByEvicting(place, loser) => (place, loser),
            Admission::Granted(_) | Admission::Refused => panic!("nobody was pushed out"),
        }
    }

    #[test]
    fn a_peer_with_too_many_loses_its_own_oldest() {
        let places = AdmissionTable::new(10, 2);
        let _other = free(places.take('b', Instant::now()));
        let (first, second) =
            (free(places.take('a', Instant::now())), free(places.take('a', Instant::now())));
        let (_third, loser) = instead(places.take('a', Instant::now()));
        assert_eq!(loser, 'a');
        assert!(first.settle().is_none(), "the oldest has lost its place");
        assert!(second.settle().is_some());
    }

    #[test]
    fn a_full_table_makes_room_by_age_whoever_it_is() {
        let places = AdmissionTable::new(3, 3);
        let [a, b, c] = ['a', 'b', 'c'].map(|it| free(places.take(it, Instant::now())));
        let settled = a.settle();
        assert!(settled.is_some());
        let (_d, loser) = instead(places.take('d', Instant::now()));
        assert_eq!(loser, 'b', "a has settled");
        drop((b, c));
        free(places.take('e', Instant::now()));
    }

    #[test]
    fn the_settled_keep_their_places() {
        let places = AdmissionTable::new(2, 2);
        let kept = ['a', 'b'].map(|it| free(places.take(it, Instant::now())).settle());
        assert!(matches!(places.take('c', Instant::now()), Admission::Refused));
        drop(kept);
        free(places.take('c', Instant::now()));
    }

    #[test]
    fn a_place_is_safe_for_a_while() {
        let (grace, start) = (Duration::from_millis(100), Instant::now());
        let places = AdmissionTable::with_grace(1, 1, grace);
        let _first = free(places.take('a', start));
        assert!(matches!(places.take('b', start + grace / 2), Admission::Refused));
        let (_third, loser) = instead(places.take('c', start + grace));
        assert_eq!(loser, 'a');
    }

    #[test]
    fn counts_come_back_to_nothing() {
        let places = AdmissionTable::new(8, 3);
        let mut held = Vec::new();
        for turn in 0..1000_u32 {
            match places.take(turn % 5, Instant::now()) {
                Admission::Granted(place) | Admission::GrantedByEvicting(place, _) if turn % 3 == 0 => {
                    held.extend(place.settle().filter(|_| turn % 2 == 0));
                }
                Admission::Granted(_) | Admission::GrantedByEvicting(..) | Admission::Refused => {}
            }
            if held.len() > 6 {
                held.clear();
            }
        }
        held.clear();
        let state = places.state();
        assert_eq!((state.taken, state.of_peer.len(), state.unsettled.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn the_loser_hears_of_it() {
        let places = AdmissionTable::new(1, 1);
        let first = free(places.take('a', Instant::now()));
        let (_second, _) = instead(places.take('b', Instant::now()));
        first.pushed_out().await;
    }
}
