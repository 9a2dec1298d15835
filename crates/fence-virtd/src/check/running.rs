// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of the daemon that runs beside: whether it answers, and whether it has taken up the configuration
//! and the keys that the other checks look at. Runs in the process of `--check`.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use fence_cli::shown;
use fence_config::{Config, MetricsAddress};
use fence_core::hosts::{KnownHost, KnownHosts};
use fence_wire::{HostId, escaped};
use nix::sys::stat::{major, minor};

use super::finding::Finding;
use super::processes::{OURS, is_other_program, other_daemon, stop_other};
use crate::cli::options::CONFIG_FILE;
use crate::daemon::in_use::{ConfigHash, ConfigurationInUse, is_mark_of, keys, shown_mark};
use crate::observe::metrics_reader::{self, samples};
use crate::util::process_name;

const CHECK: &str = "daemon";
/// Time for the daemon to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// Step for what a reload takes up.
const RELOAD: &str = "systemctl reload fence_virtd. If that was done, its log says why it was \
                      refused, or could not be noted in state_dir";

/// Step for a changed configuration file: only the daemon knows which keys wait for a restart.
const RELOAD_FILE: &str = "systemctl reload fence_virtd, then run --check again: it says whether a \
                           restart is needed too (as for each key of `backends`). If that was done, its \
                           log says why it was refused, or could not be noted in state_dir";

/// Files of the state directory that a daemon locks for as long as it runs.
const LOCKED: [&str; 3] = ["lock", "intents", "host.key"];

/// Use of a state directory, as its files and their locks show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DirectoryUse {
    /// The process with this pid has locked a file.
    Running(u32),
    /// A daemon used it, and none does now.
    Ended,
    /// No daemon has used it yet.
    Unused,
    /// Locks or files can not be read.
    Unknown,
}

impl DirectoryUse {
    /// Reads the locks from the kernel's list: to try a lock could get in the way of a daemon that starts.
    fn of(directory: &Path) -> Self {
        let metadata: Result<Vec<_>, _> = LOCKED
            .iter()
            .map(|it| match fs::metadata(directory.join(it)) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                other => other.map(Some),
            })
            .collect();
        let (Ok(metadata), Ok(locks)) = (metadata, fs::read_to_string("/proc/locks")) else {
            return Self::Unknown;
        };
        let files: Vec<_> = metadata.into_iter().flatten().collect();
        let mut holders = files.iter().filter_map(|it| lock_holder(&locks, it));
        match holders.next() {
            Some(pid) => Self::Running(pid),
            None if files.is_empty() => Self::Unused,
            None => Self::Ended,
        }
    }
}

/// Returns the process that has locked a file as a whole, by the kernel's list.
fn lock_holder(locks: &str, file: &fs::Metadata) -> Option<u32> {
    let (dev, inode) = (file.dev(), file.ino());
    let device = format!("{:02x}:{:02x}", major(dev), minor(dev));
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip_while(|it| *it != "FLOCK");
        let (pid, place) = (words.nth(3)?.parse().ok()?, words.next()?);
        let (at, number) = place.rsplit_once(':')?;
        // Some file systems show another device number than the list does.
        let is_ours = || process_name(pid).is_some_and(|it| it == OURS);
        (number.parse() == Ok(inode) && (at == device || is_ours())).then_some(pid)
    })
}

/// Returns whether a process has the file open; none if that can't be told.
fn has_open(pid: u32, file: &Path) -> Option<bool> {
    let wanted = fs::metadata(file).ok()?;
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let is_it = |it: fs::Metadata| (it.dev(), it.ino()) == (wanted.dev(), wanted.ino());
    Some(open.flatten().any(|it| fs::metadata(it.path()).is_ok_and(is_it)))
}

/// The daemon that runs with this state directory, as far as it can be seen.
pub(super) struct RunningDaemon {
    in_use: Option<ConfigurationInUse>,
    directory: DirectoryUse,
    /// True if it has the lock file of the directory open; none if that can't be told.
    has_directory: Option<bool>,
    /// Another fence_virtd that is another program.
    other: Option<u32>,
    /// Text of its metrics, where it has any and answers.
    metrics: Option<std::io::Result<String>>,
}

impl RunningDaemon {
    /// Looks for the daemon, and asks it for its metrics.
    pub(super) fn look(config: &Config, state: Option<&Path>) -> Self {
        let in_use = state.and_then(ConfigurationInUse::of_running);
        let ask = |it: &MetricsAddress| metrics_reader::fetch(it, LIMIT);
        let directory = state.map_or(DirectoryUse::Unknown, DirectoryUse::of);
        let metrics = config.daemon.metrics.as_ref().filter(|_| in_use.is_some()).map(ask);
        let has_directory =
            state.zip(in_use.as_ref()).and_then(|(state, it)| has_open(it.pid, &state.join(LOCKED[0])));
        Self { in_use, directory, has_directory, other: other_daemon(), metrics }
    }

    /// Returns what is to be said of the daemon; nothing where that can't be told, or before the first start
    /// with a configuration that is not the installed one.
    pub(super) fn findings(&self, config: &Config, file: &Path, source: &[u8]) -> Vec<Finding> {
        let Some(in_use) = &self.in_use else {
            return self.without_configuration(file).into_iter().collect();
        };
        let subject = format!("pid {}", in_use.pid);
        let mut found: Vec<_> = self.silence(in_use, &subject).into_iter().collect();
        found.extend(self.without_directory(in_use, &subject));
        found.extend(older(in_use, config, file, source));
        if found.is_empty() {
            found.push(Finding::ok(
                CHECK,
                subject,
                "the running fence_virtd uses this configuration and these keys",
            ));
        }
        found
    }

    /// Returns true if this process, a fence_virtd, is not the daemon with the state directory, and another
    /// program than this one.
    pub(super) fn is_another(&self, pid: u32) -> bool {
        let own = match (&self.in_use, self.directory) {
            (Some(it), _) => it.pid,
            (None, DirectoryUse::Running(it)) => it,
            (None, DirectoryUse::Unknown) => return false,
            (None, DirectoryUse::Ended | DirectoryUse::Unused) => 0,
        };
        pid != own && is_other_program(pid)
    }

    /// Returns what is to be said where no daemon that runs has told its configuration.
    fn without_configuration(&self, file: &Path) -> Option<Finding> {
        match self.directory {
            DirectoryUse::Running(pid) => {
                let text = "one runs; which configuration it uses is not known: it is just starting, or \
                            could not note it in state_dir (a full disk?), or another one with this \
                            state_dir has run since";
                let next = "run --check again in some seconds. If this line stays: systemctl reload \
                            fence_virtd";
                Some(Finding::warning(CHECK, format!("pid {pid}"), text, next))
            }
            DirectoryUse::Unused if file != Path::new(CONFIG_FILE) => None,
            DirectoryUse::Ended | DirectoryUse::Unused => {
                if let Some(pid) = self.other {
                    let text = format!(
                        "none runs with this state_dir; another fence_virtd does (pid {pid}), most probably \
                         a C daemon"
                    );
                    return Some(Finding::warning(CHECK, "", text, stop_other(pid)));
                }
                let text = "none runs with this state_dir: this host answers no guest and no other host";
                let next = "systemctl start fence_virtd. If it does not stay up: journalctl -u fence_virtd";
                Some(Finding::warning(CHECK, "", text, next))
            }
            DirectoryUse::Unknown => None,
        }
    }

    fn silence(&self, in_use: &ConfigurationInUse, subject: &str) -> Option<Finding> {
        let pid = in_use.pid;
        if in_use.is_stopped() {
            let next = format!("kill -CONT {pid}; or systemctl restart fence_virtd");
            let text = "the running fence_virtd is stopped (by SIGSTOP or a debugger) and answers nobody";
            return Some(Finding::failed(CHECK, subject, text, next));
        }
        let error = self.metrics.as_ref()?.as_ref().err().filter(|it| metrics_reader::is_time_out(it));
        error.map(|_| {
            let text =
                format!("the running fence_virtd does not answer within {} s (metrics)", LIMIT.as_secs());
            let next = "look at its log, and at the load of this host; systemctl restart fence_virtd";
            Finding::failed(CHECK, subject, text, next)
        })
    }

    /// Returns what is to be said of a daemon that goes on without the state directory, because another one
    /// had it when this one started.
    fn without_directory(&self, in_use: &ConfigurationInUse, subject: &str) -> Option<Finding> {
        if self.has_directory != Some(false) {
            return None;
        }
        let holder = match self.directory {
            DirectoryUse::Running(pid) if pid != in_use.pid => format!("pid {pid} uses it"),
            _ => "another fence_virtd used it then, or it could not be opened".to_owned(),
        };
        let text = format!(
            "the running fence_virtd uses no state_dir, since {holder}: a restart forgets what it has \
             accepted and begun, and other hosts know it by another key"
        );
        let next =
            "systemctl restart fence_virtd; where two run on purpose, each needs a state_dir of its own";
        Some(Finding::failed(CHECK, subject, text, next))
    }

    /// Returns the addresses of hosts from which the daemon heard messages with another key lately.
    pub(super) fn other_keys(&self) -> BTreeSet<IpAddr> {
        let Some(Ok(text)) = &self.metrics else { return BTreeSet::new() };
        let named = samples(text).into_iter().filter(|it| it.name == "peer_other_key");
        named.filter_map(|it| it.label("address").parse().ok()).collect()
    }

    /// Takes the moments at which other hosts were heard from the daemon: its file is up to a minute older.
    pub(super) fn bring_up_to_date(&self, known: &mut KnownHosts) {
        let Some(Ok(text)) = &self.metrics else { return };
        for it in samples(text).iter().filter(|it| it.name == "peer_last_heard_seconds") {
            let key = HostId::from_text(it.label("key"));
            // A C daemon has no key.
            let is_meant = |host: &&KnownHost| {
                Some(host.id) == key
                    || (key.is_none() && escaped(&host.to_string()).to_string() == it.label("host"))
            };
            let host = known.all().find(is_meant).cloned();
            let heard = Duration::try_from_secs_f64(it.value).map_or(0, |it| it.as_secs());
            if let Some(mut host) = host.filter(|it| it.last_heard < heard) {
                host.last_heard = heard;
                known.restore(host);
            }
        }
    }
}

/// Returns what the daemon has not taken up.
fn older(in_use: &ConfigurationInUse, config: &Config, file: &Path, source: &[u8]) -> Vec<Finding> {
    let name = shown(file);
    if fs::canonicalize(file).is_ok_and(|it| it != in_use.file) {
        let text = format!("the running fence_virtd (pid {}) has another configuration file", in_use.pid);
        let next = format!("check the one that it has: fence_virtd --check -f {}", shown(&in_use.file));
        return vec![Finding::warning(CHECK, name, text, next)];
    }
    let mut found = Vec::new();
    if ConfigHash::of(source) != in_use.hash {
        found.push(Finding::warning(
            CHECK,
            &name,
            format!("the running fence_virtd still uses the older {name}"),
            RELOAD_FILE,
        ));
    } else if in_use.waits_for_restart {
        let text = "the running fence_virtd does not use all of it: a reload leaves the backends, and most \
                    of the fence_virtd block, as they were at the start";
        found.push(Finding::warning(CHECK, &name, text, "systemctl restart fence_virtd"));
    }
    if let Some(command) = config.daemon.peer_down_command.as_ref()
        && in_use.down_command.as_ref() != Some(command)
    {
        let text = "the running fence_virtd does not use this peer_down_command: no silent host is proved \
                    down by it";
        let next =
            if in_use.hash == ConfigHash::of(source) { "systemctl restart fence_virtd" } else { RELOAD };
        found.push(Finding::warning(CHECK, shown(command), text, next));
    }
    for (path, key) in keys(config) {
        let Some((_, old)) = in_use.keys.iter().find(|(it, _)| *it == path) else { continue };
        // A file that can't be read now is a finding of its own.
        let Some(key) = key else { continue };
        if old.as_ref().is_some_and(|it| is_mark_of(it, &key)) {
            continue;
        }
        let text = match old {
            Some(old) => match shown_mark(old) {
                Some(old) => format!("the running fence_virtd still uses the older key (fingerprint {old})"),
                None => "the running fence_virtd still uses the older key".to_owned(),
            },
            None => {
                "the running fence_virtd runs without this key: the file could not be read then".to_owned()
            }
        };
        found.push(Finding::warning(CHECK, shown(&path), text, RELOAD));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use fence_wire::HostHello;

    use super::super::finding::FindingLevel;
    use super::*;

    /// A host whose daemon is this process.
    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let host = Self { dir: tempfile::tempdir().unwrap() };
            host.write("key", &"a".repeat(500));
            host.configure("");
            host
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }

        fn configure(&self, keys: &str) {
            let key = self.dir.path().join("key");
            let text = format!(
                "fence_virtd {{ listener = \"tcp\"; backend = \"libvirt\"; {keys} }} listeners {{ tcp {{ \
                 key_file = \"{}\"; }} }} backends {{ libvirt {{ }} }}",
                shown(&key)
            );
            self.write("conf", &text);
        }

        fn read(&self) -> (Config, Vec<u8>) {
            let source = fs::read(self.dir.path().join("conf")).unwrap();
            (fence_config::load(&source).config.unwrap(), source)
        }

        /// The daemon takes up the file as it is, with this command.
        fn load(&self, waits_for_restart: bool, command: Option<&str>) {
            let (mut config, source) = self.read();
            config.daemon.peer_down_command = command.map(Into::into);
            let (file, hash) = (self.dir.path().join("conf"), ConfigHash::of(&source));
            let in_use = ConfigurationInUse::of_this_process(&file, hash, &config, waits_for_restart);
            in_use.write(self.dir.path()).unwrap();
        }

        fn said(&self) -> String {
            let (config, source) = self.read();
            let running = RunningDaemon::look(&config, Some(self.dir.path()));
            let found = running.findings(&config, &self.dir.path().join("conf"), &source);
            assert!(found.iter().all(|it| it.result != FindingLevel::Failed), "{found:?}");
            found.iter().map(Finding::lines).collect()
        }
    }

    #[test]
    fn what_the_daemon_has_not_taken_up_is_named() {
        let host = Host::new();
        assert_eq!(host.said(), "", "no daemon runs");
        host.load(false, None);
        let ok = host.said();
        assert!(ok.starts_with("ok       daemon pid ") && ok.lines().count() == 1, "{ok}");
        // Another key, at the same place.
        host.write("key", &"b".repeat(500));
        let key = host.said();
        assert!(
            key.starts_with("warning  daemon ") && key.contains("still uses the older key (finger"),
            "{key}"
        );
        assert!(key.contains("-> systemctl reload fence_virtd") && !key.contains("ok "), "{key}");
        host.load(false, None);
        host.configure("peer_down_command = \"/bin/true\";");
        let command = host.said();
        assert!(command.contains("still uses the older /"), "{command}");
        assert!(command.contains("/bin/true: the running fence_virtd does not use"), "{command}");
        // The sandbox of the start may refuse it, whatever is reloaded.
        host.load(false, None);
        let refused = host.said();
        assert!(refused.contains("-> systemctl restart") && !refused.contains("older"), "{refused}");
        host.load(true, Some("/bin/true"));
        let restart = host.said();
        assert!(restart.contains("does not use all of it") && restart.lines().count() == 2, "{restart}");
        host.load(false, Some("/bin/true"));
        assert_eq!(host.said(), ok);
    }

    #[test]
    fn a_daemon_that_told_no_configuration_and_none_at_all_are_named() {
        use nix::fcntl::{Flock, FlockArg};
        let host = Host::new();
        assert_eq!(host.said(), "", "before the first start");
        host.write("lock", "");
        let file = fs::File::open(host.dir.path().join("lock")).unwrap();
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        let said = host.said();
        let pid = std::process::id();
        assert!(said.starts_with(&format!("warning  daemon pid {pid}: one runs; which")), "{said}");
        drop(held);
        let said = host.said();
        assert!(said.starts_with("warning  daemon: none runs with this state_dir"), "{said}");
        assert!(said.contains("systemctl start fence_virtd"), "{said}");
        let beside = RunningDaemon {
            in_use: None,
            directory: DirectoryUse::Ended,
            has_directory: None,
            other: Some(pid),
            metrics: None,
        };
        let said = beside.without_configuration(Path::new("/x")).unwrap().lines();
        assert!(said.contains(&format!("another fence_virtd does (pid {pid}), most probably a C")), "{said}");
        assert!(said.contains("end that daemon first"), "{said}");
        // The installed configuration, before the first start.
        let never = RunningDaemon {
            in_use: None,
            directory: DirectoryUse::Unused,
            has_directory: None,
            other: None,
            metrics: None,
        };
        let (config, source) = host.read();
        let found = never.findings(&config, Path::new(CONFIG_FILE), &source);
        assert!(found.len() == 1 && found[0].result == FindingLevel::Warning, "{found:?}");
    }

    #[test]
    fn the_daemon_knows_who_has_another_key() {
        let text = "fence_virtd_peer_other_key{address=\"10.0.0.2\"} 1\n".to_owned();
        let other = RunningDaemon {
            in_use: None,
            directory: DirectoryUse::Unknown,
            has_directory: None,
            other: None,
            metrics: Some(Ok(text)),
        };
        let other = other.other_keys();
        assert_eq!(other, [IpAddr::from([10, 0, 0, 2])].into());
    }

    #[test]
    fn the_daemon_knows_best_when_a_host_was_heard() {
        let mut known = KnownHosts::default();
        let hello = HostHello { public: [2; 32], port: 0, domains: 1, name: "h2".to_owned(), run: [0; 8] };
        known.heard(&hello, [10, 0, 0, 2].into(), 100);
        known.heard_legacy([10, 0, 0, 9].into(), 1, 100);
        let id = HostId::of(&[2; 32]);
        let text = format!(
            "fence_virtd_peer_last_heard_seconds{{host=\"h2 (10.0.0.2)\",key=\"{id}\",kind=\"ours\"}} 160\n\
             fence_virtd_peer_last_heard_seconds{{host=\"10.0.0.9\",key=\"\",kind=\"legacy\"}} 150\n"
        );
        let running = RunningDaemon {
            in_use: None,
            directory: DirectoryUse::Unknown,
            has_directory: None,
            other: None,
            metrics: Some(Ok(text)),
        };
        running.bring_up_to_date(&mut known);
        let heard: Vec<_> = known.all().map(|it| (it.name.as_str(), it.last_heard)).collect();
        assert!(heard.contains(&("h2", 160)) && heard.contains(&("10.0.0.9", 150)), "{heard:?}");
    }
}
