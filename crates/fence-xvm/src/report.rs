// SPDX-License-Identifier: GPL-2.0-or-later
//! What the user sees of a host's answer.

use std::io::{self, Write};

use fence_wire::{Action, Response};

use crate::answer::Answer;
use crate::console::Console;
use crate::output::FAILURE;
use crate::plan::Plan;
use crate::rows::Rows;

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
