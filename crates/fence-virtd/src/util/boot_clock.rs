// SPDX-License-Identifier: GPL-2.0-or-later
//! Clock for the age of what was seen.
//!
//! The time since boot goes on while the machine is suspended, as all other hosts do. Runs on the caller's
//! task, and never waits.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the time since the boot of this host, times of sleep included.
pub(crate) fn since_boot() -> Duration {
    // Cannot fail: Linux has this clock since 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}
