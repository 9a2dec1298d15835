// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of files: keys, the state directory, the audit file, the socket of the metrics. Runs in the process
//! of `--check`. Must never create or write a file.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use fence_cli::config_file;
use fence_cli::key_file::{self, KeyFileError, KeyRule, LoadedKey};
use fence_cli::shown;
use fence_config::{Config, Peers};
use fence_wire::HashType;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, faccessat, geteuid};

use super::finding::{Finding, USER};
use crate::listener::keys::{KeyNotice, ListenerKeys, have_keys, shown_group};
use crate::listener::rules::missing_proof;

/// Step after the disk of the audit file is well again.
const MENDS_ITSELF: &str = "the daemon opens the file by itself, at once after SIGHUP";

/// Checks every key file once, those of groups too, and reports keys that stand for more than one.
pub(super) fn keys(config: &Config) -> Vec<Finding> {
    let groups = config.groups.as_deref().unwrap_or_default();
    let rule = KeyRule::strict(config.daemon.strict_keys);
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut notices: Vec<String> = Vec::new();
    for listener in &config.listeners {
        let Some(own) = listener.keys() else { continue };
        let (files, named, hash, auth) = (&own.key_files, own.key_files_named, own.hash, own.auth);
        if let Some(text) = missing_proof(hash, auth) {
            let next = "remove the lines hash and auth from its block";
            found.push(Finding::warning("key", format!("listener {}", config.name_of(listener)), text, next));
        }
        let unproved = hash == HashType::None && auth == HashType::None;
        for file in files.iter().filter(|it| seen.insert((*it).clone())) {
            let loaded = key_file::load(file, rule);
            let spare = !named && have_keys(groups);
            found.push(match loaded {
                Err(KeyFileError::Missing { .. }) if unproved || spare => {
                    Finding::ok("key", shown(file), "does not exist and is not needed")
                }
                loaded => key(file, loaded, &format!("listener {}", config.name_of(listener))),
            });
        }
        if let Ok((_, odd)) = ListenerKeys::load(files, groups, rule, None) {
            // Those of the files are found with the files.
            let odd = odd.iter().filter(|it| !matches!(it, KeyNotice::Exposed(_)));
            notices.extend(odd.map(ToString::to_string));
        }
    }
    for (place, group) in groups.iter().enumerate() {
        let files = group.key_files.iter().filter(|it| seen.insert((*it).clone()));
        found.extend(files.map(|file| key(file, key_file::load(file, rule), &shown_group(place, group))));
    }
    found.extend(peer_key(config));
    notices.sort();
    notices.dedup();
    let next = "give each its own key; keys.md tells how keys are changed";
    found.extend(notices.into_iter().map(|it| Finding::warning("key", "", it, next)));
    found
}

/// Checks the key of the messages between hosts; two findings if guests have it too.
fn peer_key(config: &Config) -> Vec<Finding> {
    let Some(file) = config.daemon.peer_key_file.as_deref().filter(|_| config.daemon.peers != Peers::Nobody)
    else {
        return Vec::new();
    };
    const OWNER: &str = "messages between hosts (peer_key_file)";
    let rule = KeyRule::strict(config.daemon.strict_keys);
    let loaded = key_file::load(file, rule);
    let tag = loaded.as_ref().ok().map(|it| it.key.tag());
    let guests = config.listeners.iter().filter_map(|it| it.keys()).flat_map(|it| &it.key_files);
    let guests = guests.chain(config.groups.iter().flatten().flat_map(|it| &it.key_files));
    let is_same = |it: &&PathBuf| key_file::load(it, rule).ok().map(|it| it.key.tag()) == tag;
    let shared = guests.into_iter().find(|it| tag.is_some() && is_same(it));
    let shared = shared.map(|it| {
        let text = format!("the same key as {}, which guests have: a guest can play a host", shown(it));
        let next = "make another, for hosts alone: several-hosts.md, \"A peer key is for hosts only\"";
        Finding::warning("key", format!("peer_key_file {}", shown(file)), text, next)
    });
    [key(file, loaded, OWNER)].into_iter().chain(shared).collect()
}

/// Checks whether packets are remembered across restarts.
pub(super) fn state(directory: Option<&Path>) -> Finding {
    const CHECK: &str = "state_dir";
    let Some(directory) = directory else {
        let text = "accepted packets are remembered in memory alone: a recorded one may be played again \
                    after a restart";
        return Finding::warning(CHECK, "", text, "remove state_dir = \"none\" from the fence_virtd block");
    };
    let next =
        "make it writable for the daemon's user, or name another with state_dir in the fence_virtd block";
    match fs::metadata(directory) {
        Ok(it) if !it.is_dir() => Finding::warning(CHECK, shown(directory), "is no directory", next),
        Ok(it) if it.mode() & 0o022 != 0 => {
            let next = format!("chmod go-w {}", shown(directory));
            Finding::warning(
                CHECK,
                shown(directory),
                "others than its owner can write it: it is not used",
                next,
            )
        }
        Ok(_) => wrong_state_disk(directory).map_or_else(
            || match may_write(directory) {
                true => Finding::ok(CHECK, shown(directory), "writable"),
                false => Finding::warning(CHECK, shown(directory), "not writable for this user", next),
            },
            |(text, next)| Finding::failed(CHECK, shown(directory), text, next),
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let above = directory.ancestors().skip(1).find(|it| it.is_dir());
            if let Some((text, next)) = above.and_then(wrong_state_disk) {
                Finding::failed(CHECK, shown(directory), text, next)
            } else if above.is_some_and(may_write) {
                Finding::ok(CHECK, shown(directory), "is made when the daemon starts")
            } else {
                Finding::warning(CHECK, shown(directory), "does not exist, and this user can't make it", next)
            }
        }
        Err(error) => Finding::warning(CHECK, shown(directory), format!("can't be looked at: {error}"), next),
    }
}

/// Returns why nobody at all can write to the state directory, or to the one in which it would be made.
fn wrong_state_disk(directory: &Path) -> Option<(String, String)> {
    let lost = "moves, other hosts and orders under way are not remembered over a restart";
    wrong_disk(writing(directory), is_full(directory), lost, "restart fence_virtd")
}

/// Returns why nobody at all can write to a directory or file, with what is lost by that, and the next step.
/// `after` is the step after the disk is well again.
fn wrong_disk(
    writing: Result<(), Errno>,
    is_full: bool,
    lost: &str,
    after: &str,
) -> Option<(String, String)> {
    match writing {
        Err(Errno::EROFS) => Some((
            format!("is on a read-only file system: {lost}"),
            format!("look for an error of the disk (dmesg), and make it writable again; then {after}"),
        )),
        _ if is_full => Some((
            format!("is on a full disk: {lost}"),
            format!("make room there (df -h, df -i); then {after}"),
        )),
        _ => None,
    }
}

/// Returns true if a disk has no room for a file of an ordinary user.
fn is_full(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|it| {
        (it.blocks() > 0 && it.blocks_available() == 0) || (it.files() > 0 && it.files_available() == 0)
    })
}

/// Checks whether the daemon can write its audit file. Without it the records are in the log alone.
pub(super) fn audit_log(file: &Path) -> Finding {
    const CHECK: &str = "audit_log";
    const LOST: &str = "records are in the daemon's log alone";
    let failed = |text: String| {
        let next = "make its directory, writable for the daemon's user, or name another file in the \
                    fence_virtd block";
        Finding::failed(CHECK, shown(file), text, next)
    };
    match fs::metadata(file) {
        Ok(it) if it.is_dir() => failed("is a directory".to_owned()),
        Ok(it) if it.file_type().is_socket() => failed("is a socket".to_owned()),
        Ok(it) if let Some(kind) = config_file::kind_of(it.file_type()) => {
            let text = format!("is {kind}: it keeps no record, and what nobody reads from it is lost");
            Finding::warning(CHECK, shown(file), text, "name a regular file in the fence_virtd block")
        }
        Ok(it)
            if it.is_file()
                && let Some((text, next)) = wrong_disk(writing(file), is_full(file), LOST, MENDS_ITSELF) =>
        {
            Finding::failed(CHECK, shown(file), text, next)
        }
        Ok(_) if may_write(file) => Finding::ok(CHECK, shown(file), "writable"),
        Ok(_) => failed("not writable for this user".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match file.parent() {
            Some(it)
                if it.is_dir()
                    && let Some((text, next)) = wrong_disk(writing(it), is_full(it), LOST, MENDS_ITSELF) =>
            {
                Finding::failed(CHECK, shown(file), text, next)
            }
            Some(it) if it.is_dir() && may_write(it) => {
                Finding::ok(CHECK, shown(file), "is made when the daemon starts")
            }
            Some(it) if it.is_dir() => failed("does not exist, and this user can't make it".to_owned()),
            _ => failed("its directory does not exist".to_owned()),
        },
        Err(error) => failed(format!("can't be looked at: {error}")),
    }
}

/// Checks whether the daemon can make the socket of its metrics. The daemon goes on without it.
pub(super) fn metrics(socket: &Path) -> Finding {
    const CHECK: &str = "metrics";
    let warning = |text: &str| {
        let next =
            "name a path in a directory that the daemon's user may write; metrics.md names one for systemd";
        Finding::warning(CHECK, shown(socket), text, next)
    };
    match fs::symlink_metadata(socket) {
        Ok(it) if it.file_type().is_socket() => Finding::ok(CHECK, shown(socket), "is there"),
        Ok(_) => warning("something that is no socket is there: no metrics"),
        Err(_) if socket.parent().is_some_and(|it| it.is_dir() && may_write(it)) => {
            Finding::ok(CHECK, shown(socket), "is made when the daemon starts")
        }
        Err(_) => warning("this user can't make it: no metrics"),
    }
}

/// Returns the finding about a key file. The daemon may use a key that every user can read; the administrator
/// must not.
fn key(file: &Path, loaded: Result<LoadedKey, KeyFileError>, owner_of_key: &str) -> Finding {
    let failed = |text: &str| {
        // What is wrong; and then, behind the first semicolon, what to do.
        let (text, next) = text.split_once("; ").unwrap_or((text, "see keys.md"));
        Finding::failed("key", shown(file), format!("{owner_of_key}: {text}"), next)
    };
    match loaded {
        Ok(LoadedKey { exposed: Some(exposed), .. }) => failed(&exposed.to_string()),
        Ok(LoadedKey { key, exposed: None }) => {
            let (mode, owner) = fs::metadata(file).map_or((0, 0), |it| (it.mode() & 0o7777, it.uid()));
            // The daemon's own user may have it too.
            if let Some(user) = config_file::stranger(owner, geteuid()).filter(|it| it != USER) {
                let text = format!(
                    "{owner_of_key}: the file belongs to the user {user}, who can read and change it"
                );
                return Finding::warning("key", shown(file), text, format!("chown root {}", shown(file)));
            }
            let text = format!(
                "{owner_of_key}, {} bytes, mode {mode:04o}, fingerprint {}",
                key.length(),
                key.fingerprint()
            );
            Finding::ok("key", shown(file), text)
        }
        Err(error) => failed(&error.to_string()),
    }
}

fn may_write(path: &Path) -> bool {
    writing(path).is_ok()
}

fn writing(path: &Path) -> Result<(), Errno> {
    faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::finding::FindingLevel;
    use super::*;

    #[test]
    fn a_state_directory_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(state(Some(&dir.path().join("a/b"))).result, FindingLevel::Ok);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(state(Some(&file)).result, FindingLevel::Warning);
        assert_eq!(state(Some(&file.join("x"))).result, FindingLevel::Warning);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let found = state(Some(dir.path()));
        assert!(found.next.unwrap().starts_with("chmod go-w"), "{}", found.text);
        assert_eq!(state(None).result, FindingLevel::Warning);
    }

    #[test]
    fn a_disk_that_nobody_can_write_is_a_fault() {
        let told = |writing, is_full| wrong_disk(writing, is_full, "lost", "rest").map(|it| it.0);
        assert!(told(Err(Errno::EROFS), true).is_some_and(|it| it.contains("read-only")));
        assert!(told(Ok(()), true).is_some_and(|it| it.contains("full disk")));
        assert_eq!([Ok(()), Err(Errno::EACCES)].map(|it| told(it, false)), [None, None]);
        // A file system without room at all.
        assert!(!is_full(Path::new("/proc")) && !is_full(Path::new("/")));
    }

    #[test]
    fn the_key_of_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("guests", &"guests".repeat(100), 0o600);
        let look = |peers: &str| {
            let text = format!(
                "fence_virtd {{ peers = \"{peers}\"; peer_key_file = \"{0}/hosts\"; }} \
                 listeners {{ multicast {{ key_file = \"{0}/guests\"; }} }}",
                dir.path().display()
            );
            let found = peer_key(&fence_config::load(text.as_bytes()).config.unwrap());
            found.into_iter().map(|it| (it.result, it.text)).collect::<Vec<_>>()
        };
        assert!(look("none").is_empty());
        let told = |wanted: FindingLevel, has: &str| {
            let found = look("10.0.0.2");
            assert!(found[0].0 == wanted && found[0].1.contains(has), "{found:?}");
            found
        };
        told(FindingLevel::Failed, "messages between hosts (peer_key_file)");
        write("hosts", "", 0o600);
        told(FindingLevel::Failed, "peer_key_file");
        write("hosts", &"hosts".repeat(100), 0o644);
        told(FindingLevel::Failed, "peer_key_file");
        write("hosts", &"hosts".repeat(100), 0o600);
        assert_eq!(told(FindingLevel::Ok, "500 bytes, mode 0600, fingerprint").len(), 1);
        write("hosts", &"guests".repeat(100), 0o600);
        let found = told(FindingLevel::Ok, "peer_key_file");
        assert!(found[1].0 == FindingLevel::Warning && found[1].1.contains("which guests have"), "{found:?}");
    }

    #[test]
    fn an_audit_file_needs_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = audit_log(&fifo);
        assert_eq!(found.result, FindingLevel::Warning);
        assert!(found.text.contains("is a named pipe (FIFO)"), "{}", found.text);
        assert_eq!(audit_log(&dir.path().join("audit")).result, FindingLevel::Ok);
        assert_eq!(audit_log(&dir.path().join("none/audit")).result, FindingLevel::Failed);
        assert_eq!(audit_log(dir.path()).result, FindingLevel::Failed);
    }
}
