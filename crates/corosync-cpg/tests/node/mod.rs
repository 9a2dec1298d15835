// SPDX-License-Identifier: GPL-2.0-or-later
//! Cluster node for tests: corosync and a process of the test, in namespaces of their own (`node.sh`). Tests
//! of other crates use it too.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use corosync_cpg::{ChangeReason, GroupEvent, Member, NodeList, ProcessGroup, SendResult};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Limit for every wait, generous for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Running corosync, which ends with this value.
pub struct Corosync(Option<Child>);

impl Corosync {
    /// Starts corosync and waits until it admits members.
    pub fn start() -> Self {
        fs::write("/etc/corosync/corosync.conf", CONFIG).unwrap();
        let child = Command::new("corosync").arg("-f").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut corosync = Self(Some(child.unwrap()));
        let deadline = Instant::now() + PATIENCE;
        while NodeList::open().is_err() {
            let ended = corosync.0.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "corosync ended");
            assert!(Instant::now() < deadline, "corosync does not come up");
            thread::sleep(Duration::from_millis(20));
        }
        corosync
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.0.as_ref().unwrap().id();
        kill(Pid::from_raw(id.cast_signed()), signal).unwrap();
    }

    pub fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.0.take().unwrap().wait().unwrap();
    }
}

impl Drop for Corosync {
    fn drop(&mut self) {
        if let Some(mut it) = self.0.take() {
            let _ = it.kill();
            let _ = it.wait();
        }
    }
}

/// Of three nodes, the first by name exists. No realtime priority: the tests share a machine.
pub const CONFIG: &str = "
system {
    sched_rr: no
    move_to_root_cgroup: no
}
totem {
    version: 2
    cluster_name: test
    transport: udpu
    token: 10000
}
logging {
    to_stderr: yes
    to_syslog: no
}
nodelist {
    node {
        nodeid: 5
        ring0_addr: elsewhere
    }
    node {
        nodeid: 1
        name: alpha
        ring0_addr: 127.0.0.1
    }
    node {
        nodeid: 9
        ring0_addr: 127.0.0.3
    }
}
";

/// Runs the test in a process of its own, on a node of its own.
pub fn on_a_node(name: &str, test: impl FnOnce()) {
    if env::var_os("NODE_INSIDE").is_some() {
        return test();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corosync-cpg/tests/node/node.sh");
    let done = Command::new(script)
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    println!("{said}");
}
/// Member in a process of its own, which reports its events and obeys commands.
pub struct Peer {
    pub child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// `test` is the full name of a test of this program that only calls [`be_a_peer`].
    pub fn start(test: &str, group: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("PEER_GROUP", group)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// Returns the member as soon as it has joined. Works once only.
    pub fn member(&mut self) -> Member {
        Member { node: 1, pid: self.hear("joined as ").parse().unwrap() }
    }

    /// `send TEXT` or `leave`
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Returns the rest of the next line with this beginning: `message TEXT`, `left REASON`.
    pub fn hear(&mut self, beginning: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the peer ended");
            // The test harness may have written before it on the same line.
            if let Some((_, text)) = line.trim_end().split_once(beginning) {
                return text.to_owned();
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Body of a [`Peer`]'s process; does nothing in any other.
pub fn be_a_peer() {
    let Ok(name) = env::var("PEER_GROUP") else { return };
    let mut one = join(&name);
    println!("joined as {}", one.group.me().pid);
    let (lines, told) = mpsc::channel();
    thread::spawn(move || std::io::stdin().lines().try_for_each(|it| lines.send(it.unwrap())));
    loop {
        one.take();
        for event in one.waiting.drain(..) {
            match event {
                GroupEvent::Message { data, .. } => println!("message {}", String::from_utf8(data).unwrap()),
                GroupEvent::Change { left, .. } => left.iter().for_each(|it| println!("left {:?}", it.1)),
                GroupEvent::Ring { .. } => {}
            }
        }
        match told.recv_timeout(Duration::from_millis(2)) {
            Ok(line) => match line.strip_prefix("send ") {
                Some(text) => one.send(text.as_bytes()),
                None => return one.group.leave(),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// ProcessGroup, with its events that no test has read yet.
pub struct Seat {
    pub group: ProcessGroup,
    pub waiting: VecDeque<GroupEvent>,
}

pub fn join(name: &str) -> Seat {
    Seat { group: ProcessGroup::join(name).unwrap(), waiting: VecDeque::new() }
}

impl Seat {
    /// Returns the next event.
    pub fn next(&mut self) -> GroupEvent {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            wait_readable(&self.group);
            self.take();
        }
    }

    /// Takes all waiting events.
    pub fn take(&mut self) {
        self.waiting.extend(self.group.dispatch().unwrap());
    }

    /// Returns the next event for which the test holds; earlier events are skipped.
    pub fn until(&mut self, condition: impl Fn(&GroupEvent) -> bool) -> GroupEvent {
        loop {
            let event = self.next();
            if condition(&event) {
                return event;
            }
        }
    }

    /// Returns this number of next messages, as text.
    pub fn messages(&mut self, count: usize) -> Vec<String> {
        let is_message = |it: &GroupEvent| matches!(it, GroupEvent::Message { .. });
        (0..count)
            .map(|_| match self.until(is_message) {
                GroupEvent::Message { data, .. } => String::from_utf8(data).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Returns the next member that left.
    pub fn left(&mut self) -> Vec<(Member, ChangeReason)> {
        match self.until(|it| matches!(it, GroupEvent::Change { left, .. } if !left.is_empty())) {
            GroupEvent::Change { left, .. } => left,
            other => panic!("{other:?}"),
        }
    }

    pub fn send(&self, data: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while self.group.send(data).unwrap() == SendResult::Later {
            assert!(Instant::now() < deadline, "corosync takes nothing");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

pub fn wait_readable(it: &impl AsFd) {
    let patience = PollTimeout::try_from(PATIENCE).unwrap();
    let mut polled = [PollFd::new(it.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut polled, patience), Ok(1), "nothing came");
}
