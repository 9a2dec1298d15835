// SPDX-License-Identifier: GPL-2.0-or-later
//! Properties of every sealed exchange: only the sent bytes are believed, each in its place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop where it stands")]

use fence_wire::{
    Action, Challenge, ClassicHash, ClientAuth, ClientHandshake, ClientStream, GenuineAnswer, HASH_LEN,
    HostAwaitChallenge, HostListEntry, HostStream, Key, ProofError, REQUEST_LEN, Request, Response,
    SealedRequest, SentRequests, Target,
};
use fence_wire::{HashType, SealedHash};
use proptest::prelude::*;

const SEALED: [HashType; 2] = [HashType::HmacSha256, HashType::HmacSha512];
const CLASSIC: [ClassicHash; 3] = [ClassicHash::Sha1, ClassicHash::Sha256, ClassicHash::Sha512];

fn key() -> Key {
    Key::new(b"the key of hosts and guests").unwrap()
}

/// Bytes on the wire of one exchange, in the order of its steps.
#[derive(Clone, Debug)]
struct Wire {
    packet: [u8; REQUEST_LEN],
    c1: Challenge,
    host_answer: [u8; HASH_LEN],
    c2: Challenge,
    client_answer: [u8; HASH_LEN],
    /// Response with its seal.
    response: Vec<u8>,
}

fn request(sequence: u32) -> Request {
    Request {
        action: Action::List,
        target: Target::none(),
        call_back: None,
        nonce: [1, 2, 3, 4, 5, 6],
        sequence,
    }
}

fn sealed_packet(hash: HashType, sequence: u32) -> ([u8; REQUEST_LEN], SealedRequest) {
    let packet = request(sequence).encode(hash, &key());
    (packet, Request::decode(&packet, hash, &[key()]).unwrap().sealed.unwrap())
}

fn host<'k>(sealed: SealedRequest, key: &'k Key) -> HostAwaitChallenge<'k> {
    match HostStream::begin(Some(sealed), None, Some(key)).unwrap() {
        HostStream::Challenge(host) => host,
        HostStream::Open(..) => panic!("a sealed stream without a challenge"),
    }
}

fn client<'k>(
    packets: &[[u8; REQUEST_LEN]],
    hash: SealedHash,
    key: &'k Key,
    c1: Challenge,
) -> ClientHandshake<'k> {
    let mut sent = SentRequests::new(hash);
    packets.iter().for_each(|it| sent.add(it));
    match ClientStream::begin(ClientAuth::Sealed(sent, key), c1) {
        ClientStream::Challenge(client) => client,
        ClientStream::Open(_) => panic!("a sealed stream without a challenge"),
    }
}

/// Complete honest exchange.
fn exchange(hash: HashType, sequence: u32, c1: Challenge, c2: Challenge, list: &[HostListEntry]) -> Wire {
    let (packet, sealed) = sealed_packet(hash, sequence);
    let key = key();
    let (host_answer, host) = host(sealed, &key).answer(&c1).unwrap();
    let client = client(&[packet], hash.sealed().unwrap(), &key, c1).verify(&host_answer).unwrap();
    let (client_answer, _) = client.answer(&c2).unwrap();
    let (_, writer) = host.challenge(&c2).unwrap().verify(&client_answer).unwrap();
    let response = if list.is_empty() {
        writer.response(Response::Success)
    } else {
        writer.list(list, Response::Success)
    };
    Wire { packet, c1, host_answer, c2, client_answer, response }
}

/// Result of a client that sent `packet` and `c1` and receives `given`.
fn believed(packet: [u8; REQUEST_LEN], c1: Challenge, given: &Wire) -> Option<GenuineAnswer<Vec<u8>>> {
    let hash = HashType::try_from(packet[1]).unwrap().sealed().unwrap();
    let key = key();
    let client = client(&[packet], hash, &key, c1).verify(&given.host_answer).ok()?;
    let (_, mut seal) = client.answer(&given.c2).ok()?;
    let (response, its_seal) = given.response.split_last_chunk::<HASH_LEN>()?;
    seal.take(response);
    seal.verify(response.to_vec(), its_seal).ok()
}

/// Returns whether a host that receives `given` lets the request run.
fn runs(given: &Wire, c2: Challenge) -> bool {
    let Ok(received) = Request::decode(&given.packet, HashType::HmacSha256, &[key()]) else { return false };
    let key = key();
    let (_, host) = host(received.sealed.unwrap(), &key).answer(&given.c1).unwrap();
    host.challenge(&c2).is_ok_and(|it| it.verify(&given.client_answer).is_ok())
}

fn rows(count: usize) -> Vec<HostListEntry> {
    let row = |n: usize| HostListEntry {
        name: format!("vm{n}"),
        uuid: format!("{n:036}"),
        on: n.is_multiple_of(2),
    };
    (0..count).map(row).collect()
}

/// Challenge that classic peers do not refuse.
fn challenges() -> impl Strategy<Value = Challenge> {
    (proptest::collection::vec(any::<u8>(), 64), 4..=u8::MAX).prop_map(|(it, second)| {
        let mut challenge: Challenge = it.try_into().unwrap();
        challenge[1] = second;
        challenge
    })
}

fn any_exchange() -> impl Strategy<Value = (HashType, Wire)> {
    (0..2_usize, any::<u32>(), challenges(), challenges(), 0..4_usize)
        .prop_filter("drawn twice", |(_, _, c1, c2, _)| c1 != c2)
        .prop_map(|(hash, sequence, c1, c2, count)| {
            (SEALED[hash], exchange(SEALED[hash], sequence, c1, c2, &rows(count)))
        })
}

proptest! {
    #[test]
    fn only_an_unchanged_exchange_is_believed(
        (_, wire) in any_exchange(),
        at: prop::sample::Index,
        bit in 0..8_u8,
    ) {
        prop_assert!(runs(&wire, wire.c2));
        let genuine = believed(wire.packet, wire.c1, &wire).unwrap().into_inner();
        prop_assert_eq!(&genuine[..], &wire.response[..wire.response.len() - HASH_LEN]);
        // One flipped bit of any bytes between the two ends.
        let flip = |bytes: &mut [u8]| bytes[at.index(bytes.len())] ^= 1 << bit;
        let changed = |change: &dyn Fn(&mut Wire)| {
            let mut changed = wire.clone();
            change(&mut changed);
            changed
        };
        prop_assert!(!runs(&changed(&|it| flip(&mut it.packet)), wire.c2));
        prop_assert!(!runs(&changed(&|it| flip(&mut it.c1)), wire.c2));
        prop_assert!(!runs(&changed(&|it| flip(&mut it.client_answer)), wire.c2));
        prop_assert!(!runs(&wire, changed(&|it| flip(&mut it.c2)).c2));
        for change in [
            changed(&|it| flip(&mut it.host_answer)),
            changed(&|it| flip(&mut it.c2)),
            changed(&|it| flip(&mut it.response)),
        ] {
            prop_assert!(believed(wire.packet, wire.c1, &change).is_none());
        }
        prop_assert!(believed(wire.packet, changed(&|it| flip(&mut it.c1)).c1, &wire).is_none());
    }

    #[test]
    fn a_response_is_taken_whole_and_in_order(
        (_, wire) in any_exchange(),
        from: prop::sample::Index,
        to: prop::sample::Index,
    ) {
        let body = &wire.response[..wire.response.len() - HASH_LEN];
        let seal = &wire.response[wire.response.len() - HASH_LEN..];
        let with = |body: Vec<u8>| {
            let response = [&body[..], seal].concat();
            believed(wire.packet, wire.c1, &Wire { response, ..wire.clone() })
        };
        let cut = from.index(body.len());
        prop_assert!(with(body[..cut].to_vec()).is_none());
        prop_assert!(with(body[cut + 1..].to_vec()).is_none());
        prop_assert!(with([body, &[0]].concat()).is_none());
        let mut reordered = body.to_vec();
        reordered.swap(cut, to.index(body.len()));
        prop_assert!(reordered == body || with(reordered).is_none());
        // Nor without its seal, as a classic host would send it.
        let bare = Wire { response: body.to_vec(), ..wire.clone() };
        prop_assert!(believed(wire.packet, wire.c1, &bare).is_none());
    }

    /// A relay that has one exchange can make no use of it in another.
    #[test]
    fn nothing_of_one_exchange_counts_in_another(
        (hash, wire) in any_exchange(),
        (_, other) in any_exchange(),
    ) {
        prop_assume!(wire.c1 != other.c1 && wire.c2 != other.c2 && wire.packet != other.packet);
        prop_assert!(believed(wire.packet, wire.c1, &other).is_none());
        let relayed = |from: &Wire| Wire { response: from.response.clone(), ..wire.clone() };
        prop_assert!(believed(wire.packet, wire.c1, &relayed(&other)).is_none());
        // The client proves itself for the packet that it sent, not for a captured one.
        let captured = Wire { packet: other.packet, ..wire.clone() };
        prop_assert!(!runs(&captured, wire.c2));
        // A host that answers another packet is not believed, although it holds the key.
        let key = key();
        let sent = client(&[other.packet], hash.sealed().unwrap(), &key, wire.c1);
        prop_assert_eq!(sent.verify(&wire.host_answer).unwrap_err(), ProofError::WrongSealedAnswer);
    }

    /// With one key for both kinds, no hash of one kind counts as the other, and neither end changes the
    /// kind.
    #[test]
    fn classic_and_sealed_are_never_taken_for_each_other((_, wire) in any_exchange(), classic in 0..3_usize) {
        let (classic, key) = (CLASSIC[classic], key());
        let (step_2, host) = HostAwaitChallenge::classic(classic, &key).answer(&wire.c1).unwrap();
        let from_classic_host = Wire { host_answer: step_2, ..wire.clone() };
        prop_assert!(believed(wire.packet, wire.c1, &from_classic_host).is_none());
        prop_assert!(host.challenge(&wire.c2).unwrap().verify(&wire.client_answer).is_err());
        let auth = ClientAuth::Classic(classic, &key);
        let ClientStream::Challenge(client) = ClientStream::begin(auth, wire.c1) else {
            panic!("no challenge");
        };
        let (step_4, seal) = client.verify(&step_2).unwrap().answer(&wire.c2).unwrap();
        let from_classic_client = Wire { client_answer: step_4, ..wire.clone() };
        prop_assert!(!runs(&from_classic_client, wire.c2));
        // A classic stream has no seal, whatever bytes follow.
        prop_assert!(seal.verify((), wire.response.last_chunk().unwrap()).is_err());
        let auth = ClientAuth::Classic(classic, &key);
        let ClientStream::Challenge(client) = ClientStream::begin(auth, wire.c1) else {
            panic!("no challenge");
        };
        prop_assert_eq!(client.verify(&wire.host_answer).unwrap_err(), ProofError::WrongAnswer);
    }

    /// A packet of which only the type byte was changed is of no type.
    #[test]
    fn a_packet_is_of_one_type((_, wire) in any_exchange()) {
        for hash in HashType::ALL {
            let mut packet = wire.packet;
            packet[1] = hash.number();
            let decoded = Request::decode(&packet, HashType::Sha1, &[key()]);
            prop_assert_eq!(decoded.is_ok(), packet == wire.packet);
        }
    }
}

#[test]
fn a_sealed_request_is_never_answered_without_its_seal() {
    let (_, sealed) = sealed_packet(HashType::HmacSha256, 7);
    for auth in [None, Some(ClassicHash::Sha1), Some(ClassicHash::Sha512)] {
        assert_eq!(HostStream::begin(Some(sealed), auth, None).unwrap_err(), ProofError::NoKey);
        let key = key();
        let stream = HostStream::begin(Some(sealed), auth, Some(&key)).unwrap();
        assert!(matches!(stream, HostStream::Challenge(_)), "{auth:?}");
    }
    assert!(matches!(HostStream::begin(None, None, None).unwrap(), HostStream::Open(..)));
    assert_eq!(HostStream::begin(None, Some(ClassicHash::Sha1), None).unwrap_err(), ProofError::NoKey);
}

#[test]
fn a_sealed_answer_cannot_be_had_without_its_seal() {
    let wire = exchange(HashType::HmacSha256, 1, [1; 64], [2; 64], &[]);
    let key = key();
    let client = client(&[wire.packet], SealedHash::HmacSha256, &key, wire.c1);
    let (_, seal) = client.verify(&wire.host_answer).unwrap().answer(&wire.c2).unwrap();
    assert!(seal.is_sealed());
    let seal = seal.unsealed(()).unwrap_err();
    assert!(seal.verify((), &[0; HASH_LEN]).is_err());
}

#[test]
fn reflected_challenges_are_refused_by_both() {
    let (packet, sealed) = sealed_packet(HashType::HmacSha512, 1);
    let (c1, key) = ([5; 64], key());
    let (answer, host) = host(sealed, &key).answer(&c1).unwrap();
    assert_eq!(host.challenge(&c1).unwrap_err(), ProofError::Reflected);
    let client = client(&[packet], SealedHash::HmacSha512, &key, c1).verify(&answer).unwrap();
    assert_eq!(client.answer(&c1).unwrap_err(), ProofError::Reflected);
}

#[test]
fn the_latest_packets_are_remembered() {
    let hash = HashType::HmacSha256;
    let (key, c1) = (key(), [9; 64]);
    let packets: Vec<_> =
        (0..=u32::try_from(SentRequests::MAX).unwrap()).map(|it| request(it).encode(hash, &key)).collect();
    for (place, remembered) in [(0, false), (1, true), (packets.len() - 1, true)] {
        let received = Request::decode(&packets[place], hash, std::slice::from_ref(&key)).unwrap();
        let (answer, _) = host(received.sealed.unwrap(), &key).answer(&c1).unwrap();
        let client = client(&packets, SealedHash::HmacSha256, &key, c1);
        assert_eq!(client.verify(&answer).is_ok(), remembered, "{place}");
    }
    // A packet that was not sealed with that type has no sealed answer.
    let strangers =
        [request(1).encode(HashType::HmacSha512, &key), request(1).encode(HashType::Sha256, &key)];
    let received = Request::decode(&strangers[0], hash, std::slice::from_ref(&key)).unwrap();
    let (answer, _) = host(received.sealed.unwrap(), &key).answer(&c1).unwrap();
    assert!(client(&strangers, SealedHash::HmacSha256, &key, c1).verify(&answer).is_err());
}
