// SPDX-License-Identifier: GPL-2.0-or-later
//! The other hosts, in `fence_virtd { … }`: `peers` and the keys that belong to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::check::checker::{BlockBody, Checker};
use crate::diagnostic::{DiagnosticCode, show};
use crate::schema::{ListenerKind, MAX_PEERS, Peers};
use crate::tree::Assignment;

/// The keys of the block that are about other hosts.
pub(super) struct PeerSettings {
    pub(super) setting: Peers,
    pub(super) key_file: Option<PathBuf>,
    pub(super) port: u16,
    pub(super) down_command: Option<PathBuf>,
}

impl Checker<'_> {
    pub(super) fn read_peer_settings(
        &mut self,
        body: &BlockBody<'_>,
        listeners: &[ListenerKind],
    ) -> PeerSettings {
        let port = self.read_port_of(body.key("peer_port"));
        let setting = body.key("peers").and_then(|it| self.read_peers(it, port)).unwrap_or_default();
        let key_file = body.key("peer_key_file").and_then(|it| self.read_path(it));
        let has_key = listeners.iter().any(|it| *it != ListenerKind::Serial);
        if let (Peers::Listed(_), None, false, Some(peers)) =
            (&setting, &key_file, has_key, body.key("peers"))
        {
            self.report(
                DiagnosticCode::BadValue,
                peers.value.text.span,
                "`peers` needs `peer_key_file`: no listener here has a key that could be used".to_owned(),
                "add peer_key_file = \"/path/of/a/key\", with the same key on every host".to_owned(),
            );
        }
        let without_effect: &[&str] = match setting {
            Peers::Nobody => &["peer_key_file", "peer_port", "peer_down_command"],
            Peers::Discovered => &["peer_port"],
            Peers::Listed(_) => &[],
        };
        for key in without_effect.iter().filter_map(|it| body.key(it)) {
            let why = if setting == Peers::Nobody { "with peers = \"none\"" } else { "without `peers`" };
            self.findings.warning(
                DiagnosticCode::NoEffect,
                key.id.span,
                format!("`{}` has no effect {why}", show(&key.id.bytes)),
                Some("set peers = \"ADDRESS, ADDRESS\", the other hosts".to_owned()),
            );
        }
        let down_command = body.key("peer_down_command").and_then(|it| self.read_path(it));
        PeerSettings { setting, key_file, port, down_command }
    }

    /// Reads addresses with commas or blanks between them. No names: a name service that hangs would hold up
    /// the daemon's start.
    fn read_peers(&mut self, assignment: &Assignment, port: u16) -> Option<Peers> {
        let text = self.trimmed(assignment)?;
        if text.eq_ignore_ascii_case(b"none") {
            return Some(Peers::Nobody);
        }
        let mut listed: Vec<SocketAddr> = Vec::new();
        let parts = text.split(|it| *it == b',' || it.is_ascii_whitespace()).filter(|it| !it.is_empty());
        for part in parts {
            let address = std::str::from_utf8(part).ok().and_then(|it| peer_address(it, port));
            match address {
                Some(address) if listed.contains(&address) => self.findings.warning(
                    DiagnosticCode::Repeated,
                    assignment.value.text.span,
                    format!("`peers` names {address} twice"),
                    None,
                ),
                Some(address) => listed.push(address),
                None => {
                    self.report(
                        DiagnosticCode::BadValue,
                        assignment.value.text.span,
                        format!("\"{}\" in `peers` is no address of a host", show(part)),
                        "allowed: none, or addresses with commas between them, each with a port or without: \
                         10.0.0.2, 10.0.0.3:1230, [fd00::4]:1230"
                            .to_owned(),
                    );
                    return None;
                }
            }
        }
        if listed.is_empty() || listed.len() > MAX_PEERS {
            self.report_bad_value(assignment, format!("allowed: none, or 1 to {MAX_PEERS} addresses"));
            return None;
        }
        Some(Peers::Listed(listed))
    }
}

/// Returns the address of a host, with the port if the text names none.
fn peer_address(text: &str, port: u16) -> Option<SocketAddr> {
    let address = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)))
        .ok()?;
    let ip = address.ip();
    let is_a_host = !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST);
    (is_a_host && address.port() != 0).then_some(address)
}
