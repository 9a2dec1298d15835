// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages of the second process group, whose members are the hosts that run this daemon.
//!
//! One message is one JSON object: `v` (1), `kind`, and the fields of that kind. Unknown kinds and fields are
//! ignored, so that a later version can send more. A known field that does not read is an error. Pure.
//!
//! A message never has a point of time, only a time that is left: hosts have no common clock.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fence_wire::Response;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::arbiter::{ArbiterRequest, ArbitratedAction, PossibleSources, RequestSource, TargetName};
use crate::domain::PowerAction;
use crate::domain_id::DomainId;
use crate::evidence::Sight;
use crate::evidence::namesakes::MAX_NAMESAKES;

#[cfg(test)]
mod tests;

/// Maximum length of a message in bytes: corosync passes shorter ones on in one piece.
pub const MESSAGE_LIMIT: usize = 512 * 1024;
/// Maximum number of domains in one part of an inventory.
pub const INVENTORY_PART: usize = 256;
/// Length in bytes to which a reason is cut before it is sent.
const REASON_LIMIT: usize = 512;
/// End of a reason that was cut.
const CUT: &str = " [...]";
/// Maximum length of a UUID, or of the identifier of a domain that has none.
const ID_LIMIT: usize = 128;
/// Maximum length of the name of a domain or a peer.
const NAME_LIMIT: usize = 1024;
/// UUIDs and names of an island that a claim tells of; one of a larger island waits as if it may come from
/// any domain. A member that is listed by its UUID counts twice: that may be the name of another.
pub const POSSIBLE_LIMIT: usize = 48;
const VERSION: u32 = 1;
/// Beginning of the reason by which the last release tells that a reboot did not start the domain again.
const NOT_STARTED: &str = "fenced, but not started again: ";

/// One daemon in a process group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Member {
    /// Number of the daemon's host in corosync's node list.
    pub node: u32,
    /// Process id of the daemon.
    pub pid: u32,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} (process {})", self.node, self.pid)
    }
}

impl From<(u32, u32)> for Member {
    fn from((node, pid): (u32, u32)) -> Self {
        Self { node, pid }
    }
}

impl From<Member> for (u32, u32) {
    fn from(member: Member) -> Self {
        (member.node, member.pid)
    }
}

/// Message of one host to all others. The sender is known from corosync, not from the message.
///
/// `sync` to `overdue` keep the common arbiter ([`super::claims`]); `ask` to `reply` carry a request to the
/// host that has the domain. The claims read all of these, because an ask that changes something is part of a
/// claim in flight. `recent_offs` tells a new daemon what was fenced while its host had none. `inventory`,
/// `domain`, `domain_gone` and `node_gone` keep the directory ([`super::directory`]). `host_key` tells nodes
/// from other hosts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HostMessage {
    /// State of the sender after a membership change. Its earlier messages count no more.
    Sync(StateSync),
    /// Confirmation that the sender's sync was delivered in the membership in which it was sent. A sync
    /// counts from then on.
    Ready {
        /// Number of that sync.
        n: u64,
    },
    /// Proposal to go on without the sync of a silent member.
    PassOver {
        /// The silent member.
        member: Member,
        /// Claims of that member in flight, as far as they are known.
        in_flight: Vec<InFlightClaim>,
        /// Claims of others that the member carries out, as far as they are known.
        acting: Vec<ActingClaim>,
    },
    /// Wish of the sender to act on a domain.
    Claim(ClaimMessage),
    /// End of a claim of the sender for which nothing was done, and nothing will be.
    Withdraw {
        /// Number of the claim.
        id: u64,
    },
    /// The target of a claim of the sender was seen off.
    SeenOff {
        /// Number of the claim.
        id: u64,
        /// The domain that was seen off.
        #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
        victim: String,
    },
    /// Announcement before [`HostMessage::SeenOff`]: the target may go off once more, by another order that
    /// is not settled.
    Again {
        /// Number of the claim.
        id: u64,
    },
    /// The client of a claim of the sender has its answer, and any part of the work may come late: nothing
    /// joins the claim any more.
    Answered {
        /// Number of the claim.
        id: u64,
        /// Result for requests that were coalesced into it.
        outcome: AskOutcome,
    },
    /// The work of a claim of the sender is over, and a power-off may come late.
    Lingers {
        /// Number of the claim.
        id: u64,
        /// Result for requests that were coalesced into it.
        outcome: AskOutcome,
    },
    /// Announcement of a host that works on a claim: nothing of its work can take effect any more but a
    /// power-off, and nobody can tell when, because its hypervisor hangs.
    Hangs {
        /// The asker.
        asker: Member,
        /// Number of the claim.
        claim: u64,
        /// Number of the ask, if the sender works on it for the asker.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// End of a claim of the sender: no part of the sender's work for it can take effect any more.
    Finished {
        /// Number of the claim.
        id: u64,
        /// Result for requests that were coalesced into it.
        outcome: AskOutcome,
    },

    /// The sender still holds a claim whose end is near, and lives.
    Holds {
        /// The asker of the claim.
        asker: Member,
        /// Number of the claim.
        id: u64,
        /// Number of the ask that the sender carries out; none if it is the asker.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// A member holds a claim longer than the claim said, and says nothing: it is passed over.
    Overdue {
        /// The holder.
        member: Member,
        /// The asker of the claim.
        asker: Member,
        /// Number of the claim.
        id: u64,
        /// Number of the ask that the holder carries out; none if it is the asker.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
        /// Number of times that the holder had said that it holds on.
        renewed: u64,
    },

    /// Request for work from the owner of a domain.
    Ask(AskMessage),
    /// Consent of the asker: the owner may act. The owner counts the time from its "taken".
    Go {
        /// The owner.
        to: Member,
        /// Number of the ask.
        ask: u64,
        /// Time that is left to the asker, in milliseconds.
        left_ms: u64,
    },
    /// End of the asker's wait: work that has not begun must not begin.
    Cancel {
        /// The owner.
        to: Member,
        /// Number of the ask.
        ask: u64,
    },
    /// Announcement of the owner that it is about to act. It acts after the asker's "go".
    Taken {
        /// The asker.
        asker: Member,
        /// Number of the ask.
        ask: u64,
        /// Number of the claim under which the owner acts.
        claim: u64,
    },
    /// The owner saw the target off; for a reboot the start comes next.
    Progress {
        /// The asker.
        asker: Member,
        /// Number of the ask.
        ask: u64,
        /// Number of the claim under which the owner acts.
        claim: u64,
        /// The domain that was seen off.
        #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
        victim: String,
        /// The domain was off before the owner acted.
        #[serde(default)]
        was_off: bool,
        /// The owner starts the domain again.
        #[serde(default)]
        starts: bool,
    },
    /// Result of an ask of which a power-off may still come, for the asker's client. The reply follows.
    EarlyReply {
        /// The asker.
        asker: Member,
        /// Number of the ask.
        ask: u64,
        /// Result of the ask.
        end: AskEnd,
    },
    /// End of an ask: no part of the owner's work can take effect any more.
    Reply {
        /// The asker.
        asker: Member,
        /// Number of the ask.
        ask: u64,
        /// Number of the claim, if the ask had one.
        claim: Option<u64>,
        /// Result of the ask.
        end: AskEnd,
    },

    /// Domains that requests took down a short while ago, for a daemon that has joined. Comes before the
    /// sender's `sync` ([`super::recent_offs`]).
    RecentOffs {
        /// The domains.
        offs: Vec<RecentOff>,
        /// Milliseconds for which the sender has noted all of them; none from the last release.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        noted_ms: Option<u64>,
    },

    /// Word of an administrator: this node was taken out of the cluster for good. It is forgotten where
    /// nothing shows that it is still there.
    NodeGone {
        /// The node.
        node: u32,
    },

    /// Name and run of the sender in the messages between hosts that corosync does not know. So no node of
    /// the cluster is taken for such a host.
    HostKey {
        /// Name of the key pair, in hex.
        #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
        id: String,
        /// Bytes that the daemon drew when it started.
        run: u64,
    },

    /// Part of the list of all domains of the sender. The parts come in order.
    Inventory {
        /// This part begins a new list.
        first: bool,
        /// This part completes the list.
        last: bool,
        /// Domains of this part.
        domains: Vec<PublishedDomain>,
    },
    /// Change of one domain of the sender.
    Domain(PublishedDomain),
    /// The sender does not have this domain any more: it is neither running nor defined there.
    DomainGone {
        /// The domain.
        #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
        uuid: String,
    },
}

/// State of a host after a membership change: [`HostMessage::Sync`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StateSync {
    /// Number of the sync, counted by its sender.
    pub n: u64,
    /// The sender's claims in flight.
    pub in_flight: Vec<InFlightClaim>,
    /// The sender's waiting claims, in the order in which it made them.
    pub waiting: Vec<ClaimMessage>,
    /// Claims that the sender carries out for others, or for an asker that is gone. One that lingers is kept
    /// for a daemon that is gone.
    pub acting: Vec<ActingClaim>,
    /// The claims in flight include all orders of earlier daemons of this host that may still take effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tells_earlier: bool,
    /// The claims include all orders of daemons that are gone, as far as they may still take effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub knows_orders: bool,
}

/// Claim of a host: its wish to act on a domain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClaimMessage {
    /// Number of the claim, never used twice by the asker's host.
    pub id: u64,
    /// Action on the domain.
    pub what: AskAction,
    /// UUID of the domain.
    #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
    pub target: String,
    /// Domain from which the request comes, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_text::<ID_LIMIT, _>")]
    pub source: Option<String>,
    /// Identifier of the request's peer among all peers of the same host, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_text::<ID_LIMIT, _>")]
    pub peer: Option<String>,
    /// Domains from which the request can come, where its source is not known; none where that may be any,
    /// where they are more than [`POSSIBLE_LIMIT`], and from the last release.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "few_sources")]
    pub possible: Option<Box<PossibleSources>>,
    /// Name of the target; none from the last release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<TargetName>,
    /// Milliseconds after which no order is given for the claim any more, counted from when it is told; none
    /// from the last release, and where an order may take effect at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term_ms: Option<u64>,
}

/// Action of a claim or an ask. A status is asked, and never claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskAction {
    /// Read the power state.
    Status,
    /// Start the domain.
    On,
    /// Power the domain off.
    Off,
    /// Power the domain off and start it again.
    Reboot,
}

/// Claim in flight.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InFlightClaim {
    /// The claim.
    pub claim: ClaimMessage,
    /// The target was seen off.
    pub seen_off: bool,
    /// The work is over, and its effect may come late.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lingers: bool,
    /// The client has its answer, and any part of the work may come late.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answered: bool,
    /// Nobody can tell when that effect comes: see [`HostMessage::Hangs`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hangs: bool,
}

/// Claim in flight that the sender carries out for its asker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ActingClaim {
    /// The asker.
    pub asker: Member,
    /// Number of the ask.
    pub ask: u64,
    /// The claim.
    pub held: InFlightClaim,
}

/// Ask for work: [`HostMessage::Ask`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AskMessage {
    /// The owner, which does the work; other members only note the ask.
    pub to: Member,
    /// Number of the ask, never used twice by the asker's host.
    pub ask: u64,
    /// Action on the domain.
    pub what: AskAction,
    /// UUID of the domain.
    #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
    pub uuid: String,
    /// Name of the domain, for people.
    #[serde(deserialize_with = "text::<NAME_LIMIT, _>")]
    pub name: String,
    /// The asker knows that the domain is on at no host: a definition at the owner is enough.
    #[serde(default)]
    pub rests: bool,
    /// Claim under which the work is done; none for `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimMessage>,
    /// Time that is left to the asker, in milliseconds.
    pub left_ms: u64,
    /// Number of the request at the asker, for people.
    pub request: u64,
    /// Action of which a status asks what it would do. Hosts of the last release tell the status alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<AskAction>,
}

/// Result of an ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskEnd {
    /// The owner acted, with or without success.
    Done(AskOutcome),
    /// The sender has no such domain, or has it off while it may run elsewhere: nothing was done.
    NotHere,
    /// Nothing was done, for this reason.
    NothingDone(#[serde(deserialize_with = "text::<NAME_LIMIT, _>")] String),
}

/// Outcome of an action.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AskOutcome {
    /// Response to the client.
    #[serde(serialize_with = "response_number", deserialize_with = "response")]
    pub response: Response,
    /// Reason of the response, for people.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_text::<NAME_LIMIT, _>"
    )]
    pub reason: Option<String>,
    /// Reason why a domain that was powered off for a reboot was not started again.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_text::<NAME_LIMIT, _>"
    )]
    pub not_started: Option<String>,
    /// Milliseconds since the instance that ran at the sender ended for good. For a status that says off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Milliseconds since the domain moved from the sender to another place, at least. For a status that says
    /// off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_ms: Option<u64>,
    /// UUIDs of other domains with the name that left the sender for another place. For a status that failed
    /// because of them: hosts of the last release don't ask about each.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "few_ids")]
    pub namesakes: Vec<String>,
    /// The domain is about to be started at the sender, or comes or goes there. For a status that does not
    /// say off: hosts of the last release take it for on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moving: bool,
    /// Effect that an action would have at the sender. For a status that says on, and asked about the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<AskForecast>,
}

/// Effect that an action would have at the host that has the domain on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskForecast {
    /// The action would be done.
    Done,
    /// The action would be begun, and whether it would succeed shows only then.
    Uncertain(#[serde(deserialize_with = "text::<NAME_LIMIT, _>")] String),
    /// The action would fail, for this reason.
    Fails(#[serde(deserialize_with = "text::<NAME_LIMIT, _>")] String),
}

impl AskOutcome {
    /// Builds an outcome with a reason that is cut to the length that fits.
    pub fn new(response: Response, reason: Option<&str>) -> Self {
        let (ended_ms, moved_ms, not_started) = (None, None, None);
        let (namesakes, moving, forecast) = (Vec::new(), false, None);
        let reason = reason.map(cut);
        Self { response, reason, not_started, ended_ms, moved_ms, namesakes, moving, forecast }
    }

    /// Builds the outcome of a status that says on, with what an action would do.
    pub fn with_forecast(forecast: &AskForecast) -> Self {
        let forecast = match forecast {
            AskForecast::Done => AskForecast::Done,
            AskForecast::Uncertain(why) => AskForecast::Uncertain(cut(why)),
            AskForecast::Fails(why) => AskForecast::Fails(cut(why)),
        };
        Self { forecast: Some(forecast), ..Self::new(Response::Success, None) }
    }

    /// Builds the outcome of a reboot that powered the domain off and could not start it again. The reason
    /// says it too: hosts of the last release read the reason alone.
    pub fn not_started(why: &str) -> Self {
        let reason = Some(cut(&format!("{NOT_STARTED}{why}")));
        Self { not_started: Some(cut(why)), ..Self::new(Response::Success, reason.as_deref()) }
    }

    /// Builds the outcome of a look at the sender that saw no instance.
    pub fn seen_off(sight: &Sight) -> Self {
        let age_ms = sight.age_ms();
        let ended_ms = age_ms.filter(|_| matches!(sight, Sight::Ended(_)));
        let moved_ms = age_ms.filter(|_| matches!(sight, Sight::MovedAway(_)));
        Self { ended_ms, moved_ms, ..Self::new(Response::Off, None) }
    }

    /// Builds the outcome of a look at the sender that saw neither on nor off.
    pub fn seen_moving() -> Self {
        Self { moving: true, ..Self::new(Response::Success, None) }
    }

    /// Builds the outcome of a look at the sender that saw no instance, and that other domains with the name
    /// left it. Nobody who does not ask about each of them must take it for "off": the reason says why.
    pub fn seen_off_with_namesakes(sight: &Sight, namesakes: &[DomainId], why: &str) -> Self {
        let namesakes = namesakes.iter().map(DomainId::to_string).collect();
        let Self { ended_ms, moved_ms, .. } = Self::seen_off(sight);
        Self { ended_ms, moved_ms, namesakes, ..Self::new(Response::Failure, Some(why)) }
    }

    /// Returns what a look at the sender saw, and the other domains with the name that left it; none if there
    /// is an instance, or if the sender can't tell.
    pub fn look_without_instance(&self) -> Option<(Sight, Vec<DomainId>)> {
        match self.response {
            Response::Off => Some((self.off_sight(), Vec::new())),
            Response::Failure if !self.namesakes.is_empty() => {
                let ids = self.namesakes.iter().map(|it| DomainId::parse_canonical(it));
                Some((self.off_sight(), ids.collect::<Option<_>>()?))
            }
            _ => None,
        }
    }

    /// Returns the sight of an outcome that says off. Hosts of the last release tell no age.
    fn off_sight(&self) -> Sight {
        match (self.moved_ms, self.ended_ms) {
            (Some(ms), _) => Sight::MovedAway(Duration::from_millis(ms)),
            (None, Some(ms)) => Sight::Ended(Some(Duration::from_millis(ms))),
            (None, None) => Sight::Off,
        }
    }

    /// Returns the reason why a reboot did not start the domain again, from the field, or from the text of a
    /// host of the last release.
    pub fn start_failure(&self) -> Option<&str> {
        let in_words = self.reason.as_deref().and_then(|it| it.strip_prefix(NOT_STARTED));
        self.not_started.as_deref().or(in_words)
    }
}

/// Domain that a request took down a short while ago.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecentOff {
    /// UUID of the domain.
    #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
    pub uuid: String,
    /// Milliseconds since it was seen off.
    pub age_ms: u64,
    /// Nodes that took part: the asker's, and those of the owners.
    pub nodes: Vec<u32>,
}

/// Domain of the sender's host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishedDomain {
    /// UUID of the domain, as the host has it. Text, because a message with another identifier is valid too.
    #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
    pub uuid: String,
    /// Name of the domain.
    #[serde(deserialize_with = "text::<NAME_LIMIT, _>")]
    pub name: String,
    /// State of the domain at the sender's host.
    pub state: PublishedState,
    /// The definition stayed behind when the machine migrated away: no list has the domain for it. Hosts of
    /// the last release do not know this, and do not publish such a definition.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_away: bool,
}

impl PublishedDomain {
    /// Builds a domain that did not migrate away from the sender's host.
    pub fn new(uuid: String, name: String, state: PublishedState) -> Self {
        Self { uuid, name, state, is_away: false }
    }
}

/// State of a domain as its host publishes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishedState {
    /// On here. Every state that is not off counts as on.
    On,
    /// Off. The sender's running daemon saw the domain power off here, and it did not leave for another host.
    Off,
    /// Off in the same way, without a definition: there is nothing to start or to list.
    Gone,
    /// Defined here and off; the domain may be on elsewhere.
    Rests,
}

/// Reason why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// More bytes than a message may have.
    #[error("a message of {0} bytes; {MESSAGE_LIMIT} are the most")]
    TooLong(usize),
    /// No JSON object with a version and a kind.
    #[error("not a message: {0}")]
    NoMessage(#[source] serde_json::Error),
    /// Version that this daemon does not know.
    #[error("a message of version {0}; this daemon knows {VERSION} (update it)")]
    OtherVersion(u32),
    /// Known kind with fields that do not read.
    #[error("a message of kind `{kind}` that does not read: {error}")]
    Unreadable {
        /// The kind.
        kind: String,
        /// Error of the JSON parser.
        #[source]
        error: serde_json::Error,
    },
}

impl HostMessage {
    /// Returns the bytes to send.
    ///
    /// # Errors
    /// The message is too long. No message of this daemon is, while its own limits hold.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        #[derive(Serialize)]
        struct VersionedMessage<'a> {
            v: u32,
            #[serde(flatten)]
            message: &'a HostMessage,
        }
        let bytes = serde_json::to_vec(&VersionedMessage { v: VERSION, message: self })
            .map_err(MessageError::NoMessage)?;
        if bytes.len() > MESSAGE_LIMIT { Err(MessageError::TooLong(bytes.len())) } else { Ok(bytes) }
    }

    /// Reads a message; none if its kind is not known.
    ///
    /// # Errors
    /// The bytes are no message.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, MessageError> {
        #[derive(Deserialize)]
        struct Head {
            v: u32,
            kind: String,
        }
        if bytes.len() > MESSAGE_LIMIT {
            return Err(MessageError::TooLong(bytes.len()));
        }
        let Head { v, kind } = serde_json::from_slice(bytes).map_err(MessageError::NoMessage)?;
        if v != VERSION {
            return Err(MessageError::OtherVersion(v));
        }
        if !KINDS.contains(&kind.as_str()) {
            return Ok(None);
        }
        match serde_json::from_slice(bytes) {
            Ok(message) => Ok(Some(message)),
            Err(error) => Err(MessageError::Unreadable { kind: kind.chars().take(40).collect(), error }),
        }
    }

    /// Returns the messages that publish all domains of a host, or those that it knows by now: then no part
    /// completes the list.
    pub fn inventory(domains: &[PublishedDomain], is_complete: bool) -> Vec<Self> {
        let parts = domains.len().div_ceil(INVENTORY_PART).max(1);
        let part = |it: usize| {
            let rest = &domains[it * INVENTORY_PART..];
            let domains = rest[..rest.len().min(INVENTORY_PART)].to_vec();
            Self::Inventory { first: it == 0, last: is_complete && it + 1 == parts, domains }
        };
        (0..parts).map(part).collect()
    }
}

/// Kinds of [`HostMessage`].
const KINDS: [&str; 26] = [
    "sync",
    "ready",
    "pass_over",
    "claim",
    "withdraw",
    "seen_off",
    "again",
    "answered",
    "lingers",
    "hangs",
    "finished",
    "holds",
    "overdue",
    "ask",
    "go",
    "cancel",
    "taken",
    "progress",
    "early_reply",
    "reply",
    "recent_offs",
    "node_gone",
    "host_key",
    "inventory",
    "domain",
    "domain_gone",
];

impl From<PowerAction> for AskAction {
    fn from(action: PowerAction) -> Self {
        match action {
            PowerAction::Status => Self::Status,
            PowerAction::On => Self::On,
            PowerAction::Off => Self::Off,
            PowerAction::Reboot => Self::Reboot,
        }
    }
}

impl From<AskAction> for PowerAction {
    fn from(action: AskAction) -> Self {
        match action {
            AskAction::Status => Self::Status,
            AskAction::On => Self::On,
            AskAction::Off => Self::Off,
            AskAction::Reboot => Self::Reboot,
        }
    }
}

impl ClaimMessage {
    /// Builds the claim of a request.
    pub fn of(id: u64, request: &ArbiterRequest) -> Self {
        let (source, possible) = match &request.source {
            RequestSource::Known(source) => (Some(source.clone()), None),
            RequestSource::OneOf(them) => (None, Some(them)),
            RequestSource::Unknown => (None, None),
        };
        Self {
            id,
            what: request.work.action().into(),
            target: request.work.target().unwrap_or_default().to_owned(),
            source,
            peer: request.peer.as_ref().map(|it| it.0.clone()),
            possible: possible.filter(|it| it.count() <= POSSIBLE_LIMIT).map(|it| Box::new((**it).clone())),
            name: request.name,
            term_ms: None,
        }
    }

    /// Returns the source of the request as the arbiter knows it.
    pub(super) fn request_source(&self) -> RequestSource {
        match (&self.source, &self.possible) {
            (Some(source), _) => RequestSource::Known(source.clone()),
            (None, Some(them)) => RequestSource::OneOf(Arc::new((**them).clone())),
            (None, None) => RequestSource::Unknown,
        }
    }

    /// Returns the claim with the time after which no order is given for it any more.
    pub(super) fn with_term(self, term: Option<Duration>) -> Self {
        let ms = |it: Duration| u64::try_from(it.as_millis()).unwrap_or(u64::MAX);
        Self { term_ms: term.map(ms), ..self }
    }

    /// Returns whether the claim powers its target off.
    pub(super) fn takes_down(&self) -> bool {
        matches!(self.what, AskAction::Off | AskAction::Reboot)
    }

    /// Returns the action of the claim as the arbiter knows it.
    pub fn work(&self) -> ArbitratedAction {
        ArbitratedAction::of(self.what.into(), self.target.clone())
    }
}

/// Cuts a reason to the length that fits, and shows that it is cut.
pub fn cut(reason: &str) -> String {
    if reason.len() <= REASON_LIMIT {
        return reason.to_owned();
    }
    format!("{}{CUT}", &reason[..reason.floor_char_boundary(REASON_LIMIT - CUT.len())])
}

fn text<'de, const LIMIT: usize, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if text.len() > LIMIT {
        return Err(D::Error::custom(format!("a text of {} bytes; {LIMIT} are the most", text.len())));
    }
    Ok(text)
}

fn few_ids<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let ids = Vec::<String>::deserialize(from)?;
    if ids.len() > MAX_NAMESAKES || ids.iter().any(|it| it.len() > ID_LIMIT) {
        return Err(D::Error::custom(format!("more than {MAX_NAMESAKES} namesakes, or a long one")));
    }
    Ok(ids)
}

fn few_sources<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<PossibleSources>>, D::Error> {
    let sources = Option::<Box<PossibleSources>>::deserialize(from)?;
    Ok(sources.filter(|it| it.count() <= POSSIBLE_LIMIT))
}

fn some_text<'de, const LIMIT: usize, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    match text {
        Some(text) if text.len() > LIMIT => {
            Err(D::Error::custom(format!("a text of {} bytes; {LIMIT} are the most", text.len())))
        }
        text => Ok(text),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn response_number<S: Serializer>(response: &Response, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u8(response.number())
}

fn response<'de, D: Deserializer<'de>>(from: D) -> Result<Response, D::Error> {
    let number = u8::deserialize(from)?;
    Response::from_number(number).ok_or_else(|| D::Error::custom(format!("{number} is no response")))
}
