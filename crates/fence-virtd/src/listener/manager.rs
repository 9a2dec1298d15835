// SPDX-License-Identifier: GPL-2.0-or-later
//! The listeners of the configuration: their start, their change at a reload, their end.
//!
//! Owns the tasks of the listeners, and runs on the task of the daemon. A change is made as a whole or
//! refused as a whole: all new keys are loaded and all new sockets opened before an old listener ends. A
//! listener whose sockets stay as they are must never stop to receive.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fence_config::{Config, Listener as Settings};
use fence_wire::escaped;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::hypervisor::Hypervisors;
use crate::listener::StartError;
use crate::listener::kept::KeptSockets;
use crate::listener::keys::KeysInUse;
use crate::listener::multicast::MulticastReceiver;
use crate::listener::rules::{CurrentRules, GroupSettings, ListenerRules, same_sockets};
use crate::listener::serial::Serial;
use crate::listener::sources::SourceResolver;
use crate::listener::tcp::TcpTransport;
use crate::listener::vsock::VsockTransport;
use crate::observe::metrics::{ListenerName, ListenerUp};
use crate::peers::Peers;
use crate::service::Service;
use crate::util::backoff::OncePerReason;

/// Pause between two attempts to start a listener, with `-w`.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The listeners of the configuration, with their tasks.
pub(crate) struct ListenerManager {
    context: ListenerContext,
    keys_in_use: Arc<KeysInUse>,
    running: Vec<RunningListener>,
}

/// The parts of the daemon that all listeners need.
#[derive(Clone)]
pub(crate) struct ListenerContext {
    pub(crate) service: Arc<Service>,
    pub(crate) sources: Arc<SourceResolver>,
    pub(crate) hypervisors: Hypervisors,
    pub(crate) peers: Arc<Peers>,
    pub(crate) kept: Arc<KeptSockets>,
}

impl ListenerContext {
    /// Enters the listeners of the configuration into the metrics.
    fn announce_listeners(&self, config: &Config) {
        self.service.metrics.set_listeners(config.listeners.iter().map(|it| config.name_of(it)));
    }
}

/// A listener that can't start with the settings of the configuration.
#[derive(Debug, thiserror::Error)]
#[error("listener {name}: {source}{}", own_socket(holder.as_deref()))]
pub(crate) struct ListenerError {
    name: String,
    source: StartError,
    /// Running listener of this daemon that may hold the port.
    holder: Option<String>,
}

fn own_socket(holder: Option<&str>) -> String {
    let words = |it| {
        format!(" (this daemon's own listener {it} holds the port: restart fence_virtd for this change)")
    };
    holder.map(words).unwrap_or_default()
}

/// A listener with a task.
struct RunningListener {
    settings: Settings,
    name: Arc<ListenerName>,
    /// Empty while the listener could not start yet and is tried again.
    rules: StartedWith,
    task: JoinHandle<()>,
}

/// The rules of a listener, as soon as its sockets are open: with `-w` its own task may open them late.
type StartedWith = Arc<OnceLock<Arc<CurrentRules>>>;

/// A listener with open sockets that does not serve yet.
struct OpenedListener {
    settings: Settings,
    name: Arc<ListenerName>,
    rules: Arc<CurrentRules>,
    serving: ListenerFuture,
}

/// The task of a listener, which serves for ever.
type ListenerFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A listener of the new configuration at a reload.
struct ChangedListener<'a> {
    settings: &'a Settings,
    name: String,
    change: ListenerChange,
}

/// Change of one listener at a reload.
enum ListenerChange {
    /// The running listener with this index goes on, with these rules.
    Keep(usize, ListenerRules),
    /// A new listener.
    Open(OpenedListener),
    /// A listener whose sockets could not be opened before, and still can't.
    Retry(ListenerError),
}

impl ListenerManager {
    /// Opens all listeners of the configuration.
    ///
    /// # Errors
    /// The first listener that can't start. With `wait` there is no error: such a listener is tried again
    /// every few seconds.
    pub(crate) async fn start(
        config: &Config,
        context: ListenerContext,
        wait: bool,
    ) -> Result<Self, ListenerError> {
        let mut manager = Self { context, keys_in_use: Arc::default(), running: Vec::new() };
        let groups = GroupSettings::new(config, &manager.keys_in_use);
        manager.context.announce_listeners(config);
        for settings in &config.listeners {
            let name = ListenerName::new(config.name_of(settings));
            match open(settings, &name, &groups, &manager.context).await {
                Ok(opened) => manager.serve(opened),
                // The other listeners serve meanwhile.
                Err(error) if wait => manager.retry_in_background(settings, &name, &groups, error),
                Err(error) => {
                    manager.stop().await;
                    return Err(error);
                }
            }
        }
        manager.share_replay_memory();
        Ok(manager)
    }

    /// Tells the memory of packets the keys that are in use now. Those of a request that came before a reload
    /// count until the next one.
    fn share_replay_memory(&self) {
        let keys = self.keys_in_use.all();
        self.context.service.remember_for(keys.iter().flat_map(|it| it.tags()));
    }

    /// Changes to another configuration.
    ///
    /// # Errors
    /// The first listener that can't start with its new settings. Nothing is changed then.
    pub(crate) async fn change(&mut self, config: &Config) -> Result<(), ListenerError> {
        let groups = GroupSettings::new(config, &self.keys_in_use);
        let mut changes = Vec::new();
        for settings in &config.listeners {
            let name = config.name_of(settings);
            let change = self.prepare(settings, &name, &groups).await?;
            changes.push(ChangedListener { settings, name, change });
        }
        self.apply(changes, &groups).await;
        self.context.kept.close_unwanted(&config.listeners);
        self.share_replay_memory();
        self.context.announce_listeners(config);
        Ok(())
    }

    /// Loads the keys and opens the sockets that a listener needs for its new settings. Changes nothing yet.
    async fn prepare(
        &self,
        settings: &Settings,
        name: &str,
        groups: &GroupSettings,
    ) -> Result<ListenerChange, ListenerError> {
        let serves_these =
            |it: &RunningListener| it.rules.get().is_some() && same_sockets(&it.settings, settings);
        if let Some(index) = self.running.iter().position(serves_these) {
            let rules = ListenerRules::load(settings, groups).map_err(|it| failed(name, it))?;
            return Ok(ListenerChange::Keep(index, rules));
        }
        match open(settings, &ListenerName::new(name.to_owned()), groups, &self.context).await {
            Ok(opened) => Ok(ListenerChange::Open(opened)),
            // The sockets may take days to be there; a leaked key must be replaced now.
            Err(error) if self.is_retrying(settings) && ListenerRules::load(settings, groups).is_ok() => {
                Ok(ListenerChange::Retry(error))
            }
            Err(error) => {
                let is_in_use = matches!(error.source, StartError::InUse(_));
                let holder = is_in_use.then(|| self.holder_of(settings)).flatten();
                Err(ListenerError { holder, ..error })
            }
        }
    }

    /// Returns the name of a running listener that has the port of these settings at another address.
    fn holder_of(&self, settings: &Settings) -> Option<String> {
        let (kind, port) = (settings.kind(), settings.port()?);
        let is_it = |it: &&RunningListener| it.settings.kind() == kind && it.settings.port() == Some(port);
        let holder = self.running.iter().find(is_it)?;
        Some(escaped(&holder.name.now()).to_string())
    }

    /// Makes the changes, none of which can fail.
    async fn apply(&mut self, changes: Vec<ChangedListener<'_>>, groups: &GroupSettings) {
        let mut old: Vec<Option<RunningListener>> =
            std::mem::take(&mut self.running).into_iter().map(Some).collect();
        let (mut opened, mut retrying) = (Vec::new(), Vec::new());
        for ChangedListener { settings, name, change } in changes {
            match change {
                ListenerChange::Open(listener) => opened.push(listener),
                ListenerChange::Retry(error) => retrying.push((settings, name, error)),
                ListenerChange::Keep(index, rules) => {
                    let Some(mut kept) = old[index].take() else { continue };
                    rules.log(&name);
                    if let Some(current) = kept.rules.get() {
                        current.replace(rules);
                    }
                    kept.name.change(name, &self.context.service.metrics);
                    kept.settings = settings.clone();
                    self.running.push(kept);
                }
            }
        }
        for listener in old.into_iter().flatten() {
            if !retrying.iter().any(|(settings, ..)| same_sockets(&listener.settings, settings)) {
                let name = listener.name.now();
                info!(listener = %escaped(&name), "ends: the configuration has it no longer");
            }
            if let Some(rules) = listener.rules.get() {
                rules.close();
            }
            listener.end().await;
        }
        for listener in opened {
            self.serve(listener);
        }
        for (settings, name, error) in retrying {
            self.retry_in_background(settings, &ListenerName::new(name), groups, error);
        }
    }

    /// Ends all listeners. Requests in flight go on, and so do those that wait.
    pub(crate) async fn stop(&mut self) {
        for listener in self.running.drain(..) {
            listener.end().await;
        }
    }

    /// Starts a task that tries to start the listener until it can.
    fn retry_in_background(
        &mut self,
        settings: &Settings,
        name: &Arc<ListenerName>,
        groups: &GroupSettings,
        error: ListenerError,
    ) {
        let (settings, groups, context) = (settings.clone(), groups.clone(), self.context.clone());
        let name = Arc::clone(name);
        let rules = StartedWith::default();
        let task = tokio::spawn({
            let (settings, name, rules) = (settings.clone(), Arc::clone(&name), Arc::clone(&rules));
            async move { keep_trying((&settings, &name), &groups, &context, &rules, error).await }
        });
        self.running.push(RunningListener { settings, name, rules, task });
    }

    /// Returns true while these sockets could not be opened yet and are tried again.
    fn is_retrying(&self, settings: &Settings) -> bool {
        self.running.iter().any(|it| it.rules.get().is_none() && same_sockets(&it.settings, settings))
    }

    fn serve(&mut self, opened: OpenedListener) {
        let OpenedListener { settings, name, rules, serving } = opened;
        self.running.push(RunningListener {
            settings,
            name,
            rules: Arc::new(rules.into()),
            task: tokio::spawn(serving),
        });
    }
}

impl RunningListener {
    /// Ends the listener's task, and with it closes the sockets.
    async fn end(self) {
        self.task.abort();
        // The task ends in no other way than by this abort.
        let _ = self.task.await;
    }
}

/// Loads the keys and opens the sockets. The error has the listener's name.
async fn open(
    settings: &Settings,
    name: &Arc<ListenerName>,
    groups: &GroupSettings,
    context: &ListenerContext,
) -> Result<OpenedListener, ListenerError> {
    try_open(settings, name, groups, context).await.map_err(|it| failed(&name.now(), it))
}

async fn try_open(
    settings: &Settings,
    name: &Arc<ListenerName>,
    groups: &GroupSettings,
    context: &ListenerContext,
) -> Result<OpenedListener, StartError> {
    let (service, sources) = (Arc::clone(&context.service), Arc::clone(&context.sources));
    let rules = CurrentRules::new(ListenerRules::load(settings, groups)?);
    let current = Arc::clone(&rules);
    let serving: ListenerFuture = match settings {
        Settings::Multicast(it) => {
            let peers = Arc::clone(&context.peers);
            let name = Arc::clone(name);
            Box::pin(MulticastReceiver::start(it, name, service, sources, current, peers)?.run())
        }
        Settings::Tcp(it) => {
            Box::pin(TcpTransport::start(it, service, sources, current, Arc::clone(&context.kept))?)
        }
        Settings::Vsock(it) => Box::pin(VsockTransport::start(it, service, sources, current)?),
        Settings::Serial(it) => {
            Box::pin(Serial::start(it, service, &context.hypervisors, current).await?.run())
        }
    };
    let (up, metrics) = (Arc::clone(name), Arc::clone(&context.service.metrics));
    let serving: ListenerFuture = Box::pin(async move {
        let _up = ListenerUp::new(metrics, up);
        serving.await;
    });
    rules.now().log(&name.now());
    Ok(OpenedListener { settings: settings.clone(), name: Arc::clone(name), rules, serving })
}

fn failed(name: &str, source: StartError) -> ListenerError {
    ListenerError { name: escaped(name).to_string(), source, holder: None }
}

/// Tries to start a listener until it can, and serves from then on. For a daemon with `-w`.
async fn keep_trying(
    (settings, name): (&Settings, &Arc<ListenerName>),
    groups: &GroupSettings,
    context: &ListenerContext,
    rules: &OnceLock<Arc<CurrentRules>>,
    mut error: ListenerError,
) {
    let mut logged = OncePerReason::default();
    loop {
        let reason = error.source.to_string();
        if logged.is_new(&reason) {
            let pause = RETRY_PAUSE.as_secs();
            warn!(listener = error.name, "can't start: {reason}; trying again every {pause} s");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
        match open(settings, name, groups, context).await {
            Ok(opened) => {
                // From now on a reload can keep this listener.
                let _ = rules.set(opened.rules);
                return opened.serving.await;
            }
            Err(again) => error = again,
        }
    }
}
