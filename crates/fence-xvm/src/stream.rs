// SPDX-License-Identifier: GPL-2.0-or-later
//! A request over one stream to a known host: request, mutual challenge, response. TCP and vsock only
//! connect.
//!
//! Owns the exchange until the deadline, and the tries before our proof. Runs on the agent's only thread.
//! Must never report an answer that the exchange does not give, and must never ask again after our proof.

use std::fmt;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use fence_wire::{Key, ProofError, Request};
use nix::errno::Errno;
use rand::rngs::SysError;

use crate::answer::HostAnswer;
use crate::attempts::StreamProgress;
use crate::connection::HostConnection;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::exchange::{AwaitedStep, ExchangeError, HostExchange, LIST_RESULT_WAIT};
use crate::host::TcpHost;
use crate::patience::{EndBeforeProof, RetryPatience};
use crate::plan::RequestPlan;
use crate::random::{new_challenge, random_bytes};
use crate::words::{CLASSIC_HOST_HINT, describe_key, describe_request, is_sealed};

/// Number of times that a host is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StreamTries<'c> {
    /// Once: what it does with one request is the question.
    Once,
    /// Again, as long as our proof was not sent: the host may be started anew just now.
    Several(&'c Console),
}

/// Connects to the host, and runs the whole exchange.
pub(crate) fn ask(
    plan: &RequestPlan,
    host: HostAddress,
    key: Option<&Key>,
    deadline: Deadline,
    tries: StreamTries<'_>,
    connect: impl Fn(Duration) -> io::Result<HostConnection>,
) -> Result<HostAnswer, Box<StreamFailure>> {
    let mut patience = RetryPatience::new(plan.action, deadline, Instant::now());
    loop {
        let connected = deadline.remaining_or_timed_out().and_then(&connect).map_err(StreamCause::Connect);
        let cause = match connected.and_then(|it| run_exchange(plan, &it, key, deadline)) {
            Ok(answer) => return Ok(answer),
            Err(cause) => cause,
        };
        let pause = match (tries, cause.before_proof()) {
            (StreamTries::Several(console), Some(end)) => {
                patience.pause_after(end, Instant::now()).inspect(|_| {
                    tell_of_next_try(console, &host, &cause, &patience);
                })
            }
            _ => None,
        };
        let Some(pause) = pause else {
            let tries = patience.tries(Instant::now());
            return Err(Box::new(StreamFailure { tries, ..*StreamFailure::new(plan, host, key, cause) }));
        };
        thread::sleep(pause);
    }
}

/// Says once, after about a second, that the agent goes on: a person may wait before the screen.
fn tell_of_next_try(console: &Console, host: &HostAddress, cause: &StreamCause, patience: &RetryPatience) {
    const TOLD_AT: u32 = 5;
    let (tries, _) = patience.tries(Instant::now());
    if tries == TOLD_AT && matches!(cause, StreamCause::Connect(_)) {
        console.say(&format_args!("{host}: {cause}; it is tried again, the host may be starting"));
    } else {
        console.debug(&format_args!("{host}: {cause}; trying again"));
    }
}

/// Returns whether the host takes a request like this: it proves that it holds the key, or shows that it has
/// the same one. The host gets no proof from us, so that it carries nothing out.
pub(crate) fn is_accepted(
    plan: &RequestPlan,
    connection: &HostConnection,
    key: Option<&Key>,
    deadline: Deadline,
) -> io::Result<bool> {
    let (mut exchange, mut buffer) = (begin_exchange(plan, key).map_err(io::Error::other)?, [0; 512]);
    connection.send(&mut &exchange.take_output()[..], deadline)?;
    loop {
        match connection.receive(&mut buffer, deadline)? {
            0 => return Ok(false),
            n => match exchange.receive(&buffer[..n]) {
                Ok(()) if !exchange.is_believed() => {}
                Ok(()) | Err(ExchangeError::Proof(ProofError::OtherAuth(_))) => return Ok(true),
                Err(_) => return Ok(false),
            },
        }
    }
}

/// Begins the exchange of a new request.
fn begin_exchange<'k>(plan: &RequestPlan, key: Option<&'k Key>) -> Result<HostExchange<'k>, SysError> {
    let request = Request {
        action: plan.action,
        target: plan.target.clone(),
        call_back: None,
        nonce: random_bytes()?,
        sequence: u32::from_le_bytes(random_bytes()?),
    };
    let packet = plan.encode_packet(&request, key);
    let mut auth = plan.client_auth(key);
    auth.add(&packet);
    Ok(HostExchange::new(plan.action, auth, Some(&packet), new_challenge()?))
}

/// Runs the exchange to its end.
fn run_exchange(
    plan: &RequestPlan,
    connection: &HostConnection,
    key: Option<&Key>,
    deadline: Deadline,
) -> Result<HostAnswer, StreamCause> {
    let mut exchange = begin_exchange(plan, key)?;
    let mut buffer = [0; 4096];
    let mut patience = deadline;
    loop {
        let broken = |exchange: &HostExchange<'_>, source| StreamCause::Broken {
            source,
            waited_for: exchange.awaited_step(),
        };
        let output = exchange.take_output();
        match connection.send(&mut &output[..], deadline) {
            Ok(()) => {}
            Err(error) if has_hung_up(&error) => break,
            Err(source) => return Err(broken(&exchange, source)),
        }
        if exchange.is_done() {
            break;
        }
        if exchange.is_list_complete() {
            patience = patience.min(deadline.min(Deadline::after(LIST_RESULT_WAIT)));
        }
        match connection.receive(&mut buffer, patience) {
            Ok(0) => break,
            Ok(n) => {
                exchange.receive(&buffer[..n])?;
                exchange.prove();
            }
            Err(_) if exchange.is_list_complete() => break,
            // A host that drops a request with bytes unread resets the connection.
            Err(error) if has_hung_up(&error) => break,
            Err(source) => return Err(broken(&exchange, source)),
        }
    }
    Ok(exchange.close()?)
}

impl StreamCause {
    /// Returns how the stream ended, if that was before our proof was sent. Then nothing was done for us.
    fn before_proof(&self) -> Option<EndBeforeProof> {
        match self {
            Self::Connect(error) if is_refused(error) => Some(EndBeforeProof::Refused),
            Self::Failed(ExchangeError::ClosedUnproven) => Some(EndBeforeProof::Unproven),
            Self::Failed(ExchangeError::ClosedProven) => Some(EndBeforeProof::Proven),
            _ => None,
        }
    }
}

/// Returns whether nobody listens there. On vsock that is a reset.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

fn has_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Address of a host that is asked over a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum HostAddress {
    /// TCP host, by address or name.
    Tcp(TcpHost),
    /// vsock address.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Vsock { cid, port } => write!(f, "vsock CID {cid} port {port}"),
        }
    }
}

/// Failure of a request over a stream. Shown in three lines: what happened, what was asked, what to check.
#[derive(Debug)]
pub(crate) struct StreamFailure {
    host: HostAddress,
    request: String,
    key: String,
    sealed: bool,
    cause: StreamCause,
    /// Number of tries, and the time that they took.
    tries: (u32, Duration),
}

#[derive(Debug, thiserror::Error)]
enum StreamCause {
    #[error("no random bytes: {0}")]
    Random(#[from] SysError),
    #[error("cannot look up the host's name: {}", describe_error(.0))]
    Resolve(io::Error),
    #[error("cannot connect: {}", describe_error(.0))]
    Connect(io::Error),
    #[error("{} (it waited for {waited_for})", describe_error(.source))]
    Broken { source: io::Error, waited_for: AwaitedStep },
    #[error("{0}")]
    Failed(#[from] ExchangeError),
}

impl fmt::Display for StreamFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, key, sealed, cause, .. } = self;
        write!(f, "{}\n  asked for {request}; {key}\n  {}", self.sentence(), self.next_check())?;
        if *sealed && matches!(cause, StreamCause::Failed(_) | StreamCause::Broken { .. }) {
            write!(f, "; {CLASSIC_HOST_HINT}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StreamFailure {}

impl StreamFailure {
    /// Returns whether the request ran out of time.
    pub(crate) fn is_time_out(&self) -> bool {
        match &self.cause {
            StreamCause::Resolve(error)
            | StreamCause::Connect(error)
            | StreamCause::Broken { source: error, .. } => has_timed_out(error),
            StreamCause::Random(_) | StreamCause::Failed(_) => false,
        }
    }

    /// Returns the failure of a request to a host whose name could not be looked up.
    pub(crate) fn unresolved(
        plan: &RequestPlan,
        host: HostAddress,
        key: Option<&Key>,
        error: io::Error,
    ) -> Box<Self> {
        Self::new(plan, host, key, StreamCause::Resolve(error))
    }

    fn new(plan: &RequestPlan, host: HostAddress, key: Option<&Key>, cause: StreamCause) -> Box<Self> {
        let (request, key) = (describe_request(plan), describe_key(plan, key));
        let tries = (1, Duration::ZERO);
        Box::new(Self { host, request, key, sealed: is_sealed(plan), cause, tries })
    }

    /// Returns the step that was reached; none where no host was reached.
    pub(crate) fn progress(&self) -> Option<StreamProgress> {
        match &self.cause {
            StreamCause::Random(_) | StreamCause::Resolve(_) | StreamCause::Connect(_) => None,
            StreamCause::Broken { waited_for, .. } => Some(StreamProgress::Waited(*waited_for)),
            StreamCause::Failed(error) => Some(StreamProgress::Failed(*error)),
        }
    }

    /// Returns what happened, without the request and the next step.
    pub(crate) fn sentence(&self) -> String {
        let Self { host, cause, tries: (tries, spent), .. } = self;
        let tries = match tries {
            0 | 1 => String::new(),
            _ => format!(" ({tries} tries in {:.1} s)", spent.as_secs_f64()),
        };
        format!("no answer from {host}: {cause}{tries}")
    }

    /// Returns what to check next.
    pub(crate) fn next_check(&self) -> &'static str {
        match (&self.cause, &self.host) {
            (StreamCause::Random(_), _) => "the kernel gives no random bytes: nothing can be asked",
            (StreamCause::Resolve(_), _) => {
                "is the name right, can this guest look it up (getent hosts NAME)? An IP address needs no \
                 name service"
            }
            (StreamCause::Connect(error), HostAddress::Tcp(_)) => check_after_tcp_error(error),
            (StreamCause::Connect(error), HostAddress::Vsock { .. }) => check_after_vsock_error(error),
            // A host that can't use the request hangs up: another key is not silent.
            (StreamCause::Broken { source, waited_for: AwaitedStep::Proof }, _) if has_timed_out(source) => {
                "does fence_virtd stand still there (systemctl status fence_virtd)? Is the listener for this \
                 way (tcp, vsock) set at that host? Else something else took the connection: ss -ltnp there \
                 shows it"
            }
            (StreamCause::Failed(ExchangeError::Proof(_)), _)
            | (StreamCause::Broken { waited_for: AwaitedStep::Proof, .. }, _) => {
                "is the listener for this way (tcp, vsock) set at that host? Else something else took the \
                 connection: ss -ltnp there shows it. The host's log says how it treated the request; do \
                 key, hash and auth type agree with the host's (compare the fingerprint in its log)?"
            }
            (StreamCause::Failed(_) | StreamCause::Broken { .. }, _) => {
                "the host's log says how it treated the request; do key, hash and auth type agree with the \
                 host's (compare the fingerprint in its log)?"
            }
        }
    }
}

fn check_after_tcp_error(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        "nobody listens there: is fence_virtd running with listener tcp, with `address` and `port` set for \
         this guest's network (the default is loopback)? fence_virtd --check there tells"
    } else {
        "are the address and this guest's route to it right, does the host's firewall let the port in \
         (fence_virtd --check there)?"
    }
}

fn check_after_vsock_error(error: &io::Error) -> &'static str {
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::EAFNOSUPPORT | Errno::ENODEV | Errno::EADDRNOTAVAIL => {
            "this guest has no vsock: does its domain have a <vsock> device, and is the module \
             vmw_vsock_virtio_transport loaded (modprobe vmw_vsock_virtio_transport)?"
        }
        Errno::ECONNRESET | Errno::ECONNREFUSED => {
            "nobody listens there: is fence_virtd running on that host with listener vsock, on this port?"
        }
        _ => "is this the CID of the host (2), and is fence_virtd running there with listener vsock?",
    }
}

/// Describes an I/O error. A time-out has the words that people search for.
pub(crate) fn describe_error(error: &io::Error) -> String {
    if has_timed_out(error) { "Timed out waiting for response".to_owned() } else { error.to_string() }
}

/// Returns whether an error means that the time ran out.
pub(crate) fn has_timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_vsock_learns_which_module_to_load() {
        let text = |error: Errno| {
            let host = HostAddress::Vsock { cid: 2, port: 1229 };
            let (request, key) = ("off vm1".to_owned(), "no key".to_owned());
            let (cause, tries) = (StreamCause::Connect(error.into()), (1, Duration::ZERO));
            StreamFailure { host, request, key, sealed: true, cause, tries }.to_string()
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
