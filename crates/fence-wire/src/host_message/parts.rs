// SPDX-License-Identifier: GPL-2.0-or-later
//! Name of a host, and the reasons why a message is dropped. Values only.

use core::fmt;

use sha2::{Digest, Sha256};

use crate::layout::REQUEST_LEN;

/// Length of a host message in bytes: that of a request packet.
pub const HOST_MESSAGE_LEN: usize = REQUEST_LEN;

/// Short name of a host: the first bytes of its public key's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub [u8; 8]);

impl HostId {
    /// Returns the name of the host with this public key.
    #[must_use]
    pub fn of(public: &[u8; 32]) -> Self {
        let sum = Sha256::digest(public);
        Self(core::array::from_fn(|i| sum[i]))
    }

    /// Reads the sixteen hex digits in which it is shown.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        (text.len() == 16 && text.bytes().all(|it| it.is_ascii_hexdigit()))
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .map(|it| Self(it.to_be_bytes()))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// Reason why a host message is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostMessageError {
    /// The length is not [`HOST_MESSAGE_LEN`].
    #[error("{0} bytes instead of {HOST_MESSAGE_LEN}")]
    Length(usize),
    /// The first bytes are not those of a host message.
    #[error("no message of a host")]
    Magic,
    /// No key of ours made the proof: another key on the sender's side, or a changed message.
    #[error("the proof does not fit: another key on the sender's side, or a changed message")]
    Proof,
    /// A newer daemon's message.
    #[error("unknown version {0} of the messages between hosts")]
    Version(u8),
    /// The kind is unknown.
    #[error("unknown kind {0} of message")]
    Kind(u8),
    /// A field cannot be what it is.
    #[error("the field \"{0}\" can't be read")]
    Field(&'static str),
}

impl HostMessageError {
    /// Returns a short word for counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Length(_) => "host-length",
            Self::Magic => "host-magic",
            Self::Proof => "host-hash-mismatch",
            Self::Version(_) => "host-version",
            Self::Kind(_) => "host-kind",
            Self::Field(_) => "host-field",
        }
    }
}
