// SPDX-License-Identifier: GPL-2.0-or-later
//! Judgement whether a start that an earlier daemon owes still stands.
//!
//! An owed start is older than whatever was asked for while its host had no daemon. So each place that can
//! have the machine has to say that nothing happened to it since, over all of that time. A place that can't
//! tell for so long makes the start void: a machine that stays off is the safe side. Pure; ages are
//! parameters.

use std::fmt;
use std::time::Duration;

use crate::domain::SeenPower;
use crate::evidence::CLOCK_DRIFT;

/// Words for a domain that another place is about to have on.
pub const MOVING: &str = "another place is about to start the domain, or the domain comes or goes there";

/// Memory of a domain at a place, as it tells when it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlaceMemory {
    /// Time for which the place has noted, without a gap, what happened there.
    pub noted_for: Duration,
    /// Age of the last thing that was noted: an instance was there, or a request was told there that the
    /// domain is off. None if there was nothing.
    pub last: Option<Duration>,
}

/// Word of a place about the time since the start is owed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlaceWord {
    /// Memory of the place.
    Memory(PlaceMemory),
    /// No memory, for this reason: it will not have one later either.
    NoMemory(String),
    /// Not heard now, for this reason: it may be heard later.
    Unheard(String),
}

/// Verdict on a start that is owed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum StartVerdict {
    /// Nothing happened since: the start is to be made good.
    Stands,
    /// Somebody decided otherwise since: what was seen, in words.
    Overtaken(String),
    /// Nobody can tell any more: why, in words.
    Untold(String),
    /// Nobody can tell now, for this reason.
    Unheard(String),
}

impl StartVerdict {
    /// Judges what all other places say of the time since the start is owed: `since`, as it is when the last
    /// of them has answered. None: there is no other place.
    pub fn of<P: fmt::Display>(since: Duration, words: &[(P, PlaceWord)]) -> Self {
        // Each place measures with its own clock.
        let since = since.saturating_add(since / CLOCK_DRIFT);
        let (mut untold, mut unheard) = (Vec::new(), Vec::new());
        for (place, word) in words {
            match word {
                PlaceWord::Memory(it) if it.last.is_some_and(|age| age <= since) => {
                    return Self::Overtaken(format!(
                        "{place} had the domain since, or said that the domain is off"
                    ));
                }
                PlaceWord::Memory(it) if it.noted_for > since => {}
                PlaceWord::Memory(it) => untold.push(format!(
                    "{place} has noted for {} s only what happens there, and the start is owed for {} s",
                    it.noted_for.as_secs(),
                    since.as_secs()
                )),
                PlaceWord::NoMemory(why) => untold.push(format!("{place} {why}")),
                PlaceWord::Unheard(why) => unheard.push(format!("{place} {why}")),
            }
        }
        match (untold.is_empty(), unheard.is_empty()) {
            (false, _) => Self::Untold(untold.join("; ")),
            (true, false) => Self::Unheard(unheard.join("; ")),
            (true, true) => Self::Stands,
        }
    }

    /// Returns the verdict where two parts of the places were judged.
    pub fn and(self, other: Self) -> Self {
        let rank = |it: &Self| match it {
            Self::Overtaken(_) => 0,
            Self::Untold(_) => 1,
            Self::Unheard(_) => 2,
            Self::Stands => 3,
        };
        if rank(&self) <= rank(&other) { self } else { other }
    }
}

/// Next step of a host that owes a start, after a look at all places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwedStep {
    /// Start the domain, if the start still stands.
    Start,
    /// Nothing: the domain is on.
    IsOn,
    /// Look again, for this reason.
    LookAgain(&'static str),
}

impl OwedStep {
    /// Returns what follows from a look. An instance that is on at first may be the one that is about to end:
    /// `is_settled` once it was watched for long enough.
    ///
    /// What another host is about to do ends nothing here. That one may owe the start as well, and find this
    /// one about to do it.
    pub fn after(seen: &SeenPower, is_settled: bool) -> Self {
        match seen {
            SeenPower::Off(_) => Self::Start,
            SeenPower::On if is_settled => Self::IsOn,
            SeenPower::On => Self::LookAgain("the domain is on, and may be about to end"),
            SeenPower::Moving => Self::LookAgain(MOVING),
        }
    }
}

#[cfg(test)]
mod owing_hosts;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Event at a place, by the seconds before now: an instance was there or was told off, or the place has
    /// noted since then only.
    #[derive(Clone, Copy, Debug)]
    enum Past {
        Acted(u64),
        Forgot(u64),
    }

    fn past() -> impl Strategy<Value = Vec<Past>> {
        let event = prop_oneof![(0..200_u64).prop_map(Past::Acted), (0..200_u64).prop_map(Past::Forgot)];
        proptest::collection::vec(event, 0..4)
    }

    /// Returns what a place says that forgets all at each gap, by a clock that may run fast or slow.
    fn word(past: &[Past], drift: i32) -> PlaceWord {
        let by_its_clock = |seconds: u64| {
            let time = Duration::from_secs(seconds);
            let off = time / CLOCK_DRIFT;
            if drift < 0 { time.saturating_sub(off) } else { time + off * u32::from(drift > 0) }
        };
        let noted = past.iter().filter_map(|it| match it {
            Past::Forgot(at) => Some(*at),
            Past::Acted(_) => None,
        });
        let noted = noted.min().unwrap_or(10_000);
        let last = past.iter().filter_map(|it| match it {
            Past::Acted(at) if *at <= noted => Some(*at),
            _ => None,
        });
        let last = last.min().map(by_its_clock);
        PlaceWord::Memory(PlaceMemory { noted_for: by_its_clock(noted), last })
    }

    proptest! {
        /// Whatever a place forgot and whenever: no start stands after something happened since it is owed.
        #[test]
        fn no_start_stands_that_was_overtaken(
            since in 0..150_u64,
            places in proptest::collection::vec((past(), -1..=1), 0..4),
        ) {
            let words: Vec<_> = places.iter().map(|(past, drift)| ("h", word(past, *drift))).collect();
            let verdict = StartVerdict::of(Duration::from_secs(since), &words);
            let acted = |it: &Past| matches!(it, Past::Acted(at) if *at <= since);
            let forgot = |it: &Past| matches!(it, Past::Forgot(at) if *at <= since);
            let all = || places.iter().flat_map(|(past, _)| past);
            if all().any(acted) {
                prop_assert_ne!(&verdict, &StartVerdict::Stands);
            }
            // The other way: where nothing happened and nobody forgot, it is made good.
            if !all().any(|it| acted(it) || forgot(it)) {
                prop_assert_eq!(verdict, StartVerdict::Stands);
            }
        }

        /// One place that can't tell is enough, and none makes up for another.
        #[test]
        fn every_place_has_to_say_it(since in 0..150_u64, silent in 0..3_usize, heard_later: bool) {
            let since = Duration::from_secs(since);
            let memory = PlaceMemory { noted_for: Duration::from_secs(1000), last: None };
            let mut words = vec![("h", PlaceWord::Memory(memory)); 3];
            prop_assert_eq!(StartVerdict::of(since, &words), StartVerdict::Stands);
            words[silent].1 = match heard_later {
                true => PlaceWord::Unheard("does not answer".to_owned()),
                false => PlaceWord::NoMemory("runs the C daemon".to_owned()),
            };
            let is_unheard = matches!(StartVerdict::of(since, &words), StartVerdict::Unheard(_));
            let is_untold = matches!(StartVerdict::of(since, &words), StartVerdict::Untold(_));
            prop_assert_eq!((is_unheard, is_untold), (heard_later, !heard_later));
        }
    }
}
