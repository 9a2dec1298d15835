// SPDX-License-Identifier: GPL-2.0-or-later
//! The time for which silent hosts are waited for.
//!
//! A host that was silent for its whole time was asked for nothing a moment ago; one request asks twice, once
//! to find the domain and once to act. Owns who was silent lately, and nothing else: a silent host stays
//! unknown, however long it was waited for.

use std::time::{Duration, Instant};

use fence_core::hosts::Respondent;

/// Time for which a silence shortens the next wait.
const SILENCE_TTL: Duration = Duration::from_secs(10);
/// Wait for a host that was silent lately. It is asked several times meanwhile.
const SHORT_WAIT: Duration = Duration::from_millis(150);
/// Silent hosts that are remembered.
const MAX_SILENT: usize = 64;

/// Hosts that were silent for their whole time.
#[derive(Default, Debug)]
pub(super) struct SilentHosts {
    /// Hosts that were silent lately, with the end of their time.
    lately: Vec<(Respondent, Instant)>,
    /// Hosts and addresses of `peers` that were asked, and were silent the last time.
    in_vain: Vec<Respondent>,
}

impl SilentHosts {
    /// Returns whether these hosts need not be waited for any more, after a wait of this length.
    pub(super) fn are_given_up(&self, silent: &[Respondent], waited: Duration, now: Instant) -> bool {
        let was_silent = |who: &Respondent| {
            self.lately.iter().any(|(it, since)| it == who && now.duration_since(*since) < SILENCE_TTL)
        };
        waited >= SHORT_WAIT && silent.iter().all(was_silent)
    }

    /// Records who was asked, and who of them was silent for the whole time.
    pub(super) fn record(&mut self, silent: &[Respondent], asked: &[Respondent], now: Instant) {
        self.lately.retain(|(it, since)| !asked.contains(it) && now.duration_since(*since) < SILENCE_TTL);
        let room = MAX_SILENT.saturating_sub(self.lately.len());
        self.lately.extend(silent.iter().take(room).map(|it| (*it, now)));
        self.in_vain.retain(|it| !asked.contains(it));
        let room = MAX_SILENT.saturating_sub(self.in_vain.len());
        self.in_vain.extend(silent.iter().take(room));
    }

    /// Returns whether this host or address of `peers` was asked since the start, and did not answer the last
    /// time.
    pub(super) fn was_asked_in_vain(&self, who: Respondent) -> bool {
        self.in_vain.contains(&who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_silent_lately_is_waited_for_less() {
        let at = |port| Respondent::Address(([10, 0, 0, 1], port).into());
        let (h1, h2, start) = (at(1), at(2), Instant::now());
        let mut silent = SilentHosts::default();
        assert!(!silent.are_given_up(&[h1], SHORT_WAIT, start));
        silent.record(&[h1], &[h1, h2], start);
        assert!(silent.was_asked_in_vain(h1) && !silent.was_asked_in_vain(h2));
        assert!(silent.are_given_up(&[h1], SHORT_WAIT, start));
        assert!(!silent.are_given_up(&[h1], SHORT_WAIT / 2, start), "it is asked all the same");
        assert!(!silent.are_given_up(&[h1, h2], SHORT_WAIT, start), "the other one was well");
        assert!(!silent.are_given_up(&[h1], SHORT_WAIT, start + SILENCE_TTL));
        silent.record(&[], &[h1], start);
        assert!(!silent.was_asked_in_vain(h1));
        assert!(!silent.are_given_up(&[h1], SHORT_WAIT, start), "it has answered since");
    }
}
