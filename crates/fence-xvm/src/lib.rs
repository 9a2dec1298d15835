// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest agents `fence_xvm` and `fence_virt`.
//!
//! One process carries out one request and ends: options in ([`stdin`], [`plan`]), one question to a host by one
//! transport (`multicast`, `tcp`, `vsock`, `line`), its answer out as an exit code. No async runtime, one thread, and
//! one absolute deadline that bounds every wait. Only lists and status lines go to standard output; cluster managers
//! read it.
//!
//! It must never report success for anything but a host's own answer to this run's own request.
#![forbid(unsafe_code)]

pub mod answer;
mod ask;
mod attempts;
mod collector;
mod confine;
mod connection;
mod console;
mod deadline;
mod defaults;
mod diagnose;
pub mod exchange;
mod failure;
pub mod frames;
mod help;
mod line;
mod multicast;
mod multicast_failure;
pub mod options;
mod output;
pub mod plan;
mod ports;
mod random;
mod records;
mod report;
mod rows;
pub mod settings;
pub mod stdin;
mod stream;
mod tcp;
pub mod usage;
mod verdict;
mod vsock;
mod words;

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use fence_cli::getopt;
use fence_cli::key_file::KeyFileError;
use fence_cli::keygen::{self, KeygenError};
use fence_wire::escaped;

use crate::ask::{ask, load_key};
use crate::console::Console;
use crate::options::Program;
use crate::output::{FAILURE, print};
use crate::plan::{Plan, Task};
use crate::settings::Settings;
use crate::usage::UsageError;

/// Bytes of standard input that are read; no cluster manager sends a hundredth of it.
const STDIN_MAX: u64 = 1 << 20;

/// Runs the agent with a whole argv, the program's name first.
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut argv = argv.into_iter();
    let program = Program::from_argv0(&argv.next().unwrap_or_default());
    let mut console = Console::new(program);
    let arguments: Vec<_> = argv.collect();
    if let Some(file) = keygen::requested(&arguments) {
        return ExitCode::from(make_key(file, &console));
    }
    let task = settings(program, arguments, &console).and_then(|s| s.task(program));
    let code = match task {
        Ok(Task::Help) => print(&help::help(program)),
        Ok(Task::Version) => print(&help::version(program)),
        Ok(Task::Metadata) => print(&help::metadata(program)),
        Ok(Task::Validate(plan)) => validate(&plan, &console),
        Ok(Task::Ask(plan)) => {
            console.set_level(plan.debug);
            match ask(&plan, &console) {
                Ok(answer) => report::report(&plan, answer, &console),
                Err(failure) => {
                    console.say(&failure);
                    FAILURE
                }
            }
        }
        Ok(Task::Diagnose(plan)) => {
            console.set_level(plan.debug);
            diagnose::diagnose(&plan, &console)
        }
        Err(error) => {
            console.say(&format_args!("{error} (-h shows the options)"));
            FAILURE
        }
    };
    ExitCode::from(code)
}

/// The options, from the command line or, when that is empty, from standard input.
fn settings(program: Program, arguments: Vec<OsString>, console: &Console) -> Result<Settings, UsageError> {
    let mut settings = Settings::default();
    if arguments.is_empty() {
        let mut text = Vec::new();
        io::stdin().take(STDIN_MAX).read_to_end(&mut text).map_err(UsageError::Stdin)?;
        for unknown in stdin::read(program, &text, &mut settings)? {
            console.say(&unknown);
        }
    } else {
        let line = getopt::parse(program.getopt(), &program.long(), arguments)?;
        for option in line.options {
            settings.set_option(option.name, option.value)?;
        }
        for operand in line.operands {
            console.say(&format_args!("ignoring '{}', which is no option", escaped(operand.as_bytes())));
        }
    }
    Ok(settings)
}

/// The options are fine, or there would be no plan; a key file that was named must be fine too. The default one may
/// still be missing: cluster shells validate before keys are handed out.
fn validate(plan: &Plan, console: &Console) -> u8 {
    match load_key(plan) {
        Ok(_) => 0,
        Err(error) => {
            console.say(&error);
            let may_come = matches!(error, KeyFileError::Missing { .. }) && !plan.key_file_named;
            if may_come { 0 } else { FAILURE }
        }
    }
}

/// Makes a new key; asks nobody.
fn make_key(file: Result<PathBuf, KeygenError>, console: &Console) -> u8 {
    match file.and_then(|it| keygen::make(&it)) {
        Ok(made) => print(&made.to_string()),
        Err(error) => {
            console.say(&error);
            FAILURE
        }
    }
}
