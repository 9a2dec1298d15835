// SPDX-License-Identifier: GPL-2.0-or-later
//! The TCP listener's transport: sockets, and who is at the other end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fence_config::TcpListener as Settings;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::info;

use super::StartError;
use super::kept::{KeptSockets, StoredSocket};
use super::rules::CurrentRules;
use super::stream::{StreamListener, Transport};
use crate::listener::limits::{BACKLOG, KEEPALIVE_AFTER, KEEPALIVE_EVERY, KEEPALIVE_PROBES};
use crate::listener::sources::SourceResolver;
use crate::request::job::TCP;
use crate::service::Service;
use fence_core::access::Identity;

/// The TCP transport.
pub(crate) struct TcpTransport {
    sources: Arc<SourceResolver>,
}

impl TcpTransport {
    /// Opens the socket, and returns the serving of it. Must run inside the runtime.
    pub(crate) fn start(
        settings: &Settings,
        service: Arc<Service>,
        sources: Arc<SourceResolver>,
        rules: Arc<CurrentRules>,
        kept: Arc<KeptSockets>,
    ) -> Result<impl Future<Output = ()> + Send + use<>, StartError> {
        let address = SocketAddr::new(settings.address, settings.port);
        let (listener, name) = listen(address, &kept).map_err(|error| {
            let words = format!("can't listen at {address}: {error}");
            match error.kind() {
                io::ErrorKind::AddrInUse => StartError::InUse(words),
                _ => StartError::Socket(words),
            }
        })?;
        match name {
            None => info!(%address, "listening on TCP"),
            Some(_) => info!(%address, "listening on TCP, with the socket that the service manager kept"),
        }
        let serving = StreamListener::new(Self { sources }, service, Arc::clone(&rules));
        Ok(async move {
            let _stored = StoredSocket::store(&listener, address, name, rules, &kept);
            serving.run(listener).await;
        })
    }
}

impl Transport for TcpTransport {
    const NAME: &'static str = TCP;
    type Socket = TcpListener;
    type Stream = TcpStream;
    type Peer = IpAddr;

    async fn accept(socket: &TcpListener) -> io::Result<(TcpStream, IpAddr, String)> {
        let (stream, peer) = socket.accept().await?;
        // Small messages to and fro: none may wait for another.
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY)
            .with_retries(KEEPALIVE_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok((stream, peer.ip().to_canonical(), peer.to_string()))
    }

    fn address(peer: IpAddr) -> Option<IpAddr> {
        Some(peer)
    }

    async fn identify(&self, peer: IpAddr) -> Identity {
        self.sources.of_ip(peer).await
    }
}

/// Takes over the socket that the service manager kept, with its name there, or opens a new one.
fn listen(address: SocketAddr, kept: &KeptSockets) -> io::Result<(TcpListener, Option<String>)> {
    let (socket, name) = match kept.find(address)? {
        Some((name, socket)) => (socket, Some(name)),
        None => {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // Connections of an earlier run in TIME-WAIT are no hindrance.
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            (socket, None)
        }
    };
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG.cast_signed())?;
    Ok((TcpListener::from_std(socket.into())?, name))
}
