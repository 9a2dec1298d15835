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
/// State of an entry that the kernel has not used for a while: an address that the machine may have no more.
const STALE: u16 = 0x04;

/// First bytes of a link-local address of IPv6.
const LINK_LOCAL: [u8; 2] = [0xfe, 0x80];

/// Entries of the neighbour table for one address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NeighbourEntries {
    /// MAC addresses: one for each interface with an entry, without duplicates. Empty for an address of this
    /// machine, and for one behind a router.
    pub macs: Vec<[u8; 6]>,
    /// MAC addresses of the entries for other addresses, perhaps the same ones: a machine that has one here,
    /// too, has several addresses, or answers for others. Link-local addresses of IPv6 do not count, every
    /// machine has one; nor do entries that were not used for a while.
    pub others: Vec<[u8; 6]>,
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
            all.extend(entry(body));
        }
    })?;
    Ok(entries_for(&address, &all))
}

/// An entry of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
struct NeighbourEntry {
    address: Vec<u8>,
    mac: [u8; 6],
    is_stale: bool,
}

/// Returns what the table has for an address.
fn entries_for(address: &[u8], all: &[NeighbourEntry]) -> NeighbourEntries {
    let mut macs = Vec::new();
    for it in all.iter().filter(|it| it.address == address) {
        if !macs.contains(&it.mac) {
            macs.push(it.mac);
        }
    }
    let is_other =
        |it: &NeighbourEntry| it.address != address && !it.is_stale && !it.address.starts_with(&LINK_LOCAL);
    let others = all.iter().filter(|it| is_other(it)).map(|it| it.mac).collect();
    NeighbourEntries { macs, others }
}

/// Reads an entry that has an address and a MAC address.
fn entry(body: &[u8]) -> Option<NeighbourEntry> {
    let state = u16::from_ne_bytes(body.get(STATE..STATE + 2)?.try_into().ok()?);
    if state & UNKNOWN != 0 {
        return None;
    }
    let rest = body.get(HEAD..)?;
    let (_, address) = attributes(rest).find(|(kind, _)| *kind == NDA_DST)?;
    let (_, mac) = attributes(rest).find(|(kind, _)| *kind == NDA_LLADDR)?;
    Some(NeighbourEntry {
        address: address.to_vec(),
        mac: mac.try_into().ok()?,
        is_stale: state & STALE != 0,
    })
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
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let found = Some(NeighbourEntry { address: vec![10, 0, 0, 2], mac, is_stale: false });
        assert_eq!([entry(&ENTRY), entry(&ENTRY[..31])], [found.clone(), found]);
        let mut stale = ENTRY;
        stale[STATE] = 4;
        assert!(entry(&stale).is_some_and(|it| it.is_stale));
        assert_eq!(entry(&ENTRY[..20]), None);
    }

    #[test]
    fn other_addresses_have_their_mac_addresses() {
        let (mac, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let entry = |address: &str, mac| {
            let address = match address.parse().unwrap() {
                IpAddr::V4(it) => it.octets().to_vec(),
                IpAddr::V6(it) => it.octets().to_vec(),
            };
            NeighbourEntry { address, mac, is_stale: false }
        };
        let found = |address: &str, all: &[NeighbourEntry]| {
            let found = entries_for(&entry(address, mac).address, all);
            (found.macs.len(), found.others)
        };
        let all = [entry("10.0.0.2", mac), entry("10.0.0.2", mac), entry("10.0.0.4", other)];
        assert_eq!(found("10.0.0.2", &all), (1, vec![other]));
        assert_eq!(found("10.0.0.9", &all), (0, vec![mac, mac, other]));
        let all = [entry("10.0.0.2", mac), entry("10.0.0.3", mac)];
        assert_eq!(found("10.0.0.2", &all), (1, vec![mac]));
        let all = [entry("10.0.0.2", mac), NeighbourEntry { is_stale: true, ..entry("10.0.0.3", mac) }];
        assert_eq!(found("10.0.0.2", &all), (1, vec![]));
        assert_eq!(found("10.0.0.3", &all), (1, vec![mac]));
        let all = [entry("fd00::2", mac), entry("fe80::2", mac)];
        assert_eq!(found("fd00::2", &all), (1, vec![]));
        assert_eq!(found("fe80::2", &all), (1, vec![mac]));
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
            // The machine may have neighbours of its own.
            assert_eq!(neighbours(ip).unwrap().macs, Vec::<[u8; 6]>::new());
        }
    }
}
