// SPDX-License-Identifier: GPL-2.0-or-later
//! Ends and moves that a host remembers on disk: what is left of them after a time in which nobody watched.
//!
//! Events of that time are lost. So an end must never count for longer than nobody could miss a start and a
//! move, and a move is never older than the last moment at which a second one could be missed. Pure; moments
//! are parameters.

use std::time::Duration;

/// Time without events in which no machine comes back and moves away again: about what libvirtd, or
/// `fence_virtd`, needs to be started anew.
pub const SHORT_GAP: Duration = Duration::from_secs(10);
/// Time after the boot of a host in which no machine comes to it and moves away again unseen.
pub const BOOT_GAP: Duration = Duration::from_secs(300);

/// Moment by one host's clock, in nanoseconds since its boot; below 0: before the boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BootMoment(i64);

impl BootMoment {
    /// Moment of the boot.
    pub const BOOT: Self = Self(0);

    /// Builds the moment at this time after the boot.
    pub fn at(since_boot: Duration) -> Self {
        Self(nanos(since_boot))
    }

    /// Builds the moment with this number of nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Returns the number of nanoseconds.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Returns the time from an earlier moment to this one; nothing from a later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or_default())
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// Last thing that happened to a domain at a place, where no instance is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PastEvent {
    /// The instance that ran there ended for good.
    Ended(BootMoment),
    /// The machine moved to another place, at this moment at the latest.
    MovedAway(BootMoment),
    /// The machine was saved to a file at this moment at the latest. It can be restored anywhere.
    Saved(BootMoment),
}

impl PastEvent {
    /// Returns the event at another moment; none for an end, of which the moment is all.
    fn moved_to(self, moment: BootMoment) -> Option<Self> {
        match self {
            Self::Ended(_) => None,
            Self::MovedAway(_) => Some(Self::MovedAway(moment)),
            Self::Saved(_) => Some(Self::Saved(moment)),
        }
    }
}

/// Time in which nobody watched a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchGap {
    /// Last moment at which the place was watched, by the clock of that boot; none if that is not known.
    pub last_watch: Option<BootMoment>,
    /// The host was booted meanwhile.
    pub is_new_boot: bool,
    /// Moment from which it is watched again.
    pub watched_again: BootMoment,
}

impl WatchGap {
    /// Returns what is left of an earlier memory; none where it says nothing any more.
    pub fn recall(&self, past: PastEvent) -> Option<PastEvent> {
        if !self.is_new_boot {
            let is_short = self.last_watch.is_some_and(|it| self.watched_again.since(it) < SHORT_GAP);
            // It may have come back and moved again.
            return if is_short { Some(past) } else { past.moved_to(self.watched_again) };
        }
        let (PastEvent::MovedAway(when) | PastEvent::Saved(when)) = past else { return None };
        if self.watched_again.since(BootMoment::BOOT) >= BOOT_GAP {
            return past.moved_to(self.watched_again);
        }
        // How long the host was off is not known. The move is at least as old as it was when it was off.
        let age = self.last_watch.map_or(Duration::ZERO, |it| it.since(when));
        past.moved_to(BootMoment(nanos(age).saturating_neg()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: i64) -> BootMoment {
        BootMoment(number * 1_000_000_000)
    }

    #[test]
    fn a_short_gap_changes_nothing() {
        for past in [PastEvent::Ended(second(3)), PastEvent::MovedAway(second(3))] {
            let gap = |last_watch: Option<BootMoment>, watched_again| {
                WatchGap { last_watch, is_new_boot: false, watched_again }.recall(past)
            };
            assert_eq!(gap(Some(second(20)), second(29)), Some(past));
            let young = matches!(past, PastEvent::MovedAway(_)).then(|| PastEvent::MovedAway(second(30)));
            assert_eq!(gap(Some(second(20)), second(30)), young);
            assert_eq!(gap(None, second(30)), young, "killed, or the file is damaged");
        }
    }

    #[test]
    fn a_boot_leaves_moves_that_are_at_least_so_old() {
        let boot = |last_watch: Option<BootMoment>, watched_again, past| {
            WatchGap { last_watch, is_new_boot: true, watched_again }.recall(past)
        };
        let moved = PastEvent::MovedAway(second(100));
        assert_eq!(boot(Some(second(900)), second(30), moved), Some(PastEvent::MovedAway(second(-800))));
        assert_eq!(boot(None, second(30), moved), Some(PastEvent::MovedAway(BootMoment::BOOT)));
        assert_eq!(boot(Some(second(900)), second(300), moved), Some(PastEvent::MovedAway(second(300))));
        assert_eq!(boot(Some(second(900)), second(30), PastEvent::Ended(second(100))), None);
        let saved = PastEvent::Saved(second(100));
        assert_eq!(boot(Some(second(900)), second(30), saved), Some(PastEvent::Saved(second(-800))));
    }

    #[test]
    fn ages_are_whole_numbers_of_the_clock() {
        let moment = BootMoment::at(Duration::new(5, 7));
        assert_eq!(moment.nanos(), 5_000_000_007);
        assert_eq!(second(3).since(second(-4)), Duration::from_secs(7));
        assert_eq!(second(3).since(second(4)), Duration::ZERO);
        assert_eq!(
            BootMoment::at(Duration::MAX).since(BootMoment::from_nanos(i64::MIN)).as_nanos(),
            i64::MAX as u128
        );
    }
}
