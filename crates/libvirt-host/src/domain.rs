// SPDX-License-Identifier: GPL-2.0-or-later
//! One domain: its identity, its state, its power, its XML.

use std::ffi::{CStr, c_int, c_void};
use std::fmt;
use std::sync::Arc;

use virt_sys as sys;

use crate::connection::{DomainRecord, Handle};
use crate::error::{Error, ErrorKind};
use crate::uuid::Uuid;

/// A domain that a look-up found or a definition made. It names the domain and does not hold it: the domain
/// may be gone at the next call ([`ErrorKind::NoDomain`](crate::ErrorKind::NoDomain)). It keeps its
/// connection open.
pub struct Domain {
    // Before the handle: the domain holds a reference to the connection, and the last one must be the
    // handle's.
    raw: virt::domain::Domain,
    handle: Arc<Handle>,
    name: String,
    uuid: Uuid,
}

/// What a domain is doing, in libvirt's numbers (`virDomainState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// 0: the hypervisor can't tell.
    NoState,
    /// 1
    Running,
    /// 2: waits for a resource.
    Blocked,
    /// 3
    Paused,
    /// 4: is shutting down, not yet off.
    Shutdown,
    /// 5: off.
    ShutOff,
    /// 5 as well, for the reason that it was migrated: the definition stayed behind, the machine runs
    /// elsewhere. libvirt knows the reason until its next restart.
    MovedAway,
    /// 6: crashed; whether anything of it is left depends on its configuration.
    Crashed,
    /// 7: suspended by the guest's power management.
    PmSuspended,
    /// A number that this crate does not know.
    Other(i32),
}

/// Which XML of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XmlKind {
    /// With passwords. Needs a writable connection; the text must not reach a log.
    pub secure: bool,
    /// What the next start will use, rather than what runs now.
    pub inactive: bool,
}

impl Domain {
    /// The name that it had when it was looked up; bytes that are not UTF-8 are replaced, so look such a
    /// domain up by its UUID.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The number of the running instance at the time of the look-up (or of [`create`](Self::create) by this
    /// value); none when it was off.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.raw.get_id()
    }

    /// What it is doing now.
    pub fn state(&self) -> Result<State, Error> {
        let _turn = self.handle.turn();
        let (mut state, mut reason): (c_int, c_int) = (-1, 0);
        // SAFETY: the domain is valid, the two numbers are ours.
        let done = unsafe { sys::virDomainGetState(self.raw.as_ptr(), &raw mut state, &raw mut reason, 0) };
        if done < 0 {
            return Err(self.handle.failed("ask the state of a domain"));
        }
        Ok(State::with_reason(state, reason))
    }

    /// Whether an instance exists now (running, paused, crashed but kept).
    pub fn is_active(&self) -> Result<bool, Error> {
        let _turn = self.handle.turn();
        self.raw.is_active().map_err(|_| self.handle.failed("ask whether a domain is active"))
    }

    /// Whether it has a definition that outlives the instance.
    pub fn is_persistent(&self) -> Result<bool, Error> {
        let _turn = self.handle.turn();
        self.raw.is_persistent().map_err(|_| self.handle.failed("ask whether a domain is persistent"))
    }

    /// Powers it off, hard. Returns when the hypervisor has done it. Off already:
    /// [`ErrorKind::OperationInvalid`](crate::ErrorKind::OperationInvalid).
    pub fn destroy(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.raw.destroy().map_err(|_| self.handle.failed("destroy a domain"))
    }

    /// Starts it from its definition. Running already:
    /// [`ErrorKind::OperationInvalid`](crate::ErrorKind::OperationInvalid).
    pub fn create(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.raw.create().map(drop).map_err(|_| self.handle.failed("start a domain"))
    }

    /// Pauses its processors.
    pub fn suspend(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.raw.suspend().map(drop).map_err(|_| self.handle.failed("suspend a domain"))
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.raw.resume().map(drop).map_err(|_| self.handle.failed("resume a domain"))
    }

    /// Removes its definition; a running instance becomes transient.
    pub fn undefine(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.raw.undefine().map_err(|_| self.handle.failed("undefine a domain"))
    }

    /// Its XML.
    pub fn xml(&self, kind: XmlKind) -> Result<String, Error> {
        let mut flags = 0;
        if kind.secure {
            flags |= sys::VIR_DOMAIN_XML_SECURE;
        }
        if kind.inactive {
            flags |= sys::VIR_DOMAIN_XML_INACTIVE;
        }
        let _turn = self.handle.turn();
        // SAFETY: the domain is valid.
        let text = unsafe { sys::virDomainGetXMLDesc(self.raw.as_ptr(), flags) };
        if text.is_null() {
            return Err(self.handle.failed("read the XML of a domain"));
        }
        // SAFETY: not null: NUL-terminated text that is now ours.
        let xml = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // SAFETY: libvirt asks that its texts be freed with free(3); the copy is made.
        unsafe { free(text.cast::<c_void>()) };
        Ok(xml)
    }

    /// As a list shows it; `None` when it is gone.
    pub(crate) fn record(&self) -> Result<Option<DomainRecord>, Error> {
        match self.state() {
            Ok(state) => Ok(Some(DomainRecord { name: self.name.clone(), uuid: self.uuid, state })),
            Err(error) if error.kind == ErrorKind::NoDomain => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes over a domain that libvirt gave.
    pub(crate) fn adopt(raw: virt::domain::Domain, handle: Arc<Handle>) -> Result<Self, Error> {
        // SAFETY: `raw` holds a valid domain.
        let (name, uuid) = unsafe { (name_of(raw.as_ptr())?, uuid_of(raw.as_ptr())?) };
        Ok(Self { raw, handle, name, uuid })
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("name", &self.name).field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl State {
    /// From libvirt's numbers of state and reason.
    pub(crate) fn with_reason(state: i32, reason: i32) -> Self {
        /// `VIR_DOMAIN_SHUTOFF_MIGRATED`
        const MIGRATED: i32 = 4;
        match Self::from(state) {
            Self::ShutOff if reason == MIGRATED => Self::MovedAway,
            state => state,
        }
    }

    /// libvirt's number, as the host list carries it.
    #[must_use]
    pub fn number(self) -> i32 {
        let number = match self {
            Self::NoState => sys::VIR_DOMAIN_NOSTATE,
            Self::Running => sys::VIR_DOMAIN_RUNNING,
            Self::Blocked => sys::VIR_DOMAIN_BLOCKED,
            Self::Paused => sys::VIR_DOMAIN_PAUSED,
            Self::Shutdown => sys::VIR_DOMAIN_SHUTDOWN,
            Self::ShutOff | Self::MovedAway => sys::VIR_DOMAIN_SHUTOFF,
            Self::Crashed => sys::VIR_DOMAIN_CRASHED,
            Self::PmSuspended => sys::VIR_DOMAIN_PMSUSPENDED,
            Self::Other(number) => return number,
        };
        number.cast_signed()
    }
}

impl From<i32> for State {
    fn from(number: i32) -> Self {
        match number.cast_unsigned() {
            sys::VIR_DOMAIN_NOSTATE => Self::NoState,
            sys::VIR_DOMAIN_RUNNING => Self::Running,
            sys::VIR_DOMAIN_BLOCKED => Self::Blocked,
            sys::VIR_DOMAIN_PAUSED => Self::Paused,
            sys::VIR_DOMAIN_SHUTDOWN => Self::Shutdown,
            sys::VIR_DOMAIN_SHUTOFF => Self::ShutOff,
            sys::VIR_DOMAIN_CRASHED => Self::Crashed,
            sys::VIR_DOMAIN_PMSUSPENDED => Self::PmSuspended,
            _ => Self::Other(number),
        }
    }
}

unsafe extern "C" {
    /// libvirt's client library allocates with the C library's allocator.
    pub(crate) fn free(memory: *mut c_void);
}

/// The name inside a domain: no call to the hypervisor.
///
/// # Safety
/// `domain` must be a valid domain for the time of the call.
pub(crate) unsafe fn name_of(domain: sys::virDomainPtr) -> Result<String, Error> {
    // SAFETY: valid by contract.
    let name = unsafe { sys::virDomainGetName(domain) };
    if name.is_null() {
        return Err(Error::last("read the name of a domain"));
    }
    // SAFETY: not null: NUL-terminated text that lives as long as the domain.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The UUID inside a domain: no call to the hypervisor.
///
/// # Safety
/// `domain` must be a valid domain for the time of the call.
pub(crate) unsafe fn uuid_of(domain: sys::virDomainPtr) -> Result<Uuid, Error> {
    let mut bytes = [0; 16];
    // SAFETY: valid by contract; libvirt writes 16 bytes (VIR_UUID_BUFLEN).
    if unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) } < 0 {
        return Err(Error::last("read the UUID of a domain"));
    }
    Ok(Uuid::from_bytes(bytes))
}
