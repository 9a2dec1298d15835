// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon's life: configuration, backend, listeners, signals, end.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fence_config::{Backend as BackendSettings, Config, DaemonSection, Severity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::backend::Backend;
use crate::backend::agent::AgentBackend;
#[cfg(feature = "libvirt")]
use crate::backend::combined::CombinedBackend;
#[cfg(feature = "libvirt")]
use crate::backend::libvirt::LibvirtBackend;
use crate::cli::options::{Options, PID_FILE};
#[cfg(feature = "cpg")]
use crate::cluster::backend::CpgBackend;
#[cfg(feature = "cpg")]
use crate::cluster::{self, Cluster, ClusterClaims};
use crate::daemon::exit::{FAILURE, SUCCESS};
use crate::daemon::pid_file::{PidFile, PidFileError};
use crate::daemon::{daemonise, log, notify, sandbox};
use crate::hypervisor::Hypervisors;
use crate::hypervisor::inventory::Inventories;
use crate::listener::limits::DESCRIPTORS;
use crate::listener::manager::{ListenerContext, ListenerError, ListenerManager};
use crate::listener::sources::SourceResolver;
use crate::observe::agent_runs::AgentRuns;
use crate::observe::audit::Audit;
use crate::process as program;
use crate::replay::{self, ReplayMemory};
use crate::service::Service;
use crate::service::turns::ClusterPort;
use crate::status::endpoint::Endpoint;
use crate::status::exporter::Exporter;
use crate::status::summary;

/// How long requests that are under way may take to end when the daemon is told to.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// Threads for calls to libvirt; those wait most of their time.
const BLOCKING_THREADS: usize = 512;

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error("can't read {path}: {source}; -f names another file")]
    Config { path: String, source: std::io::Error },
    #[error("{0} has errors, see above")]
    BadConfig(String),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error("backend libvirt: {0}; -w waits for it")]
    Backend(String),
    #[error("can't open the audit_log file: {0}")]
    Audit(std::io::Error),
    #[error("no random bytes: {0}")]
    Random(#[from] rand::rngs::SysError),
    #[error("{0}")]
    System(#[from] std::io::Error),
    #[error("{what} \"{name}\" is not part of this version")]
    Missing { what: &'static str, name: String },
}

/// Serves until a signal ends it. The exit code.
pub(crate) fn run(options: &Options) -> u8 {
    match prepare(options) {
        Ok(StartMode::Parent(code)) => code,
        Ok(StartMode::Serve(config)) => {
            let code = match serve(options, &config) {
                Ok(()) => SUCCESS,
                Err(reason) => {
                    error!("{reason}");
                    FAILURE
                }
            };
            log::finish();
            code
        }
        Err(reason) => {
            crate::cli::print::print_error(&reason);
            FAILURE
        }
    }
}

enum StartMode {
    /// Another process serves.
    Parent(u8),
    Serve(Box<Config>),
}

fn prepare(options: &Options) -> Result<StartMode, DaemonError> {
    let child = daemonise::is_child();
    // The child says it all again, so the parent only reads what it needs itself.
    let config = read(&options.config, !child)?;
    let background = !options.foreground && !config.daemon.foreground;
    if background && !child {
        return Ok(StartMode::Parent(daemonise::start_child()?));
    }
    if background {
        daemonise::detach()?;
    }
    log::start(options.debug.unwrap_or(config.daemon.debug));
    Ok(StartMode::Serve(Box::new(config)))
}

/// Reads the configuration; errors and warnings go to standard error, with line and caret.
fn read(path: &Path, say: bool) -> Result<Config, DaemonError> {
    load(path, &mut |severity, text| {
        if say {
            crate::cli::print::print_error(&text);
        } else {
            debug_assert!(severity != Severity::Error);
        }
    })
}

/// Reads the configuration; `say` is handed each error and warning.
fn load(path: &Path, say: &mut dyn FnMut(Severity, String)) -> Result<Config, DaemonError> {
    let shown = fence_cli::shown(path);
    let source = fs::read(path).map_err(|source| DaemonError::Config { path: shown.clone(), source })?;
    let loaded = fence_config::load(&source);
    for it in &loaded.diagnostics {
        say(it.severity, it.render(&shown, &source));
    }
    loaded.config.ok_or(DaemonError::BadConfig(shown))
}

fn serve(options: &Options, config: &Config) -> Result<(), DaemonError> {
    raise_descriptors();
    let in_background = daemonise::is_child();
    let pid_file = options.pid_file.as_deref().or(in_background.then_some(Path::new(PID_FILE)));
    let _pid_file = pid_file.map(PidFile::take).transpose()?;
    let state = replay::directory(&config.daemon.state_dir, std::env::var_os("STATE_DIRECTORY").as_deref());
    // Not confined yet, and nothing was begun: what a killed daemon's agents do must not come later than what ours do.
    if config.backends.iter().any(|it| matches!(it, BackendSettings::Agent(_))) {
        program::end_orphans();
    }
    // Its socket may be anywhere.
    let endpoint = config.daemon.metrics.as_ref().and_then(Endpoint::open);
    // Here and not later: threads that run already would not be confined, and the memory of packets, libvirt and the
    // runtime start theirs below. What they will open is known from the configuration.
    sandbox::enter(config, &options.config, pid_file, state.as_deref());
    log::in_background()?;
    let replays = ReplayMemory::open(state.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let result = runtime.block_on(serve_until_signal(options, config, replays, in_background, endpoint));
    // Calls into a hypervisor that hangs must not hold up the end.
    runtime.shutdown_background();
    program::end_all();
    result
}

/// systemd and shells allow 1024 descriptors unless a program asks for more, and at their limits the listeners hold
/// several thousand connections.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = DESCRIPTORS.min(hard);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        warn!("can't raise the limit of open files: {error}");
    }
}

async fn serve_until_signal(
    options: &Options,
    config: &Config,
    replays: ReplayMemory,
    in_background: bool,
    endpoint: Option<Endpoint>,
) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    let wait = options.wait || config.daemon.wait_for_init;
    let start = async {
        let known = Hypervisors::default();
        let audit = Audit::open(config.daemon.audit_log.as_deref()).map_err(DaemonError::Audit)?;
        let chosen = backend(config, &known, wait).await?;
        let agent = chosen.agent;
        let service =
            Service::new(chosen.backend, audit, replays, chosen.claims, config.daemon.client_timeout);
        #[cfg(feature = "cpg")]
        let cluster = chosen.cluster.map(|(cluster, started)| {
            cluster.serve(started, &service);
            cluster
        });
        let inventories = inventories(config, &known);
        let running = uris(config).map(str::to_owned).zip(inventories.0.iter().map(|it| it.running.clone()));
        let running: Vec<_> = running.collect();
        let observed = || Exporter {
            service: Arc::clone(&service),
            known: known.clone(),
            running: running.clone(),
            agent: agent.clone(),
            #[cfg(feature = "cpg")]
            cluster: cluster.clone(),
        };
        let (for_readers, for_us) = (observed(), observed());
        let sources = SourceResolver::new(inventories);
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&service).run_deadlines());
        let common = ListenerContext { service: Arc::clone(&service), sources, known };
        let listeners = ListenerManager::start(config, common, wait).await?;
        if let Some(endpoint) = endpoint {
            tasks.spawn(endpoint.serve(for_readers));
        }
        #[cfg(not(feature = "cpg"))]
        let cluster = ();
        Ok::<_, DaemonError>((service, listeners, tasks, for_us, cluster))
    };
    let (service, mut listeners, mut tasks, observed, cluster) = tokio::select! {
        started = start => started?,
        name = signals.end() => {
            info!("{name} before the start was over");
            return Ok(());
        }
    };
    if in_background {
        // Whoever started us reads it until now.
        log::finish();
        daemonise::ready()?;
    }
    notify::ready();
    tasks.spawn(notify::watchdog(Arc::clone(&service)));
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "serving");
    let mut config = config.clone();
    let name = loop {
        match signals.next().await {
            SignalAction::End(name) => break name,
            SignalAction::Summary => info!("SIGUSR1: {}", summary::one_line(&observed.text())),
            SignalAction::Reload => {
                notify::reloading();
                service.reopen_audit();
                reload(&options.config, &mut config, &mut listeners).await;
                notify::ready();
            }
        }
    };
    info!("{name}: no new requests; those under way may end");
    notify::stopping();
    listeners.stop().await;
    #[cfg(feature = "cpg")]
    if let Some(cluster) = &cluster {
        cluster.stop();
    }
    #[cfg(not(feature = "cpg"))]
    let () = cluster;
    tasks.shutdown().await;
    tokio::select! {
        () = service.until_idle() => {}
        () = tokio::time::sleep(LAST_REQUESTS) => warn!("requests are cut off by the end of the daemon"),
        _ = signals.end() => {}
    }
    #[cfg(feature = "cpg")]
    if let Some(cluster) = &cluster {
        cluster.leave().await;
    }
    service.finish();
    Ok(())
}

/// What carries requests out.
struct BackendSetup {
    backend: Arc<dyn Backend>,
    /// Those that have a say in when a request may run.
    claims: Option<Arc<dyn ClusterPort>>,
    /// What the agent backend runs, where there is one.
    agent: Option<AgentRuns>,
    /// The other hosts, where there are any.
    #[cfg(feature = "cpg")]
    cluster: Option<(Arc<Cluster>, cluster::LinkEvents)>,
}

impl BackendSetup {
    /// This backend alone, on this host alone.
    fn alone(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            claims: None,
            agent: None,
            #[cfg(feature = "cpg")]
            cluster: None,
        }
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
            // What it has needs no hypervisor, and is not kept waiting for one.
            let chosen = build_hypervisor_backend(settings, known, true).await?;
            let several = CombinedBackend::new(settings.kind().as_str(), chosen.backend, agent);
            Ok(BackendSetup { backend: Arc::new(several), agent: Some(runs), ..chosen })
        }
        (others, _) => Err(DaemonError::Missing {
            what: "backend",
            name: others.iter().map(|it| it.kind().as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The devices of the agent backend.
fn agent(settings: &fence_config::AgentBackend) -> (Arc<dyn Backend>, AgentRuns) {
    let (backend, runs) = AgentBackend::start(settings);
    (backend, runs)
}

/// The domains of this host's hypervisors, or of all hosts of its cluster.
async fn build_hypervisor_backend(
    settings: &BackendSettings,
    known: &Hypervisors,
    wait: bool,
) -> Result<BackendSetup, DaemonError> {
    match settings {
        #[cfg(feature = "libvirt")]
        BackendSettings::Libvirt(settings) => {
            Ok(BackendSetup::alone(libvirt(&settings.uris, settings.reboot_starts, known, wait).await?))
        }
        #[cfg(feature = "cpg")]
        BackendSettings::Cpg(settings) => {
            let local = libvirt(&settings.uris, settings.reboot_starts, known, wait).await?;
            let (cluster, started) = Cluster::start(settings, Arc::clone(&local))?;
            let backend = Arc::new(CpgBackend::new(local, Arc::clone(&cluster)));
            let claims: Arc<dyn ClusterPort> = Arc::new(ClusterClaims(Arc::clone(&cluster)));
            Ok(BackendSetup {
                claims: Some(claims),
                cluster: Some((cluster, started)),
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

/// The domains of this host.
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

/// The running domains of the backend's hypervisors: a source is recognised among them.
#[cfg(feature = "libvirt")]
fn inventories(config: &Config, known: &Hypervisors) -> Inventories {
    Inventories(uris(config).map(|uri| crate::hypervisor::inventory::follow(&known.at(uri))).collect())
}

#[cfg(not(feature = "libvirt"))]
fn inventories(_: &Config, _: &Hypervisors) -> Inventories {
    Inventories::default()
}

/// Reads the file anew and goes over to it. A file with errors, and one whose listeners can't all start, is refused as a
/// whole; what can't change while the daemon runs is named.
async fn reload(path: &Path, config: &mut Config, listeners: &mut ListenerManager) {
    let refused = |why: &dyn std::fmt::Display| {
        error!("SIGHUP: the new configuration is refused, and the old one stays: {why}");
    };
    let new = match load(path, &mut |severity, text| match severity {
        Severity::Error => error!("{text}"),
        Severity::Warning => warn!("{text}"),
    }) {
        Ok(new) => new,
        Err(error) => return refused(&error),
    };
    if let Err(error) = listeners.change(&new).await {
        refused(&error);
        if config.daemon.sandbox {
            warn!(
                "files and places that were not in the configuration at the start may need a restart: sandbox = \"yes\""
            );
        }
        return;
    }
    let unchanged =
        |it: &DaemonSection| DaemonSection { listeners: Vec::new(), backends: Vec::new(), ..it.clone() };
    if unchanged(&new.daemon) != unchanged(&config.daemon) {
        warn!(
            "SIGHUP: of the fence_virtd block only the listeners are read anew; what else changed there needs a restart"
        );
    }
    if new.backends != config.backends {
        warn!("SIGHUP: the backends changed: that needs a restart, and the old ones go on");
    }
    config.listeners = new.listeners;
    config.groups = new.groups;
    info!("SIGHUP: the new configuration is in force");
}

/// What a signal asks for.
enum SignalAction {
    End(&'static str),
    Reload,
    Summary,
}

/// The signals that end the daemon, and SIGHUP, which must not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    /// SIGHUP came when nothing could be read anew; [`Self::next`] says so.
    reload_later: bool,
    user: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            reload_later: false,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for one that ends the daemon. A SIGHUP is not lost: the file may have changed since it was read.
    async fn end(&mut self) -> &'static str {
        loop {
            match self.heard().await {
                SignalAction::End(name) => return name,
                SignalAction::Reload => {
                    info!("SIGHUP: the configuration is read anew as soon as the daemon serves");
                    self.reload_later = true;
                }
                SignalAction::Summary => {
                    info!("SIGUSR1: neither before nor after the time in which requests are served");
                }
            }
        }
    }

    async fn next(&mut self) -> SignalAction {
        if std::mem::take(&mut self.reload_later) {
            return SignalAction::Reload;
        }
        self.heard().await
    }

    async fn heard(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.terminate.recv() => SignalAction::End("SIGTERM"),
            _ = self.interrupt.recv() => SignalAction::End("SIGINT"),
            _ = self.quit.recv() => SignalAction::End("SIGQUIT"),
            _ = self.hang_up.recv() => SignalAction::Reload,
            _ = self.user.recv() => SignalAction::Summary,
        }
    }
}
