// SPDX-License-Identifier: GPL-2.0-or-later
//! Network interfaces of the machine and their addresses.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;

/// Network interface, as it is at this moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Name, such as `eth0`.
    pub name: String,
    /// The kernel's number; an interface that is made again gets another one.
    pub index: u32,
    /// Flags of the kernel.
    pub flags: InterfaceFlags,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// Address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InterfaceAddress {
    /// IP address.
    pub ip: IpAddr,
    /// Scope of an IPv6 link-local address: the index of its interface. 0 for all others.
    pub scope: u32,
}

impl Interface {
    /// Returns whether the interface is administratively up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags.contains(InterfaceFlags::IFF_UP)
    }

    /// Returns whether this is the loopback interface.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    }

    /// Returns whether requests may arrive by this interface: it is up and does multicast. Loopback counts:
    /// Linux does multicast on it although its flags do not say so.
    #[must_use]
    pub fn takes_multicast(&self) -> bool {
        self.is_up() && (self.is_loopback() || self.flags.contains(InterfaceFlags::IFF_MULTICAST))
    }
}

/// Returns all interfaces by index, also those that are down or have no address.
///
/// # Errors
/// Error of getifaddrs(3).
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs()? {
        // An IPv4 address may carry a label ("eth0:1") in the place of the interface's name.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        let place = match found.iter().position(|i| i.name == name) {
            Some(place) => place,
            // The interface went away after getifaddrs listed it.
            None => match if_nametoindex(name) {
                Err(_) => continue,
                Ok(index) => {
                    let name = name.to_owned();
                    found.push(Interface { name, index, flags: entry.flags, addresses: Vec::new() });
                    found.len() - 1
                }
            },
        };
        found[place].addresses.extend(entry.address.as_ref().and_then(address));
    }
    found.sort_by_key(|i| i.index);
    Ok(found)
}

/// Returns the interface of that name; none when it does not exist.
///
/// # Errors
/// Error of getifaddrs(3).
pub fn interface_by_name(name: &str) -> io::Result<Option<Interface>> {
    Ok(interfaces()?.into_iter().find(|i| i.name == name))
}

fn address(socket: &SockaddrStorage) -> Option<InterfaceAddress> {
    if let Some(v4) = socket.as_sockaddr_in() {
        return Some(InterfaceAddress { ip: IpAddr::V4(v4.ip()), scope: 0 });
    }
    socket.as_sockaddr_in6().map(|v6| InterfaceAddress { ip: IpAddr::V6(v6.ip()), scope: v6.scope_id() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found() {
        let lo = interface_by_name("lo").unwrap().unwrap();
        assert_eq!(lo.index, 1);
        assert!(lo.is_loopback());
        if lo.is_up() {
            assert!(lo.takes_multicast());
            assert!(
                lo.addresses.contains(&InterfaceAddress { ip: [127, 0, 0, 1].into(), scope: 0 }),
                "{lo:?}"
            );
        }
    }

    #[test]
    fn no_such_interface() {
        assert_eq!(interface_by_name("no-such-if").unwrap(), None);
    }
}
