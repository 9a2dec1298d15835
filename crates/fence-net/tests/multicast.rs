// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests of senders and listeners on real interfaces, in a network namespace of their own (needs root).
//!
//! The test runs itself again under unshare(1), so that nothing is sent on the machine's own networks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use fence_net::{
    MulticastScope, MulticastSender, interface_by_name, interfaces, join, leave, multicast_listener,
};

const SETUP: &str = "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
    ip link set lo up
    ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up
    ip link add off0 type veth peer name off1
    ip addr add 10.9.0.1/24 dev v0 label v0:lab && ip addr add 10.9.1.1/24 dev v1
    ip addr add fd09::1/64 dev v0 nodad && ip addr add fd09:1::1/64 dev v1 nodad
    exec \"$@\"";

#[test]
fn in_a_namespace() {
    let me = std::env::current_exe().unwrap();
    let run = Command::new("unshare")
        .args(["-n", "sh", "-c", SETUP, "sh"])
        .arg(me)
        .args(["--ignored", "--test-threads=1", "inside_"])
        .status()
        .unwrap();
    assert!(run.success());
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_interfaces() {
    let found = interfaces().unwrap();
    let names: Vec<_> = found.iter().map(|i| (i.name.as_str(), i.takes_multicast())).collect();
    for expected in [("lo", true), ("v0", true), ("v1", true), ("off0", false)] {
        assert!(names.contains(&expected), "{names:?}");
    }
    let v0 = interface_by_name("v0").unwrap().unwrap();
    let v4: Vec<_> = v0.addresses.iter().filter(|a| a.ip.is_ipv4()).map(|a| a.ip).collect();
    assert_eq!(v4, [IpAddr::from([10, 9, 0, 1])]);
    let link_local = v0.addresses.iter().find(|a| a.scope != 0).unwrap();
    assert_eq!(link_local.scope, v0.index);
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_every_source_is_heard_v4() {
    every_source_is_heard("225.0.0.12".parse().unwrap());
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_every_source_is_heard_v6() {
    every_source_is_heard("ff05::3:1".parse().unwrap());
    every_source_is_heard("ff02::3:1".parse().unwrap());
}

fn every_source_is_heard(group: IpAddr) {
    let listener = multicast_listener(group, 1229, MulticastScope::All).unwrap();
    let mut names: Vec<_> = listener.joined.iter().map(|j| j.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["lo", "v0", "v1"]);
    let mut sent = 0;
    for interface in interfaces().unwrap() {
        for &source in &interface.addresses {
            if source.ip.is_ipv4() != group.is_ipv4() || source.ip.is_ipv6() && interface.is_loopback() {
                continue;
            }
            let sender = MulticastSender::open(source, interface.index, group, 1229, 2).unwrap();
            sender.send(&[7; 176]).unwrap();
            // The sender's own interface loops it back, and the other end of the veth receives it too, sooner
            // or later.
            while heard(&listener.socket) != source.ip {}
            sent += 1;
        }
    }
    assert!(sent >= 3);
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_one_interface_only() {
    let group = "225.0.0.12".parse().unwrap();
    let [lo, v0] = ["lo", "v0"].map(|n| interface_by_name(n).unwrap().unwrap());
    let all = multicast_listener(group, 1229, MulticastScope::All).unwrap();
    let one = multicast_listener(group, 1229, MulticastScope::Interface(v0.index)).unwrap();
    assert_eq!(one.joined.iter().map(|j| j.index).collect::<Vec<_>>(), [v0.index]);
    let source = lo.addresses.iter().copied().find(|a| a.ip.is_ipv4()).unwrap();
    let by_lo = MulticastSender::open(source, lo.index, group, 1229, 2).unwrap();
    by_lo.send(b"x").unwrap();
    heard(&all.socket);
    assert_eq!(received(&one.socket), None, "came by an interface that was not joined");

    join(&one.socket, group, lo.index).unwrap();
    join(&one.socket, group, lo.index).unwrap();
    by_lo.send(b"x").unwrap();
    heard(&one.socket);
    leave(&one.socket, group, lo.index).unwrap();
    by_lo.send(b"x").unwrap();
    assert_eq!(received(&one.socket), None);
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_unicast_is_not_heard() {
    for (group, unicast) in [("225.0.0.12", "127.0.0.1:1229"), ("ff05::3:1", "[::1]:1229")] {
        let listener = multicast_listener(group.parse().unwrap(), 1229, MulticastScope::All).unwrap();
        let any = if group.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        UdpSocket::bind(any).unwrap().send_to(b"x", unicast).unwrap();
        assert_eq!(received(&listener.socket), None);
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_no_such_index() {
    let error =
        multicast_listener("225.0.0.12".parse().unwrap(), 1229, MulticastScope::Interface(9999)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

/// Returns the source of the next datagram, which is sure to come.
fn heard(socket: &UdpSocket) -> IpAddr {
    from(socket, Duration::from_secs(20)).expect("nothing came")
}

/// Returns the source of a datagram that should not have come.
fn received(socket: &UdpSocket) -> Option<IpAddr> {
    from(socket, Duration::from_millis(100))
}

fn from(socket: &UdpSocket, within: Duration) -> Option<IpAddr> {
    socket.set_read_timeout(Some(within)).unwrap();
    let mut buffer = [0; 200];
    socket.recv_from(&mut buffer).ok().map(|(_, from)| from.ip())
}
