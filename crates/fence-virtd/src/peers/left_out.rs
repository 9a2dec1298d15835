// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts that `peers = "none"` leaves out, although they were heard not long ago, and those that are no
//! nodes.
//!
//! The messages of a host that has `peers` set go to the named addresses alone, where nobody reads them with
//! `peers = "none"`: only the memory of before tells of such a host. Values and texts only.

use fence_core::hosts::{KnownHost, KnownHosts};
use fence_wire::escaped;

use crate::util::heard::{heard_ago, is_recent};

/// Next step about a host that is no node.
pub(crate) const NO_NODE_STEP: &str = "make a node with the cpg backend of that host, or, if that host never \
                                       has the same domains, give it another key (peer_key_file)";

/// Host that was heard within the last day, and that nobody asks.
pub(crate) struct LeftOutHost {
    pub(crate) name: String,
    pub(crate) last_heard: u64,
    /// Address or key that `--forget` takes for it.
    handle: String,
}

impl LeftOutHost {
    fn of(host: &KnownHost) -> Self {
        let handle = host.addresses.first().map_or_else(|| host.id.to_string(), ToString::to_string);
        Self { name: escaped(&host.to_string()).to_string(), last_heard: host.last_heard, handle }
    }

    /// Returns what is wrong, in words that follow the host's name.
    pub(crate) fn text(&self) -> String {
        format!(
            "peers = \"none\" says that there is no other host, but this one was heard {}: \"off\" may be \
             said here of a domain that runs there",
            heard_ago(self.last_heard)
        )
    }

    /// Returns the next step.
    pub(crate) fn step(&self) -> String {
        format!(
            "take the line peers = \"none\" out, and reload. Only if that host is off for good, or never has \
             the same domains: fence_virtd --forget {}",
            self.handle
        )
    }
}

/// Returns the hosts of a table that `peers = "none"` leaves out.
pub(crate) fn left_out(table: &KnownHosts) -> Vec<LeftOutHost> {
    table.all().filter(|it| is_recent(it.last_heard)).map(LeftOutHost::of).collect()
}

/// Returns what is said of a host that was heard and is no node.
pub(super) fn told_of(host: &KnownHost) -> String {
    let name = escaped(&host.to_string()).to_string();
    format!(
        "host {name} is no node of this corosync cluster, and has the key of its hosts: from now on that \
         host is asked too before a domain is called off"
    )
}
