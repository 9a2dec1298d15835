// SPDX-License-Identifier: GPL-2.0-or-later
//! Command line parts that the daemon and the agents share: the forms of getopt(3), loading and making of key
//! files, reading of the configuration file.
//!
//! Owns the parsing of options and the rules for key files. Runs on the caller's thread. Must never print or
//! exit: errors carry the words that a user needs to put things right.
#![forbid(unsafe_code)]

pub mod config_file;
pub mod getopt;
pub mod key_file;
pub mod keygen;
mod path;

pub use path::shown;
