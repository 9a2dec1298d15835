// SPDX-License-Identifier: GPL-2.0-or-later
//! A host's bytes in any pieces: without the key no answer comes of them, with it none but the one that it
//! sealed, and with or without the pieces the same.
#![no_main]

use fence_wire::{Action, ClassicHash, ClientAuth, HashType, HostStream, Key, Request, SentRequests, Target};
use fence_xvm::answer::HostAnswer;
use fence_xvm::exchange::{ExchangeError, HostExchange};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u8, u8, u8, &[u8])| {
    let (mode, action, piece, bytes) = data;
    let key = Key::new(b"the key of the fuzzer").expect("long enough");
    let action = Action::ALL[usize::from(action) % Action::ALL.len()];
    let packet = packet(action, &key);
    let sealed = || {
        let hash = HashType::HmacSha256.sealed().expect("sealed");
        let mut auth = ClientAuth::Sealed(SentRequests::new(hash), &key);
        auth.add(&packet);
        auth
    };
    let auth = || match mode % 4 {
        0 => ClientAuth::Open,
        1 => ClientAuth::Classic(ClassicHash::Sha256, &key),
        _ => sealed(),
    };
    let feed = |piece: usize| -> Result<HostAnswer, ExchangeError> {
        let mut exchange = HostExchange::new(action, auth(), None, C1);
        for piece in bytes.chunks(piece) {
            if exchange.receive(piece).is_err() {
                break;
            }
            exchange.prove();
        }
        exchange.close()
    };
    let whole = feed(bytes.len().max(1));
    let open = mode % 4 == 0;
    assert!(open || whole.is_err(), "an answer without the key");
    if open {
        assert_eq!(feed(usize::from(piece).max(1)), whole);
    }
    if let Ok(HostAnswer::List { .. }) = whole {
        assert_eq!(action, Action::List);
    }
    if mode % 4 == 3 {
        // The host is genuine, and what follows is not: the answer of another exchange, or anything else.
        let mut exchange = HostExchange::new(action, sealed(), None, C1);
        let opening = opening(&packet, &key);
        let mut believed = |bytes: &[u8]| exchange.receive(bytes).is_ok();
        assert!(believed(&opening) && believed(&[8; 64]));
        exchange.prove();
        for piece in bytes.chunks(usize::from(piece).max(1)) {
            if exchange.receive(piece).is_err() {
                break;
            }
            assert!(!exchange.is_done() && !exchange.is_list_complete());
        }
        assert!(exchange.close().is_err(), "an answer without its seal");
    }
});

const C1: [u8; 64] = [7; 64];

fn packet(action: Action, key: &Key) -> [u8; 176] {
    let target = Target::new("vm1", false).expect("a name");
    Request { action, target, call_back: None, nonce: [1; 6], sequence: 1 }.encode(HashType::HmacSha256, key)
}

/// Step 2 of the host that heard the packet.
fn opening(packet: &[u8], key: &Key) -> [u8; 64] {
    let received = Request::decode(packet, HashType::HmacSha256, core::slice::from_ref(key)).expect("ours");
    match HostStream::begin(received.sealed, None, Some(key)) {
        Ok(HostStream::Challenge(host)) => host.answer(&C1).expect("a sealed one").0,
        other => panic!("no challenge: {other:?}"),
    }
}
