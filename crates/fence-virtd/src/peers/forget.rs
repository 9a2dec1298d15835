// SPDX-License-Identifier: GPL-2.0-or-later
//! `fence_virtd --forget HOST`: an administrator says that a host is gone for good.
//!
//! Runs in a process of its own, beside a running daemon or not, and leaves the word for the daemon in the
//! state directory. Must never write the daemon's own file.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use fence_cli::shown;
use fence_config::Peers;
use fence_core::hosts::{KnownHost, KnownHosts};
use fence_wire::escaped;

use super::state::shown_with_key;
use super::store::HostStore;
use crate::replay;

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
    #[error("several hosts are named \"{host}\": {known}. Name one by key or address; nothing is forgotten")]
    Namesakes { host: String, known: String },
    #[error("can't write to {directory}: {source}; run this as root")]
    State { directory: String, source: io::Error },
}

/// Asks the daemon of this configuration file to forget a host, by name, address or id. Returns what to tell
/// the administrator.
///
/// # Errors
/// No such host is known, or the daemon can't be told.
pub(crate) fn run(file: &Path, host: &str) -> Result<String, ForgetError> {
    let path = shown(file);
    let source = fs::read(file).map_err(|source| ForgetError::Config { path: path.clone(), source })?;
    let config = fence_config::load(&source).config.ok_or_else(|| ForgetError::BadConfig(path.clone()))?;
    let from_systemd = std::env::var_os("STATE_DIRECTORY");
    let state = replay::directory(&config.daemon.state_dir, from_systemd.as_deref());
    forget(&state.ok_or(ForgetError::NoState(path))?, host, &config.daemon.peers)
}

fn forget(directory: &Path, host: &str, peers: &Peers) -> Result<String, ForgetError> {
    let store = HostStore::at(directory);
    let mut table = store.read_with_announced();
    let before = table.clone();
    let namesakes: Vec<_> = before.namesakes(host).into_iter().map(shown_with_key).collect();
    if !namesakes.is_empty() {
        return Err(ForgetError::Namesakes { host: escaped(host).to_string(), known: namesakes.join(", ") });
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
    let lines: String = gone.iter().map(|it| format!("forgotten: {}\n", escaped(&it.to_string()))).collect();
    let taken_up = "The daemon takes this up within a second, or when it starts. A host that is still there \
                    is found again.";
    Ok(if is_named(peers, host, &gone, &before) {
        format!(
            "{lines}{taken_up}\nThat host is still in `peers`, so it must still answer; if the host is gone \
             for good take it out there and reload (systemctl reload fence_virtd).\n"
        )
    } else {
        format!(
            "{lines}{taken_up} Until then this daemon calls domains off without asking that host. So make \
             sure that nothing runs there if this daemon can't hear that host: power that host off.\n"
        )
    })
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

    #[test]
    fn the_word_is_left_for_the_daemon() {
        let (dir, store) = known();
        let told = forget(dir.path(), "10.0.0.9", &Peers::Discovered).unwrap();
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
        let told = forget(dir.path(), "h2", &Peers::Discovered).unwrap();
        assert!(told.starts_with("forgotten: h2 (10.0.0.2)\n"), "{told}");
        assert_eq!(store.take_forgotten().unwrap(), ["h2"]);
    }

    #[test]
    fn a_name_of_two_hosts_is_refused_with_both() {
        let (dir, store) = known();
        let mut table = store.read();
        for host in [1, 2] {
            let hello = fence_wire::HostHello {
                public: [host; 32],
                port: 0,
                domains: 1,
                name: "h2".to_owned(),
                run: [0; 8],
            };
            table.heard(&hello, [10, 0, 0, host].into(), 7);
        }
        store.write(&table).unwrap();
        let why = forget(dir.path(), "h2", &Peers::Discovered).unwrap_err().to_string();
        for host in [1_u8, 2] {
            let id = fence_wire::HostId::of(&[host; 32]);
            assert!(why.contains(&format!("h2 (10.0.0.{host}) key {id}")), "{why}");
        }
        assert!(store.take_forgotten().unwrap().is_empty());
        assert!(
            forget(dir.path(), "10.0.0.2", &Peers::Discovered)
                .unwrap()
                .starts_with("forgotten: h2 (10.0.0.2)\n")
        );
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are_known() {
        let (dir, store) = known();
        let why = forget(dir.path(), "h7\n", &Peers::Discovered).unwrap_err().to_string();
        assert!(why.contains("\"h7\\x0a\"") && why.ends_with("there are: 10.0.0.8, 10.0.0.9"), "{why}");
        assert!(store.take_forgotten().unwrap().is_empty());
        let nobody = tempfile::tempdir().unwrap();
        let why = forget(nobody.path(), "h7", &Peers::Discovered).unwrap_err().to_string();
        assert!(why.starts_with("no other host is known"), "{why}");
    }

    #[test]
    fn a_host_that_peers_names_is_still_asked() {
        for (host, is_asked) in [("10.0.0.9", true), ("all", true), ("10.0.0.8", false)] {
            let (dir, _) = known();
            let told =
                forget(dir.path(), host, &Peers::Listed(vec!["10.0.0.9:1229".parse().unwrap()])).unwrap();
            assert_eq!(told.contains("still in `peers`, so it must still answer"), is_asked, "{told}");
            assert_eq!(told.contains("without asking that host"), !is_asked, "{told}");
        }
    }
}
