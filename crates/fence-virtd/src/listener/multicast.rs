// SPDX-License-Identifier: GPL-2.0-or-later
//! The multicast listener: hears requests as datagrams, and calls each client back over TCP.
//!
//! One task reads the socket and never waits for anything else; each request is a task of its own. The read side
//! checks, counts and remembers; it must never look at domains.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::MulticastListener as Settings;
use fence_net::{MulticastListener as Socket, Scope};
use fence_wire::{CallBack, HashType, Received, Request, escaped};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout_at;
use tracing::{debug, info, warn};

use self::members::GroupMembership;
use super::StartError;
use super::admission::{Admission, AdmissionSlot, AdmissionTable, SettledSlot};
use super::rules::{CurrentRules, ListenerRules};
use crate::listener::conversation::{PacketProof, converse};
use crate::listener::limits::{
    CALL_BACK_LIMIT, CALL_BACK_LIMIT_WITH_OTHERS, FOREIGN_GRACE, MAX_ADDRESSES, MAX_FOREIGN, MAX_REQUESTS,
    MAX_REQUESTS_OF_PEER, OWNERS_HEAD_START, RECEIVE_BUFFER,
};
use crate::listener::sources::SourceResolver;
use crate::request::job::{AnsweringHost, RequestJob, ResolvedTarget};
use crate::request::trail::AgentRunTrail;
use crate::service::Service;
use crate::util::locks::lock;
use fence_core::access::Identity;
use fence_core::history::{History, Repetition, RequestKey};

mod members;

const NAME: &str = "multicast";
/// Datagrams that are read in a row before what they asked for is begun.
const MAX_BATCH: usize = 256;

/// A listener that hears its group.
pub(crate) struct MulticastReceiver {
    service: Arc<Service>,
    socket: UdpSocket,
    rules: Arc<CurrentRules>,
    sources: Arc<SourceResolver>,
    history: Mutex<History<AlternateAddresses>>,
    places: Arc<AdmissionTable<IpAddr>>,
    negative_delay: Duration,
    /// The latest request of each client, until it was reached.
    clients: Mutex<HashMap<CallBackKey, LatestRequest>>,
    /// For requests that are to be answered elsewhere than where they came from, until that has answered.
    redirected_callbacks: Arc<AdmissionTable<IpAddr>>,
    members: GroupMembership,
}

/// An address and port to call back, and the place of the key: a packet may name any address, and must not end what
/// somebody with another key asked from there.
type CallBackKey = (SocketAddr, Option<usize>);

/// Further addresses that packets of one request named.
type AlternateAddresses = Arc<Mutex<Vec<SocketAddr>>>;

impl MulticastReceiver {
    /// Opens the socket. Must run inside the runtime.
    pub(crate) fn start(
        settings: &Settings,
        service: Arc<Service>,
        sources: Arc<SourceResolver>,
        rules: Arc<CurrentRules>,
    ) -> Result<Arc<Self>, StartError> {
        let watch = GroupMembership::watch()
            .map_err(|error| StartError::Socket(format!("can't watch the network interfaces: {error}")))?;
        let Socket { socket, joined, failed } = open(settings)?;
        for it in failed {
            warn!(interface = %escaped(&it.name), "can't hear multicast there: {}", it.error);
        }
        let wrap = |e: io::Error| StartError::Socket(format!("multicast socket: {e}"));
        let buffer = socket2::SockRef::from(&socket);
        // A burst of requests must not be lost; past the system's limit only root may go.
        if nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .is_err()
        {
            buffer.set_recv_buffer_size(RECEIVE_BUFFER).map_err(wrap)?;
        }
        socket.set_nonblocking(true).map_err(wrap)?;
        let socket = UdpSocket::from_std(socket).map_err(wrap)?;
        info!(
            address = %settings.address, port = settings.port,
            interfaces = %joined.iter().map(|it| escaped(&it.name).to_string()).collect::<Vec<_>>().join(", "),
            "listening for multicast"
        );
        let members = GroupMembership {
            watch,
            group: settings.address,
            only: settings.interface.clone(),
            joined: Mutex::new(joined),
        };
        Ok(Arc::new(Self {
            service,
            socket,
            rules,
            sources,
            history: Mutex::new(History::new()),
            places: AdmissionTable::new(MAX_REQUESTS, MAX_REQUESTS_OF_PEER),
            negative_delay: settings.negative_delay,
            clients: Mutex::default(),
            redirected_callbacks: AdmissionTable::with_grace(MAX_FOREIGN, MAX_FOREIGN, FOREIGN_GRACE),
            members,
        }))
    }

    /// Serves for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.hear(), self.members.keep(&self.socket));
    }

    /// What waits in the socket is read before any of it is served: after a busy moment an abandoned request and the
    /// one of the next process at its port may be there together, and only the newer one may call back.
    async fn hear(self: &Arc<Self>) {
        // One byte more than any datagram of interest: what is too long must be seen to be too long.
        let mut datagram = [0; 2048];
        let mut batch = Vec::new();
        loop {
            let mut received = self.socket.recv_from(&mut datagram).await;
            for left in (0..MAX_BATCH).rev() {
                match received {
                    Ok((length, from)) => batch.extend(self.receive(&datagram[..length], from)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        // Errors of earlier datagrams (unreachable, interface down) are told here; none ends the socket.
                        self.service.drops.note(NAME, "receive", &"the system", &error);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        break;
                    }
                }
                // What is read here must be heard, too.
                if left == 0 {
                    break;
                }
                received = self.socket.try_recv_from(&mut datagram);
            }
            for heard in batch.drain(..) {
                tokio::spawn(Arc::clone(self).serve(heard));
            }
        }
    }

    fn receive(&self, datagram: &[u8], from: SocketAddr) -> Option<PendingRequest> {
        let arrived = Instant::now();
        let note = |reason, detail: &dyn std::fmt::Display| -> Option<PendingRequest> {
            self.service.drops.note(NAME, reason, &from.ip(), detail);
            None
        };
        let rules = self.rules.now();
        let received = match Request::decode(datagram, rules.minimum, rules.auth.keys.all()) {
            Ok(received) => received,
            Err(error) => return note(error.reason(), &error),
        };
        // The packet that is accepted first is the one that the call-back answers, wherever it goes.
        let proof = PacketProof::of(&received);
        let Received { request, key, hash, .. } = received;
        let Some(call_back) = request.call_back else {
            return note("no-call-back", &"the packet names no address to call back");
        };
        let address = match callable(call_back, from) {
            Ok(address) => address,
            Err(why) => return note("call-back-address", &why),
        };
        // Packets without a hash carry no random bytes: there an equal one may well be honest.
        if hash != HashType::None && !self.service.is_new(datagram) {
            return note("replay", &"the very same packet was here before");
        }
        let asked = {
            let mut history = lock(&self.history);
            match history.saw(arrived, key, &request, AlternateAddresses::default) {
                Repetition::Repeated(others) => {
                    let mut others = lock(others);
                    if others.len() < MAX_ADDRESSES && !others.contains(&address) {
                        others.push(address);
                    }
                    debug!(peer = %address, action = %request.action, "repeated");
                    return None;
                }
                Repetition::New(name, others) => (name, Arc::clone(others)),
            }
        };
        let is_foreign = address.ip().to_canonical() != from.ip().to_canonical();
        let places = if is_foreign { &self.redirected_callbacks } else { &self.places };
        let place = match places.take(address.ip(), arrived) {
            Admission::Granted(place) => place,
            Admission::GrantedByEvicting(place, loser) => {
                let why = "its address had not answered the call-back yet, and there were too many requests";
                self.service.drops.note(NAME, "pushed-out", &loser, &why);
                place
            }
            Admission::Refused => {
                lock(&self.history).forget(&asked.0);
                return note("too-many-requests", &"too many requests are under way");
            }
        };
        let job = RequestJob {
            id: self.service.next_id(),
            arrived,
            patience: self.service.client_timeout(),
            transport: NAME,
            peer: address.to_string(),
            identity: Identity { ip: Some(address.ip().to_canonical()), ..Identity::default() },
            hash,
            key: rules.auth.keys.proof(key),
            access: Arc::clone(&rules.access),
            action: request.action,
            target: request.target,
            trail: AgentRunTrail::default(),
        };
        debug!(id = job.id, peer = %job.peer, action = %job.action, target = %escaped(job.target.as_str()), "heard");
        if !self.register_latest((address, proof.key()), LatestRequest { id: job.id, is_foreign }) {
            lock(&self.history).forget(&asked.0);
            return note(
                "call-back-address",
                &"a request that came from the address itself is being called back there",
            );
        }
        lock(&asked.1).insert(0, address);
        Some(PendingRequest { job, proof, rules, address, asked, place })
    }

    async fn serve(
        self: Arc<Self>,
        PendingRequest { mut job, proof, rules, address: first, asked: (name, others), place }: PendingRequest,
    ) {
        let client = (first, proof.key());
        let reached = tokio::select! {
            reached = self.reach(&mut job, client, &others) => reached,
            () = place.pushed_out() => CallBackResult::Not,
        };
        match reached {
            CallBackResult::Client(stream, address, resolved) => {
                if let Some(_place) = self.settle(place, address) {
                    self.no_longer_latest(client, job.id);
                    converse(Arc::clone(&self.service), stream, rules.auth.clone(), proof, job, resolved)
                        .await;
                    return;
                }
                lock(&self.history).forget(&name);
            }
            // The client was never reached: its next transmission counts as new.
            CallBackResult::Not => lock(&self.history).forget(&name),
            CallBackResult::Superseded => {
                debug!(id = job.id, peer = %job.peer, "superseded before it was answered");
            }
        }
        self.no_longer_latest(client, job.id);
    }

    /// Looks whether the domain is ours and calls the client back: at once if it is, a little later if this host can
    /// pass the request on to the one that has it, and after the `negative_delay` if nobody is known to, because the client takes the first call-back and another host may have the
    /// domain.
    async fn reach(
        &self,
        job: &mut RequestJob,
        client: CallBackKey,
        others: &AlternateAddresses,
    ) -> CallBackResult {
        job.identity = self.sources.of_ip(client.0.ip()).await;
        let patience = tokio::time::sleep_until((job.arrived + self.negative_delay).into());
        tokio::pin!(patience);
        let resolved = tokio::select! {
            resolved = self.service.resolve(job) => Some(resolved),
            () = &mut patience => None,
        };
        match resolved.as_ref().map_or(AnsweringHost::Unknown, ResolvedTarget::owner) {
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
        let Some((stream, address)) = self.call_back(job, others).await else { return CallBackResult::Not };
        // Whoever took that connection asked something newer.
        if !self.is_latest(client, job.id) {
            return CallBackResult::Superseded;
        }
        job.peer = address.to_string();
        // Only now is the address proved, and the neighbour table sure to know it. If that makes it another source,
        // what it may fence is to be asked again.
        let identity = self.sources.of_ip(address.ip()).await;
        let resolved = resolved.filter(|_| identity == job.identity);
        job.identity = identity;
        CallBackResult::Client(stream, address, resolved)
    }

    /// The client was reached at `address`: its request is one of those that keep their place.
    fn settle(&self, place: AdmissionSlot<IpAddr>, address: SocketAddr) -> Option<SettledSlot<IpAddr>> {
        if !place.is_of(&self.redirected_callbacks) {
            return place.settle();
        }
        match self.places.take(address.ip(), Instant::now()) {
            Admission::Granted(place) | Admission::GrantedByEvicting(place, _) => place.settle(),
            Admission::Refused => {
                let why = "too many requests are under way";
                self.service.drops.note(NAME, "too-many-requests", &address.ip(), &why);
                None
            }
        }
    }

    /// A newer request from the same address and port is of a newer process: whatever comes to that port from now
    /// on must not answer an older one. False: who sends from elsewhere (a packet that was recorded, perhaps) does
    /// not take the place of who sends from the address itself.
    fn register_latest(&self, client: CallBackKey, newer: LatestRequest) -> bool {
        let mut clients = lock(&self.clients);
        if newer.is_foreign && clients.get(&client).is_some_and(|known| !known.is_foreign) {
            return false;
        }
        clients.insert(client, newer);
        true
    }

    fn is_latest(&self, client: CallBackKey, id: u64) -> bool {
        lock(&self.clients).get(&client).is_some_and(|latest| latest.id == id)
    }

    fn no_longer_latest(&self, client: CallBackKey, id: u64) {
        let mut clients = lock(&self.clients);
        if clients.get(&client).is_some_and(|latest| latest.id == id) {
            clients.remove(&client);
        }
    }

    /// Connects to the addresses that the client's packets name, one after the other: the client takes only one
    /// connection, and an address that answers nothing must not keep it from another that does.
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
                        "{} of {}: can't call the client back: {error}",
                        job.action,
                        escaped(job.target.as_str())
                    ),
                ),
                Err(_) => self.service.drops.note(
                    NAME,
                    "call-back-timed-out",
                    &address,
                    &format!(
                        "{} of {}: the client's address does not answer; is TCP port {} open there?",
                        job.action,
                        escaped(job.target.as_str()),
                        address.port()
                    ),
                ),
            }
        }
    }
}

/// A request that is to be served.
struct PendingRequest {
    job: RequestJob,
    proof: PacketProof,
    rules: Arc<ListenerRules>,
    address: SocketAddr,
    asked: (RequestKey, AlternateAddresses),
    place: AdmissionSlot<IpAddr>,
}

/// Which request is the latest of an address and port.
struct LatestRequest {
    id: u64,
    is_foreign: bool,
}

/// What became of a call-back.
enum CallBackResult {
    Client(TcpStream, SocketAddr, Option<ResolvedTarget>),
    Not,
    Superseded,
}

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

/// The address to connect to. A packet may name any address; some must never be called.
fn callable(call_back: CallBack, from: SocketAddr) -> Result<SocketAddr, &'static str> {
    let CallBack { address, port } = call_back;
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Err("the address to call back is no address of a host");
    }
    Ok(match (address, from) {
        // A link-local address means something only together with the interface that the packet came by.
        (IpAddr::V6(v6), SocketAddr::V6(from)) if v6.is_unicast_link_local() => {
            std::net::SocketAddrV6::new(v6, port, 0, from.scope_id()).into()
        }
        _ => SocketAddr::new(address, port),
    })
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Small messages to and fro: none may wait for another.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}
