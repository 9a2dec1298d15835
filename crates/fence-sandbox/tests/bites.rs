// SPDX-License-Identifier: GPL-2.0-or-later
//! Confinement tests: a child process confines itself, then tries allowed and refused actions.
//!
//! The child is this test's own program, started again for one of the cases below. It prints the result of
//! each attempt on a line. There is no way back from a confinement, so it can't be this process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use fence_sandbox::{Capability, Enforcement, Needs, SystemCalls, TcpAccess};

const CASE: &str = "FENCE_SANDBOX_TEST_CASE";
const PLACE: &str = "FENCE_SANDBOX_TEST_PLACE";

/// Control case: without a confinement nothing else refuses these actions.
#[test]
fn nothing_is_refused_without_a_confinement() {
    let place = TestFiles::new();
    let results = run("none", place.path());
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
        results.fine(attempt);
    }
}

#[test]
fn an_agent() {
    let place = TestFiles::new();
    let results = run("agent", place.path());
    results.every_part_is_on();
    for attempt in
        ["read", "make", "overwrite", "remove", "exec", "thread", "tcp", "ptrace", "unshare", "capability"]
    {
        results.refused(attempt);
    }
    for attempt in ["unix socket", "signal to itself"] {
        results.fine(attempt);
    }
}

#[test]
fn an_agent_by_tcp() {
    let place = TestFiles::new();
    let results = run("agent-tcp", place.path());
    results.every_part_is_on();
    if results.landlock() {
        results.refused("tcp to another port");
    }
    results.fine("tcp");
    results.refused("read");
}

#[test]
fn a_daemon() {
    let place = TestFiles::new();
    let results = run("daemon", place.path());
    results.every_part_is_on();
    for attempt in ["exec", "ptrace", "unshare", "capability"] {
        results.refused(attempt);
    }
    for attempt in
        ["read a key", "write state", "replace state", "thread", "tcp", "unix socket", "signal to itself"]
    {
        results.fine(attempt);
    }
    if results.landlock() {
        for attempt in
            ["read", "make", "overwrite", "remove", "overwrite a key", "make a key", "signal to parent"]
        {
            results.refused(attempt);
        }
        results.refused("read in a new thread");
    }
    results.refused("exec in a new thread");
}

#[test]
fn a_daemon_that_starts_programs() {
    let place = TestFiles::new();
    let results = run("daemon-programs", place.path());
    results.every_part_is_on();
    for attempt in ["exec", "read", "signal to itself"] {
        results.fine(attempt);
    }
    for attempt in ["ptrace", "unshare"] {
        results.refused(attempt);
    }
    if nix::unistd::geteuid().is_root() {
        assert_eq!(results.of("a program's before"), "CapPrm CapEff CapBnd CapAmb");
    }
    assert_eq!(results.of("a program's capabilities"), "");
    if results.landlock() {
        results.refused("make");
        results.refused("overwrite");
    }
}

/// The child process.
#[test]
fn child() {
    let (Ok(case), Ok(place)) = (std::env::var(CASE), std::env::var(PLACE)) else { return };
    let place = PathBuf::from(place);
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let everything = SystemCalls { open_files: true, threads: true, ..SystemCalls::default() };
    let needs = match case.as_str() {
        "none" => return attempts(&place, port, &other, false),
        "agent" => Needs::default(),
        "agent-tcp" => Needs { tcp: TcpAccess::To(port), ..Needs::default() },
        "daemon" => Needs {
            read: vec!["/usr".into(), "/lib".into(), "/lib64".into(), place.join("keys")],
            write: vec![place.join("state")],
            capabilities: vec![Capability::CAP_DAC_READ_SEARCH],
            tcp: TcpAccess::Any,
            calls: everything,
            ..Needs::default()
        },
        "daemon-programs" => Needs {
            read: vec!["/".into()],
            write: vec!["/dev".into(), place.join("state")],
            capabilities: vec![Capability::CAP_DAC_READ_SEARCH],
            tcp: TcpAccess::Any,
            calls: SystemCalls { programs: true, ..everything },
            ..Needs::default()
        },
        other => panic!("no case {other}"),
    };
    if case == "daemon-programs" {
        // As systemd gives them to a user without rights.
        for set in [caps::CapSet::Inheritable, caps::CapSet::Ambient] {
            let _ = caps::raise(None, set, Capability::CAP_DAC_READ_SEARCH);
        }
        say("a program's before", &capabilities_of_a_program());
    }
    // libtest runs a test in a thread of its own; the threads that it starts are confined.
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

/// Returns the names of the capability sets that are not empty in a started program.
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
        // A process that may do that stops at its next signal, and no tracer would let it continue.
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
    println!("\nRESULT {what}: {result}");
}

fn status() -> BTreeMap<String, String> {
    // Where files may not be opened this reads nothing, and the other lines must do.
    let text = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let keys = ["NoNewPrivs", "Seccomp", "CapPrm", "CapEff"];
    text.lines()
        .filter_map(|it| it.split_once(':'))
        .filter(|(key, _)| keys.contains(key))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Files that the child may reach, and others.
struct TestFiles {
    directory: tempfile::TempDir,
    _socket: std::os::unix::net::UnixListener,
}

impl TestFiles {
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

struct Attempts(BTreeMap<String, String>);

fn run(case: &str, place: &Path) -> Attempts {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    let output = command.env(CASE, case).env(PLACE, place).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let results = text.lines().filter_map(|it| it.strip_prefix("RESULT ")?.split_once(": "));
    Attempts(results.map(|(what, result)| (what.to_owned(), result.to_owned())).collect())
}

impl Attempts {
    fn of(&self, what: &str) -> &str {
        self.0.get(what).unwrap_or_else(|| panic!("nothing results of {what:?}: {:?}", self.0))
    }

    fn refused(&self, what: &str) {
        let result = self.of(what);
        assert!(result.contains("ermission denied") || result.contains("not permitted"), "{what}: {result}");
    }

    fn fine(&self, what: &str) {
        assert_eq!(self.of(what), "fine", "{what}");
    }

    /// Returns whether this kernel has all of Landlock that we ask for. The other parts every kernel has.
    fn landlock(&self) -> bool {
        self.of("files") == format!("{:?}", Enforcement::On)
    }

    fn every_part_is_on(&self) {
        assert_eq!(self.of("calls"), format!("{:?}", Enforcement::On));
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
