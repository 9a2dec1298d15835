// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent backend: domains that fence agents power, each by one device or several.
//!
//! Owns the devices and the assignment of plugs to domains, and executes the steps of a [`PowerPlan`]. Runs
//! on the runtime; agents are processes of their own ([`device`]). Must never report success because an
//! agent says so: only a later `status` counts. Must never act on a plug that may mean another domain than
//! the one that was found.

mod aftermath;
mod cached;
mod course;
mod device;
pub(crate) mod examine;
mod list;
mod not_ready;
mod options;
mod orders;
mod program;
mod route;
mod run;
mod secret;
mod slots;

use fence_core::agent::domains;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::AgentDevice;
use fence_wire::{Target, escaped};
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use tracing::{debug, info, warn};

use self::aftermath::{PendingEffects, UnconfirmedAction};
use self::cached::{CachedRun, RunResult};
use self::course::{LastReply, PlanRunner, PowerChange};
use self::device::FenceDevice;
use self::orders::{DevicePlug, MachinePlugs, OrderHistory, PlugClaim};
pub(crate) use self::program::DIRECTORIES;
use self::route::{Route, is_another};
use self::run::{RunContext, survey};
use self::slots::{RunPurpose, RunSlots};
use super::{Backend, BoxedFuture, PowerForecast, PowerOffResult, Restart, SLOW_BACKEND_GRACE};
use crate::observe::agent_runs::AgentRuns;
use crate::request::lease::Lease;
use crate::util::join::join_all;
use crate::util::locks::lock;
use fence_core::agent::domains::AgentDomain;
use fence_core::agent::listing::PlugList;
use fence_core::agent::plan::{PowerPlan, StatusReading};
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainListing, DomainRef, LocateError, LocatedDomain, PowerAction,
    PowerState, SeenPower, TargetKind,
};
use fence_core::evidence::ProvedOff;
use fence_core::intent::PendingOrder;

/// Age up to which a list is used to find a domain.
const LIST_AGE: Duration = Duration::from_secs(5);
/// Time for which the plugs of a found domain are used when no list can be had any more.
const BOUND_PLUGS_TTL: Duration = Duration::from_secs(60);
const MAX_BOUND: usize = 4096;
/// Time for which the result of a device's `monitor` is used.
const HEALTH_TTL: Duration = Duration::from_secs(60);

/// See the module's head.
pub(crate) struct AgentBackend {
    settings: Vec<AgentDevice>,
    devices: Vec<Arc<FenceDevice>>,
    reboot_starts: bool,
    /// Domains that were found, and their plugs then: by UUID and name.
    bound: Mutex<HashMap<(DomainId, String), BoundPlugs>>,
    /// Result of each device's `monitor`.
    health: CachedRun<Vec<Option<String>>>,
    history: OrderHistory,
}

struct BoundPlugs {
    ways: Vec<(usize, String)>,
    when: Instant,
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
            health: CachedRun::default(),
            history: OrderHistory::default(),
        });
        (backend, runs)
    }

    /// Starts a first check of the devices. Must run inside the runtime; returns at once.
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

    /// Returns fresh lists of the devices that have one. If one list has the target, silent devices get
    /// only a short time.
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

    /// Remembers the plugs of a found domain.
    fn bind(&self, domain: &AgentDomain) -> LocatedDomain {
        let mut bound = lock(&self.bound);
        if bound.len() >= MAX_BOUND {
            bound.retain(|_, it| it.when.elapsed() < BOUND_PLUGS_TTL);
        }
        if bound.len() >= MAX_BOUND {
            bound.clear();
        }
        let new = BoundPlugs { ways: domain.ways.clone(), when: Instant::now() };
        bound.insert((domain.uuid, domain.name.clone()), new);
        LocatedDomain::Here(DomainRef {
            name: domain.name.clone(),
            uuid: domain.uuid,
            home: DomainHome::Agent,
            by: TargetKind::Name,
        })
    }

    fn described(&self, domain: &AgentDomain) -> String {
        let routes = domain
            .ways
            .iter()
            .map(|(place, plug)| format!("plug {} at {}", escaped(plug), self.devices[*place].name));
        format!("{} ({})", escaped(&domain.name), routes.collect::<Vec<_>>().join(", "))
    }

    /// Returns the routes to a found domain, as far as they are still valid; routes of devices that answer
    /// come first.
    async fn routes(&self, domain: &DomainRef, until: Instant) -> Result<Vec<Route>, ActionError> {
        if domain.home != DomainHome::Agent {
            return Err(ActionError::Gone);
        }
        let key = (domain.uuid, domain.name.clone());
        let bound = lock(&self.bound).get(&key).map(|it| (it.ways.clone(), it.when));
        let bound_or = |devices: &[usize]| {
            let (routes, _) = bound.as_ref().filter(|it| it.1.elapsed() < BOUND_PLUGS_TTL)?;
            // The last list may have called the plug another domain since.
            let is_other = |(place, plug): &(usize, String)| {
                let list = self.devices[*place].last_listing();
                list.is_some_and(|it| is_another(&it, plug, &domain.name))
            };
            let routes = routes.iter().filter(|it| devices.contains(&it.0) && !is_other(it));
            let routes: Vec<_> = routes.cloned().collect();
            (!routes.is_empty()).then_some(routes)
        };
        let is_it = |it: &&AgentDomain| it.uuid == domain.uuid && it.name == domain.name;
        let nothing = vec![None; self.devices.len()];
        let named = domains::all(&self.settings, &nothing);
        let routes = if let Some(named) = named.iter().find(is_it) {
            // What lists say beside that may have changed: only routes that were found with it.
            let found = bound.as_ref().map(|it| it.0.clone()).unwrap_or_default();
            let listed: Vec<_> = found.into_iter().filter(|it| named.plug_at(it.0).is_none()).collect();
            let mut routes = named.ways.clone();
            if !listed.is_empty() {
                routes.extend(self.revalidate_routes(domain, &listed, until).await.unwrap_or_default());
            }
            routes
        } else {
            let Some((found, _)) = &bound else { return Err(ActionError::Gone) };
            match self.revalidate_routes(domain, found, until).await {
                Ok(routes) if routes.is_empty() => return Err(ActionError::Gone),
                Ok(routes) => routes,
                Err(silent) => match bound_or(&silent) {
                    Some(routes) => routes,
                    None => return Err(ActionError::Unavailable("no device has a list any more".to_owned())),
                },
            }
        };
        let others = self.possible_ways(domain, &routes);
        let route = |(place, plug), unlisted, is_by_name| Route {
            device: Arc::clone(&self.devices[place]),
            plug,
            unlisted,
            is_by_name,
        };
        let mut routes: Vec<Route> = routes.into_iter().map(|it| route(it, None, false)).collect();
        let name = || Some(domain.name.clone());
        routes.extend(others.into_iter().map(|(place, plug)| match plug {
            Some(plug) => route((place, plug), name(), false),
            None => route((place, domain.name.clone()), name(), true),
        }));
        routes.sort_by_key(|it| it.device.timed_out_recently());
        Ok(routes)
    }

    /// Returns the ways to a domain by devices that may have it too, whatever they listed up to now: a list
    /// that can't be had is no sign that the machine is not there, and a machine may move. Each look at such
    /// a way begins with a list.
    ///
    /// Without a plug where each that the others have is another machine's there.
    fn possible_ways(&self, domain: &DomainRef, routes: &[(usize, String)]) -> Vec<(usize, Option<String>)> {
        let is_other = |place: usize| routes.iter().all(|it| it.0 != place);
        let others: Vec<_> = self.listed().filter(|it| is_other(it.0)).collect();
        if others.is_empty() {
            return Vec::new();
        }
        let by_last = domains::all(&self.settings, &self.last_lists());
        let last = by_last.iter().find(|it| it.uuid == domain.uuid && it.name == domain.name);
        let plugs: BTreeSet<&String> = routes.iter().map(|it| &it.1).collect();
        let mut ways = Vec::new();
        for (place, device) in others {
            if let Some(plug) = last.and_then(|it| it.plug_at(place)) {
                ways.push((place, Some(plug.to_owned())));
                continue;
            }
            let list = device.last_listing();
            let is_another = |plug: &str| list.as_ref().is_some_and(|it| is_another(it, plug, &domain.name));
            let before = ways.len();
            ways.extend(plugs.iter().filter(|it| !is_another(it)).map(|it| (place, Some((*it).clone()))));
            if ways.len() == before {
                ways.push((place, None));
            }
        }
        if !ways.is_empty() {
            debug!(
                domain = domain.name,
                others = ways.len(),
                "devices that have not listed the domain may be ways to the machine too"
            );
        }
        ways
    }

    /// Returns the routes that fresh device lists still confirm. The route of a silent device stays valid
    /// while another device confirms the domain. If no device answers, the error has the silent devices.
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

    /// Returns the routes to a found domain, as soon as nothing is on its way to these plugs that was meant
    /// for a domain of another name.
    async fn claimed_routes(
        &self,
        goal: PowerState,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<(Vec<Route>, PlugClaim), ActionError> {
        loop {
            let routes = self.routes(domain, lease.until()).await?;
            let claim = self.history.claim(machine_plugs(domain, &routes), goal);
            if !claim.turn(lease).await? {
                return Ok((routes, claim));
            }
        }
    }

    /// Returns a course that has not begun.
    fn course<'a>(
        &self,
        goal: PowerState,
        for_reboot: bool,
        domain: &DomainRef,
        routes: Vec<Route>,
        lease: &'a Lease,
    ) -> PlanRunner<'a> {
        let plan = PowerPlan::new(goal, routes.iter().map(Route::limits), lease.until());
        let pending = PendingEffects { lease: lease.clone(), open: Vec::new() };
        let replies = vec![LastReply::default(); routes.len()];
        let (machine, history) = (machine_plugs(domain, &routes), self.history.clone());
        PlanRunner { goal, for_reboot, routes, plan, lease, replies, pending, machine, history }
    }

    /// Checks the state, and acts until the domain is in the wanted state, or until nothing more can be
    /// done.
    async fn change_power(
        &self,
        goal: PowerState,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerChange, ActionError> {
        lease.check()?;
        let (routes, _claim) = self.claimed_routes(goal, domain, lease).await?;
        let mut course = self.course(goal, for_reboot, domain, routes, lease);
        course.first_status().await;
        let is_done = course.run_to_end().await;
        for it in &course.routes {
            it.device.states_changed();
        }
        course.outcome(is_done)
    }

    async fn look_at(&self, domain: &DomainRef, lease: &Lease) -> Result<SeenPower, ActionError> {
        let asked = Instant::now();
        let routes = self.routes(domain, lease.until()).await?;
        let mut course = self.course(PowerState::Off, false, domain, routes, lease);
        course.first_status().await;
        course.plan.stop();
        if course.run_to_end().await {
            return Ok(SeenPower::Off(ProvedOff::from_devices(asked, &course.reports())?));
        }
        if (0..course.routes.len()).any(|it| course.plan.last(it) == Some(StatusReading::Is(PowerState::On)))
        {
            return Ok(SeenPower::On);
        }
        Err(ActionError::Unavailable(course.words()))
    }

    /// Returns the failure of each device; none for a device that works.
    async fn monitor_all(&self, until: Instant) -> Vec<Option<String>> {
        let all = self.devices.iter().enumerate().map(|(place, device)| async move {
            let named = &self.settings[place].plugs.named;
            let failure = |why: String| format!("device {}: {why}", device.name);
            let plugs: Vec<Option<&str>> = if device.is_monitored_by_plug() && !named.is_empty() {
                named.iter().map(|it| Some(it.plug.as_str())).collect()
            } else {
                vec![None]
            };
            let monitors = plugs.into_iter().map(|it| device.monitor(it, survey(until)));
            let failed: Vec<String> = join_all(monitors).await.into_iter().filter_map(Result::err).collect();
            failed.into_iter().next().map(failure)
        });
        join_all(all).await
    }

    async fn look_at_health(&self, until: Instant) -> Result<Vec<String>, ActionError> {
        let is_valid = |when: Instant, lines: &Vec<Option<String>>| {
            // A device that failed may be well again.
            when.elapsed() < if lines.iter().any(Option::is_some) { LIST_AGE } else { HEALTH_TTL }
        };
        let run = async { RunResult::Keep(self.monitor_all(until).await) };
        let lines = self.health.get(until, is_valid, run).await;
        let busy = || ActionError::Unavailable("the devices' monitors have not ended in time".to_owned());
        let lines = lines.ok_or_else(busy)?;
        let failed: Vec<String> = lines.into_iter().flatten().collect();
        if failed.len() == self.devices.len() {
            return Err(ActionError::Unavailable(failed.join("; ")));
        }
        Ok(failed)
    }
}

impl Backend for AgentBackend {
    async fn locate(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        self.find(target, until).await
    }

    fn may_own(&self, target: &Target) -> bool {
        !domains::meant(&domains::all(&self.settings, &self.last_lists()), target).is_empty()
    }

    async fn status(&self, domain: &DomainRef, lease: &Lease) -> Result<SeenPower, ActionError> {
        self.look_at(domain, lease).await
    }

    async fn off(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let asked = Instant::now();
        let change = self.change_power(PowerState::Off, domain, for_reboot, lease).await?;
        let PowerChange { was_so, note, reports, may_come_again } = change;
        let proof = ProvedOff::from_devices(asked, &reports)?;
        if may_come_again {
            lease.trail().remark("one of several orders was not seen to take effect, and may yet");
        }
        let owes = lease.trail().intent().is_some_and(|it| it.debt().is_some());
        let starts = for_reboot && (!was_so || self.reboot_starts || owes);
        let restart = AgentRestart { backend: self, domain: domain.clone() };
        let restart = starts.then(|| Box::new(restart) as Box<dyn Restart>);
        Ok(PowerOffResult { proof, was_off: was_so, restart, note, may_come_again })
    }

    async fn on(&self, domain: &DomainRef, lease: &Lease) -> Result<(), ActionError> {
        self.change_power(PowerState::On, domain, false, lease).await.map(drop)
    }

    async fn forecast(
        &self,
        domain: &DomainRef,
        action: PowerAction,
        lease: &Lease,
    ) -> Result<PowerForecast, ActionError> {
        let routes = self.routes(domain, lease.until()).await?;
        let names: Vec<_> = routes.iter().map(|it| format!("device {}", it.device.name)).collect();
        let at = names.join(", ");
        // An action is tried where no device tells the state; what comes of it nobody knows before.
        let power = match self.look_at(domain, lease).await {
            Ok(power) => power.state(),
            Err(ActionError::Unavailable(why)) => {
                return Ok(PowerForecast::Uncertain(format!("{at}: {why}")));
            }
            Err(error) => return Err(error),
        };
        Ok(match (action, power) {
            (PowerAction::Status | PowerAction::On, PowerState::On) => PowerForecast::StaysOn,
            (PowerAction::On, PowerState::Off) => PowerForecast::Starts { at },
            (_, PowerState::On) => PowerForecast::PowersOff { at },
            (PowerAction::Reboot, PowerState::Off) if self.reboot_starts => PowerForecast::Starts { at },
            (_, PowerState::Off) => PowerForecast::StaysOff,
        })
    }

    fn longest_effect(&self) -> Duration {
        self.devices.iter().map(|it| it.effect_timeout).max().unwrap_or_default()
    }

    async fn order_settles(&self, order: &PendingOrder, machine: DomainId, until: Instant) {
        let device = self.devices.iter().find(|it| it.name == order.order.device && !order.is_covered);
        let to = if order.order.starts { PowerState::On } else { PowerState::Off };
        // Whatever is ordered while it may come is not the only order.
        let order_at = DevicePlug { device: order.order.device.clone(), plug: order.order.plug.clone() };
        let of = MachinePlugs { machine, name: machine.to_string(), plugs: vec![order_at.clone()] };
        let mark = self.history.order(&of, order_at, to);
        let Some(device) = device else {
            tokio::time::sleep_until(until.into()).await;
            drop(mark);
            return;
        };
        let order = UnconfirmedAction {
            place: 0,
            mark,
            route: Route {
                device: Arc::clone(device),
                plug: order.order.plug.clone(),
                unlisted: None,
                is_by_name: false,
            },
            to,
            ended: None,
            is_claimed: order.is_claimed(),
            failed: None,
            is_seen: false,
            order: None,
        };
        order.settled_by(until).await;
    }

    async fn list(&self, until: Instant) -> Result<DomainListing, ActionError> {
        self.list_all(until).await
    }

    async fn health(&self, until: Instant) -> Result<Vec<String>, ActionError> {
        self.look_at_health(until).await
    }
}

/// Returns a domain with the plugs that are known to be its.
fn machine_plugs(domain: &DomainRef, routes: &[Route]) -> MachinePlugs {
    let plugs = routes.iter().filter(|it| it.unlisted.is_none());
    MachinePlugs {
        machine: domain.uuid,
        name: domain.name.clone(),
        plugs: plugs.map(Route::device_plug).collect(),
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

#[cfg(test)]
mod tests;
