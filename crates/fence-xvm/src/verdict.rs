// SPDX-License-Identifier: GPL-2.0-or-later
//! From what was seen to the most probable cause. Pure: no sockets, no clock.
//!
//! It must name one cause only where what was seen leaves no other; else it names them all, and by which line of the
//! host's log they are told apart.

use std::net::IpAddr;

use fence_wire::{HashType, ProofError};

use crate::attempts::{Attempts, CameTo};
use crate::exchange::{Refusal, Wait};

/// Why no proper answer came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// No datagram left: no address, or the kernel refused each.
    NotSent {
        /// A firewall of this guest was it.
        forbidden: bool,
    },
    /// Nobody called back, and as far as could be seen nobody tried.
    Silence {
        /// The one address that packets left from, where there is one beside loopback.
        from: Option<IpAddr>,
        /// Whether somebody would have been seen who tried.
        watched: bool,
    },
    /// Somebody tried to call back, and the connection did not come about.
    Firewall {
        /// Who.
        host: IpAddr,
        /// To which port.
        port: u16,
    },
    /// The host takes requests with this hash, and not those with a weaker one.
    HashTooWeak(HashType),
    /// The host takes classic requests, and no sealed ones.
    OldHost(HashType),
    /// The host has this auth type.
    OtherAuth(HashType),
    /// The host wants a challenge and gets none.
    NoAuth,
    /// Who called back does not hold the key.
    OtherKey,
    /// The host, reached by a stream, closed it without a proof.
    Dropped {
        /// Whether other hashes were tried as well.
        tried_hashes: bool,
    },
    /// Proven, and holds the request back.
    Held,
    /// Has our proof and does not answer.
    NoResponse,
    /// Closed when it had our proof.
    ProofRefused,
    /// Said: permission denied.
    Denied,
    /// Said failure when it was asked whether it can work.
    Backend,
    /// Can work, and said failure to the status of one domain.
    Domain,
    /// Said failure.
    Failed,
    /// Something rare; the words are beside it.
    Odd,
}

/// Lines of the host's log, each with what it means.
type Lines = &'static [(&'static str, &'static str)];

const KEY_LINE: (&str, &str) = (
    "does not fit: another key on the sender's side",
    "this guest and the host have different keys: compare the fingerprints, copy the host's key here",
);
const HASH_LINE: (&str, &str) =
    ("is weaker than", "the host asks for a stronger hash: use the one that the line names (-c, hash=)");
const REPLAY_LINE: (&str, &str) = (
    "the very same packet was here before",
    "a packet came twice: a loop in the network, or somebody replays it",
);

impl Cause {
    /// Of a multicast request that no host answered.
    pub(crate) fn of(attempts: &Attempts) -> Self {
        if !attempts.sent_any() {
            let forbidden = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
            let errors = || attempts.sources.iter().filter_map(|it| it.error.as_ref());
            return Self::NotSent { forbidden: errors().any(forbidden) };
        }
        let known: Vec<_> =
            attempts.call_backs.iter().map(|it| Self::of_connection(it.came_to, false)).collect();
        // A stranger that connected as well says nothing about the host.
        let told = known.iter().find(|it| !matches!(it, Self::OtherKey | Self::Odd)).or(known.first());
        match (told, attempts.seen.as_deref()) {
            (Some(cause), _) => cause.clone(),
            (None, Some([(host, _), ..])) => Self::Firewall { host: *host, port: attempts.call_back_port },
            (None, seen) => {
                let mut outside =
                    attempts.sources.iter().filter(|it| it.sent > 0 && !it.address.is_loopback());
                let from = outside.next().filter(|_| outside.next().is_none()).map(|it| it.address);
                Self::Silence { from, watched: seen.is_some() }
            }
        }
    }

    /// Of a connection that gave no answer. A stream is one that we made.
    pub(crate) fn of_connection(came_to: CameTo, is_stream: bool) -> Self {
        match came_to {
            CameTo::Refused(Refusal::Proof(ProofError::OtherAuth(theirs))) => Self::OtherAuth(theirs),
            CameTo::Refused(Refusal::ResponseUnproven) => Self::OtherAuth(HashType::None),
            CameTo::Refused(Refusal::Proof(ProofError::WrongAnswer | ProofError::WrongSealedAnswer)) => {
                Self::OtherKey
            }
            CameTo::Refused(Refusal::ClosedUnproven) if is_stream => Self::Dropped { tried_hashes: false },
            CameTo::Refused(Refusal::ClosedUnproven) | CameTo::Waited(Wait::Proof) => Self::OtherKey,
            CameTo::Waited(Wait::Challenge) | CameTo::Refused(Refusal::ClosedProven) => Self::Held,
            CameTo::Waited(Wait::Response | Wait::List | Wait::Seal) => Self::NoResponse,
            CameTo::Refused(Refusal::ClosedUnanswered) => Self::ProofRefused,
            _ => Self::Odd,
        }
    }

    /// The same, when this guest gave no proof of the key and asked for none.
    pub(crate) fn without_challenge(self) -> Self {
        match self {
            Self::NoResponse | Self::ProofRefused => Self::NoAuth,
            other => other,
        }
    }

    /// Whether another hash may be the cure.
    pub(crate) fn may_be_the_hash(&self) -> bool {
        matches!(self, Self::Silence { .. } | Self::Dropped { .. })
    }

    /// What to check, in a few words, after an ordinary time-out.
    pub(crate) fn in_short(&self) -> String {
        match self {
            Self::NotSent { .. } => {
                "nothing could be sent: look at this guest's addresses, routes, interfaces and firewall".to_owned()
            }
            Self::Silence { .. } => {
                "no host called back: is fence_virtd running, does it listen on this guest's network, same multicast \
                 address and port, same key (its log says when not), does the firewall here let that TCP port in? The \
                 same command with --diagnose and without -o looks closer"
                    .to_owned()
            }
            Self::OtherKey | Self::Odd => {
                "a host called back: do key and auth type agree with the host's (compare the fingerprint in its log)?"
                    .to_owned()
            }
            other => format!("{}: {}", other.what(), other.next()),
        }
    }

    /// The cause, in one sentence.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::NotSent { forbidden: true } => "this guest's own firewall forbids to send the request".to_owned(),
            Self::NotSent { forbidden: false } => "nothing could be sent".to_owned(),
            Self::Silence { watched: true, .. } => {
                "no host took the request: none called back, and nothing of a call-back reached this guest".to_owned()
            }
            Self::Silence { watched: false, .. } => {
                "no host called back, or this guest's firewall kept the call-back out (that can be seen by root only)"
                    .to_owned()
            }
            Self::Firewall { host, port } => {
                format!("{host} called back to port {port}/tcp, and this guest's firewall did not let it in")
            }
            Self::HashTooWeak(_) => {
                "the host asks for a stronger hash than this guest uses; the key is the same".to_owned()
            }
            Self::OldHost(_) => {
                "the host takes no sealed requests: a fence_virtd of the C programs; the key is the same".to_owned()
            }
            Self::OtherAuth(HashType::None) => {
                "the host is set to auth none: it answers without proving that it holds the key".to_owned()
            }
            Self::OtherAuth(theirs) => {
                format!("the host has another auth type, {theirs}; the key is the same")
            }
            Self::NoAuth => {
                "the host waits for a challenge, or did not take the request: this guest is set to auth none".to_owned()
            }
            Self::OtherKey => "who called back did not show that it holds this guest's key".to_owned(),
            Self::Dropped { tried_hashes: true } => {
                "the host was reached and dropped the request, whatever its hash: another key, most probably".to_owned()
            }
            Self::Dropped { tried_hashes: false } => {
                "the host was reached and dropped the request: another key, or a hash that is too weak".to_owned()
            }
            Self::Held => {
                "the host holds the same key and has not let the request run: it is busy, or another request is in its \
                 way"
                .to_owned()
            }
            Self::NoResponse => {
                "the host took the request and has not answered: its hypervisor is slow or hangs".to_owned()
            }
            Self::ProofRefused => "the host did not take this guest's proof, or died".to_owned(),
            Self::Denied => {
                "the host's groups do not let this guest fence that domain; key and network are in order".to_owned()
            }
            Self::Backend => {
                "fence_virtd cannot do its work, its hypervisor (libvirt) does not answer it; key and network are in \
                 order"
                    .to_owned()
            }
            Self::Domain => {
                "the host does not know the domain, or cannot tell its state; key, network and hypervisor are in order"
                    .to_owned()
            }
            Self::Failed => "the host does not know the domain, or its hypervisor does not answer".to_owned(),
            Self::Odd => "the answer is none that a host gives".to_owned(),
        }
    }

    /// The next step.
    pub(crate) fn next(&self) -> String {
        match self {
            Self::NotSent { forbidden: true } => {
                "let UDP to the multicast address and port out (nft list ruleset, firewall-cmd --list-all)".to_owned()
            }
            Self::NotSent { forbidden: false } => "look at this guest's addresses and routes: ip addr, ip route".to_owned(),
            Self::Silence { from, .. } => format!(
                "look for lines about {} in the log of fence_virtd on the host (journalctl -u fence_virtd); if there is \
                 none, the datagrams do not arrive: is fence_virtd running, does it listen on the bridge of this guest \
                 (`interface`), same multicast address and port, does the host's firewall let them in, has the bridge's \
                 multicast snooping a querier?",
                from.map_or("this guest's addresses".to_owned(), |it| it.to_string())
            ),
            Self::Firewall { .. } => {
                "let TCP ports 1229 to 1244 in, from the hosts: firewall-cmd --permanent --add-port=1229-1244/tcp && \
                 firewall-cmd --reload"
                    .to_owned()
            }
            Self::HashTooWeak(HashType::HmacSha512) => {
                "ask sealed, with -c hmac-sha256 (hash=hmac-sha256); the host's log names its minimum".to_owned()
            }
            Self::HashTooWeak(hash) => {
                format!("-c {hash} (hash={hash}) is taken; the host's log names its minimum")
            }
            Self::OldHost(hash) => format!(
                "-c {hash} (hash={hash}) is taken; for sealed requests put this project's fence_virtd on the host"
            ),
            Self::OtherAuth(HashType::None) => {
                "set `auth` on the host to this guest's (sha256), rather than this guest to -C none".to_owned()
            }
            Self::OtherAuth(theirs) => {
                format!("use -C {theirs} (auth={theirs}) here, or set `auth` on the host to this guest's")
            }
            Self::NoAuth => "leave -C none (auth=none) out".to_owned(),
            Self::OtherKey | Self::Dropped { .. } => {
                "compare the fingerprints of the key, here and in the host's log".to_owned()
            }
            Self::Held => "ask again later, with a longer -t; the host's log says what runs".to_owned(),
            Self::NoResponse => "look on the host whether virsh list answers".to_owned(),
            Self::ProofRefused => "the host's log says why".to_owned(),
            Self::Denied => {
                "fence_xvm -o list shows the domains that this guest may fence; look at `groups` in the host's \
                 fence_virt.conf: this guest's address and the domain must stand in one group"
                    .to_owned()
            }
            Self::Backend => {
                "look on the host whether libvirt runs (virsh list) and is the one of `uri` in fence_virt.conf".to_owned()
            }
            Self::Domain => {
                "fence_xvm -o list shows the domains that the host knows; is the name right, has it moved to another \
                 host?"
                .to_owned()
            }
            Self::Failed => {
                "ask for the list (-o list), and look on the host whether libvirt runs (virsh list)".to_owned()
            }
            Self::Odd => "is it fence_virtd that answers there? Its log says what it made of the request".to_owned(),
        }
    }

    /// What the host's log says then.
    pub(crate) fn log_lines(&self) -> Lines {
        const CALL_BACK: (&str, &str) = (
            "does not answer; is TCP port",
            "the host's call-back is lost on the way: a firewall of the host, or between",
        );
        const CALL_BACK_REFUSED: (&str, &str) =
            ("can't call the client back", "the host's call-back is refused on the way");
        match self {
            Self::Silence { .. } => &[KEY_LINE, HASH_LINE, CALL_BACK, CALL_BACK_REFUSED, REPLAY_LINE],
            Self::Firewall { .. } => &[
                ("does not answer; is TCP port", "the firewall here drops it"),
                ("can't call the client back", "the firewall here rejects it"),
            ],
            Self::HashTooWeak(_) => &[HASH_LINE],
            Self::Dropped { tried_hashes: true } => &[KEY_LINE, REPLAY_LINE],
            Self::Dropped { tried_hashes: false } => &[KEY_LINE, HASH_LINE, REPLAY_LINE],
            Self::OtherAuth(HashType::None) => &[],
            Self::OtherAuth(_) => &[(
                "the client did not prove that it holds the key",
                "this guest did not like the host's proof",
            )],
            Self::NoAuth => {
                &[("the client sent no challenge", "the host's auth type is not none"), KEY_LINE, HASH_LINE]
            }
            Self::ProofRefused => {
                &[("the client did not prove that it holds the key", "the proof came too late or was wrong")]
            }
            Self::Backend => &[("monitor: ", "why")],
            Self::Failed => &[("can't look for the domain", "libvirt does not answer")],
            Self::NotSent { .. }
            | Self::OldHost(_)
            | Self::OtherKey
            | Self::Held
            | Self::NoResponse
            | Self::Denied
            | Self::Domain
            | Self::Odd => &[],
        }
    }
}
