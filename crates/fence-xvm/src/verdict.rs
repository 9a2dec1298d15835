// SPDX-License-Identifier: GPL-2.0-or-later
//! The most probable cause of a missing answer, derived from what was observed.
//!
//! Owns the causes; `advice` owns their texts. Pure: no sockets, no clock. Must never name one cause where
//! the observations leave another: then the cause covers them all, and its advice names the lines of the
//! host's log that tell them apart.

use std::io::{Error, ErrorKind};
use std::net::IpAddr;

use fence_wire::{Action, FORECAST_UNCERTAIN, HashType, ProofError, Response};

use crate::attempts::{MulticastAttempts, StreamProgress, WatchedPeer};
use crate::exchange::{AwaitedStep, ExchangeError};

/// Most probable cause of a missing answer, by the place where it can be mended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ProbableCause {
    /// Network and firewalls between guest and host.
    Network(NetworkCause),
    /// Key, hash and auth type, in which guest and host must agree.
    Agreement(AgreementCause),
    /// Work of the host: its rules, its hypervisor, its domains.
    Host(HostCause),
}

/// Cause in the network or in a firewall.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NetworkCause {
    /// No datagram left: there is no address, or the kernel refused each.
    NotSent {
        /// True if a firewall of this guest refused them.
        forbidden: bool,
    },
    /// No datagram was tried: others had every port for the call-back until the time was over.
    NoTurn,
    /// No host called back, and the request left by loopback alone: no other interface with an address is up.
    LoopbackAlone,
    /// No host called back, and as far as could be seen none tried.
    Silence {
        /// Address that packets left from; none where it is one of several.
        from: Option<IpAddr>,
        /// True if a host that tried would have been seen.
        watched: bool,
    },
    /// A host tried to call back, and the connection was not established.
    Firewall {
        /// Address of the host.
        host: IpAddr,
        /// Port that the host tried.
        port: u16,
        /// Port that firewalls let in: that of the group.
        wanted: u16,
    },
}

impl NetworkCause {
    /// Cause of a call-back that this guest's firewall kept out. `wanted` is the port of the group.
    pub(crate) fn firewall(peer: &WatchedPeer, wanted: u16) -> Self {
        Self::Firewall { host: peer.address, port: peer.port, wanted }
    }
}

/// Cause in the key, the hash or the auth type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AgreementCause {
    /// The host takes requests with this hash, and none with a weaker one.
    HashTooWeak(HashType),
    /// The host takes classic requests with this hash, and no sealed ones: its call-backs, or how it ended a
    /// stream, showed that it is one of the C programs.
    ClassicHost {
        /// The hash.
        hash: HashType,
        /// Addresses of such hosts; none where there is one host alone.
        hosts: Vec<IpAddr>,
        /// True if it was asked what an action would do: no hash gets an answer to that.
        is_dry_run: bool,
    },
    /// A host took a classic request with this hash, and none answered the sealed one in time.
    SealUnanswered {
        /// Hash of the classic request.
        hash: HashType,
        /// True if a host showed that it is one of this project.
        is_ours: bool,
    },
    /// The host has this auth type.
    OtherAuth(HashType),
    /// The host waits for a challenge and gets none.
    NoAuth,
    /// The peer that called back does not hold the key.
    OtherKey,
    /// The host, reached by a stream, closed the stream without a proof.
    Dropped {
        /// True if other hashes were tried as well.
        tried_hashes: bool,
    },
    /// The host closed the stream after it had our proof.
    ProofRefused,
    /// Something took the connection that this guest opened, and answered as no listener with the key does.
    NoListener,
    /// Something took the connection that this guest opened, and was silent.
    SilentStream,
}

/// Cause at the host, after key, hash and auth type were found to agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum HostCause {
    /// The host is proven and holds the request back.
    Held,
    /// The host has our proof and sends no response.
    NoResponse,
    /// A host answered: permission denied.
    Denied {
        /// Addresses of such hosts; none where there is one host alone.
        hosts: Vec<IpAddr>,
    },
    /// The host answered the question whether it can work with a failure.
    Backend,
    /// The host can work, and answered the status of one domain with a failure.
    Domain,
    /// Several hosts answered the status of one domain with a failure, and one of them can work.
    DomainOfOthers,
    /// The host answered with a failure.
    Failed,
    /// The host told the reason of its failure.
    Told {
        /// Reasons of all hosts that told one.
        reasons: String,
        /// True if a host answered that it can't work at all.
        is_backend: bool,
    },
    /// Hosts told that the domain is on, and no host that answers this guest has it on.
    SilentOwner {
        /// Addresses of the hosts that told the status.
        told: String,
        /// Words of hosts about an off; empty where none says why it would fail.
        words: String,
    },
    /// The host told that it would refuse the action, or that only doing it shows what comes of it.
    WouldFail {
        /// The action.
        action: Action,
        /// Words of all hosts that told theirs.
        words: String,
    },
    /// The host answered the status, as one does that can't tell what an action would do.
    NoForecast {
        /// The action.
        action: Action,
        /// Response to the status.
        status: Response,
    },
    /// Some hosts told that they would refuse the action, and others that may have the domain tell nothing.
    OthersCantSay {
        /// The action.
        action: Action,
        /// Hosts that tell nothing.
        others: UntoldHosts,
        /// Words of the hosts that told theirs.
        words: String,
    },
    /// Something rare; the message beside it says more.
    Odd,
}

/// Hosts that did not tell what an action would do, by what is known of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct UntoldHosts {
    /// Hosts whose call-backs are those of the C programs.
    pub(crate) classic: Vec<IpAddr>,
    /// Hosts that answered the status alone, as an older version does.
    pub(crate) older: Vec<IpAddr>,
    /// Hosts that have not answered. That tells nothing of their kind.
    pub(crate) silent: Vec<IpAddr>,
}

impl UntoldHosts {
    /// Returns whether every host told.
    pub(crate) fn is_empty(&self) -> bool {
        self.classic.is_empty() && self.older.is_empty() && self.silent.is_empty()
    }
}

impl From<NetworkCause> for ProbableCause {
    fn from(cause: NetworkCause) -> Self {
        Self::Network(cause)
    }
}

impl From<AgreementCause> for ProbableCause {
    fn from(cause: AgreementCause) -> Self {
        Self::Agreement(cause)
    }
}

impl From<HostCause> for ProbableCause {
    fn from(cause: HostCause) -> Self {
        Self::Host(cause)
    }
}

impl ProbableCause {
    /// Returns the cause for a multicast request that no host answered.
    pub(crate) fn from_attempts(attempts: &MulticastAttempts) -> Self {
        if attempts.waited_in_vain() {
            return NetworkCause::NoTurn.into();
        }
        if !attempts.has_sent() {
            let is_forbidden = |error: &Error| error.kind() == ErrorKind::PermissionDenied;
            let mut errors = attempts.senders.iter().filter_map(|sender| sender.error.as_ref());
            return NetworkCause::NotSent { forbidden: errors.any(is_forbidden) }.into();
        }
        let causes: Vec<_> =
            attempts.call_backs.iter().map(|call| Self::from_progress(call.progress, false)).collect();
        // An unproven peer that connected as well says nothing about the host.
        let says_something = |cause: &&Self| {
            !matches!(cause, Self::Agreement(AgreementCause::OtherKey) | Self::Host(HostCause::Odd))
        };
        // A proof that was given outweighs a connection that waits for it: the request may have run.
        let first = causes.iter().find(|it| it.may_have_run());
        if let Some(cause) = first.or(causes.iter().find(says_something)).or(causes.first()) {
            return cause.clone();
        }
        if let Some(peer) = attempts.kept_out() {
            return NetworkCause::firewall(peer, attempts.group.port()).into();
        }
        if !attempts.came.is_empty() {
            return AgreementCause::OtherKey.into();
        }
        let mut outside =
            attempts.senders.iter().filter(|sender| sender.sent > 0 && !sender.address.is_loopback());
        if !attempts.senders.iter().any(|sender| !sender.address.is_loopback()) {
            return NetworkCause::LoopbackAlone.into();
        }
        let from = outside.next().filter(|_| outside.next().is_none()).map(|sender| sender.address);
        NetworkCause::Silence { from, watched: attempts.watched_calls.is_some() }.into()
    }

    /// Returns the cause for a connection that gave no answer. `is_stream`: this guest opened the connection.
    pub(crate) fn from_progress(progress: StreamProgress, is_stream: bool) -> Self {
        match progress {
            StreamProgress::Failed(ExchangeError::Proof(ProofError::OtherAuth(auth_of_host))) => {
                AgreementCause::OtherAuth(auth_of_host).into()
            }
            StreamProgress::Failed(ExchangeError::ResponseUnproven) => {
                AgreementCause::OtherAuth(HashType::None).into()
            }
            StreamProgress::Failed(ExchangeError::Proof(
                ProofError::WrongAnswer | ProofError::WrongSealedAnswer,
            )) => if is_stream { AgreementCause::NoListener } else { AgreementCause::OtherKey }.into(),
            StreamProgress::Waited(AwaitedStep::Proof) if is_stream => AgreementCause::SilentStream.into(),
            StreamProgress::Failed(ExchangeError::ClosedUnproven) if is_stream => {
                AgreementCause::Dropped { tried_hashes: false }.into()
            }
            StreamProgress::Failed(ExchangeError::ClosedUnproven)
            | StreamProgress::Waited(AwaitedStep::Proof) => AgreementCause::OtherKey.into(),
            StreamProgress::Waited(AwaitedStep::Challenge)
            | StreamProgress::Failed(ExchangeError::ClosedProven) => HostCause::Held.into(),
            StreamProgress::Waited(AwaitedStep::Response | AwaitedStep::List | AwaitedStep::Seal) => {
                HostCause::NoResponse.into()
            }
            StreamProgress::Failed(ExchangeError::ClosedUnanswered) => AgreementCause::ProofRefused.into(),
            _ => HostCause::Odd.into(),
        }
    }

    /// Returns the cause for a guest that sent no proof of the key and asked for none.
    pub(crate) fn without_challenge(self) -> Self {
        match self {
            Self::Host(HostCause::NoResponse) | Self::Agreement(AgreementCause::ProofRefused) => {
                AgreementCause::NoAuth.into()
            }
            other => other,
        }
    }

    /// Returns whether the proof was given, so that nobody here knows if the request ran.
    pub(crate) fn may_have_run(&self) -> bool {
        matches!(self, Self::Host(HostCause::NoResponse) | Self::Agreement(AgreementCause::ProofRefused))
    }

    /// Returns whether a host told what an action would do.
    pub(crate) fn is_forecast(&self) -> bool {
        matches!(self, Self::Host(HostCause::WouldFail { .. }))
    }

    /// Returns whether a host told that only doing it shows what comes of an action.
    pub(crate) fn is_uncertain(&self) -> bool {
        matches!(self, Self::Host(HostCause::WouldFail { words, .. }) if words.contains(FORECAST_UNCERTAIN))
    }

    /// Returns whether another hash may be the remedy.
    pub(crate) fn may_be_hash(&self) -> bool {
        matches!(
            self,
            Self::Network(NetworkCause::Silence { .. } | NetworkCause::LoopbackAlone)
                | Self::Agreement(AgreementCause::Dropped { .. })
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_proof_is_told_before_a_held_request() {
        for given in [
            StreamProgress::Waited(AwaitedStep::Response),
            StreamProgress::Failed(ExchangeError::ClosedUnanswered),
        ] {
            let mut attempts =
                MulticastAttempts::new("off vm1".to_owned(), "225.0.0.12:1229".parse().unwrap());
            attempts.call_back_ports.push(1229);
            attempts.sender_mut("eth0", [10, 0, 0, 1].into()).sent += 1;
            let held = StreamProgress::Waited(AwaitedStep::Challenge);
            for (port, progress) in [(9, held), (10, given)] {
                attempts.record_call_back(([10, 0, 1, 1], port).into(), format!("{progress:?}"), progress);
            }
            let said = ProbableCause::from_attempts(&attempts).short_advice().into_owned();
            assert!(said.contains("may have been executed, or may still be"), "{said}");
            assert!(!said.contains("has not let the request run"), "{said}");
        }
    }

    #[test]
    fn a_guest_that_has_loopback_alone_is_told_so() {
        let mut attempts = MulticastAttempts::new("off vm1".to_owned(), "225.0.0.12:1229".parse().unwrap());
        attempts.sender_mut("lo", [127, 0, 0, 1].into()).sent += 1;
        let alone = ProbableCause::from_attempts(&attempts);
        assert!(alone.sentence().contains("no network interface is up but lo"), "{}", alone.sentence());
        assert!(alone.short_advice().contains("ip link"), "{}", alone.short_advice());
        attempts.sender_mut("eth0", [10, 0, 0, 1].into()).sent += 1;
        let cause = ProbableCause::from_attempts(&attempts);
        assert!(cause.next_step().contains("about 10.0.0.1 in the log"), "{}", cause.next_step());
        assert!(cause.next_step().contains("fence_virtd --check"), "{}", cause.next_step());
    }
}
