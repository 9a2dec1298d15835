// SPDX-License-Identifier: GPL-2.0-or-later
//! The hypervisors of a build without libvirt: none.

/// Hypervisors of a build without libvirt: none.
#[derive(Clone, Default)]
pub(crate) struct Hypervisors {}
