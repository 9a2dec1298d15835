// SPDX-License-Identifier: GPL-2.0-or-later
//! Searches by loopback alone, with a host that a test plays.

use std::net::{Ipv4Addr, UdpSocket as StdSocket};
use std::time::Duration;

use fence_net::{MulticastListener, MulticastScope};
use fence_wire::{HOST_LIST_END, HOST_LIST_FOLLOWS, HashType};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::*;

/// Host that is busy while the first request comes: it takes that one up when the second one is there, as a
/// C daemon does that was held up by its libvirt.
async fn play_slow_host(socket: UdpSocket) {
    let mut packets = Vec::new();
    while packets.len() < 2 {
        let mut packet = [0; 2048];
        let (length, _) = socket.recv_from(&mut packet).await.unwrap();
        packets.push(packet[..length].to_vec());
    }
    let first = Request::decode(&packets[0], HashType::None, &[]).unwrap().request;
    let second = Request::decode(&packets[1], HashType::None, &[]).unwrap().request;
    assert_eq!((first.action, second.action), (Action::List, Action::List));
    let (to, again) = (first.call_back.unwrap(), second.call_back.unwrap());
    assert_eq!((to.address, to.port), (again.address, again.port), "one port, for firewalls");
    assert_ne!(first.sequence, second.sequence, "a C daemon answers a number once");
    let mut stream = TcpStream::connect((to.address, to.port)).await.unwrap();
    stream.write_all(&[HOST_LIST_FOLLOWS]).await.unwrap();
    stream.write_all(&HOST_LIST_END).await.unwrap();
    stream.write_all(&[0]).await.unwrap();
}

#[tokio::test]
async fn a_host_that_calls_back_late_is_found_and_others_get_their_turn() {
    let port = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let group = IpAddr::from([239, 77, 2, 1]);
    let MulticastListener { socket, .. } =
        fence_net::multicast_listener(group, port, MulticastScope::Interface(1)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let host = tokio::spawn(play_slow_host(UdpSocket::from_std(socket).unwrap()));
    // As a client asks: the test can read that.
    let question = GroupQuestion { group, port, about: None, is_from_host: false };
    let keys = ClientKeys { hash: HashType::None, auth: HashType::None, keys: Vec::new(), call_back_port: 0 };
    let from = vec![(1, InterfaceAddress { ip: Ipv4Addr::LOCALHOST.into(), scope: 0 })];
    let began = Instant::now();
    let times = [began, began + Duration::from_millis(300)];
    // A minute: the test ends by what happens, when the other question wants the port.
    let (until, wanted) = (began + Duration::from_secs(60), Notify::new());
    let mut found = Vec::new();
    search(&question, from, Arc::new(keys), (&times, until), wanted.notified(), |reply| {
        found.push(reply.host);
        wanted.notify_one();
    })
    .await
    .unwrap();
    assert_eq!(found, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    assert!(began.elapsed() < Duration::from_secs(30));
    host.await.unwrap();
}
