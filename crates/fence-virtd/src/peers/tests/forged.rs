// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages of a holder of the key of all hosts: they tell nothing about others that counts.

use std::collections::HashMap;

use fence_core::hosts::{ANNOUNCED_KEPT, HostKind, MAX_ANNOUNCED, Respondent};
use fence_wire::{HostHello, HostId};

use super::super::answering::make_room;
use super::super::limits::{MAX_KEPT_ANSWERS, MAX_KEPT_OF_ONE, MAX_LOOKS_OF_ONE};
use super::super::state::{KeptAnswer, KeptAnswers};
use super::*;

fn forged(public: [u8; 32], name: &str, run: u8) -> Vec<u8> {
    let hello = HostHello { public, port: 0, domains: 1, name: name.to_owned(), run: [run; 8] };
    let sender = HostId::of(&public);
    let message = HostMessage { sender, recipient: None, nonce: [run; 8], body: HostBody::Hello(hello) };
    message.encode(&HostsKey::without_a_key()).to_vec()
}

async fn proved(host: &Host) -> KnownHost {
    loop {
        if let Some(known) = host.peers.known().into_iter().find(|it| it.is_proved) {
            return known;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Else `peer_down_command` would be asked about a host of that name, which may be down indeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_hello_renames_nobody_and_raises_no_doubt() {
    let (at_a, at_b) = (port(), port());
    let a = Host::listed(at_a, &[at_b], None).await;
    let _b = Host::listed(at_b, &[at_a], None).await;
    assert_eq!(a.sights().await, [Sight::Off]);
    let before = proved(&a).await;
    let HostKind::Ours(public) = before.kind else { panic!("{before:?}") };
    let from = SocketAddr::from(([10, 0, 0, 9], 1229));
    for run in 1..20 {
        for (public, name) in [(public, "h9"), (a.peers.identity.public(), "h9")] {
            a.peers.receive(&forged(public, name, run), from, &MessageWay::Unicast(from));
        }
    }
    let after = a.peers.known();
    assert!(after.len() == 1 && after[0].name == before.name, "{after:?}");
    assert_eq!(after[0].addresses, before.addresses);
    // It ends by itself, since nobody proved it.
    assert!(a.peers.own_doubt().is_some_and(|it| it.contains("without a proof")));
    assert_eq!(a.peers.table.lock().unwrap().twins().count(), 0);
    *a.peers.claimed.lock().unwrap() = None;
    assert_eq!(a.sights().await, [Sight::Off]);
}

/// The first word about a host may be somebody else's. Its own proof corrects it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_first_met_by_a_forged_hello_is_corrected() {
    let (group, at) = ([239, 77, 1, 21], port());
    let dir = StateDir::new();
    let a = Host::found(group, at, None).await;
    let b = super::super::identity::Identity::open(dir.path()).unwrap();
    let (from, public) = (SocketAddr::from(([10, 0, 0, 9], 1229)), b.public());
    drop(b);
    a.peers.receive(&forged(public, "h9", 9), from, &MessageWay::Group);
    let met = a.knows(1).await.remove(0);
    assert!(met.name == "h9" && !met.is_proved, "{met:?}");
    // Nobody proved that name: the command would say it of another host.
    let yes = std::path::Path::new("/bin/true");
    let until = Instant::now() + Duration::from_secs(5);
    let question = DomainQuestion::new(DomainId::from_bytes([7; 16]), "vm1".to_owned());
    let who = Respondent::Host(met.id);
    let (sight, _) = a.peers.proved_down(yes, who, "does not answer", &question, until).await;
    assert!(reason(&sight).contains("never proved its name"), "{sight:?}");
    let b = Host::found(group, at, Some(dir.path())).await;
    let now = proved(&a).await;
    assert!(now.id == met.id && now.name == b.peers.hello().name, "{now:?}");
    assert!(!now.addresses.contains(&from.ip()), "{now:?}");
    assert_eq!(a.sights().await, [Sight::Off]);
}

/// One datagram of a guest holds up "off already" for a while, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_only_said_hello_is_not_remembered_for_good() {
    let (group, at, dir) = ([239, 77, 1, 22], port(), StateDir::new());
    let a = Host::found(group, at, Some(dir.path())).await;
    let from = SocketAddr::from(([10, 0, 0, 9], 1229));
    for invented in 1..80 {
        a.peers.receive(&forged([invented; 32], "h9", invented), from, &MessageWay::Group);
    }
    let known = a.knows(MAX_ANNOUNCED).await;
    assert!(known.iter().all(|it| !it.is_proved));
    let sights = a.sights().await;
    assert_eq!(sights.len(), MAX_ANNOUNCED + 1, "all of them are asked, and those without room are told of");
    assert!(sights.iter().all(|it| matches!(it, Sight::Unknown(_))), "{sights:?}");
    assert!(sights.iter().any(|it| reason(it).contains("never proved who they are")), "{sights:?}");
    // One that proves itself stays, and is remembered.
    let b = Host::found(group, at, None).await;
    let real = proved(&a).await;
    let later = Instant::now() + ANNOUNCED_KEPT;
    assert_eq!(a.peers.table.lock().unwrap().drop_unproved(later).len(), MAX_ANNOUNCED);
    assert_eq!(a.sights().await, [Sight::Off]);
    drop(b);
    let end = Instant::now() + Duration::from_secs(10);
    let store = super::super::store::HostStore::at(dir.path());
    while store.read().all().count() != 1 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let written: Vec<_> = store.read().all().cloned().collect();
    assert!(written.len() == 1 && written[0].id == real.id, "{written:?}");
}

/// A firewall that lets hellos out and nothing in. Whoever looks beside the daemon finds whom it waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_only_says_hello_is_named_with_its_firewall_and_known_beside_the_daemon() {
    let (group, at, dir) = ([239, 77, 1, 23], port(), StateDir::new());
    let a = Host::found(group, at, Some(dir.path())).await;
    let from = SocketAddr::from(([10, 0, 0, 9], 1229));
    a.peers.receive(&forged([9; 32], "h9", 9), from, &MessageWay::Group);
    let met = a.knows(1).await.remove(0);
    let sights = a.sights().await;
    assert!(reason(&sights[0]).contains(&format!("let UDP port {at} in from this host?")), "{sights:?}");
    let store = super::super::store::HostStore::at(dir.path());
    let end = Instant::now() + Duration::from_secs(10);
    while store.read_with_announced().host(met.id).is_none() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(store.read().host(met.id).is_none());
    a.peers.table.lock().unwrap().drop_unproved(Instant::now() + ANNOUNCED_KEPT);
    a.peers.changed.notify_one();
    while store.read_with_announced().host(met.id).is_some() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn kept(from: [u8; 4], is_made: bool) -> KeptAnswer {
    let bytes = if is_made { vec![[0; fence_wire::HOST_MESSAGE_LEN]] } else { Vec::new() };
    KeptAnswer { at: Instant::now(), from: from.into(), bytes }
}

/// Room is left for others by whoever asks without end, as one or as many.
#[test]
fn one_asker_takes_no_room_of_the_others() {
    let id = |it: u8| HostId::of(&[it; 32]);
    let (guest, other) = ([10, 0, 0, 9], [10, 0, 0, 1]);
    let mut answers: KeptAnswers = HashMap::new();
    for number in 0..5000_u64 {
        let who = id(u8::try_from(number % 60).unwrap());
        assert!(make_room(&mut answers, who, guest.into()), "its oldest answer makes room");
        answers.insert((who, number.to_le_bytes()), kept(guest, true));
    }
    assert_eq!(answers.len(), MAX_KEPT_OF_ONE);
    for number in 0..20_u8 {
        answers.insert((id(9), [number; 8]), kept(guest, false));
    }
    assert!(!make_room(&mut answers, id(9), guest.into()), "{MAX_LOOKS_OF_ONE} at once");
    assert!(!make_room(&mut answers, id(8), guest.into()), "in every name");
    assert!(make_room(&mut answers, id(100), other.into()));
    // From addresses without number: what was answered goes first.
    for number in 0..2000_u16 {
        let [high, low] = number.to_be_bytes();
        let (who, from) = (HostId::of(&[low; 32]), [10, 1, high, low]);
        if make_room(&mut answers, who, from.into()) {
            answers.insert((who, u64::from(number).to_le_bytes()), kept(from, true));
        }
    }
    assert!(answers.len() <= MAX_KEPT_ANSWERS);
    assert!(make_room(&mut answers, HostId::of(&[1; 32]), other.into()));
}
