// SPDX-License-Identifier: GPL-2.0-or-later
//! The files `nodes.ask` and `nodes.survey` of the state directory: `--check` asks the daemon what each other
//! node says now, and the daemon answers.
//!
//! ```text
//! fence_virt nodes survey 1
//! asked TOKEN
//! node STATE<tab>NAME<tab>WORDS
//! twice UUID<tab>NAME<tab>PLACES
//! namesakes on|off<tab>NAME<tab>PLACES
//! end
//! ```
//!
//! Only the daemon can ask the nodes: a process of its own would be one more member of the group. No decision
//! of the daemon depends on these files.

use fence_core::domain::DomainId;

/// State of another node, as a request would find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SurveyedState {
    /// Answers what it has.
    Answers,
    /// Proved down.
    Down,
    /// Not heard by corosync, and nothing proves that it is down.
    Lost,
    /// Heard by corosync, and no daemon is there.
    NoDaemon,
    /// A daemon is in the group, and can't tell or does not answer.
    CantTell,
}

/// Line of a survey.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SurveyLine {
    /// Question of one `--check` that this survey answers.
    Asked(String),
    /// Another node, with its own words or the evidence.
    Node { state: SurveyedState, name: String, words: String },
    /// Domain that is on at several nodes.
    Twice { uuid: DomainId, name: String, places: String },
    /// Name that means several domains, which are there; one of them may be on.
    Namesakes { any_on: bool, name: String, places: String },
}

const STATES: [(&str, SurveyedState); 5] = [
    ("answers", SurveyedState::Answers),
    ("down", SurveyedState::Down),
    ("lost", SurveyedState::Lost),
    ("no-daemon", SurveyedState::NoDaemon),
    ("cant-tell", SurveyedState::CantTell),
];

impl SurveyLine {
    pub(super) fn line(&self) -> String {
        let field = |it: &str| it.replace(['\n', '\t'], " ");
        match self {
            Self::Asked(token) => format!("asked {token}"),
            Self::Node { state, name, words } => {
                let state = STATES.iter().find(|(_, it)| it == state).map_or("cant-tell", |(it, _)| it);
                format!("node {state}\t{}\t{}", field(name), field(words))
            }
            Self::Twice { uuid, name, places } => {
                format!("twice {uuid}\t{}\t{}", field(name), field(places))
            }
            Self::Namesakes { any_on, name, places } => {
                let power = if *any_on { "on" } else { "off" };
                format!("namesakes {power}\t{}\t{}", field(name), field(places))
            }
        }
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        if kind == "asked" {
            return Some(Self::Asked(rest.to_owned()));
        }
        let mut fields = rest.splitn(3, '\t').map(str::to_owned);
        let (key, name, last) = (fields.next()?, fields.next()?, fields.next()?);
        match kind {
            "node" => {
                let (_, state) = STATES.iter().find(|(it, _)| *it == key)?;
                Some(Self::Node { state: *state, name, words: last })
            }
            "namesakes" => Some(Self::Namesakes { any_on: key == "on", name, places: last }),
            "twice" => Some(Self::Twice { uuid: DomainId::parse(&key)?, name, places: last }),
            _ => None,
        }
    }
}
