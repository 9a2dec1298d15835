// SPDX-License-Identifier: GPL-2.0-or-later
//! The agents `fence_xvm` and `fence_virt`: one program, whose name decides which of the two runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    fence_xvm::run(std::env::args_os())
}
