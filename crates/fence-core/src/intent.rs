// SPDX-License-Identifier: GPL-2.0-or-later
//! Intents: what a daemon was about to do, kept on disk so that the next one can finish it.
//!
//! Owns the format of the file and the judgement of what is left in it. One line for each event, each with a
//! check of its own: a line that is damaged is left out, and costs no other. Nothing that is damaged can make
//! a start: a start that is owed counts only if all that follows the intent in the file is whole. Pure; time
//! is a parameter.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

/// Age up to which a start that is owed is made good, in milliseconds since the boot of the host.
pub const START_AGE_MS: u64 = 120_000;
/// Bytes of the check in front of a line.
const CHECK_LEN: usize = 16;

/// Action that a daemon is about to carry out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Number in this file.
    pub number: u64,
    /// Boot of the host, by the kernel's id.
    pub boot: String,
    /// Milliseconds since that boot.
    pub at_ms: u64,
    /// Number of the request in its run of the daemon.
    pub id: u64,
    /// Transport of the request.
    pub transport: String,
    /// Address of the peer.
    pub peer: String,
    /// Domain from which the request came, if it is known.
    pub source_domain: Option<String>,
    /// Hash that proved the packet.
    pub hash: String,
    /// Fingerprint of the key.
    pub key: Option<String>,
    /// Action: off, on, reboot.
    pub action: String,
    /// Target as it was requested.
    pub target: String,
    /// Name of the domain.
    pub domain: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Place of the domain, in words.
    pub home: String,
}

/// Source of a start that a reboot owes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartOwed {
    /// The definition at its hypervisor, or the device that powered the domain off.
    Definition,
    /// XML in a file beside this one, for the hypervisor at this URI: a transient domain has no definition.
    Xml {
        /// URI of the hypervisor.
        uri: String,
    },
}

/// Event of an intent: one line of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentEvent {
    /// The action is about to begin.
    Begun(Box<Intent>),
    /// The domain is about to be powered off for a reboot, and a start is owed from then on.
    Owes {
        /// Number of the intent.
        number: u64,
        /// Source of the start.
        start: StartOwed,
    },
    /// The action has ended; the audit record is about to be written.
    Ended {
        /// Number of the intent.
        number: u64,
        /// Line of the audit file; empty if there is no file.
        record: String,
    },
    /// The audit record is written: nothing is left to do.
    Audited {
        /// Number of the intent.
        number: u64,
    },
}

/// Intent that an earlier daemon left without its last line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnfinishedIntent {
    /// Action that was under way.
    pub intent: Intent,
    /// Remainder that is left to do.
    pub remainder: IntentRemainder,
}

/// Remainder of an intent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IntentRemainder {
    /// The end is not known. `start` is the start that a reboot owes, as far as the file can be trusted.
    Open {
        /// Source of the start that is owed.
        start: Option<StartOwed>,
    },
    /// The action has ended, and this line may be missing in the audit file.
    Record(String),
}

/// Contents of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IntentFile {
    /// Intents without their last line, in their order.
    pub unfinished: Vec<UnfinishedIntent>,
    /// Lines that are damaged.
    pub damaged: usize,
    /// Number above all numbers of the file.
    pub next: u64,
}

impl IntentEvent {
    /// Returns the event as a line of the file, with its end.
    pub fn line(&self) -> String {
        // These values have no map with other keys than text, so this can't fail.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{} {json}\n", check(json.as_bytes()))
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let (found, rest) = line.split_at_checked(CHECK_LEN)?;
        let json = rest.strip_prefix(b" ")?;
        (found == check(json).as_bytes()).then(|| serde_json::from_slice(json).ok())?
    }
}

impl IntentFile {
    /// Reads a whole file, whatever is in it.
    pub fn read(bytes: &[u8]) -> Self {
        let mut file = Self::default();
        let mut open: BTreeMap<u64, UnfinishedIntent> = BTreeMap::new();
        // Intents for which no start is believed, whatever follows.
        let mut startless: BTreeSet<u64> = BTreeSet::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            // A line without its end is one that was being written.
            let event = line.strip_suffix(b"\n").and_then(IntentEvent::parse);
            let Some(event) = event else {
                file.damaged += 1;
                // It may have been the end of any of these, or a later request for the same domain.
                startless.extend(open.keys());
                continue;
            };
            file.next = file.next.max(event.number() + 1);
            match event {
                IntentEvent::Begun(intent) => {
                    // Whoever asked later for the same domain decides what becomes of it.
                    let same = open.values().filter(|it| it.intent.uuid == intent.uuid);
                    startless.extend(same.map(|it| it.intent.number));
                    let remainder = IntentRemainder::Open { start: None };
                    open.insert(intent.number, UnfinishedIntent { intent: *intent, remainder });
                }
                IntentEvent::Owes { number, start } => {
                    if let Some(it) = open.get_mut(&number)
                        && it.remainder == (IntentRemainder::Open { start: None })
                    {
                        it.remainder = IntentRemainder::Open { start: Some(start) };
                    }
                }
                IntentEvent::Ended { number, record } => {
                    if let Some(it) = open.get_mut(&number) {
                        it.remainder = IntentRemainder::Record(record);
                    }
                }
                IntentEvent::Audited { number } => {
                    open.remove(&number);
                }
            }
        }
        for number in startless {
            if let Some(UnfinishedIntent { remainder: IntentRemainder::Open { start }, .. }) =
                open.get_mut(&number)
            {
                *start = None;
            }
        }
        file.unfinished = open.into_values().collect();
        file
    }

    /// Returns the numbers of the intents that are left.
    pub fn numbers(&self) -> BTreeSet<u64> {
        self.unfinished.iter().map(|it| it.intent.number).collect()
    }
}

impl UnfinishedIntent {
    /// Returns the start that this host has to make good now.
    ///
    /// # Errors
    /// Reason why there is none, in words.
    pub fn start_due(&self, boot: &str, now_ms: u64) -> Result<&StartOwed, &'static str> {
        let IntentRemainder::Open { start: Some(start) } = &self.remainder else {
            return Err("no start is known to be owed");
        };
        if boot.is_empty() || self.intent.boot != boot {
            return Err("the host has booted since, so it is not started");
        }
        if now_ms.checked_sub(self.intent.at_ms).is_none_or(|age| age > START_AGE_MS) {
            return Err("too long ago to start it now");
        }
        Ok(start)
    }
}

impl IntentEvent {
    fn number(&self) -> u64 {
        match self {
            Self::Begun(intent) => intent.number,
            Self::Owes { number, .. } | Self::Ended { number, .. } | Self::Audited { number } => *number,
        }
    }
}

fn check(bytes: &[u8]) -> String {
    Sha1::digest(bytes).iter().take(CHECK_LEN / 2).map(|it| format!("{it:02x}")).collect()
}

#[cfg(test)]
mod tests;
