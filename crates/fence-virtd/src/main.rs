// SPDX-License-Identifier: GPL-2.0-or-later
//! fence_virtd: powers off, powers on and reboots virtual machines for the clusters that run inside them.
//!
//! The path of a request: `listener` (arrival, keys, source) → `service` (access, grant, proof) → `backend`
//! (the action) → response → `observe` (audit record, counters).
#![forbid(unsafe_code)]
// Builds without cpg or libvirt do not use every part: the run of other programs, the work for other
// hosts, the frames of serial lines.
#![cfg_attr(not(feature = "cpg"), allow(dead_code))]

mod backend;
mod check;
mod cli;
#[cfg(feature = "cpg")]
mod cluster;
mod configure;
mod daemon;
mod host_down;
mod hypervisor;
mod intent;
mod listener;
mod lists;
mod nodes;
mod observe;
mod peers;
mod process;
mod replay;
mod request;
mod service;
mod status;
mod util;

use fence_cli::keygen;

use self::cli::exit_code::{FAILURE, SUCCESS};
use self::cli::options::{self, Command};
use self::cli::print::{print, print_error};
use self::daemon::exit::leave;
use self::daemon::run;
use self::peers::forget;
use self::process::supervisor;
use self::status::summary;

fn main() -> ! {
    leave(supervisor::run_if_asked().unwrap_or_else(command))
}

/// Carries out the command line and returns the exit code.
fn command() -> u8 {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => run::run(&options),
        Ok(Command::Help) => print(options::HELP),
        Ok(Command::Version) => print(concat!("fence_virtd ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::ListModules) => print(&modules()),
        Ok(Command::Configure(file)) => match configure::run(&file, &modules()) {
            Ok(()) => SUCCESS,
            Err(error) => {
                print_error(&error);
                FAILURE
            }
        },
        Ok(Command::MakeKey(file)) => match keygen::make(&file) {
            Ok(made) => print(&made.to_string()),
            Err(error) => {
                print_error(&error);
                FAILURE
            }
        },
        Ok(Command::Status(config)) => match summary::ask(&config) {
            Ok(text) => print(&text),
            Err(error) => {
                print_error(&error);
                FAILURE
            }
        },
        Ok(Command::Forget { config, host }) => match forget::run(&config, &host) {
            Ok(text) => print(&text),
            Err(error) => {
                print_error(&error);
                FAILURE
            }
        },
        Ok(Command::Check { config, json }) => check::run(&config, json),
        Err(error) => {
            print_error(&error);
            print_error(&"fence_virtd -h lists the options");
            FAILURE
        }
    }
}

/// Returns the list of backends and listeners of this build, as `-l` prints it.
fn modules() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let backends = [("libvirt", cfg!(feature = "libvirt")), ("cpg", cfg!(feature = "cpg")), ("agent", true)];
    let backends: String =
        backends.iter().filter(|(_, there)| *there).map(|(it, _)| format!("    {it} {version}\n")).collect();
    let listeners = ["multicast", "tcp", "vsock", "serial"];
    let listeners: String = listeners
        .iter()
        .filter(|it| cfg!(feature = "libvirt") || **it != "serial")
        .map(|it| format!("    {it} {version}\n"))
        .collect();
    format!("Available backends:\n{backends}Available listeners:\n{listeners}")
}
