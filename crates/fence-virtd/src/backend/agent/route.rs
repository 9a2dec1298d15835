// SPDX-License-Identifier: GPL-2.0-or-later
//! One route to a domain: a device, and a plug at it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::agent::domains;
use fence_core::agent::listing::{PlugEntry, PlugList};
use fence_core::agent::plan::{ActionReport, DeviceLimits, StatusReading};
use fence_core::domain::PowerState;
use fence_wire::escaped;

use super::device::FenceDevice;
use super::orders::DevicePlug;
use super::run::{RunContext, StatusReply};

/// Age up to which a list, or its absence, is used where a device is told to act.
const RELIST_AGE: Duration = Duration::from_secs(1);
const NOT_IN_LIST: &str = "its list does not have it";

/// Route to a domain: a device, and the plug at it.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) device: Arc<FenceDevice>,
    pub(super) plug: String,
    /// Name of the domain if the device has not listed it yet; it must do so before it acts.
    pub(super) unlisted: Option<String>,
    /// The plug is another machine's there: only its list can tell that it has the domain.
    pub(super) is_by_name: bool,
}

/// Word of a device's list on a plug.
enum PlugListing {
    Listed,
    /// The device has the domain at another plug.
    At(String),
    /// The device has a list, and the plug is not in it.
    Denied,
    /// The list is empty: the device has nothing, or the agent does not understand its endpoint.
    Empty,
    /// There is no list now, or not all of it.
    Unheard(String),
}

impl Route {
    pub(super) async fn status(&self, context: RunContext<'_>) -> StatusReply {
        // A list that hangs must leave time for the status.
        let for_list = context.within(Instant::now() + self.device.status_timeout / 2);
        let unlisted = || StatusReply { reading: StatusReading::Unlisted, words: NOT_IN_LIST.to_owned() };
        // Made for this look: a machine may have come to the device since it was listed last.
        let listing = match self.listing(Duration::ZERO, for_list).await {
            PlugListing::Listed => return self.device.status(&self.plug, context).await,
            PlugListing::At(plug) => return self.device.status(&plug, context).await,
            PlugListing::Denied => return unlisted(),
            PlugListing::Empty | PlugListing::Unheard(_) if self.is_by_name => return unlisted(),
            other => other,
        };
        let reply = self.device.status(&self.plug, context).await;
        // "On" is heard: nobody says it of a plug that is not there. But some agents report off for every
        // plug that they don't know.
        let is_off = reply.reading == StatusReading::Is(PowerState::Off);
        let is_heard = reply.reading == StatusReading::Is(PowerState::On)
            || is_off && self.device.has_seen_on(&self.plug);
        match listing {
            PlugListing::Empty if !is_heard => unlisted(),
            PlugListing::Unheard(why) if is_off && !is_heard => {
                let words = format!("off, which is not believed without its list: {why}");
                StatusReply { reading: StatusReading::CantTell, words }
            }
            _ => reply,
        }
    }

    pub(super) async fn act(&self, to: PowerState, context: RunContext<'_>) -> (ActionReport, String) {
        let why = match self.listing(RELIST_AGE, context).await {
            PlugListing::Listed => return self.device.act(to, &self.plug, context).await,
            PlugListing::Denied | PlugListing::Empty => NOT_IN_LIST.to_owned(),
            PlugListing::At(plug) => format!("its list has the domain at plug {} now", escaped(&plug)),
            PlugListing::Unheard(why) => why,
        };
        (ActionReport::NotRun, format!("not told to act: {why}"))
    }

    pub(super) fn device_plug(&self) -> DevicePlug {
        DevicePlug { device: self.device.name.clone(), plug: self.plug.clone() }
    }

    /// Returns the limits of a plan for this route.
    pub(super) fn limits(&self) -> DeviceLimits {
        self.device.limits_for(self.known_plug())
    }

    /// Returns when the device told the state; none if it failed for all of its time since.
    pub(super) fn last_told(&self) -> Option<Instant> {
        self.device.last_told(self.known_plug())
    }

    /// Notes that the device could not tell the state for all of its time.
    pub(super) fn note_failed_throughout(&self, began: Instant) {
        self.device.note_failed_throughout(self.known_plug(), began);
    }

    /// Returns the plug; none where the device may have it, and may have others as well.
    fn known_plug(&self) -> Option<&str> {
        self.unlisted.is_none().then_some(self.plug.as_str())
    }

    async fn listing(&self, age: Duration, context: RunContext<'_>) -> PlugListing {
        let Some(name) = &self.unlisted else { return PlugListing::Listed };
        match self.device.listing(age, context).await {
            Ok(list) if list.entries.iter().any(|it| is_it(it, &self.plug, name)) => PlugListing::Listed,
            Ok(list) if list.entries.iter().any(|it| is_named(it, name)) => {
                let entry = list.entries.iter().find(|it| is_named(it, name));
                entry.map_or(PlugListing::Denied, |it| PlugListing::At(it.plug.clone()))
            }
            Ok(list) if list.noise > 0 => PlugListing::Unheard("not all of its list can be read".to_owned()),
            Ok(list) if list.entries.is_empty() => PlugListing::Empty,
            Ok(_) => PlugListing::Denied,
            Err(why) => PlugListing::Unheard(why),
        }
    }
}

/// Returns whether an entry of a list is the plug of the domain of that name.
fn is_it(entry: &PlugEntry, plug: &str, name: &str) -> bool {
    entry.plug == plug && (domains::uuid_in(plug).is_some() || is_named(entry, name))
}

fn is_named(entry: &PlugEntry, name: &str) -> bool {
    entry.plug == name || entry.alias.as_ref().is_some_and(|it| it == name)
}

/// Returns whether the list has the plug, and as that of another domain.
pub(super) fn is_another(list: &PlugList, plug: &str, name: &str) -> bool {
    list.entries.iter().any(|it| it.plug == plug && !is_it(it, plug, name))
}
