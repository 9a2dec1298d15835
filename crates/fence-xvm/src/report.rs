// SPDX-License-Identifier: GPL-2.0-or-later
//! The answer as the user sees it: standard output, a message, and the exit code.
//!
//! Owns nothing. Runs on the agent's only thread, last of all. Must never turn an answer into another exit
//! code than its response has.

use std::io::{self, Write};

use fence_wire::{Action, Response};

use crate::answer::HostAnswer;
use crate::attempts::HostFailure;
use crate::console::Console;
use crate::output::FAILURE;
use crate::plan::RequestPlan;
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
        HostAnswer::Failed(_) => Response::Failure,
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
        Response::Failure => console.say(&failed(failures)),
        Response::PermissionDenied => {
            console.say(
                &"Permission denied: the host's configuration does not let this guest fence that domain",
            );
        }
    }
    response.number()
}

/// Returns the message of a failure, with the addresses of the hosts that told it.
fn failed(failures: &[HostFailure]) -> String {
    let mut hosts: Vec<_> = failures.iter().map(|it| it.from.to_string()).collect();
    hosts.sort();
    hosts.dedup();
    let hosts = if hosts.is_empty() { String::new() } else { format!(" ({})", hosts.join(", ")) };
    format!("Operation failed: the host's log says why{hosts}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_hosts_whose_logs_tell_more() {
        let host = |last| HostFailure { from: [10, 0, 0, last].into(), reason: None };
        assert_eq!(failed(&[]), "Operation failed: the host's log says why");
        let said = failed(&[host(2), host(1), host(2)]);
        assert_eq!(said, "Operation failed: the host's log says why (10.0.0.1, 10.0.0.2)");
    }
}
