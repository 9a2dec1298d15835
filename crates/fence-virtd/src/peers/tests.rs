// SPDX-License-Identifier: GPL-2.0-or-later
//! Daemons' parts for other hosts, several in one process, by loopback alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_core::domain::{DomainId, TargetKind};
use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_core::hosts::{KnownHost, Respondent};
use fence_core::owed_start::PlaceMemory;
use fence_net::{MulticastListener, MulticastScope};
use fence_wire::{HostAnswer, HostBody, HostMessage, HostSight, HostsKey, PairKey};
use tokio::net::UdpSocket;

use super::links::{GroupLink, MessageWay};
use super::settings::{NoWayReason, PeerMode, PeerSettings};
use super::state::Peers;
use crate::backend::BoxedFuture;
use crate::backend::elsewhere::{DomainQuestion, OwnPlaces, PeerHosts};

/// Directory of a daemon's memory. What still writes to it when a test ends must not keep it.
pub(super) struct StateDir(std::path::PathBuf);

impl StateDir {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap().keep())
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        for _ in 0..500 {
            match std::fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}

mod down;
mod forged;
mod kept;
mod nodes;
mod probe;
mod recall;

/// Hypervisor that shows what a test says.
struct Shown {
    sight: Mutex<Sight>,
    /// A hypervisor that answers nothing: the look lasts as long as it may.
    hangs: AtomicBool,
    looks: AtomicUsize,
    /// Other domains with the name that left.
    namesakes: Mutex<Vec<DomainId>>,
}

impl Shown {
    fn new(sight: Sight) -> Self {
        Self {
            sight: Mutex::new(sight),
            hangs: AtomicBool::default(),
            looks: AtomicUsize::default(),
            namesakes: Mutex::default(),
        }
    }
}

impl OwnPlaces for Shown {
    fn look_here<'a>(&'a self, _: &'a DomainQuestion, until: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(async move {
            self.looks.fetch_add(1, Ordering::SeqCst);
            if self.hangs.load(Ordering::SeqCst) {
                tokio::time::sleep_until(until.into()).await;
            }
            let (place, began) = (DomainSite::Hypervisor("test".to_owned()), Instant::now());
            let (sight, namesakes) =
                (self.sight.lock().unwrap().clone(), self.namesakes.lock().unwrap().clone());
            vec![Finding { place, sight, began, ended: Instant::now(), namesakes }]
        })
    }

    fn recall_here(&self, _: DomainId) -> PlaceMemory {
        PlaceMemory { noted_for: Duration::from_secs(77), last: Some(Duration::from_secs(7)) }
    }

    fn saved_here<'a>(&'a self, _: DomainId, _: Instant) -> BoxedFuture<'a, Result<Option<String>, String>> {
        Box::pin(async { Ok(None) })
    }

    fn prove_moves<'a>(&'a self, _: Vec<DomainId>) -> BoxedFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Host of a test; its tasks end with it.
struct Host {
    peers: Arc<Peers>,
    shown: Arc<Shown>,
    port: u16,
    _tasks: tokio::task::JoinSet<()>,
    _link: Option<Arc<GroupLink>>,
}

fn settings(mode: PeerMode, port: u16) -> PeerSettings {
    PeerSettings {
        mode,
        keys: vec![HostsKey::without_a_key()],
        groups: Vec::new(),
        port,
        down_command: None,
        hypervisors: vec![format!("test:///{port}")],
        has_nodes: false,
        is_of_cluster: false,
        is_set: true,
        waits_for: None,
    }
}

impl Host {
    /// Ends the host: it answers nothing any more when this returns.
    async fn end(mut self) {
        self._tasks.shutdown().await;
        self._link = None;
        // Tasks of tasks end a moment later.
        while Arc::strong_count(&self.peers) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn new(mode: PeerMode, port: u16, state: Option<&std::path::Path>) -> Self {
        Self::serving(Peers::start(settings(mode, port), state, Arc::default()).await.unwrap(), port)
    }

    fn serving(peers: Arc<Peers>, port: u16) -> Self {
        let shown = Arc::new(Shown::new(Sight::Off));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(Arc::clone(&peers).serve(Arc::<Shown>::clone(&shown), || 3));
        Self { peers, shown, port, _tasks: tasks, _link: None }
    }

    async fn listed(port: u16, others: &[u16], state: Option<&std::path::Path>) -> Self {
        let others = others.iter().map(|it| SocketAddr::from((Ipv4Addr::LOCALHOST, *it))).collect();
        Self::new(PeerMode::Listed(others), port, state).await
    }

    /// A host that is found by a group of the loopback interface.
    async fn found(group: [u8; 4], port: u16, state: Option<&std::path::Path>) -> Self {
        Self::in_group(PeerMode::Discovered, group, port, state).await
    }

    /// A host that has joined a group of the loopback interface.
    async fn in_group(mode: PeerMode, group: [u8; 4], port: u16, state: Option<&std::path::Path>) -> Self {
        Self::new(mode, port, state).await.join(group)
    }

    fn join(self, group: [u8; 4]) -> Self {
        let (port, mut host) = (self.port, self);
        let group = IpAddr::from(group);
        let MulticastListener { socket, joined, .. } =
            fence_net::multicast_listener(group, port, MulticastScope::Interface(1)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = UdpSocket::from_std(socket).unwrap();
        let link = GroupLink { group, port, only: None, joined: Arc::new(Mutex::new(joined)) };
        let link = Arc::new(link);
        host.peers.use_group(&link);
        host._link = Some(link);
        let peers = Arc::clone(&host.peers);
        host._tasks.spawn(async move {
            let mut datagram = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
                peers.receive_from_group(&datagram[..length], from);
            }
        });
        host
    }

    /// A reload with other settings.
    fn change(&self, mode: PeerMode) {
        let settings = settings(mode, self.port);
        let sockets = self.peers.prepare(&settings).unwrap();
        self.peers.change(settings, sockets);
    }

    fn shows(&self, sight: Sight) -> &Self {
        *self.shown.sight.lock().unwrap() = sight;
        self
    }

    async fn look(&self) -> Vec<Finding> {
        self.look_within(Duration::from_secs(5)).await
    }

    async fn look_within(&self, time: Duration) -> Vec<Finding> {
        let question = DomainQuestion::new(DomainId::from_bytes([7; 16]), "vm1".to_owned());
        self.peers.look(&question, Instant::now() + time).await
    }

    async fn sights(&self) -> Vec<Sight> {
        self.look().await.into_iter().map(|it| it.sight).collect()
    }

    async fn knows(&self, number: usize) -> Vec<KnownHost> {
        let end = Instant::now() + Duration::from_secs(20);
        while self.peers.known().len() != number && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.peers.known().len(), number);
        self.peers.known()
    }
}

/// More of them than an answer has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_by_uuid_is_about_no_other_domain_with_the_name() {
    let (a, b) = (port(), port());
    let (a, b) = (Host::listed(a, &[b], None).await, Host::listed(b, &[a], None).await);
    *b.shown.namesakes.lock().unwrap() = (1..=4).map(|it| DomainId::from_bytes([it; 16])).collect();
    for by in [TargetKind::Name, TargetKind::Uuid] {
        let question = DomainQuestion::new(DomainId::from_bytes([7; 16]), "vm1".to_owned());
        let question = DomainQuestion { by, ..question };
        let found = a.peers.look(&question, Instant::now() + Duration::from_secs(5)).await;
        match by {
            TargetKind::Uuid => assert_eq!(found[0].sight, Sight::Off),
            TargetKind::Name => assert!(reason(&found[0].sight).contains("4 other domains"), "{found:?}"),
        }
    }
}

/// A port of the loopback that nobody has now.
fn port() -> u16 {
    StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn reason(sight: &Sight) -> &str {
    match sight {
        Sight::Unknown(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_hosts_tell_what_they_see() {
    let (a, b) = (port(), port());
    let (a, b) = (Host::listed(a, &[b], None).await, Host::listed(b, &[a], None).await);
    // An end is told a little older than it is: the answer takes its time.
    let (age, told) = (Duration::from_secs(3), Duration::from_millis(3001));
    for (sight, told) in [
        (Sight::On, Sight::On),
        (Sight::Moving, Sight::Moving),
        (Sight::Ended(Some(age)), Sight::Ended(Some(told))),
        (Sight::Ended(None), Sight::Ended(None)),
        (Sight::Off, Sight::Off),
        (Sight::Absent, Sight::Absent),
        (Sight::MovedAway(age), Sight::MovedAway(age)),
        (Sight::On, Sight::On),
    ] {
        b.shows(sight.clone());
        let asked = Instant::now();
        let found = a.look().await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].sight, told);
        assert!(found[0].began >= asked && found[0].ended >= found[0].began);
    }
    b.shows(Sight::Unknown("libvirt at test:///x does not answer".to_owned()));
    let sights = a.sights().await;
    assert!(reason(&sights[0]).ends_with("libvirt at test:///x does not answer"), "{sights:?}");
    // One answer has room for 57 bytes of it.
    let long = format!("libvirt at qemu+unix:///system?socket=/run/{} does not answer", "x".repeat(150));
    b.shows(Sight::Unknown(long.clone()));
    let sights = a.sights().await;
    assert!(reason(&sights[0]).ends_with(&long), "{sights:?}");
    assert_eq!(a.shows(Sight::On).sights().await.len(), 1);
    assert!(a.peers.unmet().is_empty());
    assert_eq!(b.sights().await, [Sight::On]);
}

/// A hypervisor that hangs takes all the time there is. Its host has something to say all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_hypervisor_hangs_is_not_called_silent() {
    let (a, b) = (port(), port());
    let (a, b) = (Host::listed(a, &[b], None).await, Host::listed(b, &[a], None).await);
    assert_eq!(a.sights().await, [Sight::Off]);
    b.shown.hangs.store(true, Ordering::SeqCst);
    b.shows(Sight::Unknown("libvirt at test:///x did not answer in time".to_owned()));
    for time in [Duration::from_secs(5), Duration::from_millis(600)] {
        let found = a.look_within(time).await;
        let why = reason(&found[0].sight);
        assert!(
            why.starts_with("host ") && why.ends_with(": libvirt at test:///x did not answer in time"),
            "{why}"
        );
    }
}

/// A host is asked by as much of a name as fits. Whatever it does not find by that proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_cannot_be_asked_in_full_proves_nothing() {
    let (a, b) = (port(), port());
    let (a, b) = (Host::listed(a, &[b], None).await, Host::listed(b, &[a], None).await);
    for sight in [Sight::Off, Sight::Absent, Sight::On, Sight::Moving] {
        b.shows(sight.clone());
        for name in ["n".repeat(63), "n".repeat(64), "a\tb".to_owned()] {
            let question = DomainQuestion::new(DomainId::from_bytes([7; 16]), name.clone());
            let found = a.peers.look(&question, Instant::now() + Duration::from_secs(5)).await;
            if name.len() == 63 || matches!(sight, Sight::On | Sight::Moving) {
                assert_eq!(found[0].sight, sight);
            } else {
                let why = reason(&found[0].sight);
                assert!(why.contains("rename the domain") && why.contains("127.0.0.1"), "{why}");
            }
        }
    }
}

/// The asked one is bound to the address at which it first answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_at_the_address_of_one_does_not_count() {
    let (at_a, at_b) = (port(), port());
    let a = Host::listed(at_a, &[at_b], None).await;
    let b = Host::listed(at_b, &[at_a], None).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    let name = a.peers.known()[0].id;
    b.end().await;
    // It holds the key of all hosts, and has the address; another key pair (of other hypervisors).
    let mut other = settings(PeerMode::Listed(vec![(Ipv4Addr::LOCALHOST, at_a).into()]), at_b);
    other.hypervisors = vec!["test:///guest".to_owned()];
    let guest = Peers::start(other, None, Arc::default()).await.unwrap();
    let shown = Arc::new(Shown::new(Sight::Absent));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(Arc::clone(&guest).serve(Arc::<Shown>::clone(&shown), || 0));
    let guest = guest.identity.id();
    let sights = a.sights().await;
    assert!(
        reason(&sights[0]).contains("does not answer") || reason(&sights[0]).contains("two hosts"),
        "{sights:?}"
    );
    assert!(a.peers.known().iter().any(|it| it.id == name));
    doubts(&a, &["two hosts answered", &name.to_string(), &guest.to_string(), "--forget 127.0.0.1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_host_is_unknown_within_the_time() {
    let (a, b) = (port(), port());
    let a = Host::listed(a, &[b], None).await;
    let begin = Instant::now();
    let found = a.look().await;
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(found[0].place, DomainSite::Host(format!("127.0.0.1:{b}")));
    assert_eq!(a.peers.unmet(), [SocketAddr::from((Ipv4Addr::LOCALHOST, b))]);
    let why = reason(&found[0].sight);
    assert!(why.contains("does not answer; its domains may run there. Start fence_virtd there"), "{why}");
    assert!(why.contains("To power that host off does not help without peer_down_command"), "{why}");
    // It is the only one, and `peers` can't be empty.
    assert!(
        why.contains("take the line out, reload") && why.ends_with("fence_virtd --forget 127.0.0.1"),
        "{why}"
    );
    let begin = Instant::now();
    assert_eq!(a.look_within(Duration::from_millis(200)).await.len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

/// A host that powers off what runs there wants to know of one sure "on". It waits for nobody who is silent
/// after that, has no silent one proved down, and takes nobody for silent who had no time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_host_with_an_instance_is_enough() {
    let (a, b, silent) = (port(), port(), port());
    let (a, b) = (Host::listed(a, &[b, silent], None).await, Host::listed(b, &[a], None).await);
    let dir = StateDir::new();
    let settings = (*a.peers.settings()).clone();
    let down_command = Some(dir.path().join("no-such-program"));
    a.peers.replace_settings(PeerSettings { down_command, ..settings });
    let question = DomainQuestion::new(DomainId::from_bytes([7; 16]), "vm1".to_owned());
    let question = DomainQuestion { seeks_instance: true, ..question };
    b.shows(Sight::On);
    let begin = Instant::now();
    let found = a.peers.look(&question, begin + Duration::from_secs(60)).await;
    assert!(begin.elapsed() < Duration::from_millis(1900), "{:?}", begin.elapsed());
    assert!(matches!(&found[..], [Finding { sight: Sight::On, .. }]), "{found:?}");
    b.shows(Sight::Off);
    let found = a.peers.look(&question, Instant::now() + Duration::from_millis(500)).await;
    assert!(matches!(&found[..], [Finding { sight: Sight::Off, .. }]), "{found:?}");
    assert_eq!(a.peers.counts.silent.load(Ordering::Relaxed), 0);
    assert!(
        !a.peers
            .silent
            .lock()
            .unwrap()
            .was_asked_in_vain(Respondent::Address((Ipv4Addr::LOCALHOST, silent).into()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn found_hosts_are_asked_and_remembered() {
    let (group, port) = ([239, 77, 1, 1], port());
    let dirs = [(); 3].map(|()| StateDir::new());
    let a = Host::found(group, port, Some(dirs[0].path())).await;
    assert!(a.look().await.is_empty(), "a host alone");
    let b = Host::found(group, port, Some(dirs[1].path())).await;
    // It asks before it could know a, and waits for its first round.
    assert_eq!(b.sights().await, [Sight::Off]);
    let c = Host::found(group, port, Some(dirs[2].path())).await;
    a.knows(2).await;
    b.shows(Sight::On);
    c.shows(Sight::Absent);
    let sights = a.sights().await;
    assert!(
        sights.len() == 2 && sights.contains(&Sight::On) && sights.contains(&Sight::Absent),
        "{sights:?}"
    );
    // One that was heard must answer, after a restart of the asker too.
    b.end().await;
    let file = dirs[0].path().join("hosts");
    while !std::fs::read_to_string(&file).is_ok_and(|it| it.matches("\nhost ").count() == 2) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(a);
    // Tasks that end hold the directory a little longer; a daemon's end is that of its process.
    while super::identity::Identity::open(dirs[0].path()).is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let a = Host::found(group, port, Some(dirs[0].path())).await;
    let sights = a.sights().await;
    let silent: Vec<_> = sights.iter().filter(|it| matches!(it, Sight::Unknown(_))).collect();
    assert!(sights.len() == 2 && silent.len() == 1, "{sights:?}");
    assert!(reason(silent[0]).contains("fence_virtd --forget "), "{silent:?}");
    // Until an administrator forgets it.
    let gone = a.peers.known().into_iter().find(|it| it.id != c.peers.identity.id()).unwrap();
    super::store::HostStore::at(dirs[0].path()).request_forget(&gone.id.to_string()).unwrap();
    a.knows(1).await;
    assert_eq!(a.sights().await, [Sight::Absent]);
}

/// The file of hosts is gone, and its key pair is there: who is named in `peers` is known all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_host_of_peers_is_missing_where_the_file_of_hosts_is_gone() {
    let old = || {
        let dir = StateDir::new();
        drop(super::identity::Identity::open(dir.path()).unwrap());
        dir
    };
    let (dir, other) = (old(), old());
    let a = Host::listed(port(), &[port()], Some(dir.path())).await;
    assert!(a.peers.table.lock().unwrap().incomplete().is_some() && !a.peers.may_be_missing());
    let b = Host::found([239, 77, 1, 24], port(), Some(other.path())).await;
    assert!(b.peers.may_be_missing(), "those that are to be found");
}

/// A repeat of a question gets the same answer, and no second look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_datagram_costs_no_answer() {
    let (at_a, at_b) = (port(), port());
    let a = Host::listed(at_a, &[at_b], None).await;
    let late = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(600)).await;
        Host::listed(at_b, &[at_a], None).await
    });
    assert_eq!(a.sights().await, [Sight::Off], "nobody was there for the first questions");
    let b = late.await.unwrap();
    let looks = b.shown.looks.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(a.sights().await, [Sight::Off]);
    }
    assert_eq!(b.shown.looks.load(Ordering::SeqCst), looks + 5);
    assert_eq!((a.port, b.port), (at_a, at_b));
}

/// A holder of the key answers each question first, and as each host: never does it count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_with_the_key_cannot_answer_for_a_host() {
    let (group, port) = ([239, 77, 1, 2], port());
    let a = Host::found(group, port, None).await;
    let dir = StateDir::new();
    let b = Host::found(group, port, Some(dir.path())).await;
    let victim = a.knows(1).await[0].id;
    b.shows(Sight::On);
    let MulticastListener { socket, joined, .. } =
        fence_net::multicast_listener(group.into(), port, MulticastScope::Interface(1)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    let link = GroupLink { group: group.into(), port, only: None, joined: Arc::new(Mutex::new(joined)) };
    let guest = tokio::spawn(async move {
        let key = HostsKey::without_a_key();
        let mut datagram = [0; 2048];
        loop {
            let (length, _) = socket.recv_from(&mut datagram).await.unwrap();
            let Ok(seen) = HostMessage::decode(&datagram[..length], std::slice::from_ref(&key)) else {
                continue;
            };
            let HostBody::Ask(ask) = &seen.message().body else { continue };
            let answer = HostAnswer {
                uuid: ask.uuid,
                sight: HostSight::Absent,
                age_ms: None,
                reason: String::new(),
                namesakes: Vec::new(),
                memory: None,
            };
            let (sender, recipient) = (victim, Some(seen.message().sender));
            let nonce = seen.message().nonce;
            let forged = HostMessage { sender, recipient, nonce, body: HostBody::Answer(answer) };
            link.send(&[forged.encode_for(&key, &PairKey::of(&[1; 32])), forged.encode(&key)]);
        }
    });
    for _ in 0..20 {
        assert_eq!(a.sights().await, [Sight::On]);
    }
    guest.abort();
}

/// A copied state directory: the two would take each other for their own echo, and each for a host alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_the_same_key_pair_is_noticed() {
    let (group, port) = ([239, 77, 1, 3], port());
    let a = Host::found(group, port, None).await;
    assert!(a.look().await.is_empty());
    // Without a directory, hosts of the same hypervisors have the same pair.
    let b = Host::found(group, port, None).await;
    for host in [&b, &a] {
        let mut sights = host.sights().await;
        while sights.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            sights = host.sights().await;
        }
        assert!(reason(&sights[0]).contains("has the key pair of this one"), "{sights:?}");
    }
}

/// A directory with a copy of this one's key pair.
fn cloned(state: &std::path::Path) -> StateDir {
    let copy = StateDir::new();
    std::fs::copy(state.join("host.key"), copy.path().join("host.key")).unwrap();
    copy
}

/// Waits until every sight of a host is unknown for a reason with these words.
async fn doubts(host: &Host, words: &[&str]) {
    let has_words = |it: &Sight| matches!(it, Sight::Unknown(why) if words.iter().all(|it| why.contains(it)));
    let mut sights = host.sights().await;
    for _ in 0..200 {
        if sights.iter().any(has_words) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        sights = host.sights().await;
    }
    panic!("{words:?}: {sights:?}");
}

/// A copied state directory, seen by a third host: it hears one name, and whichever answers first counts for
/// both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_with_one_key_pair_prove_nothing_to_a_third() {
    let (group, port) = ([239, 77, 1, 5], port());
    let dirs = [(); 2].map(|()| StateDir::new());
    let a = Host::found(group, port, Some(dirs[0].path())).await;
    let copy = cloned(dirs[0].path());
    let c = Host::found(group, port, Some(dirs[1].path())).await;
    c.knows(1).await;
    assert_eq!(c.sights().await, [Sight::Off]);
    let b = Host::found(group, port, Some(copy.path())).await;
    doubts(&c, &["host.key", "two daemons have the key pair", "--forget"]).await;
    for host in [&a, &b] {
        doubts(host, &["host.key", "--forget all"]).await;
    }
    // What it can't tell itself it tells nobody else.
    let question = super::doubts::OWN_DOUBT;
    c.peers.table.lock().unwrap().forget(&a.peers.identity.id().to_string());
    assert!(question.len() <= 65, "a reason has no more room");
}

/// The clone is heard, and does not hear this host: a firewall, or `peers` at one side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_word_of_this_host_from_another_address_is_a_doubt() {
    let at = port();
    let elsewhere = SocketAddr::from(([10, 99, 99, 99], 1229));
    for body in 0..3 {
        let other = port();
        let host = Host::listed(at, &[other], None).await;
        let hello = host.peers.hello();
        let ask = fence_wire::HostAsk {
            uuid: [7; 16],
            left_ms: 9,
            takes_parts: false,
            takes_namesakes: false,
            asks_memory: false,
            is_by_uuid: false,
            name: "vm1".to_owned(),
        };
        let body =
            [HostBody::Hello(hello.clone()), HostBody::HelloAnswer(hello), HostBody::Ask(ask)][body].clone();
        let message = HostMessage { sender: host.peers.identity.id(), recipient: None, nonce: [1; 8], body };
        let bytes = message.encode(&HostsKey::without_a_key());
        host.peers.receive_from_group(&bytes, (Ipv4Addr::LOCALHOST, 9).into());
        assert_eq!(host.peers.own_doubt(), None, "an echo");
        host.peers.receive_from_group(&bytes, elsewhere);
        doubts(&host, &["10.99.99.99", "host.key", "--forget all"]).await;
        assert_eq!(host.peers.table.lock().unwrap().twins().count(), 0, "no proof: it ends by itself");
        host.peers.forget("all");
        assert_eq!(host.peers.own_doubt(), None);
    }
}

/// `peers` names two hosts with one key pair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_addresses_of_peers_with_one_key_are_a_doubt() {
    let (at_a, at_b, at_c) = (port(), port(), port());
    let dir = StateDir::new();
    let a = Host::listed(at_a, &[at_b, at_c], None).await;
    let _b = Host::listed(at_b, &[at_a], Some(dir.path())).await;
    let copy = cloned(dir.path());
    let _c = Host::listed(at_c, &[at_a], Some(copy.path())).await;
    for _ in 0..3 {
        let sights = a.sights().await;
        assert!(sights.len() == 2 && sights.iter().any(|it| matches!(it, Sight::Unknown(_))), "{sights:?}");
    }
    let words = [format!("127.0.0.1:{at_b}"), format!("127.0.0.1:{at_c}")];
    doubts(&a, &[&words[0], &words[1], "name each host once", "--forget"]).await;
}

/// A host got another address, and a new host the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renumbered_host_does_not_answer_for_the_new_one() {
    let (at_a, at_b, at_c) = (port(), port(), port());
    let dirs = [(); 2].map(|()| StateDir::new());
    let a = Host::listed(at_a, &[at_b], None).await;
    let b = Host::listed(at_b, &[at_a], Some(dirs[0].path())).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    let moved = cloned(dirs[0].path());
    b.end().await;
    let listed = [at_b, at_c].map(|it| SocketAddr::from((Ipv4Addr::LOCALHOST, it)));
    a.change(PeerMode::Listed(listed.to_vec()));
    let _moved = Host::listed(at_c, &[at_a], Some(moved.path())).await;
    let new = Host::listed(at_b, &[at_a], Some(dirs[1].path())).await;
    new.shows(Sight::On);
    for _ in 0..3 {
        let sights = a.sights().await;
        assert!(sights.iter().any(|it| *it == Sight::On || matches!(it, Sight::Unknown(_))), "{sights:?}");
    }
    let why = format!("127.0.0.1:{at_b}");
    doubts(&a, &[&why, "--forget 127.0.0.1"]).await;
    // The administrator says so, and both are met anew.
    a.peers.table.lock().unwrap().forget("127.0.0.1");
    let mut sights = a.sights().await;
    for _ in 0..200 {
        if sights == [Sight::On, Sight::Off] {
            return;
        }
        sights = a.sights().await;
    }
    panic!("{sights:?}");
}

/// An answer from elsewhere is not one of the address that was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_from_another_address_is_not_met() {
    let (at_a, at_b) = (port(), port());
    let a = Host::listed(at_a, &[at_b], None).await;
    let guest = super::identity::Identity::in_memory().unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, at_b));
    let nonce = a.peers.new_hello(Some(address)).unwrap();
    let hello = fence_wire::HostHello { public: guest.public(), ..a.peers.hello() };
    let message = HostMessage {
        sender: guest.id(),
        recipient: Some(a.peers.identity.id()),
        nonce,
        body: HostBody::HelloAnswer(hello),
    };
    let stray = SocketAddr::from((Ipv4Addr::LOCALHOST, port()));
    let way = MessageWay::Unicast(stray);
    a.peers.receive(&message.encode(&HostsKey::without_a_key()), stray, &way);
    assert_eq!(a.peers.table.lock().unwrap().pinned(&address), None);
    doubts(&a, &[&stray.to_string(), &address.to_string(), "by the address from which it"]).await;
}

/// A damaged file may have lost whose key is at an address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_missing_counts_with_peers_too() {
    let (at_a, at_b) = (port(), port());
    let dir = StateDir::new();
    std::fs::write(dir.path().join("hosts"), "fence_virt hosts 1\nhost ").unwrap();
    let a = Host::listed(at_a, &[at_b], Some(dir.path())).await;
    let _b = Host::listed(at_b, &[at_a], None).await;
    doubts(&a, &["line 2 can't be read", "--forget all"]).await;
    a.peers.table.lock().unwrap().forget("all");
    assert_eq!(a.sights().await, [Sight::Off]);
}

/// Hosts that an earlier run heard may be lost: a full disk, or a file that was removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_alone_who_may_have_forgotten_others() {
    let (group, port) = ([239, 77, 1, 6], port());
    let dir = StateDir::new();
    drop(Host::found(group, port, Some(dir.path())).await);
    while super::identity::Identity::open(dir.path()).is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = std::fs::remove_file(dir.path().join("hosts"));
    let host = Host::found(group, port, Some(dir.path())).await;
    let found = host.look_within(Duration::from_secs(3)).await;
    assert!(reason(&found[0].sight).contains("no file of other hosts"), "{found:?}");
    let text = std::fs::read_to_string(dir.path().join("hosts"));
    assert!(text.is_ok_and(|it| it.contains("\nincomplete ")), "a restart begins anew");
    // Whoever had time to answer and did not is not there.
    assert!(host.look_within(Duration::from_secs(9)).await.is_empty());
    let begin = Instant::now();
    assert!(host.look().await.is_empty());
    assert!(begin.elapsed() < Duration::from_secs(1), "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_written_may_have_lost_hosts() {
    let dir = StateDir::new();
    let fresh = super::state::read_directory(dir.path());
    assert_eq!(fresh.1.incomplete(), None, "the first start of all");
    fresh.2.write(&fresh.1).unwrap();
    drop(fresh.0);
    let again = super::state::read_directory(dir.path());
    assert_eq!(again.1.incomplete(), None);
    let held = super::state::read_directory(dir.path());
    assert!(held.1.incomplete().is_some_and(|it| it.contains("another fence_virtd")));
    drop(again.0);
    std::fs::remove_file(dir.path().join("hosts.new")).unwrap();
    std::fs::create_dir(dir.path().join("hosts.new")).unwrap();
    let unwritable = super::state::read_directory(dir.path());
    assert!(unwritable.1.incomplete().is_some_and(|it| it.contains("can't be written")));
}

/// A listener or a backend that was changed: a host that was heard is not gone for that reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_were_heard_count_when_there_is_no_way_to_them_any_more() {
    let (group, port) = ([239, 77, 1, 7], port());
    let dirs = [(); 2].map(|()| StateDir::new());
    let a = Host::found(group, port, Some(dirs[0].path())).await;
    let b = Host::found(group, port, Some(dirs[1].path())).await;
    let name = a.knows(1).await[0].to_string();
    assert_eq!(a.sights().await, [Sight::Off]);
    a.change(PeerMode::NoWay(NoWayReason::NoGroup));
    let sights = a.sights().await;
    let why = reason(&sights[0]);
    assert!(sights.len() == 1 && why.contains(&name) && why.contains("no multicast listener"), "{sights:?}");
    assert!(why.contains("`peers`") && why.contains("fence_virtd --forget "), "{why}");
    a.change(PeerMode::Off);
    assert!(a.sights().await.is_empty(), "the administrator's word");
    a.change(PeerMode::NoWay(NoWayReason::NoGroup));
    super::store::HostStore::at(dirs[0].path()).request_forget(&b.peers.identity.id().to_string()).unwrap();
    a.knows(0).await;
    assert!(a.sights().await.is_empty());
}

/// Whoever `peers` does not name need not answer, so a guest that plays many hosts holds up nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_table_is_no_doubt_with_peers() {
    let (at_a, at_b) = (port(), port());
    let a = Host::listed(at_a, &[at_b], None).await;
    let b = Host::listed(at_b, &[at_a], None).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    for number in 0..70 {
        let hello = fence_wire::HostHello { public: [number; 32], ..b.peers.hello() };
        a.peers.note_hello(&hello, IpAddr::from([10, 0, 0, number]));
        a.peers.note_legacy(IpAddr::from([10, 0, 1, number]), 1);
    }
    assert_eq!(a.peers.known().len(), fence_core::hosts::MAX_HOSTS);
    assert_eq!(a.sights().await, [Sight::Off]);
}

/// A host with `peers` is switched on beside one that looks for others: that one takes nothing at the port
/// of `peers`, and would call off what runs at the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_peers_is_heard_by_the_group_too() {
    let (group, port) = ([239, 77, 1, 9], port());
    let dirs = [(); 2].map(|()| StateDir::new());
    let a = Host::found(group, port, Some(dirs[0].path())).await;
    let listed = PeerMode::Listed(vec![SocketAddr::from((Ipv4Addr::new(127, 77, 77, 77), port))]);
    let b = Host::in_group(listed, group, port, Some(dirs[1].path())).await;
    b.shows(Sight::On);
    a.knows(1).await;
    assert_eq!(a.sights().await, [Sight::On]);
    a.change(PeerMode::Off);
    b.peers.say_hello_soon();
    let end = Instant::now() + Duration::from_secs(20);
    while a.peers.unasked_hosts.lock().unwrap().all().next().is_none() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(a.peers.unasked_hosts.lock().unwrap().all().next().is_some(), "peers = none names it");
}

/// A reload (SIGHUP): who must answer is who is named from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_who_must_answer() {
    let (at_a, at_b, at_c) = (port(), port(), port());
    let listed =
        |ports: &[u16]| PeerMode::Listed(ports.iter().map(|it| (Ipv4Addr::LOCALHOST, *it).into()).collect());
    let a = Host::listed(at_a, &[at_b], None).await;
    let b = Host::listed(at_b, &[at_a], None).await;
    b.shows(Sight::Off);
    assert_eq!(a.sights().await, [Sight::Off]);
    // One more, which is not up yet; then it is.
    a.change(listed(&[at_b, at_c]));
    let sights = a.sights().await;
    assert!(sights[0] == Sight::Off && reason(&sights[1]).contains("does not answer"), "{sights:?}");
    let c = Host::listed(at_c, &[at_a], None).await;
    c.shows(Sight::On);
    assert_eq!(a.sights().await, [Sight::Off, Sight::On]);
    // One less: it is not asked any more, and it is known all the same.
    a.change(listed(&[at_b]));
    assert_eq!(a.sights().await, [Sight::Off]);
    assert_eq!(a.peers.known().len(), 2);
    // None: nobody is asked or answered, at once.
    a.change(PeerMode::Off);
    let looks = b.shown.looks.load(Ordering::SeqCst);
    assert!(a.sights().await.is_empty());
    assert_eq!(b.shown.looks.load(Ordering::SeqCst), looks);
    assert!(reason(&b.look_within(Duration::from_millis(300)).await[0].sight).contains("does not answer"));
    // And back: its key pair and theirs are the same as before.
    a.change(listed(&[at_b, at_c]));
    assert_eq!(a.sights().await, [Sight::Off, Sight::On]);
    assert_eq!(b.sights().await, [Sight::Off]);
}

/// Another way to find hosts begins with a first round: whoever was asked until now says nothing about who
/// else is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_takes_peers_away_looks_for_others_first() {
    let (group, at) = ([239, 77, 1, 8], port());
    let dirs = [(); 2].map(|()| StateDir::new());
    let a = Host::found(group, at, Some(dirs[0].path())).await;
    assert!(a.look().await.is_empty());
    a.change(PeerMode::Off);
    let b = Host::found(group, at, Some(dirs[1].path())).await;
    b.shows(Sight::On);
    assert!(b.look().await.is_empty(), "nobody answers it");
    a.change(PeerMode::Discovered);
    assert_eq!(a.sights().await, [Sight::On], "asked before it was alone");
}

/// Two hosts that tell one name, behind one address: each is shown, with its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_one_name_are_shown_apart() {
    let (at_a, at_b) = (port(), port());
    let a = Host::listed(at_a, &[at_b], None).await;
    let _b = Host::listed(at_b, &[at_a], None).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    let own = a.peers.hello();
    let other = super::identity::Identity::in_memory().unwrap();
    a.peers.note_hello(&fence_wire::HostHello { public: other.public(), ..own }, Ipv4Addr::LOCALHOST.into());
    let known = a.peers.known();
    assert!(known.len() == 2 && known[0].to_string() == known[1].to_string(), "{known:?}");
    let mut registry = prometheus_client::registry::Registry::with_prefix("fence_virtd");
    a.peers.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for host in &known {
        assert!(text.contains(&format!("host=\"{host}\",key=\"{}\"", host.id)), "{text}");
    }
    let pinned = a.peers.table.lock().unwrap().pins().next().unwrap();
    for words in [
        format!("peer_own_key{{key=\"{}\"}}", a.peers.identity.id()),
        format!("peer_pinned_key{{address=\"{}\",key=\"{}\"}}", pinned.0, pinned.1),
    ] {
        assert!(text.contains(&words), "{words}: {text}");
    }
}

/// A daemon that waits for its network (-w) and serves by TCP meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_alone_before_the_group_can_be_heard() {
    let host = Host::new(PeerMode::Discovered, port(), None).await;
    let found = host.look_within(Duration::from_millis(1500)).await;
    assert!(reason(&found[0].sight).contains("not up"), "{found:?}");
    let begin = Instant::now();
    let host = Host::found([239, 77, 1, 4], port(), None).await;
    assert!(host.look().await.is_empty());
    assert!(begin.elapsed() >= Duration::from_secs(1), "others had no time to answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_means_none() {
    let host = Host::new(PeerMode::Off, port(), None).await;
    let begin = Instant::now();
    assert!(host.look().await.is_empty());
    assert!(begin.elapsed() < Duration::from_millis(500));
    let hello = HostMessage {
        sender: host.peers.identity.id(),
        recipient: None,
        nonce: [1; 8],
        body: HostBody::Hello(host.peers.hello()),
    };
    host.peers.receive_from_group(&hello.encode(&HostsKey::without_a_key()), (Ipv4Addr::LOCALHOST, 9).into());
    assert!(host.peers.known().is_empty());
}

/// `peers = "none"` may be wrong: whoever has the key is another host, and is named in the metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_none_leaves_out_is_named() {
    let host = Host::new(PeerMode::Off, port(), None).await;
    let other = super::identity::Identity::in_memory().unwrap();
    let hello = fence_wire::HostHello { public: other.public(), name: "h9".to_owned(), ..host.peers.hello() };
    let body = HostBody::Hello(hello);
    let hello = HostMessage { sender: other.id(), recipient: None, nonce: [1; 8], body };
    let told = |key: &HostsKey| {
        host.peers.receive_from_group(&hello.encode(key), ([10, 0, 0, 9], 9).into());
        let mut registry = prometheus_client::registry::Registry::with_prefix("fence_virtd");
        host.peers.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.contains("fence_virtd_peer_not_asked_seconds{host=\"h9 (10.0.0.9)\"}")
    };
    let other_key = HostsKey::of(&fence_wire::Key::new(b"another key").unwrap());
    assert!(!told(&other_key), "anybody may have said it");
    assert!(told(&HostsKey::without_a_key()));
    assert!(host.peers.known().is_empty(), "it is asked nothing all the same");
    assert!(host.look().await.is_empty());
    host.change(PeerMode::Discovered);
    assert!(!told(&other_key), "it is left out no more");
}

/// A host with `peers` sends to the named addresses alone, where nobody reads with `peers = "none"`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_heard_before_none_was_set_is_named() {
    let (a, b) = (port(), port());
    let (a, b) = (Host::listed(a, &[b], None).await, Host::listed(b, &[a], None).await);
    let other = a.knows(1).await.remove(0);
    b.end().await;
    let told = || {
        let mut registry = prometheus_client::registry::Registry::with_prefix("fence_virtd");
        a.peers.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.contains("fence_virtd_peer_not_asked_seconds{")
    };
    assert!(!told());
    a.change(PeerMode::Off);
    assert!(told());
    assert!(a.look().await.is_empty(), "it is not asked: the administrator's word stands");
    crate::util::locks::lock(&a.peers.table).forget(&other.id.to_string());
    assert!(!told());
}

/// Silent to this host: its operator must learn why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_another_key_is_named_once() {
    let (at_a, at_b) = (port(), port());
    let a = Host::listed(at_a, &[at_b], None).await;
    let other = HostsKey::of(&fence_wire::Key::new(b"another key").unwrap());
    let from = SocketAddr::from((Ipv4Addr::LOCALHOST, at_b));
    let hello = HostMessage {
        sender: a.peers.identity.id(),
        recipient: None,
        nonce: [1; 8],
        body: HostBody::Hello(a.peers.hello()),
    };
    let named = || crate::util::locks::lock(&a.peers.other_keys).is_due(from.ip(), Instant::now());
    for _ in 0..3 {
        a.peers.receive(&hello.encode(&other), from, &MessageWay::Unicast(from));
    }
    assert!(!named(), "it was named, and is not again within the hour");
    let counted = a.peers.drops.counts();
    assert!(counted.contains(&(("peers", "host-hash-mismatch"), 3)), "{counted:?}");
    let sights = a.sights().await;
    assert!(
        reason(&sights[0]).contains("does not answer: the messages of that host have another key"),
        "{sights:?}"
    );
    let mut registry = prometheus_client::registry::Registry::with_prefix("fence_virtd");
    a.peers.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("fence_virtd_peer_other_key{address=\"127.0.0.1\"} 1"), "{text}");
    let told = a.peers.told_of_other_key(from.ip());
    assert!(told.starts_with("a host of `peers`") && told.contains("peer_key_file"), "{told}");
    assert!(a.peers.told_of_other_key([10, 0, 0, 9].into()).starts_with("a message of a host"));
}

/// The same `peers` on all hosts names each host itself, too: nobody but this daemon would hear the question.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_does_not_wait_for_itself() {
    let own = super::legacy::own_addresses().into_iter().find(|it| it.is_ipv4() && !it.is_loopback());
    // A machine without a network has no such address.
    let Some(own) = own else { return };
    let (at, other) = (port(), port());
    let peers = vec![SocketAddr::new(own, at), SocketAddr::from((Ipv4Addr::LOCALHOST, other))];
    let a = Host::new(PeerMode::Listed(peers), at, None).await;
    let b = Host::listed(other, &[at], None).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    b.end().await;
    let sights = a.sights().await;
    assert!(sights.len() == 1 && reason(&sights[0]).contains("does not answer"), "{sights:?}");
    // Another daemon may be behind another port.
    a.change(PeerMode::Listed(vec![SocketAddr::new(own, port())]));
    let sights = a.sights().await;
    assert!(sights.len() == 1 && matches!(sights[0], Sight::Unknown(_)), "{sights:?}");
}
