// SPDX-License-Identifier: GPL-2.0-or-later
//! A host's bytes in any pieces: without the key no answer comes of them, and with or without the pieces the same.
#![no_main]

use fence_wire::{Action, HashType, Key};
use fence_xvm::answer::Answer;
use fence_xvm::exchange::{Exchange, Refusal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (bool, u8, u8, &[u8])| {
    let (authenticated, action, piece, bytes) = data;
    let key = Key::new(b"the key of the fuzzer").expect("long enough");
    let auth = authenticated.then_some((HashType::Sha256, &key));
    let action = Action::ALL[usize::from(action) % Action::ALL.len()];
    let feed = |piece: usize| -> Result<Answer, Refusal> {
        let mut exchange = Exchange::new(action, auth, None, [7; 64]);
        for piece in bytes.chunks(piece) {
            if exchange.receive(piece).is_err() {
                break;
            }
            exchange.prove();
        }
        exchange.close()
    };
    let whole = feed(bytes.len().max(1));
    assert!(!authenticated || whole.is_err(), "an answer without the key");
    if !authenticated {
        assert_eq!(feed(usize::from(piece).max(1)), whole);
    }
    if let Ok(Answer::List { .. }) = whole {
        assert_eq!(action, Action::List);
    }
});
