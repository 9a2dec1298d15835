// SPDX-License-Identifier: GPL-2.0-or-later
//! Paths in messages.

use std::path::Path;

/// Returns a path for messages: on one line, with unprintable characters escaped.
#[must_use]
pub fn shown(path: &Path) -> String {
    fence_wire::escaped(path.as_os_str().as_encoded_bytes()).to_string()
}
