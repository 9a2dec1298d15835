// SPDX-License-Identifier: GPL-2.0-or-later
//! Last thing that was seen of a domain at one hypervisor, and what each event, list and gap makes of it.
//!
//! Owns the one transition function. The rules behind it: only an instance that ran here can end here; one
//! that is half of a migration never ends here, whatever ends it; and that the machine is at another place
//! is forgotten by nothing but an instance that runs here. Pure; moments are parameters.

use super::recall::{BootMoment, PastEvent};

/// Last thing that was seen of a domain at a place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LastSeen {
    /// Known, and nothing was seen of an instance.
    Known,
    /// An instance came in by a migration, and is not the machine yet: the migration is not over.
    CameIn {
        /// Moment when it came. The machine was at another place then.
        since: BootMoment,
        /// Moment since which the machine is at another place, if it had gone from here before: that holds if
        /// this instance is seen to fail.
        away_since: Option<BootMoment>,
    },
    /// An instance is here, and is the machine.
    Ran {
        /// Moment since which it is the machine, if a migration has brought it, or was given up here, or may
        /// have been: the other side of that migration may run on for a while.
        unsettled: Option<BootMoment>,
    },
    /// An instance was restored here from a file or a snapshot.
    Restored(RestoredPhase),
    /// An instance came in and was resumed here at this moment, before its memory was whole: it is the
    /// machine, and its source can't go on any more.
    PostCopy(BootMoment),
    /// An instance stands still here for a migration, since this moment at the latest: another place has the
    /// machine, or may get it.
    Half(BootMoment),
    /// The instance that ran here ended for good, at this moment.
    Ended(BootMoment),
    /// The machine is at another place, since this moment at the latest.
    MovedAway(BootMoment),
    /// The machine was saved to a file at this moment at the latest, and not by a managed save as far as is
    /// known. It can be restored anywhere.
    Saved(BootMoment),
}

/// Phase of an instance that was restored here.
///
/// Of one that was restored paused a hypervisor says the same as of one that a migration paused, until it
/// runs. Of a machine that stands still and migrates, no event tells that it is handed over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RestoredPhase {
    /// Restored, and not known yet to run or to stand still.
    Began,
    /// Standing still, and the machine: no migration had it since.
    StandsStill,
    /// Standing still, and its memory was copied, the last time from this moment on: to a file, or to
    /// another place, which may have the machine since.
    Copied(BootMoment),
}

/// Way by which a machine left a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaveKind {
    /// A migration.
    Moved,
    /// A save to a file that can be restored anywhere.
    Saved,
}

/// Event of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstanceEvent {
    /// Started here.
    Started,
    /// Started here from a file or a snapshot.
    Restored,
    /// A migration brings one here, which waits for its memory.
    CameIn,
    /// Runs from now on.
    Resumed,
    /// Runs from now on, and came in before its memory was whole; or that failed. No source can do that.
    ResumedInPostCopy,
    /// Paused, and not by a migration. Of one that came in: the migration is over, and the machine was paused
    /// before it.
    Paused,
    /// Paused when it was restored.
    RestoredPaused,
    /// Paused by a migration, which hands the machine over.
    HandedOver,
    /// Paused by a migration that has failed when one end had a part of the memory only.
    PostCopyFailed,
    /// Copy of its memory that begins now: to another place, or to a file.
    Copied,
    /// Something happened to one that is here.
    Noticed,
    /// Gone from here.
    Stopped(StopCause),
    /// An event that is not known.
    Unclear,
}

/// Cause for which an instance is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopCause {
    /// Shut down, destroyed, or crashed.
    Ended,
    /// End of its process: it was killed or has crashed, or what it came in by was given up.
    Failed,
    /// A snapshot takes its place.
    Reverted,
    /// The migration to another place is over.
    Migrated,
    /// Save of its memory to a file.
    Saved,
    /// A cause that is not known.
    Unclear,
}

/// Entry of a domain in the list of a hypervisor that is watched from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListedState {
    /// No instance.
    NoInstance,
    /// No instance, because the machine migrated away.
    MovedAway,
    /// An instance that a migration has, or that was restored paused.
    Migrating,
    /// An instance that came in and runs before its memory is whole.
    PostCopy,
    /// An instance that just starts, or is made for a migration which comes in: it never ran here.
    Starting,
    /// An instance, which a migration may have brought.
    Unsettled,
    /// An instance that was started here, and was in no migration.
    Settled,
}

impl LastSeen {
    /// An instance that was started here.
    pub const RUNS: Self = Self::Ran { unsettled: None };

    /// Returns what an event makes of this.
    #[must_use]
    pub fn after(self, event: InstanceEvent, now: BootMoment) -> Self {
        let arrived = Self::Ran { unsettled: Some(now) };
        match (event, self) {
            (InstanceEvent::Started, _) => Self::RUNS,
            (InstanceEvent::Restored, _) => Self::Restored(RestoredPhase::Began),
            // It was seen before, when it just started.
            (InstanceEvent::CameIn, Self::CameIn { away_since, .. }) => {
                Self::CameIn { since: now, away_since }
            }
            (InstanceEvent::CameIn, _) => Self::CameIn { since: now, away_since: self.away_since() },
            (InstanceEvent::Resumed | InstanceEvent::Noticed, _) => self.noticed(event, now),
            (InstanceEvent::ResumedInPostCopy | InstanceEvent::PostCopyFailed, Self::PostCopy(_)) => self,
            (InstanceEvent::ResumedInPostCopy, _) => Self::PostCopy(now),
            (InstanceEvent::Paused | InstanceEvent::RestoredPaused, Self::Restored(RestoredPhase::Began)) => {
                Self::Restored(RestoredPhase::StandsStill)
            }
            (InstanceEvent::Paused, Self::CameIn { .. }) => arrived,
            (InstanceEvent::Paused | InstanceEvent::RestoredPaused, _) => self,
            (InstanceEvent::HandedOver | InstanceEvent::PostCopyFailed, _) => self.handed_over(now),
            (InstanceEvent::Copied, Self::Restored(phase)) => phase.copied(now),
            // A half is not copied. So it was none: a machine that was restored paused, of which nothing else
            // tells. It goes now.
            (InstanceEvent::Copied, Self::Half(_)) => Self::Half(now),
            (InstanceEvent::Copied, _) => self,
            (InstanceEvent::Stopped(cause), _) => self.stopped(cause, now),
            (InstanceEvent::Unclear, _) => self.over_gap(),
        }
    }

    /// Returns what is left after an event of an instance that is here.
    fn noticed(self, event: InstanceEvent, now: BootMoment) -> Self {
        let is_resumed = event == InstanceEvent::Resumed;
        match self {
            Self::Ran { .. } => self,
            Self::CameIn { .. } | Self::Half(_) | Self::PostCopy(_) if !is_resumed => self,
            Self::Restored(RestoredPhase::Copied(_)) if !is_resumed => self,
            Self::Restored(RestoredPhase::Began | RestoredPhase::StandsStill) => Self::RUNS,
            // Its memory is whole.
            Self::PostCopy(since) => Self::Ran { unsettled: Some(since) },
            // The one that came in runs here now, or the one that was to go stays. The other side may not
            // know that.
            Self::CameIn { .. } | Self::Half(_) | Self::Restored(RestoredPhase::Copied(_)) => {
                Self::Ran { unsettled: Some(now) }
            }
            Self::Known | Self::Ended(_) | Self::MovedAway(_) | Self::Saved(_) => {
                Self::Ran { unsettled: Some(now) }
            }
        }
    }

    fn handed_over(self, now: BootMoment) -> Self {
        match self {
            Self::CameIn { .. } | Self::Half(_) => self,
            Self::Restored(RestoredPhase::Copied(since)) => Self::Half(since),
            _ => Self::Half(now),
        }
    }

    fn stopped(self, cause: StopCause, now: BootMoment) -> Self {
        match (cause, self) {
            // The other half has the machine, or may have it: it has not run here since, and may have ended
            // there before this event.
            (_, Self::Half(since)) => Self::MovedAway(since),
            (StopCause::Saved, _) => Self::Saved(now),
            // As a half.
            (_, Self::Restored(RestoredPhase::Copied(since))) => Self::MovedAway(since),
            (StopCause::Migrated, _) => Self::MovedAway(now),
            // It never ran, or an event would have told. The machine is where it was, and no end of it that
            // somebody saw meanwhile is older than its move from here.
            (StopCause::Ended | StopCause::Failed, Self::CameIn { away_since, .. }) => {
                away_since.map_or(Self::Known, Self::MovedAway)
            }
            (_, Self::CameIn { .. }) => self.without_instance(),
            (
                StopCause::Ended | StopCause::Failed | StopCause::Reverted,
                Self::Ran { .. } | Self::PostCopy(_) | Self::Restored(_),
            ) => Self::Ended(now),
            // The event of an end that is known already, or of a start that failed.
            (_, Self::Ended(_) | Self::MovedAway(_) | Self::Saved(_)) => self,
            (_, Self::Known | Self::Ran { .. } | Self::PostCopy(_) | Self::Restored(_)) => Self::Known,
        }
    }

    /// Returns what is left after a gap in the events: nothing that speaks for "off".
    #[must_use]
    pub fn over_gap(self) -> Self {
        match self.without_instance() {
            Self::Ended(_) => Self::Known,
            left => left,
        }
    }

    /// Returns what is left at the end of a gap in which a machine may have come back and moved again.
    #[must_use]
    pub fn over_long_gap(self, now: BootMoment) -> Self {
        match self {
            Self::MovedAway(_) => Self::MovedAway(now),
            Self::Saved(_) => Self::Saved(now),
            // An event told of it already; what was known before may be over.
            Self::CameIn { since, away_since: Some(_) } => Self::CameIn { since, away_since: Some(now) },
            // What an event said since.
            left => left,
        }
    }

    /// Returns what a list makes of this that was read when events were watched already.
    #[must_use]
    pub fn listed(self, state: ListedState, now: BootMoment) -> Self {
        match (state, self) {
            // A libvirtd that was started anew does not know a move any more, and never knew of an end.
            (ListedState::NoInstance, _) | (ListedState::MovedAway, Self::MovedAway(_)) => {
                self.without_instance()
            }
            (ListedState::MovedAway, _) => Self::MovedAway(now),
            (ListedState::Migrating, Self::CameIn { .. } | Self::Half(_)) => self,
            // Events told what it is.
            (ListedState::Migrating, Self::PostCopy(_) | Self::Restored(_)) => self,
            // Either half.
            (ListedState::Migrating, _) => Self::Half(now),
            (ListedState::PostCopy, Self::PostCopy(_)) => self,
            (ListedState::PostCopy, _) => Self::PostCopy(now),
            (ListedState::Starting, Self::CameIn { .. }) => self,
            // It is not the machine yet, and if it fails all is as it was.
            (ListedState::Starting, _) => Self::CameIn { since: now, away_since: self.away_since() },
            (ListedState::Unsettled, _) => Self::Ran { unsettled: Some(now) },
            (ListedState::Settled, _) => Self::RUNS,
        }
    }

    /// Returns this beside what an earlier daemon has seen: what this one has seen says more.
    #[must_use]
    pub fn recalled(self, past: PastEvent) -> Self {
        match self {
            Self::Known => past.into(),
            Self::CameIn { since, away_since } => {
                Self::CameIn { since, away_since: away_since.max(Self::from(past).away_since()) }
            }
            _ => self,
        }
    }

    /// Returns what the next daemon has to know, if this one does not live to see what follows.
    #[must_use]
    pub fn kept(self) -> Option<PastEvent> {
        match self.without_instance() {
            Self::Ended(when) => Some(PastEvent::Ended(when)),
            Self::MovedAway(when) => Some(PastEvent::MovedAway(when)),
            Self::Saved(when) => Some(PastEvent::Saved(when)),
            _ => None,
        }
    }

    /// Returns since when the machine is at another place, after a look that shows no instance here.
    ///
    /// That look says as much as the event of an end, which may be late or never come: libvirt tells of no
    /// end if it lists an instance when it starts, and finds then that its process is gone.
    #[must_use]
    pub fn moved(self) -> Option<BootMoment> {
        match self.without_instance() {
            Self::MovedAway(when) => Some(when),
            _ => None,
        }
    }

    /// Returns this after a look that showed that a save was a managed one. Its file belongs to the
    /// definition: the machine is nowhere else.
    #[must_use]
    pub fn saved_here(self) -> Self {
        match self {
            Self::Saved(when) => Self::Ended(when),
            _ => self,
        }
    }

    /// Returns this after a proof that the machine is off, which judged the move or the save that is given:
    /// the machine was seen to end since. Something newer stands.
    #[must_use]
    pub fn proved_off(self, judged: Self) -> Self {
        match self {
            Self::MovedAway(_) | Self::Saved(_) if self == judged => Self::Known,
            _ => self,
        }
    }

    /// Returns what is left of this where no instance is here, and nobody saw how it went.
    fn without_instance(self) -> Self {
        match self {
            // It may have run here, and moved on.
            Self::CameIn { since, away_since: Some(_) }
            | Self::Half(since)
            | Self::Restored(RestoredPhase::Copied(since)) => Self::MovedAway(since),
            Self::CameIn { .. } | Self::Ran { .. } | Self::PostCopy(_) | Self::Restored(_) => Self::Known,
            Self::Known | Self::Ended(_) | Self::MovedAway(_) | Self::Saved(_) => self,
        }
    }

    /// Returns the way by which the machine left for another place, if no instance is here.
    pub fn left_by(self) -> Option<LeaveKind> {
        match self.without_instance() {
            Self::MovedAway(_) => Some(LeaveKind::Moved),
            Self::Saved(_) => Some(LeaveKind::Saved),
            _ => None,
        }
    }

    /// Returns whether an instance is here that a migration can have: it ran here, or came in.
    #[must_use]
    pub fn has_instance(self) -> bool {
        match self {
            Self::CameIn { .. } | Self::Ran { .. } | Self::Half(_) => true,
            Self::Restored(_) | Self::PostCopy(_) => true,
            Self::Known | Self::Ended(_) | Self::MovedAway(_) | Self::Saved(_) => false,
        }
    }

    /// Returns the moment since which the instance here may be one half of a migration, if it may.
    #[must_use]
    pub fn half_since(self) -> Option<BootMoment> {
        match self {
            Self::CameIn { since, .. } | Self::Half(since) | Self::Restored(RestoredPhase::Copied(since)) => {
                Some(since)
            }
            _ => None,
        }
    }

    /// Returns whether an instance that was restored paused stands still since, and was in no migration:
    /// whatever a hypervisor calls it.
    #[must_use]
    pub fn stands_still_since_restore(self) -> bool {
        self == Self::Restored(RestoredPhase::StandsStill)
    }

    /// Returns whether the instance that a look shows may be one half of a migration, beside what was seen of
    /// it: then its end is no end of the machine.
    #[must_use]
    pub fn is_half(self, shown: ListedState) -> bool {
        match (shown, self) {
            (ListedState::Migrating, Self::PostCopy(_)) => false,
            (ListedState::Migrating, _) if self.stands_still_since_restore() => false,
            (ListedState::Migrating | ListedState::Starting, _) => self.has_instance(),
            // It runs here, and its source can't go on.
            (ListedState::PostCopy, _) => false,
            (
                ListedState::NoInstance
                | ListedState::MovedAway
                | ListedState::Unsettled
                | ListedState::Settled,
                _,
            ) => false,
        }
    }

    /// Returns since when the machine is, or may be, at another place, if no instance is here.
    fn away_since(self) -> Option<BootMoment> {
        match self.without_instance() {
            Self::MovedAway(when) | Self::Saved(when) => Some(when),
            _ => None,
        }
    }
}

impl RestoredPhase {
    /// Returns what is left when the memory is copied.
    fn copied(self, now: BootMoment) -> LastSeen {
        match self {
            // It runs, or an event would have told that it stands still; and one will tell when it is paused.
            Self::Began => LastSeen::RUNS,
            // Once more: an end elsewhere since the first copy may be that of one that came in, in vain.
            Self::StandsStill | Self::Copied(_) => LastSeen::Restored(Self::Copied(now)),
        }
    }
}

impl From<PastEvent> for LastSeen {
    fn from(event: PastEvent) -> Self {
        match event {
            PastEvent::Ended(when) => Self::Ended(when),
            PastEvent::MovedAway(when) => Self::MovedAway(when),
            PastEvent::Saved(when) => Self::Saved(when),
        }
    }
}

#[cfg(test)]
mod tests;
