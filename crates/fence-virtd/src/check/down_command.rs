// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of `peer_down_command`: whether the daemon could start it. Runs in the process of `--check`. Must
//! never run it: nobody knows what it does.

use std::ffi::CString;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fence_cli::shown;
use fence_config::{Config, Peers};
use nix::unistd::{Gid, User, geteuid, getgrouplist};

use super::finding::{Finding, USER};

const CHECK: &str = "peer_down_command";
/// Directories that the unit hides from the daemon and its programs.
const HIDDEN: [&str; 9] =
    ["/home", "/root", "/run/user", "/tmp", "/var/tmp", "/srv", "/mnt", "/media", "/boot"];
/// Bytes of a script in which its interpreter is looked for, as the kernel does.
const FIRST_LINE: usize = 256;

pub(super) fn all(config: &Config) -> Option<Finding> {
    let command = config.daemon.peer_down_command.as_deref()?;
    (config.daemon.peers != Peers::Nobody).then(|| of(command, &users()))
}

/// User whom the daemon may run as.
struct RunUser {
    name: String,
    uid: u32,
    groups: Vec<u32>,
}

/// Returns the users whom the daemon may run as: this one, and that of the unit.
fn users() -> Vec<RunUser> {
    let own = geteuid();
    let unit = User::from_name(USER).ok().flatten().filter(|_| own.is_root());
    User::from_uid(own).ok().flatten().into_iter().chain(unit).map(RunUser::of).collect()
}

impl RunUser {
    fn of(user: User) -> Self {
        let groups = CString::new(user.name.as_str()).ok().and_then(|it| getgrouplist(&it, user.gid).ok());
        let groups = groups.unwrap_or_else(|| vec![user.gid]).into_iter().map(Gid::as_raw).collect();
        Self { name: user.name, uid: user.uid.as_raw(), groups }
    }

    /// Returns true if these bits of the mode hold for the user. Programs of the daemon have no
    /// capabilities, those of root neither.
    fn may(&self, file: &fs::Metadata, bits: u32) -> bool {
        let shift = match (file.uid() == self.uid, self.groups.contains(&file.gid())) {
            (true, _) => 6,
            (false, true) => 3,
            (false, false) => 0,
        };
        file.mode() >> shift & bits == bits
    }

    /// Returns true if the user can start the program; a script must be readable too.
    fn may_run(&self, real: &Path, file: &fs::Metadata, is_script: bool) -> bool {
        let mut above = real.ancestors().skip(1).filter_map(|it| fs::metadata(it).ok());
        above.all(|it| self.may(&it, 0o1)) && self.may(file, if is_script { 0o5 } else { 0o1 })
    }
}

fn of(command: &Path, users: &[RunUser]) -> Finding {
    let subject = shown(command);
    let failed = |text: String, next: String| Finding::failed(CHECK, &subject, text, next);
    let real = match fs::canonicalize(command) {
        Ok(real) => real,
        Err(error) => {
            let next = "install it, or correct the path in the fence_virtd block; until then a silent host \
                        is never proved down";
            return failed(format!("is not there: {error}"), next.to_owned());
        }
    };
    let file = match fs::metadata(&real) {
        Ok(file) if file.is_file() && file.mode() & 0o111 != 0 => file,
        Ok(_) => return failed("is no program".to_owned(), format!("chmod 755 {subject}")),
        Err(error) => return failed(format!("can't be looked at: {error}"), "see its directory".to_owned()),
    };
    let interpreter = interpreter(&real);
    if let Some(it) = interpreter.as_ref().filter(|it| !it.exists()) {
        let next = "install it, or correct the script's first line".to_owned();
        return failed(format!("its interpreter is not there: {}", shown(it)), next);
    }
    let refused = users.iter().filter(|it| !it.may_run(&real, &file, interpreter.is_some()));
    let refused: Vec<_> = refused.map(|it| it.name.as_str()).collect();
    let next = format!("chown root {subject}; chmod 755 {subject}; its directories need mode 755 too");
    if !refused.is_empty() && refused.len() == users.len() {
        return failed(format!("can't be run by {}", refused.join(", ")), next);
    }
    if let [name] = refused[..] {
        let text = format!("can't be run by {name}, which the daemon is under systemd");
        return Finding::warning(CHECK, subject, text, next);
    }
    if file.mode() & 0o022 != 0 {
        let text = "others can write it, and so call domains off that run";
        let next = format!("chmod go-w {subject}");
        return Finding::warning(CHECK, subject, text, next);
    }
    if let Some(hidden) = HIDDEN.iter().find(|it| real.starts_with(it) || command.starts_with(it)) {
        let text = format!("the unit hides {hidden} from the daemon");
        let next =
            "move it, for example to /usr/local/sbin; not needed where the daemon runs without the unit";
        return Finding::warning(CHECK, subject, text, next);
    }
    Finding::ok(CHECK, subject, "can be run; it was not run")
}

/// Returns the interpreter of a script; none for another program.
fn interpreter(program: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    let file = fs::File::open(program).ok()?;
    file.take(u64::try_from(FIRST_LINE).ok()?).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|it| *it == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    line.split_whitespace().next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::finding::FindingLevel;
    use super::*;

    /// The owner of the files, and another user.
    fn users(dir: &Path) -> [RunUser; 2] {
        let about = fs::metadata(dir).unwrap();
        let user = |name: &str, uid| RunUser { name: name.to_owned(), uid, groups: vec![uid] };
        [user("owner", about.uid()), user("fence_virt", about.uid() + 4711)]
    }

    #[test]
    fn a_command_that_could_not_be_started() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("down");
        let look = |content: &str, mode| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let found = of(&path, &users(dir.path()));
            (found.result, found.text)
        };
        assert!(of(&path, &users(dir.path())).text.starts_with("is not there"));
        let told = |(level, text): (FindingLevel, String), wanted: FindingLevel, has: &str| {
            assert!(level == wanted && text.contains(has), "{level:?} {text}");
        };
        told(look("#!/bin/sh\n", 0o644), FindingLevel::Failed, "is no program");
        told(look("#!/nosuch/sh\n", 0o755), FindingLevel::Failed, "/nosuch/sh");
        told(look("#!/bin/sh\n", 0o700), FindingLevel::Warning, "by fence_virt, which");
        told(look("#!/bin/sh\n", 0o100), FindingLevel::Failed, "by owner, fence_virt");
        told(look("#!/bin/sh\n", 0o711), FindingLevel::Warning, "by fence_virt, which");
        told(look("\u{7f}ELF", 0o711), FindingLevel::Warning, "the unit hides /tmp");
        told(look("#!/bin/sh -e\n", 0o777), FindingLevel::Warning, "others can write it");
        told(look("#!/bin/sh\n", 0o755), FindingLevel::Warning, "the unit hides /tmp");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        told(look("#!/bin/sh\n", 0o755), FindingLevel::Warning, "by fence_virt, which");
        assert_eq!(of(Path::new("/bin/sh"), &users(Path::new("/bin/sh"))).result, FindingLevel::Ok);
        assert!(of(dir.path(), &users(dir.path())).text.contains("is no program"));
    }

    #[test]
    fn no_other_host_no_command() {
        let config = |peers: &str| {
            let text = format!("fence_virtd {{ peers = \"{peers}\"; peer_down_command = \"/nosuch/x\"; }}");
            all(&fence_config::load(text.as_bytes()).config.unwrap()).map(|it| it.result)
        };
        assert_eq!(config("none"), None);
        assert_eq!(config("10.0.0.2"), Some(FindingLevel::Failed));
    }
}
