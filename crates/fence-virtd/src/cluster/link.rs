// SPDX-License-Identifier: GPL-2.0-or-later
//! This daemon's membership of one group of corosync, for ever: joined again whenever corosync comes back.
//!
//! A thread of its own owns the [`Group`], because joining and leaving wait for corosync, without limit where
//! corosync is stopped. [`Link`] hands messages to the thread. [`LinkReceiver`] returns its events, in
//! corosync's order. Neither knows the contents of a message.
//!
//! Corosync that runs and delivers nothing counts as gone: when a sent message does not come back for
//! [`SILENCE`], the link is lost too.
//!
//! The thread must never hold a lock, or wait for one, while it calls corosync; and never keep a message
//! for a later membership than its sender knew.

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use corosync_cpg::{Error, ErrorKind, Event, Group, Member, Node, NodeList, Reason, Sent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

#[cfg(test)]
mod tests;

/// Time in which corosync must deliver a message. Longer than a new membership takes (token and consensus).
const SILENCE: Duration = Duration::from_secs(20);
/// Pause between two tries to join.
const RETRY: Duration = Duration::from_secs(1);
/// Pause between two tries to send while corosync has no room: the first, and the longest.
const ROOM: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// Time for the daemon's end: half for messages that are still to be sent, half for leaving.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Messages, and their bytes, that wait for corosync. More means that corosync does not keep up: the link is
/// lost.
const WAITING: (usize, usize) = (8192, 16 << 20);
/// Messages that are sent before the thread reads the messages that came.
const BATCH: usize = 64;
/// Events that wait for the daemon. Then corosync waits.
const EVENTS: usize = 64;
/// libcpg puts a message of 1 MiB on the stack.
const STACK: usize = 4 << 20;

/// Event in the group. `Joined` and `Lost` alternate; either may be the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// This daemon is in the group, and can send. The event with the other members comes next, by itself.
    Joined {
        /// Member that this daemon is to the others.
        me: Member,
        /// Nodes that corosync.conf names; none if they are not known.
        nodes: Option<Vec<Node>>,
    },
    /// The nodes that corosync.conf names are others now.
    NodeList { nodes: Option<Vec<Node>> },
    /// The nodes that corosync hears from now on, whatever runs on them.
    Ring { nodes: Vec<u32> },
    /// A member sent this; one's own messages come too.
    Message { from: Member, data: Vec<u8> },
    /// Members came or went.
    Change { members: Vec<Member>, left: Vec<(Member, Reason)>, joined: Vec<(Member, Reason)> },
    /// The group is out of reach, for this reason. Messages that did not come back may be delivered or lost.
    Lost(String),
}

/// A message is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The link is lost: [`LinkEvent::Lost`] was the last to say so, or is on its way.
    #[error("corosync is out of reach")]
    Gone,
    /// More bytes than corosync takes.
    #[error("a message of {0} bytes is too long for corosync")]
    TooLong(usize),
}

/// Sending end of a link. Clones are the same link.
#[derive(Clone)]
pub(crate) struct Link {
    shared: Arc<LinkShared>,
    ended: watch::Receiver<()>,
}

/// Receiver of the group's events. A drop ends the link.
pub(crate) struct LinkReceiver {
    shared: Arc<LinkShared>,
    events: mpsc::Receiver<(u64, LinkEvent)>,
}

impl Link {
    /// Joins the group of this name, as soon as corosync lets us.
    ///
    /// # Errors
    /// There is no thread or pipe to be had.
    pub(crate) fn start(group: &str) -> io::Result<(Self, LinkReceiver)> {
        Self::start_with(group, SILENCE)
    }

    fn start_with(group: &str, silence: Duration) -> io::Result<(Self, LinkReceiver)> {
        let (rung, bell) = io::pipe()?;
        let shared = Arc::new(LinkShared { state: Mutex::default(), bell });
        let (sender, events) = mpsc::channel(EVENTS);
        let (alive, ended) = watch::channel(());
        let mut thread = LinkThread {
            name: group.to_owned(),
            shared: Arc::clone(&shared),
            rung,
            events: sender,
            number: 0,
            lost: None,
            silence,
            alive: Some(alive),
        };
        thread::Builder::new()
            .name("corosync".to_owned())
            .stack_size(STACK)
            .spawn(move || thread.keep_joined())?;
        Ok((Self { shared: Arc::clone(&shared), ended }, LinkReceiver { shared, events }))
    }

    /// Sends a message to all members, this one too, after the earlier ones. The message belongs to the
    /// latest membership that [`LinkReceiver::next`] reported, and is sent in no other.
    ///
    /// # Errors
    /// [`SendError::Gone`] while not joined, as far as `next` reported. All messages since `Joined` may be
    /// lost then.
    pub(crate) fn send(&self, data: Vec<u8>) -> Result<(), SendError> {
        self.shared.state().put(data)?;
        self.shared.ring();
        Ok(())
    }

    /// Leaves the group after the messages that are still to be sent. Returns when that is done or took too
    /// long.
    pub(crate) async fn leave(&self) {
        self.shared.leave();
        let mut ended = self.ended.clone();
        // Nothing is ever sent there; it closes when the thread ends.
        let _ = tokio::time::timeout(LAST_WORDS, ended.changed()).await;
    }
}

impl LinkReceiver {
    /// The next event; none when the link was left. May be cancelled.
    pub(crate) async fn next(&mut self) -> Option<LinkEvent> {
        let (number, event) = self.events.recv().await?;
        match event {
            LinkEvent::Joined { .. } => self.shared.state().known = Some(number),
            LinkEvent::Lost(_) => self.shared.state().known = None,
            _ => {}
        }
        Some(event)
    }
}

impl Drop for LinkReceiver {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

/// State of both ends of a link. The lock is held for a moment, and never during a call to corosync.
struct LinkShared {
    state: Mutex<LinkState>,
    bell: PipeWriter,
}

#[derive(Default)]
struct LinkState {
    /// Latest membership that was reported to the daemon, until its end is reported.
    known: Option<u64>,
    /// Messages to be sent, each in one membership.
    waiting: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// There was no more room in `waiting`.
    is_full: bool,
    /// The longest message that corosync takes.
    longest: usize,
    leaving: bool,
    /// There is a byte in the pipe.
    rung: bool,
}

impl LinkShared {
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        self.state().leaving = true;
        self.ring();
    }

    /// Wakes the thread. Never waits: there is one byte in the pipe at most.
    fn ring(&self) {
        let was_rung = mem::replace(&mut self.state().rung, true);
        if !was_rung {
            let _ = (&self.bell).write_all(&[0]);
        }
    }
}

impl LinkState {
    fn put(&mut self, data: Vec<u8>) -> Result<(), SendError> {
        let number = self.known.ok_or(SendError::Gone)?;
        if data.len() > self.longest {
            return Err(SendError::TooLong(data.len()));
        }
        if self.waiting.len() >= WAITING.0 || self.bytes + data.len() > WAITING.1 {
            // The thread finds nothing for this membership any more, and ends it.
            (self.known, self.is_full) = (None, true);
            return Err(SendError::Gone);
        }
        self.bytes += data.len();
        self.waiting.push_back((number, data));
        Ok(())
    }

    /// Returns whether there was no more room, and whether the daemon wants to leave.
    fn told(&self) -> (bool, bool) {
        (self.is_full, self.leaving)
    }

    /// Nothing of a membership that is over is kept.
    fn forget(&mut self) {
        self.waiting.clear();
        (self.bytes, self.is_full) = (0, false);
    }

    /// Returns the next message of this membership, and drops messages of earlier ones.
    fn take(&mut self, membership: u64) -> Option<Vec<u8>> {
        while let Some((number, data)) = self.waiting.pop_front() {
            self.bytes -= data.len();
            if number == membership {
                return Some(data);
            }
        }
        None
    }
}

/// Thread of a link.
struct LinkThread {
    name: String,
    shared: Arc<LinkShared>,
    rung: PipeReader,
    events: mpsc::Sender<(u64, LinkEvent)>,
    /// Number of times that the group was joined.
    number: u64,
    /// Why it is lost, while it is and the daemon knows.
    lost: Option<String>,
    silence: Duration,
    /// There until the thread has nothing more to do.
    alive: Option<watch::Sender<()>>,
}

/// End of a membership.
enum MembershipEnd {
    /// The daemon wants no more of it.
    Left,
    /// More is to be sent than corosync takes.
    Full,
    /// Corosync runs, and delivers nothing.
    Silent(Corosync),
}

/// Open connections to corosync.
struct Corosync {
    group: Group,
    list: NodeList,
}

/// Messages of one membership that corosync has, or has no room for.
#[derive(Default)]
struct SendQueue {
    /// Next to be sent; corosync had no room for it.
    pending: Option<Vec<u8>>,
    /// Pause before the next try.
    pause: Duration,
    /// Taken by corosync and not come back.
    out: usize,
    /// Since when something is pending or out and nothing came.
    since: Option<Instant>,
}

impl LinkThread {
    fn keep_joined(&mut self) {
        loop {
            let reason = match self.join_and_take_part() {
                Ok(MembershipEnd::Left) => return,
                Err(error) => explained(&error),
                Ok(MembershipEnd::Full) => "corosync takes less than there is to send".to_owned(),
                Ok(MembershipEnd::Silent(corosync)) => {
                    let reason = format!("corosync runs, but delivered nothing for {:?}", self.silence);
                    self.say_lost(reason.clone());
                    if !self.wait_for_corosync(&corosync.group) {
                        // Nobody waits for this thread, which now waits for corosync.
                        self.alive = None;
                        return;
                    }
                    reason
                }
            };
            self.say_lost(reason);
            self.shared.state().forget();
            self.wait(&[], Some(RETRY));
            if self.shared.state().leaving {
                return;
            }
        }
    }

    fn join_and_take_part(&mut self) -> Result<MembershipEnd, Error> {
        let group = Group::join(&self.name)?;
        let corosync = Corosync { group, list: NodeList::open()? };
        let nodes = self.nodes(&corosync.list)?;
        self.number += 1;
        self.lost = None;
        self.shared.state().longest = corosync.group.max_message();
        let me = corosync.group.me();
        info!("corosync: in the group {} as process {} of node {}", self.name, me.pid, me.node);
        self.say(LinkEvent::Joined { me, nodes: nodes.clone() });
        self.take_part(corosync, nodes)
    }

    /// Until the end of this membership.
    fn take_part(
        &mut self,
        mut corosync: Corosync,
        mut nodes: Option<Vec<Node>>,
    ) -> Result<MembershipEnd, Error> {
        let mut sending = SendQueue::default();
        let mut leave_at = None;
        loop {
            let (is_full, leaving) = self.shared.state().told();
            if is_full {
                return Ok(MembershipEnd::Full);
            }
            let has_more = self.send(&corosync.group, &mut sending)?;
            if leaving {
                let at = *leave_at.get_or_insert_with(|| Instant::now() + LAST_WORDS / 2);
                if sending.pending.is_none() && !has_more || Instant::now() >= at {
                    corosync.group.leave();
                    return Ok(MembershipEnd::Left);
                }
            }

            let events = corosync.group.dispatch()?;
            let came = !events.is_empty();
            for event in events {
                let is_own = matches!(&event, Event::Message { from, .. } if *from == corosync.group.me());
                sending.out = sending.out.saturating_sub(usize::from(is_own));
                self.say(match event {
                    Event::Message { from, data } => LinkEvent::Message { from, data },
                    Event::Change { members, left, joined } => LinkEvent::Change { members, left, joined },
                    Event::Ring { nodes } => LinkEvent::Ring { nodes },
                });
            }
            if corosync.list.changed()? {
                let new = self.nodes(&corosync.list)?;
                if new != nodes {
                    nodes.clone_from(&new);
                    self.say(LinkEvent::NodeList { nodes: new });
                }
            }
            if sending.is_silent(came, self.silence, Instant::now()) {
                return Ok(MembershipEnd::Silent(corosync));
            }
            if !came && !has_more {
                let timeout = sending.timeout(self.silence, Instant::now());
                self.wait(&[corosync.group.as_fd(), corosync.list.as_fd()], timeout);
            }
        }
    }

    /// Waits until corosync does something again, because closing a connection would wait for it too. Returns
    /// false if the daemon wants to leave.
    fn wait_for_corosync(&self, group: &Group) -> bool {
        loop {
            if self.shared.state().leaving {
                return false;
            }
            if self.wait(&[group.as_fd()], None) {
                return true;
            }
        }
    }

    /// Hands waiting messages to corosync, as far as it has room. Returns true if more could be sent at once.
    fn send(&self, group: &Group, sending: &mut SendQueue) -> Result<bool, Error> {
        for _ in 0..BATCH {
            let next = sending.pending.take().or_else(|| self.shared.state().take(self.number));
            let Some(data) = next else { return Ok(false) };
            match group.send(&data)? {
                Sent::Taken => {
                    sending.out += 1;
                    sending.pause = ROOM.0;
                }
                Sent::Later => {
                    sending.pause = (sending.pause * 2).clamp(ROOM.0, ROOM.1);
                    sending.pending = Some(data);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The nodes of corosync.conf, where they are known.
    fn nodes(&self, list: &NodeList) -> Result<Option<Vec<Node>>, Error> {
        match list.nodes() {
            Ok(nodes) if !nodes.is_empty() => return Ok(Some(nodes)),
            Ok(_) => warn!("corosync: group {}: corosync.conf has no node list", self.name),
            Err(error) if error.kind == ErrorKind::NodeWithoutId => {
                warn!("corosync: group {}: {error}: give each one", self.name);
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    fn say_lost(&mut self, reason: String) {
        if self.lost.as_ref() == Some(&reason) {
            return;
        }
        warn!("corosync: group {}: {reason}", self.name);
        if self.lost.is_none() {
            self.say(LinkEvent::Lost(reason.clone()));
        }
        self.lost = Some(reason);
    }

    /// Hands the event on. Waits while the daemon has no room for it, unless it wants no more.
    fn say(&self, event: LinkEvent) {
        let mut event = (self.number, event);
        while let Err(mpsc::error::TrySendError::Full(back)) = self.events.try_send(event) {
            if self.shared.state().leaving {
                return;
            }
            event = back;
            thread::sleep(ROOM.0);
        }
    }

    /// Waits until one of these is readable, the bell rings, or the time is over. Whether the first of these
    /// is readable.
    fn wait(&self, descriptors: &[BorrowedFd<'_>], timeout: Option<Duration>) -> bool {
        let all = descriptors.iter().copied().chain([self.rung.as_fd()]);
        let mut polled: Vec<_> = all.map(|it| PollFd::new(it, PollFlags::POLLIN)).collect();
        // Rounded up: else the last millisecond would be spent in a loop.
        let timeout = timeout.map(|it| it + Duration::from_millis(1));
        let timeout = timeout.map_or(PollTimeout::NONE, |it| it.try_into().unwrap_or(PollTimeout::MAX));
        // Interrupted, or nothing in time: the caller checks everything anyway.
        let is_some = poll(&mut polled, timeout).is_ok_and(|it| it > 0);
        if is_some && polled.last().and_then(PollFd::any) == Some(true) {
            // In this order: a byte that came in between would be read, and the bell be taken for rung for
            // ever.
            let _ = (&self.rung).read(&mut [0; 8]);
            self.shared.state().rung = false;
        }
        is_some && !descriptors.is_empty() && polled[0].any() == Some(true)
    }
}

impl SendQueue {
    /// Returns true if corosync has delivered nothing for too long. `came`: it just delivered something.
    fn is_silent(&mut self, came: bool, silence: Duration, now: Instant) -> bool {
        if self.pending.is_none() && self.out == 0 {
            self.since = None;
            return false;
        }
        if came {
            self.since = Some(now);
        }
        let since = *self.since.get_or_insert(now);
        now.duration_since(since) >= silence
    }

    /// Returns the time for which the thread may sleep.
    fn timeout(&self, silence: Duration, now: Instant) -> Option<Duration> {
        let silent = self.since.map(|it| (it + silence).saturating_duration_since(now));
        let pause = self.pending.as_ref().map(|_| self.pause);
        silent.into_iter().chain(pause).min()
    }
}

/// Returns the error with the next thing to check.
pub(crate) fn explained(error: &Error) -> String {
    let next = match error.kind {
        ErrorKind::Gone => "is it running? systemctl status corosync",
        ErrorKind::AccessDenied => "name its user in a file in /etc/corosync/uidgid.d; see cpg.md",
        ErrorKind::Exists => "does another fence_virtd of this host serve?",
        ErrorKind::Size | ErrorKind::NodeWithoutId | ErrorKind::Other => return error.to_string(),
    };
    format!("{error}: {next}")
}
