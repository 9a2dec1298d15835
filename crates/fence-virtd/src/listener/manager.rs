// SPDX-License-Identifier: GPL-2.0-or-later
//! Which listeners serve, and how that changes when the configuration is read anew.
//!
//! Owns their tasks. A change is taken as a whole or refused as a whole: everything new is loaded and opened before
//! anything old ends, and a listener whose sockets stay as they are never stops to hear.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fence_config::{Config, Listener as Settings};
use tokio::task::JoinHandle;
use tracing::{info, warn};

#[cfg(feature = "libvirt")]
use crate::hypervisor::Hypervisors;
#[cfg(not(feature = "libvirt"))]
use crate::hypervisor::Hypervisors;
use crate::listener::StartError;
use crate::listener::keys::FingerprintCache;
use crate::listener::multicast::MulticastReceiver;
use crate::listener::rules::{CurrentRules, GroupSettings, ListenerRules, same_sockets};
use crate::listener::sources::SourceResolver;
use crate::listener::tcp::TcpTransport;
use crate::listener::vsock::VsockTransport;
use crate::observe::metrics::ListenerUp;
use crate::service::Service;

/// Between two attempts at what can't start, with `-w`.
const WAIT: Duration = Duration::from_secs(5);

/// See the module's head.
pub(crate) struct ListenerManager {
    common: ListenerContext,
    keys_in_use: Arc<FingerprintCache>,
    running: Vec<RunningListener>,
}

/// What all listeners need.
#[derive(Clone)]
pub(crate) struct ListenerContext {
    pub(crate) service: Arc<Service>,
    pub(crate) sources: Arc<SourceResolver>,
    pub(crate) known: Hypervisors,
}

impl ListenerContext {
    /// Tells the metrics which listeners there are to be.
    fn announce_listeners(&self, config: &Config) {
        self.service.metrics.listeners_are(config.listeners.iter().map(|it| it.kind().as_str()));
    }
}

/// A listener that can't be as the configuration says.
#[derive(Debug, thiserror::Error)]
#[error("listener {name}: {source}")]
pub(crate) struct ListenerError {
    name: &'static str,
    source: StartError,
}

struct RunningListener {
    settings: Settings,
    /// Empty: it could not start yet, and is tried again and again.
    rules: StartedWith,
    task: JoinHandle<()>,
}

/// The rules of a listener, as soon as its sockets are open: with `-w` its own task may open them late.
type StartedWith = Arc<OnceLock<Arc<CurrentRules>>>;

/// A listener whose sockets are open and that does not serve yet.
struct OpenedListener {
    settings: Settings,
    rules: Arc<CurrentRules>,
    serving: Serving,
}

/// Serves for ever.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What becomes of one listener when the configuration is read anew.
enum ListenerChange {
    /// The one at this place goes on, by these rules.
    Keep(usize, ListenerRules),
    Open(OpenedListener),
    /// Its sockets can't be opened yet, as before.
    Wait(ListenerError),
}

impl ListenerManager {
    /// Opens all listeners of the configuration.
    ///
    /// # Errors
    /// The first that can't start; with `wait` none does that, and it is tried again every few seconds.
    pub(crate) async fn start(
        config: &Config,
        common: ListenerContext,
        wait: bool,
    ) -> Result<Self, ListenerError> {
        let mut it = Self { common, keys_in_use: Arc::default(), running: Vec::new() };
        let groups = GroupSettings::new(config.groups.as_deref(), &it.keys_in_use);
        it.common.announce_listeners(config);
        for settings in &config.listeners {
            match open(settings, &groups, &it.common).await {
                Ok(opened) => it.serve(opened),
                // The others serve meanwhile.
                Err(error) if wait => it.retry_in_background(settings, &groups, error),
                Err(error) => {
                    it.stop().await;
                    return Err(error);
                }
            }
        }
        Ok(it)
    }

    /// Goes over to another configuration.
    ///
    /// # Errors
    /// The first listener that can't be as it says. Everything is as before then.
    pub(crate) async fn change(&mut self, config: &Config) -> Result<(), ListenerError> {
        let groups = GroupSettings::new(config.groups.as_deref(), &self.keys_in_use);
        let mut changes = Vec::new();
        for settings in &config.listeners {
            let same =
                |it: &RunningListener| it.rules.get().is_some() && same_sockets(&it.settings, settings);
            changes.push(match self.running.iter().position(same) {
                Some(place) => {
                    let rules = ListenerRules::load(settings, &groups).map_err(|it| failed(settings, it))?;
                    ListenerChange::Keep(place, rules)
                }
                None => match open(settings, &groups, &self.common).await {
                    Ok(opened) => ListenerChange::Open(opened),
                    // What it waits for may take days, and a key that leaked can't wait as long.
                    Err(error)
                        if self.is_retrying(settings) && ListenerRules::load(settings, &groups).is_ok() =>
                    {
                        ListenerChange::Wait(error)
                    }
                    Err(error) => return Err(error),
                },
            });
        }
        // Nothing can fail from here on.
        let mut old: Vec<Option<RunningListener>> =
            std::mem::take(&mut self.running).into_iter().map(Some).collect();
        let (mut opened, mut waiting) = (Vec::new(), Vec::new());
        for (settings, change) in config.listeners.iter().zip(changes) {
            match change {
                ListenerChange::Open(it) => opened.push(it),
                ListenerChange::Wait(error) => waiting.push((settings, error)),
                ListenerChange::Keep(place, rules) => {
                    let Some(mut kept) = old[place].take() else { continue };
                    rules.log(settings.kind().as_str());
                    if let Some(current) = kept.rules.get() {
                        current.replace(rules);
                    }
                    kept.settings = settings.clone();
                    self.running.push(kept);
                }
            }
        }
        for it in old.into_iter().flatten() {
            if waiting.iter().any(|(settings, _)| same_sockets(&it.settings, settings)) {
                it.end().await;
                continue;
            }
            info!(listener = it.settings.kind().as_str(), "ends: the configuration has it no longer");
            it.end().await;
        }
        for it in opened {
            self.serve(it);
        }
        for (settings, error) in waiting {
            self.retry_in_background(settings, &groups, error);
        }
        self.common.announce_listeners(config);
        Ok(())
    }

    /// Ends all listeners; requests that are under way go on.
    pub(crate) async fn stop(&mut self) {
        for it in self.running.drain(..) {
            it.end().await;
        }
    }

    fn retry_in_background(&mut self, settings: &Settings, groups: &GroupSettings, error: ListenerError) {
        let (settings, groups, common) = (settings.clone(), groups.clone(), self.common.clone());
        let rules = StartedWith::default();
        let task = tokio::spawn({
            let (settings, rules) = (settings.clone(), Arc::clone(&rules));
            async move { keep_trying(&settings, &groups, &common, &rules, error).await }
        });
        self.running.push(RunningListener { settings, rules, task });
    }

    /// Whether these sockets could not be opened yet, and are waited for.
    fn is_retrying(&self, settings: &Settings) -> bool {
        self.running.iter().any(|it| it.rules.get().is_none() && same_sockets(&it.settings, settings))
    }

    fn serve(&mut self, opened: OpenedListener) {
        let OpenedListener { settings, rules, serving } = opened;
        self.running.push(RunningListener {
            settings,
            rules: Arc::new(rules.into()),
            task: tokio::spawn(serving),
        });
    }
}

impl RunningListener {
    /// Its sockets are closed afterwards.
    async fn end(self) {
        self.task.abort();
        // An abort is the only way in which it ends.
        let _ = self.task.await;
    }
}

/// Loads the keys and opens the sockets.
async fn open(
    settings: &Settings,
    groups: &GroupSettings,
    common: &ListenerContext,
) -> Result<OpenedListener, ListenerError> {
    try_open(settings, groups, common).await.map_err(|it| failed(settings, it))
}

async fn try_open(
    settings: &Settings,
    groups: &GroupSettings,
    common: &ListenerContext,
) -> Result<OpenedListener, StartError> {
    let ListenerContext { service, sources, known } = common;
    let (service, sources) = (Arc::clone(service), Arc::clone(sources));
    let rules = CurrentRules::new(ListenerRules::load(settings, groups)?);
    let its_rules = Arc::clone(&rules);
    let serving: Serving = match settings {
        Settings::Multicast(it) => Box::pin(MulticastReceiver::start(it, service, sources, its_rules)?.run()),
        Settings::Tcp(it) => Box::pin(TcpTransport::start(it, service, sources, its_rules)?.run()),
        Settings::Vsock(it) => Box::pin(VsockTransport::start(it, service, sources, its_rules)?.run()),
        #[cfg(feature = "libvirt")]
        Settings::Serial(it) => {
            use crate::listener::serial::Serial;
            Box::pin(Serial::start(it, service, known, its_rules).await?.run())
        }
        #[cfg(not(feature = "libvirt"))]
        Settings::Serial(_) => {
            let _ = (known, its_rules);
            return Err(StartError::Missing);
        }
    };
    let (name, service) = (settings.kind().as_str(), Arc::clone(&common.service));
    let serving: Serving = Box::pin(async move {
        let _serves = ListenerUp::new(Arc::clone(&service.metrics), name);
        serving.await;
    });
    rules.now().log(name);
    Ok(OpenedListener { settings: settings.clone(), rules, serving })
}

fn failed(settings: &Settings, source: StartError) -> ListenerError {
    ListenerError { name: settings.kind().as_str(), source }
}

/// With `-w`: serves as soon as the listener can start.
async fn keep_trying(
    settings: &Settings,
    groups: &GroupSettings,
    common: &ListenerContext,
    rules: &OnceLock<Arc<CurrentRules>>,
    mut error: ListenerError,
) {
    let mut said = String::new();
    loop {
        // Once for each reason: it is tried every few seconds, perhaps for hours.
        let reason = error.source.to_string();
        if reason != said {
            warn!(listener = error.name, "can't start: {reason}; trying again every {} s", WAIT.as_secs());
            said = reason;
        }
        tokio::time::sleep(WAIT).await;
        match open(settings, groups, common).await {
            Ok(opened) => {
                // It can be kept from now on when the configuration is read anew.
                let _ = rules.set(opened.rules);
                return opened.serving.await;
            }
            Err(again) => error = again,
        }
    }
}
