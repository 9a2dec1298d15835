// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts that owe a start of one domain, and nobody asks for it meanwhile: one of them starts it.
//!
//! Each takes its turn by a claim, which the others' claims join. A host that answers shows what it owes as
//! about to start, but to the one that has the turn; and it may not know yet who that is, or ask back. So a
//! look may find nothing but the intentions of others, the looker's own among them. `PROPTEST_CASES` sets the
//! number of courses.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::evidence::{DomainSite, Finding, ProvedOff, Sight};
use crate::schedules::config;

/// Looks of a host that has its turn, before it fails and hands the turn on.
const PATIENCE: u8 = 4;
/// Rounds in which each host has its step, after the drawn ones.
const FAIR_ROUNDS: usize = 60;

/// Host that owes the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owing {
    /// The host has no claim.
    Idle,
    /// The host has claimed, and waits for its turn or for the result of the claim that it joined.
    Waits,
    /// The host has the turn, and has looked so often.
    Turn(u8),
    /// The debt is over: the host says that the domain is on.
    Over,
}

/// Step of a host, and what becomes of its look while others owe the start too.
#[derive(Clone, Copy, Debug)]
struct Step {
    host: usize,
    /// The others know whose turn it is.
    is_known: bool,
    /// A start fails.
    fails: bool,
}

struct World {
    hosts: Vec<Owing>,
    is_on: bool,
}

fn proof() -> ProvedOff {
    let asked = Instant::now();
    let place = DomainSite::Host("h".into());
    ProvedOff::from_end(asked, &Finding::without_namesakes(place, Sight::Ended(None), asked, Instant::now()))
        .expect("an end")
}

impl World {
    fn step(&mut self, Step { host, is_known, fails }: Step) {
        match self.hosts[host] {
            Owing::Over => {}
            Owing::Idle => {
                let is_free = !self.hosts.iter().any(|it| matches!(it, Owing::Turn(_)));
                self.hosts[host] = if is_free { Owing::Turn(0) } else { Owing::Waits };
            }
            // One whose leader gave up has the turn.
            Owing::Waits => {
                if !self.hosts.iter().any(|it| matches!(it, Owing::Turn(_))) {
                    self.hosts[host] = Owing::Turn(0);
                }
            }
            Owing::Turn(looks) => self.look(host, looks, is_known, fails),
        }
    }

    fn look(&mut self, host: usize, looks: u8, is_known: bool, fails: bool) {
        let is_owed = |(other, it): (usize, &Owing)| other != host && *it != Owing::Over;
        let seen = if self.is_on {
            SeenPower::On
        } else if !is_known && self.hosts.iter().enumerate().any(is_owed) {
            SeenPower::Moving
        } else {
            SeenPower::Off(proof())
        };
        match OwedStep::after(&seen, looks > 0) {
            OwedStep::Start if !fails => {
                self.is_on = true;
                self.succeed(host);
            }
            OwedStep::IsOn => self.succeed(host),
            OwedStep::LookAgain(_) if looks < PATIENCE => self.hosts[host] = Owing::Turn(looks + 1),
            OwedStep::Start | OwedStep::LookAgain(_) => self.hosts[host] = Owing::Idle,
        }
    }

    /// The host reports success, and so does each that joined its claim.
    fn succeed(&mut self, host: usize) {
        assert!(self.is_on, "host {host} says that the domain is on, and the domain is off");
        self.hosts[host] = Owing::Over;
        self.hosts.iter_mut().filter(|it| **it == Owing::Waits).for_each(|it| *it = Owing::Over);
    }
}

fn step(hosts: usize) -> impl Strategy<Value = Step> {
    (0..hosts, any::<bool>(), any::<bool>()).prop_map(|(host, is_known, fails)| Step {
        host,
        is_known,
        fails,
    })
}

fn course() -> impl Strategy<Value = (usize, Vec<Step>)> {
    (2..5_usize).prop_flat_map(|hosts| (Just(hosts), prop::collection::vec(step(hosts), 0..60)))
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn never_do_all_give_way((hosts, steps) in course()) {
        let mut world = World { hosts: vec![Owing::Idle; hosts], is_on: false };
        steps.into_iter().for_each(|it| world.step(it));
        for _ in 0..FAIR_ROUNDS {
            (0..hosts).for_each(|host| world.step(Step { host, is_known: true, fails: false }));
        }
        prop_assert!(world.is_on);
        prop_assert!(world.hosts.iter().all(|it| *it == Owing::Over));
    }
}
