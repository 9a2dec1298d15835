// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of the process. `main` calls [`leave`] in every case; nothing else may end the process, but for a
//! panic.
//!
//! Why `main` does not return: that would call the destructors of all C libraries while threads still run.
//! Nobody can wait for these threads: a call to a hypervisor that hangs can't be cancelled, and libvirt's own
//! threads never end. OpenSSL, which comes with libvirt, then frees the data of each thread. A thread of the
//! runtime that ends in the same moment frees its data too: a double free, and SIGABRT in place of the exit
//! code.
//!
//! Everything that must outlive the process is finished before, in `run`: requests, audit records, the memory
//! of packets, the pid file, the log.

use std::io::{self, Write};

/// Ends the process and all its threads with this exit code. Never waits for a thread.
pub(crate) fn leave(code: u8) -> ! {
    let _ = io::stdout().flush();
    #[cfg(feature = "libvirt")]
    libvirt_host::leave(code);
    #[cfg(not(feature = "libvirt"))]
    std::process::exit(code.into());
}
