// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of the process. `main` calls [`leave`] whatever the program did; nothing else may end it, but for a panic.
//!
//! Why `main` does not return: that would call the destructors of all C libraries while threads run that nobody can wait
//! for, because a call to a hypervisor that hangs can't be called off, and libvirt's own threads never end. OpenSSL, which
//! comes with libvirt, then frees what belongs to each thread, and so does a thread of the runtime that ends in the same
//! moment: a double free, and SIGABRT in place of the exit code.
//!
//! What has to outlive the process is finished before (`run`): requests, audit records, the memory of packets, the pid
//! file, the log.

use std::io::{self, Write};

/// The exit code of what was done.
pub(crate) const SUCCESS: u8 = 0;
/// The exit code of what was not.
pub(crate) const FAILURE: u8 = 1;

/// Ends the process with this exit code, all its threads with it. Never waits for one.
pub(crate) fn leave(code: u8) -> ! {
    let _ = io::stdout().flush();
    #[cfg(feature = "libvirt")]
    libvirt_host::leave(code);
    #[cfg(not(feature = "libvirt"))]
    std::process::exit(code.into());
}
