// SPDX-License-Identifier: GPL-2.0-or-later
//! Domain: its identity, its state, its power, its XML.
//!
//! Runs on the caller's thread, which a call blocks. Must never outlive its connection.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::sync::Arc;

use virt_sys as sys;

use crate::connection::{ConnectionHandle, DomainRecord};
use crate::error::{Error, ErrorKind};
use crate::uuid::Uuid;

/// Domain that a look-up found or a definition made. The value names the domain and does not hold it: the
/// domain may be gone at the next call ([`ErrorKind::NoDomain`]). The value keeps
/// its connection open.
pub struct Domain {
    // Before the handle: the domain holds a reference to the connection, and the handle's must be the last.
    pub(crate) raw: virt::domain::Domain,
    pub(crate) handle: Arc<ConnectionHandle>,
    name: String,
    uuid: Uuid,
}

/// State of a domain, in libvirt's numbers (`virDomainState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainState {
    /// 0: the hypervisor can't tell.
    NoState,
    /// 1: running.
    Running,
    /// 1 as well, because a migration brought the instance here, or was given up here, or because the
    /// instance was paused since: libvirt keeps the last reason only, and so forgets a migration.
    MayHaveComeIn,
    /// 2: waiting for a resource.
    Blocked,
    /// 3: paused.
    Paused,
    /// 3 as well, because a migration paused the instance, or because the instance was restored so: libvirt
    /// has one reason for both. The machine may run on another host.
    Migrating,
    /// 1 as well, in the post-copy phase of a migration that comes in, or after its failure: the machine runs
    /// here, before its memory is whole, and can't go back.
    PostCopy,
    /// 3 as well, because the instance just starts, or is made for a migration that comes in.
    Starting,
    /// 4: shutting down, not yet off.
    Shutdown,
    /// 5: off.
    ShutOff,
    /// 5 as well, because the domain was migrated: the definition stayed behind, and the machine runs on
    /// another host. libvirt forgets the reason at its next restart.
    MovedAway,
    /// 6: crashed; the configuration decides whether the instance is kept.
    Crashed,
    /// 7: suspended by the guest's power management.
    PmSuspended,
    /// Number that this crate does not know.
    Other(i32),
}

impl Domain {
    /// Returns the name at the time of the look-up. Bytes that are not UTF-8 are replaced, so look up such a
    /// domain by its UUID.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Returns the number of the running instance at the time of the look-up, or of its start by this value;
    /// none when the domain was off.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.raw.get_id()
    }

    /// Returns the state now.
    pub fn state(&self) -> Result<DomainState, Error> {
        let (state, reason) = self.state_and_reason()?;
        Ok(DomainState::with_reason(state, reason))
    }

    fn state_and_reason(&self) -> Result<(c_int, c_int), Error> {
        let _turn = self.handle.turn();
        let (mut state, mut reason): (c_int, c_int) = (-1, 0);
        // SAFETY: the domain is valid, the two numbers are ours.
        let done = unsafe { sys::virDomainGetState(self.raw.as_ptr(), &raw mut state, &raw mut reason, 0) };
        if done < 0 {
            return Err(self.handle.failed("ask the state of a domain"));
        }
        Ok((state, reason))
    }

    /// Returns whether an instance exists now (running, paused, crashed but kept).
    pub fn is_active(&self) -> Result<bool, Error> {
        let _turn = self.handle.turn();
        self.raw.is_active().map_err(|_| self.handle.failed("ask whether a domain is active"))
    }

    /// Returns whether the domain has a definition that outlives the instance.
    pub fn is_persistent(&self) -> Result<bool, Error> {
        let _turn = self.handle.turn();
        self.raw.is_persistent().map_err(|_| self.handle.failed("ask whether a domain is persistent"))
    }

    /// Powers the domain off, hard. Returns when the hypervisor has done it. If the domain is off already:
    /// [`ErrorKind::OperationInvalid`].
    pub fn destroy(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.raw.destroy().map_err(|_| self.handle.failed("destroy a domain"))
    }

    /// Returns whether the domain runs since a boot: nothing was restored or migrated, and nobody has paused
    /// it since.
    pub fn is_freshly_booted(&self) -> Result<bool, Error> {
        let (state, reason) = self.state_and_reason()?;
        Ok(state == sys::VIR_DOMAIN_RUNNING.cast_signed()
            && reason == sys::VIR_DOMAIN_RUNNING_BOOTED.cast_signed())
    }

    /// Removes the definition; a running instance becomes transient.
    pub fn undefine(&self) -> Result<(), Error> {
        let _turn = self.handle.turn();
        self.raw.undefine().map_err(|_| self.handle.failed("undefine a domain"))
    }

    /// Returns the record of a list; `None` when the domain is gone.
    pub(crate) fn record(&self) -> Result<Option<DomainRecord>, Error> {
        match self.state() {
            Ok(state) => Ok(Some(DomainRecord { name: self.name.clone(), uuid: self.uuid, state })),
            Err(error) if error.kind == ErrorKind::NoDomain => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes over a domain from libvirt.
    pub(crate) fn adopt(raw: virt::domain::Domain, handle: Arc<ConnectionHandle>) -> Result<Self, Error> {
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

impl DomainState {
    /// Returns the state for libvirt's numbers of state and reason.
    pub(crate) fn with_reason(state: i32, reason: i32) -> Self {
        /// `VIR_DOMAIN_SHUTOFF_MIGRATED`
        const MIGRATED: i32 = 4;
        /// `VIR_DOMAIN_PAUSED_` `MIGRATION`, `POSTCOPY` and `POSTCOPY_FAILED`
        const PAUSED_BY_MIGRATION: [i32; 3] = [2, 12, 13];
        /// `VIR_DOMAIN_PAUSED_STARTING_UP`
        const STARTING_UP: i32 = 11;
        /// `VIR_DOMAIN_RUNNING_` `POSTCOPY` and `POSTCOPY_FAILED`
        const RUNNING_IN_MIGRATION: [i32; 2] = [10, 11];
        /// `VIR_DOMAIN_RUNNING_` `UNKNOWN`, `BOOTED`, `RESTORED` and `FROM_SNAPSHOT`
        const SINCE_ITS_START: [i32; 4] = [0, 1, 3, 4];
        match Self::from(state) {
            Self::ShutOff if reason == MIGRATED => Self::MovedAway,
            Self::Paused if PAUSED_BY_MIGRATION.contains(&reason) => Self::Migrating,
            Self::Paused if reason == STARTING_UP => Self::Starting,
            Self::Running if RUNNING_IN_MIGRATION.contains(&reason) => Self::PostCopy,
            Self::Running if !SINCE_ITS_START.contains(&reason) => Self::MayHaveComeIn,
            state => state,
        }
    }

    /// Returns whether a migration has the instance, or it just starts: it may not be the machine.
    #[must_use]
    pub fn is_in_transit(self) -> bool {
        matches!(self, Self::Migrating | Self::PostCopy | Self::Starting)
    }

    /// Returns libvirt's number, as the host list carries it.
    #[must_use]
    pub fn number(self) -> i32 {
        let number = match self {
            Self::NoState => sys::VIR_DOMAIN_NOSTATE,
            Self::Running | Self::MayHaveComeIn | Self::PostCopy => sys::VIR_DOMAIN_RUNNING,
            Self::Blocked => sys::VIR_DOMAIN_BLOCKED,
            Self::Paused | Self::Migrating | Self::Starting => sys::VIR_DOMAIN_PAUSED,
            Self::Shutdown => sys::VIR_DOMAIN_SHUTDOWN,
            Self::ShutOff | Self::MovedAway => sys::VIR_DOMAIN_SHUTOFF,
            Self::Crashed => sys::VIR_DOMAIN_CRASHED,
            Self::PmSuspended => sys::VIR_DOMAIN_PMSUSPENDED,
            Self::Other(number) => return number,
        };
        number.cast_signed()
    }
}

impl From<i32> for DomainState {
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

/// Returns the name inside a domain, without a call to the hypervisor.
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

/// Returns the UUID inside a domain, without a call to the hypervisor.
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
