// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests against a libvirtd with QEMU machines, which the tests start, stop and kill. Not run by default:
//! `cargo test -p libvirt-host --test real_libvirtd -- --ignored --nocapture`
//! as root, with libvirtd, qemu-system-x86_64 and unshare installed. They print measured times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use libvirt_host::{
    CloseReason, Connection, DomainState, Error, ErrorKind, EventSubscription, KeepAlive, LifecycleEvent,
    LifecycleKind, OrdinaryConnection, XmlKind,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const QUICK: KeepAlive = KeepAlive { interval_secs: 1, count: 2 };

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn powers_real_machines() {
    let libvirtd = Libvirtd::start();
    let connection = libvirtd.open();
    let (_subscription, events) = watch(&connection);

    let begin = Instant::now();
    let domain = connection.define_xml(&machine("fixed")).unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::ShutOff);
    assert!(domain.is_persistent().unwrap());
    assert_eq!(domain.destroy().unwrap_err().kind, ErrorKind::OperationInvalid);
    worker(&connection).of(&domain).create().unwrap();
    println!("define and start: {:?}", begin.elapsed());
    assert_eq!(domain.state().unwrap(), DomainState::Running);
    assert_eq!(worker(&connection).of(&domain).create().unwrap_err().kind, ErrorKind::OperationInvalid);
    worker(&connection).of(&domain).suspend().unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Paused);

    let begin = Instant::now();
    domain.destroy().unwrap();
    println!("destroy: {:?}", begin.elapsed());
    assert_eq!(domain.state().unwrap(), DomainState::ShutOff);
    worker(&connection).of(&domain).create().unwrap();
    domain.destroy().unwrap();
    domain.undefine().unwrap();
    assert_eq!(domain.state().unwrap_err().kind, ErrorKind::NoDomain);

    use LifecycleKind::{Defined, Resumed, Started, Stopped, Suspended, Undefined};
    let seen: Vec<_> = events_until(&events, Undefined)
        .iter()
        .map(|e| e.kind)
        // QEMU may or may not announce its end, before it has ended.
        .filter(|kind| *kind != LifecycleKind::Shutdown)
        .collect();
    assert_eq!(
        seen,
        [Defined, Resumed, Started, Suspended, Stopped, Resumed, Started, Stopped, Undefined],
        "QEMU machines start paused and are resumed"
    );
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn transient_machines_and_secrets() {
    let libvirtd = Libvirtd::start();
    let connection = libvirtd.open();
    let domain = worker(&connection).create_xml(&machine("brief")).unwrap();
    assert!(!domain.is_persistent().unwrap());
    assert!(domain.id().is_some());

    let open = worker(&connection).of(&domain).xml(XmlKind::default()).unwrap();
    assert!(open.contains("<graphics type='vnc'") && !open.contains("s3cret"), "{open}");
    let secure = worker(&connection).of(&domain).xml(XmlKind { secure: true, inactive: false }).unwrap();
    assert!(secure.contains("passwd='s3cret'"), "{secure}");

    let uuid = domain.uuid();
    domain.destroy().unwrap();
    assert!(connection.domain_by_uuid(uuid).unwrap().is_none());
    assert_eq!(domain.state().unwrap_err().kind, ErrorKind::NoDomain);

    // Its secure XML restores it unchanged.
    let again = worker(&connection).create_xml(&secure).unwrap();
    assert_eq!(again.uuid(), uuid);
    assert!(
        worker(&connection)
            .of(&again)
            .xml(XmlKind { secure: true, inactive: false })
            .unwrap()
            .contains("passwd='s3cret'")
    );
    again.destroy().unwrap();
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn lists_in_bulk() {
    let libvirtd = Libvirtd::start();
    let begin = Instant::now();
    let connection = libvirtd.open();
    println!("open: {:?}", begin.elapsed());
    for i in 0..100 {
        connection.define_xml(&machine(&format!("vm{i}"))).unwrap();
    }
    let running = connection.domain_by_name("vm7").unwrap().unwrap();
    worker(&connection).of(&running).create().unwrap();
    let begin = Instant::now();
    let mut one_by_one = connection.domains().unwrap();
    println!("list of {}, one by one: {:?}", one_by_one.len(), begin.elapsed());
    let begin = Instant::now();
    let mut list = worker(&connection).domains_in_bulk().unwrap();
    println!("list of {}: {:?}", list.len(), begin.elapsed());
    assert_eq!(list.len(), 100);
    one_by_one.sort_by_key(|it| it.uuid);
    list.sort_by_key(|it| it.uuid);
    assert_eq!(list, one_by_one);
    for domain in list {
        let expected = if domain.name == "vm7" { DomainState::Running } else { DomainState::ShutOff };
        assert_eq!(domain.state, expected, "{}", domain.name);
    }
    let begin = Instant::now();
    for _ in 0..100 {
        connection.ping().unwrap();
    }
    println!("ping: {:?}", begin.elapsed() / 100);
    let begin = Instant::now();
    for _ in 0..100 {
        connection.domain_by_name("vm7").unwrap().unwrap().state().unwrap();
    }
    println!("look-up and state: {:?}", begin.elapsed() / 100);
    running.destroy().unwrap();
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn a_killed_libvirtd_ends_calls_and_connections() {
    let libvirtd = Libvirtd::start();
    let connection = libvirtd.open();
    let (subscription, _events) = watch(&connection);
    let lost = lost(&connection);

    // Calls in progress at the moment of the kill: libvirtd is stopped first, so that they surely are.
    let calls = in_flight(&connection, 16, &libvirtd);
    let begin = Instant::now();
    libvirtd.signal("KILL");
    for _ in 0..16 {
        let error = calls.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    }
    println!("SIGKILL: 16 calls in flight ended after {:?}", begin.elapsed());
    let reason = lost.recv_timeout(PATIENCE).unwrap();
    println!("SIGKILL: close call-back after {:?}: {reason:?}", begin.elapsed());
    assert!(matches!(reason, CloseReason::EndOfFile | CloseReason::Error), "{reason:?}");
    assert!(!connection.is_alive());

    let error = connection.ping().unwrap_err();
    println!("SIGKILL: later calls: {error}");
    assert_eq!(error.kind, ErrorKind::Connection);
    assert_eq!(connection.domain_by_name("x").unwrap_err().kind, ErrorKind::Connection);
    assert_eq!(connection.domains().unwrap_err().kind, ErrorKind::Connection);
    assert_eq!(connection.watch_lifecycle(|_| {}).map(drop).unwrap_or(()), ());

    // A late listener is called at once.
    let late = self::lost(&connection);
    assert_eq!(late.try_recv().unwrap(), reason);
    drop((connection, subscription));
    no_socket_is_left(&libvirtd);
}

/// Whatever was under way on them: calls, a subscription, nothing.
#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn connections_to_a_killed_libvirtd_leave_no_descriptors() {
    drop(Libvirtd::start().open());
    let before = descriptors();
    for round in 0..3 {
        let libvirtd = Libvirtd::start();
        let connections: Vec<_> = (0..12).map(|_| libvirtd.open()).collect();
        let subscriptions: Vec<_> = connections.iter().take(8).map(watch).collect();
        let calls: Vec<_> = connections.iter().skip(4).map(|it| in_flight(it, 2, &libvirtd)).collect();
        let losses: Vec<_> = connections.iter().map(lost).collect();
        libvirtd.signal("KILL");
        if round == 1 {
            // The last reference is that of the call, on the thread which finds the connection lost.
            drop((connections, subscriptions));
        } else {
            calls.iter().for_each(|it| assert!(it.recv_timeout(PATIENCE).unwrap().is_err()));
            drop((connections, subscriptions));
        }
        // Some are dropped before they hear of it.
        for it in &losses {
            let _ = it.recv_timeout(PATIENCE);
        }
        drop(libvirtd);
        let end = Instant::now() + PATIENCE;
        while descriptors() > before {
            assert!(Instant::now() < end, "round {round}: {} descriptors, {before} before", descriptors());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn an_idle_connection_notices_the_kill() {
    let libvirtd = Libvirtd::start();
    let connection = libvirtd.open();
    let lost = lost(&connection);
    let begin = Instant::now();
    libvirtd.signal("KILL");
    let reason = lost.recv_timeout(PATIENCE).unwrap();
    println!("SIGKILL, idle: close call-back after {:?}: {reason:?}", begin.elapsed());
    drop(connection);
    no_socket_is_left(&libvirtd);
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn a_stopped_libvirtd_is_noticed_by_keepalive() {
    for keepalive in [QUICK, KeepAlive::default()] {
        let libvirtd = Libvirtd::start();
        let connection = Connection::open_with(&libvirtd.uri(), keepalive).unwrap();
        let (subscription, _events) = watch(&connection);
        let lost = lost(&connection);
        let begin = Instant::now();
        let calls = in_flight(&connection, 4, &libvirtd);
        for _ in 0..4 {
            let error = calls.recv_timeout(PATIENCE).unwrap().unwrap_err();
            println!("SIGSTOP, {keepalive:?}: a call ended after {:?}: {error}", begin.elapsed());
            assert_eq!(error.kind, ErrorKind::Connection, "{error}");
        }
        let reason = lost.recv_timeout(PATIENCE).unwrap();
        println!("SIGSTOP, {keepalive:?}: close call-back after {:?}: {reason:?}", begin.elapsed());
        assert_eq!(reason, CloseReason::KeepAlive);
        let silence = u64::from(keepalive.interval_secs) * u64::from(keepalive.count);
        assert!(begin.elapsed() >= Duration::from_secs(silence - 1));
        assert!(!connection.is_alive());
        drop((connection, subscription));
        no_socket_is_left(&libvirtd);
    }
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn dropping_towards_a_stopped_libvirtd_does_not_block() {
    let libvirtd = Libvirtd::start();
    let connections: Vec<_> = (0..8)
        .map(|_| {
            let connection = libvirtd.open();
            let (subscription, _) = watch(&connection);
            (connection, subscription)
        })
        .collect();
    libvirtd.signal("STOP");
    let begin = Instant::now();
    drop(connections);
    println!("SIGSTOP: dropping 8 connections took {:?}", begin.elapsed());
    // A drop that waited would wait for keepalive: 15 s.
    assert!(begin.elapsed() < Duration::from_secs(10));
    no_socket_is_left(&libvirtd);
    println!("SIGSTOP: their sockets were closed after {:?}", begin.elapsed());
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn opening_towards_a_stopped_libvirtd_blocks() {
    let libvirtd = Libvirtd::start();
    libvirtd.signal("STOP");
    let (tell, told) = mpsc::channel();
    let uri = libvirtd.uri();
    thread::spawn(move || drop(tell.send(Connection::open(&uri).map(drop))));
    // Nothing in libvirt ends it: longer than keepalive would.
    assert!(told.recv_timeout(Duration::from_secs(25)).is_err());
    libvirtd.signal("CONT");
    told.recv_timeout(PATIENCE).unwrap().unwrap();
}

#[test]
#[ignore = "needs root, libvirtd and QEMU"]
fn many_connections_are_independent() {
    let libvirtd = Libvirtd::start();
    let begin = Instant::now();
    let connections: Vec<_> = (0..16).map(|_| libvirtd.open()).collect();
    println!("open, each of 16: {:?}", begin.elapsed() / 16);
    let domains: Vec<_> = connections
        .iter()
        .enumerate()
        .map(|(i, connection)| worker(connection).create_xml(&machine(&format!("vm{i}"))).unwrap())
        .collect();
    let begin = Instant::now();
    thread::scope(|scope| {
        for domain in &domains {
            scope.spawn(|| domain.destroy().unwrap());
        }
    });
    println!("destroy 16 at once: {:?}", begin.elapsed());
    assert!(connections[0].domains().unwrap().is_empty());
}

/// Starts `count` calls that a stopped libvirtd can't answer; their results arrive in the channel.
fn in_flight(connection: &Connection, count: usize, libvirtd: &Libvirtd) -> Receiver<Result<(), Error>> {
    libvirtd.signal("STOP");
    let (tell, told) = mpsc::channel();
    let start = Arc::new(Barrier::new(count + 1));
    for _ in 0..count {
        let (connection, tell, start) = (connection.clone(), tell.clone(), Arc::clone(&start));
        thread::spawn(move || {
            start.wait();
            drop(tell.send(connection.ping()));
        });
    }
    start.wait();
    // The calls can't tell that they are in progress; they are, long before this.
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "a stopped libvirtd answers nothing");
    told
}

fn watch(connection: &Connection) -> (EventSubscription, Receiver<LifecycleEvent>) {
    let (tell, told) = mpsc::channel();
    (connection.watch_lifecycle(move |event| drop(tell.send(event))).unwrap(), told)
}

fn lost(connection: &Connection) -> Receiver<CloseReason> {
    let (tell, told) = mpsc::channel();
    connection.on_close(move |reason| {
        let _ = tell.send(reason);
    });
    told
}

fn events_until(events: &Receiver<LifecycleEvent>, last: LifecycleKind) -> Vec<LifecycleEvent> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &LifecycleEvent| event.kind != last) {
        seen.push(events.recv_timeout(PATIENCE).unwrap());
    }
    seen
}

/// Waits until this process has no connection to that libvirtd any more, as the kernel counts.
fn no_socket_is_left(libvirtd: &Libvirtd) {
    let end = Instant::now() + PATIENCE;
    loop {
        // The client's end of a UNIX connection has no name; so count by the peer's inode, with ss.
        let out = Command::new("ss").args(["-xpnH"]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let ours = format!("pid={},", std::process::id());
        let named: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(&libvirtd.socket()))
            .filter_map(|line| line.split_whitespace().nth(5))
            .collect();
        let left = text
            .lines()
            .filter(|line| line.contains(&ours))
            .filter(|line| line.split_whitespace().nth(7).is_some_and(|peer| named.contains(&peer)))
            .count();
        let unpeered =
            text.lines().filter(|line| line.contains(&ours) && line.contains(&libvirtd.socket())).count();
        if left + unpeered == 0 {
            return;
        }
        assert!(Instant::now() < end, "{left} sockets to {} are left", libvirtd.socket());
        thread::sleep(Duration::from_millis(50));
    }
}

fn machine(name: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>\
         <os><type arch='x86_64' machine='pc'>hvm</type></os>\
         <devices><graphics type='vnc' autoport='yes' passwd='s3cret'/></devices></domain>"
    )
}

/// libvirtd in namespaces of its own; it and its machines end with this value.
struct Libvirtd {
    dir: TempDir,
    outer: Child,
    pid: u32,
}

impl Libvirtd {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/private-libvirtd.sh");
        let outer = Command::new("unshare")
            .args(["--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "bash"])
            .args([&script, dir.path()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut started = Self { dir, outer, pid: 0 };
        let end = Instant::now() + PATIENCE;
        while Connection::open(&started.uri()).is_err() {
            assert!(Instant::now() < end, "libvirtd does not start");
            thread::sleep(Duration::from_millis(50));
        }
        let shell = children(started.outer.id())[0];
        let is_libvirtd = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it.trim() == "libvirtd")
        };
        started.pid = children(shell).into_iter().find(is_libvirtd).unwrap();
        started
    }

    fn socket(&self) -> String {
        self.dir.path().join("sock/libvirt-sock").display().to_string()
    }

    fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket())
    }

    fn open(&self) -> Connection {
        Connection::open(&self.uri()).unwrap()
    }

    fn signal(&self, signal: &str) {
        let done = Command::new("kill").args(["-s", signal, &self.pid.to_string()]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        // unshare's --kill-child ends process 1 of the namespace, and the kernel all others in it.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[expect(clippy::disallowed_methods, reason = "the calls that the daemon makes beside its others")]
fn worker(connection: &Connection) -> OrdinaryConnection {
    OrdinaryConnection::new(connection)
}
