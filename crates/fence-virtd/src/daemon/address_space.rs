// SPDX-License-Identifier: GPL-2.0-or-later
//! The limit of the address space (`ulimit -v`, `LimitAS=`): fewer threads below it, or no start at all.
//!
//! Runs before the first thread. The C library reserves 64 MiB for the memory of each thread, and libvirt's
//! libraries abort where they get none: so a limit that nothing needed would end the daemon in the middle of
//! a request.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use tracing::warn;

/// Threads for calls to libvirt without a limit; they wait most of their time.
const BLOCKING_THREADS: usize = 512;
/// Least number of MiB with which the daemon starts. One of a host with two processors needs 130 to serve.
const LEAST: u64 = 192;
/// MiB that are not for the threads of calls.
const BASE: u64 = 160;
/// MiB of one thread: its stack, and what a call takes.
const THREAD: u64 = 4;

/// Threads that do all but calls, under a limit. Without one there are as many as processors.
const WORKERS: usize = 4;

/// Numbers of threads that the address space has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ThreadCounts {
    /// Threads for calls to libvirt.
    pub(super) blocking: usize,
    /// Threads that do all else; none: as many as processors.
    pub(super) workers: Option<usize>,
}

/// Reason why the daemon does not start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the address space of this process is limited to {0} MiB (ulimit -v, LimitAS=), and fence_virtd needs \
     {LEAST} MiB at least: libvirt's libraries abort where they get no memory. Raise or remove the limit"
)]
pub(super) struct TooLittleMemory(u64);

/// Returns the numbers of threads. Under a limit calls `spare`, which lets threads
/// reserve less, and logs that.
///
/// # Errors
/// The limit is so low that the daemon would be aborted.
pub(super) fn thread_counts(spare: impl FnOnce()) -> Result<ThreadCounts, TooLittleMemory> {
    let limit = getrlimit(Resource::RLIMIT_AS).map_or(RLIM_INFINITY, |(soft, _)| soft);
    let limit = (limit != RLIM_INFINITY).then_some(limit >> 20);
    let counts = counts_within(limit)?;
    if let Some(limit) = limit.filter(|_| counts.workers.is_some()) {
        let threads = counts.blocking;
        spare();
        warn!(
            limit_mib = limit,
            threads,
            "the address space of this process is limited (ulimit -v, LimitAS=): at most {threads} calls to \
             libvirt at once, in place of {BLOCKING_THREADS}"
        );
    }
    Ok(counts)
}

fn counts_within(limit: Option<u64>) -> Result<ThreadCounts, TooLittleMemory> {
    if let Some(limit) = limit.filter(|it| *it < LEAST) {
        return Err(TooLittleMemory(limit));
    }
    let room = limit.and_then(|it| usize::try_from(it.saturating_sub(BASE) / THREAD).ok());
    Ok(match room {
        Some(room) if room < BLOCKING_THREADS => {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            ThreadCounts { blocking: room, workers: Some(processors.min(WORKERS)) }
        }
        _ => ThreadCounts { blocking: BLOCKING_THREADS, workers: None },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_costs_threads_and_a_very_low_one_the_start() {
        let counts = |limit| counts_within(limit).unwrap();
        let all = ThreadCounts { blocking: BLOCKING_THREADS, workers: None };
        assert_eq!([None, Some(1 << 20)].map(counts), [all, all]);
        assert_eq!([LEAST, 293].map(|it| counts(Some(it)).blocking), [8, 33]);
        assert!(counts(Some(LEAST)).workers.is_some_and(|it| (1..=WORKERS).contains(&it)));
        let error = counts_within(Some(LEAST - 1)).unwrap_err().to_string();
        assert!(
            error.contains("limited to 191 MiB (ulimit -v, LimitAS=)") && error.contains("192 MiB"),
            "{error}"
        );
    }
}
