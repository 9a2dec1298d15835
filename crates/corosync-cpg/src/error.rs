// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of corosync, sorted by the decisions of a caller.

use std::fmt;

use crate::sys;

/// Failed call. Displays as `call: reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// Kind of failure, for decisions.
    pub kind: ErrorKind,
    /// Corosync's error number (`CS_ERR_*`); 0 if no call was made.
    pub code: i32,
    /// The call in words: "join the group".
    pub call: &'static str,
}

/// Kind of failure of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Corosync does not run, or ended, or has no room now. Open values are of no more use.
    Gone,
    /// Corosync does not admit this user (`uidgid` in its configuration would).
    AccessDenied,
    /// A process of this id is in the group already.
    Exists,
    /// The message or the group's name is longer than corosync allows, or the name is empty.
    Size,
    /// The node list has a node without an id.
    NodeWithoutId,
    /// Any other failure.
    Other,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.call)?;
        match self.kind {
            ErrorKind::Gone => f.write_str("corosync does not answer"),
            ErrorKind::AccessDenied => f.write_str("corosync does not let this user in"),
            ErrorKind::Exists => f.write_str("a process of this id is in the group already"),
            ErrorKind::Size => f.write_str("the size is not one that corosync takes"),
            ErrorKind::NodeWithoutId => f.write_str("the node list has a node without nodeid"),
            ErrorKind::Other => write!(f, "corosync's error {}", self.code),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    pub(crate) fn own(call: &'static str, kind: ErrorKind) -> Self {
        Self { kind, code: 0, call }
    }
}

/// Turns the result code of a corosync call into an error.
pub(crate) fn check(call: &'static str, code: sys::ResultCode) -> Result<(), Error> {
    let kind = match code {
        sys::OK => return Ok(()),
        sys::ERR_LIBRARY | sys::ERR_TRY_AGAIN | sys::ERR_BAD_HANDLE => ErrorKind::Gone,
        sys::ERR_ACCESS | sys::ERR_SECURITY => ErrorKind::AccessDenied,
        sys::ERR_EXIST => ErrorKind::Exists,
        sys::ERR_TOO_BIG | sys::ERR_INVALID_PARAM => ErrorKind::Size,
        _ => ErrorKind::Other,
    };
    Err(Error { kind, code, call })
}
