// SPDX-License-Identifier: GPL-2.0-or-later
//! Shared parts of the agent's tests: simulated hosts, and the network namespace of hosts and agents.
//!
//! The tests need root. They run themselves again under unshare(1), in a network and with a /run of their
//! own, so that nothing is sent on the machine's networks. Each test has its own port, and all run at once.
#![allow(dead_code, unreachable_pub, reason = "no test program needs all of it")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fence_net::{Scope, multicast_listener};
use fence_wire::{
    ClassicHash, HOST_LIST_END, HashType, HostAwaitAnswer, HostAwaitChallenge, HostListEntry, Key, Request,
};

pub const AGENT: &str = env!("CARGO_BIN_EXE_fence_xvm");
pub const KEY: &[u8] = b"a key for tests only";
/// Longest wait for anything; a test that reaches it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

const SETUP: &str = "mount -t tmpfs none /run
    sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
    ip link set lo up
    ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up
    ip addr add fd09::1/64 dev v0 nodad
    exec \"$@\"";

/// Runs the tests of this program whose names begin with `inside_`, in a network and with a /run of their
/// own.
pub fn run_in_a_namespace() {
    let me = std::env::current_exe().unwrap();
    let run = Command::new("unshare")
        .args(["-nm", "sh", "-c", SETUP, "sh"])
        .arg(me)
        .args(["--ignored", "--test-threads=8", "inside_"])
        .status()
        .unwrap();
    assert!(run.success());
}

/// Host's side of a group on its own port, and agents that ask there.
pub struct AgentLab {
    pub socket: UdpSocket,
    pub port: u16,
    pub scratch: tempfile::TempDir,
}

impl AgentLab {
    pub fn new(port: u16) -> Self {
        Self::in_group(port, "225.0.0.12")
    }

    pub fn in_group(port: u16, group: &str) -> Self {
        let listener = multicast_listener(group.parse().unwrap(), port, Scope::All).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("key");
        fs::write(&path, KEY).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let lab = Self { socket: listener.socket, port, scratch };
        lab.end_quarantine();
        lab
    }

    pub fn key(&self) -> Key {
        Key::new(KEY).unwrap()
    }

    pub fn key_file(&self) -> String {
        self.scratch.path().join("key").to_str().unwrap().to_owned()
    }

    /// Starts an agent with the right key, at this lab's port.
    pub fn agent(&self, arguments: &[&str]) -> Child {
        self.spawn("fence_xvm", arguments, true)
    }

    /// Starts an agent at this lab's port with these arguments alone.
    pub fn run(&self, arguments: &[&str]) -> Child {
        self.spawn("fence_xvm", arguments, false)
    }

    pub fn spawn(&self, name: &str, arguments: &[&str], with_key: bool) -> Child {
        let mut command = Command::new(AGENT);
        command.arg0(name);
        self.start(command, name, arguments, with_key)
    }

    /// Starts an agent with the right key on a machine whose /run is full, and where no agent ran before.
    #[allow(dead_code)]
    pub fn agent_with_full_run(&self, arguments: &[&str]) -> Child {
        const FULL: &str = "mount -t tmpfs -o size=8k,mode=755 none /run && mkdir -m 700 /run/fence_virt
            cat /dev/zero >/run/filled 2>/dev/null
            exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", FULL, AGENT]);
        self.start(command, "fence_xvm", arguments, true)
    }

    fn start(&self, mut command: Command, name: &str, arguments: &[&str], with_key: bool) -> Child {
        command.args(["-p", &self.port.to_string()]);
        // A delayed test must not read a repetition where it expects the next request.
        if name == "fence_xvm" {
            command.args(["-r", "300"]);
        }
        command.args(arguments);
        if with_key {
            command.args(["-k", &self.key_file()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn with_stdin(&self, options: &str) -> Child {
        let mut agent = Command::new(AGENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        agent.stdin.take().unwrap().write_all(options.as_bytes()).unwrap();
        agent
    }

    /// Receives the next request of an agent.
    pub fn receive_request(&self) -> Request {
        self.receive_request_with(HashType::Sha256)
    }

    pub fn receive_request_with(&self, minimum: HashType) -> Request {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut packet = [0; 200];
        // A wait with a limit ends where the process was stopped and went on.
        let length = loop {
            match self.socket.recv(&mut packet) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.unwrap(),
            }
        };
        Request::decode(&packet[..length], minimum, &[self.key()]).unwrap().request
    }

    pub fn socket_is_readable(&self, within: Duration) -> bool {
        self.socket.set_read_timeout(Some(within)).unwrap();
        self.socket.peek(&mut [0; 200]).is_ok()
    }

    /// Discards requests in the socket's queue.
    pub fn drain(&self) {
        while self.socket_is_readable(Duration::from_millis(1)) {
            self.socket.recv(&mut [0; 200]).unwrap();
        }
    }

    /// Ends the quarantine of this lab's ports: no agent of this boot has sent anything.
    pub fn end_quarantine(&self) {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        for path in self.ledgers() {
            fs::create_dir_all("/run/fence_virt").unwrap();
            fs::set_permissions("/run/fence_virt", fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(&path, format!("calls {}\nend\n", boot.trim())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    /// Returns the ledgers of this lab's ports.
    pub fn ledgers(&self) -> impl Iterator<Item = PathBuf> {
        let namespace = fs::metadata("/proc/self/ns/net").unwrap().ino();
        (self.port..self.port + 16).map(move |it| format!("/run/fence_virt/{it}-{namespace}.lock").into())
    }

    pub fn call_back(&self, request: &Request) -> TcpStream {
        let call_back = request.call_back.unwrap();
        let stream = TcpStream::connect(SocketAddr::from((call_back.address, call_back.port))).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Calls back from this address; an error if nobody listens.
    pub fn try_call_back_from(&self, request: &Request, address: [u8; 4]) -> nix::Result<TcpStream> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
        use std::os::fd::AsRawFd;
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let [a, b, c, d] = address;
        bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0))?;
        let port = request.call_back.unwrap().port;
        connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// Calls back from this address.
    pub fn call_back_from(&self, request: &Request, address: [u8; 4]) -> TcpStream {
        self.try_call_back_from(request, address).unwrap()
    }

    /// Takes steps 1 and 2 of the handshake.
    pub fn prove_host(&self, mut stream: &TcpStream) -> HostAwaitAnswer<'static> {
        let mut c1 = [0; 64];
        stream.read_exact(&mut c1).unwrap();
        let key = Box::leak(Box::new(self.key()));
        let (proof, held) = HostAwaitChallenge::classic(ClassicHash::Sha256, key).answer(&c1).unwrap();
        stream.write_all(&proof).unwrap();
        held
    }

    /// Calls back, up to the agent's proof.
    pub fn call_back_until_proof(&self, request: &Request) -> TcpStream {
        let stream = self.call_back(request);
        respond(&stream, self.prove_host(&stream), &[]);
        stream
    }

    /// Calls back, and sends the response.
    pub fn answer(&self, request: &Request, response: &[u8]) {
        self.call_back_until_proof(request).write_all(response).unwrap();
    }
}

/// Takes steps 3 and 4, and sends the response.
pub fn respond(mut stream: &TcpStream, held: HostAwaitAnswer<'_>, response: &[u8]) {
    let c2 = [3; 64];
    let proven = held.challenge(&c2).unwrap();
    stream.write_all(&c2).unwrap();
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).unwrap();
    let _ = proven.verify(&answer).unwrap();
    stream.write_all(response).unwrap();
}

/// Returns a list as a host sends it.
pub fn encode_list(entries: &[(&str, &str, bool)]) -> Vec<u8> {
    let mut bytes = vec![253];
    for &(name, uuid, on) in entries {
        bytes.extend(HostListEntry { name: name.to_owned(), uuid: uuid.to_owned(), on }.encode());
    }
    bytes.extend(HOST_LIST_END);
    bytes.push(0);
    bytes
}

/// Runs all cases at once. Each must use a port of its own.
pub fn run_at_once<const N: usize>(cases: [impl FnOnce() + Send; N]) {
    std::thread::scope(|scope| cases.map(|case| scope.spawn(case)).map(|thread| thread.join().unwrap()));
}

pub fn finish(agent: Child) -> Output {
    agent.wait_with_output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
