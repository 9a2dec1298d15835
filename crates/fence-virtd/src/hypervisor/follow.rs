// SPDX-License-Identifier: GPL-2.0-or-later
//! One task that follows the domains of one hypervisor.
//!
//! The task reads a domain when a lifecycle event names it, and all domains when a connection is new. Each
//! reading runs on a blocking thread with a deadline. A reading that failed is repeated after a pause, and
//! while libvirt is away the follower keeps the domains that it has: they run on without it.

use std::collections::{HashMap, HashSet};
use std::future::{Future, pending};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libvirt_host::{Connection, DomainRecord, Error, Uuid};
use tokio::sync::broadcast;
use tracing::{debug, warn};

use super::news::{DomainEvent, RefreshScope};
use super::pool::{CallError, Hypervisor};

/// Time that one reading may take; with thousands of domains it is a matter of seconds.
const READING_LIMIT: Duration = Duration::from_secs(60);
/// Pause before a failed reading is repeated.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Domains of one hypervisor that a follower keeps.
const MAX_DOMAINS: usize = 16_384;

/// Follower of a hypervisor's domains: says how one domain is read, and takes the readings.
pub(crate) trait DomainFollower: Send + Sync + 'static {
    /// Facts of one domain.
    type Domain: Send + 'static;

    /// Consequence for the domains beyond the limit, for the log: "… domains; {BEYOND_LIMIT}".
    const BEYOND_LIMIT: &'static str;

    /// Reads a domain of the hypervisor's list; none if the follower keeps nothing of it. Runs on a blocking
    /// thread.
    ///
    /// # Errors
    /// Failures for which the whole reading has to be repeated.
    fn read_listed(
        &self,
        connection: &Connection,
        record: DomainRecord,
    ) -> Result<Option<Self::Domain>, Error>;

    /// Reads one domain; none if the follower keeps nothing of it. Runs on a blocking thread.
    ///
    /// # Errors
    /// Failures for which the whole reading has to be repeated.
    fn read_one(&self, connection: &Connection, uuid: Uuid) -> Result<Option<Self::Domain>, Error>;

    /// Takes a reading. Must not wait.
    fn update(&self, reading: HypervisorReading<Self::Domain>);

    /// Waits for the time when domains have to be read again without an event, and returns them.
    fn until_stale(&self) -> impl Future<Output = HashSet<Uuid>> + Send {
        pending()
    }

    /// Waits until nobody needs the domains any more; then the task ends.
    fn until_unused(&self) -> impl Future<Output = ()> + Send {
        pending()
    }
}

/// Result of one reading.
pub(crate) enum HypervisorReading<T> {
    /// All domains of the hypervisor.
    Everything(HashMap<Uuid, T>),
    /// Some domains; none for one that is gone.
    These(Vec<(Uuid, Option<T>)>),
}

impl<T: PartialEq> HypervisorReading<T> {
    /// Applies the reading to the domains that were known before. Returns the keys of the domains that
    /// changed.
    pub(crate) fn apply_to<K>(self, known: &mut HashMap<K, T>, key: impl Fn(Uuid) -> K) -> Vec<K>
    where
        K: Hash + Eq + Clone,
    {
        match self {
            Self::Everything(all) => {
                let all: HashMap<K, T> = all.into_iter().map(|(uuid, domain)| (key(uuid), domain)).collect();
                let keys: HashSet<&K> = known.keys().chain(all.keys()).collect();
                let changed =
                    keys.into_iter().filter(|key| known.get(key) != all.get(key)).cloned().collect();
                *known = all;
                changed
            }
            Self::These(domains) => {
                let domains = domains.into_iter().map(|(uuid, domain)| (key(uuid), domain));
                domains.filter_map(|(key, domain)| apply_one(known, &key, domain).then_some(key)).collect()
            }
        }
    }
}

/// Replaces one known domain, within the limit. Returns whether anything changed.
fn apply_one<K: Hash + Eq + Clone, T: PartialEq>(
    known: &mut HashMap<K, T>,
    key: &K,
    domain: Option<T>,
) -> bool {
    let Some(domain) = domain else { return known.remove(key).is_some() };
    let known_before = known.get(key);
    if known_before == Some(&domain) || (known_before.is_none() && known.len() >= MAX_DOMAINS) {
        return false;
    }
    known.insert(key.clone(), domain);
    true
}

/// Starts the task that follows a hypervisor's domains. Must run inside the runtime.
pub(crate) fn follow(hypervisor: &Arc<Hypervisor>, follower: Arc<impl DomainFollower>) {
    // Before the first reading, so that no event falls between.
    let news = hypervisor.news();
    tokio::spawn(keep_reading(Arc::clone(hypervisor), news, follower));
}

async fn keep_reading(
    hypervisor: Arc<Hypervisor>,
    mut news: broadcast::Receiver<DomainEvent>,
    follower: Arc<impl DomainFollower>,
) {
    let mut scope = RefreshScope::Everything;
    loop {
        let read = read(&hypervisor, scope, &follower).await;
        let next = async {
            match read {
                Ok(reading) => {
                    follower.update(reading);
                    tokio::select! {
                        scope = RefreshScope::next(&mut news) => scope,
                        stale = follower.until_stale() => RefreshScope::These(stale),
                    }
                }
                Err(error) => {
                    debug!(uri = hypervisor.uri(), "can't read the domains: {error}");
                    RefreshScope::after_failure(&mut news, RETRY_PAUSE).await
                }
            }
        };
        scope = tokio::select! {
            scope = next => scope,
            () = follower.until_unused() => return,
        };
    }
}

async fn read<F: DomainFollower>(
    hypervisor: &Arc<Hypervisor>,
    scope: RefreshScope,
    follower: &Arc<F>,
) -> Result<HypervisorReading<F::Domain>, CallError> {
    let until = Instant::now() + READING_LIMIT;
    let follower = Arc::clone(follower);
    match scope {
        RefreshScope::Everything => {
            let memory = Arc::clone(hypervisor);
            let all = move |connection: &Connection| read_all(connection, &memory, &*follower);
            hypervisor.ask(until, all).await.map(HypervisorReading::Everything)
        }
        RefreshScope::These(uuids) => {
            let these = move |connection: &Connection| {
                uuids
                    .iter()
                    .map(|it| Ok((*it, follower.read_one(connection, *it)?)))
                    .collect::<Result<_, _>>()
            };
            hypervisor.ask(until, these).await.map(HypervisorReading::These)
        }
    }
}

fn read_all<F: DomainFollower>(
    connection: &Connection,
    hypervisor: &Arc<Hypervisor>,
    follower: &F,
) -> Result<HashMap<Uuid, F::Domain>, Error> {
    let mut all = HashMap::new();
    for record in hypervisor.list(connection)? {
        let uuid = record.uuid;
        let Some(domain) = follower.read_listed(connection, record)? else { continue };
        if all.len() >= MAX_DOMAINS {
            warn!(uri = connection.uri(), "more than {MAX_DOMAINS} domains; {}", F::BEYOND_LIMIT);
            break;
        }
        all.insert(uuid, domain);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuid(number: u8) -> Uuid {
        format!("00000000-0000-0000-0000-0000000000{number:02x}").parse().unwrap()
    }

    fn apply(known: &mut HashMap<Uuid, &'static str>, reading: HypervisorReading<&'static str>) -> Vec<Uuid> {
        let mut changed = reading.apply_to(known, |it| it);
        changed.sort_unstable();
        changed
    }

    #[test]
    fn a_reading_names_the_domains_that_changed() {
        let (a, b, c) = (uuid(1), uuid(2), uuid(3));
        let mut known = HashMap::new();
        let first = HashMap::from([(a, "on"), (b, "on")]);
        assert_eq!(apply(&mut known, HypervisorReading::Everything(first)), [a, b]);
        let second = HashMap::from([(b, "on"), (c, "on")]);
        assert_eq!(
            apply(&mut known, HypervisorReading::Everything(second.clone())),
            [a, c],
            "one gone, one new"
        );
        assert_eq!(known, second);
        let these = vec![(a, None), (b, Some("off")), (c, Some("on"))];
        assert_eq!(apply(&mut known, HypervisorReading::These(these)), [b]);
        assert_eq!(apply(&mut known, HypervisorReading::These(vec![(c, None)])), [c]);
        assert_eq!(known, HashMap::from([(b, "off")]));
    }

    #[test]
    fn beyond_the_limit_only_known_domains_change() {
        let mut known: HashMap<usize, &str> = (0..MAX_DOMAINS).map(|it| (it, "on")).collect();
        assert!(!apply_one(&mut known, &MAX_DOMAINS, Some("on")));
        assert!(apply_one(&mut known, &0, Some("off")));
        assert!(apply_one(&mut known, &1, None));
        assert!(apply_one(&mut known, &MAX_DOMAINS, Some("on")));
    }
}
