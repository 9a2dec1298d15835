// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest agents `fence_xvm` and `fence_virt`.
//!
//! One process carries out one request and ends. Options come in ([`stdin`], [`settings`]) and make a
//! [`plan`]. One request goes to a host on one transport (`multicast`, `tcp`, `vsock`, `line`). The answer is
//! the exit code.
//!
//! Owns the order of these steps. Runs on one thread, without an async runtime. One absolute deadline ends
//! every wait. Only lists and status lines go to standard output, which cluster managers read.
//!
//! Must never report success for anything but a host's own answer to this run's own request.
#![forbid(unsafe_code)]

mod advice;
pub mod answer;
mod ask;
mod attempts;
mod call;
mod collector;
mod confine;
mod connection;
mod console;
mod deadline;
mod defaults;
mod diagnose;
mod doors;
pub mod exchange;
mod failure;
pub mod frames;
mod help;
pub mod host;
mod kinds;
mod ledger;
mod line;
mod multicast;
mod multicast_failure;
pub mod options;
mod output;
mod patience;
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
use crate::console::{Console, OptionSource};
use crate::options::ClientProgram;
use crate::output::{FAILURE, print};
use crate::plan::{ClientTask, RequestPlan};
use crate::settings::ClientSettings;
use crate::usage::UsageError;

/// Largest number of bytes of standard input that are read. No cluster manager sends a hundredth of it.
const STDIN_MAX: u64 = 1 << 20;

/// Runs the agent with these arguments, the program's name first.
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut argv = argv.into_iter();
    let program = ClientProgram::from_argv0(&argv.next().unwrap_or_default());
    let arguments: Vec<_> = argv.collect();
    let source = if arguments.is_empty() { OptionSource::StandardInput } else { OptionSource::CommandLine };
    let mut console = Console::new(program, source);
    if let Some(file) = keygen::requested(&arguments) {
        return ExitCode::from(make_key(file, &console));
    }
    let task = read_settings(program, arguments, &console).and_then(|settings| settings.into_task(program));
    let code = match task {
        Ok(ClientTask::Help) => print(&help::help_text(program)),
        Ok(ClientTask::Version) => print(&help::version_text(program)),
        Ok(ClientTask::Metadata) => print(&help::metadata_text(program)),
        Ok(ClientTask::Validate(plan)) => validate(&plan, &console),
        Ok(ClientTask::Ask(plan)) => {
            console.set_level(plan.debug);
            match ask(&plan, &console) {
                Ok((answer, failures)) => report::report(&plan, answer, &failures, &console),
                Err(failure) => {
                    if failure.is_time_out() {
                        console.say_timed_out(&failure);
                    } else {
                        console.say(&failure);
                    }
                    FAILURE
                }
            }
        }
        Ok(ClientTask::Diagnose(plan)) => {
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

/// Reads the options from the command line or, when that is empty, from standard input.
fn read_settings(
    program: ClientProgram,
    arguments: Vec<OsString>,
    console: &Console,
) -> Result<ClientSettings, UsageError> {
    let mut settings = ClientSettings::default();
    if arguments.is_empty() {
        let mut text = Vec::new();
        io::stdin().take(STDIN_MAX + 1).read_to_end(&mut text).map_err(UsageError::Stdin)?;
        if text.len() as u64 > STDIN_MAX {
            return Err(UsageError::StdinTooLong(STDIN_MAX));
        }
        for unknown in stdin::read_options(program, &text, &mut settings)? {
            console.say(&unknown);
        }
    } else {
        let line = getopt::parse(program.getopt_string(), &program.long_options(), arguments)?;
        for option in line.options {
            settings.set_option(option.name, option.value)?;
        }
        for operand in line.operands {
            console.say(&format_args!("ignoring '{}', which is no option", escaped(operand.as_bytes())));
        }
    }
    Ok(settings)
}

/// Checks the key file and returns the exit code. The options were checked with the plan. Only the default
/// key file may be missing: cluster shells validate before keys are handed out.
fn validate(plan: &RequestPlan, console: &Console) -> u8 {
    match load_key(plan, console) {
        Ok(_) => 0,
        Err(error) => {
            console.say(&error);
            let may_come_later = matches!(error, KeyFileError::Missing { .. }) && !plan.key_file_named;
            if may_come_later { 0 } else { FAILURE }
        }
    }
}

/// Makes a new key, and asks no host.
fn make_key(file: Result<PathBuf, KeygenError>, console: &Console) -> u8 {
    match file.and_then(|path| keygen::make(&path)) {
        Ok(made) => print(&made.to_string()),
        Err(error) => {
            console.say(&error);
            FAILURE
        }
    }
}
