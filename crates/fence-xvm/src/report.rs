// SPDX-License-Identifier: GPL-2.0-or-later
//! The answer as the user sees it: standard output, a message, and the exit code.
//!
//! Owns nothing. Runs on the agent's only thread, last of all. Must never turn an answer into another exit
//! code than its response has.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write};

use fence_wire::{Action, Response, escaped};

use crate::answer::HostAnswer;
use crate::attempts::HostFailure;
use crate::console::Console;
use crate::options::ClientProgram;
use crate::output::FAILURE;
use crate::plan::{RequestPlan, Transport};
use crate::rows::ListRows;

/// Shows the answer and returns its exit code.
/// `failures`: the hosts whose logs tell more.
pub(crate) fn report(
    plan: &RequestPlan,
    answer: HostAnswer,
    failures: &[HostFailure],
    console: &Console,
) -> u8 {
    let response = match answer {
        HostAnswer::Response(response) => {
            if let (Action::Status, Response::Success | Response::Off) = (plan.action, response) {
                let state = if response == Response::Success { "ON" } else { "OFF" };
                // The exit code is the answer. It stays true when nobody reads the line.
                let _ = writeln!(io::stdout(), "Status: {state}");
            }
            response
        }
        // Only a diagnosis asks for one, and whatever it says, nothing was done.
        HostAnswer::Failed(_) | HostAnswer::Forecast { .. } => Response::Failure,
        HostAnswer::List { entries, response } => {
            let mut rows = ListRows::to_stdout();
            if let Err(error) = rows.add(entries).and_then(|()| rows.finish()) {
                console.say(&format_args!("cannot write to standard output: {error}"));
                return FAILURE;
            }
            response.unwrap_or(Response::Success)
        }
    };
    match response {
        Response::Success | Response::Off => {}
        Response::Failure => console.say(&failed(plan, failures, console.program())),
        Response::PermissionDenied => {
            console.say(&format_args!(
                "Permission denied{}: the host's configuration does not let this guest fence that domain: \
                 look at `groups` in fence_virt.conf there",
                in_brackets(failures, true)
            ));
        }
    }
    response.number()
}

/// Returns the message of a failure, with the hosts that told it, and the ways to the reason.
fn failed(plan: &RequestPlan, failures: &[HostFailure], program: ClientProgram) -> String {
    let mut said = format!("Operation failed: the host's log says why{}", in_brackets(failures, false));
    // A line has no room for a reason.
    if !matches!(plan.transport, Transport::Serial { .. } | Transport::Channel(_)) {
        let name = plan.target.as_str();
        let target = if name.is_empty() { String::new() } else { format!(" -n {}", shell_word(name)) };
        let _ = write!(
            said,
            ": journalctl -u fence_virtd there. {} --diagnose{target}, with the same options and without -o, \
             asks for the reason from here",
            program.name()
        );
    }
    said
}

/// Returns the hosts that denied the request, or those that failed; nothing where there is one host alone.
fn in_brackets(failures: &[HostFailure], is_denied: bool) -> String {
    let hosts: BTreeSet<_> =
        failures.iter().filter(|it| it.is_denied == is_denied).map(|it| it.from.to_string()).collect();
    let hosts: Vec<_> = hosts.into_iter().collect();
    if hosts.is_empty() { String::new() } else { format!(" ({})", hosts.join(", ")) }
}

/// Returns a name as one word of a shell.
fn shell_word(name: &str) -> String {
    let shown = escaped(name).to_string();
    let is_plain = |it: char| it.is_alphanumeric() || "-_.:/@+,=%".contains(it);
    if shown.chars().all(is_plain) { shown } else { format!("'{}'", shown.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fence_wire::{HashType, Target};

    use super::*;

    #[test]
    fn a_name_is_one_word_of_the_command_to_type() {
        assert_eq!(
            ["vm-1.a", "vm 1", "a#b", "it's"].map(shell_word),
            ["vm-1.a", "'vm 1'", "'a#b'", r"'it'\''s'"]
        );
    }

    #[test]
    fn a_failure_names_the_hosts_whose_logs_tell_more() {
        let host = |last| HostFailure { from: [10, 0, 0, last].into(), is_denied: false, reason: None };
        let plan = RequestPlan {
            action: Action::Off,
            target: Target::new("vm1", false).unwrap(),
            timeout: Duration::ZERO,
            may_take_longer: false,
            delay: Duration::ZERO,
            hash: HashType::Sha256,
            auth: HashType::Sha256,
            wants_reason: false,
            dry_run: None,
            own_hash: HashType::HmacSha256,
            key_file: "/k".into(),
            key_file_named: true,
            debug: 0,
            transport: Transport::Vsock { cid: 2, port: 1229 },
        };
        let diagnose = ": journalctl -u fence_virtd there. fence_virt --diagnose -n vm1, with the same \
                        options and without -o, asks for the reason from here";
        let told = |plan: &RequestPlan, failures: &[HostFailure]| failed(plan, failures, ClientProgram::Virt);
        assert_eq!(told(&plan, &[]), format!("Operation failed: the host's log says why{diagnose}"));
        let said = told(&plan, &[host(2), host(1), host(2)]);
        let hosts = "(10.0.0.1, 10.0.0.2)";
        assert_eq!(said, format!("Operation failed: the host's log says why {hosts}{diagnose}"));
        // Of several hosts the one whose `groups` are to be changed.
        let denied = [host(1), HostFailure { is_denied: true, ..host(2) }];
        assert_eq!([true, false].map(|it| in_brackets(&denied, it)), [" (10.0.0.2)", " (10.0.0.1)"]);
        assert_eq!(in_brackets(&[], true), "");
        let monitor = RequestPlan { target: Target::none(), ..plan.clone() };
        assert!(told(&monitor, &[]).contains("fence_virt --diagnose, with"));
        let channel = Transport::Channel("10.0.2.179:1229".parse().unwrap());
        let said = told(&RequestPlan { transport: channel, ..plan }, &[]);
        assert_eq!(said, "Operation failed: the host's log says why");
    }
}
