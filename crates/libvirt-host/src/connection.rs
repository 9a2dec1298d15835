// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection to one hypervisor.

use std::ffi::{CStr, c_void};
use std::fmt;
use std::mem;
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virt::connect::Connect;
use virt_sys as sys;

use crate::domain::{Domain, State, name_of, uuid_of};
use crate::error::{Error, ErrorKind, c_text};
use crate::event::{
    CloseReason, CloseWatch, EventSubscription, LifecycleEvent, LifecycleWatch, connection_lost,
};
use crate::runtime::{self, Closing};
use crate::uuid::Uuid;

/// An open connection to a hypervisor, for any number of threads, which take turns: one call at a time. For
/// calls at once open several. Clones are the same connection; it is closed when the last clone, [`Domain`]
/// and [`EventSubscription`] of it are gone, in the background.
#[derive(Clone, Debug)]
pub struct Connection {
    handle: Arc<Handle>,
}

/// How fast a hypervisor that stopped answering is noticed: it is asked every `interval_secs` seconds when
/// nothing comes from it, and given up when `count` questions stand unanswered. So silence ends a connection
/// after between `interval * count` and `interval * (count + 1)` seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Seconds, at least 1.
    pub interval_secs: u16,
    /// Questions, at least 1.
    pub count: u16,
}

/// A domain as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRecord {
    /// The name; bytes that are not UTF-8 are replaced, so act on such a domain by its UUID.
    pub name: String,
    /// The UUID.
    pub uuid: Uuid,
    /// What it is doing.
    pub state: State,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval_secs: 5, count: 3 }
    }
}

impl Connection {
    /// Opens a connection, with default [`KeepAlive`]. An empty URI lets libvirt choose one.
    ///
    /// May block for ever when something accepts the connection and never speaks. Nobody is asked for
    /// passwords; but for `ssh` URIs add `?no_tty=1`, or ssh itself may ask on the terminal.
    pub fn open(uri: &str) -> Result<Self, Error> {
        Self::open_with(uri, KeepAlive::default())
    }

    /// Like [`open`](Self::open), with another keepalive.
    pub fn open_with(uri: &str, keepalive: KeepAlive) -> Result<Self, Error> {
        const CALL: &str = "open a connection";
        runtime::init()?;
        c_text(CALL, uri)?;
        let connect = Connect::open(Some(uri)).map_err(|_| Error::last(CALL))?;
        // From here on the handle closes it, whatever happens.
        let handle = Handle {
            connect,
            uri: uri.to_owned(),
            watch: Arc::default(),
            lifecycle: LifecycleWatch::default(),
            turn: Mutex::default(),
        };
        // SAFETY: the connection is open. The watch stays until the closing thread has taken the call-back
        // off.
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
            // The test driver has none, and needs none.
            unless_unsupported(handle.failed("start keepalive"))?;
        }
        Ok(Self { handle: Arc::new(handle) })
    }

    /// The URI that it was opened with.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.handle.uri
    }

    /// Whether the connection still stands, as far as this side knows. Asks nobody and never blocks on the
    /// hypervisor; [`ping`](Self::ping) asks.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.handle.is_alive()
    }

    /// Asks the hypervisor driver a small question (how many domains run).
    ///
    /// libvirtd answers it from a reserved worker, like look-ups, state and destroy: so it says that fencing
    /// can work even when all ordinary workers are busy.
    pub fn ping(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.connect()
            .num_of_domains()
            .map(drop)
            .map_err(|_| self.handle.failed("ask the hypervisor for a sign of life"))
    }

    /// All domains, active or not, with their states, in one call where the driver can (4 ms for 1000).
    pub fn domains(&self) -> Result<Vec<DomainRecord>, Error> {
        match self.domains_in_bulk() {
            Err(error) if error.kind == ErrorKind::Unsupported => self.domains_one_by_one(),
            done => done,
        }
    }

    /// The domain of this name; `None` when the hypervisor says that there is none.
    pub fn domain_by_name(&self, name: &str) -> Result<Option<Domain>, Error> {
        const CALL: &str = "look up a domain by its name";
        c_text(CALL, name)?;
        let _turn = self.handle.turn();
        let found = virt::domain::Domain::lookup_by_name(self.connect(), name);
        self.found(found.map_err(|_| self.handle.failed(CALL)))
    }

    /// The domain of this UUID; `None` when the hypervisor says that there is none.
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

    /// Starts a transient domain: it is gone when it stops. (Where a definition of its name and UUID exists,
    /// it starts that one with this XML.)
    pub fn create_xml(&self, xml: &str) -> Result<Domain, Error> {
        const CALL: &str = "start a transient domain";
        c_text(CALL, xml)?;
        let _turn = self.handle.turn();
        let made = virt::domain::Domain::create_xml(self.connect(), xml, sys::VIR_DOMAIN_NONE)
            .map_err(|_| self.handle.failed(CALL))?;
        Domain::adopt(made, Arc::clone(&self.handle))
    }

    /// Calls `call` for every lifecycle event of every domain, in order, until the subscription is dropped or
    /// the connection lost.
    ///
    /// It runs on the event thread of all connections: it must not block and must not call libvirt. It may
    /// drop connections, domains and subscriptions.
    pub fn watch_lifecycle(
        &self,
        call: impl Fn(LifecycleEvent) + Send + Sync + 'static,
    ) -> Result<EventSubscription, Error> {
        EventSubscription::new(Arc::clone(&self.handle), call)
    }

    /// Calls `call` when the connection is lost (not when we close it); at once when it is lost already.
    ///
    /// It runs on a thread of libvirt or of whoever made a call at that moment: it must not block and must
    /// not call libvirt. It may drop connections. It is freed unused when the connection is closed in order.
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

    fn domains_in_bulk(&self) -> Result<Vec<DomainRecord>, Error> {
        let mut list: *mut sys::virDomainStatsRecordPtr = ptr::null_mut();
        let turn = self.handle.turn();
        // SAFETY: the connection is open; the list is ours to be filled in.
        let count = unsafe {
            sys::virConnectGetAllDomainStats(
                self.connect().as_ptr(),
                sys::VIR_DOMAIN_STATS_STATE,
                &raw mut list,
                0,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return Err(self.handle.failed("list the domains"));
        };
        drop(turn);
        let list = StatsList { list, count };
        list.records().iter().filter_map(|record| self.record(record).transpose()).collect()
    }

    /// None for a domain that went away after the list was made.
    fn record(&self, record: &sys::virDomainStatsRecord) -> Result<Option<DomainRecord>, Error> {
        // SAFETY: a record of libvirt's list holds a valid domain as long as the list lives.
        let (name, uuid) = unsafe { (name_of(record.dom)?, uuid_of(record.dom)?) };
        if let Some(state) = state_of(record) {
            return Ok(Some(DomainRecord { name, uuid, state }));
        }
        // Some drivers leave out what they can't tell in bulk.
        let Some(domain) = self.domain_by_uuid(uuid)? else { return Ok(None) };
        domain.record()
    }

    fn domains_one_by_one(&self) -> Result<Vec<DomainRecord>, Error> {
        let turn = self.handle.turn();
        let all = self.connect().list_all_domains(0).map_err(|_| self.handle.failed("list the domains"))?;
        drop(turn);
        let mut records = Vec::with_capacity(all.len());
        for raw in all {
            let domain = Domain::adopt(raw, Arc::clone(&self.handle))?;
            records.extend(domain.record()?);
        }
        Ok(records)
    }
}

/// The connection itself. Everything made from it keeps it, so that libvirt's last reference is always the
/// one that the closing thread gives back.
pub(crate) struct Handle {
    connect: Connect,
    uri: String,
    watch: Arc<CloseWatch>,
    lifecycle: LifecycleWatch,
    turn: Mutex<()>,
}

impl Handle {
    pub(crate) fn connect(&self) -> &Connect {
        &self.connect
    }

    pub(crate) fn lifecycle(&self) -> &LifecycleWatch {
        &self.lifecycle
    }

    /// The right to make a call that goes to the hypervisor: one at a time.
    ///
    /// With several calls under way on one connection, libvirt's keepalive ends only the one that reads the
    /// socket; the others then wait for ever, and the loss is not reported. So the others wait here, and find
    /// the connection lost when their turn comes.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error of the call just made. On a connection that is no longer there it is a connection error,
    /// however libvirt worded it.
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

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid and its one reference moves to the closing thread; `Connect` itself
        // does not close when it is dropped.
        let connect = unsafe { Connect::from_ptr(self.connect.as_ptr()) };
        let registrations = mem::take(&mut self.lifecycle).into_registrations();
        runtime::close_later(Closing { connect, watch: Arc::clone(&self.watch), registrations });
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// libvirt's list of statistics, freed when dropped.
struct StatsList {
    list: *mut sys::virDomainStatsRecordPtr,
    count: usize,
}

impl StatsList {
    fn records(&self) -> Vec<&sys::virDomainStatsRecord> {
        if self.list.is_null() {
            return Vec::new();
        }
        // SAFETY: libvirt returned `count` pointers there, each to a record that lives until the list is
        // freed.
        let records = unsafe { slice::from_raw_parts(self.list, self.count) };
        // SAFETY: as above; `as_ref` sees to nulls.
        records.iter().filter_map(|record| unsafe { record.as_ref() }).collect()
    }
}

impl Drop for StatsList {
    fn drop(&mut self) {
        // SAFETY: libvirt's own list (or null, which it accepts), freed once.
        unsafe { sys::virDomainStatsRecordListFree(self.list) };
    }
}

fn state_of(record: &sys::virDomainStatsRecord) -> Option<State> {
    let count = usize::try_from(record.nparams).ok()?;
    if record.params.is_null() {
        return None;
    }
    // SAFETY: libvirt says that `nparams` parameters are there, as long as the record lives.
    let params = unsafe { slice::from_raw_parts(record.params, count) };
    let number = |name: &CStr| {
        params.iter().find_map(|param| {
            // SAFETY: field names are NUL-terminated within their 80 bytes.
            let field = unsafe { CStr::from_ptr(param.field.as_ptr()) };
            let is_it = field == name && param.type_.cast_unsigned() == sys::VIR_TYPED_PARAM_INT;
            if !is_it {
                return None;
            }
            // SAFETY: the type says which member of the union is set.
            Some(unsafe { param.value.i })
        })
    };
    Some(State::with_reason(number(c"state.state")?, number(c"state.reason").unwrap_or_default()))
}

fn unless_unsupported(error: Error) -> Result<(), Error> {
    if error.kind == ErrorKind::Unsupported { Ok(()) } else { Err(error) }
}
