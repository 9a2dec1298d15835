// SPDX-License-Identifier: GPL-2.0-or-later
//! Runs of an agent: what is asked for, in which context, and the result.

use std::path::PathBuf;
use std::time::Instant;

use fence_core::agent::plan::StatusReading;
use zeroize::Zeroizing;

use super::secret::SecretMask;
use super::slots::RunPurpose;
use crate::request::lease::Lease;
use crate::request::trail::AgentRunEnd;

/// What the agent is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AgentAction {
    Metadata,
    Monitor,
    List,
    ListStatus,
    Status,
    On,
    Off,
}

impl AgentAction {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Monitor => "monitor",
            Self::List => "list",
            Self::ListStatus => "list-status",
            Self::Status => "status",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Whom runs are for.
#[derive(Clone, Copy)]
pub(super) struct RunContext<'a> {
    pub(super) purpose: RunPurpose,
    /// Where they are noted; without it nothing is done but looked at.
    pub(super) lease: Option<&'a Lease>,
    pub(super) until: Instant,
}

impl RunContext<'_> {
    /// The same, by `limit` at the latest.
    pub(super) fn within(self, limit: Instant) -> Self {
        Self { until: self.until.min(limit), ..self }
    }
}

/// What came of a look, and how to say it.
pub(super) struct StatusReply {
    pub(super) heard: StatusReading,
    pub(super) words: String,
}

/// A run that is over.
pub(super) struct FinishedRun {
    pub(super) ended: AgentRunEnd,
    pub(super) output: Zeroizing<Vec<u8>>,
    pub(super) is_cut: bool,
    /// The last line of what it said, secrets masked, escaped.
    pub(super) complaint: String,
    /// It wrote to standard error.
    pub(super) complained: bool,
    /// Of the program and the options that it was run with.
    pub(super) print: u64,
    /// Of the program alone.
    pub(super) program: u64,
}

impl FinishedRun {
    pub(super) fn words(&self) -> String {
        let colon = if self.complaint.is_empty() { "" } else { ": " };
        format!("{}{colon}{}", self.ended, self.complaint)
    }
}

/// All that a run needs.
pub(super) struct PreparedRun {
    pub(super) path: PathBuf,
    pub(super) input: Zeroizing<Vec<u8>>,
    pub(super) mask: SecretMask,
    pub(super) print: u64,
    pub(super) program: u64,
}

/// For no request.
pub(super) fn survey(until: Instant) -> RunContext<'static> {
    RunContext { purpose: RunPurpose::Survey, lease: None, until }
}
