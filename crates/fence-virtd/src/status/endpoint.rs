// SPDX-License-Identifier: GPL-2.0-or-later
//! The endpoint of metrics: plain HTTP/1.0 at a loopback address or a UNIX socket.
//!
//! Owns the socket. One task accepts; each reader has a task of its own, with one limit for the whole
//! exchange. Few readers are served at once, and few in a second: a slow or frequent reader may delay other
//! readers, and must never delay a request.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fence_config::MetricsAddress;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use super::exporter::Exporter;
use crate::util::unix_socket;

/// Readers at once.
const READERS: usize = 4;
/// Time for one reader, from its first byte to the last byte of the answer.
const LIMIT: Duration = Duration::from_secs(2);
/// Pause between two readers.
const PAUSE: Duration = Duration::from_millis(10);
/// Time for a program that may have the socket to accept a connection, before the daemon serves.
const LOOK_LIMIT: Duration = Duration::from_millis(200);
/// Longest request of a reader, in bytes.
const REQUEST: usize = 4096;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An open socket, with the file of a UNIX socket.
pub(crate) enum Endpoint {
    Tcp(std::net::TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a UNIX socket, removed when dropped.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Endpoint {
    /// Opens the endpoint, or logs the reason why not: no fence may fail because of metrics. Must run before
    /// the sandbox begins, which forbids new files at most slots.
    pub(crate) fn open(address: &MetricsAddress) -> Option<Self> {
        let opened = match address {
            MetricsAddress::Tcp(it) => std::net::TcpListener::bind(it).map(Self::Tcp),
            MetricsAddress::Unix(path) => listen(path).map(|it| Self::Unix(it, SocketFile(path.clone()))),
        };
        match opened {
            Ok(it) => Some(it),
            Err(error) => {
                warn!("no metrics at {address}: {error}; all else goes on");
                None
            }
        }
    }

    /// Serves for ever. Must run inside the runtime.
    pub(crate) async fn serve(self, exporter: Exporter) {
        if let Err(error) = self.accept(Arc::new(exporter)).await {
            warn!("no metrics: {error}; all else goes on");
        }
    }

    async fn accept(self, exporter: Arc<Exporter>) -> io::Result<()> {
        let slots = Arc::new(Semaphore::new(READERS));
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                info!(address = %listener.local_addr()?, "metrics can be read");
                while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                    serve_reader(slot, listener.accept().await.map(|it| it.0), &exporter);
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::Unix(listener, _file) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                info!(address = ?listener.local_addr()?, "metrics can be read");
                while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                    serve_reader(slot, listener.accept().await.map(|it| it.0), &exporter);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }
}

/// Starts to answer a reader.
fn serve_reader<S>(slot: OwnedSemaphorePermit, accepted: io::Result<S>, exporter: &Arc<Exporter>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => return debug!("metrics: {error}"),
    };
    let exporter = Arc::clone(exporter);
    tokio::spawn(async move {
        let _slot = slot;
        let answered = tokio::time::timeout(LIMIT, answer(stream, || exporter.text())).await;
        if !matches!(answered, Ok(Ok(()))) {
            debug!("a reader of metrics was slow or went away");
        }
    });
}

/// Reads one request and answers it.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    text: impl FnOnce() -> String,
) -> io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 512];
    while !is_whole(&request) && request.len() < REQUEST {
        match stream.read(&mut chunk).await? {
            0 => break,
            read => request.extend_from_slice(&chunk[..read]),
        }
    }
    let answer = match check_request(&request) {
        Ok(()) => reply("200 OK", TYPE, &text()),
        Err(status) => reply(status, "text/plain; charset=utf-8", "Metrics are at /metrics.\n"),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// Returns true if a request has its empty line.
fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|it| it == b"\r\n\r\n") || request.windows(2).any(|it| it == b"\n\n")
}

/// Checks that a request is for the metrics.
///
/// # Errors
/// The HTTP status of the refusal.
fn check_request(request: &[u8]) -> Result<(), &'static str> {
    if !is_whole(request) {
        return Err("400 Bad Request");
    }
    let line = request.split(|it| matches!(it, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|it| *it == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(b"GET"), Some(path), Some(b"HTTP/1.0" | b"HTTP/1.1")) => {
            let path = path.split(|it| *it == b'?').next().unwrap_or_default();
            if path == b"/metrics" { Ok(()) } else { Err("404 Not Found") }
        }
        (Some(_), Some(_), Some(b"HTTP/1.0" | b"HTTP/1.1")) => Err("405 Method Not Allowed"),
        _ => Err("400 Bad Request"),
    }
}

fn reply(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\
         \r\n{body}"
    )
}

/// Opens a UNIX socket for the daemon's user and group. Replaces the socket that an earlier run left behind;
/// a socket that another program serves, or a file that is no socket, is an error.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(it) if !it.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        Ok(_) => match unix_socket::connect(path, LOOK_LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let why = "another program has it, and takes no connection";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program serves it")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_metrics_are_served() {
        for good in [
            "GET /metrics HTTP/1.0\r\n\r\n",
            "GET /metrics?x=1 HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /metrics HTTP/1.1\n\n",
        ] {
            assert_eq!(check_request(good.as_bytes()), Ok(()), "{good:?}");
        }
        for (bad, status) in [
            ("GET / HTTP/1.0\r\n\r\n", "404"),
            ("GET /metrics/.. HTTP/1.0\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET /metrics HTTP/1.0\r\n", "400"),
            ("", "400"),
            ("\0\u{1}\n\n", "400"),
        ] {
            assert!(check_request(bad.as_bytes()).unwrap_err().starts_with(status), "{bad:?}");
        }
    }

    #[test]
    fn a_socket_that_was_left_behind_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        listen(&path).unwrap();
        // A program that accepts nothing, with as many connections waiting as it lets wait.
        let deaf = dir.path().join("deaf");
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.bind(&socket2::SockAddr::unix(&deaf).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let taken = |_: &usize| unix_socket::connect(&deaf, Duration::from_millis(20)).is_ok();
        assert!((0..100).take_while(taken).count() < 100);
        assert_eq!(listen(&deaf).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
