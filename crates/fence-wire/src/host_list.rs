// SPDX-License-Identifier: GPL-2.0-or-later
//! Host list: entries of fixed size after the byte 253, and an entry of zeros at the end.
//!
//! ```text
//! offset  size  field
//!      0    64  name, NUL-padded
//!     64    64  UUID text, NUL-padded
//!    128     1  state: libvirt's number of the domain's state (1 running)
//!    129     1  pad
//! ```

use crate::text::cut;

/// Length of an entry in bytes.
pub const HOST_LIST_ENTRY_LEN: usize = 130;
/// Entry that ends a list.
pub const HOST_LIST_END: [u8; HOST_LIST_ENTRY_LEN] = [0; HOST_LIST_ENTRY_LEN];

const NAME: core::ops::Range<usize> = 0..64;
const UUID: core::ops::Range<usize> = 64..128;
const STATE: usize = 128;
/// Bytes of a name or UUID that fit beside the NUL.
const TEXT_MAX: usize = 63;
const RUNNING: u8 = 1;

/// Domain of a host list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostListEntry {
    /// Name; when encoded, cut after 63 bytes, between two characters.
    pub name: String,
    /// UUID in text form.
    pub uuid: String,
    /// True unless the domain is off. Clients know only "running" and all other states, so every domain that
    /// is not off is sent as running: a paused domain still holds its disks.
    pub on: bool,
}

/// Decoded entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostListItem {
    /// A domain.
    Domain(HostListEntry),
    /// The end of the list.
    End,
}

impl HostListEntry {
    const SHUT_OFF: u8 = 5;

    /// Returns the bytes of the entry.
    #[must_use]
    pub fn encode(&self) -> [u8; HOST_LIST_ENTRY_LEN] {
        let mut entry = HOST_LIST_END;
        put(&mut entry[NAME], &self.name);
        put(&mut entry[UUID], &self.uuid);
        entry[STATE] = if self.on { RUNNING } else { Self::SHUT_OFF };
        entry
    }

    /// Reads an entry. Never fails: names come from another machine's hypervisor and are only shown. Bytes
    /// that are not UTF-8 are replaced, and a missing NUL means that the field is full.
    #[must_use]
    pub fn decode(entry: &[u8; HOST_LIST_ENTRY_LEN]) -> HostListItem {
        let text = |field: &[u8]| {
            let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let (name, uuid) = (text(&entry[NAME]), text(&entry[UUID]));
        if name.is_empty() && uuid.is_empty() {
            return HostListItem::End;
        }
        HostListItem::Domain(Self { name, uuid, on: entry[STATE] == RUNNING })
    }

    /// Returns whether an entry says in so many words that the domain is shut off. A paused or crashed domain
    /// is neither running nor shut off.
    #[must_use]
    pub fn is_shut_off(entry: &[u8; HOST_LIST_ENTRY_LEN]) -> bool {
        entry[STATE] == Self::SHUT_OFF
    }
}

fn put(field: &mut [u8], text: &str) {
    let text = cut(text, TEXT_MAX);
    field[..text.len()].copy_from_slice(text.as_bytes());
}
