// SPDX-License-Identifier: GPL-2.0-or-later
//! Why there is no answer, by whatever transport.

use fence_cli::key_file::KeyFileError;

use crate::line::LineFailure;
use crate::multicast_failure::MulticastFailure;
use crate::stream::StreamFailure;

/// Why there is no answer. All mean exit code 1; the texts say what to look at next.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) enum Failure {
    /// No key.
    Key(#[from] KeyFileError),
    /// A multicast request has no answer.
    Multicast(#[from] MulticastFailure),
    /// A stream gave no answer.
    Stream(#[from] Box<StreamFailure>),
    /// A serial line or VM channel gave no answer.
    Line(#[from] Box<LineFailure>),
}
