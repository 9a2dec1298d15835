// SPDX-License-Identifier: GPL-2.0-or-later
//! The age of the last word of another host, in one wording for `--status`, `--check` and `--forget`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Age up to which the last word of another host shows that it is still there.
const RECENT: u64 = 24 * 3600;

/// Returns true for a moment within the last day, in seconds since 1970; also where the clock was set back.
pub(crate) fn is_recent(at: u64) -> bool {
    seconds_since(at) < RECENT
}

/// Returns how long ago a moment was, in seconds since 1970.
pub(crate) fn heard_ago(at: u64) -> String {
    age(seconds_since(at))
}

fn seconds_since(at: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_sub(at)
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (seconds, shown) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h")]
        {
            assert_eq!(age(seconds), format!("{shown} ago"));
        }
    }
}
