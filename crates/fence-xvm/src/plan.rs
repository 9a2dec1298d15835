// SPDX-License-Identifier: GPL-2.0-or-later
//! What the user asked for, checked: a [`Plan`] has no value that cannot be carried out.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use fence_cli::getopt::{GetoptError, Name};
use fence_net::{Family, LineFormat};
use fence_wire::{
    Action, CHANNEL_ADDRESS, ClientAuth, DEFAULT_GROUP_V4, DEFAULT_GROUP_V6, DEFAULT_KEY_FILE, DEFAULT_PORT,
    HashType, Key, REQUEST_LEN, Request, SentRequests, Target, TargetError, escaped,
};

use crate::options::{Id, Program, by_letter, by_long};

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Show the help.
    Help,
    /// Show the version.
    Version,
    /// Show the metadata.
    Metadata,
    /// Check the options and no more.
    Validate(Plan),
    /// Ask the host.
    Ask(Plan),
    /// Ask the host for something harmless, and find out why it does not answer.
    Diagnose(Plan),
}

/// A request and the way it goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the host is asked for.
    pub action: Action,
    /// The domain it is about; none for actions that need none.
    pub target: Target,
    /// How long the agent may take, the delay not counted.
    pub timeout: Duration,
    /// How long it waits first; zero for actions that change nothing.
    pub delay: Duration,
    /// The hash of the request packet; a sealed one is that of the challenge and the response too.
    pub hash: HashType,
    /// The hash of the mutual challenge of classic requests; [`HashType::None`] for no challenge.
    pub auth: HashType,
    /// Where the key is.
    pub key_file: PathBuf,
    /// Whether the user named the key file.
    pub key_file_named: bool,
    /// How much is said on standard error.
    pub debug: u32,
    /// The way to the host.
    pub transport: Transport,
}

impl Plan {
    /// Whether a key is needed: unless neither hash nor challenge is wanted, and both were refused by name.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        match self.transport {
            Transport::Multicast(_) | Transport::Tcp(_) | Transport::Vsock { .. } => {
                self.hash != HashType::None || self.auth != HashType::None
            }
            Transport::Serial { .. } | Transport::Channel(_) => false,
        }
    }

    /// How hosts are to prove themselves. What [`Plan::packet`] gives is to be added to it.
    #[must_use]
    pub fn auth_with<'k>(&self, key: Option<&'k Key>) -> ClientAuth<'k> {
        let Some(key) = key else { return ClientAuth::Open };
        match (self.hash.sealed(), self.auth.classic()) {
            (Some(hash), _) => ClientAuth::Sealed(SentRequests::new(hash), key),
            (None, Some(auth)) => ClientAuth::Classic(auth, key),
            (None, None) => ClientAuth::Open,
        }
    }

    /// The packet of a request, hashed as the plan says.
    #[must_use]
    pub fn packet(&self, request: &Request, key: Option<&Key>) -> [u8; REQUEST_LEN] {
        match key {
            Some(key) => request.encode(self.hash, key),
            None => request.encode_unauthenticated(),
        }
    }
}

/// The way to the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A multicast request; the host calls back.
    Multicast(Multicast),
    /// A TCP connection to this host.
    Tcp(SocketAddr),
    /// A vsock connection.
    Vsock {
        /// The host's context id.
        cid: u32,
        /// Its port.
        port: u16,
    },
    /// A serial line.
    Serial {
        /// Its device.
        device: PathBuf,
        /// Its speed and format.
        format: LineFormat,
    },
    /// A VM channel: QEMU forwards this address to it.
    Channel(SocketAddr),
}

/// Where multicast requests go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Multicast {
    /// The hosts' group.
    pub group: IpAddr,
    /// Its port, and the call-back's.
    pub port: u16,
    /// After what time a request is sent again.
    pub retransmit: Duration,
    /// How long another host is waited for after a list or a failure.
    pub quiet: Duration,
}

impl Multicast {
    /// The group's family.
    #[must_use]
    pub fn family(&self) -> Family {
        if self.group.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// The command line is no command line.
    #[error(transparent)]
    Getopt(#[from] GetoptError),
    /// Standard input cannot be read.
    #[error("standard input cannot be read: {0}")]
    Stdin(io::Error),
    /// A name on standard input without a value.
    #[error("option '{}' on standard input needs a value (NAME=VALUE)", escaped(.0))]
    NoValue(String),
    /// An option that is taken for compatibility and has no meaning.
    #[error("option {0} is not supported")]
    Unsupported(Name),
    /// A value that does not fit its option.
    #[error("{option}: '{}' is not {expected}", escaped(.value))]
    Value {
        /// The option as the user wrote it.
        option: String,
        /// The value that he gave.
        value: String,
        /// What is expected.
        expected: &'static str,
    },
    /// No such action.
    #[error("unknown action '{}'", escaped(.0))]
    Action(String),
    /// An action that changes something, or that nobody answers.
    #[error("--diagnose asks for status or monitor and for nothing else: not for {0}")]
    DiagnoseAction(String),
    /// Two targets that differ.
    #[error(
        "two different domains are given, '{}' and '{}'; if the cluster manager names one of them (Pacemaker does, with \
         port=), use pcmk_host_map instead of plug=", escaped(.0), escaped(.1)
    )]
    TwoTargets(String, String),
    /// No target for an action that needs one.
    #[error("no domain given: action {0} needs one (-n on the command line, plug= on standard input)")]
    NoTarget(&'static str),
    /// No challenge for a request that has none without.
    #[error(
        "auth none (-C none) cannot go with hash {0}: a sealed request is always challenged; leave auth out"
    )]
    SealedUnchallenged(HashType),
    /// A sealed challenge for a request that is not sealed.
    #[error(
        "auth {0} (-C) goes only with hash {0} (-c): request, challenge and response are sealed together"
    )]
    SealedChallenge(HashType),
    /// A sealed request where nothing is hashed at all.
    #[error(
        "hash {0} (-c) cannot be had on a serial line or VM channel, where nothing is hashed: leave hash out"
    )]
    SealedLine(HashType),
    /// The target is none.
    #[error("the domain's name {0}")]
    Target(#[from] TargetError),
    /// The group is of the other family.
    #[error("multicast address {group} is not of family {family}")]
    Family {
        /// The group.
        group: IpAddr,
        /// The family's name.
        family: &'static str,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Wire(Action),
    Validate,
    Metadata,
}

/// Options as they come in, each checked by itself. The last one counts.
#[derive(Default, Debug)]
pub struct Settings {
    help: bool,
    diagnose: bool,
    version: bool,
    debug: u32,
    family: Option<Family>,
    group: Option<IpAddr>,
    tcp: Option<IpAddr>,
    vsock: Option<u32>,
    channel: Option<IpAddr>,
    port: Option<u16>,
    retransmit: Option<u64>,
    quiet: Option<u64>,
    hash: Option<HashType>,
    auth: Option<HashType>,
    key_file: Option<PathBuf>,
    serial_device: Option<PathBuf>,
    serial_format: Option<LineFormat>,
    target: Option<String>,
    use_uuid: bool,
    what: Option<What>,
    timeout: Option<u64>,
    delay: Option<u64>,
}

impl Settings {
    /// Takes an option of the command line.
    ///
    /// # Errors
    /// What is wrong with its value.
    pub fn set_option(&mut self, name: Name, value: Option<OsString>) -> Result<(), UsageError> {
        let option = match name {
            Name::Letter(letter) => by_letter(letter),
            Name::Long(long) => by_long(long),
        };
        match (option.ok_or(UsageError::Unsupported(name))?.id, value) {
            (Id::Debug, _) => self.debug = self.debug.saturating_add(1),
            (Id::UseUuid, _) => self.use_uuid = true,
            (Id::Help, _) => self.help = true,
            (Id::Diagnose, _) => self.diagnose = true,
            (Id::Version, _) => self.version = true,
            (Id::VsockCid, None) => self.vsock = Some(HOST_CID),
            (id, value) => self.set(id, &name.to_string(), &value.unwrap_or_default())?,
        }
        Ok(())
    }

    /// Takes an option with its value; `option` is its name as the user wrote it.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub fn set(&mut self, id: Id, option: &str, value: &OsStr) -> Result<(), UsageError> {
        // Paths may be any bytes, everything else is text.
        match id {
            Id::KeyFile => return path(option, value).map(|p| self.key_file = Some(p)),
            Id::SerialDevice => return path(option, value).map(|p| self.serial_device = Some(p)),
            _ => {}
        }
        let given =
            Given { option, value: value.to_str().ok_or_else(|| wrong(option, value, "text in UTF-8"))? };
        let text = given.value;
        match id {
            Id::Debug => self.debug = given.level()?,
            Id::Family => self.family = given.family()?,
            Id::Group => self.group = Some(given.group()?),
            Id::TcpAddress if text.is_empty() => self.tcp = Some(Ipv4Addr::LOCALHOST.into()),
            Id::TcpAddress => self.tcp = Some(given.parsed("an IP address")?),
            Id::VsockCid => self.vsock = Some(given.parsed("a vsock CID")?),
            Id::ChannelAddress => self.channel = Some(given.parsed("an IP address")?),
            Id::Port => self.port = Some(given.in_range(1, 65535, "a port (1 to 65535)")?),
            Id::Retransmit => {
                self.retransmit = Some(given.in_range(1, 36_000, "tenths of a second (1 or more)")?);
            }
            Id::Quiet => {
                self.quiet = Some(given.in_range(0, 36_000, "tenths of a second (0 or more)")?);
            }
            Id::Hash => self.hash = Some(given.hash()?),
            Id::Auth => self.auth = Some(given.hash()?),
            Id::Plug => self.set_target(text)?,
            Id::UseUuid => self.use_uuid = given.level()? > 0,
            Id::Action => self.what = Some(action(text)?),
            Id::Timeout => self.timeout = Some(given.in_range(1, SECONDS_MAX, "seconds (1 or more)")?),
            Id::Delay => self.delay = Some(given.in_range(0, SECONDS_MAX, "seconds (0 or more)")?),
            Id::SerialParameters => {
                self.serial_format = Some(given.parsed("a speed and format of a serial line (115200,8N1)")?);
            }
            Id::Help => self.help = true,
            Id::Diagnose => self.diagnose = true,
            Id::Version => self.version = true,
            Id::KeyFile | Id::SerialDevice => {}
        }
        Ok(())
    }

    /// What all the options together ask for.
    ///
    /// # Errors
    /// What is missing or does not fit together.
    pub fn task(self, program: Program) -> Result<Task, UsageError> {
        if self.help {
            return Ok(Task::Help);
        }
        if self.version {
            return Ok(Task::Version);
        }
        let what = self.what()?;
        let (action, needs_target) = match what {
            What::Metadata => return Ok(Task::Metadata),
            What::Validate => (Action::Null, Some("validate-all")),
            What::Wire(action) => (action, action.needs_target().then(|| action.name())),
        };
        if let (Some(action), None) = (needs_target, &self.target) {
            return Err(UsageError::NoTarget(action));
        }
        let target = match &self.target {
            Some(target) => Target::new(target, self.use_uuid)?,
            None => Target::none(),
        };
        let transport = self.transport(program)?;
        let hash = self.packet_hash(&transport)?;
        let delay = if action.changes_state() { self.delay.unwrap_or(0) } else { 0 };
        let plan = Plan {
            action,
            target,
            timeout: Duration::from_secs(self.timeout.unwrap_or(if self.diagnose { 5 } else { 30 })),
            delay: Duration::from_secs(delay),
            hash,
            auth: self.auth.unwrap_or(HashType::Sha256),
            key_file_named: self.key_file.is_some(),
            debug: self.debug,
            transport,
            key_file: self.key_file.unwrap_or_else(|| DEFAULT_KEY_FILE.into()),
        };
        Ok(match what {
            What::Validate => Task::Validate(plan),
            _ if self.diagnose => Task::Diagnose(plan),
            _ => Task::Ask(plan),
        })
    }

    /// What is to be done, when it may be.
    fn what(&self) -> Result<What, UsageError> {
        match self.what {
            _ if !self.diagnose => Ok(self.what.unwrap_or(What::Wire(Action::Reboot))),
            None if self.target.is_some() => Ok(What::Wire(Action::Status)),
            None => Ok(What::Wire(Action::Monitor)),
            Some(what @ What::Wire(Action::Status | Action::Monitor)) => Ok(what),
            Some(other) => Err(UsageError::DiagnoseAction(match other {
                What::Wire(action) => action.name().to_owned(),
                What::Validate => "validate-all".to_owned(),
                What::Metadata => "metadata".to_owned(),
            })),
        }
    }

    /// The hash of the packet, when it fits the challenge and the transport.
    fn packet_hash(&self, transport: &Transport) -> Result<HashType, UsageError> {
        let hash = self.hash.unwrap_or(HashType::Sha256);
        let is_line = matches!(transport, Transport::Serial { .. } | Transport::Channel(_));
        match self.auth {
            // Whoever asks for it must not get less without a word.
            _ if hash.sealed().is_some() && is_line => Err(UsageError::SealedLine(hash)),
            Some(HashType::None) if hash.sealed().is_some() => Err(UsageError::SealedUnchallenged(hash)),
            Some(auth) if auth.sealed().is_some() && hash.sealed().is_none() => {
                Err(UsageError::SealedChallenge(auth))
            }
            _ => Ok(hash),
        }
    }

    fn set_target(&mut self, target: &str) -> Result<(), UsageError> {
        match &self.target {
            _ if target.is_empty() => Err(UsageError::Target(TargetError::Empty)),
            Some(other) if other != target => Err(UsageError::TwoTargets(other.clone(), target.to_owned())),
            _ => {
                self.target = Some(target.to_owned());
                Ok(())
            }
        }
    }

    fn transport(&self, program: Program) -> Result<Transport, UsageError> {
        let port = self.port.unwrap_or(DEFAULT_PORT);
        if program == Program::Xvm {
            return self.multicast(port).map(Transport::Multicast);
        }
        Ok(if let Some(address) = self.tcp {
            Transport::Tcp(SocketAddr::new(address, port))
        } else if let Some(cid) = self.vsock {
            Transport::Vsock { cid, port }
        } else if let Some(device) = self.serial_device.clone() {
            Transport::Serial { device, format: self.serial_format.unwrap_or_default() }
        } else {
            Transport::Channel(SocketAddr::new(self.channel.unwrap_or(CHANNEL_ADDRESS.into()), port))
        })
    }

    fn multicast(&self, port: u16) -> Result<Multicast, UsageError> {
        let group = match (self.group, self.family) {
            (None, None | Some(Family::V4)) => DEFAULT_GROUP_V4.into(),
            (None, Some(Family::V6)) => DEFAULT_GROUP_V6.into(),
            (Some(group), Some(Family::V4)) if !group.is_ipv4() => {
                return Err(UsageError::Family { group, family: "ipv4" });
            }
            (Some(group), Some(Family::V6)) if !group.is_ipv6() => {
                return Err(UsageError::Family { group, family: "ipv6" });
            }
            (Some(group), _) => group,
        };
        let tenths = |given: Option<u64>, default| Duration::from_millis(100 * given.unwrap_or(default));
        Ok(Multicast {
            group,
            port,
            retransmit: tenths(self.retransmit, 20),
            quiet: tenths(self.quiet, QUIET),
        })
    }
}

/// The CID that every guest knows its host by.
const HOST_CID: u32 = 2;
/// A year: longer than any cluster waits, and far from what clocks cannot hold.
const SECONDS_MAX: u64 = 366 * 24 * 3600;
/// Tenths of a second.
const QUIET: u64 = 3;

struct Given<'a> {
    option: &'a str,
    value: &'a str,
}

impl Given<'_> {
    fn parsed<T: FromStr>(&self, expected: &'static str) -> Result<T, UsageError> {
        self.value.parse().map_err(|_| self.wrong(expected))
    }

    fn in_range<T: FromStr + PartialOrd + Copy>(
        &self,
        from: T,
        to: T,
        expected: &'static str,
    ) -> Result<T, UsageError> {
        self.parsed(expected).and_then(|n| if n < from || n > to { Err(self.wrong(expected)) } else { Ok(n) })
    }

    /// A number, or one of the words that stand for 0 and 1.
    fn level(&self) -> Result<u32, UsageError> {
        let is = |words: [&str; 4]| words.iter().any(|w| w.eq_ignore_ascii_case(self.value));
        if is(["yes", "true", "on", "y"]) {
            return Ok(1);
        }
        if is(["no", "false", "off", ""]) {
            return Ok(0);
        }
        self.parsed("a number, yes or no")
    }

    fn family(&self) -> Result<Option<Family>, UsageError> {
        match self.value.to_ascii_lowercase().as_str() {
            "auto" => Ok(None),
            "ipv4" => Ok(Some(Family::V4)),
            "ipv6" => Ok(Some(Family::V6)),
            _ => Err(self.wrong("auto, ipv4 or ipv6")),
        }
    }

    fn group(&self) -> Result<IpAddr, UsageError> {
        const EXPECTED: &str = "a multicast address";
        self.parsed(EXPECTED)
            .and_then(|a: IpAddr| if a.is_multicast() { Ok(a) } else { Err(self.wrong(EXPECTED)) })
    }

    fn hash(&self) -> Result<HashType, UsageError> {
        const EXPECTED: &str = "none, sha1, sha256, sha512, hmac-sha256 or hmac-sha512";
        HashType::from_name(self.value).ok_or_else(|| self.wrong(EXPECTED))
    }

    fn wrong(&self, expected: &'static str) -> UsageError {
        wrong(self.option, OsStr::new(self.value), expected)
    }
}

fn wrong(option: &str, value: &OsStr, expected: &'static str) -> UsageError {
    UsageError::Value { option: option.to_owned(), value: value.to_string_lossy().into_owned(), expected }
}

fn path(option: &str, value: &OsStr) -> Result<PathBuf, UsageError> {
    if value.is_empty() { Err(wrong(option, value, "a path")) } else { Ok(value.into()) }
}

fn action(name: &str) -> Result<What, UsageError> {
    let name = name.to_ascii_lowercase();
    Ok(match name.as_str() {
        "metadata" => What::Metadata,
        "validate-all" => What::Validate,
        "list-status" => What::Wire(Action::List),
        _ => What::Wire(
            Action::ALL
                .into_iter()
                .find(|a| a.name() == name)
                .ok_or_else(|| UsageError::Action(name.clone()))?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(program: Program, line: &str) -> Result<Task, UsageError> {
        let mut settings = Settings::default();
        let arguments = line.split_whitespace().map(OsString::from);
        for option in fence_cli::getopt::parse(program.getopt(), &program.long(), arguments)?.options {
            settings.set_option(option.name, option.value)?;
        }
        settings.task(program)
    }

    fn plan(program: Program, line: &str) -> Plan {
        match task(program, line) {
            Ok(Task::Ask(plan)) => plan,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let plan = plan(Program::Xvm, "-n vm1");
        assert_eq!(
            (plan.action, plan.timeout, plan.delay),
            (Action::Reboot, Duration::from_secs(30), Duration::ZERO)
        );
        assert_eq!((plan.hash, plan.auth), (HashType::Sha256, HashType::Sha256));
        assert_eq!(plan.key_file.to_str(), Some("/etc/cluster/fence_xvm.key"));
        let (group, retransmit) = ([225, 0, 0, 12].into(), Duration::from_secs(2));
        let quiet = Duration::from_millis(300);
        assert_eq!(plan.transport, Transport::Multicast(Multicast { group, port: 1229, retransmit, quiet }));
        assert!(!plan.target.is_uuid());
    }

    #[test]
    fn the_way_to_the_host() {
        let way = |line: &str| plan(Program::Virt, line).transport;
        assert_eq!(way("-o list"), Transport::Channel(([10, 0, 2, 179], 1229).into()));
        assert_eq!(way("-o list -A 10.1.1.1 -p 7"), Transport::Channel(([10, 1, 1, 1], 7).into()));
        assert_eq!(way("-o list -T::1"), Transport::Tcp("[::1]:1229".parse().unwrap()));
        assert_eq!(way("-o list -S"), Transport::Vsock { cid: 2, port: 1229 });
        assert_eq!(way("-o list -S3 -p9"), Transport::Vsock { cid: 3, port: 9 });
        let serial = Transport::Serial { device: "/dev/ttyS2".into(), format: LineFormat::default() };
        assert_eq!(way("-o list -D /dev/ttyS2"), serial);
        let serial = Transport::Serial { device: "/dev/ttyS2".into(), format: "9600,7E1".parse().unwrap() };
        assert_eq!(way("-o list -P9600,7E1 -D /dev/ttyS2"), serial);
        assert!(task(Program::Virt, "-o list -D /dev/ttyS2 -P fast").is_err());
        assert!(!plan(Program::Virt, "-o list").needs_key());
        assert!(plan(Program::Virt, "-o list -T 1.2.3.4 -c none").needs_key());
        assert!(!plan(Program::Virt, "-o list -T 1.2.3.4 -c none -C none").needs_key());
    }

    #[test]
    fn sealed_requests() {
        let key = Key::new(b"a key").unwrap();
        for (line, hash) in [
            ("-c hmac-sha256", HashType::HmacSha256),
            ("-c HMAC-SHA512", HashType::HmacSha512),
            // Of no meaning, and so of no harm.
            ("-c hmac-sha256 -C sha1", HashType::HmacSha256),
            ("-c hmac-sha256 -C hmac-sha256", HashType::HmacSha256),
        ] {
            let plan = plan(Program::Xvm, &format!("-n a {line}"));
            assert_eq!(plan.hash, hash, "{line}");
            assert!(plan.needs_key());
            assert!(matches!(plan.auth_with(Some(&key)), ClientAuth::Sealed(..)), "{line}");
        }
        for (line, told) in [
            ("-c hmac-sha256 -C none", "leave auth out"),
            ("-C hmac-sha256", "goes only with hash hmac-sha256"),
            ("-c sha512 -C hmac-sha512", "goes only with hash hmac-sha512"),
            ("-c hmac-md5", "not none, sha1, sha256, sha512, hmac-sha256 or hmac-sha512"),
        ] {
            let error = task(Program::Xvm, &format!("-n a {line}")).unwrap_err().to_string();
            assert!(error.contains(told), "{line}: {error}");
        }
        assert!(matches!(plan(Program::Virt, "-n a -T ::1 -c hmac-sha256").hash, HashType::HmacSha256));
        for line in ["-D /dev/ttyS1", ""] {
            let error = task(Program::Virt, &format!("-n a -c hmac-sha256 {line}")).unwrap_err();
            assert!(matches!(error, UsageError::SealedLine(_)), "{line}: {error}");
        }
    }

    #[test]
    fn the_group_s_family() {
        let group = |line: &str| match plan(Program::Xvm, line).transport {
            Transport::Multicast(to) => to.group.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(group("-o list -i ipv6"), "ff05::3:1");
        assert_eq!(group("-o list -i auto -a ff02::7"), "ff02::7");
        assert_eq!(group("-o list -a 239.1.2.3"), "239.1.2.3");
        for wrong in ["-i ipv4 -a ff05::1", "-i ipv6 -a 225.0.0.1", "-a 10.0.0.1", "-a host", "-i ipv5"] {
            assert!(task(Program::Xvm, &format!("-o list {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_delay_is_for_what_changes_something() {
        for (action, delay) in [("off", 5), ("on", 5), ("reboot", 5), ("status", 0), ("null", 0)] {
            let plan = plan(Program::Xvm, &format!("-w 5 -n a -o {action}"));
            assert_eq!(plan.delay, Duration::from_secs(delay), "{action}");
        }
    }

    #[test]
    fn values_that_cannot_be() {
        for wrong in [
            "-t 0",
            "-t -1",
            "-t abc",
            "-t 99999999999999999999",
            "-p 0",
            "-p 65536",
            "-p -1",
            "-r 0",
            "-q -1",
            "-w -1",
            "-c md5",
            "-C hmac",
            "-o explode",
            "-n a -n b",
            "-M x",
        ] {
            assert!(task(Program::Xvm, &format!("-n a {wrong}")).is_err(), "{wrong}");
        }
        for action in ["off", "on", "reboot", "status", "validate-all"] {
            let wrong = task(Program::Xvm, &format!("-o {action}"));
            assert!(matches!(wrong, Err(UsageError::NoTarget(name)) if name == action), "{action}");
        }
        let name = "x".repeat(64);
        assert!(task(Program::Xvm, &format!("-n {name}")).is_err());
        assert!(task(Program::Xvm, &format!("-n {}", &name[1..])).is_ok());
    }

    #[test]
    fn a_diagnosis_is_harmless() {
        let asks = |line: &str| match task(Program::Xvm, line) {
            Ok(Task::Diagnose(plan)) => plan.action,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(asks("--diagnose"), Action::Monitor);
        assert_eq!(asks("--diagnose -n a"), Action::Status);
        assert_eq!(asks("-n a -o monitor --diagnose"), Action::Monitor);
        for action in ["off", "on", "reboot", "list", "null", "metadata", "validate-all"] {
            let wrong = task(Program::Xvm, &format!("-n a -o {action} --diagnose"));
            assert!(matches!(wrong, Err(UsageError::DiagnoseAction(_))), "{action}: {wrong:?}");
        }
    }

    #[test]
    fn tasks_that_ask_nobody() {
        assert!(matches!(task(Program::Xvm, "-h -n a"), Ok(Task::Help)));
        assert!(matches!(task(Program::Xvm, "-?"), Ok(Task::Help)));
        assert!(matches!(task(Program::Virt, "-V"), Ok(Task::Version)));
        assert!(matches!(task(Program::Virt, "-o metadata"), Ok(Task::Metadata)));
        assert!(matches!(task(Program::Virt, "-o VALIDATE-ALL -n a"), Ok(Task::Validate(_))));
        assert_eq!(plan(Program::Xvm, "-o list-status").action, Action::List);
        assert!(plan(Program::Xvm, "-u -n a").target.is_uuid());
    }
}
