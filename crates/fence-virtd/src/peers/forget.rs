// SPDX-License-Identifier: GPL-2.0-or-later
//! `fence_virtd --forget HOST`: an administrator says that a host, or a node of a cluster, is gone for good.
//!
//! Runs in a process of its own, beside a running daemon or not, and leaves the word for the daemon in the
//! state directory. Must never write the daemon's own file.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use fence_cli::{config_file, shown};
use fence_config::{Config, MAX_FILE_SIZE, Peers};
use fence_core::hosts::{KnownHost, KnownHosts};
use fence_wire::escaped;

use super::state::shown_with_key;
use super::store::HostStore;
use crate::cli::options::CONFIG_FILE;
use crate::nodes::{self, KnownNode, NodeState, NodeStore};
use crate::replay;
use crate::util::heard::heard_ago;

/// Reason why no host is forgotten. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForgetError {
    #[error("can't read {path}: {source}; -f names another file")]
    Config { path: String, source: io::Error },
    #[error("{0} has errors: fence_virtd --check shows them")]
    BadConfig(String),
    #[error("state_dir = \"none\" in {0}: the daemon remembers other hosts until it ends; restart it")]
    NoState(String),
    #[error("no other host is known in {directory}; nothing is to be forgotten")]
    NobodyKnown { directory: String },
    #[error("no host \"{host}\" is known in {directory}; there are: {known}")]
    UnknownHost { host: String, directory: String, known: String },
    #[error(
        "several hosts are named \"{host}\", and nothing is forgotten. Choose one by its key:\n{commands}If \
         that host was installed anew, its old key is the one that was heard longer ago: forget that one"
    )]
    Namesakes { host: String, commands: String },
    #[error(
        "{0} is in corosync's list of nodes, so nothing is forgotten. If that node is gone for good: power \
         that node off, take its entry out of corosync.conf on each other node, run corosync-cfgtool -R, and \
         then this again"
    )]
    ListedNode(String),
    #[error("no host or node \"{host}\" is known in {directory}; nodes of the cluster: {known}")]
    UnknownNode { host: String, directory: String, known: String },
    #[error(
        "{0} is still heard, so nothing is forgotten. If that node is gone for good: power that node off, \
         and run this again"
    )]
    HeardNode(String),
    #[error("can't write to {directory}: {source}; {}", remedy(.source))]
    State { directory: String, source: io::Error },
}

/// Returns the next step after an error of the state directory.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there, and run this again",
        io::ErrorKind::ReadOnlyFilesystem => "make it writable, and run this again",
        _ => "run this as root",
    }
}

/// Asks the daemon of this configuration file to forget a host, by name, address or id. Returns what to tell
/// the administrator.
///
/// # Errors
/// No such host is known, or the daemon can't be told.
pub(crate) fn run(file: &Path, host: &str) -> Result<String, ForgetError> {
    let path = shown(file);
    let read = config_file::read(file, MAX_FILE_SIZE);
    let read = read.map_err(|source| ForgetError::Config { path: path.clone(), source })?;
    let config =
        fence_config::load(&read.source).config.ok_or_else(|| ForgetError::BadConfig(path.clone()))?;
    let from_systemd = std::env::var_os("STATE_DIRECTORY");
    let state = replay::directory(&config.daemon.state_dir, from_systemd.as_deref());
    let state = state.ok_or(ForgetError::NoState(path.clone()))?;
    let node = gone_node(&state, host, &config)?;
    let told = match (forget(&state, host, &config, &path), &node) {
        (Err(ForgetError::NobodyKnown { .. } | ForgetError::UnknownHost { .. }), Some(_)) => String::new(),
        (Err(ForgetError::NobodyKnown { directory }), None) if config.cpg().is_some() => {
            let known: Vec<_> = NodeStore::at(&state).read().iter().map(ToString::to_string).collect();
            let known = if known.is_empty() {
                "none, since fence_virtd is not in the group of the cluster here (fence_virtd --check)".into()
            } else {
                known.join(", ")
            };
            return Err(ForgetError::UnknownNode { host: escaped(host).to_string(), directory, known });
        }
        (told, _) => told?,
    };
    match node {
        Some(node) => Ok(format!("{told}{}", node.forget(&state)?)),
        None => Ok(told),
    }
}

/// Returns the node of the cluster that is meant, if it was taken out of the cluster.
///
/// # Errors
/// It is still there, and no other host is meant.
fn gone_node(directory: &Path, host: &str, config: &Config) -> Result<Option<GoneNode>, ForgetError> {
    let known = config.cpg().map(|_| NodeStore::at(directory).read()).unwrap_or_default();
    let Some(node) = nodes::find(&known, host) else { return Ok(None) };
    let name = node.to_string();
    let is_host = || !HostStore::at(directory).read_with_announced().forget(host).is_empty();
    let (node, state) = (node.clone(), node.state);
    match state {
        NodeState::Gone => {
            let is_heir = |it: &&KnownNode| it.id != node.id && node.name.is_some() && it.name == node.name;
            let heir = known.iter().find(is_heir).map(ToString::to_string);
            Ok(Some(GoneNode { node, heir }))
        }
        // Hosts that became nodes are to be forgotten as hosts.
        _ if is_host() => Ok(None),
        NodeState::Listed => Err(ForgetError::ListedNode(name)),
        NodeState::Heard => Err(ForgetError::HeardNode(name)),
    }
}

/// Node that was taken out of the cluster.
struct GoneNode {
    node: KnownNode,
    /// Another node with its name.
    heir: Option<String>,
}

impl GoneNode {
    /// Asks the daemon to tell all nodes. Returns what to tell the administrator.
    fn forget(&self, directory: &Path) -> Result<String, ForgetError> {
        let Self { node, heir } = self;
        let state = |source| ForgetError::State { directory: shown(directory), source };
        NodeStore::at(directory).request_forget(node.id).map_err(state)?;
        let domains = match node.domains {
            1 => "1 domain was".to_owned(),
            count => format!("{count} domains were"),
        };
        let nothing = match heir {
            Some(heir) => format!(
                "If {heir} is the same machine, power nothing off. If not, make sure that nothing runs at \
                 the forgotten one: power it off"
            ),
            None => "So make sure that nothing runs there: power that node off".to_owned(),
        };
        Ok(format!(
            "forgotten: {node}, which was taken out of corosync's list of nodes; {domains} last seen there.\n\
             fence_virtd tells all nodes that corosync hears, within two seconds, or when it starts. From \
             then on domains are called off without asking that node. {nothing}.\nA domain that had moved \
             there from another node may still fail (\"moved away\"): fence_virtd --check on the node that \
             the domain left names it then. If the domain is off everywhere: start the domain with virsh at \
             a node, then fence the domain.\nA domain that is defined at no other node is known nowhere from \
             now on, and its requests fail (\"no such domain\"): virsh define the domain at a node that is \
             left.\nA node that is not heard now is not told: if --check warns \
             there later, run this there too.\n"
        ))
    }
}

fn forget(directory: &Path, host: &str, config: &Config, file: &str) -> Result<String, ForgetError> {
    let store = HostStore::at(directory);
    let mut table = store.read_with_announced();
    let before = table.clone();
    let namesakes = before.namesakes(host);
    if !namesakes.is_empty() {
        let commands = commands(namesakes, file);
        return Err(ForgetError::Namesakes { host: escaped(host).to_string(), commands });
    }
    let gone = table.forget(host);
    let directory = shown(directory);
    // `all` also clears the note that a host may be missing, and an address its pin.
    if gone.is_empty() && table == before {
        let known = names(&before);
        return Err(if known.is_empty() {
            ForgetError::NobodyKnown { directory }
        } else {
            ForgetError::UnknownHost { host: escaped(host).to_string(), directory, known }
        });
    }
    store
        .request_forget(host)
        .map_err(|source| ForgetError::State { directory: directory.clone(), source })?;
    let lines: String = gone.iter().map(|it| format!("forgotten: {}\n", shown_with_key(it))).collect();
    let taken_up = "The daemon takes this up within a second, or when it starts. A host that is still there \
                    is found again.";
    Ok(format!("{lines}{taken_up}{}\n", consequence(config, host, &gone, (&before, &table))))
}

/// Returns what follows from forgetting, and what to do. `tables`: the hosts before it, and those after it.
fn consequence(
    config: &Config,
    host: &str,
    gone: &[KnownHost],
    tables: (&KnownHosts, &KnownHosts),
) -> String {
    let (before, after) = tables;
    if is_named(&config.daemon.peers, host, gone, before) {
        return "\nThat host is still in `peers`, so it must still answer; if the host is gone for good take \
                it out there and reload (systemctl reload fence_virtd)."
            .to_owned();
    }
    if let Some(heir) = heir(gone, after) {
        return format!(
            "\n{} is known too, and must still answer. If that is the same machine, installed anew, power \
             nothing off. If not: make sure that nothing runs at the forgotten one, since domains are called \
             off without asking it.",
            shown_with_key(heir)
        );
    }
    if config.cpg().is_some() {
        return "\nIf that host is a node of this corosync cluster, corosync asks that host all the same: \
                power nothing off. If not, domains are called off without asking that host from now on: \
                make sure that nothing runs there."
            .to_owned();
    }
    " Until then this daemon calls domains off without asking that host. So make sure that nothing runs \
     there if this daemon can't hear that host: power that host off. A domain that had moved there from \
     another host may still fail (\"moved away\"): fence_virtd --check names it then, with the step."
        .to_owned()
}

/// Returns the host that stays with the address and name of a forgotten one.
fn heir<'t>(gone: &[KnownHost], after: &'t KnownHosts) -> Option<&'t KnownHost> {
    let is_heir = |it: &&KnownHost| {
        gone.iter().any(|old| old.name == it.name && old.addresses.iter().any(|at| it.addresses.contains(at)))
    };
    after.all().find(is_heir)
}

/// Returns a command for each host, those that were heard longest ago first.
fn commands(mut hosts: Vec<&KnownHost>, file: &str) -> String {
    hosts.sort_by_key(|it| (it.last_heard, it.id));
    let option = if file == CONFIG_FILE { String::new() } else { format!(" -f {file}") };
    let command = |it: &KnownHost| {
        let (shown, heard, first) = (escaped(&it.to_string()).to_string(), it.last_heard, it.first_heard);
        let (heard, first) = (heard_ago(heard), heard_ago(first));
        format!("  fence_virtd --forget {}{option}    # {shown}: last heard {heard}, first {first}\n", it.id)
    };
    hosts.into_iter().map(command).collect()
}

/// Returns true if `peers` names what was forgotten: a host, its address, or an address that was bound to it.
fn is_named(peers: &Peers, text: &str, gone: &[KnownHost], before: &KnownHosts) -> bool {
    let Peers::Listed(peers) = peers else { return false };
    peers.iter().any(|peer| {
        let ip = peer.ip().to_canonical();
        text.parse().is_ok_and(|it: IpAddr| it.to_canonical() == ip)
            || text == peer.to_string()
            || text.eq_ignore_ascii_case("all")
            || gone.iter().any(|it| it.addresses.contains(&ip) || before.pinned(peer) == Some(it.id))
    })
}

fn names(table: &KnownHosts) -> String {
    let mut names: Vec<_> = table.all().map(|it| escaped(&it.to_string()).to_string()).collect();
    names.sort();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn known() -> (tempfile::TempDir, HostStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = HostStore::at(dir.path());
        let mut table = KnownHosts::default();
        table.heard_legacy("10.0.0.9".parse().unwrap(), 4, 7);
        table.heard_legacy("10.0.0.8".parse().unwrap(), 4, 7);
        store.write(&table).unwrap();
        (dir, store)
    }

    fn config(keys: &str) -> Config {
        let text = format!(
            "fence_virtd {{ listener = \"multicast\"; backend = \"libvirt\"; {keys} }} listeners {{ \
             multicast {{ }} }} backends {{ libvirt {{ }} }}"
        );
        fence_config::load(text.as_bytes()).config.unwrap()
    }

    #[test]
    fn a_full_disk_is_no_matter_of_rights() {
        let said = |kind: io::ErrorKind| {
            ForgetError::State { directory: "/s".to_owned(), source: kind.into() }.to_string()
        };
        assert!(said(io::ErrorKind::PermissionDenied).ends_with("; run this as root"));
        assert!(said(io::ErrorKind::StorageFull).ends_with("; make room there, and run this again"));
    }

    #[test]
    fn the_word_is_left_for_the_daemon() {
        let (dir, store) = known();
        let told = forget(dir.path(), "10.0.0.9", &config(""), CONFIG_FILE).unwrap();
        assert!(told.starts_with("forgotten: 10.0.0.9\n"), "{told}");
        assert!(told.contains("calls domains off without asking that host"), "{told}");
        // The daemon alone writes its file.
        assert_eq!(store.read().all().count(), 2);
        assert_eq!(store.take_forgotten().unwrap(), ["10.0.0.9"]);
    }

    /// The daemon waits for it as for any other.
    #[test]
    fn a_host_that_only_said_hello_is_forgotten() {
        let (dir, store) = known();
        let mut table = store.read();
        let hello = fence_wire::HostHello {
            public: [2; 32],
            port: 0,
            domains: 1,
            name: "h2".to_owned(),
            run: [0; 8],
        };
        table.announced(&hello, [10, 0, 0, 2].into(), 7, std::time::Instant::now());
        store.write_announced(&table).unwrap();
        let told = forget(dir.path(), "h2", &config(""), CONFIG_FILE).unwrap();
        assert!(told.starts_with("forgotten: h2 (10.0.0.2) key "), "{told}");
        assert_eq!(store.take_forgotten().unwrap(), ["h2"]);
    }

    #[test]
    fn a_name_of_two_hosts_is_refused_with_the_commands() {
        let (dir, store) = known();
        let mut table = store.read();
        // Installed anew: the same name and address, and another key.
        for (host, at) in [(1, 500), (2, 7)] {
            let (public, name) = ([host; 32], "h2".to_owned());
            let hello = fence_wire::HostHello { public, port: 0, domains: 1, name, run: [0; 8] };
            table.heard_proved(&hello, [10, 0, 0, 1].into(), at, true);
        }
        store.write(&table).unwrap();
        let why = forget(dir.path(), "h2", &config(""), "/tmp/f").unwrap_err().to_string();
        let ids = [2, 1].map(|host: u8| fence_wire::HostId::of(&[host; 32]));
        let commands: Vec<_> = why.lines().skip(1).take(2).collect();
        for (command, id) in commands.iter().zip(ids) {
            let wanted = format!("  fence_virtd --forget {id} -f /tmp/f    # h2 (10.0.0.1): last heard ");
            assert!(command.starts_with(&wanted) && command.ends_with(" h ago"), "{why}");
        }
        assert!(store.take_forgotten().unwrap().is_empty());
        let told = forget(dir.path(), &ids[0].to_string(), &config(""), CONFIG_FILE).unwrap();
        assert!(told.starts_with(&format!("forgotten: h2 (10.0.0.1) key {}\n", ids[0])), "{told}");
        assert!(told.contains(&format!("key {} is known too", ids[1])), "{told}");
        assert!(told.contains("power nothing off"), "{told}");
    }

    /// Hosts that became nodes are to be forgotten, and they live.
    #[test]
    fn a_node_of_the_cluster_is_not_to_be_powered_off() {
        let (dir, _) = known();
        let cpg = "fence_virtd { listener = \"tcp\"; backend = \"cpg\"; } listeners { tcp { } } backends { \
                   cpg { } }";
        let told = |config: &Config| forget(dir.path(), "10.0.0.9", config, CONFIG_FILE).unwrap();
        let cpg = told(&fence_config::load(cpg.as_bytes()).config.unwrap());
        assert!(cpg.contains("power nothing off") && !cpg.contains("power that host off"), "{cpg}");
    }

    #[test]
    fn only_a_node_that_was_taken_out_is_forgotten() {
        let (dir, _) = known();
        let nodes = [(1, NodeState::Listed, "h1"), (2, NodeState::Heard, "h2"), (3, NodeState::Gone, "h3")];
        let nodes =
            nodes.map(|(id, state, name)| KnownNode { id, state, domains: 1, name: Some(name.into()) });
        let store = NodeStore::at(dir.path());
        store.write(&nodes).unwrap();
        let state = dir.path().display();
        let file = dir.path().join("conf");
        let run = |backend: &str, host: &str| {
            let text = format!(
                "fence_virtd {{ listener = \"tcp\"; backend = \"{backend}\"; state_dir = \"{state}\"; }} \
                 listeners {{ tcp {{ }} }} backends {{ {backend} {{ }} }}"
            );
            fs::write(&file, text).unwrap();
            run(&file, host).map_err(|it| it.to_string())
        };
        assert!(run("cpg", "h1").unwrap_err().starts_with("node 1 (h1) is in corosync's list of nodes"));
        assert!(run("cpg", "2").unwrap_err().starts_with("node 2 (h2) is still heard"));
        assert!(run("cpg", "h4").is_err() && run("libvirt", "h3").is_err());
        assert!(store.take_forgotten().unwrap().is_empty());
        let told = run("cpg", "h3").unwrap();
        assert!(told.starts_with("forgotten: node 3 (h3), "), "{told}");
        assert!(told.contains("power that node off"), "{told}");
        assert!(told.contains("may still fail (\"moved away\")") && told.contains("with virsh"), "{told}");
        assert_eq!(store.take_forgotten().unwrap(), [3]);
        // It is back under another id.
        store
            .write(&[KnownNode { name: Some("h3".to_owned()), ..nodes[0].clone() }, nodes[2].clone()])
            .unwrap();
        let told = run("cpg", "h3").unwrap();
        assert!(told.contains("If node 1 (h3) is the same machine, power nothing off"), "{told}");
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are_known() {
        let (dir, store) = known();
        let why = forget(dir.path(), "h7\n", &config(""), CONFIG_FILE).unwrap_err().to_string();
        assert!(why.contains("\"h7\\x0a\"") && why.ends_with("there are: 10.0.0.8, 10.0.0.9"), "{why}");
        assert!(store.take_forgotten().unwrap().is_empty());
        let nobody = tempfile::tempdir().unwrap();
        let why = forget(nobody.path(), "h7", &config(""), CONFIG_FILE).unwrap_err().to_string();
        assert!(why.starts_with("no other host is known"), "{why}");
    }

    #[test]
    fn a_host_that_peers_names_is_still_asked() {
        for (host, is_asked) in [("10.0.0.9", true), ("all", true), ("10.0.0.8", false)] {
            let (dir, _) = known();
            let told = forget(dir.path(), host, &config("peers = \"10.0.0.9\";"), CONFIG_FILE).unwrap();
            assert_eq!(told.contains("still in `peers`, so it must still answer"), is_asked, "{told}");
            assert_eq!(told.contains("without asking that host"), !is_asked, "{told}");
        }
    }
}
