// SPDX-License-Identifier: GPL-2.0-or-later
//! Typed configuration: the settings of a daemon whose file has no errors.
//!
//! Owns the types, their words in the file, and their defaults. Values only. Must never read files, resolve
//! names or inspect the host.

mod agent;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fence_wire::{Family, HashType};
use serde::Serialize;

pub use self::agent::{
    AgentBackend, AgentDevice, AgentProgram, DevicePlugs, DomainPlug, OptionValue, is_secret_option,
};
use crate::diagnostic::{Span, show};

/// Default directory of the daemon's state, if neither the file nor systemd names another one.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/fence_virt";
/// Default hypervisor of the libvirt and cpg backends and of the serial listener.
pub const DEFAULT_URI: &str = "qemu:///system";
/// Default process group of the cpg backend: that of the C daemon.
pub const DEFAULT_GROUP: &str = "fence-agents";
/// Longest name of a process group in bytes. Corosync allows 127, and the second group has two more.
pub const MAX_GROUP_NAME: usize = 125;
/// Most hosts of `peers`.
pub const MAX_PEERS: usize = 64;
/// Most multicast blocks that are in use at once.
pub const MAX_MULTICAST_BLOCKS: usize = 32;
/// Default time before a host that does not own the target answers.
pub const DEFAULT_NEGATIVE_DELAY: Duration = Duration::from_secs(2);
/// Longest `negative_delay`: agents give up after 30 s by default, so a longer one is a mistake.
pub const MAX_NEGATIVE_DELAY: Duration = Duration::from_secs(60);

/// Default time for which clients wait for their answer: that of the agents.
pub const DEFAULT_CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest `client_timeout`.
pub const MAX_CLIENT_TIMEOUT: Duration = Duration::from_secs(600);
/// Default time limit of one status check of a fence agent.
pub const DEFAULT_STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// Default of a device's `effect_timeout`.
pub const DEFAULT_EFFECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Default number of fence agents that run at once.
pub const DEFAULT_MAX_RUNNING: usize = 16;
/// Default number of agents of one device that run at once.
pub const DEFAULT_DEVICE_MAX_RUNNING: usize = 4;
/// Default number of further rounds over the devices of a domain.
pub const DEFAULT_RETRIES: u32 = 1;

/// Complete fence_virt.conf, checked, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The `fence_virtd` block.
    pub daemon: DaemonSection,
    /// One entry for each listener that `fence_virtd { listener }` names, in that order.
    pub listeners: Vec<Listener>,
    /// One entry for each backend that `fence_virtd { backend }` names, in that order.
    pub backends: Vec<Backend>,
    /// The `groups` block. `None`: it is missing, so every holder of the key may fence everything. `Some` of
    /// an empty list: no source may fence anything.
    pub groups: Option<Vec<Group>>,
}

impl Config {
    /// Returns the multicast listeners that are in use.
    pub fn multicasts(&self) -> impl Iterator<Item = &MulticastListener> {
        self.listeners.iter().filter_map(|it| if let Listener::Multicast(it) = it { Some(it) } else { None })
    }

    /// Returns the name of a listener in texts and metrics: that of its kind, and for one of several
    /// multicast blocks also its interface, group and port.
    pub fn name_of(&self, listener: &Listener) -> String {
        match listener {
            Listener::Multicast(it) if self.multicasts().count() > 1 => format!("multicast {}", it.place()),
            _ => listener.kind().as_str().to_owned(),
        }
    }

    /// Returns the serial listener, if it is in use.
    pub fn serial(&self) -> Option<&SerialListener> {
        self.listeners.iter().find_map(|it| if let Listener::Serial(it) = it { Some(it) } else { None })
    }

    /// Returns the cpg backend, if it is in use.
    pub fn cpg(&self) -> Option<&CpgBackend> {
        self.backends.iter().find_map(|it| if let Backend::Cpg(it) = it { Some(it) } else { None })
    }

    /// Returns the agent backend, if it is in use.
    pub fn agent(&self) -> Option<&AgentBackend> {
        self.backends.iter().find_map(|it| if let Backend::Agent(it) = it { Some(it) } else { None })
    }
}

/// The `fence_virtd` block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DaemonSection {
    /// `listener = "multicast, vsock"`: at least one; multicast once for each of its blocks that is in
    /// use, no other twice. Default multicast.
    pub listeners: Vec<ListenerKind>,
    /// `backend = "libvirt"`: at least one, none twice. Default libvirt.
    pub backends: Vec<BackendKind>,
    /// `foreground`: do not daemonise. Default no.
    pub foreground: bool,
    /// `wait_for_init` (or `wait_for_backend`): keep trying instead of giving up at the start. Default no.
    pub wait_for_init: bool,
    /// `debug`: level of debugging output, 0 = none. Default 0.
    pub debug: u32,
    /// `module_path`: accepted for old files and ignored; there are no modules.
    pub module_path: Option<String>,
    /// `name_mode`: default of the cpg backend's key of that name.
    pub name_mode: Option<NameMode>,
    /// `audit_log`: file that gets one record for each authenticated request. Default: the log only.
    pub audit_log: Option<PathBuf>,
    /// `state_dir`: directory of the memory of accepted packets, which outlives a restart.
    pub state_dir: StateDir,
    /// `sandbox`: confine the daemon to its needs. Default yes.
    pub sandbox: bool,
    /// `strict_keys`: refuse a key file of root that every user can read. Default no.
    pub strict_keys: bool,
    /// `metrics`: address of the metrics endpoint. Default: none.
    pub metrics: Option<MetricsAddress>,
    /// `client_timeout`, in seconds: time for which clients wait for their answer (their `-t`). Default 30 s.
    pub client_timeout: Duration,
    /// `peers`: the other hosts that may have the same domains. Default: they are looked for.
    pub peers: Peers,
    /// `peer_key_file`: key of the messages between hosts. Default: the key of the multicast listener.
    pub peer_key_file: Option<PathBuf>,
    /// `peer_port`: UDP port for messages of the hosts of `peers`. Default 1229.
    pub peer_port: u16,
    /// `peer_down_command`: program that proves a silent host down. Default: none.
    pub peer_down_command: Option<PathBuf>,
}

/// `peers`: the other hosts, which corosync does not know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peers {
    /// Not set: the daemon looks for them in its multicast groups.
    #[default]
    Discovered,
    /// `"none"`: no other host has the same domains; nothing is sent.
    Nobody,
    /// These, by address and port.
    Listed(Vec<SocketAddr>),
}

/// `metrics`: an address that only this host reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsAddress {
    /// `"127.0.0.1:9229"`: a loopback address and a port.
    Tcp(SocketAddr),
    /// `"unix:/path"`
    Unix(PathBuf),
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddress::Tcp(address) => address.fmt(f),
            MetricsAddress::Unix(path) => {
                write!(f, "unix:{}", show(path.as_os_str().as_encoded_bytes()))
            }
        }
    }
}

/// `state_dir`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StateDir {
    /// Not set: `$STATE_DIRECTORY` if systemd sets it, otherwise [`DEFAULT_STATE_DIR`].
    #[default]
    Default,
    /// `"none"`: in memory alone.
    Nowhere,
    /// This directory.
    At(PathBuf),
}

/// Kinds of listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerKind {
    /// UDP multicast with a TCP call-back.
    Multicast,
    /// Plain TCP.
    Tcp,
    /// AF_VSOCK streams.
    Vsock,
    /// Serial ports and VM channels.
    Serial,
}

/// Kinds of backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// libvirt on this host or on other hosts.
    Libvirt,
    /// libvirt, and corosync to find the host that owns a domain.
    Cpg,
    /// Fence agents that are installed on this host.
    Agent,
}

/// Active listener with all its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Listener {
    /// `listeners { multicast { … } }`
    Multicast(MulticastListener),
    /// `listeners { tcp { … } }`
    Tcp(TcpListener),
    /// `listeners { vsock { … } }`
    Vsock(VsockListener),
    /// `listeners { serial { … } }`
    Serial(SerialListener),
}

impl Listener {
    /// Returns the kind of the listener.
    pub fn kind(&self) -> ListenerKind {
        match self {
            Listener::Multicast(_) => ListenerKind::Multicast,
            Listener::Tcp(_) => ListenerKind::Tcp,
            Listener::Vsock(_) => ListenerKind::Vsock,
            Listener::Serial(_) => ListenerKind::Serial,
        }
    }

    /// Returns the port; `None` for the serial listener.
    pub fn port(&self) -> Option<u16> {
        match self {
            Listener::Multicast(listener) => Some(listener.port),
            Listener::Tcp(listener) => Some(listener.port),
            Listener::Vsock(listener) => Some(listener.port),
            Listener::Serial(_) => None,
        }
    }

    /// Returns the keys and hashes; none for the serial listener, whose lines identify the source.
    pub fn keys(&self) -> Option<&KeySettings> {
        match self {
            Listener::Multicast(listener) => Some(&listener.keys),
            Listener::Tcp(listener) => Some(&listener.keys),
            Listener::Vsock(listener) => Some(&listener.keys),
            Listener::Serial(_) => None,
        }
    }

    /// Returns the keys and hashes to change them.
    pub fn keys_mut(&mut self) -> Option<&mut KeySettings> {
        match self {
            Listener::Multicast(listener) => Some(&mut listener.keys),
            Listener::Tcp(listener) => Some(&mut listener.keys),
            Listener::Vsock(listener) => Some(&mut listener.keys),
            Listener::Serial(_) => None,
        }
    }
}

/// Keys and hashes of a listener whose transport does not identify the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeySettings {
    /// `key_file`, as often as there are keys; never empty.
    pub key_files: Vec<PathBuf>,
    /// True if the block names the key files; otherwise `key_files` is the default.
    pub key_files_named: bool,
    /// `hash`: the weakest packet hash that is accepted. Default sha256.
    #[serde(serialize_with = "as_word")]
    pub hash: HashType,
    /// `auth`: the classic hash of the challenge, or none; must equal the agent's. Default sha256.
    #[serde(serialize_with = "as_word")]
    pub auth: HashType,
}

/// `listeners { multicast { … } }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MulticastListener {
    /// `key_file`, `hash` and `auth`.
    #[serde(flatten)]
    pub keys: KeySettings,
    /// `family`: default that of `address`, else ipv4.
    #[serde(serialize_with = "as_word")]
    pub family: Family,
    /// `address`: a multicast address of `family`. Default 225.0.0.12 or ff05::3:1.
    pub address: IpAddr,
    /// `port`: default 1229.
    pub port: u16,
    /// `interface`: name of a network interface. `None` (also written `"none"`): the system chooses.
    pub interface: Option<String>,
    /// `negative_delay`, in seconds: time before this host answers for a domain that it does not own. Default
    /// 2 s.
    pub negative_delay: Duration,
}

impl MulticastListener {
    /// Returns interface, group and port in words.
    pub fn place(&self) -> String {
        let at = SocketAddr::new(self.address, self.port);
        format!("{} {at}", self.interface.as_deref().unwrap_or("any interface"))
    }

    /// Returns whether both hear the same datagrams.
    pub fn hears_the_same(&self, other: &Self) -> bool {
        let is_same_interface = match (&self.interface, &other.interface) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        (self.address, self.port) == (other.address, other.port) && is_same_interface
    }
}

/// `listeners { tcp { … } }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TcpListener {
    /// `key_file`, `hash` and `auth`.
    #[serde(flatten)]
    pub keys: KeySettings,
    /// `family`: default that of `address`, else ipv4.
    #[serde(serialize_with = "as_word")]
    pub family: Family,
    /// `address` to listen on, of `family`, never a multicast one. Default 127.0.0.1 or ::1.
    pub address: IpAddr,
    /// `port`: default 1229.
    pub port: u16,
}

/// `listeners { vsock { … } }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VsockListener {
    /// `key_file`, `hash` and `auth`.
    #[serde(flatten)]
    pub keys: KeySettings,
    /// `port`: default 1229.
    pub port: u16,
}

/// `listeners { serial { … } }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SerialListener {
    /// `uri`: hypervisor whose domains' ports are served. Default qemu:///system.
    pub uri: String,
    /// `path`: only sockets in this directory are served. Default: no limit.
    pub path: Option<PathBuf>,
    /// `mode`: default serial.
    pub mode: SerialMode,
}

/// Active backend with all its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// `backends { libvirt { … } }`
    Libvirt(LibvirtBackend),
    /// `backends { cpg { … } }`
    Cpg(CpgBackend),
    /// `backends { agent { … } }`
    Agent(AgentBackend),
}

impl Backend {
    /// Returns the kind of the backend.
    pub fn kind(&self) -> BackendKind {
        match self {
            Backend::Libvirt(_) => BackendKind::Libvirt,
            Backend::Cpg(_) => BackendKind::Cpg,
            Backend::Agent(_) => BackendKind::Agent,
        }
    }

    /// Returns the hypervisors of libvirt on which the backend has domains.
    pub fn uris(&self) -> &[String] {
        match self {
            Backend::Libvirt(backend) => &backend.uris,
            Backend::Cpg(backend) => &backend.uris,
            Backend::Agent(_) => &[],
        }
    }
}

/// `backends { libvirt { … } }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LibvirtBackend {
    /// `uri`, `uri1`, `uri2`, … in the order of their numbers; never empty. Default qemu:///system.
    pub uris: Vec<String>,
    /// `reboot_starts`: a reboot of a domain that is off starts it. Default no.
    pub reboot_starts: bool,
}

/// `backends { cpg { … } }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpgBackend {
    /// `uri`, `uri1`, `uri2`, … in the order of their numbers; never empty. Default qemu:///system.
    pub uris: Vec<String>,
    /// `name_mode`: form of a domain's name towards legacy hosts. Default that of `fence_virtd`, otherwise
    /// uuid.
    pub name_mode: NameMode,
    /// `reboot_starts`: a reboot of a domain that is off starts it. Default no.
    pub reboot_starts: bool,
    /// `group`: process group of all hosts, at most [`MAX_GROUP_NAME`] bytes. Default fence-agents.
    pub group: String,
    /// `host_down` and `host_down_command`: evidence that a lost host is down. Default never.
    pub host_down: HostDown,
}

/// Evidence that a lost host, with its domains, is down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostDown {
    /// No evidence.
    Never,
    /// Pacemaker's fencing history says that the host was fenced after its loss.
    Pacemaker,
    /// This command confirms it.
    Command(PathBuf),
    /// The loss itself.
    Membership,
}

/// Words of `host_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostDownWord {
    /// No evidence.
    Never,
    /// Pacemaker's fencing history.
    Pacemaker,
    /// Command of `host_down_command`.
    Command,
    /// Loss of the membership.
    Membership,
}

/// `groups { group { … } }`: every source in the group may fence every domain in it.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// `name`, for messages.
    pub name: Option<String>,
    /// `ip`: sources, as the text of an IP address in canonical form, or a vsock context id in decimal.
    pub ips: Vec<String>,
    /// `uuid`: domains by UUID or name, as written; on serial lines also sources.
    pub uuids: Vec<String>,
    /// `key_file`: keys that open this group; no other key may use it. Empty: the listener's keys.
    pub key_files: Vec<PathBuf>,
    /// Place of the block in the file.
    pub span: Span,
}

/// Two groups are equal when their settings are, wherever they stand in the file.
impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.ips == other.ips
            && self.uuids == other.uuids
            && self.key_files == other.key_files
    }
}

impl Eq for Group {}

/// Kind of guest port that the serial listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SerialMode {
    /// Serial ports.
    Serial,
    /// VM channels.
    Vmchannel,
}

/// Form of a domain's name between cpg hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NameMode {
    /// By name.
    Name,
    /// By UUID.
    Uuid,
}

/// Value that is one of a few words. Words compare without case.
pub(crate) trait WordSet: Copy + Sized + 'static {
    /// Every word with its meaning, in the order in which messages name them.
    const WORDS: &'static [(&'static str, Self)];

    /// Returns the meaning of a word, `None` for any other text.
    fn from_word(text: &[u8]) -> Option<Self> {
        Self::WORDS.iter().find(|(word, _)| word.as_bytes().eq_ignore_ascii_case(text)).map(|&(_, it)| it)
    }
}

macro_rules! words {
    ($($kind:ident: $($word:literal => $variant:ident),+;)+) => {$(
        impl WordSet for $kind {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $kind::$variant)),+];
        }

        impl $kind {
            /// Returns the word in the file.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($kind::$variant => $word),+
                }
            }

            /// Returns all words of the file, in the order in which messages name them.
            pub fn words() -> impl Iterator<Item = &'static str> {
                <$kind as WordSet>::WORDS.iter().map(|&(word, _)| word)
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+};
}

words! {
    ListenerKind: "multicast" => Multicast, "tcp" => Tcp, "vsock" => Vsock, "serial" => Serial;
    BackendKind: "libvirt" => Libvirt, "cpg" => Cpg, "agent" => Agent;
    SerialMode: "serial" => Serial, "vmchannel" => Vmchannel;
    NameMode: "name" => Name, "uuid" => Uuid;
    HostDownWord: "never" => Never, "pacemaker" => Pacemaker, "command" => Command,
        "membership" => Membership;
}

impl WordSet for HashType {
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::None.name(), Self::None),
        (Self::Sha1.name(), Self::Sha1),
        (Self::Sha256.name(), Self::Sha256),
        (Self::Sha512.name(), Self::Sha512),
        (Self::HmacSha256.name(), Self::HmacSha256),
        (Self::HmacSha512.name(), Self::HmacSha512),
    ];
}

/// Hash type of a classic challenge: `auth` takes no others, since sealed packets bring their own.
#[derive(Clone, Copy)]
pub(crate) struct ChallengeHash(pub(crate) HashType);

impl WordSet for ChallengeHash {
    const WORDS: &'static [(&'static str, Self)] = &[
        (HashType::None.name(), Self(HashType::None)),
        (HashType::Sha1.name(), Self(HashType::Sha1)),
        (HashType::Sha256.name(), Self(HashType::Sha256)),
        (HashType::Sha512.name(), Self(HashType::Sha512)),
    ];
}

impl WordSet for Family {
    const WORDS: &'static [(&'static str, Self)] =
        &[(Self::V4.as_str(), Self::V4), (Self::V6.as_str(), Self::V6)];
}

/// Serialises a value of `fence-wire` as its word in the file.
fn as_word<T: fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl WordSet for bool {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("yes", true),
        ("no", false),
        ("true", true),
        ("false", false),
        ("on", true),
        ("off", false),
        ("1", true),
        ("0", false),
    ];
}
