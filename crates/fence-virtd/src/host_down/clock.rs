// SPDX-License-Identifier: GPL-2.0-or-later
//! Clocks of this machine, for the age of evidence.
//!
//! The time since boot goes on while the machine is suspended, as all other hosts do. Runs on the caller's
//! task, and never waits.

use std::time::{Duration, SystemTime};

use fence_core::host_down::{ClockReading, Moment};
use nix::time::{ClockId, clock_gettime};

/// Returns the present moment.
pub(crate) fn now() -> Moment {
    // Cannot fail: Linux has this clock since 2.6.39. After the latest moment no proof counts.
    Moment(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from))
}

/// Returns both clocks.
pub(crate) fn read() -> ClockReading {
    ClockReading { moment: now(), wall: SystemTime::now() }
}
