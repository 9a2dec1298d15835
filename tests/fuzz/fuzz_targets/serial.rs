// SPDX-License-Identifier: GPL-2.0-or-later
//! Serial frames: the scanner finds every frame whatever noise is before it, and never holds more than one.
#![no_main]

use fence_wire::{
    SERIAL_MAGIC, SERIAL_REQUEST_LEN, SERIAL_RESPONSE_LEN, SerialRequest, SerialScanner, serial_response,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut scanner = SerialScanner::<SERIAL_REQUEST_LEN>::new();
    for byte in data {
        if let Some(frame) = scanner.push(*byte) {
            assert_eq!(frame[..4], SERIAL_MAGIC);
            if let Ok(request) = SerialRequest::decode(&frame) {
                assert_eq!(SerialRequest::decode(&request.encode()), Ok(request));
            }
        }
    }
    // After noise without a start of a frame, a response is found at once.
    let noise: Vec<u8> = data.iter().copied().filter(|it| *it != SERIAL_MAGIC[0]).collect();
    let mut scanner = SerialScanner::<SERIAL_RESPONSE_LEN>::new();
    assert!(noise.iter().all(|it| scanner.push(*it).is_none()));
    assert!(!scanner.is_partial());
    let found: Vec<_> = serial_response(2).into_iter().filter_map(|it| scanner.push(it)).collect();
    assert_eq!(found, [serial_response(2)]);
});
