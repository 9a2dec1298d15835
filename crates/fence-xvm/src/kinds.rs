// SPDX-License-Identifier: GPL-2.0-or-later
//! Kinds of hosts, as far as their call-backs showed them.
//!
//! A host of this project names the request in its challenge of a classic call-back, and one of the C
//! programs does not. That a host is silent tells nothing of its kind: it may be slow, and one that has not
//! the domain calls back late.
//!
//! Owns what was seen. Pure. Must never grow with the number of peers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fence_wire::CallName;

/// Most hosts of a kind that are remembered.
const REMEMBERED: usize = 64;

/// Kind of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HostKind {
    /// A host of this project.
    Ours,
    /// A host of the C programs.
    Classic,
    /// Nothing has shown it.
    Unknown,
}

/// Hosts that hold the key, by what their classic call-backs showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostKinds {
    named: BTreeSet<IpAddr>,
    unnamed: BTreeSet<IpAddr>,
}

impl HostKinds {
    /// Records the challenge of a host in a classic call-back.
    pub(crate) fn record(&mut self, from: IpAddr, name: CallName) {
        let seen = match name {
            CallName::Own | CallName::Other => &mut self.named,
            CallName::Unnamed => &mut self.unnamed,
        };
        if seen.len() < REMEMBERED {
            seen.insert(from);
        }
    }

    /// Adds what another request showed.
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, seen) in [(&mut self.named, &other.named), (&mut self.unnamed, &other.unnamed)] {
            mine.extend(seen.iter().take(REMEMBERED.saturating_sub(mine.len())));
        }
    }

    /// Returns the kind of the host at this address. Where two daemons share it, one of ours is enough to be
    /// waited for.
    pub(crate) fn of(&self, host: IpAddr) -> HostKind {
        match (self.named.contains(&host), self.unnamed.contains(&host)) {
            (true, _) => HostKind::Ours,
            (false, true) => HostKind::Classic,
            (false, false) => HostKind::Unknown,
        }
    }

    /// Returns the hosts of the C programs.
    pub(crate) fn classic(&self) -> Vec<IpAddr> {
        self.unnamed.difference(&self.named).copied().collect()
    }

    /// Returns the kind of all hosts that were seen: of the C programs only where none is ours.
    pub(crate) fn of_all(&self) -> HostKind {
        match (self.named.is_empty(), self.unnamed.is_empty()) {
            (false, _) => HostKind::Ours,
            (true, false) => HostKind::Classic,
            (true, true) => HostKind::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_told_by_call_backs_alone() {
        let [ours, classic, both, silent] = [1, 2, 3, 4].map(|it| IpAddr::from([10, 0, 0, it]));
        let mut seen = HostKinds::default();
        assert_eq!(seen.of_all(), HostKind::Unknown);
        seen.record(classic, CallName::Unnamed);
        seen.record(both, CallName::Unnamed);
        assert_eq!(seen.of_all(), HostKind::Classic);
        let mut later = HostKinds::default();
        later.record(ours, CallName::Own);
        // It calls for another agent of this guest. It is ours all the same.
        later.record(both, CallName::Other);
        seen.add(&later);
        assert_eq!(
            [ours, classic, both, silent].map(|it| seen.of(it)),
            [HostKind::Ours, HostKind::Classic, HostKind::Ours, HostKind::Unknown]
        );
        assert_eq!((seen.of_all(), seen.classic()), (HostKind::Ours, vec![classic]));
    }

    #[test]
    fn no_more_hosts_are_remembered_than_fit() {
        let mut seen = HostKinds::default();
        for number in 0..=u8::MAX {
            seen.record([10, 0, 0, number].into(), CallName::Own);
        }
        let mut both = seen.clone();
        both.add(&seen);
        assert_eq!((seen.named.len(), both.named.len()), (REMEMBERED, REMEMBERED));
    }
}
