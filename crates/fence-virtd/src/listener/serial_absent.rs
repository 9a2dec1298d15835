// SPDX-License-Identifier: GPL-2.0-or-later
//! The serial listener of a build without libvirt: it can't start.

use std::sync::Arc;

use fence_config::SerialListener as Settings;

use super::StartError;
use super::rules::CurrentRules;
use crate::hypervisor::Hypervisors;
use crate::service::Service;

/// The serial listener, of which a build without libvirt has none.
pub(crate) enum Serial {}

impl Serial {
    /// # Errors
    /// Always: the sockets of domains are found through libvirt.
    #[expect(clippy::unused_async, reason = "the same form as with libvirt")]
    pub(crate) async fn start(
        _: &Settings,
        _: Arc<Service>,
        _: &Hypervisors,
        _: Arc<CurrentRules>,
    ) -> Result<Self, StartError> {
        Err(StartError::Serial("is not part of this build: it needs libvirt".to_owned()))
    }

    #[expect(clippy::unused_async, reason = "the same form as with libvirt")]
    pub(crate) async fn run(self) {
        match self {}
    }
}
