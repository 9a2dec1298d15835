// SPDX-License-Identifier: GPL-2.0-or-later
//! In place of the daemon's `locks`: a mutex that shuttle schedules by.

use shuttle::sync::PoisonError;
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
