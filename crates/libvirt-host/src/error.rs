// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of libvirt, sorted by the decisions of a caller.
//!
//! Must never show text of libvirt unescaped.

use std::ffi::{CStr, CString};
use std::fmt;

use virt_sys as sys;

/// Failed call. Displays as `call: libvirt's own message`, always one line of printable text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Kind of failure, for decisions.
    pub kind: ErrorKind,
    /// libvirt's error number (`VIR_ERR_*`).
    pub code: i32,
    /// Part of libvirt that failed (`VIR_FROM_*`).
    pub domain: i32,
    /// System's error number, where a call of the operating system failed; else without a meaning.
    pub errno: i32,
    /// libvirt's original message: it may contain any bytes that a peer put into a name.
    pub message: String,
    /// The call in words: "destroy domain".
    pub call: &'static str,
}

/// Kind of failure of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The domain does not exist (any more).
    NoDomain,
    /// The domain's state does not allow the call: off already, running already.
    OperationInvalid,
    /// The hypervisor can't be reached: refused, lost, ended by keepalive. The connection is of no more use.
    Connection,
    /// The hypervisor refuses permission.
    AccessDenied,
    /// This hypervisor driver has no such call.
    Unsupported,
    /// Any other failure.
    Other,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.call)?;
        for c in self.message.trim_end().chars() {
            if is_unprintable(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Returns the error of the call just made on this thread. No other call to libvirt may come between:
    /// every call resets it.
    pub(crate) fn last(call: &'static str) -> Self {
        // SAFETY: returns null or a pointer to this thread's error, valid until the next libvirt call on this
        // thread; it is read here and not kept.
        let error = unsafe { sys::virGetLastError().as_ref() };
        let Some(error) = error else {
            return Self::own(call, sys::VIR_ERR_INTERNAL_ERROR.cast_signed(), "libvirt gave no reason");
        };
        let message = if error.message.is_null() {
            "libvirt gave no message".to_owned()
        } else {
            // SAFETY: not null, and libvirt's messages are NUL-terminated and live as long as the error.
            unsafe { CStr::from_ptr(error.message) }.to_string_lossy().into_owned()
        };
        let kind = ErrorKind::of(error.code, error.domain, error.int1);
        Self { kind, code: error.code, domain: error.domain, errno: error.int1, message, call }
    }

    /// Returns whether the call just made on this thread failed because a file is not there. No other call to
    /// libvirt may come between.
    pub(crate) fn last_is_missing_file() -> bool {
        const ENOENT: i32 = 2;
        // SAFETY: as in [`Self::last`].
        unsafe { sys::virGetLastError().as_ref() }.is_some_and(|error| {
            error.code == sys::VIR_ERR_SYSTEM_ERROR.cast_signed() && error.int1 == ENOENT
        })
    }

    /// Returns whether nobody listens at the hypervisor's socket, or there is none, by the failure to open a
    /// connection.
    pub fn is_without_listener(&self) -> bool {
        const ENOENT: i32 = 2;
        const ECONNREFUSED: i32 = 111;
        let is_transport = self.domain == sys::VIR_FROM_RPC.cast_signed();
        self.is_of_the_system() && is_transport && [ENOENT, ECONNREFUSED].contains(&self.errno)
    }

    /// Returns whether the call needs a connection that may write, and this one may only read.
    #[must_use]
    pub fn is_for_read_only(&self) -> bool {
        self.code == sys::VIR_ERR_OPERATION_DENIED.cast_signed()
    }

    /// Returns whether a call of the operating system failed, at the hypervisor's side or at ours.
    pub(crate) fn is_of_the_system(&self) -> bool {
        self.code == sys::VIR_ERR_SYSTEM_ERROR.cast_signed()
    }

    /// Makes an error without a call to libvirt.
    pub(crate) fn own(call: &'static str, code: i32, message: &str) -> Self {
        let domain = sys::VIR_FROM_NONE.cast_signed();
        let kind = ErrorKind::of(code, domain, 0);
        Self { kind, code, domain, errno: 0, message: message.to_owned(), call }
    }
}

/// Returns the text for C. Refuses text with a NUL inside: C would see only its beginning.
pub(crate) fn c_text(call: &'static str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| {
        Error::own(call, sys::VIR_ERR_INVALID_ARG.cast_signed(), "the text contains a NUL character")
    })
}

impl ErrorKind {
    /// `errno` is the system's error number where libvirt reports a system error.
    fn of(code: i32, domain: i32, errno: i32) -> Self {
        const EACCES: i32 = 13;
        let transport = matches!(domain.cast_unsigned(), sys::VIR_FROM_RPC | sys::VIR_FROM_REMOTE);
        match code.cast_unsigned() {
            sys::VIR_ERR_NO_DOMAIN => Self::NoDomain,
            sys::VIR_ERR_OPERATION_INVALID => Self::OperationInvalid,
            sys::VIR_ERR_AUTH_FAILED
            | sys::VIR_ERR_AUTH_CANCELLED
            | sys::VIR_ERR_AUTH_UNAVAILABLE
            | sys::VIR_ERR_ACCESS_DENIED
            | sys::VIR_ERR_OPERATION_DENIED => Self::AccessDenied,
            sys::VIR_ERR_SYSTEM_ERROR if transport && errno == EACCES => Self::AccessDenied,
            sys::VIR_ERR_NO_SUPPORT
            | sys::VIR_ERR_OPERATION_UNSUPPORTED
            | sys::VIR_ERR_ARGUMENT_UNSUPPORTED
            | sys::VIR_ERR_CONFIG_UNSUPPORTED => Self::Unsupported,
            sys::VIR_ERR_NO_CONNECT
            | sys::VIR_ERR_INVALID_CONN
            | sys::VIR_ERR_RPC
            | sys::VIR_ERR_GNUTLS_ERROR
            | sys::VIR_ERR_SSH
            | sys::VIR_ERR_LIBSSH => Self::Connection,
            // A transport error has no number of its own: "client socket is closed" is an internal error of
            // the transport, a hang-up a system error of it.
            sys::VIR_ERR_INTERNAL_ERROR | sys::VIR_ERR_SYSTEM_ERROR if transport => Self::Connection,
            _ => Self::Other,
        }
    }
}

/// Returns whether a character is a control character, or one of the few others that disguise text in a log.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_one_printable_line() {
        let error = Error::own("look up domain by name", 42, "no domain 'a\nb\x1b[2J\u{202e}é'\n");
        assert_eq!(error.to_string(), r"look up domain by name: no domain 'a\nb\u{1b}[2J\u{202e}é'");
        assert_eq!(error.kind, ErrorKind::NoDomain);
    }

    #[test]
    fn nobody_listens_only_by_the_systems_word_for_it() {
        // (code, domain, errno) of an attempt to connect: socket gone, refused, no permission, reset, an end
        // of file, a file that the test driver misses, libvirtd's own failure.
        for (raw, is_without) in [
            ((38, 7, 2), true),
            ((38, 7, 111), true),
            ((38, 7, 13), false),
            ((38, 7, 104), false),
            ((1, 7, 111), false),
            ((38, 12, 2), false),
            ((38, 10, 111), false),
        ] {
            let (code, domain, errno) = raw;
            let error = Error { domain, errno, ..Error::own("open a connection", code, "") };
            assert_eq!(error.is_without_listener(), is_without, "{raw:?}");
        }
    }

    #[test]
    fn sorts_the_numbers() {
        // (code, domain, errno): numbers of libvirt/virterror.h, seen on the wire of libvirt 9.0.
        for (raw, kind) in [
            ((42, 10, 0), ErrorKind::NoDomain),
            ((55, 10, 0), ErrorKind::OperationInvalid),
            ((38, 7, 104), ErrorKind::Connection),
            ((38, 7, 2), ErrorKind::Connection),
            ((38, 7, 13), ErrorKind::AccessDenied),
            ((1, 7, 0), ErrorKind::Connection),
            ((1, 10, 0), ErrorKind::Other),
            ((38, 10, 5), ErrorKind::Other),
            ((3, 12, 0), ErrorKind::Unsupported),
            ((45, 7, 0), ErrorKind::AccessDenied),
            ((88, 10, 0), ErrorKind::AccessDenied),
            ((29, 20, 0), ErrorKind::AccessDenied),
            ((9, 10, 0), ErrorKind::Other),
        ] {
            assert_eq!(ErrorKind::of(raw.0, raw.1, raw.2), kind, "{raw:?}");
        }
    }
}
