// SPDX-License-Identifier: GPL-2.0-or-later
//! The file `nodes.keys` of the state directory: what tells the nodes from other hosts, one node a line.
//!
//! ```text
//! fence_virt node keys 1
//! node ID KEY RUN ADDRESS,ADDRESS
//! end
//! ```
//!
//! `-` stands for what is not known. The daemon writes it, and reads it at its start: a node that is down
//! then tells nothing. `--check` reads it too. What can't be read is not there: then a node is asked as
//! another host, as long as it is not heard.

use std::io;
use std::net::IpAddr;

use fence_core::hosts::HostRun;
use fence_wire::HostId;

use super::{LineFile, NodeStore};

const KEYS: LineFile = LineFile { name: "nodes.keys", header: "fence_virt node keys 1", must_last: true };

/// Key and addresses of a node of corosync's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NodeKey {
    pub(crate) node: u32,
    /// Key and run that the last daemon there told.
    pub(crate) told: Option<(HostId, HostRun)>,
    /// Addresses of its links.
    pub(crate) addresses: Vec<IpAddr>,
}

impl NodeKey {
    /// Returns true if the node told this key, and this run if one is given.
    pub(crate) fn has(&self, id: HostId, run: Option<HostRun>) -> bool {
        self.told.is_some_and(|(its, its_run)| its == id && run.is_none_or(|it| it == its_run))
    }

    /// Returns true if the node has this address, and told this key if one is given.
    pub(crate) fn is_at(&self, id: Option<HostId>, address: IpAddr) -> bool {
        self.addresses.contains(&address) && id.is_none_or(|it| self.has(it, None))
    }

    fn line(&self) -> String {
        let told = self
            .told
            .map_or_else(|| "- -".to_owned(), |(id, run)| format!("{id} {:016x}", u64::from_be_bytes(run)));
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let addresses = if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") };
        format!("node {} {told} {addresses}", self.node)
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let ["node", node, id, run, addresses] = words[..] else { return None };
        let told = match (id, run) {
            ("-", "-") => None,
            _ => Some((HostId::from_text(id)?, u64::from_str_radix(run, 16).ok()?.to_be_bytes())),
        };
        let addresses = match addresses {
            "-" => Some(Vec::new()),
            _ => addresses.split(',').map(|it| it.parse().ok()).collect(),
        };
        Some(Self { node: node.parse().ok()?, told, addresses: addresses? })
    }
}

impl NodeStore {
    /// Writes the keys in the place of those before. Waits for the disk.
    pub(crate) fn write_keys(&self, keys: &[NodeKey]) -> io::Result<()> {
        self.write_lines(&KEYS, keys.iter().map(NodeKey::line))
    }

    /// Returns the keys; none where no daemon wrote them, or they can't be read.
    pub(crate) fn read_keys(&self) -> Vec<NodeKey> {
        self.read_lines(&KEYS, NodeKey::parse)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::at(dir.path());
        assert_eq!(store.read_keys(), []);
        let keys = [
            NodeKey {
                node: 1,
                told: Some((HostId([9; 8]), [0, 1, 2, 3, 4, 5, 6, 255])),
                addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            },
            NodeKey { node: 7, told: None, addresses: Vec::new() },
        ];
        store.write_keys(&keys).unwrap();
        assert_eq!(store.read_keys(), keys);
        // Half a file is none.
        let text = fs::read_to_string(dir.path().join(KEYS.name)).unwrap();
        fs::write(dir.path().join(KEYS.name), &text[..text.len() - 2]).unwrap();
        assert_eq!(store.read_keys(), []);
    }

    #[test]
    fn an_address_tells_a_node_and_with_a_key_that_one_alone() {
        let at = |last| IpAddr::from([10, 0, 0, last]);
        let key = |node, id, last| NodeKey {
            node,
            told: Some((HostId([id; 8]), [id; 8])),
            addresses: vec![at(last)],
        };
        let nodes = [key(1, 1, 1), key(2, 2, 2)];
        let is_node_at =
            |id: Option<u8>, address| nodes.iter().any(|it| it.is_at(id.map(|id| HostId([id; 8])), address));
        assert!(is_node_at(None, at(2)) && is_node_at(Some(2), at(2)));
        assert!(!is_node_at(Some(1), at(2)) && !is_node_at(None, at(3)));
        assert!(!is_node_at(Some(3), at(2)), "a key that no node told");
    }
}
