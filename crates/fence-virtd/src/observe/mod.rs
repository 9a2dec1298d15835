// SPDX-License-Identifier: GPL-2.0-or-later
//! Counters, counted drops and the audit file. They are told; they never ask.

pub(crate) mod agent_runs;
pub(crate) mod audit;
pub(crate) mod drops;
pub(crate) mod metrics;
pub(crate) mod openmetrics;
