// SPDX-License-Identifier: GPL-2.0-or-later
//! The mutual challenge: whatever a peer sends, it is not believed without the key.
#![no_main]

use fence_wire::{ClientHandshake, HashType, HostAwaitChallenge, Key};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u8, [u8; 64], [u8; 64], [u8; 64])| {
    let (auth, theirs, ours, answer) = data;
    let key = Key::new(b"the key of the fuzzer").expect("long enough");
    let auth = HashType::ALL[1 + usize::from(auth) % 3];
    let (_, host) = HostAwaitChallenge::new(auth, &key).answer(&theirs);
    match host.challenge(&ours) {
        Ok(host) => assert!(host.verify(&answer).is_err()),
        Err(_) => assert_eq!(theirs, ours),
    }
    assert!(ClientHandshake::new(auth, &key, ours).verify(&answer).is_err());
    // Two that hold the key believe each other.
    if theirs != ours {
        let (reply, host) = HostAwaitChallenge::new(auth, &key).answer(&theirs);
        let client = ClientHandshake::new(auth, &key, theirs).verify(&reply).expect("the same key");
        let host = host.challenge(&ours).expect("another challenge");
        host.verify(&client.answer(&ours).expect("another challenge")).expect("the same key");
    }
});
