// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent backend: domains that are powered by fence agents, each by way of one device or several.
//!
//! Owns the devices, which plugs mean which domain, and the carrying out of what [`truth::Plan`] decides.
//! Runs on the runtime; agents are processes of their own ([`device`]). It never reports what an agent says
//! of its own action, only what a `status` after it says, and never acts on a plug that may mean another
//! domain than the one that was found.

mod device;
pub(crate) mod examine;
mod secret;
mod slots;

use fence_core::agent::{domains, listing};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::AgentDevice;
use fence_wire::{Target, escaped};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

pub(crate) use self::device::DIRECTORIES;
use self::device::{FenceDevice, RunContext};
use self::slots::{RunPurpose, RunSlots};
use super::{Backend, BoxedFuture, PowerOffResult, Restart, SLOW_BACKEND_GRACE};
use crate::observe::agent_runs::AgentRuns;
use crate::request::lease::Lease;
use crate::util::join::join_all;
use crate::util::locks::lock;
use fence_core::agent::domains::AgentDomain;
use fence_core::agent::listing::PlugList;
use fence_core::agent::plan::{ActionReport, PlanStep, PowerPlan, StatusReading};
use fence_core::domain::{
    ActionError, DomainHome, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain, PowerState,
    merge,
};

/// How long a device that does not answer has alone before the next one is asked too.
const HEDGE_DELAY: Duration = Duration::from_secs(2);
/// How long a list may be old when somebody looks for a domain.
const LIST_AGE: Duration = Duration::from_secs(5);
/// How long a list, or that there is none, may be old where a device is asked in place of another one.
const RELIST_AGE: Duration = Duration::from_secs(1);
/// How long states may be old in a host list.
const STATES_AGE: Duration = Duration::from_secs(2);
/// How long a found domain's plugs stand when the lists can't be had any more.
const BOUND_PLUGS_TTL: Duration = Duration::from_secs(60);
const MAX_BOUND: usize = 4096;
/// How long it stands how a device's `monitor` ended.
const HEALTH_TTL: Duration = Duration::from_secs(60);
/// Time for which the effect of a killed agent's action may still come after its device answered.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);
/// Longest time for which a pending effect holds up conflicting requests.
const EFFECT_LIMIT: Duration = Duration::from_secs(10);
/// Names in one line of what is missing.
const MAX_NAMED: usize = 8;

/// See the module's head.
pub(crate) struct AgentBackend {
    settings: Vec<AgentDevice>,
    devices: Vec<Arc<FenceDevice>>,
    reboot_starts: bool,
    /// Domains that were found, and their plugs then: by UUID and name.
    bound: Mutex<HashMap<(String, String), BoundPlugs>>,
    /// How each device's `monitor` ended.
    health: tokio::sync::Mutex<Option<(Instant, Vec<Option<String>>)>>,
}

struct BoundPlugs {
    ways: Vec<(usize, String)>,
    when: Instant,
}

/// A device, and the plug at it.
#[derive(Clone)]
struct Route {
    device: Arc<FenceDevice>,
    plug: String,
    /// The domain's name where the device has not listed it yet, and must before it is asked for anything.
    unlisted: Option<String>,
}

impl Route {
    async fn status(&self, context: RunContext<'_>) -> device::StatusReply {
        match self.is_listed(context).await {
            Ok(()) => self.device.status(&self.plug, context).await,
            Err(words) => device::StatusReply { heard: StatusReading::CantTell, words },
        }
    }

    async fn act(&self, to: PowerState, context: RunContext<'_>) -> (ActionReport, String) {
        match self.is_listed(context).await {
            Ok(()) => self.device.act(to, &self.plug, context).await,
            Err(words) => (ActionReport::NotRun, words),
        }
    }

    /// Some agents say "off" of every plug that they don't know.
    async fn is_listed(&self, context: RunContext<'_>) -> Result<(), String> {
        let Some(name) = &self.unlisted else { return Ok(()) };
        let list = self.device.listing(RELIST_AGE, context).await?;
        let is_it = |it: &listing::PlugEntry| {
            it.plug == self.plug
                && (domains::uuid_in(&it.plug).is_some() || it.alias.as_ref().unwrap_or(&it.plug) == name)
        };
        if list.entries.iter().any(is_it) { Ok(()) } else { Err("its list does not have it".to_owned()) }
    }
}

impl AgentBackend {
    /// Runs nothing yet.
    pub(crate) fn new(settings: &fence_config::AgentBackend) -> (Arc<Self>, AgentRuns) {
        let runs = AgentRuns::new(settings.devices.iter().map(|it| it.name.clone()));
        let slots = RunSlots::new(settings.max_running, settings.devices.iter().map(|it| it.max_running));
        let devices = settings.devices.iter().enumerate();
        let devices = devices.map(|(at, it)| Arc::new(FenceDevice::new(at, it, slots.clone(), runs.clone())));
        let backend = Arc::new(Self {
            devices: devices.collect(),
            settings: settings.devices.clone(),
            reboot_starts: settings.reboot_starts,
            bound: Mutex::default(),
            health: tokio::sync::Mutex::default(),
        });
        (backend, runs)
    }

    /// Begins to look at the devices. Must run inside the runtime; returns at once.
    pub(crate) fn start(settings: &fence_config::AgentBackend) -> (Arc<Self>, AgentRuns) {
        let (backend, runs) = Self::new(settings);
        // What is known of them when the first request comes need not be asked for then.
        let begin = Arc::clone(&backend);
        tokio::spawn(async move {
            for line in begin.monitor_all(Instant::now() + HEALTH_TTL).await.into_iter().flatten() {
                warn!("{line}");
            }
            let listed = begin.listed().map(|(_, it)| Arc::clone(it)).collect::<Vec<_>>();
            for device in listed {
                let until = Instant::now() + device.status_timeout;
                let list = device.listing(LIST_AGE, survey(until)).await;
                if let Ok(list) = list {
                    info!("device {} has {} plugs", device.name, list.entries.len());
                }
            }
        });
        (backend, runs)
    }

    fn listed(&self) -> impl Iterator<Item = (usize, &Arc<FenceDevice>)> {
        self.devices.iter().enumerate().filter(|(place, _)| self.settings[*place].plugs.listed)
    }

    /// The last list of each device, however old.
    fn last_lists(&self) -> Vec<Option<Arc<PlugList>>> {
        self.devices.iter().map(|it| it.last_listing()).collect()
    }

    async fn find(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let nothing = vec![None; self.devices.len()];
        let named = domains::all(&self.settings, &nothing);
        let is_named = domains::meant(&named, target).len() == 1;
        let by_last = domains::all(&self.settings, &self.last_lists());
        if is_named && let [domain] = &domains::meant(&by_last, target)[..] {
            // Named in the configuration, and nobody else was called so: no list is needed.
            return Ok(self.bind(domain));
        }
        let lists = self.fresh_lists(Some(target), until).await;
        let known: Vec<_> =
            lists.iter().map(|it| it.as_ref().and_then(|it| it.as_ref().ok().cloned())).collect();
        let table = domains::all(&self.settings, &known);
        let all = |domains: &[&AgentDomain]| {
            domains.iter().map(|it| self.described(it)).collect::<Vec<_>>().join(", ")
        };
        // What those that can't be asked had when they were last heard.
        let mixed: Vec<_> =
            known.iter().zip(self.last_lists()).map(|(it, last)| it.clone().or(last)).collect();
        let with_old = domains::all(&self.settings, &mixed);
        let silent = || {
            let lines = lists.iter().enumerate().filter_map(|(place, it)| match it {
                Some(Err(why)) => Some(format!("device {}: {why}", self.devices[place].name)),
                Some(Ok(plugs)) if plugs.noise > 0 => {
                    Some(format!("device {}: not all of its list can be read", self.devices[place].name))
                }
                _ => None,
            });
            lines.collect::<Vec<_>>().join("; ")
        };
        match (&domains::meant(&table, target)[..], &domains::meant(&with_old, target)[..]) {
            ([_], [domain]) => Ok(self.bind(domain)),
            ([found], several) => Err(LocateError::Unavailable(format!(
                "{}; when it was last heard it was another: {}, beside {}",
                silent(),
                all(several),
                self.described(found)
            ))),
            // Its list can't be had. A UUID is the same machine all the same.
            ([], [domain]) if domain.ways.iter().all(|(_, plug)| domains::uuid_in(plug).is_some()) => {
                Ok(self.bind(domain))
            }
            ([], _) => {
                let silent = silent();
                Err(if silent.is_empty() { LocateError::NotFound } else { LocateError::Unavailable(silent) })
            }
            (several, _) => Err(LocateError::Ambiguous(all(several))),
        }
    }

    /// The lists of those that have one: none where there is none. Where one has the target, those that don't
    /// answer are not waited for much longer.
    async fn fresh_lists(
        &self,
        target: Option<&Target>,
        until: Instant,
    ) -> Vec<Option<Result<Arc<PlugList>, String>>> {
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut lists = vec![None; self.devices.len()];
        for (place, device) in self.listed() {
            lists[place] = Some(Err("no list in time".to_owned()));
            let (device, tell) = (Arc::clone(device), tell.clone());
            // Not ended when nobody waits any more: the next one will want it.
            tokio::spawn(async move {
                let until = until.max(Instant::now() + device.status_timeout);
                let list = device
                    .listing(LIST_AGE, RunContext { purpose: RunPurpose::Request, ..survey(until) })
                    .await;
                let _ = tell.send((place, list));
            });
        }
        drop(tell);
        let mut until = until;
        while let Ok(Some((place, list))) = timeout_at(until.into(), told.recv()).await {
            lists[place] = Some(list);
            let known: Vec<_> =
                lists.iter().map(|it| it.as_ref().and_then(|it| it.as_ref().ok().cloned())).collect();
            let has_it = |it: &Target| !domains::meant(&domains::all(&self.settings, &known), it).is_empty();
            if target.is_some_and(has_it) {
                until = until.min(Instant::now() + SLOW_BACKEND_GRACE);
            }
        }
        lists
    }

    /// Remembers what it means.
    fn bind(&self, domain: &AgentDomain) -> LocatedDomain {
        let mut bound = lock(&self.bound);
        if bound.len() >= MAX_BOUND {
            bound.retain(|_, it| it.when.elapsed() < BOUND_PLUGS_TTL);
        }
        if bound.len() >= MAX_BOUND {
            bound.clear();
        }
        let new = BoundPlugs { ways: domain.ways.clone(), when: Instant::now() };
        bound.insert((domain.uuid.clone(), domain.name.clone()), new);
        LocatedDomain::Here(DomainRef {
            name: domain.name.clone(),
            uuid: domain.uuid.clone(),
            home: DomainHome::Agent,
        })
    }

    fn described(&self, domain: &AgentDomain) -> String {
        let ways = domain
            .ways
            .iter()
            .map(|(place, plug)| format!("plug {} at {}", escaped(plug), self.devices[*place].name));
        format!("{} ({})", escaped(&domain.name), ways.collect::<Vec<_>>().join(", "))
    }

    /// The ways to a domain that was found, as far as they still mean it; those whose devices answer come
    /// first.
    async fn routes(&self, domain: &DomainRef, until: Instant) -> Result<Vec<Route>, ActionError> {
        if domain.home != DomainHome::Agent {
            return Err(ActionError::Gone);
        }
        let key = (domain.uuid.clone(), domain.name.clone());
        let bound = lock(&self.bound).get(&key).map(|it| (it.ways.clone(), it.when));
        let bound_or = |devices: &[usize]| {
            let (ways, _) = bound.as_ref().filter(|it| it.1.elapsed() < BOUND_PLUGS_TTL)?;
            let ways: Vec<_> = ways.iter().filter(|it| devices.contains(&it.0)).cloned().collect();
            (!ways.is_empty()).then_some(ways)
        };
        let is_it = |it: &&AgentDomain| it.uuid == domain.uuid && it.name == domain.name;
        let nothing = vec![None; self.devices.len()];
        let named = domains::all(&self.settings, &nothing);
        let ways = if let Some(named) = named.iter().find(is_it) {
            // What lists say beside that may have changed: only ways that were found with it.
            let found = bound.as_ref().map(|it| it.0.clone()).unwrap_or_default();
            let listed: Vec<_> = found.into_iter().filter(|it| named.plug_at(it.0).is_none()).collect();
            let mut ways = named.ways.clone();
            if !listed.is_empty() {
                ways.extend(self.revalidate_routes(domain, &listed, until).await.unwrap_or_default());
            }
            ways
        } else {
            let Some((found, _)) = &bound else { return Err(ActionError::Gone) };
            match self.revalidate_routes(domain, found, until).await {
                Ok(ways) if ways.is_empty() => return Err(ActionError::Gone),
                Ok(ways) => ways,
                Err(silent) => match bound_or(&silent) {
                    Some(ways) => ways,
                    None => return Err(ActionError::Unavailable("no device has a list any more".to_owned())),
                },
            }
        };
        let others = self.unlisted_candidates(domain, &ways);
        let way =
            |(place, plug), unlisted| Route { device: Arc::clone(&self.devices[place]), plug, unlisted };
        let mut ways: Vec<Route> = ways.into_iter().map(|it| way(it, None)).collect();
        ways.extend(others.into_iter().map(|it| way(it, Some(domain.name.clone()))));
        ways.sort_by_key(|it| it.device.timed_out_recently());
        Ok(ways)
    }

    /// Ways to a listed domain by devices whose lists can't be had now, and may be had in a moment: a pool's
    /// master has moved.
    fn unlisted_candidates(&self, domain: &DomainRef, ways: &[(usize, String)]) -> Vec<(usize, String)> {
        // What the configuration names is served by whom it names.
        let listed = |place: usize| self.settings[place].plugs.listed;
        let Some((_, plug)) =
            ways.iter().find(|it| listed(it.0)).filter(|_| ways.iter().all(|it| listed(it.0)))
        else {
            return Vec::new();
        };
        let is_other = |place: &usize| {
            let is_way = ways.iter().any(|it| it.0 == *place);
            let agents = [*place, ways[0].0].map(|it| &self.settings[it].agent);
            let device = &self.devices[*place];
            // Its list may be newer than the search: it has done something for this request already.
            let has_it = |it: Arc<PlugList>| it.entries.iter().any(|it| it.plug == *plug);
            !is_way
                && agents[0] == agents[1]
                && (device.has_no_list() || device.last_listing().is_some_and(has_it))
        };
        let others: Vec<_> =
            self.listed().map(|it| it.0).filter(is_other).map(|it| (it, plug.clone())).collect();
        if !others.is_empty() {
            debug!(domain = domain.name, others = others.len(), "devices without a list may have it too");
        }
        others
    }

    /// Which of these ways to a listed domain the lists still show; devices that don't answer keep theirs as
    /// long as another one shows it. An error, with those that don't answer, when none answers.
    async fn revalidate_routes(
        &self,
        domain: &DomainRef,
        found: &[(usize, String)],
        until: Instant,
    ) -> Result<Vec<(usize, String)>, Vec<usize>> {
        let until = until.min(Instant::now() + LIST_AGE);
        let listed = found.iter().filter(|it| self.settings[it.0].plugs.listed);
        let lists = listed.map(|(place, plug)| async move {
            let device = &self.devices[*place];
            let list =
                device.listing(LIST_AGE, RunContext { purpose: RunPurpose::Request, ..survey(until) }).await;
            (*place, plug.clone(), list)
        });
        let lists = join_all(lists).await;
        let mut known = self.last_lists();
        for (place, _, list) in &lists {
            known[*place] = list.as_ref().ok().cloned();
        }
        let silent: Vec<usize> = lists.iter().filter(|it| it.2.is_err()).map(|it| it.0).collect();
        if silent.len() == lists.len() {
            return Err(silent);
        }
        let table = domains::all(&self.settings, &known);
        let now = table.iter().find(|it| it.uuid == domain.uuid && it.name == domain.name);
        let Some(now) = now else { return Ok(Vec::new()) };
        let same = |(place, plug): &&(usize, String)| {
            now.plug_at(*place) == Some(plug)
                || silent.contains(place) && now.ways.iter().any(|it| it.1 == *plug)
        };
        Ok(found.iter().filter(same).cloned().collect())
    }

    /// Looks, and acts until it is so, or until nothing can be done any more.
    async fn change_power(
        &self,
        goal: PowerState,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<PowerChange, ActionError> {
        lease.check()?;
        let ways = self.routes(domain, lease.until()).await?;
        let plan = PowerPlan::new(goal, ways.iter().map(|it| it.device.limits), lease.until());
        let aftermath = PendingEffects { lease: lease.clone(), open: Vec::new() };
        let said = vec![LastReply::default(); ways.len()];
        let mut course = PlanRunner { goal, ways, plan, lease, said, aftermath };
        course.first_status().await;
        let is_done = course.run_to_end().await;
        if is_done {
            // What was claimed has come.
            course.aftermath.open.retain(|it| !it.is_claimed);
        }
        for it in &course.ways {
            it.device.states_changed();
        }
        course.outcome(is_done)
    }

    async fn look_at(&self, domain: &DomainRef, lease: &Lease) -> Result<PowerState, ActionError> {
        let ways = self.routes(domain, lease.until()).await?;
        let plan = PowerPlan::new(PowerState::Off, ways.iter().map(|it| it.device.limits), lease.until());
        let aftermath = PendingEffects { lease: lease.clone(), open: Vec::new() };
        let said = vec![LastReply::default(); ways.len()];
        let mut course = PlanRunner { goal: PowerState::Off, ways, plan, lease, said, aftermath };
        course.first_status().await;
        course.plan.stop();
        if course.run_to_end().await {
            return Ok(PowerState::Off);
        }
        if (0..course.ways.len()).any(|it| course.plan.last(it) == Some(StatusReading::Is(PowerState::On))) {
            return Ok(PowerState::On);
        }
        Err(ActionError::Unavailable(course.words()))
    }

    async fn list_all(&self, until: Instant) -> Result<DomainListing, ActionError> {
        // A little earlier, so that what is known by then is told.
        let until =
            until - Duration::from_millis(500).min(until.saturating_duration_since(Instant::now()) / 4);
        let lists = join_all(self.devices.iter().enumerate().map(|(place, device)| async move {
            let settings = &self.settings[place].plugs;
            // One run for many plugs, where the agent can do that.
            let context = survey(until);
            let is_wanted = settings.listed || settings.named.len() > 2 && device.lists_states(context).await;
            if is_wanted {
                Some(device.listing(device.age_of_states(STATES_AGE), context).await)
            } else {
                None
            }
        }))
        .await;
        let mut listing = DomainListing::default();
        for (place, list) in lists.iter().enumerate() {
            let name = &self.devices[place].name;
            match list {
                Some(Err(why)) if self.settings[place].plugs.listed => {
                    listing.missing.push(format!("device {name}: {why}"));
                }
                Some(Ok(plugs)) if plugs.noise > 0 => {
                    listing.missing.push(format!("device {name}: not all of its list can be read"));
                }
                _ => {}
            }
        }
        let known: Vec<_> = lists.into_iter().map(|it| it.and_then(Result::ok)).collect();
        let table = domains::all(&self.settings, &known);
        let mut looks = JoinSet::new();
        for (at, domain) in table.iter().enumerate() {
            let power_at = |(place, plug): &(usize, String)| {
                let entries = known[*place].iter().flat_map(|it| &it.entries);
                entries.filter(|it| it.plug == *plug).find_map(|it| it.power)
            };
            let listed: Vec<PowerState> = domain.ways.iter().filter_map(power_at).collect();
            // One whose list can't be had has nothing to say of a plug either, as long as there is another.
            let has_list = |place: usize| known[place].is_some() || !self.settings[place].plugs.listed;
            let ways: Vec<_> = domain.ways.iter().filter(|it| has_list(it.0)).cloned().collect();
            let ways: Vec<_> =
                ways.into_iter().map(|(place, plug)| (Arc::clone(&self.devices[place]), plug)).collect();
            looks.spawn(async move {
                for power in [PowerState::On, PowerState::Off] {
                    if listed.contains(&power) {
                        return (at, StatusReading::Is(power));
                    }
                }
                // In their order, until one can tell.
                for (device, plug) in ways {
                    let heard = device.status(&plug, survey(until)).await.heard;
                    if matches!(heard, StatusReading::Is(_)) {
                        return (at, heard);
                    }
                }
                (at, StatusReading::CantTell)
            });
        }
        let mut powers: Vec<Option<PowerState>> = vec![None; table.len()];
        while let Ok(Some(Ok((at, heard)))) = timeout_at(until.into(), looks.join_next()).await {
            if let StatusReading::Is(power) = heard {
                powers[at] = Some(power);
            }
        }
        let mut unknown = Vec::new();
        for (domain, power) in table.into_iter().zip(powers) {
            match power {
                Some(power) => {
                    listing.domains.push(ListedDomain { name: domain.name, uuid: domain.uuid, power });
                }
                None => {
                    unknown.push(escaped(&domain.name).to_string());
                    // It is there, by a list of this moment: whoever looks for it in ours must find it. What
                    // is not known to be off is on.
                    let is_listed = |(place, plug): &(usize, String)| {
                        known[*place].iter().flat_map(|it| &it.entries).any(|it| it.plug == *plug)
                    };
                    if domain.ways.iter().any(is_listed) {
                        listing.domains.push(ListedDomain {
                            name: domain.name,
                            uuid: domain.uuid,
                            power: PowerState::On,
                        });
                    }
                }
            }
        }
        if !unknown.is_empty() {
            let more = unknown.len().saturating_sub(MAX_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            unknown.truncate(MAX_NAMED);
            listing.missing.push(format!("no device can tell the state of {}{more}", unknown.join(", ")));
        }
        if listing.domains.is_empty() && !listing.missing.is_empty() {
            return Err(ActionError::Unavailable(listing.missing.join("; ")));
        }
        merge(&mut listing.domains);
        Ok(listing)
    }

    /// What is wrong with each device; none where nothing is.
    async fn monitor_all(&self, until: Instant) -> Vec<Option<String>> {
        let all = self.devices.iter().enumerate().map(|(place, device)| async move {
            let named = &self.settings[place].plugs.named;
            let told = |why: String| format!("device {}: {why}", device.name);
            let plugs: Vec<Option<&str>> = if device.is_monitored_by_plug() && !named.is_empty() {
                named.iter().map(|it| Some(it.plug.as_str())).collect()
            } else {
                vec![None]
            };
            let monitors = plugs.into_iter().map(|it| device.monitor(it, survey(until)));
            let failed: Vec<String> = join_all(monitors).await.into_iter().filter_map(Result::err).collect();
            failed.into_iter().next().map(told)
        });
        join_all(all).await
    }

    async fn look_at_health(&self, until: Instant) -> Result<Vec<String>, ActionError> {
        let waiting = timeout_at(until.into(), self.health.lock()).await;
        let busy = |_| ActionError::Unavailable("the devices' monitors have not ended in time".to_owned());
        let mut known = waiting.map_err(busy)?;
        let lines = match &*known {
            // One that failed may be well again.
            Some((when, lines))
                if when.elapsed() < if lines.iter().any(Option::is_some) { LIST_AGE } else { HEALTH_TTL } =>
            {
                lines.clone()
            }
            _ => {
                let lines = self.monitor_all(until).await;
                *known = Some((Instant::now(), lines.clone()));
                lines
            }
        };
        let failed: Vec<String> = lines.into_iter().flatten().collect();
        if failed.len() == self.devices.len() {
            return Err(ActionError::Unavailable(failed.join("; ")));
        }
        Ok(failed)
    }
}

impl Backend for AgentBackend {
    fn locate<'a>(
        &'a self,
        target: &'a Target,
        until: Instant,
    ) -> BoxedFuture<'a, Result<LocatedDomain, LocateError>> {
        Box::pin(self.find(target, until))
    }

    fn may_own(&self, target: &Target) -> bool {
        !domains::meant(&domains::all(&self.settings, &self.last_lists()), target).is_empty()
    }

    fn status<'a>(
        &'a self,
        domain: &'a DomainRef,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<PowerState, ActionError>> {
        Box::pin(self.look_at(domain, lease))
    }

    fn off<'b, 'a: 'b>(
        &'a self,
        domain: &'b DomainRef,
        for_reboot: bool,
        lease: &'b Lease,
    ) -> BoxedFuture<'b, Result<PowerOffResult<'a>, ActionError>> {
        Box::pin(async move {
            let PowerChange { was_so, note } = self.change_power(PowerState::Off, domain, lease).await?;
            let starts = for_reboot && (!was_so || self.reboot_starts);
            let restart = AgentRestart { backend: self, domain: domain.clone() };
            let restart = starts.then(|| Box::new(restart) as Box<dyn Restart>);
            Ok(PowerOffResult { was_off: was_so, restart, note })
        })
    }

    fn on<'a>(&'a self, domain: &'a DomainRef, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>> {
        Box::pin(async move { self.change_power(PowerState::On, domain, lease).await.map(drop) })
    }

    fn list(&self, until: Instant) -> BoxedFuture<'_, Result<DomainListing, ActionError>> {
        Box::pin(self.list_all(until))
    }

    fn health(&self, until: Instant) -> BoxedFuture<'_, Result<Vec<String>, ActionError>> {
        Box::pin(self.look_at_health(until))
    }
}

/// A domain that its devices powered off, and can power on again.
struct AgentRestart<'a> {
    backend: &'a AgentBackend,
    domain: DomainRef,
}

impl fmt::Debug for AgentRestart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRestart").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Restart for AgentRestart<'_> {
    fn start<'a>(self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a,
    {
        Box::pin(async move { self.backend.on(&self.domain, lease).await })
    }
}

/// A domain that is as it was wanted.
struct PowerChange {
    /// It was so before we acted.
    was_so: bool,
    note: Option<String>,
}

/// What a device said last.
#[derive(Clone, Default)]
struct LastReply {
    look: Option<String>,
    act: Option<String>,
}

/// A plan that is being carried out.
struct PlanRunner<'a> {
    goal: PowerState,
    ways: Vec<Route>,
    plan: PowerPlan,
    lease: &'a Lease,
    said: Vec<LastReply>,
    aftermath: PendingEffects,
}

impl PlanRunner<'_> {
    /// Asks the devices in their order; one that does not answer soon is not waited for alone. Ends with the
    /// first that can tell.
    async fn first_status(&mut self) {
        let mut looks = PendingStatusRuns::default();
        let mut rest = 0..self.ways.len();
        let until = self.lease.until();
        loop {
            let next = rest.next();
            if let Some(place) = next {
                looks.begin(place, &self.ways[place], self.lease, until);
            }
            let alone = sleep_until(
                if rest.is_empty() { until } else { until.min(Instant::now() + HEDGE_DELAY) }.into(),
            );
            tokio::pin!(alone);
            loop {
                tokio::select! {
                    biased;
                    heard = looks.next(), if !looks.is_empty() => {
                        if self.heard(heard) {
                            return self.silent(looks);
                        }
                        if looks.is_empty() {
                            break;
                        }
                    }
                    _ = self.lease.ended() => return,
                    () = &mut alone => break,
                }
            }
            if rest.is_empty() && (looks.is_empty() || Instant::now() >= until) {
                return;
            }
        }
    }

    /// Does what the plan says, to its end. Whether the domain is as it is wanted.
    async fn run_to_end(&mut self) -> bool {
        loop {
            if self.lease.check().is_err() {
                self.plan.stop();
            }
            match self.plan.next(Instant::now()) {
                PlanStep::Look(these) => self.look(these, StatusReading::Is(self.goal)).await,
                PlanStep::Ask(these) => self.look(these, StatusReading::Is(opposite(self.goal))).await,
                PlanStep::Act(place, until) => self.act(place, until).await,
                PlanStep::Wait(until) => {
                    // Nothing is polled faster for one that has gone.
                    tokio::select! {
                        () = sleep_until(until.into()) => {}
                        _ = self.lease.ended(), if self.plan.actions() == 0 => {}
                    }
                }
                PlanStep::Done => return true,
                PlanStep::GiveUp => return false,
            }
        }
    }

    async fn look(&mut self, these: Vec<(usize, Instant)>, enough: StatusReading) {
        let mut looks = PendingStatusRuns::default();
        for (place, until) in these {
            looks.begin(place, &self.ways[place], self.lease, until);
        }
        while !looks.is_empty() {
            tokio::select! {
                biased;
                heard = looks.next() => {
                    let last = heard.as_ref().map(|it| it.look.heard);
                    self.heard(heard);
                    if last == Some(enough) {
                        return;
                    }
                }
                _ = self.lease.ended(), if self.plan.actions() == 0 => return,
            }
        }
    }

    async fn act(&mut self, place: usize, until: Instant) {
        let way = self.ways[place].clone();
        self.aftermath.open.push(UnconfirmedAction {
            way: way.clone(),
            when: Instant::now(),
            is_claimed: false,
        });
        let context = RunContext { purpose: RunPurpose::Request, lease: Some(self.lease), until };
        let (how, words) = way.act(self.goal, context).await;
        let may_come = matches!(how, ActionReport::Claimed | ActionReport::Unknown);
        match self.aftermath.open.last_mut() {
            Some(open) if may_come => {
                (open.when, open.is_claimed) = (Instant::now(), how == ActionReport::Claimed);
            }
            _ => drop(self.aftermath.open.pop()),
        }
        self.said[place].act = Some(words);
        self.plan.acted(place, how, Instant::now());
    }

    /// Whether it is a word about the domain's state.
    fn heard(&mut self, it: Option<StatusResult>) -> bool {
        let Some(StatusResult { place, look, began }) = it else { return false };
        self.plan.looked(place, look.heard, began, Instant::now());
        self.said[place].look = Some(look.words);
        matches!(look.heard, StatusReading::Is(_))
    }

    /// Those that are still asked have not answered.
    fn silent(&mut self, looks: PendingStatusRuns) {
        for (place, began) in looks.asked {
            self.ways[place].device.record_abandoned(began, self.lease);
            self.said[place].look = Some("did not answer".to_owned());
            self.plan.looked(place, StatusReading::Silent, began, Instant::now());
        }
    }

    /// What each device said.
    fn words(&self) -> String {
        let lines = self.ways.iter().zip(&self.said).filter_map(|(way, said)| {
            let look = said.look.as_ref().map(|it| format!("status {it}"));
            let words: Vec<String> = said.act.iter().cloned().chain(look).collect();
            (!words.is_empty()).then(|| format!("device {}: {}", way.device.name, words.join(", ")))
        });
        let lines: Vec<String> = lines.collect();
        if lines.is_empty() { "no device was asked in time".to_owned() } else { lines.join("; ") }
    }

    fn outcome(&self, is_done: bool) -> Result<PowerChange, ActionError> {
        let acted: Vec<usize> = (0..self.ways.len()).filter(|it| self.said[*it].act.is_some()).collect();
        if is_done {
            let was_so = self.plan.actions() == 0;
            // Which of several did it, and what was wrong with those before.
            let note = (acted.len() > 1).then(|| self.words());
            return Ok(PowerChange { was_so, note });
        }
        if self.plan.actions() == 0 {
            self.lease.check()?;
            return Err(ActionError::Unavailable(self.words()));
        }
        let still = StatusReading::Is(opposite(self.goal));
        if (0..self.ways.len()).any(|it| self.plan.last(it) == Some(still)) {
            let state = if self.goal == PowerState::Off { "on" } else { "off" };
            return Err(ActionError::NoEffect { state: state.to_owned(), reason: Some(self.words()) });
        }
        Err(if self.plan.is_open() {
            ActionError::Unknown(self.words())
        } else {
            ActionError::Refused(self.words())
        })
    }
}

/// What came of one look.
struct StatusResult {
    place: usize,
    look: device::StatusReply,
    began: Instant,
}

/// Looks that are under way; they end when this is dropped.
#[derive(Default)]
struct PendingStatusRuns {
    set: JoinSet<StatusResult>,
    asked: Vec<(usize, Instant)>,
}

impl PendingStatusRuns {
    fn begin(&mut self, place: usize, way: &Route, lease: &Lease, until: Instant) {
        let (way, lease, began) = (way.clone(), lease.clone(), Instant::now());
        self.asked.push((place, began));
        self.set.spawn(async move {
            let context = RunContext { purpose: RunPurpose::Request, lease: Some(&lease), until };
            let look = way.status(context).await;
            StatusResult { place, look, began }
        });
    }

    async fn next(&mut self) -> Option<StatusResult> {
        let heard = self.set.join_next().await?.ok()?;
        self.asked.retain(|it| it.0 != heard.place);
        Some(heard)
    }

    fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

/// Agents that were killed in the middle of an action, or whose end nobody waited for, and those that said
/// that it was done when it was not: what they asked for may come yet. Until their devices were heard nothing
/// that conflicts with it gets its turn.
struct PendingEffects {
    lease: Lease,
    open: Vec<UnconfirmedAction>,
}

/// An action that may have an effect yet.
struct UnconfirmedAction {
    way: Route,
    /// When it ended.
    when: Instant,
    /// Its agent said that it was done; it was followed since.
    is_claimed: bool,
}

impl Drop for PendingEffects {
    fn drop(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.is_empty() {
            return;
        }
        let held = self.lease.detached(Instant::now() + EFFECT_LIMIT);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let waits = open.into_iter().map(|UnconfirmedAction { way, when, is_claimed }| async move {
                let until = if is_claimed { Instant::now() } else { when } + EFFECT_LIMIT;
                loop {
                    let context = RunContext { purpose: RunPurpose::Request, lease: None, until };
                    let look = way.status(context).await;
                    if matches!(look.heard, StatusReading::Is(_)) {
                        return sleep_until(until.min(Instant::now() + EFFECT_SETTLE).into()).await;
                    }
                    if Instant::now() >= until {
                        return;
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            });
            join_all(waits).await;
            drop(held);
        });
    }
}

/// For no request.
fn survey(until: Instant) -> RunContext<'static> {
    RunContext { purpose: RunPurpose::Survey, lease: None, until }
}

fn opposite(power: PowerState) -> PowerState {
    match power {
        PowerState::On => PowerState::Off,
        PowerState::Off => PowerState::On,
    }
}

#[cfg(test)]
mod tests;
