// SPDX-License-Identifier: GPL-2.0-or-later
//! The multicast listener: receives requests as datagrams, and calls each client back over TCP.
//!
//! Owns the socket, the history of requests and the slots of its clients. One task reads the socket and waits
//! for nothing else; each request is a task of its own. The task that reads must never look for domains.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::MulticastListener as Settings;
use fence_net::{MulticastListener as Socket, Scope};
use fence_wire::{
    Action, CallBack, ClientRun, HOST_MAGIC, KeyTag, REQUEST_LEN, Received, RequestError, UnprovedRequest,
    escaped,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout_at;
use tracing::{debug, info, warn};

use self::members::GroupMembership;
use super::StartError;
use super::admission::{Admission, AdmissionSlot, AdmissionTable};
use super::key_search::{FittedKeys, SearchResult, WaitingSearches, among_all, likely};
use super::rules::{CurrentRules, ListenerRules};
use crate::listener::auth::PacketProof;
use crate::listener::conversation::{ClientStream, StreamOwnership, converse};
use crate::listener::limits::{
    CALL_BACK_LIMIT, CALL_BACK_LIMIT_WITH_OTHERS, MAX_ADDRESSES, MAX_REDIRECTED, MAX_REQUESTS,
    MAX_REQUESTS_OF_PEER, OWNERS_HEAD_START, RECEIVE_BUFFER, REDIRECTED_GRACE, SEARCH_SLICE, slots,
};
use crate::listener::sources::SourceResolver;
use crate::observe::metrics::ListenerName;
use crate::peers::{GroupLink, Peers};
use crate::request::job::{AnsweringHost, Arrival, RequestJob, ResolvedTarget};
use crate::service::Service;
use crate::util::locks::lock;
use fence_core::access::Identity;
use fence_core::domain::PowerAction;
use fence_core::history::{History, Repetition, RequestKey};

mod members;

const NAME: &str = "multicast";
/// Time after a request's arrival from which on its client may have been answered by another host, and
/// another process may have its port.
const LATE_CALL_BACK: Duration = Duration::from_millis(5);
/// Datagrams that are read in a row before their requests are served.
const MAX_BATCH: usize = 256;

/// The listener of one multicast group.
pub(crate) struct MulticastReceiver {
    /// Name of the listener in texts, which tells one of several multicast blocks from the others.
    name: Arc<ListenerName>,
    service: Arc<Service>,
    socket: UdpSocket,
    /// Datagrams are taken in just now.
    is_reading: AtomicBool,
    rules: Arc<CurrentRules>,
    sources: Arc<SourceResolver>,
    history: Mutex<History<AlternateAddresses>>,
    /// Slots of requests whose packet came from the address to call back.
    requests: Arc<AdmissionTable<IpAddr>>,
    negative_delay: Duration,
    /// The latest request of each client, until it is answered.
    clients: Mutex<HashMap<CallBackKey, LatestRequest>>,
    /// Slots of requests that name another address to call back than they came from, until that address
    /// answers.
    redirected_callbacks: Arc<AdmissionTable<IpAddr>>,
    /// Keys that fitted last, by the address that a packet came from.
    fitted: Mutex<FittedKeys<IpAddr>>,
    /// Packets that none of their likely keys fits. Only the task that reads takes them.
    searches: Mutex<WaitingSearches<WaitingPacket>>,
    members: GroupMembership,
    peers: Arc<Peers>,
    /// The way of the messages to other hosts, as long as this listener is there.
    _link: Arc<GroupLink>,
}

/// An address and port to call back, and the index of the key: a packet may name any address, and must not
/// supersede a request that was made from there with another key.
type CallBackKey = (SocketAddr, Option<usize>);

/// All addresses to call back that the packets of one request named.
type AlternateAddresses = Arc<Mutex<Vec<SocketAddr>>>;

impl MulticastReceiver {
    /// Opens the socket and joins the group. Must run inside the runtime.
    pub(crate) fn start(
        settings: &Settings,
        name: Arc<ListenerName>,
        service: Arc<Service>,
        sources: Arc<SourceResolver>,
        rules: Arc<CurrentRules>,
        peers: Arc<Peers>,
    ) -> Result<Arc<Self>, StartError> {
        let watch = GroupMembership::watch()
            .map_err(|error| StartError::Socket(format!("can't watch the network interfaces: {error}")))?;
        let Socket { socket, joined, failed } = open(settings)?;
        for interface in failed {
            warn!(interface = %escaped(&interface.name), "can't hear multicast there: {}", interface.error);
        }
        let wrap = |e: io::Error| StartError::Socket(format!("multicast socket: {e}"));
        let buffer = socket2::SockRef::from(&socket);
        // A burst of requests must not be lost; only root may exceed the system's limit.
        if nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .is_err()
        {
            buffer.set_recv_buffer_size(RECEIVE_BUFFER).map_err(wrap)?;
        }
        socket.set_nonblocking(true).map_err(wrap)?;
        let socket = UdpSocket::from_std(socket).map_err(wrap)?;
        let names: Vec<_> = joined.iter().map(|it| escaped(&it.name).to_string()).collect();
        info!(
            address = %settings.address, port = settings.port, interfaces = %names.join(", "),
            "listening for multicast"
        );
        let joined = Arc::new(Mutex::new(joined));
        let only = settings.interface.clone();
        let (group, port) = (settings.address, settings.port);
        let link = GroupLink { group, port, only, joined: Arc::clone(&joined) };
        let link = Arc::new(link);
        peers.use_group(&link);
        let members = GroupMembership {
            watch,
            group: settings.address,
            only: settings.interface.clone(),
            joined,
            peers: Arc::clone(&peers),
        };
        Ok(Arc::new(Self {
            name,
            service,
            socket,
            is_reading: AtomicBool::new(false),
            rules,
            sources,
            history: Mutex::new(History::new()),
            requests: AdmissionTable::new(slots(MAX_REQUESTS), MAX_REQUESTS_OF_PEER),
            negative_delay: settings.negative_delay,
            clients: Mutex::default(),
            redirected_callbacks: AdmissionTable::with_grace(
                MAX_REDIRECTED,
                MAX_REDIRECTED,
                REDIRECTED_GRACE,
            ),
            fitted: Mutex::default(),
            searches: Mutex::new(WaitingSearches::new(Instant::now())),
            members,
            peers,
            _link: link,
        }))
    }

    /// Serves for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.read_socket(), self.members.keep(&self.socket));
    }

    /// Reads all waiting datagrams before any of them is served. After a busy moment the socket may have an
    /// abandoned request and a newer one of the next process at the same port: only the newer one may be
    /// called back.
    async fn read_socket(self: &Arc<Self>) {
        // Longer than any valid packet, so that a packet that is too long is seen to be too long.
        let mut datagram = [0; 2048];
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                readable = self.socket.readable() => if let Err(error) = readable {
                    self.note_receive_error(&error).await;
                },
                () = self.search_due() => {}
            }
            self.is_reading.store(true, Ordering::SeqCst);
            for _ in 0..MAX_BATCH {
                match self.socket.try_recv_from(&mut datagram) {
                    Ok((length, from)) => batch.extend(self.receive(&datagram[..length], from)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        // Errors of earlier datagrams (unreachable, interface down) show here; the socket
                        // goes on after each.
                        self.note_receive_error(&error).await;
                        break;
                    }
                }
            }
            self.is_reading.store(false, Ordering::SeqCst);
            for pending in batch.drain(..).chain(self.search()) {
                tokio::spawn(Arc::clone(self).serve(pending));
            }
        }
    }

    /// Waits until a packet whose key is to be searched for may have its turn.
    async fn search_due(&self) {
        let due = lock(&self.searches).due();
        match due {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Searches for the keys of waiting packets, for so short a time that the socket is not kept waiting.
    fn search(&self) -> Vec<PendingRequest> {
        let (mut found, mut hashes) = (Vec::new(), 0);
        let rules = self.rules.now();
        let keys = &rules.auth.keys;
        while hashes < SEARCH_SLICE {
            let next = lock(&self.searches).next(Instant::now(), keys.all().len());
            let Some(WaitingPacket { packet, from, arrived }) = next else { break };
            hashes += keys.all().len().max(1);
            // The rules may be others than when the packet came.
            let received = UnprovedRequest::take(&packet, rules.minimum)
                .and_then(|it| it.read_without_hash().unwrap_or_else(|| among_all(&it, keys)));
            found.extend(self.take_in(&packet, received, from, arrived, Arc::clone(&rules)));
        }
        found
    }

    async fn note_receive_error(&self, error: &io::Error) {
        self.service.drops.note(NAME, "receive", &"the system", error);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    /// Returns whether every datagram that has come is taken in. One that was read before the look at the
    /// socket is taken in before `is_reading` ends.
    fn has_read_all(&self) -> bool {
        let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut socket, PollTimeout::ZERO), Ok(0)) && !self.is_reading.load(Ordering::SeqCst)
    }

    /// Takes one datagram in: returns the request that it asks for, if the request is new and gets a slot. A
    /// datagram that none of its likely keys fits waits for the search among all.
    fn receive(&self, datagram: &[u8], from: SocketAddr) -> Option<PendingRequest> {
        let arrived = Instant::now();
        if datagram.first() == Some(&HOST_MAGIC) {
            self.peers.receive_from_group(datagram, from);
            return None;
        }
        let rules = self.rules.now();
        let received = match UnprovedRequest::take(datagram, rules.minimum) {
            Ok(packet) => {
                let source = from.ip().to_canonical();
                let likely = likely(&packet, source, Some(source), &rules.auth.keys, &lock(&self.fitted));
                let Some(received) = likely else {
                    self.let_wait(WaitingPacket { packet: *packet.packet(), from, arrived });
                    return None;
                };
                received
            }
            Err(error) => Err(error),
        };
        self.take_in(datagram, received, from, arrived, rules)
    }

    /// Lets a packet wait for the search among all keys.
    fn let_wait(&self, packet: WaitingPacket) {
        let refused = lock(&self.searches).add(packet.from.ip().to_canonical(), packet);
        if let Some(refused) = refused {
            let why = "too many packets wait whose key is not known yet";
            self.service.drops.note(NAME, "keys-not-tried", &refused.from.ip(), &why);
        }
    }

    /// Takes in a datagram whose hash was looked at. Counts and logs one that is dropped.
    fn take_in(
        &self,
        datagram: &[u8],
        received: SearchResult,
        from: SocketAddr,
        arrived: Instant,
        rules: Arc<ListenerRules>,
    ) -> Option<PendingRequest> {
        let pending = self
            .check(datagram, received, from, &rules)
            .and_then(|packet| self.accept(&packet, arrived, rules));
        pending.unwrap_or_else(|dropped| {
            self.note_dropped(&dropped, from);
            None
        })
    }

    fn note_dropped(&self, dropped: &DroppedDatagram, from: SocketAddr) {
        if dropped.reason == RequestError::FromHost.reason() {
            // It asks C daemons so, and asks this one by host messages.
            return debug!(peer = %from, "another host asks as a client would");
        }
        let name = self.name.now();
        let detail = match name.strip_prefix(NAME).map(str::trim_start) {
            Some(place) if !place.is_empty() => format!("{} ({})", dropped.detail, escaped(place)),
            _ => dropped.detail.clone(),
        };
        self.service.drops.note(NAME, dropped.reason, &from.ip(), &detail);
    }

    /// Checks the call-back address of a packet whose hash fits, and that it is no replay.
    fn check(
        &self,
        datagram: &[u8],
        received: SearchResult,
        from: SocketAddr,
        rules: &ListenerRules,
    ) -> Result<CheckedPacket, DroppedDatagram> {
        let received = received.map_err(|error| DroppedDatagram::new(error.reason(), &error))?;
        let Some(call_back) = received.request.call_back else {
            return Err(DroppedDatagram::new("no-call-back", &"the packet names no address to call back"));
        };
        let address =
            callable(call_back, from).map_err(|why| DroppedDatagram::new("call-back-address", &why))?;
        // Packets without a hash carry no random bytes: two of them may be equal and honest.
        if let Some(tag) = rules.auth.keys.tag(received.key) {
            if !self.service.is_new(&tag, datagram) {
                return Err(DroppedDatagram::new("replay", &"the very same packet was here before"));
            }
            let source = from.ip().to_canonical();
            lock(&self.fitted).note(source, received.key, &rules.auth.keys);
        }
        let is_redirected = address.ip().to_canonical() != from.ip().to_canonical();
        Ok(CheckedPacket { received, address, is_redirected })
    }

    /// Makes a request of a packet: none for a repetition of a request that was accepted before.
    fn accept(
        &self,
        packet: &CheckedPacket,
        arrived: Instant,
        rules: Arc<ListenerRules>,
    ) -> Result<Option<PendingRequest>, DroppedDatagram> {
        let Some((request_key, addresses)) = self.remember(packet, arrived) else { return Ok(None) };
        // The packet that is accepted first is the one that the call-back answers, wherever it goes.
        let proof = PacketProof::of(&packet.received);
        let run = ClientRun::of(packet.received.request.sequence, packet.received.request.nonce);
        let admitted = self.admit(packet, &rules, arrived).and_then(|slot| {
            let job = self.job(packet, arrived, &rules);
            let (id, target) = (job.id, escaped(job.target.as_str()));
            debug!(id, peer = %job.peer, action = %job.action, %target, "heard");
            let is_redirected = packet.is_redirected;
            let latest = LatestRequest { id, is_redirected, request_key: request_key.clone() };
            self.register_latest((packet.address, proof.key()), latest)?;
            Ok((slot, job))
        });
        let (slot, job) = match admitted {
            Ok(admitted) => admitted,
            Err(dropped) => {
                lock(&self.history).forget(&request_key);
                return Err(dropped);
            }
        };
        lock(&addresses).insert(0, packet.address);
        let address = packet.address;
        Ok(Some(PendingRequest { job, proof, run, rules, address, request_key, addresses, slot }))
    }

    /// Enters a request into the history: returns its key, and the list for further addresses. None for a
    /// repetition, whose address is added to the list of the first packet.
    fn remember(&self, packet: &CheckedPacket, arrived: Instant) -> Option<(RequestKey, AlternateAddresses)> {
        let CheckedPacket { received: Received { request, key, .. }, address, .. } = packet;
        let mut history = lock(&self.history);
        match history.saw(arrived, *key, request, AlternateAddresses::default) {
            Repetition::Repeated(addresses) => {
                let mut addresses = lock(addresses);
                if addresses.len() < MAX_ADDRESSES && !addresses.contains(address) {
                    addresses.push(*address);
                }
                debug!(peer = %address, action = %request.action, "repeated");
                None
            }
            Repetition::New(request_key, addresses) => Some((request_key, Arc::clone(addresses))),
        }
    }

    /// Takes a slot for a request, perhaps by evicting another one.
    fn admit(
        &self,
        packet: &CheckedPacket,
        rules: &ListenerRules,
        arrived: Instant,
    ) -> Result<AdmissionSlot, DroppedDatagram> {
        let table = if packet.is_redirected { &self.redirected_callbacks } else { &self.requests };
        match table.take(packet.address.ip(), rules.auth.keys.tag(packet.received.key), arrived) {
            Admission::Granted(slot) => Ok(slot),
            Admission::GrantedByEvicting(slot, evicted) => {
                let why = "its address had not answered the call-back yet, and there were too many requests";
                self.service.drops.note(NAME, "pushed-out", &evicted, &why);
                Ok(slot)
            }
            Admission::Refused => {
                Err(DroppedDatagram::new("too-many-requests", &"too many requests are under way"))
            }
        }
    }

    /// Returns the request of a packet, before it is resolved and granted.
    fn job(&self, packet: &CheckedPacket, arrived: Instant, rules: &Arc<ListenerRules>) -> RequestJob {
        let CheckedPacket { received: Received { request, key, hash, dry_run, .. }, address, .. } = packet;
        self.service.accept(Arrival {
            arrived,
            transport: NAME,
            peer: address.to_string(),
            identity: Identity { ip: Some(address.ip().to_canonical()), ..Identity::default() },
            hash: *hash,
            key: rules.auth.keys.proof(*key),
            access: Arc::clone(&rules.access),
            rules: Some(self.rules.judge(rules, PacketProof::of(&packet.received), *hash)),
            action: request.action,
            target: request.target.clone(),
            dry_run: dry_run.and_then(PowerAction::of_request),
        })
    }

    /// Serves one request: calls the client back and converses with it.
    async fn serve(self: Arc<Self>, pending: PendingRequest) {
        let PendingRequest { mut job, proof, run, rules, address, request_key, addresses, slot } = pending;
        let client = (address, proof.key());
        let reached = tokio::select! {
            reached = self.reach(&mut job, client, &addresses) => reached,
            () = slot.pushed_out() => CallBackResult::NotReached,
        };
        match reached {
            CallBackResult::Reached(stream, address, resolved) => {
                let tag = rules.auth.keys.tag(proof.key());
                if let Some(slot) = self.of_reached(slot, address, tag) {
                    let ownership = self.ownership(client, run, &job, request_key);
                    let service = Arc::clone(&self.service);
                    let (id, auth) = (job.id, rules.auth.clone());
                    let stream = ClientStream { stream, slot };
                    converse(service, stream, auth, proof, job, resolved, Some(ownership)).await;
                    self.unregister(client, id);
                    return;
                }
                lock(&self.history).forget(&request_key);
            }
            // The client was never reached: its next transmission counts as new.
            CallBackResult::NotReached => {
                lock(&self.history).forget(&request_key);
                // Perhaps it took the call-back of another host.
                self.peers.say_hello_soon();
            }
            CallBackResult::Superseded => {
                debug!(id = job.id, peer = %job.peer, "superseded before it was answered");
            }
        }
        self.unregister(client, job.id);
    }

    /// Returns the check whether the stream of a request is still that of its process.
    fn ownership(
        self: &Arc<Self>,
        client: CallBackKey,
        run: ClientRun,
        job: &RequestJob,
        request_key: RequestKey,
    ) -> StreamOwnership {
        let (this, reader) = (Arc::clone(self), Arc::clone(self));
        StreamOwnership {
            run,
            has_read_all: Box::new(move || reader.has_read_all()),
            is_superseded: Box::new(move || {
                lock(&this.clients).get(&client).is_some_and(|latest| latest.request_key != request_key)
            }),
            is_late: job.arrived.elapsed() > LATE_CALL_BACK,
        }
    }

    /// Looks for the domain and calls the client back: at once if this host has the domain; a little later if
    /// this host can pass the request on to the owner; after the `negative_delay` if no owner is known. The
    /// client takes the first call-back, and another host may have the domain.
    async fn reach(
        &self,
        job: &mut RequestJob,
        client: CallBackKey,
        addresses: &AlternateAddresses,
    ) -> CallBackResult {
        job.identity = self.sources.of_ip(client.0.ip()).await;
        let patience = tokio::time::sleep_until((job.arrived + self.negative_delay).into());
        tokio::pin!(patience);
        let resolved = tokio::select! {
            resolved = self.service.resolve(job) => Some(resolved),
            () = &mut patience => None,
        };
        match resolved.as_ref().map_or(AnsweringHost::Unknown, |it| it.owner(job.action)) {
            AnsweringHost::ThisHost => {}
            AnsweringHost::Another => {
                let head_start = tokio::time::sleep_until((job.arrived + OWNERS_HEAD_START).into());
                tokio::select! {
                    () = head_start => {}
                    () = patience => {}
                }
            }
            AnsweringHost::Unknown => patience.await,
        }
        if !self.is_latest(client, job.id) {
            return CallBackResult::Superseded;
        }
        let Some((stream, address)) = self.call_back(job, addresses).await else {
            return CallBackResult::NotReached;
        };
        // If a newer request came from there meanwhile, the client's challenge tells whose the stream is.
        job.peer = address.to_string();
        // Only now is the address proved, and the neighbour table sure to have it. If the source turns out to
        // be another one, the access rules are asked again.
        let identity = self.sources.of_ip(address.ip()).await;
        let resolved = resolved.filter(|_| identity == job.identity);
        job.identity = identity;
        CallBackResult::Reached(stream, address, resolved)
    }

    /// Returns the slot of a request whose client was reached at `address`; one among those of redirected
    /// call-backs is given back for it. None if the slot is lost.
    fn of_reached(
        &self,
        slot: AdmissionSlot,
        address: SocketAddr,
        tag: Option<KeyTag>,
    ) -> Option<AdmissionSlot> {
        if !slot.is_of(&self.redirected_callbacks) {
            return Some(slot);
        }
        match self.requests.take(address.ip(), tag, Instant::now()) {
            Admission::Granted(slot) | Admission::GrantedByEvicting(slot, _) => Some(slot),
            Admission::Refused => {
                let why = "too many requests are under way";
                self.service.drops.note(NAME, "too-many-requests", &address.ip(), &why);
                None
            }
        }
    }

    /// Registers a request as the latest of its client. A newer request from the same address and port is of
    /// a newer process, and a connection to that port must no longer answer an older request. A packet that
    /// was sent from elsewhere (perhaps a recorded one) does not replace a request from the address itself.
    fn register_latest(&self, client: CallBackKey, newer: LatestRequest) -> Result<(), DroppedDatagram> {
        let mut clients = lock(&self.clients);
        if newer.is_redirected && clients.get(&client).is_some_and(|latest| !latest.is_redirected) {
            return Err(DroppedDatagram::new(
                "call-back-address",
                &"a request that came from the address itself is being answered there",
            ));
        }
        clients.insert(client, newer);
        Ok(())
    }

    fn is_latest(&self, client: CallBackKey, id: u64) -> bool {
        lock(&self.clients).get(&client).is_some_and(|latest| latest.id == id)
    }

    fn unregister(&self, client: CallBackKey, id: u64) {
        let mut clients = lock(&self.clients);
        if clients.get(&client).is_some_and(|latest| latest.id == id) {
            clients.remove(&client);
        }
    }

    /// Connects to the addresses that the client's packets name, one after the other: the client takes only
    /// one connection. A silent address must not block another one that answers.
    async fn call_back(
        &self,
        job: &RequestJob,
        addresses: &AlternateAddresses,
    ) -> Option<(TcpStream, SocketAddr)> {
        let mut tried = 0;
        loop {
            let (address, last) = {
                let addresses = lock(addresses);
                (*addresses.get(tried)?, addresses.len() == tried + 1)
            };
            tried += 1;
            let limit = if last { CALL_BACK_LIMIT } else { CALL_BACK_LIMIT_WITH_OTHERS };
            let until = job.deadline().min(Instant::now() + limit);
            match timeout_at(until.into(), connect(address)).await {
                Ok(Ok(stream)) => return Some((stream, address)),
                Ok(Err(error)) => self.service.drops.note(
                    NAME,
                    "call-back-failed",
                    &address,
                    &format!(
                        "{}: can't call the client back: {error}",
                        words(job.action, job.target.as_str())
                    ),
                ),
                Err(_) => self.service.drops.note(
                    NAME,
                    "call-back-timed-out",
                    &address,
                    &format!(
                        "{}: the client's address does not answer; is TCP port {} open there?",
                        words(job.action, job.target.as_str()),
                        address.port()
                    ),
                ),
            }
        }
    }
}

/// Returns a request in words. List and monitor name no domain.
fn words(action: Action, target: &str) -> String {
    if target.is_empty() { action.to_string() } else { format!("{action} of {}", escaped(target)) }
}

/// A datagram that is dropped: reason and detail.
struct DroppedDatagram {
    reason: &'static str,
    detail: String,
}

impl DroppedDatagram {
    fn new(reason: &'static str, detail: &dyn std::fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

/// A packet that waits for the search among all keys.
struct WaitingPacket {
    packet: [u8; REQUEST_LEN],
    from: SocketAddr,
    arrived: Instant,
}

/// A packet whose hash fits and that is no replay.
struct CheckedPacket {
    received: Received,
    /// The address to call back.
    address: SocketAddr,
    /// The packet came from another address than the one to call back.
    is_redirected: bool,
}

/// A request that is to be served.
struct PendingRequest {
    job: RequestJob,
    proof: PacketProof,
    run: ClientRun,
    rules: Arc<ListenerRules>,
    address: SocketAddr,
    request_key: RequestKey,
    addresses: AlternateAddresses,
    slot: AdmissionSlot,
}

/// The latest request of an address and port.
struct LatestRequest {
    id: u64,
    is_redirected: bool,
    /// A process keeps the sequence number of its request for all transmissions.
    request_key: RequestKey,
}

/// Result of a call-back.
enum CallBackResult {
    /// The client took the connection, at this address.
    Reached(TcpStream, SocketAddr, Option<ResolvedTarget>),
    /// No address of the client accepted a connection.
    NotReached,
    /// A newer request of the same client is served in place of this one.
    Superseded,
}

/// Opens the socket and joins the group.
fn open(settings: &Settings) -> Result<Socket, StartError> {
    let scope = match &settings.interface {
        None => Scope::All,
        Some(name) => match fence_net::interface_by_name(name) {
            Ok(Some(interface)) => Scope::Interface(interface.index),
            Ok(None) => {
                let known = fence_net::interfaces().map_or_else(
                    |_| "unknown".to_owned(),
                    |all| all.iter().map(|it| it.name.clone()).collect::<Vec<_>>().join(", "),
                );
                return Err(StartError::Socket(format!(
                    "no interface \"{}\" on this host (there are: {})",
                    escaped(name),
                    escaped(&known)
                )));
            }
            Err(error) => return Err(StartError::Socket(format!("can't list interfaces: {error}"))),
        },
    };
    fence_net::multicast_listener(settings.address, settings.port, scope).map_err(|error| {
        StartError::Socket(format!(
            "can't listen for multicast to {} port {}{}: {error}",
            settings.address,
            settings.port,
            settings.interface.as_ref().map(|it| format!(" on {}", escaped(it))).unwrap_or_default()
        ))
    })
}

/// Returns the address to connect to. A packet may name any address; some must never be called.
fn callable(call_back: CallBack, from: SocketAddr) -> Result<SocketAddr, &'static str> {
    let CallBack { address, port } = call_back;
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Err("the address to call back is no address of a host");
    }
    Ok(match (address, from) {
        // A link-local address is meaningful only with the interface that the packet came by.
        (IpAddr::V6(v6), SocketAddr::V6(from)) if v6.is_unicast_link_local() => {
            std::net::SocketAddrV6::new(v6, port, 0, from.scope_id()).into()
        }
        _ => SocketAddr::new(address, port),
    })
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Both sides send small messages: none may wait for another.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_a_domain_names_none() {
        assert_eq!(words(Action::List, ""), "list");
        assert_eq!(words(Action::Off, "vm1"), "off of vm1");
    }
}
