// SPDX-License-Identifier: GPL-2.0-or-later
//! The choice of backends and listeners, and everything that serves made from it.
//!
//! Owns the answer to "which parts does this build have, and which does the configuration use". Runs once, in
//! the task of `run`. Must never decide anything about a request.

use std::path::Path;
use std::sync::Arc;

use fence_config::{Backend as BackendSettings, Config};
use fence_core::agent::domains;
use tokio::task::JoinSet;

use super::error::DaemonError;
use crate::backend::DynBackend;
use crate::backend::agent::AgentBackend;
#[cfg(feature = "libvirt")]
use crate::backend::combined::CombinedBackend;
use crate::backend::elsewhere::{NodeHosts, OwnPlaces, PeerHosts};
#[cfg(feature = "libvirt")]
use crate::backend::libvirt::LibvirtBackend;
#[cfg(feature = "cpg")]
use crate::cluster::backend::CpgBackend;
#[cfg(feature = "cpg")]
use crate::cluster::{Cluster, ClusterClaims, LinkEvents};
use crate::hypervisor::Hypervisors;
use crate::hypervisor::inventory::{Inventories, Inventory};
use crate::intent::IntentLog;
use crate::intent::store::LeftIntents;
use crate::listener::kept::KeptSockets;
use crate::listener::manager::{ListenerContext, ListenerManager};
use crate::listener::sources::SourceResolver;
use crate::observe::agent_runs::AgentRuns;
use crate::observe::audit::Audit;
use crate::peers::{PeerSettings, Peers};
use crate::replay::ReplayMemory;
use crate::service::cluster_port::ClusterPort;
use crate::service::owed_places::OwedPlaces;
use crate::service::{Service, ServiceMemory};
use crate::status::endpoint::Endpoint;
use crate::status::exporter::{Exporter, MetricsSection};

/// All parts of a daemon that serves.
pub(super) struct ServingDaemon {
    pub(super) service: Arc<Service>,
    pub(super) listeners: ListenerManager,
    /// Tasks that end with the daemon.
    pub(super) tasks: JoinSet<()>,
    /// Counters and gauges, for the summary in the log.
    pub(super) exporter: Exporter,
    pub(super) other_hosts: OtherHosts,
    pub(super) peers: Arc<Peers>,
}

/// Starts the backends, the service and the listeners.
///
/// # Errors
/// A backend or a listener of the configuration can't start, and the daemon was not told to wait for it.
pub(super) async fn assemble(
    config: &Config,
    replays: ReplayMemory,
    (intents, left): (IntentLog, LeftIntents),
    state: Option<&Path>,
    known: Hypervisors,
    (endpoint, kept): (Option<Endpoint>, KeptSockets),
    wait: bool,
) -> Result<ServingDaemon, DaemonError> {
    let audit = Audit::open(config.daemon.audit_log.as_deref())?;
    let setup = backend(config, &known, wait).await?;
    // What an earlier daemon owes is known before anybody is told anything.
    left.intents.iter().for_each(|it| drop(intents.adopt(it)));
    let memory = ServiceMemory { replays, intents: intents.clone() };
    let service = Service::new(setup.backend, audit, memory, setup.claims, config.daemon.client_timeout);
    // Before anybody is granted anything, here or at another host.
    service.hold_left(&left);
    let other_hosts = setup.links.serve(&service, state);
    // Not before the other hosts know what may still be under way here.
    // The domains of the agent backend need no hypervisor.
    first_lists(&known, wait || setup.agent.is_some()).await?;
    let settings = PeerSettings::load_for_daemon(config, wait)?;
    let peers = Peers::start(settings, state, Arc::clone(&service.drops)).await?;
    if let Some(nodes) = other_hosts.nodes() {
        peers.use_nodes(nodes);
    }
    let inventories = inventories(config, &known);
    let running = uris(config).map(str::to_owned).zip(inventories.0.iter().map(|it| it.running.clone()));
    let running: Vec<_> = running.collect();
    let exporter = || Exporter {
        service: Arc::clone(&service),
        hypervisors: known.clone(),
        running: running.clone(),
        agent: setup.agent.clone(),
        cluster: other_hosts.metrics(),
        peers: {
            let peers = Arc::clone(&peers);
            Box::new(move |registry| peers.register(registry))
        },
    };
    let (for_readers, for_summary) = (exporter(), exporter());
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&service).run_deadlines());
    let sources = SourceResolver::new(inventories);
    if let Some(own) = setup.own {
        let OwnHypervisors { places, ask_others } = own;
        let places = Arc::new(OwedPlaces::new(places, intents));
        ask_others(Arc::clone(&peers) as Arc<dyn PeerHosts>);
        let count = move || running.iter().map(|(_, it)| it.borrow().len()).sum();
        tasks.spawn(Arc::clone(&peers).serve(places, count));
        let (peers, hypervisors) = (Arc::clone(&peers), known.clone());
        tasks.spawn(async move {
            loop {
                hypervisors.migration().await;
                peers.after_migration().await;
            }
        });
    }
    // One that is busy may be so for long: nobody is to wait for it who does not ask for its domains.
    let is_ready = known.all().iter().all(|it| it.is_up());
    let context = ListenerContext {
        service: Arc::clone(&service),
        sources,
        hypervisors: known,
        peers: Arc::clone(&peers),
        kept: Arc::new(kept),
    };
    service.finish_left(left.intents, is_ready).await;
    let listeners = ListenerManager::start(config, context, wait).await?;
    if let Some(endpoint) = endpoint {
        tasks.spawn(endpoint.serve(for_readers));
    }
    Ok(ServingDaemon { service, listeners, tasks, exporter: for_summary, other_hosts, peers })
}

/// Lets all threads share one heap from now on, where a library aborts without memory.
#[cfg(feature = "libvirt")]
pub(super) fn spare_address_space() {
    libvirt_host::share_memory_of_threads();
}

/// Changes nothing: no library here aborts without memory.
#[cfg(not(feature = "libvirt"))]
pub(super) fn spare_address_space() {}

/// The corosync groups, opened but not served yet.
#[derive(Default)]
struct ClusterLinks {
    #[cfg(feature = "cpg")]
    links: Option<(Arc<Cluster>, LinkEvents)>,
}

impl ClusterLinks {
    /// Starts to serve the other hosts.
    #[cfg(feature = "cpg")]
    fn serve(self, service: &Arc<Service>, state: Option<&Path>) -> OtherHosts {
        OtherHosts(self.links.map(|(cluster, events)| {
            cluster.serve(events, service, state);
            cluster
        }))
    }

    #[cfg(not(feature = "cpg"))]
    fn serve(self, _: &Arc<Service>, _: Option<&Path>) -> OtherHosts {
        let Self {} = self;
        OtherHosts()
    }
}

/// The other hosts of the cluster; empty on a host alone, and in builds without the cpg backend.
pub(super) struct OtherHosts(#[cfg(feature = "cpg")] Option<Arc<Cluster>>);

impl OtherHosts {
    /// Accepts no more work from other hosts.
    pub(super) fn stop(&self) {
        #[cfg(feature = "cpg")]
        if let Some(cluster) = &self.0 {
            cluster.stop();
        }
    }

    /// Returns the nodes of the cluster, where there is one.
    fn nodes(&self) -> Option<Arc<dyn NodeHosts>> {
        #[cfg(feature = "cpg")]
        if let Some(cluster) = self.0.clone() {
            return Some(cluster);
        }
        None
    }

    /// Returns the gauges of the cluster, for the exporter.
    fn metrics(&self) -> Option<MetricsSection> {
        #[cfg(feature = "cpg")]
        if let Some(cluster) = self.0.clone() {
            return Some(Box::new(move |registry| cluster.counts().register(registry)));
        }
        None
    }

    /// Leaves the process groups, so that the other hosts learn of it at once.
    #[cfg(feature = "cpg")]
    pub(super) async fn leave(&self) {
        if let Some(cluster) = &self.0 {
            cluster.leave().await;
        }
    }

    #[cfg(not(feature = "cpg"))]
    #[expect(clippy::unused_async, reason = "the same form as with the cpg backend")]
    pub(super) async fn leave(&self) {}
}

/// Waits a moment for the lists of all domains. Without `wait` at least one hypervisor must give one, or be
/// busy.
async fn first_lists(known: &Hypervisors, wait: bool) -> Result<(), DaemonError> {
    let (all, mut failed) = (known.all(), Vec::new());
    for it in &all {
        failed.extend(it.first_list().await.err().map(|error| error.to_string()));
    }
    if !wait && !all.is_empty() && failed.len() == all.len() {
        return Err(DaemonError::Backend(failed.join("; ")));
    }
    Ok(())
}

/// The chosen backend with everything that comes with it.
struct BackendSetup {
    backend: Arc<dyn DynBackend>,
    /// The cluster, which grants requests too.
    claims: Option<Arc<dyn ClusterPort>>,
    /// Counters of the agent backend's runs, where there is one.
    agent: Option<AgentRuns>,
    links: ClusterLinks,
    /// The hypervisors of this host, where there are some.
    own: Option<OwnHypervisors>,
}

/// The hypervisors of this host: they tell other hosts what they show, and are told whom to ask.
struct OwnHypervisors {
    places: Arc<dyn OwnPlaces>,
    ask_others: Box<dyn FnOnce(Arc<dyn PeerHosts>) + Send>,
}

#[cfg(feature = "libvirt")]
impl OwnHypervisors {
    fn of(backend: &Arc<LibvirtBackend>) -> Self {
        let theirs = Arc::clone(backend);
        let ask_others = Box::new(move |others| theirs.ask_others(others));
        Self { places: Arc::<LibvirtBackend>::clone(backend), ask_others }
    }
}

impl BackendSetup {
    /// Returns the setup of a backend without a cluster.
    fn alone(backend: Arc<dyn DynBackend>) -> Self {
        Self { backend, claims: None, agent: None, links: ClusterLinks::default(), own: None }
    }
}

async fn backend(config: &Config, known: &Hypervisors, wait: bool) -> Result<BackendSetup, DaemonError> {
    let (agents, hypervisors): (Vec<_>, Vec<_>) =
        config.backends.iter().partition(|it| matches!(it, BackendSettings::Agent(_)));
    let agent = match &agents[..] {
        [BackendSettings::Agent(settings)] => Some(agent(settings)),
        _ => None,
    };
    match (&hypervisors[..], agent) {
        ([], Some((backend, runs))) => Ok(BackendSetup { agent: Some(runs), ..BackendSetup::alone(backend) }),
        ([settings], None) => build_hypervisor_backend(settings, known, wait).await,
        #[cfg(feature = "libvirt")]
        ([settings], Some((agent, runs))) => {
            // The domains of the agent backend need no hypervisor, and must not wait for one.
            let setup = build_hypervisor_backend(settings, known, true).await?;
            let combined = CombinedBackend::new(settings.kind().as_str(), setup.backend, agent);
            Ok(BackendSetup { backend: Arc::new(combined), agent: Some(runs), ..setup })
        }
        (others, _) => Err(DaemonError::Missing {
            what: "backend",
            name: others.iter().map(|it| it.kind().as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Starts the agent backend.
fn agent(settings: &fence_config::AgentBackend) -> (Arc<dyn DynBackend>, AgentRuns) {
    let (backend, runs) = AgentBackend::start(settings);
    (backend, runs)
}

/// Builds the backend for the domains of this host's hypervisors, or of all hosts of its cluster.
async fn build_hypervisor_backend(
    settings: &BackendSettings,
    known: &Hypervisors,
    wait: bool,
) -> Result<BackendSetup, DaemonError> {
    match settings {
        #[cfg(feature = "libvirt")]
        BackendSettings::Libvirt(settings) => {
            let local = libvirt(&settings.uris, settings.reboot_starts, known, wait).await?;
            Ok(BackendSetup { own: Some(OwnHypervisors::of(&local)), ..BackendSetup::alone(local) })
        }
        #[cfg(feature = "cpg")]
        BackendSettings::Cpg(settings) => {
            let local = libvirt(&settings.uris, settings.reboot_starts, known, wait).await?;
            let own = Some(OwnHypervisors::of(&local));
            let (cluster, events) = Cluster::start(settings, Arc::clone(&local))?;
            let backend = Arc::new(CpgBackend::new(local, Arc::clone(&cluster)));
            let claims: Arc<dyn ClusterPort> = Arc::new(ClusterClaims(Arc::clone(&cluster)));
            Ok(BackendSetup {
                claims: Some(claims),
                links: ClusterLinks { links: Some((cluster, events)) },
                own,
                ..BackendSetup::alone(backend)
            })
        }
        other => {
            #[cfg(not(feature = "libvirt"))]
            let _ = (wait, known);
            Err(DaemonError::Missing { what: "backend", name: other.kind().as_str().to_owned() })
        }
    }
}

/// Starts the libvirt backend. Without `wait` at least one hypervisor must answer.
#[cfg(feature = "libvirt")]
async fn libvirt(
    uris: &[String],
    reboot_starts: bool,
    known: &Hypervisors,
    wait: bool,
) -> Result<Arc<LibvirtBackend>, DaemonError> {
    let (backend, unreachable) = LibvirtBackend::start(uris, reboot_starts, known).await;
    if unreachable.len() == uris.len() && !wait {
        return Err(DaemonError::Backend(unreachable.join("; ")));
    }
    Ok(Arc::new(backend))
}

fn uris(config: &Config) -> impl Iterator<Item = &str> {
    config.backends.iter().flat_map(BackendSettings::uris).map(String::as_str)
}

/// Returns the domains among which sources are recognised: the running ones of the hypervisors, and those of
/// agents whose cards the configuration names.
fn inventories(config: &Config, known: &Hypervisors) -> Inventories {
    let mut all = Vec::new();
    #[cfg(feature = "libvirt")]
    all.extend(uris(config).map(|uri| crate::hypervisor::running::follow_running(&known.at(uri))));
    #[cfg(not(feature = "libvirt"))]
    let _ = known;
    if let Some(agent) = config.agent() {
        all.extend(Inventory::of_cards(domains::sources(&agent.devices)));
    }
    Inventories(all)
}
