// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts of a small cluster, whose guests shoot each other, over random schedules.
//!
//! The world plays corosync (one order for all members of a component; what a host sent is ordered any time
//! later, also after changes of the membership that it did not know of then; each host hears at its own
//! pace), the hosts' daemons (which come, go, are stopped and go on, lose corosync and find it again), the
//! guests, and the hosts' work for each other. What happens next is drawn from all that could.
//!

use proptest::collection::vec;
use proptest::prelude::*;

use self::world::{Faults, Plan, Sight, World};
use crate::schedules::{Kind, config, kinds};

mod world;

fn sight(hosts: usize) -> impl Strategy<Value = Sight> {
    (any::<(bool, bool)>(), prop::option::of(any::<u8>()), 0..hosts)
        .prop_map(|((known, peer), island, home)| Sight { known, peer, island, home })
}

fn plan(hosts: usize, guests: usize) -> impl Strategy<Value = Plan> {
    (0..guests, 0..hosts, kinds(2, 4), 0..guests).prop_map(|(from, at, kind, target)| Plan {
        from,
        at,
        kind,
        target,
    })
}

/// Two to four hosts, two to four guests, requests, and what is drawn.
fn schedule() -> impl Strategy<Value = (usize, Vec<Sight>, Vec<Plan>, Vec<u16>)> {
    (2_usize..=4, 2_usize..=4).prop_flat_map(|(hosts, guests)| {
        let plans = vec(plan(hosts, guests), 1..40);
        (Just(hosts), vec(sight(hosts), guests), plans, vec(any::<u16>(), 0..600))
    })
}

proptest! {
    #![proptest_config(config(300))]

    /// Everything the world asserts, with messages that take any time.
    #[test]
    fn one_survives((hosts, sight, plans, draws) in schedule()) {
        World::new(hosts, sight, plans, Faults::None).run(&draws);
    }

    /// Daemons come, go and stop at any moment; the rest as above.
    #[test]
    fn one_survives_whatever_daemons_do((hosts, sight, plans, draws) in schedule()) {
        World::new(hosts, sight, plans, Faults::Daemons).run(&draws);
    }

    /// Daemons are killed in the middle of power-offs that take effect later, and begin anew, with a memory
    /// of their orders or without.
    #[test]
    fn one_survives_orders_of_daemons_that_were_killed(
        sight in vec(sight(3), 2..=3),
        shots in vec((0_usize..3, 0_usize..3, 0_usize..3), 2..20),
        draws in vec(any::<u16>(), 0..400),
    ) {
        let guests = sight.len();
        let plan = |(from, at, target)| {
            Plan { from: from % guests, at, kind: Kind::Off, target: target % guests }
        };
        World::new(3, sight, shots.into_iter().map(plan).collect(), Faults::Kills).run(&draws);
    }

    /// Daemons are stopped in the middle of power-offs, whose orders take effect later, and go on any time
    /// after: others pass over what they hold for longer than it lasts, and none of them acts after that.
    #[test]
    fn one_survives_daemons_that_stand_still(
        sight in vec(sight(3), 2..=3),
        shots in vec((0_usize..3, 0_usize..3, 0_usize..3), 2..20),
        draws in vec(any::<u16>(), 0..500),
    ) {
        let guests = sight.len();
        let plan = |(from, at, target)| {
            Plan { from: from % guests, at, kind: Kind::Off, target: target % guests }
        };
        World::new(3, sight, shots.into_iter().map(plan).collect(), Faults::Stops).run(&draws);
    }

    /// Of two that shoot each other the daemon of the first stands still in the middle of it. The other asks
    /// again and again.
    #[test]
    fn one_survives_a_daemon_that_stands_still(
        sight in vec(sight(3), 2),
        at in 0_usize..3,
        back in vec(0_usize..3, 1..6),
        ticks in 0_u32..7,
        draws in vec(any::<u16>(), 0..80),
    ) {
        let plan = |(from, at)| Plan { from, at, kind: Kind::Off, target: 1 - from };
        let plans = std::iter::once((0, at)).chain(back.into_iter().map(|at| (1, at)));
        let mut world = World::new(3, sight, plans.map(plan).collect(), Faults::Stops);
        world.starts = false;
        world.run_with_a_stop(ticks, &draws);
    }

    /// All daemons are killed in the middle of a power-off that takes effect later, and begin anew one by
    /// one.
    #[test]
    fn one_survives_when_all_daemons_are_started_anew(
        sight in vec(sight(3), 2..=3),
        shots in vec((0_usize..3, 0_usize..3, 0_usize..3), 2..12),
        begins in any::<[bool; 3]>(),
        draws in vec(any::<u16>(), 0..200),
    ) {
        let guests = sight.len();
        // The first two shoot each other.
        let first = shots.iter().take(2).enumerate().map(|(from, (_, at, _))| (from, *at, 1 - from));
        let plan = |(from, at, target)| {
            Plan { from: from % guests, at, kind: Kind::Off, target: target % guests }
        };
        let plans = first.chain(shots.iter().skip(2).copied()).map(plan).collect();
        World::new(3, sight, plans, Faults::Kills).run_after_kills(begins, &draws);
    }

    /// Hosts that lose each other as well: one order among those that hear each other, and everything ends.
    #[test]
    fn everything_ends((hosts, sight, plans, draws) in schedule()) {
        World::new(hosts, sight, plans, Faults::Everything).run(&draws);
    }

    /// Two guests of two hosts shoot each other, each once or more often.
    #[test]
    fn of_two_exactly_one_stays_up(
        sight in vec(sight(3), 2),
        shots in vec((0_usize..2, 0_usize..3), 0..6),
        first in vec(0_usize..3, 2),
        draws in vec(any::<u16>(), 0..300),
    ) {
        let shots = [vec![(0, first[0]), (1, first[1])], shots].concat();
        let plan = |(from, at)| Plan { from, at, kind: Kind::Off, target: 1 - from };
        let mut world = World::new(3, sight, shots.into_iter().map(plan).collect(), Faults::None);
        world.starts = false;
        world.run(&draws);
        prop_assert_eq!(world.guests.up.iter().flatten().count(), 1);
    }
}
