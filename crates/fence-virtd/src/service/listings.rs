// SPDX-License-Identifier: GPL-2.0-or-later
//! Lists of domains for clients: one look at all domains at a time, and a bound on what clients don't read.
//!
//! All that ask while a look is under way share the next one, which begins after the last of them asked: no
//! list is older than its request. So any number of lists costs the hypervisors one look after another.
//!
//! A list waits in memory until its client has read it. The lists of one key have [`ROOM`] bytes together;
//! the next one waits until there is room. So whoever asks for lists and reads none holds up lists of its own
//! key alone.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use fence_core::domain::{ActionError, DomainListing};
use fence_wire::KeyTag;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use crate::request::job::ListRoom;
use crate::util::locks::lock;

/// Bytes of the lists of one key that wait to be read.
const ROOM: usize = 16 * 1024 * 1024;
/// Unit in which the room is shared out.
const PIECE: usize = 1024;
/// Bytes of an entry in memory and on its way, about.
const ENTRY: usize = 384;

/// Listing that several requests share.
type SharedListing = Result<Arc<DomainListing>, ActionError>;

/// Looks at all domains, and the room of lists.
#[derive(Default)]
pub(super) struct ListingDesk {
    /// Number of requests for a look so far.
    asked: AtomicU64,
    /// Last look; held locked by the one that is under way.
    last: tokio::sync::Mutex<Option<FinishedLook>>,
    rooms: Mutex<HashMap<Option<KeyTag>, Arc<Semaphore>>>,
}

struct FinishedLook {
    /// Requests up to this one were there when the look began.
    covers: u64,
    listing: SharedListing,
}

impl ListingDesk {
    /// Returns a listing that was begun after this call; by `look`, or by that of a request which shares it.
    pub(super) async fn look<F>(&self, look: impl FnOnce() -> F, until: Instant) -> SharedListing
    where
        F: Future<Output = Result<DomainListing, ActionError>>,
    {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let turn = timeout_at(until.into(), self.last.lock()).await;
        let Ok(mut last) = turn else {
            return Err(ActionError::Unavailable("an earlier look at all domains has not ended".to_owned()));
        };
        if let Some(it) = last.as_ref().filter(|it| it.covers >= mine) {
            return it.listing.clone();
        }
        let covers = self.asked.load(Ordering::SeqCst);
        *last = None;
        let listing = look().await.map(Arc::new);
        *last = (covers > mine).then(|| FinishedLook { covers, listing: listing.clone() });
        listing
    }

    /// Waits for the room of a list with so many entries, for a client with this key; none if there is none
    /// in time.
    pub(super) async fn room(&self, key: Option<KeyTag>, entries: usize, until: Instant) -> Option<ListRoom> {
        let room = self.room_of(key);
        let pieces = (entries * ENTRY / PIECE + 1).min(ROOM / PIECE);
        let pieces = u32::try_from(pieces).ok()?;
        let taken = timeout_at(until.into(), room.acquire_many_owned(pieces)).await;
        Some(ListRoom::new(taken.ok()?.ok()?))
    }

    fn room_of(&self, key: Option<KeyTag>) -> Arc<Semaphore> {
        let mut rooms = lock(&self.rooms);
        // What nobody uses is as good as new.
        rooms.retain(|_, it| Arc::strong_count(it) > 1);
        Arc::clone(rooms.entry(key).or_insert_with(|| Arc::new(Semaphore::new(ROOM / PIECE))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use fence_wire::Key;
    use tokio::sync::Notify;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// However many ask at once, there is one look at a time, and each gets one that began after it asked.
    #[tokio::test]
    async fn looks_are_shared_and_never_older_than_the_question() {
        let desk = Arc::new(ListingDesk::default());
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = |waits: bool| {
            let (desk, begun, go) = (Arc::clone(&desk), Arc::clone(&begun), Arc::clone(&go));
            async move {
                let before = begun.load(Ordering::SeqCst);
                let listing = desk
                    .look(
                        async || {
                            let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                            if waits {
                                go.notified().await;
                            }
                            Ok(DomainListing { domains: Vec::new(), missing: vec![number.to_string()] })
                        },
                        soon(),
                    )
                    .await;
                (before, listing.unwrap().missing[0].parse::<usize>().unwrap())
            }
        };
        let first = tokio::spawn(ask(true));
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..100).map(|_| tokio::spawn(ask(false))).collect();
        while desk.asked.load(Ordering::SeqCst) < 101 {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        assert_eq!(first.await.unwrap(), (0, 1));
        for it in others {
            let (before, look) = it.await.unwrap();
            assert_eq!((before, look), (1, 2));
        }
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        assert_eq!(ask(false).await, (2, 3), "no look is used later");
    }

    /// A look whose client has gone is made by the next one that waits for it.
    #[tokio::test]
    async fn a_look_that_nobody_waits_for_holds_up_nobody() {
        let desk = Arc::new(ListingDesk::default());
        let stuck = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move { desk.look(std::future::pending::<Result<DomainListing, ActionError>>, soon()).await }
        });
        while desk.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let late = Instant::now() + Duration::from_millis(20);
        assert!(desk.look(async || Ok(DomainListing::default()), late).await.is_err());
        stuck.abort();
        assert!(desk.look(async || Ok(DomainListing::default()), soon()).await.is_ok());
    }

    #[tokio::test]
    async fn the_lists_of_one_key_leave_room_to_those_of_another() {
        let desk = ListingDesk::default();
        let tag = |name: &str| Some(Key::new(name.as_bytes()).unwrap().tag());
        let (red, blue) = (tag("red"), tag("blue"));
        let mut unread = Vec::new();
        let now = || Instant::now() + Duration::from_millis(20);
        while let Some(room) = desk.room(red, 5000, now()).await {
            unread.push(room);
        }
        assert_eq!(unread.len(), ROOM / PIECE / (5000 * ENTRY / PIECE + 1));
        assert!(desk.room(blue, 5000, now()).await.is_some() && desk.room(None, 5000, now()).await.is_some());
        // More than there is room for goes alone.
        assert!(desk.room(blue, 1_000_000, now()).await.is_some());
        drop(unread);
        assert!(desk.room(red, 5000, now()).await.is_some());
        desk.room_of(None);
        assert_eq!(lock(&desk.rooms).len(), 1, "rooms that nobody uses are forgotten");
    }
}
