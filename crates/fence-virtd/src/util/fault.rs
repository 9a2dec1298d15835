// SPDX-License-Identifier: GPL-2.0-or-later
//! Fault points: steps at which a test may stop this process, to kill it there.
//!
//! Debug builds alone obey `FENCE_VIRTD_STOP_AT`; a release build has not even its name. Must never do
//! anything else.

/// Stops the process (SIGSTOP) if the test asked for this step.
#[cfg(debug_assertions)]
pub(crate) fn reached(step: &str) {
    static STOP_AT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    if STOP_AT.get_or_init(|| std::env::var("FENCE_VIRTD_STOP_AT").ok()).as_deref() == Some(step) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
    }
}

/// Does nothing: this is a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: &str) {}
