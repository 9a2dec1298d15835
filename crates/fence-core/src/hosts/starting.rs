// SPDX-License-Identifier: GPL-2.0-or-later
//! Starts that are about to happen, where two hosts may be asked for the same one at once.
//!
//! Whoever is about to start a domain says so to all who ask, **before** it looks at the other hosts, and
//! until its instance is seen. Of two hosts, the one that announces later looks later, and finds the
//! announcement of the other: never do both start. Each that finds another takes its own back, and looks
//! again after a pause. Values only.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::DomainId;
use crate::evidence::{Doubt, ProvedOff, Sight};

/// Pause before an instance that comes or goes is looked at again, at least.
const PAUSE: Duration = Duration::from_millis(200);
/// Most times that this pause is doubled.
const MAX_DOUBLINGS: u32 = 2;
/// Longest time by which the pause is longer. Two hosts that gave way at once differ by it.
const SPREAD_MS: u64 = 400;

/// Domains that this host is about to start, with the number of requests for each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PendingStarts(BTreeMap<DomainId, usize>);

impl PendingStarts {
    /// Notes that the domain is about to be started.
    pub fn announce(&mut self, domain: DomainId) {
        *self.0.entry(domain).or_default() += 1;
    }

    /// Takes back one announcement: the instance is seen, or there is no start.
    pub fn withdraw(&mut self, domain: DomainId) {
        if let Some(count) = self.0.get_mut(&domain) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&domain);
            }
        }
    }

    /// Returns whether the domain is about to be started.
    pub fn is_announced(&self, domain: DomainId) -> bool {
        self.0.contains_key(&domain)
    }
}

/// Next step of a start whose announcement stands, after the looks at all places.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartDecision {
    /// Nobody has the domain: start it, and take the announcement back when it is seen on.
    Start,
    /// Nothing: an instance runs.
    IsOn,
    /// An instance comes or goes, or another host is about to start one: take the announcement back, pause,
    /// and begin anew.
    GiveWay,
    /// Nothing: a place that may have it can't tell.
    Fail,
}

impl StartDecision {
    /// Returns what follows from the looks, which began after the announcement.
    pub fn after(looks: &Result<ProvedOff, Doubt>) -> Self {
        match looks {
            Ok(_) => Self::Start,
            // It would run twice.
            Err(Doubt::On(_)) => Self::IsOn,
            Err(Doubt::Moving(_)) => Self::GiveWay,
            Err(Doubt::CantTell(_) | Doubt::Namesake(_)) => Self::Fail,
        }
    }
}

/// Returns the pause after a host gave way, which it did so many times before. `drawn` is random: two hosts
/// that gave way to each other must not look again at the same moment for ever.
#[must_use]
pub fn pause_after_giving_way(times: u32, drawn: u64) -> Duration {
    PAUSE * 2_u32.pow(times.min(MAX_DOUBLINGS)) + Duration::from_millis(drawn % SPREAD_MS)
}

/// Returns what is told of a domain that is about to be started, where this is seen of it.
#[must_use]
pub fn about_to_start(sight: &Sight) -> Sight {
    match sight {
        Sight::Ended(_) | Sight::Off | Sight::Absent | Sight::MovedAway(_) => Sight::Moving,
        Sight::On | Sight::Moving | Sight::Down(_) | Sight::Unknown(_) => sight.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::evidence::{DomainSite, Finding};

    #[test]
    fn the_pause_grows_to_a_maximum() {
        let pauses: Vec<_> = (0..5).map(|it| pause_after_giving_way(it, 17).as_millis()).collect();
        assert_eq!(pauses, [217, 417, 817, 817, 817]);
        assert_eq!(pause_after_giving_way(u32::MAX, SPREAD_MS - 1), Duration::from_millis(1199));
    }
    const DOMAIN: DomainId = DomainId::from_bytes([7; 16]);

    /// Step that a host takes next.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Step {
        /// The request comes.
        Begin,
        /// The answer of another host is read in three parts, each at a moment of its own: its announcements,
        /// its instance, its announcements again.
        Ask {
            round: usize,
            host: usize,
            part: usize,
        },
        Decide,
        Start,
        Withdraw,
        Over,
    }

    struct Model {
        pending: Vec<PendingStarts>,
        has_instance: Vec<bool>,
        step: Vec<Step>,
        seen: Vec<(bool, bool)>,
        rounds: Vec<[Vec<Finding>; 2]>,
        started: usize,
        /// Moments of the looks, in the order of the steps.
        now: Instant,
    }

    impl Model {
        fn new(hosts: usize) -> Self {
            Self {
                pending: vec![PendingStarts::default(); hosts],
                has_instance: vec![false; hosts],
                step: vec![Step::Begin; hosts],
                seen: vec![(false, false); hosts],
                rounds: (0..hosts).map(|_| [Vec::new(), Vec::new()]).collect(),
                started: 0,
                now: Instant::now(),
            }
        }

        /// Lets one host take its next step.
        fn advance(&mut self, me: usize) {
            self.now += Duration::from_millis(1);
            self.step[me] = match self.step[me] {
                Step::Begin => {
                    self.pending[me].announce(DOMAIN);
                    self.rounds[me] = [Vec::new(), Vec::new()];
                    Step::Ask { round: 0, host: 0, part: 0 }
                }
                Step::Ask { round, host, part } => self.ask(me, round, host, part),
                Step::Decide => {
                    let looks = ProvedOff::from_rounds(self.now - Duration::from_secs(60), &self.rounds[me]);
                    match StartDecision::after(&looks) {
                        StartDecision::Start => Step::Start,
                        StartDecision::IsOn | StartDecision::Fail => {
                            self.pending[me].withdraw(DOMAIN);
                            Step::Over
                        }
                        StartDecision::GiveWay => {
                            self.pending[me].withdraw(DOMAIN);
                            Step::Begin
                        }
                    }
                }
                Step::Start => {
                    self.has_instance[me] = true;
                    self.started += 1;
                    Step::Withdraw
                }
                Step::Withdraw => {
                    self.pending[me].withdraw(DOMAIN);
                    Step::Over
                }
                Step::Over => Step::Over,
            };
        }

        fn ask(&mut self, me: usize, round: usize, host: usize, part: usize) -> Step {
            let is_announced = host != me && self.pending[host].is_announced(DOMAIN);
            match part {
                0 => self.seen[me] = (is_announced, false),
                1 => self.seen[me].1 = self.has_instance[host],
                _ => {
                    let (was_announced, is_on) = self.seen[me];
                    let sight = if is_on { Sight::On } else { Sight::Off };
                    let is_pending = was_announced || is_announced;
                    let sight = if is_pending { about_to_start(&sight) } else { sight };
                    let (place, now) = (DomainSite::Host(host.to_string()), self.now);
                    self.rounds[me][round].push(Finding::without_namesakes(place, sight, now, now));
                }
            }
            match (part, host + 1 < self.step.len(), round) {
                (0 | 1, ..) => Step::Ask { round, host, part: part + 1 },
                (_, true, _) => Step::Ask { round, host: host + 1, part: 0 },
                (_, false, 0) => Step::Ask { round: 1, host: 0, part: 0 },
                (_, false, _) => Step::Decide,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// However the steps of two or three hosts fall, at most one instance is started; and a host that is
        /// left alone in the end finds it on, or starts it.
        #[test]
        fn no_two_hosts_start_one_domain(
            hosts in 2..4_usize,
            turns in proptest::collection::vec((0..3_usize, 1..12_usize), 0..120),
        ) {
            let mut model = Model::new(hosts);
            for (host, steps) in turns {
                for _ in 0..steps {
                    model.advance(host % hosts);
                    prop_assert!(model.started <= 1, "started twice: {:?}", model.step);
                }
            }
            for host in 0..hosts {
                // One after the other, until each is done: the pauses differ.
                for _ in 0..200 {
                    (0..hosts).filter(|it| *it != host).for_each(|it| {
                        if !matches!(model.step[it], Step::Begin) { model.advance(it) }
                    });
                    model.advance(host);
                }
            }
            prop_assert!(model.started == 1, "nobody started it: {:?}", model.step);
            prop_assert!(model.pending.iter().all(|it| !it.is_announced(DOMAIN)), "left announced");
        }
    }

    #[test]
    fn an_announcement_lasts_until_the_last_request_took_it_back() {
        let mut pending = PendingStarts::default();
        pending.announce(DOMAIN);
        pending.announce(DOMAIN);
        pending.withdraw(DOMAIN);
        assert!(pending.is_announced(DOMAIN));
        pending.withdraw(DOMAIN);
        pending.withdraw(DOMAIN);
        assert!(!pending.is_announced(DOMAIN));
    }
}
