// SPDX-License-Identifier: GPL-2.0-or-later
//! Peer-supplied bytes in a log or on a terminal: one line, nothing in it that acts.
#![no_main]

use fence_wire::escaped;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let shown = escaped(data).to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    assert!(!shown.contains(['\u{202e}', '\u{2028}', '\u{2029}', '\u{200f}']));
});
