// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon's `util`, as far as the files that are taken in need it.

pub(crate) mod locks;
