// SPDX-License-Identifier: GPL-2.0-or-later
//! What a host answered, and what the user sees of it.

use std::io::{self, Write};

use fence_wire::{Action, HostListEntry, Response};

use crate::FAILURE;
use crate::console::Console;
use crate::plan::Plan;
use crate::rows::Rows;

/// A host's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To everything but a list; and to a list that the host does not give, or whose rows are printed already.
    Response(Response),
    /// To a list.
    List {
        /// The domains, in the host's order.
        entries: Vec<HostListEntry>,
        /// How the list went, from hosts that say so after it.
        response: Option<Response>,
    },
}

/// Shows the answer and gives the exit code that it means.
pub(crate) fn report(plan: &Plan, answer: Answer, console: &Console) -> u8 {
    let response = match answer {
        Answer::Response(response) => {
            if let (Action::Status, Response::Success | Response::Off) = (plan.action, response) {
                let state = if response == Response::Success { "ON" } else { "OFF" };
                // The exit code is the answer; it stays true when nobody reads the line.
                let _ = writeln!(io::stdout(), "Status: {state}");
            }
            response
        }
        Answer::List { entries, response } => {
            let mut rows = Rows::to_stdout();
            if let Err(error) = rows.add(entries).and_then(|()| rows.finish()) {
                console.say(&format_args!("standard output: {error}"));
                return FAILURE;
            }
            response.unwrap_or(Response::Success)
        }
    };
    match response {
        Response::Success | Response::Off => {}
        Response::Failure => console.say(&"Operation failed: the host's log says why"),
        Response::PermissionDenied => {
            console.say(
                &"Permission denied: the host's configuration does not let this guest fence that domain",
            );
        }
    }
    response.number()
}
