// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a multicast request has no answer.

use std::io;
use std::net::SocketAddr;

use rand::rngs::SysError;

use crate::attempts::{Attempts, CalledBack};
use crate::exchange::Refusal;
use crate::verdict::Cause;
use crate::words::OLD_HOST;

/// Why there is no answer; the texts say what to look at next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MulticastFailure {
    /// The system gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] SysError),
    /// No port to be called back on.
    #[error("cannot listen for the call-back: {0}")]
    Listen(io::Error),
    /// The loop's own system call failed.
    #[error("cannot wait for the host: {0}")]
    Wait(io::Error),
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
    #[error("Timed out waiting for response{}", tried(.0))]
    TimedOut(Box<Attempts>),
}

/// What was tried until time ran out, in words.
fn tried(attempts: &Attempts) -> String {
    let (group, port) = (attempts.group.ip(), attempts.group.port());
    let mut text = format!(" to {}, sent to {group} port {port}/udp", attempts.request);
    let _ = attempts.facts(&mut text);
    text.push_str(&format!("\n  {}; {}", attempts.key, Cause::of(attempts).in_short()));
    if attempts.sealed {
        text.push_str(&format!("; {OLD_HOST}"));
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempts::CameTo;

    #[test]
    fn ten_lines_at_most() {
        let new = || Attempts::new("off vm1".to_owned(), "225.0.0.12:1229".parse().unwrap(), 1230);
        let text = MulticastFailure::TimedOut(Box::new(new())).to_string();
        assert!(text.starts_with("Timed out waiting for response to off vm1"), "{text}");
        assert!(text.contains("no address to send from"), "{text}");
        let mut attempts = new();
        for n in 0..100_u8 {
            attempts.source("eth0", [10, 0, 0, n].into()).sent += 1;
            for port in [9, 10] {
                attempts.called_back(([10, 0, 1, n], port).into(), "closed".to_owned(), CameTo::Other);
            }
        }
        let text = MulticastFailure::TimedOut(Box::new(attempts)).to_string();
        assert!(text.lines().count() <= 10, "{text}");
        assert!(text.contains("call-back from 10.0.1.0: closed (2 times)"), "{text}");
    }
}
