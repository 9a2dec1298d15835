// SPDX-License-Identifier: GPL-2.0-or-later
//! Two threads that libvirt needs beside its callers: one runs its event loop, one closes connections.
//!
//! Closing has a thread of its own for two reasons. A close notifies the hypervisor and waits for the answer,
//! so with a stopped libvirtd it blocks until keepalive gives up. And the last reference to a connection must
//! not be dropped inside a call-back of the event loop, where libvirt deadlocks. So only this thread closes.

use std::convert::Infallible;
use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use virt::connect::Connect;
use virt_sys as sys;

use crate::error::Error;
use crate::event::{CloseWatch, EventRegistration, connection_lost};

/// Prepares libvirt in this process: no printing, the event loop on its own thread. Does so once, at the
/// first call; [`Connection::open`](crate::Connection::open) calls it too. A failure is permanent.
pub fn init() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), Error>> = OnceLock::new();
    DONE.get_or_init(start).clone()
}

/// Ends the process with this exit code, at once and silently: no buffer is flushed, and no destructor of a C
/// library runs.
///
/// A return from `main` or [`std::process::exit`] runs the destructors of libvirt's libraries, while its two
/// threads and calls in progress still use them. One library, OpenSSL, frees the data of each thread that
/// used it. If such a thread ends at that moment and frees the data itself, that is a double free.
pub fn leave(code: u8) -> ! {
    // SAFETY: ends the process; may be called at any time on any thread.
    unsafe { _exit(code.into()) }
}

/// Lets all threads share one heap from now on. For a process whose address space is limited: the C library
/// reserves 64 MiB for each heap, and libvirt's libraries abort the process where they get no memory.
pub fn share_memory_of_threads() {
    /// `M_ARENA_MAX` of malloc.h.
    #[cfg(target_env = "gnu")]
    const ARENA_MAX: c_int = -8;
    #[cfg(target_env = "gnu")]
    // SAFETY: changes a number under the allocator's own lock; may be called at any time on any thread.
    unsafe {
        mallopt(ARENA_MAX, 1);
    }
}

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
    #[cfg(target_env = "gnu")]
    fn mallopt(parameter: c_int, value: c_int) -> c_int;
}

/// Connection to close, with the call-backs to remove from it before.
pub(crate) struct ClosingConnection {
    pub(crate) connect: Connect,
    pub(crate) watch: Arc<CloseWatch>,
    pub(crate) registrations: Vec<EventRegistration>,
}

/// Passes a connection to the closing thread. Never blocks, may be called anywhere.
pub(crate) fn close_later(closing: ClosingConnection) {
    // Only after `init` can a connection be opened, so there is a thread. Without one, the connection would
    // stay open: better than closing it on an unknown thread.
    if let Some(queue) = CLOSER.get() {
        let _ = queue.send(closing);
    }
}

static CLOSER: OnceLock<Sender<ClosingConnection>> = OnceLock::new();

fn start() -> Result<(), Error> {
    // SAFETY: no arguments; may be called at any time and by several threads.
    if unsafe { sys::virInitialize() } < 0 {
        return Err(Error::last("initialise libvirt"));
    }
    // SAFETY: a function without data, which lives as long as the process.
    unsafe { sys::virSetErrorFunc(ptr::null_mut(), Some(keep_quiet)) };
    // SAFETY: no arguments. The call has to come before the first connection, and `init` runs it once, before
    // any.
    if unsafe { sys::virEventRegisterDefaultImpl() } < 0 {
        return Err(Error::last("register the event loop"));
    }
    spawn("libvirt-events", run_events)?;
    let (queue, queued) = mpsc::channel();
    spawn("libvirt-closer", move || queued.into_iter().for_each(close))?;
    let _ = CLOSER.set(queue);
    Ok(())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let failed = |e: io::Error| {
        Error::own("start a thread for libvirt", sys::VIR_ERR_SYSTEM_ERROR.cast_signed(), &e.to_string())
    };
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(failed)
}

unsafe extern "C" fn keep_quiet(_data: *mut c_void, _error: sys::virErrorPtr) {}

fn run_events() {
    loop {
        // SAFETY: the default implementation is registered, and only this thread runs it.
        if unsafe { sys::virEventRunDefaultImpl() } < 0 {
            // The call only fails when it is misused. If it ever does, do not use up a processor.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn close(closing: ClosingConnection) {
    let ClosingConnection { mut connect, watch, registrations } = closing;
    let kept = registrations.iter().filter(|it| !unsubscribe(&connect, it)).count();
    let unsubscribed = kept == 0;
    if unwatch(&connect, &watch) && unsubscribed {
        let _ = connect.close();
    } else {
        // libvirt still holds a call-back and with it a reference, so a close now could leave the last
        // reference to the event loop. It is better to lose one connection, and the target of its call-back.
        let _ = Arc::into_raw(watch);
    }
}

/// Removes an event's call-back from the connection, which would keep it alive. Returns whether it is removed
/// for certain.
///
/// While an event is delivered, libvirt only marks the call-back. The event loop frees it afterwards,
/// together with a reference to the connection. So wait for that, and then once more for the lock of the
/// event loop (which a second attempt takes, to find nothing): after it no such reference is left.
fn unsubscribe(connect: &Connect, registration: &EventRegistration) -> bool {
    let deregister = || {
        // SAFETY: the connection is open: its only close comes after this. An unknown number is an error
        // without effect. On a lost connection the call-back is removed before the attempt to notify the
        // hypervisor.
        unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), registration.id) };
    };
    deregister();
    match registration.freed.recv_timeout(Duration::from_secs(10)) {
        Err(RecvTimeoutError::Disconnected) => {
            deregister();
            true
        }
        Err(RecvTimeoutError::Timeout) => false,
        Ok(never) => match never {},
    }
}

/// Removes the close call-back from the connection, which would keep it alive. Returns whether it is removed
/// for certain.
///
/// On a lost connection the hypervisor can't be notified, so libvirt refuses, some versions for ever. But it
/// delivers the loss once, and removes the call-back by that. It gives its reference back right after the
/// delivery, on the thread that delivers: that of a call, which had a handle of its own and has ended, or
/// that of the event loop, which is let go on once.
fn unwatch(connect: &Connect, watch: &CloseWatch) -> bool {
    const ATTEMPTS: u32 = 100;
    for _ in 0..ATTEMPTS {
        // SAFETY: the connection is open: its only close comes after this.
        let done = unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(connection_lost)) };
        if done == 0 {
            return true;
        }
        let error = Error::last("unregister the close call-back");
        if error.code.cast_unsigned() == sys::VIR_ERR_INVALID_ARG {
            return true;
        }
        if watch.is_lost() {
            return let_events_go_on();
        }
        thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Waits until the event loop has ended what it does now. Returns whether it has.
fn let_events_go_on() -> bool {
    let (alive, ended) = mpsc::channel::<Infallible>();
    let alive = Box::into_raw(Box::new(alive)).cast::<c_void>();
    // SAFETY: the event loop is registered. It calls `remove_timer` on its thread, after what it does now,
    // and then `free_sender` with the pointer, once.
    let timer = unsafe { sys::virEventAddTimeout(0, Some(remove_timer), alive, Some(free_sender)) };
    if timer < 0 {
        // SAFETY: there is no timer, so the pointer is still only here.
        unsafe { free_sender(alive) };
        return false;
    }
    matches!(ended.recv_timeout(Duration::from_secs(10)), Err(RecvTimeoutError::Disconnected))
}

unsafe extern "C" fn remove_timer(timer: c_int, _: *mut c_void) {
    // SAFETY: the number of the timer that runs now; it is only marked here, and freed by the event loop.
    unsafe { sys::virEventRemoveTimeout(timer) };
}

unsafe extern "C" fn free_sender(sender: *mut c_void) {
    // SAFETY: made by `let_events_go_on`, and freed once.
    drop(unsafe { Box::from_raw(sender.cast::<Sender<Infallible>>()) });
}
