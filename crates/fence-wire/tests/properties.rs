// SPDX-License-Identifier: GPL-2.0-or-later
//! Properties of every packet, list and frame.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop where it stands")]

use std::net::IpAddr;

use fence_wire::{
    Action, CallBack, HashType, HostListEntry, HostListItem, Key, REQUEST_LEN, Request, RequestError,
    SERIAL_REQUEST_LEN, SerialRequest, SerialScanner, Target, TargetError,
};
use proptest::prelude::*;

const KEYED: [HashType; 5] =
    [HashType::Sha1, HashType::Sha256, HashType::Sha512, HashType::HmacSha256, HashType::HmacSha512];

fn key(text: &str) -> Key {
    Key::new(text.as_bytes()).unwrap()
}

fn target(text: &str) -> Target {
    Target::new(text, false).unwrap()
}

fn status_of_vm1() -> Request {
    Request {
        action: Action::Status,
        target: target("vm1"),
        call_back: Some(CallBack { address: IpAddr::from([10, 0, 0, 1]), port: 1229 }),
        nonce: [1, 2, 3, 4, 5, 6],
        sequence: 77,
    }
}

fn requests() -> impl Strategy<Value = Request> {
    let call_back = proptest::option::of(
        (any::<IpAddr>(), 1..=u16::MAX).prop_map(|(address, port)| CallBack { address, port }),
    );
    let text = "[a-zA-Z0-9 ._:\u{e4}\u{20ac}-]{1,20}";
    (0..7_usize, text, any::<bool>(), call_back, any::<[u8; 6]>(), any::<u32>()).prop_map(
        |(action, text, uuid, call_back, nonce, sequence)| Request {
            action: Action::ALL[action],
            target: Target::new(&text, uuid).unwrap(),
            call_back,
            nonce,
            sequence,
        },
    )
}

proptest! {
    #[test]
    fn a_request_survives_the_wire(request in requests(), hash in 0..KEYED.len()) {
        let hash = KEYED[hash];
        let keys = [key("one"), key("two"), key("three")];
        let packet = request.encode(hash, &keys[1]);
        let received = Request::decode(&packet, HashType::Sha1, &keys).unwrap();
        prop_assert_eq!(received.request, request);
        prop_assert_eq!((received.hash, received.key), (hash, Some(1)));
    }

    #[test]
    fn one_flipped_bit_is_refused(request in requests(), hash in 0..KEYED.len(), bit in 0..REQUEST_LEN * 8) {
        let mut packet = request.encode(KEYED[hash], &key("one"));
        packet[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Request::decode(&packet, HashType::None, &[key("one")]).is_err() || packet[1] == 0);
        // Where packets without a hash are refused, no flipped bit gets through at all.
        prop_assert!(Request::decode(&packet, HashType::Sha1, &[key("one")]).is_err());
    }

    #[test]
    fn any_other_length_is_refused(
        length in (0..4096_usize).prop_filter("the right one", |it| *it != REQUEST_LEN),
    ) {
        let mut bytes = status_of_vm1().encode(HashType::Sha256, &key("one")).to_vec();
        bytes.resize(length, 0);
        prop_assert_eq!(
            Request::decode(&bytes, HashType::None, &[key("one")]),
            Err(RequestError::Length(length))
        );
    }

    #[test]
    fn a_host_list_entry_survives_the_wire(name in "[^\\x00]{1,15}", uuid in "[0-9a-f-]{36}", on: bool) {
        let entry = HostListEntry { name, uuid, on };
        prop_assert_eq!(HostListEntry::decode(&entry.encode()), HostListItem::Domain(entry));
    }

    #[test]
    fn a_frame_is_found_behind_any_noise(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        sequence: u32,
        name in "[a-z0-9-]{1,63}",
    ) {
        let request = SerialRequest { action: Action::Off, target: target(&name), sequence };
        let mut scanner = SerialScanner::<SERIAL_REQUEST_LEN>::new();
        // Noise that contains a magic number swallows the next frame, as on any line; the frame after that is
        // found.
        let mut found = Vec::new();
        let bytes = noise.iter().copied().chain(request.encode()).chain(request.encode());
        for byte in bytes {
            found.extend(scanner.push(byte));
        }
        prop_assert!(found.iter().any(|it| SerialRequest::decode(it).as_ref() == Ok(&request)));
    }
}

#[test]
fn every_byte_of_a_valid_packet_counts() {
    for hash in KEYED {
        let packet = status_of_vm1().encode(hash, &key("one"));
        for at in 0..REQUEST_LEN {
            let mut changed = packet;
            changed[at] ^= 0xff;
            let error = Request::decode(&changed, HashType::Sha1, &[key("one")]).unwrap_err();
            assert!(!error.reason().is_empty(), "{at}");
        }
    }
}

#[test]
fn each_refusal_has_its_name() {
    let key = key("one");
    let reason = |packet: &[u8], minimum| {
        Request::decode(packet, minimum, std::slice::from_ref(&key)).unwrap_err().reason()
    };
    let good = status_of_vm1();
    let with = |change: &dyn Fn(&mut [u8; REQUEST_LEN])| {
        // Signed after the change, as only a holder of the key can do.
        let mut packet = good.encode(HashType::None, &key);
        change(&mut packet);
        packet
    };
    let unsigned = HashType::None;
    assert_eq!(reason(&good.encode(HashType::Sha1, &key), HashType::Sha256), "hash-too-weak");
    assert_eq!(reason(&good.encode(HashType::Sha512, &key), HashType::HmacSha256), "hash-too-weak");
    assert_eq!(reason(&good.encode(HashType::HmacSha256, &key), HashType::HmacSha512), "hash-too-weak");
    assert_eq!(reason(&with(&|it| it[0] = 9), unsigned), "unknown-action");
    assert_eq!(reason(&with(&|it| it[1] = 0x55), unsigned), "unknown-hash");
    assert_eq!(reason(&with(&|it| it[1] = 2), unsigned), "hash-mismatch");
    assert_eq!(reason(&with(&|it| it[3] = 2), unsigned), "unknown-flags");
    assert_eq!(reason(&with(&|it| it[2] = 5), unsigned), "address");
    assert_eq!(reason(&with(&|it| it[108] = 3), unsigned), "address");
    assert_eq!(reason(&with(&|it| it[96..98].fill(0)), unsigned), "port");
    assert_eq!(reason(&with(&|it| it[4..68].fill(b'x')), unsigned), "target-no-nul");
    assert_eq!(reason(&with(&|it| it[4] = 0xff), unsigned), "target-not-utf8");
    assert_eq!(reason(&with(&|it| it[5] = 0x1b), unsigned), "target-control-character");
    assert_eq!(reason(&with(&|it| it[4..68].fill(0)), unsigned), "target-empty");
    assert_eq!(reason(&[0; 1], unsigned), "length");
}

#[test]
fn a_key_that_is_not_ours_fits_nothing() {
    for hash in KEYED {
        let packet = status_of_vm1().encode(hash, &key("theirs"));
        assert_eq!(
            Request::decode(&packet, HashType::None, &[key("ours"), key("ours too")]),
            Err(RequestError::HashMismatch(hash))
        );
        assert_eq!(Request::decode(&packet, HashType::None, &[]), Err(RequestError::HashMismatch(hash)));
    }
}

#[test]
fn a_cut_name_means_a_longer_one() {
    let name = format!("{}\u{e4}y", "x".repeat(62));
    let (cut, shorter) = (target(&"x".repeat(62)), target(&"x".repeat(61)));
    assert!(cut.is_cut_from(&name), "the 63 bytes end inside of a character");
    assert!(!shorter.is_cut_from(&name) && !cut.is_cut_from(&"x".repeat(62)));
    assert!(!cut.is_cut_from(&"x".repeat(64)), "63 bytes of this name fit");
    let called_uuid = Target::new(cut.as_str(), true).unwrap();
    assert!(called_uuid.is_cut_from(&name), "it is no UUID, so it is a name");
    let uuid = format!("{}{}", "a".repeat(32), "-".repeat(31));
    let called_uuid = Target::new(&uuid, true).unwrap();
    assert!(!called_uuid.is_cut_from(&format!("{uuid}y")), "a UUID is never cut");
}

#[test]
fn only_a_text_that_is_a_uuid_can_be_one() {
    let uuid = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";
    let is = |text: &str, says_uuid| {
        let target = Target::new(text, says_uuid).unwrap();
        (target.is_only_uuid(), target.is_misnamed())
    };
    for text in [uuid.to_owned(), uuid.to_uppercase(), uuid.replace('-', ""), format!(" {uuid} ")] {
        assert_eq!((is(&text, true), is(&text, false)), ((true, false), (false, false)), "{text}");
    }
    for text in ["vm1", &uuid[1..], &format!("{uuid}0"), &uuid.replace('5', "g"), "------"] {
        assert_eq!((is(text, true), is(text, false)), ((false, true), (false, false)), "{text}");
    }
    assert_eq!(is("", true), (false, false));
}

#[test]
fn a_long_name_is_cut_with_its_nul() {
    let long = HostListEntry { name: "\u{e4}".repeat(40), uuid: String::new(), on: true };
    let bytes = long.encode();
    // 31 characters of two bytes fit into 63.
    assert_eq!(&bytes[..64], [&"\u{e4}".repeat(31).into_bytes()[..], &[0, 0]].concat());
    assert_eq!(Target::new(&"x".repeat(64), false), Err(TargetError::TooLong(64)));
}

#[test]
fn a_paused_domain_is_on_for_every_client() {
    let entry = HostListEntry { name: "vm".into(), uuid: "u".into(), on: true };
    assert_eq!((entry.encode()[128], entry.encode()[129]), (1, 0));
}

proptest! {
    /// A C daemon reads such a packet as any other: the hash fits, and all that it reads is the same. Daemons
    /// of ours drop it.
    #[test]
    fn a_request_from_a_host_differs_only_where_c_daemons_do_not_read(
        request in requests(), hash in 0..KEYED.len(),
    ) {
        let (hash, key) = (KEYED[hash], key("one"));
        let from_client = request.encode(hash, &key);
        let from_host = request.encode_from_host(hash, Some(&key));
        let keys = [key];
        prop_assert_eq!(Request::decode(&from_host, HashType::Sha1, &keys), Err(RequestError::FromHost));
        prop_assert_eq!(&from_client[..84], &from_host[..84]);
        prop_assert_eq!(&from_client[96..112], &from_host[96..112]);
        // A wrong key comes first: nothing in a packet is believed before its hash fits.
        let others = [Key::new(b"two").unwrap()];
        prop_assert_eq!(
            Request::decode(&from_host, HashType::Sha1, &others),
            Err(RequestError::HashMismatch(hash))
        );
    }
}
