// SPDX-License-Identifier: GPL-2.0-or-later
//! `--diagnose`: asks for something harmless, shows how far it came, and names the most probable cause and the next
//! step, on standard output.
//!
//! When no host takes the request it is sent once more with other hashes, only to see whether a host calls back then:
//! who does gets no proof of ours, so that nothing can come of it. Only status and monitor are ever asked for.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use fence_net::{CallWatch, vsock_connect};
use fence_sandbox::Tcp;
use fence_wire::{Action, HashType, Key, Response, Target};

use crate::answer::Answer;
use crate::ask::load_key;
use crate::attempts::CameTo;
use crate::confine::confine;
use crate::connection::Wire;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::multicast::{self, Look};
use crate::multicast_failure::MulticastFailure;
use crate::output::{FAILURE, print};
use crate::plan::{Multicast, Plan, Transport};
use crate::ports::Claim;
use crate::stream::{self, StreamFailure};
use crate::verdict::Cause;
use crate::words::{is_sealed, key_in_words, request_in_words};
use crate::{line, tcp, vsock};

/// Finds out why there is no answer; 0 only when a host answered properly.
pub(crate) fn diagnose(plan: &Plan, console: &Console) -> u8 {
    let found = match load_key(plan) {
        Ok(key) => find(plan, key.as_ref(), console),
        Err(error) => Err(error.into()),
    };
    match found {
        Ok(None) => {
            show(&"in order: a host that holds the key has answered");
            0
        }
        Ok(Some(cause)) => {
            show(&format_args!("cause: {}\nnext: {}", cause.what(), cause.next()));
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

fn show(line: &dyn Display) {
    // Who does not read on still gets the exit code.
    let _ = print(&format!("{line}\n"));
}

/// The cause, none when all is in order.
fn find(plan: &Plan, key: Option<&Key>, console: &Console) -> Result<Option<Cause>, Failure> {
    show(&format_args!("{}, {}; {}", request_in_words(plan), Way(&plan.transport), key_in_words(plan, key)));
    match &plan.transport {
        Transport::Multicast(to) => of_multicast(plan, *to, key, console),
        Transport::Tcp(to) => {
            let to = *to;
            let ask = |plan: &Plan| tcp::ask(plan, to, key, soon(plan), console);
            of_stream(plan, key, ask, |within| tcp::connect(to, within))
        }
        Transport::Vsock { cid, port } => {
            let (cid, port) = (*cid, *port);
            let ask = |plan: &Plan| vsock::ask(plan, (cid, port), key, soon(plan), console);
            of_stream(plan, key, ask, |within| Wire::new(vsock_connect(cid, u32::from(port), within)?))
        }
        Transport::Serial { device, format } => {
            of_line(plan, &line::ask_device(plan, device, *format, soon(plan), console)?)
        }
        Transport::Channel(to) => of_line(plan, &line::ask_channel(plan, *to, soon(plan), console)?),
    }
}

/// Each question has the whole time-out.
fn soon(plan: &Plan) -> Deadline {
    Deadline::after(plan.timeout)
}

fn of_multicast(
    plan: &Plan,
    to: Multicast,
    key: Option<&Key>,
    console: &Console,
) -> Result<Option<Cause>, Failure> {
    let others: Vec<_> = other_hashes(plan, key).collect();
    let questions = others.len() + 2;
    let lifetime = Deadline::after(plan.timeout.saturating_mul(u32::try_from(questions).unwrap_or(4)));
    // Nothing can be opened any more afterwards.
    let watch = || CallWatch::open(to.family()).ok();
    let mut ready = (0..questions)
        .map(|_| Ok((multicast::claim(to, lifetime, console)?, watch())))
        .collect::<Result<Vec<_>, MulticastFailure>>()?
        .into_iter();
    let mut next =
        || ready.next().ok_or_else(|| MulticastFailure::Listen(std::io::ErrorKind::AddrInUse.into()));
    confine(Tcp::None, console);
    let (claim, watch) = next()?;
    let look = Look { watch, only_call_back: false };
    let (end, attempts) = multicast::question(plan, to, key, claim, soon(plan), look, console)?;
    let mut facts = format!("sent to {} port {}/udp", to.group, to.port);
    let _ = attempts.facts(&mut facts);
    for (host, times) in attempts.seen.iter().flatten().take(3) {
        let _ = write!(
            facts,
            "\n  seen: {host} tried to connect to port {}/tcp, {times} packets",
            attempts.call_back_port
        );
    }
    if attempts.seen.is_none() {
        facts.push_str("\n  not root: what this guest's firewall keeps out can't be seen");
    }
    show(&facts);
    let mut question = |plan: &Plan, only_call_back| {
        let (claim, watch): (Claim, _) = next()?;
        multicast::question(plan, to, key, claim, soon(plan), Look { watch, only_call_back }, console)
    };
    let answer = match end {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            let cause = classified(Cause::of(&attempts), plan);
            let taken = |it: &Plan| {
                Ok(question(it, true)?.1.call_backs.iter().any(|call| shows_the_key(call.came_to)))
            };
            return with_other_hashes(plan, &others, cause, taken).map(Some);
        }
        Err(MulticastFailure::Refused { refusal, .. }) => {
            return Ok(Some(classified(Cause::of_connection(CameTo::Refused(refusal), false), plan)));
        }
        Err(failure) => return Err(failure.into()),
    };
    of_answer(plan, &answer, |monitor| {
        let answer = question(monitor, false)?.0?;
        Ok(answer)
    })
}

fn of_stream(
    plan: &Plan,
    key: Option<&Key>,
    ask: impl Fn(&Plan) -> Result<Answer, Box<StreamFailure>>,
    connect: impl Fn(Duration) -> std::io::Result<Wire>,
) -> Result<Option<Cause>, Failure> {
    let failure = match ask(plan) {
        Ok(answer) => {
            return of_answer(plan, &answer, |monitor| Ok(ask(monitor).ok()));
        }
        Err(failure) => failure,
    };
    let Some(came_to) = failure.came_to() else { return Err(failure.into()) };
    show(&failure);
    let cause = classified(Cause::of_connection(came_to, true), plan);
    let others: Vec<_> = other_hashes(plan, key).collect();
    let taken = |it: &Plan| {
        let taken = connect(it.timeout).and_then(|wire| stream::is_taken(it, &wire, key, soon(it)));
        Ok(taken.unwrap_or(false))
    };
    with_other_hashes(plan, &others, cause, taken).map(Some)
}

fn of_line(plan: &Plan, answer: &Answer) -> Result<Option<Cause>, Failure> {
    of_answer(plan, answer, |_| Ok(None))
}

/// What an answer of a proven host tells.
fn of_answer(
    plan: &Plan,
    answer: &Answer,
    ask: impl FnOnce(&Plan) -> Result<Option<Answer>, Failure>,
) -> Result<Option<Cause>, Failure> {
    let response = match answer {
        Answer::Response(response) => *response,
        Answer::List { .. } => return Ok(Some(Cause::Odd)),
    };
    show(&match (plan.action, response) {
        (Action::Status, Response::Success) => "answered: the domain is on".to_owned(),
        (Action::Status, Response::Off) => "answered: the domain is off".to_owned(),
        _ => format!("answered: {response}"),
    });
    match (plan.action, response) {
        (_, Response::Success | Response::Off) => return Ok(None),
        (_, Response::PermissionDenied) => return Ok(Some(Cause::Denied)),
        (Action::Monitor, Response::Failure) => return Ok(Some(Cause::Backend)),
        (_, Response::Failure) => {}
    }
    let monitor = Plan { action: Action::Monitor, target: Target::none(), ..plan.clone() };
    let second = ask(&monitor)?;
    let Some(Answer::Response(response)) = second else { return Ok(Some(Cause::Failed)) };
    show(&format_args!("asked whether it can work (monitor): {response}"));
    Ok(Some(if response == Response::Success { Cause::Domain } else { Cause::Backend }))
}

/// Asks with other hashes where one of them may be the cure.
fn with_other_hashes(
    plan: &Plan,
    others: &[HashType],
    cause: Cause,
    mut is_taken: impl FnMut(&Plan) -> Result<bool, Failure>,
) -> Result<Cause, Failure> {
    if !cause.may_be_the_hash() {
        return Ok(cause);
    }
    for hash in others {
        let other = Plan { hash: *hash, ..plan.clone() };
        let taken = is_taken(&other)?;
        show(&format_args!(
            "asked again with hash {hash}: {}",
            if taken { "a host with the same key takes it" } else { "no host takes it either" }
        ));
        if taken {
            let is_old = is_sealed(plan) && hash.sealed().is_none();
            return Ok(if is_old { Cause::OldHost(*hash) } else { Cause::HashTooWeak(*hash) });
        }
    }
    Ok(match cause {
        Cause::Dropped { .. } => Cause::Dropped { tried_hashes: !others.is_empty() },
        other => other,
    })
}

/// Other hashes that a host may take: the strongest of the C programs, and the strongest of all. With the first one, a
/// C host takes it whatever its minimum; with the other one, any host of ours does.
fn other_hashes(plan: &Plan, key: Option<&Key>) -> impl Iterator<Item = HashType> {
    let (hash, has_key) = (plan.hash, key.is_some());
    [HashType::Sha512, HashType::HmacSha512].into_iter().filter(move |it| has_key && *it != hash)
}

/// A guest that asks for no challenge sees other things.
fn classified(cause: Cause, plan: &Plan) -> Cause {
    let is_open = plan.hash.sealed().is_none() && plan.auth == HashType::None;
    if is_open { cause.without_challenge() } else { cause }
}

/// Whether who called back holds the key.
fn shows_the_key(came_to: CameTo) -> bool {
    match came_to {
        CameTo::Refused(refusal) => {
            !refusal.is_of_stranger() || matches!(Cause::of_connection(came_to, false), Cause::OtherAuth(_))
        }
        CameTo::Answer => true,
        CameTo::Waited(wait) => wait != crate::exchange::Wait::Proof,
        CameTo::Other => false,
    }
}

/// By which way it is asked, in words.
struct Way<'a>(&'a Transport);

impl Display for Way<'_> {
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
