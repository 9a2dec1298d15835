// SPDX-License-Identifier: GPL-2.0-or-later
//! The state of the daemon for people and programs: the exporter, the HTTP endpoint, and `--status`.
//!
//! Reads all other layers; only `daemon/` and `main.rs` import it. One task accepts readers, each reader has
//! a task of its own. A reader must never delay a request.

pub(crate) mod endpoint;
pub(crate) mod exporter;
pub(crate) mod summary;
