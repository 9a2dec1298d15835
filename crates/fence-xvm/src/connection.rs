// SPDX-License-Identifier: GPL-2.0-or-later
//! Connection to a host that never blocks: a socket, a serial line or a virtio port.
//!
//! Owns the descriptor. Runs on the agent's only thread. Must never wait beyond the caller's deadline, not
//! even for a peer that sends without end.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::deadline::Deadline;

/// Descriptor of a connection, in non-blocking mode.
#[derive(Debug)]
pub(crate) struct HostConnection(File);

impl HostConnection {
    /// Makes the descriptor non-blocking.
    ///
    /// # Errors
    /// Error of the kernel.
    pub(crate) fn new(descriptor: impl Into<OwnedFd>) -> io::Result<Self> {
        let descriptor = descriptor.into();
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(File::from(descriptor)))
    }

    /// Sends all bytes. After an error `bytes` holds those that were not sent.
    ///
    /// # Errors
    /// `TimedOut`, or the error of the kernel.
    pub(crate) fn send(&self, bytes: &mut &[u8], until: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&self.0).write(bytes) {
                Ok(n) => *bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait_for(PollFlags::POLLOUT, until)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for bytes and reads them; 0 when the other end is closed or was never there.
    ///
    /// # Errors
    /// `TimedOut`, also when bytes never end, or the error of the kernel.
    pub(crate) fn receive(&self, buffer: &mut [u8], until: Deadline) -> io::Result<usize> {
        loop {
            until.remaining_or_timed_out()?;
            match self.try_receive(buffer)? {
                Some(n) => return Ok(n),
                None => self.wait_for(PollFlags::POLLIN, until)?,
            }
        }
    }

    /// Reads bytes that are there already; none when there are none.
    ///
    /// # Errors
    /// Error of the kernel.
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match (&self.0).read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                // The error of a terminal whose other end is closed.
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(Some(0)),
                read => read.map(Some),
            };
        }
    }

    /// Waits until the next attempt makes sense.
    fn wait_for(&self, events: PollFlags, until: Deadline) -> io::Result<()> {
        /// Pause for a virtio port without a host, which says "hung up" at once until a host is there.
        const HUNG_UP: Duration = Duration::from_millis(20);
        let remaining = until.remaining_or_timed_out()?;
        // Rounded up: a wait that ends too early would make the loop spin.
        let millis = i32::try_from(remaining.as_millis() + 1).unwrap_or(i32::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), events)];
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[0].revents().is_some_and(|it| !it.is_empty() && !it.intersects(events)) {
            std::thread::sleep(HUNG_UP.min(remaining));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    fn pair() -> (HostConnection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (HostConnection::new(ours).unwrap(), theirs)
    }

    #[test]
    fn a_peer_that_does_not_read_ends_by_the_deadline() {
        let (connection, _theirs) = pair();
        let bytes = vec![7; 10_000_000];
        let mut rest = &bytes[..];
        // Long enough for the first bytes to go out on a busy machine.
        let error = connection.send(&mut rest, Deadline::after(Duration::from_secs(2))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(!rest.is_empty() && rest.len() < bytes.len());
    }

    #[test]
    fn a_silent_peer_ends_by_the_deadline_and_a_gone_one_at_once() {
        let (connection, theirs) = pair();
        let mut buffer = [0; 8];
        let error = connection.receive(&mut buffer, Deadline::after(SHORT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        (&theirs).write_all(b"abc").unwrap();
        drop(theirs);
        let never = Deadline::after(Duration::from_secs(60));
        assert_eq!(connection.receive(&mut buffer, never).unwrap(), 3);
        assert_eq!(connection.receive(&mut buffer, never).unwrap(), 0);
    }
}
