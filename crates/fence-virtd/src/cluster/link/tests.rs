// SPDX-License-Identifier: GPL-2.0-or-later
//! Against a real corosync of one node: those need root and corosync, and each runs on a node of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use super::*;
use crate::cluster::node::{self, Corosync, PATIENCE, Peer, on_a_node};
use crate::host_down::DownEvidence;

/// Longer than corosync is busy while a test runs, whatever else the machine does.
const LONG: Duration = Duration::from_secs(600);

#[test]
fn a_message_is_for_one_membership() {
    let mut state = LinkState { longest: 10, ..LinkState::default() };
    assert_eq!(state.put(vec![1]), Err(SendError::Gone));
    state.known = Some(1);
    state.put(vec![1; 10]).unwrap();
    assert_eq!(state.put(vec![1; 11]), Err(SendError::TooLong(11)));
    state.known = Some(2);
    state.put(vec![2]).unwrap();
    state.put(vec![3]).unwrap();
    assert_eq!((state.take(2), state.take(2), state.take(2)), (Some(vec![2]), Some(vec![3]), None));
    assert_eq!(state.bytes, 0);
}

#[test]
fn there_is_an_end_to_what_waits() {
    for size in [1, 1 << 20] {
        let mut state = LinkState { longest: 1 << 20, known: Some(1), ..LinkState::default() };
        let fit = (0..100_000).take_while(|_| state.put(vec![0; size]).is_ok()).count();
        assert_eq!(fit, WAITING.0.min(WAITING.1 / size));
        // Until the end of the membership was told.
        assert_eq!((state.told(), state.put(vec![0])), ((true, false), Err(SendError::Gone)));
        state.forget();
        assert_eq!((state.told(), state.take(1)), ((false, false), None));
    }
}

/// A bell that is rung while the thread is about to wait again must not be lost.
#[test]
fn whatever_is_sent_wakes_the_thread() {
    let (rung, bell) = io::pipe().unwrap();
    let shared = Arc::new(LinkShared { state: Mutex::default(), bell });
    (shared.state().known, shared.state().longest) = (Some(1), 1);
    let waiting = LinkThread {
        name: GROUP.to_owned(),
        shared: Arc::clone(&shared),
        rung,
        events: mpsc::channel(1).0,
        number: 1,
        lost: None,
        silence: LONG,
        alive: None,
    };
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        loop {
            while let Some(it) = waiting.shared.state().take(1) {
                tell.send(it).unwrap();
            }
            waiting.wait(&[], None);
        }
    });
    for i in 0..10_000 {
        // The last of a few comes while the thread wakes up for the first, later each time.
        for _ in 0..2 {
            shared.state().put(vec![0]).unwrap();
            shared.ring();
            (0..i * 7 % 4000).for_each(|_| std::hint::spin_loop());
        }
        for _ in 0..2 {
            told.recv_timeout(PATIENCE).unwrap();
        }
    }
}

#[test]
fn silence_counts_from_the_last_event_and_only_while_something_is_out() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut sending = SendQueue::default();
    assert!(!sending.is_silent(false, SILENCE, at(0)) && !sending.is_silent(false, SILENCE, at(100)));
    assert_eq!(sending.timeout(SILENCE, at(100)), None);
    sending.out = 1;
    assert!(!sending.is_silent(false, SILENCE, at(101)) && !sending.is_silent(false, SILENCE, at(120)));
    assert_eq!(sending.timeout(SILENCE, at(120)), Some(Duration::from_secs(1)));
    assert!(!sending.is_silent(true, SILENCE, at(120)) && !sending.is_silent(false, SILENCE, at(139)));
    assert!(sending.is_silent(false, SILENCE, at(140)));
}

#[test]
#[ignore = "needs root and corosync"]
fn joins_and_hears_itself_in_order() {
    on_a_link("joins_and_hears_itself_in_order", LONG, async |link, mut events| {
        assert_eq!(link.send(b"too early".to_vec()), Err(SendError::Gone));
        assert!(matches!(next(&mut events).await, LinkEvent::Lost(_)));
        let _corosync = Corosync::start();
        let LinkEvent::Joined { me, nodes } = next(&mut events).await else { panic!() };
        let node = |id, name: Option<&str>, address: Option<[u8; 4]>| Node {
            id,
            name: name.map(str::to_owned),
            addresses: address.map(Into::into).into_iter().collect(),
        };
        assert_eq!(
            nodes,
            Some(vec![
                node(1, Some("alpha"), Some([127, 0, 0, 1])),
                node(5, Some("elsewhere"), None),
                node(9, None, Some([127, 0, 0, 3])),
            ])
        );
        for i in 0..1000 {
            link.send(format!("{i}").into_bytes()).unwrap();
        }
        assert_eq!(link.send(vec![0; 2 << 20]), Err(SendError::TooLong(2 << 20)));
        let (mut is_member, mut heard) = (false, 0);
        while heard < 1000 {
            match next(&mut events).await {
                LinkEvent::Ring { nodes } => assert_eq!(nodes, [1]),
                LinkEvent::Change { members, left, joined } => {
                    assert_eq!((members, left, joined), (vec![me], vec![], vec![(me, Reason::Join)]));
                    is_member = true;
                }
                LinkEvent::Message { from, data } => {
                    assert_eq!((from, data, is_member), (me, format!("{heard}").into_bytes(), true));
                    heard += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        link.leave().await;
        assert_eq!(events.next().await, None);
    });
}

#[test]
#[ignore = "needs root and corosync"]
fn what_is_still_to_be_sent_is_sent_before_leaving() {
    on_a_link("what_is_still_to_be_sent_is_sent_before_leaving", LONG, async |link, mut events| {
        let _corosync = Corosync::start();
        joined(&mut events).await;
        let mut peer = Peer::start("cluster::link::tests::peer", GROUP);
        peer.member();
        for i in 0..200 {
            link.send(format!("{i}").into_bytes()).unwrap();
        }
        link.leave().await;
        for i in 0..200 {
            assert_eq!(peer.hear("message "), format!("{i}"));
        }
        assert_eq!(peer.hear("left "), "Leave");
    });
}

#[test]
#[ignore = "needs root and corosync"]
fn corosync_goes_and_comes_back() {
    on_a_link("corosync_goes_and_comes_back", LONG, async |link, mut events| {
        for how in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
            let corosync = Corosync::start();
            let me = joined(&mut events).await;
            link.send(b"now".to_vec()).unwrap();
            assert_eq!(message(&mut events).await, (me, b"now".to_vec()));
            corosync.end(how);
            // For a membership that is over, whether we were told or not.
            let _ = link.send(b"too late".to_vec());
            let why = lost(&mut events).await;
            assert!(why.contains("systemctl status corosync"), "{why}");
            assert_eq!(link.send(b"too late".to_vec()), Err(SendError::Gone));
        }
        link.leave().await;
        assert_eq!(events.next().await, None);
    });
}

/// The runtime has one thread: a call that waited would hold up everything.
#[test]
#[ignore = "needs root and corosync"]
fn a_stopped_corosync_is_lost_when_it_is_silent() {
    on_a_link(
        "a_stopped_corosync_is_lost_when_it_is_silent",
        Duration::from_secs(3),
        async |link, mut events| {
            let corosync = Corosync::start();
            talk(&link, &mut events).await;
            for _ in 0..2 {
                corosync.signal(Signal::SIGSTOP);
                // More than it takes in that state.
                for _ in 0..1000 {
                    link.send(b"lost".to_vec()).unwrap();
                }
                let why = lost(&mut events).await;
                assert!(why.contains("delivered nothing"), "{why}");
                corosync.signal(Signal::SIGCONT);
                talk(&link, &mut events).await;
            }
        },
    );
}

#[test]
#[ignore = "needs root and corosync"]
fn more_than_corosync_takes_ends_the_membership() {
    on_a_link("more_than_corosync_takes_ends_the_membership", LONG, async |link, mut events| {
        let corosync = Corosync::start();
        joined(&mut events).await;
        corosync.signal(Signal::SIGSTOP);
        while link.send(vec![0; 1000]).is_ok() {}
        let (why, ()) = tokio::join!(lost(&mut events), async { corosync.signal(Signal::SIGCONT) });
        assert!(why.contains("takes less"), "{why}");
        joined(&mut events).await;
        link.send(b"present".to_vec()).unwrap();
        // What was taken before may come, or not; nothing of what was not.
        while message(&mut events).await.1 != b"present" {}
    });
}

#[test]
#[ignore = "needs root and corosync"]
fn a_stopped_corosync_does_not_hold_up_the_end() {
    on_a_link("a_stopped_corosync_does_not_hold_up_the_end", LONG, async |link, mut events| {
        let corosync = Corosync::start();
        joined(&mut events).await;
        corosync.signal(Signal::SIGSTOP);
        // This one can't even join.
        let (fresh, _events) = Link::start("another").unwrap();
        let begin = Instant::now();
        tokio::join!(link.leave(), fresh.leave());
        assert!(begin.elapsed() < PATIENCE);
    });
}

/// With the limits that the daemon gives itself, and only those programs that were asked for.
#[test]
#[ignore = "needs root, corosync and Pacemaker"]
fn within_the_sandbox() {
    on_a_node("cluster::link::tests::within_the_sandbox", || {
        let corosync = Corosync::start();
        let pacemaker = Pacemaker::start();
        // What happens outside is done by a thread that was there before.
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let outside = thread::spawn(move || {
            told.recv().unwrap();
            drop(pacemaker);
            corosync.end(Signal::SIGKILL);
            let _corosync = Corosync::start();
            let _ = told.recv();
        });
        let text = r#"fence_virtd { backend = "cpg"; }
            backends { cpg { uri = "test:///default"; host_down = "pacemaker"; } }"#;
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        let protection = crate::daemon::sandbox::try_on(&config, Path::new("/etc/fence_virt.conf"), None);
        println!("{protection}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (link, mut events) = Link::start(GROUP).unwrap();
            let me = joined(&mut events).await;
            link.send(b"one".to_vec()).unwrap();
            assert_eq!(message(&mut events).await, (me, b"one".to_vec()));

            let proofs = DownEvidence::new(&fence_config::HostDown::Pacemaker);
            let before = fence_core::host_down::Moment::default();
            let host = |name: &str| proofs.lost(5, Some(name.to_owned()), before);
            let proof = host("elsewhere")
                .proved(crate::host_down::clock::now(), Instant::now() + PATIENCE)
                .await
                .unwrap();
            assert!(proof.evidence().unwrap().contains("a human"), "{proof:?}");
            let nosuch = host("nosuch");
            let reason = loop {
                let reason = nosuch
                    .proved(crate::host_down::clock::now(), Instant::now() + Duration::from_secs(2))
                    .await
                    .unwrap_err();
                if !reason.contains("nobody was asked in time") {
                    break reason;
                }
            };
            assert!(reason.contains("has not fenced the host"), "{reason}");

            tell.send(()).unwrap();
            lost(&mut events).await;
            let me = joined(&mut events).await;
            link.send(b"two".to_vec()).unwrap();
            assert_eq!(message(&mut events).await, (me, b"two".to_vec()));
            link.leave().await;
        });
        drop(tell);
        outside.join().unwrap();
    });
}

/// A Pacemaker that was told by hand that the node "elsewhere" is off. It ends with this.
struct Pacemaker(Child);

impl Pacemaker {
    fn start() -> Self {
        let command = |program: &str| {
            let mut it = Command::new(program);
            it.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            it
        };
        let it = Self(command("pacemakerd").arg("-f").spawn().unwrap());
        let deadline = Instant::now() + PATIENCE * 3;
        while !command("stonith_admin").args(["--confirm", "elsewhere"]).status().unwrap().success() {
            assert!(Instant::now() < deadline, "Pacemaker does not come up");
            thread::sleep(Duration::from_millis(100));
        }
        it
    }
}

impl Drop for Pacemaker {
    fn drop(&mut self) {
        // Its parts end with the node.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: the process that others start.
#[test]
#[ignore = "a part of other tests"]
fn peer() {
    node::be_a_peer();
}

const GROUP: &str = "g";

/// Runs the test with a link, on a node of its own, on one thread.
fn on_a_link(name: &str, silence: Duration, test: impl AsyncFnOnce(Link, LinkReceiver)) {
    on_a_node(&format!("cluster::link::tests::{name}"), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (link, events) = Link::start_with(GROUP, silence).unwrap();
        runtime.block_on(test(link, events));
    });
}

/// Whatever comes next.
async fn next(events: &mut LinkReceiver) -> LinkEvent {
    tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap()
}

/// Returns our member of the next membership.
async fn joined(events: &mut LinkReceiver) -> Member {
    loop {
        if let LinkEvent::Joined { me, .. } = next(events).await {
            return me;
        }
    }
}

/// Joins, and hears itself. A busy machine may be silent too.
async fn talk(link: &Link, events: &mut LinkReceiver) {
    loop {
        match next(events).await {
            LinkEvent::Joined { .. } => link.send(b"now".to_vec()).unwrap(),
            LinkEvent::Message { data, .. } if data == b"now" => return,
            _ => {}
        }
    }
}

/// Why the membership ended.
async fn lost(events: &mut LinkReceiver) -> String {
    loop {
        if let LinkEvent::Lost(why) = next(events).await {
            return why;
        }
    }
}

async fn message(events: &mut LinkReceiver) -> (Member, Vec<u8>) {
    loop {
        if let LinkEvent::Message { from, data } = next(events).await {
            return (from, data);
        }
    }
}
