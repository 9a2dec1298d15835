// SPDX-License-Identifier: GPL-2.0-or-later
//! Request packets: nothing is believed without its hash, and what is read means the same when written again.
#![no_main]

use fence_wire::{HashType, Key, REQUEST_LEN, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let key = Key::new(b"the key of the fuzzer").expect("long enough");
    for minimum in HashType::ALL {
        let result = Request::decode(data, minimum, core::slice::from_ref(&key));
        // The fuzzer can't make a hash, so only packets that carry none get through, where that is allowed.
        assert!(result.is_err() || minimum == HashType::None);
    }
    let Ok(received) = Request::decode(data, HashType::None, &[]) else { return };
    assert_eq!(data.len(), REQUEST_LEN);
    assert_eq!(received.key, None);
    // What the decoder let through survives every hash.
    for hash in HashType::ALL {
        let packet = received.request.encode(hash, &key);
        let again = Request::decode(&packet, hash, core::slice::from_ref(&key)).expect("our own packet");
        assert_eq!(again.request, received.request);
    }
});
