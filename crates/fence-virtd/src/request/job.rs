// SPDX-License-Identifier: GPL-2.0-or-later
//! One request, from its arrival to its outcome: values only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::access::{AccessDecision, AccessRules, AccessSubject, Identity, KeyProof};
use fence_core::arbiter::{PeerId, RequestSource, SenderId, SharedResult};
use fence_core::domain::{ActionError, DomainId, DomainRef, LocatedDomain, PowerAction};
use fence_core::evidence::ProvedOff;
use fence_wire::{Action, HashType, HostListEntry, Response, Target};
use tokio::sync::OwnedSemaphorePermit;

use crate::request::rules_now::{JudgedAgain, RulesNow};
use crate::request::trail::AgentRunTrail;

/// Name of the transport on which an address does not tell the machine behind it.
pub(crate) const TCP: &str = "tcp";

/// A request as its transport received it.
pub(crate) struct Arrival {
    /// Arrival of the first packet.
    pub(crate) arrived: Instant,
    /// The transport's name.
    pub(crate) transport: &'static str,
    /// The peer's address, for people.
    pub(crate) peer: String,
    /// Proved facts of the source.
    pub(crate) identity: Identity,
    /// Type of the hash that proved the packet; none where the transport vouches for the peer.
    pub(crate) hash: HashType,
    /// The key that made the hash.
    pub(crate) key: Option<Arc<KeyProof>>,
    /// The groups of the configuration now.
    pub(crate) access: Arc<AccessRules>,
    /// The rules that judge the request once more at each reload; none where another host judges it.
    pub(crate) rules: Option<Arc<dyn RulesNow>>,
    /// The action that the client asks for.
    pub(crate) action: Action,
    /// The text that names the domain.
    pub(crate) target: Target,
    /// The action of which a status asks what it would do.
    pub(crate) dry_run: Option<PowerAction>,
}

impl Arrival {
    /// Returns the arrival of a request that another host passes on. That host checked access: it knows the
    /// source.
    pub(crate) fn from_host(transport: &'static str, peer: String, action: Action, target: Target) -> Self {
        Self {
            arrived: Instant::now(),
            transport,
            peer,
            identity: Identity::default(),
            hash: HashType::None,
            key: None,
            access: Arc::new(AccessRules::new(None)),
            rules: None,
            action,
            target,
            dry_run: None,
        }
    }
}

/// One request, from its arrival to its audit record.
#[derive(Clone, Debug)]
pub(crate) struct RequestJob {
    /// Number of the request, from 1 in each run of the daemon.
    pub(crate) id: u64,
    /// Arrival of the first packet.
    pub(crate) arrived: Instant,
    /// Time for which the client waits from then on.
    pub(crate) patience: Duration,
    /// The transport's name.
    pub(crate) transport: &'static str,
    /// The peer's address, for people.
    pub(crate) peer: String,
    /// Proved facts of the source.
    pub(crate) identity: Identity,
    /// Type of the hash that proved the packet, and whether it is sealed; none on serial lines.
    pub(crate) hash: HashType,
    /// The key that made the hash.
    pub(crate) key: Option<Arc<KeyProof>>,
    /// The groups of the configuration at the arrival.
    pub(crate) access: Arc<AccessRules>,
    /// The rules that judge the request once more at each reload; none where another host judges it.
    pub(crate) rules: Option<Arc<dyn RulesNow>>,
    /// The action that the client asks for.
    pub(crate) action: Action,
    /// The text that names the domain.
    pub(crate) target: Target,
    /// The action of which the request asks what it would do. `action` is status then, and nothing is
    /// changed.
    pub(crate) dry_run: Option<PowerAction>,
    /// Agent runs for the request.
    pub(crate) trail: AgentRunTrail,
}

impl RequestJob {
    /// Returns the moment when the client has given up.
    pub(crate) fn deadline(&self) -> Instant {
        self.arrived + self.patience
    }

    /// Returns the domain that the request comes from, as far as the arbiter may rely on it.
    ///
    /// Many machines may be behind an address on TCP, for example a domain that translates addresses for
    /// others; and behind the MAC address of a domain that has several addresses, or lends it to others.
    pub(crate) fn source(&self) -> RequestSource {
        match self.certain_domain() {
            Some(uuid) if self.transport != TCP => RequestSource::Known(uuid.to_string()),
            _ => {
                let sources = self.key.as_ref().and_then(|it| it.sources.clone());
                sources.map_or(RequestSource::Unknown, RequestSource::OneOf)
            }
        }
    }

    /// Returns the request as the rules that are in force now have it; none if nothing was reloaded since it
    /// came.
    ///
    /// # Errors
    /// The rule that forbids it now.
    pub(crate) fn judged_again(&self, resolved: &ResolvedTarget) -> Result<Option<Self>, String> {
        let Some(rules) = &self.rules else { return Ok(None) };
        let (access, key) = match rules.judge_again() {
            JudgedAgain::Same => return Ok(None),
            JudgedAgain::Refused(why) => return Err(why),
            JudgedAgain::Changed { access, key } => (access, key),
        };
        let subject = match resolved {
            ResolvedTarget::Run(Some(located)) => {
                let DomainRef { uuid, name, .. } = located.domain();
                Some(AccessSubject::Domain { uuid: *uuid, name })
            }
            // Also an off that fails ends a start that is owed.
            ResolvedTarget::Refused(Refusal::Failure, ..) => Some(AccessSubject::Text(self.target.as_str())),
            ResolvedTarget::Run(None) | ResolvedTarget::Refused(Refusal::PermissionDenied, ..) => None,
        };
        if let Some(subject) = subject
            && let AccessDecision::Denied(denial) = access.decide(&self.identity, key.as_deref(), subject)
        {
            return Err(denial.to_string());
        }
        Ok(Some(Self { access, key, ..self.clone() }))
    }

    /// Waits until a reload forbids the request; for ever where none does.
    pub(crate) async fn until_forbidden(&self, resolved: &ResolvedTarget) {
        let Some(rules) = &self.rules else { return std::future::pending().await };
        loop {
            let reloaded = rules.reloaded();
            if self.judged_again(resolved).is_err() {
                return;
            }
            reloaded.await;
        }
    }

    fn certain_domain(&self) -> Option<DomainId> {
        self.identity.domain.filter(|_| !self.identity.answers_for_others)
    }

    /// Returns the mark that tells the peer from others, where there is one.
    pub(crate) fn peer_id(&self) -> Option<PeerId> {
        match (self.certain_domain(), self.identity.cid, self.identity.ip) {
            _ if self.transport == TCP => None,
            (Some(uuid), _, _) => Some(PeerId(format!("domain {uuid}"))),
            (None, Some(cid), _) => Some(PeerId(format!("cid {cid}"))),
            (None, None, Some(ip)) => Some(PeerId(format!("address {ip}"))),
            (None, None, None) => None,
        }
    }

    /// Returns the address that the request comes from, where it has one.
    pub(crate) fn sender(&self) -> Option<SenderId> {
        match (self.identity.cid, self.identity.ip) {
            (Some(cid), _) => Some(SenderId(format!("cid {cid}"))),
            (None, Some(ip)) => Some(SenderId(format!("address {ip}"))),
            (None, None) => None,
        }
    }
}

/// Result of the search for the domain and the check of access.
#[derive(Clone, Debug)]
pub(crate) enum ResolvedTarget {
    /// The request may run on this domain; none where the action is about no domain.
    Run(Option<LocatedDomain>),
    /// The request will not run.
    Refused(Refusal, String, Option<DomainRef>),
}

impl ResolvedTarget {
    /// Returns the domain that was found.
    pub(crate) fn domain(&self) -> Option<&DomainRef> {
        match self {
            Self::Run(located) => located.as_ref().map(LocatedDomain::domain),
            Self::Refused(_, _, domain) => domain.as_ref(),
        }
    }

    /// Returns the host that is to answer. A definition that is off is not enough for this host: every place
    /// where the domain can be must show that it is off. Without a definition another host may be able to
    /// start the domain.
    pub(crate) fn owner(&self, action: Action) -> AnsweringHost {
        match self {
            Self::Run(Some(LocatedDomain::Undefined(_))) if action == Action::On => AnsweringHost::Unknown,
            Self::Run(Some(LocatedDomain::InDoubt(_))) | Self::Refused(_, _, None) => AnsweringHost::Unknown,
            Self::Run(Some(LocatedDomain::Elsewhere(_) | LocatedDomain::Moving(_))) => AnsweringHost::Another,
            Self::Run(_) | Self::Refused(..) => AnsweringHost::ThisHost,
        }
    }
}

/// The host that is to answer a request that several hosts may have received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AnsweringHost {
    /// The domain is here, or the action is about no domain.
    ThisHost,
    /// Another host first. This one can pass the request on to it, or has a part of the domain too, in case
    /// the other has not received the request itself.
    Another,
    /// Perhaps a host that is not known to this one.
    Unknown,
}

/// Answer to the client.
#[derive(Debug)]
pub(crate) enum ClientReply {
    /// A response alone.
    Response(Response),
    /// A host list and the response after it.
    List(Vec<HostListEntry>, Response),
}

/// Room in memory that a list takes until it is sent.
#[derive(Debug)]
pub(crate) struct ListRoom {
    _pieces: OwnedSemaphorePermit,
}

impl ListRoom {
    /// Returns the room that these permits stand for.
    pub(crate) fn new(pieces: OwnedSemaphorePermit) -> Self {
        Self { _pieces: pieces }
    }
}

impl ClientReply {
    pub(crate) fn response(&self) -> Response {
        match self {
            Self::Response(response) | Self::List(_, response) => *response,
        }
    }
}

/// Response without any evidence: nothing was done, or nothing is known of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The request failed.
    Failure,
    /// The groups don't allow it.
    PermissionDenied,
}

/// Outcome of a request, and the reason where there is something to say.
///
/// Only the constructors make one. "Off", and the success of a power-off, take their proof.
#[derive(Debug)]
pub(crate) struct RequestOutcome {
    answer: ClientReply,
    reason: Option<String>,
    lapsed: bool,
    /// Room of a list, given back when it was sent.
    _room: Option<ListRoom>,
}

impl RequestOutcome {
    fn new(response: Response, reason: Option<String>) -> Self {
        Self { answer: ClientReply::Response(response), reason, lapsed: false, _room: None }
    }

    /// Returns the outcome for a domain that is on.
    pub(crate) fn is_on() -> Self {
        Self::new(Response::Success, None)
    }

    /// Returns the outcome of a start, with what is to be said of it.
    pub(crate) fn started(note: Option<String>) -> Self {
        Self::new(Response::Success, note)
    }

    /// Returns the outcome of a status check that showed the domain off.
    pub(crate) fn is_off(proof: &ProvedOff) -> Self {
        Self::new(Response::Off, proof.down())
    }

    /// Returns the outcome of a power-off; its reason joins both texts and what proved a host down, where
    /// there are any.
    pub(crate) fn taken_down(proof: &ProvedOff, said: Option<&str>, note: Option<String>) -> Self {
        let texts: Vec<String> = note.into_iter().chain(proof.down()).collect();
        let note = (!texts.is_empty()).then(|| texts.join("; "));
        let reason = match (said, note) {
            (Some(said), Some(note)) => Some(format!("{said} ({note})")),
            (Some(said), None) => Some(said.to_owned()),
            (None, note) => note,
        };
        Self::new(Response::Success, reason)
    }

    /// Returns the outcome of a check of the whole daemon, with what is not well.
    pub(crate) fn is_well(failed: Option<String>) -> Self {
        Self::new(Response::Success, failed)
    }

    /// Returns the outcome of a question what an action would do, where the action would be carried out.
    /// Only a forecast on the wire: never the response to a request.
    pub(crate) fn would_be_done(words: String) -> Self {
        Self::new(Response::Success, Some(words))
    }

    /// Returns the outcome of a list, with what is missing in it.
    pub(crate) fn listed(entries: Vec<HostListEntry>, missing: Option<String>, room: ListRoom) -> Self {
        let answer = ClientReply::List(entries, Response::Success);
        Self { answer, reason: missing, lapsed: false, _room: Some(room) }
    }

    /// Returns the outcome of a request that failed.
    pub(crate) fn failed(reason: impl std::fmt::Display) -> Self {
        Self::refused(Refusal::Failure, reason)
    }

    /// Returns the outcome of a request that was not carried out.
    pub(crate) fn refused(refusal: Refusal, reason: impl std::fmt::Display) -> Self {
        let response = match refusal {
            Refusal::Failure => Response::Failure,
            Refusal::PermissionDenied => Response::PermissionDenied,
        };
        Self::new(response, Some(reason.to_string()))
    }

    /// Returns the outcome of a request for which nothing was done, because the client was gone or its time
    /// was up.
    pub(crate) fn lapsed(reason: impl std::fmt::Display) -> Self {
        Self { lapsed: true, ..Self::failed(reason) }
    }

    /// Returns the outcome of a request that the rules of a reload forbid: nothing was done, and another one
    /// that joined it does the work.
    pub(crate) fn forbidden_since(why: impl std::fmt::Display) -> Self {
        let why = format!("a reload forbade this request while it waited: {why}");
        Self { lapsed: true, ..Self::refused(Refusal::PermissionDenied, why) }
    }

    pub(crate) fn answer(&self) -> &ClientReply {
        &self.answer
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Returns whether nothing was done, because the client was gone, its time was up, or a reload forbade
    /// it.
    pub(crate) fn has_lapsed(&self) -> bool {
        self.lapsed
    }
}

/// The result of work that was in flight when this request came, and had not seen its target off by then.
impl From<SharedResult> for RequestOutcome {
    fn from(result: SharedResult) -> Self {
        let reason = result.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        Self::new(result.response, Some(format!("the same work as {}{reason}", result.by)))
    }
}

impl From<ActionError> for RequestOutcome {
    fn from(error: ActionError) -> Self {
        if matches!(error, ActionError::Lapsed(_)) { Self::lapsed(error) } else { Self::failed(error) }
    }
}

#[cfg(test)]
mod tests {
    use fence_core::domain::{DomainHome, DomainId, TargetKind};

    use super::*;

    /// Another host may have a definition, and start it.
    #[test]
    fn a_host_without_a_definition_lets_others_answer_an_on() {
        let domain = DomainRef {
            name: "x".to_owned(),
            uuid: DomainId::from_bytes([7; 16]),
            home: DomainHome::Here(0),
            by: TargetKind::Name,
        };
        let undefined = ResolvedTarget::Run(Some(LocatedDomain::Undefined(domain.clone())));
        assert_eq!(undefined.owner(Action::On), AnsweringHost::Unknown);
        for action in [Action::Off, Action::Reboot, Action::Status] {
            assert_eq!(undefined.owner(action), AnsweringHost::ThisHost);
        }
        let defined = ResolvedTarget::Run(Some(LocatedDomain::Off(domain)));
        assert_eq!(defined.owner(Action::On), AnsweringHost::ThisHost);
    }
}
