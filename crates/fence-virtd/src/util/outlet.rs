// SPDX-License-Identifier: GPL-2.0-or-later
//! A way out to something that may hang (a disk, a pipe that nobody reads): a bounded queue and a thread of its own that
//! writes. Nobody waits for it but at the end; what finds no room is counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// See the module's head. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Outlet<T> {
    queue: SyncSender<OutletMessage<T>>,
    losses: Arc<LossCounter>,
}

#[derive(Debug)]
enum OutletMessage<T> {
    Item(T),
    /// To be told when all that came before is written.
    Finish(SyncSender<()>),
}

/// What became of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PushResult {
    /// It will be written.
    Taken,
    /// There was no room for it, for the first time since all was written last.
    FirstLost,
    /// There was no room for it either.
    Lost,
}

/// Writes what is handed to an [`Outlet`].
pub(crate) trait Sink<T>: Send + 'static {
    /// May take as long as it likes.
    fn write(&mut self, item: T);
    /// Nothing waits any more, and so many items were lost before.
    fn caught_up(&mut self, lost: u64);
}

#[derive(Debug, Default)]
struct LossCounter {
    count: AtomicU64,
    any: AtomicBool,
}

impl<T: Send + 'static> Outlet<T> {
    /// Starts the thread. `room`: how many items may wait.
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

    /// The same with what is no loss when there is no room for it. Whether there was.
    pub(crate) fn offer(&self, item: T) -> bool {
        self.queue.try_send(OutletMessage::Item(item)).is_ok()
    }

    /// Waits until everything is written, but no longer than `limit`. Whether it is.
    pub(crate) fn finish(&self, limit: Duration) -> bool {
        finish(&self.queue, OutletMessage::Finish, limit)
    }

    /// Items that found no room since all was written last.
    #[cfg(test)]
    pub(crate) fn lost(&self) -> u64 {
        self.losses.count.load(Ordering::Relaxed)
    }
}

/// Asks the thread behind a queue to tell when all that came before is done, and waits for that, but no longer than
/// `limit`. Whether it told.
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
                let Ok(message) = waiting.recv() else { return };
                message
            }
            Err(TryRecvError::Disconnected) => return,
        };
        match message {
            OutletMessage::Item(item) => sink.write(item),
            OutletMessage::Finish(tell) => drop(tell.send(())),
        }
    }
}
