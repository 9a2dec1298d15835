// SPDX-License-Identifier: GPL-2.0-or-later
//! The reasons why `-c` ends without a new file. Owns their texts.

use std::io;

use super::file::FileError;

/// Result of a part of the dialogue.
pub(super) type DialogueResult<T> = Result<T, ConfigureError>;

/// Reason why there is no new file. The old file is unchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigureError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{file} is left as it is")]
    Declined { file: String },
    #[error("no more answers, and the default \"{value}\" for \"{prompt}\" can't be used: {reason}")]
    NoAnswer { prompt: String, value: String, reason: String },
    #[error("can't ask: {0}")]
    Console(#[from] io::Error),
}
