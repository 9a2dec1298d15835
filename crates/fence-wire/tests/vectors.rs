// SPDX-License-Identifier: GPL-2.0-or-later
//! Literal bytes of the C programs, and of the sealed extension, in both directions. tests/vectors/README.md
//! describes their form.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop where it stands")]

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use fence_wire::{
    Action, CPG_EVERYBODY, CallBack, ClientAuth, ClientStream, CpgDomain, CpgMessage, CpgRequest,
    HOST_LIST_END, HOST_LIST_ENTRY_LEN, HOST_LIST_FOLLOWS, HashType, HostAwaitChallenge, HostListEntry,
    HostListItem, HostStream, Key, Request, Response, SERIAL_REQUEST_LEN, SERIAL_RESPONSE_LEN, SentRequests,
    SerialRequest, SerialScanner, Target, serial_response,
};

struct Record(HashMap<String, String>);

impl Record {
    fn text(&self, field: &str) -> &str {
        self.0.get(field).unwrap_or_else(|| panic!("{}: no field {field}", self.0["case"]))
    }

    fn bytes(&self, field: &str) -> Vec<u8> {
        let hex = self.text(field).as_bytes();
        assert_eq!(hex.len() % 2, 0, "{}: {field}", self.0["case"]);
        hex.chunks(2).map(|it| u8::from_str_radix(std::str::from_utf8(it).unwrap(), 16).unwrap()).collect()
    }

    fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        self.bytes(field).try_into().unwrap_or_else(|_| panic!("{}: length of {field}", self.0["case"]))
    }

    fn number<T: std::str::FromStr>(&self, field: &str) -> T {
        self.text(field).parse().unwrap_or_else(|_| panic!("{}: {field}", self.0["case"]))
    }

    fn utf8(&self, field: &str) -> String {
        String::from_utf8(self.bytes(field)).unwrap()
    }

    fn key(&self) -> Key {
        Key::new(&fs::read(folder().join(self.text("key"))).unwrap()).unwrap()
    }
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors"))
}

fn records(file: &str) -> Vec<Record> {
    let text = fs::read_to_string(folder().join(file)).unwrap();
    let lines = text.lines().filter(|it| !it.starts_with('#') && !it.is_empty());
    lines
        .map(|line| {
            Record(
                line.split(' ')
                    .map(|it| it.split_once('=').unwrap())
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .collect(),
            )
        })
        .collect()
}

#[test]
fn requests_of_the_reference_are_read_and_written_to_the_byte() {
    let records = records("requests.txt");
    assert!(records.len() >= 7 * 4 * 2);
    for record in records {
        let case = record.text("case").to_owned();
        let (packet, key) = (record.bytes("packet"), record.key());
        let hash = HashType::try_from(record.number::<u8>("hash")).unwrap();
        let uuid = record.text("uuid") == "1";
        let call_back = match record.text("address") {
            "-" => None,
            text => Some(CallBack { address: text.parse().unwrap(), port: record.number("port") }),
        };
        let expected = Request {
            action: Action::try_from(record.number::<u8>("action")).unwrap(),
            target: Target::new(&record.utf8("domain"), uuid).unwrap(),
            call_back,
            nonce: record.array("random"),
            sequence: record.number("seqno"),
        };
        let received = Request::decode(&packet, HashType::None, std::slice::from_ref(&key)).unwrap();
        assert_eq!((&received.request, received.hash), (&expected, hash), "{case}");
        assert_eq!(received.key, (hash != HashType::None).then_some(0), "{case}");
        assert_eq!(expected.encode(hash, &key).to_vec(), packet, "{case}");
    }
}

#[test]
fn handshakes_of_the_reference_are_ours() {
    let mut seen = 0;
    for record in records("handshakes.txt").iter().filter(|it| it.text("auth") != "0") {
        let (case, key) = (record.text("case"), record.key());
        let auth = HashType::try_from(record.number::<u8>("auth")).unwrap().classic().unwrap();
        let (c1, c2) = (record.array("c1"), record.array("c2"));
        let (host_answer, client_answer) = (record.array("host_answer"), record.array("client_answer"));

        let (ours, host) = HostAwaitChallenge::classic(auth, &key).answer(&c1).unwrap();
        assert_eq!(ours, host_answer, "{case}");
        let _ = host.challenge(&c2).unwrap().verify(&client_answer).unwrap_or_else(|e| panic!("{case}: {e}"));

        let ClientStream::Challenge(client) = ClientStream::begin(ClientAuth::Classic(auth, &key), c1) else {
            panic!("{case}: no challenge");
        };
        let (ours, seal) = client.verify(&host_answer).unwrap().answer(&c2).unwrap();
        assert_eq!((ours, seal.is_sealed()), (client_answer, false), "{case}");
        seen += 1;
    }
    assert!(seen >= 3 * 2);
}

/// Compares packet, steps, response and seal, for both roles, with bytes that were made without this crate.
#[test]
fn sealed_exchanges_are_those_of_the_description() {
    let records = records("sealed.txt");
    assert!(records.len() >= 2 * 7);
    for record in records {
        let (case, key) = (record.text("case"), record.key());
        let hash = HashType::try_from(record.number::<u8>("hash")).unwrap();
        let packet: [u8; 176] = record.array("packet");
        let received = Request::decode(&packet, hash, std::slice::from_ref(&key)).unwrap();
        let target = Target::new(&record.utf8("domain"), record.text("uuid") == "1").unwrap();
        assert_eq!(
            (&received.request.target, received.hash, received.key),
            (&target, hash, Some(0)),
            "{case}"
        );
        assert_eq!(received.request.action.number(), record.number::<u8>("action"), "{case}");
        assert_eq!(received.request.encode(hash, &key), packet, "{case}");
        let (c1, c2) = (record.array("c1"), record.array("c2"));
        let (host_answer, client_answer) = (record.array("host_answer"), record.array("client_answer"));
        let (response, seal) = (record.bytes("response"), record.array("seal"));

        // The listener's own setting does not matter: the packet decides whether the stream is sealed.
        for auth in HashType::ALL.map(HashType::classic) {
            let host = HostStream::begin(received.sealed, auth, Some(&key)).unwrap();
            let HostStream::Challenge(host) = host else { panic!("{case}: no challenge") };
            let (answer, host) = host.answer(&c1).unwrap();
            assert_eq!(answer, host_answer, "{case}");
            let (_, writer) = host.challenge(&c2).unwrap().verify(&client_answer).unwrap();
            let code = Response::from_number(*response.last().unwrap()).unwrap();
            let bytes = match entries(&response) {
                None => writer.response(code),
                Some(entries) => writer.list(&entries, code),
            };
            assert_eq!(bytes, [&response[..], &seal].concat(), "{case}");
        }

        let mut sent = SentRequests::new(hash.sealed().unwrap());
        // The packet was one of several of one request.
        for sequence in [1, 2, 3] {
            let other = Request { sequence, ..received.request.clone() };
            sent.add(&other.encode(hash, &key));
            if sequence == 2 {
                sent.add(&packet);
            }
        }
        let client = ClientStream::begin(ClientAuth::Sealed(sent, &key), c1);
        let ClientStream::Challenge(client) = client else { panic!("{case}: no challenge") };
        let (answer, mut taken) = client.verify(&host_answer).unwrap().answer(&c2).unwrap();
        assert_eq!(answer, client_answer, "{case}");
        for piece in response.chunks(7) {
            taken.take(piece);
        }
        assert_eq!(taken.verify(case, &seal).unwrap().into_inner(), case);
    }
}

/// Returns the entries of a list's response; none for a response without a list.
fn entries(response: &[u8]) -> Option<Vec<HostListEntry>> {
    let (first, rest) = response.split_first().unwrap();
    (*first == HOST_LIST_FOLLOWS).then(|| {
        let entries =
            rest.chunks_exact(HOST_LIST_ENTRY_LEN).map(|it| HostListEntry::decode(it.try_into().unwrap()));
        entries
            .map_while(|item| match item {
                HostListItem::Domain(entry) => Some(entry),
                HostListItem::End => None,
            })
            .collect()
    })
}

#[test]
fn host_lists_of_the_reference_are_read() {
    for record in records("host_lists.txt") {
        let case = record.text("case");
        let response = record.bytes("response");
        let (first, entries) = response.split_first().unwrap();
        assert_eq!(*first, HOST_LIST_FOLLOWS, "{case}");
        let mut chunks = entries.chunks(HOST_LIST_ENTRY_LEN);
        for i in 0..record.number::<usize>("count") {
            let bytes: &[u8; HOST_LIST_ENTRY_LEN] = chunks.next().unwrap().try_into().unwrap();
            let expected = HostListEntry {
                name: record.utf8(&format!("name{i}")),
                uuid: record.text(&format!("uuid{i}")).to_owned(),
                on: record.text(&format!("state{i}")) == "1",
            };
            assert_eq!(HostListEntry::decode(bytes), HostListItem::Domain(expected.clone()), "{case}");
            // Our bytes, read as the C programs read them: the fields up to their NUL, and state 1 for on.
            let ours = expected.encode();
            let field = |at: usize| ours[at..at + 64].split(|b| *b == 0).next().unwrap().to_vec();
            assert_eq!(field(0), record.bytes(&format!("name{i}")), "{case}");
            assert_eq!(field(64), record.text(&format!("uuid{i}")).as_bytes(), "{case}");
            assert_eq!(ours[128] == 1, expected.on, "{case}");
        }
        let end: [u8; HOST_LIST_ENTRY_LEN] = chunks.next().unwrap().try_into().unwrap();
        assert_eq!(HostListEntry::decode(&end), HostListItem::End, "{case}");
        assert_eq!(end, HOST_LIST_END, "{case}");
        assert_eq!(chunks.next(), Some(&[record.number::<u8>("code")][..]), "{case}");
    }
}

#[test]
fn serial_frames_of_the_reference_are_read_and_written_to_the_byte() {
    for record in records("serial.txt") {
        let case = record.text("case");
        let frame: [u8; SERIAL_REQUEST_LEN] = record.array("frame");
        let expected = SerialRequest {
            action: Action::try_from(record.number::<u8>("action")).unwrap(),
            target: Target::new(&record.utf8("domain"), record.number::<u8>("flags") & 1 != 0).unwrap(),
            sequence: record.number("seqno"),
        };
        assert_eq!(SerialRequest::decode(&frame), Ok(expected.clone()), "{case}");
        assert_eq!(expected.encode(), frame, "{case}");

        // The first frame of the answer, after any noise in the capture.
        let mut scanner = SerialScanner::<SERIAL_RESPONSE_LEN>::new();
        let answer = record.bytes("answer");
        let found: Vec<_> = answer.iter().filter_map(|it| scanner.push(*it)).collect();
        assert!(!found.is_empty(), "{case}");
        assert_eq!(found[0], serial_response(found[0][4]), "{case}");
        if record.text("captured") == "daemon" {
            let list =
                record.text("entries") != "-" && record.number::<u8>("action") == Action::List.number();
            let code = if list { HOST_LIST_FOLLOWS } else { record.number("code") };
            assert_eq!(found[0][4], code, "{case}");
        }
    }
}

#[test]
fn messages_between_hosts_are_read_and_written_to_the_byte() {
    let records = records("cpg.txt");
    for record in &records {
        let case = record.text("case");
        let message = record.bytes("message");
        let request = || CpgRequest {
            action: Action::try_from(record.number::<u8>("action")).ok(),
            target: record.utf8("target"),
            client_sequence: record.number("client"),
        };
        let sequence = || record.number("sequence");
        let expected = match record.text("kind") {
            "request" => {
                assert_eq!(record.number::<u32>("to"), CPG_EVERYBODY, "{case}");
                CpgMessage::Request { sequence: sequence(), request: request() }
            }
            "reply" => CpgMessage::Reply {
                to: record.number("to"),
                sequence: sequence(),
                request: request(),
                response: Response::from_number(record.number("response")).unwrap(),
            },
            _ => CpgMessage::Domain(CpgDomain {
                name: record.utf8("name"),
                uuid: record.text("uuid").to_owned(),
                owner: record.number("owner"),
                state: record.number("state"),
            }),
        };
        assert_eq!(CpgMessage::decode(&message), Ok(expected.clone()), "{case}");
        // Pads, and the last byte of a name and of a UUID, are leftovers of the C daemon's memory.
        let pads = |it: usize| {
            (12..16).contains(&it) || (record.text("kind") == "domain" && matches!(it, 80 | 145..148))
        };
        let told = |bytes: &[u8]| -> Vec<u8> {
            bytes.iter().enumerate().map(|(at, it)| if pads(at) { 0 } else { *it }).collect()
        };
        assert_eq!(expected.encode().unwrap().to_vec(), told(&message), "{case}");
    }
}
