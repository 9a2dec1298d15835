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

/// First bytes of a link-local address of IPv6.
const LINK_LOCAL: [u8; 2] = [0xfe, 0x80];

/// Entries of the neighbour table for one address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NeighbourEntries {
    /// MAC addresses: one for each interface with an entry, without duplicates. Empty for an address of this
    /// machine, and for one behind a router.
    pub macs: Vec<[u8; 6]>,
    /// One of these MAC addresses has an entry for another address, too: a machine with several addresses, or
    /// one that answers for others. Link-local addresses of IPv6 do not count: every machine has one.
    pub is_shared: bool,
}

/// Returns the entries of the neighbour table for `ip`.
///
/// Reads the whole table: some ten microseconds, and a millisecond with a thousand entries.
///
/// # Errors
/// Error of the kernel's netlink socket.
pub fn neighbours(ip: IpAddr) -> io::Result<NeighbourEntries> {
    let (family, address) = match ip {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let mut all = Vec::new();
    let mut question = [0; HEAD];
    question[0] = family;
    dump(RTM_GETNEIGH, &question, |kind, body| {
        if kind == RTM_NEWNEIGH {
            all.extend(entry(body).map(|(address, mac)| (address.to_vec(), mac)));
        }
    })?;
    Ok(entries_for(&address, &all))
}

/// Returns what the table has for an address.
fn entries_for(address: &[u8], all: &[(Vec<u8>, [u8; 6])]) -> NeighbourEntries {
    let mut macs = Vec::new();
    for (_, mac) in all.iter().filter(|(it, _)| it == address) {
        if !macs.contains(mac) {
            macs.push(*mac);
        }
    }
    let is_other = |it: &[u8]| it != address && !it.starts_with(&LINK_LOCAL);
    let is_shared = all.iter().any(|(it, mac)| is_other(it) && macs.contains(mac));
    NeighbourEntries { macs, is_shared }
}

/// Returns the address and the MAC address of an entry that has both.
fn entry(body: &[u8]) -> Option<(&[u8], [u8; 6])> {
    let state = u16::from_ne_bytes(body.get(STATE..STATE + 2)?.try_into().ok()?);
    if state & UNKNOWN != 0 {
        return None;
    }
    let rest = body.get(HEAD..)?;
    let (_, address) = attributes(rest).find(|(kind, _)| *kind == NDA_DST)?;
    Some((address, attributes(rest).find(|(kind, _)| *kind == NDA_LLADDR)?.1.try_into().ok()?))
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
        let found = Some((&[10, 0, 0, 2][..], [0x52, 0x54, 0, 1, 2, 3]));
        assert_eq!([entry(&ENTRY), entry(&ENTRY[..31])], [found, found]);
        assert_eq!(entry(&ENTRY[..20]), None);
    }

    #[test]
    fn a_mac_address_with_two_addresses_is_shared() {
        let (mac, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let entry = |address: &str, mac| {
            let address = match address.parse().unwrap() {
                IpAddr::V4(it) => it.octets().to_vec(),
                IpAddr::V6(it) => it.octets().to_vec(),
            };
            (address, mac)
        };
        let shared = |address: &str, all: &[(Vec<u8>, [u8; 6])]| {
            let found = entries_for(&entry(address, mac).0, all);
            (found.macs.len(), found.is_shared)
        };
        let all = [entry("10.0.0.2", mac), entry("10.0.0.2", mac), entry("10.0.0.4", other)];
        assert_eq!(shared("10.0.0.2", &all), (1, false));
        assert_eq!(shared("10.0.0.9", &all), (0, false));
        let all = [entry("10.0.0.2", mac), entry("10.0.0.3", mac)];
        assert_eq!([shared("10.0.0.2", &all), shared("10.0.0.3", &all)], [(1, true); 2]);
        let all = [entry("fd00::2", mac), entry("fe80::2", mac)];
        assert_eq!([shared("fd00::2", &all), shared("fe80::2", &all)], [(1, false), (1, true)]);
    }

    #[test]
    fn a_failed_entry_has_no_mac_address() {
        let mut failed = ENTRY;
        failed[STATE] = 0x20;
        assert_eq!(entry(&failed), None);
    }

    #[test]
    fn the_kernel_answers() {
        for ip in [[127, 0, 0, 1].into(), "::1".parse().unwrap()] {
            assert_eq!(neighbours(ip).unwrap(), NeighbourEntries::default());
        }
    }
}
