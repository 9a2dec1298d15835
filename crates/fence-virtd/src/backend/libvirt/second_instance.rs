// SPDX-License-Identifier: GPL-2.0-or-later
//! The question whether a machine that is powered off here runs at another host too.
//!
//! The other hosts are asked while libvirt ends the instance, which waits for none of them. Only a sure "on"
//! counts: then the end here proves nothing. Silence is no sign of a second instance. Owns the tasks of the
//! question, which end with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::domain::ActionError;
use fence_core::evidence::{DomainSite, Doubt, Finding, Sight};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::backend::elsewhere::{DomainQuestion, PeerHosts};

/// Time for which answers of other hosts are waited for after the instance here was seen to end. A host that
/// is well answers while libvirt ends the instance; one that is silent must not hold up a fence.
pub(super) const SECOND_INSTANCE_WAIT: Duration = Duration::from_millis(250);

/// Question to the other hosts, whether one of them has an instance.
pub(super) struct SecondInstance {
    asked: JoinSet<Option<DomainSite>>,
    /// Host that has one, or had one a moment ago.
    place: Option<DomainSite>,
}

impl SecondInstance {
    /// Asks, and returns at once.
    pub(super) fn seek(others: Vec<Arc<dyn PeerHosts>>, question: &DomainQuestion, until: Instant) -> Self {
        let question = DomainQuestion { seeks_instance: true, ..question.next_round() };
        let mut asked = JoinSet::new();
        for host in others {
            let question = question.clone();
            asked.spawn(async move { place_of_instance(host.look(&question, until).await) });
        }
        Self { asked, place: None }
    }

    /// Returns whether a host has said "on" until now, or says so within [`SECOND_INSTANCE_WAIT`].
    pub(super) async fn is_found(&mut self) -> bool {
        let until = Instant::now() + SECOND_INSTANCE_WAIT;
        while self.place.is_none() {
            match timeout_at(until.into(), self.asked.join_next()).await {
                Ok(Some(said)) => self.place = said.unwrap_or_default(),
                Ok(None) | Err(_) => break,
            }
        }
        self.place.is_some()
    }

    /// Returns why an off fails after which the places did not show the domain off: of a machine that ran
    /// here and at another host, with the next step; else the failure that is given.
    pub(super) fn failure(&self, doubt: &Doubt, otherwise: ActionError) -> ActionError {
        let Some(place) = &self.place else { return otherwise };
        ActionError::Unavailable(format!(
            "the domain was powered off here, and {place} had the domain on as well: {doubt}. Ask for off \
             again; the request must reach {place} (with TCP: name that host in the request). Two instances \
             may have damaged the disks of the domain: look at these before the domain is started"
        ))
    }

    /// Returns why nobody can say what an off of a machine would do that runs there and at another host.
    pub(super) fn forecast(&self, at: &str) -> String {
        let place = self.place.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("the domain is on at {at}, and at {place} as well: an off must reach both hosts")
    }
}

fn place_of_instance(found: Vec<Finding>) -> Option<DomainSite> {
    found.into_iter().find(|it| it.sight == Sight::On).map(|it| it.place)
}
