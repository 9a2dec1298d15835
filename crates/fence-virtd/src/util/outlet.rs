// SPDX-License-Identifier: GPL-2.0-or-later
//! Writing to something that may hang (a disk, a pipe without a reader): a bounded queue, and a thread that
//! writes.
//!
//! Owns the queue and the thread. Callers never wait, except at the end of the daemon; items that find the
//! queue full are counted and lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// The queue and its thread, which ends when the outlet is dropped.
#[derive(Debug)]
pub(crate) struct Outlet<T> {
    queue: SyncSender<OutletMessage<T>>,
    losses: Arc<LossCounter>,
}

#[derive(Debug)]
enum OutletMessage<T> {
    Item(T),
    /// Sends a reply when all earlier items are written.
    Finish(SyncSender<()>),
}

/// Result of handing over an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PushResult {
    /// The item will be written.
    Taken,
    /// The queue was full, for the first time since all items were written.
    FirstLost,
    /// The queue was full again.
    Lost,
}

/// Writer of the items of an [`Outlet`].
pub(crate) trait Sink<T>: Send + 'static {
    /// Writes one item. May take any time.
    fn write(&mut self, item: T);
    /// Reports that the queue is empty again, and the number of items that were lost before.
    fn caught_up(&mut self, lost: u64);
    /// Returns the time after which [`Self::wake`] is to be called if no item comes; none for never.
    fn pause(&self) -> Option<Duration> {
        None
    }
    /// Does what is due without an item. May take any time.
    fn wake(&mut self) {}
}

#[derive(Debug, Default)]
struct LossCounter {
    count: AtomicU64,
    any: AtomicBool,
}

impl<T: Send + 'static> Outlet<T> {
    /// Starts the thread. `room` is the number of items that may wait.
    pub(crate) fn start(name: &str, room: usize, sink: impl Sink<T>) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(room);
        let losses = Arc::new(LossCounter::default());
        let of_thread = Arc::clone(&losses);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || keep_writing(&waiting, sink, &of_thread))?;
        Ok(Self { queue, losses })
    }

    /// Hands an item over. Never waits.
    pub(crate) fn push(&self, item: T) -> PushResult {
        if self.offer(item) {
            return PushResult::Taken;
        }
        self.losses.count.fetch_add(1, Ordering::Relaxed);
        if self.losses.any.swap(true, Ordering::AcqRel) { PushResult::Lost } else { PushResult::FirstLost }
    }

    /// Hands over an item that may be left out. Returns false if the queue was full; that counts as no loss.
    pub(crate) fn offer(&self, item: T) -> bool {
        self.queue.try_send(OutletMessage::Item(item)).is_ok()
    }

    /// Waits until all items are written, at most `limit`. Returns true if they are.
    pub(crate) fn finish(&self, limit: Duration) -> bool {
        finish(&self.queue, OutletMessage::Finish, limit)
    }

    /// Returns the number of lost items since all items were written.
    #[cfg(test)]
    pub(crate) fn lost(&self) -> u64 {
        self.losses.count.load(Ordering::Relaxed)
    }
}

/// Waits until the thread behind a queue has written all earlier items, at most `limit`. Returns true if it
/// has.
pub(crate) fn finish<M>(
    queue: &SyncSender<M>,
    message: impl FnOnce(SyncSender<()>) -> M,
    limit: Duration,
) -> bool {
    let (tell, told) = sync_channel(1);
    let end = Instant::now() + limit;
    let mut message = message(tell);
    while let Err(TrySendError::Full(back)) = queue.try_send(message) {
        if Instant::now() >= end {
            return false;
        }
        message = back;
        thread::sleep(Duration::from_millis(1));
    }
    told.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok()
}

fn keep_writing<T>(waiting: &Receiver<OutletMessage<T>>, mut sink: impl Sink<T>, losses: &LossCounter) {
    loop {
        let message = match waiting.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => {
                if losses.any.swap(false, Ordering::AcqRel) {
                    sink.caught_up(losses.count.swap(0, Ordering::Relaxed));
                }
                match sink
                    .pause()
                    .map_or_else(|| waiting.recv().map_err(Into::into), |it| waiting.recv_timeout(it))
                {
                    Ok(message) => message,
                    Err(RecvTimeoutError::Timeout) => {
                        sink.wake();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            Err(TryRecvError::Disconnected) => return,
        };
        match message {
            OutletMessage::Item(item) => sink.write(item),
            OutletMessage::Finish(tell) => drop(tell.send(())),
        }
    }
}
