// SPDX-License-Identifier: GPL-2.0-or-later
//! The question whether a machine that is powered off here runs at another host too.
//!
//! The other hosts are asked while libvirt ends the instance, which waits for none of them. An instance at
//! another host takes the proof from the end here. One that just starts there, or comes or goes, is asked
//! about again until it runs or is gone. Silence is no sign of a second instance. Owns the tasks of the
//! question, which end with it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::domain::ActionError;
use fence_core::evidence::{DomainSite, Doubt, Finding, Sight};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use crate::backend::elsewhere::{DomainQuestion, PeerHosts};

/// Time for which answers of other hosts are waited for after the instance here was seen to end. A host that
/// is well answers while libvirt ends the instance; one that is silent must not hold up a fence.
pub(super) const SECOND_INSTANCE_WAIT: Duration = Duration::from_millis(250);
/// Time for an instance that starts, comes or goes at another host to run or to be gone.
pub(super) const MOVING_WAIT: Duration = Duration::from_secs(2);
/// Age at which the answers are too old: libvirt took long to end the instance here, and one that was started
/// meanwhile is not in them.
pub(super) const ANSWER_AGE: Duration = Duration::from_millis(500);
/// Pause before such a host is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// Question to the other hosts, whether one of them has an instance.
pub(super) struct SecondInstance {
    hosts: Vec<Arc<dyn PeerHosts>>,
    question: DomainQuestion,
    until: Instant,
    /// When all were asked last.
    since: Instant,
    asked: JoinSet<(usize, Option<Instance>)>,
    /// Places with an instance that starts, comes or goes, by the part of the hosts that said so last.
    moving: BTreeMap<usize, DomainSite>,
    found: Option<Instance>,
}

/// Instance at another host.
#[derive(Clone, Debug)]
pub(super) enum Instance {
    /// There to stay.
    On(DomainSite),
    Moving(DomainSite),
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(place) => write!(f, "{place} has the domain on"),
            Self::Moving(place) => write!(f, "an instance starts, comes or goes at {place}"),
        }
    }
}

impl Instance {
    /// Returns the instance that these looks show, if any: one that is there to stay comes first.
    pub(super) fn in_looks(looks: &[Finding]) -> Option<Self> {
        let with = |sight: Sight| looks.iter().find(|it| it.sight == sight).map(|it| it.place.clone());
        with(Sight::On).map(Self::On).or_else(|| with(Sight::Moving).map(Self::Moving))
    }
}

impl SecondInstance {
    /// Asks, and returns at once.
    pub(super) fn seek(hosts: Vec<Arc<dyn PeerHosts>>, question: &DomainQuestion, until: Instant) -> Self {
        let question = DomainQuestion { seeks_instance: true, ..question.next_round() };
        let (asked, moving, since) = (JoinSet::new(), BTreeMap::new(), Instant::now());
        let mut second = Self { hosts, question, until, since, asked, moving, found: None };
        second.ask_all();
        second
    }

    fn ask_all(&mut self) {
        self.since = Instant::now();
        (0..self.hosts.len()).for_each(|it| self.ask(it, Duration::ZERO));
    }

    fn ask(&mut self, part: usize, pause: Duration) {
        let Some(hosts) = self.hosts.get(part).map(Arc::clone) else { return };
        let (question, until) = (self.question.next_round(), self.until);
        self.asked.spawn(async move {
            sleep(pause).await;
            (part, Instance::in_looks(&hosts.look(&question, until).await))
        });
    }

    /// Returns whether a host has said until now that it has an instance, or says so within
    /// [`SECOND_INSTANCE_WAIT`]; one that starts, comes or goes has [`MOVING_WAIT`] to be gone.
    pub(super) async fn is_found(&mut self) -> bool {
        if self.since.elapsed() > ANSWER_AGE {
            self.ask_all();
        }
        let now = Instant::now();
        while self.found.is_none() {
            let wait = if self.moving.is_empty() { SECOND_INSTANCE_WAIT } else { MOVING_WAIT };
            let limit = self.until.min(now + wait);
            match timeout_at(limit.into(), self.asked.join_next()).await {
                Ok(Some(Ok((_, Some(it @ Instance::On(_)))))) => self.found = Some(it),
                Ok(Some(Ok((part, Some(Instance::Moving(place)))))) => {
                    self.moving.insert(part, place);
                    self.ask(part, AGAIN);
                }
                Ok(Some(Ok((part, None)))) => drop(self.moving.remove(&part)),
                // The daemon ends.
                Ok(Some(Err(_))) => {}
                Ok(None) | Err(_) => break,
            }
        }
        let moves = self.moving.values().next().cloned().map(Instance::Moving);
        self.found = self.found.take().or(moves);
        self.found.is_some()
    }

    /// Returns the one that was found.
    pub(super) fn found(&self) -> Option<&Instance> {
        self.found.as_ref()
    }

    /// Returns why an off fails after which the places did not show the domain off: of a machine that ran
    /// here and at another host, with the next step; else the failure that is given.
    pub(super) fn failure(&self, doubt: &Doubt, otherwise: ActionError) -> ActionError {
        let (place, had) = match &self.found {
            Some(Instance::On(place)) => (place, "had the domain on as well"),
            Some(Instance::Moving(place)) => (place, "had an instance that starts, comes or goes"),
            None => return otherwise,
        };
        ActionError::Unavailable(format!(
            "the domain was powered off here, and {place} {had}: {doubt}. Ask for off again; the request \
             must reach {place} (with TCP: name that host in the request). Two instances may have damaged \
             the disks of the domain: look at these before the domain is started"
        ))
    }

    /// Returns why nobody can say what an off of a machine would do that runs there and at another host.
    pub(super) fn forecast(&self, at: &str) -> String {
        match &self.found {
            Some(it @ Instance::Moving(_)) => {
                format!("the domain is on at {at}, and {it}: an off is told when that one is gone")
            }
            Some(Instance::On(place)) => {
                format!("the domain is on at {at}, and at {place} as well: an off must reach both hosts")
            }
            None => format!("the domain is on at {at}"),
        }
    }
}
