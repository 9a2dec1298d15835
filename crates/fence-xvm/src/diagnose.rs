// SPDX-License-Identifier: GPL-2.0-or-later
//! `--diagnose`: asks for something harmless, and prints what happened, the most probable cause and the next
//! step on standard output.
//!
//! When no host takes the request, it is sent again with other hashes, only to see whether a host takes it
//! then. That host gets no proof of ours, so that it carries nothing out.
//!
//! Owns the order of the questions. Runs on the agent's only thread. Must never ask for any action but
//! status, monitor and list. A dry run is a sealed status, which also asks what another action would do.
//! Where the cluster does not ask sealed, a status in its own way comes first.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Write};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use fence_net::{CallWatch, vsock_connect};
use fence_wire::{Action, HashType, HostListEntry, Key, Response, Target, escaped};

use crate::answer::HostAnswer;
use crate::ask::load_key;
use crate::attempts::{HostFailure, MulticastAttempts, StreamProgress, WatchedPeer};
use crate::connection::HostConnection;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::exchange::AwaitedStep;
use crate::failure::ClientFailure;
use crate::kinds::{HostKind, HostKinds};
use crate::multicast::{self, MulticastProbe, MulticastRequest, MulticastResult};
use crate::multicast_failure::MulticastFailure;
use crate::output::{FAILURE, print};
use crate::plan::{MulticastSettings, RequestPlan, Transport};
use crate::ports::CallBackPorts;
use crate::stream::{self, StreamFailure, StreamTries};
use crate::verdict::{AgreementCause, HostCause, NetworkCause, ProbableCause, UntoldHosts};
use crate::words::{describe_key, describe_request, is_sealed};
use crate::{line, tcp, vsock};

/// Time for a host that works on the request to tell its reason: a look at other hosts, and at a libvirt that
/// hangs, takes 12 s.
const LONGER_LIMIT: Duration = Duration::from_secs(20);

/// Most questions by multicast: for each way of a dry run eight.
const MOST_QUESTIONS: usize = 16;

/// Finds out why there is no answer, and returns the exit code: 0 only when a host answered as it should.
pub(crate) fn diagnose(plan: &RequestPlan, console: &Console) -> u8 {
    let result = match load_key(plan, console) {
        Ok(key) => find_cause(plan, key.as_ref(), console),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(None) if let Some(action) = plan.dry_run => {
            show(&format_args!(
                "{action} would be carried out, as far as can be told before it is: nothing was done, \
                 this was a \
                 question"
            ));
            0
        }
        Ok(None) => {
            show(&"in order: a host that holds the key has answered");
            if plan.action == Action::Status {
                show(
                    &"the host was asked for the status alone; why an off, an on or a reboot failed is in \
                       its log: journalctl -u fence_virtd there",
                );
            }
            0
        }
        Ok(Some(cause)) => {
            if let (Some(action), false) = (plan.dry_run, cause.is_forecast()) {
                show(&format_args!("can't say what {action} would do; nothing was done"));
            }
            show(&format_args!("cause: {}\nnext: {}", cause.sentence(), cause.next_step()));
            for (line, meaning) in cause.log_lines() {
                show(&format_args!("the host's log: \"{line}\": {meaning}"));
            }
            FAILURE
        }
        // The key was shown.
        Err(ClientFailure::Stream(it)) => {
            show(&format_args!("cause: {}\nnext: {}", it.sentence(), it.next_check()));
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
            let ask = |plan: &RequestPlan| {
                let deadline = deadline_from_now(plan);
                tcp::ask(plan, to, &addresses, key, deadline, StreamTries::Once, console)
            };
            each_way(plan, |plan| {
                let connect = |within| tcp::connect(&addresses, within, console);
                let found = diagnose_stream(plan, key, ask, connect)?;
                Ok(found.map(|it| without_seal(it, plan, HostKind::Classic)))
            })
        }
        Transport::Vsock { cid, port } => {
            let (cid, port) = (*cid, *port);
            let ask = |plan: &RequestPlan| {
                let deadline = deadline_from_now(plan);
                vsock::ask(plan, (cid, port), key, deadline, StreamTries::Once, console)
            };
            let connect = |within| HostConnection::new(vsock_connect(cid, u32::from(port), within)?);
            each_way(plan, |plan| {
                let found = diagnose_stream(plan, key, ask, connect)?;
                Ok(found.map(|it| without_seal(it, plan, HostKind::Classic)))
            })
        }
        Transport::Serial { device, format } => {
            let answer = line::ask_device(plan, device, *format, deadline_from_now(plan), console)?;
            cause_of_answer(plan, None, &AnsweredQuestion::of(answer), |_| Ok(None))
        }
        Transport::Channel(to) => {
            let answer = line::ask_channel(plan, *to, deadline_from_now(plan), console)?;
            cause_of_answer(plan, None, &AnsweredQuestion::of(answer), |_| Ok(None))
        }
    }
}

/// Asks a dry run in the cluster's own way first, and then sealed: a host may take the one and drop the
/// other. What a host that took both says to the second is more exact.
fn each_way(
    plan: &RequestPlan,
    mut find_cause: impl FnMut(&RequestPlan) -> Result<Option<ProbableCause>, ClientFailure>,
) -> Result<Option<ProbableCause>, ClientFailure> {
    let Some(plain) = plan.as_cluster_asks() else { return find_cause(plan) };
    show(&format_args!("first the status, asked as the cluster asks (hash {})", plain.hash));
    let cause = find_cause(&plain)?;
    if matches!(cause, Some(ProbableCause::Network(_) | ProbableCause::Agreement(_))) {
        return Ok(cause);
    }
    show(&format_args!("now {}, sealed (hash {})", describe_request(plan), plan.hash));
    Ok(find_cause(plan)?.or(cause))
}

/// Returns the cause of a sealed question without an answer, after the plain one had an answer: neither
/// network nor key is at fault. Silence alone makes no host one of the C programs. A stream that a host
/// closes at once does. Causes of other questions, and other causes, are returned as they are.
fn without_seal(found: ProbableCause, plan: &RequestPlan, kind: HostKind) -> ProbableCause {
    match plan.as_cluster_asks() {
        Some(plain) if plain.hash != HashType::None && found.may_be_hash() => {
            unanswered_seal(plain.hash, kind, plan).into()
        }
        _ => found,
    }
}

/// Returns why a sealed question has no answer where a host takes this classic hash.
fn unanswered_seal(hash: HashType, kind: HostKind, plan: &RequestPlan) -> AgreementCause {
    match kind {
        HostKind::Classic => {
            AgreementCause::ClassicHost { hash, hosts: Vec::new(), is_dry_run: plan.dry_run.is_some() }
        }
        HostKind::Ours => AgreementCause::SealUnanswered { hash, is_ours: true },
        HostKind::Unknown => AgreementCause::SealUnanswered { hash, is_ours: false },
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
    /// Kinds of the hosts that answered any question.
    kinds: HostKinds,
}

impl<'a> ReservedQuestions<'a> {
    /// Opens the ports, and a watch for each question. Nothing else can be opened afterwards.
    fn reserve(count: usize, to: MulticastSettings, key: Option<&'a Key>, console: &'a Console) -> Self {
        let watches: Vec<_> = (0..count).map(|_| CallWatch::open(to.family()).ok()).collect();
        let ports = multicast::open_ports(to, console);
        Self { to, key, console, ports, watches: watches.into_iter(), kinds: HostKinds::default() }
    }

    /// Asks the next question.
    fn ask(&mut self, plan: &RequestPlan) -> Result<MulticastResult, MulticastFailure> {
        self.send(plan, self.to, MulticastProbe::default())
    }

    /// Asks the next question, and gives no host our proof.
    fn probe(&mut self, plan: &RequestPlan) -> Result<MulticastResult, MulticastFailure> {
        self.send(plan, self.to, MulticastProbe { only_call_back: true, ..MulticastProbe::default() })
    }

    /// Asks the next question, and waits for these hosts as long as the question has time.
    fn ask_awaiting(
        &mut self,
        plan: &RequestPlan,
        hosts: BTreeSet<IpAddr>,
    ) -> Result<MulticastResult, MulticastFailure> {
        self.send(plan, self.to, MulticastProbe { awaits: hosts, ..MulticastProbe::default() })
    }

    /// Asks the next question, and waits for further hosts as long as it has time.
    fn ask_patiently(&mut self, plan: &RequestPlan) -> Result<MulticastResult, MulticastFailure> {
        self.send(plan, MulticastSettings { quiet: plan.timeout, ..self.to }, MulticastProbe::default())
    }

    fn send(
        &mut self,
        plan: &RequestPlan,
        to: MulticastSettings,
        probe: MulticastProbe,
    ) -> Result<MulticastResult, MulticastFailure> {
        let watch = self.watches.next().flatten();
        // It was opened long ago. Call-backs for earlier questions were not kept out of this one.
        let _ = watch.as_ref().map(CallWatch::calls);
        let probe = MulticastProbe { watch, hides_rows: true, ..probe };
        let request = MulticastRequest { plan, to, key: self.key, probe };
        let result = multicast::send_request(request, &self.ports, deadline_from_now(plan), self.console)?;
        self.kinds.add(&result.attempts.kinds);
        Ok(result)
    }
}

fn diagnose_multicast(
    plan: &RequestPlan,
    to: MulticastSettings,
    key: Option<&Key>,
    console: &Console,
) -> Result<Option<ProbableCause>, ClientFailure> {
    let mut questions = ReservedQuestions::reserve(MOST_QUESTIONS, to, key, console);
    each_way(plan, |plan| {
        let found = diagnose_by_multicast(plan, to, key, &mut questions)?;
        Ok(found.map(|it| named(without_seal(it, plan, questions.kinds.of_all()), &questions.kinds)))
    })
}

/// Returns the cause with the addresses of the hosts of the C programs, where it is about these.
fn named(mut cause: ProbableCause, kinds: &HostKinds) -> ProbableCause {
    if let ProbableCause::Agreement(AgreementCause::ClassicHost { hosts, .. }) = &mut cause {
        *hosts = kinds.classic();
    }
    cause
}

fn diagnose_by_multicast(
    plan: &RequestPlan,
    to: MulticastSettings,
    key: Option<&Key>,
    questions: &mut ReservedQuestions<'_>,
) -> Result<Option<ProbableCause>, ClientFailure> {
    let hashes: Vec<_> = other_hashes(plan, key).collect();
    let MulticastResult { answer, attempts, .. } = questions.ask(plan)?;
    show_attempts(to, &attempts);
    match answer {
        Ok(Some(answer)) => cause_by_multicast(plan, key, questions, (answer, &attempts)),
        Ok(None) => {
            let cause = adapt_to_open_guest(ProbableCause::from_attempts(&attempts), plan);
            if let Some(longer) = longer_question(plan, key, &cause) {
                let MulticastResult { answer, attempts, .. } = questions.ask(&longer)?;
                if let Ok(Some(answer)) = answer {
                    return cause_by_multicast(&longer, key, questions, (answer, &attempts));
                }
            }
            let is_accepted = |plan: &RequestPlan| {
                let attempts = questions.probe(plan)?.attempts;
                let is_accepted = attempts.call_backs.iter().any(|call| has_shown_key(call.progress));
                Ok(is_accepted.then(|| attempts.kinds.of_all()))
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

/// Returns the cause behind an answer by multicast.
fn cause_by_multicast(
    plan: &RequestPlan,
    key: Option<&Key>,
    questions: &mut ReservedQuestions<'_>,
    (answer, attempts): (HostAnswer, &MulticastAttempts),
) -> Result<Option<ProbableCause>, ClientFailure> {
    let asked = AnsweredQuestion::by_multicast(answer, attempts);
    let cause = cause_of_answer(plan, key, &asked, |other| {
        let MulticastResult { answer, attempts, .. } = questions.ask(other)?;
        Ok(answer?.map(|it| AnsweredQuestion::by_multicast(it, &attempts)))
    })?;
    // A host that could not call back may be the one that has the domain, whatever another one said.
    let kept_out = attempts.kept_out();
    let wanted = questions.to.port;
    let cause = cause.and_then(|it| without_others(it, plan, questions, &asked));
    let is_on = plan.action == Action::Status && asked.answer == HostAnswer::Response(Response::Success);
    let cause = if cause.is_none() && is_on && kept_out.is_none() {
        let silent = silent_owner(plan, questions, &asked.hosts);
        silent.map(|it| named_owner(it, plan, key, questions, &asked)).or_else(|| {
            let mut told = None;
            let of_off = cause_of_off(plan, key, &asked, |off| {
                let MulticastResult { answer, attempts, .. } = questions.ask(off).ok()?;
                let said = AnsweredQuestion::by_multicast(answer.ok()??, &attempts);
                told = Some((off.clone(), said.clone()));
                Some(said)
            });
            match told {
                Some((off, said)) => of_off.and_then(|it| without_others(it, &off, questions, &said)),
                None => of_off,
            }
            .filter(|it| match it {
                // They can't be asked, and that is no fault of theirs.
                ProbableCause::Host(HostCause::OthersCantSay { others, .. }) => !others.silent.is_empty(),
                _ => true,
            })
        })
    } else {
        cause
    };
    Ok(kept_out.map(|it| NetworkCause::firewall(it, wanted).into()).or(cause))
}

/// Returns what a refusal means beside hosts that take the cluster's own requests and did not tell what an
/// action would do: one that has the domain carries it out. A host of ours that is slow is waited for. None
/// where that one would do it. Any other cause is returned as it is, and so is one that is not sure: then the
/// action is tried, whatever the others say.
fn without_others(
    cause: ProbableCause,
    plan: &RequestPlan,
    questions: &mut ReservedQuestions<'_>,
    asked: &AnsweredQuestion,
) -> Option<ProbableCause> {
    let (ProbableCause::Host(HostCause::WouldFail { action, .. }), Some(plain)) =
        (&cause, plan.as_cluster_asks())
    else {
        return Some(cause);
    };
    if cause.is_uncertain() {
        return Some(cause);
    }
    let action = *action;
    let list = RequestPlan { action: Action::List, target: Target::none(), ..plain };
    let Ok(MulticastResult { answer, attempts, rows }) = questions.ask(&list) else { return Some(cause) };
    let answered: BTreeSet<_> = attempts.answered().into_iter().collect();
    let untold = asked.untold(&answered, &questions.kinds);
    // A list that is missing may have the domain.
    let is_complete = matches!(answer, Ok(Some(HostAnswer::Response(Response::Success))));
    if untold.is_empty() || is_complete && !rows.iter().any(|it| is_row_of(it, &plan.target)) {
        return Some(cause);
    }
    if untold.silent.is_empty() {
        return Some(cause_beside(untold, action, asked));
    }
    let names: Vec<_> = untold.silent.iter().map(ToString::to_string).collect();
    show(&format_args!("{} answers, and has not told yet: asked again, and waited for", names.join(", ")));
    let awaited = untold.silent.iter().copied().collect();
    let Ok(MulticastResult { answer, attempts, .. }) = questions.ask_awaiting(plan, awaited) else {
        return Some(cause_beside(untold, action, asked));
    };
    show_attempts(questions.to, &attempts);
    let mut said = asked.clone();
    if let Ok(Some(answer)) = answer {
        said.answer = answer;
    }
    said.add_hosts(&attempts);
    match said.answer {
        HostAnswer::Forecast { response: Response::Success, .. } => cause_of_forecast(action, &said),
        _ => Some(cause_beside(said.untold(&answered, &questions.kinds), action, &said)),
    }
}

/// Returns the cause where hosts told that they would not do it, beside those that told nothing.
fn cause_beside(others: UntoldHosts, action: Action, asked: &AnsweredQuestion) -> ProbableCause {
    let words = asked.reasons().join("; ");
    let told: ProbableCause = HostCause::WouldFail { action, words: words.clone() }.into();
    match others.is_empty() || told.is_uncertain() {
        true => told,
        false => HostCause::OthersCantSay { action, others, words }.into(),
    }
}

/// Looks for the host that has the domain on, in the lists of all hosts that answer this guest: another one
/// may have told the status. An off is done by the host that has the domain.
fn silent_owner(
    plan: &RequestPlan,
    questions: &mut ReservedQuestions<'_>,
    told: &BTreeSet<IpAddr>,
) -> Option<ProbableCause> {
    let list = RequestPlan { action: Action::List, target: Target::none(), ..plan.clone() };
    // A list that is missing may be the one.
    let is_missed = |it: &MulticastResult| {
        let is_complete = matches!(it.answer, Ok(Some(HostAnswer::Response(Response::Success))));
        is_complete && !has_on(&it.rows, &plan.target)
    };
    let _ = questions.ask(&list).ok().filter(is_missed)?;
    // Its host may only be slow: nobody is called silent who had less than the whole time.
    let MulticastResult { attempts, .. } = questions.ask_patiently(&list).ok().filter(is_missed)?;
    if let Some(it) = attempts.kept_out() {
        return Some(NetworkCause::firewall(it, questions.to.port).into());
    }
    let told: Vec<_> = told.iter().map(ToString::to_string).collect();
    show(&format_args!("asked for the lists of all hosts: none that answers has the domain on"));
    Some(HostCause::SilentOwner { told: told.join(", "), words: String::new() }.into())
}

/// Returns the cause with what hosts say of an off: that names the host that has the domain.
fn named_owner(
    mut cause: ProbableCause,
    plan: &RequestPlan,
    key: Option<&Key>,
    questions: &mut ReservedQuestions<'_>,
    asked: &AnsweredQuestion,
) -> ProbableCause {
    let ProbableCause::Host(HostCause::SilentOwner { words, .. }) = &mut cause else { return cause };
    let of_off = cause_of_off(plan, key, asked, |off| {
        let MulticastResult { answer, attempts, .. } = questions.ask(off).ok()?;
        Some(AnsweredQuestion::by_multicast(answer.ok()??, &attempts))
    });
    if let Some(ProbableCause::Host(HostCause::WouldFail { words: told, .. })) = of_off {
        *words = told;
    }
    cause
}

/// Returns true if a row says that the target is on.
fn has_on(rows: &[HostListEntry], target: &Target) -> bool {
    rows.iter().any(|it| it.on && is_row_of(it, target))
}

/// Returns true if a row is that of the target.
fn is_row_of(row: &HostListEntry, target: &Target) -> bool {
    row.name == target.as_str()
        || row.uuid.eq_ignore_ascii_case(target.as_str())
        || target.is_cut_from(&row.name)
}

/// Returns the question to ask again where a host holds the key and works on the first one, and says so. The
/// reason is asked for at once: it comes as late as the answer. None where the user named the time.
fn longer_question(plan: &RequestPlan, key: Option<&Key>, cause: &ProbableCause) -> Option<RequestPlan> {
    let works = matches!(cause, ProbableCause::Host(HostCause::Held | HostCause::NoResponse));
    if !works || !plan.may_take_longer {
        return None;
    }
    show(&format_args!(
        "a host holds the key and works on the request: asked again, for {} s at most",
        LONGER_LIMIT.as_secs()
    ));
    let is_line = matches!(plan.transport, Transport::Serial { .. } | Transport::Channel(_));
    let hash = if key.is_none() || is_line || is_sealed(plan) { plan.hash } else { HashType::HmacSha256 };
    Some(RequestPlan { timeout: LONGER_LIMIT, hash, ..plan.clone() })
}

/// Shows what was sent, who called back, and who only tried.
fn show_attempts(to: MulticastSettings, attempts: &MulticastAttempts) {
    let mut facts = format!("sent to {} port {}/udp", to.group, to.port);
    let _ = attempts.write_facts(&mut facts);
    // Whoever came tries again for each packet that he did not answer yet.
    let kept_out = |it: &&WatchedPeer| !attempts.came.contains(&it.address);
    for peer in attempts.watched_calls.iter().flatten().filter(kept_out).take(3) {
        let (host, port, packets) = (peer.address, peer.port, peer.packets);
        let noun = if packets == 1 { "packet" } else { "packets" };
        let _ = write!(facts, "\n  seen: {host} tried to connect to port {port}/tcp, {packets} {noun}");
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
    let ask_host = |other: &RequestPlan| ask(other).ok().map(AnsweredQuestion::of);
    let judge = |plan: &RequestPlan, answer| {
        let asked = AnsweredQuestion::of(answer);
        let cause = cause_of_answer(plan, key, &asked, |other| Ok(ask_host(other)))?;
        Ok(cause.or_else(|| cause_of_off(plan, key, &asked, ask_host)))
    };
    let failure = match ask(plan) {
        Ok(answer) => return judge(plan, answer),
        Err(failure) => failure,
    };
    let Some(progress) = failure.progress() else { return Err(failure.into()) };
    show(&failure.sentence());
    let cause = adapt_to_open_guest(ProbableCause::from_progress(progress, true), plan);
    if let Some(longer) = longer_question(plan, key, &cause)
        && let Ok(answer) = ask(&longer)
    {
        return judge(&longer, answer);
    }
    let hashes: Vec<_> = other_hashes(plan, key).collect();
    let is_accepted = |plan: &RequestPlan| {
        let result = connect(plan.timeout)
            .and_then(|connection| stream::is_accepted(plan, &connection, key, deadline_from_now(plan)));
        // Only a host that closed the first stream is asked again: that is what one of the C programs does.
        Ok(result.unwrap_or(false).then_some(HostKind::Classic))
    };
    try_other_hashes(plan, &hashes, cause, is_accepted).map(Some)
}

/// Asks what an off would do, where a host told that the domain is on: it may have that from another host,
/// and an off looks at more places than a status. None where it would be done, or where no host can say.
fn cause_of_off(
    plan: &RequestPlan,
    key: Option<&Key>,
    asked: &AnsweredQuestion,
    ask: impl FnOnce(&RequestPlan) -> Option<AnsweredQuestion>,
) -> Option<ProbableCause> {
    let is_on = plan.action == Action::Status && asked.answer == HostAnswer::Response(Response::Success);
    if key.is_none() || plan.dry_run.is_some() || !is_on {
        return None;
    }
    let hash = if is_sealed(plan) { plan.hash } else { HashType::HmacSha256 };
    let off = RequestPlan { dry_run: Some(Action::Off), hash, wants_reason: true, ..plan.clone() };
    let said = ask(&off).filter(|it| matches!(it.answer, HostAnswer::Forecast { .. }))?;
    show(&"asked what an off would do; nothing was done");
    cause_of_forecast(Action::Off, &said)
}

/// Answer to one question, and what else is known of the hosts that answered it.
#[derive(Clone)]
struct AnsweredQuestion {
    answer: HostAnswer,
    /// Hosts that answered with a failure; none where there is one host alone.
    failures: Vec<HostFailure>,
    /// Hosts that answered; none where there is one host alone.
    hosts: BTreeSet<IpAddr>,
}

impl AnsweredQuestion {
    /// Answer of the only host that there is.
    fn of(answer: HostAnswer) -> Self {
        Self { answer, failures: Vec::new(), hosts: BTreeSet::new() }
    }

    fn by_multicast(answer: HostAnswer, attempts: &MulticastAttempts) -> Self {
        let hosts = attempts.answered().into_iter().collect();
        Self { answer, failures: attempts.failures.clone(), hosts }
    }

    /// Adds the hosts that answered the same question when it was asked again.
    fn add_hosts(&mut self, attempts: &MulticastAttempts) {
        self.hosts.extend(attempts.answered());
        for failure in &attempts.failures {
            if !self.failures.iter().any(|it| it.from == failure.from) {
                self.failures.push(failure.clone());
            }
        }
    }

    /// Returns those of the hosts that did not tell what an action would do. A host that answered without a
    /// word of that is an older one of ours.
    fn untold(&self, hosts: &BTreeSet<IpAddr>, kinds: &HostKinds) -> UntoldHosts {
        let mut untold = UntoldHosts::default();
        let has_told =
            |it: &IpAddr| self.failures.iter().any(|told| told.from == *it && told.reason.is_some());
        for host in hosts.iter().filter(|it| !has_told(it)) {
            match kinds.of(*host) {
                _ if self.hosts.contains(host) => untold.older.push(*host),
                HostKind::Classic => untold.classic.push(*host),
                HostKind::Ours | HostKind::Unknown => untold.silent.push(*host),
            }
        }
        untold
    }

    /// Returns the hosts that do not let this guest fence the domain; none where there is one host alone.
    fn denying(&self) -> Vec<IpAddr> {
        let denied: BTreeSet<_> = self.failures.iter().filter(|it| it.is_denied).map(|it| it.from).collect();
        denied.into_iter().collect()
    }

    /// Returns the reasons of all hosts, each with the host where there are several.
    fn reasons(&self) -> Vec<String> {
        let told: Vec<_> =
            self.failures.iter().filter_map(|it| Some((it.from, it.reason.as_ref()?))).collect();
        match (&told[..], &self.answer) {
            ([], HostAnswer::Failed(reason) | HostAnswer::Forecast { text: reason, .. }) => {
                vec![format!("the host says: {}", escaped(reason))]
            }
            ([(_, reason)], _) if self.hosts.len() < 2 => vec![format!("the host says: {}", escaped(reason))],
            _ => told.iter().map(|(from, it)| format!("the host {from} says: {}", escaped(it))).collect(),
        }
    }
}

/// Returns the cause behind the answer of a proven host; none when all is in order. `ask` asks another
/// question.
fn cause_of_answer(
    plan: &RequestPlan,
    key: Option<&Key>,
    asked: &AnsweredQuestion,
    mut ask: impl FnMut(&RequestPlan) -> Result<Option<AnsweredQuestion>, ClientFailure>,
) -> Result<Option<ProbableCause>, ClientFailure> {
    if let Some(action) = plan.dry_run {
        return Ok(cause_of_forecast(action, asked));
    }
    let response = match &asked.answer {
        HostAnswer::Response(response) => *response,
        HostAnswer::Failed(_) => Response::Failure,
        HostAnswer::Forecast { .. } | HostAnswer::List { .. } => return Ok(Some(HostCause::Odd.into())),
    };
    show(&match (plan.action, response) {
        (Action::Status, Response::Success) => "answered: the domain is on".to_owned(),
        (Action::Status, Response::Off) => "answered: the domain is off".to_owned(),
        _ => format!("answered: {response}"),
    });
    match response {
        Response::Success | Response::Off => return Ok(None),
        Response::PermissionDenied => return Ok(Some(HostCause::Denied { hosts: asked.denying() }.into())),
        Response::Failure => {}
    }
    let mut reasons = asked.reasons();
    if reasons.is_empty() {
        reasons = ask_for_reason(plan, key, &mut ask).map(|it| it.reasons()).unwrap_or_default();
    }
    if plan.action == Action::Monitor {
        return Ok(Some(told(&reasons, true).unwrap_or(HostCause::Backend).into()));
    }
    let monitor = RequestPlan { action: Action::Monitor, target: Target::none(), ..plan.clone() };
    let second = ask(&monitor)?;
    let Some(second) = second else {
        return Ok(Some(told(&reasons, false).unwrap_or(HostCause::Failed).into()));
    };
    let response = match second.answer {
        HostAnswer::Response(response) => response,
        HostAnswer::Failed(reason) => {
            show(&format_args!("the host says of itself: {}", escaped(&reason)));
            Response::Failure
        }
        HostAnswer::Forecast { .. } | HostAnswer::List { .. } => return Ok(Some(HostCause::Failed.into())),
    };
    // Whichever host answers first: it tells nothing of the others.
    let who: Vec<_> = second.hosts.iter().map(ToString::to_string).collect();
    let who = if who.is_empty() { String::new() } else { format!(", by {}", who.join(", ")) };
    show(&format_args!("asked whether it can work (monitor): {response}{who}"));
    let is_same = asked.hosts == second.hosts;
    if let Some(cause) = told(&reasons, response != Response::Success) {
        return Ok(Some(cause.into()));
    }
    Ok(Some(match response {
        Response::Success if is_same => HostCause::Domain.into(),
        Response::Success => HostCause::DomainOfOthers.into(),
        _ => HostCause::Backend.into(),
    }))
}

/// Returns why an action would not be carried out; none where it would be.
fn cause_of_forecast(action: Action, asked: &AnsweredQuestion) -> Option<ProbableCause> {
    let status = match &asked.answer {
        HostAnswer::Forecast { response: Response::Success, text } => {
            show(&format_args!("the host says: {}", escaped(text)));
            return None;
        }
        HostAnswer::Forecast { .. } => {
            let words = asked.reasons().join("; ");
            return Some(HostCause::WouldFail { action, words }.into());
        }
        HostAnswer::Response(status) => *status,
        HostAnswer::Failed(_) | HostAnswer::List { .. } => Response::Failure,
    };
    Some(HostCause::NoForecast { action, status }.into())
}

/// Returns the cause that the hosts told themselves; none where they told none. What they know is no matter
/// of guesses.
fn told(reasons: &[String], is_backend: bool) -> Option<HostCause> {
    (!reasons.is_empty()).then(|| HostCause::Told { reasons: reasons.join("; "), is_backend })
}

/// Asks once more, sealed, for the reason of a failure: a classic answer has no room for it. None of a host
/// that takes no sealed requests, or tells no reason.
fn ask_for_reason(
    plan: &RequestPlan,
    key: Option<&Key>,
    ask: impl FnOnce(&RequestPlan) -> Result<Option<AnsweredQuestion>, ClientFailure>,
) -> Option<AnsweredQuestion> {
    if key.is_none() || is_sealed(plan) {
        return None;
    }
    match ask(&RequestPlan { hash: HashType::HmacSha256, wants_reason: true, ..plan.clone() }) {
        Ok(Some(asked)) if matches!(asked.answer, HostAnswer::Failed(_)) => Some(asked),
        _ => None,
    }
}

/// Asks with other hashes where another hash may be the remedy, and returns the cause that this shows.
fn try_other_hashes(
    plan: &RequestPlan,
    hashes: &[HashType],
    cause: ProbableCause,
    mut accepted_by: impl FnMut(&RequestPlan) -> Result<Option<HostKind>, ClientFailure>,
) -> Result<ProbableCause, ClientFailure> {
    if !cause.may_be_hash() {
        return Ok(cause);
    }
    for hash in hashes {
        let other = RequestPlan { hash: *hash, ..plan.clone() };
        let kind = accepted_by(&other)?;
        show(&format_args!(
            "asked again with hash {hash}: {}",
            if kind.is_some() { "a host with the same key takes it" } else { "no host takes it either" }
        ));
        if let Some(kind) = kind {
            let cause = match is_sealed(plan) && hash.sealed().is_none() {
                true => unanswered_seal(*hash, kind, plan),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(told: &[(u8, &str)]) -> AnsweredQuestion {
        let failures: Vec<_> = told
            .iter()
            .map(|(last, reason)| HostFailure {
                from: [10, 0, 0, *last].into(),
                is_denied: false,
                reason: Some((*reason).to_owned()),
            })
            .collect();
        let hosts = failures.iter().map(|it| it.from).collect();
        AnsweredQuestion { answer: HostAnswer::Failed(told[0].1.to_owned()), failures, hosts }
    }

    /// The first answer may be of a host that never had the domain.
    #[test]
    fn the_reasons_of_all_hosts_are_told_with_their_hosts() {
        assert_eq!(asked(&[(1, "it is saved")]).reasons(), ["the host says: it is saved"]);
        assert_eq!(
            asked(&[(2, "no such domain on this host"), (1, "it is saved")]).reasons(),
            ["the host 10.0.0.2 says: no such domain on this host", "the host 10.0.0.1 says: it is saved"]
        );
        let only = AnsweredQuestion::of(HostAnswer::Failed("it is saved".to_owned()));
        assert_eq!(only.reasons(), ["the host says: it is saved"]);
    }

    fn status_plan() -> RequestPlan {
        RequestPlan {
            action: Action::Status,
            target: Target::new("vm1", false).unwrap(),
            timeout: Duration::ZERO,
            may_take_longer: false,
            delay: Duration::ZERO,
            hash: HashType::HmacSha256,
            auth: HashType::None,
            wants_reason: true,
            dry_run: None,
            own_hash: HashType::HmacSha256,
            key_file: "/k".into(),
            key_file_named: true,
            debug: 0,
            transport: Transport::Vsock { cid: 2, port: 1229 },
        }
    }

    fn cause(first: &AnsweredQuestion, second: &[u8]) -> Option<ProbableCause> {
        let plan = status_plan();
        let hosts = second.iter().map(|it| [10, 0, 0, *it].into()).collect();
        let answer = HostAnswer::Response(Response::Success);
        cause_of_answer(&plan, None, first, |_| {
            Ok(Some(AnsweredQuestion {
                answer: answer.clone(),
                failures: Vec::new(),
                hosts: BTreeSet::clone(&hosts),
            }))
        })
        .unwrap()
    }

    /// The status of another host's domain is on, and an off is not for the host that is asked.
    #[test]
    fn a_status_that_is_on_is_not_in_order_where_an_off_would_fail() {
        let key = Key::new(&[7; 32]).unwrap();
        let on = AnsweredQuestion::of(HostAnswer::Response(Response::Success));
        let cause = |asked, key, answer: &HostAnswer| {
            cause_of_off(&status_plan(), key, asked, |plan| {
                assert_eq!((plan.action, plan.dry_run), (Action::Status, Some(Action::Off)));
                assert!(plan.hash.sealed().is_some());
                Some(AnsweredQuestion::of(answer.clone()))
            })
        };
        let forecast = |response| HostAnswer::Forecast { response, text: "on at host h2".to_owned() };
        let said = cause(&on, Some(&key), &forecast(Response::Failure)).unwrap().sentence().into_owned();
        assert_eq!(said, "off would not be carried out; the host says: on at host h2");
        assert_eq!(cause(&on, Some(&key), &forecast(Response::Success)), None);
        // An older host answers the status alone.
        assert_eq!(cause(&on, Some(&key), &HostAnswer::Response(Response::Success)), None);
        let off = AnsweredQuestion::of(HostAnswer::Response(Response::Off));
        assert_eq!(cause(&off, Some(&key), &forecast(Response::Failure)), None);
        assert_eq!(cause(&on, None, &forecast(Response::Failure)), None);
    }

    /// A host took the plain question, and none the sealed one.
    #[test]
    fn silence_makes_no_host_one_of_the_c_programs() {
        let sealed = RequestPlan { own_hash: HashType::Sha256, ..status_plan() };
        let silence = || NetworkCause::Silence { from: None, watched: true }.into();
        let cause = |kind| without_seal(silence(), &sealed, kind);
        let (hash, hosts) = (HashType::Sha256, Vec::new());
        let classic = AgreementCause::ClassicHost { hash, hosts, is_dry_run: false };
        assert_eq!(cause(HostKind::Classic), classic.into());
        for (kind, is_ours) in [(HostKind::Ours, true), (HostKind::Unknown, false)] {
            let unanswered = AgreementCause::SealUnanswered { hash: HashType::Sha256, is_ours };
            assert_eq!(cause(kind), unanswered.into());
        }
        // The only question, and a cause that says more.
        assert_eq!(without_seal(silence(), &status_plan(), HostKind::Classic), silence());
        let held = HostCause::Held.into();
        assert_eq!(without_seal(held, &sealed, HostKind::Classic), HostCause::Held.into());
    }

    #[test]
    fn a_host_that_can_work_tells_nothing_of_another() {
        let first = AnsweredQuestion {
            answer: HostAnswer::Response(Response::Failure),
            failures: vec![HostFailure { from: [10, 0, 0, 1].into(), is_denied: false, reason: None }],
            hosts: [[10, 0, 0, 1].into()].into(),
        };
        assert_eq!(cause(&first, &[1]), Some(HostCause::Domain.into()));
        assert_eq!(cause(&first, &[2]), Some(HostCause::DomainOfOthers.into()));
    }

    #[test]
    fn a_reason_that_a_host_told_is_the_cause() {
        let first = asked(&[(1, "can't tell: host h2 does not answer"), (2, "no such domain on this host")]);
        for second in [1, 2] {
            let cause = cause(&first, &[second]).unwrap();
            assert_eq!(
                cause.sentence(),
                "the host 10.0.0.1 says: can't tell: host h2 does not answer; the host 10.0.0.2 says: no \
                 such domain on this host"
            );
        }
    }
}
