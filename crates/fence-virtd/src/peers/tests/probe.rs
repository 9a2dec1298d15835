// SPDX-License-Identifier: GPL-2.0-or-later
//! The questions of `--check`, beside daemons that run.

use std::path::Path;

use fence_core::hosts::KnownHosts;
use fence_wire::Key;

use super::super::probe::{HostProbe, ProbeReport, ProbeResult, SilenceClue};
use super::super::store::HostStore;
use super::*;

/// A daemon with a state directory that names another host, and `--check` beside it.
struct Checked {
    at: u16,
    other: u16,
    dir: StateDir,
    daemon: Option<Host>,
}

impl Checked {
    async fn new() -> Self {
        let (at, other) = (port(), port());
        let dir = StateDir::new();
        let daemon = Host::listed(at, &[other], Some(dir.path())).await;
        Self { at, other, dir, daemon: Some(daemon) }
    }

    fn settings(&self) -> PeerSettings {
        settings(PeerMode::Listed(vec![(Ipv4Addr::LOCALHOST, self.other).into()]), self.at)
    }

    fn known(&self) -> KnownHosts {
        HostStore::at(self.dir.path()).read()
    }

    async fn check_with(&self, spare: Vec<HostsKey>) -> ProbeReport {
        probe(self.settings(), spare, self.dir.path(), None).await
    }

    async fn clue(&self) -> SilenceClue {
        clue(&self.check_with(Vec::new()).await)
    }

    /// Waits until the daemon has written down who is at the other address.
    async fn has_met(&self) {
        while self.known().pins().next().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn probe(
    settings: PeerSettings,
    spare: Vec<HostsKey>,
    dir: &Path,
    link: Option<GroupLink>,
) -> ProbeReport {
    let known = HostStore::at(dir).read();
    let probe = HostProbe::of(settings, spare, Some(dir), known, Vec::from_iter(link), 0).unwrap();
    Arc::new(probe).run(false).await.unwrap()
}

fn clue(report: &ProbeReport) -> SilenceClue {
    match &report.hosts[..] {
        [one] => match &one.result {
            ProbeResult::Silent(clue) => clue.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn files(dir: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let read = |it: std::fs::DirEntry| (it.file_name(), std::fs::read(it.path()).unwrap());
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|it| read(it.unwrap())).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_answers_the_daemon_answers_the_check_and_neither_is_disturbed() {
    let a = Checked::new().await;
    let other = StateDir::new();
    let b = Host::listed(a.other, &[a.at], Some(other.path())).await;
    let daemon = a.daemon.as_ref().unwrap();
    assert_eq!(daemon.sights().await, [Sight::Off]);
    a.has_met().await;
    let before = (files(a.dir.path()), daemon.peers.known(), b.knows(1).await[0].id);
    for sight in [Sight::Off, Sight::On] {
        b.shows(sight);
        let report = a.check_with(Vec::new()).await;
        assert_eq!(report.hosts.len(), 1);
        assert_eq!(report.hosts[0].result, ProbeResult::Answers);
    }
    b.shows(Sight::Unknown("its libvirt hangs".to_owned()));
    let report = a.check_with(Vec::new()).await;
    let told = ProbeResult::CantTell("its libvirt hangs".to_owned());
    assert!(report.hosts[0].result == told && !report.has_no_pair, "{report:?}");
    assert_eq!(daemon.sights().await.len(), 1, "the daemon has its port as before");
    b.shows(Sight::On);
    assert_eq!(daemon.sights().await, [Sight::On]);
    assert_eq!((files(a.dir.path()), daemon.peers.known(), b.knows(1).await[0].id), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_our_daemon_and_one_with_another_key() {
    let a = Checked::new().await;
    assert_eq!(a.clue().await, SilenceClue::NothingThere);
    let b = Host::listed(a.other, &[a.at], None).await;
    let of_hosts = HostsKey::of(&Key::new(b"a key that no guest has").unwrap());
    let of_listener = b.peers.settings().keys.clone();
    let with = |key: &HostsKey| PeerSettings { keys: vec![key.clone()], ..a.settings() };
    // What the daemon here would say too.
    a.daemon.as_ref().unwrap().peers.replace_settings(with(&of_hosts));
    let report = probe(with(&of_hosts), Vec::new(), a.dir.path(), None).await;
    assert_eq!(clue(&report), SilenceClue::Nothing);
    assert!(matches!(a.daemon.as_ref().unwrap().sights().await[0], Sight::Unknown(_)));
    let report = probe(with(&of_hosts), of_listener, a.dir.path(), None).await;
    assert_eq!(clue(&report), SilenceClue::ListenersKey);
    // With peers = "none" there it answers nobody.
    b.peers.replace_settings(PeerSettings { mode: PeerMode::Off, ..(*b.peers.settings()).clone() });
    assert_eq!(a.clue().await, SilenceClue::Nothing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_installed_anew_is_named() {
    let a = Checked::new().await;
    let first = Host::listed(a.other, &[a.at], None).await;
    assert_eq!(a.daemon.as_ref().unwrap().sights().await, [Sight::Off]);
    a.has_met().await;
    drop(first);
    let dir = StateDir::new();
    let _anew = Host::listed(a.other, &[a.at], Some(dir.path())).await;
    let report = a.check_with(Vec::new()).await;
    // The daemon may have noticed it before.
    let is_named = |it: &ProbeResult| match it {
        ProbeResult::InDoubt(why) => why.contains("two hosts answered"),
        other => matches!(other, ProbeResult::Silent(SilenceClue::OtherPair(_))),
    };
    assert!(report.hosts.len() == 1 && is_named(&report.hosts[0].result), "{report:?}");
    let sights = a.daemon.as_ref().unwrap().sights().await;
    assert!(matches!(sights[0], Sight::Unknown(_)), "the daemon can't tell either: {sights:?}");
}

/// Each start of a daemon tells another run, and two runs by turns are two daemons with one key pair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_is_never_taken_for_a_second_daemon() {
    let a = Checked::new().await;
    let b = Host::listed(a.other, &[a.at], None).await;
    let daemon = a.daemon.as_ref().unwrap();
    for _ in 0..2 {
        daemon.peers.say_hello_to((Ipv4Addr::LOCALHOST, a.other).into());
        assert_eq!(daemon.sights().await, [Sight::Off]);
        // It does not know who is there, and says hello.
        let (settings, dir) = (a.settings(), Some(a.dir.path()));
        let probe = HostProbe::of(settings, Vec::new(), dir, KnownHosts::default(), Vec::new(), 0).unwrap();
        let report = Arc::new(probe).run(false).await.unwrap();
        assert_eq!(report.hosts[0].result, ProbeResult::Answers);
    }
    daemon.peers.say_hello_to((Ipv4Addr::LOCALHOST, a.other).into());
    assert_eq!(daemon.sights().await, [Sight::Off]);
    assert_eq!(b.peers.doubt(Respondent::Host(daemon.peers.identity.id())), None);
}

/// Any other pair would be another host to those who are asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_with_another_key_pair_than_the_daemons() {
    let (at, other) = (port(), port());
    let (empty, dir) = (StateDir::new(), StateDir::new());
    let b = Host::listed(other, &[at], Some(dir.path())).await;
    let listed = settings(PeerMode::Listed(vec![(Ipv4Addr::LOCALHOST, other).into()]), at);
    let report = probe(listed, Vec::new(), empty.path(), None).await;
    assert!(report.has_no_pair && report.hosts.is_empty(), "{report:?}");
    assert!(files(empty.path()).is_empty() && b.peers.known().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_the_group_are_asked_beside_the_daemon() {
    let (group, port) = ([239, 77, 1, 9], port());
    let dirs = [(); 2].map(|()| StateDir::new());
    let a = Host::found(group, port, Some(dirs[0].path())).await;
    let b = Host::found(group, port, Some(dirs[1].path())).await;
    a.knows(1).await;
    b.knows(1).await;
    while HostStore::at(dirs[0].path()).read().all().next().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let link = || {
        let joined = vec![fence_net::JoinedInterface { index: 1, name: "lo".to_owned() }];
        GroupLink { group: group.into(), port, only: None, joined: Arc::new(Mutex::new(joined)) }
    };
    // The settings of a.
    let settings = || (*a.peers.settings()).clone();
    let report = probe(settings(), Vec::new(), dirs[0].path(), Some(link())).await;
    assert!(report.hosts.len() == 1 && report.hosts[0].result == ProbeResult::Answers, "{report:?}");
    assert_eq!(a.sights().await, [Sight::Off]);
    assert_eq!((a.peers.known().len(), b.peers.known().len()), (1, 1));
    // The daemon was not made to believe that another one has its key pair.
    assert!(lock_table(&a).missing().is_none());
    let other = HostsKey::of(&Key::new(b"another key").unwrap());
    let keys = b.peers.settings().keys.clone();
    a.peers.replace_settings(PeerSettings { keys: vec![other], ..settings() });
    let report = probe(settings(), keys, dirs[0].path(), Some(link())).await;
    assert_eq!(clue(&report), SilenceClue::ListenersKey);
    b.end().await;
    let report = probe(settings(), Vec::new(), dirs[0].path(), Some(link())).await;
    assert_eq!(clue(&report), SilenceClue::Nothing);
}

fn lock_table(host: &Host) -> KnownHosts {
    crate::util::locks::lock(&host.peers.table).clone()
}

/// A listener or a backend was changed: the daemon can't ask those that it heard, and --check says so too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_can_not_be_asked_any_more_are_named() {
    let mut known = KnownHosts::default();
    known.heard_legacy([10, 0, 0, 9].into(), 1, 7);
    let settings = settings(PeerMode::NoWay(NoWayReason::NoGroup), port());
    let probe = HostProbe::of(settings, Vec::new(), None, known, Vec::new(), 0).unwrap();
    let report = Arc::new(probe).run(false).await.unwrap();
    let [host] = &report.hosts[..] else { panic!("{report:?}") };
    assert!(host.name.contains("10.0.0.9"), "{host:?}");
    assert!(
        matches!(&host.result, ProbeResult::InDoubt(why) if why.contains("no multicast listener")),
        "{host:?}"
    );
}
