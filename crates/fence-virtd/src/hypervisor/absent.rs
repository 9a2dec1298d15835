// SPDX-License-Identifier: GPL-2.0-or-later
//! The hypervisors of a build without libvirt: none.
//!
//! Has the names that the layers above read, so that these need no conditions of their own.

use std::path::Path;
use std::sync::Arc;

use fence_core::domain::DomainId;
use fence_core::evidence::Sight;

/// Beginning of the reason of a call for which no time was left.
pub(crate) const NO_TIME_LEFT: &str = "no time was left to ask";

/// Hypervisors of a build without libvirt: none.
#[derive(Clone, Default)]
pub(crate) struct Hypervisors {}

/// A hypervisor, of which a build without libvirt has none.
pub(crate) enum Hypervisor {}

impl Hypervisors {
    /// Builds the hypervisors of this build: none.
    pub(crate) fn open(_: Option<&Path>, _: &str) -> Self {
        Self::default()
    }

    /// Waits for nothing.
    #[expect(clippy::unused_self, reason = "the same form as with libvirt")]
    pub(crate) fn finish(&self) {}

    /// Returns all hypervisors: none.
    #[expect(clippy::unused_self, reason = "the same form as with libvirt")]
    pub(crate) fn all(&self) -> Vec<Arc<Hypervisor>> {
        Vec::new()
    }

    /// Waits for a migration, which never happens.
    pub(crate) async fn migration(&self) {
        std::future::pending::<()>().await;
    }
}

impl Hypervisor {
    pub(crate) fn uri(&self) -> &str {
        match *self {}
    }

    pub(crate) fn is_up(&self) -> bool {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "the same form as with libvirt")]
    pub(crate) async fn first_list(&self) -> Result<(), std::convert::Infallible> {
        match *self {}
    }
}

/// Domain that a daemon saw leave this host, or end here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WrittenEvent {
    pub(crate) uuid: DomainId,
    pub(crate) name: String,
    pub(crate) sight: Sight,
}

/// Returns nothing: no daemon saw any.
pub(crate) fn written_events(_: &Path, _: &str) -> Vec<WrittenEvent> {
    Vec::new()
}
