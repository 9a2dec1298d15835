// SPDX-License-Identifier: GPL-2.0-or-later
//! Taking a lock. A thread that panicked with one held ends the process (`panic = "abort"`), so there is no poison to
//! see to.
//!
//! What takes its `Mutex` from here can be compiled with another one as well: `tests/threads` does.

use std::sync::PoisonError;
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Waits for the lock.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
