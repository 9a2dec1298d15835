// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to libvirt, and what is known of its domains.

pub(crate) mod inventory;
#[cfg(not(feature = "libvirt"))]
#[path = "absent.rs"]
mod pool;
#[cfg(feature = "libvirt")]
mod pool;

pub(crate) use self::pool::*;
