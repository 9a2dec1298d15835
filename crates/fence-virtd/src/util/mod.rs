// SPDX-License-Identifier: GPL-2.0-or-later
//! Small parts that know nothing of fencing. They import no other folder.

pub(crate) mod backoff;
pub(crate) mod boot_clock;
pub(crate) mod fault;
pub(crate) mod join;
pub(crate) mod locks;
pub(crate) mod outlet;
