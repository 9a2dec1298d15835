// SPDX-License-Identifier: GPL-2.0-or-later
//! Options as they come in, from the command line or standard input, each checked by itself.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use fence_cli::getopt::Name;
use fence_net::{Family, LineFormat};
use fence_wire::{Action, HashType, TargetError};

use crate::options::{Id, by_letter, by_long};
use crate::usage::UsageError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Wire(Action),
    Validate,
    Metadata,
}

/// Options as they come in, each checked by itself. The last one counts.
#[derive(Default, Debug)]
pub struct Settings {
    pub(crate) help: bool,
    pub(crate) diagnose: bool,
    pub(crate) version: bool,
    pub(crate) debug: u32,
    pub(crate) family: Option<Family>,
    pub(crate) group: Option<IpAddr>,
    pub(crate) tcp: Option<IpAddr>,
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
    pub(crate) target: Option<String>,
    pub(crate) use_uuid: bool,
    pub(crate) what: Option<What>,
    pub(crate) timeout: Option<u64>,
    pub(crate) delay: Option<u64>,
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
}

/// The CID that every guest knows its host by.
const HOST_CID: u32 = 2;
/// A year: longer than any cluster waits, and far from what clocks cannot hold.
const SECONDS_MAX: u64 = 366 * 24 * 3600;

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
