// SPDX-License-Identifier: GPL-2.0-or-later
//! One question to the other hosts, and its answers.
//!
//! Everyone who must answer is in it from the beginning, and stays silent until an answer with the nonce and
//! the UUID of this very question is taken. The caller has proved that the sender made the answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fence_wire::{HostAnswer, HostId, HostNonce, HostReason};

/// Somebody who must answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Respondent {
    /// The host with this id.
    Host(HostId),
    /// Whoever is at this address of `peers`; nobody ever answered there.
    Address(SocketAddr),
}

/// Result of a question at one of those who must answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFinding {
    /// The one who was asked.
    pub who: Respondent,
    /// The answer; none from a silent one.
    pub answer: Option<HostAnswer>,
}

/// Meaning of an answer to a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerResult {
    /// The first one of this host, which counts.
    Taken,
    /// The host had answered.
    Repeated,
    /// An answer to another question, or to nobody who was asked.
    Foreign,
}

/// Question that is open.
#[derive(Clone, Debug)]
pub struct Round {
    nonce: HostNonce,
    uuid: [u8; 16],
    findings: Vec<HostFinding>,
    /// Long reasons, which come in parts before their answers.
    reasons: BTreeMap<HostId, BTreeMap<u8, HostReason>>,
}

impl Round {
    /// Opens a question to all these, each of them silent.
    pub fn new(nonce: HostNonce, uuid: [u8; 16], who: impl IntoIterator<Item = Respondent>) -> Self {
        let mut round = Self { nonce, uuid, findings: Vec::new(), reasons: BTreeMap::new() };
        who.into_iter().for_each(|it| round.must_answer(it));
        round
    }

    /// Returns the nonce of the question.
    pub fn nonce(&self) -> HostNonce {
        self.nonce
    }

    /// Adds somebody who became known while the question was open.
    pub fn must_answer(&mut self, who: Respondent) {
        if !self.findings.iter().any(|it| it.who == who) {
            self.findings.push(HostFinding { who, answer: None });
        }
    }

    /// Notes which host it is that is at an address. A host that is in the question already answers for one
    /// address alone: whoever is meant by the other one stays silent.
    pub fn met(&mut self, address: SocketAddr, id: HostId) {
        let place = self.findings.iter().position(|it| it.who == Respondent::Address(address));
        let is_in = self.findings.iter().any(|it| it.who == Respondent::Host(id));
        if let (Some(place), false) = (place, is_in) {
            self.findings[place].who = Respondent::Host(id);
        }
    }

    /// Takes an answer that `sender` has proved to have made.
    pub fn take(&mut self, sender: HostId, nonce: HostNonce, answer: &HostAnswer) -> AnswerResult {
        if nonce != self.nonce || answer.uuid != self.uuid {
            return AnswerResult::Foreign;
        }
        let asked = self.findings.iter_mut().find(|it| it.who == Respondent::Host(sender));
        let Some(finding) = asked else { return AnswerResult::Foreign };
        if finding.answer.is_some() {
            // The first one counts: it is of a look after the question, as all are.
            return AnswerResult::Repeated;
        }
        let reason =
            self.reasons.get(&sender).and_then(whole_reason).unwrap_or_else(|| answer.reason.clone());
        finding.answer = Some(HostAnswer { reason, ..answer.clone() });
        AnswerResult::Taken
    }

    /// Takes a part of a reason that `sender` has proved to have made. It shows nothing of the domain: if a
    /// part is lost, the answer has the beginning of the text.
    pub fn take_reason(&mut self, sender: HostId, nonce: HostNonce, part: &HostReason) {
        let is_asked = self.findings.iter().any(|it| it.who == Respondent::Host(sender));
        if is_asked && nonce == self.nonce && part.uuid == self.uuid {
            self.reasons.entry(sender).or_default().insert(part.part, part.clone());
        }
    }

    /// Returns true when nobody is silent.
    pub fn is_complete(&self) -> bool {
        self.findings.iter().all(|it| it.answer.is_some())
    }

    /// Returns those who have not answered.
    pub fn silent(&self) -> impl Iterator<Item = Respondent> {
        self.findings.iter().filter(|it| it.answer.is_none()).map(|it| it.who)
    }

    /// Returns what was found: an entry for each one who must answer.
    pub fn findings(&self) -> &[HostFinding] {
        &self.findings
    }
}

/// Returns a reason of which all parts came.
fn whole_reason(parts: &BTreeMap<u8, HostReason>) -> Option<String> {
    let count = parts.values().next()?.parts;
    let is_whole = parts.len() == usize::from(count) && parts.values().all(|it| it.parts == count);
    is_whole.then(|| parts.values().map(|it| it.text.as_str()).collect())
}
