// SPDX-License-Identifier: GPL-2.0-or-later
//! Calls that an ordinary worker of libvirtd has to answer.
//!
//! libvirtd has a few workers more for calls that can't block, so these are answered while all ordinary
//! workers wait, for example for a QEMU that hangs. Whatever is outside of this module is such a call. The
//! test `priority` compares both sides with libvirt's own list. Runs on the caller's thread.

use std::ffi::{CStr, c_void};
use std::ops::Deref;
use std::slice;
use std::sync::Arc;

use virt_sys as sys;

use crate::connection::{Connection, DomainRecord};
use crate::domain::{Domain, DomainState, name_of, uuid_of};
use crate::error::{Error, ErrorKind, c_text};

/// Connection with the calls that may wait for ever while libvirtd's ordinary workers are all busy. Nothing
/// that a power-off waits for may depend on one.
#[derive(Clone, Debug)]
pub struct OrdinaryConnection(Connection);

/// Domain with such calls.
#[derive(Debug)]
pub struct OrdinaryDomain<'a> {
    domain: &'a Domain,
}

/// Kind of XML of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XmlKind {
    /// XML with passwords. Needs a writable connection; the text must not reach a log.
    pub secure: bool,
    /// XML of the next start, not of the running instance.
    pub inactive: bool,
}

impl OrdinaryConnection {
    /// Adds the ordinary calls to a connection.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self(connection.clone())
    }

    /// Returns the ordinary calls of a domain.
    #[must_use]
    pub fn of<'a>(&self, domain: &'a Domain) -> OrdinaryDomain<'a> {
        OrdinaryDomain { domain }
    }

    /// Starts a transient domain, which is gone when it stops. (If a definition of its name and UUID exists,
    /// that one is started with this XML.)
    pub fn create_xml(&self, xml: &str) -> Result<Domain, Error> {
        const CALL: &str = "start a transient domain";
        c_text(CALL, xml)?;
        let handle = self.0.handle();
        let _turn = handle.turn();
        let made = virt::domain::Domain::create_xml(handle.connect(), xml, sys::VIR_DOMAIN_NONE)
            .map_err(|_| handle.failed(CALL))?;
        Domain::adopt(made, Arc::clone(handle))
    }

    /// Returns all domains, active or not, with their states, in one call (4 ms for 1000).
    ///
    /// # Errors
    /// `Unsupported` where the driver has no such call.
    pub fn domains_in_bulk(&self) -> Result<Vec<DomainRecord>, Error> {
        let handle = self.0.handle();
        let mut list: *mut sys::virDomainStatsRecordPtr = std::ptr::null_mut();
        let turn = handle.turn();
        // SAFETY: the connection is open; libvirt fills in the list, which is ours.
        let count = unsafe {
            sys::virConnectGetAllDomainStats(
                handle.connect().as_ptr(),
                sys::VIR_DOMAIN_STATS_STATE,
                &raw mut list,
                0,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return Err(handle.failed("list the domains"));
        };
        drop(turn);
        let list = StatsList { list, count };
        list.records().iter().filter_map(|record| self.record(record).transpose()).collect()
    }

    /// Asks an ordinary worker a small question that waits for no domain. A driver that does not know the
    /// answer has answered too.
    pub fn ping_worker(&self) -> Result<(), Error> {
        let handle = self.0.handle();
        let _turn = handle.turn();
        // SAFETY: the connection is open; none of the three results is asked for.
        let asked = unsafe {
            sys::virNodeGetCPUMap(handle.connect().as_ptr(), std::ptr::null_mut(), std::ptr::null_mut(), 0)
        };
        if asked >= 0 {
            return Ok(());
        }
        match handle.failed("ask an ordinary worker for a sign of life") {
            error if error.kind == ErrorKind::Connection => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns none for a domain that went away after the list was made.
    fn record(&self, record: &sys::virDomainStatsRecord) -> Result<Option<DomainRecord>, Error> {
        // SAFETY: a record of libvirt's list holds a valid domain as long as the list lives.
        let (name, uuid) = unsafe { (name_of(record.dom)?, uuid_of(record.dom)?) };
        if let Some(state) = state_of(record) {
            return Ok(Some(DomainRecord { name, uuid, state }));
        }
        // Some drivers leave out values that they can't tell in bulk.
        let Some(domain) = self.0.domain_by_uuid(uuid)? else { return Ok(None) };
        domain.record()
    }
}

impl Deref for OrdinaryConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl OrdinaryDomain<'_> {
    /// Returns whether a job may take the instance elsewhere: a migration, or saving. A backup, a dump or a
    /// snapshot does not. A hypervisor that knows no jobs has none. Of a domain that is off the result means
    /// nothing.
    pub fn has_moving_job(&self) -> Result<bool, Error> {
        let _turn = self.domain.handle.turn();
        let mut info = std::mem::MaybeUninit::<sys::virDomainJobInfo>::uninit();
        // SAFETY: the domain is valid, and the memory is large enough for what libvirt writes.
        if unsafe { sys::virDomainGetJobInfo(self.domain.raw.as_ptr(), info.as_mut_ptr()) } < 0 {
            let error = self.domain.handle.failed("ask for the job of a domain");
            return match error.kind {
                ErrorKind::Unsupported => Ok(false),
                // The incoming side of a migration has no figures; nor has one that is off.
                ErrorKind::OperationInvalid => Ok(true),
                _ => Err(error),
            };
        }
        // SAFETY: libvirt wrote it.
        let job = unsafe { info.assume_init() }.type_;
        // BOUNDED and UNBOUNDED are under way; COMPLETED, FAILED and CANCELLED are over.
        let is_under_way =
            matches!(job.cast_unsigned(), sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED);
        Ok(is_under_way && !self.job_stays())
    }

    /// Returns whether the job that is under way is known to leave the instance here. False where libvirt
    /// can't tell the operation.
    fn job_stays(&self) -> bool {
        let (mut kind, mut count, mut params) = (0, 0, std::ptr::null_mut());
        // SAFETY: the domain is valid; libvirt writes the three values, and allocates the list.
        let asked = unsafe {
            sys::virDomainGetJobStats(
                self.domain.raw.as_ptr(),
                &raw mut kind,
                &raw mut params,
                &raw mut count,
                0,
            )
        };
        if asked < 0 {
            return false;
        }
        let mut operation = 0;
        // SAFETY: the list has `count` entries, the name is a C string, and the list is freed once.
        let found = unsafe {
            let found = sys::virTypedParamsGetInt(params, count, c"operation".as_ptr(), &raw mut operation);
            sys::virTypedParamsFree(params, count);
            found
        };
        found == 1
            && matches!(
                operation.cast_unsigned(),
                sys::VIR_DOMAIN_JOB_OPERATION_BACKUP
                    | sys::VIR_DOMAIN_JOB_OPERATION_DUMP
                    | sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT
                    | sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE
            )
    }

    /// Starts the domain from its definition with a fresh boot: a memory that a managed save left is
    /// discarded, never restored. If it runs already:
    /// [`ErrorKind::OperationInvalid`].
    pub fn create(&self) -> Result<(), Error> {
        const FLAG_NOT_KNOWN: i32 = sys::VIR_ERR_INVALID_ARG.cast_signed();
        let create = |flags| {
            let _turn = self.domain.handle.turn();
            self.domain
                .raw
                .create_with_flags(flags)
                .map(drop)
                .map_err(|_| self.domain.handle.failed("start a domain"))
        };
        match create(sys::VIR_DOMAIN_START_FORCE_BOOT) {
            // A driver without saved memories, or one that keeps them where no start looks.
            Err(error) if error.code == FLAG_NOT_KNOWN => {
                self.discard_saved_memory(self.has_saved_memory()?)?;
                create(0)
            }
            done => done,
        }
    }

    /// Returns whether a managed save left the domain's memory for the next start.
    pub fn has_saved_memory(&self) -> Result<bool, Error> {
        let _turn = self.domain.handle.turn();
        match self
            .domain
            .raw
            .has_managed_save(0)
            .map_err(|_| self.domain.handle.failed("look for a saved memory"))
        {
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(false),
            other => other,
        }
    }

    /// Removes the memory that a managed save left, of which libvirt knew or not. Returns whether it knew.
    ///
    /// Tries so even when libvirt knows of none: a save whose domain is destroyed at its very end announces
    /// its file after the domain is off, and the file is there from the save's beginning.
    pub fn discard_saved_memory(&self, had_one: bool) -> Result<bool, Error> {
        let (removed, no_file) = {
            let _turn = self.domain.handle.turn();
            let removed = self.domain.raw.managed_save_remove(0);
            // Before any other call: that would reset it.
            let no_file = removed.is_err() && Error::last_is_missing_file();
            (removed.map_err(|_| self.domain.handle.failed("remove a saved memory")), no_file)
        };
        match removed {
            // libvirt's test driver removes what is not there.
            Ok(_) => Ok(had_one),
            Err(_) if no_file => Ok(false),
            Err(error) if error.kind == ErrorKind::NoDomain => Ok(false),
            // A driver without saved memories, or rules of libvirt that allow no more than starts and stops.
            Err(error) if !had_one && error.kind != ErrorKind::Connection && !error.is_of_the_system() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Pauses the domain's processors.
    pub fn suspend(&self) -> Result<(), Error> {
        let _turn = self.domain.handle.turn();
        self.domain.raw.suspend().map(drop).map_err(|_| self.domain.handle.failed("suspend a domain"))
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<(), Error> {
        let _turn = self.domain.handle.turn();
        self.domain.raw.resume().map(drop).map_err(|_| self.domain.handle.failed("resume a domain"))
    }

    /// Returns whether the connection may only read: then libvirt carries out no order that comes by it.
    ///
    /// libvirt has no call that tells this. So something is read that only a connection that may write can
    /// read, the passwords in the domain's XML.
    pub fn is_read_only(&self) -> Result<bool, Error> {
        match self.xml(XmlKind { secure: true, inactive: true }) {
            Ok(_) => Ok(false),
            Err(error) if error.is_for_read_only() => Ok(true),
            // Rules of libvirt may allow orders and forbid this.
            Err(error) if error.kind == ErrorKind::AccessDenied => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the XML.
    pub fn xml(&self, kind: XmlKind) -> Result<String, Error> {
        let mut flags = 0;
        if kind.secure {
            flags |= sys::VIR_DOMAIN_XML_SECURE;
        }
        if kind.inactive {
            flags |= sys::VIR_DOMAIN_XML_INACTIVE;
        }
        let _turn = self.domain.handle.turn();
        // SAFETY: the domain is valid.
        let text = unsafe { sys::virDomainGetXMLDesc(self.domain.raw.as_ptr(), flags) };
        if text.is_null() {
            return Err(self.domain.handle.failed("read the XML of a domain"));
        }
        // SAFETY: not null: NUL-terminated text that is now ours.
        let xml = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // SAFETY: libvirt's texts are to be freed with free(3); the copy is made.
        unsafe { free(text.cast::<c_void>()) };
        Ok(xml)
    }
}

/// List of statistics from libvirt, freed when dropped.
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
        // SAFETY: as above; `as_ref` handles nulls.
        records.iter().filter_map(|record| unsafe { record.as_ref() }).collect()
    }
}

impl Drop for StatsList {
    fn drop(&mut self) {
        // SAFETY: libvirt's own list (or null, which it accepts), freed once.
        unsafe { sys::virDomainStatsRecordListFree(self.list) };
    }
}

fn state_of(record: &sys::virDomainStatsRecord) -> Option<DomainState> {
    let count = usize::try_from(record.nparams).ok()?;
    if record.params.is_null() {
        return None;
    }
    // SAFETY: `nparams` parameters are there, as long as the record lives.
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
    Some(DomainState::with_reason(number(c"state.state")?, number(c"state.reason").unwrap_or_default()))
}

unsafe extern "C" {
    /// libvirt's client library allocates with the C library's allocator.
    pub(crate) fn free(memory: *mut c_void);
}
