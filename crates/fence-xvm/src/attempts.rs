// SPDX-License-Identifier: GPL-2.0-or-later
//! Record of one multicast request: addresses that it was sent from, and peers that called back.
//!
//! Owns the counts of one request. Runs on the agent's only thread, does no I/O. Must never grow with the
//! number of peers: every list has a limit.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::exchange::{AwaitedStep, ExchangeError};
use crate::kinds::HostKinds;

/// Everything that was tried until time ran out.
#[derive(Debug)]
pub(crate) struct MulticastAttempts {
    /// Request in words.
    pub(crate) request: String,
    /// Group and port that the request was sent to.
    pub(crate) group: SocketAddr,
    /// Ports on which the call-back was awaited.
    pub(crate) call_back_ports: Vec<u16>,
    /// Addresses that datagrams were sent from.
    pub(crate) senders: Vec<SenderAddress>,
    /// Peers that called back.
    pub(crate) call_backs: Vec<CallBackOutcome>,
    /// Hosts that hold the key and answered with a failure or a denial.
    pub(crate) failures: Vec<HostFailure>,
    /// Key and its use, in words.
    pub(crate) key: String,
    /// True if the request was sealed.
    pub(crate) sealed: bool,
    /// Peers that tried to connect to the call-back port, also where this guest's firewall kept them out;
    /// none where nothing watched for them.
    pub(crate) watched_calls: Option<Vec<WatchedPeer>>,
    /// Peers whose connection was accepted, or waited for that when the wait was over.
    pub(crate) came: Vec<IpAddr>,
    /// Kinds of the hosts that hold the key, as far as they showed.
    pub(crate) kinds: HostKinds,
}

/// Address that datagrams were sent from.
#[derive(Debug)]
pub(crate) struct SenderAddress {
    /// Name of the interface.
    pub(crate) interface: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// Number of datagrams that the kernel took.
    pub(crate) sent: u32,
    /// Number of datagrams that the kernel refused.
    pub(crate) failed: u32,
    /// Reason of the latest refusal.
    pub(crate) error: Option<io::Error>,
}

/// Call-back that gave no answer.
#[derive(Debug)]
pub(crate) struct CallBackOutcome {
    /// Address of the peer.
    pub(crate) from: SocketAddr,
    /// Outcome in words.
    pub(crate) outcome: String,
    /// Outcome to draw conclusions from.
    pub(crate) progress: StreamProgress,
    /// Number of call-backs from this peer with the same outcome.
    pub(crate) times: u32,
}

/// Host that answered with a failure or a denial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HostFailure {
    /// Address of the host.
    pub(crate) from: IpAddr,
    /// True if the host does not let this guest do that.
    pub(crate) is_denied: bool,
    /// Reason of the host; none where the request did not want it, or the host tells none.
    pub(crate) reason: Option<String>,
}

/// Peer that tried to connect to the call-back port.
#[derive(Debug)]
pub(crate) struct WatchedPeer {
    /// Address of the peer.
    pub(crate) address: IpAddr,
    /// Port that it tried.
    pub(crate) port: u16,
    /// Number of packets with which it tried.
    pub(crate) packets: u32,
    /// Moment of the first one.
    pub(crate) first: Instant,
}

/// Last step that a stream with a host reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StreamProgress {
    /// The stream gave an answer.
    Answered,
    /// The stream ended with this error.
    Failed(ExchangeError),
    /// The stream waited for this step when time ran out.
    Waited(AwaitedStep),
    /// Only the words beside it say more.
    Other,
}

const SENDERS_SHOWN: usize = 3;
const CALL_BACKS_SHOWN: usize = 3;

impl MulticastAttempts {
    /// Returns the record of a request that was not sent yet.
    pub(crate) fn new(request: String, group: SocketAddr) -> Self {
        let (senders, call_backs, call_back_ports) = (Vec::new(), Vec::new(), Vec::new());
        let (key, failures) = (String::new(), Vec::new());
        let (sealed, watched_calls, came) = (false, None, Vec::new());
        let kinds = HostKinds::default();
        Self {
            request,
            group,
            call_back_ports,
            senders,
            call_backs,
            failures,
            key,
            sealed,
            watched_calls,
            came,
            kinds,
        }
    }

    /// Returns the entry of this address, made if it is new.
    pub(crate) fn sender_mut(&mut self, interface: &str, address: IpAddr) -> &mut SenderAddress {
        let known = self.senders.iter().position(|it| it.address == address && it.interface == interface);
        let index = known.unwrap_or_else(|| {
            let interface = interface.to_owned();
            self.senders.push(SenderAddress { interface, address, sent: 0, failed: 0, error: None });
            self.senders.len() - 1
        });
        &mut self.senders[index]
    }

    /// Records a call-back that gave no answer. Equal outcomes of one peer are counted.
    pub(crate) fn record_call_back(&mut self, from: SocketAddr, outcome: String, progress: StreamProgress) {
        const REMEMBERED: usize = 64;
        let is_same = |call: &CallBackOutcome| call.from.ip() == from.ip() && call.outcome == outcome;
        match self.call_backs.iter().position(is_same) {
            Some(known) => self.call_backs[known].times += 1,
            None if self.call_backs.len() < REMEMBERED => {
                self.call_backs.push(CallBackOutcome { from, outcome, progress, times: 1 });
            }
            None => {}
        }
    }

    /// Records a host that answered with a failure or a denial.
    pub(crate) fn record_failure(&mut self, failure: HostFailure) {
        const REMEMBERED: usize = 16;
        if self.failures.len() < REMEMBERED && !self.failures.contains(&failure) {
            self.failures.push(failure);
        }
    }

    /// Returns the addresses of the hosts that answered.
    pub(crate) fn answered(&self) -> Vec<IpAddr> {
        let answered = self.call_backs.iter().filter(|it| it.progress == StreamProgress::Answered);
        answered.map(|it| it.from.ip()).collect()
    }

    /// Returns a host that was seen to call back, and that never came through.
    pub(crate) fn kept_out(&self) -> Option<&WatchedPeer> {
        let has_come = |it: &WatchedPeer| self.came.contains(&it.address);
        self.watched_calls.iter().flatten().find(|it| !has_come(it))
    }

    /// Forgets the peers that tried to connect just before the wait was over: a connection that is begun is
    /// no sign of a firewall yet.
    pub(crate) fn forget_last_calls(&mut self, now: Instant) {
        const TIME_TO_COME: Duration = Duration::from_millis(500);
        let is_old = |it: &WatchedPeer| now.saturating_duration_since(it.first) >= TIME_TO_COME;
        self.watched_calls.iter_mut().for_each(|calls| calls.retain(is_old));
    }

    /// Returns whether any datagram left.
    pub(crate) fn has_sent(&self) -> bool {
        self.senders.iter().any(|it| it.sent > 0)
    }

    /// Returns whether others had all ports for the call-back until the time was over.
    pub(crate) fn waited_in_vain(&self) -> bool {
        self.call_back_ports.is_empty() && self.senders.is_empty()
    }

    /// Records a peer whose connection is here.
    pub(crate) fn record_arrival(&mut self, from: IpAddr) {
        const REMEMBERED: usize = 64;
        if self.came.len() < REMEMBERED && !self.came.contains(&from) {
            self.came.push(from);
        }
    }

    /// Records a peer that tried to connect.
    pub(crate) fn record_watched_call(&mut self, from: IpAddr, port: u16, now: Instant) {
        const REMEMBERED: usize = 16;
        let calls = self.watched_calls.get_or_insert_default();
        match calls.iter().position(|peer| (peer.address, peer.port) == (from, port)) {
            Some(known) => calls[known].packets += 1,
            None if calls.len() < REMEMBERED => {
                calls.push(WatchedPeer { address: from, port, packets: 1, first: now });
            }
            None => {}
        }
    }

    /// Writes what was sent and who called back, in lines of their own.
    pub(crate) fn write_facts(&self, f: &mut impl fmt::Write) -> fmt::Result {
        let wanted = self.group.port();
        match self.call_back_ports[..] {
            [] => write!(f, ", not sent: other agents or programs used port {wanted}/tcp all the time")?,
            [port] if port == wanted => write!(f, ", call-back awaited on port {port}/tcp")?,
            _ => {
                let ports: Vec<String> = self.call_back_ports.iter().map(u16::to_string).collect();
                write!(f, ", call-back awaited on ports {}/tcp ({wanted} was in use)", ports.join(", "))?;
            }
        }
        if self.senders.is_empty() && !self.waited_in_vain() {
            write!(f, "\n  no address to send from")?;
        }
        for sender in self.senders.iter().take(SENDERS_SHOWN) {
            write!(f, "\n  {} {}: {} sent", sender.interface, sender.address, sender.sent)?;
            if let Some(error) = &sender.error {
                write!(f, ", {} not sent: {error}", sender.failed)?;
            }
        }
        write_rest(f, "addresses", self.senders.len(), SENDERS_SHOWN)?;
        for call in self.call_backs.iter().take(CALL_BACKS_SHOWN) {
            write!(f, "\n  call-back from {}: {}", call.from.ip(), call.outcome)?;
            if call.times > 1 {
                write!(f, " ({} times)", call.times)?;
            }
        }
        write_rest(f, "call-backs", self.call_backs.len(), CALL_BACKS_SHOWN)
    }
}

/// Writes how many of a list are not shown.
fn write_rest(f: &mut impl fmt::Write, name: &str, all: usize, shown: usize) -> fmt::Result {
    if all > shown { write!(f, "\n  and {} more {name}", all - shown) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_firewall_keeps_out_who_had_time_to_come_and_did_not() {
        let (start, port) = (Instant::now(), 1229);
        let hosts: Vec<_> = (1..=3).map(|it| IpAddr::from([10, 0, 0, it])).collect();
        let group = SocketAddr::new(Ipv4Addr::new(225, 0, 0, 12).into(), port);
        let mut attempts = MulticastAttempts::new(String::new(), group);
        // The first came; the second is kept out; the third began just now.
        for (host, at) in hosts.iter().zip([0, 0, 1900]) {
            attempts.record_watched_call(*host, port, start + Duration::from_millis(at));
        }
        attempts.record_arrival(hosts[0]);
        attempts.forget_last_calls(start + Duration::from_secs(2));
        assert_eq!(attempts.kept_out().map(|it| it.address), Some(hosts[1]));
        attempts.record_arrival(hosts[1]);
        assert!(attempts.kept_out().is_none());
    }
}
