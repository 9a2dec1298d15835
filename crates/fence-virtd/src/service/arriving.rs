// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests that take a domain down, from their arrival until the queue has decided about them.
//!
//! A start that an earlier daemon owes gives way to such a request. While its domain is still looked for, the
//! queue does not know it. Owns their targets; holds up nothing itself.

use std::collections::HashMap;
use std::sync::Arc;

use fence_core::domain::{DomainId, DomainRef};
use fence_wire::{Action, Target};

use crate::util::locks::{Mutex, lock};

/// Targets of the requests that have arrived, by the requests' numbers.
#[derive(Debug, Default)]
pub(super) struct ArrivingRequests(Mutex<HashMap<u64, Target>>);

/// Note of one of them. Dropping it ends the arrival.
#[derive(Debug)]
pub(super) struct ArrivalNote {
    requests: Arc<ArrivingRequests>,
    id: u64,
}

impl ArrivingRequests {
    /// Notes a request, if it is one that takes a domain down.
    pub(super) fn note(self: &Arc<Self>, id: u64, action: Action, target: &Target) -> Option<ArrivalNote> {
        matches!(action, Action::Off | Action::Reboot).then(|| {
            lock(&self.0).insert(id, target.clone());
            ArrivalNote { requests: Arc::clone(self), id }
        })
    }

    /// Returns whether one of them may mean this domain.
    pub(super) fn may_mean(&self, domain: &DomainRef) -> bool {
        lock(&self.0).values().any(|it| may_mean(it, domain))
    }
}

/// Returns whether a target may mean this domain.
pub(super) fn may_mean(target: &Target, domain: &DomainRef) -> bool {
    let text = target.as_str();
    text == domain.name || target.is_cut_from(&domain.name) || DomainId::parse(text) == Some(domain.uuid)
}

impl Drop for ArrivalNote {
    fn drop(&mut self) {
        lock(&self.requests.0).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use fence_core::domain::{DomainHome, TargetKind};

    use super::*;

    #[test]
    fn a_request_that_takes_down_is_known_until_its_end() {
        let uuid = DomainId::from_bytes([7; 16]);
        let domain =
            DomainRef { name: "web".to_owned(), uuid, home: DomainHome::Here(0), by: TargetKind::Name };
        let requests = Arc::new(ArrivingRequests::default());
        let note = |id, action, text: &str| requests.note(id, action, &Target::new(text, false).unwrap());
        assert!(note(1, Action::On, "web").is_none() && note(2, Action::Status, "web").is_none());
        let other = note(3, Action::Off, "web1");
        assert!(other.is_some() && !requests.may_mean(&domain));
        for (action, text) in [(Action::Off, "web".to_owned()), (Action::Reboot, uuid.to_string())] {
            let noted = note(4, action, &text);
            assert!(requests.may_mean(&domain), "{text}");
            drop(noted);
            assert!(!requests.may_mean(&domain), "{text}");
        }
    }
}
