// SPDX-License-Identifier: GPL-2.0-or-later
//! The file `in-use` of the state directory: which configuration and keys the daemon that runs has taken up.
//!
//! ```text
//! fence_virt in-use 1
//! process PID START-TIME
//! configuration HASH FILE
//! waits-for-restart
//! down-command FILE
//! key MARK FILE
//! end
//! ```
//!
//! MARK is the fingerprint of the key. A fingerprint is slow to make: a daemon with many key files writes
//! `tag-` and the beginning of the key's tag instead.
//!
//! Written at the start and at each reload that is accepted, on a thread that nobody waits for, and read by
//! `--check`. No decision of the daemon depends on it. Must never hold a key: fingerprints and a hash alone.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fence_cli::key_file::{self, KeyRule};
use fence_config::Config;
use fence_wire::Key;
use sha2::{Digest, Sha256};
use tracing::info;

use crate::intent::DISK_LIMIT;
use crate::listener::keys::MANY_KEYS;

const FILE: &str = "in-use";
const NEW: &str = "in-use.new";
const HEADER: &[u8] = b"fence_virt in-use 1";
/// Bytes of the file at most: a line for each key file.
const MAX_FILE: u64 = 1024 * 1024;
/// Beginning of a mark that is no fingerprint.
const TAG: &str = "tag-";
/// Bytes of a tag that are written: enough to see that a key is another one, and no more than a fingerprint
/// tells of it.
const TAG_LEN: usize = 2;

/// Hash of a configuration file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConfigHash(String);

impl ConfigHash {
    pub(crate) fn of(source: &[u8]) -> Self {
        Self(Sha256::digest(source).iter().map(|it| format!("{it:02x}")).collect())
    }
}

/// Configuration and keys that a running daemon has taken up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConfigurationInUse {
    pub(crate) pid: u32,
    /// Start of the process in ticks since the boot: no other process has both numbers.
    started: u64,
    /// Configuration file of the process, and the hash of it when it was read.
    pub(crate) file: PathBuf,
    pub(crate) hash: ConfigHash,
    /// True if the file has changes that a reload does not take up.
    pub(crate) waits_for_restart: bool,
    /// The `peer_down_command` that is in use.
    pub(crate) down_command: Option<PathBuf>,
    /// Each key file with the mark of its key; none of one that could not be read.
    pub(crate) keys: Vec<(PathBuf, Option<String>)>,
}

impl ConfigurationInUse {
    /// Returns what this process has taken up. Reads the key files.
    pub(crate) fn of_this_process(
        file: &Path,
        hash: ConfigHash,
        config: &Config,
        waits_for_restart: bool,
    ) -> Self {
        let pid = std::process::id();
        let keys = keys(config);
        let mark = if keys.len() > MANY_KEYS { tag_mark } else { Key::fingerprint };
        Self {
            pid,
            started: process_stat(pid).map_or(0, |it| it.started),
            file: fs::canonicalize(file).unwrap_or_else(|_| file.to_owned()),
            hash,
            waits_for_restart,
            down_command: config.daemon.peer_down_command.clone(),
            keys: keys.into_iter().map(|(file, key)| (file, key.as_ref().map(mark))).collect(),
        }
    }

    /// Writes the file in the place of the one before. Waits for the disk.
    ///
    /// # Errors
    /// The disk does not take it. Then the old file is gone, so that it tells nothing untrue.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        // Others could lead the file elsewhere.
        if fs::metadata(directory)?.mode() & 0o022 != 0 {
            return Err(io::Error::other("others than its owner can write the directory"));
        }
        let new = directory.join(NEW);
        let written = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&self.lines())?;
            fs::rename(&new, directory.join(FILE))
        };
        written().inspect_err(|_| drop(fs::remove_file(directory.join(FILE))))
    }

    /// Returns what a daemon of this state directory has taken up; none where none runs, or none has written
    /// the file.
    pub(crate) fn of_running(directory: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = fs::File::open(directory.join(FILE)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Self::parse(&bytes).filter(|it| process_stat(it.pid).is_some_and(|now| now.is_run(it.started)))
    }

    /// Returns true if the process was stopped, by a signal or a debugger.
    pub(crate) fn is_stopped(&self) -> bool {
        is_stopped(self.pid)
    }

    fn lines(&self) -> Vec<u8> {
        let mut text = [HEADER, b"\n"].concat();
        let mut add = |words: &str, path: &Path| {
            // No line has two meanings: a path with a line break is left out.
            if !path.as_os_str().as_bytes().contains(&b'\n') {
                text.extend_from_slice(words.as_bytes());
                text.extend_from_slice(path.as_os_str().as_bytes());
                text.push(b'\n');
            }
        };
        add(&format!("process {} ", self.pid), Path::new(&self.started.to_string()));
        add(&format!("configuration {} ", self.hash.0), &self.file);
        if self.waits_for_restart {
            add("waits-for-restart", Path::new(""));
        }
        if let Some(command) = &self.down_command {
            add("down-command ", command);
        }
        for (file, print) in &self.keys {
            add(&format!("key {} ", print.as_deref().unwrap_or("-")), file);
        }
        text.extend_from_slice(b"end\n");
        text
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.strip_suffix(b"\nend\n")?.split(|it| *it == b'\n');
        if lines.next()? != HEADER {
            return None;
        }
        let (pid, started) = words(lines.next()?.strip_prefix(b"process ")?)?;
        let (hash, file) = words(lines.next()?.strip_prefix(b"configuration ")?)?;
        let mut read = Self {
            pid: pid.parse().ok()?,
            started: started.to_str()?.parse().ok()?,
            file,
            hash: ConfigHash(hash.to_owned()),
            waits_for_restart: false,
            down_command: None,
            keys: Vec::new(),
        };
        for line in lines {
            if line == b"waits-for-restart" {
                read.waits_for_restart = true;
            } else if let Some(path) = line.strip_prefix(b"down-command ") {
                read.down_command = Some(OsStr::from_bytes(path).into());
            } else {
                let (print, file) = words(line.strip_prefix(b"key ")?)?;
                read.keys.push((file, Some(print.to_owned()).filter(|it| it != "-")));
            }
        }
        Some(read)
    }
}

/// Writes down what this daemon has taken up. Waits for the disk, and no longer than for an intent.
pub(super) async fn record(
    state: Option<&Path>,
    file: &Path,
    (config, hash): (&Config, ConfigHash),
    waits_for_restart: bool,
) {
    let Some(directory) = state.map(Path::to_owned) else { return };
    let (file, config) = (file.to_owned(), config.clone());
    let write = move || {
        let in_use = ConfigurationInUse::of_this_process(&file, hash, &config, waits_for_restart);
        if let Err(error) = in_use.write(&directory) {
            info!("can't write down which configuration is in use, so --check can't tell: {error}");
        }
    };
    let _ = tokio::time::timeout(DISK_LIMIT, tokio::task::spawn_blocking(write)).await;
}

/// Splits a line into its first word and the path behind it.
fn words(line: &[u8]) -> Option<(&str, PathBuf)> {
    let at = line.iter().position(|it| *it == b' ')?;
    let path = std::ffi::OsString::from_vec(line[at + 1..].to_vec());
    Some((std::str::from_utf8(&line[..at]).ok()?, path.into()))
}

/// Returns every key file of a configuration once, with its key as it is now.
pub(crate) fn keys(config: &Config) -> Vec<(PathBuf, Option<Key>)> {
    let rule = KeyRule::strict(config.daemon.strict_keys);
    let of_listeners = config.listeners.iter().filter_map(|it| it.keys()).flat_map(|it| &it.key_files);
    let of_groups = config.groups.iter().flatten().flat_map(|it| &it.key_files);
    let files: BTreeSet<_> = of_listeners.chain(of_groups).chain(&config.daemon.peer_key_file).collect();
    let key = |it: &PathBuf| key_file::load(it, rule).ok().map(|it| it.key);
    files.into_iter().map(|it| (it.clone(), key(it))).collect()
}

/// Returns true if a mark in the file is that of this key.
pub(crate) fn is_mark_of(mark: &str, key: &Key) -> bool {
    if mark.starts_with(TAG) { mark == tag_mark(key) } else { mark == key.fingerprint() }
}

/// Returns the fingerprint that a mark is, for people; none of a tag.
pub(crate) fn shown_mark(mark: &str) -> Option<&str> {
    Some(mark).filter(|it| !it.starts_with(TAG))
}

fn tag_mark(key: &Key) -> String {
    let tag = key.tag();
    tag.bytes()[..TAG_LEN].iter().fold(TAG.to_owned(), |text, it| format!("{text}{it:02x}"))
}

/// Returns true if the process was stopped, by a signal or a debugger.
pub(crate) fn is_stopped(pid: u32) -> bool {
    process_stat(pid).is_some_and(|it| matches!(it.state, b'T' | b't'))
}

/// Part of `/proc/PID/stat`.
struct ProcessStat {
    state: u8,
    started: u64,
}

impl ProcessStat {
    /// Returns true if the process that began at this moment runs: one that ended may still have an entry.
    fn is_run(&self, started: u64) -> bool {
        self.started == started && !matches!(self.state, b'Z' | b'X')
    }
}

fn process_stat(pid: u32) -> Option<ProcessStat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may have brackets of its own.
    let after_name = text.get(text.iter().rposition(|it| *it == b')')? + 2..)?;
    let fields: Vec<_> = after_name.split(|it| *it == b' ').collect();
    let started = std::str::from_utf8(fields.get(19)?).ok()?.parse().ok()?;
    Some(ProcessStat { state: *fields.first()?.first()?, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_use() -> ConfigurationInUse {
        let text = "fence_virtd { listener = \"tcp\"; backend = \"libvirt\"; peer_down_command = \"/a b\"; \
                    peer_key_file = \"/no such/key\"; } listeners { tcp { } } backends { libvirt { } }";
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        ConfigurationInUse::of_this_process(Path::new("/nosuch file"), ConfigHash::of(b"x"), &config, true)
    }

    #[test]
    fn a_process_that_ended_does_not_run() {
        let is_run = |state, started| ProcessStat { state, started }.is_run(7);
        assert!(is_run(b'S', 7) && is_run(b'T', 7));
        assert!(!is_run(b'Z', 7) && !is_run(b'S', 8));
    }

    #[test]
    fn what_is_written_is_read_while_the_process_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ConfigurationInUse::of_running(dir.path()), None);
        let mut it = in_use();
        assert!(it.keys.contains(&("/no such/key".into(), None)), "{it:?}");
        it.keys.push(("/other".into(), Some("8c58".to_owned())));
        it.write(dir.path()).unwrap();
        assert_eq!(ConfigurationInUse::of_running(dir.path()), Some(it.clone()));
        assert!(!it.is_stopped());
        // Another process has the number now.
        it.started += 1;
        it.write(dir.path()).unwrap();
        assert_eq!(ConfigurationInUse::of_running(dir.path()), None);
    }

    /// Neither the fingerprint nor the tag of another key is the mark of a key.
    #[test]
    fn a_mark_is_of_one_key() {
        let [key, other] = ["one", "other"].map(|it| Key::new(it.as_bytes()).unwrap());
        for mark in [Key::fingerprint, tag_mark] {
            assert!(is_mark_of(&mark(&key), &key) && !is_mark_of(&mark(&other), &key));
        }
        assert_eq!(shown_mark(&tag_mark(&key)), None);
        assert_eq!(tag_mark(&key).len(), TAG.len() + 2 * TAG_LEN);
    }

    /// A torn file tells nothing: least of all that all is in use.
    #[test]
    fn a_torn_file_tells_nothing() {
        let whole = in_use().lines();
        assert_eq!(ConfigurationInUse::parse(&whole), Some(in_use()));
        for length in 0..whole.len() {
            assert_eq!(ConfigurationInUse::parse(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_file_that_can_not_be_written_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        in_use().write(dir.path()).unwrap();
        fs::create_dir(dir.path().join(NEW)).unwrap();
        in_use().write(dir.path()).unwrap_err();
        assert!(!dir.path().join(FILE).exists());
    }
}
