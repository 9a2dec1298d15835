// SPDX-License-Identifier: GPL-2.0-or-later
//! Other programs: run within a deadline and with limited output (`run.rs`). Fence agents run beneath a
//! supervisor (`supervisor.rs`, `lifeline.rs`), and are reaped with everything that they started (`hunt.rs`).

pub(crate) mod hunt;
mod lifeline;
pub(crate) mod run;
pub(crate) mod supervisor;
