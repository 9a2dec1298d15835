// SPDX-License-Identifier: GPL-2.0-or-later
//! This host's own domains, as the other hosts are to know them.
//!
//! One task for each hypervisor follows libvirt's events. The task reads the domains that they name, and all
//! domains after each connection. The domains of several hypervisors are merged here. Changes go to the
//! publisher; no request comes here. This module must never answer for a domain: a published state may be a
//! moment old.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libvirt_host::{Connection, Domain, DomainRecord, Error, ErrorKind, State, Uuid};

use crate::hypervisor::Hypervisor;
use crate::hypervisor::follow::{DomainFollower, HypervisorReading, follow};
use crate::util::locks::lock;

/// Interval at which "seen to go off here" is checked again.
const REFRESH: Duration = Duration::from_secs(30);

/// A domain of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OwnDomain {
    pub(crate) name: String,
    pub(crate) power: OwnPower,
}

/// Power of an own domain. Of several hypervisors the one with the last of these counts: a definition can be
/// started, a name alone can't.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum OwnPower {
    /// Seen to go off here a short while ago, without a definition left: its name is known for a while.
    Gone,
    /// Defined, and the machine migrated away by libvirt's word.
    Away,
    /// Defined and not on here; the domain may be on elsewhere.
    Resting,
    /// On. Every state that is not off counts as on.
    On,
}

/// Change of a domain: its present state, or none if it is gone.
pub(crate) type OwnChange = (Uuid, Option<OwnDomain>);

/// Reading of one hypervisor, as the other hosts are to know it.
pub(crate) struct OwnReading {
    pub(crate) changes: Vec<OwnChange>,
    /// True for the first one of that hypervisor.
    pub(crate) is_first: bool,
    /// All hypervisors have been read by now.
    pub(crate) is_complete: bool,
}

/// The domains of all hypervisors of this host.
pub(crate) struct OwnDomains {
    state: Mutex<MergedDomains>,
    publish: Box<dyn Fn(OwnReading) + Send + Sync>,
}

#[derive(Default)]
struct MergedDomains {
    /// Domains of each hypervisor.
    by_hypervisor: Vec<HashMap<Uuid, OwnDomain>>,
    /// True for each hypervisor that was read.
    is_read: Vec<bool>,
    /// Published domains.
    merged: BTreeMap<Uuid, OwnDomain>,
}

impl OwnDomains {
    /// Follows the hypervisors for ever. `publish` gets every reading that changes something, in order, one
    /// call at a time. It must not wait and not call back. Must run inside the runtime.
    pub(crate) fn follow(
        hypervisors: &[Arc<Hypervisor>],
        publish: impl Fn(OwnReading) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let by_hypervisor = hypervisors.iter().map(|_| HashMap::new()).collect();
        let is_read = hypervisors.iter().map(|_| false).collect();
        let state = MergedDomains { by_hypervisor, is_read, merged: BTreeMap::new() };
        let this = Arc::new(Self { state: Mutex::new(state), publish: Box::new(publish) });
        for (place, hypervisor) in hypervisors.iter().enumerate() {
            let own = Arc::clone(&this);
            follow(hypervisor, Arc::new(OwnFollower { own, place, hypervisor: Arc::clone(hypervisor) }));
        }
        this
    }

    /// Takes a reading of the hypervisor at `place`.
    fn take_reading(&self, place: usize, reading: HypervisorReading<OwnDomain>) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let is_complete = matches!(reading, HypervisorReading::Everything(_));
        let is_first = is_complete && !std::mem::replace(&mut state.is_read[place], true);
        let changed = reading.apply_to(&mut state.by_hypervisor[place], |uuid| uuid);
        let changes = state.merge(changed.into_iter().collect());
        if !changes.is_empty() || is_first {
            // Under the lock: changes of two hypervisors must not overtake each other.
            let is_complete = state.is_read.iter().all(|it| *it);
            (self.publish)(OwnReading { changes, is_first, is_complete });
        }
    }
}

impl MergedDomains {
    fn merge(&mut self, touched: BTreeSet<Uuid>) -> Vec<OwnChange> {
        let mut changes = Vec::new();
        for uuid in touched {
            let now =
                self.by_hypervisor.iter().filter_map(|it| it.get(&uuid)).max_by_key(|it| it.power).cloned();
            if self.merged.get(&uuid) != now.as_ref() {
                match &now {
                    Some(own) => drop(self.merged.insert(uuid, own.clone())),
                    None => drop(self.merged.remove(&uuid)),
                }
                changes.push((uuid, now));
            }
        }
        changes
    }
}

/// Follower of one of the hypervisors.
struct OwnFollower {
    own: Arc<OwnDomains>,
    place: usize,
    hypervisor: Arc<Hypervisor>,
}

impl DomainFollower for OwnFollower {
    type Domain = OwnDomain;
    const BEYOND_LIMIT: &'static str = "the other hosts are not told of the rest";

    fn read_listed(&self, connection: &Connection, record: DomainRecord) -> Result<Option<OwnDomain>, Error> {
        Ok(match record.state {
            State::MovedAway => Some(OwnDomain { name: record.name, power: OwnPower::Away }),
            // A crashed domain may be gone: only the domain itself tells.
            State::Crashed => self.read_one(connection, record.uuid)?,
            State::ShutOff => Some(OwnDomain { name: record.name, power: OwnPower::Resting }),
            _ => Some(OwnDomain { name: record.name, power: OwnPower::On }),
        })
    }

    /// Reads one domain; none if it is gone and was not seen to go off here.
    fn read_one(&self, connection: &Connection, uuid: Uuid) -> Result<Option<OwnDomain>, Error> {
        let seen = |domain: &Domain| Ok((domain.state()?, domain.is_active()?));
        let Some(domain) = connection.domain_by_uuid(uuid)? else { return Ok(gone(&self.hypervisor, uuid)) };
        match seen(&domain) {
            Ok((State::MovedAway, _)) => {
                Ok(Some(OwnDomain { name: domain.name().to_owned(), power: OwnPower::Away }))
            }
            Ok((_, true)) => Ok(Some(OwnDomain { name: domain.name().to_owned(), power: OwnPower::On })),
            Ok((_, false)) => {
                Ok(Some(OwnDomain { name: domain.name().to_owned(), power: OwnPower::Resting }))
            }
            Err(Error { kind: ErrorKind::NoDomain, .. }) => Ok(gone(&self.hypervisor, uuid)),
            Err(error) => Err(error),
        }
    }

    fn update(&self, reading: HypervisorReading<OwnDomain>) {
        self.own.take_reading(self.place, reading);
    }

    /// Waits until "seen to go off here" has to be checked again.
    async fn until_stale(&self) -> HashSet<Uuid> {
        tokio::time::sleep(REFRESH).await;
        let state = lock(&self.own.state);
        let seen = state.by_hypervisor[self.place].iter().filter(|(_, own)| own.power == OwnPower::Gone);
        seen.map(|(uuid, _)| *uuid).collect()
    }
}

/// A transient domain leaves no definition when it goes off.
fn gone(memory: &Hypervisor, uuid: Uuid) -> Option<OwnDomain> {
    let (_, name) = memory.ended(Some(uuid), None)?;
    Some(OwnDomain { name, power: OwnPower::Gone })
}
