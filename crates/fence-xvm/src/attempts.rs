// SPDX-License-Identifier: GPL-2.0-or-later
//! What was tried for a multicast request, and who called back.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::exchange::{Refusal, Wait};

/// What was tried until time ran out. Shown in at most ten lines, the first of them the headline.
#[derive(Debug)]
pub(crate) struct Attempts {
    /// What was asked, in words.
    pub(crate) request: String,
    /// Where it was sent.
    pub(crate) group: SocketAddr,
    /// Where the call-back was awaited.
    pub(crate) call_back_port: u16,
    /// From which addresses.
    pub(crate) sources: Vec<Source>,
    /// Who called back.
    pub(crate) call_backs: Vec<CalledBack>,
    /// The key and how it was used, in words.
    pub(crate) key: String,
    /// Whether the request was sealed.
    pub(crate) sealed: bool,
    /// Who was seen to try to connect to the call-back's port, and how often, whatever this machine's firewall did to
    /// it; none where nobody looked.
    pub(crate) seen: Option<Vec<(IpAddr, u32)>>,
}

/// An address that requests were sent from.
#[derive(Debug)]
pub(crate) struct Source {
    /// The interface's name.
    pub(crate) interface: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// Datagrams that the kernel took.
    pub(crate) sent: u32,
    /// Datagrams that it did not take.
    pub(crate) failed: u32,
    /// Why not, the last time.
    pub(crate) error: Option<io::Error>,
}

/// A connection that gave no answer.
#[derive(Debug)]
pub(crate) struct CalledBack {
    /// Who.
    pub(crate) from: SocketAddr,
    /// What was wrong, in words.
    pub(crate) outcome: String,
    /// The same, to draw conclusions from.
    pub(crate) came_to: CameTo,
    /// How often the same came from there.
    pub(crate) times: u32,
}

/// How far a connection came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CameTo {
    /// To an answer.
    Answer,
    /// To this end.
    Refused(Refusal),
    /// To this, when time ran out.
    Waited(Wait),
    /// What only the words say.
    Other,
}

const SOURCES_SHOWN: usize = 3;
const CALL_BACKS_SHOWN: usize = 3;

impl Attempts {
    /// Nothing tried yet.
    pub(crate) fn new(request: String, group: SocketAddr, call_back_port: u16) -> Self {
        let (sources, call_backs, key) = (Vec::new(), Vec::new(), String::new());
        Self { request, group, call_back_port, sources, call_backs, key, sealed: false, seen: None }
    }

    /// The source with this address, made when it is new.
    pub(crate) fn source(&mut self, interface: &str, address: IpAddr) -> &mut Source {
        let known = self.sources.iter().position(|s| s.address == address && s.interface == interface);
        let place = known.unwrap_or_else(|| {
            let interface = interface.to_owned();
            self.sources.push(Source { interface, address, sent: 0, failed: 0, error: None });
            self.sources.len() - 1
        });
        &mut self.sources[place]
    }

    /// Remembers a connection that gave no answer; the same from the same peer is counted.
    pub(crate) fn called_back(&mut self, from: SocketAddr, outcome: String, came_to: CameTo) {
        const REMEMBERED: usize = 64;
        let same = |c: &CalledBack| c.from.ip() == from.ip() && c.outcome == outcome;
        match self.call_backs.iter().position(same) {
            Some(known) => self.call_backs[known].times += 1,
            None if self.call_backs.len() < REMEMBERED => {
                self.call_backs.push(CalledBack { from, outcome, came_to, times: 1 });
            }
            None => {}
        }
    }

    /// Whether any datagram left.
    pub(crate) fn sent_any(&self) -> bool {
        self.sources.iter().any(|s| s.sent > 0)
    }

    /// Remembers who was seen to try to connect.
    pub(crate) fn saw(&mut self, from: IpAddr) {
        const REMEMBERED: usize = 16;
        let seen = self.seen.get_or_insert_default();
        match seen.iter().position(|(known, _)| *known == from) {
            Some(known) => seen[known].1 += 1,
            None if seen.len() < REMEMBERED => seen.push((from, 1)),
            None => {}
        }
    }

    /// Line by line: what was sent, who called back.
    pub(crate) fn facts(&self, f: &mut impl fmt::Write) -> fmt::Result {
        write!(f, ", call-back awaited on port {}/tcp", self.call_back_port)?;
        if self.call_back_port != self.group.port() {
            write!(f, " ({} is in use, or was left without an answer lately)", self.group.port())?;
        }
        if self.sources.is_empty() {
            write!(f, "\n  no address to send from")?;
        }
        for source in self.sources.iter().take(SOURCES_SHOWN) {
            write!(f, "\n  {} {}: {} sent", source.interface, source.address, source.sent)?;
            if let Some(error) = &source.error {
                write!(f, ", {} not sent: {error}", source.failed)?;
            }
        }
        more(f, "addresses", self.sources.len(), SOURCES_SHOWN)?;
        for call in self.call_backs.iter().take(CALL_BACKS_SHOWN) {
            write!(f, "\n  call-back from {}: {}", call.from.ip(), call.outcome)?;
            if call.times > 1 {
                write!(f, " ({} times)", call.times)?;
            }
        }
        more(f, "call-backs", self.call_backs.len(), CALL_BACKS_SHOWN)
    }
}

fn more(f: &mut impl fmt::Write, what: &str, all: usize, shown: usize) -> fmt::Result {
    if all > shown { write!(f, "\n  and {} more {what}", all - shown) } else { Ok(()) }
}
