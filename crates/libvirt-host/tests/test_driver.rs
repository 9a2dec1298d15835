// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests against libvirt's built-in test driver: real libvirt, imaginary machines, no privileges.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use libvirt_host::{
    Connection, DomainState, ErrorKind, LifecycleEvent, LifecycleKind, OrdinaryConnection, Uuid, XmlKind,
};
use tempfile::TempDir;

/// Limit far above any real time here; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn lists_every_domain_with_name_uuid_and_state() {
    let node = Node::of(&[("alpha", 1), ("beta é & <x>", 3), ("gamma", 5), ("delta", 6)]);
    let mut list = node.open().domains().unwrap();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    let seen: Vec<_> = list.iter().map(|d| (d.name.as_str(), d.uuid, d.state)).collect();
    assert_eq!(
        seen,
        [
            ("alpha", uuid(0), DomainState::Running),
            ("beta é & <x>", uuid(1), DomainState::Paused),
            ("delta", uuid(3), DomainState::Crashed),
            ("gamma", uuid(2), DomainState::ShutOff),
        ]
    );
}

#[test]
fn lists_a_thousand() {
    let names: Vec<String> = (0..1000).map(|i| format!("vm{i}")).collect();
    let domains: Vec<(&str, i32)> = names.iter().map(|n| (n.as_str(), 1)).collect();
    let node = Node::of(&domains);
    let connection = node.open();
    let mut list = connection.domains().unwrap();
    list.sort_by_key(|d| d.uuid);
    assert_eq!(list.len(), 1000);
    let mut bulk = worker(&connection).domains_in_bulk().unwrap();
    bulk.sort_by_key(|d| d.uuid);
    assert_eq!(bulk, list);
    let mut read = 0;
    let stopped = connection.domains_unless(|| {
        read += 1;
        read == 3
    });
    assert_eq!((stopped.unwrap(), read), (None, 3));
    for (i, domain) in list.iter().enumerate() {
        assert_eq!((domain.name.as_str(), domain.uuid), (names[i].as_str(), uuid(i)));
        assert_eq!(domain.state, DomainState::Running);
    }
}

#[test]
fn finds_by_name_and_by_uuid_or_says_none() {
    let node = Node::of(&[("alpha", 1), ("beta", 5)]);
    let connection = node.open();
    let beta = connection.domain_by_name("beta").unwrap().unwrap();
    assert_eq!((beta.name(), beta.uuid(), beta.id()), ("beta", uuid(1), None));
    let alpha = connection.domain_by_uuid(uuid(0)).unwrap().unwrap();
    assert_eq!((alpha.name(), alpha.uuid()), ("alpha", uuid(0)));
    assert!(alpha.id().is_some());
    assert!(connection.domain_by_name("Beta").unwrap().is_none());
    assert!(connection.domain_by_name("").is_err() || connection.domain_by_name("").unwrap().is_none());
    assert!(connection.domain_by_uuid(uuid(7)).unwrap().is_none());
}

#[test]
fn powers_off_and_on() {
    let node = Node::of(&[("alpha", 1)]);
    let connection = node.open();
    let domain = connection.domain_by_name("alpha").unwrap().unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Running);
    assert!(domain.is_active().unwrap() && domain.is_persistent().unwrap());

    worker(&connection).of(&domain).suspend().unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Paused);
    assert!(domain.is_active().unwrap());
    worker(&connection).of(&domain).resume().unwrap();

    domain.destroy().unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::ShutOff);
    assert!(!domain.is_active().unwrap());
    assert_eq!(domain.destroy().unwrap_err().kind, ErrorKind::OperationInvalid);

    worker(&connection).of(&domain).create().unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Running);
    // OperationInvalid from a real hypervisor; the test driver calls it an internal error.
    assert!(worker(&connection).of(&domain).create().unwrap_err().message.contains("already running"));
}

#[test]
fn a_transient_domain_is_gone_after_destroy() {
    let node = Node::of(&[]);
    let connection = node.open();
    let domain = worker(&connection).create_xml(&domain_xml("brief", 4, "")).unwrap();
    assert_eq!(domain.state().unwrap(), DomainState::Running);
    assert!(!domain.is_persistent().unwrap());
    domain.destroy().unwrap();
    assert!(connection.domain_by_uuid(uuid(4)).unwrap().is_none());
    assert!(connection.domain_by_name("brief").unwrap().is_none());
    assert_eq!(domain.state().unwrap_err().kind, ErrorKind::NoDomain);
    assert_eq!(domain.destroy().unwrap_err().kind, ErrorKind::NoDomain);
    assert_eq!(
        worker(&connection).of(&domain).xml(XmlKind::default()).unwrap_err().kind,
        ErrorKind::NoDomain
    );
}

#[test]
fn reads_xml() {
    let node = Node::of(&[("alpha", 1)]);
    let connection = node.open();
    let domain = connection.domain_by_name("alpha").unwrap().unwrap();
    for (secure, inactive) in [(false, false), (true, false), (false, true), (true, true)] {
        let xml = worker(&connection).of(&domain).xml(XmlKind { secure, inactive }).unwrap();
        assert!(xml.contains("<name>alpha</name>") && xml.contains(&uuid(0).to_string()), "{xml}");
        // The active XML names the running instance.
        assert_eq!(xml.contains(" id='"), !inactive, "{xml}");
    }
}

#[test]
fn lifecycle_events_arrive_in_order() {
    use LifecycleKind::{Defined, Resumed, Started, Stopped, Suspended, Undefined};
    let node = Node::of(&[]);
    let connection = node.open();
    let (_subscription, events) = watch(&connection);
    let domain = connection.define_xml(&domain_xml("alpha", 0, "")).unwrap();
    worker(&connection).of(&domain).create().unwrap();
    worker(&connection).of(&domain).suspend().unwrap();
    worker(&connection).of(&domain).resume().unwrap();
    domain.destroy().unwrap();
    domain.undefine().unwrap();
    for kind in [Defined, Started, Suspended, Resumed, Stopped, Undefined] {
        let event = events.recv_timeout(PATIENCE).unwrap();
        assert_eq!((event.kind, event.name.as_str(), event.uuid), (kind, "alpha", uuid(0)));
    }
}

#[test]
fn a_dropped_subscription_is_silent_and_freed() {
    let node = Node::of(&[("alpha", 1)]);
    let connection = node.open();
    let domain = connection.domain_by_name("alpha").unwrap().unwrap();
    let (first, first_events) = watch(&connection);
    let (_second, second_events) = watch(&connection);
    drop(first);
    // One more, to be sure that the freed entry can be used again.
    let (_third, third_events) = watch(&connection);
    domain.destroy().unwrap();
    assert_eq!(third_events.recv_timeout(PATIENCE).unwrap().kind, LifecycleKind::Stopped);
    assert_eq!(second_events.recv_timeout(PATIENCE).unwrap().kind, LifecycleKind::Stopped);
    // The sender was in the closure: the channel ends when the closure was freed, and no event came before.
    assert_eq!(first_events.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn everything_may_be_dropped_in_a_callback() {
    let node = Node::of(&[("alpha", 1)]);
    let connection = node.open();
    let domain = connection.domain_by_name("alpha").unwrap().unwrap();
    let all: Arc<Mutex<Vec<Box<dyn std::any::Any + Send>>>> = Arc::default();
    let (tell, told) = mpsc::channel();
    let in_callback = Arc::clone(&all);
    let subscription = connection
        .watch_lifecycle(move |event| {
            in_callback.lock().unwrap().clear();
            tell.send(event.kind).unwrap();
        })
        .unwrap();
    let doomed = connection.domain_by_name("alpha").unwrap().unwrap();
    let freed = freed_on_close(&connection);
    all.lock().unwrap().extend([
        Box::new(subscription) as Box<dyn std::any::Any + Send>,
        Box::new(doomed),
        Box::new(connection),
    ]);
    domain.destroy().unwrap();
    drop(domain);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), LifecycleKind::Stopped);
    assert_eq!(told.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected), "closure freed");
    assert_eq!(freed.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected), "connection closed");

    // The event thread lives on.
    let connection = node.open();
    let (_subscription, events) = watch(&connection);
    connection.domain_by_name("alpha").unwrap().unwrap().destroy().unwrap();
    assert_eq!(events.recv_timeout(PATIENCE).unwrap().kind, LifecycleKind::Stopped);
}

#[test]
fn a_connection_lives_as_long_as_its_domains_and_subscriptions() {
    let node = Node::of(&[("alpha", 1)]);
    let connection = node.open();
    let freed = freed_on_close(&connection);
    let domain = connection.domain_by_name("alpha").unwrap().unwrap();
    drop(connection);
    assert_eq!(domain.state().unwrap(), DomainState::Running);
    assert_eq!(freed.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(domain);
    assert_eq!(freed.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn sixteen_threads_share_one_connection() {
    let names: Vec<String> = (0..16).map(|i| format!("vm{i}")).collect();
    let node = Node::of(&names.iter().map(|n| (n.as_str(), 1)).collect::<Vec<_>>());
    let connection = node.open();
    let start = Barrier::new(names.len());
    thread::scope(|scope| {
        for (i, name) in names.iter().enumerate() {
            let (connection, start) = (connection.clone(), &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..50 {
                    let domain = connection.domain_by_name(name).unwrap().unwrap();
                    domain.destroy().unwrap();
                    assert_eq!(domain.state().unwrap(), DomainState::ShutOff);
                    // Errors belong to the thread that made the call.
                    assert_eq!(domain.destroy().unwrap_err().kind, ErrorKind::OperationInvalid);
                    let missing = format!("no-such-{i}");
                    assert!(connection.domain_by_name(&missing).unwrap().is_none());
                    worker(&connection).of(&domain).create().unwrap();
                    assert_eq!(connection.domains().unwrap().len(), 16);
                }
            });
        }
    });
    assert!(connection.domains().unwrap().iter().all(|d| d.state == DomainState::Running));
}

#[test]
fn opening_and_closing_many_leaks_no_file() {
    let node = Node::of(&[("alpha", 1)]);
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop(node.open());
    for _ in 0..200 {
        let connection = node.open();
        let (subscription, _events) = watch(&connection);
        drop((connection, subscription));
    }
    // Other tests of this process open files too; two hundred leaks would stand out.
    assert!(files() < 150, "{} files are open", files());
}

#[test]
fn health() {
    let node = Node::of(&[("alpha", 1)]);
    let connection = node.open();
    assert!(connection.is_alive());
    connection.ping().unwrap();
    assert_eq!(connection.uri(), node.uri());
}

#[test]
fn text_with_nul_is_an_error() {
    let connection = Node::of(&[]).open();
    for error in [
        connection.domain_by_name("a\0b").unwrap_err(),
        connection.define_xml("<domain>\0</domain>").unwrap_err(),
        worker(&connection).create_xml("\0").unwrap_err(),
        Connection::open("test:///default\0").unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Other);
        assert!(error.to_string().ends_with(": the text contains a NUL character"), "{error}");
    }
}

#[test]
fn an_unreachable_hypervisor_is_a_connection_error() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("libvirt-sock");
    let uri = format!("qemu+unix:///system?socket={}", socket.display());

    let absent = Connection::open(&uri).unwrap_err();
    assert_eq!(absent.kind, ErrorKind::Connection);
    assert!(absent.to_string().starts_with("open a connection: Failed to connect socket to '"), "{absent}");

    drop(UnixListener::bind(&socket).unwrap());
    let refused = Connection::open(&uri).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Connection);
    assert!(refused.message.contains("Connection refused"), "{refused}");

    std::fs::remove_file(&socket).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || drop(listener.accept().unwrap()));
    let hung_up = Connection::open(&uri).unwrap_err();
    assert_eq!(hung_up.kind, ErrorKind::Connection, "{hung_up}");
    server.join().unwrap();
}

#[test]
fn errors_name_call_and_reason_on_one_line() {
    let connection = Node::of(&[]).open();
    let error = connection.define_xml("<domain type='test'><name>x\n</name></domain>").unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("define a domain: ") && text.len() > 20, "{text}");
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
    assert_ne!((error.code, error.domain), (0, 0));
}

#[test]
fn nothing_is_printed() {
    let quiet = run_self("quiet");
    assert!(quiet.status.success());
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
    assert!(!String::from_utf8_lossy(&quiet.stdout).contains("libvirt:"));
    // Without this crate the same error would have been printed.
    assert!(String::from_utf8_lossy(&run_self("loud").stderr).contains("libvirt:"));
}

/// Not a test by itself: [`nothing_is_printed`] runs it in another process.
#[test]
fn child() {
    match std::env::var("LIBVIRT_HOST_TEST_CHILD").as_deref() {
        Ok("quiet") => {
            Connection::open("nonsense:///").unwrap_err();
            Connection::open("qemu+unix:///system?socket=/no/such/socket").unwrap_err();
            let connection = Node::of(&[]).open();
            assert!(connection.domain_by_name("missing").unwrap().is_none());
            connection.define_xml("<nonsense>").unwrap_err();
            // Also on a thread of its own, where libvirt keeps another error.
            thread::spawn(move || assert!(worker(&connection).create_xml("").is_err())).join().unwrap();
        }
        Ok("loud") => drop(virt::connect::Connect::open(Some("nonsense:///"))),
        _ => {}
    }
}

fn run_self(mode: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env("LIBVIRT_HOST_TEST_CHILD", mode)
        .output()
        .unwrap()
}

fn watch(connection: &Connection) -> (libvirt_host::EventSubscription, Receiver<LifecycleEvent>) {
    let (tell, told) = mpsc::channel();
    (connection.watch_lifecycle(move |event| drop(tell.send(event))).unwrap(), told)
}

/// Returns a channel that ends when the connection has been closed, and with it its close call-back freed.
fn freed_on_close(connection: &Connection) -> Receiver<()> {
    let (tell, told): (Sender<()>, _) = mpsc::channel();
    connection.on_close(move |_| tell.send(()).unwrap());
    told
}

/// File with imaginary machines. Every connection to it has a world of its own.
struct Node {
    dir: TempDir,
}

impl Node {
    /// Makes domains with these names and libvirt's state numbers; the n-th has [`uuid`]`(n)`.
    fn of(domains: &[(&str, i32)]) -> Self {
        let dir = TempDir::new().unwrap();
        let mut text = String::from("<node>\n");
        for (i, (name, state)) in domains.iter().enumerate() {
            let state = format!("<test:runstate>{state}</test:runstate>");
            writeln!(text, "{}", domain_xml(name, i, &state)).unwrap();
        }
        text.push_str("</node>\n");
        std::fs::write(dir.path().join("node.xml"), text).unwrap();
        Self { dir }
    }

    fn uri(&self) -> String {
        format!("test://{}", self.dir.path().join("node.xml").display())
    }

    fn open(&self) -> Connection {
        Connection::open(&self.uri()).unwrap()
    }
}

fn uuid(number: usize) -> Uuid {
    let mut bytes = [0xab; 16];
    bytes[8..].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
    Uuid::from_bytes(bytes)
}

fn domain_xml(name: &str, number: usize, extra: &str) -> String {
    let name = name.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>{extra}\
         <name>{name}</name>\
         <uuid>{}</uuid><memory>1024</memory><os><type arch='i686'>hvm</type></os></domain>",
        uuid(number)
    )
}

#[expect(clippy::disallowed_methods, reason = "the calls that the daemon makes beside its others")]
fn worker(connection: &Connection) -> OrdinaryConnection {
    OrdinaryConnection::new(connection)
}
