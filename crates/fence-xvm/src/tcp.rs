// SPDX-License-Identifier: GPL-2.0-or-later
//! A request to a host over TCP.
//!
//! Owns the connection. Runs on the agent's only thread. Must never connect to any other port than the
//! plan's.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use fence_sandbox::Tcp;
use fence_wire::Key;

use crate::answer::HostAnswer;
use crate::confine::confine;
use crate::connection::HostConnection;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::host::TcpHost;
use crate::plan::RequestPlan;
use crate::stream::{self, HostAddress, StreamFailure, StreamTries, has_timed_out, is_refused};

/// Returns the addresses of the host. Must be called before [`ask`], which confines the agent.
pub(crate) fn resolve(
    plan: &RequestPlan,
    to: &TcpHost,
    key: Option<&Key>,
    deadline: Deadline,
) -> Result<Vec<SocketAddr>, Box<StreamFailure>> {
    to.resolve(deadline)
        .map_err(|error| StreamFailure::unresolved(plan, HostAddress::Tcp(to.clone()), key, error))
}

/// Asks the host at the first of its addresses that takes the connection.
pub(crate) fn ask(
    plan: &RequestPlan,
    to: &TcpHost,
    addresses: &[SocketAddr],
    key: Option<&Key>,
    deadline: Deadline,
    tries: StreamTries<'_>,
    console: &Console,
) -> Result<HostAnswer, Box<StreamFailure>> {
    confine(Tcp::To(to.port), console);
    stream::ask(plan, HostAddress::Tcp(to.clone()), key, deadline, tries, |within| {
        connect(addresses, within, console)
    })
}

/// Connects to the host. Each address has its share of the time that is left, so that a silent one leaves
/// time for the others. The error is that of the last one, unless an earlier one refused: that host is there.
pub(crate) fn connect(
    addresses: &[SocketAddr],
    within: Duration,
    console: &Console,
) -> io::Result<HostConnection> {
    let deadline = Deadline::after(within);
    let mut failure = io::Error::other("the host has no address");
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let share = deadline.remaining_or_timed_out()? / u32::try_from(left).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => {
                console.debug(&format_args!("connected to {address}"));
                let _ = stream.set_nodelay(true);
                return HostConnection::new(stream);
            }
            Err(error) => {
                console.debug(&format_args!("cannot connect to {address}: {error}"));
                if has_timed_out(&error) || !is_refused(&failure) {
                    failure = error;
                }
            }
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;
    use crate::console::OptionSource;
    use crate::options::ClientProgram;

    #[test]
    fn each_address_is_tried_within_the_time() {
        let console = Console::new(ClientProgram::Virt, OptionSource::CommandLine);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
        assert!(connect(&[closed, good], Duration::from_secs(60), &console).is_ok());
        let error = connect(&[closed, closed], Duration::from_secs(60), &console).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        // A listener whose queue is full takes no more: the address is silent.
        let (full, _listener, _queue) = full_listener();
        let begun = Instant::now();
        assert!(connect(&[full, good], Duration::from_secs(2), &console).is_ok());
        assert!(begun.elapsed() >= Duration::from_secs(1), "the first address had its share");
    }

    /// Returns the address of a listener that takes no further connection, and what keeps it so.
    fn full_listener() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.3:0").unwrap();
        let address = listener.local_addr().unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let short = Duration::from_millis(200);
        let queue = std::iter::from_fn(|| TcpStream::connect_timeout(&address, short).ok()).take(8);
        (address, listener, queue.collect())
    }
}
