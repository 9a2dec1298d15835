// SPDX-License-Identifier: GPL-2.0-or-later
//! Orders of daemons that left the group in the middle of them: each still holds up what conflicts with it.
//!
//! A daemon that is killed tells no end of its work, and its hypervisor or device may carry the last order
//! out after it. So each member that knew of the order keeps the claim, as if it carried the claim out for
//! its asker. It gives the claim up when a daemon of that host has told what it left, when the target was
//! seen off, or after a limited time. Pure: time and limits are parameters. [`super::claims`] owns the table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::message::{ActingClaim, ClaimMessage, InFlightClaim, Member};

/// Orders that are kept one by one. Further ones count as one order about which nothing is known.
const ORPHAN_LIMIT: usize = 64;
/// Bit that tells the number of a kept claim from the number of any ask; numbers begin far below.
const OWN_WORK: u64 = 1 << 63;
/// Target of an order about which nothing is known: no domain has this name.
const UNKNOWN_TARGET: &str = "unknown";

/// Terms on which an orphaned order is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OrphanTerms {
    /// Longest time after which the order can take effect no more.
    pub limit: Duration,
    /// The order is over once its target was seen off.
    pub ends_with_off: bool,
}

/// Order of a daemon that is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OrphanOrder {
    pub(super) asker: Member,
    /// Number of the ask, or of the claim with [`OWN_WORK`].
    pub(super) ask: u64,
    /// Daemon that gave the order; none if another member kept the order for it.
    pub(super) by: Option<Member>,
    pub(super) claim: ClaimMessage,
}

impl OrphanOrder {
    /// Returns the order of an asker, which no other host was asked to carry out.
    pub(super) fn of_asker(asker: Member, claim: &ClaimMessage) -> Self {
        Self { asker, ask: claim.id | OWN_WORK, by: Some(asker), claim: claim.clone() }
    }
}

/// Orphaned orders that this host keeps.
#[derive(Debug, Default)]
pub(super) struct OrphanTable(BTreeMap<(Member, u64), KeptOrder>);

#[derive(Debug)]
struct KeptOrder {
    by: Option<Member>,
    claim: ClaimMessage,
    /// End of the order's time, and whether a look that sees the target off ends the order. None until the
    /// first [`OrphanTable::expire`].
    terms: Option<(Instant, bool)>,
}

impl OrphanTable {
    /// Keeps these orders. One that is kept already is not kept for longer.
    pub(super) fn adopt(&mut self, orders: Vec<OrphanOrder>) {
        for order in orders {
            let OrphanOrder { asker, mut ask, by, mut claim } = order;
            if self.0.len() >= ORPHAN_LIMIT && !self.0.contains_key(&(asker, ask)) {
                // One for all of them, which any other may conflict with.
                (ask, claim.id) = (u64::MAX, u64::MAX);
                (claim.target, claim.source, claim.peer) = (UNKNOWN_TARGET.to_owned(), None, None);
                (claim.possible, claim.name) = (None, None);
            }
            self.0.entry((asker, ask)).or_insert(KeptOrder { by, claim, terms: None });
        }
    }

    /// Ends the orders whose time is over, and sets the time of new ones. Returns those that ended.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        terms: &impl Fn(&str, Option<Member>) -> OrphanTerms,
    ) -> Vec<(Member, u64, u64)> {
        for order in self.0.values_mut().filter(|it| it.terms.is_none()) {
            let OrphanTerms { limit, ends_with_off } = terms(&order.claim.target, order.by);
            order.terms = Some((now + limit, ends_with_off));
        }
        self.end(|it| it.terms.is_some_and(|(until, _)| now >= until))
    }

    /// Ends the orders of a daemon, or of an earlier one of its host, which this one has told of.
    pub(super) fn told_by(&mut self, member: Member, tells_earlier: bool) -> Vec<(Member, u64, u64)> {
        let is_told = |by: Member| by == member || tells_earlier && by.node == member.node;
        self.end(|it| it.by.is_some_and(is_told))
    }

    /// Ends the orders that are over once their target was seen off.
    pub(super) fn seen_off(&mut self, victim: &str) -> Vec<(Member, u64, u64)> {
        self.end(|it| it.claim.target == victim && it.terms.is_some_and(|(_, ends_with_off)| ends_with_off))
    }

    /// Returns the orders as this host's sync tells of them.
    pub(super) fn kept(&self) -> impl Iterator<Item = ActingClaim> {
        self.0.iter().map(|((asker, ask), it)| ActingClaim {
            asker: *asker,
            ask: *ask,
            held: InFlightClaim {
                claim: it.claim.clone(),
                seen_off: false,
                lingers: true,
                answered: false,
                hangs: false,
            },
        })
    }

    /// Returns whether the order of this claim is kept.
    #[cfg(test)]
    pub(super) fn has(&self, (asker, claim): (Member, u64)) -> bool {
        self.0.iter().any(|((of, _), it)| *of == asker && it.claim.id == claim)
    }

    /// Returns the asker, the ask and the claim of each order that ended.
    fn end(&mut self, is_over: impl Fn(&KeptOrder) -> bool) -> Vec<(Member, u64, u64)> {
        let ended = self.0.iter().filter(|(_, it)| is_over(it));
        let ended: Vec<_> = ended.map(|((asker, ask), it)| (*asker, *ask, it.claim.id)).collect();
        self.0.retain(|_, it| !is_over(it));
        ended
    }
}
