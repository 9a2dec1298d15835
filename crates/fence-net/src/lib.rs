// SPDX-License-Identifier: GPL-2.0-or-later
//! Socket constructors and address look-ups for fence-virt.
//!
//! Owns the socket options: every option that the protocol needs is set here, in one constructor per kind of
//! socket. Callers get ready std sockets (blocking; an async caller switches that itself). Runs on the
//! caller's thread. Must never know requests, keys or time-outs.

mod call_watch;
mod interface;
mod link_watch;
mod multicast;
mod neighbour;
mod netlink;
mod ports;
mod serial;
mod tcp;
mod vsock;

pub use call_watch::CallWatch;
// `Address` and `Scope` are the names at call sites that have not switched yet.
pub use interface::{
    Interface, InterfaceAddress, InterfaceAddress as Address, interface_by_name, interfaces,
};
pub use link_watch::LinkWatch;
pub use multicast::{
    FailedInterface, JoinedInterface, MulticastListener, MulticastScope, MulticastScope as Scope,
    MulticastSender, join, leave, multicast_listener,
};
pub use neighbour::{NeighbourEntries, neighbours};
pub use ports::ports;
pub use serial::{LineFormat, LineFormatError, SerialLine, open_line};
// Callers of this crate's constructors name the family.
pub use fence_wire::Family;
pub use tcp::call_back_listener;
pub use vsock::vsock_connect;
