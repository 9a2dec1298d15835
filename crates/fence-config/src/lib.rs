// SPDX-License-Identifier: GPL-2.0-or-later
//! fence_virt.conf: a parser that reports every error in one pass, the typed configuration, and a tree that
//! writes the file back byte for byte.
//!
//! Owns the grammar, the keys with their types and defaults, and the text of every message about them. Runs
//! on the caller's thread. Must never touch the file system or the network: bytes come in, values go out.
//!
//! ```
//! let source = b"fence_virtd { listener = \"tcp\"; }\nlisteners { tcp { port = \"70000\"; } }\n";
//! let loaded = fence_config::load(source);
//! assert!(loaded.config.is_none());
//! assert_eq!(loaded.diagnostics[0].line, 2);
//! println!("{}", loaded.diagnostics[0].render("/etc/fence_virt.conf", source));
//! ```
#![forbid(unsafe_code)]

mod characters;
mod check;
mod diagnostic;
mod lex;
mod parse;
mod schema;
mod tree;

pub use check::{MAX_URIS, keys};
// `Code` is the name at call sites that have not switched yet.
pub use diagnostic::{Diagnostic, DiagnosticCode, DiagnosticCode as Code, MAX_DIAGNOSTICS, Severity, Span};
pub use fence_wire::{DEFAULT_KEY_FILE, DEFAULT_PORT, Family, HashType};
pub use parse::MAX_FILE_SIZE;
pub use schema::{
    AgentBackend, AgentDevice, AgentProgram, Backend, BackendKind, Config, CpgBackend,
    DEFAULT_CLIENT_TIMEOUT, DEFAULT_DEVICE_MAX_RUNNING, DEFAULT_EFFECT_TIMEOUT, DEFAULT_GROUP,
    DEFAULT_MAX_RUNNING, DEFAULT_NEGATIVE_DELAY, DEFAULT_RETRIES, DEFAULT_STATE_DIR, DEFAULT_STATUS_TIMEOUT,
    DEFAULT_URI, DaemonSection, DevicePlugs, DomainPlug, Group, HostDown, HostDownWord, KeySettings,
    LibvirtBackend, Listener, ListenerKind, MAX_CLIENT_TIMEOUT, MAX_GROUP_NAME, MAX_MULTICAST_BLOCKS,
    MAX_NEGATIVE_DELAY, MAX_PEERS, MetricsAddress, MulticastListener, NameMode, OptionValue, Peers,
    SerialListener, SerialMode, StateDir, TcpListener, VsockListener, is_secret_option,
};
pub use tree::{EditError, MAX_DEPTH, Tree};

/// Result of reading a file.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// Tree of the file, as far as it could be understood. Writes back byte for byte, whatever errors it has.
    pub tree: Tree,
    /// The configuration; `None` when there is any error.
    pub config: Option<Config>,
    /// All errors and warnings, in the order of the file; at most [`MAX_DIAGNOSTICS`] and one.
    pub diagnostics: Vec<Diagnostic>,
}

impl LoadedConfig {
    /// Returns all diagnostics as text with carets, an empty line between them; empty when there are none.
    /// `source` must be the loaded bytes.
    pub fn render(&self, file_name: &str, source: &[u8]) -> String {
        let all: Vec<_> = self.diagnostics.iter().map(|it| it.render(file_name, source)).collect();
        all.join("\n\n")
    }
}

/// Reads a configuration. Never fails and never stops at the first error.
pub fn load(source: &[u8]) -> LoadedConfig {
    let mut findings = diagnostic::Findings::default();
    let tree = parse::parse(source, &mut findings);
    let config = check::check(&tree, &mut findings);
    let config = if findings.has_errors() { None } else { Some(config) };
    LoadedConfig { tree, config, diagnostics: findings.finish(source) }
}
