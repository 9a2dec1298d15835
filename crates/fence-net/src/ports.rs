// SPDX-License-Identifier: GPL-2.0-or-later
//! Interfaces that are ports of another one: of a bridge, a bond, a team. Their packets arrive at that one.

use std::collections::HashSet;
use std::io;

use crate::netlink::{attributes, dump};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
/// Length of the head of a link message: family 1, pad 1, type 2, index 4, flags 4, change 4.
const HEAD: usize = 16;

/// Returns the indices of all interfaces that are ports of another, such as the taps of virtual machines.
///
/// # Errors
/// Error of the kernel's netlink socket.
pub fn ports() -> io::Result<HashSet<u32>> {
    let mut found = HashSet::new();
    dump(RTM_GETLINK, &[0; HEAD], |kind, body| {
        if kind == RTM_NEWLINK {
            found.extend(port(body));
        }
    })?;
    Ok(found)
}

/// Returns the index if the interface is a port. An interface in a VRF has a master too, but receives its own
/// packets.
fn port(body: &[u8]) -> Option<u32> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let rest = body.get(HEAD..)?;
    attributes(rest).find(|(kind, value)| *kind == IFLA_MASTER && value.iter().any(|it| *it != 0))?;
    let info = attributes(rest).find(|(kind, _)| *kind == IFLA_LINKINFO).map(|(_, value)| value);
    let kind = info.and_then(|it| attributes(it).find(|(kind, _)| *kind == IFLA_INFO_SLAVE_KIND));
    let is_vrf = kind.is_some_and(|(_, name)| name.strip_suffix(b"\0").unwrap_or(name) == b"vrf");
    (!is_vrf).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().div_ceil(4) * 4, 0);
        bytes
    }

    fn link(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0; HEAD];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body.extend(attributes.concat());
        body
    }

    #[test]
    fn a_port_has_a_master_that_takes_its_packets() {
        let master = attribute(IFLA_MASTER, &3_u32.to_ne_bytes());
        let kind = |name: &[u8]| attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_SLAVE_KIND, name));
        assert_eq!(port(&link(&[])), None);
        assert_eq!(port(&link(std::slice::from_ref(&master))), Some(7));
        assert_eq!(port(&link(&[master.clone(), kind(b"bridge\0")])), Some(7));
        assert_eq!(port(&link(&[master, kind(b"vrf\0")])), None);
        assert_eq!(port(&[0; 5]), None);
    }

    #[test]
    fn loopback_is_no_port() {
        assert!(!ports().unwrap().contains(&1));
    }
}
