// SPDX-License-Identifier: GPL-2.0-or-later
//! Rights that the daemon needs, as far as its configuration tells, so that it can give up the rest before it
//! listens.
//!
//! Owns the lists of files, capabilities and system calls. Must run before the first thread is started. The
//! limits hold until the process ends: a reloaded configuration can't widen them.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use fence_config::{Backend, Config, HostDown, Listener, MetricsAddress, Peers};
use fence_sandbox::{Calls, Capability, Needs, Protection, State, Tcp};
use tracing::{info, warn};

use crate::hypervisor::uri::Uri;

/// Files of libraries and their configuration, and files of a running system that they read.
const SYSTEM: &[&str] = &[
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    // The whole directory: files in it are replaced by new ones, and a rule holds for one file only.
    "/etc",
    "/dev/random",
    "/dev/urandom",
    "/proc/self",
    "/proc/sys/crypto",
    "/sys/fs/cgroup",
    "/sys/devices/system",
];
/// Name service and certificates, for hypervisors on other hosts.
const REMOTE: &[&str] = &[
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/nscd",
    "/var/lib/sss",
    "/var/lib/ca-certificates",
];
/// Directories below the home directory that libvirt's own transports read.
const REMOTE_HOME: &[&str] = &[".pki", ".ssh"];
/// Memory that corosync shares with its clients.
const COROSYNC: &[&str] = &["/dev/shm"];
/// Directories that other programs may write.
const SCRATCH: &[&str] = &["/dev", "/run", "/tmp", "/var/tmp"];

/// Confines the daemon, unless the configuration forbids it, and logs the result.
///
/// `file` is the configuration file, `state` the directory of the daemon's state. A missing state directory
/// is made here, because a confined daemon could not.
pub(crate) fn enter(config: &Config, file: &Path, pid_file: Option<&Path>, state: Option<&Path>) {
    if !config.daemon.sandbox {
        warn!("sandbox = \"no\": the daemon keeps all rights that it was started with");
        fence_sandbox::no_capabilities_for_programs();
        return;
    }
    if let Some(it) = state {
        // The function that opens it reports the error.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(it);
    }
    let protection = needs(config, file, pid_file, state).confine();
    if matches!((&protection.files, &protection.calls), (State::Off(_), _) | (_, State::Off(_)))
        || protection.capabilities.is_err()
    {
        warn!("sandbox: {protection}");
    } else {
        info!("sandbox: {protection}");
    }
}

/// Returns true if a daemon that was started with this configuration can run any program of another one.
pub(crate) fn may_run_programs(started: &Config) -> bool {
    !started.daemon.sandbox || ConfiguredParts::of(started).programs
}

/// Confines a process that has nothing more to do, to learn the abilities of this kernel. Makes no directory.
pub(crate) fn try_on(config: &Config, file: &Path, state: Option<&Path>) -> Protection {
    needs(config, file, None, state).confine()
}

/// Parts of the configuration that several needs depend on.
struct ConfiguredParts<'c> {
    uris: BTreeSet<&'c str>,
    /// The evidence that a lost host is down, where there is a cluster.
    host_down: Option<&'c HostDown>,
    /// Other programs run, and nobody can foretell what they need.
    programs: bool,
    /// A hypervisor may be on another host.
    is_remote: bool,
    home: Option<PathBuf>,
}

impl<'c> ConfiguredParts<'c> {
    fn of(config: &'c Config) -> Self {
        let uris: BTreeSet<&str> = uris(config).collect();
        let host_down = config.cpg().map(|it| &it.host_down);
        let programs = config.agent().is_some()
            || matches!(host_down, Some(HostDown::Command(_)))
            || config.daemon.peer_down_command.is_some()
            || uris.iter().any(|it| Uri::of(it).starts_programs());
        let is_remote = programs || uris.iter().any(|it| Uri::of(it).is_remote());
        let home = env::home_dir().filter(|it| it.parent().is_some());
        Self { uris, host_down, programs, is_remote, home }
    }
}

/// Returns everything that a daemon with this configuration needs.
fn needs(config: &Config, file: &Path, pid_file: Option<&Path>, state: Option<&Path>) -> Needs {
    let parts = ConfiguredParts::of(config);
    Needs {
        read: files_to_read(config, file, &parts).0.into_iter().collect(),
        write: files_to_write(config, state, &parts).0.into_iter().collect(),
        remove: files_to_remove(config, pid_file).0.into_iter().collect(),
        capabilities: capabilities(config),
        tcp: Tcp::Any,
        calls: calls(&parts),
    }
}

fn files_to_read(config: &Config, file: &Path, parts: &ConfiguredParts<'_>) -> Paths {
    let mut read = Paths::default();
    read.all(SYSTEM);
    for it in key_files(config).chain(secret_files(config)).chain([file]) {
        read.directory_of(it);
    }
    for uri in &parts.uris {
        Uri::of(uri).files().for_each(|it| read.directory_of(Path::new(it)));
    }
    if parts.uris.iter().any(|it| Uri::of(it).has_processes_here()) {
        // Threads and arguments of all processes: one may have a machine of which libvirt says "shut off".
        read.add("/proc".into());
    }
    if parts.is_remote {
        read.all(REMOTE);
        if let Some(home) = &parts.home {
            REMOTE_HOME.iter().for_each(|it| read.add(home.join(it)));
        }
    }
    if parts.programs {
        // The files that programs read can't be foretold.
        read.add("/".into());
    }
    read
}

fn files_to_write(config: &Config, state: Option<&Path>, parts: &ConfiguredParts<'_>) -> Paths {
    let mut write = Paths::default();
    write.all(&["/dev/null"]);
    if let Some(it) = &config.daemon.audit_log {
        write.directory_of(it);
    }
    if let Some(it) = state {
        write.add(it.to_owned());
    }
    if let Some(home) = parts.home.as_ref().filter(|_| parts.is_remote) {
        // Keys of hosts that libvirt connects to for the first time.
        write.add(home.join(".config/libvirt"));
    }
    if parts.programs {
        write.all(SCRATCH);
        if let Some(home) = &parts.home {
            write.add(home.join(".ssh"));
        }
    }
    if parts.host_down.is_some() {
        write.all(COROSYNC);
    }
    write
}

fn files_to_remove(config: &Config, pid_file: Option<&Path>) -> Paths {
    let mut remove = Paths::default();
    if let Some(it) = pid_file {
        remove.directory_of(it);
    }
    // The socket itself is open already.
    if let Some(MetricsAddress::Unix(it)) = &config.daemon.metrics {
        remove.directory_of(it);
    }
    remove
}

fn calls(parts: &ConfiguredParts<'_>) -> Calls {
    Calls {
        open_files: true,
        threads: true,
        // Pacemaker's program reads the files that the daemon reads, and shares memory as corosync does.
        programs: parts.programs || matches!(parts.host_down, Some(HostDown::Pacemaker)),
        key_rings: parts.is_remote,
        // Corosync's sockets are abstract, unless libqb is told otherwise.
        abstract_sockets: parts.programs || parts.host_down.is_some() || notify_socket_is_abstract(),
    }
}

/// Paths of rules, without duplicates.
#[derive(Default)]
struct Paths(BTreeSet<PathBuf>);

impl Paths {
    fn all(&mut self, paths: &[&str]) {
        paths.iter().for_each(|it| self.add(it.into()));
    }

    fn add(&mut self, path: PathBuf) {
        self.0.insert(path);
    }

    /// Adds the directory of the file, and that of the file behind a link, because a file may be replaced by
    /// a new one. For a missing directory the nearest existing one is added. Never adds the root, which would
    /// be everything.
    fn directory_of(&mut self, file: &Path) {
        let real = fs::canonicalize(file).ok();
        for file in [Some(file), real.as_deref()].into_iter().flatten() {
            // Relative to the working directory.
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            match file.ancestors().skip(1).find(|it| it.exists()) {
                Some(directory) if directory.parent().is_some() => self.add(directory.to_owned()),
                _ => self.add(file),
            }
        }
    }
}

fn uris(config: &Config) -> impl Iterator<Item = &str> {
    let backends = config.backends.iter().flat_map(Backend::uris);
    let serial = config.serial().map(|it| &it.uri);
    backends.chain(serial).map(String::as_str)
}

fn key_files(config: &Config) -> impl Iterator<Item = &Path> {
    let listeners = config.listeners.iter().filter_map(|it| it.keys()).flat_map(|it| &it.key_files);
    let groups = config.groups.iter().flatten().flat_map(|it| &it.key_files);
    listeners.chain(groups).chain(&config.daemon.peer_key_file).map(PathBuf::as_path)
}

/// Returns files from which options of fence agents are read, and some that the agents read themselves.
fn secret_files(config: &Config) -> impl Iterator<Item = &Path> {
    let devices = config.agent().into_iter().flat_map(|it| &it.devices);
    let options = devices.flat_map(|it| &it.options).filter(|(name, _)| name.ends_with("_file"));
    options.map(|(_, value)| Path::new(value.as_str())).filter(|it| it.is_absolute())
}

/// Returns the capabilities that the daemon uses, of those that root has; under systemd the unit leaves
/// fewer.
fn capabilities(config: &Config) -> Vec<Capability> {
    // Key files, sockets of domains, audit and state files may belong to other users.
    let mut kept = vec![Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];
    if config.multicasts().next().is_some() {
        // A receive buffer beyond the system's limit.
        kept.push(Capability::CAP_NET_ADMIN);
    }
    let peer_port = Some(config.daemon.peer_port).filter(|_| matches!(config.daemon.peers, Peers::Listed(_)));
    if config.listeners.iter().filter_map(Listener::port).chain(peer_port).any(|port| port < 1024) {
        kept.push(Capability::CAP_NET_BIND_SERVICE);
    }
    if uris(config).any(|it| Uri::of(it).starts_programs()) {
        // libvirt takes the capabilities of such a program away, and as root it first asks for this one.
        kept.push(Capability::CAP_SETPCAP);
    }
    kept
}

fn notify_socket_is_abstract() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|it| it.as_bytes().starts_with(b"@"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        fence_config::load(text.as_bytes()).config.unwrap()
    }

    fn with_uri(uri: &str) -> Needs {
        let text = format!("fence_virtd {{ }} backends {{ libvirt {{ uri = \"{uri}\"; }} }}");
        needs(&config(&text), Path::new("/etc/fence_virt.conf"), None, None)
    }

    #[test]
    fn programs_only_where_libvirt_starts_some() {
        for uri in [
            "qemu:///system",
            "qemu+unix:///system?socket=/run/x",
            "test:///default",
            "xen:///system",
            "qemu+tls://host/system",
            "qemu://host/system",
            "qemu+tcp://host:16509/system",
            "qemu+libssh2://host/system",
            "esx://host/",
        ] {
            assert!(!with_uri(uri).calls.programs, "{uri}");
        }
        for uri in
            ["qemu+ssh://host/system", "qemu+ext:///system", "qemu:///session", "vbox:///session", "new:///"]
        {
            assert!(with_uri(uri).calls.programs, "{uri}");
        }
    }

    #[test]
    fn a_cluster_needs_shared_memory_and_programs_only_where_they_are_asked() {
        let with = |host_down: &str| {
            let text = format!("fence_virtd {{ backend = \"cpg\"; }} backends {{ cpg {{ {host_down} }} }}");
            needs(&config(&text), Path::new("/etc/fence_virt.conf"), None, None)
        };
        for (host_down, programs, everything) in [
            ("", false, false),
            ("host_down = \"never\";", false, false),
            ("host_down = \"membership\";", false, false),
            ("host_down = \"pacemaker\";", true, false),
            ("host_down = \"command\"; host_down_command = \"/x\";", true, true),
        ] {
            let needs = with(host_down);
            assert!(needs.write.contains(&"/dev/shm".into()), "{host_down}");
            assert!(needs.calls.abstract_sockets, "{host_down}");
            assert_eq!(needs.calls.programs, programs, "{host_down}");
            assert_eq!(needs.read.contains(&"/".into()), everything, "{host_down}");
        }
        let needs = with_uri("qemu:///system");
        assert!(!needs.write.contains(&"/dev/shm".into()) && !needs.calls.abstract_sockets);
    }

    /// A command that comes later needs the rights of one that was there at the start.
    #[test]
    fn programs_of_a_reload_only_where_the_start_had_one() {
        let may = |more: &str| {
            let text = format!("fence_virtd {{ peers = \"10.0.0.2\"; {more} }}");
            let needs = needs(&config(&text), Path::new("/etc/fence_virt.conf"), None, None);
            assert!(needs.calls.programs == needs.read.contains(&"/".into()));
            assert!(may_run_programs(&config(&text)) == needs.calls.programs || more.contains("sandbox"));
            may_run_programs(&config(&text))
        };
        assert!(!may(""));
        assert!(may("peer_down_command = \"/x\";") && may("sandbox = \"no\";"));
    }

    #[test]
    fn fence_agents_are_programs_and_their_secrets_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let text = format!(
            r#"fence_virtd {{ backend = "agent"; }} backends {{ agent {{
            device = "a" {{ agent = "fence_any"; plugs = "x"; options {{
                password_file = "{}/password"; ip = "/not/a/file"; key_file = "relative";
            }} }} }} }}"#,
            root.display()
        );
        let config = config(&text);
        let secrets: Vec<_> = secret_files(&config).collect();
        assert_eq!(secrets, [root.join("password")]);
        let needs = needs(&config, Path::new("/etc/fence_virt.conf"), None, None);
        assert!(needs.calls.programs && needs.calls.abstract_sockets);
        for path in ["/".into(), root] {
            assert!(needs.read.contains(&path), "{path:?}");
        }
        assert!(needs.write.contains(&"/tmp".into()));
    }

    #[test]
    fn name_service_only_for_other_hosts() {
        let resolve = Path::new("/run/systemd/resolve").to_owned();
        for (uri, is_remote) in [
            ("qemu:///system", false),
            ("qemu+unix:///system?socket=/run/x", false),
            ("qemu+tls://host/system", true),
            ("qemu://host/system", true),
            ("qemu+libssh://host/system", true),
        ] {
            let needs = with_uri(uri);
            assert_eq!(needs.read.contains(&resolve), is_remote, "{uri}");
            assert_eq!(needs.calls.key_rings, is_remote, "{uri}");
            assert!(!needs.read.contains(&"/".into()), "{uri}");
        }
    }

    #[test]
    fn a_file_that_may_be_replaced_is_allowed_by_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        for name in ["keys", "real"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("real/key"), "x").unwrap();
        std::os::unix::fs::symlink(at("real/key"), at("keys/key")).unwrap();
        let mut paths = Paths::default();
        paths.directory_of(&at("keys/key"));
        assert_eq!(paths.0.into_iter().collect::<Vec<_>>(), [at("keys"), at("real")]);
        let mut paths = Paths::default();
        paths.directory_of(&at("keys/none/yet"));
        assert_eq!(paths.0.into_iter().collect::<Vec<_>>(), [at("keys")]);
        // Not all there is, because of one file.
        let mut paths = Paths::default();
        paths.directory_of(Path::new("/nosuch/key"));
        assert_eq!(paths.0.into_iter().collect::<Vec<_>>(), [PathBuf::from("/nosuch/key")]);
    }

    #[test]
    fn what_the_configuration_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["a", "b", "log", "run"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let text = format!(
            r#"fence_virtd {{ listener = "tcp"; audit_log = "{0}/log/audit"; }}
            listeners {{ tcp {{ key_file = "{0}/a/key"; port = "229"; }} }}
            groups {{ group {{ ip = "::1"; uuid = "x"; key_file = "{0}/b/key"; }} }}"#,
            root.display()
        );
        let pid_file = root.join("run/pid");
        let needs =
            needs(&config(&text), &root.join("fence_virt.conf"), Some(&pid_file), Some(&root.join("state")));
        for name in ["a", "b", ""] {
            assert!(needs.read.iter().any(|it| it == &root.join(name)), "{name}: {:?}", needs.read);
        }
        assert_eq!(needs.write, [PathBuf::from("/dev/null"), root.join("log"), root.join("state")]);
        assert_eq!(needs.remove, [root.join("run")]);
        assert!(needs.capabilities.contains(&Capability::CAP_NET_BIND_SERVICE));
        assert!(!needs.capabilities.contains(&Capability::CAP_NET_ADMIN));
        assert!(!needs.calls.programs);
    }
}
