// SPDX-License-Identifier: GPL-2.0-or-later
//! `fence_virt` on serial lines and VM channels, with correct and faulty hosts.
//!
//! A pseudo terminal stands for the serial line. The tests need root. They run themselves again under
//! unshare(1), with a /run and a loopback of their own.
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
/// Path of the C agent. Tests that compare with it are skipped where it is not installed.
const C_AGENT: &str = "/usr/sbin/fence_virt";
/// Longest wait for anything; a test that reaches it fails.
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

// Ordinary requests.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_responses() {
    let mut line = SerialLine::new();
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
        let request = line.read_request();
        assert_eq!((request.action.name(), request.target.as_str()), (action, "vm1"));
        line.send(&serial_response(response));
        let done = finish(agent);
        assert_eq!((text(&done.stdout), done.status.code()), (out.to_owned(), Some(code)), "{done:?}");
        line.forget();
    }
}

/// Literal bytes of the C daemon, and their meaning.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_bytes_of_the_c_daemon() {
    let mut line = SerialLine::new();
    for vector in read_vectors("daemon") {
        let [frame, answer] = ["frame", "answer"].map(|name| bytes(&vector, name));
        let asked = SerialRequest::decode(frame.as_slice().try_into().unwrap()).unwrap();
        let target = asked.target.as_str();
        let mut arguments = vec!["-o", asked.action.name()];
        if !target.is_empty() {
            arguments.extend(["-n", target]);
        }
        let agent = line.agent(&arguments);
        let sent = line.read_request();
        // The frame is the same, except for its number.
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

/// Literal bytes of the C agent: our agent sends the same bytes, and takes the same answers. The noise before
/// them makes the C agent fail.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_bytes_of_the_c_agent() {
    let mut line = SerialLine::new();
    for vector in read_vectors("agent") {
        let [frame, answer] = ["frame", "answer"].map(|name| bytes(&vector, name));
        let asked = SerialRequest::decode(frame.as_slice().try_into().unwrap()).unwrap();
        let agent = line.agent(&["-o", asked.action.name(), "-H", asked.target.as_str()]);
        assert_eq!(line.read_request().encode()[..70], frame[..70], "{vector}");
        line.send(&answer);
        let done = finish(agent);
        assert_eq!(done.status.code(), answer.last().map(|it| i32::from(*it)), "{vector} {done:?}");
        line.forget();
    }
}

/// Compares with the C agent on the same line: both send, print and return the same. Our agent writes to
/// standard error all that is no list and no status.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_compared_with_the_c_agent() {
    if !Path::new(C_AGENT).exists() {
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
        ("list", encode_list(&[("vm1", true), ("vm2", false)])),
        ("list", encode_list(&[])),
    ];
    for (action, answer) in cases {
        let [theirs, ours] = [C_AGENT, AGENT].map(|program| {
            let mut line = SerialLine::new();
            let agent = line.spawn(program, &["-o", action, "-H", "vm1"]);
            let mut frame = line.read_request().encode();
            frame[70..].fill(0);
            line.send(&answer);
            let done = finish(agent);
            (frame, text(&filter_rows(&done.stdout)), done.status.code())
        });
        assert_eq!(theirs, ours, "{action}");
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_list() {
    let mut line = SerialLine::new();
    let whole = encode_list(&[("vm 1", true), ("evil\x1b[2J\n", false)]);
    let rows = "vm 1                             11-22 on\nevil\\x1b[2J\\x0a                  11-22 off\n";
    let agent = line.agent(&["-o", "list"]);
    assert_eq!(line.read_request().action, Action::List);
    line.send(&whole);
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (rows, Some(0)));
    // A thousand domains: more than any buffer of the line holds.
    let many: Vec<_> = (0..1000).map(|n| format!("vm{n}")).collect();
    let agent = line.agent(&["-o", "list"]);
    line.read_request();
    line.send(&encode_list(&many.iter().map(|name| (name.as_str(), true)).collect::<Vec<_>>()));
    let done = finish(agent);
    assert_eq!((text(&done.stdout).lines().count(), done.status.code()), (1000, Some(0)), "{done:?}");
    // Everything except the last frame: the list is complete, but the line is not clean.
    let agent = line.agent(&["-o", "list"]);
    line.read_request();
    line.send(&whole[..whole.len() - 5]);
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (rows, Some(0)));
    assert!(line.is_abandoned());
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_noise() {
    let mut line = SerialLine::new();
    for noise in [&b"\0login: "[..], b"ababab", &[0x61; 300], &[0x0a, 0x0d, 0x03, 0x04, 0x11, 0x13, 0x7f]] {
        let agent = line.agent(&["-o", "status", "-n", "vm1"]);
        line.read_request();
        line.send(&[noise, &serial_response(2)].concat());
        assert_eq!(finish(agent).status.code(), Some(2), "{noise:?}");
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_options_from_stdin() {
    let mut line = SerialLine::new();
    let mut agent = command(AGENT).stdin(Stdio::piped()).spawn().unwrap();
    let options = format!("serial_device={}\naction=off\nplug=vm1\nnodename=n1\n", line.path.display());
    agent.stdin.take().unwrap().write_all(options.as_bytes()).unwrap();
    assert_eq!(line.read_request().target.as_str(), "vm1");
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
        let mut line = SerialLine::new();
        let start = Instant::now();
        let agent = line.agent(&["-o", action, "-n", "vm1", "-t", "4"]);
        line.read_request();
        line.send(&sent);
        let done = finish(agent);
        assert!(start.elapsed() >= Duration::from_secs(4) && start.elapsed() < PATIENCE);
        assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0));
        let stderr = text(&done.stderr);
        assert!(stderr.contains("Timed out waiting for response") && stderr.contains(expected), "{stderr}");
        assert!(stderr.lines().count() <= 10, "{stderr}");
        assert!(line.is_abandoned());
        // Nothing was sent twice, and a request that takes a domain down was superseded.
        if action == "off" {
            assert_eq!(line.read_request().action, Action::Null);
        }
        assert!(!line.has_input(Duration::from_millis(1)));
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_noise_without_end() {
    let mut line = SerialLine::new();
    let start = Instant::now();
    let mut agent = line.agent(&["-o", "off", "-n", "vm1", "-t", "1"]);
    line.read_request();
    while agent.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE);
        line.send_what_fits(&[b'x'; 4096]);
    }
    assert_eq!(agent.wait().unwrap().code(), Some(1));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_line_that_takes_nothing() {
    // The terminal's buffer is full: the other end does not read.
    let line = SerialLine::new();
    let slave = fs::OpenOptions::new().read(true).write(true).open(&line.path).unwrap();
    fcntl(&slave, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while (&slave).write(&[b'x'; 4096]).is_ok() {}
    // The agent would discard these bytes when it opens the line, so output is stopped.
    tcflow(&slave, FlowArg::TCOOFF).unwrap();
    let done = finish(line.agent(&["-o", "off", "-n", "vm1", "-t", "1"]));
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("Timed out waiting for response"), "{done:?}");
    assert!(text(&done.stderr).contains("bytes sent: 0"), "{done:?}");
    assert!(!line.is_abandoned(), "nothing was sent");
}

// Answers to other requests.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_older_bytes_are_discarded() {
    let mut line = SerialLine::new();
    let _reader = fs::OpenOptions::new().read(true).open(&line.path).unwrap();
    line.send(&serial_response(0));
    let agent = line.agent(&["-o", "off", "-n", "vm1"]);
    line.read_request();
    line.send(&serial_response(1));
    assert_eq!(finish(agent).status.code(), Some(1));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_two_at_once_take_turns() {
    let mut line = SerialLine::new();
    let agents = ["a", "b", "c"].map(|name| (name, line.agent(&["-o", "status", "-n", name])));
    let mut answered = Vec::new();
    for _ in 0..3 {
        let request = line.read_request();
        assert!(!line.has_input(Duration::from_millis(200)), "two requests at once");
        line.send(&serial_response(if request.target.as_str() == "b" { 2 } else { 0 }));
        answered.push(request.target.as_str().to_owned());
    }
    for (name, agent) in agents {
        assert!(answered.contains(&name.to_owned()));
        assert_eq!(finish(agent).status.code(), Some(if name == "b" { 2 } else { 0 }), "{name}");
    }
    // A second agent that never gets the line ends by its own deadline, and says why.
    let first = line.agent(&["-o", "status", "-n", "a"]);
    line.read_request();
    let second = finish(line.agent(&["-o", "off", "-n", "b", "-t", "1"]));
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another program that uses the line"), "{second:?}");
    line.send(&serial_response(0));
    assert_eq!(finish(first).status.code(), Some(0));
}

/// The C agent locks the device; neither agent takes the other's bytes.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_turns_with_the_c_agent() {
    if !Path::new(C_AGENT).exists() {
        return;
    }
    let mut line = SerialLine::new();
    let theirs = line.spawn(C_AGENT, &["-o", "status", "-H", "a"]);
    assert_eq!(line.read_request().target.as_str(), "a");
    let ours = line.agent(&["-o", "status", "-n", "b"]);
    assert!(!line.has_input(Duration::from_millis(300)), "the other agent uses the line");
    line.send(&serial_response(2));
    assert_eq!(finish(theirs).status.code(), Some(2));
    assert_eq!(line.read_request().target.as_str(), "b");
    line.send(&serial_response(0));
    assert_eq!(finish(ours).status.code(), Some(0));
}

/// An agent was killed. The host answers late, in order, and the next agent must not take that answer for its
/// own.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_answer_to_an_abandoned_request() {
    for (late, after) in [(0, 0), (0, 1), (1, 0), (2, 2)] {
        let mut line = SerialLine::new();
        let mut killed = line.agent(&["-o", "status", "-n", "vm1"]);
        line.read_request();
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(line.is_abandoned());
        let agent = line.agent(&["-o", "off", "-n", "vm2"]);
        // The host is busy with the abandoned request until it has read this many more.
        let mut pending = vec![late];
        for _ in 0..after {
            pending.push(line.read_question());
        }
        let first = line.read_question();
        for code in pending.into_iter().chain([first]) {
            line.send(&serial_response(code));
        }
        line.answer_questions();
        line.send(&serial_response(3));
        assert_eq!(finish(agent).status.code(), Some(3), "{late} after {after}");
        // The line is clean again.
        let agent = line.agent(&["-o", "status", "-n", "vm2"]);
        assert_eq!(line.read_request().action, Action::Status);
        line.send(&serial_response(2));
        assert_eq!(finish(agent).status.code(), Some(2));
    }
}

/// A host that never gets past the abandoned request: the next request is not sent.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_line_that_does_not_settle() {
    let mut line = SerialLine::new();
    let timed_out = line.agent(&["-o", "off", "-n", "vm1", "-t", "1"]);
    line.read_request();
    assert_eq!(finish(timed_out).status.code(), Some(1));
    for answer in [None, Some(0), Some(1)] {
        let mut agent = line.agent(&["-o", "off", "-n", "vm2", "-t", "2"]);
        while agent.try_wait().unwrap().is_none() {
            if line.has_input(Duration::from_millis(20)) {
                let request = line.read_request();
                assert!(matches!(request.action, Action::Monitor | Action::Null), "{request:?}");
                answer.inspect(|code| line.send(&serial_response(*code)));
            }
        }
        let done = finish(agent);
        assert_eq!(done.status.code(), Some(1));
        assert!(text(&done.stderr).contains("an earlier request on this line"), "{done:?}");
    }
}

// Devices that are no lines.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_devices_that_are_refused() {
    for (device, expected) in [
        ("/nonexistent", "cannot open the line: No such file"),
        ("/etc/passwd", "not a serial line or virtio port"),
        ("/dev/null", "the host hung up before it answered"),
    ] {
        let done = finish(command(AGENT).args(["-D", device, "-o", "off", "-n", "vm1"]).spawn().unwrap());
        assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0));
        assert!(text(&done.stderr).contains(expected), "{done:?}");
    }
    let line = SerialLine::new();
    let done = finish(line.agent(&["-P", "12345,8N1", "-o", "off", "-n", "vm1"]));
    assert!(text(&done.stderr).contains("115200,8N1"), "{done:?}");
    assert_eq!(done.status.code(), Some(1));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_other_end_closes() {
    let mut line = SerialLine::new();
    let agent = line.agent(&["-o", "off", "-n", "vm1"]);
    line.read_request();
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
    stream.write_all(&encode_list(&[("vm1", true)])).unwrap();
    let done = finish(agent);
    assert_eq!(
        (text(&done.stdout).as_str(), done.status.code()),
        ("vm1                              11-22 on\n", Some(0))
    );

    // Closed without an answer: the answer may still come, on the next connection.
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
    // A child of another test may hold the listener for a moment, between its fork and its exec.
    let stderr = text(&done.stderr);
    assert!(stderr.contains("guestfwd") || stderr.contains("mode vmchannel"), "{done:?}");
}

// No test of vsock: the kernel may have none, and CID 2 is a real host. See src/stream.rs.

/// Serial line: the host's end, and the path of the agent's end.
struct SerialLine {
    host: File,
    _slave: OwnedFd,
    path: PathBuf,
}

impl SerialLine {
    fn new() -> Self {
        // The agents of other tests must not inherit it, or the line would never hang up.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let host = posix_openpt(flags).unwrap();
        grantpt(&host).unwrap();
        unlockpt(&host).unwrap();
        let path = PathBuf::from(ptsname_r(&host).unwrap());
        let slave = open(&path, flags, Mode::empty()).unwrap();
        // Raw, as real lines are after their first use: unread bytes are not echoed.
        let mut settings = tcgetattr(&slave).unwrap();
        cfmakeraw(&mut settings);
        tcsetattr(&slave, SetArg::TCSANOW, &settings).unwrap();
        let line = Self { host: File::from(OwnedFd::from(host)), _slave: slave, path };
        // An earlier line may have had the same number.
        line.forget();
        line
    }

    fn agent(&self, arguments: &[&str]) -> Child {
        self.spawn(AGENT, arguments)
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        command(program).arg("-D").arg(&self.path).args(arguments).spawn().unwrap()
    }

    /// Reads the next request.
    fn read_request(&mut self) -> SerialRequest {
        assert!(self.has_input(PATIENCE), "no request");
        read_request(&mut self.host)
    }

    /// Reads the next question of an agent that settles the line, and returns its answer.
    fn read_question(&mut self) -> u8 {
        match self.read_request().action {
            Action::Monitor => 0,
            Action::Null => 1,
            other => panic!("{other} before the line is settled"),
        }
    }

    /// Answers the questions of an agent that settles the line, until it asks for an `off`.
    fn answer_questions(&mut self) {
        loop {
            match self.read_request().action {
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

fn encode_list(domains: &[(&str, bool)]) -> Vec<u8> {
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

/// Returns the lines of standard output that are a row of a list or a status.
fn filter_rows(stdout: &[u8]) -> Vec<u8> {
    let is_row =
        |line: &&str| line.starts_with("Status: ") || line.ends_with(" on") || line.ends_with(" off");
    text(stdout).lines().filter(is_row).map(|line| format!("{line}\n")).collect::<String>().into_bytes()
}

/// Returns the records of bytes that the C programs sent, with their results.
fn read_vectors(captured: &str) -> Vec<String> {
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
