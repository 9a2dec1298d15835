// SPDX-License-Identifier: GPL-2.0-or-later
//! Address families, with the default address of each. Values only.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 multicast group that requests go to by default.
pub const DEFAULT_GROUP_V4: Ipv4Addr = Ipv4Addr::new(225, 0, 0, 12);
/// IPv6 multicast group that requests go to by default.
pub const DEFAULT_GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 3, 1);

/// Address family of a transport.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns the name in configuration and on command lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// Returns the default multicast group: 225.0.0.12 or ff05::3:1.
    #[must_use]
    pub fn default_multicast_address(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(DEFAULT_GROUP_V4),
            Self::V6 => IpAddr::V6(DEFAULT_GROUP_V6),
        }
    }

    /// Returns the default address of the TCP transport, the loopback address: 127.0.0.1 or ::1.
    #[must_use]
    pub fn default_tcp_address(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
