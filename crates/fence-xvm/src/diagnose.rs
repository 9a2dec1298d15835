// SPDX-License-Identifier: GPL-2.0-or-later
//! `--diagnose`: asks for something harmless, and prints what happened, the most probable cause and the next
//! step on standard output.
//!
//! When no host takes the request, it is sent again with other hashes, only to see whether a host takes it
//! then. That host gets no proof of ours, so that it carries nothing out.
//!
//! Owns the order of the questions. Runs on the agent's only thread. Must never ask for any action but status
//! and monitor.

use std::fmt::{self, Display, Write};
use std::io;
use std::time::Duration;

use fence_net::{CallWatch, vsock_connect};
use fence_wire::{Action, HashType, Key, Response, Target, escaped};

use crate::answer::HostAnswer;
use crate::ask::load_key;
use crate::attempts::{MulticastAttempts, StreamProgress};
use crate::connection::HostConnection;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::exchange::AwaitedStep;
use crate::failure::ClientFailure;
use crate::multicast::{self, MulticastProbe, MulticastRequest, MulticastResult};
use crate::multicast_failure::MulticastFailure;
use crate::output::{FAILURE, print};
use crate::plan::{MulticastSettings, RequestPlan, Transport};
use crate::ports::CallBackPorts;
use crate::stream::{self, StreamFailure};
use crate::verdict::{AgreementCause, HostCause, ProbableCause};
use crate::words::{describe_key, describe_request, is_sealed};
use crate::{line, tcp, vsock};

/// Finds out why there is no answer, and returns the exit code: 0 only when a host answered as it should.
pub(crate) fn diagnose(plan: &RequestPlan, console: &Console) -> u8 {
    let result = match load_key(plan, console) {
        Ok(key) => find_cause(plan, key.as_ref(), console),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(None) => {
            show(&"in order: a host that holds the key has answered");
            0
        }
        Ok(Some(cause)) => {
            show(&format_args!("cause: {}\nnext: {}", cause.sentence(), cause.next_step()));
            for (line, meaning) in cause.log_lines() {
                show(&format_args!("the host's log: \"{line}\": {meaning}"));
            }
            FAILURE
        }
        Err(failure) => {
            show(&format_args!("cause: {failure}"));
            FAILURE
        }
    }
}

/// Prints the line. A closed standard output does not change the exit code.
fn show(line: &dyn Display) {
    let _ = print(&format!("{line}\n"));
}

/// Returns the cause; none when all is in order.
fn find_cause(
    plan: &RequestPlan,
    key: Option<&Key>,
    console: &Console,
) -> Result<Option<ProbableCause>, ClientFailure> {
    let transport = TransportInWords(&plan.transport);
    show(&format_args!("{}, {transport}; {}", describe_request(plan), describe_key(plan, key)));
    match &plan.transport {
        Transport::Multicast(to) => diagnose_multicast(plan, *to, key, console),
        Transport::Tcp(to) => {
            let addresses = tcp::resolve(plan, to, key, deadline_from_now(plan))?;
            let ask =
                |plan: &RequestPlan| tcp::ask(plan, to, &addresses, key, deadline_from_now(plan), console);
            diagnose_stream(plan, key, ask, |within| tcp::connect(&addresses, within, console))
        }
        Transport::Vsock { cid, port } => {
            let (cid, port) = (*cid, *port);
            let ask =
                |plan: &RequestPlan| vsock::ask(plan, (cid, port), key, deadline_from_now(plan), console);
            let connect = |within| HostConnection::new(vsock_connect(cid, u32::from(port), within)?);
            diagnose_stream(plan, key, ask, connect)
        }
        Transport::Serial { device, format } => {
            let answer = line::ask_device(plan, device, *format, deadline_from_now(plan), console)?;
            cause_of_answer(plan, None, &answer, |_| Ok(None))
        }
        Transport::Channel(to) => {
            let answer = line::ask_channel(plan, *to, deadline_from_now(plan), console)?;
            cause_of_answer(plan, None, &answer, |_| Ok(None))
        }
    }
}

/// Returns the deadline of a question that is asked now. Each has the whole time-out.
fn deadline_from_now(plan: &RequestPlan) -> Deadline {
    Deadline::after(plan.timeout)
}

/// Ports and watches for all questions by multicast, opened before the agent is confined.
struct ReservedQuestions<'a> {
    to: MulticastSettings,
    key: Option<&'a Key>,
    console: &'a Console,
    ports: CallBackPorts,
    watches: std::vec::IntoIter<Option<CallWatch>>,
}

impl<'a> ReservedQuestions<'a> {
    /// Opens the ports, and a watch for each question. Nothing else can be opened afterwards.
    fn reserve(count: usize, to: MulticastSettings, key: Option<&'a Key>, console: &'a Console) -> Self {
        let watches: Vec<_> = (0..count).map(|_| CallWatch::open(to.family()).ok()).collect();
        let ports = multicast::open_ports(to, console);
        Self { to, key, console, ports, watches: watches.into_iter() }
    }

    /// Asks the next question.
    fn ask(&mut self, plan: &RequestPlan, only_call_back: bool) -> Result<MulticastResult, MulticastFailure> {
        let watch = self.watches.next().flatten();
        let probe = MulticastProbe { watch, only_call_back };
        let request = MulticastRequest { plan, to: self.to, key: self.key, probe };
        multicast::send_request(request, &self.ports, deadline_from_now(plan), self.console)
    }
}

fn diagnose_multicast(
    plan: &RequestPlan,
    to: MulticastSettings,
    key: Option<&Key>,
    console: &Console,
) -> Result<Option<ProbableCause>, ClientFailure> {
    let hashes: Vec<_> = other_hashes(plan, key).collect();
    let mut questions = ReservedQuestions::reserve(hashes.len() + 3, to, key, console);
    let MulticastResult { answer, attempts } = questions.ask(plan, false)?;
    show_attempts(to, &attempts);
    match answer {
        Ok(Some(answer)) => {
            cause_of_answer(plan, key, &answer, |other| Ok(questions.ask(other, false)?.answer?))
        }
        Ok(None) => {
            let cause = adapt_to_open_guest(ProbableCause::from_attempts(&attempts), plan);
            let is_accepted = |plan: &RequestPlan| {
                let call_backs = questions.ask(plan, true)?.attempts.call_backs;
                Ok(call_backs.iter().any(|call| has_shown_key(call.progress)))
            };
            try_other_hashes(plan, &hashes, cause, is_accepted).map(Some)
        }
        Err(MulticastFailure::Failed { error, .. }) => {
            let cause = ProbableCause::from_progress(StreamProgress::Failed(error), false);
            Ok(Some(adapt_to_open_guest(cause, plan)))
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Shows what was sent, who called back, and who only tried.
fn show_attempts(to: MulticastSettings, attempts: &MulticastAttempts) {
    let mut facts = format!("sent to {} port {}/udp", to.group, to.port);
    let _ = attempts.write_facts(&mut facts);
    for peer in attempts.watched_calls.iter().flatten().take(3) {
        let (host, port, packets) = (peer.address, peer.port, peer.packets);
        let _ = write!(facts, "\n  seen: {host} tried to connect to port {port}/tcp, {packets} packets");
    }
    if attempts.watched_calls.is_none() {
        facts.push_str("\n  not root: what this guest's firewall keeps out can't be seen");
    }
    show(&facts);
}

fn diagnose_stream(
    plan: &RequestPlan,
    key: Option<&Key>,
    ask: impl Fn(&RequestPlan) -> Result<HostAnswer, Box<StreamFailure>>,
    connect: impl Fn(Duration) -> io::Result<HostConnection>,
) -> Result<Option<ProbableCause>, ClientFailure> {
    let failure = match ask(plan) {
        Ok(answer) => return cause_of_answer(plan, key, &answer, |other| Ok(ask(other).ok())),
        Err(failure) => failure,
    };
    let Some(progress) = failure.progress() else { return Err(failure.into()) };
    show(&failure);
    let cause = adapt_to_open_guest(ProbableCause::from_progress(progress, true), plan);
    let hashes: Vec<_> = other_hashes(plan, key).collect();
    let is_accepted = |plan: &RequestPlan| {
        let result = connect(plan.timeout)
            .and_then(|connection| stream::is_accepted(plan, &connection, key, deadline_from_now(plan)));
        Ok(result.unwrap_or(false))
    };
    try_other_hashes(plan, &hashes, cause, is_accepted).map(Some)
}

/// Returns the cause behind the answer of a proven host; none when all is in order. `ask` asks another
/// question.
fn cause_of_answer(
    plan: &RequestPlan,
    key: Option<&Key>,
    answer: &HostAnswer,
    mut ask: impl FnMut(&RequestPlan) -> Result<Option<HostAnswer>, ClientFailure>,
) -> Result<Option<ProbableCause>, ClientFailure> {
    let (response, reason) = match answer {
        HostAnswer::Response(response) => (*response, None),
        HostAnswer::Failed(reason) => (Response::Failure, Some(reason.clone())),
        HostAnswer::List { .. } => return Ok(Some(HostCause::Odd.into())),
    };
    show(&match (plan.action, response) {
        (Action::Status, Response::Success) => "answered: the domain is on".to_owned(),
        (Action::Status, Response::Off) => "answered: the domain is off".to_owned(),
        _ => format!("answered: {response}"),
    });
    match response {
        Response::Success | Response::Off => return Ok(None),
        Response::PermissionDenied => return Ok(Some(HostCause::Denied.into())),
        Response::Failure => {}
    }
    if let Some(reason) = reason.or_else(|| ask_for_reason(plan, key, &mut ask)) {
        show(&format_args!("the host says: {}", escaped(&reason)));
    }
    if plan.action == Action::Monitor {
        return Ok(Some(HostCause::Backend.into()));
    }
    let monitor = RequestPlan { action: Action::Monitor, target: Target::none(), ..plan.clone() };
    let second = ask(&monitor)?;
    let response = match second {
        Some(HostAnswer::Response(response)) => response,
        Some(HostAnswer::Failed(reason)) => {
            show(&format_args!("the host says of itself: {}", escaped(&reason)));
            Response::Failure
        }
        Some(HostAnswer::List { .. }) | None => return Ok(Some(HostCause::Failed.into())),
    };
    show(&format_args!("asked whether it can work (monitor): {response}"));
    Ok(Some(if response == Response::Success { HostCause::Domain } else { HostCause::Backend }.into()))
}

/// Asks once more, sealed, for the reason of a failure: a classic answer has no room for it. None of a host
/// that takes no sealed requests, or tells no reason.
fn ask_for_reason(
    plan: &RequestPlan,
    key: Option<&Key>,
    ask: impl FnOnce(&RequestPlan) -> Result<Option<HostAnswer>, ClientFailure>,
) -> Option<String> {
    if key.is_none() || is_sealed(plan) {
        return None;
    }
    match ask(&RequestPlan { hash: HashType::HmacSha256, wants_reason: true, ..plan.clone() }) {
        Ok(Some(HostAnswer::Failed(reason))) => Some(reason),
        _ => None,
    }
}

/// Asks with other hashes where another hash may be the remedy, and returns the cause that this shows.
fn try_other_hashes(
    plan: &RequestPlan,
    hashes: &[HashType],
    cause: ProbableCause,
    mut is_accepted: impl FnMut(&RequestPlan) -> Result<bool, ClientFailure>,
) -> Result<ProbableCause, ClientFailure> {
    if !cause.may_be_hash() {
        return Ok(cause);
    }
    for hash in hashes {
        let other = RequestPlan { hash: *hash, ..plan.clone() };
        let accepted = is_accepted(&other)?;
        show(&format_args!(
            "asked again with hash {hash}: {}",
            if accepted { "a host with the same key takes it" } else { "no host takes it either" }
        ));
        if accepted {
            let is_classic = is_sealed(plan) && hash.sealed().is_none();
            let cause = match is_classic {
                true => AgreementCause::ClassicHost(*hash),
                false => AgreementCause::HashTooWeak(*hash),
            };
            return Ok(cause.into());
        }
    }
    Ok(match cause {
        ProbableCause::Agreement(AgreementCause::Dropped { .. }) => {
            AgreementCause::Dropped { tried_hashes: !hashes.is_empty() }.into()
        }
        other => other,
    })
}

/// Returns other hashes that a host may take. A C daemon takes the first, its strongest, whatever its minimum
/// is. Any daemon of this project takes the second.
fn other_hashes(plan: &RequestPlan, key: Option<&Key>) -> impl Iterator<Item = HashType> {
    let (hash, has_key) = (plan.hash, key.is_some());
    [HashType::Sha512, HashType::HmacSha512].into_iter().filter(move |it| has_key && *it != hash)
}

/// Returns the cause as a guest sees it that sends no challenge.
fn adapt_to_open_guest(cause: ProbableCause, plan: &RequestPlan) -> ProbableCause {
    let is_open = plan.hash.sealed().is_none() && plan.auth == HashType::None;
    if is_open { cause.without_challenge() } else { cause }
}

/// Returns whether the peer that called back has shown that it holds the key.
fn has_shown_key(progress: StreamProgress) -> bool {
    match progress {
        StreamProgress::Failed(error) => {
            let cause = ProbableCause::from_progress(progress, false);
            !error.is_from_unproven_peer()
                || matches!(cause, ProbableCause::Agreement(AgreementCause::OtherAuth(_)))
        }
        StreamProgress::Answered => true,
        StreamProgress::Waited(step) => step != AwaitedStep::Proof,
        StreamProgress::Other => false,
    }
}

/// Transport of the request, in words.
struct TransportInWords<'a>(&'a Transport);

impl Display for TransportInWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Transport::Multicast(_) => f.write_str("by multicast"),
            Transport::Tcp(to) => write!(f, "by TCP to {to}"),
            Transport::Vsock { cid, port } => write!(f, "by vsock to CID {cid} port {port}"),
            Transport::Serial { device, .. } => write!(f, "by {}", device.display()),
            Transport::Channel(to) => write!(f, "by the VM channel {to}"),
        }
    }
}
