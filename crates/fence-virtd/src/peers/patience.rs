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

/// Hosts that were silent for their whole time, with the end of it.
#[derive(Default, Debug)]
pub(super) struct SilentHosts(Vec<(Respondent, Instant)>);

impl SilentHosts {
    /// Returns whether these hosts need not be waited for any more, after a wait of this length.
    pub(super) fn are_given_up(&self, silent: &[Respondent], waited: Duration, now: Instant) -> bool {
        let was_silent = |who: &Respondent| {
            self.0.iter().any(|(it, since)| it == who && now.duration_since(*since) < SILENCE_TTL)
        };
        waited >= SHORT_WAIT && silent.iter().all(was_silent)
    }

    /// Records who was asked, and who of them was silent for the whole time.
    pub(super) fn record(&mut self, silent: &[Respondent], asked: &[Respondent], now: Instant) {
        self.0.retain(|(it, since)| !asked.contains(it) && now.duration_since(*since) < SILENCE_TTL);
        let room = MAX_SILENT.saturating_sub(self.0.len());
        self.0.extend(silent.iter().take(room).map(|it| (*it, now)));
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
        assert!(silent.are_given_up(&[h1], SHORT_WAIT, start));
        assert!(!silent.are_given_up(&[h1], SHORT_WAIT / 2, start), "it is asked all the same");
        assert!(!silent.are_given_up(&[h1, h2], SHORT_WAIT, start), "the other one was well");
        assert!(!silent.are_given_up(&[h1], SHORT_WAIT, start + SILENCE_TTL));
        silent.record(&[], &[h1], start);
        assert!(!silent.are_given_up(&[h1], SHORT_WAIT, start), "it has answered since");
    }
}
