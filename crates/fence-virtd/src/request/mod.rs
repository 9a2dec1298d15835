// SPDX-License-Identifier: GPL-2.0-or-later
//! The values of one request: job, outcome, lease, trail and record.

pub(crate) mod job;
pub(crate) mod lease;
pub(crate) mod record;
pub(crate) mod rules_now;
pub(crate) mod trail;
