// SPDX-License-Identifier: GPL-2.0-or-later
//! Failure of a request, on any transport.
//!
//! Owns nothing: it wraps the failures of the transports. Only `ask` and `diagnose` make it. Must never be
//! imported by a module that makes one of these failures.

use fence_cli::key_file::KeyFileError;

use crate::line::LineFailure;
use crate::multicast_failure::MulticastFailure;
use crate::stream::StreamFailure;

/// Reason why there is no answer. Every one means exit code 1. The texts say what to look at next.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) enum ClientFailure {
    /// The key cannot be loaded.
    Key(#[from] KeyFileError),
    /// A multicast request has no answer.
    Multicast(#[from] MulticastFailure),
    /// A stream gave no answer.
    Stream(#[from] Box<StreamFailure>),
    /// A serial line or VM channel gave no answer.
    Line(#[from] Box<LineFailure>),
}

impl ClientFailure {
    /// Returns whether the request ran out of time. Its text has the words "timed out" then.
    pub(crate) fn is_time_out(&self) -> bool {
        match self {
            Self::Key(_) => false,
            Self::Multicast(failure) => matches!(failure, MulticastFailure::TimedOut(_)),
            Self::Stream(failure) => failure.is_time_out(),
            Self::Line(failure) => failure.is_time_out(),
        }
    }
}
