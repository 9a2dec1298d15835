// SPDX-License-Identifier: GPL-2.0-or-later
//! The machine's network interfaces and their addresses.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;

/// A network interface as it is at this moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name, `eth0`.
    pub name: String,
    /// The kernel's number for it; an interface that is made again gets another one.
    pub index: u32,
    /// What the kernel says about it.
    pub flags: InterfaceFlags,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The scope of an IPv6 link-local address: the index of its interface. 0 for all others.
    pub scope: u32,
}

impl Interface {
    /// Administratively up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags.contains(InterfaceFlags::IFF_UP)
    }

    /// The loopback interface.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    }

    /// Whether requests may come in by it: up, and able to do multicast. Loopback counts: Linux does multicast
    /// on it although it does not say so.
    #[must_use]
    pub fn takes_multicast(&self) -> bool {
        self.is_up() && (self.is_loopback() || self.flags.contains(InterfaceFlags::IFF_MULTICAST))
    }
}

/// All interfaces, by index, those that are down or have no address included.
///
/// # Errors
/// What getifaddrs(3) says.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs()? {
        // An IPv4 address may carry a label ("eth0:1") in the place of the interface's name.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        let place = match found.iter().position(|i| i.name == name) {
            Some(place) => place,
            // One that went away since getifaddrs looked is no interface any more.
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

/// The interface of that name; none when there is none.
///
/// # Errors
/// What getifaddrs(3) says.
pub fn interface_by_name(name: &str) -> io::Result<Option<Interface>> {
    Ok(interfaces()?.into_iter().find(|i| i.name == name))
}

fn address(socket: &SockaddrStorage) -> Option<Address> {
    if let Some(v4) = socket.as_sockaddr_in() {
        return Some(Address { ip: IpAddr::V4(v4.ip()), scope: 0 });
    }
    socket.as_sockaddr_in6().map(|v6| Address { ip: IpAddr::V6(v6.ip()), scope: v6.scope_id() })
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
            assert!(lo.addresses.contains(&Address { ip: [127, 0, 0, 1].into(), scope: 0 }), "{lo:?}");
        }
    }

    #[test]
    fn no_such_interface() {
        assert_eq!(interface_by_name("no-such-if").unwrap(), None);
    }
}
