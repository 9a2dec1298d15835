// SPDX-License-Identifier: GPL-2.0-or-later
//! Where metrics are read: plain HTTP/1.0 at a loopback address or a UNIX socket.
//!
//! One task accepts; each reader is a task of its own with one limit for all it does. Few are served at once and few in a
//! second: a reader that is slow, or comes again and again, keeps other readers waiting and nobody else.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fence_config::MetricsAddress;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use super::exporter::Exporter;

/// Readers at once.
const READERS: usize = 4;
/// How long a reader may take, from its first byte to our last.
const LIMIT: Duration = Duration::from_secs(2);
/// Between two readers.
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes of a request.
const REQUEST: usize = 4096;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An open socket. A UNIX socket's file goes with it.
pub(crate) enum Endpoint {
    Tcp(std::net::TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A file that is removed in the end.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Endpoint {
    /// Opens it, or says in the log why not: no fence must fail for want of metrics. Before the sandbox, which lets
    /// nobody make files just anywhere.
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
    pub(crate) async fn serve(self, observed: Exporter) {
        if let Err(error) = self.accept(Arc::new(observed)).await {
            warn!("no metrics: {error}; all else goes on");
        }
    }

    async fn accept(self, observed: Arc<Exporter>) -> io::Result<()> {
        let places = Arc::new(Semaphore::new(READERS));
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                info!(address = %listener.local_addr()?, "metrics can be read");
                while let Ok(place) = Arc::clone(&places).acquire_owned().await {
                    tell(place, listener.accept().await.map(|it| it.0), &observed);
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::Unix(listener, _file) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                info!(address = ?listener.local_addr()?, "metrics can be read");
                while let Ok(place) = Arc::clone(&places).acquire_owned().await {
                    tell(place, listener.accept().await.map(|it| it.0), &observed);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }
}

/// Starts to answer a reader.
fn tell<S>(place: OwnedSemaphorePermit, accepted: io::Result<S>, observed: &Arc<Exporter>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => return debug!("metrics: {error}"),
    };
    let observed = Arc::clone(observed);
    tokio::spawn(async move {
        let _place = place;
        let told = tokio::time::timeout(LIMIT, answer(stream, || observed.text())).await;
        if !matches!(told, Ok(Ok(()))) {
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
    let answer = match asked(&request) {
        Ok(()) => reply("200 OK", TYPE, &text()),
        Err(status) => reply(status, "text/plain; charset=utf-8", "Metrics are at /metrics.\n"),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|it| it == b"\r\n\r\n") || request.windows(2).any(|it| it == b"\n\n")
}

/// Whether the metrics are asked for, and else with which status to refuse.
fn asked(request: &[u8]) -> Result<(), &'static str> {
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
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// A UNIX socket that the daemon's user and group may use. What an earlier run left behind is replaced; a socket that
/// somebody serves, and whatever is no socket, is not touched.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(it) if !it.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
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
    fn only_one_thing_can_be_asked() {
        for good in [
            "GET /metrics HTTP/1.0\r\n\r\n",
            "GET /metrics?x=1 HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /metrics HTTP/1.1\n\n",
        ] {
            assert_eq!(asked(good.as_bytes()), Ok(()), "{good:?}");
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
            assert!(asked(bad.as_bytes()).unwrap_err().starts_with(status), "{bad:?}");
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
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
