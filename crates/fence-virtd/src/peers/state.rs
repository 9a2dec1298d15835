// SPDX-License-Identifier: GPL-2.0-or-later
//! Everything that is known of other hosts, shared by the tasks of this folder.
//!
//! Owns the table, the open questions and the counters, and sends. Runs on the caller's task and waits for
//! nothing but the start's files.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fence_core::hosts::{
    BoundHosts, HeardHost, HelloSchedule, HostKind, HostRun, KnownHost, KnownHosts, MAX_HOSTS, Respondent,
    Round, WHOLE_ROUND, legacy_id,
};
use fence_wire::{
    HOST_MESSAGE_LEN, HostBody, HostHello, HostId, HostMessage, HostNonce, PairKey, ReceivedHostMessage,
    escaped,
};
use tokio::sync::{Notify, Semaphore, watch};
use tracing::{debug, error, info, warn};

use super::down::DownAnswers;
use super::identity::{self, Identity, IdentityError};
use super::left_out::{NO_NODE_STEP, left_out, told_of};
use super::legacy_questions::LegacyQuestions;
use super::limits::{KEPT_HELLOS, MAX_LOOKS, OPEN_LIMIT, SETTLE};
use super::links::{GroupLink, MessageWay, PeerSockets};
use super::other_keys::{OtherKeys, UnaskedHosts};
use super::patience::SilentHosts;
use super::settings::{PeerError, PeerMode, PeerSettings};
use super::store::HostStore;
use crate::backend::elsewhere::{NodeHosts, OwnPlaces};
use crate::observe::drops::DropLog;
use crate::util::locks::{Mutex, lock};

/// Name of this part in drops.
pub(super) const NAME: &str = "peers";

/// The other hosts, as this daemon knows them.
pub(crate) struct Peers {
    pub(super) identity: Identity,
    pub(super) host_name: String,
    pub(super) settings: RwLock<Arc<PeerSettings>>,
    pub(super) table: Mutex<KnownHosts>,
    pub(super) store: Option<HostStore>,
    /// The table has changed, and is to be written.
    pub(super) changed: Notify,
    /// Part of it that the disk has, or would have if it could be written.
    pub(super) kept: watch::Sender<BoundHosts>,
    /// Held by whoever writes it.
    pub(super) writes: Mutex<()>,
    pub(super) schedule: Mutex<HelloSchedule>,
    /// Questions to hosts without host messages.
    pub(super) legacy: LegacyQuestions,
    /// The time of the next hello may be an earlier one.
    pub(super) hurried: Notify,
    pub(super) groups: Mutex<Vec<Weak<GroupLink>>>,
    pub(super) sockets: RwLock<PeerSockets>,
    /// Other sockets are to be read.
    pub(super) resocketed: Notify,
    pub(super) questions: Mutex<HashMap<HostNonce, OpenQuestion>>,
    /// Hosts that did not answer lately.
    pub(super) silent: Mutex<SilentHosts>,
    /// Answers of `peer_down_command` about silent hosts.
    pub(super) down: DownAnswers,
    /// When it is known whether a daemon that was started anew is the only one with its key pair.
    pub(super) settles: Mutex<Option<Instant>>,
    /// Addresses of `peers` whose hosts answer from another one, and the text of that.
    pub(super) strays: Mutex<HashMap<SocketAddr, String>>,
    /// Hosts with another key that the log has named.
    pub(super) other_keys: Mutex<OtherKeys>,
    /// Hosts that were heard where `peers = "none"` is set, and that the log has named.
    pub(super) unasked: Mutex<OtherKeys>,
    /// Hosts among them that have the key of this one.
    pub(super) unasked_hosts: Mutex<UnaskedHosts>,
    /// Bytes of this run of the daemon.
    pub(super) run: HostRun,
    /// The cluster whose node this host is.
    pub(super) nodes: OnceLock<Arc<dyn NodeHosts>>,
    /// The other nodes were told who this host is, or had time to hear it.
    pub(super) has_met_nodes: OnceLock<()>,
    /// When this value was made.
    pub(super) made: Instant,
    /// The latest message with this host's name that came from elsewhere and proved nothing.
    pub(super) claimed: Mutex<Option<(IpAddr, Instant)>>,
    /// Proved answers to these hellos: a second one with the same is a repeat, which anybody can send.
    pub(super) told: Mutex<HashSet<(HostNonce, HostId, HostRun)>>,
    /// The latest hellos of this host: the nonce, and the address of `peers` that it went to.
    pub(super) hellos: Mutex<VecDeque<(HostNonce, Option<SocketAddr>)>>,
    pub(super) own: OnceLock<Arc<dyn OwnPlaces>>,
    pub(super) looks: Semaphore,
    pub(super) answers: Mutex<KeptAnswers>,
    /// Hellos that were answered, and since when they are counted.
    pub(super) answered_hellos: Mutex<(Option<Instant>, u32)>,
    pub(super) drops: Arc<DropLog>,
    pub(super) counts: PeerCounts,
    /// Returns the number of domains that run here, for hellos.
    pub(super) domains: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
}

/// Answers that were given, by asker and nonce, for repeats of the question.
pub(super) type KeptAnswers = HashMap<(HostId, HostNonce), KeptAnswer>;

/// Answer that is kept for repeats of its question.
pub(super) struct KeptAnswer {
    /// When the question came.
    pub(super) at: Instant,
    /// Address from which it came.
    pub(super) from: IpAddr,
    /// The answer; nothing while it is being made.
    pub(super) bytes: Vec<[u8; HOST_MESSAGE_LEN]>,
}

/// Question to the other hosts.
pub(super) struct OpenQuestion {
    pub(super) round: Round,
    /// Wakes the task that asks.
    pub(super) wake: Arc<Notify>,
    /// A host answered for the first time at an address of `peers`: it can be asked now.
    pub(super) has_met: bool,
}

/// Counters for the metrics.
#[derive(Debug, Default)]
pub(super) struct PeerCounts {
    pub(super) asked: AtomicU64,
    pub(super) silent: AtomicU64,
    pub(super) answered: AtomicU64,
}

impl PeerCounts {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Peers {
    /// Reads the files of the state directory, and opens the sockets. Must run inside the runtime.
    ///
    /// # Errors
    /// A socket can't be opened.
    pub(crate) async fn start(
        settings: PeerSettings,
        state: Option<&Path>,
        drops: Arc<DropLog>,
    ) -> Result<Arc<Self>, PeerError> {
        // The files are read with `peers = "none"` too: a reload may change that.
        let state = state.filter(|_| !settings.hypervisors.is_empty());
        let is_on = !settings.mode.is_silent();
        // The nodes of a cluster are no such hosts.
        if state.is_none() && is_on && !settings.has_nodes {
            warn!(
                "other hosts are remembered in memory alone (state_dir): one that is silent when this daemon \
                 starts is not known"
            );
        }
        let sockets = sockets(&settings)?;
        let Files { identity, store, mut table } = read_files(state.map(Path::to_owned), &settings).await?;
        table.drop_old_twins(identity.id());
        let peers = Self { run: identity::nonce()?, ..Self::of(settings, identity, table, sockets) };
        let peers = Arc::new(Self { store, drops, ..peers });
        peers.log_start();
        Ok(peers)
    }

    /// Returns the part of a host with this key pair, which remembers nothing yet, and tells no run: it is
    /// never taken for a second daemon.
    pub(super) fn of(
        settings: PeerSettings,
        identity: Identity,
        table: KnownHosts,
        sockets: PeerSockets,
    ) -> Self {
        Self {
            identity,
            host_name: host_name(),
            settings: RwLock::new(Arc::new(settings)),
            kept: watch::Sender::new(table.bound()),
            table: Mutex::new(table),
            store: None,
            changed: Notify::new(),
            writes: Mutex::default(),
            schedule: Mutex::new(HelloSchedule::new(Instant::now())),
            legacy: LegacyQuestions::default(),
            hurried: Notify::new(),
            groups: Mutex::default(),
            sockets: RwLock::new(sockets),
            resocketed: Notify::new(),
            questions: Mutex::default(),
            silent: Mutex::default(),
            down: DownAnswers::default(),
            settles: Mutex::default(),
            strays: Mutex::default(),
            other_keys: Mutex::default(),
            unasked: Mutex::default(),
            unasked_hosts: Mutex::default(),
            run: [0; 8],
            nodes: OnceLock::new(),
            has_met_nodes: OnceLock::new(),
            made: Instant::now(),
            claimed: Mutex::default(),
            told: Mutex::default(),
            hellos: Mutex::default(),
            own: OnceLock::new(),
            looks: Semaphore::new(MAX_LOOKS),
            answers: Mutex::default(),
            answered_hellos: Mutex::default(),
            drops: Arc::default(),
            counts: PeerCounts::default(),
            domains: OnceLock::new(),
        }
    }

    /// Takes other settings. Its sockets are open already.
    pub(crate) fn change(self: &Arc<Self>, settings: PeerSettings, sockets: PeerSocketsToUse) {
        let is_other_mode = self.settings().mode != settings.mode;
        self.replace_settings(settings);
        *write(&self.sockets) = sockets.0;
        self.resocketed.notify_one();
        if is_other_mode {
            // Whoever is found in this way was not asked in the other one.
            *lock(&self.schedule) = HelloSchedule::new(Instant::now());
            self.legacy.search_anew();
        }
        self.tell_nodes();
        self.say_hello_soon();
        self.log_start();
    }

    pub(super) fn replace_settings(&self, settings: PeerSettings) {
        *write(&self.settings) = Arc::new(settings);
    }

    /// Opens the sockets for other settings, which may still be refused.
    ///
    /// # Errors
    /// A socket can't be opened.
    pub(crate) fn prepare(&self, settings: &PeerSettings) -> Result<PeerSocketsToUse, PeerError> {
        let now = self.settings();
        let is_same = now.mode == settings.mode && now.port == settings.port;
        Ok(PeerSocketsToUse(if is_same { read(&self.sockets).clone() } else { sockets(settings)? }))
    }

    /// Takes the multicast group of a listener; its end is that of the link.
    pub(crate) fn use_group(&self, link: &Arc<GroupLink>) {
        let mut groups = lock(&self.groups);
        groups.retain(|it| it.strong_count() > 0);
        groups.push(Arc::downgrade(link));
        drop(groups);
        // Nothing that was sent before can have been heard.
        *lock(&self.schedule) = HelloSchedule::new(Instant::now());
        self.legacy.search_anew();
        self.say_hello_soon();
    }

    /// Something shows that other hosts exist, or the interfaces changed.
    pub(crate) fn say_hello_soon(&self) {
        lock(&self.schedule).hurry(Instant::now());
        self.hurried.notify_one();
        self.legacy.search_soon();
    }

    /// Returns every host that is known.
    pub(crate) fn known(&self) -> Vec<KnownHost> {
        lock(&self.table).all().cloned().collect()
    }

    pub(super) fn settings(&self) -> Arc<PeerSettings> {
        Arc::clone(&self.settings.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Returns true if messages of other hosts are read and answered.
    pub(super) fn is_on(&self) -> bool {
        !self.settings().mode.is_silent()
    }

    pub(super) fn hello(&self) -> HostHello {
        let domains = self.domains.get().map_or(0, |count| count());
        let settings = self.settings();
        HostHello {
            public: self.identity.public(),
            port: if matches!(settings.mode, PeerMode::Listed(_)) { settings.port } else { 0 },
            domains: domains.try_into().unwrap_or(u16::MAX),
            name: self.host_name.clone(),
            run: self.run,
        }
    }

    /// Returns a message of this host, once for each key.
    pub(super) fn encoded(&self, message: &HostMessage) -> Vec<[u8; HOST_MESSAGE_LEN]> {
        self.settings().keys.iter().map(|key| message.encode(key)).collect()
    }

    pub(super) fn message(&self, recipient: Option<HostId>, nonce: HostNonce, body: HostBody) -> HostMessage {
        HostMessage { sender: self.identity.id(), recipient, nonce, body }
    }

    /// Sends by the way that a message came.
    pub(super) fn send(&self, way: &MessageWay, messages: &[[u8; HOST_MESSAGE_LEN]]) {
        match way {
            MessageWay::Group => {
                let settings = self.settings();
                for link in self.group_links() {
                    // Whoever has another key takes a message of this one for that of a host with a wrong
                    // key.
                    link.send(&settings.of_group(link.place(), messages));
                }
            }
            MessageWay::Unicast(to) => read(&self.sockets).send(*to, messages),
        }
    }

    /// Returns the multicast groups of the listeners that serve.
    pub(super) fn group_links(&self) -> Vec<Arc<GroupLink>> {
        lock(&self.groups).iter().filter_map(Weak::upgrade).collect()
    }

    /// Returns the key of this host and another one that is known.
    pub(super) fn pair_key(&self, host: HostId) -> Option<PairKey> {
        let kind = lock(&self.table).host(host)?.kind;
        match kind {
            HostKind::Ours(public) => self.identity.pair_key(&public),
            HostKind::Legacy => None,
        }
    }

    /// Remembers a hello of this host, so that its echo and its answers are known.
    pub(super) fn new_hello(&self, to: Option<SocketAddr>) -> Option<HostNonce> {
        let nonce = identity::nonce().ok()?;
        let mut hellos = lock(&self.hellos);
        if hellos.len() == KEPT_HELLOS {
            let gone = hellos.pop_front();
            lock(&self.told).retain(|(it, ..)| gone.is_none_or(|(gone, _)| gone != *it));
        }
        hellos.push_back((nonce, to));
        Some(nonce)
    }

    /// Notes a hello of another host, which anybody may have made: it must answer from now on. Returns true
    /// if its proof is wanted.
    pub(super) fn note_hello(&self, hello: &HostHello, from: IpAddr) -> bool {
        let heard =
            self.note_hello_by(hello, from, |table, at| table.announced(hello, at, now(), Instant::now()));
        matches!(heard, Some(HeardHost::New | HeardHost::Restarted | HeardHost::Unproved))
    }

    /// Notes an answer to a hello of this host. With the proof of the two hosts it tells who is where.
    pub(super) fn note_hello_answer(&self, received: &ReceivedHostMessage, hello: &HostHello, from: IpAddr) {
        if !self.is_proved_answer_to_hello(received, hello) {
            self.note_hello(hello, from);
            return;
        }
        let (id, nonce) = (HostId::of(&hello.public), received.message().nonce);
        let is_first = lock(&self.told).insert((nonce, id, hello.run));
        self.note_hello_by(hello, from, |table, at| table.heard_proved(hello, at, now(), is_first));
    }

    /// Returns true for an answer to one of the latest hellos of this host that its sender alone can have
    /// made.
    pub(super) fn is_proved_answer_to_hello(
        &self,
        received: &ReceivedHostMessage,
        hello: &HostHello,
    ) -> bool {
        let message = received.message();
        matches!(message.body, HostBody::HelloAnswer(_))
            && message.recipient == Some(self.identity.id())
            && lock(&self.hellos).iter().any(|(nonce, _)| *nonce == message.nonce)
            && self.identity.pair_key(&hello.public).is_some_and(|it| received.is_proved(&it))
    }

    fn note_hello_by(
        &self,
        hello: &HostHello,
        from: IpAddr,
        note: impl FnOnce(&mut KnownHosts, IpAddr) -> HeardHost,
    ) -> Option<HeardHost> {
        if self.identity.pair_key(&hello.public).is_none() {
            self.drops.note(NAME, "host-key", &from, &"a public key that hides nothing");
            return None;
        }
        if self.is_of_node(hello) {
            // A run of before is known, if it was no node then.
            let (id, at, listed) = (HostId::of(&hello.public), from.to_canonical(), self.listed());
            let was_known = lock(&self.table).drop_node_at(id, hello.run, at, &listed);
            if was_known.is_some() {
                self.changed.notify_one();
            }
            if !self.is_listed_at(from) {
                return None;
            }
        }
        if self.is_only_in_the_way(HostId::of(&hello.public), from) {
            self.drops.count(NAME, "too-many-hosts");
            return None;
        }
        self.down.forget(&from.to_canonical().to_string());
        lock(&self.other_keys).agrees(from.to_canonical());
        let heard = note(&mut lock(&self.table), from.to_canonical());
        self.after_heard(heard, HostId::of(&hello.public));
        Some(heard)
    }

    /// Notes a host without host messages (a C daemon) that answered a request at its address.
    pub(crate) fn note_legacy(&self, from: IpAddr, domains: u16) {
        if self.is_only_in_the_way(legacy_id(from.to_canonical()), from) {
            return self.drops.count(NAME, "too-many-hosts");
        }
        self.down.forget(&from.to_canonical().to_string());
        let heard = lock(&self.table).heard_legacy(from.to_canonical(), domains, now());
        let host = lock(&self.table).all().find(|it| it.addresses.contains(&from.to_canonical())).cloned();
        if let Some(host) = host {
            self.after_heard(heard, host.id);
        }
    }

    /// Returns true for a host that `peers` does not name, where there is no room for it. It need not answer,
    /// so none is missing; else whoever holds the key could make every host unable to tell.
    fn is_only_in_the_way(&self, id: HostId, from: IpAddr) -> bool {
        let (table, listed) = (lock(&self.table), self.listed());
        !listed.is_empty()
            && table.all().count() >= MAX_HOSTS
            && table.host(id).is_none()
            && !self.is_listed_at(from)
    }

    fn is_listed_at(&self, from: IpAddr) -> bool {
        self.listed().iter().any(|it| it.ip().to_canonical() == from.to_canonical())
    }

    fn after_heard(&self, heard: HeardHost, id: HostId) {
        match heard {
            HeardHost::Known | HeardHost::Unproved => return,
            HeardHost::NoRoom => {
                let why = lock(&self.table).missing_now(Instant::now()).unwrap_or_default();
                self.drops.note(NAME, "too-many-hosts", &id, &why);
            }
            HeardHost::Restarted => self.settle(),
            HeardHost::TwoDaemons => {
                let why = self.doubt(Respondent::Host(id)).unwrap_or_default();
                self.drops.note(NAME, "same-key-pair", &id, &why);
            }
            HeardHost::New | HeardHost::Changed => {
                let Some(host) = lock(&self.table).host(id).cloned() else { return };
                self.log_host(heard, &host);
                for question in lock(&self.questions).values_mut() {
                    if self.must_answer(&host) {
                        question.round.must_answer(Respondent::Host(id));
                    }
                }
            }
        }
        self.changed.notify_one();
    }

    /// Asks for another hello of all: two daemons with one key pair both answer it.
    fn settle(&self) {
        let mut schedule = lock(&self.schedule);
        schedule.hurry(Instant::now());
        *lock(&self.settles) = Some(schedule.next() + SETTLE);
        self.hurried.notify_one();
    }

    /// Returns true if this found host is asked.
    pub(super) fn must_answer(&self, host: &KnownHost) -> bool {
        self.settings().mode == PeerMode::Discovered
            || (matches!(self.settings().mode, PeerMode::Listed(_)) && self.is_asked_as_listed(host.id))
    }

    /// Returns true if this host answers at an address of `peers`, and is no node.
    fn is_asked_as_listed(&self, id: HostId) -> bool {
        let pins: Vec<_> = lock(&self.table).pins().filter(|(_, it)| *it == id).collect();
        !pins.is_empty() && !pins.iter().any(|(at, id)| self.is_listed_node(at, Respondent::Host(*id)))
    }

    fn log_host(&self, heard: HeardHost, host: &KnownHost) {
        let name = shown_with_key(host);
        if heard == HeardHost::Changed {
            return debug!(host = %name, "another host is known by another name or address now");
        }
        match &self.settings().mode {
            PeerMode::Listed(listed) => {
                if !listed.iter().any(|it| host.addresses.contains(&it.ip())) {
                    warn!(
                        host = %name,
                        "another host was heard that `peers` does not name: that host is not asked; add it \
                         if it can have the same domains"
                    );
                }
            }
            _ if self.is_without_its_nodes() => debug!(host = %name, "another host was heard"),
            _ if self.is_beside_nodes() => warn!(host = %name, "{}: {NO_NODE_STEP}", told_of(host)),
            _ => info!(
                host = %name,
                "another host was heard: from now on it is asked before a domain is called off that does not \
                 run here. Set `peers` to name the hosts, or peers = \"none\" if they never have the same \
                 domains"
            ),
        }
    }

    fn log_start(&self) {
        let settings = self.settings();
        let known = self.known();
        let names: Vec<_> = known.iter().map(shown_with_key).collect();
        match &settings.mode {
            PeerMode::Off if settings.is_set => {
                info!("peers = \"none\": no other host is asked");
                for host in left_out(&lock(&self.table)) {
                    error!(host = %host.name, "{}. {}", host.text(), host.step());
                }
            }
            PeerMode::Off => {}
            PeerMode::NoWay(_) if known.is_empty() && settings.has_no_group() => warn!(
                "no multicast listener: other hosts are not looked for; name them in `peers`, or set peers = \
                 \"none\" if no other host can have the same domains"
            ),
            PeerMode::NoWay(_) if known.is_empty() => {}
            PeerMode::NoWay(why) => warn!(
                known = %names.join(", "),
                "{}, and these hosts were heard before: until they are in `peers`, or forgotten, no domain \
                 is called off that does not run here. {}",
                why.text(),
                why.step("HOST")
            ),
            PeerMode::Discovered if settings.has_nodes => {
                let known = names.join(", ");
                info!(
                    key = %self.identity.id(), %known,
                    "hosts that are no nodes of this cluster are looked for"
                );
            }
            PeerMode::Discovered => {
                info!(key = %self.identity.id(), known = %names.join(", "), "other hosts are looked for");
            }
            PeerMode::Listed(listed) => {
                let own = self.listed_own(listed);
                let table = lock(&self.table);
                let bound = |at| table.pinned(at).map_or_else(String::new, |id| format!(" key {id}"));
                let listed: Vec<_> = listed.iter().map(|it| format!("{it}{}", bound(it))).collect();
                drop(table);
                info!(key = %self.identity.id(), peers = %listed.join(", "), "these hosts are asked");
                for own in own {
                    warn!(
                        "`peers` names {own}, an address of this host: nobody is asked there. Take it out; \
                         if another host is meant, name that one by its own address"
                    );
                }
            }
        }
        if let (Some(why), false) = (lock(&self.table).missing(), settings.mode == PeerMode::Off) {
            warn!("another host may be missing: {why}");
        }
        if let (Some(why), PeerMode::Discovered) = (lock(&self.table).incomplete(), &settings.mode) {
            warn!(
                "another host may be missing: {why}. All hosts are looked for first; for {} s nothing is \
                 called off that does not run here",
                WHOLE_ROUND.as_secs()
            );
        }
    }
}

/// Sockets for settings that are not in force yet.
pub(crate) struct PeerSocketsToUse(PeerSockets);

fn sockets(settings: &PeerSettings) -> Result<PeerSockets, PeerError> {
    match &settings.mode {
        PeerMode::Listed(listed) => PeerSockets::open(listed, settings.port),
        PeerMode::Off | PeerMode::NoWay(_) | PeerMode::Discovered => Ok(PeerSockets::default()),
    }
}

/// Returns name, address and key of a host: two hosts may have one name.
pub(super) fn shown_with_key(host: &KnownHost) -> String {
    let shown = escaped(&host.to_string()).to_string();
    match host.kind {
        HostKind::Ours(_) => format!("{shown} key {}", host.id),
        HostKind::Legacy => shown,
    }
}

/// Seconds since 1970. For people alone: no decision may depend on it.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|it| it.into_string().ok());
    name.filter(|it| !it.is_empty()).unwrap_or_else(|| "unnamed".to_owned())
}

pub(super) fn read<T>(it: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    it.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(it: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    it.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The files of the state directory, read.
struct Files {
    identity: Identity,
    store: Option<HostStore>,
    table: KnownHosts,
}

/// Reads the files on a thread of its own, since a disk that hangs must not hold up the start.
async fn read_files(state: Option<PathBuf>, settings: &PeerSettings) -> Result<Files, PeerError> {
    let in_memory =
        |table| Ok(Files { identity: Identity::of_machine(&settings.hypervisors)?, store: None, table });
    let Some(directory) = state else { return in_memory(KnownHosts::default()) };
    let shown = fence_cli::shown(&directory);
    let reading = tokio::task::spawn_blocking(move || read_directory(&directory));
    match tokio::time::timeout(OPEN_LIMIT, reading).await {
        Ok(Ok((Ok(identity), table, store))) => Ok(Files { identity, store: Some(store), table }),
        Ok(Ok((Err(error), table, _))) => {
            if !settings.mode.is_silent() {
                warn!("other hosts are remembered in memory alone: {error}");
            }
            in_memory(table)
        }
        Ok(Err(_)) | Err(_) => {
            let mut table = KnownHosts::default();
            table.note_missing(format!(
                "the disk of {shown} did not answer within {} s; restart fence_virtd when it does",
                OPEN_LIMIT.as_secs()
            ));
            in_memory(table)
        }
    }
}

/// Reads the files, and notes why hosts of earlier runs may be missing in them.
pub(super) fn read_directory(directory: &Path) -> (Result<Identity, IdentityError>, KnownHosts, HostStore) {
    let store = HostStore::at(directory);
    let (identity, is_empty, mut table) = (Identity::open(directory), store.is_empty(), store.read());
    let shown = fence_cli::shown(directory);
    match &identity {
        Ok(it) if it.is_old && is_empty => {
            let why = "has the key pair of this host, and no file of other hosts";
            table.note_incomplete(format!("{shown} {why}"));
        }
        Ok(_) => {
            if let Err(error) = store.try_write(&table) {
                table
                    .note_incomplete(format!("the file of other hosts in {shown} can't be written: {error}"));
            }
        }
        Err(error) => table.note_incomplete(format!("{error}")),
    }
    (identity, table, store)
}
