// SPDX-License-Identifier: GPL-2.0-or-later
//! What hosts have said to a multicast request, and when it is enough. No sockets; time is a parameter.
//!
//! Every host of the group hears the request, so the first word need not be the last:
//! - lists of all hosts are merged, and the quiet time begins anew with each host that has ended;
//! - a failure or a denial of off, on, reboot or status that comes sooner after our proof than the quiet time is what
//!   a host says that does not run the domain, and for the quiet time another one may do better. One that takes
//!   longer has tried: it is the result, because a host that only knows the domain as off would call it fenced;
//! - everything else ends the request.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fence_wire::{Action, HostListEntry, Response};

use crate::answer::Answer;
use crate::attempts::{CalledBack, CameTo};
use crate::deadline::Deadline;
use crate::exchange::{LIST_MAX, Refusal};
use crate::multicast_failure::MulticastFailure;
use crate::rows::Rows;

/// What hosts have said so far.
#[derive(Debug)]
pub(crate) struct Hearing<W> {
    action: Action,
    quiet: Duration,
    rows: Rows<W>,
    /// When the latest host had ended.
    latest: Option<Instant>,
    /// What the first host said that did not do what was asked.
    failure: Option<(SocketAddr, Said)>,
    /// Hosts that have listed all their domains.
    lists: usize,
    /// Hosts that hold the key and have not.
    missing: Vec<CalledBack>,
}

/// What a host said, or what was wrong with it.
pub(crate) type Said = Result<Answer, Refusal>;

impl<W: Write> Hearing<W> {
    /// Nothing heard yet. Lists go to `rows`.
    pub(crate) fn new(action: Action, quiet: Duration, rows: Rows<W>) -> Self {
        Self { action, quiet, rows, latest: None, failure: None, lists: 0, missing: Vec::new() }
    }

    /// Whether all hosts are to be heard: a list changes nothing, so several may have leave to answer at a time.
    pub(crate) fn is_of_all(&self) -> bool {
        self.action == Action::List
    }

    /// How long after what has been heard another host is waited for, and the moment when that ends; none as long as
    /// nothing has been heard.
    pub(crate) fn quiet(&self) -> Option<(Duration, Deadline)> {
        self.latest.map(|latest| (self.quiet, Deadline::from(latest, self.quiet)))
    }

    /// Takes what a host said that holds the key, so long after it got our proof. An answer when it is the last word.
    ///
    /// # Errors
    /// When no other host can do better, and when rows cannot be written.
    pub(crate) fn hear(
        &mut self,
        from: SocketAddr,
        said: Said,
        since_proof: Duration,
        now: Instant,
    ) -> Result<Option<Answer>, MulticastFailure> {
        let done = matches!(said, Ok(Answer::Response(Response::Success | Response::Off)));
        if self.is_of_all() {
            self.hear_list(from, said)?;
        } else if !done && self.may_be_another_s() && since_proof <= self.quiet {
            self.failure.get_or_insert((from, said));
        } else {
            return said.map(Some).map_err(|refusal| MulticastFailure::Refused { from, refusal });
        }
        self.latest = Some(now);
        Ok(None)
    }

    /// A host that holds the key has gone before it had listed its domains.
    pub(crate) fn lost(&mut self, from: SocketAddr, why: String) {
        if self.is_of_all() {
            self.missing.push(CalledBack { from, outcome: why, came_to: CameTo::Other, times: 1 });
        }
    }

    /// All that will be heard has been: the answer, none when there is nothing to make one of.
    ///
    /// # Errors
    /// When a list is missing, when the only word was none, and when rows cannot be written.
    pub(crate) fn conclude(&mut self) -> Result<Option<Answer>, MulticastFailure> {
        self.rows.finish().map_err(MulticastFailure::Output)?;
        let heard_some = self.lists > 0 || self.missing.len() > 1;
        if heard_some && self.latest.is_some() && !self.missing.is_empty() {
            return Err(MulticastFailure::Incomplete(std::mem::take(&mut self.missing)));
        }
        if self.lists > 0 {
            return Ok(Some(Answer::Response(Response::Success)));
        }
        match self.failure.take() {
            Some((from, Err(refusal))) => Err(MulticastFailure::Refused { from, refusal }),
            Some((_, Ok(answer))) => Ok(Some(answer)),
            None => Ok(None),
        }
    }

    /// Whether a host that does not run the domain may have said no.
    fn may_be_another_s(&self) -> bool {
        matches!(self.action, Action::Off | Action::On | Action::Reboot | Action::Status)
    }

    fn hear_list(&mut self, from: SocketAddr, said: Said) -> Result<(), MulticastFailure> {
        let said = match said {
            Ok(Answer::List { entries, response }) => match self.take(entries)? {
                Ok(()) => response.map_or(Ok(Response::Success), Ok),
                Err(refusal) => Err(refusal),
            },
            Ok(Answer::Response(response)) => Ok(response),
            Err(refusal) => Err(refusal),
        };
        let outcome = match said {
            Ok(Response::Success) => {
                self.lists += 1;
                // It broke off before, and has been asked again.
                self.missing.retain(|host| host.from.ip() != from.ip());
                return Ok(());
            }
            // It has no domain for us, so none is missing.
            Ok(Response::PermissionDenied) => None,
            Ok(response) => Some(format!("said {response}: its log says why")),
            Err(refusal) => Some(refusal.to_string()),
        };
        if let Some(outcome) = outcome {
            self.lost(from, outcome);
        }
        self.failure.get_or_insert((from, said.map(Answer::Response)));
        Ok(())
    }

    /// Rows of a host whose list has its end.
    fn take(&mut self, entries: Vec<HostListEntry>) -> Result<Result<(), Refusal>, MulticastFailure> {
        if self.rows.len() + entries.len() > LIST_MAX {
            return Ok(Err(Refusal::ListTooLong));
        }
        self.rows.add(entries).map(Ok).map_err(MulticastFailure::Output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(300);
    const AT_ONCE: Duration = Duration::from_millis(1);
    const LATE: Duration = Duration::from_millis(301);

    fn host(number: u8) -> SocketAddr {
        ([10, 0, 0, number], 5000).into()
    }

    fn hearing(action: Action) -> Hearing<Vec<u8>> {
        Hearing::new(action, QUIET, Rows::new(Vec::new(), false))
    }

    fn response(response: Response) -> Said {
        Ok(Answer::Response(response))
    }

    fn list(name: &str) -> Said {
        let entry = HostListEntry { name: name.to_owned(), uuid: name.to_owned(), on: true };
        Ok(Answer::List { entries: vec![entry], response: Some(Response::Success) })
    }

    /// Every action, every first word, sooner and later: only a quick failure of what another host may do is not the
    /// last word, and nothing but success is ever one that hides an earlier failure.
    #[test]
    fn the_last_word() {
        let now = Instant::now();
        for action in [Action::Off, Action::On, Action::Reboot, Action::Status, Action::Monitor, Action::Null]
        {
            for word in [Response::Success, Response::Off, Response::Failure, Response::PermissionDenied] {
                for since_proof in [AT_ONCE, LATE] {
                    let mut hearing = hearing(action);
                    let heard = hearing.hear(host(1), response(word), since_proof, now).unwrap();
                    let waits = matches!(word, Response::Failure | Response::PermissionDenied)
                        && !matches!(action, Action::Monitor | Action::Null)
                        && since_proof == AT_ONCE;
                    assert_eq!(heard.is_none(), waits, "{action} {word} {since_proof:?}");
                    assert_eq!(hearing.quiet().is_some(), waits);
                    if waits {
                        assert_eq!(hearing.conclude().unwrap(), Some(Answer::Response(word)));
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_failure_is_the_result() {
        let now = Instant::now();
        let mut hearing = hearing(Action::Off);
        assert!(hearing.hear(host(1), response(Response::PermissionDenied), AT_ONCE, now).unwrap().is_none());
        assert!(hearing.hear(host(2), Err(Refusal::Response(253)), AT_ONCE, now).unwrap().is_none());
        assert_eq!(hearing.conclude().unwrap(), Some(Answer::Response(Response::PermissionDenied)));
    }

    #[test]
    fn without_a_quiet_time_the_first_word_counts() {
        let mut hearing = Hearing::new(Action::Off, Duration::ZERO, Rows::new(Vec::new(), false));
        let heard = hearing.hear(host(1), response(Response::Failure), AT_ONCE, Instant::now()).unwrap();
        assert_eq!(heard, Some(Answer::Response(Response::Failure)));
    }

    #[test]
    fn a_host_that_was_lost_and_lists_later_is_not_missing() {
        let now = Instant::now();
        for (again, complete) in [(1, true), (2, false)] {
            let mut hearing = hearing(Action::List);
            hearing.lost(host(1), "closed".to_owned());
            assert!(hearing.conclude().unwrap().is_none(), "nobody has said anything yet");
            assert!(hearing.hear(host(again), list("a"), AT_ONCE, now).unwrap().is_none());
            assert_eq!(hearing.conclude().is_ok(), complete);
        }
    }

    #[test]
    fn lists_that_are_too_long_together() {
        let now = Instant::now();
        let half = |letter: char| {
            let name = |n: usize| format!("{letter}{n}");
            let entries = (0..LIST_MAX / 2 + 1)
                .map(|n| HostListEntry { name: name(n), uuid: String::new(), on: true })
                .collect();
            Ok(Answer::List { entries, response: None })
        };
        let mut hearing = hearing(Action::List);
        hearing.hear(host(1), half('a'), AT_ONCE, now).unwrap();
        hearing.hear(host(2), half('b'), AT_ONCE, now).unwrap();
        let told = hearing.conclude().unwrap_err().to_string();
        assert!(told.contains("10.0.0.2: the list has more than"), "{told}");
    }
}
