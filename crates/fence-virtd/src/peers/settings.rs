// SPDX-License-Identifier: GPL-2.0-or-later
//! The settings of the configuration that are about other hosts, with their keys.
//!
//! Owns the choice whether hosts are looked for at all. Loaded as a whole before anything is changed. Must
//! never show a byte of a key.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fence_cli::key_file::{self, KeyFileError, KeyRule};
use fence_config::{Backend, BackendKind, Config, HashType, KeySettings, Listener, MulticastListener, Peers};
use fence_wire::{DEFAULT_PORT, HOST_MESSAGE_LEN, HostMessage, HostsKey, Key};
use tracing::warn;

use super::limits::MAX_KEYS;
use crate::lists::ClientKeys;

/// Reason why nobody is looked for without a group.
pub(super) const NO_GROUP: &str = "there is no multicast listener any more";

/// Settings that are about other hosts.
#[derive(Clone, Debug)]
pub(crate) struct PeerSettings {
    pub(super) mode: PeerMode,
    /// Keys of the messages, each of which is sent with all of them.
    pub(super) keys: Vec<HostsKey>,
    /// Groups of the multicast listeners, with their keys; none where nobody is asked.
    pub(super) groups: Vec<PeerGroup>,
    pub(super) port: u16,
    pub(super) down_command: Option<PathBuf>,
    /// Hypervisors of this host.
    pub(super) hypervisors: Vec<String>,
    /// Corosync knows the other nodes, and hosts that are none are looked for.
    pub(super) has_nodes: bool,
    /// Corosync knows the other nodes.
    pub(super) is_of_cluster: bool,
    /// `peers` is set.
    pub(super) is_set: bool,
    /// The configuration whose keys can't be loaded yet.
    pub(super) waits_for: Option<Arc<Config>>,
}

/// Group of one multicast listener, with its keys.
#[derive(Clone, Debug)]
pub(super) struct PeerGroup {
    listener: MulticastListener,
    /// Keys of the messages to this group, where not each group has the same; else empty.
    hosts: Vec<HostsKey>,
    /// Keys with which hosts without host messages are asked.
    pub(super) client: Arc<ClientKeys>,
}

impl PeerGroup {
    /// Returns whether this is the group at this address, port and interface.
    pub(super) fn is_at(&self, place: (IpAddr, u16, Option<&str>)) -> bool {
        let it = &self.listener;
        (it.address, it.port, it.interface.as_deref()) == place
    }
}

/// Way in which the other hosts are known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PeerMode {
    /// Nothing is sent, and nobody is asked.
    Off,
    /// Nothing is sent, for this reason. Hosts that are known all the same can't be asked.
    NoWay(NoWayReason),
    /// By their messages to the multicast group.
    Discovered,
    /// By these addresses.
    Listed(Vec<SocketAddr>),
}

/// Reason why hosts that were heard before can't be asked any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoWayReason {
    /// Corosync names the hosts.
    Corosync,
    /// There is no multicast listener, and no address.
    NoGroup,
}

impl NoWayReason {
    /// Returns the reason in words.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Corosync => "with the cpg backend corosync names the hosts",
            Self::NoGroup => NO_GROUP,
        }
    }

    /// Returns the next step. `host`: what `--forget` takes for it.
    pub(super) fn step(self, host: &str) -> String {
        match self {
            // It lives: nobody may power it off for that.
            Self::Corosync => format!(
                "If that host is a node of this corosync cluster now, and all nodes have the cpg backend, \
                 its old entry is to be forgotten; power nothing off: fence_virtd --forget {host}. If that \
                 host is no node and can have the same domains: make a node of that host, or name that host \
                 in `peers`"
            ),
            Self::NoGroup => format!(
                "Name that host in `peers`, or set peers = \"none\" if that host never has the same \
                 domains. If that host is gone for good: fence_virtd --forget {host}"
            ),
        }
    }
}

impl PeerMode {
    /// Returns true if no other host is looked for or asked.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::Off | Self::NoWay(_))
    }
}

/// Reason why the messages between hosts can't be sent as the configuration says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("messages between hosts (peer_key_file): {0}")]
    Key(KeyFileError),
    /// Hosts without host messages are asked with it, and where there is no `peer_key_file` all hosts are.
    #[error("key of a listener or group: {0}")]
    ListenerKey(#[from] KeyFileError),
    #[error("messages between hosts: can't open UDP port {port} (peer_port): {source}")]
    Socket { port: u16, source: std::io::Error },
    #[error("no random bytes: {0}")]
    Random(#[from] rand::rngs::SysError),
}

impl PeerSettings {
    /// Reads the settings and loads the keys.
    ///
    /// # Errors
    /// A key can't be loaded.
    pub(crate) fn load(config: &Config) -> Result<Self, PeerError> {
        let mode = mode(config);
        let keys = match mode {
            // To know another host by its messages. Nobody is asked, so nothing depends on them.
            PeerMode::Off if config.daemon.peers == Peers::Nobody => keys(config).unwrap_or_default(),
            _ if mode.is_silent() => Vec::new(),
            _ => keys(config)?,
        };
        let groups = if mode.is_silent() { Vec::new() } else { groups(config)? };
        Ok(Self { keys, groups, ..Self::without_keys(config, mode) })
    }

    /// Returns the messages that are made with a key of this group.
    pub(super) fn of_group(
        &self,
        place: (IpAddr, u16, Option<&str>),
        messages: &[[u8; HOST_MESSAGE_LEN]],
    ) -> Vec<[u8; HOST_MESSAGE_LEN]> {
        match self.groups.iter().find(|it| it.is_at(place)) {
            Some(group) if !group.hosts.is_empty() => {
                let is_own = |it: &&[u8; HOST_MESSAGE_LEN]| HostMessage::decode(*it, &group.hosts).is_ok();
                messages.iter().filter(is_own).copied().collect()
            }
            _ => messages.to_vec(),
        }
    }

    /// Reads the settings. A key that can't be loaded yet is tried again with each hello, and without it no
    /// other host can be asked: for a daemon with `-w`.
    fn load_or_wait(config: &Config) -> Self {
        Self::load(config).unwrap_or_else(|error| {
            warn!("{error}; trying again");
            let waits_for = Some(Arc::new(config.clone()));
            Self { waits_for, ..Self::without_keys(config, mode(config)) }
        })
    }

    /// Reads the settings for a daemon. A node of a corosync cluster needs no key to serve the cluster: it
    /// waits for one as a daemon with `-w` does.
    ///
    /// # Errors
    /// A key can't be loaded.
    pub(crate) fn load_for_daemon(config: &Config, wait: bool) -> Result<Self, PeerError> {
        let has_nodes = Self::without_keys(config, mode(config)).has_nodes;
        if wait || has_nodes { Ok(Self::load_or_wait(config)) } else { Self::load(config) }
    }

    /// Returns the settings with the keys that they wait for; none if there is nothing to wait for any more.
    pub(super) fn with_keys(&self) -> Option<Self> {
        Self::load(self.waits_for.as_deref()?).ok()
    }

    /// Returns true if no other host is asked.
    pub(crate) fn is_off(&self) -> bool {
        self.mode.is_silent()
    }

    /// Returns true for a node of a corosync cluster that looks for hosts which are none.
    pub(crate) fn is_beside_nodes(&self) -> bool {
        self.has_nodes
    }

    /// Returns true if no other host is looked for, since there is no group to do it in, and none is named.
    pub(crate) fn has_no_group(&self) -> bool {
        self.mode == PeerMode::NoWay(NoWayReason::NoGroup)
    }

    /// Returns true if there is no way to hosts that were heard before, which must answer all the same.
    pub(crate) fn has_no_way(&self) -> bool {
        matches!(self.mode, PeerMode::NoWay(_))
    }

    fn without_keys(config: &Config, mode: PeerMode) -> Self {
        Self {
            keys: Vec::new(),
            groups: Vec::new(),
            port: config.daemon.peer_port,
            down_command: config.daemon.peer_down_command.clone(),
            hypervisors: config.backends.iter().flat_map(Backend::uris).cloned().collect(),
            has_nodes: config.cpg().is_some() && mode == PeerMode::Discovered,
            is_of_cluster: config.cpg().is_some(),
            mode,
            is_set: config.daemon.peers != Peers::Discovered,
            waits_for: None,
        }
    }
}

fn mode(config: &Config) -> PeerMode {
    let has = |kind| config.backends.iter().any(|it| it.kind() == kind);
    match &config.daemon.peers {
        // Fence agents reach a machine wherever it runs.
        _ if !has(BackendKind::Libvirt) && !has(BackendKind::Cpg) => PeerMode::Off,
        Peers::Nobody => PeerMode::Off,
        Peers::Listed(list) => PeerMode::Listed(list.clone()),
        // Without a group there is nobody to find. Corosync knows the nodes of its cluster.
        Peers::Discovered if config.multicasts().next().is_none() => {
            PeerMode::NoWay(if has(BackendKind::Cpg) { NoWayReason::Corosync } else { NoWayReason::NoGroup })
        }
        Peers::Discovered => PeerMode::Discovered,
    }
}

fn keys(config: &Config) -> Result<Vec<HostsKey>, PeerError> {
    match &config.daemon.peer_key_file {
        Some(file) => {
            let loaded = key_file::load(file, rule(config)).map_err(PeerError::Key)?;
            if let Some(exposed) = &loaded.exposed {
                warn!("messages between hosts: {exposed}");
            }
            Ok(vec![HostsKey::of(&loaded.key)])
        }
        None => keys_of_listener(config),
    }
}

/// Loads the keys of hosts without `peer_key_file`.
pub(super) fn keys_of_listener(config: &Config) -> Result<Vec<HostsKey>, PeerError> {
    let mut of_listeners: Vec<_> = config.multicasts().map(|it| &it.keys).collect();
    if of_listeners.is_empty() {
        of_listeners.extend(config.listeners.iter().find_map(Listener::keys));
    }
    let mut keys: Vec<HostsKey> = Vec::new();
    for settings in &of_listeners {
        for key in hosts_keys(config, settings)? {
            // One more than are used, so that it is said.
            if keys.len() <= MAX_KEYS && !keys.iter().any(|it| it.is_same(&key)) {
                keys.push(key);
            }
        }
    }
    if of_listeners.is_empty() {
        keys.push(HostsKey::without_a_key());
    }
    if keys.len() > MAX_KEYS {
        warn!("messages between hosts are sent with the first {MAX_KEYS} keys alone; set peer_key_file");
        keys.truncate(MAX_KEYS);
    }
    Ok(keys)
}

/// Loads the keys with which messages go to the group of a listener.
fn hosts_keys(config: &Config, settings: &KeySettings) -> Result<Vec<HostsKey>, KeyFileError> {
    let keys: Vec<_> = listener_keys(config, settings)?.iter().map(HostsKey::of).collect();
    Ok(if keys.is_empty() && is_unproved(settings) { vec![HostsKey::without_a_key()] } else { keys })
}

/// Loads the groups of the multicast listeners.
fn groups(config: &Config) -> Result<Vec<PeerGroup>, KeyFileError> {
    let is_shared = config.daemon.peer_key_file.is_some() || config.multicasts().count() < 2;
    let group = |it: &MulticastListener| {
        let hosts = if is_shared { Vec::new() } else { hosts_keys(config, &it.keys)? };
        let client = Arc::new(client_keys(config, it)?);
        Ok(PeerGroup { listener: it.clone(), hosts, client })
    };
    config.multicasts().map(group).collect()
}

/// Loads the keys of a listener; those of the groups, if it has none of its own.
fn listener_keys(config: &Config, settings: &KeySettings) -> Result<Vec<Key>, KeyFileError> {
    let rule = rule(config);
    let mut keys = Vec::new();
    for file in &settings.key_files {
        // The listener warns of a key that every user can read.
        match key_file::load(file, rule) {
            Ok(loaded) => keys.push(loaded.key),
            // The listener decides in the same way, and says so.
            Err(_) if is_unproved(settings) => {}
            Err(KeyFileError::Missing { .. }) if !settings.key_files_named => {}
            Err(error) => return Err(error),
        }
    }
    if keys.is_empty() && !is_unproved(settings) {
        // The listener has no key of its own: only the groups have.
        for file in config.groups.iter().flatten().flat_map(|it| &it.key_files) {
            keys.push(key_file::load(file, rule)?.key);
        }
    }
    Ok(keys)
}

/// Loads the keys with which hosts without host messages are asked, as a client of this multicast listener
/// would.
///
/// # Errors
/// A key can't be loaded.
pub(crate) fn client_keys(config: &Config, listener: &MulticastListener) -> Result<ClientKeys, KeyFileError> {
    let settings = &listener.keys;
    let mut keys = listener_keys(config, settings)?;
    keys.truncate(MAX_KEYS);
    let call_back_port = call_back_port(config);
    Ok(ClientKeys { hash: settings.hash, auth: settings.auth, keys, call_back_port })
}

/// Returns the port at which hosts without host messages call this one back; 0 where one is drawn.
pub(crate) fn call_back_port(config: &Config) -> u16 {
    // A tcp listener of this daemon needs its port at every moment.
    let has_listener =
        |port| config.listeners.iter().any(|it| matches!(it, Listener::Tcp(tcp) if tcp.port == port));
    if has_listener(DEFAULT_PORT) { 0 } else { DEFAULT_PORT }
}

/// Returns the rule of the configuration for key files that every user can read.
fn rule(config: &Config) -> KeyRule {
    KeyRule::strict(config.daemon.strict_keys)
}

/// Returns the file of the key of the messages between hosts; none if it is that of a listener, or if no host
/// is asked.
pub(crate) fn peer_key_file(config: &Config) -> Option<&Path> {
    config.daemon.peer_key_file.as_deref().filter(|_| !mode(config).is_silent())
}

/// Returns true for a listener that asks for no key.
fn is_unproved(settings: &KeySettings) -> bool {
    settings.hash == HashType::None && settings.auth == HashType::None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(listener: &str, backend: &str, peers: &str) -> PeerMode {
        let text = format!(
            "fence_virtd {{ listener = \"{listener}\"; backend = \"{backend}\"; {peers} }} \
             listeners {{ {listener} {{ }} }} backends {{ {backend} {{ }} }}"
        );
        mode(&fence_config::load(text.as_bytes()).config.unwrap())
    }

    #[test]
    fn a_host_that_is_set_alone_knows_the_messages_of_others() {
        let text = "fence_virtd { listener = \"multicast\"; backend = \"libvirt\"; peers = \"none\"; } \
                    listeners { multicast { hash = \"none\"; auth = \"none\"; } } backends { libvirt { } }";
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        let settings = PeerSettings::load(&config).unwrap();
        assert_eq!((settings.mode, settings.keys.len()), (PeerMode::Off, 1));
    }

    /// The guests' key has nothing to do with the messages between hosts where these have their own.
    #[test]
    fn a_refused_key_is_told_with_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, [7; 64]).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.display().to_string()
        };
        let (good, open) = (file("good", 0o600), file("open", 0o666));
        let refusal = |of_hosts: &str, of_guests: &str| {
            let text = format!(
                "fence_virtd {{ listener = \"multicast\"; backend = \"libvirt\"; \
                 peer_key_file = \"{of_hosts}\"; }} \
                 listeners {{ multicast {{ key_file = \"{of_guests}\"; }} }} \
                 backends {{ libvirt {{ }} }}"
            );
            let config = fence_config::load(text.as_bytes()).config.unwrap();
            PeerSettings::load(&config).map(drop).map_err(|it| it.to_string())
        };
        assert_eq!(refusal(&good, &good), Ok(()));
        let why = refusal(&good, &open).unwrap_err();
        assert!(why.starts_with("key of a listener or group: key file ") && why.contains(&open), "{why}");
        let why = refusal(&open, &good).unwrap_err();
        assert!(why.starts_with("messages between hosts (peer_key_file): key file "), "{why}");
    }

    /// A change of listener or backend is no word that the other hosts are gone.
    #[test]
    fn only_the_administrator_says_that_there_are_no_others() {
        assert_eq!(mode_of("multicast", "libvirt", ""), PeerMode::Discovered);
        for (listener, backend) in [("tcp", "libvirt"), ("multicast", "cpg"), ("tcp", "cpg")] {
            let is_found = listener == "multicast";
            assert_eq!(mode_of(listener, backend, "") == PeerMode::Discovered, is_found, "{backend}");
            assert!(is_found || matches!(mode_of(listener, backend, ""), PeerMode::NoWay(_)), "{backend}");
            assert_eq!(mode_of(listener, backend, "peers = \"none\";"), PeerMode::Off);
            let listed = mode_of(listener, backend, "peers = \"10.0.0.2\";");
            assert!(matches!(listed, PeerMode::Listed(_)), "{listener} {backend}");
        }
    }
}
