// SPDX-License-Identifier: GPL-2.0-or-later
//! One way to a domain: a device, and a plug at it.

use std::sync::Arc;
use std::time::Duration;

use fence_core::agent::plan::{ActionReport, StatusReading};
use fence_core::agent::{domains, listing};
use fence_core::domain::PowerState;

use super::device::FenceDevice;
use super::run::{RunContext, StatusReply};

/// How long a list, or that there is none, may be old where a device is asked in place of another one.
const RELIST_AGE: Duration = Duration::from_secs(1);

/// A device, and the plug at it.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) device: Arc<FenceDevice>,
    pub(super) plug: String,
    /// The domain's name where the device has not listed it yet, and must before it is asked for anything.
    pub(super) unlisted: Option<String>,
}

impl Route {
    pub(super) async fn status(&self, context: RunContext<'_>) -> StatusReply {
        match self.is_listed(context).await {
            Ok(()) => self.device.status(&self.plug, context).await,
            Err(words) => StatusReply { heard: StatusReading::CantTell, words },
        }
    }

    pub(super) async fn act(&self, to: PowerState, context: RunContext<'_>) -> (ActionReport, String) {
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
