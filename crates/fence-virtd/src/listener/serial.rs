// SPDX-License-Identifier: GPL-2.0-or-later
//! The serial listener: serial ports and VM channels of running domains.
//!
//! QEMU listens on a UNIX socket for each such port, and we connect to it. The socket tells which domain is
//! the source, so there is neither key nor challenge. One task follows the running domains
//! ([`crate::hypervisor::inventory`]). Each socket is a task of its own ([`connection`]), which lives as long
//! as its domain runs and connects again by itself.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fence_cli::shown;
use fence_config::{SerialListener as Settings, SerialMode};
use fence_core::domain::DomainId;
use fence_wire::{DEFAULT_PORT, escaped};
use tokio::sync::watch;
use tracing::{info, warn};

use self::connection::SerialConnection;
use super::StartError;
use super::rules::CurrentRules;
use crate::hypervisor::Hypervisors;
use crate::hypervisor::inventory::{GuestPort, Inventory, PortKind, RunningDomain};
use crate::hypervisor::running::follow_running;
use crate::listener::limits::MAX_LINES;
use crate::service::Service;

mod connection;

/// Beginning of the names of channels that this listener serves.
const CHANNEL_NAMES: &str = "org.clusterlabs.fence_virt.";
/// Beginning of the names of channels that we must never touch: a connection to the guest agent's channel
/// takes it from libvirt.
const GUEST_AGENT: &str = "org.qemu.guest_agent.";

/// The serial listener. The module's head describes it.
pub(crate) struct Serial {
    service: Arc<Service>,
    rules: Arc<CurrentRules>,
    mode: SerialMode,
    path: Option<PathBuf>,
    inventory: Inventory,
}

impl Serial {
    /// Finds the hypervisor. Must run inside the runtime.
    ///
    /// # Errors
    /// The hypervisor can't be reached now.
    pub(crate) async fn start(
        settings: &Settings,
        service: Arc<Service>,
        known: &Hypervisors,
        rules: Arc<CurrentRules>,
    ) -> Result<Self, StartError> {
        let hypervisor = known.at(&settings.uri);
        hypervisor
            .first_attempt()
            .await
            .map_err(|error| StartError::Serial(format!("{error}; -w waits for it")))?;
        let Settings { uri, path, mode } = settings;
        let shown = path.as_deref().map_or_else(|| "any".to_owned(), shown);
        info!(%uri, %mode, path = %shown, "listening on sockets of domains");
        Ok(Self { service, rules, mode: *mode, path: path.clone(), inventory: follow_running(&hypervisor) })
    }

    /// Serves for ever.
    pub(crate) async fn run(mut self) {
        // A line ends when its sender is dropped, but only after the request in flight: that may be about the
        // line's own domain.
        let mut lines: HashMap<(DomainId, PathBuf), watch::Sender<()>> = HashMap::new();
        loop {
            let wanted = self.wanted();
            let names: HashSet<_> = wanted.iter().map(|(it, path)| (it.uuid, path.clone())).collect();
            lines.retain(|name, _| names.contains(name));
            for (domain, path) in wanted {
                let name = (domain.uuid, path.clone());
                if lines.contains_key(&name) {
                    continue;
                }
                if lines.len() >= MAX_LINES {
                    warn!(domain = %escaped(&domain.name), "not served: more than {MAX_LINES} sockets");
                    continue;
                }
                let (alive, gone) = watch::channel(());
                lines.insert(name, alive);
                tokio::spawn(
                    SerialConnection::new(
                        Arc::clone(&self.service),
                        Arc::clone(&self.rules),
                        &domain,
                        path,
                        gone,
                    )
                    .keep(),
                );
            }
            if self.inventory.running.changed().await.is_err() {
                return;
            }
        }
    }

    fn wanted(&mut self) -> Vec<(Arc<RunningDomain>, PathBuf)> {
        let running = self.inventory.running.borrow_and_update();
        let mut wanted = Vec::new();
        for domain in running.values() {
            let ports = domain.ports.iter().filter(|it| is_ours(it, self.mode, self.path.as_deref()));
            wanted.extend(ports.map(|it| (Arc::clone(domain), it.path.clone())));
        }
        wanted
    }
}

/// Returns whether requests may come by this port.
pub(crate) fn is_ours(port: &GuestPort, mode: SerialMode, directory: Option<&Path>) -> bool {
    let lies_there = |directory: &Path| port.path.parent() == Some(directory);
    match (mode, &port.kind) {
        (SerialMode::Serial, PortKind::Serial) => directory.is_none_or(lies_there),
        (SerialMode::Vmchannel, PortKind::Virtio(name)) if name.starts_with(GUEST_AGENT) => false,
        (SerialMode::Vmchannel, PortKind::Virtio(name)) => {
            directory.map_or_else(|| name.starts_with(CHANNEL_NAMES), lies_there)
        }
        (SerialMode::Vmchannel, PortKind::GuestForward(port)) => {
            directory.map_or(*port == DEFAULT_PORT, lies_there)
        }
        (SerialMode::Vmchannel, PortKind::Other) => directory.is_some_and(lies_there),
        (SerialMode::Serial, _) | (SerialMode::Vmchannel, PortKind::Serial) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virtio(name: &str) -> PortKind {
        PortKind::Virtio(name.to_owned())
    }

    fn ours(kind: &PortKind, mode: SerialMode, directory: Option<&str>) -> bool {
        let port = GuestPort { path: "/run/fence/a".into(), kind: kind.clone() };
        is_ours(&port, mode, directory.map(Path::new))
    }

    #[test]
    fn a_directory_takes_what_lies_in_it_and_nowhere_else() {
        for (kind, mode) in [
            (PortKind::Serial, SerialMode::Serial),
            (virtio("org.example"), SerialMode::Vmchannel),
            (virtio(""), SerialMode::Vmchannel),
            (PortKind::GuestForward(7), SerialMode::Vmchannel),
            (PortKind::Other, SerialMode::Vmchannel),
        ] {
            assert!(ours(&kind, mode, Some("/run/fence")), "{kind:?}");
            assert!(ours(&kind, mode, Some("/run/fence/")), "{kind:?}");
            for elsewhere in ["/run", "/run/fenc", "/run/fence/a", "/"] {
                assert!(!ours(&kind, mode, Some(elsewhere)), "{kind:?} {elsewhere}");
            }
        }
    }

    #[test]
    fn without_a_directory_the_name_or_the_port_decides() {
        let mode = SerialMode::Vmchannel;
        assert!(ours(&virtio("org.clusterlabs.fence_virt.0"), mode, None));
        assert!(ours(&PortKind::GuestForward(1229), mode, None));
        assert!(!ours(&virtio("org.example"), mode, None));
        assert!(!ours(&PortKind::GuestForward(1230), mode, None));
        assert!(!ours(&PortKind::Other, mode, None));
        assert!(ours(&PortKind::Serial, SerialMode::Serial, None));
    }

    #[test]
    fn the_guest_agent_is_left_alone_and_modes_do_not_mix() {
        assert!(!ours(&virtio("org.qemu.guest_agent.0"), SerialMode::Vmchannel, None));
        assert!(!ours(&virtio("org.qemu.guest_agent.0"), SerialMode::Vmchannel, Some("/run/fence")));
        assert!(!ours(&PortKind::Serial, SerialMode::Vmchannel, Some("/run/fence")));
        assert!(!ours(&virtio("org.clusterlabs.fence_virt.0"), SerialMode::Serial, Some("/run/fence")));
    }
}
