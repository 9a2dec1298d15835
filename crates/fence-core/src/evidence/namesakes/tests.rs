// SPDX-License-Identifier: GPL-2.0-or-later
//! Machines with one name, by cases and over random courses.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{DomainSite, Sight, seems_off};
use super::*;

/// Hosts that are asked. One more, which nobody asks, has the number after them.
const HOSTS: usize = 3;
/// Domains with the name. The first one is asked about.
const DOMAINS: usize = 3;

fn id(domain: usize) -> DomainId {
    DomainId::from_bytes([u8::try_from(domain).unwrap(); 16])
}

fn look(start: Instant, host: usize, sight: Sight, step: u64, namesakes: Vec<DomainId>) -> Finding {
    let at = start + Duration::from_millis(step);
    Finding { place: DomainSite::Host(format!("h{host}")), sight, began: at, ended: at, namesakes }
}

/// Event of one machine, or a question.
#[derive(Clone, Copy, Debug)]
enum Course {
    /// Move to this host, if it is on; or a save here, restored there.
    Moves(usize),
    /// End.
    Ends,
    /// Start at this host, which is asked, if it is off.
    Starts(usize),
    /// This host is asked for the machine, by its name or by its UUID, and forgets moves that are over.
    Proves(usize, bool),
}

fn courses() -> impl Strategy<Value = Vec<(usize, Course)>> {
    let event = prop_oneof![
        4 => (0..HOSTS + 1).prop_map(Course::Moves),
        3 => Just(Course::Ends),
        3 => (0..HOSTS).prop_map(Course::Starts),
        4 => (0..HOSTS, any::<bool>()).prop_map(|(host, by_name)| Course::Proves(host, by_name)),
    ];
    vec((0..DOMAINS, event), 1..24)
}

/// World of hosts that remember, and of machines with one name.
#[derive(Default)]
struct World {
    now: u64,
    /// Host where each machine is on.
    on_at: [Option<usize>; DOMAINS],
    /// Last thing that each host saw of each machine, and when: true for an end, false for a move.
    last: [[Option<(bool, u64)>; DOMAINS]; HOSTS],
}

impl World {
    fn happens(&mut self, domain: usize, event: Course) {
        // No libvirtd has two instances with one name.
        let is_free = |host: usize| !self.on_at.contains(&Some(host));
        match (event, self.on_at[domain]) {
            (Course::Moves(to), Some(from)) if to != from && is_free(to) => {
                self.note(from, domain, Some((false, self.now)));
                self.note(to, domain, None);
                self.on_at[domain] = Some(to);
            }
            (Course::Ends, Some(host)) => {
                self.note(host, domain, Some((true, self.now)));
                self.on_at[domain] = None;
            }
            (Course::Starts(host), None) if is_free(host) => {
                self.note(host, domain, None);
                self.on_at[domain] = Some(host);
            }
            (Course::Proves(host, true), _) => self.forget(host, &self.judged(domain).1),
            (Course::Proves(host, false), _) => {
                let start = Instant::now();
                let rounds = [1, 2].map(|step| self.looks(start, domain, step));
                let proof = ProvedOff::of_one(start, &rounds);
                self.forget(host, &proof.into_iter().map(|it| (domain, it)).collect::<Vec<_>>());
            }
            _ => {}
        }
    }

    /// Forgets the moves at one host that proofs have judged.
    fn forget(&mut self, host: usize, proofs: &[(usize, ProvedOff)]) {
        let place = DomainSite::Host(format!("h{host}"));
        for (domain, proof) in proofs {
            if proof.moved_from().contains(&place) {
                assert!(matches!(self.last[host][*domain], Some((false, _))));
                self.last[host][*domain] = None;
            }
        }
    }

    fn note(&mut self, host: usize, domain: usize, last: Option<(bool, u64)>) {
        if let Some(host) = self.last.get_mut(host) {
            host[domain] = last;
        }
    }

    fn age(&self, when: u64) -> Duration {
        Duration::from_millis(self.now - when)
    }

    fn looks(&self, start: Instant, domain: usize, step: u64) -> Vec<Finding> {
        let at = |host: usize| {
            let has_moved = |it: usize| it != domain && matches!(self.last[host][it], Some((false, _)));
            let namesakes = (0..DOMAINS).filter(|it| has_moved(*it)).map(id).collect();
            let sight = match (self.on_at.iter().position(|it| *it == Some(host)), self.last[host][domain]) {
                (Some(it), _) if it == domain => Sight::On,
                (Some(_), _) => Sight::Unknown("another one is on".to_owned()),
                (None, None) => Sight::Off,
                (None, Some((true, when))) => Sight::Ended(Some(self.age(when))),
                (None, Some((false, when))) => Sight::MovedAway(self.age(when)),
            };
            look(start, host, sight, step, namesakes)
        };
        (0..HOSTS).map(at).collect()
    }

    /// Asks about a domain by name, as a host does. Returns the judgement, and each proof of one machine.
    fn judged(&self, domain: usize) -> (Result<ProvedOff, Doubt>, Vec<(usize, ProvedOff)>) {
        let start = Instant::now();
        let rounds = |domain| [1, 2].map(|step| self.looks(start, domain, step));
        let mut namesakes = Namesakes::of(id(domain), start);
        let of_domain = rounds(domain);
        namesakes.hear(&of_domain);
        let mut proofs = Vec::new();
        while let Some(other) = namesakes.next() {
            let number = (0..DOMAINS).find(|it| id(*it) == other).unwrap();
            let proof = namesakes.judge(other, &rounds(number));
            proofs.extend(proof.map(|it| (number, it.clone())));
        }
        let judged = namesakes.prove(&of_domain);
        proofs.extend(judged.iter().map(|it| (domain, it.clone())));
        (judged, proofs)
    }

    /// Returns whether the machine was seen to end at a host that is asked, clearly after its last move.
    fn is_clear(&self, domain: usize) -> bool {
        let of = |kind: bool| {
            let seen = self.last.iter().filter_map(move |host| host[domain]);
            seen.filter(move |it| it.0 == kind).map(|it| it.1).max()
        };
        of(false).is_none_or(|moved| of(true).is_some_and(|end| end > moved + (self.now - moved) / 4000 + 10))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever machines with one name did, and wherever they went, and whatever moves hosts forgot after a
    /// proof, "off" is said of the name only if none of them is on; and of machines that are off and were
    /// seen to end it is said.
    #[test]
    fn a_name_is_off_only_if_each_machine_with_it_is(
        course in courses(),
        steps in vec(100_u64..3_000_000, 24),
    ) {
        let mut world = World::default();
        for ((domain, event), step) in course.into_iter().zip(steps) {
            world.now += step;
            world.happens(domain, event);
        }
        world.now += 1000;
        let judged = world.judged(0).0;
        let is_off = world.on_at == [None; DOMAINS];
        prop_assert!(is_off || judged.is_err(), "{:?}", judged);
        let is_clear = (0..DOMAINS).all(|it| world.is_clear(it));
        prop_assert!(!is_off || !is_clear || judged.is_ok(), "{:?}", judged);
    }
}

/// The other one may run at the silent host: nobody is to look for a host that is not asked.
#[test]
fn a_silent_host_comes_before_the_move_of_a_namesake() {
    let start = Instant::now();
    let of_domain = [1, 2].map(|step| {
        vec![look(start, 1, Sight::Off, step, vec![]), look(start, 2, Sight::Absent, step, vec![id(1)])]
    });
    let mut namesakes = Namesakes::of(id(0), start);
    namesakes.hear(&of_domain);
    let (silent, moved) = (Sight::Unknown("h1 is silent".into()), Sight::MovedAway(Duration::from_secs(9)));
    namesakes.judge(id(1), &[vec![look(start, 1, silent, 3, vec![]), look(start, 2, moved, 3, vec![])]]);
    let why = namesakes.prove(&of_domain).unwrap_err().to_string();
    assert!(why.contains("h1 is silent") && why.contains(&id(1).to_string()), "{why}");
    assert!(!why.contains("peers"), "{why}");
}

/// One definition is off; the other machine with its name moved to a host that nobody asks.
#[test]
fn a_namesake_that_moved_away_is_a_doubt_with_a_next_step() {
    let start = Instant::now();
    let of_domain = [1, 2].map(|step| {
        vec![look(start, 1, Sight::Off, step, vec![]), look(start, 2, Sight::Absent, step, vec![id(1)])]
    });
    let moved = Sight::MovedAway(Duration::from_secs(9));
    let judge = |seen_at_1: Sight| {
        let mut namesakes = Namesakes::of(id(0), start);
        namesakes.hear(&of_domain);
        assert_eq!(namesakes.next(), Some(id(1)));
        let rounds = [3, 4].map(|step| {
            let (first, second) = (seen_at_1.clone(), moved.clone());
            vec![look(start, 1, first, step, vec![]), look(start, 2, second, step, vec![])]
        });
        namesakes.judge(id(1), &rounds);
        assert_eq!(namesakes.next(), None);
        namesakes.prove(&of_domain).map_err(|it| it.to_string())
    };
    let why = judge(Sight::Absent).unwrap_err();
    for words in ["host h2", &id(1).to_string(), "`peers` of all hosts", "\"It moved away\""] {
        assert!(why.contains(words), "{why}");
    }
    let proof = judge(Sight::Ended(Some(Duration::from_secs(1)))).unwrap();
    assert_eq!(proof.since(), of_domain[0][0].began);
    let why = judge(Sight::On).unwrap_err();
    assert!(why.contains(&id(1).to_string()) && why.contains("the domain is on at host h1"), "{why}");
}

/// Whoever does not ask about a namesake that was heard of can't say "off".
#[test]
fn a_namesake_that_was_not_looked_at_is_a_doubt() {
    let start = Instant::now();
    let rounds = [1, 2].map(|step| vec![look(start, 1, Sight::Off, step, vec![id(1)])]);
    assert!(seems_off(&rounds[0]));
    let why = ProvedOff::from_rounds(start, &rounds).unwrap_err().to_string();
    assert!(why.contains(&id(1).to_string()) && why.contains("h1"), "{why}");
    assert_eq!(Namesakes::of(id(0), start).prove(&rounds).unwrap_err().to_string(), why);
    // The domain itself is none.
    assert!(Namesakes::of(id(1), start).prove(&rounds).is_ok());
}

#[test]
fn too_many_namesakes_are_a_doubt() {
    let start = Instant::now();
    let others: Vec<_> = (1..=MAX_NAMESAKES + 4).map(id).collect();
    let rounds = [1, 2].map(|step| vec![look(start, 1, Sight::Off, step, others.clone())]);
    let mut namesakes = Namesakes::of(id(0), start);
    namesakes.hear(&rounds);
    assert_eq!(namesakes.heard.len(), MAX_NAMESAKES + 1);
    // Those that can be looked at are, so that the host forgets the moves of those that are off.
    let mut looked_at = 0;
    while let Some(other) = namesakes.next() {
        looked_at += 1;
        let rounds = [3, 4].map(|step| vec![look(start, 1, Sight::Off, step, vec![])]);
        assert!(namesakes.judge(other, &rounds).is_some());
    }
    assert_eq!(looked_at, MAX_NAMESAKES);
    let why = namesakes.prove(&rounds).unwrap_err().to_string();
    assert!(why.contains("more than 8"), "{why}");
}

/// Ignorance of one must not hide what was found out of another.
#[test]
fn a_namesake_that_was_looked_at_is_named_first() {
    let start = Instant::now();
    let rounds = [1, 2].map(|step| vec![look(start, 1, Sight::Off, step, vec![id(2)])]);
    let mut namesakes = Namesakes::of(id(0), start);
    namesakes.hear(&rounds);
    let of_other = [3, 4].map(|step| vec![look(start, 1, Sight::On, step, vec![id(1)])]);
    assert!(namesakes.judge(id(2), &of_other).is_none());
    let why = namesakes.prove(&rounds).unwrap_err().to_string();
    assert!(why.contains(&id(2).to_string()), "{why}");
}

#[test]
fn domains_are_looked_for_in_turns() {
    let now = Instant::now();
    let ids = |numbers: std::ops::Range<usize>| numbers.map(id);
    let mut turns = ProofTurns::default();
    assert_eq!(turns.begin(ids(0..0), now), []);
    let first = turns.begin(ids(0..12), now);
    assert_eq!(first, ids(0..8).collect::<Vec<_>>());
    assert_eq!(turns.begin(ids(0..12), now), [], "one turn at a time");
    turns.end();
    assert_eq!(turns.begin(ids(0..12), now), ids(8..12).collect::<Vec<_>>(), "none again so soon");
    turns.end();
    assert_eq!(turns.begin(ids(0..12), now), []);
    assert_eq!(turns.begin(ids(0..2), now + PROOF_PAUSE), ids(0..2).collect::<Vec<_>>());
    // Other domains without end.
    let mut turns = ProofTurns::default();
    let looked_for: usize = (0..20)
        .map(|turn| {
            turns.end();
            turns.begin(ids(turn * 10..turn * 10 + 10), now).len()
        })
        .sum();
    assert_eq!(looked_for, MAX_PROVED);
}

/// A name that reads as the UUID of another machine, in any case and with dashes or without.
#[test]
fn a_name_that_is_a_uuid_means_that_machine_too() {
    let start = Instant::now();
    let rounds = |sight: Sight| {
        let round = |step| {
            vec![
                look(start, 0, Sight::Off, step, Vec::new()),
                look(start, 1, sight.clone(), step, Vec::new()),
            ]
        };
        [round(1), round(2)]
    };
    let canonical = id(1).to_string();
    for name in [canonical.clone(), canonical.to_uppercase(), canonical.replace('-', "")] {
        let mut namesakes = Namesakes::of(id(0), start);
        namesakes.hear_name(&name);
        assert!(namesakes.prove(&rounds(Sight::Off)).is_err(), "nobody looked for it");
        for (sight, is_off) in
            [(Sight::On, false), (Sight::Unknown("x".to_owned()), false), (Sight::Absent, true)]
        {
            let mut namesakes = Namesakes::of(id(0), start);
            namesakes.hear_name(&name);
            assert_eq!(namesakes.next(), Some(id(1)));
            let _ = namesakes.judge(id(1), &rounds(sight));
            assert_eq!(namesakes.prove(&rounds(Sight::Off)).is_ok(), is_off);
        }
    }
    for own in [id(0).to_string(), "web1".to_owned()] {
        let mut namesakes = Namesakes::of(id(0), start);
        namesakes.hear_name(&own);
        assert_eq!(namesakes.next(), None);
    }
}
