// SPDX-License-Identifier: GPL-2.0-or-later
//! A request by multicast: one datagram from each of our addresses, and the owner of the domain calls back
//! over TCP.
//!
//! Owns the call-back connections. One thread waits for all of them, and a slow one delays no other. Anybody
//! can connect to the call-back port, so a connection counts for nothing until its peer has proved that it
//! holds the key, and until it is sure that it is for this request (`doors`).
//!
//! Of the proven hosts one at a time gets our proof, and with it the permission to act. The next host gets it
//! only when that one hung up without a response, or refused at once. A list changes nothing: there every
//! proven host gets our proof, and their lists are merged.
//!
//! Must never give two hosts the permission to act at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fence_net::{Address, CallWatch, Family, Interface, MulticastSender, interfaces};
use fence_sandbox::Tcp;
use fence_wire::{
    CallBack, CallName, ClientAuth, ClientRun, HashType, HostListEntry, Key, MULTICAST_TTL, REQUEST_LEN,
    Request, Response, escaped,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};

use crate::answer::HostAnswer;
use crate::attempts::{HostFailure, MulticastAttempts, StreamProgress};
use crate::call::{CallBackConnection, WaitEnd};
use crate::collector::{AnswerCollector, HostResult};
use crate::confine::confine;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::doors::{CallBackDoors, DoorNeed, DoorRule, DueSending, RunEnd};
use crate::exchange::HostExchange;
use crate::ledger::CallPath;
use crate::multicast_failure::MulticastFailure;
use crate::plan::{MulticastSettings, RequestPlan};
use crate::ports::CallBackPorts;
use crate::random::{new_challenge, new_named_challenge, random_bytes};
use crate::rows::ListRows;
use crate::words::{describe_key, describe_request, is_sealed};

/// Largest number of connections at a time. For a further one an unproven connection is evicted.
const CONNECTIONS_MAX: usize = 512;
/// Largest number of connections that are accepted before those that are there are read and written: a host
/// among them has that long, and not only until the backlog is empty, which a flood fills.
const ACCEPTED_AT_ONCE: usize = 32;
/// Descriptors for everything but connections.
const OTHER_DESCRIPTORS: u64 = 64;
/// Time that a silent proven host delays the lists of other hosts.
const STALL_LIMIT: Duration = Duration::from_secs(5);
/// Time for which other hosts may still call back before the turn is passed on. Those that have the domain
/// call at once, and whoever waits for the turn loses time of its own.
const OTHER_HOSTS: Duration = Duration::from_millis(50);

/// Asks the hosts that listen on the group. Prints the rows of lists as they come. Returns the hosts that
/// answered with a failure as well.
pub(crate) fn ask(
    plan: &RequestPlan,
    to: MulticastSettings,
    key: Option<&Key>,
    deadline: Deadline,
    console: &Console,
) -> Result<(HostAnswer, Vec<HostFailure>), MulticastFailure> {
    let ports = open_ports(to, console);
    let request = MulticastRequest { plan, to, key, probe: MulticastProbe::default() };
    let MulticastResult { answer, mut attempts, .. } = send_request(request, &ports, deadline, console)?;
    let failures = std::mem::take(&mut attempts.failures);
    let answer = answer?.ok_or_else(|| MulticastFailure::TimedOut(Box::new(attempts)))?;
    Ok((answer, failures))
}

/// Additional observations of a diagnosis.
#[derive(Debug, Default)]
pub(crate) struct MulticastProbe {
    /// Watch that sees call-backs which the firewall keeps out.
    pub(crate) watch: Option<CallWatch>,
    /// True if the request ends when a peer has called back, and no host gets the permission to act.
    pub(crate) only_call_back: bool,
    /// True if the rows of a list are not printed.
    pub(crate) hides_rows: bool,
    /// Hosts that are waited for: no failure of another one is enough before they answered.
    pub(crate) awaits: BTreeSet<IpAddr>,
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
    /// Merged rows of the lists.
    pub(crate) rows: Vec<HostListEntry>,
}

/// Opens the records of the ports, and confines the agent: nothing can be opened afterwards but a listener at
/// one of them.
pub(crate) fn open_ports(to: MulticastSettings, console: &Console) -> CallBackPorts {
    let (ports, error) = CallBackPorts::open(to.family(), to.port);
    if let Some(error) = error {
        console.say(&format_args!(
            "cannot record which port is in use ({error}): a host of the C programs is asked more than once"
        ));
    }
    let (first, last) = ports.range();
    confine(Tcp::Bind(first, last), console);
    ports
}

/// Sends one request, and waits for its call-back on one of the ports.
///
/// # Errors
/// When the kernel gives no random bytes, or no port can be used.
pub(crate) fn send_request(
    request: MulticastRequest<'_>,
    ports: &CallBackPorts,
    deadline: Deadline,
    console: &Console,
) -> Result<MulticastResult, MulticastFailure> {
    let MulticastRequest { plan, to, key, probe } = request;
    let mut attempts = MulticastAttempts::new(describe_request(plan), SocketAddr::new(to.group, to.port));
    attempts.watched_calls = probe.watch.is_some().then(Vec::new);
    let auth = plan.client_auth(key);
    let rule = match auth {
        ClientAuth::Open => DoorRule::Open,
        ClientAuth::Classic(..) => DoorRule::Challenged,
        ClientAuth::Sealed(..) => DoorRule::Sealed,
    };
    let rows = if probe.hides_rows {
        ListRows::new(Box::new(io::sink()) as _, false)
    } else {
        ListRows::to_stdout()
    };
    let mut collector =
        AnswerCollector::new(plan.action, to.quiet, rows).for_forecast(plan.dry_run.is_some());
    for host in &probe.awaits {
        collector.await_again(SocketAddr::new(*host, 0));
    }
    let mut client = MulticastClient {
        plan,
        to,
        key,
        auth,
        doors: CallBackDoors::new(ports, rule, new_run(plan)?),
        packets: 0,
        calls: Vec::new(),
        room: room(),
        hosts: BTreeSet::new(),
        collector,
        attempts,
        probe,
        console,
    };
    let answer = client.run(deadline);
    let MulticastClient { doors, mut attempts, probe, collector, .. } = client;
    attempts.forget_last_calls(Instant::now());
    if probe.watch.is_some() {
        // No firewall kept out what waits to be accepted.
        for (_, from, _) in doors.accept(CONNECTIONS_MAX) {
            attempts.record_arrival(from.ip());
        }
    }
    attempts.call_back_ports = doors.used_ports();
    doors.finish(match answer {
        _ if !attempts.has_sent() => RunEnd::NothingSent,
        Ok(Some(_)) => RunEnd::Answered,
        _ => RunEnd::Unanswered,
    });
    attempts.key = describe_key(plan, key);
    attempts.sealed = is_sealed(plan);
    Ok(MulticastResult { answer, attempts, rows: collector.into_rows() })
}

/// Returns the number of connections that this process can hold.
fn room() -> usize {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    let room = usize::try_from(limit.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(CONNECTIONS_MAX);
    room.clamp(ACCEPTED_AT_ONCE, CONNECTIONS_MAX)
}

/// Returns a new run. A packet without a hash carries no random bytes.
fn new_run(plan: &RequestPlan) -> Result<ClientRun, MulticastFailure> {
    let [a, b, c, d, e, f] = random_bytes()?;
    let has_nonce = plan.hash != HashType::None;
    Ok(ClientRun::new(if has_nonce { [a, b, c, d, e, f] } else { [a, b, c, 0, 0, 0] }))
}

/// Multicast request in progress.
struct MulticastClient<'a> {
    plan: &'a RequestPlan,
    to: MulticastSettings,
    key: Option<&'a Key>,
    /// Proof that hosts must give; for sealed requests with all packets that were sent.
    auth: ClientAuth<'a>,
    doors: CallBackDoors<'a>,
    /// Number of packets so far: no two are equal.
    packets: u32,
    calls: Vec<CallBackConnection<'a>>,
    /// Largest number of `calls`.
    room: usize,
    /// Addresses at which somebody holds the key: their connections are evicted last.
    hosts: BTreeSet<IpAddr>,
    collector: AnswerCollector<Box<dyn Write>>,
    attempts: MulticastAttempts,
    probe: MulticastProbe,
    console: &'a Console,
}

impl<'a> MulticastClient<'a> {
    /// Sends the request again and again, and returns the answer; none when time ran out.
    fn run(&mut self, deadline: Deadline) -> Result<Option<HostAnswer>, MulticastFailure> {
        while deadline.remaining().is_some() {
            let end = self.end_of_wait(deadline);
            if end.is_some_and(|at| at.remaining().is_none()) {
                return self.conclude(&format!("silent for {} s", STALL_LIMIT.as_secs()));
            }
            self.tend_doors(end)?;
            // A host with the permission to act needs no repetition. The C daemon carries a repetition out
            // again when it reads it after ten seconds.
            let asks = end.is_none() && !self.is_acting();
            if asks {
                for due in self.doors.due() {
                    self.transmit(due, deadline)?;
                }
            }
            let mut until = end.unwrap_or(deadline);
            if asks {
                until = self.doors.next_sending().map_or(until, |at| until.min(at));
            }
            if let Some(pause) = self.doors.look_pause() {
                until = until.min(Deadline::after(pause));
            }
            for list_until in self.calls.iter().filter_map(|c| c.list_until) {
                until = until.min(list_until);
            }
            let in_time = self.collector.quiet_time().is_none_or(|(_, end)| end.remaining().is_some());
            let ready = self.wait_until_ready(until).map_err(MulticastFailure::Poll)?;
            self.record_watched_calls();
            if let Some(answer) = self.serve_ready(&ready.calls)? {
                return Ok(Some(answer));
            }
            if ready.listener {
                self.take_calls(self.doors.accept(ACCEPTED_AT_ONCE), in_time)?;
            }
            if self.probe.only_call_back && self.has_called_back() {
                break;
            }
        }
        self.conclude("time ran out")
    }

    /// Takes turns at ports and passes them on. `end` is the end of the wait for another host, if there is
    /// one.
    fn tend_doors(&mut self, end: Option<Deadline>) -> Result<(), MulticastFailure> {
        let believed_since = self.calls.iter().filter_map(|it| it.believed_at).min();
        let quiet = self.to.quiet;
        let wait = if self.collector.wants_all_hosts() { quiet } else { quiet.min(OTHER_HOSTS) };
        let need = match believed_since {
            Some(since) => DoorNeed::Called(since, wait),
            None if end.is_some() => DoorNeed::Called(Instant::now(), quiet),
            None => DoorNeed::Listening,
        };
        let mut last_calls = Vec::new();
        let tended = self.doors.tend(need, |doors| {
            last_calls = doors.accept(ACCEPTED_AT_ONCE);
        });
        self.take_calls(last_calls, true)?;
        tended.map_err(MulticastFailure::Listen)
    }

    /// Returns whether a peer has called back and was believed, or refused. In a classic call-back the host's
    /// challenge tells its kind.
    fn has_called_back(&self) -> bool {
        let is_classic = matches!(self.auth, ClientAuth::Classic(..));
        let has_shown_all = |it: &CallBackConnection<'_>| match is_classic {
            true => it.exchange.is_asking_for_proof(),
            false => it.exchange.is_believed(),
        };
        !self.attempts.call_backs.is_empty() || self.calls.iter().any(has_shown_all)
    }

    /// Records the hosts that have proved themselves, and the kinds of those whose challenges are here. A
    /// sealed stream shows none: only a host of ours has it.
    fn record_hosts(&mut self) {
        /// Without authentication anybody is believed.
        const REMEMBERED: usize = 64;
        for call in self.calls.iter().filter(|it| it.believed_at.is_some()) {
            if self.hosts.len() < REMEMBERED {
                self.hosts.insert(call.from.ip());
            }
        }
        if matches!(self.auth, ClientAuth::Classic(..)) {
            for call in &self.calls {
                if let Some(name) = call.exchange.call_name() {
                    self.attempts.kinds.record(call.from.ip(), name);
                }
            }
        }
    }

    /// Records the call-backs that the watch has seen.
    fn record_watched_calls(&mut self) {
        let calls = self.probe.watch.iter().flat_map(CallWatch::calls);
        let (ports, now) = (self.doors.used_ports(), Instant::now());
        for (from, port) in calls.filter(|(_, port)| ports.contains(port)) {
            self.attempts.record_watched_call(from, port, now);
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
    /// it cannot delay the end. Nobody is waited for longer after a host told that it would do what is asked
    /// about.
    fn end_of_wait(&self, deadline: Deadline) -> Option<Deadline> {
        let (quiet, end) = self.collector.quiet_time()?;
        if self.collector.has_yes() {
            return Some(end.min(deadline));
        }
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
        let is_open = is_acting && !self.collector.wants_all_hosts() && !self.collector.has_yes();
        if is_open { Ok(None) } else { self.collector.conclude() }
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
            Ok(HostAnswer::Forecast { response, text }) => {
                (format!("would answer with {response}: {}", escaped(text)), StreamProgress::Answered)
            }
            Ok(HostAnswer::List { entries, .. }) => (
                format!("listed {} domain{}", entries.len(), if entries.len() == 1 { "" } else { "s" }),
                StreamProgress::Answered,
            ),
            Err(error) => (error.to_string(), StreamProgress::Failed(*error)),
        };
        self.console.debug(&format_args!("call-back from {}: {words}", call.from));
        self.attempts.record_call_back(call.from, words, progress);
        let failed = match &result {
            Ok(HostAnswer::Response(response @ (Response::Failure | Response::PermissionDenied))) => {
                Some((*response, None))
            }
            Ok(HostAnswer::Failed(reason)) => Some((Response::Failure, Some(reason.clone()))),
            Ok(HostAnswer::Forecast { response, text }) if *response != Response::Success => {
                Some((*response, Some(text.clone())))
            }
            _ => None,
        };
        if let Some((response, reason)) = failed {
            let is_denied = response == Response::PermissionDenied;
            self.attempts.record_failure(HostFailure { from: call.from.ip(), is_denied, reason });
        }
        let now = Instant::now();
        let since_proof = call.permitted_at.map(|instant| now.duration_since(instant)).unwrap_or_default();
        self.collector.take_result(call.from, result, since_proof, now)
    }

    /// Sends one datagram from each of our addresses. Reads the addresses each time: an interface may have
    /// come up.
    fn transmit(&mut self, due: DueSending, deadline: Deadline) -> Result<(), MulticastFailure> {
        let mut interfaces = interfaces().map_err(MulticastFailure::Poll)?;
        // Loopback comes last: the host of this guest is not there.
        interfaces.sort_by_key(Interface::is_loopback);
        let family = self.to.family();
        let senders: Vec<(&Interface, Address)> = interfaces
            .iter()
            .filter(|it| it.is_up())
            .flat_map(|it| {
                it.addresses.iter().filter(move |a| is_sender(a, it, family)).map(move |a| (it, *a))
            })
            .collect();
        let addresses: Vec<_> = senders.iter().map(|(_, address)| address.ip).collect();
        self.doors
            .enter_sending(due, &addresses, deadline, self.to.retransmit)
            .map_err(MulticastFailure::Record)?;
        for (interface, address) in senders {
            self.packets = self.packets.wrapping_add(1);
            let [rest @ .., _] = self.packets.to_le_bytes();
            let request = Request {
                action: self.plan.action,
                target: self.plan.target.clone(),
                call_back: Some(CallBack { address: address.ip, port: due.port }),
                nonce: self.doors.run().nonce(rest),
                sequence: due.sequence,
            };
            let packet = self.plan.encode_packet(&request, self.key);
            self.auth.add(&packet);
            self.send(interface, address, &packet);
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
    fn wait_until_ready(&self, until: Deadline) -> io::Result<ReadySockets> {
        let mut fds: Vec<_> =
            self.doors.listeners().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)).collect();
        let listeners = fds.len();
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
        let listener = ready.by_ref().take(listeners).filter(|it| *it).count() > 0;
        Ok(ReadySockets { listener, calls: ready.collect() })
    }

    /// Returns whether nobody at the address of this peer has proved to be a host.
    fn may_be_evicted(&self, call: &CallBackConnection<'_>) -> bool {
        !call.exchange.is_believed() && !self.hosts.contains(&call.from.ip())
    }

    /// Begins the exchanges with new peers, for which others make room.
    fn take_calls(
        &mut self,
        new: Vec<(TcpStream, SocketAddr, usize)>,
        in_time: bool,
    ) -> Result<(), MulticastFailure> {
        let room = self.room.saturating_sub(new.len());
        let mut unproven = BTreeMap::<IpAddr, usize>::new();
        if self.calls.len() > room {
            let calls = self.calls.iter().filter(|it| self.may_be_evicted(it));
            calls.for_each(|it| *unproven.entry(it.from.ip()).or_default() += 1);
        }
        while self.calls.len() > room {
            self.evict_one(&mut unproven);
        }
        for (stream, from, opening) in new {
            self.take_call(stream, from, opening, in_time)?;
        }
        Ok(())
    }

    /// Begins the exchange with a peer that called back.
    fn take_call(
        &mut self,
        stream: TcpStream,
        from: SocketAddr,
        opening: usize,
        in_time: bool,
    ) -> Result<(), MulticastFailure> {
        let Ok(to) = stream.local_addr() else { return Ok(()) };
        if stream.set_nonblocking(true).is_err() {
            return Ok(());
        }
        let _ = stream.set_nodelay(true);
        self.console.debug(&format_args!("call-back from {from}"));
        self.attempts.record_arrival(from.ip());
        let run = self.doors.run();
        let c1 = match self.auth {
            ClientAuth::Classic(_, key) => new_named_challenge(key, run),
            ClientAuth::Open | ClientAuth::Sealed(..) => new_challenge(),
        };
        let mut exchange = HostExchange::called_back(self.plan.action, self.auth.clone(), run, c1?);
        let unsent = exchange.take_output();
        let last_heard = Instant::now();
        let permitted_at = matches!(self.auth, ClientAuth::Open).then_some(last_heard);
        let mut call = CallBackConnection {
            from,
            path: CallPath { from: from.ip(), to: to.ip() },
            opening,
            stream,
            exchange,
            unsent,
            believed_at: permitted_at,
            permitted_at,
            last_heard,
            in_time,
            list_until: None,
        };
        // The rest goes when the socket is ready. An error shows when the socket is read.
        let _ = call.flush();
        self.calls.push(call);
        Ok(())
    }

    /// Evicts the oldest peer of the address that has most of them, among those at which no host has proved
    /// itself; or else the oldest without the permission to act. So a flood from one address costs that
    /// address alone, and one from many leaves a host some hundred connections' time for its first proof.
    fn evict_one(&mut self, unproven: &mut BTreeMap<IpAddr, usize>) {
        let most = unproven.iter().max_by_key(|it| *it.1).map(|it| *it.0);
        let is_of_most = |it: &CallBackConnection<'_>| Some(it.from.ip()) == most && self.may_be_evicted(it);
        let index = self.calls.iter().position(is_of_most);
        let index = index.or_else(|| self.calls.iter().position(|it| it.permitted_at.is_none()));
        let index = index.unwrap_or(0);
        if let Some(count) = most.and_then(|it| unproven.get_mut(&it)) {
            *count -= 1;
        }
        unproven.retain(|_, count| *count > 0);
        let call = self.calls.remove(index);
        let outcome = "evicted for newer ones".to_owned();
        if call.exchange.is_believed() {
            self.collector.record_lost(call.from, outcome.clone());
        }
        self.attempts.record_call_back(call.from, outcome, StreamProgress::Other);
    }

    /// Hangs up on hosts that speak of another request, or may do so. They carry nothing out without our
    /// proof.
    fn refuse_calls_for_others(&mut self) {
        for call in std::mem::take(&mut self.calls) {
            let Some(name) = call.exchange.call_name() else {
                self.calls.push(call);
                continue;
            };
            if self.doors.admits(call.opening, call.path, name) {
                self.calls.push(call);
                continue;
            }
            let outcome = match name {
                CallName::Unnamed => {
                    self.collector.await_again(call.from);
                    "hung up on: it may call for an earlier request"
                }
                CallName::Own | CallName::Other => "hung up on: it calls for another request",
            };
            self.console.debug(&format_args!("call-back from {}: {outcome}", call.from));
            self.attempts.record_call_back(call.from, outcome.to_owned(), StreamProgress::Other);
        }
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
                    // A host that speaks of another key or another request will do so again.
                    if error.is_broken_off() {
                        self.doors.ask_again(self.to.retransmit);
                    }
                }
            }
            if answer.is_some() {
                return Ok(answer);
            }
        }
        self.record_hosts();
        // A probe gives no proof, whomever a host calls for.
        if !self.probe.only_call_back {
            self.refuse_calls_for_others();
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

/// Returns whether the C agent sends from this address: on IPv6 from neither loopback nor link-local
/// addresses, which a host could not call back.
fn is_sender(address: &Address, interface: &Interface, family: Family) -> bool {
    match address.ip {
        IpAddr::V4(_) => family == Family::V4,
        IpAddr::V6(v6) => family == Family::V6 && !interface.is_loopback() && !v6.is_unicast_link_local(),
    }
}
