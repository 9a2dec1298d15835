// SPDX-License-Identifier: GPL-2.0-or-later
//! Asking by multicast: a datagram from each of our addresses, and the host that owns the domain calls back by TCP.
//!
//! One thread waits on everything. Anybody can connect to the call-back port, so a connection counts for nothing
//! until its peer has proven the key, and a slow one delays nobody. Of the proven hosts one at a time gets our
//! proof, and with it leave to act; the next one only when that one has gone without a response, or has said at once
//! that it will not do it. A list changes nothing: there every proven host gets it, and their lists are merged.

use std::io::{self, ErrorKind, Read, Stdout, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fence_net::{Address, CallWatch, Family, Interface, MulticastSender, interfaces};
use fence_sandbox::Tcp;
use fence_wire::{CallBack, ClientAuth, Key, MULTICAST_TTL, REQUEST_LEN, Request};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::answer::Answer;
use crate::attempts::{Attempts, CameTo};
use crate::collector::{Hearing, Said};
use crate::confine::confine;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::exchange::{Exchange, LAST_BYTE, Refusal};
use crate::multicast_failure::MulticastFailure;
use crate::plan::{Multicast, Plan};
use crate::ports::{Claim, Ports};
use crate::random::{new_challenge, random_bytes};
use crate::rows::Rows;
use crate::words::{is_sealed, key_in_words, request_in_words};

/// Connections that are held at once; of more the oldest unproven one is dropped.
const CONNECTIONS_MAX: usize = 32;
/// How long a proven host may send nothing when the lists of others are there.
const STALLED: Duration = Duration::from_secs(5);

/// Asks the hosts that listen on the group. The rows of lists are printed here, as they come.
pub(crate) fn ask(
    plan: &Plan,
    to: Multicast,
    key: Option<&Key>,
    deadline: Deadline,
    console: &Console,
) -> Result<Answer, MulticastFailure> {
    let claim = claim(to, deadline, console)?;
    confine(Tcp::None, console);
    let (end, attempts) = question(plan, to, key, claim, deadline, Look::default(), console)?;
    end?.ok_or_else(|| MulticastFailure::TimedOut(Box::new(attempts)))
}

/// What is looked for beside the answer.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Sees call-backs that the firewall keeps out.
    pub(crate) watch: Option<CallWatch>,
    /// It is over when somebody has called back; nobody gets leave to act.
    pub(crate) only_call_back: bool,
}

/// Asks one question, whose call-back comes to the claimed port: the answer, none when time ran out, and what was seen.
///
/// # Errors
/// When the system gives no random bytes.
pub(crate) fn question(
    plan: &Plan,
    to: Multicast,
    key: Option<&Key>,
    claim: Claim,
    deadline: Deadline,
    look: Look,
    console: &Console,
) -> Result<(Result<Option<Answer>, MulticastFailure>, Attempts), MulticastFailure> {
    claim.listener.set_nonblocking(true).map_err(MulticastFailure::Listen)?;
    console.debug(&format_args!("the call-back is awaited on port {}/tcp", claim.port));
    let mut attempts = Attempts::new(request_in_words(plan), SocketAddr::new(to.group, to.port), claim.port);
    attempts.seen = look.watch.is_some().then(Vec::new);
    let mut asker = Asker {
        plan,
        to,
        key,
        auth: plan.auth_with(key),
        port: claim.port,
        sequence: u32::from_le_bytes(random_bytes()?),
        calls: Vec::new(),
        hearing: Hearing::new(plan.action, to.quiet, Rows::to_stdout()),
        attempts,
        look,
        console,
    };
    let end = asker.run(&claim.listener, deadline);
    if matches!(end, Ok(Some(_))) || !asker.attempts.sent_any() {
        claim.release();
    }
    asker.attempts.key = key_in_words(plan, key);
    asker.attempts.sealed = is_sealed(plan);
    Ok((end, asker.attempts))
}

/// A port to be called back on that no abandoned request belongs to.
pub(crate) fn claim(to: Multicast, deadline: Deadline, console: &Console) -> Result<Claim, MulticastFailure> {
    let lifetime = deadline.remaining().unwrap_or_default();
    let claimed = Ports::open().and_then(|ports| ports.claim(to.family(), to.port, lifetime));
    let claim = claimed.or_else(|error| {
        console.say(&format_args!(
            "cannot record which port is in use ({error}): the call-back is awaited on any port"
        ));
        Claim::unrecorded(to.family()).map_err(MulticastFailure::Listen)
    })?;
    Ok(claim)
}

struct Asker<'a> {
    plan: &'a Plan,
    to: Multicast,
    key: Option<&'a Key>,
    /// How hosts prove themselves; of sealed requests with all packets that were sent.
    auth: ClientAuth<'a>,
    port: u16,
    /// The same in all datagrams, so that hosts see one request in them.
    sequence: u32,
    calls: Vec<Call<'a>>,
    hearing: Hearing<Stdout>,
    attempts: Attempts,
    look: Look,
    console: &'a Console,
}

/// A connection of somebody who called back.
struct Call<'k> {
    from: SocketAddr,
    stream: TcpStream,
    exchange: Exchange<'k>,
    unsent: Vec<u8>,
    /// Since when it has leave to act: it got our proof, or needs none.
    chosen: Option<Instant>,
    /// When it came, or when a proven one last sent something.
    heard: Instant,
    /// It came before the quiet time after other hosts' answers was over.
    in_time: bool,
    /// When its complete list is taken without the byte that may follow.
    list_until: Option<Deadline>,
}

/// How a connection ends.
enum End {
    /// With what the host said, or a response that is none.
    Said(Said),
    /// Before it had said anything: why, and the same in words.
    Gone(Refusal, String),
}

impl<'a> Asker<'a> {
    /// Sends, waits and listens; none when time has run out.
    fn run(
        &mut self,
        listener: &TcpListener,
        deadline: Deadline,
    ) -> Result<Option<Answer>, MulticastFailure> {
        let mut send_at = Deadline::after(Duration::ZERO);
        while deadline.remaining().is_some() {
            let enough = self.enough_at(deadline);
            if enough.is_some_and(|at| at.remaining().is_none()) {
                return self.conclude(&format!("silent for {} s", STALLED.as_secs()));
            }
            // A host that has leave to act needs no repetition, and hosts of the reference carry a repeated request out
            // again when they come to it after ten seconds.
            let asks = enough.is_none() && !self.is_acting();
            if asks && send_at.remaining().is_none() {
                self.transmit()?;
                send_at = Deadline::after(self.to.retransmit);
            }
            let mut until = enough.unwrap_or(deadline);
            if asks {
                until = until.min(send_at);
            }
            for list_until in self.calls.iter().filter_map(|c| c.list_until) {
                until = until.min(list_until);
            }
            let in_time = self.hearing.quiet().is_none_or(|(_, end)| end.remaining().is_some());
            let ready = self.wait(listener, until).map_err(MulticastFailure::Wait)?;
            self.watch();
            if let Some(answer) = self.attend(&ready.calls)? {
                return Ok(Some(answer));
            }
            if ready.listener {
                self.accept(listener, in_time)?;
            }
            if self.look.only_call_back && self.has_called_back() {
                break;
            }
        }
        self.conclude("no more time")
    }

    /// Whether somebody has called back who is believed, or who is not any more.
    fn has_called_back(&self) -> bool {
        !self.attempts.call_backs.is_empty() || self.calls.iter().any(|it| it.exchange.is_believed())
    }

    /// Takes what the watch has seen.
    fn watch(&mut self) {
        let calls = self.look.watch.iter().flat_map(CallWatch::calls);
        for (from, _) in calls.filter(|(_, port)| *port == self.port) {
            self.attempts.saw(from);
        }
    }

    fn is_acting(&self) -> bool {
        self.calls.iter().any(|c| c.chosen.is_some())
    }

    /// When no better or further answer is waited for; none as long as there is none at all. A proven host is waited
    /// for: it may be the one that runs the domain and wait for its turn. Strangers that came within the quiet time
    /// get as long again to prove themselves, and no longer, so that they cannot draw it out.
    fn enough_at(&self, deadline: Deadline) -> Option<Deadline> {
        let (quiet, end) = self.hearing.quiet()?;
        let patience = |call: &Call<'_>| match call.exchange.is_believed() {
            true if self.hearing.is_of_all() => Deadline::from(call.heard, STALLED),
            true => deadline,
            false if call.in_time => Deadline::from(call.heard, quiet),
            false => end,
        };
        Some(self.calls.iter().map(patience).fold(end, Deadline::max).min(deadline))
    }

    /// Nobody is waited for any more, for the reason in words.
    fn conclude(&mut self, why: &str) -> Result<Option<Answer>, MulticastFailure> {
        let acting = self.is_acting();
        for mut call in std::mem::take(&mut self.calls) {
            let believed = call.exchange.is_believed();
            let waits_for = call.exchange.waits_for();
            let outcome = format!("{why} while it waited for {waits_for}");
            match call.exchange.close() {
                Ok(answer) => {
                    if let Some(answer) = self.hear(&call, Ok(answer))? {
                        return Ok(Some(answer));
                    }
                }
                Err(_) => {
                    if believed {
                        self.hearing.lost(call.from, outcome.clone());
                    }
                    self.attempts.called_back(call.from, outcome, CameTo::Waited(waits_for));
                }
            }
        }
        // What a host that had leave to act has done is not known, whatever another one said.
        if acting && !self.hearing.is_of_all() { Ok(None) } else { self.hearing.conclude() }
    }

    /// What a host said; an answer when that is the last word.
    fn hear(&mut self, call: &Call<'_>, said: Said) -> Result<Option<Answer>, MulticastFailure> {
        let (words, came_to) = match &said {
            Ok(Answer::Response(response)) => (format!("said {response}"), CameTo::Answer),
            Ok(Answer::List { entries, .. }) => (format!("listed {} domains", entries.len()), CameTo::Answer),
            Err(refusal) => (refusal.to_string(), CameTo::Refused(*refusal)),
        };
        self.console.debug(&format_args!("call-back from {}: {words}", call.from));
        self.attempts.called_back(call.from, words, came_to);
        let now = Instant::now();
        let since_proof = call.chosen.map(|chosen| now.duration_since(chosen)).unwrap_or_default();
        self.hearing.hear(call.from, said, since_proof, now)
    }

    /// One datagram from each of our addresses. Looks the addresses up anew each time: an interface may have come up.
    fn transmit(&mut self) -> Result<(), MulticastFailure> {
        let mut interfaces = interfaces().map_err(MulticastFailure::Wait)?;
        // The host that runs us is not on loopback.
        interfaces.sort_by_key(Interface::is_loopback);
        let family = self.to.family();
        for interface in interfaces.iter().filter(|i| i.is_up()) {
            for address in interface.addresses.iter().filter(|a| is_source(a, interface, family)) {
                let request = Request {
                    action: self.plan.action,
                    target: self.plan.target.clone(),
                    call_back: Some(CallBack { address: address.ip, port: self.port }),
                    nonce: random_bytes()?,
                    sequence: self.sequence,
                };
                let packet = self.plan.packet(&request, self.key);
                self.auth.add(&packet);
                self.send(interface, *address, &packet);
            }
        }
        Ok(())
    }

    fn send(&mut self, interface: &Interface, from: Address, packet: &[u8; REQUEST_LEN]) {
        let (group, port) = (self.to.group, self.to.port);
        let sent = MulticastSender::open(from, interface.index, group, port, MULTICAST_TTL)
            .and_then(|sender| sender.send(packet));
        let source = self.attempts.source(&interface.name, from.ip);
        match sent {
            Ok(()) => {
                source.sent += 1;
                self.console.debug(&format_args!("sent to {group} from {} {}", interface.name, from.ip));
            }
            Err(error) => {
                self.console.debug(&format_args!("not sent from {} {}: {error}", interface.name, from.ip));
                source.failed += 1;
                source.error = Some(error);
            }
        }
    }

    /// Waits until something can be read or written, or until then.
    fn wait(&self, listener: &TcpListener, until: Deadline) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.calls.iter().map(|call| {
            let out = if call.unsent.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            PollFd::new(call.stream.as_fd(), PollFlags::POLLIN | out)
        }));
        fds.extend(self.look.watch.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        let remaining = until.remaining().unwrap_or_default();
        // Rounded up: a wait that ends a moment too early would turn in circles.
        let millis = i32::try_from(remaining.as_millis() + 1).unwrap_or(i32::MAX);
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        Ok(Ready { listener: ready.next().unwrap_or(false), calls: ready.collect() })
    }

    /// Takes the connections that are waiting.
    fn accept(&mut self, listener: &TcpListener, in_time: bool) -> Result<(), MulticastFailure> {
        while let Ok((stream, from)) = listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let _ = stream.set_nodelay(true);
            self.console.debug(&format_args!("call-back from {from}"));
            if self.calls.len() >= CONNECTIONS_MAX {
                self.make_room();
            }
            let mut exchange = Exchange::new(self.plan.action, self.auth.clone(), None, new_challenge()?);
            let unsent = exchange.output();
            let heard = Instant::now();
            let chosen = matches!(self.auth, ClientAuth::Open).then_some(heard);
            let mut call = Call { from, stream, exchange, unsent, chosen, heard, in_time, list_until: None };
            // What cannot be sent at once goes when the socket is ready; an error shows when it is read.
            let _ = call.flush();
            self.calls.push(call);
        }
        Ok(())
    }

    fn make_room(&mut self) {
        let place = self.calls.iter().position(|c| !c.exchange.is_believed()).unwrap_or(0);
        let call = self.calls.remove(place);
        let why = "dropped for newer ones".to_owned();
        if call.exchange.is_believed() {
            self.hearing.lost(call.from, why.clone());
        }
        self.attempts.called_back(call.from, why, CameTo::Other);
    }

    /// Goes on with the connections that are ready, and gives leave to act.
    fn attend(&mut self, ready: &[bool]) -> Result<Option<Answer>, MulticastFailure> {
        let mut answer = None;
        for (place, mut call) in std::mem::take(&mut self.calls).into_iter().enumerate() {
            let end = if ready.get(place).copied().unwrap_or(false) { call.go_on() } else { None };
            let list_is_over = call.list_until.is_some_and(|until| until.remaining().is_none());
            match end {
                None if list_is_over => {
                    let said = call.exchange.close();
                    answer = self.hear(&call, said)?;
                }
                None => self.calls.push(call),
                Some(End::Said(said)) => answer = self.hear(&call, said)?,
                Some(End::Gone(refusal, why)) => {
                    self.console.debug(&format_args!("call-back from {}: {why}", call.from));
                    if !refusal.is_of_stranger() {
                        self.hearing.lost(call.from, why.clone());
                    }
                    self.attempts.called_back(call.from, why, CameTo::Refused(refusal));
                }
            }
            if answer.is_some() {
                return Ok(answer);
            }
        }
        let all = self.hearing.is_of_all();
        let mut acting = self.is_acting();
        for call in self.calls.iter_mut().filter(|c| c.exchange.asks_for_proof()) {
            if (all || !acting) && !self.look.only_call_back {
                self.console.debug(&format_args!("{} is proven and gets our proof", call.from));
                call.prove();
                acting = true;
            }
        }
        Ok(None)
    }
}

struct Ready {
    listener: bool,
    calls: Vec<bool>,
}

impl Call<'_> {
    /// Answers the host's challenge.
    fn prove(&mut self) {
        self.exchange.prove();
        self.unsent.extend(self.exchange.output());
        let now = Instant::now();
        (self.chosen, self.heard) = (Some(now), now);
        // What cannot be sent at once goes when the socket is ready; an error shows when it is read.
        let _ = self.flush();
    }

    /// Sends and reads what can be without waiting.
    fn go_on(&mut self) -> Option<End> {
        /// So much and then the others get their turn.
        const READS: usize = 64;
        let mut buffer = [0; 4096];
        if let Err(error) = self.flush() {
            return Some(self.end(Some(&error)));
        }
        for _ in 0..READS {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(self.end(None)),
                Ok(n) => {
                    if self.exchange.receive(&buffer[..n]).is_err() || self.exchange.is_done() {
                        return Some(self.end(None));
                    }
                    if self.exchange.is_believed() {
                        self.heard = Instant::now();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Some(self.end(Some(&error))),
            }
        }
        if self.exchange.list_has_ended() && self.list_until.is_none() {
            self.list_until = Some(Deadline::after(LAST_BYTE));
        }
        None
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn end(&mut self, error: Option<&io::Error>) -> End {
        match (self.exchange.close(), error) {
            (Ok(answer), _) => End::Said(Ok(answer)),
            (Err(refusal), _) if self.chosen.is_some() && refusal.is_final() => End::Said(Err(refusal)),
            (Err(refusal), None) => End::Gone(refusal, refusal.to_string()),
            (Err(refusal), Some(error)) => End::Gone(refusal, format!("{refusal} ({error})")),
        }
    }
}

/// The addresses that the reference sends from: on IPv6 neither loopback nor link-local ones, which a host could not
/// call back.
fn is_source(address: &Address, interface: &Interface, family: Family) -> bool {
    match address.ip {
        IpAddr::V4(_) => family == Family::V4,
        IpAddr::V6(v6) => family == Family::V6 && !interface.is_loopback() && !v6.is_unicast_link_local(),
    }
}
