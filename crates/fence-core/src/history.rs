// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests seen lately, so that no request runs twice.
//!
//! Owns the memory of multicast requests. A client sends each request several times and by several
//! interfaces, so requests are known by key, action, sequence number and target. Packets that are equal to
//! the byte are another matter: the daemon's memory of packets. Runs on the caller's task; time is a
//! parameter. Must never read a clock.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use fence_wire::{Action, Request};

/// Time after its first packet for which a request stands for its repetitions. The C daemon uses the same
/// time.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(10);
/// Requests that are remembered at once. A client makes one every few milliseconds at most.
pub const MAX_REQUESTS: usize = 65_536;

/// Memory of requests, with a value for each.
#[derive(Debug)]
pub struct History<T> {
    requests: HashMap<RequestKey, (Instant, T)>,
    arrivals: VecDeque<(Instant, RequestKey)>,
}

/// Properties that make two packets the same request. Names compare without case, as in the C daemon. The
/// secret that made the hash belongs to them: a source that guesses the number of another cluster's request
/// must not be able to take its place.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RequestKey {
    secret: Option<usize>,
    action: Action,
    sequence: u32,
    target: String,
}

/// Result of looking a packet up in the history.
#[derive(Debug, PartialEq, Eq)]
pub enum Repetition<'a, T> {
    /// First packet of a request, which is remembered with this value.
    New(RequestKey, &'a T),
    /// Another packet of a request that was seen less than [`REPEAT_WINDOW`] ago, with its value.
    Repeated(&'a T),
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> History<T> {
    /// Returns an empty history.
    pub fn new() -> Self {
        Self { requests: HashMap::new(), arrivals: VecDeque::new() }
    }

    /// Records a request whose packet's hash fits and is no replay. `secret` is the position of the key that
    /// made the hash.
    pub fn saw(
        &mut self,
        now: Instant,
        secret: Option<usize>,
        request: &Request,
        value: impl FnOnce() -> T,
    ) -> Repetition<'_, T> {
        self.forget_old(now);
        let key = RequestKey {
            secret,
            action: request.action,
            sequence: request.sequence,
            target: request.target.as_str().to_lowercase(),
        };
        match self.requests.entry(key.clone()) {
            Entry::Occupied(known) => Repetition::Repeated(&known.into_mut().1),
            Entry::Vacant(place) => {
                self.arrivals.push_back((now, key.clone()));
                Repetition::New(key, &place.insert((now, value())).1)
            }
        }
    }

    /// Forgets a request whose client was never reached: its next packet counts as new.
    pub fn forget(&mut self, key: &RequestKey) {
        self.requests.remove(key);
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((at, key)) = self.arrivals.front() {
            let old = now.saturating_duration_since(*at) >= REPEAT_WINDOW;
            if !old && self.arrivals.len() < MAX_REQUESTS {
                break;
            }
            // A request that was forgotten and sent again has a later time of its own.
            if self.requests.get(key).is_some_and(|(since, _)| since == at) {
                self.requests.remove(key);
            }
            self.arrivals.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use fence_wire::Target;

    use super::*;

    fn request(sequence: u32, target: &str) -> Request {
        Request {
            action: Action::Off,
            target: Target::new(target, false).unwrap(),
            call_back: None,
            nonce: [0; 6],
            sequence,
        }
    }

    fn is_new(seen: &Repetition<'_, u32>) -> bool {
        matches!(seen, Repetition::New(..))
    }

    #[test]
    fn a_retransmission_is_the_same_request_for_ten_seconds() {
        let (mut history, start) = (History::new(), Instant::now());
        assert!(is_new(&history.saw(start, None, &request(1, "vm"), || 7)));
        let later = start + REPEAT_WINDOW - Duration::from_millis(1);
        assert_eq!(history.saw(later, None, &request(1, "VM"), || 8), Repetition::Repeated(&7));
        assert!(is_new(&history.saw(start + REPEAT_WINDOW, None, &request(1, "vm"), || 9)));
    }

    #[test]
    fn another_number_target_or_action_is_another_request() {
        let (mut history, now) = (History::new(), Instant::now());
        assert!(is_new(&history.saw(now, None, &request(1, "vm"), || 0)));
        assert!(is_new(&history.saw(now, None, &request(2, "vm"), || 0)));
        assert!(is_new(&history.saw(now, None, &request(1, "vm2"), || 0)));
        let saw =
            |history: &mut History<u32>, secret| is_new(&history.saw(now, secret, &request(1, "vm"), || 0));
        assert!(saw(&mut history, Some(0)) && saw(&mut history, Some(1)), "another cluster's");
        assert!(!saw(&mut history, Some(1)));
        let status = Request { action: Action::Status, ..request(1, "vm") };
        assert!(is_new(&history.saw(now, None, &status, || 0)));
    }

    #[test]
    fn a_forgotten_request_is_new_again() {
        let (mut history, now) = (History::new(), Instant::now());
        let Repetition::New(key, _) = history.saw(now, None, &request(1, "vm"), || 0) else {
            panic!("not new")
        };
        history.forget(&key);
        assert!(is_new(&history.saw(now, None, &request(1, "vm"), || 0)));
        // Its first arrival runs out and must not take the second with it.
        let later = now + REPEAT_WINDOW / 2;
        history.forget(&key);
        assert!(is_new(&history.saw(later, None, &request(1, "vm"), || 5)));
        assert_eq!(history.saw(now + REPEAT_WINDOW, None, &request(1, "vm"), || 0), Repetition::Repeated(&5));
    }
}
