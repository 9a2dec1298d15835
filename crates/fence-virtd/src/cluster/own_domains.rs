// SPDX-License-Identifier: GPL-2.0-or-later
//! This host's own domains, as the other hosts are to know them.
//!
//! One task for each hypervisor follows libvirt's events and looks at the domains that they name, and at all
//! of them after each connection. What several hypervisors have is merged here. Changes go to whoever
//! publishes them; no request comes here. It must never answer for a domain: what is told may be a moment
//! old.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libvirt_host::{Connection, Domain, Error, ErrorKind, State, Uuid};
use tokio::sync::broadcast;
use tracing::{debug, warn};

use crate::hypervisor::Hypervisor;
use crate::hypervisor::news::{DomainEvent, RefreshScope};
use crate::util::locks::lock;

/// Time for one reading of the domains. With thousands of domains it takes seconds.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Pause before a failed reading is repeated.
const AGAIN: Duration = Duration::from_secs(2);
/// Interval at which "seen to go off here" is checked again.
const REFRESH: Duration = Duration::from_secs(30);
/// Most domains of one hypervisor that are published.
const MAX_DOMAINS: usize = 16_384;

/// A domain of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OwnDomain {
    pub(crate) name: String,
    pub(crate) power: OwnPower,
}

/// Power of an own domain, least certain first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum OwnPower {
    /// Defined and not on here; the domain may be on elsewhere.
    Resting,
    /// Seen to go off here a short while ago, without a definition left.
    Gone,
    /// Seen to go off here a short while ago.
    WentOff,
    /// On. Every state that is not off counts as on.
    On,
}

/// Change of a domain: its present state, or none if it is gone.
pub(crate) type OwnChange = (Uuid, Option<OwnDomain>);

/// The domains of all hypervisors of this host.
pub(crate) struct OwnDomains {
    state: Mutex<MergedDomains>,
    publish: Box<dyn Fn(Vec<OwnChange>, bool) + Send + Sync>,
}

#[derive(Default)]
struct MergedDomains {
    /// Domains of each hypervisor.
    seen: Vec<BTreeMap<Uuid, OwnDomain>>,
    /// True for each hypervisor that was read.
    looked_at: Vec<bool>,
    /// Published domains.
    merged: BTreeMap<Uuid, OwnDomain>,
}

impl OwnDomains {
    /// Follows the hypervisors for ever. `publish` is told every change, in order, one call at a time, and
    /// whether all hypervisors have been looked at by now; it must not wait and not call back. Must run
    /// inside the runtime.
    pub(crate) fn follow(
        hypervisors: &[Arc<Hypervisor>],
        publish: impl Fn(Vec<OwnChange>, bool) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let seen = hypervisors.iter().map(|_| BTreeMap::new()).collect();
        let looked_at = hypervisors.iter().map(|_| false).collect();
        let state = MergedDomains { seen, looked_at, merged: BTreeMap::new() };
        let this = Arc::new(Self { state: Mutex::new(state), publish: Box::new(publish) });
        for (place, hypervisor) in hypervisors.iter().enumerate() {
            // Before the first look, so that nothing falls between.
            let news = hypervisor.news();
            tokio::spawn(keep(Arc::clone(&this), place, Arc::clone(hypervisor), news));
        }
        this
    }

    /// Takes a reading of the hypervisor at `place`.
    fn saw(&self, place: usize, seen: OwnReading) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let mine = &mut state.seen[place];
        let mut is_first = false;
        let touched: BTreeSet<Uuid> = match seen {
            OwnReading::Everything(all) => {
                let touched = mine.keys().chain(all.keys()).copied().collect();
                *mine = all;
                is_first = !std::mem::replace(&mut state.looked_at[place], true);
                touched
            }
            OwnReading::These(domains) => {
                for (uuid, own) in &domains {
                    match own {
                        Some(own) if mine.len() < MAX_DOMAINS || mine.contains_key(uuid) => {
                            mine.insert(*uuid, own.clone());
                        }
                        Some(_) => {}
                        None => drop(mine.remove(uuid)),
                    }
                }
                domains.into_iter().map(|(uuid, _)| uuid).collect()
            }
        };
        let changes = state.merge(touched);
        if !changes.is_empty() || is_first {
            // Under the lock: changes of two hypervisors must not overtake each other.
            (self.publish)(changes, state.looked_at.iter().all(|it| *it));
        }
    }
}

impl MergedDomains {
    fn merge(&mut self, touched: BTreeSet<Uuid>) -> Vec<OwnChange> {
        let mut changes = Vec::new();
        for uuid in touched {
            let now = self.seen.iter().filter_map(|it| it.get(&uuid)).max_by_key(|it| it.power).cloned();
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

/// Result of reading the domains of a hypervisor.
enum OwnReading {
    Everything(BTreeMap<Uuid, OwnDomain>),
    These(Vec<OwnChange>),
}

async fn keep(
    own: Arc<OwnDomains>,
    place: usize,
    hypervisor: Arc<Hypervisor>,
    mut news: broadcast::Receiver<DomainEvent>,
) {
    let mut task = RefreshScope::Everything;
    loop {
        match look(&hypervisor, &task).await {
            Ok(seen) => own.saw(place, seen),
            Err(why) => {
                debug!(uri = hypervisor.uri(), "can't look at the domains: {why}");
                task = RefreshScope::after_failure(&mut news, AGAIN).await;
                continue;
            }
        }
        task = tokio::select! {
            task = RefreshScope::next(&mut news) => task,
            () = tokio::time::sleep(REFRESH) => {
                let state = lock(&own.state);
                let went_off = |own: &OwnDomain| matches!(own.power, OwnPower::WentOff | OwnPower::Gone);
                let seen = state.seen[place].iter().filter(|(_, own)| went_off(own));
                RefreshScope::These(seen.map(|(uuid, _)| *uuid).collect())
            }
        };
    }
}

async fn look(hypervisor: &Arc<Hypervisor>, task: &RefreshScope) -> Result<OwnReading, String> {
    let until = Instant::now() + LOOK_LIMIT;
    let memory = Arc::clone(hypervisor);
    let seen = match task {
        RefreshScope::Everything => {
            hypervisor.ask(until, move |c| all(c, &memory)).await.map(OwnReading::Everything)
        }
        RefreshScope::These(uuids) => {
            let wanted: Vec<Uuid> = uuids.iter().copied().collect();
            let these = move |c: &Connection| {
                wanted.iter().map(|it| Ok((*it, one(c, &memory, *it)?))).collect::<Result<_, _>>()
            };
            hypervisor.ask(until, these).await.map(OwnReading::These)
        }
    };
    seen.map_err(|error| error.to_string())
}

fn all(connection: &Connection, memory: &Hypervisor) -> Result<BTreeMap<Uuid, OwnDomain>, Error> {
    let mut all = BTreeMap::new();
    for record in connection.domains()? {
        if all.len() >= MAX_DOMAINS {
            warn!(
                uri = connection.uri(),
                "more than {MAX_DOMAINS} domains; the other hosts are not told of the rest"
            );
            break;
        }
        let own = match record.state {
            State::MovedAway => continue,
            // Whether anything of it is left is to be asked.
            State::Crashed => one(connection, memory, record.uuid)?,
            State::ShutOff => Some(off(memory, record.uuid, record.name)),
            _ => Some(OwnDomain { name: record.name, power: OwnPower::On }),
        };
        if let Some(own) = own {
            all.insert(record.uuid, own);
        }
    }
    Ok(all)
}

/// Reads one domain; none if it is gone and was not seen to go off here.
fn one(connection: &Connection, memory: &Hypervisor, uuid: Uuid) -> Result<Option<OwnDomain>, Error> {
    let seen = |domain: &Domain| Ok((domain.state()?, domain.is_active()?));
    let Some(domain) = connection.domain_by_uuid(uuid)? else { return Ok(gone(memory, uuid)) };
    match seen(&domain) {
        Ok((State::MovedAway, _)) => Ok(None),
        Ok((_, true)) => Ok(Some(OwnDomain { name: domain.name().to_owned(), power: OwnPower::On })),
        Ok((_, false)) => Ok(Some(off(memory, uuid, domain.name().to_owned()))),
        Err(Error { kind: ErrorKind::NoDomain, .. }) => Ok(gone(memory, uuid)),
        Err(error) => Err(error),
    }
}

fn off(memory: &Hypervisor, uuid: Uuid, name: String) -> OwnDomain {
    let went_off = memory.gone_off(Some(uuid), None).is_some();
    OwnDomain { name, power: if went_off { OwnPower::WentOff } else { OwnPower::Resting } }
}

/// A transient domain leaves no definition when it goes off.
fn gone(memory: &Hypervisor, uuid: Uuid) -> Option<OwnDomain> {
    let (_, name) = memory.gone_off(Some(uuid), None)?;
    Some(OwnDomain { name, power: OwnPower::Gone })
}
