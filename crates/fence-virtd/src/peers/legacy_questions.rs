// SPDX-License-Identifier: GPL-2.0-or-later
//! The order of the questions to hosts without host messages. Owns the turns; must never send anything.

use std::time::Instant;

use tokio::sync::{MutexGuard, Notify, watch};
use tokio::time::timeout_at;

/// State of the questions to hosts without host messages.
#[derive(Debug)]
pub(super) struct LegacyQuestions {
    /// One question at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Questions that wait for their turn. A search gives way to them.
    waiting: watch::Sender<usize>,
    /// Something shows that other hosts exist.
    pub(super) wanted: Notify,
    /// Hosts were forgotten: who is still there must be found before anything is said.
    pub(super) anew: Notify,
    /// The first search has ended: before that nobody can know which hosts there are.
    pub(super) searched: watch::Sender<bool>,
}

impl Default for LegacyQuestions {
    fn default() -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            waiting: watch::channel(0).0,
            wanted: Notify::new(),
            anew: Notify::new(),
            searched: watch::channel(false).0,
        }
    }
}

impl LegacyQuestions {
    /// Takes the turn for a question that can't wait for the end of a search.
    pub(super) async fn take_turn(&self) -> MutexGuard<'_, ()> {
        let _waiting = WaitingTurn::of(&self.waiting);
        self.turn.lock().await
    }

    /// Waits until another question wants the turn.
    pub(super) async fn is_turn_wanted(&self) {
        let _ = self.waiting.subscribe().wait_for(|it| *it > 0).await;
    }

    /// Asks for a search soon.
    pub(super) fn search_soon(&self) {
        self.wanted.notify_one();
    }

    /// Begins as at the start.
    pub(super) fn search_anew(&self) {
        self.searched.send_replace(false);
        self.anew.notify_one();
        self.wanted.notify_one();
    }

    /// Waits for the end of the first search: true, or until an instant: false.
    pub(super) async fn has_searched(&self, until: Instant) -> bool {
        let mut searched = self.searched.subscribe();
        timeout_at(until.into(), searched.wait_for(|it| *it)).await.is_ok()
    }
}

/// Question that waits for its turn, until the value is dropped.
struct WaitingTurn<'q>(&'q watch::Sender<usize>);

impl<'q> WaitingTurn<'q> {
    fn of(waiting: &'q watch::Sender<usize>) -> Self {
        waiting.send_modify(|it| *it += 1);
        Self(waiting)
    }
}

impl Drop for WaitingTurn<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|it| *it -= 1);
    }
}
