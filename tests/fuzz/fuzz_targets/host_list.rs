// SPDX-License-Identifier: GPL-2.0-or-later
//! Host list entries: any bytes are an entry or the end, and an entry written again reads the same.
#![no_main]

use fence_wire::{HOST_LIST_ENTRY_LEN, HostListEntry, HostListItem};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for entry in data.chunks_exact(HOST_LIST_ENTRY_LEN) {
        let entry = entry.try_into().expect("chunks of that size");
        match HostListEntry::decode(entry) {
            HostListItem::End => assert!(entry[0] == 0 && entry[64] == 0),
            HostListItem::Domain(domain) => {
                let bytes = domain.encode();
                // Every text field ends in a NUL, whatever was in it.
                assert!(bytes[63] == 0 && bytes[127] == 0);
                let HostListItem::Domain(again) = HostListEntry::decode(&bytes) else {
                    // A name of one character too long for the field leaves nothing.
                    return;
                };
                assert!(domain.name.starts_with(&again.name) && domain.uuid.starts_with(&again.uuid));
                assert_eq!(again.on, domain.on);
            }
        }
    }
});
