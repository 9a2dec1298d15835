// SPDX-License-Identifier: GPL-2.0-or-later
//! Length extension: classic hashes can be extended without the key. These tests do it, to show that the
//! countermeasures are needed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop where it stands")]

use std::convert::Infallible;

use fence_wire::{
    Action, Challenge, ClassicHash, ClientAuth, ClientStream, HashType, HostAwaitChallenge, Key, ProofError,
    REQUEST_LEN, Request, RequestError, draw_challenge,
};
use sha2::{Digest, Sha256};

/// Key of a length for which the padding of key and challenge ends before the packet's hash field.
const KEY: [u8; 40] = [0x5a; 40];

/// Forges a packet that begins with `c`, and its hash, from H(key ‖ c) alone: only the key's length is known.
fn forged(c: &Challenge, answer: &[u8; 64]) -> [u8; REQUEST_LEN] {
    let hashed = KEY.len() + c.len();
    let padding = 64 - hashed % 64;
    let mut packet = [0; REQUEST_LEN];
    packet[..64].copy_from_slice(c);
    packet[64] = 0x80;
    packet[64 + padding - 8..64 + padding].copy_from_slice(&(8 * hashed as u64).to_be_bytes());
    assert!(64 + padding <= 112, "the padding reaches into the hash field");
    // The rest of the packet, its hash bytes zero, and the padding of all that.
    let mut rest = packet[64 + padding..].to_vec();
    let length = KEY.len() + REQUEST_LEN;
    rest.push(0x80);
    rest.resize(rest.len().next_multiple_of(64), 0);
    let end = rest.len() - 8;
    rest[end..].copy_from_slice(&(8 * length as u64).to_be_bytes());
    let mut state: [u32; 8] =
        std::array::from_fn(|i| u32::from_be_bytes(answer[4 * i..4 * i + 4].try_into().unwrap()));
    let blocks: Vec<[u8; 64]> = rest.as_chunks().0.to_vec();
    sha2::block_api::compress256(&mut state, &blocks);
    for (i, word) in state.iter().enumerate() {
        packet[112 + 4 * i..116 + 4 * i].copy_from_slice(&word.to_be_bytes());
    }
    packet
}

/// Beginning of the request "off vm1" on TCP.
fn off_vm1() -> Challenge {
    let mut c = [0; 64];
    (c[0], c[1]) = (Action::Off.number(), HashType::Sha256.number());
    c[4..7].copy_from_slice(b"vm1");
    c
}

#[test]
fn the_answer_to_a_chosen_challenge_would_make_a_valid_packet() {
    let c = off_vm1();
    // The answer of a host without the check.
    let mut answer = [0; 64];
    answer[..32].copy_from_slice(&Sha256::new().chain_update(KEY).chain_update(c).finalize());
    let packet = forged(&c, &answer);
    let key = Key::new(&KEY).unwrap();
    let received = Request::decode(&packet, HashType::Sha256, std::slice::from_ref(&key)).unwrap();
    assert_eq!((received.request.action, received.request.target.as_str()), (Action::Off, "vm1"));
    // Neither of our roles gives that answer.
    let host = HostAwaitChallenge::classic(ClassicHash::Sha256, &key);
    assert_eq!(host.answer(&c).unwrap_err(), ProofError::LooksLikeRequest);
    let c1 = [7; 64];
    let (proof, _) = HostAwaitChallenge::classic(ClassicHash::Sha256, &key).answer(&c1).unwrap();
    let ClientStream::Challenge(client) =
        ClientStream::begin(ClientAuth::Classic(ClassicHash::Sha256, &key), c1)
    else {
        panic!("no challenge");
    };
    assert_eq!(client.verify(&proof).unwrap().answer(&c).unwrap_err(), ProofError::LooksLikeRequest);
}

/// Every challenge that could be read as a classic packet is refused, and hardly any other.
#[test]
fn refused_are_the_beginnings_of_packets() {
    let key = Key::new(&KEY).unwrap();
    let answers = |c: &Challenge| HostAwaitChallenge::classic(ClassicHash::Sha256, &key).answer(c).is_ok();
    for action in 0..=255 {
        for hash in [0, 1, 2, 3, 4, 0x12, 0x13, 255] {
            for length in [0, 1, 4, 5, 16, 17, 255] {
                for flags in [0, 1, 2, 3, 255] {
                    let mut c = off_vm1();
                    c[..4].copy_from_slice(&[action, hash, length, flags]);
                    let hash = HashType::try_from(hash).ok().filter(|it| it.classic().is_some());
                    let refused = !answers(&c);
                    assert_eq!(
                        refused,
                        action <= 6 && hash.is_some() && [0, 4, 16].contains(&length) && flags <= 1,
                        "{:?}",
                        &c[..4]
                    );
                    // Every packet that the decoder accepts begins like this, whatever its rest is.
                    let mut packet = [0; REQUEST_LEN];
                    packet[..64].copy_from_slice(&c);
                    packet[96..98].copy_from_slice(&[1, 1]);
                    packet[108] = if length == 16 { 10 } else { 2 };
                    let signed = hash.map(|it| sign(packet, it, &key));
                    let taken = signed.is_some_and(|packet| {
                        Request::decode(&packet, HashType::Sha1, std::slice::from_ref(&key)).is_ok()
                    });
                    assert!(!taken || refused, "{:?}", &c[..4]);
                }
            }
        }
    }
}

/// Makes a hash with the key, as only an honest sender can.
fn sign(mut packet: [u8; REQUEST_LEN], hash: HashType, key: &Key) -> [u8; REQUEST_LEN] {
    use sha1::Sha1;
    use sha2::Sha512;
    fn sum<D: Digest>(packet: &[u8]) -> Vec<u8> {
        D::new().chain_update(KEY).chain_update(packet).finalize().to_vec()
    }
    assert_eq!(key.length(), KEY.len());
    let sum = match hash {
        HashType::Sha1 => sum::<Sha1>(&packet),
        HashType::Sha256 => sum::<Sha256>(&packet),
        HashType::Sha512 => sum::<Sha512>(&packet),
        other => panic!("{other} is not classic"),
    };
    packet[112..112 + sum.len()].copy_from_slice(&sum);
    packet
}

#[test]
fn own_challenges_never_look_like_it() {
    let mut drawn = vec![[9; 64], off_vm1(), off_vm1()];
    let challenge = draw_challenge(|bytes| {
        *bytes = drawn.pop().expect("not drawn again after a good one");
        Ok::<(), Infallible>(())
    });
    assert_eq!((challenge, drawn.len()), (Ok([9; 64]), 0));
    assert_eq!(draw_challenge(|_| Err(RequestError::Port)), Err(RequestError::Port));
}
