// SPDX-License-Identifier: GPL-2.0-or-later
//! `backends { agent { … } }`: devices, their domains and their options. Values only.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::diagnostic::Span;

/// `backends { agent { … } }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentBackend {
    /// `max_running`: most agents that run at once, 1 to 64. Default [`crate::DEFAULT_MAX_RUNNING`].
    pub max_running: usize,
    /// `reboot_starts`: a reboot of a domain that is off starts it. Default no.
    pub reboot_starts: bool,
    /// `device`, sorted by `order`, then in the order of the file; never empty.
    pub devices: Vec<AgentDevice>,
}

/// `device = "name" { … }`: a control endpoint with its fence agent.
#[derive(Debug, Clone, Serialize)]
pub struct AgentDevice {
    /// Name, unique among devices.
    pub name: String,
    /// `agent`
    pub agent: AgentProgram,
    /// `plugs` and the blocks `domain`: domains that the device serves.
    pub plugs: DevicePlugs,
    /// `plug_option`: agent's option for the plug. Default: `plug` or `port`, as in the agent's metadata.
    pub plug_option: Option<String>,
    /// `order`: lower devices are tried first. Default 0.
    pub order: u32,
    /// `timeout`, in seconds: time limit of one try of an action, with the status checks after it. Default:
    /// an equal part of the time that is left.
    pub timeout: Option<Duration>,
    /// `status_timeout`, in seconds: time limit of one run of any other action. Default 10 s.
    pub status_timeout: Duration,
    /// `effect_timeout`, in seconds: time for which an action may still take effect after its agent ended.
    /// Default [`crate::DEFAULT_EFFECT_TIMEOUT`].
    pub effect_timeout: Duration,
    /// `retries`: number of further rounds when every device has failed. Default 1.
    pub retries: u32,
    /// `max_running`: most agents of the device that run at once, 1 to 64. Default
    /// [`crate::DEFAULT_DEVICE_MAX_RUNNING`].
    pub max_running: usize,
    /// `options`, as written, each once, in the order of the file.
    pub options: Vec<(String, OptionValue)>,
    /// Place of the block in the file.
    #[serde(skip)]
    pub span: Span,
}

/// Two devices are equal when their settings are, wherever they stand in the file.
impl PartialEq for AgentDevice {
    fn eq(&self, other: &Self) -> bool {
        let Self { name, agent, plugs, plug_option, order, timeout, status_timeout, retries, .. } = self;
        *name == other.name
            && *agent == other.agent
            && *plugs == other.plugs
            && *plug_option == other.plug_option
            && *order == other.order
            && *timeout == other.timeout
            && *status_timeout == other.status_timeout
            && self.effect_timeout == other.effect_timeout
            && *retries == other.retries
            && self.max_running == other.max_running
            && self.options == other.options
    }
}

impl Eq for AgentDevice {}

/// `agent`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentProgram {
    /// Path from `/`.
    At(PathBuf),
    /// Name that is looked up in the usual directories.
    Named(String),
}

/// Domains that a device serves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DevicePlugs {
    /// `plugs = "*"`: the domains that the agent's `list` names.
    pub listed: bool,
    /// Domains that the file names, none twice.
    pub named: Vec<DomainPlug>,
}

/// Domain, and its plug at a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DomainPlug {
    /// Name of the domain.
    pub domain: String,
    /// Plug; by default the name of the domain.
    pub plug: String,
    /// UUID of the domain, canonical lower-case text.
    pub uuid: Option<String>,
    /// `source`: MAC addresses of the domain's network cards, canonical lower-case text. A request by
    /// multicast from one of them is this domain's.
    pub sources: Vec<String>,
}

/// Value of an agent's option. May be a password, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct OptionValue(pub(crate) String);

impl OptionValue {
    /// Returns the text; without control characters, never empty.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for OptionValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Returns whether an option of this name holds a secret.
pub fn is_secret_option(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["passw", "passphrase", "secret", "token", "credential", "key"].iter().any(|it| name.contains(it))
}
