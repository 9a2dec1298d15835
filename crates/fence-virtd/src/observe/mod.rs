// SPDX-License-Identifier: GPL-2.0-or-later
//! Counters, counted drops and the audit file.
//!
//! All other layers feed these modules; none of them reads another layer, or waits. Only the audit file has a
//! thread of its own.

pub(crate) mod agent_runs;
pub(crate) mod audit;
pub(crate) mod drops;
pub(crate) mod metrics;
pub(crate) mod metrics_reader;
pub(crate) mod openmetrics;
