// SPDX-License-Identifier: GPL-2.0-or-later
//! Knowledge of the next daemon, whenever this one ends.

use fence_wire::HostId;

use super::*;
use crate::peers::store::HostStore;

fn id(host: &Host) -> HostId {
    host.peers.identity.id()
}

/// A daemon that is killed as soon as it has answered: another host at the address, which has the key of all
/// hosts, must not be the first one there for the next daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_answered_is_on_disk_before_the_answer_counts() {
    for _ in 0..5 {
        let (dir, at_a, at_b) = (StateDir::new(), port(), port());
        let b = Host::listed(at_b, &[at_a], None).await;
        let a = Host::listed(at_a, &[at_b], Some(dir.path())).await;
        let place = SocketAddr::from((Ipv4Addr::LOCALHOST, at_b));
        let sights = a.sights().await;
        let known = HostStore::at(dir.path()).read();
        assert_eq!((sights, known.pinned(&place)), (vec![Sight::Off], Some(id(&b))));
        assert!(known.host(id(&b)).is_some_and(|it| it.is_proved), "{known:?}");
    }
}

/// The same where hosts find each other: this one is silent when the next daemon starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_found_is_on_disk_before_the_answer_counts() {
    let (dirs, group, port) = ([(); 3].map(|()| StateDir::new()), [239, 77, 1, 40], port());
    let [dir, of_b, of_c] = &dirs;
    let b = Host::found(group, port, Some(of_b.path())).await;
    let a = Host::found(group, port, Some(dir.path())).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    let c = Host::found(group, port, Some(of_c.path())).await;
    a.knows(2).await;
    assert_eq!(a.sights().await, [Sight::Off, Sight::Off]);
    let known = HostStore::at(dir.path()).read();
    assert!([&b, &c].iter().all(|it| known.host(id(it)).is_some()), "{known:?}");
}

/// A second host at the address of one is in doubt for the next daemon too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubt_is_on_disk_before_it_is_told() {
    let (dir, at_a, at_b) = (StateDir::new(), port(), port());
    let a = Host::listed(at_a, &[at_b], Some(dir.path())).await;
    let b = Host::listed(at_b, &[at_a], None).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    b.end().await;
    let mut other = settings(PeerMode::Listed(vec![(Ipv4Addr::LOCALHOST, at_a).into()]), at_b);
    other.hypervisors = vec!["test:///other".to_owned()];
    let other = Host::serving(Peers::start(other, None, Arc::default()).await.unwrap(), at_b);
    doubts(&a, &["two hosts answered", &id(&other).to_string()]).await;
    let known = HostStore::at(dir.path()).read();
    assert_eq!(known.rivals().map(|(_, it)| it).collect::<Vec<_>>(), [id(&other)]);
}

/// Nobody waits for a disk that can't be written, and the next daemon is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_holds_no_answer_up() {
    let (dir, at_a, at_b) = (StateDir::new(), port(), port());
    let b = Host::listed(at_b, &[at_a], None).await;
    let a = Host::listed(at_a, &[at_b], Some(dir.path())).await;
    // A directory in its place can't be opened for writing.
    std::fs::remove_file(dir.path().join("hosts.new")).unwrap_or_default();
    std::fs::create_dir(dir.path().join("hosts.new")).unwrap_or_default();
    for sight in [Sight::Off, Sight::Absent] {
        b.shows(sight.clone());
        assert_eq!(a.sights().await, [sight]);
    }
    // With its key pair and without the file the next daemon looks for all.
    let known = HostStore::at(dir.path()).read();
    // The daemon may be at the rename of what it wrote a moment ago: then the directory is the table.
    let is_told = known.pins().next().is_some() || known.incomplete().or(known.missing()).is_some();
    assert!(is_told || !dir.path().join("hosts").exists(), "{known:?}");
}

/// Names and times may come later, but not later than the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_writes_what_is_not_on_disk_yet() {
    let (dir, at_a, at_b) = (StateDir::new(), port(), port());
    let a = Host::listed(at_a, &[at_b], Some(dir.path())).await;
    let b = Host::listed(at_b, &[at_a], None).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    a.peers.note_legacy(IpAddr::from([10, 0, 0, 9]), 2);
    a.peers.note_legacy(IpAddr::from([10, 0, 0, 9]), 4);
    let Host { peers, mut _tasks, .. } = a;
    _tasks.shutdown().await;
    peers.finish().await;
    let known = HostStore::at(dir.path()).read();
    let domains: Vec<_> = known.all().filter(|it| it.id != id(&b)).map(|it| it.domains).collect();
    assert_eq!(domains, [4], "{known:?}");
}
