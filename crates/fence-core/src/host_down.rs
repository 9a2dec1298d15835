// SPDX-License-Identifier: GPL-2.0-or-later
//! Evidence that a host is down: what a fencing proves.
//!
//! Pure: the loss of a host and the fencings of its node go in, the evidence comes out. Silence, an error or
//! an old fencing must never count as evidence: domains of a host that runs would be called off.

use std::time::{Duration, SystemTime};

/// Time by which a fencing may have ended before corosync noticed the loss that it caused.
const NOTICE: Duration = Duration::from_secs(30);
/// Time by which the clock of another node may be ahead.
const AHEAD: Duration = Duration::from_secs(5);

/// Fencing in Pacemaker's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FencingRecord {
    /// Action: `off`, `reboot`, `on`.
    pub action: String,
    /// Name of the node that was fenced.
    pub target: String,
    /// Outcome: `success`, `failed`, `pending`.
    pub status: String,
    /// Which node did it, or "a human"; escaped.
    pub by: String,
    /// Time of the end, if Pacemaker gives one.
    pub ended: Option<SystemTime>,
}

/// Loss of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss<'a> {
    /// Name of the node.
    pub name: &'a str,
    /// Time since which it was heard before it was lost.
    pub heard_since: SystemTime,
    /// Time of the loss.
    pub lost: SystemTime,
}

impl Loss<'_> {
    /// Decides whether one of these fencings took the node down, this time. Returns the evidence in words.
    ///
    /// # Errors
    /// The reason why none did.
    pub fn judge(&self, fencings: &[FencingRecord], now: SystemTime) -> Result<String, String> {
        let ours = |it: &&FencingRecord| {
            it.target.eq_ignore_ascii_case(self.name) && ["off", "reboot"].contains(&&*it.action)
        };
        let mut refused = None;
        for it in fencings.iter().filter(ours) {
            let why = match it.ended {
                // It came back after that one, or went on as if it had not been.
                Some(ended) if ended <= self.heard_since || ended + NOTICE < self.lost => continue,
                _ if it.status == "pending" => "Pacemaker is fencing it".to_owned(),
                _ if it.status != "success" => format!("Pacemaker's {} of it failed", it.action),
                None => "Pacemaker gives no time for its fencing".to_owned(),
                Some(ended) if ended > now + AHEAD => {
                    "its fencing ended in the future: set the clocks".to_owned()
                }
                Some(_) => return Ok(format!("Pacemaker's {} of it succeeded (by {})", it.action, it.by)),
            };
            refused.get_or_insert(why);
        }
        Err(refused.unwrap_or_else(|| "Pacemaker has not fenced it since".to_owned()))
    }
}
