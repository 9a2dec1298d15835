// SPDX-License-Identifier: GPL-2.0-or-later
//! Connection to one hypervisor.
//!
//! Owns the handle, and the rule of one call at a time. Runs on the caller's thread, which a call blocks.
//! Must never close a connection itself: the closing thread does.

use std::ffi::c_void;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virt::connect::Connect;
use virt_sys as sys;

use crate::domain::{Domain, DomainState};
use crate::error::{Error, ErrorKind, c_text};
use crate::event::{
    CloseReason, CloseWatch, EventSubscription, LifecycleEvent, LifecycleWatch, connection_lost,
};
use crate::runtime::{self, ClosingConnection};
use crate::uuid::Uuid;

/// Open connection to a hypervisor, for any number of threads. It makes one call at a time; for parallel
/// calls open several. Clones are the same connection. It is closed in the background when the last clone,
/// [`Domain`] and [`EventSubscription`] of it are gone.
#[derive(Clone, Debug)]
pub struct Connection {
    handle: Arc<ConnectionHandle>,
}

/// Keepalive, by which a silent hypervisor is noticed. After `interval_secs` seconds without a message the
/// hypervisor is asked; after `count` unanswered questions the connection is given up. So silence ends a
/// connection after between `interval * count` and `interval * (count + 1)` seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Seconds, at least 1.
    pub interval_secs: u16,
    /// Questions, at least 1.
    pub count: u16,
}

/// Domain in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRecord {
    /// Name; bytes that are not UTF-8 are replaced, so act on such a domain by its UUID.
    pub name: String,
    /// UUID.
    pub uuid: Uuid,
    /// State at the time of the list.
    pub state: DomainState,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval_secs: 5, count: 3 }
    }
}

impl Connection {
    /// Opens a connection, with default [`KeepAlive`]. An empty URI lets libvirt choose one.
    ///
    /// May block for ever when the other side accepts the connection and never answers. Passwords are not
    /// asked for; but with `ssh` URIs add `?no_tty=1`, or ssh itself may ask on the terminal.
    pub fn open(uri: &str) -> Result<Self, Error> {
        Self::open_with(uri, KeepAlive::default())
    }

    /// Opens a connection with another keepalive.
    pub fn open_with(uri: &str, keepalive: KeepAlive) -> Result<Self, Error> {
        const CALL: &str = "open a connection";
        runtime::init()?;
        c_text(CALL, uri)?;
        let connect = Connect::open(Some(uri)).map_err(|_| Error::last(CALL))?;
        // From here on, dropping the handle closes the connection.
        let handle = ConnectionHandle {
            connect,
            uri: uri.to_owned(),
            watch: Arc::default(),
            lifecycle: LifecycleWatch::default(),
            turn: Mutex::default(),
        };
        // SAFETY: the connection is open. The watch stays until the closing thread has removed the call-back.
        let watched = unsafe {
            sys::virConnectRegisterCloseCallback(
                handle.connect.as_ptr(),
                Some(connection_lost),
                Arc::as_ptr(&handle.watch).cast_mut().cast::<c_void>(),
                None,
            )
        };
        if watched < 0 {
            unless_unsupported(handle.failed("watch for the loss of a connection"))?;
        }
        let KeepAlive { interval_secs, count } = keepalive;
        if handle.connect.set_keep_alive(interval_secs.into(), count.into()).is_err() {
            // The test driver has no keepalive and needs none.
            unless_unsupported(handle.failed("start keepalive"))?;
        }
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Returns the URI that the connection was opened with.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.handle.uri
    }

    /// Returns whether the connection stands, as far as this side knows, without a call to the hypervisor.
    /// [`ping`](Self::ping) makes one.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.handle.is_alive()
    }

    /// Asks the hypervisor driver a small question (how many domains run).
    ///
    /// libvirtd answers it from a reserved worker, like look-ups, state and destroy. So an answer means that
    /// fencing can work even when all ordinary workers are busy.
    pub fn ping(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.connect()
            .num_of_domains()
            .map(drop)
            .map_err(|_| self.handle.failed("ask the hypervisor for a sign of life"))
    }

    /// Returns all domains, active or not, with their states. One that goes away meanwhile is left out.
    /// One call for each: [`domains_in_bulk`](crate::OrdinaryConnection::domains_in_bulk) takes one for all.
    pub fn domains(&self) -> Result<Vec<DomainRecord>, Error> {
        self.domains_unless(|| false).map(Option::unwrap_or_default)
    }

    /// The same; none if `is_in_vain` says so before the last is read.
    pub fn domains_unless(
        &self,
        mut is_in_vain: impl FnMut() -> bool,
    ) -> Result<Option<Vec<DomainRecord>>, Error> {
        let all = self.listed(0)?;
        let mut records = Vec::with_capacity(all.len());
        for domain in all {
            if is_in_vain() {
                return Ok(None);
            }
            records.extend(domain.record()?);
        }
        Ok(Some(records))
    }

    /// Returns whether libvirt's list says that a managed save left the memory of this domain. A driver
    /// without such lists has none. Waits for every domain that libvirt just ends or starts.
    pub fn lists_saved_memory(&self, uuid: Uuid) -> Result<bool, Error> {
        match self.listed(sys::VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE) {
            Ok(all) => Ok(all.iter().any(|it| it.uuid() == uuid)),
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the domain of this name; `None` when the hypervisor says that there is none.
    pub fn domain_by_name(&self, name: &str) -> Result<Option<Domain>, Error> {
        const CALL: &str = "look up a domain by its name";
        c_text(CALL, name)?;
        let _turn = self.handle.turn();
        let found = virt::domain::Domain::lookup_by_name(self.connect(), name);
        self.found(found.map_err(|_| self.handle.failed(CALL)))
    }

    /// Returns the domain of this UUID; `None` when the hypervisor says that there is none.
    pub fn domain_by_uuid(&self, uuid: Uuid) -> Result<Option<Domain>, Error> {
        let _turn = self.handle.turn();
        // SAFETY: the connection is open; libvirt reads 16 bytes (VIR_UUID_BUFLEN).
        let found = unsafe { sys::virDomainLookupByUUID(self.connect().as_ptr(), uuid.as_bytes().as_ptr()) };
        self.found(if found.is_null() {
            Err(self.handle.failed("look up a domain by its UUID"))
        } else {
            // SAFETY: a valid domain, and the reference is ours.
            Ok(unsafe { virt::domain::Domain::from_ptr(found) })
        })
    }

    /// Adds or changes the definition in `xml` and does not start it.
    pub fn define_xml(&self, xml: &str) -> Result<Domain, Error> {
        const CALL: &str = "define a domain";
        c_text(CALL, xml)?;
        let _turn = self.handle.turn();
        let made =
            virt::domain::Domain::define_xml(self.connect(), xml).map_err(|_| self.handle.failed(CALL))?;
        Domain::adopt(made, Arc::clone(&self.handle))
    }

    /// Calls `call` for every lifecycle event of every domain, in order, until the subscription is dropped or
    /// the connection lost.
    ///
    /// `call` runs on the event thread of all connections: it must not block and must not call libvirt. It
    /// may drop connections, domains and subscriptions.
    pub fn watch_lifecycle(
        &self,
        call: impl Fn(LifecycleEvent) + Send + Sync + 'static,
    ) -> Result<EventSubscription, Error> {
        EventSubscription::new(Arc::clone(&self.handle), call)
    }

    /// Calls `call` when the connection is lost (not when this side closes it); at once if it is lost
    /// already.
    ///
    /// `call` runs on a thread of libvirt or of a caller at that moment: it must not block and must not call
    /// libvirt. It may drop connections. An orderly close frees it unused.
    pub fn on_close(&self, call: impl FnOnce(CloseReason) + Send + 'static) {
        self.handle.watch.add(Box::new(call));
    }

    fn connect(&self) -> &Connect {
        &self.handle.connect
    }

    fn found(&self, found: Result<virt::domain::Domain, Error>) -> Result<Option<Domain>, Error> {
        match found {
            Ok(raw) => Domain::adopt(raw, Arc::clone(&self.handle)).map(Some),
            Err(error) if error.kind == ErrorKind::NoDomain => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn listed(&self, flags: u32) -> Result<Vec<Domain>, Error> {
        let turn = self.handle.turn();
        let all =
            self.connect().list_all_domains(flags).map_err(|_| self.handle.failed("list the domains"))?;
        drop(turn);
        all.into_iter().map(|raw| Domain::adopt(raw, Arc::clone(&self.handle))).collect()
    }

    pub(crate) fn handle(&self) -> &Arc<ConnectionHandle> {
        &self.handle
    }
}

/// Handle of a connection. Every value made from the connection keeps it, so that libvirt's last reference is
/// always the one that the closing thread gives back.
pub(crate) struct ConnectionHandle {
    connect: Connect,
    uri: String,
    watch: Arc<CloseWatch>,
    lifecycle: LifecycleWatch,
    turn: Mutex<()>,
}

impl ConnectionHandle {
    pub(crate) fn connect(&self) -> &Connect {
        &self.connect
    }

    pub(crate) fn lifecycle(&self) -> &LifecycleWatch {
        &self.lifecycle
    }

    /// Waits for the right to make a call to the hypervisor: one at a time.
    ///
    /// With several calls in progress on one connection, libvirt's keepalive ends only the one that reads the
    /// socket. The others would wait for ever, and the loss would not be reported. So the others wait here,
    /// and then find the connection lost.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the error of the call just made. On a lost connection it is a connection error, whatever
    /// libvirt called it.
    pub(crate) fn failed(&self, call: &'static str) -> Error {
        let mut error = Error::last(call);
        if error.kind == ErrorKind::Other && !self.is_alive() {
            error.kind = ErrorKind::Connection;
        }
        error
    }

    fn is_alive(&self) -> bool {
        !self.watch.is_lost() && self.connect.is_alive().unwrap_or(false)
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid and its one reference moves to the closing thread; `Connect` itself
        // does not close when it is dropped.
        let connect = unsafe { Connect::from_ptr(self.connect.as_ptr()) };
        let registrations = mem::take(&mut self.lifecycle).into_registrations();
        runtime::close_later(ClosingConnection { connect, watch: Arc::clone(&self.watch), registrations });
    }
}

impl fmt::Debug for ConnectionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("uri", &self.uri).finish_non_exhaustive()
    }
}

fn unless_unsupported(error: Error) -> Result<(), Error> {
    if error.kind == ErrorKind::Unsupported { Ok(()) } else { Err(error) }
}
