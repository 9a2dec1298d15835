// SPDX-License-Identifier: GPL-2.0-or-later
//! One route to a domain: a device, and a plug at it.

use std::sync::Arc;
use std::time::Duration;

use fence_core::agent::plan::{ActionReport, StatusReading};
use fence_core::agent::{domains, listing};
use fence_core::domain::PowerState;

use super::device::FenceDevice;
use super::run::{RunContext, StatusReply};

/// Age up to which a list, or its absence, is used when another device takes over.
const RELIST_AGE: Duration = Duration::from_secs(1);

/// Route to a domain: a device, and the plug at it.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) device: Arc<FenceDevice>,
    pub(super) plug: String,
    /// Name of the domain if the device has not listed it yet; it must do so before it is used.
    pub(super) unlisted: Option<String>,
}

impl Route {
    pub(super) async fn status(&self, context: RunContext<'_>) -> StatusReply {
        match self.is_listed(context).await {
            Ok(()) => self.device.status(&self.plug, context).await,
            Err(words) => StatusReply { reading: StatusReading::Unlisted, words },
        }
    }

    pub(super) async fn act(&self, to: PowerState, context: RunContext<'_>) -> (ActionReport, String) {
        match self.is_listed(context).await {
            Ok(()) => self.device.act(to, &self.plug, context).await,
            Err(words) => (ActionReport::NotRun, words),
        }
    }

    /// Checks that the device lists the plug: some agents report off for every plug that they don't know.
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
