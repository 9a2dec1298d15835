// SPDX-License-Identifier: GPL-2.0-or-later
//! A sealed exchange as the agent sees it, byte by byte: nothing is an answer before its seal.
#![allow(clippy::unwrap_used, clippy::panic)]

use fence_wire::{
    Action, ClientAuth, HASH_LEN, HashType, HostListEntry, HostStream, Key, Request, Response, SentRequests,
    Target,
};
use fence_xvm::answer::Answer;
use fence_xvm::exchange::{Exchange, Refusal};

const C1: [u8; 64] = [1; 64];
const C2: [u8; 64] = [2; 64];

fn key() -> Key {
    Key::new(b"a key for tests only").unwrap()
}

fn packet(action: Action, sequence: u32, key: &Key) -> [u8; 176] {
    let target = Target::new("vm1", false).unwrap();
    Request { action, target, call_back: None, nonce: [7; 6], sequence }.encode(HashType::HmacSha256, key)
}

/// Everything that a host sends: step 2, C2, the response and its seal.
fn said(packet: &[u8; 176], response: &[HostListEntry], code: Response, key: &Key) -> Vec<u8> {
    let received = Request::decode(packet, HashType::HmacSha256, std::slice::from_ref(key)).unwrap();
    let Ok(HostStream::Challenge(host)) = HostStream::begin(received.sealed, None, Some(key)) else {
        panic!("no challenge")
    };
    let (step_2, host) = host.answer(&C1).unwrap();
    let mut agent = exchange(Action::Null, &[*packet], key);
    agent.receive(&[&step_2[..], &C2].concat()).unwrap();
    agent.prove();
    let proof = *agent.output().last_chunk().unwrap();
    let (_, writer) = host.challenge(&C2).unwrap().verify(&proof).unwrap();
    let response = if response.is_empty() { writer.response(code) } else { writer.list(response, code) };
    [&step_2[..], &C2, &response].concat()
}

fn exchange<'k>(action: Action, packets: &[[u8; 176]], key: &'k Key) -> Exchange<'k> {
    let mut auth = ClientAuth::Sealed(SentRequests::new(HashType::HmacSha256.sealed().unwrap()), key);
    packets.iter().for_each(|it| auth.add(it));
    Exchange::new(action, auth, None, C1)
}

/// What an agent makes of these bytes, which come one by one.
fn made_of(action: Action, packets: &[[u8; 176]], said: &[u8]) -> Result<Answer, Refusal> {
    let key = key();
    let mut agent = exchange(action, packets, &key);
    for byte in said {
        assert!(!agent.is_done() && !agent.list_has_ended(), "an answer before its seal");
        if agent.receive(&[*byte]).is_err() {
            break;
        }
        agent.prove();
    }
    agent.close()
}

fn rows() -> Vec<HostListEntry> {
    let row = |n: u8| HostListEntry { name: format!("vm{n}"), uuid: format!("{n}"), on: n == 1 };
    (1..=3).map(row).collect()
}

#[test]
fn an_answer_with_its_seal() {
    let key = key();
    for (action, code) in [
        (Action::Off, Response::Success),
        (Action::Status, Response::Off),
        (Action::Off, Response::Failure),
        (Action::List, Response::PermissionDenied),
    ] {
        let packet = packet(action, 1, &key);
        let answer = made_of(action, &[packet], &said(&packet, &[], code, &key));
        assert_eq!(answer, Ok(Answer::Response(code)), "{action}");
    }
    let packet = packet(Action::List, 1, &key);
    let answer = made_of(Action::List, &[packet], &said(&packet, &rows(), Response::Success, &key));
    assert_eq!(answer, Ok(Answer::List { entries: rows(), response: Some(Response::Success) }));
}

#[test]
fn one_byte_less_is_no_answer() {
    let key = key();
    for list in [vec![], rows()] {
        let packet = packet(Action::List, 1, &key);
        let whole = said(&packet, &list, Response::Failure, &key);
        for length in 0..whole.len() {
            let refusal = made_of(Action::List, &[packet], &whole[..length]).unwrap_err();
            let bytes_of_response = length.saturating_sub(128);
            let response = whole.len() - 128 - HASH_LEN;
            match refusal {
                Refusal::ClosedUnproven => assert!(length < 64),
                Refusal::ResponseUnproven => assert_eq!(length, 1),
                Refusal::ClosedProven => assert!(length < 128),
                Refusal::ClosedUnanswered => assert_eq!(bytes_of_response, 0),
                Refusal::ListBrokeOff(rows) => assert!(rows <= 3 && bytes_of_response < response),
                // The zero entry was there, or all of the response.
                Refusal::NoSeal => assert!(bytes_of_response + 1 >= response, "{length}"),
                other => panic!("{length}: {other}"),
            }
            assert_eq!(refusal.is_of_stranger(), length < 64);
        }
    }
}

#[test]
fn one_changed_byte_is_no_answer() {
    let key = key();
    for (action, list) in [(Action::Off, vec![]), (Action::List, rows())] {
        let packet = packet(action, 1, &key);
        let whole = said(&packet, &list, Response::Success, &key);
        for at in 0..whole.len() {
            for change in [1, 0x80] {
                let mut changed = whole.clone();
                changed[at] ^= change;
                let refusal = made_of(action, &[packet], &changed).unwrap_err();
                if at >= 128 {
                    assert!(refusal.is_final(), "the host had begun its response: {refusal}");
                }
            }
        }
    }
}

/// A response without a meaning, and the reason for it, are known to be the host's own only by the seal.
#[test]
fn what_was_changed_is_named_so() {
    let key = key();
    let packet = packet(Action::Off, 1, &key);
    let mut whole = said(&packet, &[], Response::Success, &key);
    whole[128] = 77;
    let refusal = made_of(Action::Off, &[packet], &whole).unwrap_err();
    assert!(refusal.to_string().contains("the response's seal is wrong: somebody on the way"), "{refusal}");
    whole.truncate(129);
    let refusal = made_of(Action::Off, &[packet], &whole).unwrap_err();
    assert!(refusal.to_string().contains("without its seal"), "{refusal}");
    let denied = said(&packet, &[], Response::Off, &key);
    assert_eq!(made_of(Action::Off, &[packet], &denied), Err(Refusal::Response(2)));
}

#[test]
fn any_packet_that_was_sent_may_be_answered_and_no_other() {
    let key = key();
    let packets = [1, 2, 3].map(|it| packet(Action::Off, it, &key));
    let another = packet(Action::Off, 4, &key);
    for packet in packets {
        let answer = made_of(Action::Off, &packets, &said(&packet, &[], Response::Success, &key));
        assert_eq!(answer, Ok(Answer::Response(Response::Success)));
    }
    let refusal = made_of(Action::Off, &packets, &said(&another, &[], Response::Success, &key)).unwrap_err();
    assert!(refusal.is_of_stranger(), "{refusal}");
}
