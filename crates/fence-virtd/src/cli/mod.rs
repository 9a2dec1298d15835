// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line: options, and output before there is a log.

pub(crate) mod options;
pub(crate) mod print;
