// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains that were seen on a hypervisor.
//!
//! One question needs this: did a domain that is no longer defined go off here, or did it move away? Domains
//! are recorded from lifecycle events and from the list at each new connection. A power-off counts as
//! evidence only while the events are watched without a gap.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libvirt_host::{LifecycleEvent, LifecycleKind, Uuid};

/// Domains that are remembered.
const MAX_REMEMBERED: usize = 16_384;
/// Time for which a power-off counts for a domain that left no definition. After that the domain may well
/// live elsewhere.
const POWER_OFF_TTL: Duration = Duration::from_secs(600);

/// Domains that were seen on one hypervisor, by UUID.
#[derive(Default)]
pub(super) struct SeenDomains {
    domains: HashMap<Uuid, SeenDomain>,
}

struct SeenDomain {
    name: String,
    /// Time when the domain was last seen to go off for good: not moved to another host, not saved.
    went_off: Option<Instant>,
}

impl SeenDomains {
    /// Returns whether the domain was present when it was last seen.
    pub(super) fn is_present(&self, uuid: Uuid) -> bool {
        self.domains.get(&uuid).is_some_and(|it| it.went_off.is_none())
    }

    /// Returns whether another domain with this name was present when it was last seen.
    pub(super) fn is_another_present(&self, name: &str, uuid: Uuid) -> bool {
        self.domains
            .iter()
            .any(|(other, seen)| *other != uuid && seen.name == name && seen.went_off.is_none())
    }

    /// Returns whether a domain that was seen, gone or not, has the property.
    pub(super) fn any(&self, has_property: impl Fn(Uuid, &str) -> bool) -> bool {
        self.domains.iter().any(|(uuid, seen)| has_property(*uuid, &seen.name))
    }

    /// Returns the one domain with this UUID, or else with this name, if its power-off still counts.
    pub(super) fn powered_off(&self, uuid: Option<Uuid>, name: Option<&str>) -> Option<(Uuid, String)> {
        let (uuid, seen) = match uuid.and_then(|it| self.domains.get_key_value(&it)) {
            Some(found) => found,
            None => {
                let name = name?;
                let mut called = self.domains.iter().filter(|(_, it)| it.name == name);
                let found = called.next()?;
                if called.next().is_some() {
                    return None;
                }
                found
            }
        };
        let went_off = seen.went_off?;
        (went_off.elapsed() < POWER_OFF_TTL).then(|| (*uuid, seen.name.clone()))
    }

    /// Records a power-off by an action of ours.
    pub(super) fn record_power_off(&mut self, uuid: Uuid) {
        if let Some(seen) = self.domains.get_mut(&uuid) {
            seen.went_off = Some(Instant::now());
        }
    }

    pub(super) fn record_present(&mut self, uuid: Uuid, name: &str) {
        if self.domains.len() >= MAX_REMEMBERED && !self.domains.contains_key(&uuid) {
            self.forget_some();
        }
        self.domains.insert(uuid, SeenDomain { name: name.to_owned(), went_off: None });
    }

    pub(super) fn record_event(&mut self, event: &LifecycleEvent) {
        // VIR_DOMAIN_EVENT_STOPPED_*: SHUTDOWN 0, DESTROYED 1, CRASHED 2, MIGRATED 3, SAVED 4, FAILED 5,
        // FROM_SNAPSHOT 6. A domain that was migrated or saved may be on elsewhere.
        let for_good = matches!(event.detail, 0 | 1 | 2 | 5);
        match event.kind {
            LifecycleKind::Stopped => {
                if !self.domains.contains_key(&event.uuid) {
                    self.record_present(event.uuid, &event.name);
                }
                if let Some(seen) = self.domains.get_mut(&event.uuid) {
                    seen.went_off = for_good.then(Instant::now);
                }
            }
            // These events say nothing about power.
            LifecycleKind::Undefined | LifecycleKind::DevicesChanged => {}
            _ => self.record_present(event.uuid, &event.name),
        }
    }

    /// Forgets all power-offs after a gap in the events: a domain that is gone may have gone anywhere.
    pub(super) fn forget_power_offs(&mut self) {
        for seen in self.domains.values_mut() {
            seen.went_off = None;
        }
    }

    fn forget_some(&mut self) {
        self.domains.retain(|_, it| it.went_off.is_none());
        if self.domains.len() >= MAX_REMEMBERED {
            self.domains.clear();
        }
    }
}
