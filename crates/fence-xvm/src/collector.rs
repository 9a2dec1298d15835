// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers of several hosts to one multicast request, and the rule that says when they are enough.
//!
//! Every host of the group receives the request, so the first answer need not be the last:
//! - lists of all hosts are merged, and the quiet time begins anew with each host that has ended;
//! - a failure or denial of off, on, reboot or status within the quiet time after our proof may come from a
//!   host that does not run the domain. For the quiet time another host may succeed;
//! - a failure of off, on or reboot without a reason may come from a C host, which reports it at once of a
//!   domain that it does not know. A host that has the domain asks that one first, so it gets more time;
//! - a later failure comes from a host that tried. It is the result, because a host that only knows the
//!   domain as off would report it as fenced;
//! - every other answer ends the request.
//!
//! A host that the agent hung up on, as it may have called for an earlier request, will call again for this
//! one. Until then a list, a failure and the status "off" are not enough.
//!
//! A question what an action would do changes nothing, so no failure is final while a host is awaited. Of
//! several words the less sure one is the result: a host that would have another one do it says "would be
//! done", and that one may say "can't say before it is done".
//!
//! Owns the answers and the rows of lists. No sockets; time is a parameter. Must never call a list
//! complete when the list of a proven host is missing.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use fence_wire::{Action, FORECAST_UNCERTAIN, HostListEntry, Response};

use crate::answer::HostAnswer;
use crate::attempts::{CallBackOutcome, StreamProgress};
use crate::deadline::Deadline;
use crate::exchange::{ExchangeError, LIST_MAX};
use crate::multicast_failure::MulticastFailure;
use crate::rows::ListRows;

/// Shortest wait for another host after a failure that may be a C host's.
const C_HOST_QUIET: Duration = Duration::from_secs(4);

/// Answers of hosts so far.
#[derive(Debug)]
pub(crate) struct AnswerCollector<W> {
    action: Action,
    quiet: Duration,
    /// An answer without a forecast comes from a host that can't tell one; another one may.
    wants_forecast: bool,
    rows: ListRows<W>,
    /// Instant at which the latest host ended.
    latest: Option<Instant>,
    /// Answer of the first host that did not carry the request out.
    failure: Option<(SocketAddr, HostResult)>,
    /// Status "off" of a host, while another one is awaited.
    off: Option<HostAnswer>,
    /// Forecast of a host that it would be done, until others had time for a less sure one.
    yes: Option<HostAnswer>,
    /// Hosts that are waited for, until they have called: those that were hung up on call again.
    awaited: BTreeMap<IpAddr, SocketAddr>,
    /// Number of hosts that have listed all their domains.
    lists: usize,
    /// Hosts that hold the key and did not list all their domains.
    missing: Vec<CallBackOutcome>,
}

/// Answer of a host, or the reason why it is not valid.
pub(crate) type HostResult = Result<HostAnswer, ExchangeError>;

impl<W: Write> AnswerCollector<W> {
    /// Returns a collector without answers. Lists go to `rows`.
    pub(crate) fn new(action: Action, quiet: Duration, rows: ListRows<W>) -> Self {
        let (latest, failure, off, yes, lists, missing) = (None, None, None, None, 0, Vec::new());
        let (wants_forecast, awaited) = (false, BTreeMap::new());
        Self { action, quiet, wants_forecast, rows, latest, failure, off, yes, awaited, lists, missing }
    }

    /// Returns the collector, for a question what an action would do.
    pub(crate) fn for_forecast(self, wants_forecast: bool) -> Self {
        Self { wants_forecast, ..self }
    }

    /// Returns whether the answers of all hosts are wanted. A list changes nothing, so several hosts may get
    /// our proof at a time.
    pub(crate) fn wants_all_hosts(&self) -> bool {
        self.action == Action::List
    }

    /// Returns whether a host told that it would do what is asked about: others may only be less sure.
    pub(crate) fn has_yes(&self) -> bool {
        self.yes.is_some()
    }

    /// Records a host that is waited for. One that was hung up on will call again for this request.
    pub(crate) fn await_again(&mut self, from: SocketAddr) {
        self.awaited.insert(from.ip(), from);
    }

    /// Returns the quiet time and its end; none before the first answer, and while a host is awaited whose
    /// answer may be a better one.
    pub(crate) fn quiet_time(&self) -> Option<(Duration, Deadline)> {
        let latest = self.latest.filter(|_| self.awaited.is_empty() || self.has_yes());
        let quiet = if self.may_be_a_c_host() { self.quiet.max(C_HOST_QUIET) } else { self.quiet };
        latest.map(|latest| (quiet, Deadline::from(latest, quiet)))
    }

    /// Returns whether the failure up to now may be that of a C host, which does not know the domain.
    fn may_be_a_c_host(&self) -> bool {
        let is_bare = |it: &(_, HostResult)| matches!(it.1, Ok(HostAnswer::Response(Response::Failure)));
        matches!(self.action, Action::Off | Action::On | Action::Reboot)
            && self.failure.as_ref().is_some_and(is_bare)
    }

    /// Takes the answer of a host that holds the key, `since_proof` after it got our proof. Returns the final
    /// answer, or none where another host may still give a better one.
    ///
    /// # Errors
    /// When no other host can give a better answer, and when rows cannot be written.
    pub(crate) fn take_result(
        &mut self,
        from: SocketAddr,
        result: HostResult,
        since_proof: Duration,
        now: Instant,
    ) -> Result<Option<HostAnswer>, MulticastFailure> {
        self.awaited.remove(&from.ip());
        if self.wants_forecast {
            return self.take_forecast(from, result, since_proof, now);
        }
        let is_off = matches!(result, Ok(HostAnswer::Response(Response::Off)));
        let is_done = matches!(result, Ok(HostAnswer::Response(Response::Success | Response::Off)));
        if is_done && is_off && !self.awaited.is_empty() {
            self.off = result.ok();
        } else if self.wants_all_hosts() {
            self.take_list(from, result)?;
        } else if !is_done && self.may_another_host_succeed() && since_proof <= self.quiet {
            self.failure.get_or_insert((from, result));
        } else {
            return final_answer(from, result);
        }
        self.latest = Some(now);
        Ok(if self.awaited.is_empty() { self.off.take() } else { None })
    }

    /// Takes the answer to a question what an action would do. An answer without a forecast is of a host that
    /// can't tell one.
    fn take_forecast(
        &mut self,
        from: SocketAddr,
        result: HostResult,
        since_proof: Duration,
        now: Instant,
    ) -> Result<Option<HostAnswer>, MulticastFailure> {
        let has_doubt = self.failure.as_ref().is_some_and(|(_, it)| is_doubt(it));
        let is_yes = matches!(result, Ok(HostAnswer::Forecast { response: Response::Success, .. }));
        let is_less_sure = is_doubt(&result) && self.has_yes() || is_yes && has_doubt;
        let is_told = has_doubt || self.has_yes();
        let is_late = since_proof > self.quiet && self.awaited.is_empty() && !is_told;
        self.latest = Some(now);
        if let Some(text) = self.other_domain(&result) {
            let doubt = HostAnswer::Forecast { response: Response::Failure, text };
            (self.yes, self.failure) = (None, Some((from, Ok(doubt))));
            return self.conclude();
        }
        if is_yes {
            self.yes.get_or_insert(result.map_err(|error| MulticastFailure::Failed { from, error })?);
        } else if is_late {
            return final_answer(from, result);
        } else if self.failure.is_none() || is_doubt(&result) && !has_doubt {
            self.failure = Some((from, result));
        }
        if is_less_sure {
            self.yes = None;
            return self.conclude();
        }
        Ok(None)
    }

    /// Returns the words for two hosts that would each act at a domain of its own; none where it is one
    /// domain, or not told.
    fn other_domain(&self, result: &HostResult) -> Option<String> {
        let would = |it: &HostAnswer| match it {
            HostAnswer::Forecast { response: Response::Success, text } => Some(text.clone()),
            _ => None,
        };
        let first = self.yes.as_ref().and_then(would)?;
        let second = result.as_ref().ok().and_then(would)?;
        let are_two = uuid_in(&first).zip(uuid_in(&second)).is_some_and(|(one, other)| one != other);
        are_two.then(|| {
            format!(
                "{FORECAST_UNCERTAIN}: two domains have this name, and the real request reaches the one \
                 whose host answers first; fence by UUID ({first}; {second})"
            )
        })
    }

    /// Records a host that holds the key and hung up before it had listed its domains.
    pub(crate) fn record_lost(&mut self, from: SocketAddr, outcome: String) {
        if self.wants_all_hosts() {
            self.missing.push(CallBackOutcome { from, outcome, progress: StreamProgress::Other, times: 1 });
        }
    }

    /// Returns the answer when no host is waited for any more; none when no host gave one.
    ///
    /// # Errors
    /// When a list is missing, when the only answer is not valid, and when rows cannot be written.
    pub(crate) fn conclude(&mut self) -> Result<Option<HostAnswer>, MulticastFailure> {
        self.rows.finish().map_err(MulticastFailure::Output)?;
        for from in std::mem::take(&mut self.awaited).into_values() {
            if !self.missing.iter().any(|it| it.from.ip() == from.ip()) {
                self.record_lost(
                    from,
                    "did not call again, after it may have called for an earlier request".into(),
                );
            }
        }
        let has_answers = self.lists > 0 || self.missing.len() > 1;
        if has_answers && self.latest.is_some() && !self.missing.is_empty() {
            return Err(MulticastFailure::Incomplete(std::mem::take(&mut self.missing)));
        }
        if self.lists > 0 {
            return Ok(Some(HostAnswer::Response(Response::Success)));
        }
        if let Some(told) = self.yes.take().or_else(|| self.off.take()) {
            return Ok(Some(told));
        }
        match self.failure.take() {
            Some((from, Err(error))) => Err(MulticastFailure::Failed { from, error }),
            Some((_, Ok(answer))) => Ok(Some(answer)),
            None => Ok(None),
        }
    }

    /// Returns whether a failure may come from a host that does not run the domain, so that another may
    /// succeed.
    fn may_another_host_succeed(&self) -> bool {
        matches!(self.action, Action::Off | Action::On | Action::Reboot | Action::Status)
    }

    fn take_list(&mut self, from: SocketAddr, result: HostResult) -> Result<(), MulticastFailure> {
        let result = match result {
            Ok(HostAnswer::List { entries, response }) => match self.add_rows(entries)? {
                Ok(()) => response.map_or(Ok(Response::Success), Ok),
                Err(error) => Err(error),
            },
            Ok(HostAnswer::Response(response)) => Ok(response),
            Ok(HostAnswer::Failed(_) | HostAnswer::Forecast { .. }) => Ok(Response::Failure),
            Err(error) => Err(error),
        };
        let outcome = match result {
            Ok(Response::Success) => {
                self.lists += 1;
                // Its earlier list broke off, and it was asked again.
                self.missing.retain(|host| host.from.ip() != from.ip());
                return Ok(());
            }
            // The host has no domain for this guest, so none is missing.
            Ok(Response::PermissionDenied) => None,
            Ok(response) => Some(format!("answered with {response}: the log there says why")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(outcome) = outcome {
            self.record_lost(from, outcome);
        }
        self.failure.get_or_insert((from, result.map(HostAnswer::Response)));
        Ok(())
    }

    /// Returns the merged rows of the lists.
    pub(crate) fn into_rows(self) -> Vec<HostListEntry> {
        self.rows.into_entries()
    }

    /// Adds the rows of a complete list.
    fn add_rows(
        &mut self,
        entries: Vec<HostListEntry>,
    ) -> Result<Result<(), ExchangeError>, MulticastFailure> {
        if self.rows.len() + entries.len() > LIST_MAX {
            return Ok(Err(ExchangeError::ListTooLong));
        }
        self.rows.add(entries).map(Ok).map_err(MulticastFailure::Output)
    }
}

/// Returns the answer of a host as that of the question.
fn final_answer(from: SocketAddr, result: HostResult) -> Result<Option<HostAnswer>, MulticastFailure> {
    result.map(Some).map_err(|error| MulticastFailure::Failed { from, error })
}

/// Returns whether a host told that what comes of an action shows only when it is done.
/// Returns the UUID in a forecast, which stands in the first brackets that have one.
fn uuid_in(text: &str) -> Option<&str> {
    const LEN: usize = 36;
    let is_uuid = |it: &str| {
        it.len() == LEN && it.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') && it.contains('-')
    };
    text.split('(').skip(1).filter_map(|it| it.split_once(')')).map(|it| it.0).find(|it| is_uuid(it))
}

fn is_doubt(result: &HostResult) -> bool {
    match result {
        Ok(HostAnswer::Forecast { response, text }) => {
            *response != Response::Success && text.contains(FORECAST_UNCERTAIN)
        }
        _ => false,
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

    fn collector(action: Action) -> AnswerCollector<Vec<u8>> {
        AnswerCollector::new(action, QUIET, ListRows::new(Vec::new(), false))
    }

    fn result(response: Response) -> HostResult {
        Ok(HostAnswer::Response(response))
    }

    fn list(name: &str) -> HostResult {
        let entry = HostListEntry { name: name.to_owned(), uuid: name.to_owned(), on: true };
        Ok(HostAnswer::List { entries: vec![entry], response: Some(Response::Success) })
    }

    /// For every action and every first answer, early and late: only an early failure of what another host
    /// may do is not final.
    #[test]
    fn final_answers() {
        let now = Instant::now();
        for action in [Action::Off, Action::On, Action::Reboot, Action::Status, Action::Monitor, Action::Null]
        {
            for response in [Response::Success, Response::Off, Response::Failure, Response::PermissionDenied]
            {
                for since_proof in [AT_ONCE, LATE] {
                    let mut collector = collector(action);
                    let answer = collector.take_result(host(1), result(response), since_proof, now).unwrap();
                    let waits = matches!(response, Response::Failure | Response::PermissionDenied)
                        && !matches!(action, Action::Monitor | Action::Null)
                        && since_proof == AT_ONCE;
                    assert_eq!(answer.is_none(), waits, "{action} {response} {since_proof:?}");
                    assert_eq!(collector.quiet_time().is_some(), waits);
                    if waits {
                        assert_eq!(collector.conclude().unwrap(), Some(HostAnswer::Response(response)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_forecast_is_waited_for_behind_a_host_that_can_tell_none() {
        let now = Instant::now();
        let forecast = |response| Ok(HostAnswer::Forecast { response, text: "words".to_owned() });
        for old in [Response::Success, Response::Off, Response::Failure, Response::PermissionDenied] {
            let mut collector = collector(Action::Status).for_forecast(true);
            assert!(collector.take_result(host(1), result(old), AT_ONCE, now).unwrap().is_none(), "{old}");
            assert!(
                collector.take_result(host(2), forecast(Response::Success), LATE, now).unwrap().is_none()
            );
            let yes = collector.conclude().unwrap();
            assert!(matches!(yes, Some(HostAnswer::Forecast { response: Response::Success, .. })), "{old}");
        }
        for no in [Response::Failure, Response::PermissionDenied] {
            let mut collector = collector(Action::Status).for_forecast(true);
            assert!(collector.take_result(host(1), forecast(no), AT_ONCE, now).unwrap().is_none());
            let told = collector.conclude().unwrap();
            assert!(
                matches!(told, Some(HostAnswer::Forecast { response, .. }) if response == no),
                "{told:?}"
            );
        }
    }

    /// A host that would have the owner do it is surer than the owner. A host without the domain refuses.
    #[test]
    fn of_several_forecasts_the_less_sure_one_counts() {
        let now = Instant::now();
        let say = |response, text: &str| Ok(HostAnswer::Forecast { response, text: text.to_owned() });
        let yes = || say(Response::Success, "would be powered off at node 3");
        let doubt = || say(Response::Failure, &format!("off vm1: {FORECAST_UNCERTAIN}: it moves"));
        let no = || say(Response::Failure, "no such domain on this host");
        for (answers, expected) in [
            ([yes(), doubt()], doubt()),
            ([doubt(), yes()], doubt()),
            ([no(), doubt()], doubt()),
            ([doubt(), no()], doubt()),
            ([yes(), no()], yes()),
            ([no(), yes()], yes()),
        ] {
            for since_proof in [AT_ONCE, LATE] {
                let mut collector = collector(Action::Status).for_forecast(true);
                let [first, second] = answers.clone();
                assert!(collector.take_result(host(1), first, AT_ONCE, now).unwrap().is_none());
                let end = collector.take_result(host(2), second, since_proof, now).unwrap();
                let end = end.or_else(|| collector.conclude().unwrap());
                assert_eq!(end, expected.clone().ok(), "{answers:?} {since_proof:?}");
            }
        }
    }

    /// Two hosts that would each act at another domain: which one goes is not known. The same domain at both
    /// is a matter of the hosts.
    #[test]
    fn two_domains_with_one_name_are_named() {
        let now = Instant::now();
        let say = |uuid: &str| {
            let text = format!("off web (copy) ({uuid}): is on, and would be powered off at host h1");
            Ok(HostAnswer::Forecast { response: Response::Success, text })
        };
        let (one, other) = ("22222222-2222-4222-8222-222222222222", "99999999-2222-4222-8222-222222222222");
        for (second, are_two) in [(other, true), (one, false)] {
            let mut collector = collector(Action::Status).for_forecast(true);
            assert!(collector.take_result(host(1), say(one), AT_ONCE, now).unwrap().is_none());
            let end = collector.take_result(host(2), say(second), AT_ONCE, now).unwrap();
            let Some(HostAnswer::Forecast { response, text }) = end.or_else(|| collector.conclude().unwrap())
            else {
                panic!("no forecast")
            };
            assert_eq!(response == Response::Failure, are_two, "{text}");
            assert_eq!(
                text.contains(FORECAST_UNCERTAIN) && text.contains("fence by UUID"),
                are_two,
                "{text}"
            );
        }
    }

    /// Nobody is waited for beside a host that would do it; beside one that refuses, the whole time.
    #[test]
    fn no_refusal_is_final_while_a_host_is_awaited() {
        let now = Instant::now();
        let say = |response| Ok(HostAnswer::Forecast { response, text: String::new() });
        for since_proof in [AT_ONCE, LATE] {
            let mut collector = collector(Action::Status).for_forecast(true);
            collector.await_again(host(2));
            let refused = collector.take_result(host(1), say(Response::Failure), since_proof, now);
            assert!(refused.unwrap().is_none() && collector.quiet_time().is_none());
            collector.await_again(host(3));
            assert!(collector.take_result(host(2), say(Response::Success), AT_ONCE, now).unwrap().is_none());
            assert!(collector.quiet_time().is_some() && collector.has_yes());
            let told = collector.conclude().unwrap();
            assert!(matches!(told, Some(HostAnswer::Forecast { response: Response::Success, .. })));
        }
    }

    #[test]
    fn the_first_failure_is_the_result() {
        let now = Instant::now();
        let mut collector = collector(Action::Off);
        assert!(
            collector
                .take_result(host(1), result(Response::PermissionDenied), AT_ONCE, now)
                .unwrap()
                .is_none()
        );
        assert!(
            collector
                .take_result(host(2), Err(ExchangeError::Response(253)), AT_ONCE, now)
                .unwrap()
                .is_none()
        );
        assert_eq!(collector.conclude().unwrap(), Some(HostAnswer::Response(Response::PermissionDenied)));
    }

    #[test]
    fn a_failure_that_may_be_a_c_hosts_leaves_others_more_time() {
        let now = Instant::now();
        let told = HostAnswer::Failed("the domain is on at another host".to_owned());
        for action in [Action::Off, Action::On, Action::Reboot, Action::Status] {
            for failure in [HostAnswer::Response(Response::Failure), told.clone()] {
                let may_be = action != Action::Status && failure != told;
                let mut collector = collector(action);
                assert!(collector.take_result(host(1), Ok(failure), AT_ONCE, now).unwrap().is_none());
                let quiet = collector.quiet_time().unwrap().0;
                assert_eq!(quiet, if may_be { C_HOST_QUIET } else { QUIET }, "{action}");
            }
        }
    }

    #[test]
    fn without_a_quiet_time_the_first_answer_counts() {
        let mut collector =
            AnswerCollector::new(Action::Off, Duration::ZERO, ListRows::new(Vec::new(), false));
        let answer =
            collector.take_result(host(1), result(Response::Failure), AT_ONCE, Instant::now()).unwrap();
        assert_eq!(answer, Some(HostAnswer::Response(Response::Failure)));
    }

    #[test]
    fn a_host_that_was_lost_and_lists_later_is_not_missing() {
        let now = Instant::now();
        for (again, complete) in [(1, true), (2, false)] {
            let mut collector = collector(Action::List);
            collector.record_lost(host(1), "closed".to_owned());
            assert!(collector.conclude().unwrap().is_none(), "no host has answered yet");
            assert!(collector.take_result(host(again), list("a"), AT_ONCE, now).unwrap().is_none());
            assert_eq!(collector.conclude().is_ok(), complete);
        }
    }

    /// Host 2 was hung up on. Until it has called again, nothing is enough that it could make untrue.
    #[test]
    fn a_host_that_was_hung_up_on_is_awaited() {
        let now = Instant::now();
        let awaiting = |action| {
            let mut collector = collector(action);
            collector.await_again(host(2));
            collector
        };
        let mut lists = awaiting(Action::List);
        assert!(lists.take_result(host(1), list("a"), AT_ONCE, now).unwrap().is_none());
        assert!(lists.quiet_time().is_none());
        assert!(lists.take_result(host(2), list("b"), AT_ONCE, now).unwrap().is_none());
        assert!(lists.quiet_time().is_some() && lists.conclude().is_ok());
        let mut lists = awaiting(Action::List);
        assert!(lists.take_result(host(1), list("a"), AT_ONCE, now).unwrap().is_none());
        assert!(lists.conclude().unwrap_err().to_string().contains("10.0.0.2: did not call again"));
        // (answers of hosts 1, 3 and 2, the result)
        use Response::{Failure, Off, Success};
        for (action, answers, expected) in [
            (Action::Status, vec![Failure, Off, Failure], Off),
            (Action::Status, vec![Off, Failure, Success], Success),
            (Action::Status, vec![Off, Failure], Off),
            (Action::Off, vec![Failure, Failure, Success], Success),
            (Action::Off, vec![Failure, Failure, Failure], Failure),
            (Action::Off, vec![Success], Success),
        ] {
            let mut collector = awaiting(action);
            let mut ends = answers.iter().zip([1, 3, 2]).filter_map(|(answer, from)| {
                assert!(collector.quiet_time().is_none());
                collector.take_result(host(from), result(*answer), AT_ONCE, now).unwrap()
            });
            let end = ends.next();
            drop(ends);
            let end = end.or_else(|| collector.conclude().unwrap());
            assert_eq!(end, Some(HostAnswer::Response(expected)), "{action} {answers:?}");
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
            Ok(HostAnswer::List { entries, response: None })
        };
        let mut collector = collector(Action::List);
        collector.take_result(host(1), half('a'), AT_ONCE, now).unwrap();
        collector.take_result(host(2), half('b'), AT_ONCE, now).unwrap();
        let message = collector.conclude().unwrap_err().to_string();
        assert!(message.contains("10.0.0.2: the list has more than"), "{message}");
    }
}
