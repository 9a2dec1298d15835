// SPDX-License-Identifier: GPL-2.0-or-later
//! The other hosts where no corosync knows them: who is known, who must answer a question, and what the
//! answers mean.
//!
//! Owns the rules by which silence never counts as an answer: a host that was heard once must answer each
//! question until an administrator forgets it. Values only. Must never drop a host that proved its key pair
//! by itself, whatever comes in.

mod doubt;
mod round;
mod schedule;
mod starting;
mod table;

#[cfg(test)]
mod proptests;

pub use doubt::{HostDoubt, HostRun};
pub use round::{AnswerResult, HostFinding, Respondent, Round};
pub use schedule::{FIRST_ROUND, HELLO_EVERY, HelloSchedule, WHOLE_ROUND};
pub use starting::{PendingStarts, StartDecision, about_to_start, pause_after_giving_way};
pub use table::{
    ANNOUNCED_KEPT, BoundHosts, HeardHost, HostKind, KnownHost, KnownHosts, MAX_ANNOUNCED,
    MAX_HOST_ADDRESSES, MAX_HOSTS, legacy_id,
};
