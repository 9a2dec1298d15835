// SPDX-License-Identifier: GPL-2.0-or-later
//! TCP host as the user named it, by address or by name, and its addresses.
//!
//! Owns the resolution of names. A name service has no time limit of its own that fits, so a thread waits for
//! it, and the agent waits for the thread no longer than its deadline. Must be used before the agent is
//! confined: nothing can be looked up afterwards.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;

use crate::deadline::Deadline;

/// Largest number of addresses of one host that are tried.
const MAX_ADDRESSES: usize = 8;
/// Longest host name in bytes.
const NAME_MAX: usize = 253;

/// IP address or name of a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostName {
    /// IP address.
    Address(IpAddr),
    /// Name that a name service knows.
    Name(String),
}

/// TCP host and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpHost {
    /// Address or name.
    pub name: HostName,
    /// Port.
    pub port: u16,
}

/// Error for a text that is neither an IP address nor a host name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("neither an IP address nor a host name")]
pub struct HostNameError;

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_'))
        };
        let labels: Vec<_> = text.strip_suffix('.').unwrap_or(text).split('.').collect();
        // A mistyped address is no name: name services would read "10.1" as an address.
        let is_number = labels.last().is_none_or(|it| it.bytes().all(|digit| digit.is_ascii_digit()));
        if text.len() > NAME_MAX || is_number || !labels.into_iter().all(is_label) {
            return Err(HostNameError);
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl TcpHost {
    /// Returns the addresses of the host, in the order in which they are tried.
    ///
    /// # Errors
    /// `TimedOut`, or the error of the name service.
    pub(crate) fn resolve(&self, until: Deadline) -> io::Result<Vec<SocketAddr>> {
        let port = self.port;
        let name = match &self.name {
            HostName::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
            HostName::Name(name) => name.clone(),
        };
        let within = until.remaining_or_timed_out()?;
        let (sender, receiver) = sync_channel(1);
        thread::Builder::new().spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs();
            let _ = sender.send(found.map(|it| it.take(MAX_ADDRESSES).collect::<Vec<_>>()));
        })?;
        match receiver.recv_timeout(within) {
            Ok(Ok(addresses)) if addresses.is_empty() => Err(io::Error::other("the name has no address")),
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the name service failed")),
        }
    }
}

impl fmt::Display for TcpHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            HostName::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            HostName::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn addresses_and_names() {
        let is_name = |text: &str| matches!(text.parse(), Ok(HostName::Name(name)) if name == text);
        for name in
            ["localhost", "host1", "host1.example.com", "host1.example.com.", "kvm_1", "1host", "10.a"]
        {
            assert!(is_name(name), "{name}");
        }
        for address in ["10.0.0.1", "::1", "fd00::1"] {
            assert!(matches!(address.parse(), Ok(HostName::Address(_))), "{address}");
        }
        let long = format!("{}.com", "a.".repeat(200));
        for wrong in
            ["10.0.0.256", "10.1", "host 1", "host1:1229", "[::1]", "-h", "a..b", ".", "\u{a0}h", "", &long]
        {
            assert!(wrong.parse::<HostName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_name_is_looked_up() {
        let until = Deadline::after(Duration::from_secs(60));
        let resolve = |text: &str| TcpHost { name: text.parse().unwrap(), port: 5 }.resolve(until);
        assert!(resolve("localhost").unwrap().iter().all(|it| it.ip().is_loopback() && it.port() == 5));
        assert_eq!(resolve("fd00::1").unwrap(), ["[fd00::1]:5".parse().unwrap()]);
        assert!(resolve("no-such-host.invalid").is_err());
        let past = Deadline::after(Duration::ZERO);
        let late = TcpHost { name: "localhost".parse().unwrap(), port: 5 }.resolve(past).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
