// SPDX-License-Identifier: GPL-2.0-or-later
//! Proof that every machine with one name is off, where several domains bear it.
//!
//! Owns the question which of them were heard of, and the proof of each. A request by name is about each
//! machine that may run under the name. One that moved away from a place that is asked may run at one that is
//! not, so it needs the proof that it would need if it had been asked for by UUID. Pure; time is a parameter.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Doubt, Finding, ProvedOff, first_namesake, namesake_moved_away, open_move};
use crate::domain_id::DomainId;

/// Other domains with the name that are looked at for one answer. Each costs a question to all hosts.
pub const MAX_NAMESAKES: usize = 8;

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

    /// Takes note of the namesakes in looks at the domain itself.
    pub fn hear(&mut self, rounds: &[Vec<Finding>]) {
        for other in rounds.iter().flatten().flat_map(|it| &it.namesakes) {
            if *other != self.domain && self.heard.len() <= MAX_NAMESAKES {
                self.heard.entry(*other).or_insert(None);
            }
        }
    }

    /// Returns the next one to look at; none if all were looked at, or one is in doubt, or they are too many.
    pub fn next(&self) -> Option<DomainId> {
        let is_doubt = |it: &Option<Result<ProvedOff, Doubt>>| matches!(it, Some(Err(_)));
        if self.heard.len() > MAX_NAMESAKES || self.heard.values().any(is_doubt) {
            return None;
        }
        self.heard.iter().find(|(_, it)| it.is_none()).map(|(other, _)| *other)
    }

    /// Judges rounds of looks at one of them, and takes note of the namesakes that they name.
    pub fn judge(&mut self, other: DomainId, rounds: &[Vec<Finding>]) {
        self.hear(rounds);
        let proof = ProvedOff::of_one(self.asked, rounds).map_err(|doubt| match (open_move(rounds), doubt) {
            (Some(look), Doubt::CantTell(_)) => Doubt::Namesake(namesake_moved_away(look, other)),
            (_, doubt) => Doubt::Namesake(format!("another domain with this name, UUID {other}: {doubt}")),
        });
        self.heard.insert(other, Some(proof));
    }

    /// Judges rounds of looks at the domain itself: off is said if each domain with the name is.
    ///
    /// # Errors
    /// Reason why one of them may be on.
    pub fn prove(mut self, rounds: &[Vec<Finding>]) -> Result<ProvedOff, Doubt> {
        let mut proof = ProvedOff::of_one(self.asked, rounds)?;
        self.hear(rounds);
        if self.heard.len() > MAX_NAMESAKES {
            return Err(Doubt::Namesake(format!(
                "more than {MAX_NAMESAKES} other domains with this name moved away from hosts that were \
                 asked; \"It moved away\" in docs/truth.md says how these places forget them"
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

#[cfg(test)]
mod tests;
