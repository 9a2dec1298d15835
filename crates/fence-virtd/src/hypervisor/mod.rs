// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to libvirt, and the domains that it shows.

#[cfg(feature = "libvirt")]
mod bulk;
#[cfg(feature = "libvirt")]
pub(crate) mod follow;
pub(crate) mod inventory;
#[cfg(feature = "libvirt")]
mod memory;
#[cfg(feature = "libvirt")]
pub(crate) mod news;
#[cfg(feature = "libvirt")]
mod past;
#[cfg(not(feature = "libvirt"))]
#[path = "absent.rs"]
mod pool;
#[cfg(feature = "libvirt")]
mod pool;
#[cfg(feature = "libvirt")]
pub(crate) mod rights;
#[cfg(feature = "libvirt")]
pub(crate) mod running;
#[cfg(feature = "libvirt")]
pub(crate) mod stray;
pub(crate) mod uri;
#[cfg(feature = "libvirt")]
pub(crate) mod uuid;

pub(crate) use self::pool::*;
