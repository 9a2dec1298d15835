// SPDX-License-Identifier: GPL-2.0-or-later
//! Other programs: run within a deadline and with limited output (`run.rs`), and reaped with everything that
//! they started (`hunt.rs`).

pub(crate) mod hunt;
pub(crate) mod run;
