// SPDX-License-Identifier: GPL-2.0-or-later
//! Frames on serial lines and VM channels: no key and no hash, since the socket itself identifies the source.
//!
//! ```text
//! request            response
//! offset size field  offset size field
//!      0    4 magic       0    4 magic
//!      4    1 action      4    1 response
//!      5    1 flags, bit 0: the target is a UUID
//!      6   64 target, NUL-padded
//!     70    4 sequence number
//! ```
//!
//! For a list the host sends a response of 253, entries and the zero entry as on a stream, and then a
//! response frame.

use crate::action::{Action, UnknownAction};
use crate::layout::UUID_FLAG;
use crate::request::{Target, TargetError};

/// First four bytes of a frame; line noise before them is skipped.
pub const SERIAL_MAGIC: [u8; 4] = [0x61, 0x62, 0x62, 0x61];
/// Length of a request frame in bytes.
pub const SERIAL_REQUEST_LEN: usize = 74;
/// Length of a response frame in bytes.
pub const SERIAL_RESPONSE_LEN: usize = 5;

/// Request from a serial line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SerialRequest {
    /// Action of the request.
    pub action: Action,
    /// Domain of the request; empty where the action needs none.
    pub target: Target,
    /// The client's number of the request.
    pub sequence: u32,
}

/// Reason why a request frame is dropped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SerialRequestError {
    /// The frame does not start with [`SERIAL_MAGIC`].
    #[error("no magic number")]
    Magic,
    /// The action is unknown.
    #[error(transparent)]
    Action(#[from] UnknownAction),
    /// The target is not a usable name.
    #[error("target {0}")]
    Target(#[from] TargetError),
}

impl SerialRequest {
    /// Returns the bytes of the frame.
    #[must_use]
    pub fn encode(&self) -> [u8; SERIAL_REQUEST_LEN] {
        let mut frame = [0; SERIAL_REQUEST_LEN];
        frame[..4].copy_from_slice(&SERIAL_MAGIC);
        frame[4] = self.action.number();
        frame[5] = if self.target.is_uuid() { UUID_FLAG } else { 0 };
        self.target.encode(&mut frame[6..70]);
        frame[70..].copy_from_slice(&self.sequence.to_le_bytes());
        frame
    }

    /// Reads a frame that [`SerialScanner`] found.
    ///
    /// # Errors
    /// The reason why the frame must be dropped.
    pub fn decode(frame: &[u8; SERIAL_REQUEST_LEN]) -> Result<Self, SerialRequestError> {
        if frame[..4] != SERIAL_MAGIC {
            return Err(SerialRequestError::Magic);
        }
        let action = Action::try_from(frame[4])?;
        let target = Target::decode(&frame[6..70], frame[5] & UUID_FLAG != 0)?;
        if action.needs_target() && target.as_str().is_empty() {
            return Err(SerialRequestError::Target(TargetError::Empty));
        }
        let sequence = u32::from_le_bytes([frame[70], frame[71], frame[72], frame[73]]);
        Ok(Self { action, target, sequence })
    }
}

/// Returns the frame of a response byte: of a [`crate::Response`], or [`crate::HOST_LIST_FOLLOWS`].
#[must_use]
pub fn serial_response(response: u8) -> [u8; SERIAL_RESPONSE_LEN] {
    let [a, b, c, d] = SERIAL_MAGIC;
    [a, b, c, d, response]
}

/// Scanner for frames of `N` bytes in a stream with noise between them.
///
/// The scanner holds at most one frame; the caller passes one byte at a time.
#[derive(Clone, Debug)]
pub struct SerialScanner<const N: usize> {
    frame: [u8; N],
    filled: usize,
}

impl<const N: usize> SerialScanner<N> {
    /// Makes an empty scanner.
    #[must_use]
    pub fn new() -> Self {
        Self { frame: [0; N], filled: 0 }
    }

    /// Takes a byte; returns the frame that it completes.
    pub fn push(&mut self, byte: u8) -> Option<[u8; N]> {
        self.frame[self.filled] = byte;
        self.filled += 1;
        if self.filled <= SERIAL_MAGIC.len() {
            // Of "abab ba" the second "ab" may be the start: drop from the front until the rest is a start.
            while self.frame[..self.filled] != SERIAL_MAGIC[..self.filled] {
                self.frame.copy_within(1..self.filled, 0);
                self.filled -= 1;
            }
        }
        if self.filled < N {
            return None;
        }
        self.filled = 0;
        Some(self.frame)
    }

    /// Returns whether part of a frame has arrived: the peer is in the middle of a frame.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.filled > 0
    }
}

impl<const N: usize> Default for SerialScanner<N> {
    fn default() -> Self {
        Self::new()
    }
}
