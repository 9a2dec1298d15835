// SPDX-License-Identifier: GPL-2.0-or-later
//! `backends { agent { … } }`: devices, their domains, and the options of their agents.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::check::checker::{BlockBody, Checker};
use crate::check::text::parse_number;
use crate::diagnostic::{DiagnosticCode, Span, show};
use crate::schema::{
    AgentBackend, AgentDevice, AgentProgram, DEFAULT_DEVICE_MAX_RUNNING, DEFAULT_EFFECT_TIMEOUT,
    DEFAULT_MAX_RUNNING, DEFAULT_RETRIES, DEFAULT_STATUS_TIMEOUT, DevicePlugs, DomainPlug, OptionValue,
};
use crate::tree::{Assignment, Block};

/// Allowed values of `max_running`.
const RUNNING: RangeInclusive<u32> = 1..=64;
const ORDER: RangeInclusive<u32> = 0..=9999;
const RETRIES: RangeInclusive<u32> = 0..=9;
/// Longest time of one try.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest time of one status check.
const MAX_STATUS_TIMEOUT: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// Options that the daemon itself sets, by all their names.
const OURS: [&str; 5] = ["action", "option", "plug", "port", "nodename"];

impl Checker<'_> {
    pub(super) fn read_agent_backend(&mut self, section: &BlockBody<'_>) -> AgentBackend {
        let block = section.block("agent");
        let body = block.map(|it| self.read_block("backends/agent", &it.items)).unwrap_or_default();
        if body.blocks.is_empty() {
            self.report(
                DiagnosticCode::BadValue,
                block.map_or_else(Span::default, |it| it.id.span),
                "backend agent has no device".to_owned(),
                "add backends { agent { device = \"name\" { agent = \"fence_…\"; plugs = \"…\"; \
                 options { … } } } }"
                    .to_owned(),
            );
        }
        let mut devices: Vec<AgentDevice> = Vec::new();
        for block in &body.blocks {
            if let Some(device) = self.read_device(block) {
                if devices.iter().any(|it| it.name == device.name) {
                    self.report(
                        DiagnosticCode::BadValue,
                        block.id.span,
                        format!("there is a device \"{}\" already", show(device.name.as_bytes())),
                        "give each device a name of its own: records and messages tell them by it".to_owned(),
                    );
                }
                devices.push(device);
            }
        }
        devices.sort_by_key(|it| it.order);
        self.check_sources(block.map_or_else(Span::default, |it| it.id.span), &devices);
        AgentBackend {
            max_running: self.read_max_running(&body).unwrap_or(DEFAULT_MAX_RUNNING),
            reboot_starts: self.read_word(body.key("reboot_starts")).unwrap_or(false),
            devices,
        }
    }

    fn read_device(&mut self, block: &Block) -> Option<AgentDevice> {
        let body = self.read_block("backends/agent/device", &block.items);
        let name = self.read_block_name(block, "device = \"NAME\" { … }");
        let agent = match body.key("agent") {
            Some(key) => self.read_agent(key),
            None => {
                self.report(
                    DiagnosticCode::BadValue,
                    block.id.span,
                    "a device needs an agent".to_owned(),
                    "add agent = \"fence_…\";".to_owned(),
                );
                None
            }
        };
        let plugs = self.read_plugs(block, &body);
        let plug_option = body.key("plug_option").and_then(|it| self.read_option_name(it));
        let options = self.read_options(&body, plug_option.as_deref());
        let device = AgentDevice {
            name: name?,
            agent: agent?,
            plugs,
            plug_option,
            order: self.read_number(body.key("order"), ORDER).unwrap_or(0),
            timeout: self.read_seconds(body.key("timeout"), SECOND, MAX_TIMEOUT),
            status_timeout: self
                .read_seconds(body.key("status_timeout"), SECOND, MAX_STATUS_TIMEOUT)
                .unwrap_or(DEFAULT_STATUS_TIMEOUT),
            effect_timeout: self
                .read_seconds(body.key("effect_timeout"), Duration::ZERO, MAX_TIMEOUT)
                .unwrap_or(DEFAULT_EFFECT_TIMEOUT),
            retries: self.read_number(body.key("retries"), RETRIES).unwrap_or(DEFAULT_RETRIES),
            max_running: self.read_max_running(&body).unwrap_or(DEFAULT_DEVICE_MAX_RUNNING),
            options,
            span: block.span,
        };
        Some(device)
    }

    /// Reads a path from `/`, or a name without a path.
    fn read_agent(&mut self, key: &Assignment) -> Option<AgentProgram> {
        let text = self.trimmed(key)?;
        let text = std::str::from_utf8(text).ok().filter(|it| !it.contains(char::is_control));
        let agent = text.and_then(|text| {
            let path = Path::new(text);
            let mut parts = path.components();
            if path.is_absolute() {
                Some(AgentProgram::At(PathBuf::from(text)))
            } else if matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
                && !text.contains('/')
            {
                Some(AgentProgram::Named(text.to_owned()))
            } else {
                None
            }
        });
        if agent.is_none() {
            self.report_bad_value(
                key,
                "allowed: the name of an installed fence agent, such as fence_redfish, or its path from `/`"
                    .to_owned(),
            );
        }
        agent
    }

    fn read_plugs(&mut self, block: &Block, body: &BlockBody<'_>) -> DevicePlugs {
        let mut plugs = DevicePlugs::default();
        if let Some(key) = body.key("plugs") {
            self.read_plug_list(key, &mut plugs);
        }
        for inner in body.blocks.iter().filter(|it| it.id.is("domain")) {
            let keys = self.read_block("backends/agent/device/domain", &inner.items);
            let Some(domain) = self.read_block_name(inner, "domain = \"NAME\" { plug = \"…\"; }") else {
                continue;
            };
            let plug = keys.key("plug").and_then(|it| self.read_line(it, "the domain's name for its device"));
            let uuid = keys.key("uuid").and_then(|it| self.read_uuid(it));
            let plug = plug.unwrap_or_else(|| domain.clone());
            let sources = keys.key("source").map(|it| self.read_sources(it)).unwrap_or_default();
            self.add_plug(inner.id.span, &mut plugs, DomainPlug { domain, plug, uuid, sources });
        }
        let says_nothing = body.key("plugs").is_none() && !body.blocks.iter().any(|it| it.id.is("domain"));
        if says_nothing {
            self.report(
                DiagnosticCode::BadValue,
                block.id.span,
                "a device needs the domains that it serves".to_owned(),
                "add plugs = \"web1, web2\"; or plugs = \"web1:101, web2:102\"; or plugs = \"*\"; for those \
                 that its agent lists"
                    .to_owned(),
            );
        }
        plugs
    }

    /// Reads `"*"`, or names of domains, each with its plug after a colon if that has another name.
    fn read_plug_list(&mut self, key: &Assignment, plugs: &mut DevicePlugs) {
        let Some(text) = self.trimmed(key) else { return };
        let allowed = "allowed: \"*\", or names of domains with commas or blanks between them, each with \
                       :PLUG after it where its plug has another name";
        let Some(text) =
            std::str::from_utf8(text).ok().filter(|it| is_line(&it.replace(['\n', '\r', '\t'], " ")))
        else {
            return self.report_bad_value(key, allowed.to_owned());
        };
        if text == "*" {
            plugs.listed = true;
            return;
        }
        let is_gap = |c: char| c == ',' || c == ';' || c.is_ascii_whitespace();
        let parts = text.split(is_gap);
        let mut any = false;
        for part in parts.filter(|it| !it.is_empty()) {
            let (domain, plug) = part.split_once(':').unwrap_or((part, part));
            if domain.is_empty() || plug.is_empty() || part == "*" {
                return self.report_bad_value(key, allowed.to_owned());
            }
            any = true;
            let plug = DomainPlug {
                domain: domain.to_owned(),
                plug: plug.to_owned(),
                uuid: None,
                sources: Vec::new(),
            };
            self.add_plug(key.value.text.span, plugs, plug);
        }
        if !any {
            self.report_bad_value(key, allowed.to_owned());
        }
    }

    /// Reports a MAC address that two domains have: it would tell neither.
    fn check_sources(&mut self, span: Span, devices: &[AgentDevice]) {
        let mut domains = BTreeMap::new();
        for plug in devices.iter().flat_map(|it| &it.plugs.named) {
            for mac in &plug.sources {
                let first = domains.entry(mac).or_insert(&plug.domain);
                if *first != &plug.domain {
                    let (one, other) = (show(first.as_bytes()), show(plug.domain.as_bytes()));
                    self.report(
                        DiagnosticCode::BadValue,
                        span,
                        format!("the domains \"{one}\" and \"{other}\" have the same source {mac}"),
                        "give each domain the addresses of its own network cards".to_owned(),
                    );
                }
            }
        }
    }

    /// Reads MAC addresses of network cards.
    fn read_sources(&mut self, key: &Assignment) -> Vec<String> {
        let text = self.trimmed(key).and_then(|it| std::str::from_utf8(it).ok()).unwrap_or_default();
        let parts = || text.split([',', ';', ' ', '\t', '\n', '\r']).filter(|it| !it.is_empty());
        let macs: Vec<_> = parts().filter_map(card_address).collect();
        if macs.is_empty() || macs.len() < parts().count() {
            let help = "allowed: MAC addresses of the domain's network cards, such as 52:54:00:12:34:56, \
                        with commas or blanks between them; no IP addresses, which others may share";
            self.report_bad_value(key, help.to_owned());
        }
        macs
    }

    fn add_plug(&mut self, span: Span, plugs: &mut DevicePlugs, plug: DomainPlug) {
        let twin = plugs.named.iter().find(|it| it.domain == plug.domain || it.plug == plug.plug);
        if let Some(twin) = twin {
            let (domain, taken) = (show(plug.domain.as_bytes()), show(twin.plug.as_bytes()));
            let message = if twin.domain == plug.domain {
                format!("the device has a domain \"{domain}\" already")
            } else {
                format!(
                    "domain \"{domain}\" has the plug \"{taken}\" of \"{}\"",
                    show(twin.domain.as_bytes())
                )
            };
            // Two names of one machine would be fenced independently of each other.
            let help = "give each domain one plug, and each plug one domain".to_owned();
            self.report(DiagnosticCode::BadValue, span, message, help);
        } else {
            plugs.named.push(plug);
        }
    }

    fn read_options(
        &mut self,
        body: &BlockBody<'_>,
        plug_option: Option<&str>,
    ) -> Vec<(String, OptionValue)> {
        let Some(block) = body.block("options") else { return Vec::new() };
        let keys = self.read_block("backends/agent/device/options", &block.items).keys;
        let mut options: Vec<(String, OptionValue)> = Vec::new();
        for key in keys {
            let Some(name) = ascii_name(&key.id.bytes) else {
                self.report(
                    DiagnosticCode::BadValue,
                    key.id.span,
                    format!("no agent has an option `{}`", show(&key.id.bytes)),
                    "allowed: letters, digits, `_` and `-`".to_owned(),
                );
                continue;
            };
            if OURS.iter().any(|it| name.eq_ignore_ascii_case(it)) || plug_option == Some(name) {
                self.report(
                    DiagnosticCode::BadValue,
                    key.id.span,
                    format!("`{name}` is set by fence_virtd for each run"),
                    "name the plugs with `plugs` or `domain`, and the option that takes them with \
                     `plug_option`"
                        .to_owned(),
                );
                continue;
            }
            // The value may be a password, which may begin or end with a blank.
            let value = std::str::from_utf8(&key.value.text.bytes).ok().filter(|it| is_line(it));
            match value {
                Some("") => {}
                Some(value) => {
                    options.retain(|(it, _)| !it.eq_ignore_ascii_case(name));
                    options.push((name.to_owned(), OptionValue(value.to_owned())));
                }
                // The value is not shown.
                None => self.report(
                    DiagnosticCode::BadValue,
                    key.value.text.span,
                    format!("bad value for `{name}`"),
                    "allowed: text without control characters: an agent reads one option a line".to_owned(),
                ),
            }
        }
        options
    }

    fn read_option_name(&mut self, key: &Assignment) -> Option<String> {
        let name = ascii_name(self.trimmed(key)?);
        if name.is_none_or(|it| matches!(it, "action" | "option")) {
            self.report_bad_value(
                key,
                "allowed: the name of the agent's option that takes the plug".to_owned(),
            );
            return None;
        }
        name.map(str::to_owned)
    }

    /// Returns the value of a block that is its name.
    fn read_block_name(&mut self, block: &Block, form: &str) -> Option<String> {
        let name = block.value.as_ref().map(|it| it.text.bytes.trim_ascii());
        let name =
            name.and_then(|it| std::str::from_utf8(it).ok()).filter(|it| !it.is_empty() && is_line(it));
        if name.is_none() {
            self.report(
                DiagnosticCode::BadValue,
                block.id.span,
                format!("the block `{}` needs a name", show(&block.id.bytes)),
                format!("write {form}"),
            );
        }
        name.map(str::to_owned)
    }

    /// Reads one line of text.
    fn read_line(&mut self, key: &Assignment, what: &str) -> Option<String> {
        let text = self.trimmed(key)?;
        let text = std::str::from_utf8(text).ok().filter(|it| !it.is_empty() && is_line(it));
        if text.is_none() {
            self.report_bad_value(key, format!("allowed: {what}, without control characters"));
        }
        text.map(str::to_owned)
    }

    /// Reads a UUID; returns its canonical form.
    fn read_uuid(&mut self, key: &Assignment) -> Option<String> {
        let text = self.trimmed(key)?;
        let digits: String = text.iter().filter(|it| **it != b'-').map(|it| char::from(*it)).collect();
        if digits.len() != 32 || !digits.bytes().all(|it| it.is_ascii_hexdigit()) {
            self.report_bad_value(key, "allowed: a UUID, 32 hexadecimal digits".to_owned());
            return None;
        }
        let it = digits.to_ascii_lowercase();
        Some(format!("{}-{}-{}-{}-{}", &it[..8], &it[8..12], &it[12..16], &it[16..20], &it[20..]))
    }

    fn read_max_running(&mut self, body: &BlockBody<'_>) -> Option<usize> {
        let number = self.read_number(body.key("max_running"), RUNNING)?;
        usize::try_from(number).ok()
    }

    fn read_number(&mut self, key: Option<&Assignment>, allowed: RangeInclusive<u32>) -> Option<u32> {
        let key = key?;
        let found = parse_number(self.trimmed(key)?).filter(|it| allowed.contains(it));
        if found.is_none() {
            self.report_bad_value(
                key,
                format!("allowed: a number from {} to {}", allowed.start(), allowed.end()),
            );
        }
        found
    }
}

/// Returns the name of an agent's option, if the id can be one.
fn ascii_name(id: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(id).ok()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (!name.is_empty() && name.bytes().all(fits)).then_some(name)
}

/// Returns the canonical form of the MAC address of a card.
fn card_address(text: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|it| u8::from_str_radix(it, 16).ok().filter(|_| it.len() == 2 && !it.starts_with('+')))
        .collect();
    let bytes = bytes.filter(|it| it.len() == 6)?;
    // Addresses of groups are no card's, nor are noughts.
    let is_card = bytes[0] & 1 == 0 && bytes.iter().any(|it| *it != 0);
    is_card.then(|| text.to_ascii_lowercase())
}

/// Returns whether a text is one line. An agent reads its options line by line: a line end in a value would
/// start the next option.
fn is_line(text: &str) -> bool {
    !text.contains(char::is_control)
}
