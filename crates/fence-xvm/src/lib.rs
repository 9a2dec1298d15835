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
mod confine;
mod console;
mod deadline;
mod diagnose;
pub mod exchange;
mod failure;
pub mod frames;
mod hearing;
mod help;
mod line;
mod multicast;
pub mod options;
pub mod plan;
mod ports;
mod records;
mod rows;
pub mod stdin;
mod stream;
mod tcp;
mod verdict;
mod vsock;
mod wire;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use fence_cli::getopt;
use fence_cli::key_file::{self, KeyFileError};
use fence_cli::keygen::{self, KeygenError};
use fence_wire::{Challenge, Key, draw_challenge, escaped};
use rand::TryRng;
use rand::rngs::{SysError, SysRng};

use crate::answer::Answer;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Program;
use crate::plan::{Plan, Settings, Task, Transport, UsageError};

/// Exit code of everything that is not done or not known to be done.
const FAILURE: u8 = 1;
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
                Ok(answer) => answer::report(&plan, answer, &console),
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

/// Asks the host, by the plan's transport; each is one function with the same shape.
fn ask(plan: &Plan, console: &Console) -> Result<Answer, Failure> {
    let deadline = Deadline::after(plan.delay + plan.timeout);
    let key = key(plan)?;
    let key = key.as_ref();
    if plan.debug > 0 && key.is_some() {
        // Slow to make, so only for those who look at it.
        console.debug(&failure::key_in_words(plan, key));
    }
    // A serial device may be named by a descriptor that was handed to us.
    if !matches!(plan.transport, Transport::Serial { .. }) {
        confine::close_inherited();
    }
    std::thread::sleep(plan.delay);
    match &plan.transport {
        Transport::Multicast(to) => multicast::ask(plan, *to, key, deadline, console),
        Transport::Tcp(to) => tcp::ask(plan, *to, key, deadline, console),
        Transport::Vsock { cid, port } => vsock::ask(plan, (*cid, *port), key, deadline, console),
        Transport::Serial { device, format } => line::ask_device(plan, device, *format, deadline, console),
        Transport::Channel(to) => line::ask_channel(plan, *to, deadline, console),
    }
}

/// The key, unless the plan asks by name to do without.
fn key(plan: &Plan) -> Result<Option<Key>, KeyFileError> {
    if plan.needs_key() { key_file::load(&plan.key_file).map(Some) } else { Ok(None) }
}

/// The options are fine, or there would be no plan; a key file that was named must be fine too. The default one may
/// still be missing: cluster shells validate before keys are handed out.
fn validate(plan: &Plan, console: &Console) -> u8 {
    match key(plan) {
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

fn print(text: &str) -> u8 {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => FAILURE,
    }
}

/// Fresh random bytes from the system.
fn random<const N: usize>() -> Result<[u8; N], SysError> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes)?;
    Ok(bytes)
}

fn challenge() -> Result<Challenge, SysError> {
    draw_challenge(|it| SysRng.try_fill_bytes(it))
}
