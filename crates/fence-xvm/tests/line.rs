// SPDX-License-Identifier: GPL-2.0-or-later
//! `fence_virt` on serial lines and VM channels, against hosts that behave and hosts that do not.
//!
//! A pseudo terminal plays the serial line. The tests need root: they run themselves again under unshare(1), with a
//! /run and a loopback of their own.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fence_wire::{
    Action, HOST_LIST_END, HostListEntry, SERIAL_REQUEST_LEN, SerialRequest, SerialScanner, serial_response,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{FlowArg, SetArg, cfmakeraw, tcflow, tcgetattr, tcsetattr};

const AGENT: &str = env!("CARGO_BIN_EXE_fence_xvm");
/// The C agent; cases with it are left out where it is not installed.
const REFERENCE: &str = "/usr/sbin/fence_virt";
/// Longer than anything here takes; a wait that reaches it is a fault.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn in_a_namespace() {
    let me = std::env::current_exe().unwrap();
    let run = Command::new("unshare")
        .args(["-nm", "sh", "-c", "mount -t tmpfs none /run && ip link set lo up && exec \"$@\"", "sh"])
        .arg(me)
        .args(["--ignored", "--test-threads=8", "inside_"])
        .status()
        .unwrap();
    assert!(run.success());
}

// The ordinary way.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_responses() {
    let mut line = Line::new();
    for (action, response, out, code) in [
        ("status", 0, "Status: ON\n", 0),
        ("status", 2, "Status: OFF\n", 2),
        ("status", 1, "", 1),
        ("off", 0, "", 0),
        ("on", 0, "", 0),
        ("reboot", 1, "", 1),
        ("off", 3, "", 3),
        ("off", 2, "", 1),
        ("off", 7, "", 1),
        ("off", 253, "", 1),
    ] {
        let agent = line.agent(&["-o", action, "-n", "vm1"]);
        let request = line.request();
        assert_eq!((request.action.name(), request.target.as_str()), (action, "vm1"));
        line.send(&serial_response(response));
        let done = finish(agent);
        assert_eq!((text(&done.stdout), done.status.code()), (out.to_owned(), Some(code)), "{done:?}");
        line.forget();
    }
}

/// Literal bytes of the reference daemon, and what they mean.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_reference_daemon_s_bytes() {
    let mut line = Line::new();
    for vector in vectors("daemon") {
        let [frame, answer] = ["frame", "answer"].map(|name| bytes(&vector, name));
        let asked = SerialRequest::decode(frame.as_slice().try_into().unwrap()).unwrap();
        let target = asked.target.as_str();
        let mut arguments = vec!["-o", asked.action.name()];
        if !target.is_empty() {
            arguments.extend(["-n", target]);
        }
        let agent = line.agent(&arguments);
        let sent = line.request();
        // The frame is the same but for its number.
        assert_eq!(sent.encode()[..70], frame[..70]);
        line.send(&answer);
        let done = finish(agent);
        let code = field(&vector, "code").parse().unwrap();
        let code = if code == 253 { i32::from(answer[answer.len() - 1]) } else { code };
        assert_eq!(done.status.code(), Some(code), "{vector}");
        let rows: usize = field(&vector, "entries").parse().unwrap();
        let lines = if asked.action == Action::Status { 1 } else { rows };
        assert_eq!(text(&done.stdout).lines().count(), lines, "{vector}");
    }
}

/// Literal bytes of the C agent: ours sends the same, and takes the answers that it was given. Noise stands before
/// them that the C agent stumbles over.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_reference_agent_s_bytes() {
    let mut line = Line::new();
    for vector in vectors("agent") {
        let [frame, answer] = ["frame", "answer"].map(|name| bytes(&vector, name));
        let asked = SerialRequest::decode(frame.as_slice().try_into().unwrap()).unwrap();
        let agent = line.agent(&["-o", asked.action.name(), "-H", asked.target.as_str()]);
        assert_eq!(line.request().encode()[..70], frame[..70], "{vector}");
        line.send(&answer);
        let done = finish(agent);
        assert_eq!(done.status.code(), answer.last().map(|it| i32::from(*it)), "{vector} {done:?}");
        line.forget();
    }
}

/// Beside the C agent on the same line: what both send, print and return. What it says on standard output that is no
/// list and no status goes to standard error in ours.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_beside_the_reference_agent() {
    if !Path::new(REFERENCE).exists() {
        return;
    }
    let cases = [
        ("status", serial_response(0).to_vec()),
        ("status", serial_response(2).to_vec()),
        ("status", serial_response(1).to_vec()),
        ("off", serial_response(3).to_vec()),
        ("reboot", serial_response(0).to_vec()),
        ("on", serial_response(1).to_vec()),
        ("monitor", serial_response(0).to_vec()),
        ("list", list(&[("vm1", true), ("vm2", false)])),
        ("list", list(&[])),
    ];
    for (action, answer) in cases {
        let [theirs, ours] = [REFERENCE, AGENT].map(|program| {
            let mut line = Line::new();
            let agent = line.spawn(program, &["-o", action, "-H", "vm1"]);
            let mut frame = line.request().encode();
            frame[70..].fill(0);
            line.send(&answer);
            let done = finish(agent);
            (frame, text(&rows_of(&done.stdout)), done.status.code())
        });
        assert_eq!(theirs, ours, "{action}");
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_list() {
    let mut line = Line::new();
    let whole = list(&[("vm 1", true), ("evil\x1b[2J\n", false)]);
    let rows = "vm 1                             11-22 on\nevil\\x1b[2J\\x0a                  11-22 off\n";
    let agent = line.agent(&["-o", "list"]);
    assert_eq!(line.request().action, Action::List);
    line.send(&whole);
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (rows, Some(0)));
    // A thousand domains, more than any buffer of the line holds.
    let many: Vec<_> = (0..1000).map(|n| format!("vm{n}")).collect();
    let agent = line.agent(&["-o", "list"]);
    line.request();
    line.send(&list(&many.iter().map(|name| (name.as_str(), true)).collect::<Vec<_>>()));
    let done = finish(agent);
    assert_eq!((text(&done.stdout).lines().count(), done.status.code()), (1000, Some(0)), "{done:?}");
    // All but the frame at the end: the list is whole, but the line is not clean.
    let agent = line.agent(&["-o", "list"]);
    line.request();
    line.send(&whole[..whole.len() - 5]);
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (rows, Some(0)));
    assert!(line.is_abandoned());
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_noise() {
    let mut line = Line::new();
    for noise in [&b"\0login: "[..], b"ababab", &[0x61; 300], &[0x0a, 0x0d, 0x03, 0x04, 0x11, 0x13, 0x7f]] {
        let agent = line.agent(&["-o", "status", "-n", "vm1"]);
        line.request();
        line.send(&[noise, &serial_response(2)].concat());
        assert_eq!(finish(agent).status.code(), Some(2), "{noise:?}");
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_options_from_stdin() {
    let mut line = Line::new();
    let mut agent = command(AGENT).stdin(Stdio::piped()).spawn().unwrap();
    let options = format!("serial_device={}\naction=off\nplug=vm1\nnodename=n1\n", line.path.display());
    agent.stdin.take().unwrap().write_all(options.as_bytes()).unwrap();
    assert_eq!(line.request().target.as_str(), "vm1");
    line.send(&serial_response(0));
    let done = finish(agent);
    assert_eq!((done.status.code(), done.stderr.len()), (Some(0), 0), "{done:?}");
}

// Time.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_hosts_that_stall() {
    let entry = HostListEntry { name: "vm1".into(), uuid: "1".into(), on: true }.encode();
    for (action, sent, expected) in [
        ("off", vec![], "bytes sent: 74, bytes that came back: 0"),
        ("off", b"login: ".to_vec(), "bytes that came back: 7, first of them \"login: \""),
        ("off", b"abba".to_vec(), "bytes that came back: 4"),
        ("list", [&serial_response(253)[..], &entry, &entry, &entry[..50]].concat(), "2 entries of a list"),
    ] {
        let mut line = Line::new();
        let start = Instant::now();
        let agent = line.agent(&["-o", action, "-n", "vm1", "-t", "4"]);
        line.request();
        line.send(&sent);
        let done = finish(agent);
        assert!(start.elapsed() >= Duration::from_secs(4) && start.elapsed() < PATIENCE);
        assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0));
        let told = text(&done.stderr);
        assert!(told.contains("Timed out waiting for response") && told.contains(expected), "{told}");
        assert!(told.lines().count() <= 10, "{told}");
        assert!(line.is_abandoned());
        // Nothing was sent twice, and what takes a domain down was called off.
        if action == "off" {
            assert_eq!(line.request().action, Action::Null);
        }
        assert!(!line.has_input(Duration::from_millis(1)));
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_noise_without_end() {
    let mut line = Line::new();
    let start = Instant::now();
    let mut agent = line.agent(&["-o", "off", "-n", "vm1", "-t", "1"]);
    line.request();
    while agent.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE);
        line.send_what_fits(&[b'x'; 4096]);
    }
    assert_eq!(agent.wait().unwrap().code(), Some(1));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_line_that_takes_nothing() {
    // The terminal's buffer is full: nobody reads at the other end.
    let line = Line::new();
    let slave = fs::OpenOptions::new().read(true).write(true).open(&line.path).unwrap();
    fcntl(&slave, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while (&slave).write(&[b'x'; 4096]).is_ok() {}
    // The agent drops what was there when it opens the line, so it is stopped.
    tcflow(&slave, FlowArg::TCOOFF).unwrap();
    let done = finish(line.agent(&["-o", "off", "-n", "vm1", "-t", "1"]));
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("Timed out waiting for response"), "{done:?}");
    assert!(text(&done.stderr).contains("bytes sent: 0"), "{done:?}");
    assert!(!line.is_abandoned(), "nothing was sent");
}

// Answers of others.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_what_was_there_before_is_dropped() {
    let mut line = Line::new();
    let _reader = fs::OpenOptions::new().read(true).open(&line.path).unwrap();
    line.send(&serial_response(0));
    let agent = line.agent(&["-o", "off", "-n", "vm1"]);
    line.request();
    line.send(&serial_response(1));
    assert_eq!(finish(agent).status.code(), Some(1));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_two_at_once_take_turns() {
    let mut line = Line::new();
    let agents = ["a", "b", "c"].map(|name| (name, line.agent(&["-o", "status", "-n", name])));
    let mut answered = Vec::new();
    for _ in 0..3 {
        let request = line.request();
        assert!(!line.has_input(Duration::from_millis(200)), "two requests at once");
        line.send(&serial_response(if request.target.as_str() == "b" { 2 } else { 0 }));
        answered.push(request.target.as_str().to_owned());
    }
    for (name, agent) in agents {
        assert!(answered.contains(&name.to_owned()));
        assert_eq!(finish(agent).status.code(), Some(if name == "b" { 2 } else { 0 }), "{name}");
    }
    // A second one that gets no turn ends by its own deadline, and says why.
    let first = line.agent(&["-o", "status", "-n", "a"]);
    line.request();
    let second = finish(line.agent(&["-o", "off", "-n", "b", "-t", "1"]));
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another program that uses the line"), "{second:?}");
    line.send(&serial_response(0));
    assert_eq!(finish(first).status.code(), Some(0));
}

/// The C agent locks the device; neither takes the other's bytes.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_turns_with_the_reference_agent() {
    if !Path::new(REFERENCE).exists() {
        return;
    }
    let mut line = Line::new();
    let theirs = line.spawn(REFERENCE, &["-o", "status", "-H", "a"]);
    assert_eq!(line.request().target.as_str(), "a");
    let ours = line.agent(&["-o", "status", "-n", "b"]);
    assert!(!line.has_input(Duration::from_millis(300)), "the line is the other's");
    line.send(&serial_response(2));
    assert_eq!(finish(theirs).status.code(), Some(2));
    assert_eq!(line.request().target.as_str(), "b");
    line.send(&serial_response(0));
    assert_eq!(finish(ours).status.code(), Some(0));
}

/// An agent was killed; the host answers in order, late, and the next agent must not take that answer for its own.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_answer_to_an_abandoned_request() {
    for (late, after) in [(0, 0), (0, 1), (1, 0), (2, 2)] {
        let mut line = Line::new();
        let mut killed = line.agent(&["-o", "status", "-n", "vm1"]);
        line.request();
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(line.is_abandoned());
        let agent = line.agent(&["-o", "off", "-n", "vm2"]);
        // Busy with the abandoned request until it has heard so many more.
        let mut pending = vec![late];
        for _ in 0..after {
            pending.push(line.question());
        }
        let first = line.question();
        for code in pending.into_iter().chain([first]) {
            line.send(&serial_response(code));
        }
        line.answer_questions();
        line.send(&serial_response(3));
        assert_eq!(finish(agent).status.code(), Some(3), "{late} after {after}");
        // And the line is clean again.
        let agent = line.agent(&["-o", "status", "-n", "vm2"]);
        assert_eq!(line.request().action, Action::Status);
        line.send(&serial_response(2));
        assert_eq!(finish(agent).status.code(), Some(2));
    }
}

/// A host that never gets past the abandoned request: the next one is not sent.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_line_that_does_not_settle() {
    let mut line = Line::new();
    let timed_out = line.agent(&["-o", "off", "-n", "vm1", "-t", "1"]);
    line.request();
    assert_eq!(finish(timed_out).status.code(), Some(1));
    for answer in [None, Some(0), Some(1)] {
        let mut agent = line.agent(&["-o", "off", "-n", "vm2", "-t", "2"]);
        while agent.try_wait().unwrap().is_none() {
            if line.has_input(Duration::from_millis(20)) {
                let request = line.request();
                assert!(matches!(request.action, Action::Monitor | Action::Null), "{request:?}");
                answer.inspect(|code| line.send(&serial_response(*code)));
            }
        }
        let done = finish(agent);
        assert_eq!(done.status.code(), Some(1));
        assert!(text(&done.stderr).contains("an earlier request on this line"), "{done:?}");
    }
}

// What is no line.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_devices_that_will_not_do() {
    for (device, expected) in [
        ("/nonexistent", "cannot open the line: No such file"),
        ("/etc/passwd", "not a serial line or virtio port"),
        ("/dev/null", "the host hung up before it answered"),
    ] {
        let done = finish(command(AGENT).args(["-D", device, "-o", "off", "-n", "vm1"]).spawn().unwrap());
        assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0));
        assert!(text(&done.stderr).contains(expected), "{done:?}");
    }
    let line = Line::new();
    let done = finish(line.agent(&["-P", "12345,8N1", "-o", "off", "-n", "vm1"]));
    assert!(text(&done.stderr).contains("115200,8N1"), "{done:?}");
    assert_eq!(done.status.code(), Some(1));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_other_end_closes() {
    let mut line = Line::new();
    let agent = line.agent(&["-o", "off", "-n", "vm1"]);
    line.request();
    let start = Instant::now();
    drop(line);
    let done = finish(agent);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("hung up"), "{done:?}");
    assert!(start.elapsed() < Duration::from_secs(25));
}

// The VM channel.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_channel() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let ask = |arguments: &[&str]| {
        let mut agent = command(AGENT);
        agent.args(["-A", "127.0.0.1", "-p", &port, "-t", "60"]).args(arguments).spawn().unwrap()
    };
    let accept = || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (read_request(&mut stream), stream)
    };
    let agent = ask(&["-o", "status", "-n", "vm1"]);
    let (request, mut stream) = accept();
    assert_eq!((request.action, request.target.as_str()), (Action::Status, "vm1"));
    stream.write_all(&serial_response(2)).unwrap();
    assert_eq!(finish(agent).status.code(), Some(2));

    let agent = ask(&["-o", "list"]);
    let (_, mut stream) = accept();
    stream.write_all(&list(&[("vm1", true)])).unwrap();
    let done = finish(agent);
    assert_eq!(
        (text(&done.stdout).as_str(), done.status.code()),
        ("vm1                              11-22 on\n", Some(0))
    );

    // Closed without an answer: that one may still come, by the next connection.
    let agent = ask(&["-o", "off", "-n", "vm1"]);
    drop(accept());
    let done = finish(agent);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("hung up"), "{done:?}");
    let agent = ask(&["-o", "off", "-n", "vm1"]);
    let (question, mut stream) = accept();
    stream.write_all(&serial_response(0)).unwrap();
    let mut question = Some(question);
    let request = loop {
        let request = question.take().unwrap_or_else(|| read_request(&mut stream));
        match request.action {
            Action::Monitor => stream.write_all(&serial_response(0)).unwrap(),
            Action::Null => stream.write_all(&serial_response(1)).unwrap(),
            _ => break request,
        }
    };
    assert_eq!(request.action, Action::Off);
    stream.write_all(&serial_response(3)).unwrap();
    assert_eq!(finish(agent).status.code(), Some(3));

    drop(listener);
    let done = finish(ask(&["-o", "off", "-n", "vm1"]));
    assert_eq!(done.status.code(), Some(1));
    // Another test's child may hold the listener for the moment between its fork and its exec.
    let stderr = text(&done.stderr);
    assert!(stderr.contains("guestfwd") || stderr.contains("mode vmchannel"), "{done:?}");
}

// vsock: this kernel may have none, and what is behind CID 2 is nobody's business here; see src/stream.rs.

/// A serial line: the host's end, and where an agent finds the other.
struct Line {
    host: File,
    _slave: OwnedFd,
    path: PathBuf,
}

impl Line {
    fn new() -> Self {
        // Not to be inherited by the agents of other tests, or the line would never hang up.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let host = posix_openpt(flags).unwrap();
        grantpt(&host).unwrap();
        unlockpt(&host).unwrap();
        let path = PathBuf::from(ptsname_r(&host).unwrap());
        let slave = open(&path, flags, Mode::empty()).unwrap();
        // As real lines are after their first use: what nobody has read is not echoed.
        let mut settings = tcgetattr(&slave).unwrap();
        cfmakeraw(&mut settings);
        tcsetattr(&slave, SetArg::TCSANOW, &settings).unwrap();
        let line = Self { host: File::from(OwnedFd::from(host)), _slave: slave, path };
        // The number may have been another line's.
        line.forget();
        line
    }

    fn agent(&self, arguments: &[&str]) -> Child {
        self.spawn(AGENT, arguments)
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        command(program).arg("-D").arg(&self.path).args(arguments).spawn().unwrap()
    }

    /// The next request.
    fn request(&mut self) -> SerialRequest {
        assert!(self.has_input(PATIENCE), "no request");
        read_request(&mut self.host)
    }

    /// The answer to the next question of an agent that settles the line.
    fn question(&mut self) -> u8 {
        match self.request().action {
            Action::Monitor => 0,
            Action::Null => 1,
            other => panic!("{other} before the line is settled"),
        }
    }

    /// Answers the questions of an agent that settles the line, until it asks for an `off`.
    fn answer_questions(&mut self) {
        loop {
            match self.request().action {
                Action::Monitor => self.send(&serial_response(0)),
                Action::Null => self.send(&serial_response(1)),
                Action::Off => return,
                other => panic!("{other}"),
            }
        }
    }

    fn has_input(&self, within: Duration) -> bool {
        let mut fds = [PollFd::new(self.host.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(within).unwrap()).unwrap() > 0
    }

    fn send(&self, bytes: &[u8]) {
        (&self.host).write_all(bytes).unwrap();
    }

    fn send_what_fits(&self, bytes: &[u8]) {
        let mut fds = [PollFd::new(self.host.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::from(10_u8)).unwrap() > 0 {
            let _ = (&self.host).write(&bytes[..1]);
        }
    }

    fn record(&self) -> PathBuf {
        let number = self.path.file_name().unwrap().to_str().unwrap();
        PathBuf::from(format!("/run/fence_virt/line-136-{number}.lock"))
    }

    fn forget(&self) {
        let _ = fs::remove_file(self.record());
    }

    fn is_abandoned(&self) -> bool {
        fs::read_to_string(self.record()).unwrap().starts_with("busy")
    }
}

fn read_request(from: &mut impl Read) -> SerialRequest {
    let mut scanner = SerialScanner::<SERIAL_REQUEST_LEN>::new();
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte).unwrap();
        if let Some(frame) = scanner.push(byte[0]) {
            return SerialRequest::decode(&frame).unwrap();
        }
    }
}

fn list(domains: &[(&str, bool)]) -> Vec<u8> {
    let mut bytes = serial_response(253).to_vec();
    for (name, on) in domains {
        let entry = HostListEntry { name: (*name).to_owned(), uuid: "11-22".to_owned(), on: *on };
        bytes.extend(entry.encode());
    }
    bytes.extend(HOST_LIST_END);
    bytes.extend(serial_response(0));
    bytes
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.arg0("fence_virt").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The lines of standard output that are a list's or a status.
fn rows_of(stdout: &[u8]) -> Vec<u8> {
    let is_row =
        |line: &&str| line.starts_with("Status: ") || line.ends_with(" on") || line.ends_with(" off");
    text(stdout).lines().filter(is_row).map(|line| format!("{line}\n")).collect::<String>().into_bytes()
}

/// The records of what the reference programs sent and made of what they got.
fn vectors(captured: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/serial.txt");
    let all = fs::read_to_string(path).unwrap();
    let ours: Vec<_> =
        all.lines().filter(|it| it.contains(&format!(" captured={captured} "))).map(str::to_owned).collect();
    assert!(!ours.is_empty());
    ours
}

fn field<'a>(vector: &'a str, name: &str) -> &'a str {
    let find = |it: &'a str| it.strip_prefix(name).and_then(|it| it.strip_prefix('='));
    vector.split(' ').find_map(find).unwrap()
}

fn bytes(vector: &str, name: &str) -> Vec<u8> {
    let text = field(vector, name);
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn finish(agent: Child) -> Output {
    agent.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
