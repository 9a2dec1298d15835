// SPDX-License-Identifier: GPL-2.0-or-later
//! Options from the command line or standard input, each checked by itself.
//!
//! Owns the values that were given. Must never fill in a default: `defaults` does that, once all options are
//! there.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use fence_cli::getopt::Name;
use fence_net::{Family, LineFormat};
use fence_wire::{Action, HashType, TargetError};

use crate::host::HostName;
use crate::options::{OptionId, find_by_letter, find_by_long};
use crate::usage::UsageError;

/// Action as the user named it: an action of the host, or one that the agent carries out itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RequestedAction {
    /// Ask the host.
    Ask(Action),
    /// Check the options.
    Validate,
    /// Show the metadata.
    Metadata,
}

/// Options that were given, each checked by itself. The last one of its kind counts.
#[derive(Default, Debug)]
pub struct ClientSettings {
    pub(crate) help: bool,
    pub(crate) diagnose: bool,
    pub(crate) version: bool,
    pub(crate) debug: u32,
    pub(crate) family: Option<Family>,
    pub(crate) group: Option<IpAddr>,
    pub(crate) tcp: Option<HostName>,
    pub(crate) vsock: Option<u32>,
    pub(crate) channel: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) retransmit: Option<u64>,
    pub(crate) quiet: Option<u64>,
    pub(crate) hash: Option<HashType>,
    pub(crate) auth: Option<HashType>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) serial_device: Option<PathBuf>,
    pub(crate) serial_format: Option<LineFormat>,
    pub(crate) targets: GivenTargets,
    pub(crate) use_uuid: bool,
    pub(crate) action: Option<RequestedAction>,
    pub(crate) timeout: Option<u64>,
    pub(crate) delay: Option<u64>,
}

impl ClientSettings {
    /// Takes an option of the command line.
    ///
    /// # Errors
    /// Error in its value.
    pub fn set_option(&mut self, name: Name, value: Option<OsString>) -> Result<(), UsageError> {
        let option = match name {
            Name::Letter(letter) => find_by_letter(letter),
            Name::Long(long) => find_by_long(long),
        };
        match (option.ok_or(UsageError::Unsupported(name))?.id, value) {
            (OptionId::Debug, _) => self.debug = self.debug.saturating_add(1),
            (OptionId::UseUuid, _) => self.use_uuid = true,
            (OptionId::Help, _) => self.help = true,
            (OptionId::Diagnose, _) => self.diagnose = true,
            (OptionId::Version, _) => self.version = true,
            (OptionId::VsockCid, None) => self.vsock = Some(HOST_CID),
            (id, value) => self.set(id, &name.to_string(), &value.unwrap_or_default())?,
        }
        Ok(())
    }

    /// Takes an option with its value. `option` is its name as the user wrote it.
    ///
    /// # Errors
    /// Error in the value.
    pub fn set(&mut self, id: OptionId, option: &str, value: &OsStr) -> Result<(), UsageError> {
        // Paths may be any bytes, everything else is text.
        match id {
            OptionId::KeyFile => return parse_path(option, value).map(|p| self.key_file = Some(p)),
            OptionId::SerialDevice => return parse_path(option, value).map(|p| self.serial_device = Some(p)),
            _ => {}
        }
        let given = GivenOption {
            option,
            value: value.to_str().ok_or_else(|| value_error(option, value, "text in UTF-8"))?,
        };
        let text = given.value;
        match id {
            OptionId::Debug => self.debug = given.parse_level()?,
            OptionId::Family => self.family = given.parse_family()?,
            OptionId::Group => self.group = Some(given.parse_group()?),
            OptionId::TcpAddress if text.is_empty() => {
                self.tcp = Some(HostName::Address(Ipv4Addr::LOCALHOST.into()));
            }
            OptionId::TcpAddress => self.tcp = Some(given.parse("an IP address or host name")?),
            OptionId::VsockCid => self.vsock = Some(given.parse("a vsock CID")?),
            OptionId::ChannelAddress => self.channel = Some(given.parse("an IP address")?),
            OptionId::Port => self.port = Some(given.parse_in_range(1, 65535, "a port (1 to 65535)")?),
            OptionId::Retransmit => {
                self.retransmit = Some(given.parse_in_range(1, 36_000, "tenths of a second (1 or more)")?);
            }
            OptionId::Quiet => {
                self.quiet = Some(given.parse_in_range(0, 36_000, "tenths of a second (0 or more)")?);
            }
            OptionId::Hash => self.hash = Some(given.parse_hash()?),
            OptionId::Auth => self.auth = Some(given.parse_hash()?),
            OptionId::Plug => self.set_target(text)?,
            OptionId::UseUuid => self.use_uuid = given.parse_level()? > 0,
            OptionId::Action => self.action = Some(parse_action(text)?),
            OptionId::Timeout => {
                self.timeout = Some(given.parse_in_range(1, SECONDS_MAX, "seconds (1 or more)")?);
            }
            // Configuration managers hand over an unset option as an empty value; the C agents take this one.
            OptionId::Delay if text.is_empty() => self.delay = Some(0),
            OptionId::Delay => {
                self.delay = Some(given.parse_in_range(0, SECONDS_MAX, "seconds (0 or more)")?);
            }
            OptionId::SerialParameters => {
                self.serial_format = Some(given.parse("a speed and format of a serial line (115200,8N1)")?);
            }
            OptionId::Help => self.help = true,
            OptionId::Diagnose => self.diagnose = true,
            OptionId::Version => self.version = true,
            OptionId::KeyFile | OptionId::SerialDevice => {}
        }
        Ok(())
    }

    /// Takes the name of the node that the cluster manager fences.
    pub(crate) fn set_node(&mut self, name: &str) {
        self.targets.node = Some(name.to_owned());
    }

    /// Takes a target.
    fn set_target(&mut self, target: &str) -> Result<(), UsageError> {
        let GivenTargets { first, other, .. } = &mut self.targets;
        match first {
            _ if target.is_empty() => return Err(UsageError::Target(TargetError::Empty)),
            None => *first = Some(target.to_owned()),
            Some(first) if first == target => {}
            Some(first) => match other {
                Some(other) if other != target => {
                    return Err(UsageError::TwoTargets(first.clone(), target.to_owned()));
                }
                _ => *other = Some(target.to_owned()),
            },
        }
        Ok(())
    }
}

/// Targets that were given. There may be two: Pacemaker adds the name of the node by a second name of the
/// option, and says so with `nodename=`.
#[derive(Default, Debug)]
pub(crate) struct GivenTargets {
    first: Option<String>,
    /// Target that differs from the first one.
    other: Option<String>,
    /// Name of the node that the cluster manager fences.
    node: Option<String>,
}

impl GivenTargets {
    /// Returns the target. Of two, it is the one that is not the node's name: somebody configured that one.
    ///
    /// # Errors
    /// Two targets, and neither is the node's name: nobody can tell which one is meant.
    pub(crate) fn chosen(&self) -> Result<Option<&String>, UsageError> {
        match (&self.first, &self.other) {
            (Some(first), Some(other)) if self.node.as_ref() == Some(first) => Ok(Some(other)),
            (Some(first), Some(other)) if self.node.as_ref() != Some(other) => {
                Err(UsageError::TwoTargets(first.clone(), other.clone()))
            }
            (first, _) => Ok(first.as_ref()),
        }
    }
}

/// Context id of the host, in every guest.
const HOST_CID: u32 = 2;
/// Largest number of seconds, a year: longer than any cluster waits, and far from the limits of clocks.
const SECONDS_MAX: u64 = 366 * 24 * 3600;

/// Option and its value, as the user wrote them.
struct GivenOption<'a> {
    option: &'a str,
    value: &'a str,
}

impl GivenOption<'_> {
    fn parse<T: FromStr>(&self, expected: &'static str) -> Result<T, UsageError> {
        self.value.parse().map_err(|_| self.error(expected))
    }

    fn parse_in_range<T: FromStr + PartialOrd + Copy>(
        &self,
        from: T,
        to: T,
        expected: &'static str,
    ) -> Result<T, UsageError> {
        self.parse(expected).and_then(|n| if n < from || n > to { Err(self.error(expected)) } else { Ok(n) })
    }

    /// Returns the number, or 0 or 1 for the words that stand for them.
    fn parse_level(&self) -> Result<u32, UsageError> {
        let is = |words: [&str; 4]| words.iter().any(|w| w.eq_ignore_ascii_case(self.value));
        if is(["yes", "true", "on", "y"]) {
            return Ok(1);
        }
        if is(["no", "false", "off", ""]) {
            return Ok(0);
        }
        self.parse("a number, yes or no")
    }

    fn parse_family(&self) -> Result<Option<Family>, UsageError> {
        match self.value.to_ascii_lowercase().as_str() {
            "auto" => Ok(None),
            "ipv4" => Ok(Some(Family::V4)),
            "ipv6" => Ok(Some(Family::V6)),
            _ => Err(self.error("auto, ipv4 or ipv6")),
        }
    }

    fn parse_group(&self) -> Result<IpAddr, UsageError> {
        const EXPECTED: &str = "a multicast address";
        self.parse(EXPECTED)
            .and_then(|a: IpAddr| if a.is_multicast() { Ok(a) } else { Err(self.error(EXPECTED)) })
    }

    fn parse_hash(&self) -> Result<HashType, UsageError> {
        const EXPECTED: &str = "none, sha1, sha256, sha512, hmac-sha256 or hmac-sha512";
        HashType::from_name(self.value).ok_or_else(|| self.error(EXPECTED))
    }

    fn error(&self, expected: &'static str) -> UsageError {
        value_error(self.option, OsStr::new(self.value), expected)
    }
}

/// Returns the error of a value that does not fit its option.
fn value_error(option: &str, value: &OsStr, expected: &'static str) -> UsageError {
    UsageError::Value { option: option.to_owned(), value: value.to_string_lossy().into_owned(), expected }
}

/// Returns the path, which must not be empty.
fn parse_path(option: &str, value: &OsStr) -> Result<PathBuf, UsageError> {
    if value.is_empty() { Err(value_error(option, value, "a path")) } else { Ok(value.into()) }
}

/// Returns the action of this name.
fn parse_action(name: &str) -> Result<RequestedAction, UsageError> {
    let name = name.to_ascii_lowercase();
    Ok(match name.as_str() {
        "metadata" => RequestedAction::Metadata,
        "validate-all" => RequestedAction::Validate,
        "list-status" => RequestedAction::Ask(Action::List),
        _ => RequestedAction::Ask(
            Action::ALL
                .into_iter()
                .find(|a| a.name() == name)
                .ok_or_else(|| UsageError::Action(name.clone()))?,
        ),
    })
}
