// SPDX-License-Identifier: GPL-2.0-or-later
//! One stream to a host that is known: request, mutual challenge, response. TCP and vsock differ in how they connect.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fence_wire::{Key, ProofError, Request};
use nix::errno::Errno;
use rand::rngs::SysError;

use crate::answer::Answer;
use crate::attempts::CameTo;
use crate::connection::Wire;
use crate::deadline::Deadline;
use crate::exchange::{Exchange, LAST_BYTE, Refusal, Wait};
use crate::plan::Plan;
use crate::random::{new_challenge, random_bytes};
use crate::words::{OLD_HOST, is_sealed, key_in_words, request_in_words};

/// Connects, and carries the whole exchange out.
pub(crate) fn ask(
    plan: &Plan,
    host: Host,
    key: Option<&Key>,
    deadline: Deadline,
    connect: impl FnOnce(Duration) -> io::Result<Wire>,
) -> Result<Answer, Box<StreamFailure>> {
    let connected = deadline.remaining_or_timed_out().and_then(connect).map_err(Cause::Connect);
    connected.and_then(|wire| converse(plan, &wire, key, deadline)).map_err(|cause| {
        let (request, key) = (request_in_words(plan), key_in_words(plan, key));
        Box::new(StreamFailure { host, request, key, sealed: is_sealed(plan), cause })
    })
}

/// Whether the host takes a request like this: it proves that it holds the key, or shows that it has the same one. It
/// gets no proof from us, so that nothing comes of it.
pub(crate) fn is_taken(plan: &Plan, wire: &Wire, key: Option<&Key>, deadline: Deadline) -> io::Result<bool> {
    let (mut exchange, mut buffer) = (begin(plan, key).map_err(io::Error::other)?, [0; 512]);
    wire.send(&mut &exchange.output()[..], deadline)?;
    loop {
        match wire.receive(&mut buffer, deadline)? {
            0 => return Ok(false),
            n => match exchange.receive(&buffer[..n]) {
                Ok(()) if !exchange.is_believed() => {}
                Ok(()) | Err(Refusal::Proof(ProofError::OtherAuth(_))) => return Ok(true),
                Err(_) => return Ok(false),
            },
        }
    }
}

/// The exchange of a new request.
fn begin<'k>(plan: &Plan, key: Option<&'k Key>) -> Result<Exchange<'k>, SysError> {
    let request = Request {
        action: plan.action,
        target: plan.target.clone(),
        call_back: None,
        nonce: random_bytes()?,
        sequence: u32::from_le_bytes(random_bytes()?),
    };
    let packet = plan.packet(&request, key);
    let mut auth = plan.auth_with(key);
    auth.add(&packet);
    Ok(Exchange::new(plan.action, auth, Some(&packet), new_challenge()?))
}

/// The whole exchange.
fn converse(plan: &Plan, wire: &Wire, key: Option<&Key>, deadline: Deadline) -> Result<Answer, Cause> {
    let mut exchange = begin(plan, key)?;
    let mut buffer = [0; 4096];
    let mut patience = deadline;
    loop {
        let broken =
            |exchange: &Exchange<'_>, source| Cause::Broken { source, waited_for: exchange.waits_for() };
        let output = exchange.output();
        match wire.send(&mut &output[..], deadline) {
            Ok(()) => {}
            Err(error) if has_hung_up(&error) => break,
            Err(source) => return Err(broken(&exchange, source)),
        }
        if exchange.is_done() {
            break;
        }
        if exchange.list_has_ended() {
            patience = patience.min(deadline.min(Deadline::after(LAST_BYTE)));
        }
        match wire.receive(&mut buffer, patience) {
            Ok(0) => break,
            Ok(n) => {
                exchange.receive(&buffer[..n])?;
                exchange.prove();
            }
            Err(_) if exchange.list_has_ended() => break,
            // A host that drops a request with bytes unread resets the connection.
            Err(error) if has_hung_up(&error) => break,
            Err(source) => return Err(broken(&exchange, source)),
        }
    }
    Ok(exchange.close()?)
}

fn has_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// A host that is asked by a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Host {
    /// By TCP.
    Tcp(SocketAddr),
    /// By vsock.
    Vsock {
        /// Its context id.
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Vsock { cid, port } => write!(f, "vsock CID {cid} port {port}"),
        }
    }
}

/// Why a stream gave no answer. Shown in three lines: what happened, what was tried, what to check.
#[derive(Debug)]
pub(crate) struct StreamFailure {
    host: Host,
    request: String,
    key: String,
    sealed: bool,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("no random bytes: {0}")]
    Random(#[from] SysError),
    #[error("cannot connect: {}", in_words(.0))]
    Connect(io::Error),
    #[error("{} (it waited for {waited_for})", in_words(.source))]
    Broken { source: io::Error, waited_for: Wait },
    #[error("{0}")]
    Refused(#[from] Refusal),
}

impl fmt::Display for StreamFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, request, key, sealed, cause } = self;
        write!(f, "no answer from {host}: {cause}\n  asked for {request}; {key}\n  {}", self.next_check())?;
        if *sealed && matches!(cause, Cause::Refused(_) | Cause::Broken { .. }) {
            write!(f, "; {OLD_HOST}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StreamFailure {}

impl StreamFailure {
    /// How far it came; none where nobody was reached.
    pub(crate) fn came_to(&self) -> Option<CameTo> {
        match &self.cause {
            Cause::Random(_) | Cause::Connect(_) => None,
            Cause::Broken { waited_for, .. } => Some(CameTo::Waited(*waited_for)),
            Cause::Refused(refusal) => Some(CameTo::Refused(*refusal)),
        }
    }

    pub(crate) fn next_check(&self) -> &'static str {
        match (&self.cause, self.host) {
            (Cause::Random(_), _) => "the kernel gives no random bytes: nothing can be asked",
            (Cause::Connect(error), Host::Tcp(_)) => match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    "nobody listens there: is fence_virtd running with listener tcp, with `address` and `port` set for \
                     this guest's network (the default is loopback)?"
                }
                _ => {
                    "are the address and this guest's route to it right, does the host's firewall let the port in?"
                }
            },
            (Cause::Connect(error), Host::Vsock { .. }) => {
                match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                    Errno::EAFNOSUPPORT | Errno::ENODEV | Errno::EADDRNOTAVAIL => {
                        "this guest has no vsock: does its domain have a <vsock> device, and is the module \
                         vmw_vsock_virtio_transport loaded (modprobe vmw_vsock_virtio_transport)?"
                    }
                    Errno::ECONNRESET | Errno::ECONNREFUSED => {
                        "nobody listens there: is fence_virtd running on that host with listener vsock, on this port?"
                    }
                    _ => {
                        "is this the CID of the host (2), and is fence_virtd running there with listener vsock?"
                    }
                }
            }
            (Cause::Refused(_), _) | (Cause::Broken { .. }, _) => {
                "the host's log says what it made of it; do key, hash and auth type agree with its own (compare the \
                 fingerprint in its log)?"
            }
        }
    }
}

/// A wait that ended says so in the words that people look for.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "Timed out waiting for response".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_vsock_is_told_what_to_load() {
        let text = |error: Errno| {
            let host = Host::Vsock { cid: 2, port: 1229 };
            let (request, key) = ("off vm1".to_owned(), "no key".to_owned());
            StreamFailure { host, request, key, sealed: true, cause: Cause::Connect(error.into()) }
                .to_string()
        };
        for none in [Errno::EAFNOSUPPORT, Errno::ENODEV] {
            let text = text(none);
            assert!(text.starts_with("no answer from vsock CID 2 port 1229: cannot connect: "), "{text}");
            assert!(text.contains("modprobe vmw_vsock_virtio_transport"), "{text}");
        }
        assert!(text(Errno::ECONNRESET).contains("listener vsock, on this port"));
        let late = text(Errno::ETIMEDOUT);
        assert!(
            late.contains("Timed out waiting for response") && late.contains("off vm1; no key"),
            "{late}"
        );
        assert_eq!(late.lines().count(), 3);
    }
}
