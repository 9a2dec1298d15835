// SPDX-License-Identifier: GPL-2.0-or-later
//! Listening TCP sockets that the service manager keeps while one daemon ends and the next one starts, so
//! that no client finds the port closed. Connections wait in the kernel meanwhile.
//!
//! Owns the sockets that were passed to this process until their listener serves. The manager gets a socket
//! when its listener serves, and gives it up when a reload closes the listener; without a manager nothing of
//! this happens. Must never leave a socket open that no listener of the configuration wants: clients would
//! wait there for nobody. And must never take over connections whose requests run without a late proof: they
//! may be those of a machine that the earlier daemon powered off.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use fence_config::Listener as Settings;
use sd_notify::NotifyState;
use socket2::{Protocol, SockRef, Socket, Type};
use tracing::warn;

use super::rules::{CurrentRules, asks_for_late_proof};
use crate::util::locks::lock;

/// Begin of the names under which the manager keeps our sockets.
const NAME_PREFIX: &str = "fence-tcp-";

/// Sockets that were passed to this process, and whose listeners do not serve yet.
#[derive(Default)]
pub(crate) struct KeptSockets(Mutex<Vec<KeptSocket>>);

/// Socket that was passed to this process.
struct KeptSocket {
    /// Name that the manager has for it.
    name: String,
    socket: Socket,
}

/// Socket of a listener that serves, as the manager knows it.
pub(super) struct StoredSocket {
    name: String,
    socket: OwnedFd,
    rules: Arc<CurrentRules>,
}

impl KeptSockets {
    /// Takes what the service manager passed to this process, and closes what no listener wants. Must be
    /// called once, before the first thread is started and before any socket is opened.
    pub(crate) fn receive(listeners: &[Settings]) -> Self {
        let passed = received().unwrap_or_else(|error| {
            warn!("what the service manager kept can't be used: {error}; the listeners open new sockets");
            Vec::new()
        });
        let passed = passed.into_iter().map(|(name, socket)| KeptSocket { name, socket: socket.into() });
        let kept = Self(Mutex::new(passed.collect()));
        kept.close_unwanted(listeners);
        kept
    }

    /// Closes each socket that no listener of the configuration wants.
    pub(super) fn close_unwanted(&self, listeners: &[Settings]) {
        let wanted: Vec<_> = listeners.iter().filter_map(address_of).collect();
        lock(&self.0).retain(|it| {
            let is_wanted = listening_at(&it.socket).is_some_and(|at| wanted.contains(&at));
            if !is_wanted {
                let name = &it.name;
                warn!(%name, "a kept socket that no listener takes over is closed");
                retire(&it.name, &it.socket);
            }
            is_wanted
        });
    }

    /// Returns the socket that listens at this address, and the name that the manager has for it. It stays
    /// here as well until its listener serves: a start that fails may be tried again.
    pub(super) fn find(&self, address: SocketAddr) -> io::Result<Option<(String, Socket)>> {
        let kept = lock(&self.0);
        let found = kept.iter().find(|it| listening_at(&it.socket) == Some(address));
        found.map(|it| Ok((it.name.clone(), it.socket.try_clone()?))).transpose()
    }

    /// Forgets the socket of this address: its listener serves.
    fn forget(&self, address: SocketAddr) {
        lock(&self.0).retain(|it| listening_at(&it.socket) != Some(address));
    }
}

impl StoredSocket {
    /// Gives the manager the socket of a listener that begins to serve, unless it has it already: `kept` is
    /// the name under which it was found. None without a manager, where the socket is a socket unit's, and
    /// where requests need no late proof.
    pub(super) fn store(
        socket: impl AsFd,
        address: SocketAddr,
        kept: Option<String>,
        rules: Arc<CurrentRules>,
        sockets: &KeptSockets,
    ) -> Option<Self> {
        sockets.forget(address);
        std::env::var_os("NOTIFY_SOCKET")?;
        let now = rules.now();
        if !asks_for_late_proof(now.minimum, now.auth.hash) {
            return None;
        }
        let is_stored = kept.is_some();
        let name = kept.unwrap_or_else(|| name_of(address));
        if !name.starts_with(NAME_PREFIX) {
            return None;
        }
        let stored = || {
            if !is_stored {
                let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
                sd_notify::notify_with_fds(&state, &[socket.as_fd()])?;
            }
            socket.as_fd().try_clone_to_owned()
        };
        match stored() {
            Ok(socket) => Some(Self { name, socket, rules }),
            Err(error) => {
                warn!(%address, "the service manager can't keep the socket over a restart: {error}");
                None
            }
        }
    }
}

impl Drop for StoredSocket {
    fn drop(&mut self) {
        // At the end of the daemon the next one wants it.
        if self.rules.is_closed() {
            retire(&self.name, &SockRef::from(&self.socket));
        }
    }
}

/// Returns the sockets that the manager passed, with their names. Programs that we start get none of them.
fn received() -> io::Result<Vec<(String, OwnedFd)>> {
    // Fails if one is not open.
    let _ = sd_notify::listen_fds()?;
    let passed = sd_listen_fds::get().map_err(io::Error::other)?;
    Ok(passed.into_iter().map(|(name, socket)| (name.unwrap_or_default(), socket.into_std())).collect())
}

/// Returns the address at which this socket takes TCP connections; none of anything else.
fn listening_at(socket: &Socket) -> Option<SocketAddr> {
    let is_tcp = socket.is_listener().ok()?
        && socket.r#type().ok()? == Type::STREAM
        && socket.protocol().ok()? == Some(Protocol::TCP);
    if is_tcp { socket.local_addr().ok()?.as_socket() } else { None }
}

/// Returns the address of the socket that a listener takes over; none where it takes over none.
fn address_of(listener: &Settings) -> Option<SocketAddr> {
    let keys = listener.keys()?;
    match listener {
        Settings::Tcp(it) if asks_for_late_proof(keys.hash, keys.auth) => {
            Some(SocketAddr::new(it.address, it.port))
        }
        Settings::Tcp(_) | Settings::Multicast(_) | Settings::Vsock(_) | Settings::Serial(_) => None,
    }
}

/// Returns the name for the manager, who allows no colon.
fn name_of(address: SocketAddr) -> String {
    format!("{NAME_PREFIX}{}-{}", address.ip().to_string().replace(':', "_"), address.port())
}

/// Ends a socket for all who have a copy of it, and has the manager drop its own. A socket unit's is left to
/// the unit.
fn retire(name: &str, socket: &Socket) {
    if !name.starts_with(NAME_PREFIX) {
        return;
    }
    // The manager's copy listens no more at once, whenever the manager reads our message. The error of a
    // socket that does not listen tells nothing.
    let _ = socket.shutdown(Shutdown::Both);
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
        warn!("can't tell the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn kept(sockets: Vec<(&str, OwnedFd)>) -> KeptSockets {
        let sockets = sockets.into_iter();
        let sockets = sockets.map(|(name, it)| KeptSocket { name: name.to_owned(), socket: it.into() });
        KeptSockets(Mutex::new(sockets.collect()))
    }

    /// Returns settings of a TCP listener at this address.
    fn settings(address: SocketAddr) -> Settings {
        settings_with(address, "")
    }

    fn settings_with(address: SocketAddr, keys: &str) -> Settings {
        let (ip, port) = (address.ip(), address.port());
        let tcp = format!("tcp {{ address = \"{ip}\"; port = \"{port}\"; {keys} }}");
        let text = format!("fence_virtd {{ listener = \"tcp\"; }} listeners {{ {tcp} }}");
        fence_config::load(text.as_bytes()).config.unwrap().listeners.remove(0)
    }

    #[test]
    fn only_a_socket_that_listens_at_the_very_address_is_taken_over() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let bound = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
        bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let connected = TcpStream::connect(address).unwrap();
        let others = [
            datagrams.local_addr().unwrap(),
            bound.local_addr().unwrap().as_socket().unwrap(),
            connected.local_addr().unwrap(),
        ];
        let file = std::fs::File::open("/dev/null").unwrap();
        let sockets = kept(vec![
            ("fence-tcp-1", datagrams.into()),
            ("fence-tcp-2", bound.into()),
            ("fence-tcp-3", connected.into()),
            ("fence-tcp-4", file.into()),
            ("fence-tcp-5", listening.into()),
        ]);
        for other in others {
            assert!(sockets.find(other).unwrap().is_none());
        }
        let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert!(sockets.find(any).unwrap().is_none(), "another address");
        let next = SocketAddr::new(address.ip(), address.port() ^ 1);
        assert!(sockets.find(next).unwrap().is_none(), "another port");
        let (name, socket) = sockets.find(address).unwrap().unwrap();
        assert_eq!((name.as_str(), socket.local_addr().unwrap().as_socket()), ("fence-tcp-5", Some(address)));
        sockets.close_unwanted(&[settings(address)]);
        assert_eq!(lock(&sockets.0).len(), 1, "what is no listening socket is closed");
        sockets.forget(address);
        assert!(sockets.find(address).unwrap().is_none());
    }

    #[test]
    fn a_kept_socket_that_no_listener_wants_takes_no_more_connections() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        let of_the_manager = listening.try_clone().unwrap();
        let other = SocketAddr::from(([127, 0, 0, 2], address.port()));
        let sockets = kept(vec![("fence-tcp-1", listening.into())]);
        sockets.close_unwanted(&[settings(other)]);
        assert!(TcpStream::connect(address).is_err(), "the manager's copy still listens");
        drop(of_the_manager);
    }

    #[test]
    fn connections_that_waited_are_not_taken_over_where_nobody_proves_that_it_lives() {
        for (keys, is_taken) in [
            ("hash = \"none\"; auth = \"none\";", false),
            ("auth = \"none\";", false),
            ("hash = \"none\";", true),
            ("hash = \"hmac-sha256\"; auth = \"none\";", true),
        ] {
            let listening = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listening.local_addr().unwrap();
            let sockets = kept(vec![("fence-tcp-1", listening.into())]);
            sockets.close_unwanted(&[settings_with(address, keys)]);
            assert_eq!(sockets.find(address).unwrap().is_some(), is_taken, "{keys}");
        }
    }

    #[test]
    fn the_socket_of_a_socket_unit_goes_on_without_us() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        let of_the_unit = listening.try_clone().unwrap();
        kept(vec![("fence.socket", listening.into())]).close_unwanted(&[]);
        assert!(TcpStream::connect(address).is_ok());
        drop(of_the_unit);
    }

    #[test]
    fn names_are_fit_for_the_manager_and_differ() {
        let addresses = ["0.0.0.0:1229", "[::]:1229", "[::1]:1229", "[fe80::1]:1229", "127.0.0.1:1230"];
        let names: std::collections::BTreeSet<_> =
            addresses.iter().map(|it| name_of(it.parse().unwrap())).collect();
        assert_eq!(names.len(), addresses.len());
        assert!(names.iter().all(|it| it.len() < 255 && it.is_ascii() && !it.contains(':')), "{names:?}");
    }
}
