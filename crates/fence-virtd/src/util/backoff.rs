// SPDX-License-Identifier: GPL-2.0-or-later
//! Attempts that are repeated, perhaps for hours: the pause between two of them, and a log that says each
//! reason once.

use std::time::Duration;

/// Pause between two attempts, doubled after each failure up to a maximum.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// Returns the pause before the next attempt.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause
    }

    /// Begins with the shortest pause again, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Reason that was logged last, so that a failure that repeats is logged once.
#[derive(Default, Debug)]
pub(crate) struct OncePerReason(Option<String>);

impl OncePerReason {
    /// Returns whether the reason differs from the last one, and remembers it.
    pub(crate) fn is_new(&mut self, reason: &str) -> bool {
        let is_new = self.0.as_deref() != Some(reason);
        if is_new {
            self.0 = Some(reason.to_owned());
        }
        is_new
    }

    /// Forgets the last reason after a success: the same failure is logged again.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        let pauses: Vec<_> = (0..4).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.next_pause().as_millis(), 100);
    }

    #[test]
    fn a_reason_is_new_once() {
        let mut logged = OncePerReason::default();
        let news = ["a", "a", "b", "a"].map(|it| logged.is_new(it));
        assert_eq!(news, [true, false, true, true]);
        logged.forget();
        assert!(logged.is_new("a"));
    }
}
