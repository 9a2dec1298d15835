// SPDX-License-Identifier: GPL-2.0-or-later
//! Reasons why a multicast request has no answer.
//!
//! Owns their texts. Runs on the agent's only thread, does no I/O. Must never print more than ten lines: the
//! texts end up in the logs of cluster managers.

use std::io;
use std::net::SocketAddr;

use rand::rngs::SysError;

use crate::attempts::{CallBackOutcome, MulticastAttempts};
use crate::exchange::ExchangeError;
use crate::verdict::ProbableCause;
use crate::words::CLASSIC_HOST_HINT;

/// Reason why there is no answer. The texts say what to look at next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MulticastFailure {
    /// The kernel gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] SysError),
    /// There is no port for the call-back.
    #[error("cannot listen for the call-back: {0}")]
    Listen(io::Error),
    /// The use of a port cannot be recorded.
    #[error("cannot record which port is in use: {0}")]
    Record(io::Error),
    /// A system call of the agent's own loop failed.
    #[error("cannot wait for the host: {0}")]
    Poll(io::Error),
    /// The host's answer is not valid.
    #[error("no answer from {from}: {error}")]
    Failed {
        /// Address of the host.
        from: SocketAddr,
        /// Error of the exchange.
        error: ExchangeError,
    },
    /// Some proven hosts did not list their domains, or not all of them.
    #[error("the list is not complete{}", describe_missing(.0))]
    Incomplete(Vec<CallBackOutcome>),
    /// The rows of the list cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// No host answered in time.
    #[error("Timed out waiting for response{}", describe_attempts(.0))]
    TimedOut(Box<MulticastAttempts>),
}

/// Describes the request, everything that was tried, and what to check.
fn describe_attempts(attempts: &MulticastAttempts) -> String {
    let (group, port) = (attempts.group.ip(), attempts.group.port());
    let mut text = format!(" to {}, sent to {group} port {port}/udp", attempts.request);
    let _ = attempts.write_facts(&mut text);
    text.push_str(&format!(
        "\n  {}; {}",
        attempts.key,
        ProbableCause::from_attempts(attempts).short_advice()
    ));
    if attempts.sealed {
        text.push_str(&format!("; {CLASSIC_HOST_HINT}"));
    }
    text
}

/// Returns a line for each host whose list is missing.
fn describe_missing(hosts: &[CallBackOutcome]) -> String {
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
    use crate::attempts::StreamProgress;

    #[test]
    fn ten_lines_at_most() {
        let new = || MulticastAttempts::new("off vm1".to_owned(), "225.0.0.12:1229".parse().unwrap());
        let text = MulticastFailure::TimedOut(Box::new(new())).to_string();
        assert!(text.starts_with("Timed out waiting for response to off vm1"), "{text}");
        assert!(text.contains("used port 1229/tcp all the time"), "{text}");
        assert!(text.contains("end an agent that hangs") && !text.contains("addresses"), "{text}");
        let mut attempts = new();
        attempts.call_back_ports.push(1229);
        let text = MulticastFailure::TimedOut(Box::new(attempts)).to_string();
        assert!(text.contains("no address to send from"), "{text}");
        assert!(text.contains("look at this guest's addresses"), "{text}");
        let mut attempts = new();
        for n in 0..100_u8 {
            attempts.sender_mut("eth0", [10, 0, 0, n].into()).sent += 1;
            for port in [9, 10] {
                attempts.record_call_back(
                    ([10, 0, 1, n], port).into(),
                    "closed".to_owned(),
                    StreamProgress::Other,
                );
            }
        }
        let text = MulticastFailure::TimedOut(Box::new(attempts)).to_string();
        assert!(text.lines().count() <= 10, "{text}");
        assert!(text.contains("call-back from 10.0.1.0: closed (2 times)"), "{text}");
    }
}
