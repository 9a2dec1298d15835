// SPDX-License-Identifier: GPL-2.0-or-later
//! What the daemon will need, as far as its configuration tells, so that it can give up the rest before it
//! listens.
//!
//! Must run before the first thread is started. The limits hold until the process ends: a configuration that
//! is read anew can't widen them.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use fence_config::{Backend, Config, HostDown, Listener, MetricsAddress};
use fence_sandbox::{Calls, Capability, Needs, Protection, State, Tcp};
use tracing::{info, warn};

/// Where libraries, and what they are configured by, lie; and what they look at in a running system.
const SYSTEM: &[&str] = &[
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    // As a whole: files in it are replaced by new ones, and a rule holds for the one that it was made for.
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
/// Below the home directory: what libvirt's own transports look for there.
const REMOTE_HOME: &[&str] = &[".pki", ".ssh"];
/// Memory that corosync shares with who talks to it.
const COROSYNC: &[&str] = &["/dev/shm"];
/// Directories that programs write in, whatever they are.
const SCRATCH: &[&str] = &["/dev", "/run", "/tmp", "/var/tmp"];

/// Confines the daemon, unless the configuration says not to, and logs what is on.
///
/// `file` is the configuration file, `state` the directory of the daemon's state, which is made if it is
/// missing: nobody could do that later.
pub(crate) fn enter(config: &Config, file: &Path, pid_file: Option<&Path>, state: Option<&Path>) {
    if !config.daemon.sandbox {
        warn!("sandbox = \"no\": the daemon keeps all rights that it was started with");
        fence_sandbox::no_capabilities_for_programs();
        return;
    }
    if let Some(it) = state {
        // Whoever opens it says what is wrong.
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

/// Takes the same from a process that has nothing more to do, to see what this kernel can. Makes no
/// directory.
pub(crate) fn try_on(config: &Config, file: &Path, state: Option<&Path>) -> Protection {
    needs(config, file, None, state).confine()
}

fn needs(config: &Config, file: &Path, pid_file: Option<&Path>, state: Option<&Path>) -> Needs {
    let uris: BTreeSet<&str> = uris(config).collect();
    let cluster = config.backends.iter().find_map(|it| match it {
        Backend::Cpg(it) => Some(it),
        Backend::Libvirt(_) | Backend::Agent(_) => None,
    });
    let host_down = cluster.map(|it| &it.host_down);
    // Of these nobody knows what they need.
    let programs = config.backends.iter().any(|it| matches!(it, Backend::Agent(_)))
        || matches!(host_down, Some(HostDown::Command(_)))
        || uris.iter().any(|it| Uri::of(it).starts_programs());
    let is_remote = programs || uris.iter().any(|it| Uri::of(it).is_remote());

    let mut read = Paths::default();
    read.all(SYSTEM);
    for it in key_files(config).chain(secret_files(config)).chain([file]) {
        read.directory_of(it);
    }
    for uri in &uris {
        Uri::of(uri).files().for_each(|it| read.directory_of(Path::new(it)));
    }
    let mut write = Paths::default();
    write.all(&["/dev/null"]);
    if let Some(it) = &config.daemon.audit_log {
        write.directory_of(it);
    }
    if let Some(it) = state {
        write.add(it.to_owned());
    }
    let home = env::home_dir().filter(|it| it.parent().is_some());
    if is_remote {
        read.all(REMOTE);
        if let Some(home) = &home {
            REMOTE_HOME.iter().for_each(|it| read.add(home.join(it)));
            // The keys of hosts that are met for the first time.
            write.add(home.join(".config/libvirt"));
        }
    }
    if programs {
        // What they read can't be foretold.
        read.add("/".into());
        write.all(SCRATCH);
        if let Some(home) = &home {
            write.add(home.join(".ssh"));
        }
    }
    if cluster.is_some() {
        write.all(COROSYNC);
    }
    let mut remove = Paths::default();
    if let Some(it) = pid_file {
        remove.directory_of(it);
    }
    // It is open already.
    if let Some(MetricsAddress::Unix(it)) = &config.daemon.metrics {
        remove.directory_of(it);
    }
    Needs {
        read: read.0.into_iter().collect(),
        write: write.0.into_iter().collect(),
        remove: remove.0.into_iter().collect(),
        capabilities: capabilities(config),
        tcp: Tcp::Any,
        calls: Calls {
            open_files: true,
            threads: true,
            // Pacemaker's reads what we read, and shares memory as corosync does.
            programs: programs || matches!(host_down, Some(HostDown::Pacemaker)),
            key_rings: is_remote,
            // Corosync's are, unless libqb is told otherwise.
            abstract_sockets: programs || cluster.is_some() || notify_socket_is_abstract(),
        },
    }
}

/// Paths of rules, each once.
#[derive(Default)]
struct Paths(BTreeSet<PathBuf>);

impl Paths {
    fn all(&mut self, paths: &[&str]) {
        paths.iter().for_each(|it| self.add(it.into()));
    }

    fn add(&mut self, path: PathBuf) {
        self.0.insert(path);
    }

    /// The directory that the file lies in, and the one that it really lies in, when it is a link: a file may
    /// be replaced by a new one. One that is not there yet is waited for in the nearest directory that is.
    /// Never the root, which would be everything.
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
    let listeners = config.listeners.iter().filter_map(|it| match it {
        Listener::Serial(it) => Some(&it.uri),
        Listener::Multicast(_) | Listener::Tcp(_) | Listener::Vsock(_) => None,
    });
    backends.chain(listeners).map(String::as_str)
}

fn key_files(config: &Config) -> impl Iterator<Item = &Path> {
    let listeners = config.listeners.iter().filter_map(|it| it.keys()).flat_map(|it| &it.key_files);
    let groups = config.groups.iter().flatten().flat_map(|it| &it.key_files);
    listeners.chain(groups).map(PathBuf::as_path)
}

/// Files that options of fence agents are read from, and some that are read by the agents themselves.
fn secret_files(config: &Config) -> impl Iterator<Item = &Path> {
    let devices = config.backends.iter().flat_map(|it| match it {
        Backend::Agent(it) => &it.devices[..],
        Backend::Libvirt(_) | Backend::Cpg(_) => &[],
    });
    let options = devices.flat_map(|it| &it.options).filter(|(name, _)| name.ends_with("_file"));
    options.map(|(_, value)| Path::new(value.as_str())).filter(|it| it.is_absolute())
}

/// Those that root has and the daemon uses; under systemd the unit leaves fewer.
fn capabilities(config: &Config) -> Vec<Capability> {
    // Key files, sockets of domains, audit and state files may belong to other users.
    let mut kept = vec![Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];
    let is_low = |port: u16| port < 1024;
    for it in &config.listeners {
        let low = match it {
            Listener::Multicast(it) => {
                // A receive buffer beyond the system's limit.
                kept.push(Capability::CAP_NET_ADMIN);
                is_low(it.port)
            }
            Listener::Tcp(it) => is_low(it.port),
            Listener::Vsock(it) => is_low(it.port),
            Listener::Serial(_) => false,
        };
        if low {
            kept.push(Capability::CAP_NET_BIND_SERVICE);
        }
    }
    kept
}

fn notify_socket_is_abstract() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|it| it.as_bytes().starts_with(b"@"))
}

/// A libvirt URI: `driver[+transport]://[host]/path[?query]`.
struct Uri<'a> {
    driver: &'a str,
    transport: Option<&'a str>,
    host: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Uri<'a> {
    fn of(uri: &'a str) -> Self {
        let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
        let (driver, transport) = scheme.split_once('+').map_or((scheme, None), |(d, t)| (d, Some(t)));
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { driver, transport, host, path, query }
    }

    /// Whether libvirt starts programs for it: ssh, a command of the user's, a hypervisor or a libvirtd of
    /// its own. So it is believed of each driver that is not known not to.
    fn starts_programs(&self) -> bool {
        let quiet = ["qemu", "xen", "lxc", "ch", "test", "esx", "vpx", "gsx", "hyperv"];
        let starts = |it: &str| !["unix", "tcp", "tls", "libssh", "libssh2"].contains(&it);
        !quiet.contains(&self.driver)
            || self.transport.is_some_and(starts)
            || ["/session", "/embed"].contains(&self.path)
    }

    fn is_remote(&self) -> bool {
        !self.host.is_empty() || !matches!(self.transport, None | Some("unix"))
    }

    /// Files that it names: the test driver's domains, and whatever stands in its query but sockets.
    fn files(&self) -> impl Iterator<Item = &'a OsStr> {
        let domains = Some(self.path).filter(|_| self.driver == "test" && self.path != "/default");
        let named = self.query.split(['&', ';']).filter_map(|it| it.split_once('='));
        let named = named.filter(|(name, value)| *name != "socket" && value.starts_with('/'));
        domains.into_iter().chain(named.map(|(_, value)| value)).map(OsStr::new)
    }
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

    #[test]
    fn fence_agents_are_programs_and_their_secrets_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let text = format!(
            r#"fence_virtd {{ backend = "agent"; }} backends {{ agent {{ device = "a" {{ agent = "fence_any"; plugs = "x";
            options {{ password_file = "{}/password"; ip = "/not/a/file"; key_file = "relative"; }} }} }} }}"#,
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
    fn files_of_a_uri() {
        let files = |uri| Uri::of(uri).files().map(|it| it.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(files("test:///srv/domains.xml"), ["/srv/domains.xml"]);
        assert!(files("test:///default").is_empty());
        assert!(files("qemu+unix:///system?socket=/run/x").is_empty());
        let uri = "qemu+tls://h/system?no_verify=1&pkipath=/srv/pki/x&socket=/run/y";
        assert_eq!(files(uri), ["/srv/pki/x"]);
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
