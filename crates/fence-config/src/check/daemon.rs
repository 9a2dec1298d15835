// SPDX-License-Identifier: GPL-2.0-or-later
//! `fence_virtd { … }`: the daemon itself.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;

use crate::check::checker::{BlockBody, Checker};
use crate::check::text::parse_number;
use crate::diagnostic::{DiagnosticCode, Span};
use crate::schema::{
    BackendKind, DEFAULT_CLIENT_TIMEOUT, DaemonSection, ListenerKind, MAX_CLIENT_TIMEOUT,
    MAX_MULTICAST_BLOCKS, MetricsAddress, StateDir,
};
use crate::tree::{Assignment, Item, Node};

impl Checker<'_> {
    pub(super) fn read_daemon(&mut self, root: &BlockBody<'_>) -> DaemonSection {
        let body = match root.block("fence_virtd") {
            Some(block) => self.read_block("fence_virtd", &block.items),
            // The block may be inside bytes that could not be read.
            None if self.findings.has_errors() => BlockBody::default(),
            None => {
                self.findings.warning(
                    DiagnosticCode::NoDaemonBlock,
                    Span::default(),
                    "there is no block `fence_virtd`: listener multicast and backend libvirt are used"
                        .to_owned(),
                    Some("add fence_virtd { listener = \"multicast\"; backend = \"libvirt\"; }".to_owned()),
                );
                BlockBody::default()
            }
        };
        // Two names of one setting: the last one in the file counts.
        let wait = body.keys.iter().rfind(|it| it.id.is("wait_for_init") || it.id.is("wait_for_backend"));
        let listeners = self.read_listener_list(body.key("listener"), root);
        let peers = self.read_peer_settings(&body, &listeners);
        DaemonSection {
            listeners,
            backends: self.read_backend_list(body.key("backend")),
            foreground: self.read_word(body.key("foreground")).unwrap_or(false),
            wait_for_init: self.read_word(wait.copied()).unwrap_or(false),
            debug: self.read_debug_level(body.key("debug")).unwrap_or(0),
            module_path: body
                .key("module_path")
                .map(|it| String::from_utf8_lossy(&it.value.text.bytes).into_owned()),
            name_mode: self.read_word(body.key("name_mode")),
            audit_log: body.key("audit_log").and_then(|it| self.read_path(it)),
            state_dir: body.key("state_dir").map_or(StateDir::Default, |it| self.read_state_dir(it)),
            sandbox: self.read_word(body.key("sandbox")).unwrap_or(true),
            strict_keys: self.read_word(body.key("strict_keys")).unwrap_or(false),
            metrics: body.key("metrics").and_then(|it| self.read_metrics(it)),
            client_timeout: self
                .read_seconds(body.key("client_timeout"), DEFAULT_CLIENT_TIMEOUT, MAX_CLIENT_TIMEOUT)
                .unwrap_or(DEFAULT_CLIENT_TIMEOUT),
            peers: peers.setting,
            peer_key_file: peers.key_file,
            peer_port: peers.port,
            peer_down_command: peers.down_command,
        }
    }

    /// Reads `listener`, in which multicast stands once for each of its blocks that is in use. Alone, the
    /// last block is in use, as with the C daemon.
    fn read_listener_list(
        &mut self,
        assignment: Option<&Assignment>,
        root: &BlockBody<'_>,
    ) -> Vec<ListenerKind> {
        let Some(mut list) = self.read_repeated::<ListenerKind>(assignment) else {
            return vec![ListenerKind::Multicast];
        };
        let named = list.iter().filter(|it| **it == ListenerKind::Multicast).count();
        let blocks = root.block("listeners").map_or(0, |it| {
            let is_multicast = |item: &&Item| matches!(&item.node, Node::Block(it) if it.id.is("multicast"));
            it.items.iter().filter(is_multicast).count()
        });
        if named > 1 && blocks > 1 {
            self.multicast_named = named;
            self.check_multicast_count(assignment, named, blocks);
        }
        let mut seen = Vec::new();
        list.retain(|kind| {
            let may_repeat = *kind == ListenerKind::Multicast && self.multicast_named > 1;
            let is_first = !seen.contains(kind);
            seen.push(*kind);
            if let (false, false, Some(assignment)) = (is_first, may_repeat, assignment) {
                self.report_named_twice(assignment, *kind);
            }
            is_first || may_repeat
        });
        list
    }

    fn check_multicast_count(&mut self, assignment: Option<&Assignment>, named: usize, blocks: usize) {
        let Some(assignment) = assignment else { return };
        if blocks > MAX_MULTICAST_BLOCKS {
            self.report_bad_value(
                assignment,
                format!("allowed: multicast {MAX_MULTICAST_BLOCKS} times at most"),
            );
        } else if named != blocks {
            self.report(
                DiagnosticCode::BadValue,
                assignment.value.text.span,
                format!(
                    "`listener` names multicast {named} times, and there are {blocks} blocks `multicast`"
                ),
                "name multicast once for each block; or once alone, to serve the last block".to_owned(),
            );
        }
    }

    fn read_backend_list(&mut self, assignment: Option<&Assignment>) -> Vec<BackendKind> {
        let backends = self.read_list(assignment).unwrap_or_else(|| vec![BackendKind::Libvirt]);
        if let Some(assignment) = assignment
            && [BackendKind::Libvirt, BackendKind::Cpg].iter().all(|it| backends.contains(it))
        {
            self.report(
                DiagnosticCode::BadValue,
                assignment.value.text.span,
                "backend cpg has this host's libvirt in it: libvirt can't be named beside it".to_owned(),
                "name one of them, and give cpg the `uri` of this host's hypervisor".to_owned(),
            );
        }
        backends
    }

    fn read_debug_level(&mut self, assignment: Option<&Assignment>) -> Option<u32> {
        let assignment = assignment?;
        let level = parse_number(self.trimmed(assignment)?);
        if level.is_none() {
            self.report_bad_value(assignment, "allowed: a number from 0".to_owned());
        }
        level
    }

    /// Reads the address of the metrics endpoint. Only this host may read it: metrics tell about guests, and
    /// the endpoint checks no key.
    fn read_metrics(&mut self, assignment: &Assignment) -> Option<MetricsAddress> {
        let text = self.trimmed(assignment)?;
        // The kernel allows no longer path.
        let is_path = |path: &&[u8]| path.starts_with(b"/") && path.len() < 108 && !path.contains(&0);
        let address = match text.strip_prefix(b"unix:") {
            Some(path) => Some(path)
                .filter(is_path)
                .map(|it| OsString::from_vec(it.to_vec()).into())
                .map(MetricsAddress::Unix),
            None => std::str::from_utf8(text)
                .ok()
                .and_then(|it| it.parse().ok())
                .filter(|it: &SocketAddr| it.ip().is_loopback() && it.port() != 0)
                .map(MetricsAddress::Tcp),
        };
        if address.is_none() {
            let allowed = "allowed: a loopback address with a port, such as 127.0.0.1:9229 or [::1]:9229, or \
                           unix: and a path from `/` of at most 107 bytes";
            self.report_bad_value(assignment, allowed.to_owned());
        }
        address
    }

    fn read_state_dir(&mut self, assignment: &Assignment) -> StateDir {
        if assignment.value.text.bytes.eq_ignore_ascii_case(b"none") {
            return StateDir::Nowhere;
        }
        self.read_path(assignment).map_or(StateDir::Default, StateDir::At)
    }
}
