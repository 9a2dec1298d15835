// SPDX-License-Identifier: GPL-2.0-or-later
//! Common part of the TCP and vsock listeners: a client connects, sends its request packet, and the
//! conversation follows on the same stream.
//!
//! One task accepts and never waits for a peer; each connection is a task of its own. It must never look at
//! domains.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_wire::{REQUEST_LEN, Received, UnprovedRequest, escaped};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout_at;
use tracing::debug;

use super::admission::{Admission, AdmissionSlot, AdmissionTable};
use super::key_search::{FittedKeys, SearchResult, likely};
use super::rules::{CurrentRules, ListenerRules};
use crate::listener::auth::PacketProof;
use crate::listener::conversation::{ClientStream, converse};
use crate::listener::keys::ListenerKeys;
use crate::listener::limits::{
    KEYS_IN_A_ROW, MAX_CONNECTIONS, MAX_CONNECTIONS_OF_PEER, REQUEST_LIMIT, slots,
};
use crate::request::job::Arrival;
use crate::service::Service;
use crate::util::locks::lock;
use fence_core::access::Identity;
use fence_core::domain::PowerAction;

/// Pause after an accept that failed for lack of resources (descriptors, memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A transport on which clients connect to us.
pub(crate) trait Transport: Send + Sync + 'static {
    /// Name of the transport in logs and in the configuration.
    const NAME: &'static str;
    /// The listening socket.
    type Socket: Send + Sync + 'static;
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// Address of the peer by which connections are limited: without the port.
    type Peer: Copy + Eq + Hash + Display + Send + Sync + 'static;

    /// Returns the next connection, with the peer's address and its whole address for logs.
    fn accept(
        socket: &Self::Socket,
    ) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer, String)>> + Send;

    /// Returns the IP address of the peer, where it has one.
    fn address(_: Self::Peer) -> Option<IpAddr> {
        None
    }

    /// Returns the proved facts of the peer.
    fn identify(&self, peer: Self::Peer) -> impl Future<Output = Identity> + Send;
}

/// A listener on one transport.
pub(crate) struct StreamListener<T: Transport> {
    transport: T,
    service: Arc<Service>,
    rules: Arc<CurrentRules>,
    admissions: Arc<AdmissionTable<T::Peer>>,
    /// Keys that fitted last, by peers.
    fitted: Mutex<FittedKeys<T::Peer>>,
    /// Held by the connection that searches among all keys.
    search_turn: tokio::sync::Mutex<()>,
}

impl<T: Transport> StreamListener<T> {
    pub(crate) fn new(transport: T, service: Arc<Service>, rules: Arc<CurrentRules>) -> Arc<Self> {
        let admissions = AdmissionTable::new(slots(MAX_CONNECTIONS), MAX_CONNECTIONS_OF_PEER);
        let (fitted, search_turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Self { transport, service, rules, admissions, fitted, search_turn })
    }

    /// Serves for ever. The socket is no part of the listener, which each connection holds: dropped, this
    /// closes it, whatever still waits.
    pub(crate) async fn run(self: Arc<Self>, socket: T::Socket) {
        loop {
            let (stream, peer, name) = match T::accept(&socket).await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The connection broke before we took it, or the system lacks resources: neither lasts.
                    self.service.drops.note(T::NAME, "accept", &"the system", &error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let admission = self.admissions.take(peer, None, Instant::now());
            let Some(slot) = self.admitted(admission, peer) else { continue };
            tokio::spawn(Arc::clone(&self).serve(stream, peer, name, slot));
        }
    }

    async fn serve(self: Arc<Self>, mut stream: T::Stream, peer: T::Peer, name: String, slot: AdmissionSlot) {
        let arrived = Instant::now();
        let packet = tokio::select! {
            packet = self.read_packet(&mut stream, arrived, &name) => packet,
            () = slot.pushed_out() => return,
        };
        let Some(packet) = packet else { return };
        let rules = self.rules.now();
        let received = tokio::select! {
            received = self.check_packet(&packet, &rules, peer, &name) => received,
            () = slot.pushed_out() => return,
        };
        let Some(received) = received else { return };
        let tag = rules.auth.keys.tag(received.key);
        let Some(admission) = self.admissions.show_key(slot, tag, Instant::now()) else { return };
        let Some(slot) = self.admitted(admission, peer) else { return };
        let proof = PacketProof::of(&received);
        let Received { request, hash, key, dry_run, .. } = received;
        let job = self.service.accept(Arrival {
            arrived,
            transport: T::NAME,
            peer: name,
            identity: self.transport.identify(peer).await,
            hash,
            key: rules.auth.keys.proof(key),
            access: Arc::clone(&rules.access),
            rules: Some(self.rules.judge(&rules, proof, hash)),
            action: request.action,
            target: request.target,
            dry_run: dry_run.and_then(PowerAction::of_request),
        });
        let target = escaped(job.target.as_str());
        debug!(id = job.id, peer = %job.peer, action = %job.action, %target, "heard");
        let client = ClientStream { stream, slot };
        converse(Arc::clone(&self.service), client, rules.auth.clone(), proof, job, None, None).await;
    }

    /// Returns the slot of a peer, if it got one.
    fn admitted(&self, admission: Admission<T::Peer>, peer: T::Peer) -> Option<AdmissionSlot> {
        match admission {
            Admission::Granted(slot) => Some(slot),
            Admission::GrantedByEvicting(slot, loser) => {
                let why =
                    "closed before it sent its request and its challenge: there were too many connections";
                self.service.drops.note(T::NAME, "pushed-out", &loser, &why);
                Some(slot)
            }
            Admission::Refused => {
                let why = "too many requests are under way";
                self.service.drops.note(T::NAME, "too-many-connections", &peer, &why);
                None
            }
        }
    }

    /// Reads the request packet; none when it does not arrive whole and in time.
    async fn read_packet(
        &self,
        stream: &mut T::Stream,
        arrived: Instant,
        name: &str,
    ) -> Option<[u8; REQUEST_LEN]> {
        let mut packet = [0; REQUEST_LEN];
        let (reason, detail) =
            match timeout_at((arrived + REQUEST_LIMIT).into(), stream.read_exact(&mut packet)).await {
                Ok(Ok(_)) => return Some(packet),
                Err(_) => ("no-request", "no whole request came in time"),
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    ("hung-up", "it hung up before its request was whole")
                }
                Ok(Err(error)) => {
                    self.service.drops.note(T::NAME, "receive", &name, &error);
                    return None;
                }
            };
        self.service.drops.note(T::NAME, reason, &name, &detail);
        None
    }

    /// Decodes the packet and looks for replays; none for a packet that is dropped.
    async fn check_packet(
        &self,
        packet: &[u8; REQUEST_LEN],
        rules: &ListenerRules,
        peer: T::Peer,
        name: &str,
    ) -> Option<Received> {
        let keys = &rules.auth.keys;
        let received = match UnprovedRequest::take(packet, rules.minimum) {
            Ok(packet) => self.find_key(&packet, keys, peer).await,
            Err(error) => Err(error),
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                self.service.drops.note(T::NAME, error.reason(), &name, &error);
                return None;
            }
        };
        // A packet without a hash proves nothing, so a replay of it gains nothing.
        if let Some(tag) = keys.tag(received.key) {
            if !self.service.is_new(&tag, packet) {
                let why = "the very same packet was here before";
                self.service.drops.note(T::NAME, "replay", &name, &why);
                return None;
            }
            lock(&self.fitted).note(peer, received.key, keys);
        }
        Some(received)
    }

    /// Reads the packet by the key that fits. The search among many keys lets others go on meanwhile, and
    /// only one connection searches at a time.
    async fn find_key(&self, packet: &UnprovedRequest, keys: &ListenerKeys, peer: T::Peer) -> SearchResult {
        let found = likely(packet, peer, T::address(peer), keys, &lock(&self.fitted));
        if let Some(found) = found {
            return found;
        }
        let _turn = self.search_turn.lock().await;
        for place in 0..keys.all().len() {
            if place % KEYS_IN_A_ROW == 0 {
                tokio::task::yield_now().await;
            }
            if let Some(found) = packet.read_with(keys.all(), place) {
                return found;
            }
        }
        Err(packet.no_key_fits())
    }
}
