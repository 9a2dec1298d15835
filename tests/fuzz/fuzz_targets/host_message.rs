// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages between hosts: nothing is believed without its proof, and what is read means the same when
//! written again. The fuzzer can't make a proof, so the target makes the second one for it, as a guest with
//! the key could.
#![no_main]

use fence_wire::{HOST_MESSAGE_LEN, HostMessage, HostsKey, Key, PairKey};
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;

/// Offset of the proof of the two hosts.
const PAIR_PROOF: usize = 112;
const KEY: &[u8] = b"the key of the fuzzer";

fuzz_target!(|data: &[u8]| {
    let hosts = HostsKey::of(&Key::new(b"the key of the fuzzer").expect("long enough"));
    assert!(HostMessage::decode(data, core::slice::from_ref(&hosts)).is_err());
    let Some(data) = data.first_chunk::<HOST_MESSAGE_LEN>() else { return };
    let mut bytes = *data;
    bytes[..3].copy_from_slice(&[0x48, 3, 1]);
    let proof = mac(&mac(KEY, &[b"fence_virt hosts\0"]), &[b"fence_virt host message\0", &bytes[..144]]);
    bytes[144..].copy_from_slice(&proof);
    let Ok(received) = HostMessage::decode(&bytes, core::slice::from_ref(&hosts)) else { return };
    let pair = PairKey::of(&[7; 32]);
    assert!(received.proved_answer(&pair).is_none());
    // What stands before the proof of the two hosts, which this key does not make.
    assert_eq!(received.message().encode(&hosts)[..PAIR_PROOF], bytes[..PAIR_PROOF]);
});

fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).expect("any length");
    parts.iter().for_each(|it| mac.update(it));
    mac.finalize().into_bytes().to_vec()
}
