// SPDX-License-Identifier: GPL-2.0-or-later
//! Rules among the hosts of a corosync cluster: claims, the directory of domains, and the messages of hosts.

mod claim_ends;
pub mod claims;
pub mod directory;
pub mod message;
pub mod orphans;
pub mod recent_offs;
mod replica;
mod unknown_orders;
