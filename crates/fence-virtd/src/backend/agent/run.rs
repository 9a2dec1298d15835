// SPDX-License-Identifier: GPL-2.0-or-later
//! Runs of an agent: what is asked for, in which context, and the result.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fence_core::agent::plan::StatusReading;
use fence_core::domain::PowerAction;
use fence_wire::Action;
use zeroize::Zeroizing;

use super::not_ready::NotRunCause;
use super::secret::SecretMask;
use super::slots::RunPurpose;
use crate::request::lease::Lease;
use crate::request::trail::AgentRunEnd;

/// Action of an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AgentAction {
    Metadata,
    Monitor,
    List,
    ListStatus,
    /// Status or change of one plug's power.
    Power(PowerAction),
}

impl From<PowerAction> for AgentAction {
    fn from(action: PowerAction) -> Self {
        Self::Power(action)
    }
}

impl AgentAction {
    /// Returns the action's name in the agent's input.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Monitor => "monitor",
            Self::List => "list",
            Self::ListStatus => "list-status",
            Self::Power(action) => Action::from(action).name(),
        }
    }
}

/// Priority, deadline and lease of an agent run.
#[derive(Clone, Copy)]
pub(super) struct RunContext<'a> {
    pub(super) purpose: RunPurpose,
    /// Lease that records the runs; without a lease no action is allowed, only checks.
    pub(super) lease: Option<&'a Lease>,
    pub(super) until: Instant,
}

impl RunContext<'_> {
    /// Returns the context with an earlier deadline.
    pub(super) fn within(self, limit: Instant) -> Self {
        Self { until: self.until.min(limit), ..self }
    }
}

/// Result of a status run, and its description for people.
pub(super) struct StatusReply {
    pub(super) reading: StatusReading,
    pub(super) words: String,
}

/// Result of a run.
pub(super) struct FinishedRun {
    pub(super) ended: AgentRunEnd,
    pub(super) output: Zeroizing<Vec<u8>>,
    pub(super) is_cut: bool,
    /// Last line of the output, secrets masked, escaped.
    pub(super) complaint: String,
    /// Cause for a run that did not begin; none for one that did.
    pub(super) not_run: Option<NotRunCause>,
    /// Time for which the run waited for its slot.
    pub(super) waited: Duration,
    /// True if the agent wrote to standard error.
    pub(super) complained: bool,
    /// Fingerprint of the program and its options.
    pub(super) fingerprint: u64,
    /// Fingerprint of the program alone.
    pub(super) program: u64,
}

impl FinishedRun {
    pub(super) fn words(&self) -> String {
        let colon = if self.complaint.is_empty() { "" } else { ": " };
        format!("{}{colon}{}", self.ended, self.complaint)
    }
}

/// Input of a run, ready to start.
pub(super) struct PreparedRun {
    pub(super) path: PathBuf,
    pub(super) input: Zeroizing<Vec<u8>>,
    pub(super) mask: SecretMask,
    pub(super) fingerprint: u64,
    pub(super) program: u64,
}

/// Returns the context of a run for no request.
pub(super) fn survey(until: Instant) -> RunContext<'static> {
    RunContext { purpose: RunPurpose::Survey, lease: None, until }
}
