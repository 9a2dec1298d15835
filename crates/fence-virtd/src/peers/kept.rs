// SPDX-License-Identifier: GPL-2.0-or-later
//! The writing of the table of hosts: when, and who waits for it.
//!
//! Owns the order of the writings. Who must answer and who is in doubt is written at once, and an answer of
//! another host counts after that: whatever ends this daemon, the next one knows everybody on whose word a
//! domain was called off. Names, addresses and times are written once in a while, and at the end.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;
use tokio::time::{timeout, timeout_at};
use tracing::warn;

use super::limits::{KEEP_LIMIT, WRITE_PAUSE};
use super::state::Peers;
use crate::util::backoff::OncePerReason;
use crate::util::locks::lock;

impl Peers {
    /// Writes the table when it changed, and forgets hosts that an administrator names.
    pub(super) async fn keep_file(self: Arc<Self>) {
        let Some(store) = &self.store else { return };
        let mut logged = OncePerReason::default();
        // The table of the start is on the disk already.
        let (mut is_written, mut next) = (true, Instant::now());
        loop {
            if Instant::now() >= next {
                next = Instant::now() + WRITE_PAUSE;
                let store = store.clone();
                match spawn_blocking(move || store.take_forgotten()).await {
                    Ok(Ok(hosts)) => hosts.iter().for_each(|it| is_written &= !self.forget(it)),
                    Ok(Err(error)) => {
                        self.log_disk(&mut logged, "read which hosts are to be forgotten", &error);
                    }
                    Err(_) => return,
                }
                self.drop_unproved();
                if !is_written && !self.write(&mut logged, &mut is_written).await {
                    return;
                }
            }
            is_written &= timeout_at(next.into(), self.changed.notified()).await.is_err();
            if !self.is_bound_kept() && !self.write(&mut logged, &mut is_written).await {
                return;
            }
        }
    }

    /// Waits until the disk has everybody who must answer, and everybody in doubt. A disk that fails leaves a
    /// file that says so to the next daemon; one that hangs holds nobody up for long.
    pub(super) async fn wait_until_kept(&self, until: Instant) {
        if self.store.is_none() || self.is_bound_kept() {
            return;
        }
        self.changed.notify_one();
        let mut kept = self.kept.subscribe();
        let limit = until.min(Instant::now() + KEEP_LIMIT);
        let _ = timeout_at(limit.into(), kept.wait_for(|it| *it == lock(&self.table).bound())).await;
    }

    /// Writes the table for the last time, when nothing changes it any more.
    pub(crate) async fn finish(self: &Arc<Self>) {
        if self.store.is_none() {
            return;
        }
        let peers = Arc::clone(self);
        let error = match timeout(KEEP_LIMIT, spawn_blocking(move || peers.write_file())).await {
            Ok(Ok(Err(error))) => error.to_string(),
            Err(_) => "the disk did not answer in time".to_owned(),
            Ok(_) => return,
        };
        if self.is_on() {
            warn!("can't write down the other hosts at the end: {error}; is the state directory full?");
        }
    }

    fn is_bound_kept(&self) -> bool {
        *self.kept.borrow() == lock(&self.table).bound()
    }

    /// Writes the table. Returns false when the daemon ends.
    async fn write(self: &Arc<Self>, logged: &mut OncePerReason, is_written: &mut bool) -> bool {
        let peers = Arc::clone(self);
        match spawn_blocking(move || peers.write_file()).await {
            Ok(Ok(())) => *is_written = true,
            Ok(Err(error)) => {
                *is_written = false;
                self.log_disk(logged, "write down the other hosts", &error);
            }
            Err(_) => return false,
        }
        true
    }

    /// Writes the table as it is when its turn comes: the latest writing has the latest table.
    fn write_file(&self) -> io::Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let _turn = lock(&self.writes);
        let table = lock(&self.table).clone();
        let written = store.write(&table).and_then(|()| store.write_announced(&table));
        // Of a table that can't be written the next daemon is told that hosts may be missing.
        self.kept.send_replace(table.bound());
        written
    }

    fn log_disk(&self, logged: &mut OncePerReason, what: &str, error: &io::Error) {
        if self.is_on() && logged.is_new(&error.to_string()) {
            warn!("can't {what}: {error}; is the state directory full?");
        }
    }
}
