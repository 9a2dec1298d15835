// SPDX-License-Identifier: GPL-2.0-or-later
//! Commands of the configuration that say whether a host is down.
//!
//! Runs on the caller's task. Only exit code 0 is "it is down": no other end of the command must ever count.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::process::run as program;

/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks a command whether a host is down. Returns the evidence in words; `key` is the command's name in the
/// configuration.
///
/// # Errors
/// The command does not say that the host is down: why.
pub(crate) async fn ask(
    key: &str,
    command: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<String, String> {
    let told = |what: &dyn Display| format!("{key} {what}");
    let ended = program::run(command, arguments, Instant::now() + LIMIT).await.map_err(|it| told(&it))?;
    if ended.status.success() {
        return Ok(told(&"says so"));
    }
    let colon = if ended.complaint.is_empty() { "" } else { ": " };
    Err(told(&format!("does not say so ({}){colon}{}", ended.status, ended.complaint)))
}
