// SPDX-License-Identifier: GPL-2.0-or-later
//! Questions to the hosts of a multicast group in the protocol of clients: which domains they have, and the
//! status of one.
//!
//! Every host that holds the key calls back, C daemons too, and each proves itself before its word counts.
//! Owns the sockets of a question; runs on the caller's task. A list and a status change nothing at a host.
//! Must never send anything but these two, nor a datagram of another length than a request: a C daemon runs
//! the request before again then. Must never use a sequence number twice: a C daemon answers only once.

mod call_back;
mod client_keys;
mod limits;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use fence_core::domain::DomainId;
use fence_core::listing::HostReply;
use fence_net::{Interface, InterfaceAddress, MulticastSender};
use fence_wire::{Action, CallBack, Family, Key, MULTICAST_TTL, REQUEST_LEN, Request, SentRequests, Target};
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tracing::debug;

use self::call_back::CallBackStream;
pub(crate) use self::client_keys::ClientKeys;
use self::limits::{CALL_LIMIT, GRACE, MAX_CALLS, MAX_CALLS_OF_HOST, SEND_AT};
pub(crate) use self::limits::{FIND_LIMIT, LOOK_LIMIT};
use crate::util::locks::lock;

/// Question to all hosts of a group.
#[derive(Clone, Debug)]
pub(crate) struct GroupQuestion {
    pub(crate) group: IpAddr,
    pub(crate) port: u16,
    /// Domain whose status is asked beside the list.
    pub(crate) about: Option<DomainId>,
    /// Daemons of ours do not answer this question: they are asked by host messages.
    pub(crate) is_from_host: bool,
}

impl GroupQuestion {
    /// Returns true if nobody in particular must answer.
    fn is_search(&self) -> bool {
        self.is_from_host && self.about.is_none()
    }
}

/// Reply of one host, by the address from which it called back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReplyFrom {
    pub(crate) host: IpAddr,
    pub(crate) reply: HostReply,
}

/// Address from which a question goes out, with the index of its interface.
pub(crate) type SenderAddress = (u32, InterfaceAddress);

/// Returns the addresses from which the group can be asked by these interfaces, one of each. Loopback has no
/// other host.
pub(crate) fn senders<'a>(group: IpAddr, by: impl Iterator<Item = &'a Interface>) -> Vec<SenderAddress> {
    let usable = |it: &&InterfaceAddress| match it.ip {
        IpAddr::V4(_) => group.is_ipv4(),
        // A host could not call a link-local address back.
        IpAddr::V6(v6) => group.is_ipv6() && !v6.is_unicast_link_local(),
    };
    by.filter(|it| it.is_up() && !it.is_loopback())
        .filter_map(|it| Some((it.index, *it.addresses.iter().find(usable)?)))
        .collect()
}

/// Asks, and takes all call-backs until `until`, or until `is_enough` says that nobody is missing. Each
/// call-back has a time of its own. Must run inside the runtime.
///
/// # Errors
/// There is no socket for the call-backs.
pub(crate) async fn ask(
    question: &GroupQuestion,
    from: Vec<SenderAddress>,
    keys: Arc<ClientKeys>,
    until: Instant,
    is_enough: impl Fn(&[ReplyFrom]) -> bool,
) -> io::Result<Vec<ReplyFrom>> {
    let (mut round, listener) = ListRound::open(question, from, keys, until)?;
    let began = Instant::now();
    // A search comes again by itself, and each repetition makes every host call back once more.
    let times = if question.is_search() { &SEND_AT[..1] } else { &SEND_AT[..] };
    let times: Vec<_> = times.iter().map(|it| began + *it).collect();
    round.run(&listener, &times, std::future::pending(), is_enough).await;
    Ok(round.replies)
}

/// Looks for hosts: asks at these times, and hands every call-back on as it comes, until `until`, or until
/// `stop` is over. A host that is slow calls back late, and is found all the same. Must run inside the
/// runtime.
///
/// # Errors
/// There is no socket for the call-backs.
pub(crate) async fn search(
    question: &GroupQuestion,
    from: Vec<SenderAddress>,
    keys: Arc<ClientKeys>,
    (times, until): (&[Instant], Instant),
    stop: impl Future<Output = ()>,
    mut found: impl FnMut(&ReplyFrom),
) -> io::Result<()> {
    let (mut round, listener) = ListRound::open(question, from, keys, until)?;
    let each = |replies: &[ReplyFrom]| {
        replies.last().into_iter().for_each(&mut found);
        false
    };
    round.run(&listener, times, stop, each).await;
    Ok(())
}

/// Waits until an instant; for ever without one.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Opens the port for call-backs: this one, which firewalls may have open, or any free one.
fn call_back_listener(group: IpAddr, port: u16) -> io::Result<TcpListener> {
    let family = if group.is_ipv4() { Family::V4 } else { Family::V6 };
    let listener =
        fence_net::call_back_listener(family, port).or_else(|_| fence_net::call_back_listener(family, 0))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Stage of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Call-backs are taken.
    Open,
    /// Only those that are there are waited for.
    Closing,
}

/// Call-backs of one question.
struct ListRound {
    packets: Packets,
    calls: JoinSet<(IpAddr, Option<HostReply>)>,
    of_host: HashMap<IpAddr, usize>,
    replies: Vec<ReplyFrom>,
    until: Instant,
}

impl ListRound {
    /// Opens the port for call-backs.
    fn open(
        question: &GroupQuestion,
        from: Vec<SenderAddress>,
        keys: Arc<ClientKeys>,
        until: Instant,
    ) -> io::Result<(Self, TcpListener)> {
        let listener = call_back_listener(question.group, keys.call_back_port)?;
        let port = listener.local_addr()?.port();
        let round = Self {
            packets: Packets::new(question, from, keys, port),
            calls: JoinSet::new(),
            of_host: HashMap::new(),
            replies: Vec::new(),
            until,
        };
        Ok((round, listener))
    }

    /// Asks at these times and takes call-backs, until the end, until `stop` is over, or until a reply
    /// was enough.
    async fn run(
        &mut self,
        listener: &TcpListener,
        times: &[Instant],
        stop: impl Future<Output = ()>,
        mut is_enough: impl FnMut(&[ReplyFrom]) -> bool,
    ) {
        let mut turn = 0;
        let mut stop = std::pin::pin!(stop);
        while let Some(left) = self.time_left() {
            let send_at = times.get(turn).copied().filter(|_| left == Stage::Open);
            tokio::select! {
                () = at(send_at) => {
                    self.packets.send();
                    turn += 1;
                }
                accepted = listener.accept(), if left == Stage::Open => match accepted {
                    Ok((stream, peer)) => self.take(stream, peer.ip().to_canonical()),
                    // No descriptor is left, or the peer is gone already.
                    Err(error) => debug!("a call-back was lost: {error}"),
                },
                Some(done) = self.calls.join_next() => {
                    if let Ok((host, Some(reply))) = done {
                        self.replies.push(ReplyFrom { host, reply });
                        if is_enough(&self.replies) {
                            self.until = self.until.min(Instant::now() + GRACE);
                            turn = times.len();
                        }
                    }
                }
                () = &mut stop, if left == Stage::Open => self.until = Instant::now(),
                () = sleep_until(self.until.into()), if left == Stage::Open => {}
            }
        }
    }

    /// Returns the stage; none at the end.
    fn time_left(&self) -> Option<Stage> {
        match (Instant::now() < self.until, self.calls.is_empty()) {
            (true, _) => Some(Stage::Open),
            (false, false) => Some(Stage::Closing),
            (false, true) => None,
        }
    }

    /// Begins a conversation. Whoever connects too often is not heard.
    fn take(&mut self, stream: TcpStream, host: IpAddr) {
        let of_host = self.of_host.entry(host).or_default();
        if self.calls.len() >= MAX_CALLS || *of_host >= MAX_CALLS_OF_HOST {
            return debug!(%host, "too many call-backs; this one is not taken");
        }
        *of_host += 1;
        let call = CallBackStream {
            keys: Arc::clone(&self.packets.keys),
            sent: Arc::clone(&self.packets.sent),
            limit: CALL_LIMIT,
        };
        self.calls.spawn(async move { (host, call.converse(stream).await) });
    }
}

/// Datagrams of a question.
struct Packets {
    group: IpAddr,
    port: u16,
    keys: Arc<ClientKeys>,
    /// Sealed packets that were sent with each key.
    sent: Arc<std::sync::Mutex<Vec<SentRequests>>>,
    /// Requests, for each address from which they are sent.
    requests: Vec<(SenderAddress, Request)>,
    is_from_host: bool,
}

impl Packets {
    fn new(question: &GroupQuestion, from: Vec<SenderAddress>, keys: Arc<ClientKeys>, port: u16) -> Self {
        let mut requests = Vec::new();
        for sender in from {
            let call_back = Some(CallBack { address: sender.1.ip, port });
            let mut add = |action, target| {
                let request = Request { action, target, call_back, nonce: [0; 6], sequence: 0 };
                requests.push((sender, request));
            };
            add(Action::List, Target::none());
            let target = question.about.and_then(|it| Target::new(&it.to_string(), true).ok());
            if let Some(target) = target {
                add(Action::Status, target);
            }
        }
        let sent = keys.keys.iter().filter_map(|_| keys.hash.sealed().map(SentRequests::new)).collect();
        let GroupQuestion { group, port, is_from_host, .. } = *question;
        Self { group, port, keys, sent: Arc::new(std::sync::Mutex::new(sent)), requests, is_from_host }
    }

    /// Sends all once, with each key.
    fn send(&self) {
        for ((index, source), request) in &self.requests {
            let sender = MulticastSender::open(*source, *index, self.group, self.port, MULTICAST_TTL);
            let sent = sender
                .and_then(|sender| self.encoded(request).iter().try_for_each(|packet| sender.send(packet)));
            if let Err(error) = sent {
                debug!(from = %source.ip, group = %self.group, "can't ask the other hosts: {error}");
            }
        }
    }

    fn encoded(&self, request: &Request) -> Vec<[u8; REQUEST_LEN]> {
        // A number of its own for each packet: a host that hears two interfaces answers by both, so that each
        // of its addresses answers in each round; and a C daemon that could not call back takes no packet up
        // again.
        let fresh = || Request { nonce: random(), sequence: u32::from_le_bytes(random()), ..request.clone() };
        let encode = |key: Option<&Key>| match key {
            _ if self.is_from_host => fresh().encode_from_host(self.keys.hash, key),
            Some(key) => fresh().encode(self.keys.hash, key),
            None => fresh().encode_unauthenticated(),
        };
        if self.keys.keys.is_empty() {
            return vec![encode(None)];
        }
        let mut packets = Vec::new();
        for (number, key) in self.keys.keys.iter().enumerate() {
            let packet = encode(Some(key));
            if let Some(sent) = lock(&self.sent).get_mut(number) {
                sent.add(&packet);
            }
            packets.push(packet);
        }
        packets
    }
}

/// Returns random bytes. Without any from the system the number is that of the clock: a repeated one only
/// makes a host silent.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if SysRng.try_fill_bytes(&mut bytes).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes.iter_mut().zip(now.as_nanos().to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    bytes
}
