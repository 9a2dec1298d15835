// SPDX-License-Identifier: GPL-2.0-or-later
//! A descriptor to a host (socket, serial line, virtio port) that never blocks; each wait ends by a deadline.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::deadline::Deadline;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Wire(File);

impl Wire {
    /// Makes the descriptor non-blocking.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(descriptor: impl Into<OwnedFd>) -> io::Result<Self> {
        let descriptor = descriptor.into();
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(File::from(descriptor)))
    }

    /// Sends all of it; what is left in `bytes` after an error was not sent.
    ///
    /// # Errors
    /// `TimedOut`, or what the kernel says.
    pub(crate) fn send(&self, bytes: &mut &[u8], until: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&self.0).write(bytes) {
                Ok(n) => *bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT, until)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there, as soon as something is; 0 when the other end is not there (any more).
    ///
    /// # Errors
    /// `TimedOut`, also when bytes never end, or what the kernel says.
    pub(crate) fn receive(&self, buffer: &mut [u8], until: Deadline) -> io::Result<usize> {
        loop {
            until.remaining_or_timed_out()?;
            match self.receive_now(buffer)? {
                Some(n) => return Ok(n),
                None => self.wait(PollFlags::POLLIN, until)?,
            }
        }
    }

    /// Reads what is there already; none when nothing is.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match (&self.0).read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                // Of a terminal whose other end is closed.
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(Some(0)),
                read => read.map(Some),
            };
        }
    }

    /// Waits until the next attempt makes sense.
    fn wait(&self, what: PollFlags, until: Deadline) -> io::Result<()> {
        /// A virtio port without a host says "hung up" at once, and nothing else until one is there.
        const HUNG_UP: Duration = Duration::from_millis(20);
        let remaining = until.remaining_or_timed_out()?;
        // Rounded up: a wait that ends a moment too early would turn in circles.
        let millis = i32::try_from(remaining.as_millis() + 1).unwrap_or(i32::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), what)];
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[0].revents().is_some_and(|it| !it.is_empty() && !it.intersects(what)) {
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

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire::new(ours).unwrap(), theirs)
    }

    #[test]
    fn a_peer_that_does_not_read_ends_by_the_deadline() {
        let (wire, _theirs) = pair();
        let bytes = vec![7; 10_000_000];
        let mut rest = &bytes[..];
        // Long enough for the first bytes to go out on a busy machine.
        let error = wire.send(&mut rest, Deadline::after(Duration::from_secs(2))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(!rest.is_empty() && rest.len() < bytes.len());
    }

    #[test]
    fn a_silent_peer_ends_by_the_deadline_and_a_gone_one_at_once() {
        let (wire, theirs) = pair();
        let mut buffer = [0; 8];
        let error = wire.receive(&mut buffer, Deadline::after(SHORT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        (&theirs).write_all(b"abc").unwrap();
        drop(theirs);
        let never = Deadline::after(Duration::from_secs(60));
        assert_eq!(wire.receive(&mut buffer, never).unwrap(), 3);
        assert_eq!(wire.receive(&mut buffer, never).unwrap(), 0);
    }
}
