// SPDX-License-Identifier: GPL-2.0-or-later
//! Other programs: run within a deadline and with limited output (`run.rs`), and reaped with everything that
//! they started (`hunt.rs`).

mod hunt;
mod run;

pub(crate) use self::hunt::{end_all, end_orphans};
pub(crate) use self::run::{ProcessEnd, ProcessOutput, run, run_contained};
