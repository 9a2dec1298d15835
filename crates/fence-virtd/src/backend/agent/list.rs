// SPDX-License-Identifier: GPL-2.0-or-later
//! The host list: the state of every domain, from lists with states where devices have them, else by status
//! runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::agent::domains::{self, AgentDomain};
use fence_core::agent::listing::PlugList;
use fence_core::agent::plan::StatusReading;
use fence_core::domain::{ActionError, DomainListing, ListedDomain, PowerState, merge};
use fence_wire::escaped;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::AgentBackend;
use super::run::survey;
use crate::util::first_names;
use crate::util::join::join_all;

/// Age up to which states in a list are used for a host list.
const STATES_AGE: Duration = Duration::from_secs(2);
/// Names in one line of what is missing.
const MAX_NAMED: usize = 8;

/// Latest list of each device, by the device's index; none without a fresh list.
type PlugLists = [Option<Arc<PlugList>>];

impl AgentBackend {
    /// Lists all domains with their states.
    pub(super) async fn list_all(&self, until: Instant) -> Result<DomainListing, ActionError> {
        // A little earlier, so that the states that are known by then are reported.
        let until =
            until - Duration::from_millis(500).min(until.saturating_duration_since(Instant::now()) / 4);
        let lists = self.state_lists(until).await;
        let mut listing = DomainListing { missing: self.missing_lists(&lists), ..DomainListing::default() };
        let known: Vec<_> = lists.into_iter().map(|it| it.and_then(Result::ok)).collect();
        let table = domains::all(&self.settings, &known);
        let powers = self.states(&table, &known, until).await;
        let unknown = collect(&mut listing, table, powers, &known);
        listing.missing.extend(unknown_states(&unknown));
        if listing.domains.is_empty() && !listing.missing.is_empty() {
            return Err(ActionError::Unavailable(listing.missing.join("; ")));
        }
        merge(&mut listing.domains);
        Ok(listing)
    }

    /// Returns the lists of the devices that have one, or can tell the states of many plugs in one run.
    async fn state_lists(&self, until: Instant) -> Vec<Option<Result<Arc<PlugList>, String>>> {
        join_all(self.devices.iter().enumerate().map(|(place, device)| async move {
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
        .await
    }

    /// Returns a line for each device whose list is missing or incomplete.
    fn missing_lists(&self, lists: &[Option<Result<Arc<PlugList>, String>>]) -> Vec<String> {
        let lines = lists.iter().enumerate().filter_map(|(place, list)| {
            let name = &self.devices[place].name;
            match list {
                Some(Err(why)) if self.settings[place].plugs.listed => Some(format!("device {name}: {why}")),
                Some(Ok(plugs)) if plugs.noise > 0 => {
                    Some(format!("device {name}: not all of its list can be read"))
                }
                _ => None,
            }
        });
        lines.collect()
    }

    /// Returns the state of each domain, from the lists or by status runs, as far as it is known in time.
    async fn states(
        &self,
        table: &[AgentDomain],
        known: &PlugLists,
        until: Instant,
    ) -> Vec<Option<PowerState>> {
        let mut runs = JoinSet::new();
        let mut powers: Vec<Option<PowerState>> = vec![None; table.len()];
        for (at, domain) in table.iter().enumerate() {
            powers[at] = listed_state(domain, known);
            if powers[at].is_some() {
                continue;
            }
            // A device whose list can't be had says nothing of a plug either, as long as there is another.
            let has_list = |place: usize| known[place].is_some() || !self.settings[place].plugs.listed;
            let routes = domain.ways.iter().filter(|it| has_list(it.0));
            let routes: Vec<_> =
                routes.map(|(place, plug)| (Arc::clone(&self.devices[*place]), plug.clone())).collect();
            runs.spawn(async move {
                // In their order, until one device knows the state.
                for (device, plug) in routes {
                    if let StatusReading::Is(power) = device.status(&plug, survey(until)).await.reading {
                        return (at, Some(power));
                    }
                }
                (at, None)
            });
        }
        while let Ok(Some(Ok((at, power)))) = timeout_at(until.into(), runs.join_next()).await {
            powers[at] = power;
        }
        powers
    }
}

/// Returns the state of a domain by the lists: on if one list says so.
fn listed_state(domain: &AgentDomain, known: &PlugLists) -> Option<PowerState> {
    let power_at = |(place, plug): &(usize, String)| {
        let entries = known[*place].iter().flat_map(|it| &it.entries);
        entries.filter(|it| it.plug == *plug).find_map(|it| it.power)
    };
    let listed: Vec<PowerState> = domain.ways.iter().filter_map(power_at).collect();
    [PowerState::On, PowerState::Off].into_iter().find(|it| listed.contains(it))
}

/// Adds the domains to the listing. Returns the names of those whose state is unknown.
fn collect(
    listing: &mut DomainListing,
    table: Vec<AgentDomain>,
    powers: Vec<Option<PowerState>>,
    known: &PlugLists,
) -> Vec<String> {
    let mut unknown = Vec::new();
    for (domain, power) in table.into_iter().zip(powers) {
        let is_listed = |(place, plug): &(usize, String)| {
            known[*place].iter().flat_map(|it| &it.entries).any(|it| it.plug == *plug)
        };
        if power.is_none() {
            unknown.push(escaped(&domain.name).to_string());
        }
        // A domain in a fresh list exists, so it has to be in ours. If it is not known to be off, it is on.
        let power = power.or_else(|| domain.ways.iter().any(is_listed).then_some(PowerState::On));
        if let Some(power) = power {
            listing.domains.push(ListedDomain { name: domain.name, uuid: domain.uuid, power });
        }
    }
    unknown
}

/// Returns one line that names the domains whose state is unknown.
fn unknown_states(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| format!("no device can tell the state of {}", first_names(names, MAX_NAMED)))
}
