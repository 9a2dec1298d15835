// SPDX-License-Identifier: GPL-2.0-or-later
//! Drops: input discarded before a request exists, counted by reason, and logged at a limited rate.
//!
//! Owns the counters and the memory of the rate limit. Runs on the caller's task and must never wait. Every
//! drop is noted here, so that no administrator has to guess from a client's time-out.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::util::locks::lock;

/// Time in which a peer, listener and reason are logged once.
const QUIET: Duration = Duration::from_secs(10);
/// Lines about one reason in one [`QUIET`], of all peers together.
const MAX_LINES: u32 = 20;
/// Peers that are distinguished in one [`QUIET`].
const MAX_PEERS: usize = 4096;

/// Counters and the memory of the rate limit.
#[derive(Debug, Default)]
pub(crate) struct DropLog(Mutex<DropState>);

#[derive(Debug, Default)]
struct DropState {
    counts: HashMap<(&'static str, &'static str), u64>,
    window: Option<Instant>,
    lines: HashMap<&'static str, u32>,
    /// By peer, listener and reason.
    peers: HashMap<(String, &'static str, &'static str), u64>,
}

impl DropLog {
    /// Counts a drop, and logs it within the rate limit. `reason` is a fixed word; `detail` is for the log,
    /// and all input of the peer in it is escaped.
    pub(crate) fn note(
        &self,
        listener: &'static str,
        reason: &'static str,
        peer: &dyn fmt::Display,
        detail: &dyn fmt::Display,
    ) {
        let log = self.state().count(Instant::now(), listener, reason, without_port(peer.to_string()));
        if log {
            warn!(listener, reason, peer = %peer, "dropped: {detail}");
        }
    }

    /// Counts a drop that is worth no line in the log.
    pub(crate) fn count(&self, listener: &'static str, reason: &'static str) {
        *self.state().counts.entry((listener, reason)).or_default() += 1;
    }

    /// Returns the number of drops since the start, by listener and reason.
    pub(crate) fn counts(&self) -> Vec<((&'static str, &'static str), u64)> {
        self.state().counts.iter().map(|(it, count)| (*it, *count)).collect()
    }

    fn state(&self) -> MutexGuard<'_, DropState> {
        lock(&self.0)
    }
}

/// Returns the address or context id of a peer without the port, which is new for each connection.
fn without_port(peer: String) -> String {
    match (peer.parse::<SocketAddr>(), peer.split_once(" port ")) {
        (Ok(address), _) => address.ip().to_string(),
        (Err(_), Some((cid, _))) => cid.to_owned(),
        (Err(_), None) => peer,
    }
}

impl DropState {
    /// Counts a drop, and returns true if it is to be logged.
    fn count(&mut self, now: Instant, listener: &'static str, reason: &'static str, peer: String) -> bool {
        *self.counts.entry((listener, reason)).or_default() += 1;
        if self.window.is_none_or(|since| now.saturating_duration_since(since) >= QUIET) {
            self.log_suppressed();
            self.window = Some(now);
        }
        let known = (peer, listener, reason);
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&known) {
            return false;
        }
        let seen = self.peers.entry(known).or_default();
        *seen += 1;
        let lines = self.lines.entry(reason).or_default();
        let log = *seen == 1 && *lines < MAX_LINES;
        *lines += u32::from(log);
        log
    }

    /// Logs the number of drops without a line of their own, and begins to count anew.
    fn log_suppressed(&mut self) {
        let mut more: HashMap<&'static str, u64> = HashMap::new();
        for ((_, _, reason), count) in self.peers.drain() {
            *more.entry(reason).or_default() += count;
        }
        for (reason, count) in more {
            let logged = u64::from(self.lines.get(reason).copied().unwrap_or_default());
            if count > logged {
                warn!(reason, "dropped {} more for this reason since the last line", count - logged);
            }
        }
        self.lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_a_peer_and_a_reason() {
        let (mut state, now) = (DropState::default(), Instant::now());
        assert!(state.count(now, "multicast", "length", "10.0.0.1".into()));
        assert!(!state.count(now, "multicast", "length", "10.0.0.1".into()));
        assert!(state.count(now, "multicast", "length", "10.0.0.2".into()));
        assert!(state.count(now, "multicast", "port", "10.0.0.1".into()));
        assert!(state.count(now + QUIET, "multicast", "length", "10.0.0.1".into()));
        assert_eq!(state.counts[&("multicast", "length")], 4);
    }

    #[test]
    fn a_port_makes_no_other_peer() {
        assert_eq!(without_port("10.0.0.1:4711".into()), "10.0.0.1");
        assert_eq!(without_port("[fd77::1]:4711".into()), "fd77::1");
        assert_eq!(without_port("cid 3 port 4711".into()), "cid 3");
        assert_eq!(without_port("vm1".into()), "vm1");
    }

    #[test]
    fn many_peers_do_not_fill_the_log() {
        let (mut state, now) = (DropState::default(), Instant::now());
        let lines = (0..100_000).filter(|i| state.count(now, "tcp", "length", i.to_string())).count();
        assert_eq!(lines, MAX_LINES as usize);
        assert!(state.peers.len() <= MAX_PEERS);
    }
}
