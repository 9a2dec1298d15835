// SPDX-License-Identifier: GPL-2.0-or-later
//! The exit codes of every way in which the program ends. Owns two numbers; scripts rely on them.

/// Exit code of a program that did what the command line asked for.
pub(crate) const SUCCESS: u8 = 0;
/// Exit code of every failure.
pub(crate) const FAILURE: u8 = 1;
