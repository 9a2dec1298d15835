// SPDX-License-Identifier: GPL-2.0-or-later
//! Proof that every machine with one name is off, where several domains bear it.
//!
//! Owns the question which of them were heard of, and the proof of each. A request by name is about each
//! machine that may run under the name. One that moved away from a place that is asked may run at one that is
//! not, so it needs the proof that it would need if it had been asked for by UUID. Pure; time is a parameter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Doubt, Finding, ProvedOff, first_namesake, has_silence, namesake_moved_away, open_move};
use crate::domain_id::DomainId;

/// Other domains with the name that are looked at for one answer. Each costs a question to all hosts.
pub const MAX_NAMESAKES: usize = 8;
/// Time after which a host looks again in the background for a domain that moved away from it.
pub const PROOF_PAUSE: Duration = Duration::from_secs(30);
/// Domains that a host looks for in the background within [`PROOF_PAUSE`].
const MAX_PROVED: usize = 64;

/// Other domains with the name of one domain, and what was found of each.
#[derive(Debug)]
pub struct Namesakes {
    /// Domain that was asked about.
    domain: DomainId,
    /// Moment when the request came.
    asked: Instant,
    /// The other ones that a look named; none: not looked at yet.
    heard: BTreeMap<DomainId, Option<Result<ProvedOff, Doubt>>>,
}

impl Namesakes {
    /// Builds the question which other domains have the name of this one.
    pub fn of(domain: DomainId, asked: Instant) -> Self {
        Self { domain, asked, heard: BTreeMap::new() }
    }

    /// Takes the name itself into account: if it reads as the UUID of another domain, that one may be meant,
    /// whatever its own name is.
    pub fn hear_name(&mut self, name: &str) {
        if let Some(other) = meant_by_name(self.domain, name) {
            self.heard.entry(other).or_insert(None);
        }
    }

    /// Takes note of the namesakes in looks at the domain itself.
    pub fn hear(&mut self, rounds: &[Vec<Finding>]) {
        for other in rounds.iter().flatten().flat_map(|it| &it.namesakes) {
            if *other != self.domain && self.heard.len() <= MAX_NAMESAKES {
                self.heard.entry(*other).or_insert(None);
            }
        }
    }

    /// Returns the next one to look at; none if all were looked at, or one is in doubt, or enough were. Of
    /// too many some are looked at all the same: a host forgets the moves of those that it proves off.
    pub fn next(&self) -> Option<DomainId> {
        let is_doubt = |it: &Option<Result<ProvedOff, Doubt>>| matches!(it, Some(Err(_)));
        let looked_at = self.heard.values().filter(|it| it.is_some()).count();
        if looked_at >= MAX_NAMESAKES || self.heard.values().any(is_doubt) {
            return None;
        }
        self.heard.iter().find(|(_, it)| it.is_none()).map(|(other, _)| *other)
    }

    /// Judges rounds of looks at one of them, and takes note of the namesakes that they name. Returns the
    /// proof that this one is off, if it is.
    pub fn judge(&mut self, other: DomainId, rounds: &[Vec<Finding>]) -> Option<&ProvedOff> {
        self.hear(rounds);
        // A place that can't tell comes first: the machine may be there.
        let open = open_move(rounds).filter(|_| !has_silence(rounds));
        let proof = ProvedOff::of_one(self.asked, rounds).map_err(|doubt| match (open, doubt) {
            (Some(look), Doubt::CantTell(_)) => Doubt::Namesake(namesake_moved_away(look, other)),
            (_, doubt) => Doubt::Namesake(format!("another domain with this name, UUID {other}: {doubt}")),
        });
        let judged = self.heard.entry(other).insert_entry(Some(proof)).into_mut();
        judged.as_ref().and_then(|it| it.as_ref().ok())
    }

    /// Judges rounds of looks at the domain itself: off is said if each domain with the name is.
    ///
    /// # Errors
    /// Reason why one of them may be on.
    pub fn prove(mut self, rounds: &[Vec<Finding>]) -> Result<ProvedOff, Doubt> {
        let mut proof = ProvedOff::of_one(self.asked, rounds)?;
        self.hear(rounds);
        // What was found out of one says more than that there are others.
        if let Some(Err(doubt)) = self.heard.values().flatten().find(|it| it.is_err()) {
            return Err(doubt.clone());
        }
        if self.heard.len() > MAX_NAMESAKES {
            return Err(Doubt::Namesake(format!(
                "more than {MAX_NAMESAKES} other domains with this name moved away from hosts that were \
                 asked. This host has looked for some of them, and forgets the moves of those that are off: \
                 ask again in a moment. If this answer stays, \
                 \"It moved away\" in docs/truth.md says how these places forget the domains"
            )));
        }
        let not_seen = |other: DomainId| match first_namesake(rounds, |it| it == other) {
            Some((look, other)) => namesake_moved_away(look, other),
            None => format!("another domain with this name, UUID {other}, was not looked at"),
        };
        for (other, found) in self.heard {
            let found = found.unwrap_or_else(|| Err(Doubt::Namesake(not_seen(other))))?;
            proof.since = proof.since.min(found.since);
        }
        Ok(proof)
    }
}

/// Returns the other domain that is meant, too, by a name which reads as its UUID.
pub fn meant_by_name(domain: DomainId, name: &str) -> Option<DomainId> {
    DomainId::parse(name).filter(|it| *it != domain)
}

/// Domains that a host looks for in the background, because they moved away from it and share a name. Owns
/// which of them is whose turn: one turn at a time, and no domain again within [`PROOF_PAUSE`].
#[derive(Default, Debug)]
pub struct ProofTurns {
    is_busy: bool,
    /// Moment at which each was looked for.
    begun: BTreeMap<DomainId, Instant>,
}

impl ProofTurns {
    /// Begins a turn; without domains there is none, and nothing to [`end`](Self::end).
    pub fn begin(&mut self, others: impl IntoIterator<Item = DomainId>, now: Instant) -> Vec<DomainId> {
        self.begun.retain(|_, at| now.saturating_duration_since(*at) < PROOF_PAUSE);
        let room = MAX_PROVED.saturating_sub(self.begun.len()).min(MAX_NAMESAKES);
        if self.is_busy {
            return Vec::new();
        }
        let turn: Vec<_> = others.into_iter().filter(|it| !self.begun.contains_key(it)).take(room).collect();
        self.begun.extend(turn.iter().map(|it| (*it, now)));
        self.is_busy = !turn.is_empty();
        turn
    }

    /// Ends the turn.
    pub fn end(&mut self) {
        self.is_busy = false;
    }
}

#[cfg(test)]
mod tests;
