// SPDX-License-Identifier: GPL-2.0-or-later
//! Parts that the random schedules of the arbiter and of the cluster's claims share: guests that shoot each
//! other, and the rule that one survives.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::arbiter::{ArbitratedAction, RequestSource};

/// Kind of a request's action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    On,
    Off,
    Reboot,
}

impl Kind {
    /// Returns the action on this target, as the arbiter names it.
    pub(crate) fn work(self, target: String) -> ArbitratedAction {
        match self {
            Self::On => ArbitratedAction::On(target),
            Self::Off => ArbitratedAction::Off(target),
            Self::Reboot => ArbitratedAction::Reboot(target),
        }
    }
}

/// Power of all guests, and the guest that took each of them down.
pub(crate) struct Guests {
    /// Number of the present start of each guest; none: off.
    pub(crate) up: Vec<Option<u32>>,
    starts: Vec<u32>,
    /// Guest that took each guest down last.
    killer: Vec<Option<usize>>,
}

impl Guests {
    /// Begins with all guests on.
    pub(crate) fn new(count: usize) -> Self {
        Self { up: vec![Some(0); count], starts: vec![0; count], killer: vec![None; count] }
    }

    pub(crate) fn power_on(&mut self, guest: usize) {
        if self.up[guest].is_none() {
            self.starts[guest] += 1;
            self.up[guest] = Some(self.starts[guest]);
        }
    }

    /// Returns true if the guest was on. `by` may be no guest.
    pub(crate) fn power_off(&mut self, guest: usize, by: usize) -> bool {
        let was_on = self.up[guest].take().is_some();
        if was_on {
            self.killer[guest] = Some(by);
        }
        was_on
    }

    /// Asserts that there is no circle of guests that took each other down, and are all down.
    pub(crate) fn assert_a_survivor(&self) {
        for guest in 0..self.up.len() {
            let mut seen = BTreeSet::new();
            let mut at = guest;
            while self.up[at].is_none() && seen.insert(at) {
                let killer = self.killer[at].filter(|it| *it < self.up.len()).unwrap_or(at);
                assert!(killer != guest || killer == at, "all of {seen:?} are down, by each other");
                if killer == at {
                    break;
                }
                at = killer;
            }
        }
    }
}

/// Returns the UUID of a guest.
pub(crate) fn uuid(guest: usize) -> String {
    format!("domain {guest}")
}

/// Returns the source of a guest's request.
pub(crate) fn source(is_known: bool, guest: usize) -> RequestSource {
    if is_known { RequestSource::Known(uuid(guest)) } else { RequestSource::Unknown }
}

/// Kinds of requests, by weight; `on` has the weight 1.
pub(crate) fn kinds(off: u32, reboot: u32) -> impl Strategy<Value = Kind> {
    prop_oneof![off => Just(Kind::Off), reboot => Just(Kind::Reboot), 1 => Just(Kind::On)]
}

/// Returns the settings with this number of schedules, or that of `PROPTEST_CASES`.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|it| it.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
