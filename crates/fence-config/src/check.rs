// SPDX-License-Identifier: GPL-2.0-or-later
//! From the tree to the typed configuration: which keys there are, what they may hold, what they default to.
//!
//! Unknown names only warn, since files written for other versions must load. Blocks that `listener` and
//! `backend` do not name are checked too, but what is wrong in them only warns.

mod agent;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use fence_wire::{DEFAULT_KEY_FILE, DEFAULT_PORT, Family, HashType};

use crate::diagnostic::{Code, Findings, MAX_DIAGNOSTICS, Severity, Span, show};
use crate::schema::{
    Backend, BackendKind, ChallengeHash, Config, CpgBackend, DEFAULT_CLIENT_TIMEOUT, DEFAULT_GROUP,
    DEFAULT_NEGATIVE_DELAY, DEFAULT_URI, DaemonSection, Group, HostDown, HostDownWord, KeySettings,
    LibvirtBackend, Listener, ListenerKind, MAX_CLIENT_TIMEOUT, MAX_GROUP_NAME, MAX_NEGATIVE_DELAY,
    MetricsAddress, MulticastListener, NameMode, SerialListener, SerialMode, StateDir, TcpListener,
    VsockListener, Words,
};
use crate::tree::{Assignment, Block, Item, Node, Text, Tree};

/// Most hypervisors of one backend: `uri`, `uri1`, … `uri63`.
pub const MAX_URIS: usize = 64;

/// Every key there is: the path of its block, such as `listeners/multicast`, and its name; `uri` stands for `uri1`, `uri2`,
/// … too. This is what the manual and the sample have to name.
pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    KNOWN.iter().flat_map(|block| block.keys.iter().map(|key| (block.path, *key)))
}

/// The configuration with defaults in place of whatever was wrong; to be thrown away when there are errors.
pub(crate) fn check(tree: &Tree, findings: &mut Findings) -> Config {
    let mut checker = Checker { findings, soft: false };
    let root = checker.body("", &tree.items);
    let daemon = checker.daemon(&root);

    let listeners =
        root.block("listeners").map(|it| checker.body("listeners", &it.items)).unwrap_or_default();
    checker.spare_blocks(&listeners, &daemon.listeners, Checker::listener);
    let backends = root.block("backends").map(|it| checker.body("backends", &it.items)).unwrap_or_default();
    checker.spare_blocks(&backends, &daemon.backends, |checker, section, kind| {
        checker.backend(section, kind, daemon.name_mode)
    });

    Config {
        listeners: daemon.listeners.iter().map(|&kind| checker.listener(&listeners, kind)).collect(),
        backends: daemon
            .backends
            .iter()
            .map(|&kind| checker.backend(&backends, kind, daemon.name_mode))
            .collect(),
        groups: root.block("groups").map(|it| checker.groups(it)),
        daemon,
    }
}

/// A block that has a meaning: its path, its keys, those keys that may be repeated, its blocks.
struct Known {
    path: &'static str,
    keys: &'static [&'static str],
    repeatable: &'static [&'static str],
    blocks: &'static [&'static str],
    /// `uri`, `uri1`, `uri2`, … are keys too.
    uris: bool,
    /// Every key means something, to somebody else.
    any_key: bool,
}

impl Known {
    const NONE: Known =
        Known { path: "", keys: &[], repeatable: &[], blocks: &[], uris: false, any_key: false };

    fn takes_key(&self, id: &Text) -> bool {
        self.any_key || self.has_key(id)
    }

    fn has_key(&self, id: &Text) -> bool {
        self.keys.iter().any(|it| id.is(it)) || (self.uris && uri_number(&id.bytes).is_some())
    }

    fn has_block(&self, id: &Text) -> bool {
        self.blocks.iter().any(|it| id.is(it))
    }

    fn repeats(&self, id: &Text) -> bool {
        self.repeatable.iter().any(|it| id.is(it))
    }
}

const KNOWN: &[Known] = &[
    Known { blocks: &["fence_virtd", "listeners", "backends", "groups"], ..Known::NONE },
    Known {
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
            "metrics",
            "client_timeout",
        ],
        ..Known::NONE
    },
    Known { path: "listeners", blocks: &["multicast", "tcp", "vsock", "serial"], ..Known::NONE },
    Known {
        path: "listeners/multicast",
        keys: &["key_file", "hash", "auth", "family", "address", "port", "interface", "negative_delay"],
        repeatable: &["key_file"],
        ..Known::NONE
    },
    Known {
        path: "listeners/tcp",
        keys: &["key_file", "hash", "auth", "family", "address", "port"],
        repeatable: &["key_file"],
        ..Known::NONE
    },
    Known {
        path: "listeners/vsock",
        keys: &["key_file", "hash", "auth", "port"],
        repeatable: &["key_file"],
        ..Known::NONE
    },
    Known { path: "listeners/serial", keys: &["uri", "path", "mode"], ..Known::NONE },
    Known { path: "backends", blocks: &["libvirt", "cpg", "agent"], ..Known::NONE },
    Known { path: "backends/libvirt", keys: &["uri", "reboot_starts"], uris: true, ..Known::NONE },
    Known {
        path: "backends/cpg",
        keys: &["uri", "name_mode", "reboot_starts", "group", "host_down", "host_down_command"],
        uris: true,
        ..Known::NONE
    },
    Known {
        path: "backends/agent",
        keys: &["max_running", "reboot_starts"],
        repeatable: &["device"],
        blocks: &["device"],
        ..Known::NONE
    },
    Known {
        path: "backends/agent/device",
        keys: &[
            "agent",
            "plugs",
            "plug_option",
            "order",
            "timeout",
            "status_timeout",
            "retries",
            "max_running",
        ],
        repeatable: &["domain"],
        blocks: &["options", "domain"],
        ..Known::NONE
    },
    Known { path: "backends/agent/device/options", any_key: true, ..Known::NONE },
    Known { path: "backends/agent/device/domain", keys: &["plug", "uuid"], ..Known::NONE },
    Known { path: "groups", blocks: &["group"], repeatable: &["group"], ..Known::NONE },
    Known {
        path: "groups/group",
        keys: &["name", "ip", "uuid", "key_file"],
        repeatable: &["ip", "uuid", "key_file"],
        ..Known::NONE
    },
];

/// The known statements of one block. Of what may not be repeated only the last is here.
#[derive(Default)]
struct Body<'t> {
    keys: Vec<&'t Assignment>,
    blocks: Vec<&'t Block>,
}

impl<'t> Body<'t> {
    fn key(&self, name: &str) -> Option<&'t Assignment> {
        self.keys(name).next_back()
    }

    fn keys<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'t Assignment> + 'a {
        self.keys.iter().copied().filter(move |it| it.id.is(name))
    }

    fn block(&self, name: &str) -> Option<&'t Block> {
        self.blocks.iter().copied().rfind(|it| it.id.is(name))
    }
}

struct Checker<'f> {
    findings: &'f mut Findings,
    /// The block is not in use: errors only warn.
    soft: bool,
}

impl Checker<'_> {
    fn daemon(&mut self, root: &Body<'_>) -> DaemonSection {
        let body = match root.block("fence_virtd") {
            Some(block) => self.body("fence_virtd", &block.items),
            // It may be inside what could not be read.
            None if self.findings.has_errors() => Body::default(),
            None => {
                self.findings.warning(
                    Code::NoDaemonBlock,
                    Span::default(),
                    "there is no block `fence_virtd`: listener multicast and backend libvirt are used"
                        .to_owned(),
                    Some("add fence_virtd { listener = \"multicast\"; backend = \"libvirt\"; }".to_owned()),
                );
                Body::default()
            }
        };
        // Two names for one setting: the one further down counts.
        let wait = body.keys.iter().rfind(|it| it.id.is("wait_for_init") || it.id.is("wait_for_backend"));
        DaemonSection {
            listeners: self.list(body.key("listener")).unwrap_or_else(|| vec![ListenerKind::Multicast]),
            backends: self.backends(body.key("backend")),
            foreground: self.word(body.key("foreground")).unwrap_or(false),
            wait_for_init: self.word(wait.copied()).unwrap_or(false),
            debug: self.debug_level(body.key("debug")).unwrap_or(0),
            module_path: body
                .key("module_path")
                .map(|it| String::from_utf8_lossy(&it.value.text.bytes).into_owned()),
            name_mode: self.word(body.key("name_mode")),
            audit_log: body.key("audit_log").and_then(|it| self.path(it)),
            state_dir: body.key("state_dir").map_or(StateDir::Default, |it| self.state_dir(it)),
            sandbox: self.word(body.key("sandbox")).unwrap_or(true),
            metrics: body.key("metrics").and_then(|it| self.metrics(it)),
            client_timeout: self
                .seconds(body.key("client_timeout"), DEFAULT_CLIENT_TIMEOUT, MAX_CLIENT_TIMEOUT)
                .unwrap_or(DEFAULT_CLIENT_TIMEOUT),
        }
    }

    fn backends(&mut self, assignment: Option<&Assignment>) -> Vec<BackendKind> {
        let backends = self.list(assignment).unwrap_or_else(|| vec![BackendKind::Libvirt]);
        if let Some(assignment) = assignment
            && [BackendKind::Libvirt, BackendKind::Cpg].iter().all(|it| backends.contains(it))
        {
            self.problem(
                Code::BadValue,
                assignment.value.text.span,
                "backend cpg has this host's libvirt in it: libvirt can't be named beside it".to_owned(),
                "name one of them, and give cpg the `uri` of this host's hypervisor".to_owned(),
            );
        }
        backends
    }

    /// Looks at the blocks that are not in use.
    fn spare_blocks<K: Words + PartialEq, T>(
        &mut self,
        section: &Body<'_>,
        used: &[K],
        mut read: impl FnMut(&mut Self, &Body<'_>, K) -> T,
    ) {
        self.soft = true;
        for &(name, kind) in K::WORDS {
            if !used.contains(&kind) && section.block(name).is_some() {
                read(self, section, kind);
            }
        }
        self.soft = false;
    }

    fn listener(&mut self, section: &Body<'_>, kind: ListenerKind) -> Listener {
        let path = match kind {
            ListenerKind::Multicast => "listeners/multicast",
            ListenerKind::Tcp => "listeners/tcp",
            ListenerKind::Vsock => "listeners/vsock",
            ListenerKind::Serial => "listeners/serial",
        };
        let body = section.block(kind.as_str()).map(|it| self.body(path, &it.items)).unwrap_or_default();
        match kind {
            ListenerKind::Multicast => {
                let (family, address) = self.address(&body, true);
                Listener::Multicast(MulticastListener {
                    keys: self.key_settings(&body),
                    family,
                    address,
                    port: self.port(&body),
                    interface: self.interface(body.key("interface")),
                    negative_delay: self
                        .seconds(body.key("negative_delay"), Duration::ZERO, MAX_NEGATIVE_DELAY)
                        .unwrap_or(DEFAULT_NEGATIVE_DELAY),
                })
            }
            ListenerKind::Tcp => {
                let (family, address) = self.address(&body, false);
                Listener::Tcp(TcpListener {
                    keys: self.key_settings(&body),
                    family,
                    address,
                    port: self.port(&body),
                })
            }
            ListenerKind::Vsock => {
                Listener::Vsock(VsockListener { keys: self.key_settings(&body), port: self.port(&body) })
            }
            ListenerKind::Serial => Listener::Serial(SerialListener {
                uri: body.key("uri").and_then(|it| self.uri(it)).unwrap_or_else(|| DEFAULT_URI.to_owned()),
                path: body.key("path").and_then(|it| self.path(it)),
                mode: self.word(body.key("mode")).unwrap_or(SerialMode::Serial),
            }),
        }
    }

    fn backend(&mut self, section: &Body<'_>, kind: BackendKind, name_mode: Option<NameMode>) -> Backend {
        let path = match kind {
            BackendKind::Libvirt => "backends/libvirt",
            BackendKind::Cpg => "backends/cpg",
            BackendKind::Agent => return Backend::Agent(self.agent_backend(section)),
        };
        let body = section.block(kind.as_str()).map(|it| self.body(path, &it.items)).unwrap_or_default();
        let uris = self.uris(&body);
        match kind {
            BackendKind::Libvirt => Backend::Libvirt(LibvirtBackend {
                uris,
                reboot_starts: self.word(body.key("reboot_starts")).unwrap_or(false),
            }),
            BackendKind::Cpg => Backend::Cpg(CpgBackend {
                uris,
                name_mode: self.word(body.key("name_mode")).or(name_mode).unwrap_or(NameMode::Uuid),
                reboot_starts: self.word(body.key("reboot_starts")).unwrap_or(false),
                group: body
                    .key("group")
                    .and_then(|it| self.group_name(it))
                    .unwrap_or_else(|| DEFAULT_GROUP.to_owned()),
                host_down: self.host_down(&body),
            }),
            BackendKind::Agent => Backend::Agent(self.agent_backend(section)),
        }
    }

    fn group_name(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let name = std::str::from_utf8(text)
            .ok()
            .filter(|it| it.bytes().all(|it| it.is_ascii_graphic()) && it.len() <= MAX_GROUP_NAME);
        if name.is_none() {
            let allowed =
                format!("allowed: the name of a group, at most {MAX_GROUP_NAME} characters without blanks");
            self.bad_value(assignment, allowed);
        }
        name.map(str::to_owned)
    }

    fn host_down(&mut self, body: &Body<'_>) -> HostDown {
        let mode = body.key("host_down");
        let command = body.key("host_down_command");
        let word = self.word(mode).unwrap_or(HostDownWord::Never);
        if let (Some(command), true) = (command, word != HostDownWord::Command) {
            self.findings.warning(
                Code::NoEffect,
                command.id.span,
                format!("`host_down_command` has no effect with host_down = \"{word}\""),
                Some("set host_down = \"command\"".to_owned()),
            );
        }
        match word {
            HostDownWord::Never => HostDown::Never,
            HostDownWord::Pacemaker => HostDown::Pacemaker,
            HostDownWord::Membership => HostDown::Membership,
            HostDownWord::Command => match (command.and_then(|it| self.path(it)), mode) {
                (Some(path), _) => HostDown::Command(path),
                (None, Some(mode)) => {
                    self.problem(
                        Code::BadValue,
                        mode.value.text.span,
                        "host_down = \"command\" needs `host_down_command`".to_owned(),
                        "add host_down_command = \"/path/of/the/command\"".to_owned(),
                    );
                    HostDown::Never
                }
                (None, None) => HostDown::Never,
            },
        }
    }

    fn groups(&mut self, block: &Block) -> Vec<Group> {
        let body = self.body("groups", &block.items);
        if body.blocks.is_empty() {
            self.findings.warning(
                Code::EmptyGroup,
                block.id.span,
                "`groups` has no group: nobody may fence anything (the C daemon takes it for no limit at all)"
                    .to_owned(),
                Some("remove `groups` to let everyone with the key fence everything".to_owned()),
            );
        }
        body.blocks.iter().map(|it| self.group(it)).collect()
    }

    fn group(&mut self, block: &Block) -> Group {
        let body = self.body("groups/group", &block.items);
        if body.key("ip").is_none() && body.key("uuid").is_none() {
            self.findings.warning(
                Code::EmptyGroup,
                block.id.span,
                "a group without `ip` and `uuid` allows nobody anything".to_owned(),
                None,
            );
        }
        let name = match (body.key("name"), &block.value) {
            (Some(key), _) => Some(show(&key.value.text.bytes)),
            (None, Some(value)) => Some(show(&value.text.bytes)),
            (None, None) => None,
        };
        Group {
            name,
            ips: body.keys("ip").filter_map(|it| self.source(it)).collect(),
            uuids: body.keys("uuid").filter_map(|it| self.text(it)).collect(),
            key_files: body.keys("key_file").filter_map(|it| self.path(it)).collect(),
            span: block.span,
        }
    }

    /// The known statements of the block `path`; says what is unknown, misplaced or repeated in it.
    fn body<'t>(&mut self, path: &str, items: &'t [Item]) -> Body<'t> {
        let known = KNOWN.iter().find(|it| it.path == path).unwrap_or(&Known::NONE);
        let mut body = Body::default();
        for item in items {
            match &item.node {
                Node::Assignment(it) if known.takes_key(&it.id) => body.keys.push(it),
                Node::Block(it) if known.has_block(&it.id) => body.blocks.push(it),
                Node::Assignment(it) if known.has_block(&it.id) => {
                    self.wrong_kind(&it.id, "a block", "{ … }");
                }
                Node::Block(it) if known.has_key(&it.id) => self.wrong_kind(&it.id, "a key", "= \"value\";"),
                Node::Assignment(it) => self.unknown("key", &it.id, known),
                Node::Block(it) => self.unknown("block", &it.id, known),
                Node::Junk(_) => {}
            }
        }
        let keys: Vec<_> = body.keys.iter().map(|it| &it.id).collect();
        let blocks: Vec<_> = body.blocks.iter().map(|it| &it.id).collect();
        for ids in [&keys, &blocks] {
            for (index, id) in ids.iter().enumerate() {
                let again = ids[index + 1..].iter().any(|it| it.bytes.eq_ignore_ascii_case(&id.bytes));
                if again && !known.repeats(id) {
                    self.findings.warning(
                        Code::Repeated,
                        id.span,
                        format!(
                            "`{}` has no effect: it comes again below, and the last one counts",
                            show(&id.bytes)
                        ),
                        None,
                    );
                }
                // Every repeated id is looked for in what follows it: bound the work on hostile files.
                if index == MAX_DIAGNOSTICS {
                    break;
                }
            }
        }
        for block in &body.blocks {
            if block.value.is_some() && !known.repeats(&block.id) {
                self.findings.warning(
                    Code::NoEffect,
                    block.id.span,
                    format!("the value of the block `{}` has no effect", show(&block.id.bytes)),
                    None,
                );
            }
        }
        body
    }

    fn unknown(&mut self, what: &str, id: &Text, known: &Known) {
        let elsewhere = KNOWN
            .iter()
            .filter(|it| if what == "key" { it.has_key(id) } else { it.has_block(id) })
            .map(|it| if it.path.is_empty() { "the top level" } else { it.path })
            .collect::<Vec<_>>();
        let help = match elsewhere.as_slice() {
            [] => near(&id.bytes, known.keys.iter().chain(known.blocks))
                .map(|it| format!("did you mean `{it}`?"))
                .or_else(|| {
                    known.blocks.contains(&"options").then(|| {
                        format!("an option of the agent belongs into options {{ {} = … }}", show(&id.bytes))
                    })
                }),
            ["the top level"] => {
                Some(format!("`{}` belongs to the top level; is a `}}` missing above?", show(&id.bytes)))
            }
            _ => Some(format!("`{}` belongs into {}", show(&id.bytes), elsewhere.join(", "))),
        };
        let place = if known.path.is_empty() { String::new() } else { format!(" in `{}`", known.path) };
        self.findings.warning(
            Code::Unknown,
            id.span,
            format!("unknown {what} `{}`{place}", show(&id.bytes)),
            help,
        );
    }

    fn wrong_kind(&mut self, id: &Text, what: &str, form: &str) {
        let name = show(&id.bytes);
        self.problem(Code::WrongKind, id.span, format!("`{name}` is {what}"), format!("write {name} {form}"));
    }

    fn bad_value(&mut self, assignment: &Assignment, allowed: String) {
        let message = format!(
            "bad value \"{}\" for `{}`",
            show(&assignment.value.text.bytes),
            show(&assignment.id.bytes)
        );
        self.problem(Code::BadValue, assignment.value.text.span, message, allowed);
    }

    fn problem(&mut self, code: Code, span: Span, message: String, help: String) {
        let (severity, help) = if self.soft {
            (Severity::Warning, format!("{help}; the block is not in use"))
        } else {
            (Severity::Error, help)
        };
        self.findings.push(severity, code, span, message, Some(help));
    }

    /// The bytes of a value with the blanks around them cut off. `None` when the parser has complained.
    fn trimmed<'t>(&self, assignment: &'t Assignment) -> Option<&'t [u8]> {
        let text = &assignment.value.text.bytes;
        (!text.is_empty()).then(|| text.trim_ascii())
    }

    fn word<T: Words>(&mut self, assignment: Option<&Assignment>) -> Option<T> {
        let assignment = assignment?;
        let word = T::from_word(self.trimmed(assignment)?);
        if word.is_none() {
            let words: Vec<_> = T::WORDS.iter().map(|&(word, _)| word).collect();
            self.bad_value(assignment, format!("allowed: {}", words.join(", ")));
        }
        word
    }

    /// Words with commas or blanks between them.
    fn list<T: Words + PartialEq>(&mut self, assignment: Option<&Assignment>) -> Option<Vec<T>> {
        let assignment = assignment?;
        let text = self.trimmed(assignment)?;
        let words: Vec<_> = T::WORDS.iter().map(|&(word, _)| word).collect();
        let mut list = Vec::new();
        for part in text.split(|&byte| byte == b',' || byte.is_ascii_whitespace()).filter(|it| !it.is_empty())
        {
            match T::from_word(part) {
                Some(it) if list.contains(&it) => self.findings.warning(
                    Code::Repeated,
                    assignment.value.text.span,
                    format!("`{}` names {} twice", show(&assignment.id.bytes), show(part)),
                    None,
                ),
                Some(it) => list.push(it),
                None => {
                    let near =
                        near(part, words.iter()).map_or(String::new(), |it| format!("did you mean {it}? "));
                    self.problem(
                        Code::BadValue,
                        assignment.value.text.span,
                        format!("there is no {} \"{}\"", show(&assignment.id.bytes), show(part)),
                        format!("{near}allowed: {}", words.join(", ")),
                    );
                    return None;
                }
            }
        }
        if list.is_empty() {
            self.bad_value(assignment, format!("allowed: {}", words.join(", ")));
            return None;
        }
        Some(list)
    }

    fn debug_level(&mut self, assignment: Option<&Assignment>) -> Option<u32> {
        let assignment = assignment?;
        let level = number(self.trimmed(assignment)?);
        if level.is_none() {
            self.bad_value(assignment, "allowed: a number from 0".to_owned());
        }
        level
    }

    fn port(&mut self, body: &Body<'_>) -> u16 {
        let Some(assignment) = body.key("port") else { return DEFAULT_PORT };
        let Some(text) = self.trimmed(assignment) else { return DEFAULT_PORT };
        match number(text).and_then(|it| u16::try_from(it).ok()) {
            Some(port) if port > 0 => port,
            _ => {
                self.bad_value(assignment, "allowed: a number from 1 to 65535".to_owned());
                DEFAULT_PORT
            }
        }
    }

    fn seconds(
        &mut self,
        assignment: Option<&Assignment>,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        let assignment = assignment?;
        let text = self.trimmed(assignment)?;
        let plain = text.iter().all(|it| it.is_ascii_digit() || *it == b'.');
        let seconds = std::str::from_utf8(text)
            .ok()
            .filter(|_| plain)
            .and_then(|it| it.parse::<f64>().ok())
            .and_then(|it| Duration::try_from_secs_f64(it).ok())
            .filter(|it| (least..=most).contains(it));
        if seconds.is_none() {
            let (least, most) = (least.as_secs(), most.as_secs());
            let fraction = if least == 0 { "2 or 0.5".to_owned() } else { format!("{least} or {least}.5") };
            self.bad_value(
                assignment,
                format!("allowed: seconds from {least} to {most}, such as {fraction}"),
            );
        }
        seconds
    }

    /// Family and address of a listener. Either decides the other's default.
    fn address(&mut self, body: &Body<'_>, multicast: bool) -> (Family, IpAddr) {
        let family: Option<Family> = self.word(body.key("family"));
        let default = |family: Family| {
            if multicast { family.default_multicast_address() } else { family.default_tcp_address() }
        };
        let unset = family.unwrap_or(Family::V4);
        let Some(assignment) = body.key("address") else { return (unset, default(unset)) };
        let Some(text) = self.trimmed(assignment) else { return (unset, default(unset)) };
        let what = if multicast { "multicast address" } else { "address" };
        let address = std::str::from_utf8(text).ok().and_then(|it| it.parse::<IpAddr>().ok());
        match address {
            Some(it) if it.is_multicast() != multicast => {
                let allowed = if multicast {
                    "allowed: a multicast address, 224.0.0.0 to 239.255.255.255 or ff00::/8"
                } else {
                    "allowed: an address of this host, not a multicast address"
                };
                self.bad_value(assignment, allowed.to_owned());
            }
            Some(it) if family.is_some_and(|family| family != Family::of(it)) => {
                self.bad_value(assignment, format!("allowed: an {unset} {what}, as `family` says"));
            }
            Some(it) => return (Family::of(it), it),
            None => self.bad_value(assignment, format!("allowed: an IP {what}, such as {}", default(unset))),
        }
        (unset, default(unset))
    }

    /// `"none"` is what a configurator's user types for no interface.
    fn interface(&mut self, assignment: Option<&Assignment>) -> Option<String> {
        let assignment = assignment?;
        let text = self.trimmed(assignment)?;
        if text.eq_ignore_ascii_case(b"none") || text.is_empty() {
            return None;
        }
        let name = std::str::from_utf8(text).ok().filter(|it| {
            // What the kernel takes for a name.
            it.len() <= 15
                && !matches!(*it, "." | "..")
                && !it.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
        });
        if name.is_none() {
            self.bad_value(
                assignment,
                "allowed: the name of one network interface, or none to let the system choose".to_owned(),
            );
        }
        name.map(str::to_owned)
    }

    fn key_settings(&mut self, body: &Body<'_>) -> KeySettings {
        let mut key_files: Vec<_> = body.keys("key_file").filter_map(|it| self.path(it)).collect();
        if key_files.is_empty() {
            key_files.push(PathBuf::from(DEFAULT_KEY_FILE));
        }
        KeySettings {
            key_files,
            key_files_named: body.key("key_file").is_some(),
            hash: self.word(body.key("hash")).unwrap_or(HashType::Sha256),
            auth: self.word::<ChallengeHash>(body.key("auth")).map_or(HashType::Sha256, |it| it.0),
        }
    }

    /// Only this host may read: what is counted tells of guests, and the endpoint asks for no key.
    fn metrics(&mut self, assignment: &Assignment) -> Option<MetricsAddress> {
        let text = self.trimmed(assignment)?;
        // The kernel takes no longer path.
        let path = |it: &&[u8]| it.starts_with(b"/") && it.len() < 108 && !it.contains(&0);
        let address = match text.strip_prefix(b"unix:") {
            Some(it) => Some(it)
                .filter(path)
                .map(|it| OsString::from_vec(it.to_vec()).into())
                .map(MetricsAddress::Unix),
            None => std::str::from_utf8(text)
                .ok()
                .and_then(|it| it.parse().ok())
                .filter(|it: &SocketAddr| it.ip().is_loopback() && it.port() != 0)
                .map(MetricsAddress::Tcp),
        };
        if address.is_none() {
            let allowed = "allowed: a loopback address with a port, such as 127.0.0.1:9229 or [::1]:9229, or unix: and \
                           a path from `/` of at most 107 bytes";
            self.bad_value(assignment, allowed.to_owned());
        }
        address
    }

    fn state_dir(&mut self, assignment: &Assignment) -> StateDir {
        if assignment.value.text.bytes.eq_ignore_ascii_case(b"none") {
            return StateDir::Nowhere;
        }
        self.path(assignment).map_or(StateDir::Default, StateDir::At)
    }

    fn path(&mut self, assignment: &Assignment) -> Option<PathBuf> {
        let bytes = &assignment.value.text.bytes;
        if bytes.is_empty() {
            return None;
        }
        if bytes.contains(&0) {
            self.bad_value(assignment, "allowed: a path, which cannot hold a NUL byte".to_owned());
            return None;
        }
        let path = PathBuf::from(OsString::from_vec(bytes.clone()));
        if !path.is_absolute() {
            self.findings.warning(
                Code::RelativePath,
                assignment.value.text.span,
                format!(
                    "`{}` depends on the directory the daemon was started in",
                    show(&assignment.id.bytes)
                ),
                Some("give the path from `/`".to_owned()),
            );
        }
        Some(path)
    }

    fn uris(&mut self, body: &Body<'_>) -> Vec<String> {
        let mut numbered: Vec<_> =
            body.keys.iter().filter_map(|it| Some((uri_number(&it.id.bytes)?, *it))).collect();
        numbered.sort_by_key(|&(number, _)| number);
        // Of one key the last assignment counts; the sort keeps their order.
        numbered.reverse();
        numbered.dedup_by_key(|&mut (number, _)| number);
        numbered.reverse();
        let uris: Vec<_> = numbered.into_iter().filter_map(|(_, it)| self.uri(it)).collect();
        if uris.is_empty() { vec![DEFAULT_URI.to_owned()] } else { uris }
    }

    fn uri(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let uri = std::str::from_utf8(text)
            .ok()
            .filter(|it| !it.is_empty() && !it.contains(|c: char| c.is_whitespace() || c.is_control()));
        if uri.is_none() {
            self.bad_value(assignment, format!("allowed: a libvirt URI, such as {DEFAULT_URI}"));
        }
        uri.map(str::to_owned)
    }

    /// An IP address in canonical form, or a vsock CID.
    fn source(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let word = std::str::from_utf8(text).ok();
        let ip = word.and_then(|it| it.parse::<IpAddr>().ok()).map(|it| it.to_canonical().to_string());
        let source = ip.or_else(|| number(text).map(|it| it.to_string()));
        if source.is_none() {
            self.bad_value(assignment, "allowed: an IP address, or the CID of a guest on vsock".to_owned());
        }
        source
    }

    fn text(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let text =
            std::str::from_utf8(text).ok().filter(|it| !it.is_empty() && !it.contains(char::is_control));
        if text.is_none() {
            self.bad_value(assignment, "allowed: the UUID or the name of a domain".to_owned());
        }
        text.map(str::to_owned)
    }
}

/// `uri` is 0, `uri1` is 1, up to `MAX_URIS` of them.
fn uri_number(id: &[u8]) -> Option<u32> {
    let (word, digits) = id.split_at_checked(3)?;
    if !word.eq_ignore_ascii_case(b"uri") || digits.first() == Some(&b'0') {
        return None;
    }
    let number = if digits.is_empty() { 0 } else { number(digits)? };
    (usize::try_from(number).ok()? < MAX_URIS).then_some(number)
}

/// Decimal digits alone: no sign, no blanks.
fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The known word that somebody probably meant.
fn near<'w>(id: &[u8], words: impl Iterator<Item = &'w &'static str>) -> Option<&'static str> {
    // The distance takes time in proportion to the length, and nobody mistypes a word into a long one.
    const LONGEST: usize = 40;
    let id = std::str::from_utf8(id).ok().filter(|it| it.len() <= LONGEST)?;
    let id = id.to_ascii_lowercase().replace('-', "_");
    words
        .map(|&word| (strsim::damerau_levenshtein(&id, word), word))
        .filter(|&(distance, word)| distance <= (word.len() / 3).clamp(1, 3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}
