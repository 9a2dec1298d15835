// SPDX-License-Identifier: GPL-2.0-or-later
//! Ends of claims: a member that stands still in the middle of a request holds nobody up for ever.
//!
//! Each claim says for how long its request may still give an order ([`ClaimMessage::term_ms`]); each daemon
//! looks at its own clock before it gives one. Whoever hears of the claim counts that time from when it hears
//! of it, so it ends later here than at the holder. Then comes the time in which an order takes effect. A
//! holder that lives and holds the claim on says so before its end ([`HostMessage::Holds`]). Of any other one
//! each member says that it is over ([`HostMessage::Overdue`]): that message, not a clock, ends the claim,
//! and it ends at the same place in the order at every host. A renewal that came before it keeps the claim.
//!
//! Pure: time and limits are parameters. [`super::claims`] owns the table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::message::{ClaimMessage, HostMessage, Member};

/// Extra time before a holder is passed over: for its last step from the look at the clock to the order.
const END_MARGIN: Duration = Duration::from_secs(2);

/// Claim as one of its holders holds it.
#[derive(Clone, Debug)]
pub(super) struct ClaimHold {
    /// Asker of the claim, and its number there.
    pub(super) key: (Member, u64),
    /// The holder.
    pub(super) by: Member,
    /// Number of the ask that the holder carries out; none of the asker itself.
    pub(super) ask: Option<u64>,
    pub(super) claim: ClaimMessage,
    pub(super) in_flight: bool,
    /// Number of times that the holder has said that it holds on.
    pub(super) renewed: u64,
}

/// Name of a hold: its claim, its holder, and the ask that the holder carries out.
type HoldName = ((Member, u64), Member, Option<u64>);

/// Ends of the claims in the replica, by this host's clock.
#[derive(Debug, Default)]
pub(super) struct ClaimEnds(BTreeMap<HoldName, ClaimTold>);

/// Hold as this host has heard of it.
#[derive(Debug)]
struct ClaimTold {
    /// Moment from which on the holder gives no order; later, of the last renewal.
    until: Instant,
    renewed: u64,
}

impl ClaimEnds {
    /// Forgets everything: the members have told their claims anew.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// Takes the time, and all holds there are. Returns what is to be said. `limit`: the time in which an
    /// order on this target takes effect.
    pub(super) fn due(
        &mut self,
        now: Instant,
        me: Member,
        holds: &[ClaimHold],
        limit: impl Fn(&str) -> Duration,
    ) -> Vec<HostMessage> {
        let name = |it: &ClaimHold| (it.key, it.by, it.ask);
        self.0.retain(|told, _| holds.iter().any(|it| name(it) == *told));
        let mut due = Vec::new();
        for it in holds {
            let term = it.claim.term_ms.map(Duration::from_millis);
            let Some(until) = term.and_then(|it| now.checked_add(it)) else { continue };
            let told = self.0.entry(name(it)).or_insert(ClaimTold { until, renewed: it.renewed });
            if told.renewed != it.renewed {
                *told = ClaimTold { until: told.until.max(now), renewed: it.renewed };
            }
            let effect = if it.in_flight { limit(&it.claim.target) } else { Duration::ZERO };
            let ((asker, id), ask, renewed) = (it.key, it.ask, it.renewed);
            if it.by != me && now >= told.until + effect + END_MARGIN {
                due.push(HostMessage::Overdue { member: it.by, asker, id, ask, renewed });
            } else if it.by == me && it.in_flight && now >= told.until + effect / 2 {
                due.push(HostMessage::Holds { asker, id, ask });
            }
        }
        due
    }
}
