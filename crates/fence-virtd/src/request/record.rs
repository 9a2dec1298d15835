// SPDX-License-Identifier: GPL-2.0-or-later
//! A request that is over, as the audit file and the metrics take it: values only.

use crate::request::job::RequestJob;
use fence_core::domain::DomainRef;
use fence_wire::Response;
use std::time::{Duration, Instant};

/// A request that is over.
pub(crate) struct AuditRecord<'a> {
    pub(crate) job: &'a RequestJob,
    /// The domain that its target meant.
    pub(crate) domain: Option<&'a DomainRef>,
    pub(crate) end: RequestEnd<'a>,
    pub(crate) stages: StageTimes,
}

/// How it ended.
#[derive(Clone, Copy)]
pub(crate) enum RequestEnd<'a> {
    /// It ran, or was refused, and the client was sent this.
    Answered { response: Response, reason: Option<&'a str>, delivered: bool },
    /// It never ran: the peer did not prove itself.
    NotProved(&'a str),
    /// It never ran, for this reason.
    NotRun(&'a str),
}

/// When each stage was over, counted from the arrival.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct StageTimes {
    pub(crate) connected: Option<Duration>,
    pub(crate) resolved: Option<Duration>,
    pub(crate) turn: Option<Duration>,
    pub(crate) proved: Option<Duration>,
    pub(crate) done: Option<Duration>,
}

impl StageTimes {
    pub(crate) fn since(arrived: Instant) -> Duration {
        arrived.elapsed()
    }
}
