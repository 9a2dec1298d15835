// SPDX-License-Identifier: GPL-2.0-or-later
//! A bounded number of places for peers that are being served, so that nobody can take them all.
//!
//! Who has only taken a place and proved nothing yet (a silent connection, an address that does not answer) is
//! *waiting*. When there is no room, the oldest waiting one is pushed out for a newcomer: of the same peer when
//! that peer has too many places, of all when all are taken. Who has *settled* keeps the place to the end. An honest
//! peer settles within milliseconds, so to keep it out takes a whole table of newcomers in that time.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::util::locks::lock;

/// The table.
#[derive(Debug)]
pub(crate) struct AdmissionTable<P> {
    total: usize,
    of_peer: usize,
    /// How long a place is safe.
    grace: Duration,
    state: Mutex<AdmissionState<P>>,
}

#[derive(Debug)]
struct AdmissionState<P> {
    next: u64,
    taken: usize,
    of_peer: HashMap<P, usize>,
    /// By number, which is the order of arrival.
    waiting: BTreeMap<u64, UnsettledSlot<P>>,
}

#[derive(Debug)]
struct UnsettledSlot<P> {
    peer: P,
    since: Instant,
    push: Arc<Notify>,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(crate) struct AdmissionSlot<P: Copy + Eq + Hash> {
    places: Arc<AdmissionTable<P>>,
    number: u64,
    peer: P,
    push: Arc<Notify>,
}

/// What became of a newcomer.
#[derive(Debug)]
pub(crate) enum Admission<P: Copy + Eq + Hash> {
    /// There was room.
    Granted(AdmissionSlot<P>),
    /// This peer's place was taken away for it.
    GrantedByEvicting(AdmissionSlot<P>, P),
    /// All are settled, or not to be pushed out yet.
    Refused,
}

impl<P: Copy + Eq + Hash> AdmissionTable<P> {
    /// Room for `total`, and for `of_peer` of each peer.
    pub(crate) fn new(total: usize, of_peer: usize) -> Arc<Self> {
        Self::with_grace(total, of_peer, Duration::ZERO)
    }

    /// The same, where a waiting one is pushed out only after some time: so newcomers are refused at times, and
    /// come in at a limited rate.
    pub(crate) fn with_grace(total: usize, of_peer: usize, grace: Duration) -> Arc<Self> {
        let state = AdmissionState { next: 0, taken: 0, of_peer: HashMap::new(), waiting: BTreeMap::new() };
        Arc::new(Self { total, of_peer, grace, state: Mutex::new(state) })
    }

    /// A waiting place for a newcomer.
    pub(crate) fn take(self: &Arc<Self>, peer: P, now: Instant) -> Admission<P> {
        let mut state = self.state();
        let too_many_of_peer = state.of_peer.get(&peer).is_some_and(|it| *it >= self.of_peer);
        let old = |it: &UnsettledSlot<P>| now.saturating_duration_since(it.since) >= self.grace;
        let pushed = if too_many_of_peer {
            state.evict_oldest(|it| it.peer == peer && old(it))
        } else if state.taken >= self.total {
            state.evict_oldest(old)
        } else {
            None
        };
        if pushed.is_none() && (too_many_of_peer || state.taken >= self.total) {
            return Admission::Refused;
        }
        let (number, push) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.taken += 1;
        *state.of_peer.entry(peer).or_default() += 1;
        state.waiting.insert(number, UnsettledSlot { peer, since: now, push: Arc::clone(&push) });
        drop(state);
        let place = AdmissionSlot { places: Arc::clone(self), number, peer, push };
        match pushed {
            None => Admission::Granted(place),
            Some(loser) => Admission::GrantedByEvicting(place, loser),
        }
    }

    fn state(&self) -> MutexGuard<'_, AdmissionState<P>> {
        lock(&self.state)
    }
}

impl<P: Copy + Eq + Hash> AdmissionState<P> {
    /// Takes the place of the oldest waiting one that fits away at once: its task may take a moment to notice.
    fn evict_oldest(&mut self, fits: impl Fn(&UnsettledSlot<P>) -> bool) -> Option<P> {
        let number = *self.waiting.iter().find(|(_, it)| fits(it))?.0;
        let UnsettledSlot { peer, push, .. } = self.waiting.remove(&number)?;
        push.notify_one();
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

/// A place that has settled, until it is dropped.
#[derive(Debug)]
pub(crate) struct SettledSlot<P: Copy + Eq + Hash> {
    places: Arc<AdmissionTable<P>>,
    peer: P,
}

impl<P: Copy + Eq + Hash> AdmissionSlot<P> {
    /// Returns when the place was taken away.
    pub(crate) async fn pushed_out(&self) {
        self.push.notified().await;
    }

    /// Whether it is one of these.
    pub(crate) fn is_of(&self, places: &Arc<AdmissionTable<P>>) -> bool {
        Arc::ptr_eq(&self.places, places)
    }

    /// From now on the place is kept; none when it was taken away already.
    pub(crate) fn settle(self) -> Option<SettledSlot<P>> {
        self.places.state().waiting.remove(&self.number)?;
        Some(SettledSlot { places: Arc::clone(&self.places), peer: self.peer })
    }
}

impl<P: Copy + Eq + Hash> Drop for AdmissionSlot<P> {
    fn drop(&mut self) {
        let mut state = self.places.state();
        // Not there: pushed out, or settled. Either has seen to the count.
        if state.waiting.remove(&self.number).is_some() {
            state.free(self.peer);
        }
    }
}

impl<P: Copy + Eq + Hash> Drop for SettledSlot<P> {
    fn drop(&mut self) {
        self.places.state().free(self.peer);
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
        assert_eq!((state.taken, state.of_peer.len(), state.waiting.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn the_loser_hears_of_it() {
        let places = AdmissionTable::new(1, 1);
        let first = free(places.take('a', Instant::now()));
        let (_second, _) = instead(places.take('b', Instant::now()));
        first.pushed_out().await;
    }
}
