// SPDX-License-Identifier: GPL-2.0-or-later
//! Pacemaker's fencing history: asks `stonith_admin`, and reads what it prints.
//!
//! Runs on the caller's task. Must never judge: what a fencing proves is for [`fence_core::host_down`].

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use fence_core::host_down::FencingRecord;
use fence_wire::escaped;

use crate::process::run as program;

/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Program that shows the history.
pub(crate) const STONITH_ADMIN: &str = "/usr/sbin/stonith_admin";

/// Returns the number of fencings that Pacemaker remembers, of all nodes: shows that it can be asked.
///
/// # Errors
/// The reason why Pacemaker cannot be asked.
pub(crate) fn ask_for_history(program: &Path) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|it| it.to_string())?.block_on(history(program, "*")).map(|it| it.len())
}

/// Returns Pacemaker's fencing history of this node, latest first; `*`: of all nodes.
pub(super) async fn history(program: &Path, node: &str) -> Result<Vec<FencingRecord>, String> {
    let told = |what: &dyn std::fmt::Display| format!("stonith_admin {what}");
    // Without --verbose Pacemaker 2.1 leaves out fencings that are like one before, and so shows old ones
    // only.
    let arguments = ["--history", node, "--verbose", "--output-as=xml"];
    let ended = program::run(program, arguments, Instant::now() + LIMIT).await.map_err(|it| told(&it))?;
    if !ended.status.success() {
        return Err(told(&format!("failed ({}): {}", ended.status, refusal(&ended))));
    }
    let xml = String::from_utf8_lossy(&ended.output);
    fencings(&xml).map_err(|it| told(&format!("answered what can't be read: {it}")))
}

/// Reads the output of `stonith_admin --history --output-as=xml`.
pub(super) fn fencings(xml: &str) -> Result<Vec<FencingRecord>, String> {
    let document = roxmltree::Document::parse(xml).map_err(|it| it.to_string())?;
    let root = document.root_element();
    if !root.has_tag_name("pacemaker-result") {
        return Err("no pacemaker-result".to_owned());
    }
    let status = root.children().find(|it| it.has_tag_name("status")).and_then(|it| it.attribute("code"));
    if status != Some("0") {
        return Err(format!("status {}", escaped(status.unwrap_or("missing"))));
    }
    let events = root.descendants().filter(|it| it.has_tag_name("fence_event"));
    Ok(events
        .map(|it| {
            let text = |name| it.attribute(name).unwrap_or_default().to_owned();
            FencingRecord {
                action: text("action"),
                target: text("target"),
                status: text("status"),
                by: escaped(&text("delegate")).to_string(),
                ended: it.attribute("completed").and_then(time),
            }
        })
        .collect())
}

/// Returns the error text of stonith_admin: from its XML, else from standard error.
fn refusal(ended: &program::ProcessOutput) -> String {
    let xml = String::from_utf8_lossy(&ended.output);
    let said = roxmltree::Document::parse(&xml).ok().and_then(|it| {
        let error = it.descendants().find(|it| it.has_tag_name("error"))?;
        error.text().map(|it| escaped(it).to_string())
    });
    said.unwrap_or_else(|| ended.complaint.clone())
}

/// `2026-11-21 15:04:01Z`, `2026-11-21 16:04:01 +01:00`, and with a `T` between the day and the hour.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let (day, rest) = text.trim().split_once([' ', 'T'])?;
    let (clock, zone) = rest.split_at(rest.find([' ', 'Z', '+', '-'])?);
    let numbers = |text: &str, by| {
        let mut it = text.split(by).map(|it| it.parse::<u32>().ok());
        let all = (it.next()??, it.next()??, it.next().unwrap_or(Some(0))?);
        it.next().is_none().then_some(all)
    };
    let (year, month, day) = numbers(day, '-')?;
    let (hour, minute, second) = numbers(clock, ':')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let local = (days(year, month, day) * 24 + i64::from(hour)) * 3600 + i64::from(minute * 60 + second);
    let zone = zone.trim();
    let east = match zone.split_at_checked(1) {
        Some(("Z", "")) => 0,
        Some((sign @ ("+" | "-"), offset)) => {
            let (hours, minutes, _) = numbers(offset, ':')?;
            let seconds = i64::from((hours * 60 + minutes) * 60);
            if sign == "+" { seconds } else { -seconds }
        }
        _ => return None,
    };
    let seconds = u64::try_from(local - east).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Days from 1970 to this one; years begin with March, so that the leap day is the last.
fn days(year: u32, month: u32, day: u32) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year / 4 - year / 100 + year / 400;
    i64::from(365 * year + leaps + (153 * month + 2) / 5 + day - 1) - 719_468
}
