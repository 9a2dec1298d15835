// SPDX-License-Identifier: GPL-2.0-or-later
//! That it bites: a process of its own confines itself and then tries what it may and what it must not.
//!
//! The process is this test's own program, started again for one of the cases below; it prints what each attempt came
//! to, one line each. There is no way back from a confinement, so it can't be this process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use fence_sandbox::{Calls, Capability, Needs, State, Tcp};

const CASE: &str = "FENCE_SANDBOX_TEST_CASE";
const PLACE: &str = "FENCE_SANDBOX_TEST_PLACE";

/// What is refused below is not refused by something else.
#[test]
fn nothing_without_it() {
    let place = Place::new();
    let said = run("none", place.path());
    for attempt in [
        "read",
        "overwrite a key",
        "make a key",
        "make",
        "overwrite",
        "remove",
        "exec",
        "thread",
        "tcp to another port",
    ] {
        said.fine(attempt);
    }
}

#[test]
fn an_agent() {
    let place = Place::new();
    let said = run("agent", place.path());
    said.every_part_is_on();
    for attempt in
        ["read", "make", "overwrite", "remove", "exec", "thread", "tcp", "ptrace", "unshare", "capability"]
    {
        said.refused(attempt);
    }
    for attempt in ["unix socket", "signal to itself"] {
        said.fine(attempt);
    }
}

#[test]
fn an_agent_by_tcp() {
    let place = Place::new();
    let said = run("agent-tcp", place.path());
    said.every_part_is_on();
    if said.landlock() {
        said.refused("tcp to another port");
    }
    said.fine("tcp");
    said.refused("read");
}

#[test]
fn a_daemon() {
    let place = Place::new();
    let said = run("daemon", place.path());
    said.every_part_is_on();
    for attempt in ["exec", "ptrace", "unshare", "capability"] {
        said.refused(attempt);
    }
    for attempt in
        ["read a key", "write state", "replace state", "thread", "tcp", "unix socket", "signal to itself"]
    {
        said.fine(attempt);
    }
    if said.landlock() {
        for attempt in
            ["read", "make", "overwrite", "remove", "overwrite a key", "make a key", "signal to parent"]
        {
            said.refused(attempt);
        }
        said.refused("read in a new thread");
    }
    said.refused("exec in a new thread");
}

#[test]
fn a_daemon_that_starts_programs() {
    let place = Place::new();
    let said = run("daemon-programs", place.path());
    said.every_part_is_on();
    for attempt in ["exec", "read", "signal to itself"] {
        said.fine(attempt);
    }
    for attempt in ["ptrace", "unshare"] {
        said.refused(attempt);
    }
    if nix::unistd::geteuid().is_root() {
        assert_eq!(said.of("a program's before"), "CapPrm CapEff CapBnd CapAmb");
    }
    assert_eq!(said.of("a program's capabilities"), "");
    if said.landlock() {
        said.refused("make");
        said.refused("overwrite");
    }
}

/// The other process.
#[test]
fn child() {
    let (Ok(case), Ok(place)) = (std::env::var(CASE), std::env::var(PLACE)) else { return };
    let place = PathBuf::from(place);
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let everything = Calls { open_files: true, threads: true, ..Calls::default() };
    let needs = match case.as_str() {
        "none" => return attempts(&place, port, &other, false),
        "agent" => Needs::default(),
        "agent-tcp" => Needs { tcp: Tcp::To(port), ..Needs::default() },
        "daemon" => Needs {
            read: vec!["/usr".into(), "/lib".into(), "/lib64".into(), place.join("keys")],
            write: vec![place.join("state")],
            capabilities: vec![Capability::CAP_DAC_READ_SEARCH],
            tcp: Tcp::Any,
            calls: everything,
            ..Needs::default()
        },
        "daemon-programs" => Needs {
            read: vec!["/".into()],
            write: vec!["/dev".into(), place.join("state")],
            capabilities: vec![Capability::CAP_DAC_READ_SEARCH],
            tcp: Tcp::Any,
            calls: Calls { programs: true, ..everything },
            ..Needs::default()
        },
        other => panic!("no case {other}"),
    };
    if case == "daemon-programs" {
        // As systemd hands them to a user without rights.
        for set in [caps::CapSet::Inheritable, caps::CapSet::Ambient] {
            let _ = caps::raise(None, set, Capability::CAP_DAC_READ_SEARCH);
        }
        say("a program's before", &capabilities_of_a_program());
    }
    // libtest runs a test in a thread of its own: what it starts is confined, which is what is looked at.
    let protection = needs.confine();
    say("files", &format!("{:?}", protection.files));
    say("calls", &format!("{:?}", protection.calls));
    say("capabilities", &format!("{:?}", protection.capabilities));
    say("status", &format!("{:?}", status()));
    if needs.calls.programs {
        say("a program's capabilities", &capabilities_of_a_program());
    }
    attempts(&place, port, &other, true);
}

/// The sets of a started program that have something in them.
fn capabilities_of_a_program() -> String {
    let output = Command::new("/bin/cat").arg("/proc/self/status").output().unwrap();
    let status = String::from_utf8(output.stdout).unwrap();
    let fields = status.lines().filter_map(|it| it.split_once(":\t")).filter(|(name, value)| {
        ["CapPrm", "CapEff", "CapBnd", "CapAmb"].contains(name) && value.bytes().any(|it| it != b'0')
    });
    fields.map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

fn attempts(place: &Path, port: u16, other: &TcpListener, is_confined: bool) {
    attempt("read", || fs::read(place.join("other")));
    attempt("make", || File::create(place.join("new")));
    attempt("overwrite", || OpenOptions::new().write(true).open(place.join("other")));
    attempt("remove", || fs::remove_file(place.join("other")));
    attempt("read a key", || fs::read(place.join("keys/key")));
    attempt("overwrite a key", || OpenOptions::new().append(true).open(place.join("keys/key")));
    attempt("make a key", || File::create(place.join("keys/new")));
    attempt("write state", || fs::write(place.join("state/a"), "x"));
    attempt("replace state", || fs::rename(place.join("state/a"), place.join("state/b")));
    attempt("tcp", || TcpStream::connect(("127.0.0.1", port)));
    attempt("tcp to another port", || TcpStream::connect(other.local_addr().unwrap()));
    attempt("unix socket", || UnixStream::connect(place.join("socket")));
    attempt("exec", || Command::new("/bin/true").status());
    if is_confined {
        // Whoever may do that stops at its next signal, and nobody is there to go on with it.
        attempt("ptrace", || Ok(nix::sys::ptrace::traceme()?));
    }
    attempt("unshare", || Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?));
    attempt("signal to itself", || Ok(nix::sys::signal::kill(nix::unistd::getpid(), None)?));
    attempt("signal to parent", || Ok(nix::sys::signal::kill(nix::unistd::getppid(), None)?));
    attempt("capability", || {
        let error = |it: caps::errors::CapsError| std::io::Error::other(it.to_string());
        caps::raise(None, caps::CapSet::Permitted, Capability::CAP_SYS_ADMIN).map_err(error)
    });
    let threads = thread::Builder::new().spawn(|| "started");
    let can_start = threads.is_ok();
    attempt("thread", || threads);
    if can_start {
        thread::scope(|scope| {
            scope.spawn(|| {
                attempt("read in a new thread", || fs::read(place.join("other")));
                attempt("exec in a new thread", || Command::new("/bin/true").status());
            });
        });
    }
}

fn attempt<T>(what: &str, it: impl FnOnce() -> std::io::Result<T>) {
    match it() {
        Ok(_) => say(what, "fine"),
        Err(error) => say(what, &format!("{error}")),
    }
}

fn say(what: &str, result: &str) {
    println!("\nSAID {what}: {result}");
}

fn status() -> BTreeMap<String, String> {
    // With files closed there is nothing to read any more; then the other lines tell.
    let text = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let keys = ["NoNewPrivs", "Seccomp", "CapPrm", "CapEff"];
    text.lines()
        .filter_map(|it| it.split_once(':'))
        .filter(|(key, _)| keys.contains(key))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// What the child may reach, and what not.
struct Place {
    directory: tempfile::TempDir,
    _socket: std::os::unix::net::UnixListener,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["keys", "state"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["other", "keys/key"] {
            fs::write(at(name), "content").unwrap();
        }
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        Self { directory, _socket: socket }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

struct Said(BTreeMap<String, String>);

fn run(case: &str, place: &Path) -> Said {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    let output = command.env(CASE, case).env(PLACE, place).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let said = text.lines().filter_map(|it| it.strip_prefix("SAID ")?.split_once(": "));
    Said(said.map(|(what, result)| (what.to_owned(), result.to_owned())).collect())
}

impl Said {
    fn of(&self, what: &str) -> &str {
        self.0.get(what).unwrap_or_else(|| panic!("nothing said of {what:?}: {:?}", self.0))
    }

    fn refused(&self, what: &str) {
        let result = self.of(what);
        assert!(result.contains("ermission denied") || result.contains("not permitted"), "{what}: {result}");
    }

    fn fine(&self, what: &str) {
        assert_eq!(self.of(what), "fine", "{what}");
    }

    /// Whether this kernel has all of what is asked of Landlock; the other parts it has in any case.
    fn landlock(&self) -> bool {
        self.of("files") == format!("{:?}", State::On)
    }

    fn every_part_is_on(&self) {
        assert_eq!(self.of("calls"), format!("{:?}", State::On));
        assert!(self.of("capabilities").starts_with("Ok("), "{}", self.of("capabilities"));
        let status = self.of("status");
        if status != "{}" {
            assert!(
                status.contains(r#""NoNewPrivs": "1""#) && status.contains(r#""Seccomp": "2""#),
                "{status}"
            );
        }
    }
}
