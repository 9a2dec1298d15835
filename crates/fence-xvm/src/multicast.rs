// SPDX-License-Identifier: GPL-2.0-or-later
//! A request by multicast: one datagram from each of our addresses, and the owner of the domain calls back
//! over TCP.
//!
//! Owns the call-back connections. One thread waits for all of them, and a slow one delays no other. Anybody
//! can connect to the call-back port, so a connection counts for nothing until its peer has proved that it
//! holds the key.
//!
//! Of the proven hosts one at a time gets our proof, and with it the permission to act. The next host gets it
//! only when that one hung up without a response, or refused at once. A list changes nothing: there every
//! proven host gets our proof, and their lists are merged.
//!
//! Must never give two hosts the permission to act at a time.

use std::io::{self, ErrorKind, Read, Stdout, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fence_net::{Address, CallWatch, Family, Interface, MulticastSender, interfaces};
use fence_sandbox::Tcp;
use fence_wire::{CallBack, ClientAuth, Key, MULTICAST_TTL, REQUEST_LEN, Request, escaped};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::answer::HostAnswer;
use crate::attempts::{MulticastAttempts, StreamProgress};
use crate::collector::{AnswerCollector, HostResult};
use crate::confine::confine;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::exchange::{ExchangeError, HostExchange, LIST_RESULT_WAIT};
use crate::multicast_failure::MulticastFailure;
use crate::plan::{MulticastSettings, RequestPlan};
use crate::ports::{CallBackPorts, PortReservation};
use crate::random::{new_challenge, random_bytes};
use crate::rows::ListRows;
use crate::words::{describe_key, describe_request, is_sealed};

/// Largest number of connections at a time. For a further one the oldest unproven connection is evicted.
const CONNECTIONS_MAX: usize = 32;
/// Time that a silent proven host delays the lists of other hosts.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// Asks the hosts that listen on the group. Prints the rows of lists as they come.
pub(crate) fn ask(
    plan: &RequestPlan,
    to: MulticastSettings,
    key: Option<&Key>,
    deadline: Deadline,
    console: &Console,
) -> Result<HostAnswer, MulticastFailure> {
    let reservation = reserve_port(to, deadline, console)?;
    confine(Tcp::None, console);
    let request = MulticastRequest { plan, to, key, probe: MulticastProbe::default() };
    let result = send_request(request, reservation, deadline, console)?;
    result.answer?.ok_or_else(|| MulticastFailure::TimedOut(Box::new(result.attempts)))
}

/// Additional observations of a diagnosis.
#[derive(Debug, Default)]
pub(crate) struct MulticastProbe {
    /// Watch that sees call-backs which the firewall keeps out.
    pub(crate) watch: Option<CallWatch>,
    /// True if the request ends when a peer has called back, and no host gets the permission to act.
    pub(crate) only_call_back: bool,
}

/// Request to the hosts of a group.
#[derive(Debug)]
pub(crate) struct MulticastRequest<'a> {
    /// Plan of the request.
    pub(crate) plan: &'a RequestPlan,
    /// Group and times.
    pub(crate) to: MulticastSettings,
    /// Key; none where the plan needs none.
    pub(crate) key: Option<&'a Key>,
    /// Additional observations.
    pub(crate) probe: MulticastProbe,
}

/// Result of a request.
#[derive(Debug)]
pub(crate) struct MulticastResult {
    /// Answer of a host; none when time ran out.
    pub(crate) answer: Result<Option<HostAnswer>, MulticastFailure>,
    /// Everything that was tried.
    pub(crate) attempts: MulticastAttempts,
}

/// Sends one request, and waits for its call-back on the reserved port.
///
/// # Errors
/// When the kernel gives no random bytes.
pub(crate) fn send_request(
    request: MulticastRequest<'_>,
    reservation: PortReservation,
    deadline: Deadline,
    console: &Console,
) -> Result<MulticastResult, MulticastFailure> {
    let MulticastRequest { plan, to, key, probe } = request;
    reservation.listener.set_nonblocking(true).map_err(MulticastFailure::Listen)?;
    console.debug(&format_args!("the call-back is awaited on port {}/tcp", reservation.port));
    let mut attempts =
        MulticastAttempts::new(describe_request(plan), SocketAddr::new(to.group, to.port), reservation.port);
    attempts.watched_calls = probe.watch.is_some().then(Vec::new);
    let mut client = MulticastClient {
        plan,
        to,
        key,
        auth: plan.client_auth(key),
        port: reservation.port,
        sequence: u32::from_le_bytes(random_bytes()?),
        calls: Vec::new(),
        collector: AnswerCollector::new(plan.action, to.quiet, ListRows::to_stdout()),
        attempts,
        probe,
        console,
    };
    let answer = client.run(&reservation.listener, deadline);
    if matches!(answer, Ok(Some(_))) || !client.attempts.has_sent() {
        reservation.release();
    }
    client.attempts.key = describe_key(plan, key);
    client.attempts.sealed = is_sealed(plan);
    Ok(MulticastResult { answer, attempts: client.attempts })
}

/// Reserves a port for the call-back that no abandoned request belongs to.
pub(crate) fn reserve_port(
    to: MulticastSettings,
    deadline: Deadline,
    console: &Console,
) -> Result<PortReservation, MulticastFailure> {
    let lifetime = deadline.remaining().unwrap_or_default();
    let reserved = CallBackPorts::open().and_then(|ports| ports.reserve(to.family(), to.port, lifetime));
    reserved.or_else(|error| {
        console.say(&format_args!(
            "cannot record which port is in use ({error}): the call-back is awaited on any port"
        ));
        PortReservation::without_record(to.family()).map_err(MulticastFailure::Listen)
    })
}

/// Multicast request in progress.
struct MulticastClient<'a> {
    plan: &'a RequestPlan,
    to: MulticastSettings,
    key: Option<&'a Key>,
    /// Proof that hosts must give; for sealed requests with all packets that were sent.
    auth: ClientAuth<'a>,
    port: u16,
    /// Sequence number, the same in all datagrams, so that hosts take them for one request.
    sequence: u32,
    calls: Vec<CallBackConnection<'a>>,
    collector: AnswerCollector<Stdout>,
    attempts: MulticastAttempts,
    probe: MulticastProbe,
    console: &'a Console,
}

/// Connection of a peer that called back.
struct CallBackConnection<'k> {
    from: SocketAddr,
    stream: TcpStream,
    exchange: HostExchange<'k>,
    unsent: Vec<u8>,
    /// Instant at which the peer got the permission to act: our proof, unless it needs none.
    permitted_at: Option<Instant>,
    /// Instant at which the peer connected, or at which it last sent bytes after its proof.
    last_heard: Instant,
    /// True if the peer connected before the end of the quiet time.
    in_time: bool,
    /// Deadline at which a complete list is taken without its result.
    list_until: Option<Deadline>,
}

/// End of the wait for a connection.
enum WaitEnd {
    /// The host answered, or sent a response that is not valid.
    Answered(HostResult),
    /// The peer hung up before its response: the reason, and the same in words.
    HungUp(ExchangeError, String),
}

impl<'a> MulticastClient<'a> {
    /// Sends the request again and again, and returns the answer; none when time ran out.
    fn run(
        &mut self,
        listener: &TcpListener,
        deadline: Deadline,
    ) -> Result<Option<HostAnswer>, MulticastFailure> {
        let mut send_at = Deadline::after(Duration::ZERO);
        while deadline.remaining().is_some() {
            let end = self.end_of_wait(deadline);
            if end.is_some_and(|at| at.remaining().is_none()) {
                return self.conclude(&format!("silent for {} s", STALL_LIMIT.as_secs()));
            }
            // A host with the permission to act needs no repetition. The C daemon carries a repetition out
            // again when it reads it after ten seconds.
            let asks = end.is_none() && !self.is_acting();
            if asks && send_at.remaining().is_none() {
                self.transmit()?;
                send_at = Deadline::after(self.to.retransmit);
            }
            let mut until = end.unwrap_or(deadline);
            if asks {
                until = until.min(send_at);
            }
            for list_until in self.calls.iter().filter_map(|c| c.list_until) {
                until = until.min(list_until);
            }
            let in_time = self.collector.quiet_time().is_none_or(|(_, end)| end.remaining().is_some());
            let ready = self.wait_until_ready(listener, until).map_err(MulticastFailure::Poll)?;
            self.record_watched_calls();
            if let Some(answer) = self.serve_ready(&ready.calls)? {
                return Ok(Some(answer));
            }
            if ready.listener {
                self.accept(listener, in_time)?;
            }
            if self.probe.only_call_back && self.has_called_back() {
                break;
            }
        }
        self.conclude("time ran out")
    }

    /// Returns whether a peer has called back and was believed, or refused.
    fn has_called_back(&self) -> bool {
        !self.attempts.call_backs.is_empty() || self.calls.iter().any(|it| it.exchange.is_believed())
    }

    /// Records the call-backs that the watch has seen.
    fn record_watched_calls(&mut self) {
        let calls = self.probe.watch.iter().flat_map(CallWatch::calls);
        for (from, _) in calls.filter(|(_, port)| *port == self.port) {
            self.attempts.record_watched_call(from);
        }
    }

    /// Returns whether a host has the permission to act.
    fn is_acting(&self) -> bool {
        self.calls.iter().any(|c| c.permitted_at.is_some())
    }

    /// Returns the deadline for a further or better answer; none before the first answer.
    ///
    /// The agent waits for a proven host: it may be the owner, and wait for the permission to act. An
    /// unproven peer that connected within the quiet time gets that time once more to prove itself, so that
    /// it cannot delay the end.
    fn end_of_wait(&self, deadline: Deadline) -> Option<Deadline> {
        let (quiet, end) = self.collector.quiet_time()?;
        let patience = |call: &CallBackConnection<'_>| match call.exchange.is_believed() {
            true if self.collector.wants_all_hosts() => Deadline::from(call.last_heard, STALL_LIMIT),
            true => deadline,
            false if call.in_time => Deadline::from(call.last_heard, quiet),
            false => end,
        };
        Some(self.calls.iter().map(patience).fold(end, Deadline::max).min(deadline))
    }

    /// Ends the request and returns its answer. `reason` is why no host is waited for any more, in words.
    fn conclude(&mut self, reason: &str) -> Result<Option<HostAnswer>, MulticastFailure> {
        let is_acting = self.is_acting();
        for mut call in std::mem::take(&mut self.calls) {
            let is_believed = call.exchange.is_believed();
            let step = call.exchange.awaited_step();
            let outcome = format!("{reason} while it waited for {step}");
            match call.exchange.close() {
                Ok(answer) => {
                    if let Some(answer) = self.take_result(&call, Ok(answer))? {
                        return Ok(Some(answer));
                    }
                }
                Err(_) => {
                    if is_believed {
                        self.collector.record_lost(call.from, outcome.clone());
                    }
                    self.attempts.record_call_back(call.from, outcome, StreamProgress::Waited(step));
                }
            }
        }
        // Nobody knows what a host with the permission to act has done, whatever another host answered.
        if is_acting && !self.collector.wants_all_hosts() { Ok(None) } else { self.collector.conclude() }
    }

    /// Takes the result of a host. Returns the final answer, or none where another host may give a better
    /// one.
    fn take_result(
        &mut self,
        call: &CallBackConnection<'_>,
        result: HostResult,
    ) -> Result<Option<HostAnswer>, MulticastFailure> {
        let (words, progress) = match &result {
            Ok(HostAnswer::Response(response)) => {
                (format!("answered with {response}"), StreamProgress::Answered)
            }
            Ok(HostAnswer::Failed(reason)) => {
                (format!("answered with failure: {}", escaped(reason)), StreamProgress::Answered)
            }
            Ok(HostAnswer::List { entries, .. }) => {
                (format!("listed {} domains", entries.len()), StreamProgress::Answered)
            }
            Err(error) => (error.to_string(), StreamProgress::Failed(*error)),
        };
        self.console.debug(&format_args!("call-back from {}: {words}", call.from));
        self.attempts.record_call_back(call.from, words, progress);
        let now = Instant::now();
        let since_proof = call.permitted_at.map(|instant| now.duration_since(instant)).unwrap_or_default();
        self.collector.take_result(call.from, result, since_proof, now)
    }

    /// Sends one datagram from each of our addresses. Reads the addresses each time: an interface may have
    /// come up.
    fn transmit(&mut self) -> Result<(), MulticastFailure> {
        let mut interfaces = interfaces().map_err(MulticastFailure::Poll)?;
        // Loopback comes last: the host of this guest is not there.
        interfaces.sort_by_key(Interface::is_loopback);
        let family = self.to.family();
        for interface in interfaces.iter().filter(|i| i.is_up()) {
            for address in interface.addresses.iter().filter(|a| is_sender(a, interface, family)) {
                let request = Request {
                    action: self.plan.action,
                    target: self.plan.target.clone(),
                    call_back: Some(CallBack { address: address.ip, port: self.port }),
                    nonce: random_bytes()?,
                    sequence: self.sequence,
                };
                let packet = self.plan.encode_packet(&request, self.key);
                self.auth.add(&packet);
                self.send(interface, *address, &packet);
            }
        }
        Ok(())
    }

    fn send(&mut self, interface: &Interface, from: Address, packet: &[u8; REQUEST_LEN]) {
        let (group, port) = (self.to.group, self.to.port);
        let result = MulticastSender::open(from, interface.index, group, port, MULTICAST_TTL)
            .and_then(|sender| sender.send(packet));
        let entry = self.attempts.sender_mut(&interface.name, from.ip);
        match result {
            Ok(()) => {
                entry.sent += 1;
                self.console.debug(&format_args!("sent to {group} from {} {}", interface.name, from.ip));
            }
            Err(error) => {
                self.console.debug(&format_args!("not sent from {} {}: {error}", interface.name, from.ip));
                entry.failed += 1;
                entry.error = Some(error);
            }
        }
    }

    /// Waits until a socket can be read or written, or until the deadline.
    fn wait_until_ready(&self, listener: &TcpListener, until: Deadline) -> io::Result<ReadySockets> {
        let mut fds = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.calls.iter().map(|call| {
            let out = if call.unsent.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            PollFd::new(call.stream.as_fd(), PollFlags::POLLIN | out)
        }));
        fds.extend(self.probe.watch.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        let remaining = until.remaining().unwrap_or_default();
        // Rounded up: a wait that ends too early would make the loop spin.
        let millis = i32::try_from(remaining.as_millis() + 1).unwrap_or(i32::MAX);
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        Ok(ReadySockets { listener: ready.next().unwrap_or(false), calls: ready.collect() })
    }

    /// Accepts the connections in the backlog.
    fn accept(&mut self, listener: &TcpListener, in_time: bool) -> Result<(), MulticastFailure> {
        while let Ok((stream, from)) = listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let _ = stream.set_nodelay(true);
            self.console.debug(&format_args!("call-back from {from}"));
            if self.calls.len() >= CONNECTIONS_MAX {
                self.evict_one();
            }
            let mut exchange = HostExchange::new(self.plan.action, self.auth.clone(), None, new_challenge()?);
            let unsent = exchange.take_output();
            let last_heard = Instant::now();
            let permitted_at = matches!(self.auth, ClientAuth::Open).then_some(last_heard);
            let mut call = CallBackConnection {
                from,
                stream,
                exchange,
                unsent,
                permitted_at,
                last_heard,
                in_time,
                list_until: None,
            };
            // The rest goes when the socket is ready. An error shows when the socket is read.
            let _ = call.flush();
            self.calls.push(call);
        }
        Ok(())
    }

    /// Evicts the oldest peer that has not proved itself, or else the oldest.
    fn evict_one(&mut self) {
        let index = self.calls.iter().position(|c| !c.exchange.is_believed()).unwrap_or(0);
        let call = self.calls.remove(index);
        let outcome = "evicted for newer ones".to_owned();
        if call.exchange.is_believed() {
            self.collector.record_lost(call.from, outcome.clone());
        }
        self.attempts.record_call_back(call.from, outcome, StreamProgress::Other);
    }

    /// Reads and writes on ready connections, and gives a proven host the permission to act.
    fn serve_ready(&mut self, ready: &[bool]) -> Result<Option<HostAnswer>, MulticastFailure> {
        let mut answer = None;
        for (index, mut call) in std::mem::take(&mut self.calls).into_iter().enumerate() {
            let end = if ready.get(index).copied().unwrap_or(false) { call.advance() } else { None };
            let list_is_over = call.list_until.is_some_and(|until| until.remaining().is_none());
            match end {
                None if list_is_over => {
                    let result = call.exchange.close();
                    answer = self.take_result(&call, result)?;
                }
                None => self.calls.push(call),
                Some(WaitEnd::Answered(result)) => answer = self.take_result(&call, result)?,
                Some(WaitEnd::HungUp(error, outcome)) => {
                    self.console.debug(&format_args!("call-back from {}: {outcome}", call.from));
                    if !error.is_from_unproven_peer() {
                        self.collector.record_lost(call.from, outcome.clone());
                    }
                    self.attempts.record_call_back(call.from, outcome, StreamProgress::Failed(error));
                }
            }
            if answer.is_some() {
                return Ok(answer);
            }
        }
        let wants_all = self.collector.wants_all_hosts();
        let mut is_acting = self.is_acting();
        for call in self.calls.iter_mut().filter(|c| c.exchange.is_asking_for_proof()) {
            if (wants_all || !is_acting) && !self.probe.only_call_back {
                self.console.debug(&format_args!(
                    "{} has proved that it holds the key, and gets our proof",
                    call.from
                ));
                call.prove();
                is_acting = true;
            }
        }
        Ok(None)
    }
}

/// Sockets that can be read or written.
struct ReadySockets {
    listener: bool,
    calls: Vec<bool>,
}

impl CallBackConnection<'_> {
    /// Answers the host's challenge.
    fn prove(&mut self) {
        self.exchange.prove();
        self.unsent.extend(self.exchange.take_output());
        let now = Instant::now();
        (self.permitted_at, self.last_heard) = (Some(now), now);
        // The rest goes when the socket is ready. An error shows when the socket is read.
        let _ = self.flush();
    }

    /// Sends and reads as much as is possible without waiting. Returns the end of the wait, if it ended.
    fn advance(&mut self) -> Option<WaitEnd> {
        /// Number of reads before the other connections are served.
        const READS: usize = 64;
        let mut buffer = [0; 4096];
        if let Err(error) = self.flush() {
            return Some(self.finish(Some(&error)));
        }
        for _ in 0..READS {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(self.finish(None)),
                Ok(n) => {
                    if self.exchange.receive(&buffer[..n]).is_err() || self.exchange.is_done() {
                        return Some(self.finish(None));
                    }
                    if self.exchange.is_believed() {
                        self.last_heard = Instant::now();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Some(self.finish(Some(&error))),
            }
        }
        if self.exchange.is_list_complete() && self.list_until.is_none() {
            self.list_until = Some(Deadline::after(LIST_RESULT_WAIT));
        }
        None
    }

    /// Sends as many bytes as the socket takes.
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

    /// Ends the exchange, because of this I/O error or because the peer closed the connection.
    fn finish(&mut self, error: Option<&io::Error>) -> WaitEnd {
        match (self.exchange.close(), error) {
            (Ok(answer), _) => WaitEnd::Answered(Ok(answer)),
            (Err(failure), _) if self.permitted_at.is_some() && failure.is_final() => {
                WaitEnd::Answered(Err(failure))
            }
            (Err(failure), None) => WaitEnd::HungUp(failure, failure.to_string()),
            (Err(failure), Some(error)) => WaitEnd::HungUp(failure, format!("{failure} ({error})")),
        }
    }
}

/// Returns whether the C agent sends from this address: on IPv6 from neither loopback nor link-local
/// addresses, which a host could not call back.
fn is_sender(address: &Address, interface: &Interface, family: Family) -> bool {
    match address.ip {
        IpAddr::V4(_) => family == Family::V4,
        IpAddr::V6(v6) => family == Family::V6 && !interface.is_loopback() && !v6.is_unicast_link_local(),
    }
}
