// SPDX-License-Identifier: GPL-2.0-or-later
//! Options from standard input, `name=value`, one to a line.
//!
//! Owns the syntax. Runs on the agent's only thread, does no I/O. Must never fail because of a name that the
//! agent does not know: cluster managers send more than agents know.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

use fence_wire::escaped;

use crate::options::{ClientProgram, OptionId};
use crate::settings::ClientSettings;
use crate::usage::UsageError;

/// Name of a skipped line, which the agent does not know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownOption(String);

impl fmt::Display for UnknownOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ignoring unknown option '{}' on standard input", escaped(&self.0))
    }
}

/// Names that fencing programs send to all agents and that have no meaning here.
const IGNORED: [&str; 3] = ["agent", "self", "interface"];
/// Name of the node that is fenced. It tells which of two targets somebody configured.
const NODE: &str = "nodename";

/// Reads the whole text into `settings`, and returns the options that were skipped. Blanks around names and
/// values do not count, nor do empty lines, lines that start with `#`, and what follows a blank and a `#`,
/// but in names of machines: `web #1` is one.
/// The case of names does not matter.
///
/// # Errors
/// The first known option that has no value, or a wrong one.
pub fn read_options(
    program: ClientProgram,
    text: &[u8],
    settings: &mut ClientSettings,
) -> Result<Vec<UnknownOption>, UsageError> {
    let mut unknown = Vec::new();
    for line in text.split(|&b| b == b'\n' || b == b'\0') {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let mut parts = line.splitn(2, |&b| b == b'=');
        let name = String::from_utf8_lossy(parts.next().unwrap_or_default().trim_ascii()).into_owned();
        if IGNORED.iter().any(|i| i.eq_ignore_ascii_case(&name)) {
            continue;
        }
        let value = parts.next();
        if NODE.eq_ignore_ascii_case(&name) {
            settings.set_node(&String::from_utf8_lossy(value.unwrap_or_default().trim_ascii()));
            continue;
        }
        let option = program.option_named(&name);
        let is_machine = option.is_some_and(|it| it.id == OptionId::Plug);
        let value = if is_machine { value } else { value.map(without_comment) };
        match (option, value) {
            (None, _) => unknown.push(UnknownOption(name)),
            (Some(_), None) => return Err(UsageError::NoValue(name)),
            (Some(option), Some(value)) => {
                settings.set(option.id, &name, &OsString::from_vec(value.trim_ascii().to_vec()))?;
            }
        }
    }
    Ok(unknown)
}

/// Returns the value up to a comment that stands behind it. The C agent ends every value at its first blank:
/// that would make another target of a name with a blank.
fn without_comment(value: &[u8]) -> &[u8] {
    let begins = |pair: &[u8]| pair[0].is_ascii_whitespace() && pair[1] == b'#';
    value.windows(2).position(begins).map_or(value, |at| &value[..at])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fence_wire::Action;
    use proptest::prelude::*;

    use super::*;
    use crate::console::{Console, OptionSource, has_read_words};
    use crate::plan::{ClientTask, RequestPlan};

    fn task_of(text: &str) -> Result<ClientTask, UsageError> {
        let mut settings = ClientSettings::default();
        read_options(ClientProgram::Xvm, text.as_bytes(), &mut settings)?;
        settings.into_task(ClientProgram::Xvm)
    }

    fn plan_of(text: &str) -> RequestPlan {
        match task_of(text) {
            Ok(ClientTask::Ask(plan)) => plan,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn forms() {
        let plan =
            plan_of("# all\n\n  Action = off \r\n\tplug=vm 1\nTIMEOUT=7\n#timeout=9\nnodename=n1\nself=x");
        assert_eq!(plan.action, Action::Off);
        assert_eq!(plan.target.as_str(), "vm 1");
        assert_eq!(plan.timeout, Duration::from_secs(7));
        assert_eq!(plan_of("plug=a=b").target.as_str(), "a=b");
    }

    #[test]
    fn a_comment_may_stand_behind_a_value() {
        let plan = plan_of("action=off # see ticket\nport=vm1\ntimeout=7   #s\n\t # all");
        assert_eq!((plan.action, plan.timeout), (Action::Off, Duration::from_secs(7)));
        assert_eq!(plan.target.as_str(), "vm1");
        assert_eq!(plan_of("plug=vm#1").target.as_str(), "vm#1");
        assert_eq!(plan_of("plug=#1").target.as_str(), "#1");
        assert!(task_of("action= # which?\nplug=vm1").is_err());
    }

    #[test]
    fn a_machine_may_be_called_web_number_one() {
        for named in ["port", "plug"] {
            assert_eq!(plan_of(&format!("{named}=web #1")).target.as_str(), "web #1");
        }
    }

    #[test]
    fn empty_values() {
        assert_eq!(plan_of("plug=a\ndelay=\ndebug=\nuse_uuid=").delay, Duration::ZERO);
        let names =
            ["timeout", "ip_family", "multicast_address", "ipport", "retrans", "auth", "hash", "key_file"];
        for name in names {
            assert!(task_of(&format!("plug=a\n{name}=")).is_err(), "{name}");
        }
    }

    #[test]
    fn older_names() {
        assert_eq!(plan_of("option=status\ndomain=a").action, Action::Status);
        assert_eq!(plan_of("port=a").target.as_str(), "a");
        // Pacemaker sends this when it validates: the same target by two names.
        assert_eq!(plan_of("port=a\nplug=a\nnodename=b").target.as_str(), "a");
        // Where the device names another target than Pacemaker, nobody can tell which one is meant.
        assert!(matches!(task_of("port=a\nplug=b"), Err(UsageError::TwoTargets(..))));
    }

    #[test]
    fn the_configured_target_wins_over_the_node_s_name() {
        // In any order, by any two names of the option.
        for lines in [["plug=vm1", "port=n1", "nodename=n1"], ["domain=vm1", "plug=n1", "NODENAME = n1"]] {
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let text = order.map(|it| lines[it]).join("\n");
                assert_eq!(plan_of(&text).target.as_str(), "vm1", "{text}");
            }
        }
        assert_eq!(plan_of("plug=vm1\nport=n1\nport=n1\nplug=vm1\nnodename=n1").target.as_str(), "vm1");
        assert_eq!(plan_of("plug=n1\nnodename=n1").target.as_str(), "n1");
        assert_eq!(plan_of("plug=vm1\nnodename=n1").target.as_str(), "vm1");
        // A name that differs in case is another one. Of three nobody knows which is meant.
        for text in [
            "plug=vm1\nport=vm2\nnodename=n1",
            "plug=vm1\nport=N1\nnodename=n1",
            "plug=vm1\nport=n1\ndomain=vm2\nnodename=n1",
            "plug=vm1\nport=n1\nnodename=",
            "plug=vm1\nport=n1\nnodename",
        ] {
            assert!(matches!(task_of(text), Err(UsageError::TwoTargets(..))), "{text}");
        }
        assert!(matches!(task_of("nodename=n1\naction=off"), Err(UsageError::NoTarget("off"))));
    }

    #[test]
    fn no_wrong_option_reads_as_something_else() {
        let console = Console::new(ClientProgram::Xvm, OptionSource::StandardInput);
        let people = Console::new(ClientProgram::Xvm, OptionSource::CommandLine);
        let names = [
            "debug",
            "ip_family",
            "multicast_address",
            "ipport",
            "retrans",
            "quiet_time",
            "auth",
            "hash",
            "key_file",
            "plug",
            "port",
            "use_uuid",
            "action",
            "timeout",
            "serial_device",
            "serial_params",
            "channel_address",
            "ipaddr",
            "vsock",
            "delay",
            "domain",
            "option",
            "shell_timeout",
        ];
        let mut errors = 0;
        for program in [ClientProgram::Xvm, ClientProgram::Virt] {
            for name in names {
                for value in
                    ["", "=", "= abc", "=timeout", "=Timed out", "=unrecognised action", "=-1", "=\u{a0}"]
                {
                    let text = format!("plug=Timed out\n{name}{value}\n");
                    let mut settings = ClientSettings::default();
                    let read = read_options(program, text.as_bytes(), &mut settings);
                    let mut said: Vec<String> = read.iter().flatten().map(ToString::to_string).collect();
                    if let Some(error) = read.err().or_else(|| settings.into_task(program).err()) {
                        errors += 1;
                        said.push(error.to_string());
                    }
                    for said in said {
                        assert!(!has_read_words(&console.worded(&said)), "{text}: {said}");
                        assert_eq!(people.worded(&said), said);
                    }
                }
            }
        }
        assert!(errors > 100, "{errors}");
    }

    #[test]
    fn a_name_alone_is_an_error() {
        assert!(matches!(task_of("action\nplug=a"), Err(UsageError::NoValue(name)) if name == "action"));
        assert!(matches!(task_of("action=\nplug=a"), Err(UsageError::Action(_))));
    }

    #[test]
    fn unknown_names_are_reported() {
        let mut settings = ClientSettings::default();
        let unknown =
            read_options(ClientProgram::Xvm, b"ipaddr=1\nx\x1b[2J=1\nbogus", &mut settings).unwrap();
        let messages: Vec<_> = unknown.iter().map(ToString::to_string).collect();
        assert_eq!(messages[1], "ignoring unknown option 'x\\x1b[2J' on standard input");
        assert_eq!(messages.len(), 3);
    }

    proptest! {
        #[test]
        fn any_bytes(text: Vec<u8>) {
            let mut settings = ClientSettings::default();
            if read_options(ClientProgram::Virt, &text, &mut settings).is_ok() {
                let _ = settings.into_task(ClientProgram::Virt);
            }
        }
    }
}
