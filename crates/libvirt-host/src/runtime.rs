// SPDX-License-Identifier: GPL-2.0-or-later
//! The two threads that libvirt needs beside its callers: one runs its event loop, one closes.
//!
//! Closing has a thread of its own for two reasons. A close says good-bye to the hypervisor and waits for the
//! answer, so against a stopped libvirtd it blocks until keepalive gives up; and the last reference to a
//! connection must not fall inside a call-back of the event loop, where libvirt deadlocks. So nobody closes
//! but this thread.

use std::ffi::c_int;
use std::io;
use std::ptr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use virt::connect::Connect;
use virt_sys as sys;

use crate::error::Error;
use crate::event::{CloseWatch, Registration, connection_lost};

/// Makes libvirt ready in this process: no printing, the event loop on its own thread. Does it once, however
/// often it is called; [`Connection::open`](crate::Connection::open) calls it too. A failure stays.
pub fn init() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), Error>> = OnceLock::new();
    DONE.get_or_init(start).clone()
}

/// Ends the process with this exit code, at once and without a word: no buffer is flushed, nothing of the C
/// libraries is called.
///
/// A return from `main` or [`std::process::exit`] calls the destructors of libvirt's libraries, while its two
/// threads and calls under way still use them. One, OpenSSL, frees what belongs to each thread that used it,
/// and when such a thread ends in that moment and gives it back itself, that is a double free.
pub fn leave(code: u8) -> ! {
    // SAFETY: ends the process; may be called at any time on any thread.
    unsafe { _exit(code.into()) }
}

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
}

/// A connection to close, with what has to be taken off it before.
pub(crate) struct Closing {
    pub(crate) connect: Connect,
    pub(crate) watch: Arc<CloseWatch>,
    pub(crate) registrations: Vec<Registration>,
}

/// Hands a connection to the closing thread. Never blocks, may be called anywhere.
pub(crate) fn close_later(closing: Closing) {
    // Only `init` lets a connection be opened, so there is a thread. Were there none, the connection would
    // stay open: better than to close it on an unknown thread.
    if let Some(queue) = CLOSER.get() {
        let _ = queue.send(closing);
    }
}

static CLOSER: OnceLock<Sender<Closing>> = OnceLock::new();

fn start() -> Result<(), Error> {
    // SAFETY: no arguments; may be called at any time and by several threads.
    if unsafe { sys::virInitialize() } < 0 {
        return Err(Error::last("initialise libvirt"));
    }
    // SAFETY: a function without data, which lives as long as the process.
    unsafe { sys::virSetErrorFunc(ptr::null_mut(), Some(keep_quiet)) };
    // SAFETY: no arguments; it has to come before the first connection, and `init` runs this once, before
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

unsafe extern "C" fn keep_quiet(_data: *mut std::ffi::c_void, _error: sys::virErrorPtr) {}

fn run_events() {
    loop {
        // SAFETY: the default implementation is registered, and only this thread runs it.
        if unsafe { sys::virEventRunDefaultImpl() } < 0 {
            // It only fails when it is misused; if it ever does, don't burn a core.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn close(closing: Closing) {
    let Closing { mut connect, watch, registrations } = closing;
    let kept = registrations.iter().filter(|it| !unsubscribe(&connect, it)).count();
    let unsubscribed = kept == 0;
    if unwatch(&connect) && unsubscribed {
        let _ = connect.close();
    } else {
        // libvirt still holds a call-back and with it a reference, so a close now could leave the last one to
        // the event loop. Rather lose one connection, and what its call-back points at.
        let _ = Arc::into_raw(watch);
    }
}

/// Takes an event's call-back off the connection, which else keeps it alive. True when it is off for certain.
///
/// While an event is being delivered libvirt only marks the call-back, and the event loop frees it
/// afterwards, together with a reference to the connection. So wait for that, and then once more for the lock
/// of the event loop (which a second attempt takes, to find nothing): after it no such reference is left.
fn unsubscribe(connect: &Connect, registration: &Registration) -> bool {
    let deregister = || {
        // SAFETY: the connection is open: its only close follows after this. An unknown number is an error
        // without effect, and on a lost connection the call-back is taken off before the attempt to tell the
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

/// Takes the close call-back off the connection, which else keeps it alive. True when it is off for certain.
///
/// On a lost connection the hypervisor can't be told, so libvirt refuses, until the event loop has delivered
/// the loss; then the call-back is off by itself and the refusal is "not registered". Both refusals are given
/// under the lock of the delivery, so after the second one no delivery is in progress.
fn unwatch(connect: &Connect) -> bool {
    const ATTEMPTS: u32 = 100;
    for _ in 0..ATTEMPTS {
        // SAFETY: the connection is open: its only close follows after this.
        let done = unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(connection_lost)) };
        if done == 0 {
            return true;
        }
        let error = Error::last("unregister the close call-back");
        if error.code.cast_unsigned() == sys::VIR_ERR_INVALID_ARG {
            return true;
        }
        thread::sleep(Duration::from_millis(50));
    }
    false
}
