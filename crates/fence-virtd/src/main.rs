// SPDX-License-Identifier: GPL-2.0-or-later
//! fence_virtd: powers virtual machines off, on and round for the clusters that run inside them.
//!
//! The way of a request: `listener` → `access` → `conversation` (the proof) → `backend` → response → `audit`.
#![forbid(unsafe_code)]
// Without libvirt nothing makes what backends and sources are made of, and without cpg nothing is at another host.
#![cfg_attr(not(feature = "cpg"), allow(dead_code))]

mod audit;
mod backend;
mod check;
#[cfg(feature = "cpg")]
mod cluster;
mod configure;
mod conversation;
mod daemonise;
mod drops;
#[cfg(feature = "libvirt")]
mod hypervisor;
mod identity;
mod inventory;
mod keys;
mod leave;
mod limits;
mod listener;
mod listeners;
mod locks;
mod log;
mod metrics;
mod notify;
mod options;
mod outlet;
mod pid_file;
mod program;
mod replay;
mod run;
mod sandbox;
mod service;
mod turns;

use std::fmt;
use std::io::Write;

use self::leave::{FAILURE, SUCCESS, leave};
use self::options::Command;
use fence_cli::keygen;

fn main() -> ! {
    leave(command())
}

/// Does what the command line says. The exit code.
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
        Ok(Command::Status(config)) => match metrics::summary::ask(&config) {
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

fn print(text: &str) -> u8 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => SUCCESS,
        Err(_) => FAILURE,
    }
}

/// What must reach the one who typed the command, before there is a log.
fn print_error(what: &dyn fmt::Display) {
    let _ = writeln!(std::io::stderr(), "fence_virtd: {what}");
}
