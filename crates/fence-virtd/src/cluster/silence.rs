// SPDX-License-Identifier: GPL-2.0-or-later
//! Nodes that have not said which domains they have, and the time for which that is worth waiting.
//!
//! A daemon that is started anew is back within seconds. Pure; time is a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fence_core::cluster::message::Member;

/// Time in which a daemon that ended, or whose node is new, comes back and says what it has.
pub(super) const DAEMON_WAIT: Duration = Duration::from_secs(5);

/// Silence of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum NodeSilence {
    /// No daemon of this node is heard.
    Absent(u32),
    /// This legacy host has published no domain since it joined.
    Mute(Member),
}

impl NodeSilence {
    pub(super) fn node(self) -> u32 {
        match self {
            Self::Absent(node) => node,
            Self::Mute(member) => member.node,
        }
    }
}

/// Silences of nodes, each with its beginning.
#[derive(Debug, Default)]
pub(super) struct NodeSilences(BTreeMap<NodeSilence, Instant>);

impl NodeSilences {
    /// Takes the present silences.
    pub(super) fn update(&mut self, present: &BTreeSet<NodeSilence>, now: Instant) {
        self.0.retain(|it, _| present.contains(it));
        for it in present {
            self.0.entry(*it).or_insert(now);
        }
    }

    /// Returns the silences.
    pub(super) fn all(&self) -> impl Iterator<Item = NodeSilence> {
        self.0.keys().copied()
    }

    /// Returns the moment until which one of these silences is likely to end; none if that is over.
    pub(super) fn likely_end(&self, counts: impl Fn(NodeSilence) -> bool, now: Instant) -> Option<Instant> {
        let ends = self.0.iter().filter(|(it, _)| counts(**it)).map(|(_, since)| *since + DAEMON_WAIT);
        ends.max().filter(|it| *it > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_waited_for_from_its_beginning() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mute = NodeSilence::Mute(Member { node: 3, pid: 30 });
        let mut silences = NodeSilences::default();
        silences.update(&[NodeSilence::Absent(2), NodeSilence::Absent(3)].into(), start);
        silences.update(&[NodeSilence::Absent(2), mute].into(), start + second);
        assert_eq!(silences.all().collect::<Vec<_>>(), [NodeSilence::Absent(2), mute]);
        let end = |now| silences.likely_end(|_| true, now);
        assert_eq!(end(start + second), Some(start + second + DAEMON_WAIT), "it has just joined");
        let of_absent = silences.likely_end(|it| it == NodeSilence::Absent(2), start);
        assert_eq!(of_absent, Some(start + DAEMON_WAIT));
        assert_eq!(end(start + second + DAEMON_WAIT), None);
    }
}
