// SPDX-License-Identifier: GPL-2.0-or-later
//! The messages of the second group, which only hosts that run this daemon are in.
//!
//! One message is one JSON object: `v` (1), `kind`, and what the kind needs. Kinds and fields that are not known are
//! passed over, so that a later version can say more; what is known and doesn't read as it should is an error. Pure.
//!
//! Times are never in a message but as what is left of them: hosts have no common clock.

use std::fmt;

use fence_wire::Response;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::arbiter::{ArbitratedAction, PeerId, RequestSource};

/// A message is never longer than this, in bytes: corosync passes what is shorter on in one piece.
pub const MESSAGE_LIMIT: usize = 512 * 1024;
/// Domains in one part of an inventory, at most.
pub const INVENTORY_PART: usize = 256;
/// A reason is cut to this many bytes before it is sent.
const REASON_LIMIT: usize = 512;
/// UUIDs, and what identifies a domain where there are none.
const ID_LIMIT: usize = 128;
/// Names of domains, and of peers.
const NAME_LIMIT: usize = 1024;
const VERSION: u32 = 1;

/// One daemon in the group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Member {
    /// Its host's number in corosync's node list.
    pub node: u32,
    /// Its process.
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

/// What one host tells all others. Who says it comes from corosync, not from the message.
///
/// # Who may act, and when
/// `sync` … `finished` keep the common arbiter ([`super::claims`]); `ask` … `reply` carry a request to the host that
/// has the domain. All of them are read there: an ask that changes something is part of a claim in flight.
/// `inventory` and `domain` keep the directory ([`super::directory`]).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HostMessage {
    /// All that the sender has under way, after a change of the membership. What it said before is void.
    Sync(StateSync),
    /// "My sync `n` was delivered in the membership in which I sent it": only now it counts.
    Ready { n: u64 },
    /// "Go on without waiting for this one's sync." With what it is known to have in flight.
    PassOver { member: Member, in_flight: Vec<InFlightClaim>, acting: Vec<ActingClaim> },
    /// The sender wants its turn.
    Claim(ClaimMessage),
    /// Nothing was done for this claim of the sender's, and nothing will be.
    Withdraw { id: u64 },
    /// The target of this claim of the sender's was seen off.
    SeenOff {
        id: u64,
        #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
        victim: String,
    },
    /// The work of this claim of the sender's is over, and nothing that the sender does can take effect any more.
    Finished { id: u64, outcome: AskOutcome },

    /// Carry this out and reply.
    Ask(AskMessage),
    /// "Carry it out: this is what is left of my time." The owner counts it from its "taken".
    Go { to: Member, ask: u64, left_ms: u64 },
    /// Nobody waits for this ask any more: what was not begun is not to be.
    Cancel { to: Member, ask: u64 },
    /// "I am about to carry this ask out." The sender acts when this comes back to it, and only if the claim is still
    /// in flight then.
    Taken { asker: Member, ask: u64, claim: u64 },
    /// The target was seen off; for a reboot its start comes next.
    Progress {
        asker: Member,
        ask: u64,
        claim: u64,
        #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
        victim: String,
        #[serde(default)]
        was_off: bool,
        /// It is being started again.
        #[serde(default)]
        starts: bool,
    },
    /// The ask is over. `claim` where it had one.
    Reply { asker: Member, ask: u64, claim: Option<u64>, end: AskEnd },

    /// A part of all domains of the sender's, in order: `first` begins a new list, which is complete with `last`.
    Inventory { first: bool, last: bool, domains: Vec<PublishedDomain> },
    /// One domain of the sender's changed.
    Domain(PublishedDomain),
    /// The sender has this domain no more: neither running nor defined.
    DomainGone {
        #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
        uuid: String,
    },
}

/// See [`Message::Sync`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StateSync {
    /// Counts the sender's syncs.
    pub n: u64,
    /// Its claims that are in flight.
    pub in_flight: Vec<InFlightClaim>,
    /// Its claims that wait, in the order in which it made them.
    pub waiting: Vec<ClaimMessage>,
    /// What it does for others, or for itself in the place of one that is gone.
    pub acting: Vec<ActingClaim>,
}

/// A request that wants its turn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClaimMessage {
    /// Its number, never used twice by its asker's host.
    pub id: u64,
    /// What it asks.
    pub what: AskAction,
    /// Of which domain: its UUID.
    #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
    pub target: String,
    /// The domain it comes from, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_text::<ID_LIMIT, _>")]
    pub source: Option<String>,
    /// What tells its peer from others of the same host, where anything does.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_text::<ID_LIMIT, _>")]
    pub peer: Option<String>,
}

/// What a claim or an ask is for. `status` is never claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskAction {
    Status,
    On,
    Off,
    Reboot,
}

/// A claim in flight.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InFlightClaim {
    pub claim: ClaimMessage,
    /// Its target was seen off.
    pub seen_off: bool,
}

/// A claim in flight that the sender carries out for its asker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ActingClaim {
    pub asker: Member,
    pub ask: u64,
    pub held: InFlightClaim,
}

/// Work for the host that has the domain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AskMessage {
    /// Who is to do it; others only note that it was asked.
    pub to: Member,
    /// Its number, never used twice by its asker's host.
    pub ask: u64,
    pub what: AskAction,
    /// The domain.
    #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
    pub uuid: String,
    /// Its name, for people.
    #[serde(deserialize_with = "text::<NAME_LIMIT, _>")]
    pub name: String,
    /// The asker knows that it is on nowhere: a definition of it is enough.
    #[serde(default)]
    pub rests: bool,
    /// What it is done under; none for `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimMessage>,
    /// What is left of the asker's time.
    pub left_ms: u64,
    /// The asker's number of the request, for people.
    pub request: u64,
}

/// How an ask ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskEnd {
    /// It was carried out, well or badly.
    Done(AskOutcome),
    /// The sender has no such domain, or has it off while it may run elsewhere: nothing was done.
    NotHere,
    /// Nothing was done, for this reason.
    NothingDone(#[serde(deserialize_with = "text::<NAME_LIMIT, _>")] String),
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AskOutcome {
    #[serde(serialize_with = "response_number", deserialize_with = "response")]
    pub response: Response,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_text::<NAME_LIMIT, _>"
    )]
    pub reason: Option<String>,
}

impl AskOutcome {
    /// With a reason of a length that fits.
    pub fn new(response: Response, reason: Option<&str>) -> Self {
        Self { response, reason: reason.map(cut) }
    }
}

/// A domain of the sender's host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishedDomain {
    #[serde(deserialize_with = "text::<ID_LIMIT, _>")]
    pub uuid: String,
    #[serde(deserialize_with = "text::<NAME_LIMIT, _>")]
    pub name: String,
    pub state: PublishedState,
}

/// What the sender knows of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishedState {
    /// It is on here. Everything that is not off is on.
    On,
    /// This run of the sender's daemon saw it go off here, and it did not leave for another host.
    Off,
    /// The same, and it left no definition: there is nothing to start or to list.
    Gone,
    /// It is defined here and off; it may be on elsewhere.
    Rests,
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("a message of {0} bytes; {MESSAGE_LIMIT} are the most")]
    TooLong(usize),
    #[error("not a message: {0}")]
    NoMessage(#[source] serde_json::Error),
    #[error("a message of version {0}; this daemon knows {VERSION} (update it)")]
    OtherVersion(u32),
    #[error("a message of kind `{kind}` that does not read: {error}")]
    Unreadable {
        kind: String,
        #[source]
        error: serde_json::Error,
    },
}

impl HostMessage {
    /// As it is sent.
    ///
    /// # Errors
    /// It is too long; none that this daemon makes is, while its own limits hold.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        #[derive(Serialize)]
        struct Whole<'a> {
            v: u32,
            #[serde(flatten)]
            message: &'a HostMessage,
        }
        let bytes =
            serde_json::to_vec(&Whole { v: VERSION, message: self }).map_err(MessageError::NoMessage)?;
        if bytes.len() > MESSAGE_LIMIT { Err(MessageError::TooLong(bytes.len())) } else { Ok(bytes) }
    }

    /// What bytes say; none where the kind is not known.
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

    /// All domains of a host, in as many messages as it takes.
    pub fn inventory(domains: &[PublishedDomain]) -> Vec<Self> {
        let parts = domains.len().div_ceil(INVENTORY_PART).max(1);
        let part = |it: usize| {
            let rest = &domains[it * INVENTORY_PART..];
            let domains = rest[..rest.len().min(INVENTORY_PART)].to_vec();
            Self::Inventory { first: it == 0, last: it + 1 == parts, domains }
        };
        (0..parts).map(part).collect()
    }
}

/// The kinds that [`Message`] has.
const KINDS: [&str; 16] = [
    "sync",
    "ready",
    "pass_over",
    "claim",
    "withdraw",
    "seen_off",
    "finished",
    "ask",
    "go",
    "cancel",
    "taken",
    "progress",
    "reply",
    "inventory",
    "domain",
    "domain_gone",
];

impl ClaimMessage {
    /// What is claimed for a request.
    pub fn of(id: u64, work: &ArbitratedAction, source: &RequestSource, peer: Option<&PeerId>) -> Self {
        let (what, target) = match work {
            ArbitratedAction::Look => (AskAction::Status, ""),
            ArbitratedAction::On(target) => (AskAction::On, target.as_str()),
            ArbitratedAction::Off(target) => (AskAction::Off, target.as_str()),
            ArbitratedAction::Reboot(target) => (AskAction::Reboot, target.as_str()),
        };
        let source = match source {
            RequestSource::Known(source) => Some(source.clone()),
            RequestSource::Unknown => None,
        };
        Self { id, what, target: target.to_owned(), source, peer: peer.map(|it| it.0.clone()) }
    }

    /// The work that it is for.
    pub fn work(&self) -> ArbitratedAction {
        let target = self.target.clone();
        match self.what {
            AskAction::Status => ArbitratedAction::Look,
            AskAction::On => ArbitratedAction::On(target),
            AskAction::Off => ArbitratedAction::Off(target),
            AskAction::Reboot => ArbitratedAction::Reboot(target),
        }
    }
}

/// A reason of a length that fits.
pub fn cut(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_LIMIT)].to_owned()
}

fn text<'de, const LIMIT: usize, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if text.len() > LIMIT {
        return Err(D::Error::custom(format!("a text of {} bytes; {LIMIT} are the most", text.len())));
    }
    Ok(text)
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn text(limit: usize) -> impl Strategy<Value = String> {
        any::<String>().prop_map(move |mut it| {
            it.truncate(it.floor_char_boundary(limit));
            it
        })
    }

    fn member() -> impl Strategy<Value = Member> {
        any::<(u32, u32)>().prop_map(Member::from)
    }

    fn what() -> impl Strategy<Value = AskAction> {
        prop::sample::select(vec![AskAction::Status, AskAction::On, AskAction::Off, AskAction::Reboot])
    }

    fn claim() -> impl Strategy<Value = ClaimMessage> {
        let source = prop::option::of(text(ID_LIMIT));
        let peer = prop::option::of(text(ID_LIMIT));
        (any::<u64>(), what(), text(ID_LIMIT), source, peer)
            .prop_map(|(id, what, target, source, peer)| ClaimMessage { id, what, target, source, peer })
    }

    fn held() -> impl Strategy<Value = InFlightClaim> {
        (claim(), any::<bool>()).prop_map(|(claim, seen_off)| InFlightClaim { claim, seen_off })
    }

    fn outcome() -> impl Strategy<Value = AskOutcome> {
        let response = (0_u8..4).prop_map(|it| Response::from_number(it).unwrap());
        (response, prop::option::of(any::<String>()))
            .prop_map(|(response, reason)| AskOutcome::new(response, reason.as_deref()))
    }

    fn domain() -> impl Strategy<Value = PublishedDomain> {
        let state = prop::sample::select(vec![
            PublishedState::On,
            PublishedState::Off,
            PublishedState::Gone,
            PublishedState::Rests,
        ]);
        (text(ID_LIMIT), text(NAME_LIMIT), state).prop_map(|(uuid, name, state)| PublishedDomain {
            uuid,
            name,
            state,
        })
    }

    fn ask() -> impl Strategy<Value = AskMessage> {
        let (uuid, name) = (text(ID_LIMIT), text(NAME_LIMIT));
        let numbers = any::<(u64, u64, u64)>();
        (member(), what(), uuid, name, prop::option::of(claim()), numbers).prop_map(
            |(to, what, uuid, name, claim, (ask, left_ms, request))| AskMessage {
                to,
                ask,
                what,
                uuid,
                name,
                rests: request % 2 == 0,
                claim,
                left_ms,
                request,
            },
        )
    }

    fn acting() -> impl Strategy<Value = ActingClaim> {
        (member(), any::<u64>(), held()).prop_map(|(asker, ask, held)| ActingClaim { asker, ask, held })
    }

    fn message() -> impl Strategy<Value = HostMessage> {
        let sync = (any::<u64>(), vec(held(), 0..3), vec(claim(), 0..3), vec(acting(), 0..3)).prop_map(
            |(n, in_flight, waiting, acting)| HostMessage::Sync(StateSync { n, in_flight, waiting, acting }),
        );
        let end = prop_oneof![
            outcome().prop_map(AskEnd::Done),
            Just(AskEnd::NotHere),
            any::<String>().prop_map(|it| AskEnd::NothingDone(cut(&it))),
        ];
        let numbers = || (member(), any::<u64>(), any::<u64>());
        prop_oneof![
            sync,
            any::<u64>().prop_map(|n| HostMessage::Ready { n }),
            (member(), vec(held(), 0..3), vec(acting(), 0..3)).prop_map(|(member, in_flight, acting)| {
                HostMessage::PassOver { member, in_flight, acting }
            }),
            claim().prop_map(HostMessage::Claim),
            any::<u64>().prop_map(|id| HostMessage::Withdraw { id }),
            (any::<u64>(), text(ID_LIMIT)).prop_map(|(id, victim)| HostMessage::SeenOff { id, victim }),
            (any::<u64>(), outcome()).prop_map(|(id, outcome)| HostMessage::Finished { id, outcome }),
            ask().prop_map(HostMessage::Ask),
            (member(), any::<u64>()).prop_map(|(to, ask)| HostMessage::Cancel { to, ask }),
            numbers().prop_map(|(to, ask, left_ms)| HostMessage::Go { to, ask, left_ms }),
            numbers().prop_map(|(asker, ask, claim)| HostMessage::Taken { asker, ask, claim }),
            (numbers(), text(ID_LIMIT)).prop_map(|((asker, ask, claim), victim)| HostMessage::Progress {
                asker,
                ask,
                claim,
                victim,
                was_off: ask % 2 == 0,
                starts: ask % 3 == 0,
            }),
            (member(), any::<u64>(), any::<Option<u64>>(), end)
                .prop_map(|(asker, ask, claim, end)| HostMessage::Reply { asker, ask, claim, end }),
            (any::<(bool, bool)>(), vec(domain(), 0..4))
                .prop_map(|((first, last), domains)| HostMessage::Inventory { first, last, domains }),
            domain().prop_map(HostMessage::Domain),
            text(ID_LIMIT).prop_map(|uuid| HostMessage::DomainGone { uuid }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_read(message in message()) {
            let bytes = message.encode().unwrap();
            prop_assert_eq!(HostMessage::decode(&bytes).unwrap(), Some(message));
        }

        /// A later version may say more: unknown fields are passed over.
        #[test]
        fn more_fields_are_passed_over(message in message()) {
            let mut value: serde_json::Value = serde_json::from_slice(&message.encode().unwrap()).unwrap();
            value["and"] = "more".into();
            let bytes = serde_json::to_vec(&value).unwrap();
            prop_assert_eq!(HostMessage::decode(&bytes).unwrap(), Some(message));
        }

        #[test]
        fn whatever_comes_is_read_or_refused(message in message(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = message.encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = HostMessage::decode(&bytes);
            bytes.truncate(at);
            prop_assert!(HostMessage::decode(&bytes).is_err());
        }
    }

    /// What is said today is read by tomorrow's daemon: these bytes must stay.
    #[test]
    fn the_form_of_messages() {
        let claim = ClaimMessage {
            id: 7,
            what: AskAction::Off,
            target: "t".into(),
            source: Some("s".into()),
            peer: None,
        };
        let of = |message: HostMessage| String::from_utf8(message.encode().unwrap()).unwrap();
        assert_eq!(
            of(HostMessage::Claim(claim.clone())),
            r#"{"v":1,"kind":"claim","id":7,"what":"off","target":"t","source":"s"}"#
        );
        let outcome = AskOutcome::new(Response::Failure, Some("why"));
        assert_eq!(
            of(HostMessage::Finished { id: 7, outcome: outcome.clone() }),
            r#"{"v":1,"kind":"finished","id":7,"outcome":{"response":1,"reason":"why"}}"#
        );
        let asker = Member { node: 2, pid: 99 };
        assert_eq!(
            of(HostMessage::Reply { asker, ask: 3, claim: Some(7), end: AskEnd::Done(outcome) }),
            r#"{"v":1,"kind":"reply","asker":[2,99],"ask":3,"claim":7,"end":{"done":{"response":1,"reason":"why"}}}"#
        );
        assert_eq!(
            of(HostMessage::Reply { asker, ask: 3, claim: None, end: AskEnd::NotHere }),
            r#"{"v":1,"kind":"reply","asker":[2,99],"ask":3,"claim":null,"end":"not_here"}"#
        );
        let domain = PublishedDomain { uuid: "u".into(), name: "n".into(), state: PublishedState::Rests };
        assert_eq!(
            of(HostMessage::Inventory { first: true, last: false, domains: vec![domain] }),
            r#"{"v":1,"kind":"inventory","first":true,"last":false,"domains":[{"uuid":"u","name":"n","state":"rests"}]}"#
        );
        assert_eq!(
            of(HostMessage::Sync(StateSync {
                n: 1,
                in_flight: vec![InFlightClaim { claim, seen_off: true }],
                ..StateSync::default()
            })),
            r#"{"v":1,"kind":"sync","n":1,"in_flight":[{"claim":{"id":7,"what":"off","target":"t","source":"s"},"seen_off":true}],"waiting":[],"acting":[]}"#
        );
    }

    #[test]
    fn what_is_no_message_says_why() {
        let why = |bytes: &str| HostMessage::decode(bytes.as_bytes()).unwrap_err().to_string();
        assert!(why("junk").starts_with("not a message: "));
        assert_eq!(
            why(r#"{"v":2,"kind":"claim"}"#),
            "a message of version 2; this daemon knows 1 (update it)"
        );
        assert!(
            why(r#"{"v":1,"kind":"claim"}"#)
                .starts_with("a message of kind `claim` that does not read: missing")
        );
        let long = format!(r#"{{"v":1,"kind":"domain_gone","uuid":"{}"}}"#, "x".repeat(ID_LIMIT + 1));
        assert!(why(&long).contains("a text of 129 bytes; 128 are the most"));
        assert!(why(&" ".repeat(MESSAGE_LIMIT + 1)).starts_with("a message of 524289 bytes"));
        assert!(
            why(r#"{"v":1,"kind":"finished","id":1,"outcome":{"response":9}}"#).contains("9 is no response")
        );
        assert_eq!(HostMessage::decode(br#"{"v":1,"kind":"news","claim":[]}"#).unwrap(), None);
    }

    #[test]
    fn inventories_come_in_parts() {
        let domains: Vec<_> = (0..INVENTORY_PART * 2 + 1)
            .map(|it| PublishedDomain {
                uuid: it.to_string(),
                name: "n".repeat(NAME_LIMIT),
                state: PublishedState::On,
            })
            .collect();
        let (mut read, mut firsts, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
        for message in HostMessage::inventory(&domains) {
            let bytes = message.encode().unwrap();
            let Some(HostMessage::Inventory { first, last, domains }) = HostMessage::decode(&bytes).unwrap()
            else {
                panic!("something else")
            };
            firsts.push(first);
            lasts.push(last);
            read.extend(domains);
        }
        assert_eq!((firsts, lasts), (vec![true, false, false], vec![false, false, true]));
        assert_eq!(read, domains);
        let none = HostMessage::Inventory { first: true, last: true, domains: Vec::new() };
        assert_eq!(HostMessage::inventory(&[]), [none]);
    }
}
