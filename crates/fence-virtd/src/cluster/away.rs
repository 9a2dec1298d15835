// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains that moved away from this node, are at none, and can't be called off.
//!
//! The node where such a domain went to was taken out, or has forgotten its end. Requests of the domain fail,
//! and nobody asks before one is needed: so this node looks for them in the background and writes them down
//! for `--check`. No decision depends on that. Must never have a node proved down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::cluster::directory::DirectoryAnswer;
use fence_core::domain::DomainId;
use fence_core::evidence::namesakes::{MAX_NAMESAKES, PROOF_PAUSE};
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::state::Cluster;
use crate::nodes::{AwayDomain, NodeStore};
use crate::util::backoff::OncePerReason;

/// Pause between two looks at the moves of this node.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks for domains that moved away, by domain: when each was looked for last, and whether it was out of
/// sight.
#[derive(Default)]
struct AwayLooks(BTreeMap<DomainId, (Instant, bool)>);

impl AwayLooks {
    /// Takes the domains that may be away now. Returns those that are to be looked for.
    fn due(&mut self, away: &BTreeMap<DomainId, String>, now: Instant) -> Vec<DomainId> {
        self.0.retain(|uuid, _| away.contains_key(uuid));
        let is_due = |uuid: &&DomainId| {
            self.0.get(uuid).is_none_or(|(at, _)| now.saturating_duration_since(*at) >= PROOF_PAUSE)
        };
        away.keys().filter(is_due).take(MAX_NAMESAKES).copied().collect()
    }

    fn note(&mut self, uuid: DomainId, at: Instant, is_out_of_sight: bool) {
        self.0.insert(uuid, (at, is_out_of_sight));
    }

    /// Returns the domains that were out of sight when they were looked for last.
    fn out_of_sight(&self, away: BTreeMap<DomainId, String>) -> Vec<AwayDomain> {
        let is_lost = |uuid: &DomainId| self.0.get(uuid).is_some_and(|(_, is_lost)| *is_lost);
        let lost = away.into_iter().filter(|(uuid, _)| is_lost(uuid));
        lost.map(|(uuid, name)| AwayDomain { uuid, name }).collect()
    }
}

impl Cluster {
    /// Looks for domains that moved away from this node, and writes down those that can't be called off.
    /// Never returns.
    pub(super) async fn keep_away(self: Arc<Self>, store: NodeStore) {
        let (mut looks, mut written, mut logged) = (AwayLooks::default(), None, OncePerReason::default());
        loop {
            for uuid in looks.due(&self.perhaps_away(), Instant::now()) {
                let is_lost = self.local.is_out_of_sight(uuid).await;
                debug!(domain = %uuid, is_lost, "looked for a domain that left this node");
                looks.note(uuid, Instant::now(), is_lost);
            }
            let lost = looks.out_of_sight(self.perhaps_away());
            if written.as_ref() != Some(&lost) {
                let (store, new) = (store.clone(), lost.clone());
                match spawn_blocking(move || store.write_away(&new)).await {
                    Ok(Ok(())) => {
                        written = Some(lost);
                        logged.forget();
                    }
                    Ok(Err(error)) if logged.is_new(&error.to_string()) => {
                        warn!("can't keep domains that moved away in the state directory: {error}");
                    }
                    Ok(Err(_)) => {}
                    Err(_) => return,
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Returns the domains that moved away from here, and are on at no node as far as is known. None while a
    /// node is not heard: each may be on there.
    fn perhaps_away(&self) -> BTreeMap<DomainId, String> {
        let mut away = self.local.away_from_here();
        let state = self.state();
        if state.me.is_none() || state.nodes.is_empty() || !state.missing().is_empty() {
            return BTreeMap::new();
        }
        let is_known = |uuid: &DomainId| {
            matches!(
                state.directory.find(&uuid.to_string()),
                DirectoryAnswer::On(_) | DirectoryAnswer::Lost(_) | DirectoryAnswer::LostOff(_)
            )
        };
        away.retain(|uuid, _| !is_known(uuid));
        away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_domain_is_looked_for_again_after_a_pause() {
        let (start, id) = (Instant::now(), |it: u8| DomainId::from_bytes([it; 16]));
        let away = |ids: &[u8]| ids.iter().map(|it| (id(*it), format!("d{it}"))).collect::<BTreeMap<_, _>>();
        let mut looks = AwayLooks::default();
        assert_eq!(looks.due(&away(&[1, 2]), start), [id(1), id(2)]);
        looks.note(id(1), start, true);
        looks.note(id(2), start, false);
        assert!(looks.due(&away(&[1, 2]), start + PAUSE).is_empty());
        let lost = looks.out_of_sight(away(&[1, 2, 3]));
        assert_eq!(lost, [AwayDomain { uuid: id(1), name: "d1".to_owned() }]);
        assert_eq!(looks.due(&away(&[1, 2]), start + PROOF_PAUSE), [id(1), id(2)]);
        // It was seen meanwhile, and went again: by a node that was taken out, perhaps.
        assert!(looks.due(&away(&[2]), start + PAUSE).is_empty());
        assert_eq!(looks.due(&away(&[1, 2]), start + PAUSE), [id(1)]);
        let many: Vec<u8> = (3..=30).collect();
        assert_eq!(looks.due(&away(&many), start).len(), MAX_NAMESAKES);
    }
}
