// SPDX-License-Identifier: GPL-2.0-or-later
//! A finished request, as the audit file and the metrics take it: values only.

use std::time::{Duration, Instant};

use fence_core::domain::DomainRef;
use fence_wire::Response;

use crate::request::job::RequestJob;

/// The one event that every authenticated request ends in.
pub(crate) struct AuditRecord<'a> {
    pub(crate) job: &'a RequestJob,
    /// The domain that the target meant.
    pub(crate) domain: Option<&'a DomainRef>,
    pub(crate) end: RequestEnd<'a>,
    pub(crate) stages: StageTimes,
}

/// End of a request.
#[derive(Clone, Copy)]
pub(crate) enum RequestEnd<'a> {
    /// The request ran or was refused, and the client was sent this response.
    Answered { response: Response, reason: Option<&'a str>, delivered: AnswerDelivery },
    /// The request never ran: the peer did not prove itself.
    NotProved(&'a str),
    /// The request never ran, for this reason.
    NotRun(&'a str),
}

/// End of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AnswerDelivery {
    /// The client took it.
    Taken,
    /// The client did not take it.
    NotTaken,
    /// The answer was not sent: the stream may be of the process that sent a newer request.
    Withheld,
}

impl AnswerDelivery {
    /// Returns the end of an answer that was sent.
    pub(crate) fn of(is_taken: bool) -> Self {
        if is_taken { Self::Taken } else { Self::NotTaken }
    }
}

/// Time from the arrival to the end of each stage.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct StageTimes {
    pub(crate) connected: Option<Duration>,
    pub(crate) resolved: Option<Duration>,
    pub(crate) turn: Option<Duration>,
    pub(crate) proved: Option<Duration>,
    pub(crate) done: Option<Duration>,
}

impl StageTimes {
    /// Returns the time from the arrival until now.
    pub(crate) fn since(arrived: Instant) -> Duration {
        arrived.elapsed()
    }
}
