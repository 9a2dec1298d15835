// SPDX-License-Identifier: GPL-2.0-or-later
//! `listeners { … }`: the settings of each transport.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use fence_wire::{DEFAULT_KEY_FILE, DEFAULT_PORT, Family, HashType};

use crate::check::checker::{BlockBody, Checker};
use crate::check::text::parse_number;
use crate::diagnostic::DiagnosticCode;
use crate::schema::{
    ChallengeHash, DEFAULT_NEGATIVE_DELAY, DEFAULT_URI, KeySettings, Listener, ListenerKind,
    MAX_NEGATIVE_DELAY, MulticastListener, SerialListener, SerialMode, TcpListener, VsockListener,
};
use crate::tree::Assignment;

impl Checker<'_> {
    /// Reads the listeners in use: of multicast each block where it is named for each, of all others the
    /// last.
    pub(super) fn read_listeners(
        &mut self,
        section: &BlockBody<'_>,
        kinds: &[ListenerKind],
    ) -> Vec<Listener> {
        let mut blocks = section.blocks.iter().copied().filter(|it| it.id.is("multicast"));
        let mut listeners = Vec::new();
        for &kind in kinds {
            let is_one_of_several = kind == ListenerKind::Multicast && self.multicast_named > 1;
            let Some(block) = is_one_of_several.then(|| blocks.next()).flatten() else {
                listeners.push(self.read_listener(section, kind));
                continue;
            };
            let body = self.read_block("listeners/multicast", &block.items);
            let listener = self.read_multicast(&body);
            let same = listeners.iter().find_map(|it| match it {
                Listener::Multicast(it) if it.hears_the_same(&listener) => Some(it.place()),
                _ => None,
            });
            if let Some(other) = same {
                self.report(
                    DiagnosticCode::BadValue,
                    block.id.span,
                    format!(
                        "this block hears {}, which an earlier block hears too ({other})",
                        listener.place()
                    ),
                    "give each block an `interface` of its own, or another `address` or `port`".to_owned(),
                );
            }
            listeners.push(Listener::Multicast(listener));
        }
        listeners
    }

    fn read_multicast(&mut self, body: &BlockBody<'_>) -> MulticastListener {
        let (family, address) = self.read_address(body, true);
        MulticastListener {
            keys: self.read_key_settings(body),
            family,
            address,
            port: self.read_port(body),
            interface: self.read_interface(body.key("interface")),
            negative_delay: self
                .read_seconds(body.key("negative_delay"), Duration::ZERO, MAX_NEGATIVE_DELAY)
                .unwrap_or(DEFAULT_NEGATIVE_DELAY),
        }
    }

    pub(super) fn read_listener(&mut self, section: &BlockBody<'_>, kind: ListenerKind) -> Listener {
        let path = match kind {
            ListenerKind::Multicast => "listeners/multicast",
            ListenerKind::Tcp => "listeners/tcp",
            ListenerKind::Vsock => "listeners/vsock",
            ListenerKind::Serial => "listeners/serial",
        };
        let body =
            section.block(kind.as_str()).map(|it| self.read_block(path, &it.items)).unwrap_or_default();
        match kind {
            ListenerKind::Multicast => Listener::Multicast(self.read_multicast(&body)),
            ListenerKind::Tcp => {
                let (family, address) = self.read_address(&body, false);
                Listener::Tcp(TcpListener {
                    keys: self.read_key_settings(&body),
                    family,
                    address,
                    port: self.read_port(&body),
                })
            }
            ListenerKind::Vsock => Listener::Vsock(VsockListener {
                keys: self.read_key_settings(&body),
                port: self.read_port(&body),
            }),
            ListenerKind::Serial => Listener::Serial(SerialListener {
                uri: body
                    .key("uri")
                    .and_then(|it| self.read_uri(it))
                    .unwrap_or_else(|| DEFAULT_URI.to_owned()),
                path: body.key("path").and_then(|it| self.read_path(it)),
                mode: self.read_word(body.key("mode")).unwrap_or(SerialMode::Serial),
            }),
        }
    }

    fn read_key_settings(&mut self, body: &BlockBody<'_>) -> KeySettings {
        let mut key_files: Vec<_> = body.keys("key_file").filter_map(|it| self.read_path(it)).collect();
        if key_files.is_empty() {
            key_files.push(PathBuf::from(DEFAULT_KEY_FILE));
        }
        KeySettings {
            key_files,
            key_files_named: body.key("key_file").is_some(),
            hash: self.read_word(body.key("hash")).unwrap_or(HashType::Sha256),
            auth: self.read_word::<ChallengeHash>(body.key("auth")).map_or(HashType::Sha256, |it| it.0),
        }
    }

    fn read_port(&mut self, body: &BlockBody<'_>) -> u16 {
        self.read_port_of(body.key("port"))
    }

    pub(super) fn read_port_of(&mut self, assignment: Option<&Assignment>) -> u16 {
        let Some(assignment) = assignment else { return DEFAULT_PORT };
        let Some(text) = self.trimmed(assignment) else { return DEFAULT_PORT };
        match parse_number(text).and_then(|it| u16::try_from(it).ok()) {
            Some(port) if port > 0 => port,
            _ => {
                self.report_bad_value(assignment, "allowed: a number from 1 to 65535".to_owned());
                DEFAULT_PORT
            }
        }
    }

    /// Reads family and address of a listener. Each decides the other's default.
    fn read_address(&mut self, body: &BlockBody<'_>, multicast: bool) -> (Family, IpAddr) {
        let family: Option<Family> = self.read_word(body.key("family"));
        let default = |family: Family| {
            if multicast { family.default_multicast_address() } else { family.default_tcp_address() }
        };
        let unset = family.unwrap_or(Family::V4);
        let Some(assignment) = body.key("address") else { return (unset, default(unset)) };
        let Some(text) = self.trimmed(assignment) else { return (unset, default(unset)) };
        let what = if multicast { "multicast address" } else { "address" };
        let address = std::str::from_utf8(text).ok().and_then(|it| it.parse::<IpAddr>().ok());
        match address {
            Some(address) if address.is_multicast() != multicast => {
                let allowed = if multicast {
                    "allowed: a multicast address, 224.0.0.0 to 239.255.255.255 or ff00::/8"
                } else {
                    "allowed: an address of this host, not a multicast address"
                };
                self.report_bad_value(assignment, allowed.to_owned());
            }
            Some(address) if family.is_some_and(|family| family != Family::of(address)) => {
                self.report_bad_value(assignment, format!("allowed: an {unset} {what}, as `family` says"));
            }
            Some(address) => return (Family::of(address), address),
            None => self
                .report_bad_value(assignment, format!("allowed: an IP {what}, such as {}", default(unset))),
        }
        (unset, default(unset))
    }

    /// Reads the name of an interface. Users of the configurator type `"none"` for no interface.
    fn read_interface(&mut self, assignment: Option<&Assignment>) -> Option<String> {
        let assignment = assignment?;
        let text = self.trimmed(assignment)?;
        if text.eq_ignore_ascii_case(b"none") || text.is_empty() {
            return None;
        }
        let name = std::str::from_utf8(text).ok().filter(|it| is_interface_name(it));
        if name.is_none() {
            self.report_bad_value(
                assignment,
                "allowed: the name of one network interface, or none to let the system choose".to_owned(),
            );
        }
        name.map(str::to_owned)
    }
}

/// Returns whether the kernel allows this name of an interface.
fn is_interface_name(name: &str) -> bool {
    name.len() <= 15
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}
