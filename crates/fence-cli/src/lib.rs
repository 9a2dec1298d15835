// SPDX-License-Identifier: GPL-2.0-or-later
//! What the command lines of daemon and agents share: the forms of getopt(3), loading of key files, making new ones.
//!
//! Nothing here prints or exits; errors carry the words that a user needs to put things right.
#![forbid(unsafe_code)]

pub mod getopt;
pub mod key_file;
pub mod keygen;

/// A path for messages: on one line, with what is not printable escaped.
#[must_use]
pub fn shown(path: &std::path::Path) -> String {
    fence_wire::escaped(path.as_os_str().as_encoded_bytes()).to_string()
}
