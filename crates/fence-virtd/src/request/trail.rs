// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent runs of a request, and what else is to be said of it, for its audit record.
//!
//! Bounded: a device that is polled for a minute leaves its first runs, its last runs, and the number of
//! those in between. Nothing here decides anything.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use fence_wire::escaped;

use crate::intent::OpenIntent;
use crate::util::locks::lock;

/// Number of kept runs of a request: the first half and the last half.
const KEPT: usize = 16;
/// Longest kept output of a run, in bytes.
const OUTPUT: usize = 2048;

/// Agent runs of one request. Clones share them.
#[derive(Clone, Default, Debug)]
pub(crate) struct AgentRunTrail(Arc<Mutex<TrailSnapshot>>, Arc<OnceLock<OpenIntent>>);

/// Agent runs until now; see [`AgentRunTrail::runs`].
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct TrailSnapshot {
    /// Kept runs in the order in which they ended.
    pub(crate) kept: Vec<AgentRun>,
    /// Number of runs that were left out between the first half and the second.
    pub(crate) left_out: usize,
    remarks: BTreeSet<&'static str>,
}

impl TrailSnapshot {
    /// Number of kept runs before the gap.
    pub(crate) const FIRST: usize = KEPT / 2;
}

/// One execution of a fence agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AgentRun {
    /// The device's name in the configuration.
    pub(crate) device: String,
    /// The program's name or path in the configuration.
    pub(crate) agent: String,
    /// The action that the agent got.
    pub(crate) action: &'static str,
    pub(crate) ended: AgentRunEnd,
    pub(crate) took: Duration,
    /// The agent's output, secrets masked. The trail escapes it, except for line ends, and cuts it.
    pub(crate) output: String,
}

/// End of an agent run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AgentRunEnd {
    /// The agent exited with this code.
    Exit(i32),
    /// A signal that this daemon did not send ended the agent.
    Signal(i32),
    /// This daemon killed the agent, for this reason.
    Killed(String),
    /// The agent could not be started, for this reason.
    NotRun(String),
}

impl AgentRunEnd {
    /// Returns the end as one of a few words, for counting.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Exit(0) => "exit_0",
            Self::Exit(1) => "exit_1",
            Self::Exit(2) => "exit_2",
            Self::Exit(_) => "exit_other",
            Self::Signal(_) => "signal",
            Self::Killed(_) => "killed",
            Self::NotRun(_) => "not_run",
        }
    }
}

impl fmt::Display for AgentRunEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit {code}"),
            Self::Signal(number) => write!(f, "signal {number}"),
            Self::Killed(why) => write!(f, "killed: {why}"),
            Self::NotRun(why) => write!(f, "not run: {why}"),
        }
    }
}

impl AgentRunTrail {
    /// Adds a run that has ended.
    pub(crate) fn note(&self, mut ran: AgentRun) {
        ran.output = cut(plain(&ran.output));
        let mut runs = lock(&self.0);
        if runs.kept.len() == KEPT {
            // Looks are repeated, and what changes a machine's power is what people search for.
            let is_look = |it: &AgentRun| !matches!(it.action, "off" | "on");
            let look = runs.kept[TrailSnapshot::FIRST..].iter().position(is_look).unwrap_or(0);
            runs.kept.remove(TrailSnapshot::FIRST + look);
            runs.left_out += 1;
        }
        runs.kept.push(ran);
    }

    /// Adds what people should know of the action; the same remark is made once.
    pub(crate) fn remark(&self, remark: &'static str) {
        lock(&self.0).remarks.insert(remark);
    }

    /// Returns the remarks until now in one text, if there are any.
    pub(crate) fn remarks(&self) -> Option<String> {
        let remarks: Vec<_> = lock(&self.0).remarks.iter().copied().collect();
        (!remarks.is_empty()).then(|| remarks.join("; "))
    }

    /// Keeps the intent of the request's action. The first one counts.
    pub(crate) fn set_intent(&self, intent: OpenIntent) {
        let _ = self.1.set(intent);
    }

    /// Returns the intent of the request's action, once it is written down.
    pub(crate) fn intent(&self) -> Option<&OpenIntent> {
        self.1.get()
    }

    /// Returns the runs until now.
    pub(crate) fn runs(&self) -> TrailSnapshot {
        lock(&self.0).clone()
    }
}

/// Escapes the output line by line, so that a terminal can show it.
fn plain(output: &str) -> String {
    let lines: Vec<_> = output.lines().map(|it| escaped(it).to_string()).collect();
    lines.join("\n")
}

/// Cuts the output and appends the number of bytes that are missing.
fn cut(mut output: String) -> String {
    if output.len() > OUTPUT {
        let end = output.floor_char_boundary(OUTPUT);
        let rest = output.len() - end;
        output.truncate(end);
        output.push_str(&format!("... ({rest} bytes more)"));
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(number: usize, output: &str) -> AgentRun {
        AgentRun {
            device: number.to_string(),
            agent: "fence_test".to_owned(),
            action: "status",
            ended: AgentRunEnd::Exit(0),
            took: Duration::ZERO,
            output: output.to_owned(),
        }
    }

    #[test]
    fn the_first_and_the_last_are_kept_and_the_rest_is_counted() {
        let trail = AgentRunTrail::default();
        for number in 0..100 {
            trail.clone().note(ran(number, ""));
            let TrailSnapshot { kept, left_out, .. } = trail.runs();
            assert_eq!(kept.len() + left_out, number + 1);
            assert_eq!(kept.last().unwrap().device, number.to_string());
        }
        let numbers: Vec<usize> = trail.runs().kept.iter().map(|it| it.device.parse().unwrap()).collect();
        let expected: Vec<usize> =
            (0..TrailSnapshot::FIRST).chain(100 + TrailSnapshot::FIRST - KEPT..100).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn actions_are_kept_among_many_looks() {
        let trail = AgentRunTrail::default();
        for number in 0..100 {
            let action = if number == 50 { "off" } else { "status" };
            trail.note(AgentRun { action, ..ran(number, "") });
        }
        assert!(trail.runs().kept.iter().any(|it| it.action == "off"));
    }

    #[test]
    fn nothing_is_left_that_a_terminal_acts_on() {
        let trail = AgentRunTrail::default();
        trail.note(ran(0, "a\u{1b}[2J\r\n\nb\u{202e}\0\u{9b}\\"));
        let output = trail.runs().kept.remove(0).output;
        assert_eq!(output, "a\\x1b[2J\n\nb\\u{202e}\\x00\\u{9b}\\\\");
    }

    #[test]
    fn output_is_cut_between_two_characters() {
        let trail = AgentRunTrail::default();
        let whole = "x".repeat(OUTPUT);
        trail.note(ran(0, &whole));
        trail.note(ran(1, &format!("x{}", "\u{e9}".repeat(OUTPUT))));
        let outputs: Vec<String> = trail.runs().kept.into_iter().map(|it| it.output).collect();
        assert_eq!(outputs[0], whole);
        let rest = 1 + 2 * OUTPUT - (OUTPUT - 1);
        assert_eq!(outputs[1], format!("x{}... ({rest} bytes more)", "\u{e9}".repeat(OUTPUT / 2 - 1)));
    }
}
