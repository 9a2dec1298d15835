// SPDX-License-Identifier: GPL-2.0-or-later
//! Several hosts as one service: what the `fence_virtd`s of a corosync cluster tell each other, and what each makes of
//! it (docs/cpg.md).

pub(crate) mod link;
pub(crate) mod message;
