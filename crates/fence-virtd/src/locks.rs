// SPDX-License-Identifier: GPL-2.0-or-later
//! Taking a lock. A thread that panicked with one held ends the process (`panic = "abort"`), so there is no poison to
//! see to.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits for the lock.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
