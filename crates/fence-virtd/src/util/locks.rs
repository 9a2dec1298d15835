// SPDX-License-Identifier: GPL-2.0-or-later
//! Taking a lock. No lock is ever poisoned: a panic ends the process (`panic = "abort"`).
//!
//! A module that takes its `Mutex` from here can be compiled with another one: `tests/threads` does that.

use std::sync::PoisonError;
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Waits for the lock and takes it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
