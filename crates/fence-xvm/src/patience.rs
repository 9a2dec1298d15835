// SPDX-License-Identifier: GPL-2.0-or-later
//! Tries of a host that is asked over a stream: their number, and their pauses.
//!
//! A daemon that is started anew is gone for a moment, and closes what waits. Without our proof nothing can
//! have been done for us, so the agent asks again, with a new packet. After the proof it never does: the host
//! may have acted.
//!
//! Owns the count of tries. Pure: time is a parameter. Must never allow a try after our proof was sent.

use std::time::{Duration, Instant};

use fence_wire::Action;

use crate::deadline::Deadline;

/// Time for which a question is repeated while nobody listens: nobody is to wait long to hear of a wrong
/// address. An action is repeated until the end of its time.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);
/// Number of times that a host may close the stream unproven. A restart closes it once; a host that can't use
/// the request closes it each time.
const CLOSED_LIMIT: u32 = 4;
/// Pause before the second try, doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// End of a stream before our proof was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EndBeforeProof {
    /// Nobody listens at the address.
    Refused,
    /// The host closed the stream before it proved that it holds the key.
    Unproven,
    /// The host proved that it holds the key, and closed the stream before it asked for our proof.
    Proven,
}

/// Tries of one request.
#[derive(Debug)]
pub(crate) struct RetryPatience {
    begun: Instant,
    deadline: Deadline,
    /// End of the tries where nobody listens.
    refused_until: Deadline,
    closed: u32,
    tries: u32,
}

impl RetryPatience {
    /// Begins the first try of a request that ends by the deadline.
    pub(crate) fn new(action: Action, deadline: Deadline, now: Instant) -> Self {
        let refused_until = match action {
            Action::Off | Action::On | Action::Reboot => deadline,
            _ => deadline.min(Deadline::from(now, QUESTION_LIMIT)),
        };
        Self { begun: now, deadline, refused_until, closed: 0, tries: 1 }
    }

    /// Returns the pause before the next try; none if this was the last one.
    pub(crate) fn pause_after(&mut self, end: EndBeforeProof, now: Instant) -> Option<Duration> {
        let doubled = 2u32.saturating_pow(self.tries - 1);
        let pause = FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
        self.closed += u32::from(end == EndBeforeProof::Unproven);
        let until = match end {
            EndBeforeProof::Refused => self.refused_until,
            EndBeforeProof::Unproven | EndBeforeProof::Proven => self.deadline,
        };
        if self.closed >= CLOSED_LIMIT || Deadline::from(now, pause) >= until {
            return None;
        }
        self.tries += 1;
        Some(pause)
    }

    /// Returns the number of tries, and the time since the first one began.
    pub(crate) fn tries(&self, now: Instant) -> (u32, Duration) {
        (self.tries, now.saturating_duration_since(self.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Returns the number of tries, and the time that they take, of a host that always ends streams so.
    fn tries(action: Action, end: EndBeforeProof) -> (u32, Duration) {
        let mut now = Instant::now();
        let mut patience = RetryPatience::new(action, Deadline::from(now, MINUTE), now);
        while let Some(pause) = patience.pause_after(end, now) {
            assert!((FIRST_PAUSE..=LONGEST_PAUSE).contains(&pause), "{pause:?}");
            now += pause;
        }
        patience.tries(now)
    }

    #[test]
    fn an_action_is_tried_until_its_time_is_over_and_a_question_for_seconds() {
        for action in [Action::Off, Action::On, Action::Reboot] {
            let (count, spent) = tries(action, EndBeforeProof::Refused);
            assert!(spent <= MINUTE && spent + LONGEST_PAUSE >= MINUTE && count > 60, "{spent:?} {count}");
        }
        for action in [Action::Status, Action::Monitor, Action::List] {
            let (_, spent) = tries(action, EndBeforeProof::Refused);
            assert!(spent <= QUESTION_LIMIT && spent + LONGEST_PAUSE >= QUESTION_LIMIT, "{spent:?}");
        }
    }

    #[test]
    fn a_host_that_can_not_use_the_request_is_soon_given_up() {
        let (count, spent) = tries(Action::Off, EndBeforeProof::Unproven);
        assert!(count == CLOSED_LIMIT && spent < Duration::from_secs(1), "{count} {spent:?}");
    }

    #[test]
    fn one_that_took_the_request_is_asked_until_the_time_is_over() {
        let (_, spent) = tries(Action::Status, EndBeforeProof::Proven);
        assert!(spent + LONGEST_PAUSE >= MINUTE, "{spent:?}");
    }
}
