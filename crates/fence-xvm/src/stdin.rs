// SPDX-License-Identifier: GPL-2.0-or-later
//! Options from standard input: `name=value`, one to a line.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

use fence_wire::escaped;

use crate::options::Program;
use crate::settings::Settings;
use crate::usage::UsageError;

/// A line with a name that the agent does not have. It is skipped: cluster managers send more than agents know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ignoring unknown option '{}' on standard input", escaped(&self.0))
    }
}

/// Names that fencing programs add for all agents and that mean nothing here.
const IGNORED: [&str; 4] = ["agent", "self", "nodename", "interface"];

/// Reads all of standard input into `settings`. Blanks round names and values do not count, nor do empty lines and
/// lines that start with `#`; case of names does not matter. Gives the lines that were skipped.
///
/// # Errors
/// The first known option that has no value, or a wrong one.
pub fn read(program: Program, text: &[u8], settings: &mut Settings) -> Result<Vec<Unknown>, UsageError> {
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
        match (program.by_name(&name), parts.next()) {
            (None, _) => unknown.push(Unknown(name)),
            (Some(_), None) => return Err(UsageError::NoValue(name)),
            (Some(option), Some(value)) => {
                settings.set(option.id, &name, &OsString::from_vec(value.trim_ascii().to_vec()))?;
            }
        }
    }
    Ok(unknown)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fence_wire::Action;
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{Plan, Task};

    fn task(text: &str) -> Result<Task, UsageError> {
        let mut settings = Settings::default();
        read(Program::Xvm, text.as_bytes(), &mut settings)?;
        settings.task(Program::Xvm)
    }

    fn plan(text: &str) -> Plan {
        match task(text) {
            Ok(Task::Ask(plan)) => plan,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn forms() {
        let plan =
            plan("# all\n\n  Action = off \r\n\tplug=vm 1\nTIMEOUT=7\n#timeout=9\nnodename=n1\nself=x");
        assert_eq!(plan.action, Action::Off);
        assert_eq!(plan.target.as_str(), "vm 1");
        assert_eq!(plan.timeout, Duration::from_secs(7));
        assert_eq!(self::plan("plug=a=b").target.as_str(), "a=b");
    }

    #[test]
    fn older_names() {
        assert_eq!(plan("option=status\ndomain=a").action, Action::Status);
        assert_eq!(plan("port=a").target.as_str(), "a");
        // What Pacemaker sends when it validates: the same target by two names.
        assert_eq!(plan("port=a\nplug=a\nnodename=b").target.as_str(), "a");
        // And where the device itself names another than Pacemaker does, nobody can tell which one is meant.
        assert!(matches!(task("port=a\nplug=b"), Err(UsageError::TwoTargets(..))));
    }

    #[test]
    fn a_name_alone_is_an_error() {
        assert!(matches!(task("action\nplug=a"), Err(UsageError::NoValue(name)) if name == "action"));
        assert!(matches!(task("action=\nplug=a"), Err(UsageError::Action(_))));
    }

    #[test]
    fn unknown_names_are_told() {
        let mut settings = Settings::default();
        let unknown = read(Program::Xvm, b"ipaddr=1\nx\x1b[2J=1\nbogus", &mut settings).unwrap();
        let told: Vec<_> = unknown.iter().map(ToString::to_string).collect();
        assert_eq!(told[1], "ignoring unknown option 'x\\x1b[2J' on standard input");
        assert_eq!(told.len(), 3);
    }

    proptest! {
        #[test]
        fn any_bytes(text: Vec<u8>) {
            let mut settings = Settings::default();
            let _ = read(Program::Virt, &text, &mut settings).map(|_| settings.task(Program::Virt));
        }
    }
}
