// SPDX-License-Identifier: GPL-2.0-or-later
//! Table of all options: letters, names on standard input, defaults, texts for help and metadata.
//!
//! Owns the table. Must never have an option anywhere else: command line, standard input, help and metadata
//! read it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fence_cli::getopt::{ArgumentKind, LongOption};
use fence_wire::DEFAULT_KEY_FILE;

/// Name that the program is called by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientProgram {
    /// `fence_xvm`: asks by multicast.
    Xvm,
    /// `fence_virt`: asks by serial line or VM channel, TCP or vsock.
    Virt,
}

/// Subject of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the table describes each")]
pub enum OptionId {
    Debug,
    Family,
    Group,
    TcpAddress,
    VsockCid,
    ChannelAddress,
    Port,
    Retransmit,
    Quiet,
    Hash,
    Auth,
    KeyFile,
    SerialDevice,
    SerialParameters,
    Plug,
    UseUuid,
    Action,
    Timeout,
    Delay,
    Diagnose,
    Help,
    Version,
}

/// Row of the table.
#[derive(Debug)]
pub struct OptionRow {
    /// Subject of the option.
    pub id: OptionId,
    /// Letter on the command line.
    pub letter: Option<char>,
    /// Long names on the command line. Help and metadata show the first one first.
    pub long: &'static [&'static str],
    /// Name on standard input.
    pub name: Option<&'static str>,
    /// Placeholder of its value in the help.
    pub value: &'static str,
    /// Type in the metadata.
    pub kind: &'static str,
    /// Default in the metadata.
    pub default: Option<&'static str>,
    /// True if this is an older name of another option.
    pub deprecated: bool,
    /// Meaning in a few words.
    pub text: &'static str,
}

impl ClientProgram {
    /// Returns the agent of this path: `fence_xvm` by its name; any other name is `fence_virt`.
    #[must_use]
    pub fn from_argv0(argv0: &OsStr) -> Self {
        let name = argv0.as_bytes().rsplit(|&b| b == b'/').next().unwrap_or_default();
        if name == b"fence_xvm" { Self::Xvm } else { Self::Virt }
    }

    /// Returns the name of the agent.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xvm => "fence_xvm",
            Self::Virt => "fence_virt",
        }
    }

    /// Returns its options as getopt(3) takes them.
    #[must_use]
    pub fn getopt_string(self) -> &'static str {
        match self {
            Self::Xvm => "di:a:p:r:C:c:k:M:n:H:uo:t:?hVw:q:",
            Self::Virt => "dD:P:A:p:M:n:H:o:t:?hVT:S::C:c:k:w:",
        }
    }

    /// Returns its long options. Each stands for a letter, except `--diagnose`.
    pub fn long_options(self) -> Vec<LongOption> {
        let takes = |letter| match self.getopt_string().split_once(letter) {
            Some((_, after)) if after.starts_with("::") => ArgumentKind::MayHaveValue,
            Some((_, after)) if after.starts_with(':') => ArgumentKind::Value,
            _ => ArgumentKind::Nothing,
        };
        let rest = TABLE.iter().filter(|it| matches!(it.id, OptionId::Help | OptionId::Version));
        let named = self.options().chain(rest).filter_map(|it| Some((it.long, it.letter?)));
        named
            .flat_map(|(names, letter)| {
                names.iter().map(move |name| LongOption { name, takes: takes(letter) })
            })
            .chain([LongOption { name: DIAGNOSE, takes: ArgumentKind::Nothing }])
            .collect()
    }

    /// Returns its options that have a meaning, in the order of help and metadata.
    pub fn options(self) -> impl Iterator<Item = &'static OptionRow> {
        let letters = match self {
            Self::Xvm => "diaprqCcknHuotw",
            Self::Virt => "dDPApnHotTSCckw",
        };
        letters.chars().filter_map(find_by_letter)
    }

    /// Returns the option of this name on standard input. Case does not matter.
    #[must_use]
    pub fn option_named(self, name: &str) -> Option<&'static OptionRow> {
        let found = TABLE.iter().find(|o| o.name.is_some_and(|n| n.eq_ignore_ascii_case(name)))?;
        let has = |letter: char| self.options().any(|o| o.letter == Some(letter));
        found.letter.is_none_or(has).then_some(found)
    }
}

/// Returns the option with this letter.
#[must_use]
pub fn find_by_letter(letter: char) -> Option<&'static OptionRow> {
    TABLE.iter().find(|o| o.letter == Some(letter))
}

/// Returns the option with this long name.
#[must_use]
pub fn find_by_long(name: &str) -> Option<&'static OptionRow> {
    TABLE.iter().find(|o| o.long.contains(&name))
}

/// Returns the older name of the plug that only standard input takes, and that the metadata shows.
#[must_use]
pub fn domain_alias() -> &'static OptionRow {
    &DOMAIN
}

const DIAGNOSE: &str = "diagnose";

const BASE: OptionRow = OptionRow {
    id: OptionId::Help,
    letter: None,
    long: &[],
    name: None,
    value: "",
    kind: "string",
    default: None,
    deprecated: false,
    text: "",
};

const DOMAIN: OptionRow = OptionRow {
    id: OptionId::Plug,
    name: Some("domain"),
    deprecated: true,
    text: "Domain to fence (older name of plug)",
    ..BASE
};

const TARGET: &str = "Domain to fence, by name or UUID";

const TABLE: &[OptionRow] = &[
    OptionRow {
        id: OptionId::Debug,
        letter: Some('d'),
        long: &["debug", "verbose"],
        name: Some("debug"),
        kind: "boolean",
        text: "Say on standard error what is done (repeat for more; a level on stdin)",
        ..BASE
    },
    OptionRow {
        id: OptionId::Family,
        letter: Some('i'),
        long: &["ip-family"],
        name: Some("ip_family"),
        value: "family",
        default: Some("auto"),
        text: "IP family: auto (that of the multicast address, else ipv4), ipv4, ipv6",
        ..BASE
    },
    OptionRow {
        id: OptionId::Group,
        letter: Some('a'),
        long: &["multicast-address"],
        name: Some("multicast_address"),
        value: "address",
        text: "Multicast address that the hosts listen on (default 225.0.0.12, for ipv6 ff05::3:1)",
        ..BASE
    },
    OptionRow {
        id: OptionId::Port,
        letter: Some('p'),
        long: &["ipport"],
        name: Some("ipport"),
        value: "port",
        default: Some("1229"),
        text: "Port of the hosts: multicast (and call-back), TCP, vsock or VM channel",
        ..BASE
    },
    OptionRow {
        id: OptionId::Retransmit,
        letter: Some('r'),
        long: &["retrans"],
        name: Some("retrans"),
        value: "tenths",
        default: Some("20"),
        text: "Tenths of a second after which an unanswered multicast request is sent again",
        ..BASE
    },
    OptionRow {
        id: OptionId::Quiet,
        letter: Some('q'),
        long: &["quiet-time"],
        name: Some("quiet_time"),
        value: "tenths",
        default: Some("3"),
        text: "Tenths of a second that another host is waited for after a list or a failure",
        ..BASE
    },
    OptionRow {
        id: OptionId::Auth,
        letter: Some('C'),
        long: &["auth"],
        name: Some("auth"),
        value: "type",
        default: Some("sha256"),
        text: "Challenge between host and guest: none, sha1, sha256, sha512 (the host must have the same; \
               nothing with hash hmac-*)",
        ..BASE
    },
    OptionRow {
        id: OptionId::Hash,
        letter: Some('c'),
        long: &["hash"],
        name: Some("hash"),
        value: "type",
        default: Some("sha256"),
        text: "Hash of the request: none, sha1, sha256, sha512, or sealed with its answer: hmac-sha256, \
               hmac-sha512 (at least as strong as the host's)",
        ..BASE
    },
    OptionRow {
        id: OptionId::KeyFile,
        letter: Some('k'),
        long: &["key-file"],
        name: Some("key_file"),
        value: "file",
        default: Some(DEFAULT_KEY_FILE),
        text: "File with the key that hosts and guests share",
        ..BASE
    },
    OptionRow {
        id: OptionId::Plug,
        letter: Some('n'),
        long: &["plug"],
        name: Some("plug"),
        value: "domain",
        text: TARGET,
        ..BASE
    },
    OptionRow {
        id: OptionId::Plug,
        letter: Some('H'),
        name: Some("port"),
        value: "domain",
        deprecated: true,
        text: "Domain to fence (older name of plug)",
        ..BASE
    },
    OptionRow {
        id: OptionId::UseUuid,
        letter: Some('u'),
        long: &["use-uuid"],
        name: Some("use_uuid"),
        default: Some("0"),
        text: "The domain is given by its UUID",
        ..BASE
    },
    OptionRow {
        id: OptionId::Action,
        letter: Some('o'),
        long: &["action"],
        name: Some("action"),
        value: "action",
        default: Some("reboot"),
        text: "What to do: null, off, on, reboot, status, list, list-status, monitor, validate-all, metadata",
        ..BASE
    },
    OptionRow {
        id: OptionId::Timeout,
        letter: Some('t'),
        long: &["timeout"],
        name: Some("timeout"),
        value: "seconds",
        default: Some("30"),
        text: "Seconds after which the agent gives up",
        ..BASE
    },
    OptionRow {
        id: OptionId::TcpAddress,
        letter: Some('T'),
        long: &["ip", "ipaddr"],
        name: Some("ipaddr"),
        value: "address",
        default: Some("127.0.0.1"),
        text: "Ask by TCP: the host's IP address or name",
        ..BASE
    },
    OptionRow {
        id: OptionId::VsockCid,
        letter: Some('S'),
        long: &["vsock"],
        name: Some("vsock"),
        value: "cid",
        kind: "integer",
        default: Some("2"),
        text: "Ask by vsock: the host's CID (attached, -S2; alone it means 2)",
        ..BASE
    },
    OptionRow {
        id: OptionId::SerialDevice,
        letter: Some('D'),
        long: &["serial-device"],
        name: Some("serial_device"),
        value: "device",
        default: Some("/dev/ttyS1"),
        text: "Ask by a serial line: its device",
        ..BASE
    },
    OptionRow {
        id: OptionId::SerialParameters,
        letter: Some('P'),
        long: &["serial-params"],
        name: Some("serial_params"),
        value: "parameters",
        default: Some("115200,8N1"),
        text: "Speed and format of the serial line",
        ..BASE
    },
    OptionRow {
        id: OptionId::ChannelAddress,
        letter: Some('A'),
        long: &["channel-address"],
        name: Some("channel_address"),
        value: "address",
        default: Some("10.0.2.179"),
        text: "Address inside the guest that leads to the VM channel",
        ..BASE
    },
    OptionRow {
        id: OptionId::Delay,
        letter: Some('w'),
        long: &["delay"],
        name: Some("delay"),
        value: "seconds",
        default: Some("0"),
        text: "Seconds to wait before off, on or reboot",
        ..BASE
    },
    OptionRow { id: OptionId::Help, letter: Some('h'), long: &["help"], text: "Show this help", ..BASE },
    OptionRow { id: OptionId::Diagnose, long: &[DIAGNOSE], text: "Say why no answer comes", ..BASE },
    OptionRow { id: OptionId::Help, letter: Some('?'), text: "Show this help", ..BASE },
    OptionRow {
        id: OptionId::Version,
        letter: Some('V'),
        long: &["version"],
        text: "Show the version",
        ..BASE
    },
    DOMAIN,
    OptionRow { id: OptionId::Action, name: Some("option"), deprecated: true, ..BASE },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        let program = |argv0: &str| ClientProgram::from_argv0(OsStr::new(argv0));
        assert_eq!(program("/usr/sbin/fence_xvm"), ClientProgram::Xvm);
        assert_eq!(program("fence_xvm"), ClientProgram::Xvm);
        for other in ["/usr/sbin/fence_virt", "fence_xvm2", "/fence_xvm/agent", ""] {
            assert_eq!(program(other), ClientProgram::Virt);
        }
    }

    #[test]
    fn every_letter_of_getopt_has_its_row() {
        for program in [ClientProgram::Xvm, ClientProgram::Virt] {
            let letters = program.getopt_string().chars().filter(|&c| c != ':');
            for letter in letters {
                // The option -M is known, and refused.
                assert_eq!(find_by_letter(letter).is_some(), letter != 'M', "{letter}");
            }
            for option in program.options() {
                assert!(program.getopt_string().contains(option.letter.unwrap()));
            }
        }
    }

    #[test]
    fn names_are_those_of_the_program() {
        assert_eq!(ClientProgram::Xvm.option_named("MULTICAST_ADDRESS").unwrap().id, OptionId::Group);
        assert!(ClientProgram::Xvm.option_named("ipaddr").is_none());
        assert!(ClientProgram::Virt.option_named("multicast_address").is_none());
        assert!(ClientProgram::Virt.option_named("use_uuid").is_none());
        for program in [ClientProgram::Xvm, ClientProgram::Virt] {
            for (name, id) in [
                ("plug", OptionId::Plug),
                ("port", OptionId::Plug),
                ("domain", OptionId::Plug),
                ("action", OptionId::Action),
                ("option", OptionId::Action),
            ] {
                assert_eq!(program.option_named(name).unwrap().id, id);
            }
        }
    }
}
