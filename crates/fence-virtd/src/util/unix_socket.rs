// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to UNIX sockets within a time: a program that listens and accepts nothing holds nobody up.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// Connects to a socket. Its writes wait no longer than the limit either.
///
/// # Errors
/// Nobody listens there; or, as [`io::ErrorKind::WouldBlock`], somebody who did not accept within the limit,
/// with as many connections waiting as he lets wait.
pub(crate) fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // On Linux this bounds the wait of a connect as well.
    socket.set_write_timeout(Some(limit))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_listener_that_accepts_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let (limit, begun) = (Duration::from_millis(20), Instant::now());
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path, limit) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100, "all are taken");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(begun.elapsed() < Duration::from_secs(60));
        drop(listener);
        assert_eq!(connect(&path, limit).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
