// SPDX-License-Identifier: GPL-2.0-or-later
//! The line between a run and its supervisor: a socket. The supervisor reports on it. As soon as our end is
//! shut, or closed because the daemon died, the supervisor kills all processes of the run.

use std::io::Read as _;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::util::locks::{Mutex, lock};

/// Lifelines of all runs.
static LIFELINES: LazyLock<Mutex<Vec<Weak<UnixStream>>>> = LazyLock::new(Mutex::default);

/// Message of a supervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SupervisorReport {
    /// The supervisor waits for the input, and has started nothing yet.
    Ready,
    /// The program was not started, and is not any more, for this reason (errno; 0 if there is none). The
    /// last message.
    NotStarted(i32),
    /// The program ended with this exit code.
    Exit(i32),
    /// This signal ended the program.
    Signal(i32),
    /// No process of the run is left. The last message.
    Empty,
}

impl SupervisorReport {
    pub(super) const LEN: usize = 5;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let (kind, value) = match self {
            Self::Ready => (b'r', 0),
            Self::NotStarted(errno) => (b'n', errno),
            Self::Exit(code) => (b'e', code),
            Self::Signal(number) => (b's', number),
            Self::Empty => (b'0', 0),
        };
        let [a, b, c, d] = value.to_le_bytes();
        [kind, a, b, c, d]
    }

    pub(super) fn read([kind, a, b, c, d]: [u8; Self::LEN]) -> Option<Self> {
        let value = i32::from_le_bytes([a, b, c, d]);
        Some(match kind {
            b'r' => Self::Ready,
            b'n' => Self::NotStarted(value),
            b'e' => Self::Exit(value),
            b's' => Self::Signal(value),
            b'0' => Self::Empty,
            _ => return None,
        })
    }
}

/// Our end of the line of one run. Dropping it ends the run.
pub(super) struct Lifeline(Arc<UnixStream>);

impl Lifeline {
    pub(super) fn new(stream: UnixStream) -> Self {
        let stream = Arc::new(stream);
        let mut all = lock(&LIFELINES);
        all.retain(|it| it.strong_count() > 0);
        all.push(Arc::downgrade(&stream));
        Self(stream)
    }

    /// Ends the run. Blocks until no process of it is left. Returns the last message, if the supervisor has
    /// said in time that none is: else it was killed itself, or hangs.
    pub(super) fn end(&self, until: Instant) -> Option<SupervisorReport> {
        let _ = self.0.shutdown(Shutdown::Write);
        let said = rest(&self.0, until);
        let last = SupervisorReport::read(*said.last_chunk()?)?;
        matches!(last, SupervisorReport::Empty | SupervisorReport::NotStarted(_)).then_some(last)
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

/// Ends all runs. Blocks until they have ended.
pub(super) fn end_all(until: Instant) {
    let all: Vec<_> = lock(&LIFELINES).iter().filter_map(Weak::upgrade).collect();
    for line in &all {
        let _ = line.shutdown(Shutdown::Write);
    }
    for line in &all {
        rest(line, until);
    }
}

/// Returns what the supervisor says until its end.
fn rest(mut line: &UnixStream, until: Instant) -> Vec<u8> {
    let mut said = Vec::new();
    let mut bytes = [0; 8 * SupervisorReport::LEN];
    loop {
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(line.as_fd(), PollFlags::POLLIN)], left) == Ok(0) {
            return said;
        }
        match line.read(&mut bytes) {
            Ok(0) => return said,
            Ok(read) => said.extend_from_slice(&bytes[..read]),
            Err(error) if is_passing(error.kind()) => {}
            Err(_) => return said,
        }
    }
}

fn is_passing(kind: std::io::ErrorKind) -> bool {
    matches!(kind, std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted)
}
