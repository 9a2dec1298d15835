// SPDX-License-Identifier: GPL-2.0-or-later
//! The vsock listener's transport: sockets between a host and its guests, no network in between.

use std::io;
use std::sync::Arc;

use fence_config::VsockListener as Settings;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use tracing::info;

use super::StartError;
use super::rules::CurrentRules;
use super::stream::{StreamListener, Transport};
use crate::listener::sources::SourceResolver;
use crate::service::Service;
use fence_core::access::Identity;

/// The vsock transport.
pub(crate) struct VsockTransport {
    sources: Arc<SourceResolver>,
}

impl VsockTransport {
    /// Opens the socket, and returns the serving of it. Must run inside the runtime.
    pub(crate) fn start(
        settings: &Settings,
        service: Arc<Service>,
        sources: Arc<SourceResolver>,
        rules: Arc<CurrentRules>,
    ) -> Result<impl Future<Output = ()> + Send + use<>, StartError> {
        let port = u32::from(settings.port);
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
            .map_err(|error| StartError::Socket(explain(port, &error)))?;
        info!(port, "listening on vsock");
        Ok(StreamListener::new(Self { sources }, service, rules).run(listener))
    }
}

impl Transport for VsockTransport {
    const NAME: &'static str = "vsock";
    type Socket = VsockListener;
    type Stream = VsockStream;
    /// The context id.
    type Peer = u32;

    async fn accept(socket: &VsockListener) -> io::Result<(VsockStream, u32, String)> {
        let (stream, peer) = std::future::poll_fn(|context| socket.poll_accept(context)).await?;
        Ok((stream, peer.cid(), format!("cid {} port {}", peer.cid(), peer.port())))
    }

    async fn identify(&self, peer: u32) -> Identity {
        self.sources.of_cid(peer)
    }
}

/// Returns the error with a hint for the administrator.
fn explain(port: u32, error: &io::Error) -> String {
    let hint = match nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::ENODEV => {
            "; this kernel has no vsock (is the module vhost_vsock loaded? modprobe vhost_vsock), or the \
             service may not use it: systemctl daemon-reload and a restart of the \
             service let it (docs: sandbox.md)"
        }
        _ => "",
    };
    format!("can't listen on vsock port {port}: {error}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_vsock_is_named() {
        let error = io::Error::from_raw_os_error(nix::errno::Errno::EAFNOSUPPORT as i32);
        assert!(explain(1229, &error).contains("modprobe vhost_vsock"));
        let error = io::Error::from_raw_os_error(nix::errno::Errno::EADDRINUSE as i32);
        assert!(!explain(1229, &error).contains("modprobe"));
    }
}
