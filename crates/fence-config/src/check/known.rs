// SPDX-License-Identifier: GPL-2.0-or-later
//! Table of the known blocks and keys. Values only: their types and defaults are those of the checks.

use crate::check::text::parse_number;
use crate::tree::SourceText;

/// Most hypervisors of one backend: `uri`, `uri1`, … `uri63`.
pub const MAX_URIS: usize = 64;

/// Returns every key: the path of its block, such as `listeners/multicast`, and its name. `uri` stands for
/// `uri1`, `uri2`, … too. The manual and the sample have to name all of them.
pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    KNOWN.iter().flat_map(|block| block.keys.iter().map(|key| (block.path, *key)))
}

/// Block that has a meaning: its path, its keys, the names that may be repeated, its blocks.
pub(super) struct KnownBlock {
    pub(super) path: &'static str,
    pub(super) keys: &'static [&'static str],
    pub(super) repeatable: &'static [&'static str],
    pub(super) blocks: &'static [&'static str],
    /// True if `uri`, `uri1`, `uri2`, … are keys too.
    uris: bool,
    /// True if every key has a meaning, which another program knows.
    any_key: bool,
}

impl KnownBlock {
    pub(super) const NONE: KnownBlock =
        KnownBlock { path: "", keys: &[], repeatable: &[], blocks: &[], uris: false, any_key: false };

    pub(super) fn takes_key(&self, id: &SourceText) -> bool {
        self.any_key || self.has_key(id)
    }

    pub(super) fn has_key(&self, id: &SourceText) -> bool {
        self.keys.iter().any(|it| id.is(it)) || (self.uris && uri_number(&id.bytes).is_some())
    }

    pub(super) fn has_block(&self, id: &SourceText) -> bool {
        self.blocks.iter().any(|it| id.is(it))
    }

    pub(super) fn repeats(&self, id: &SourceText) -> bool {
        self.repeatable.iter().any(|it| id.is(it))
    }
}

/// Every block that has a meaning.
pub(super) const KNOWN: &[KnownBlock] = &[
    KnownBlock { blocks: &["fence_virtd", "listeners", "backends", "groups"], ..KnownBlock::NONE },
    KnownBlock {
        path: "fence_virtd",
        keys: &[
            "listener",
            "backend",
            "foreground",
            "wait_for_init",
            "wait_for_backend",
            "debug",
            "module_path",
            "name_mode",
            "audit_log",
            "state_dir",
            "sandbox",
            "strict_keys",
            "metrics",
            "client_timeout",
            "peers",
            "peer_key_file",
            "peer_port",
            "peer_down_command",
        ],
        ..KnownBlock::NONE
    },
    KnownBlock { path: "listeners", blocks: &["multicast", "tcp", "vsock", "serial"], ..KnownBlock::NONE },
    KnownBlock {
        path: "listeners/multicast",
        keys: &["key_file", "hash", "auth", "family", "address", "port", "interface", "negative_delay"],
        repeatable: &["key_file"],
        ..KnownBlock::NONE
    },
    KnownBlock {
        path: "listeners/tcp",
        keys: &["key_file", "hash", "auth", "family", "address", "port"],
        repeatable: &["key_file"],
        ..KnownBlock::NONE
    },
    KnownBlock {
        path: "listeners/vsock",
        keys: &["key_file", "hash", "auth", "port"],
        repeatable: &["key_file"],
        ..KnownBlock::NONE
    },
    KnownBlock { path: "listeners/serial", keys: &["uri", "path", "mode"], ..KnownBlock::NONE },
    KnownBlock { path: "backends", blocks: &["libvirt", "cpg", "agent"], ..KnownBlock::NONE },
    KnownBlock { path: "backends/libvirt", keys: &["uri", "reboot_starts"], uris: true, ..KnownBlock::NONE },
    KnownBlock {
        path: "backends/cpg",
        keys: &["uri", "name_mode", "reboot_starts", "group", "host_down", "host_down_command"],
        uris: true,
        ..KnownBlock::NONE
    },
    KnownBlock {
        path: "backends/agent",
        keys: &["max_running", "reboot_starts"],
        repeatable: &["device"],
        blocks: &["device"],
        ..KnownBlock::NONE
    },
    KnownBlock {
        path: "backends/agent/device",
        keys: &[
            "agent",
            "plugs",
            "plug_option",
            "order",
            "timeout",
            "status_timeout",
            "effect_timeout",
            "retries",
            "max_running",
        ],
        repeatable: &["domain"],
        blocks: &["options", "domain"],
        ..KnownBlock::NONE
    },
    KnownBlock { path: "backends/agent/device/options", any_key: true, ..KnownBlock::NONE },
    KnownBlock {
        path: "backends/agent/device/domain",
        keys: &["plug", "uuid", "source"],
        ..KnownBlock::NONE
    },
    KnownBlock { path: "groups", blocks: &["group"], repeatable: &["group"], ..KnownBlock::NONE },
    KnownBlock {
        path: "groups/group",
        keys: &["name", "ip", "uuid", "key_file"],
        repeatable: &["ip", "uuid", "key_file"],
        ..KnownBlock::NONE
    },
];

/// Returns the number of a `uri` key: 0 for `uri`, 1 for `uri1`, below `MAX_URIS`.
pub(super) fn uri_number(id: &[u8]) -> Option<u32> {
    let (word, digits) = id.split_at_checked(3)?;
    if !word.eq_ignore_ascii_case(b"uri") || digits.first() == Some(&b'0') {
        return None;
    }
    let number = if digits.is_empty() { 0 } else { parse_number(digits)? };
    (usize::try_from(number).ok()? < MAX_URIS).then_some(number)
}
