// SPDX-License-Identifier: GPL-2.0-or-later
//! A node of a corosync cluster: it asks hosts that are no nodes, and never the nodes.

use fence_core::hosts::{HostRun, KnownHosts};
use fence_wire::{HostHello, HostId};

use super::*;
use crate::backend::elsewhere::NodeHosts;
use crate::peers::settings::NoWayReason;
use crate::peers::store::HostStore;

/// Nodes that told their key and run.
#[derive(Default)]
struct Nodes(Mutex<Vec<(HostId, HostRun)>>, Mutex<Vec<(Option<HostId>, IpAddr)>>);

impl NodeHosts for Nodes {
    fn tell_host(&self, id: HostId, run: HostRun, _: Arc<dyn Fn() + Send + Sync>) {
        self.0.lock().unwrap().push((id, run));
    }

    fn are_known(&self) -> bool {
        true
    }

    fn is_node(&self, id: HostId, run: Option<HostRun>) -> bool {
        self.0.lock().unwrap().iter().any(|(its, its_run)| *its == id && run.is_none_or(|it| it == *its_run))
    }

    fn is_node_at(&self, id: Option<HostId>, address: IpAddr) -> bool {
        self.1.lock().unwrap().iter().any(|(its, at)| *at == address && (id.is_none() || id == *its))
    }
}

/// A host of the group: a node of these, or none.
async fn host(group: [u8; 4], port: u16, name: &str, nodes: Option<&Arc<Nodes>>) -> Host {
    let mut settings = settings(PeerMode::Discovered, port);
    settings.hypervisors = vec![format!("test:///{name}")];
    settings.has_nodes = nodes.is_some();
    let peers = Peers::start(settings, None, Arc::default()).await.unwrap();
    if let Some(nodes) = nodes {
        peers.use_nodes(Arc::<Nodes>::clone(nodes));
    }
    Host::serving(peers, port).join(group)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_asks_hosts_that_are_none_and_no_node() {
    let (group, at) = ([239, 77, 3, 1], port());
    let nodes = Arc::new(Nodes::default());
    let a = host(group, at, "a", Some(&nodes)).await;
    let b = host(group, at, "b", Some(&nodes)).await;
    // Nobody else is there.
    assert_eq!(a.sights().await, []);
    assert_eq!(b.sights().await, []);
    let c = host(group, at, "c", None).await;
    c.knows(2).await;
    a.knows(1).await;
    b.knows(1).await;
    c.shows(Sight::On);
    assert_eq!(a.sights().await, [Sight::On]);
    a.shows(Sight::On);
    assert!(c.sights().await.contains(&Sight::On), "a node answers a host that is none");
    // It is made a node: its daemon is started anew, and tells so.
    c.end().await;
    assert!(
        matches!(&a.sights().await[..], [Sight::Unknown(why)] if why.contains("no node of this corosync"))
    );
    let its = Arc::new(Nodes(Mutex::new(nodes.0.lock().unwrap().clone()), Mutex::default()));
    let c = host(group, at, "c", Some(&its)).await;
    let told = (c.peers.identity.id(), c.peers.run);
    nodes.0.lock().unwrap().push(told);
    a.knows(0).await;
    assert_eq!(a.sights().await, [], "nothing is to be forgotten");
    // It is taken out of the cluster.
    let id = c.peers.identity.id();
    nodes.0.lock().unwrap().retain(|(it, _)| *it != id);
    its.0.lock().unwrap().clear();
    c.peers.say_hello_soon();
    a.knows(1).await;
    assert_eq!(a.sights().await, [Sight::Off]);
}

/// Nodes that were installed from one image have one key pair. Corosync tells them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_one_key_pair_do_not_doubt_themselves() {
    let (group, at) = ([239, 77, 3, 2], port());
    let nodes = Arc::new(Nodes::default());
    let a = host(group, at, "a", Some(&nodes)).await;
    let b = host(group, at, "a", Some(&nodes)).await;
    assert_eq!(a.peers.identity.id(), b.peers.identity.id());
    for it in [&a, &b, &a] {
        it.peers.say_hello_soon();
        assert_eq!(it.sights().await, []);
    }
    // A copy that is no node may run anything.
    let c = host(group, at, "a", None).await;
    c.peers.say_hello_soon();
    let end = Instant::now() + Duration::from_secs(10);
    while a.sights().await.is_empty() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(&a.sights().await[..], [Sight::Unknown(_), ..]));
}

/// A node of before, which is down, as a state directory of the libvirt backend with `peers` has it.
fn bound_host(at: SocketAddr) -> (tempfile::TempDir, HostId) {
    let dir = tempfile::tempdir().unwrap();
    let public = [9; 32];
    let hello = HostHello { public, port: 0, domains: 1, name: "c".to_owned(), run: [1; 8] };
    let mut table = KnownHosts::default();
    table.heard_proved(&hello, at.ip(), 1000, true);
    assert!(table.pin(at, HostId::of(&public)));
    HostStore::at(dir.path()).write(&table).unwrap();
    (dir, HostId::of(&public))
}

async fn host_of_nodes(mode: PeerMode, nodes: &Arc<Nodes>, state: &std::path::Path) -> Host {
    let port = port();
    let mut settings = settings(mode, port);
    settings.has_nodes = settings.mode == PeerMode::Discovered;
    let peers = Peers::start(settings, Some(state), Arc::default()).await.unwrap();
    peers.use_nodes(Arc::<Nodes>::clone(nodes));
    Host::serving(peers, port)
}

/// Hosts with the libvirt backend named each other in `peers`. Then they got the cpg backend without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_peers_named_before_is_forgotten_as_a_host() {
    let (state, id) = bound_host("127.0.0.1:9".parse().unwrap());
    let nodes = Arc::new(Nodes::default());
    nodes.0.lock().unwrap().push((id, [2; 8]));
    for mode in [PeerMode::NoWay(NoWayReason::Corosync), PeerMode::Discovered] {
        let a = host_of_nodes(mode.clone(), &nodes, state.path()).await;
        if mode == PeerMode::Discovered {
            a.knows(0).await;
            let is_bound = || HostStore::at(state.path()).read().pins().next().is_some();
            while is_bound() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } else {
            assert_eq!(a.sights().await, []);
        }
        a.end().await;
    }
}

/// `peers` stays in the configuration. Corosync proves that the node is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_that_peers_names_is_not_asked() {
    let (at, unmet) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.2:9".parse().unwrap());
    let (state, id) = bound_host(at);
    let nodes = Arc::new(Nodes::default());
    let a = host_of_nodes(PeerMode::Listed(vec![at, unmet]), &nodes, state.path()).await;
    let is_unknown = |it: &[Sight]| it.iter().filter(|it| matches!(it, Sight::Unknown(_))).count();
    assert_eq!(is_unknown(&a.sights().await), 2, "no nodes");
    nodes.0.lock().unwrap().push((id, [2; 8]));
    assert_eq!(is_unknown(&a.sights().await), 1, "one is known by its key");
    nodes.1.lock().unwrap().push((None, unmet.ip()));
    assert_eq!(a.sights().await, [], "and one by its address");
    // The address of a node, at which another key pair answered: nobody knows who is there.
    nodes.0.lock().unwrap().clear();
    nodes.1.lock().unwrap().push((None, at.ip()));
    assert_eq!(is_unknown(&a.sights().await), 1);
    // As soon as `peers` does not name it any more it is no other host.
    nodes.0.lock().unwrap().push((id, [2; 8]));
    a.change(PeerMode::NoWay(NoWayReason::Corosync));
    assert_eq!(a.sights().await, []);
    a.knows(0).await;
}
