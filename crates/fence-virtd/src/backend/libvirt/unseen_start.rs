// SPDX-License-Identifier: GPL-2.0-or-later
//! Starts whose end nobody has seen: a hypervisor may still carry each out.
//!
//! A start may wait in libvirt for other work on the domain. It is on disk from before libvirt is told until
//! nothing can come of it, so that the next daemon waits for it too. Must never make anything happen to a
//! domain.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fence_core::intent::DeviceOrder;
use fence_core::unseen_power_off::LaterLook;
use fence_core::unseen_start::UnseenStart;
use libvirt_host::Uuid;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::unseen::{ASK_AGAIN, LOOK_PAUSE, SILENT_PAUSE, later_look};
use crate::hypervisor::Hypervisor;
use crate::intent::WrittenOrder;
use crate::request::lease::Lease;

/// Start at one hypervisor. Dropped before its end, it holds up what conflicts with it.
pub(super) struct StartWatch {
    home: Arc<Hypervisor>,
    uuid: Uuid,
    lease: Lease,
    /// Libvirt was told, and has not answered.
    may_come: Arc<AtomicBool>,
    written: Option<WrittenOrder>,
    /// Nothing is ever sent. The channel closes with the last call.
    calls: (mpsc::Sender<Infallible>, mpsc::Receiver<Infallible>),
}

impl StartWatch {
    /// Writes the order down.
    pub(super) async fn new(home: &Arc<Hypervisor>, uuid: Uuid, lease: &Lease) -> Self {
        let written = match lease.trail().intent() {
            Some(it) => Some(it.write_order(&DeviceOrder::at_hypervisor(true)).await),
            None => None,
        };
        let (home, lease, may_come) = (Arc::clone(home), lease.clone(), Arc::default());
        Self { home, uuid, lease, may_come, written, calls: mpsc::channel(1) }
    }

    /// Returns the sign of a call with the order, which the call keeps to its end.
    pub(super) fn call(&self) -> mpsc::Sender<Infallible> {
        self.calls.0.clone()
    }

    /// Returns the mark of an order that libvirt has not answered, for a call to set.
    pub(super) fn may_come(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.may_come)
    }
}

impl Drop for StartWatch {
    fn drop(&mut self) {
        let (own, mut calls) = std::mem::replace(&mut self.calls, mpsc::channel(1));
        drop(own);
        let is_under_way = !matches!(calls.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        let written = self.written.take();
        if !is_under_way && !self.may_come.load(Ordering::Relaxed) {
            written.into_iter().for_each(WrittenOrder::settled);
            return;
        }
        // Else the daemon ends: the next one finds the order on disk.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (home, uuid, may_come) = (Arc::clone(&self.home), self.uuid, Arc::clone(&self.may_come));
        // What conflicts waits as long as somebody has the lease.
        let lease = self.lease.clone();
        runtime.spawn(async move {
            while calls.recv().await.is_some() {}
            if may_come.load(Ordering::Relaxed) {
                warn!(
                    %uuid, request = lease.request(), uri = home.uri(),
                    "libvirt was told to start this machine, and its answer was lost: requests that conflict \
                     with that wait until the machine stays on, for {} s at most after libvirt answers",
                    UnseenStart::LIMIT.as_secs()
                );
                over(&home, uuid).await;
                info!(%uuid, request = lease.request(), "the start can take effect no more");
            }
            written.into_iter().for_each(WrittenOrder::settled);
            drop(lease);
        });
    }
}

/// Waits until a start that this hypervisor may have been told can take effect no more.
pub(super) async fn over(home: &Arc<Hypervisor>, uuid: Uuid) {
    let mut order = UnseenStart::default();
    // The order may wait for a worker of libvirtd, in a queue. Once a later call has come through that queue,
    // the order has a worker.
    let (mut queue, hypervisor) = (JoinSet::new(), Arc::clone(home));
    queue.spawn(async move {
        while hypervisor
            .call_worker(Instant::now() + ASK_AGAIN, libvirt_host::OrdinaryConnection::ping_worker)
            .await
            .is_err()
        {
            tokio::time::sleep(SILENT_PAUSE).await;
        }
    });
    loop {
        let is_taken = queue.try_join_next().is_some() || queue.is_empty();
        let began = Instant::now();
        let look = match later_look(home, uuid).await {
            seen @ LaterLook::On(_) => seen,
            seen if is_taken => seen,
            _ => LaterLook::Silent,
        };
        if order.look(began, look) {
            return;
        }
        let is_up = !matches!(look, LaterLook::Silent | LaterLook::Gone);
        tokio::time::sleep(if is_up { LOOK_PAUSE } else { SILENT_PAUSE }).await;
    }
}
