// SPDX-License-Identifier: GPL-2.0-or-later
//! Questions of this host to the others what they remember of a domain, for a start that it owes.
//!
//! Runs on the task that makes the start good. Must never take an answer without a memory, or silence, for
//! one that nothing happened.

use std::time::{Duration, Instant};

use fence_core::evidence::DomainSite;
use fence_core::hosts::HostFinding;
use fence_core::owed_start::{PlaceMemory, PlaceWord};
use fence_wire::{HostMemory, escaped};

use super::limits::PEER_LIMIT;
use super::settings::PeerMode;
use super::state::Peers;
use crate::backend::elsewhere::DomainQuestion;

/// Reason why a host without host messages remembers nothing for others.
const LEGACY: &str = "has no messages between hosts (a C daemon?), and can't tell what was asked for there";
/// Reason why a host that answers in the old way does not.
const OLDER: &str = "runs an older fence_virtd, which can't tell what was asked for there";

impl Peers {
    /// Asks each other host what it remembers of the domain.
    pub(super) async fn recall_elsewhere(
        &self,
        question: &DomainQuestion,
        until: Instant,
    ) -> Vec<(DomainSite, PlaceWord)> {
        let mode = self.settings().mode.clone();
        let that_may_be_there = |why| (site("that may be there"), PlaceWord::Unheard(why));
        match mode {
            PeerMode::Off => return Vec::new(),
            PeerMode::NoWay(why) => {
                return vec![that_may_be_there(format!("can't be asked: {}", why.text()))];
            }
            PeerMode::Discovered | PeerMode::Listed(_) => {}
        }
        let (missing, legacy, respondents) = self.respondents(&mode);
        let missing = missing.or_else(|| self.own_doubt());
        let mut words: Vec<_> = missing.into_iter().map(that_may_be_there).collect();
        let no_memory = |name: String| (site(&name), PlaceWord::NoMemory(LEGACY.to_owned()));
        words.extend(legacy.iter().map(|it| no_memory(escaped(&it.to_string()).to_string())));
        let began = Instant::now();
        let question = DomainQuestion { asks_memory: true, ..question.clone() };
        match self.answers(&question, &respondents, began, until.min(began + PEER_LIMIT)).await {
            Some(found) => words.extend(found.iter().map(|it| self.recalled(it))),
            None => words.push(that_may_be_there("was not asked: too many questions are open".to_owned())),
        }
        words
    }

    fn recalled(&self, HostFinding { who, answer }: &HostFinding) -> (DomainSite, PlaceWord) {
        let word = match (answer, self.doubt(*who)) {
            (None, _) => PlaceWord::Unheard("does not answer".to_owned()),
            (Some(_), Some(why)) => PlaceWord::Unheard(format!("is in doubt: {why}")),
            (Some(answer), None) => match answer.memory {
                Some(HostMemory { noted_ms, last_ms }) => {
                    let time = |ms: u32| Duration::from_millis(ms.into());
                    PlaceWord::Memory(PlaceMemory { noted_for: time(noted_ms), last: last_ms.map(time) })
                }
                None => PlaceWord::NoMemory(OLDER.to_owned()),
            },
        };
        (site(&self.shown(*who)), word)
    }
}

/// Returns a memory as other hosts are told, in whole milliseconds: never longer, and nothing older.
pub(super) fn told(memory: PlaceMemory) -> HostMemory {
    let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    HostMemory { noted_ms: ms(memory.noted_for), last_ms: memory.last.map(ms) }
}

fn site(host: &str) -> DomainSite {
    DomainSite::Host(host.to_owned())
}
