// SPDX-License-Identifier: GPL-2.0-or-later
//! The one moment at which everything ends.

use std::io;
use std::time::{Duration, Instant};

/// An absolute moment; every wait of the agent is cut off by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// So long from now; a span that the clock cannot hold means a year.
    pub(crate) fn after(span: Duration) -> Self {
        Self::from(Instant::now(), span)
    }

    /// So long from that moment.
    pub(crate) fn from(moment: Instant, span: Duration) -> Self {
        const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
        Self(moment.checked_add(span).unwrap_or_else(|| moment + YEAR))
    }

    /// How long it is until then; none when it has passed.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
    }

    /// The same as an error for I/O that must not wait any more.
    pub(crate) fn remaining_or_timed_out(self) -> io::Result<Duration> {
        self.remaining().ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}
