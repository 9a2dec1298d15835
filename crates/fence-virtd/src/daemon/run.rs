// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon from its start to its end: background, sandbox, runtime, signals, shutdown.
//!
//! Owns the order of these steps. One task: it assembles the daemon, waits for signals, and shuts down. Must
//! never start a thread before the sandbox is on, and must never wait for a hypervisor at the end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_config::{Backend as BackendSettings, Config};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{error, info, warn};

use super::assemble::{ServingDaemon, assemble, spare_address_space};
use super::error::DaemonError;
use super::load::{ReadConfig, ReloadResult};
use super::pid_file::{PidFile, PidFileError};
use super::signals::{SignalAction, Signals};
use super::{address_space, daemonise, exposed, in_use, load, log, notify, sandbox};
use crate::cli::exit_code::{FAILURE, SUCCESS};
use crate::cli::options::{Options, PID_FILE};
use crate::cli::print::print_error;
use crate::hypervisor::Hypervisors;
use crate::intent::{self, IntentLog};
use crate::listener::kept::KeptSockets;
use crate::listener::limits::DESCRIPTORS;
use crate::process::hunt;
use crate::replay::{self, ReplayMemory};
use crate::service::Service;
use crate::status::endpoint::Endpoint;
use crate::status::summary;

/// Time for requests in flight to end when the daemon stops.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// Further time for a start that a reboot owes: the machine is off, and nobody else would start it.
const LAST_STARTS: Duration = Duration::from_secs(20);
/// Pause between two looks at what is owed.
const OWED_PAUSE: Duration = Duration::from_millis(50);

/// Serves until a signal ends the daemon, and returns the exit code.
pub(crate) fn run(options: &Options) -> u8 {
    match prepare(options) {
        Ok(StartMode::Parent(code)) => code,
        Ok(StartMode::Serve(read)) => {
            let code = match serve(options, &read) {
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
            print_error(&reason);
            FAILURE
        }
    }
}

enum StartMode {
    /// Another process serves; this one ends with the exit code.
    Parent(u8),
    Serve(Box<ReadConfig>),
}

fn prepare(options: &Options) -> Result<StartMode, DaemonError> {
    let child = daemonise::is_child();
    // The child prints nothing: the parent has printed all errors and warnings already.
    let read = load::read(&options.config, !child)?;
    let config = &read.config;
    let background = !options.foreground && !config.daemon.foreground;
    if background && !child {
        return Ok(StartMode::Parent(daemonise::start_child()?));
    }
    if background {
        daemonise::detach()?;
    }
    log::start(options.debug.unwrap_or(config.daemon.debug));
    Ok(StartMode::Serve(Box::new(read)))
}

fn serve(options: &Options, read: &ReadConfig) -> Result<(), DaemonError> {
    let config = &read.config;
    raise_descriptor_limit();
    let threads = address_space::thread_counts(spare_address_space)?;
    let in_background = daemonise::is_child();
    let pid_file = options.pid_file.as_deref().or(in_background.then_some(Path::new(PID_FILE)));
    let _pid_file = pid_file.map(take_pid_file).transpose()?.flatten();
    let state = replay::directory(&config.daemon.state_dir, std::env::var_os("STATE_DIRECTORY").as_deref());
    // Before the sandbox, and before any action of ours: an agent of a killed daemon must not act later than
    // ours.
    if config.backends.iter().any(|it| matches!(it, BackendSettings::Agent(_))) {
        hunt::end_orphans();
    }
    // Before the sandbox too: the socket may be in any directory.
    let endpoint = config.daemon.metrics.as_ref().and_then(Endpoint::open);
    let kept = KeptSockets::receive(&config.listeners);
    let boot = intent::boot_id();
    // Not later: threads that run already would not be confined. The memory of packets, intents, libvirt and
    // the runtime start threads below. The files that they will open are known from the configuration.
    sandbox::enter(config, &options.config, pid_file, state.as_deref());
    log::in_background()?;
    let replays = ReplayMemory::open(state.as_deref())?;
    // The nodes of a corosync cluster tell each other what moves.
    let remembers = config.backends.iter().any(|it| matches!(it, BackendSettings::Libvirt(_)));
    let known = match remembers {
        true => Hypervisors::open(state.as_deref(), &boot),
        false => Hypervisors::default(),
    };
    let intents = IntentLog::open(state.as_deref(), boot);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().max_blocking_threads(threads.blocking);
    threads.workers.map(|it| runtime.worker_threads(it));
    let runtime = runtime.build()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let wait = options.wait || config.daemon.wait_for_init;
        let mut daemon = tokio::select! {
            assembled =
                assemble(config, replays, intents, state.as_deref(), known.clone(), (endpoint, kept), wait) =>
                assembled?,
            name = signals.end() => {
                info!("{name}: the daemon ends before it served");
                return Ok(());
            }
        };
        in_use::record(state.as_deref(), &options.config, (config, read.hash.clone()), false).await;
        let state = state.as_deref();
        let name =
            serve_until_signal(options, (config, state), &mut daemon, &mut signals, in_background).await?;
        info!("{name}: no new requests; requests in flight may end");
        shut_down(daemon, &mut signals).await;
        Ok(())
    });
    known.finish();
    // A call to a hypervisor that hangs must not delay the end.
    runtime.shutdown_background();
    hunt::end_all();
    result
}

/// Takes the pid file, or logs why there is none: that costs no fence. Another daemon that holds it ends
/// this one.
fn take_pid_file(path: &Path) -> Result<Option<PidFile>, PidFileError> {
    match PidFile::take(path) {
        Err(error @ PidFileError::Io { .. }) => {
            error!(
                "{error}. The daemon goes on without it: nobody finds its pid there, and a second daemon \
                 with this file is not held back"
            );
            Ok(None)
        }
        taken => taken.map(Some),
    }
}

/// Raises the limit of open files. systemd and shells allow 1024 unless a program asks for more, and at their
/// limits the listeners hold several thousand connections.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = DESCRIPTORS.min(hard);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        warn!("can't raise the limit of open files: {error}");
    }
}

/// Reports that the daemon serves, carries out signals, and returns the name of the signal that ends the
/// daemon.
async fn serve_until_signal(
    options: &Options,
    (config, state): (&Config, Option<&Path>),
    daemon: &mut ServingDaemon,
    signals: &mut Signals,
    in_background: bool,
) -> Result<&'static str, DaemonError> {
    // Before anybody hears that the daemon serves: who then asks for the metrics finds the count.
    exposed::count(config, &daemon.service.metrics);
    if in_background {
        // Standard error may be the caller's, who reads it until now.
        log::finish();
        daemonise::ready()?;
    }
    notify::ready();
    daemon.tasks.spawn(notify::watchdog(Arc::clone(&daemon.service)));
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "serving");
    let started = config;
    let mut config = config.clone();
    loop {
        match signals.next().await {
            SignalAction::End(name) => return Ok(name),
            SignalAction::Summary => info!("SIGUSR1: {}", summary::one_line(&daemon.exporter.text())),
            SignalAction::Reload => {
                notify::reloading();
                daemon.service.reopen_audit();
                let (listeners, peers) = (&mut daemon.listeners, &daemon.peers);
                let metrics = &daemon.service.metrics;
                let file = &options.config;
                let reloaded = load::reload(file, started, &mut config, listeners, peers, metrics).await;
                if let Some(ReloadResult { hash, waits_for_restart }) = reloaded {
                    in_use::record(state, file, (&config, hash), waits_for_restart).await;
                }
                notify::ready();
            }
        }
    }
}

/// Waits as long as the requests in flight may take.
async fn wait_for_last(service: &Service) {
    tokio::time::sleep(LAST_REQUESTS).await;
    let until = Instant::now() + LAST_STARTS;
    while service.starts_owed() > 0 && Instant::now() < until {
        tokio::time::sleep(OWED_PAUSE).await;
    }
}

/// Stops all parts, in order. Requests in flight get [`LAST_REQUESTS`] to end, and reboots whose start is
/// owed [`LAST_STARTS`] more; a second signal ends the wait.
async fn shut_down(daemon: ServingDaemon, signals: &mut Signals) {
    let ServingDaemon { service, mut listeners, mut tasks, exporter: _, other_hosts, peers } = daemon;
    notify::stopping();
    listeners.stop().await;
    other_hosts.stop();
    tasks.shutdown().await;
    peers.finish().await;
    let end = tokio::select! {
        () = service.until_idle() => "",
        () = wait_for_last(&service) => "shutdown limit reached; requests in flight are aborted",
        _ = signals.end() => "a second signal; requests in flight are aborted",
    };
    if !end.is_empty() {
        warn!(starts_owed = service.starts_owed(), "{end}; the next daemon finishes what they began");
    }
    other_hosts.leave().await;
    service.finish();
}
