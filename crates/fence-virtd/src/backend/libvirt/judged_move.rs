// SPDX-License-Identifier: GPL-2.0-or-later
//! Moves away from this host that a proof of "off" has judged, for the start that follows the proof.
//!
//! libvirt tells of a move until the definition that stayed behind is started, or libvirtd is started anew.
//! So its word alone does not tell an old move, after which the machine ended elsewhere, from a new one. Must
//! never take a move for judged if anything was seen of the domain since the looks of the proof began.

use std::time::Instant;

use fence_core::evidence::last_seen::LastSeen;
use libvirt_host::Uuid;

use crate::hypervisor::{EVENT_LAG, Hypervisor};

/// Moves of a domain away from the hypervisors of this host, as they are remembered when looks at all places
/// begin.
pub(super) struct MovesBefore {
    asked: Instant,
    last: Vec<Option<LastSeen>>,
}

impl MovesBefore {
    /// Notes what is remembered at each hypervisor, before the looks.
    pub(super) fn note(last: Vec<Option<LastSeen>>) -> Self {
        Self { asked: Instant::now(), last }
    }

    /// Returns the move from this hypervisor that the looks judge, if any.
    pub(super) fn at(&self, home: usize) -> Option<JudgedMove> {
        let last = (*self.last.get(home)?).filter(|it| it.moved().is_some())?;
        Some(JudgedMove { asked: self.asked, last })
    }
}

/// Move of a domain away from a hypervisor, after which looks at all places proved the domain off.
#[derive(Clone, Copy)]
pub(super) struct JudgedMove {
    asked: Instant,
    last: LastSeen,
}

impl JudgedMove {
    /// Waits for events that may be on their way: the next answers of other hosts are then younger than all
    /// that was not told yet. A daemon that stood still has a backlog.
    pub(super) async fn await_events(&self, uuid: Uuid, memory: &Hypervisor, until: Instant) {
        if self.is_last(uuid, memory) {
            tokio::time::sleep_until(until.min(Instant::now() + EVENT_LAG).into()).await;
        }
    }

    /// Returns whether this is still the last that was seen of the domain, with events watched all the time.
    pub(super) fn is_last(&self, uuid: Uuid, memory: &Hypervisor) -> bool {
        let is_watched = memory.use_memory(uuid).noted_for >= self.asked.elapsed();
        is_watched && memory.last_seen(uuid) == Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hypervisor::Hypervisors;

    const UUID: &str = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";

    /// The instance of a later move is started at this host by somebody, between the looks and the order.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_move_is_judged_until_anything_is_seen_after_the_looks_began() {
        let world = tempfile::NamedTempFile::new().unwrap();
        let domain = format!(
            "<node><domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
             <test:runstate>5</test:runstate><name>x</name><uuid>{UUID}</uuid><memory>1024</memory>\
             <os><type arch='i686'>hvm</type></os></domain></node>"
        );
        std::fs::write(world.path(), domain).unwrap();
        let known = Hypervisors::default();
        let home = known.at(&format!("test://{}", world.path().display()));
        home.first_answer().await.unwrap();
        home.first_list().await.unwrap();
        let uuid = UUID.parse().unwrap();
        let now = || MovesBefore::note(vec![home.last_seen(uuid)]);
        assert!(now().at(0).is_none(), "no move is known");
        assert!(now().at(1).is_none(), "no such hypervisor");

        home.record_move(uuid);
        let judged = now().at(0).unwrap();
        assert!(judged.is_last(uuid, &home));
        let unwatched = JudgedMove { asked: Instant::now() - Duration::from_secs(60), ..judged };
        assert!(!unwatched.is_last(uuid, &home), "nobody watched when the looks began");
        home.record_end(uuid);
        assert!(!judged.is_last(uuid, &home), "an instance was here since");
        home.record_move(uuid);
        assert!(!judged.is_last(uuid, &home), "the machine moved again");
        assert!(now().at(0).unwrap().is_last(uuid, &home));
    }
}
