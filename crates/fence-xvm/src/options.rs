// SPDX-License-Identifier: GPL-2.0-or-later
//! The table of all options: letters, names on standard input, defaults, words for help and metadata.
//!
//! Command line, standard input, help and metadata all read this table and nothing else.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fence_cli::getopt::{ArgumentKind, LongOption};
use fence_wire::DEFAULT_KEY_FILE;

/// Which agent the program is called as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// `fence_xvm`: asks by multicast.
    Xvm,
    /// `fence_virt`: asks by serial line or VM channel, TCP or vsock.
    Virt,
}

/// What an option is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the table says what each is")]
pub enum Id {
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

/// One row of the table.
#[derive(Debug)]
pub struct Opt {
    /// What it is about.
    pub id: Id,
    /// Its letter on the command line.
    pub letter: Option<char>,
    /// Its long names on the command line, the one that help and metadata show first.
    pub long: &'static [&'static str],
    /// Its name on standard input.
    pub name: Option<&'static str>,
    /// What stands for its value in the help.
    pub value: &'static str,
    /// The type in the metadata.
    pub kind: &'static str,
    /// The default in the metadata.
    pub default: Option<&'static str>,
    /// An older name of another option.
    pub deprecated: bool,
    /// What it does, in a few words.
    pub text: &'static str,
}

impl Program {
    /// The agent that a program of this path is: `fence_xvm` by its name, anything else is `fence_virt`.
    #[must_use]
    pub fn from_argv0(argv0: &OsStr) -> Self {
        let name = argv0.as_bytes().rsplit(|&b| b == b'/').next().unwrap_or_default();
        if name == b"fence_xvm" { Self::Xvm } else { Self::Virt }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xvm => "fence_xvm",
            Self::Virt => "fence_virt",
        }
    }

    /// Its options as getopt(3) takes them.
    #[must_use]
    pub fn getopt(self) -> &'static str {
        match self {
            Self::Xvm => "di:a:p:r:C:c:k:M:n:H:uo:t:?hVw:q:",
            Self::Virt => "dD:P:A:p:M:n:H:o:t:?hVT:S::C:c:k:w:",
        }
    }

    /// Its long options: each stands for a letter, but for one.
    pub fn long(self) -> Vec<LongOption> {
        let takes = |letter| match self.getopt().split_once(letter) {
            Some((_, after)) if after.starts_with("::") => ArgumentKind::MayHaveValue,
            Some((_, after)) if after.starts_with(':') => ArgumentKind::Value,
            _ => ArgumentKind::Nothing,
        };
        let rest = TABLE.iter().filter(|it| matches!(it.id, Id::Help | Id::Version));
        let named = self.options().chain(rest).filter_map(|it| Some((it.long, it.letter?)));
        named
            .flat_map(|(names, letter)| {
                names.iter().map(move |name| LongOption { name, takes: takes(letter) })
            })
            .chain([LongOption { name: DIAGNOSE, takes: ArgumentKind::Nothing }])
            .collect()
    }

    /// Its options that have a meaning, in the order of help and metadata.
    pub fn options(self) -> impl Iterator<Item = &'static Opt> {
        let letters = match self {
            Self::Xvm => "diaprqCcknHuotw",
            Self::Virt => "dDPApnHotTSCckw",
        };
        letters.chars().filter_map(by_letter)
    }

    /// The option that goes by this name on standard input; case does not matter.
    #[must_use]
    pub fn by_name(self, name: &str) -> Option<&'static Opt> {
        let found = TABLE.iter().find(|o| o.name.is_some_and(|n| n.eq_ignore_ascii_case(name)))?;
        let has = |letter: char| self.options().any(|o| o.letter == Some(letter));
        found.letter.is_none_or(has).then_some(found)
    }
}

/// The option with this letter.
#[must_use]
pub fn by_letter(letter: char) -> Option<&'static Opt> {
    TABLE.iter().find(|o| o.letter == Some(letter))
}

/// The option with this long name.
#[must_use]
pub fn by_long(name: &str) -> Option<&'static Opt> {
    TABLE.iter().find(|o| o.long.contains(&name))
}

/// The older names that only standard input takes and the metadata shows.
#[must_use]
pub fn domain_alias() -> &'static Opt {
    &DOMAIN
}

const DIAGNOSE: &str = "diagnose";

const BASE: Opt = Opt {
    id: Id::Help,
    letter: None,
    long: &[],
    name: None,
    value: "",
    kind: "string",
    default: None,
    deprecated: false,
    text: "",
};

const DOMAIN: Opt = Opt {
    id: Id::Plug,
    name: Some("domain"),
    deprecated: true,
    text: "Domain to fence (older name of plug)",
    ..BASE
};

const TARGET: &str = "Domain to fence, by name or UUID";

const TABLE: &[Opt] = &[
    Opt {
        id: Id::Debug,
        letter: Some('d'),
        long: &["debug", "verbose"],
        name: Some("debug"),
        kind: "boolean",
        text: "Say on standard error what is done (repeat for more; a level on stdin)",
        ..BASE
    },
    Opt {
        id: Id::Family,
        letter: Some('i'),
        long: &["ip-family"],
        name: Some("ip_family"),
        value: "family",
        default: Some("auto"),
        text: "IP family: auto (that of the multicast address, else ipv4), ipv4, ipv6",
        ..BASE
    },
    Opt {
        id: Id::Group,
        letter: Some('a'),
        long: &["multicast-address"],
        name: Some("multicast_address"),
        value: "address",
        text: "Multicast address that the hosts listen on (default 225.0.0.12, for ipv6 ff05::3:1)",
        ..BASE
    },
    Opt {
        id: Id::Port,
        letter: Some('p'),
        long: &["ipport"],
        name: Some("ipport"),
        value: "port",
        default: Some("1229"),
        text: "Port of the hosts: multicast (and call-back), TCP, vsock or VM channel",
        ..BASE
    },
    Opt {
        id: Id::Retransmit,
        letter: Some('r'),
        long: &["retrans"],
        name: Some("retrans"),
        value: "tenths",
        default: Some("20"),
        text: "Tenths of a second after which an unanswered multicast request is sent again",
        ..BASE
    },
    Opt {
        id: Id::Quiet,
        letter: Some('q'),
        long: &["quiet-time"],
        name: Some("quiet_time"),
        value: "tenths",
        default: Some("3"),
        text: "Tenths of a second that another host is waited for after a list or a failure",
        ..BASE
    },
    Opt {
        id: Id::Auth,
        letter: Some('C'),
        long: &["auth"],
        name: Some("auth"),
        value: "type",
        default: Some("sha256"),
        text: "Challenge between host and guest: none, sha1, sha256, sha512 (the host must have the same; nothing with hash hmac-*)",
        ..BASE
    },
    Opt {
        id: Id::Hash,
        letter: Some('c'),
        long: &["hash"],
        name: Some("hash"),
        value: "type",
        default: Some("sha256"),
        text: "Hash of the request: none, sha1, sha256, sha512, or sealed with its answer: hmac-sha256, hmac-sha512 (at least as strong as the host's)",
        ..BASE
    },
    Opt {
        id: Id::KeyFile,
        letter: Some('k'),
        long: &["key-file"],
        name: Some("key_file"),
        value: "file",
        default: Some(DEFAULT_KEY_FILE),
        text: "File with the key that hosts and guests share",
        ..BASE
    },
    Opt {
        id: Id::Plug,
        letter: Some('n'),
        long: &["plug"],
        name: Some("plug"),
        value: "domain",
        text: TARGET,
        ..BASE
    },
    Opt {
        id: Id::Plug,
        letter: Some('H'),
        name: Some("port"),
        value: "domain",
        deprecated: true,
        text: "Domain to fence (older name of plug)",
        ..BASE
    },
    Opt {
        id: Id::UseUuid,
        letter: Some('u'),
        long: &["use-uuid"],
        name: Some("use_uuid"),
        default: Some("0"),
        text: "The domain is given by its UUID",
        ..BASE
    },
    Opt {
        id: Id::Action,
        letter: Some('o'),
        long: &["action"],
        name: Some("action"),
        value: "action",
        default: Some("reboot"),
        text: "What to do: null, off, on, reboot, status, list, list-status, monitor, validate-all, metadata",
        ..BASE
    },
    Opt {
        id: Id::Timeout,
        letter: Some('t'),
        long: &["timeout"],
        name: Some("timeout"),
        value: "seconds",
        default: Some("30"),
        text: "Seconds after which the agent gives up",
        ..BASE
    },
    Opt {
        id: Id::TcpAddress,
        letter: Some('T'),
        long: &["ip", "ipaddr"],
        name: Some("ipaddr"),
        value: "address",
        default: Some("127.0.0.1"),
        text: "Ask by TCP: the host's IP address",
        ..BASE
    },
    Opt {
        id: Id::VsockCid,
        letter: Some('S'),
        long: &["vsock"],
        name: Some("vsock"),
        value: "cid",
        kind: "integer",
        default: Some("2"),
        text: "Ask by vsock: the host's CID (attached, -S2; alone it means 2)",
        ..BASE
    },
    Opt {
        id: Id::SerialDevice,
        letter: Some('D'),
        long: &["serial-device"],
        name: Some("serial_device"),
        value: "device",
        default: Some("/dev/ttyS1"),
        text: "Ask by a serial line: its device",
        ..BASE
    },
    Opt {
        id: Id::SerialParameters,
        letter: Some('P'),
        long: &["serial-params"],
        name: Some("serial_params"),
        value: "parameters",
        default: Some("115200,8N1"),
        text: "Speed and format of the serial line",
        ..BASE
    },
    Opt {
        id: Id::ChannelAddress,
        letter: Some('A'),
        long: &["channel-address"],
        name: Some("channel_address"),
        value: "address",
        default: Some("10.0.2.179"),
        text: "Address inside the guest that leads to the VM channel",
        ..BASE
    },
    Opt {
        id: Id::Delay,
        letter: Some('w'),
        long: &["delay"],
        name: Some("delay"),
        value: "seconds",
        default: Some("0"),
        text: "Seconds to wait before off, on or reboot",
        ..BASE
    },
    Opt { id: Id::Help, letter: Some('h'), long: &["help"], text: "Show this help", ..BASE },
    Opt { id: Id::Diagnose, long: &[DIAGNOSE], text: "Say why no answer comes", ..BASE },
    Opt { id: Id::Help, letter: Some('?'), text: "Show this help", ..BASE },
    Opt { id: Id::Version, letter: Some('V'), long: &["version"], text: "Show the version", ..BASE },
    DOMAIN,
    Opt { id: Id::Action, name: Some("option"), deprecated: true, ..BASE },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        let program = |argv0: &str| Program::from_argv0(OsStr::new(argv0));
        assert_eq!(program("/usr/sbin/fence_xvm"), Program::Xvm);
        assert_eq!(program("fence_xvm"), Program::Xvm);
        for other in ["/usr/sbin/fence_virt", "fence_xvm2", "/fence_xvm/agent", ""] {
            assert_eq!(program(other), Program::Virt);
        }
    }

    #[test]
    fn every_letter_of_getopt_has_its_row() {
        for program in [Program::Xvm, Program::Virt] {
            let letters = program.getopt().chars().filter(|&c| c != ':');
            for letter in letters {
                // -M is taken and refused.
                assert_eq!(by_letter(letter).is_some(), letter != 'M', "{letter}");
            }
            for option in program.options() {
                assert!(program.getopt().contains(option.letter.unwrap()));
            }
        }
    }

    #[test]
    fn names_are_those_of_the_program() {
        assert_eq!(Program::Xvm.by_name("MULTICAST_ADDRESS").unwrap().id, Id::Group);
        assert!(Program::Xvm.by_name("ipaddr").is_none());
        assert!(Program::Virt.by_name("multicast_address").is_none());
        assert!(Program::Virt.by_name("use_uuid").is_none());
        for program in [Program::Xvm, Program::Virt] {
            for (name, id) in [
                ("plug", Id::Plug),
                ("port", Id::Plug),
                ("domain", Id::Plug),
                ("action", Id::Action),
                ("option", Id::Action),
            ] {
                assert_eq!(program.by_name(name).unwrap().id, id);
            }
        }
    }
}
