// SPDX-License-Identifier: GPL-2.0-or-later
//! Runs whose result is kept for a while, one in flight at a time.

use std::time::Instant;

use tokio::sync::Mutex;
use tokio::time::timeout_at;

/// Last result of a run. Locked while a run is in flight, so that other callers wait for its result.
pub(super) struct CachedRun<T>(Mutex<Option<(Instant, T)>>);

/// Result of a run, and whether it replaces the last one.
pub(super) enum RunResult<T> {
    Keep(T),
    /// For this caller only: the next one runs again.
    Discard(T),
}

impl<T> Default for CachedRun<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> CachedRun<T> {
    /// Returns the last result if `is_valid` accepts it and the time at which it came, or else the result of
    /// `run`. Waits for a run in flight; none if that has not ended by `until`.
    ///
    /// If the caller of a run stops waiting, the run ends and the next caller runs.
    pub(super) async fn get(
        &self,
        until: Instant,
        is_valid: impl FnOnce(Instant, &T) -> bool,
        run: impl Future<Output = RunResult<T>>,
    ) -> Option<T> {
        let mut last = timeout_at(until.into(), self.0.lock()).await.ok()?;
        if let Some((when, result)) = &*last
            && is_valid(*when, result)
        {
            return Some(result.clone());
        }
        match run.await {
            RunResult::Keep(result) => {
                *last = Some((Instant::now(), result.clone()));
                Some(result)
            }
            RunResult::Discard(result) => Some(result),
        }
    }

    /// Forgets the last result, so that the next caller runs.
    #[cfg(test)]
    pub(super) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn a_valid_result_is_returned_without_a_run() {
        let cached = CachedRun::default();
        assert_eq!(cached.get(soon(), |_, _| true, ready(RunResult::Keep(1))).await, Some(1));
        let unused = async { unreachable!("the last result is valid") };
        assert_eq!(cached.get(soon(), |_, result| *result == 1, unused).await, Some(1));
        assert_eq!(cached.get(soon(), |_, result| *result != 1, ready(RunResult::Keep(2))).await, Some(2));
    }

    #[tokio::test]
    async fn a_discarded_result_leaves_the_last_one() {
        let cached = CachedRun::default();
        cached.get(soon(), |_, _| true, ready(RunResult::Keep(1))).await;
        assert_eq!(cached.get(soon(), |_, _| false, ready(RunResult::Discard(2))).await, Some(2));
        let unused = async { unreachable!("the last result is valid") };
        assert_eq!(cached.get(soon(), |_, result| *result == 1, unused).await, Some(1));
    }

    #[tokio::test]
    async fn callers_wait_for_the_run_in_flight() {
        let cached = CachedRun::default();
        let (tell, told) = tokio::sync::oneshot::channel();
        let first = cached.get(soon(), |_, _| true, async {
            told.await.unwrap();
            RunResult::Keep(1)
        });
        let second = cached.get(soon(), |_, _| true, async { RunResult::Keep(2) });
        let meanwhile = async {
            tell.send(()).unwrap();
        };
        assert_eq!(tokio::join!(biased; first, second, meanwhile), (Some(1), Some(1), ()));
    }

    #[tokio::test]
    async fn a_caller_waits_no_longer_than_its_deadline() {
        let cached = CachedRun::<u8>::default();
        tokio::select! {
            biased;
            _ = cached.get(soon(), |_, _| true, pending()) => unreachable!("the run does not end"),
            result = cached.get(Instant::now(), |_, _| true, ready(RunResult::Keep(2))) => {
                assert_eq!(result, None);
            }
        }
        // The run ended with its caller.
        assert_eq!(cached.get(soon(), |_, _| true, ready(RunResult::Keep(3))).await, Some(3));
    }
}
