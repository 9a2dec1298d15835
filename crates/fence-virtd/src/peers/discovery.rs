// SPDX-License-Identifier: GPL-2.0-or-later
//! The search for other hosts, and the tasks that keep what it found.
//!
//! One task says hello when it is due, one searches for hosts without host messages, one reads the sockets of
//! `peers`. Must never hold up a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use fence_core::hosts::WHOLE_ROUND;
use fence_wire::{HostBody, escaped};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{info, warn};

use super::limits::MIGRATION_SETTLE;
use super::links::MessageWay;
use super::settings::PeerMode;
use super::state::{NAME, Peers, read, shown_with_key};
use crate::backend::elsewhere::OwnPlaces;
use crate::util::locks::lock;

impl Peers {
    /// Serves for ever: says hello, answers by what `own` shows, and keeps the table. `domains` returns the
    /// number of domains that run here.
    pub(crate) async fn serve(
        self: Arc<Self>,
        own: Arc<dyn OwnPlaces>,
        domains: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        let _ = self.own.set(own);
        let _ = self.domains.set(Box::new(domains));
        self.tell_nodes();
        tokio::join!(
            self.say_hello(),
            self.search_legacy(),
            Arc::clone(&self).keep_file(),
            self.find_all(),
            Arc::clone(&self).read_sockets()
        );
    }

    /// Looks for all hosts, where some of an earlier run may not be remembered.
    async fn find_all(&self) {
        while lock(&self.table).incomplete().is_some() {
            let is_searched = self.settings().mode == PeerMode::Discovered && self.can_hear();
            let end = Instant::now() + WHOLE_ROUND;
            if is_searched {
                self.has_found_all(end).await;
            }
            sleep_until(end.into()).await;
        }
    }

    async fn say_hello(&self) {
        self.meet_nodes().await;
        loop {
            let next = lock(&self.schedule).next();
            tokio::select! {
                () = sleep_until(next.into()) => {}
                () = self.hurried.notified() => continue,
            }
            let is_due = lock(&self.schedule).is_due(Instant::now());
            if !is_due {
                continue;
            }
            if let Some(settings) = self.settings().with_keys() {
                self.replace_settings(settings);
            }
            match &self.settings().mode {
                PeerMode::Off | PeerMode::NoWay(_) => {}
                PeerMode::Discovered => self.say_hello_to_group(),
                PeerMode::Listed(listed) => {
                    listed.iter().for_each(|it| self.say_hello_to(*it));
                    // A host without `peers`, or with "none", takes nothing at `peer_port`.
                    self.say_hello_to_group();
                }
            }
            // The times at which hosts were heard are worth a line in the file now and then.
            self.changed.notify_one();
        }
    }

    /// Says hello by the multicast group of the listener, if it has one.
    fn say_hello_to_group(&self) {
        let Some(nonce) = self.new_hello(None) else { return };
        let hello = self.message(None, nonce, HostBody::Hello(self.hello()));
        self.send(&MessageWay::Group, &self.encoded(&hello));
    }

    /// Says hello to an address of `peers`: whoever answers there is known from then on.
    pub(super) fn say_hello_to(&self, address: SocketAddr) {
        let Some(nonce) = self.new_hello(Some(address)) else { return };
        let hello = self.message(None, nonce, HostBody::Hello(self.hello()));
        self.send(&MessageWay::Unicast(address), &self.encoded(&hello));
    }

    /// Drops hosts that only said hello, which whoever holds the key can do in any name, and are silent
    /// since.
    pub(super) fn drop_unproved(&self) {
        self.drop_nodes();
        let dropped = lock(&self.table).drop_unproved(Instant::now());
        if !dropped.is_empty() {
            self.changed.notify_one();
        }
        for host in dropped {
            warn!(
                host = %shown_with_key(&host),
                "a host said hello, never proved who it is, and is silent: that host is not asked any more. \
                 Is it a guest that holds the key? Set peer_key_file, and `peers`"
            );
        }
    }

    /// Forgets a host for an administrator, and looks for all hosts anew. Returns true if there was one.
    pub(super) fn forget(&self, host: &str) -> bool {
        *lock(&self.claimed) = None;
        let (forgotten, was_changed) = {
            let mut table = lock(&self.table);
            let before = table.clone();
            (table.forget(host), *table != before)
        };
        let names: Vec<_> = forgotten.iter().map(|it| escaped(&it.to_string()).to_string()).collect();
        info!(
            host = %escaped(host), forgotten = %names.join(", "),
            "an administrator said that this host is gone for good"
        );
        *lock(&self.schedule) = fence_core::hosts::HelloSchedule::new(Instant::now());
        self.legacy.search_anew();
        self.say_hello_soon();
        was_changed
    }

    /// Looks for the host to which a domain went, or from which one came, and warns if none is known then.
    pub(crate) async fn after_migration(&self) {
        self.say_hello_soon();
        // A search for C hosts may be just over, and the next one comes after a pause.
        sleep(MIGRATION_SETTLE).await;
        let settings = self.settings();
        let is_alone = match &settings.mode {
            PeerMode::Discovered => !settings.has_nodes && lock(&self.table).all().next().is_none(),
            PeerMode::Off => settings.is_set,
            PeerMode::Listed(_) | PeerMode::NoWay(_) => false,
        };
        // One hypervisor of this host to another is no other host.
        if is_alone && settings.hypervisors.len() < 2 {
            warn!(
                "a domain came or went by a migration, and no other host is asked whether it runs a domain: \
                 name the other hosts in `peers` (fence_virt.conf(5)), on each of them; fence_virtd --check \
                 tells more"
            );
        }
    }

    /// Reads the sockets of `peers`, and others when the settings change.
    async fn read_sockets(self: Arc<Self>) {
        loop {
            let sockets = read(&self.sockets).clone();
            let mut readers = JoinSet::new();
            for socket in sockets.all() {
                readers.spawn(read_socket(Arc::clone(&self), Arc::clone(socket)));
            }
            drop(sockets);
            self.resocketed.notified().await;
            readers.shutdown().await;
        }
    }
}

async fn read_socket(peers: Arc<Peers>, socket: Arc<UdpSocket>) {
    // Longer than any message, so that one that is too long is seen to be too long.
    let mut datagram = [0; 2048];
    loop {
        match socket.recv_from(&mut datagram).await {
            Ok((length, from)) => peers.receive(&datagram[..length], from, &MessageWay::Unicast(from)),
            Err(error) => {
                peers.drops.note(NAME, "receive", &"the system", &error);
                sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}
