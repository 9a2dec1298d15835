// SPDX-License-Identifier: GPL-2.0-or-later
//! Random courses of a node, of the clocks and of what Pacemaker writes down. The observer knows when the
//! node runs.
//!
//! `PROPTEST_CASES` sets the number of courses.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::schedules::config;

/// Wall-clock time that is right, at the beginning of a course.
const BEGIN: Duration = Duration::from_secs(1_795_000_000);
/// Time that this machine runs at the beginning of a course.
const UPTIME: u64 = 100_000;

fn moment(seconds: u64) -> Moment {
    Moment(Duration::from_secs(UPTIME + seconds))
}

fn wall(seconds: i64) -> SystemTime {
    let seconds = i64::try_from(BEGIN.as_secs()).unwrap() + seconds;
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap())
}

fn record(action: &str, status: &str, ended: Option<SystemTime>) -> FencingRecord {
    let [action, target, status, by] = [action, "n2", status, "n1"].map(str::to_owned);
    FencingRecord { action, target, status, by, ended }
}

/// Next event, with the seconds until then.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Pacemaker fences the node. The action takes so many seconds; the clock of the node that writes it down
    /// is off by so many; it may fail.
    Fence {
        reboots: bool,
        takes: u64,
        off_by: i64,
        fails: bool,
    },
    /// Pacemaker powers the node on.
    PowerOn {
        takes: u64,
        off_by: i64,
    },
    /// The node comes up after its power came on, this much after the shortest boot. It may have corosync.
    Boot {
        extra: u64,
        with_corosync: bool,
    },
    /// The node is cut off, and goes on.
    Cut,
    /// The clock of this host is set.
    SetClock(i64),
    /// The daemon starts anew.
    Restart,
    Nothing,
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let fence = (any::<bool>(), 0_u64..15, -4_i64..=4, prop::bool::weighted(0.2))
        .prop_map(|(reboots, takes, off_by, fails)| Event::Fence { reboots, takes, off_by, fails });
    let step = prop_oneof![-4000_i64..4000, -60_i64..60, Just(0)].prop_map(Event::SetClock);
    let event = prop_oneof![
        4 => fence,
        1 => (0_u64..15, -4_i64..=4).prop_map(|(takes, off_by)| Event::PowerOn { takes, off_by }),
        4 => (0_u64..40, prop::bool::weighted(0.7))
            .prop_map(|(extra, with_corosync)| Event::Boot { extra, with_corosync }),
        3 => Just(Event::Cut),
        2 => step,
        1 => Just(Event::Restart),
        2 => Just(Event::Nothing),
    ];
    vec((prop_oneof![0_u64..5, 0_u64..60, 0_u64..2000], event), 1..25)
}

/// The world, second by second.
struct World {
    now: u64,
    /// Seconds by which the clock of this host is ahead.
    off_by: i64,
    was_set: bool,
    clock: ClockWatch,
    history: Vec<FencingRecord>,
    has_power: bool,
    /// Second when the power came on, as far as a boot counts from it.
    powered_on: u64,
    /// Domains may run.
    runs: bool,
    /// Corosync runs and is not cut off.
    is_heard: bool,
    heard_since: u64,
    loss: Option<Loss>,
    proofs: Vec<Proof>,
    accepted: usize,
}

impl World {
    fn new() -> Self {
        let now = ClockReading { moment: moment(0), wall: wall(0) };
        Self {
            now: 0,
            off_by: 0,
            was_set: false,
            clock: ClockWatch::new(now),
            history: Vec::new(),
            has_power: true,
            powered_on: 0,
            runs: true,
            is_heard: true,
            heard_since: 0,
            loss: None,
            proofs: Vec::new(),
            accepted: 0,
        }
    }

    fn reading(&self) -> ClockReading {
        let wall = wall(i64::try_from(self.now).unwrap() + self.off_by);
        ClockReading { moment: moment(self.now), wall }
    }

    /// Lets a second pass; the daemon asks in each.
    fn second(&mut self) {
        self.now += 1;
        let now = self.reading();
        self.clock.observe(now);
        if self.is_heard {
            // Whoever is heard again is no lost host, and its proofs are void.
            if self.loss.take().is_some() {
                self.heard_since = self.now;
            }
            self.proofs.clear();
            return;
        }
        let heard_since = moment(self.heard_since);
        let loss = self.loss.get_or_insert_with(|| Loss::new(heard_since, now.moment));
        if let Ok(proof) = loss.judge("N2", &self.history, now.moment, now, &mut self.clock) {
            self.accepted += 1;
            self.proofs.push(proof);
        }
        self.proofs.retain(|it| it.evidence(now.moment).is_ok());
        assert!(
            self.proofs.is_empty() || !self.runs,
            "at {}: {:?}, {:?}",
            self.now,
            self.proofs,
            self.history
        );
    }

    fn seconds(&mut self, count: u64) {
        for _ in 0..count {
            self.second();
        }
    }

    fn lose_power(&mut self) {
        self.has_power = false;
        self.runs = false;
        self.is_heard = false;
    }

    /// Pacemaker works for a while, and writes the end down.
    fn work(&mut self, action: &str, takes: u64, off_by: i64, fails: bool) {
        self.history.insert(0, record(action, "pending", None));
        self.second();
        if action != "on" {
            self.lose_power();
        }
        self.seconds(takes / 2);
        self.has_power |= action != "off";
        self.seconds(takes - takes / 2);
        // The shortest boot counts from the end of the action.
        self.powered_on = self.now;
        let ended = wall(i64::try_from(self.now).unwrap() + off_by);
        self.history[0] = record(action, if fails { "failed" } else { "success" }, Some(ended));
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Fence { reboots, takes, off_by, fails } => {
                self.work(if reboots { "reboot" } else { "off" }, takes, off_by, fails);
            }
            Event::PowerOn { takes, off_by } => self.work("on", takes, off_by, false),
            Event::Boot { extra, with_corosync } if self.has_power && !self.runs => {
                let up = self.powered_on + BOOT.as_secs() + extra;
                self.seconds(up.saturating_sub(self.now));
                self.runs = true;
                self.is_heard = with_corosync;
                self.second();
            }
            Event::Cut if self.runs => self.is_heard = false,
            Event::SetClock(by) => {
                self.off_by += by;
                self.was_set = true;
            }
            // A clock that was set before the daemon began is beyond its knowledge.
            Event::Restart if !self.was_set => {
                self.clock = ClockWatch::new(self.reading());
                self.heard_since = self.now;
                self.loss = None;
                self.proofs.clear();
            }
            Event::Boot { .. } | Event::Cut | Event::Restart | Event::Nothing => {}
        }
    }
}

proptest! {
    #![proptest_config(config(512))]

    /// While a proof counts, the node does not run.
    #[test]
    fn no_proof_counts_while_the_node_runs(events in events()) {
        let mut world = World::new();
        for (pause, event) in events {
            world.seconds(pause);
            world.step(event);
        }
        world.seconds(100);
    }

    /// With clocks that agree, each fencing is believed, if nobody fenced the node before.
    #[test]
    fn a_fencing_is_believed(
        reboots: bool,
        takes in 0_u64..15,
        off_by in -4_i64..=4,
        before in 40_u64..1000,
    ) {
        let mut world = World::new();
        world.seconds(before);
        world.step(Event::Fence { reboots, takes, off_by, fails: false });
        world.seconds(if reboots { 15 } else { 1000 });
        prop_assert!(world.accepted > 0);
        prop_assert!(reboots || !world.proofs.is_empty(), "an off counts until the node comes back");
    }
}

#[test]
fn a_proof_counts_for_less_than_a_boot() {
    let proof = Proof::asked_at(moment(0), "said".to_owned());
    assert_eq!(proof.evidence(moment(29)), Ok("said"));
    let late = proof.evidence(moment(30)).unwrap_err();
    assert_eq!(late, "said; that was 30 s ago, and the host may have booted since");
    // The last moment that there is never makes one good.
    assert!(proof.evidence(Moment(Duration::MAX)).is_err());
    assert!(Proof::asked_at(Moment(Duration::MAX), String::new()).evidence(Moment(Duration::MAX)).is_err());
    assert!(Proof::by_membership(moment(0)).evidence(moment(1_000_000)).is_ok());
}

/// The node was fenced, came back, and is cut off an hour later. The clock of this host was set in between.
#[test]
fn an_old_fencing_is_none_after_the_clock_was_set() {
    let fenced = record("off", "success", Some(wall(1000)));
    let reading = |seconds: u64, off_by: i64| ClockReading {
        moment: moment(seconds),
        wall: wall(i64::try_from(seconds).unwrap() + off_by),
    };
    for by in [-3600, -7000, 3600] {
        let mut clock = ClockWatch::new(reading(0, 0));
        clock.observe(reading(3000, by));
        // The daemon began to hear the node anew after that.
        let mut loss = Loss::new(moment(3001), moment(4600));
        for seconds in (4600..20_000).step_by(10) {
            let now = reading(seconds, by);
            let judged = loss.judge("n2", std::slice::from_ref(&fenced), now.moment, now, &mut clock);
            assert!(judged.is_err(), "set by {by} s, {seconds}: {judged:?}");
        }
    }
    // Set in the middle of the loss.
    let mut clock = ClockWatch::new(reading(0, -3600));
    let mut loss = Loss::new(moment(2000), moment(4600));
    clock.observe(reading(4610, 0));
    let now = reading(4611, 0);
    assert!(
        loss.judge("n2", &[record("off", "success", Some(wall(4605 - 3600)))], now.moment, now, &mut clock)
            .is_err()
    );
    assert!(loss.judge("n2", std::slice::from_ref(&fenced), now.moment, now, &mut clock).is_err());
    // A fencing after that counts.
    let now = reading(4700, 0);
    assert!(
        loss.judge("n2", &[record("off", "success", Some(wall(4690)))], now.moment, now, &mut clock).is_ok()
    );
}
