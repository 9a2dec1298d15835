// SPDX-License-Identifier: GPL-2.0-or-later
//! Neighbour table of the kernel (`ip neigh`): MAC addresses by IP address, for the local networks.
//!
//! Must never return an entry that the kernel does not trust: a source is identified by it.

use std::io;
use std::net::IpAddr;

use crate::netlink::{attributes, dump};

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Length of the head of a neighbour message: family 1, pad 3, interface 4, state 2, flags 1, type 1.
const HEAD: usize = 12;
const STATE: usize = 8;
/// States in which the kernel has no MAC address that it trusts (incomplete, failed), and entries that are no
/// neighbours (no ARP).
const UNKNOWN: u16 = 0x01 | 0x20 | 0x40;

/// Returns the MAC addresses of `ip` in the neighbour table: one for each interface with an entry, without
/// duplicates. Empty for an address of this machine, and for one behind a router.
///
/// Reads the whole table: some ten microseconds, and a millisecond with a thousand entries.
///
/// # Errors
/// Error of the kernel's netlink socket.
pub fn neighbours(ip: IpAddr) -> io::Result<Vec<[u8; 6]>> {
    let (family, address) = match ip {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let mut found = Vec::new();
    let mut question = [0; HEAD];
    question[0] = family;
    dump(RTM_GETNEIGH, &question, |kind, body| {
        if kind == RTM_NEWNEIGH
            && let Some(mac) = entry(body, &address)
            && !found.contains(&mac)
        {
            found.push(mac);
        }
    })?;
    Ok(found)
}

/// Returns the MAC address if this entry is for `address`.
fn entry(body: &[u8], address: &[u8]) -> Option<[u8; 6]> {
    let state = u16::from_ne_bytes(body.get(STATE..STATE + 2)?.try_into().ok()?);
    if state & UNKNOWN != 0 {
        return None;
    }
    let rest = body.get(HEAD..)?;
    attributes(rest).any(|(kind, value)| kind == NDA_DST && value == address).then_some(())?;
    attributes(rest).find(|(kind, _)| *kind == NDA_LLADDR)?.1.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entry as the kernel sends it: 10.0.0.2 at 52:54:00:01:02:03, state reachable (2).
    const ENTRY: [u8; 32] = [
        2, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 1, 8, 0, 1, 0, 10, 0, 0, 2, 10, 0, 2, 0, 0x52, 0x54, 0, 1, 2, 3, 0,
        0,
    ];

    #[test]
    fn an_entry_has_a_mac_address() {
        let mac = Some([0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(entry(&ENTRY, &[10, 0, 0, 2]), mac);
        assert_eq!(entry(&ENTRY, &[10, 0, 0, 3]), None);
        assert_eq!(entry(&ENTRY[..31], &[10, 0, 0, 2]), mac);
        assert_eq!(entry(&ENTRY[..20], &[10, 0, 0, 2]), None);
    }

    #[test]
    fn a_failed_entry_has_no_mac_address() {
        let mut failed = ENTRY;
        failed[STATE] = 0x20;
        assert_eq!(entry(&failed, &[10, 0, 0, 2]), None);
    }

    #[test]
    fn the_kernel_answers() {
        assert_eq!(neighbours([127, 0, 0, 1].into()).unwrap(), [[0; 6]; 0]);
        assert_eq!(neighbours("::1".parse().unwrap()).unwrap(), [[0; 6]; 0]);
    }
}
