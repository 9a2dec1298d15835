// SPDX-License-Identifier: GPL-2.0-or-later
//! Evidence that a host is down: what a fencing proves, and for how long any proof counts.
//!
//! Owns [`Proof`], without which no layer can take a lost host for down. A proof speaks of the moment when it
//! was asked for. It counts for less than any host takes to boot, then it must be asked for again.
//!
//! Pure: readings of the clocks, the loss of a host and the fencings of its node go in, the proof comes out.
//! Moments count the time since this machine booted. They are compared with wall-clock times of other
//! machines only now and with a margin, never with wall-clock times that were kept: a clock that is set must
//! not make an old fencing a new one. Silence, an error or an old fencing must never count as evidence.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// Time that every host needs at least from the moment when its power is on until a domain runs there.
pub const BOOT: Duration = Duration::from_secs(30);
/// Time by which a fencing may have ended before corosync noticed the loss that it caused.
const NOTICE: Duration = Duration::from_secs(30);
/// Time by which the clock of another node may differ from ours.
const AHEAD: Duration = Duration::from_secs(5);
/// Difference between the clocks of this machine from which on the wall clock was set.
const STEP: Duration = Duration::from_secs(2);

/// Moment on this machine: the time since it booted, while it was suspended too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// Returns the time from another moment to this one; none if this one is earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the moment that is later by this much.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// Returns the moment that is earlier by this much; the boot of this machine if that is later.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}

/// Both clocks of this machine, read together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockReading {
    /// Time since this machine booted.
    pub moment: Moment,
    /// Wall clock, which anybody may set.
    pub wall: SystemTime,
}

impl ClockReading {
    /// Returns the time by which the wall clock was set forward, and backward, since an earlier reading.
    fn steps_since(&self, earlier: &Self) -> (Duration, Duration) {
        let expected = earlier.wall + self.moment.since(earlier.moment);
        let forward = self.wall.duration_since(expected).unwrap_or_default();
        let backward = expected.duration_since(self.wall).unwrap_or_default();
        (forward, backward)
    }
}

/// Watch over the wall clock: notices when it was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockWatch {
    reference: ClockReading,
    /// A wall-clock time that is placed at or before this moment may be one of before the clock was set.
    doubtful_until: Moment,
    /// Latest end of a fencing that was in the future when Pacemaker told of it. It will look like a new one
    /// when its time has come.
    impossible: Option<SystemTime>,
}

impl ClockWatch {
    /// Begins to watch.
    pub fn new(now: ClockReading) -> Self {
        Self { reference: now, doubtful_until: Moment::default(), impossible: None }
    }

    /// Takes a reading. The more often this is called, the smaller is the chance to miss a clock that is set
    /// to and fro.
    pub fn observe(&mut self, now: ClockReading) {
        let (forward, backward) = now.steps_since(&self.reference);
        if forward.max(backward) > STEP {
            // A clock that was set back passes the times of before once more.
            self.doubtful_until = self.doubtful_until.max(now.moment.after(backward));
            self.reference = now;
        }
    }

    /// Returns true if the time of this fencing was in the future once.
    fn is_impossible(&self, record: &FencingRecord) -> bool {
        self.impossible.is_some_and(|latest| record.ended.is_some_and(|it| it <= latest))
    }
}

/// Proof that a host was down at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Proof {
    evidence: String,
    asked: Moment,
    /// None: it counts while corosync does not hear the host.
    good_until: Option<Moment>,
}

impl Proof {
    /// Builds the proof of an answer to a question that was asked at this moment.
    pub fn asked_at(asked: Moment, evidence: String) -> Self {
        Self { evidence, asked, good_until: Some(asked.after(BOOT)) }
    }

    /// Builds the proof that is none: whoever left corosync counts as down (`host_down = "membership"`).
    pub fn by_membership(asked: Moment) -> Self {
        let evidence = "the host left corosync (host_down = \"membership\")".to_owned();
        Self { evidence, asked, good_until: None }
    }

    /// Returns the moment when it was asked for.
    pub fn asked(&self) -> Moment {
        self.asked
    }

    /// Returns the evidence in words, while it counts.
    ///
    /// # Errors
    /// The proof is too old: the host may have booted since.
    pub fn evidence(&self, now: Moment) -> Result<&str, String> {
        if self.good_until.is_none_or(|until| now < until) {
            return Ok(&self.evidence);
        }
        let age = now.since(self.asked).as_secs();
        Err(format!("{}; that was {age} s ago, and the host may have booted since", self.evidence))
    }
}

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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Moment since which it was heard before it was lost.
    heard_since: Moment,
    /// Moment of the loss.
    lost: Moment,
    /// Ends of the fencings that Pacemaker told of at the first question. Later ones are of this loss,
    /// whatever their times say.
    at_first: Option<BTreeSet<SystemTime>>,
}

/// Fencing of a node, placed on this machine's clock.
struct PlacedFencing<'a> {
    record: &'a FencingRecord,
    /// None: it is under way, or Pacemaker gives no time.
    ended: Option<Moment>,
}

impl PlacedFencing<'_> {
    fn is_done(&self, action: &str) -> bool {
        self.record.action == action && self.record.status == "success" && self.ended.is_some()
    }

    /// Returns the latest moment at which it may have powered the node on; none if it can't have done that.
    fn may_have_powered_on(&self) -> Option<Moment> {
        match (&*self.record.action, self.ended) {
            ("off", _) => None,
            (_, None) => Some(Moment(Duration::MAX)),
            // Pacemaker tries again at once after a failure, mostly by the same node: by the same clock.
            (_, Some(ended)) if self.record.status != "success" => Some(ended),
            (_, Some(ended)) => Some(ended.after(AHEAD + AHEAD)),
        }
    }
}

impl Loss {
    /// Loss of a node that was heard since a moment.
    pub fn new(heard_since: Moment, lost: Moment) -> Self {
        Self { heard_since, lost, at_first: None }
    }

    /// Decides whether the fencings of the node `name` show that it is down now. `asked` is when Pacemaker
    /// was asked for them, `now` when it had answered.
    ///
    /// # Errors
    /// The reason why they do not.
    pub fn judge(
        &mut self,
        name: &str,
        fencings: &[FencingRecord],
        asked: Moment,
        now: ClockReading,
        clock: &mut ClockWatch,
    ) -> Result<Proof, String> {
        let own: Vec<_> = fencings
            .iter()
            .filter(|it| it.target.eq_ignore_ascii_case(name))
            .filter(|it| ["off", "reboot", "on"].contains(&&*it.action))
            .collect();
        self.check_clocks(&own, now, clock)?;
        let placed: Vec<_> = own
            .into_iter()
            .filter(|it| !clock.is_impossible(it))
            .filter_map(|it| self.place(it, now))
            .collect();
        let told = |it: &PlacedFencing<'_>| {
            format!("Pacemaker's {} of the host succeeded (by {})", it.record.action, it.record.by)
        };
        let latest = |action| {
            let done = placed.iter().filter(|it| it.is_done(action));
            done.filter_map(|it| Some((it, it.ended?))).max_by_key(|(_, ended)| *ended)
        };
        let mut powered_on = placed.iter().filter_map(PlacedFencing::may_have_powered_on);
        let (fencing, ended, good_until) = match (latest("off"), latest("reboot")) {
            (Some((off, ended)), _) if powered_on.all(|on| on < ended) => (off, ended, asked.after(BOOT)),
            // The other clock may be ahead of ours.
            (_, Some((reboot, ended))) => (reboot, ended, ended.after(BOOT.saturating_sub(AHEAD))),
            _ => return Err(refusal(&placed, now.moment)),
        };
        if ended <= clock.doubtful_until.after(AHEAD) {
            return Err(
                "the clock of this host was set, and the fencing of the lost host may be an old one: fence \
                 the lost host again"
                    .into(),
            );
        }
        if now.moment >= good_until {
            return Err(refusal(&placed, now.moment));
        }
        Ok(Proof { evidence: told(fencing), asked, good_until: Some(good_until) })
    }

    /// Checks that the times of these fencings can be true: none has ended in the future, and none that is
    /// new has ended long before the loss.
    fn check_clocks(
        &mut self,
        own: &[&FencingRecord],
        now: ClockReading,
        clock: &mut ClockWatch,
    ) -> Result<(), String> {
        let ends: BTreeSet<SystemTime> = own.iter().filter_map(|it| it.ended).collect();
        let known = self.at_first.get_or_insert_with(|| ends.clone()).clone();
        if let Some(latest) = ends.last().filter(|it| **it > now.wall + AHEAD) {
            clock.impossible = clock.impossible.max(Some(*latest));
            return Err("the fencing of the host ended in the future: set the clocks".to_owned());
        }
        if ends.difference(&known).any(|it| self.is_before_the_loss(*it, now)) {
            return Err("a new fencing of the host has an old time: set the clocks".to_owned());
        }
        Ok(())
    }

    /// Returns the moment on this machine of a wall-clock time.
    fn moment_of(wall: SystemTime, now: ClockReading) -> Moment {
        now.moment.before(now.wall.duration_since(wall).unwrap_or_default())
    }

    fn is_before_the_loss(&self, wall: SystemTime, now: ClockReading) -> bool {
        let ended = Self::moment_of(wall, now);
        ended <= self.heard_since.after(AHEAD) || ended.after(NOTICE) < self.lost
    }

    /// Places a fencing on this machine's clock; none if it is not of this loss.
    fn place<'a>(&self, record: &'a FencingRecord, now: ClockReading) -> Option<PlacedFencing<'a>> {
        let Some(wall) = record.ended else { return Some(PlacedFencing { record, ended: None }) };
        // The node came back after that one, or went on as if it had not been.
        let is_old = self.is_before_the_loss(wall, now);
        (!is_old).then(|| PlacedFencing { record, ended: Some(Self::moment_of(wall, now)) })
    }
}

/// Returns the reason why these fencings of a loss prove nothing.
fn refusal(placed: &[PlacedFencing<'_>], now: Moment) -> String {
    let Some(first) = placed.first() else { return "Pacemaker has not fenced the host since".to_owned() };
    let action = &first.record.action;
    match (&*first.record.status, first.ended) {
        ("pending", _) => "Pacemaker is fencing the host".to_owned(),
        ("success", None) => "Pacemaker gives no time for the fencing of the host".to_owned(),
        ("success", Some(ended)) => {
            format!(
                "Pacemaker's {action} of the host ended {} s ago, and the host may be up again",
                now.since(ended).as_secs()
            )
        }
        _ => format!("Pacemaker's {action} of the host failed"),
    }
}

#[cfg(test)]
mod tests;
