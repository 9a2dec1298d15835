// SPDX-License-Identifier: GPL-2.0-or-later
//! When a hello is due: some at the start, for datagrams get lost, then one a minute, and one soon after
//! anything that shows that others exist.

use std::time::{Duration, Instant};

/// Time from the first hello in which the other hosts can answer it and those after it. No question about
/// absence is answered before.
pub const FIRST_ROUND: Duration = Duration::from_secs(1);
/// The same where hosts that were heard before may not be remembered: until then nobody knows who is there.
pub const WHOLE_ROUND: Duration = Duration::from_secs(5);
/// Time between two hellos.
pub const HELLO_EVERY: Duration = Duration::from_secs(60);
/// The hellos of the start.
const FIRST: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(500), Duration::from_millis(3000)];
/// Least time between two hellos after the start, whatever shows that others exist.
const PAUSE: Duration = Duration::from_secs(1);

/// Times of the hellos.
#[derive(Clone, Debug)]
pub struct HelloSchedule {
    /// Moment of the first hello.
    began: Option<Instant>,
    sent: usize,
    last: Instant,
    next: Instant,
}

impl HelloSchedule {
    /// Begins a first round as soon as the first hello is sent.
    pub fn new(now: Instant) -> Self {
        Self { began: None, sent: 0, last: now, next: now }
    }

    /// Returns the time of the next hello.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Returns the end of the first round; none before the first hello.
    pub fn first_round_ends(&self) -> Option<Instant> {
        self.began.map(|it| it + FIRST_ROUND)
    }

    /// Returns the end of a whole round; none before the first hello.
    pub fn whole_round_ends(&self) -> Option<Instant> {
        self.began.map(|it| it + WHOLE_ROUND)
    }

    /// Returns true if a hello must be sent now, and counts it as sent.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.sent += 1;
        self.last = now;
        let began = *self.began.get_or_insert(now);
        self.next = FIRST.get(self.sent).map_or(now + HELLO_EVERY, |it| (began + *it).max(now));
        true
    }

    /// Something shows that others exist, or another interface is there: the next hello is due soon.
    pub fn hurry(&mut self, now: Instant) {
        self.next = self.next.min(now.max(self.last + PAUSE));
    }
}
