// SPDX-License-Identifier: GPL-2.0-or-later
//! Notices from libvirt: lifecycle events of domains, and the loss of a connection.
//!
//! Call-backs run on libvirt's threads with locks of libvirt held. They must be quick and must not call
//! libvirt; they should only send the event into a channel. A panic in one ends the process.

use std::convert::Infallible;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, mem};

use virt_sys as sys;

use crate::connection::ConnectionHandle;
use crate::domain::{name_of, uuid_of};
use crate::error::{Error, ErrorKind};
use crate::uuid::Uuid;

/// Lifecycle event of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleEvent {
    /// UUID of the domain.
    pub uuid: Uuid,
    /// Name of the domain; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Kind of the event.
    pub kind: LifecycleKind,
    /// Detail in libvirt's numbers (`VIR_DOMAIN_EVENT_<KIND>_*`).
    pub detail: i32,
}

/// Kind of a lifecycle event. The numbers are libvirt's (`virDomainEventType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LifecycleKind {
    /// 0: a definition was added or changed.
    Defined,
    /// 1: the definition was removed.
    Undefined,
    /// 2: started.
    Started,
    /// 3: paused.
    Suspended,
    /// 4: no longer paused.
    Resumed,
    /// 5: the domain is off.
    Stopped,
    /// 6: the guest has shut down; [`Stopped`](Self::Stopped) follows.
    Shutdown,
    /// 7: suspended by the guest itself.
    PmSuspended,
    /// 8: crashed.
    Crashed,
    /// A device was plugged in or out while the domain runs. Not one of libvirt's lifecycle events, but
    /// delivered with them.
    DevicesChanged,
    /// The hypervisor began one more copy of the memory of an instance: to another host, or to a file. Each
    /// migration that goes out has at least one, before the target can have the machine. Not one of libvirt's
    /// lifecycle events, but delivered with them.
    MemoryCopied,
    /// Number that this crate does not know.
    Other(i32),
}

/// Reason for the end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// An input or output error.
    Error,
    /// The hypervisor hung up.
    EndOfFile,
    /// The hypervisor did not answer keepalive.
    KeepAlive,
    /// This side closed the connection.
    Client,
    /// Number that this crate does not know.
    Other(i32),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("the connection broke"),
            Self::EndOfFile => f.write_str("libvirtd hung up: it was stopped, or it died"),
            Self::KeepAlive => {
                f.write_str("libvirtd answers nothing any more: it hangs, or the way to it is cut")
            }
            Self::Client => f.write_str("this side hung up"),
            Self::Other(number) => write!(f, "closed for a reason that is not known ({number})"),
        }
    }
}

/// Subscription to lifecycle events. After it is dropped, no later event is delivered; the delivery of one
/// event may be in progress on the event thread. The closure is freed with the subscription (or after that
/// delivery). Keeps the connection open.
#[must_use = "events end when this is dropped"]
#[derive(Debug)]
pub struct EventSubscription {
    handle: Arc<ConnectionHandle>,
    number: u64,
}

impl EventSubscription {
    pub(crate) fn new(
        handle: Arc<ConnectionHandle>,
        call: impl Fn(LifecycleEvent) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        // First the closure, then libvirt, so that no event is missed between. On an error, dropping the
        // subscription removes the closure.
        let number = handle.lifecycle().add(Arc::new(call));
        let subscription = Self { handle, number };
        subscription.handle.lifecycle().register(&subscription.handle)?;
        Ok(subscription)
    }
}

impl Drop for EventSubscription {
    fn drop(&mut self) {
        self.handle.lifecycle().remove(self.number);
    }
}

/// Listeners to lifecycle events. libvirt takes a call-back function only once per connection. So there is
/// one registration of each kind, made when first needed and kept until the close, for any number of
/// subscriptions.
#[derive(Default)]
pub(crate) struct LifecycleWatch {
    listeners: Arc<Mutex<LifecycleListeners>>,
    registrations: Mutex<Vec<EventRegistration>>,
}

#[derive(Default)]
struct LifecycleListeners {
    last: u64,
    calls: Vec<(u64, Arc<LifecycleListener>)>,
}

type LifecycleListener = dyn Fn(LifecycleEvent) + Send + Sync;

/// libvirt's number of a call-back, and a channel that ends when libvirt has freed the call-back.
pub(crate) struct EventRegistration {
    pub(crate) id: i32,
    pub(crate) freed: Receiver<Infallible>,
}

impl LifecycleWatch {
    /// Returns the registrations that the closing thread has to remove.
    pub(crate) fn into_registrations(self) -> Vec<EventRegistration> {
        self.registrations.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, call: Arc<LifecycleListener>) -> u64 {
        let mut listeners = lock(&self.listeners);
        listeners.last += 1;
        let number = listeners.last;
        listeners.calls.push((number, call));
        number
    }

    fn remove(&self, number: u64) {
        let mut listeners = lock(&self.listeners);
        let place = listeners.calls.iter().position(|(n, _)| *n == number);
        let removed = place.map(|place| listeners.calls.remove(place));
        // The closure may own anything, even another subscription: it is not dropped under the lock.
        drop(listeners);
        drop(removed);
    }

    fn register(&self, handle: &ConnectionHandle) -> Result<(), Error> {
        let mut registrations = lock(&self.registrations);
        if !registrations.is_empty() {
            return Ok(());
        }
        // SAFETY: libvirt has one pointer type for all kinds of events. It calls the function with the
        // arguments of the registered kind: for lifecycle events those of `lifecycle`.
        let lifecycle = unsafe { mem::transmute::<LifecycleFn, GenericFn>(lifecycle) };
        // SAFETY: as above; for both events of devices the arguments are those of `device`.
        let device = unsafe { mem::transmute::<DeviceFn, GenericFn>(device) };
        let _turn = handle.turn();
        registrations.push(self.register_one(handle, sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle)?);
        // SAFETY: as above; for this event the arguments are those of `memory_copied`.
        let copied = unsafe { mem::transmute::<CopyFn, GenericFn>(memory_copied) };
        for (event, callback) in [
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, device),
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, device),
            (sys::VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, copied),
        ] {
            match self.register_one(handle, event, callback) {
                Ok(registration) => registrations.push(registration),
                // Some drivers have no devices that can be plugged, and copy no memory.
                Err(error) if error.kind == ErrorKind::Unsupported => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// `callback` must be of the kind that `event` calls, and take a `CallbackTarget` as its data.
    fn register_one(
        &self,
        handle: &ConnectionHandle,
        event: u32,
        callback: GenericFn,
    ) -> Result<EventRegistration, Error> {
        let (free, freed) = mpsc::channel();
        let target = Box::new(CallbackTarget { listeners: Arc::clone(&self.listeners), _free: free });
        let opaque = Box::into_raw(target).cast::<c_void>();
        // SAFETY: the connection is open. The pointer stays valid until `free_target`, which libvirt calls
        // once, after the last event.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                handle.connect().as_ptr(),
                ptr::null_mut(),
                event.cast_signed(),
                Some(callback),
                opaque,
                Some(free_target),
            )
        };
        if id < 0 {
            let error = handle.failed("watch lifecycle events");
            // SAFETY: libvirt did not take the target, and so never frees it.
            drop(unsafe { Box::from_raw(opaque.cast::<CallbackTarget>()) });
            return Err(error);
        }
        Ok(EventRegistration { id, freed })
    }
}

/// Listeners to the loss of a connection. libvirt has one call-back per connection; this type serves any
/// number, and callers that ask too late.
#[derive(Default)]
pub(crate) struct CloseWatch(Mutex<CloseState>);

#[derive(Default)]
struct CloseState {
    lost: Option<CloseReason>,
    watchers: Vec<Box<dyn FnOnce(CloseReason) + Send>>,
}

impl CloseWatch {
    pub(crate) fn add(&self, call: Box<dyn FnOnce(CloseReason) + Send>) {
        let mut state = lock(&self.0);
        match state.lost {
            None => state.watchers.push(call),
            Some(reason) => {
                drop(state);
                call(reason);
            }
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        lock(&self.0).lost.is_some()
    }

    fn lost(&self, reason: CloseReason) {
        let mut state = lock(&self.0);
        state.lost = Some(reason);
        let watchers = mem::take(&mut state.watchers);
        drop(state);
        for call in watchers {
            call(reason);
        }
    }
}

/// libvirt's close call-back. `opaque` is a [`CloseWatch`].
pub(crate) unsafe extern "C" fn connection_lost(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    // SAFETY: registered with a pointer to the watch, which the closing thread keeps until the call-back is
    // removed.
    let watch = unsafe { &*opaque.cast::<CloseWatch>() };
    watch.lost(match reason.cast_unsigned() {
        sys::VIR_CONNECT_CLOSE_REASON_ERROR => CloseReason::Error,
        sys::VIR_CONNECT_CLOSE_REASON_EOF => CloseReason::EndOfFile,
        sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE => CloseReason::KeepAlive,
        sys::VIR_CONNECT_CLOSE_REASON_CLIENT => CloseReason::Client,
        _ => CloseReason::Other(reason),
    });
}

/// Target of libvirt's call-backs.
struct CallbackTarget {
    listeners: Arc<Mutex<LifecycleListeners>>,
    /// Never sends: the end of the channel shows that libvirt has freed the target.
    _free: Sender<Infallible>,
}

type LifecycleFn =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type DeviceFn = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type CopyFn = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, *mut c_void);
type GenericFn = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

unsafe extern "C" fn lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: registered with a pointer to a `CallbackTarget`; libvirt lends the rest for the call.
    unsafe { tell(domain, LifecycleKind::of(event), detail, opaque) };
    0
}

unsafe extern "C" fn device(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: registered with a pointer to a `CallbackTarget`; libvirt lends the rest for the call.
    unsafe { tell(domain, LifecycleKind::DevicesChanged, 0, opaque) };
}

unsafe extern "C" fn memory_copied(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _iteration: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: registered with a pointer to a `CallbackTarget`; libvirt lends the rest for the call.
    unsafe { tell(domain, LifecycleKind::MemoryCopied, 0, opaque) };
}

/// # Safety
/// `opaque` must point to a `CallbackTarget` and `domain` to a valid domain, both for the time of the call.
unsafe fn tell(domain: sys::virDomainPtr, kind: LifecycleKind, detail: i32, opaque: *mut c_void) {
    // SAFETY: by contract; the target lives until `free_target`. Shared access only.
    let target = unsafe { &*opaque.cast::<CallbackTarget>() };
    // SAFETY: a valid domain by contract; these two calls only read its fields.
    let (uuid, name) = unsafe { (uuid_of(domain), name_of(domain)) };
    if let (Ok(uuid), Ok(name)) = (uuid, name) {
        let event = LifecycleEvent { uuid, name, kind, detail };
        // The closure is not called under the lock: it may drop its own subscription.
        let calls = lock(&target.listeners).calls.clone();
        for (_, call) in calls {
            call(event.clone());
        }
    }
}

unsafe extern "C" fn free_target(opaque: *mut c_void) {
    // SAFETY: the pointer came from `Box::into_raw`, and libvirt calls this once, as the last use.
    drop(unsafe { Box::from_raw(opaque.cast::<CallbackTarget>()) });
}

/// Locks even after a panic. A panic under one of these locks is impossible but for lack of memory, and the
/// data is complete at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LifecycleKind {
    fn of(number: i32) -> Self {
        match number.cast_unsigned() {
            sys::VIR_DOMAIN_EVENT_DEFINED => Self::Defined,
            sys::VIR_DOMAIN_EVENT_UNDEFINED => Self::Undefined,
            sys::VIR_DOMAIN_EVENT_STARTED => Self::Started,
            sys::VIR_DOMAIN_EVENT_SUSPENDED => Self::Suspended,
            sys::VIR_DOMAIN_EVENT_RESUMED => Self::Resumed,
            sys::VIR_DOMAIN_EVENT_STOPPED => Self::Stopped,
            sys::VIR_DOMAIN_EVENT_SHUTDOWN => Self::Shutdown,
            sys::VIR_DOMAIN_EVENT_PMSUSPENDED => Self::PmSuspended,
            sys::VIR_DOMAIN_EVENT_CRASHED => Self::Crashed,
            _ => Self::Other(number),
        }
    }
}
