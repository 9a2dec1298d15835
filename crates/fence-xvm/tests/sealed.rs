// SPDX-License-Identifier: GPL-2.0-or-later
//! Sealed exchanges from the agent's side, byte by byte: there is no answer before its seal.
#![allow(clippy::unwrap_used, clippy::panic)]

use fence_wire::{
    Action, ClientAuth, HASH_LEN, HashType, HostListEntry, HostStream, Key, Request, Response, SentRequests,
    Target,
};
use fence_xvm::answer::HostAnswer;
use fence_xvm::exchange::{ExchangeError, HostExchange};

const C1: [u8; 64] = [1; 64];
const C2: [u8; 64] = [2; 64];

fn key() -> Key {
    Key::new(b"a key for tests only").unwrap()
}

fn packet(action: Action, sequence: u32, key: &Key) -> [u8; 176] {
    let target = Target::new("vm1", false).unwrap();
    Request { action, target, call_back: None, nonce: [7; 6], sequence }.encode(HashType::HmacSha256, key)
}

/// Returns everything that a host sends: step 2, C2, the response and its seal.
fn host_bytes(packet: &[u8; 176], entries: &[HostListEntry], code: Response, key: &Key) -> Vec<u8> {
    let received = Request::decode(packet, HashType::HmacSha256, std::slice::from_ref(key)).unwrap();
    let Ok(HostStream::Challenge(host)) = HostStream::begin(received.sealed, None, Some(key)) else {
        panic!("no challenge")
    };
    let (step_2, host) = host.answer(&C1).unwrap();
    let mut agent = exchange(Action::Null, &[*packet], key);
    agent.receive(&[&step_2[..], &C2].concat()).unwrap();
    agent.prove();
    let proof = *agent.take_output().last_chunk().unwrap();
    let (_, writer) = host.challenge(&C2).unwrap().verify(&proof).unwrap();
    let response = if entries.is_empty() { writer.response(code) } else { writer.list(entries, code) };
    [&step_2[..], &C2, &response].concat()
}

fn exchange<'k>(action: Action, packets: &[[u8; 176]], key: &'k Key) -> HostExchange<'k> {
    let mut auth = ClientAuth::Sealed(SentRequests::new(HashType::HmacSha256.sealed().unwrap()), key);
    packets.iter().for_each(|packet| auth.add(packet));
    HostExchange::new(action, auth, None, C1)
}

/// Returns the answer of an agent that receives these bytes one by one.
fn receive_all(action: Action, packets: &[[u8; 176]], bytes: &[u8]) -> Result<HostAnswer, ExchangeError> {
    let key = key();
    let mut agent = exchange(action, packets, &key);
    for byte in bytes {
        assert!(!agent.is_done() && !agent.is_list_complete(), "an answer before its seal");
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
        let answer = receive_all(action, &[packet], &host_bytes(&packet, &[], code, &key));
        assert_eq!(answer, Ok(HostAnswer::Response(code)), "{action}");
    }
    let packet = packet(Action::List, 1, &key);
    let answer = receive_all(Action::List, &[packet], &host_bytes(&packet, &rows(), Response::Success, &key));
    assert_eq!(answer, Ok(HostAnswer::List { entries: rows(), response: Some(Response::Success) }));
}

#[test]
fn one_byte_less_is_no_answer() {
    let key = key();
    for list in [vec![], rows()] {
        let packet = packet(Action::List, 1, &key);
        let whole = host_bytes(&packet, &list, Response::Failure, &key);
        for length in 0..whole.len() {
            let error = receive_all(Action::List, &[packet], &whole[..length]).unwrap_err();
            let bytes_of_response = length.saturating_sub(128);
            let response = whole.len() - 128 - HASH_LEN;
            match error {
                ExchangeError::ClosedUnproven => assert!(length < 64),
                ExchangeError::ResponseUnproven => assert_eq!(length, 1),
                ExchangeError::ClosedProven => assert!(length < 128),
                ExchangeError::ClosedUnanswered => assert_eq!(bytes_of_response, 0),
                ExchangeError::ListBrokeOff(rows) => assert!(rows <= 3 && bytes_of_response < response),
                // The zero entry was there, or all of the response.
                ExchangeError::NoSeal => assert!(bytes_of_response + 1 >= response, "{length}"),
                other => panic!("{length}: {other}"),
            }
            assert_eq!(error.is_from_unproven_peer(), length < 64);
        }
    }
}

#[test]
fn one_changed_byte_is_no_answer() {
    let key = key();
    for (action, list) in [(Action::Off, vec![]), (Action::List, rows())] {
        let packet = packet(action, 1, &key);
        let whole = host_bytes(&packet, &list, Response::Success, &key);
        for at in 0..whole.len() {
            for change in [1, 0x80] {
                let mut changed = whole.clone();
                changed[at] ^= change;
                let error = receive_all(action, &[packet], &changed).unwrap_err();
                if at >= 128 {
                    assert!(error.is_final(), "the host had begun its response: {error}");
                }
            }
        }
    }
}

/// Only the seal tells that a response which is not valid is the host's own.
#[test]
fn a_changed_response_is_reported_as_changed() {
    let key = key();
    let packet = packet(Action::Off, 1, &key);
    let mut whole = host_bytes(&packet, &[], Response::Success, &key);
    whole[128] = 77;
    let error = receive_all(Action::Off, &[packet], &whole).unwrap_err();
    assert!(error.to_string().contains("the response's seal is wrong: somebody on the way"), "{error}");
    whole.truncate(129);
    let error = receive_all(Action::Off, &[packet], &whole).unwrap_err();
    assert!(error.to_string().contains("without its seal"), "{error}");
    let off = host_bytes(&packet, &[], Response::Off, &key);
    assert_eq!(receive_all(Action::Off, &[packet], &off), Err(ExchangeError::Response(2)));
}

#[test]
fn every_sent_packet_may_be_answered_and_no_other() {
    let key = key();
    let packets = [1, 2, 3].map(|it| packet(Action::Off, it, &key));
    let another = packet(Action::Off, 4, &key);
    for packet in packets {
        let answer = receive_all(Action::Off, &packets, &host_bytes(&packet, &[], Response::Success, &key));
        assert_eq!(answer, Ok(HostAnswer::Response(Response::Success)));
    }
    let error =
        receive_all(Action::Off, &packets, &host_bytes(&another, &[], Response::Success, &key)).unwrap_err();
    assert!(error.is_from_unproven_peer(), "{error}");
}

/// Returns the packet of a dry run, and everything that a host sends as its answer.
fn forecasting_host(key: &Key, action: Action, response: Response, words: &str) -> ([u8; 176], Vec<u8>) {
    let target = Target::new("vm1", false).unwrap();
    let request = Request { action: Action::Status, target, call_back: None, nonce: [7; 6], sequence: 1 };
    let hash = HashType::HmacSha256;
    let packet = request.encode_dry_run(action, hash.sealed().unwrap(), key);
    let received = Request::decode(&packet, hash, std::slice::from_ref(key)).unwrap();
    assert_eq!(received.request, request, "whoever does not know the mark reads a status");
    assert_eq!(received.dry_run, Some(action));
    let Ok(HostStream::Challenge(host)) = HostStream::begin(received.sealed, None, Some(key)) else {
        panic!("no challenge")
    };
    let (step_2, host) = host.answer(&C1).unwrap();
    let mut agent = exchange(Action::Status, &[packet], key);
    agent.receive(&[&step_2[..], &C2].concat()).unwrap();
    agent.prove();
    let proof = *agent.take_output().last_chunk().unwrap();
    let (_, writer) = host.challenge(&C2).unwrap().verify(&proof).unwrap();
    (packet, [&step_2[..], &C2, &writer.forecast(response, words)].concat())
}

#[test]
fn a_forecast_is_told_under_the_seal_alone() {
    let key = key();
    for action in [Action::Off, Action::On, Action::Reboot] {
        for response in [Response::Success, Response::Failure, Response::PermissionDenied] {
            let (packet, whole) = forecasting_host(&key, action, response, "words");
            // Status, and the words with the number of the action at the end of the address field.
            assert_eq!((packet[0], &packet[84..95], packet[95]), (4, &b"dry run of\0"[..], action.number()));
            assert_eq!(whole[128..][..9], *[&[252, 5, 0][..], b"words", &[response.number()]].concat());
            let answer = receive_all(Action::Status, &[packet], &whole);
            assert_eq!(answer, Ok(HostAnswer::Forecast { response, text: "words".to_owned() }));
            for length in 0..whole.len() {
                assert!(receive_all(Action::Status, &[packet], &whole[..length]).is_err(), "{length}");
            }
            for at in 0..whole.len() {
                let mut changed = whole.clone();
                changed[at] ^= 1;
                assert!(receive_all(Action::Status, &[packet], &changed).is_err(), "{at}");
            }
        }
    }
}

#[test]
fn a_packet_that_is_no_dry_run() {
    let (key, hash) = (key(), HashType::HmacSha256);
    let target = Target::new("vm1", false).unwrap();
    let request =
        |action| Request { action, target: target.clone(), call_back: None, nonce: [7; 6], sequence: 1 };
    let dry_run = |packet: &[u8; 176]| {
        Request::decode(packet, HashType::None, std::slice::from_ref(&key)).unwrap().dry_run
    };
    for action in Action::ALL {
        assert_eq!(dry_run(&request(action).encode(hash, &key)), None, "{action}");
        // Only what changes a domain can be asked about, and the packet is a status whatever asks.
        let packet = request(action).encode_dry_run(action, hash.sealed().unwrap(), &key);
        assert_eq!(packet[0], Action::Status.number(), "{action}");
        let is_asked = matches!(action, Action::Off | Action::On | Action::Reboot);
        assert_eq!(dry_run(&packet).is_some(), is_asked, "{action}");
    }
    // A host never tells a forecast to anybody else, nor success in its place.
    let (packet, bytes) = failing_host(&key, true, "why");
    assert!(matches!(receive_all(Action::Status, &[packet], &bytes), Ok(HostAnswer::Failed(_))));
}

/// Returns everything that a host sends that says why it fails, and the packet that it answers.
fn failing_host(key: &Key, wants_reason: bool, why: &str) -> ([u8; 176], Vec<u8>) {
    let target = Target::new("vm1", false).unwrap();
    let request = Request { action: Action::Status, target, call_back: None, nonce: [7; 6], sequence: 1 };
    let hash = HashType::HmacSha256;
    let packet = match wants_reason {
        true => request.encode_wanting_reason(hash.sealed().unwrap(), key),
        false => request.encode(hash, key),
    };
    let received = Request::decode(&packet, hash, std::slice::from_ref(key)).unwrap();
    assert_eq!(received.request, request, "whoever does not know the mark reads the same request");
    let Ok(HostStream::Challenge(host)) = HostStream::begin(received.sealed, None, Some(key)) else {
        panic!("no challenge")
    };
    let (step_2, host) = host.answer(&C1).unwrap();
    let mut agent = exchange(Action::Status, &[packet], key);
    agent.receive(&[&step_2[..], &C2].concat()).unwrap();
    agent.prove();
    let proof = *agent.take_output().last_chunk().unwrap();
    let (_, writer) = host.challenge(&C2).unwrap().verify(&proof).unwrap();
    (packet, [&step_2[..], &C2, &writer.failure(why)].concat())
}

#[test]
fn the_reason_of_a_failure_reaches_the_agent_that_wants_it() {
    let (key, why) = (key(), "can't tell: host h2 (10.0.0.2) does not answer");
    let (packet, bytes) = failing_host(&key, true, why);
    let answer = receive_all(Action::Status, &[packet], &bytes);
    assert_eq!(answer, Ok(HostAnswer::Failed(why.to_owned())));
    let (packet, bytes) = failing_host(&key, true, &"\u{e4}".repeat(5000));
    let Ok(HostAnswer::Failed(text)) = receive_all(Action::Status, &[packet], &bytes) else { panic!() };
    assert_eq!(text, "\u{e4}".repeat(512));
    // The bytes of an answer to any other agent are those that they always were.
    let (packet, bytes) = failing_host(&key, false, why);
    assert_eq!(bytes.len(), 128 + 1 + HASH_LEN);
    assert_eq!(receive_all(Action::Status, &[packet], &bytes), Ok(HostAnswer::Response(Response::Failure)));
}

/// A host that does not know the mark answers with the response alone.
#[test]
fn a_host_that_tells_no_reason_is_understood() {
    let (key, why) = (key(), "");
    let (packet, bytes) = failing_host(&key, true, why);
    assert_eq!(bytes.len(), 128 + 1 + HASH_LEN);
    assert_eq!(receive_all(Action::Status, &[packet], &bytes), Ok(HostAnswer::Response(Response::Failure)));
}

#[test]
fn a_reason_that_was_cut_or_changed_is_no_answer() {
    let key = key();
    let (packet, whole) = failing_host(&key, true, "can't tell");
    for length in 0..whole.len() {
        assert!(receive_all(Action::Status, &[packet], &whole[..length]).is_err(), "{length}");
    }
    for at in 0..whole.len() {
        for change in [1, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= change;
            assert!(receive_all(Action::Status, &[packet], &changed).is_err(), "{at}");
        }
    }
}
