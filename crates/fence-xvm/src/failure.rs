// SPDX-License-Identifier: GPL-2.0-or-later
//! Why there is no answer.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use fence_cli::key_file::KeyFileError;
use fence_wire::{Key, escaped};

use crate::exchange::{Refusal, Wait};
use crate::line::LineFailure;
use crate::plan::Plan;
use crate::stream::StreamFailure;
use crate::verdict::Cause;

/// Why there is no answer. All mean exit code 1; the texts say what to look at next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The system gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] rand::rngs::SysError),
    /// No port to be called back on.
    #[error("cannot listen for the call-back: {0}")]
    Listen(io::Error),
    /// The loop's own system call failed.
    #[error("cannot wait for the host: {0}")]
    Wait(io::Error),
    /// A stream gave no answer.
    #[error("{0}")]
    Stream(Box<StreamFailure>),
    /// A serial line or VM channel gave no answer.
    #[error("{0}")]
    Line(Box<LineFailure>),
    /// The host's answer is none.
    #[error("no answer from {from}: {refusal}")]
    Refused {
        /// The host.
        from: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// Hosts that were to list their domains did not, or not all of them.
    #[error("the list is not complete{}", missing(.0))]
    Incomplete(Vec<CalledBack>),
    /// The rows cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// Nobody answered in time.
    #[error("Timed out waiting for response{0}")]
    TimedOut(Box<Attempts>),
}

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

/// What to think of when a sealed request has no answer.
pub(crate) const OLD_HOST: &str = "a host of the C programs drops sealed requests (hash hmac-...) as unknown, and \
    without a word: such hosts need hash sha256";

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

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " to {}, sent to {} port {}/udp", self.request, self.group.ip(), self.group.port())?;
        self.facts(f)?;
        write!(f, "\n  {}; {}", self.key, Cause::of(self).in_short())?;
        if self.sealed { write!(f, "; {OLD_HOST}") } else { Ok(()) }
    }
}

/// What is asked for.
pub(crate) fn request_in_words(plan: &Plan) -> String {
    format!("{} {}", plan.action, escaped(plan.target.as_str())).trim_end().to_owned()
}

/// Whether what is asked goes sealed.
pub(crate) fn is_sealed(plan: &Plan) -> bool {
    plan.hash.sealed().is_some()
}

/// The key and how it is used.
pub(crate) fn key_in_words(plan: &Plan, key: Option<&Key>) -> String {
    match key {
        Some(key) => {
            let (file, fingerprint, hash) = (plan.key_file.display(), key.fingerprint(), plan.hash);
            if is_sealed(plan) {
                format!("key {file} (fingerprint {fingerprint}, hash {hash}, sealed)")
            } else {
                format!("key {file} (fingerprint {fingerprint}, hash {hash}, auth {})", plan.auth)
            }
        }
        None => "no key (hash none, auth none)".to_owned(),
    }
}

/// A line for each host whose list is missing.
fn missing(hosts: &[CalledBack]) -> String {
    const SHOWN: usize = 8;
    let mut text: String =
        hosts.iter().take(SHOWN).map(|host| format!("\n  {}: {}", host.from.ip(), host.outcome)).collect();
    if hosts.len() > SHOWN {
        text.push_str(&format!("\n  and {} more hosts", hosts.len() - SHOWN));
    }
    text
}

fn more(f: &mut impl fmt::Write, what: &str, all: usize, shown: usize) -> fmt::Result {
    if all > shown { write!(f, "\n  and {} more {what}", all - shown) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_at_most() {
        let new = || Attempts::new("off vm1".to_owned(), "225.0.0.12:1229".parse().unwrap(), 1230);
        let text = Failure::TimedOut(Box::new(new())).to_string();
        assert!(text.starts_with("Timed out waiting for response to off vm1"), "{text}");
        assert!(text.contains("no address to send from"), "{text}");
        let mut attempts = new();
        for n in 0..100_u8 {
            attempts.source("eth0", [10, 0, 0, n].into()).sent += 1;
            for port in [9, 10] {
                attempts.called_back(([10, 0, 1, n], port).into(), "closed".to_owned(), CameTo::Other);
            }
        }
        let text = attempts.to_string();
        assert!(text.lines().count() <= 10, "{text}");
        assert!(text.contains("call-back from 10.0.1.0: closed (2 times)"), "{text}");
    }
}
