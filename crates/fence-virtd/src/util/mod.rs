// SPDX-License-Identifier: GPL-2.0-or-later
//! Small parts that know nothing of fencing. They import no other folder.

pub(crate) mod backoff;
pub(crate) mod boot_clock;
pub(crate) mod fault;
pub(crate) mod heard;
pub(crate) mod join;
pub(crate) mod locks;
pub(crate) mod outlet;
pub(crate) mod unix_socket;

/// Returns the name of a process; none where it is gone.
pub(crate) fn process_name(pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// Returns the first of these names, and how many more there are.
pub(crate) fn first_names(names: &[String], most: usize) -> String {
    let shown = names.iter().take(most).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Returns a count with its noun, in the plural of `-s` where that is due.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
