// SPDX-License-Identifier: GPL-2.0-or-later
//! Reasons why an agent was not run.
//!
//! Tells what says something of the device from what does not: one that this host could not ask says nothing.
//! One whose agent can't be run counts as one that can't tell the state: that may pass in a moment, since a
//! password is changed or the program is replaced.

use std::io;

/// Cause for a run that did not begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotRunCause {
    /// The agent can't be run here, or died before it said what it can do: it may be better the next time.
    Unusable,
    /// The time was over before the run could begin.
    TooLate,
    /// Too many agents run, or this host can start no program now: that says nothing of the device.
    NoRoom,
}

/// Reason why a run can't begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NotReady {
    pub(super) cause: NotRunCause,
    pub(super) why: String,
}

impl NotReady {
    pub(super) fn new(cause: NotRunCause, why: impl Into<String>) -> Self {
        Self { cause, why: why.into() }
    }

    /// Returns the reason where the system refused something about a file.
    pub(super) fn of_file(error: &io::Error, why: String) -> Self {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        let is_lasting = matches!(error.kind(), NotFound | PermissionDenied | NotADirectory | IsADirectory);
        Self { cause: if is_lasting { NotRunCause::Unusable } else { NotRunCause::NoRoom }, why }
    }
}

/// A setting that is wrong.
impl From<String> for NotReady {
    fn from(why: String) -> Self {
        Self { cause: NotRunCause::Unusable, why }
    }
}

impl From<NotReady> for String {
    fn from(it: NotReady) -> Self {
        it.why
    }
}
