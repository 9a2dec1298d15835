// SPDX-License-Identifier: GPL-2.0-or-later
//! What the daemon tells of itself: the exporter, the HTTP endpoint, and `--status`.

pub(crate) mod endpoint;
pub(crate) mod exporter;
pub(crate) mod summary;
