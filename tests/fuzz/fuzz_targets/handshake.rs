// SPDX-License-Identifier: GPL-2.0-or-later
//! The mutual challenge, classic and sealed: without the key, no bytes of a peer are believed.
#![no_main]

use fence_wire::{
    Action, ClassicHash, ClientAuth, ClientHandshake, ClientStream, HASH_LEN, HashType, HostAwaitChallenge,
    HostStream, Key, ProofError, Request, Response, SealedHash, SealedRequest, SentRequests, Target,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u8, [u8; 64], [u8; 64], [u8; 64], u8, &[u8])| {
    let (mode, theirs, ours, answer, byte, said) = data;
    let key = Key::new(b"the key of the fuzzer").expect("long enough");
    let mode = Mode::new(mode, &key);
    let Ok((_, host)) = mode.host(&key).answer(&theirs) else {
        // Classic hosts do not hash a challenge that begins like a packet.
        assert!(mode.sealed.is_none() && theirs[0] <= 6 && (1..=3).contains(&theirs[1]));
        return;
    };
    match host.challenge(&ours) {
        Ok(host) => assert!(host.verify(&answer).is_err()),
        Err(_) => assert_eq!(theirs, ours),
    }
    assert!(mode.client(&key, ours).verify(&answer).is_err());
    // Two sides that hold the key believe each other.
    if theirs == ours {
        return;
    }
    let (reply, host) = mode.host(&key).answer(&theirs).expect("answered before");
    let client = mode.client(&key, theirs).verify(&reply).expect("the same key");
    let host = host.challenge(&ours).expect("another challenge");
    let (proof, mut seal) = match client.answer(&ours) {
        Ok(answered) => answered,
        Err(error) => return assert_eq!((error, mode.sealed), (ProofError::LooksLikeRequest, None)),
    };
    let (_, writer) = host.verify(&proof).expect("the same key");
    let response = writer.response(Response::Failure);
    assert_eq!(seal.is_sealed(), mode.sealed.is_some());
    assert_eq!(response.len(), if seal.is_sealed() { 1 + HASH_LEN } else { 1 });
    // The fuzzer changes the response: only the exact bytes that the host sent are believed.
    if let Some(genuine) = response.last_chunk::<HASH_LEN>() {
        let mut theirs = response[..1].to_vec();
        theirs[0] ^= byte;
        theirs.extend_from_slice(said);
        seal.take(&theirs);
        assert_eq!(seal.verify((), genuine).is_ok(), theirs == response[..1]);
    }
});

/// Modes of authentication of both ends, as the packet asks for them.
struct Mode {
    classic: ClassicHash,
    sealed: Option<(SealedHash, SealedRequest)>,
    packet: [u8; 176],
}

impl Mode {
    fn new(mode: u8, key: &Key) -> Self {
        let hash = HashType::ALL[1 + usize::from(mode) % 5];
        let (target, nonce) = (Target::none(), [mode; 6]);
        let request = Request { action: Action::Null, target, call_back: None, nonce, sequence: 7 };
        let packet = request.encode(hash, key);
        let received = Request::decode(&packet, hash, core::slice::from_ref(key)).expect("our own packet");
        Self {
            classic: hash.classic().unwrap_or(ClassicHash::Sha256),
            sealed: hash.sealed().zip(received.sealed),
            packet,
        }
    }

    fn host<'k>(&self, key: &'k Key) -> HostAwaitChallenge<'k> {
        match HostStream::begin(self.sealed.map(|it| it.1), Some(self.classic), Some(key)) {
            Ok(HostStream::Challenge(host)) => host,
            other => panic!("no challenge: {other:?}"),
        }
    }

    fn client<'k>(&self, key: &'k Key, c1: [u8; 64]) -> ClientHandshake<'k> {
        let mut auth = match self.sealed {
            Some((hash, _)) => ClientAuth::Sealed(SentRequests::new(hash), key),
            None => ClientAuth::Classic(self.classic, key),
        };
        auth.add(&self.packet);
        match ClientStream::begin(auth, c1) {
            ClientStream::Challenge(client) => client,
            ClientStream::Open(_) => panic!("no challenge"),
        }
    }
}
