// SPDX-License-Identifier: GPL-2.0-or-later
//! Doubts about who it is that answers. A host in doubt can't tell anything, whatever it says: beside it
//! there may be another one, which is not asked. Values only.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fence_wire::HostId;

/// Runs of one host that are remembered, the latest first.
const MAX_RUNS: usize = 8;
/// Run of a daemon that does not tell any.
const NO_RUN: HostRun = [0; 8];

/// Bytes that a daemon drew at its start.
pub type HostRun = [u8; 8];

/// Reason why it is not known who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostDoubt {
    /// Two daemons have one key pair: a state directory was copied. One of them was heard at this address.
    TwoDaemons {
        /// Their name.
        id: HostId,
        /// Address of the one that was heard second.
        at: IpAddr,
    },
    /// One host answers at two addresses of `peers`: the host that was meant by one of them is not asked.
    TwoAddresses {
        /// The host.
        id: HostId,
        /// The two addresses.
        at: [SocketAddr; 2],
    },
    /// Two hosts answered at one address of `peers`.
    TwoHosts {
        /// The address.
        at: SocketAddr,
        /// The one that answered first, and the other one.
        ids: [HostId; 2],
    },
}

/// Meaning of a hello for the run of its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RunChange {
    /// The run that is known, or the first one.
    Same,
    /// A new one: the daemon was started anew, or there is a second one.
    Another,
    /// One that was followed by another already: two daemons are there.
    Returned,
}

/// Runs of each host, as its hellos show them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct HostRuns(BTreeMap<HostId, Vec<HostRun>>);

impl HostRuns {
    pub(super) fn note(&mut self, id: HostId, run: HostRun) -> RunChange {
        if run == NO_RUN {
            return RunChange::Same;
        }
        let runs = self.0.entry(id).or_default();
        let change = match runs.iter().position(|it| *it == run) {
            Some(0) => return RunChange::Same,
            Some(place) => {
                runs.remove(place);
                RunChange::Returned
            }
            None if runs.is_empty() => RunChange::Same,
            None => RunChange::Another,
        };
        runs.insert(0, run);
        runs.truncate(MAX_RUNS);
        change
    }

    /// Returns true if a hello with this run may come of another daemon than the one that is known.
    pub(super) fn is_other(&self, id: HostId, run: HostRun) -> bool {
        run != NO_RUN && self.0.get(&id).and_then(|it| it.first()) != Some(&run)
    }

    /// Returns the run of the daemon that was heard last.
    pub(super) fn latest(&self, id: HostId) -> Option<HostRun> {
        self.0.get(&id)?.first().copied()
    }

    /// Returns true if a run of this host is known.
    pub(super) fn has(&self, id: HostId) -> bool {
        self.0.contains_key(&id)
    }

    /// Drops the runs of all hosts but these.
    pub(super) fn keep(&mut self, is_kept: impl Fn(&HostId) -> bool) {
        self.0.retain(|id, _| is_kept(id));
    }
}
