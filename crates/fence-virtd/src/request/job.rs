// SPDX-License-Identifier: GPL-2.0-or-later
//! One request, from its arrival to its outcome: values only.

use crate::request::trail::AgentRunTrail;
use fence_core::access::KeyProof;
use fence_core::access::{AccessRules, Identity};
use fence_core::arbiter::{PeerId, RequestSource, SharedResult};
use fence_core::domain::{ActionError, DomainRef, LocatedDomain};
use fence_wire::{Action, HashType, HostListEntry, Response, Target};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The transport that says nothing of who is behind an address.
pub(crate) const TCP: &str = "tcp";

/// One request, from its arrival to its audit record.
#[derive(Clone, Debug)]
pub(crate) struct RequestJob {
    /// Counts from 1 in each run of the daemon.
    pub(crate) id: u64,
    /// When its first packet came.
    pub(crate) arrived: Instant,
    /// How long its client waits from then on.
    pub(crate) patience: Duration,
    /// The transport's name.
    pub(crate) transport: &'static str,
    /// The peer's address, for people.
    pub(crate) peer: String,
    /// Who asks.
    pub(crate) identity: Identity,
    /// The type of hash that proved its packet, and whether it is sealed; none on serial lines.
    pub(crate) hash: HashType,
    /// The key that made its hash.
    pub(crate) key: Option<Arc<KeyProof>>,
    /// The groups of the configuration when it came.
    pub(crate) access: Arc<AccessRules>,
    /// What is asked.
    pub(crate) action: Action,
    /// What it is about.
    pub(crate) target: Target,
    /// What was run for it.
    pub(crate) trail: AgentRunTrail,
}

impl RequestJob {
    /// The moment when the client has given up.
    pub(crate) fn deadline(&self) -> Instant {
        self.arrived + self.patience
    }

    /// The domain that it comes from, as far as the arbiter may rely on it. Behind an address on TCP there may be
    /// many machines, one of ours that translates addresses for others among them.
    pub(crate) fn source(&self) -> RequestSource {
        match &self.identity.domain {
            Some(uuid) if self.transport != TCP => RequestSource::Known(uuid.clone()),
            _ => RequestSource::Unknown,
        }
    }

    /// What tells it from other peers, where anything does.
    pub(crate) fn peer_id(&self) -> Option<PeerId> {
        match (&self.identity.domain, self.identity.cid, self.identity.ip) {
            _ if self.transport == TCP => None,
            (Some(uuid), _, _) => Some(PeerId(format!("domain {uuid}"))),
            (None, Some(cid), _) => Some(PeerId(format!("cid {cid}"))),
            (None, None, Some(ip)) => Some(PeerId(format!("address {ip}"))),
            (None, None, None) => None,
        }
    }
}

/// What a request comes to before it runs.
#[derive(Debug)]
pub(crate) enum ResolvedTarget {
    /// It may run, on this domain; none where the action is about no domain.
    Run(Option<LocatedDomain>),
    /// It will not run.
    Refused(Response, String, Option<DomainRef>),
}

impl ResolvedTarget {
    /// The domain that was found.
    pub(crate) fn domain(&self) -> Option<&DomainRef> {
        match self {
            Self::Run(located) => located.as_ref().map(LocatedDomain::domain),
            Self::Refused(_, _, domain) => domain.as_ref(),
        }
    }

    /// Whether this host is the one to answer. A shut-off definition is not enough: "off already" would be said at once
    /// of a domain that runs on another host.
    pub(crate) fn owner(&self) -> AnsweringHost {
        match self {
            Self::Run(Some(
                LocatedDomain::PoweredOffTransient(_)
                | LocatedDomain::DefinedOff(_)
                | LocatedDomain::OnLostHost(_),
            ))
            | Self::Refused(_, _, None) => AnsweringHost::Unknown,
            Self::Run(Some(LocatedDomain::Elsewhere(_))) => AnsweringHost::Another,
            Self::Run(_) | Self::Refused(..) => AnsweringHost::ThisHost,
        }
    }
}

/// Who is to answer a request that several hosts may have heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AnsweringHost {
    /// The domain lives here, or there is none to be anywhere.
    ThisHost,
    /// A host that this one can pass the request on to, if it has not heard it itself.
    Another,
    /// Perhaps a host that this one knows nothing of.
    Unknown,
}

/// What the client is told.
#[derive(Debug)]
pub(crate) enum ClientReply {
    /// A response alone.
    Response(Response),
    /// A host list and the response after it.
    List(Vec<HostListEntry>, Response),
}

impl ClientReply {
    pub(crate) fn response(&self) -> Response {
        match self {
            Self::Response(response) | Self::List(_, response) => *response,
        }
    }
}

/// How a request ended, and why where that needs saying.
#[derive(Debug)]
pub(crate) struct RequestOutcome {
    pub(crate) answer: ClientReply,
    pub(crate) reason: Option<String>,
    /// Nothing was done, because the client was gone or its time was up.
    pub(crate) lapsed: bool,
}

impl RequestOutcome {
    pub(crate) fn plain(response: Response) -> Self {
        Self { answer: ClientReply::Response(response), reason: None, lapsed: false }
    }

    pub(crate) fn because(response: Response, reason: impl std::fmt::Display) -> Self {
        Self { reason: Some(reason.to_string()), ..Self::plain(response) }
    }

    /// What there is to say, where there is anything.
    pub(crate) fn noted(response: Response, said: Option<&str>, note: Option<String>) -> Self {
        let reason = match (said, note) {
            (Some(said), Some(note)) => Some(format!("{said} ({note})")),
            (Some(said), None) => Some(said.to_owned()),
            (None, note) => note,
        };
        Self { reason, ..Self::plain(response) }
    }
}

impl From<SharedResult> for RequestOutcome {
    fn from(told: SharedResult) -> Self {
        let why = told.reason.map(|it| format!(": {it}")).unwrap_or_default();
        Self::because(told.response, format!("the same work as {}{why}", told.by))
    }
}

impl From<ActionError> for RequestOutcome {
    fn from(error: ActionError) -> Self {
        Self { lapsed: matches!(error, ActionError::Lapsed(_)), ..Self::because(Response::Failure, error) }
    }
}
