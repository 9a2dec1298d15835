// SPDX-License-Identifier: GPL-2.0-or-later
//! The instant at which the agent gives up.
//!
//! Owns nothing, values only. Must never be moved: every wait of a run ends by the same deadline or earlier.

use std::io;
use std::time::{Duration, Instant};

/// Absolute instant that ends a wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// Returns the deadline that is `span` from now; a year where the clock cannot hold the span.
    pub(crate) fn after(span: Duration) -> Self {
        Self::from(Instant::now(), span)
    }

    /// Returns the deadline that is `span` after `moment`.
    pub(crate) fn from(moment: Instant, span: Duration) -> Self {
        const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
        Self(moment.checked_add(span).unwrap_or_else(|| moment + YEAR))
    }

    /// Returns the time that is left; none when the deadline has passed.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
    }

    /// Returns the time that is left, or an error for I/O that must not wait any more.
    pub(crate) fn remaining_or_timed_out(self) -> io::Result<Duration> {
        self.remaining().ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}
