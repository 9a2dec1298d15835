// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts that corosync lost, and the evidence that one of them is down, not merely cut off (`host_down`).
//!
//! A [`LostHost`] lives from the moment when corosync stops to hear a host until it hears the host again.
//! While a request waits for the evidence, one task asks for it every few seconds, for all that wait.
//! Evidence that was found once stays.
//!
//! Silence, an error or an old fencing must never count as evidence: domains of a host that runs would be
//! called off.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fence_config::HostDown;
use fence_wire::escaped;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tracing::info;

use crate::process::run as program;

#[cfg(test)]
mod tests;

/// Pause between two questions.
const PAUSE: Duration = Duration::from_secs(2);
/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Time by which a fencing may have ended before corosync noticed the loss that it caused.
const NOTICE: Duration = Duration::from_secs(30);
/// Time by which the clock of another node may be ahead.
const AHEAD: Duration = Duration::from_secs(5);
pub(crate) const STONITH_ADMIN: &str = "/usr/sbin/stonith_admin";

/// Source of the evidence that a lost host is down, as configured. Clones share it.
#[derive(Clone)]
pub(crate) struct DownEvidence {
    how: Arc<EvidenceSource>,
    pause: Duration,
}

/// A node that corosync lost. Clones are the same loss.
#[derive(Clone)]
pub(crate) struct LostHost {
    inner: Arc<LostHostState>,
}

/// Knowledge of a lost host.
#[derive(Clone, PartialEq, Eq, Debug)]
enum EvidenceState {
    /// Not that it is down, for this reason.
    Nothing(String),
    /// Down, with this evidence.
    Down(String),
    /// Heard again.
    Back,
}

impl DownEvidence {
    /// As the configuration says.
    pub(crate) fn new(host_down: &HostDown) -> Self {
        let how = match host_down {
            HostDown::Never => EvidenceSource::Never,
            HostDown::Pacemaker => EvidenceSource::Pacemaker(STONITH_ADMIN.into()),
            HostDown::Command(command) => EvidenceSource::Command(command.clone()),
            HostDown::Membership => EvidenceSource::Membership,
        };
        Self { how: Arc::new(how), pause: PAUSE }
    }

    /// Corosync does not hear this node any more, just now; or never has. `heard_since`: when it came, or,
    /// for one that was there before us or that was never heard, when we came. Must be called in the runtime.
    pub(crate) fn lost(&self, node: u32, name: Option<String>, heard_since: SystemTime) -> LostHost {
        let host = LostNode { node, name, heard_since, lost: SystemTime::now(), since: Instant::now() };
        let known = match &*self.how {
            EvidenceSource::Never => {
                EvidenceState::Nothing("host_down = \"never\": nothing proves that it is down".to_owned())
            }
            EvidenceSource::Membership => {
                EvidenceState::Down("it left corosync (host_down = \"membership\")".to_owned())
            }
            EvidenceSource::Pacemaker(_) | EvidenceSource::Command(_) => {
                EvidenceState::Nothing("nobody was asked yet".to_owned())
            }
        };
        LostHost {
            inner: Arc::new(LostHostState {
                host,
                how: Arc::clone(&self.how),
                pause: self.pause,
                known: watch::Sender::new(known),
                is_asking: Mutex::new(false),
            }),
        }
    }
}

impl LostHost {
    /// Returns the evidence that the host is down, in words. Waits for it if there may be any.
    ///
    /// # Errors
    /// No proof until then, or none that could come: why. Then the host may run, and its domains with it.
    pub(crate) async fn proved(&self, until: Instant) -> Result<String, String> {
        let mut known = self.inner.known.subscribe();
        // After this task listens: one that is about to end sees it, or is replaced.
        self.ask();
        let decided =
            known.wait_for(|it| !matches!(it, EvidenceState::Nothing(_)) || self.inner.how.asks_nobody());
        // An error: no task is left that could find more.
        let _ = timeout_at(until.into(), decided).await;
        let known = known.borrow().clone();
        match known {
            EvidenceState::Down(proof) => Ok(proof),
            EvidenceState::Nothing(reason) => Err(reason),
            EvidenceState::Back => Err("it is heard again, or corosync is lost here".to_owned()),
        }
    }

    /// Returns true if there is evidence already that the host is down. Never asks for it.
    pub(crate) fn is_proved(&self) -> bool {
        matches!(*self.inner.known.borrow(), EvidenceState::Down(_))
    }

    /// Notes that corosync hears the node again, or is lost itself. The evidence does not count any more, and
    /// all waiting requests learn of it.
    pub(crate) fn ended(&self) {
        self.inner.known.send_replace(EvidenceState::Back);
    }

    /// Returns the time since the loss.
    pub(crate) fn age(&self) -> Duration {
        self.inner.host.since.elapsed()
    }

    /// Starts the task that asks, unless it runs.
    fn ask(&self) {
        if self.inner.how.asks_nobody() {
            return;
        }
        let mut is_asking = self.inner.is_asking.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_asking {
            *is_asking = true;
            tokio::spawn(Arc::clone(&self.inner).ask_on());
        }
    }
}

struct LostHostState {
    host: LostNode,
    how: Arc<EvidenceSource>,
    pause: Duration,
    known: watch::Sender<EvidenceState>,
    /// True while a task asks.
    is_asking: Mutex<bool>,
}

struct LostNode {
    node: u32,
    name: Option<String>,
    heard_since: SystemTime,
    lost: SystemTime,
    since: Instant,
}

enum EvidenceSource {
    Never,
    Pacemaker(PathBuf),
    Command(PathBuf),
    Membership,
}

impl EvidenceSource {
    fn asks_nobody(&self) -> bool {
        matches!(self, Self::Never | Self::Membership)
    }
}

impl LostHostState {
    /// Asks until there is evidence, or no task waits for it any more.
    async fn ask_on(self: Arc<Self>) {
        loop {
            let answer = match &*self.how {
                EvidenceSource::Pacemaker(program) => self.host.ask_pacemaker(program).await,
                EvidenceSource::Command(command) => self.host.ask_command(command).await,
                EvidenceSource::Never | EvidenceSource::Membership => return,
            };
            self.known.send_if_modified(|known| {
                let EvidenceState::Nothing(_) = known else { return false };
                *known = match answer {
                    Ok(proof) => {
                        info!("{} is down: {proof}", self.host);
                        EvidenceState::Down(proof)
                    }
                    Err(reason) => EvidenceState::Nothing(reason),
                };
                true
            });
            {
                let mut is_asking = self.is_asking.lock().unwrap_or_else(PoisonError::into_inner);
                let is_open = matches!(*self.known.borrow(), EvidenceState::Nothing(_));
                if !is_open || self.known.receiver_count() == 0 {
                    *is_asking = false;
                    return;
                }
            }
            tokio::time::sleep(self.pause).await;
        }
    }
}

impl std::fmt::Display for LostNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {}", self.node)?;
        self.name.as_ref().map_or(Ok(()), |it| write!(f, " ({})", escaped(it)))
    }
}

impl LostNode {
    async fn ask_command(&self, command: &Path) -> Result<String, String> {
        let seconds = self.since.elapsed().as_secs().to_string();
        let arguments = [self.name.as_deref().unwrap_or_default(), &self.node.to_string(), &seconds];
        let told = |what: &dyn std::fmt::Display| format!("host_down_command {what}");
        let ended = program::run(command, arguments, Instant::now() + LIMIT).await.map_err(|it| told(&it))?;
        if ended.status.success() {
            return Ok("host_down_command says so".to_owned());
        }
        let colon = if ended.complaint.is_empty() { "" } else { ": " };
        Err(told(&format!("does not say so ({}){colon}{}", ended.status, ended.complaint)))
    }

    async fn ask_pacemaker(&self, program: &Path) -> Result<String, String> {
        let name = self.name.as_deref();
        let name = name.ok_or("corosync.conf has no name for it, so Pacemaker can't be asked")?;
        let history = history(program, name).await?;
        self.judge(&history, SystemTime::now())
    }

    /// Decides whether one of these fencings took the node down, this time.
    fn judge(&self, fencings: &[FencingRecord], now: SystemTime) -> Result<String, String> {
        let name = self.name.as_deref().unwrap_or_default();
        let ours = |it: &&FencingRecord| {
            it.target.eq_ignore_ascii_case(name) && ["off", "reboot"].contains(&&*it.action)
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

/// Returns the number of fencings that Pacemaker remembers, of all nodes: shows that it can be asked.
///
/// # Errors
/// The reason why Pacemaker cannot be asked.
pub(crate) fn ask_for_history(program: &Path) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|it| it.to_string())?.block_on(history(program, "*")).map(|it| it.len())
}

/// Returns Pacemaker's fencing history of this node, latest first; `*`: of all nodes.
async fn history(program: &Path, node: &str) -> Result<Vec<FencingRecord>, String> {
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

/// A fencing in Pacemaker's history.
#[derive(Clone, PartialEq, Eq, Debug)]
struct FencingRecord {
    action: String,
    target: String,
    status: String,
    /// Which node did it, or "a human"; escaped.
    by: String,
    ended: Option<SystemTime>,
}

/// Reads the output of `stonith_admin --history --output-as=xml`.
fn fencings(xml: &str) -> Result<Vec<FencingRecord>, String> {
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
fn time(text: &str) -> Option<SystemTime> {
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
