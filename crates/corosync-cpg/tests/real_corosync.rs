// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests against a real corosync of one node. They need root and corosync, and touch nothing of the machine:
//! each test runs on a node of its own (`node.sh`).
//! `cargo test -p corosync-cpg --test real_corosync -- --ignored`
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use corosync_cpg::{ChangeReason, ErrorKind, GroupEvent, Member, Node, NodeList, ProcessGroup, SendResult};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use node::{CONFIG, Corosync, Peer, join, on_a_node, wait_readable};

mod node;

#[test]
#[ignore = "needs root and corosync"]
fn own_messages_come_back_in_order() {
    on_a_node("own_messages_come_back_in_order", || {
        let _corosync = Corosync::start();
        let mut one = join("g");
        let me = one.group.me();
        assert_eq!(me, Member { node: 1, pid: std::process::id() });
        let mut first = [one.next(), one.next()];
        first.sort_by_key(|it| matches!(it, GroupEvent::Change { .. }));
        assert_eq!(first[0], GroupEvent::Ring { nodes: vec![1] });
        let joined = vec![(me, ChangeReason::Join)];
        assert_eq!(first[1], GroupEvent::Change { members: vec![me], left: vec![], joined });

        let largest = vec![7; one.group.max_message()];
        println!("the largest message has {} bytes", largest.len());
        assert!(largest.len() > 100_000);
        for data in [&b"one"[..], b"", b"three", &largest] {
            one.send(data);
        }
        for data in [&b"one"[..], b"", b"three", &largest] {
            assert_eq!(one.next(), GroupEvent::Message { from: me, data: data.to_vec() });
        }
        let error = one.group.send(&vec![7; largest.len() + 1]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Size);
        one.group.leave();
    });
}

#[test]
#[ignore = "needs root and corosync"]
fn names_and_members_that_are_refused() {
    on_a_node("names_and_members_that_are_refused", || {
        assert_eq!(ProcessGroup::join("g").unwrap_err().kind, ErrorKind::Gone);
        assert_eq!(NodeList::open().unwrap_err().kind, ErrorKind::Gone);
        let _corosync = Corosync::start();
        for name in ["", &"n".repeat(129)] {
            assert_eq!(ProcessGroup::join(name).unwrap_err().kind, ErrorKind::Size);
        }
        let _longest = join(&"n".repeat(128));
        let _group = join("g");
        assert_eq!(ProcessGroup::join("g").unwrap_err().kind, ErrorKind::Exists);
        let as_nobody = || {
            let (root, nobody) = (Uid::from_raw(0), Uid::from_raw(65534));
            let (roots, nobodys) = (Gid::from_raw(0), Gid::from_raw(65534));
            setresgid(nobodys, nobodys, roots).unwrap();
            setresuid(nobody, nobody, root).unwrap();
            let result = (ProcessGroup::join("h").map(drop), NodeList::open().map(drop));
            setresuid(root, root, root).unwrap();
            setresgid(roots, roots, roots).unwrap();
            result
        };
        let refused = as_nobody();
        assert_eq!(refused.0.unwrap_err().kind, ErrorKind::AccessDenied);
        assert_eq!(refused.1.unwrap_err().kind, ErrorKind::AccessDenied);
        // cpg.md says so; corosync need not be restarted.
        fs::write("/etc/corosync/uidgid.d/nobody", "uidgid {\n    uid: nobody\n}\n").unwrap();
        reload();
        assert_eq!(as_nobody(), (Ok(()), Ok(())));
        let list = NodeList::open().unwrap();
        let lets_in = |user, group| list.lets_in(user, group).unwrap();
        assert!(lets_in(0, 5) && lets_in(5, 0) && lets_in(65534, 5) && !lets_in(5, 65534));
    });
}

#[test]
#[ignore = "needs root and corosync"]
fn two_groups_and_two_members() {
    on_a_node("two_groups_and_two_members", || {
        let _corosync = Corosync::start();
        let (mut one, mut two) = (join("one"), join("two"));
        let me = one.group.me();
        let mut peer = Peer::start("peer", "two");
        let other = peer.member();
        let joined = two.until(|it| matches!(it, GroupEvent::Change { members, .. } if members.len() == 2));
        let GroupEvent::Change { members, left, joined } = joined else { panic!() };
        assert_eq!((sorted(members), left), (sorted(vec![me, other]), vec![]));
        assert_eq!(joined, [(other, ChangeReason::Join)]);

        assert_eq!(ProcessGroup::members_of("two"), Ok(sorted(vec![me, other])));
        assert_eq!(ProcessGroup::members_of("one"), Ok(vec![me]));
        assert_eq!(ProcessGroup::members_of("none"), Ok(vec![]));

        // Both see the messages of both senders in one order.
        for i in 0..200 {
            two.send(format!("mine {i}").as_bytes());
            one.send(b"not for the other group");
            peer.tell(&format!("send theirs {i}"));
        }
        let mine = two.messages(400);
        let theirs: Vec<_> = (0..400).map(|_| peer.hear("message ")).collect();
        assert_eq!(mine, theirs);
        let of = |who: &str| mine.iter().filter(|it| it.starts_with(who)).cloned().collect::<Vec<_>>();
        assert_eq!(of("mine"), (0..200).map(|i| format!("mine {i}")).collect::<Vec<_>>());
        assert_eq!(of("theirs"), (0..200).map(|i| format!("theirs {i}")).collect::<Vec<_>>());
        assert_eq!(one.messages(200), vec!["not for the other group"; 200]);

        // One member leaves, one dies.
        peer.tell("leave");
        assert_eq!(two.left(), [(other, ChangeReason::Leave)]);
        let mut peer = Peer::start("peer", "two");
        let other = peer.member();
        peer.child.kill().unwrap();
        peer.child.wait().unwrap();
        assert_eq!(two.left(), [(other, ChangeReason::ProcDown)]);
    });
}

/// Every message that was taken is delivered, however fast it was sent, and corosync takes only so many.
#[test]
#[ignore = "needs root and corosync"]
fn back_pressure_loses_nothing() {
    on_a_node("back_pressure_loses_nothing", || {
        let corosync = Corosync::start();
        let mut one = join("g");
        one.send(b"first");
        one.messages(1);
        for (size, more) in [(10, 500), (3000, 500), (200_000, 50)] {
            // A stopped corosync takes some messages, and no call waits for it.
            corosync.signal(Signal::SIGSTOP);
            let begin = Instant::now();
            let mut sent = 0;
            while one.group.send(&numbered(sent, size)).unwrap() == SendResult::Taken {
                sent += 1;
                assert!(sent < 1_000_000);
            }
            assert!(sent > 0, "{size}");
            assert!(one.group.dispatch().unwrap().is_empty());
            println!("{sent} messages of {size} bytes into a stopped corosync, {:?}", begin.elapsed());
            corosync.signal(Signal::SIGCONT);

            let (mut later, end) = (0, sent + more);
            while sent < end {
                match one.group.send(&numbered(sent, size)).unwrap() {
                    SendResult::Taken => sent += 1,
                    SendResult::Later => {
                        later += 1;
                        one.take();
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            println!("asked to wait {later} times");
            for i in 0..sent {
                let from = one.group.me();
                assert_eq!(one.next(), GroupEvent::Message { from, data: numbered(i, size) });
            }
        }
    });
}

#[test]
#[ignore = "needs root and corosync"]
fn corosync_goes_and_comes_back() {
    on_a_node("corosync_goes_and_comes_back", || {
        for how in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
            let corosync = Corosync::start();
            let mut one = join("g");
            let mut list = NodeList::open().unwrap();
            one.send(b"first");
            one.messages(1);
            corosync.end(how);
            wait_readable(&list);
            assert_eq!(list.changed().unwrap_err().kind, ErrorKind::Gone);
            assert_eq!(list.nodes().unwrap_err().kind, ErrorKind::Gone);
            let error = loop {
                // Events that it delivered before its end come first.
                wait_readable(&one.group);
                if let Err(error) = one.group.dispatch() {
                    break error;
                }
            };
            assert_eq!(error.kind, ErrorKind::Gone);
            assert_eq!(one.group.dispatch().unwrap_err().kind, ErrorKind::Gone);
            assert_eq!(one.group.send(b"x").unwrap_err().kind, ErrorKind::Gone);
            if how == Signal::SIGTERM { drop(one) } else { one.group.leave() }
        }
        let left: Vec<_> = fs::read_dir("/dev/shm").unwrap().map(|it| it.unwrap().file_name()).collect();
        println!("left in /dev/shm: {left:?}");
    });
}

#[test]
#[ignore = "needs root and corosync"]
fn the_node_list_and_its_changes() {
    on_a_node("the_node_list_and_its_changes", || {
        let _corosync = Corosync::start();
        let mut list = NodeList::open().unwrap();
        let node = |id, name: Option<&str>, address: Option<[u8; 4]>| Node {
            id,
            name: name.map(str::to_owned),
            addresses: address.map(Into::into).into_iter().collect(),
        };
        // Sorted by id, not by position. The second has no name but its host's.
        let before = [
            node(1, Some("alpha"), Some([127, 0, 0, 1])),
            node(5, Some("elsewhere"), None),
            node(9, None, Some([127, 0, 0, 3])),
        ];
        assert_eq!(list.nodes().unwrap(), before);
        assert!(!list.changed().unwrap());
        let edit = |from, to| {
            fs::write("/etc/corosync/corosync.conf", CONFIG.replace(from, to)).unwrap();
            reload();
        };
        edit("127.0.0.3", "127.0.0.3\n name: gamma");
        wait_readable(&list);
        assert!(list.changed().unwrap());
        assert_eq!(list.nodes().unwrap()[2], node(9, Some("gamma"), Some([127, 0, 0, 3])));
        // More nodes than before.
        edit(
            "node {\n        nodeid: 9",
            "node {\n nodeid: 11\n ring0_addr: 127.0.0.4\n }\n node {\n nodeid: 9",
        );
        wait_readable(&list);
        assert!(list.changed().unwrap());
        assert_eq!(list.nodes().unwrap()[3], node(11, None, Some([127, 0, 0, 4])));
    });
}

/// Not a test: the process that other tests start.
#[test]
#[ignore = "a part of other tests"]
fn peer() {
    node::be_a_peer();
}

/// Makes the running corosync read its configuration again.
fn reload() {
    let done = Command::new("corosync-cfgtool").arg("-R").output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Message that carries its number.
fn numbered(number: usize, size: usize) -> Vec<u8> {
    let mut data = format!("{number:010}").into_bytes();
    data.resize(size, b'.');
    data
}

fn sorted(mut members: Vec<Member>) -> Vec<Member> {
    members.sort_unstable();
    members
}
