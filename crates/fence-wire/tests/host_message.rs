// SPDX-License-Identifier: GPL-2.0-or-later
//! Host messages against literal bytes, which Python's hmac made, and the properties of every one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop where it stands")]

use fence_wire::{
    ANSWER_NAMESAKES, HashType, HostAnswer, HostAsk, HostBody, HostHello, HostId, HostMemory, HostMessage,
    HostMessageError, HostReason, HostSight, HostsKey, Key, PairKey, Request, RequestError,
};
use proptest::prelude::*;

const HELLO: &str = "\
    4803010102d449a31fbb267c0000000000000000010203040506070811111111111111111111111111111111111111111111\
    11111111111111111111cd04030068312e6578616d706c650000000000000000000000000000000000000000000000000000\
    00000000f0f1f2f3f4f5f6f70000000000000000000000000000000000000000000000000000000000000000800557fbe66a\
    90bc6b192e508ba4f56141ee8ac68cceb61e685386c85665f2ba";
const HELLO_ANSWER: &str = "\
    4803010202d449a31fbb267c9f72ea0cf49536e3010203040506070811111111111111111111111111111111111111111111\
    11111111111111111111cd04030068312e6578616d706c650000000000000000000000000000000000000000000000000000\
    00000000f0f1f2f3f4f5f6f7000000000000000000000000000000000000000000000000000000000000000066e8e5a9322a\
    4844b92d322a9a2a2748703a05572605b7c69108e35dedcd4d14";
const ASK: &str = "\
    4803010302d449a31fbb267c00000000000000000102030405060708a0a1a2a3a4a5a6a7a8a9aaabacadaeafd007766d3100\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000006e918e5b134\
    b11c97d93f655b0aff1d86775aa0ab658dfe465276af4964b1e3";
const ANSWER: &str = "\
    4803010402d449a31fbb267c9f72ea0cf49536e30102030405060708a0a1a2a3a4a5a6a7a8a9aaabacadaeaf06006c696276\
    6972742061742071656d753a2f2f2f73797374656d20646f6573206e6f7420616e7377657200000000000000000000000000\
    0000000000000000000000006ed93af8aaabdda7c348e0a6cd10ddc5852925afb6c01074723170e0b99381e3f52b62d759c8\
    281270c9f1a6cebec2b526ac3d4bdbf774fc8974bb74a35d5533";

const KEY: &[u8] = b"the key of all hosts";
const PUBLIC: [u8; 32] = [0x11; 32];

fn key() -> Key {
    Key::new(KEY).unwrap()
}

fn hosts() -> HostsKey {
    HostsKey::of(&key())
}

fn pair() -> PairKey {
    PairKey::of(&core::array::from_fn(|i| u8::try_from(i).unwrap()))
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|it| u8::from_str_radix(std::str::from_utf8(it).unwrap(), 16).unwrap())
        .collect()
}

fn message(recipient: Option<HostId>, body: HostBody) -> HostMessage {
    HostMessage { sender: HostId::of(&PUBLIC), recipient, nonce: [1, 2, 3, 4, 5, 6, 7, 8], body }
}

fn literal() -> [(&'static str, HostMessage); 4] {
    let run = core::array::from_fn(|i| 0xf0 + u8::try_from(i).unwrap());
    let hello = || HostHello { public: PUBLIC, port: 1229, domains: 3, name: "h1.example".to_owned(), run };
    let other = Some(HostId::of(&[0x22; 32]));
    let uuid = core::array::from_fn(|i| 0xa0 + u8::try_from(i).unwrap());
    let ask = HostAsk {
        uuid,
        left_ms: 2000,
        takes_parts: false,
        takes_namesakes: false,
        asks_memory: false,
        is_by_uuid: false,
        name: "vm1".to_owned(),
    };
    let answer = HostAnswer {
        uuid,
        sight: HostSight::Unknown,
        age_ms: None,
        reason: "libvirt at qemu:///system does not answer".to_owned(),
        namesakes: Vec::new(),
        memory: None,
    };
    [
        (HELLO, message(None, HostBody::Hello(hello()))),
        (HELLO_ANSWER, message(other, HostBody::HelloAnswer(hello()))),
        (ASK, message(None, HostBody::Ask(ask))),
        (ANSWER, message(other, HostBody::Answer(answer))),
    ]
}

fn encoded(message: &HostMessage) -> [u8; 176] {
    match message.body {
        HostBody::Answer(_) | HostBody::Reason(_) => message.encode_for(&hosts(), &pair()),
        _ => message.encode(&hosts()),
    }
}

#[test]
fn literal_bytes_in_both_directions() {
    for (hex, message) in literal() {
        assert_eq!(encoded(&message).to_vec(), bytes(hex));
        let received = HostMessage::decode(&bytes(hex), &[hosts()]).unwrap();
        assert_eq!(received.message(), &message);
        let proved = received.proved_answer(&pair());
        match &message.body {
            HostBody::Answer(answer) => assert_eq!(proved, Some(answer)),
            _ => assert_eq!(proved, None),
        }
    }
}

/// A daemon that does not know the bit reads a longer time, and one that asks by name never sets it.
#[test]
fn an_ask_by_uuid_is_one_bit_of_the_time() {
    let HostBody::Ask(ask) = literal()
        .into_iter()
        .find_map(|(_, it)| match it.body {
            body @ HostBody::Ask(_) => Some(body),
            _ => None,
        })
        .unwrap()
    else {
        unreachable!()
    };
    for (is_by_uuid, time) in [(false, [0xd0, 0x07]), (true, [0xd0, 0x17])] {
        let bytes = message(None, HostBody::Ask(HostAsk { is_by_uuid, ..ask.clone() })).encode(&hosts());
        assert_eq!(bytes[28 + 16..28 + 18], time);
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for (hex, _) in literal() {
        let bytes = bytes(hex);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(HostMessage::decode(&changed, &[hosts()]).is_err(), "bit {bit}");
        }
    }
}

/// A guest holds the key of all hosts, so it can make the second proof anew; never the first.
#[test]
fn an_answer_that_was_changed_by_a_holder_of_the_key_is_not_proved() {
    let (_, message) = literal()[3].clone();
    let HostBody::Answer(answer) = message.body.clone() else { unreachable!() };
    let forged_key = PairKey::of(&[9; 32]);
    for sight in HostSight::ALL {
        let body = HostBody::Answer(HostAnswer { sight, ..answer.clone() });
        for forged in [
            HostMessage { body: body.clone(), ..message.clone() }.encode(&hosts()),
            HostMessage { body: body.clone(), ..message.clone() }.encode_for(&hosts(), &forged_key),
        ] {
            let received = HostMessage::decode(&forged, &[hosts()]).unwrap();
            assert_eq!(received.proved_answer(&pair()), None);
        }
    }
    // The proof covers sender, recipient and nonce too: it can't be moved to another question.
    let ours = message.encode_for(&hosts(), &pair());
    for at in (4..28).chain(28..46) {
        let mut moved = ours;
        moved[at] ^= 1;
        let message = HostMessage::decode(&resealed(moved), &[hosts()]);
        assert!(message.is_err() || message.unwrap().proved_answer(&pair()).is_none(), "byte {at}");
    }
}

/// Makes the second proof anew, as a holder of the key could.
fn resealed(mut bytes: [u8; 176]) -> [u8; 176] {
    use hmac::{Hmac, KeyInit, Mac};
    let mac = |key: &[u8], parts: &[&[u8]]| {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
        parts.iter().for_each(|it| mac.update(it));
        mac.finalize().into_bytes()
    };
    let key = mac(KEY, &[b"fence_virt hosts\0"]);
    let proof = mac(&key, &[b"fence_virt host message\0", &bytes[..144]]);
    bytes[144..].copy_from_slice(&proof);
    bytes
}

#[test]
fn each_reason_has_its_error() {
    let (_, message) = literal()[0].clone();
    let good = encoded(&message);
    let error = |bytes: &[u8]| HostMessage::decode(bytes, &[hosts()]).unwrap_err();
    let with = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        resealed(bytes)
    };
    assert_eq!(error(&good[..175]), HostMessageError::Length(175));
    assert_eq!(error(&with(0, 2)), HostMessageError::Magic);
    assert_eq!(error(&with(1, 2)), HostMessageError::Magic);
    assert_eq!(error(&with(2, 2)), HostMessageError::Version(2));
    assert_eq!(error(&with(3, 6)), HostMessageError::Kind(6));
    assert_eq!(error(&with(3, 5)), HostMessageError::Field("part"));
    assert_eq!(error(&with(4, good[4] ^ 1)), HostMessageError::Field("public key"));
    assert_eq!(error(&with(28, 0)), HostMessageError::Field("public key"));
    assert_eq!(error(&with(64, 7)), HostMessageError::Field("name of the host"));
    assert_eq!(error(&with(103, b'x')), HostMessageError::Field("name of the host"));
    assert_eq!(error(&with(112, 1)), HostMessageError::Field("proof of the two hosts"));
    let other = HostMessage::decode(&good, &[HostsKey::of(&Key::new(b"another").unwrap())]);
    assert_eq!(other.unwrap_err(), HostMessageError::Proof);
    assert_eq!(HostMessage::decode(&good, &[]).unwrap_err(), HostMessageError::Proof);
    let keys = [HostsKey::without_a_key(), hosts()];
    assert!(HostMessage::decode(&good, &keys).is_ok());
    let answer = encoded(&literal()[3].1);
    for (at, value, field) in [(44, 0, "sight"), (44, 8, "sight"), (45, 1, "pad")] {
        let mut bytes = answer;
        bytes[at] = value;
        assert_eq!(error(&resealed(bytes)), HostMessageError::Field(field));
    }
}

#[test]
fn a_name_that_does_not_fit_is_known_to_be_cut() {
    let told = |name: &str| {
        let ask = HostAsk {
            uuid: [1; 16],
            left_ms: 1,
            takes_parts: false,
            takes_namesakes: false,
            asks_memory: false,
            is_by_uuid: false,
            name: name.to_owned(),
        };
        let bytes = message(None, HostBody::Ask(ask)).encode(&hosts());
        let received = HostMessage::decode(&bytes, &[hosts()]).unwrap();
        let HostBody::Ask(ask) = received.message().body.clone() else { unreachable!() };
        ask.name
    };
    for name in
        ["", "vm1", &"a".repeat(63), &"a".repeat(64), &"\u{20ac}".repeat(21), &"\u{20ac}".repeat(22), "a\tb"]
    {
        assert_eq!(HostAsk::can_name(name), told(name) == name, "{name}");
    }
}

#[test]
fn ids_are_shown_and_read() {
    let id = HostId::of(&PUBLIC);
    assert_eq!(id.to_string().len(), 16);
    assert_eq!(HostId::from_text(&id.to_string()), Some(id));
    for text in ["", "h2", "0123456789abcdeg", "+123456789abcdef", "0123456789abcdef0"] {
        assert_eq!(HostId::from_text(text), None, "{text}");
    }
}

fn names(most: usize) -> impl Strategy<Value = String> {
    "\\PC{1,40}".prop_map(move |it| {
        let mut end = it.len().min(most);
        while !it.is_char_boundary(end) {
            end -= 1;
        }
        it[..end].to_owned()
    })
}

fn messages() -> impl Strategy<Value = HostMessage> {
    let sight = (0..7_usize).prop_map(|it| HostSight::ALL[it]);
    let hello = || {
        (any::<[u8; 32]>(), any::<u16>(), any::<u16>(), names(39), any::<[u8; 8]>())
            .prop_map(|(public, port, domains, name, run)| HostHello { public, port, domains, name, run })
    };
    let ask = (any::<[u8; 16]>(), 0..0x1000_u16, any::<(bool, bool, bool, bool)>(), names(63)).prop_map(
        |(uuid, left_ms, (takes_parts, takes_namesakes, asks_memory, is_by_uuid), name)| HostAsk {
            uuid,
            left_ms,
            takes_parts,
            takes_namesakes,
            asks_memory,
            is_by_uuid,
            name,
        },
    );
    let reason = (any::<[u8; 16]>(), 0..4_u8, 0..4_u8, names(65)).prop_map(|(uuid, part, more, text)| {
        HostReason { uuid, part, parts: (part + 1 + more).min(4), text }
    });
    let age = proptest::option::of(0..u64::MAX);
    let namesakes = proptest::collection::vec(any::<[u8; 16]>(), 0..=ANSWER_NAMESAKES);
    let answer = (any::<[u8; 16]>(), sight, age, names(57), namesakes).prop_map(
        |(uuid, sight, age_ms, reason, namesakes)| {
            let reason = if namesakes.is_empty() { reason } else { String::new() };
            HostAnswer { uuid, sight, age_ms, reason, namesakes, memory: None }
        },
    );
    let memory = (any::<u32>(), proptest::option::of(0..u32::MAX))
        .prop_map(|(noted_ms, last_ms)| HostMemory { noted_ms, last_ms });
    let with_memory = (any::<[u8; 16]>(), names(49), memory).prop_map(|(uuid, reason, memory)| HostAnswer {
        uuid,
        sight: HostSight::Absent,
        age_ms: None,
        reason,
        namesakes: Vec::new(),
        memory: Some(memory),
    });
    let body = prop_oneof![
        hello().prop_map(HostBody::Hello),
        hello().prop_map(HostBody::HelloAnswer),
        ask.prop_map(HostBody::Ask),
        answer.prop_map(HostBody::Answer),
        with_memory.prop_map(HostBody::Answer),
        reason.prop_map(HostBody::Reason),
    ];
    (any::<[u8; 8]>(), proptest::option::of(1_u64..), any::<[u8; 8]>(), body).prop_map(
        |(sender, recipient, nonce, body)| {
            let sender = match &body {
                HostBody::Hello(it) | HostBody::HelloAnswer(it) => HostId::of(&it.public),
                _ => HostId(sender),
            };
            let recipient = recipient.map(|it| HostId(it.to_be_bytes()));
            HostMessage { sender, recipient, nonce, body }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in messages()) {
        let bytes = encoded(&message);
        let received = HostMessage::decode(&bytes, &[hosts()]).unwrap();
        prop_assert_eq!(received.message(), &message);
        prop_assert_eq!(encoded(received.message()), bytes);
    }

    #[test]
    fn no_host_message_is_a_request(message in messages()) {
        let bytes = encoded(&message);
        for minimum in HashType::ALL {
            let result = Request::decode(&bytes, minimum, &[key()]);
            prop_assert!(matches!(result, Err(RequestError::Action(_))));
        }
    }

    #[test]
    fn a_changed_byte_is_refused(message in messages(), at in 0..176_usize, by in 1..=u8::MAX) {
        let mut bytes = encoded(&message);
        bytes[at] ^= by;
        prop_assert!(HostMessage::decode(&bytes, &[hosts()]).is_err());
    }

    /// A reason of up to 247 bytes arrives whole, whatever its characters are, and a longer one from its
    /// beginning on. An answer that has room for its reason has no parts.
    #[test]
    fn a_long_reason_arrives_in_parts(reason in "\\PC{0,120}") {
        let (sight, namesakes) = (HostSight::Unknown, Vec::new());
        let answer = HostAnswer { uuid: [1; 16], sight, age_ms: None, reason, namesakes, memory: None };
        let parts = answer.reason_in_parts();
        prop_assert_eq!(parts.is_empty(), answer.reason.len() < 58);
        let arrived = |part: HostReason| {
            let bytes = encoded(&message(None, HostBody::Reason(part)));
            match HostMessage::decode(&bytes, &[hosts()]).unwrap().message().body.clone() {
                HostBody::Reason(part) => part.text,
                _ => unreachable!(),
            }
        };
        let text: String = parts.into_iter().map(arrived).collect();
        prop_assert!(answer.reason.starts_with(&text));
        prop_assert!(text.is_empty() || text.len() == answer.reason.len() || text.len() >= 4 * 62);
    }

    #[test]
    fn texts_of_every_length_and_kind_can_be_sent(reason in ".{0,200}") {
        let (sight, namesakes) = (HostSight::Unknown, Vec::new());
        let answer = HostAnswer { uuid: [1; 16], sight, age_ms: None, reason, namesakes, memory: None };
        let bytes = encoded(&message(None, HostBody::Answer(answer)));
        prop_assert!(HostMessage::decode(&bytes, &[hosts()]).is_ok());
    }
}
