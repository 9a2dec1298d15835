// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon's life: configuration, backend, listeners, signals, end.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use fence_config::{Backend as BackendSettings, Config, Group, Listener as ListenerSettings, Severity};
use fence_wire::escaped;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::access::Access;
use crate::audit::Audit;
use crate::backend::Backend;
#[cfg(feature = "libvirt")]
use crate::hypervisor::Hypervisors;
use crate::identity::Sources;
use crate::inventory::Inventories;
use crate::limits::DESCRIPTORS;
use crate::listener::StartError;
use crate::listener::multicast::Multicast;
use crate::listener::tcp::Tcp;
use crate::listener::vsock::Vsock;
use crate::options::{Options, PID_FILE};
use crate::pid_file::{PidFile, PidFileError};
use crate::replay::{self, Replays};
use crate::service::Service;
use crate::{daemonise, log, notify, sandbox};

/// Between two attempts at what can't start, with `-w`.
const WAIT: Duration = Duration::from_secs(5);
/// How long requests that are under way may take to end when the daemon is told to.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// Threads for calls to libvirt; those wait most of their time.
const BLOCKING_THREADS: usize = 512;

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("can't read {path}: {source}; -f names another file")]
    Config { path: String, source: std::io::Error },
    #[error("{0} has errors, see above")]
    BadConfig(String),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error("listener {name}: {source}")]
    Listener { name: &'static str, source: StartError },
    #[error("backend libvirt: {0}; -w waits for it")]
    Backend(String),
    #[error("can't open the audit_log file: {0}")]
    Audit(std::io::Error),
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    #[error("{0}")]
    System(#[from] std::io::Error),
    #[error("{what} \"{name}\" is not part of this version")]
    Missing { what: &'static str, name: String },
}

/// There are none in this build.
#[cfg(not(feature = "libvirt"))]
#[derive(Clone, Default)]
struct Hypervisors {}

/// Serves until a signal ends it.
pub(crate) fn run(options: &Options) -> ExitCode {
    match prepare(options) {
        Ok(Prepared::Parent(code)) => code,
        Ok(Prepared::Serve(config)) => match serve(options, &config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                error!("{reason}");
                ExitCode::FAILURE
            }
        },
        Err(reason) => {
            crate::complain(&reason);
            ExitCode::FAILURE
        }
    }
}

enum Prepared {
    /// Another process serves.
    Parent(ExitCode),
    Serve(Box<Config>),
}

fn prepare(options: &Options) -> Result<Prepared, RunError> {
    let child = daemonise::is_child();
    // The child says it all again, so the parent only reads what it needs itself.
    let config = read(&options.config, !child)?;
    let background = !options.foreground && !config.daemon.foreground;
    if background && !child {
        return Ok(Prepared::Parent(daemonise::start_child()?));
    }
    if background {
        daemonise::detach()?;
    }
    log::start(options.debug.unwrap_or(config.daemon.debug));
    Ok(Prepared::Serve(Box::new(config)))
}

/// Reads the configuration; errors and warnings go to standard error, with line and caret.
fn read(path: &Path, say: bool) -> Result<Config, RunError> {
    let shown = escaped(path.as_os_str().as_encoded_bytes()).to_string();
    let source = fs::read(path).map_err(|source| RunError::Config { path: shown.clone(), source })?;
    let loaded = fence_config::load(&source);
    if say {
        for it in &loaded.diagnostics {
            crate::complain(&it.render(&shown, &source));
        }
    } else {
        debug_assert!(loaded.diagnostics.iter().all(|it| it.severity != Severity::Error));
    }
    loaded.config.ok_or(RunError::BadConfig(shown))
}

fn serve(options: &Options, config: &Config) -> Result<(), RunError> {
    raise_descriptors();
    let in_background = daemonise::is_child();
    let pid_file = options.pid_file.as_deref().or(in_background.then_some(Path::new(PID_FILE)));
    let _pid_file = pid_file.map(PidFile::take).transpose()?;
    let state = replay::directory(&config.daemon.state_dir, std::env::var_os("STATE_DIRECTORY").as_deref());
    // Here and not later: threads that run already would not be confined, and the memory of packets, libvirt and the
    // runtime start theirs below. What they will open is known from the configuration.
    sandbox::enter(config, &options.config, pid_file, state.as_deref());
    let replays = Replays::open(state.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let result = runtime.block_on(until_told(options, config, replays, in_background));
    // Calls into a hypervisor that hangs must not hold up the end.
    runtime.shutdown_background();
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

async fn until_told(
    options: &Options,
    config: &Config,
    replays: Replays,
    in_background: bool,
) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let wait = options.wait || config.daemon.wait_for_init;
    let start = async {
        let known = Hypervisors::default();
        let audit = Audit::open(config.daemon.audit_log.as_deref()).map_err(RunError::Audit)?;
        let backend = backend(config, &known, wait).await?;
        let service = Service::new(backend, Access::new(config.groups.as_deref()), audit, replays);
        let common = Common {
            service,
            sources: Sources::new(inventories(config, &known)),
            groups: config.groups.clone().unwrap_or_default().into(),
            known,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&common.service).keep_time());
        for settings in &config.listeners {
            match listener(settings, &common, &mut tasks).await {
                Ok(()) => {}
                Err(source) if wait => {
                    // The others serve meanwhile.
                    let (settings, common) = (settings.clone(), common.clone());
                    tasks.spawn(async move { keep_trying(&settings, &common, source).await });
                }
                Err(source) => {
                    return Err(RunError::Listener { name: settings.kind().as_str(), source });
                }
            }
        }
        Ok::<_, RunError>((common.service, tasks))
    };
    let (service, mut tasks) = tokio::select! {
        started = start => started?,
        name = signals.end() => {
            info!("{name} before the start was over");
            return Ok(());
        }
    };
    if in_background {
        daemonise::ready()?;
    }
    notify::ready();
    tasks.spawn(notify::watchdog(Arc::clone(&service)));
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "serving");
    let name = signals.end_or(|| service.reopen_audit()).await;
    info!("{name}: no new requests; those under way may end");
    notify::stopping();
    tasks.shutdown().await;
    tokio::select! {
        () = service.idle() => {}
        () = tokio::time::sleep(LAST_REQUESTS) => warn!("requests are cut off by the end of the daemon"),
        _ = signals.end() => {}
    }
    service.finish();
    Ok(())
}

async fn backend(config: &Config, known: &Hypervisors, wait: bool) -> Result<Arc<dyn Backend>, RunError> {
    match &config.backends[..] {
        #[cfg(feature = "libvirt")]
        [BackendSettings::Libvirt(settings)] => {
            let (backend, unreachable) =
                crate::backend::libvirt::LibvirtBackend::start(settings, known).await;
            if unreachable.len() == settings.uris.len() && !wait {
                return Err(RunError::Backend(unreachable.join("; ")));
            }
            Ok(Arc::new(backend))
        }
        #[cfg(not(feature = "libvirt"))]
        [BackendSettings::Libvirt(_)] => {
            let _ = (wait, known);
            Err(RunError::Missing { what: "backend", name: "libvirt".to_owned() })
        }
        others => Err(RunError::Missing {
            what: "backend",
            name: others.iter().map(|it| it.kind().as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// What all listeners need.
#[derive(Clone)]
struct Common {
    service: Arc<Service>,
    sources: Arc<Sources>,
    groups: Arc<[Group]>,
    known: Hypervisors,
}

/// The running domains of the backend's hypervisors: a source is recognised among them.
#[cfg(feature = "libvirt")]
fn inventories(config: &Config, known: &Hypervisors) -> Inventories {
    let uris = config.backends.iter().flat_map(|it| match it {
        BackendSettings::Libvirt(it) => &it.uris[..],
        BackendSettings::Cpg(it) => &it.uris[..],
    });
    Inventories(uris.map(|uri| crate::inventory::follow(&known.at(uri))).collect())
}

#[cfg(not(feature = "libvirt"))]
fn inventories(_: &Config, _: &Hypervisors) -> Inventories {
    Inventories::default()
}

/// Starts a listener; its task is in `tasks` afterwards.
async fn listener(
    settings: &ListenerSettings,
    common: &Common,
    tasks: &mut JoinSet<()>,
) -> Result<(), StartError> {
    let task = start(settings, common).await?;
    tasks.spawn(task);
    Ok(())
}

/// Opens a listener; the future serves for ever.
async fn start(settings: &ListenerSettings, common: &Common) -> Result<Serving, StartError> {
    let Common { service, sources, groups, known } = common;
    let (service, sources) = (Arc::clone(service), Arc::clone(sources));
    Ok(match settings {
        ListenerSettings::Multicast(it) => Box::pin(Multicast::start(it, service, sources, groups)?.run()),
        ListenerSettings::Tcp(it) => Box::pin(Tcp::start(it, service, sources, groups)?.run()),
        ListenerSettings::Vsock(it) => Box::pin(Vsock::start(it, service, sources, groups)?.run()),
        #[cfg(feature = "libvirt")]
        ListenerSettings::Serial(it) => {
            Box::pin(crate::listener::serial::Serial::start(it, service, known).await?.run())
        }
        #[cfg(not(feature = "libvirt"))]
        ListenerSettings::Serial(_) => {
            let _ = known;
            return Err(StartError::Missing);
        }
    })
}

type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// With `-w`: serves as soon as the listener can start.
async fn keep_trying(settings: &ListenerSettings, common: &Common, mut source: StartError) {
    let name = settings.kind().as_str();
    let mut said = String::new();
    loop {
        // Once for each reason: it is tried every few seconds, perhaps for hours.
        let reason = source.to_string();
        if reason != said {
            warn!(listener = name, "can't start: {reason}; trying again every {} s", WAIT.as_secs());
            said = reason;
        }
        tokio::time::sleep(WAIT).await;
        match start(settings, common).await {
            Ok(serving) => return serving.await,
            Err(error) => source = error,
        }
    }
}

/// The signals that end the daemon, and SIGHUP, which must not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one that ends the daemon.
    async fn end(&mut self) -> &'static str {
        self.end_or(|| {}).await
    }

    /// The same, and calls `hung_up` for each SIGHUP.
    async fn end_or(&mut self, hung_up: impl Fn()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.quit.recv() => return "SIGQUIT",
                _ = self.hang_up.recv() => {
                    hung_up();
                    warn!("SIGHUP: files are opened anew; a changed configuration needs a restart");
                }
            }
        }
    }
}
