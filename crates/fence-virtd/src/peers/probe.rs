// SPDX-License-Identifier: GPL-2.0-or-later
//! The questions of `fence_virtd --check` to the other hosts: those of the daemon, asked beside it.
//!
//! Asks with the key pair, the keys and the table of the daemon, by the same code, and looks for the cause
//! where a host is silent. Reads the files of the state directory, and never writes one. Must never answer
//! another host, since that is for the daemon alone; must never speak with a key pair that is not the
//! daemon's, since the others would wait for that host for ever; and must never run `peer_down_command`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fence_config::{Config, MulticastListener};
use fence_core::domain::DomainId;
use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_core::hosts::{HostFinding, KnownHost, KnownHosts, Respondent};
use fence_net::{JoinedInterface, MulticastScope};
use fence_wire::{
    HostAnswer, HostBody, HostId, HostMessage, HostMessageError, HostNonce, HostSight, HostsKey, escaped,
};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use super::asking::sight;
use super::identity::{self, Identity};
use super::legacy::own_addresses;
use super::limits::PEER_LIMIT;
use super::links::{GroupLink, MessageWay, PeerSockets};
use super::nodes::WrittenNodes;
use super::settings::{PeerMode, PeerSettings, keys_of_listener};
use super::state::Peers;
use crate::backend::elsewhere::{DomainQuestion, NodeHosts};
use crate::lists::{self, FIND_LIMIT, LOOK_LIMIT};
use crate::nodes::NodeStore;
use crate::util::join::join_all;
use crate::util::locks::{Mutex, lock};

/// Time for an answer that shows why a host is silent.
const CLUE_LIMIT: Duration = Duration::from_millis(1500);
/// Pause before the hello that looks for a clue is sent again.
const CLUE_AGAIN: Duration = Duration::from_millis(250);
/// Pause between two looks for a clue.
const CLUE_PAUSE: Duration = Duration::from_millis(20);
/// Name and UUID of the domain that is asked about: no host has it.
const NOBODYS: (&str, [u8; 16]) = ("fence_virtd --check", *b"fence_virtd chk\0");

/// Another host, and what came of the daemon's question to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ProbedHost {
    /// Id of a host that was heard before, where it is known.
    pub(crate) id: Option<HostId>,
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) result: ProbeResult,
}

/// Sights of domains at other hosts, by the name of the host; none of a host that is silent.
pub(crate) type HostSights = BTreeMap<(DomainId, String), Option<Sight>>;

/// Result of a question to another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ProbeResult {
    /// Answers as the daemon needs it.
    Answers,
    /// Runs the C daemon, and answers as the daemon needs it.
    AnswersAsClient,
    /// Answers that it can't tell what it has: why.
    CantTell(String),
    /// Runs the C daemon, and nothing can be told of it: why, and behind the first semicolon the next step.
    ClientCantTell(String),
    /// Answers, and it is not known who that is: why, and the next step.
    InDoubt(String),
    /// A node of the cluster of this host, which is not asked by messages.
    Node,
    /// Answers nothing.
    Silent(SilenceClue),
}

/// Clue to the cause of a silence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SilenceClue {
    /// The system there, or a firewall, refuses the messages: nothing takes them.
    NothingThere,
    /// No way there: the error of the system here.
    NoWay(String),
    /// An address of this host.
    ThisHost,
    /// A host with another key pair answers there, by this name.
    OtherPair(String),
    /// Uses the key of the listener: it has no `peer_key_file`.
    ListenersKey,
    /// Uses a key that this host does not have.
    OtherKey,
    /// Answers a hello and no question.
    HelloAlone,
    /// Nothing came.
    Nothing,
}

/// Everything that came of the questions.
#[derive(Default, Debug)]
pub(crate) struct ProbeReport {
    pub(crate) hosts: Vec<ProbedHost>,
    /// Why a host may be missing in the daemon's table.
    pub(crate) missing: Option<String>,
    /// True if the daemon never ran here, so this host has no key pair, and hosts of ours were not asked.
    pub(crate) has_no_pair: bool,
    /// UDP port from which hosts of `peers` were asked, where it is not the daemon's, which has that one.
    pub(crate) other_port: Option<u16>,
}

/// The daemon's part for other hosts, in another process.
pub(crate) struct HostProbe {
    peers: Arc<Peers>,
    mode: PeerMode,
    /// The keys that hosts without `peer_key_file` use, where this host has one.
    spare: Vec<HostsKey>,
    links: Vec<Arc<GroupLink>>,
    has_pair: bool,
    heard: Mutex<HeardClues>,
}

/// Clues in messages that this host can't take.
#[derive(Default)]
struct HeardClues {
    other_key: BTreeSet<IpAddr>,
    listeners_key: BTreeSet<IpAddr>,
}

impl HostProbe {
    /// Reads what the daemon would read. Must run inside the runtime.
    ///
    /// # Errors
    /// The other hosts can't be asked: why.
    pub(crate) fn new(
        config: &Config,
        settings: PeerSettings,
        state: Option<&Path>,
        known: KnownHosts,
        domains: usize,
    ) -> Result<Self, String> {
        let has_file = config.daemon.peer_key_file.is_some();
        let spare = if has_file { keys_of_listener(config).unwrap_or_default() } else { Vec::new() };
        let links = config.multicasts().map(link_of).collect::<Result<_, _>>()?;
        Self::of(settings, spare, state, known, links, domains)
    }

    pub(super) fn of(
        settings: PeerSettings,
        spare: Vec<HostsKey>,
        state: Option<&Path>,
        known: KnownHosts,
        links: Vec<GroupLink>,
        domains: usize,
    ) -> Result<Self, String> {
        let of_machine = || Identity::of_machine(&settings.hypervisors).map_err(|it| it.to_string());
        let pair = match state.filter(|_| !settings.hypervisors.is_empty()) {
            Some(directory) => Identity::borrow(directory).map_err(|it| it.to_string())?,
            None => Some(of_machine()?),
        };
        let has_pair = pair.is_some();
        let pair = pair.map_or_else(of_machine, Ok)?;
        let mode = settings.mode.clone();
        let sockets = match &mode {
            PeerMode::Listed(listed) => {
                PeerSockets::beside(listed, settings.port).map_err(|it| it.to_string())?
            }
            PeerMode::Off | PeerMode::NoWay(_) | PeerMode::Discovered => PeerSockets::default(),
        };
        // Nobody knows what an administrator's program does.
        let settings = PeerSettings { down_command: None, ..settings };
        let has_written_nodes = settings.is_of_cluster && !settings.has_nodes;
        let mut peers = Peers::of(settings, pair, known, sockets);
        if let Some(directory) = state.filter(|_| has_written_nodes) {
            let nodes = WrittenNodes(NodeStore::at(directory).read_keys());
            peers.nodes = OnceLock::from(Arc::new(nodes) as Arc<dyn NodeHosts>);
            peers.has_met_nodes = OnceLock::from(());
        }
        peers.domains = OnceLock::from(Box::new(move || domains) as Box<dyn Fn() -> usize + Send + Sync>);
        let links: Vec<_> = links.into_iter().map(Arc::new).collect();
        peers.groups = Mutex::new(links.iter().map(Arc::downgrade).collect());
        Ok(Self { peers: Arc::new(peers), mode, spare, links, has_pair, heard: Mutex::default() })
    }

    /// Asks every host that the daemon would ask. With `search`, hosts without host messages are looked for
    /// first, as the daemon does every few minutes.
    ///
    /// # Errors
    /// The group can't be heard.
    pub(crate) async fn run(self: &Arc<Self>, search: bool) -> Result<ProbeReport, String> {
        let _readers = self.read().map_err(|it| format!("can't hear the group: {it}"))?;
        let ways = if search { self.peers.group_ways(None) } else { Vec::new() };
        for way in ways {
            let until = Instant::now() + FIND_LIMIT;
            if let Ok(replies) = lists::ask(&way.question, way.senders, way.keys, until, |_| false).await {
                self.peers.note_legacy_replies(&replies);
            }
        }
        let (name, uuid) = NOBODYS;
        let question = DomainQuestion::new(DomainId::from_bytes(uuid), name.to_owned());
        let (missing, legacy, respondents) = self.peers.respondents(&self.mode);
        let missing = missing.or_else(|| self.peers.own_doubt());
        let began = Instant::now();
        let ours = async {
            // Another pair than the daemon's would be another host.
            if !self.has_pair {
                return Vec::new();
            }
            self.peers.answers(&question, &respondents, began, began + PEER_LIMIT).await.unwrap_or_default()
        };
        let of_legacy = self.peers.look_at_legacy(&legacy, &question, began + LOOK_LIMIT);
        let (ours, of_legacy) = tokio::join!(ours, of_legacy);
        let mut hosts = join_all(ours.iter().map(|it| self.judged(it))).await;
        if let PeerMode::NoWay(why) = self.mode {
            hosts.extend(self.peers.known_that_cannot_be_asked(why).into_iter().map(of_no_way));
        }
        if let PeerMode::Listed(listed) = &self.mode {
            hosts.extend(self.peers.listed_own(listed).into_iter().map(of_own));
            hosts.extend(self.peers.listed_nodes().into_iter().map(|it| self.of_node(it)));
        }
        hosts.extend(of_legacy.into_iter().map(|it| of_client(&legacy, &it.place, it.sight)));
        let has_no_pair = !self.has_pair && !respondents.is_empty();
        Ok(ProbeReport { hosts, missing, has_no_pair, other_port: self.other_port() })
    }

    /// Returns a node of the cluster of this host, which need not be in `peers`.
    fn of_node(&self, address: SocketAddr) -> ProbedHost {
        let id = lock(&self.peers.table).pinned(&address);
        let name = self.peers.shown(id.map_or(Respondent::Address(address), Respondent::Host));
        let addresses = vec![address.ip().to_canonical()];
        ProbedHost { id, name, addresses, result: ProbeResult::Node }
    }

    /// Asks the hosts with this daemon about these domains: what each sees at its own hypervisors. None where
    /// they can't be asked.
    pub(crate) async fn sights(self: &Arc<Self>, domains: &[(DomainId, String)]) -> Option<HostSights> {
        let _readers = self.read().ok()?;
        let (_, _, respondents) = self.peers.respondents(&self.mode);
        if !self.has_pair {
            return respondents.is_empty().then(HostSights::new);
        }
        let asked = domains.iter().map(|(uuid, name)| async {
            let (question, began) = (DomainQuestion::new(*uuid, name.clone()), Instant::now());
            let found = self.peers.answers(&question, &respondents, began, began + PEER_LIMIT).await;
            let seen = found.map_or_else(
                || respondents.iter().map(|it| (*it, None)).collect::<Vec<_>>(),
                |it| it.into_iter().map(|it| (it.who, it.answer)).collect(),
            );
            let shown = |(who, answer): (Respondent, Option<HostAnswer>)| {
                let host = self.peers.shown(who);
                let sight = answer.map(|it| sight(&host, &it));
                ((*uuid, host), sight)
            };
            seen.into_iter().map(shown).collect::<Vec<_>>()
        });
        Some(join_all(asked).await.into_iter().flatten().collect())
    }

    /// Returns the port of this process, if it is another one than the daemon's.
    fn other_port(&self) -> Option<u16> {
        let sockets = super::state::read(&self.peers.sockets).clone();
        let port = sockets.all().first()?.local_addr().ok()?.port();
        (port != self.peers.settings().port).then_some(port)
    }

    /// Reads the sockets until the value is dropped.
    fn read(self: &Arc<Self>) -> io::Result<JoinSet<()>> {
        let mut readers = JoinSet::new();
        for socket in super::state::read(&self.peers.sockets).all() {
            readers.spawn(Arc::clone(self).hear_all(Arc::clone(socket)));
        }
        for link in self.links.iter().filter(|_| self.mode == PeerMode::Discovered) {
            let scope = match &lock(&link.joined)[..] {
                [only] => MulticastScope::Interface(only.index),
                _ => MulticastScope::All,
            };
            let listener = fence_net::multicast_listener(link.group, link.port, scope)?;
            listener.socket.set_nonblocking(true)?;
            readers.spawn(Arc::clone(self).hear_all(Arc::new(UdpSocket::from_std(listener.socket)?)));
        }
        Ok(readers)
    }

    async fn hear_all(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut datagram = [0; 2048];
        loop {
            match socket.recv_from(&mut datagram).await {
                Ok((length, from)) => self.hear(&datagram[..length], from),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Takes answers to this process, and no other message.
    fn hear(&self, datagram: &[u8], from: SocketAddr) {
        let address = from.ip().to_canonical();
        let received = match HostMessage::decode(datagram, &self.peers.settings().keys) {
            Ok(received) => received,
            Err(HostMessageError::Proof) => return self.note_other_key(datagram, address),
            Err(_) => return,
        };
        let message = received.message();
        match &message.body {
            _ if message.sender == self.peers.identity.id() => {}
            HostBody::HelloAnswer(hello) if message.recipient == Some(self.peers.identity.id()) => {
                self.peers.note_hello_answer(&received, hello, from.ip());
                self.peers.meet(message.sender, hello, message.nonce, from);
            }
            HostBody::Answer(_) => self.peers.receive_answer(&received, from),
            HostBody::Reason(part) => self.peers.receive_reason(&received, part),
            HostBody::Hello(_) | HostBody::HelloAnswer(_) | HostBody::Ask(_) => {}
        }
    }

    fn note_other_key(&self, datagram: &[u8], from: IpAddr) {
        let mut heard = lock(&self.heard);
        if HostMessage::decode(datagram, &self.spare).is_ok() {
            heard.listeners_key.insert(from);
        } else if matches!(HostMessage::decode(datagram, &self.spare), Err(HostMessageError::Proof)) {
            heard.other_key.insert(from);
        }
    }

    async fn judged(&self, found: &HostFinding) -> ProbedHost {
        let name = self.peers.shown(found.who);
        let id = match found.who {
            Respondent::Host(id) => Some(id),
            Respondent::Address(_) => None,
        };
        let addresses = match found.who {
            Respondent::Address(at) => vec![at.ip().to_canonical()],
            Respondent::Host(id) => lock(&self.peers.table).host(id).map_or(Vec::new(), addresses),
        };
        let doubt = self.peers.doubt(found.who);
        let result = match (&found.answer, doubt) {
            (_, Some(why)) => ProbeResult::InDoubt(why),
            (Some(HostAnswer { sight: HostSight::Unknown, reason, .. }), None) => {
                ProbeResult::CantTell(escaped(reason).to_string())
            }
            (Some(_), None) => ProbeResult::Answers,
            (None, None) => ProbeResult::Silent(match &self.mode {
                PeerMode::Listed(listed) => self.clue_of_listed(found.who, listed).await,
                PeerMode::Discovered | PeerMode::Off | PeerMode::NoWay(_) => {
                    self.clue_of_found(&addresses).await
                }
            }),
        };
        ProbedHost { id, name, addresses, result }
    }

    /// Looks for the cause at a host of the group: those that have another key for hosts than this one answer
    /// a hello with the key of their listener.
    async fn clue_of_found(&self, addresses: &[IpAddr]) -> SilenceClue {
        if let Some((_, hello)) = self.hello().filter(|_| !self.spare.is_empty()) {
            let spare: Vec<_> = self.spare.iter().map(|it| hello.encode(it)).collect();
            self.peers.send(&MessageWay::Group, &spare);
            let end = Instant::now() + CLUE_LIMIT;
            while Instant::now() < end && self.clue_of_heard(addresses) == SilenceClue::Nothing {
                sleep(CLUE_PAUSE).await;
            }
        }
        self.clue_of_heard(addresses)
    }

    fn clue_of_heard(&self, addresses: &[IpAddr]) -> SilenceClue {
        let heard = lock(&self.heard);
        match addresses {
            _ if addresses.iter().any(|it| heard.listeners_key.contains(it)) => SilenceClue::ListenersKey,
            _ if addresses.iter().any(|it| heard.other_key.contains(it)) => SilenceClue::OtherKey,
            _ => SilenceClue::Nothing,
        }
    }

    /// Looks for the cause at an address of `peers`: says hello by a socket that learns of errors.
    async fn clue_of_listed(&self, who: Respondent, listed: &[SocketAddr]) -> SilenceClue {
        let (at, pinned) = match who {
            Respondent::Address(at) => (at, None),
            Respondent::Host(id) => {
                let is_there = |at: &&SocketAddr| lock(&self.peers.table).pinned(at) == Some(id);
                let Some(at) = listed.iter().find(is_there) else { return SilenceClue::Nothing };
                (*at, Some(id))
            }
        };
        if own_addresses().contains(&at.ip().to_canonical()) && pinned.is_none() && !at.ip().is_loopback() {
            return SilenceClue::ThisHost;
        }
        match self.say_hello_and_hear(at, pinned).await {
            Ok(clue) => clue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => SilenceClue::NothingThere,
            Err(error) => SilenceClue::NoWay(error.to_string()),
        }
    }

    async fn say_hello_and_hear(&self, at: SocketAddr, pinned: Option<HostId>) -> io::Result<SilenceClue> {
        let any: IpAddr =
            if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(at).await?;
        let Some((_, hello)) = self.hello() else { return Ok(SilenceClue::Nothing) };
        let keys = self.peers.settings().keys.clone();
        let (mut clue, end) = (SilenceClue::Nothing, Instant::now() + CLUE_LIMIT);
        let mut datagram = [0; 2048];
        while Instant::now() < end {
            // Again and again: a system refuses no more than one datagram a second.
            for key in keys.iter().chain(&self.spare) {
                socket.send(&hello.encode(key)).await?;
            }
            let again = end.min(Instant::now() + CLUE_AGAIN);
            let Ok(read) = timeout_at(again.into(), socket.recv(&mut datagram)).await else { continue };
            let datagram = &datagram[..read?];
            clue = match HostMessage::decode(datagram, &keys) {
                Ok(it) => match &it.message().body {
                    HostBody::HelloAnswer(hello) if pinned.is_some_and(|id| id != it.message().sender) => {
                        return Ok(SilenceClue::OtherPair(escaped(&hello.name).to_string()));
                    }
                    _ => return Ok(SilenceClue::HelloAlone),
                },
                // One with both keys answers with the other one too.
                Err(_) if HostMessage::decode(datagram, &self.spare).is_ok() => SilenceClue::ListenersKey,
                Err(HostMessageError::Proof) => SilenceClue::OtherKey,
                Err(_) => clue,
            };
        }
        Ok(clue)
    }

    /// Returns a hello of the daemon, with a nonce of its own.
    fn hello(&self) -> Option<(HostNonce, HostMessage)> {
        let nonce = identity::nonce().ok()?;
        Some((nonce, self.peers.message(None, nonce, HostBody::Hello(self.peers.hello()))))
    }
}

fn addresses(host: &KnownHost) -> Vec<IpAddr> {
    host.addresses.iter().map(IpAddr::to_canonical).collect()
}

/// Returns what is said of an address of `peers` that is this host's own.
fn of_own(at: SocketAddr) -> ProbedHost {
    let addresses = vec![at.ip().to_canonical()];
    ProbedHost {
        id: None,
        name: at.to_string(),
        addresses,
        result: ProbeResult::Silent(SilenceClue::ThisHost),
    }
}

/// Returns what is told of a host that was heard once, and that can't be asked with this configuration.
fn of_no_way(found: Finding) -> ProbedHost {
    let Finding { place, sight, .. } = found;
    let why = match sight {
        Sight::Unknown(why) => why,
        _ => String::new(),
    };
    ProbedHost {
        id: None,
        name: escaped(&place.to_string()).to_string(),
        addresses: Vec::new(),
        result: ProbeResult::InDoubt(why),
    }
}

/// Returns the result of the questions of clients, by which hosts with the C daemon are asked.
fn of_client(hosts: &[KnownHost], place: &DomainSite, sight: Sight) -> ProbedHost {
    let name = match place {
        DomainSite::Host(name) | DomainSite::Hypervisor(name) | DomainSite::Device(name) => name.clone(),
    };
    let addresses = hosts.iter().find(|it| it.to_string() == name).map_or(Vec::new(), addresses);
    let result = match sight {
        Sight::Unknown(why) => ProbeResult::ClientCantTell(escaped(&why).to_string()),
        _ => ProbeResult::AnswersAsClient,
    };
    ProbedHost { id: None, name: escaped(&name).to_string(), addresses, result }
}

/// Returns the way to the group of a listener, by the interfaces that the daemon joins.
fn link_of(listener: &MulticastListener) -> Result<GroupLink, String> {
    let interfaces = fence_net::interfaces().map_err(|it| it.to_string())?;
    let ports = fence_net::ports().map_err(|it| it.to_string())?;
    let joined = interfaces.into_iter().filter(|it| match &listener.interface {
        Some(only) => *only == it.name,
        None => it.takes_multicast() && !ports.contains(&it.index),
    });
    let joined = joined.map(|it| JoinedInterface { index: it.index, name: it.name }).collect();
    let (group, port, only) = (listener.address, listener.port, listener.interface.clone());
    Ok(GroupLink { group, port, only, joined: Arc::new(Mutex::new(joined)) })
}
