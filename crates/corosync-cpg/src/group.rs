// SPDX-License-Identifier: GPL-2.0-or-later
//! A process group: messages in one order for all members, and who is there.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::process;
use std::ptr;
use std::slice;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, ErrorKind, check};
use crate::sys;

/// Events of one [`Group::dispatch`], at most.
const BATCH: usize = 64;

/// A process in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Its node's id.
    pub node: u32,
    /// Its process id, as its own node counts.
    pub pid: u32,
}

/// Why a member came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It joined.
    Join,
    /// It left.
    Leave,
    /// Its node left corosync: it ended, or is not heard.
    NodeDown,
    /// Its node came to corosync, with it in the group.
    NodeUp,
    /// It ended; its node is still there.
    ProcDown,
    /// A number that this crate does not know.
    Other(u32),
}

/// What a group tells. All members see the events of their common membership in the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member sent this; one's own messages come too.
    Message {
        /// Who.
        from: Member,
        /// What, whole.
        data: Vec<u8>,
    },
    /// Members came or went.
    Change {
        /// All that are there now.
        members: Vec<Member>,
        /// Those that went.
        left: Vec<(Member, Reason)>,
        /// Those that came.
        joined: Vec<(Member, Reason)>,
    },
    /// The nodes that corosync hears from now on, whatever runs on them. The first comes by itself.
    Ring {
        /// Their ids.
        nodes: Vec<u32>,
    },
}

/// What became of a message that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a message that was not taken is not sent"]
pub enum Sent {
    /// Corosync has it.
    Taken,
    /// Corosync has no room for it now: try again in some milliseconds.
    Later,
}

/// This process's membership of one group. Dropping it leaves the group, and waits for corosync.
///
/// Its descriptor is readable when [`dispatch`](Self::dispatch) has something, an error too.
#[derive(Debug)]
pub struct Group {
    handle: u64,
    fd: RawFd,
    me: Member,
    name: sys::CpgName,
    max_message: usize,
    // libcpg's queue to corosync takes one writer at a time.
    _one_thread: PhantomData<Cell<()>>,
}

impl Group {
    /// Joins the group of this name (1 to 128 bytes); it need not be there before. Waits for corosync.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`], [`ErrorKind::AccessDenied`], [`ErrorKind::Exists`], [`ErrorKind::Size`].
    pub fn join(name: &str) -> Result<Self, Error> {
        let mut group = Self::connect(name)?;
        let handle = group.handle;
        let mut node = 0;
        // SAFETY: the handle is open.
        check("ask for this node's id", unsafe { sys::cpg_local_get(handle, &raw mut node) })?;
        group.me.node = node;
        // SAFETY: the handle is open; the name is copied.
        check("join the group", unsafe { sys::cpg_join(handle, &raw const group.name) })?;
        // SAFETY: the handle is open.
        check("ask for the descriptor", unsafe { sys::cpg_fd_get(handle, &raw mut group.fd) })?;
        let mut size = 0;
        // SAFETY: the handle is open.
        check("ask for the largest message", unsafe {
            sys::cpg_max_atomic_msgsize_get(handle, &raw mut size)
        })?;
        group.max_message = usize::try_from(size).unwrap_or(usize::MAX);
        Ok(group)
    }

    /// Who is in the group of this name now, by node and process. Joins nothing. Waits for corosync.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`], [`ErrorKind::AccessDenied`], [`ErrorKind::Size`].
    pub fn members_of(name: &str) -> Result<Vec<Member>, Error> {
        let mut group = Self::connect(name)?;
        let mut members = [sys::CpgAddress::default(); sys::CPG_MEMBERS_MAX];
        let mut count = 0;
        // SAFETY: the handle is open; the list has room for as many as corosync lets into a group.
        let code = unsafe {
            sys::cpg_membership_get(group.handle, &raw mut group.name, members.as_mut_ptr(), &raw mut count)
        };
        check("ask who is in the group", code)?;
        let count = usize::try_from(count).unwrap_or(0);
        let mut members: Vec<_> = members.iter().take(count).map(member).collect();
        members.sort_unstable();
        Ok(members)
    }

    /// In no group yet.
    fn connect(name: &str) -> Result<Self, Error> {
        let name = cpg_name(name)?;
        let mut model = sys::CpgModelV1 {
            model: sys::CPG_MODEL_V1,
            deliver,
            change,
            ring,
            flags: sys::CPG_MODEL_V1_DELIVER_INITIAL_TOTEM_CONF,
        };
        let mut handle = 0;
        // SAFETY: `model` is the structure that this model takes; libcpg copies it. No context is passed.
        let code = unsafe {
            sys::cpg_model_initialize(&raw mut handle, sys::CPG_MODEL_V1, &raw mut model, ptr::null_mut())
        };
        check("connect to corosync", code)?;
        let me = Member { node: 0, pid: process::id() };
        // The drop closes the handle.
        Ok(Self { handle, fd: -1, me, name, max_message: 0, _one_thread: PhantomData })
    }

    /// Who this process is to the others.
    #[must_use]
    pub fn me(&self) -> Member {
        self.me
    }

    /// The longest message that can be sent, bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// The next events, oldest first: as many as are there, but not endlessly many. Never waits.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when corosync ended; what it delivered before comes first.
    pub fn dispatch(&mut self) -> Result<Vec<Event>, Error> {
        // Call-backs run in `cpg_dispatch` alone, on this thread: nothing is in the inbox from elsewhere.
        INBOX.take();
        for taken in 1..=BATCH {
            // SAFETY: the handle is open; the call-backs take what their types say.
            let code = unsafe { sys::cpg_dispatch(self.handle, sys::DISPATCH_ONE_NONBLOCKING) };
            let has_more = INBOX.with_borrow(|it| it.len() == taken);
            match check("take what corosync delivered", code) {
                Err(error) if code != sys::ERR_TRY_AGAIN && INBOX.with_borrow(Vec::is_empty) => {
                    return Err(error);
                }
                Ok(()) if has_more => {}
                _ => break,
            }
        }
        Ok(INBOX.take())
    }

    /// Sends a message to all members, this one too. Never waits.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`]: nobody knows whether messages that were taken but did not come back were
    /// delivered. [`ErrorKind::Size`]: longer than [`max_message`](Self::max_message).
    pub fn send(&self, data: &[u8]) -> Result<Sent, Error> {
        const CALL: &str = "send to the group";
        // libcpg would cut it up, and wait between the pieces.
        if data.len() > self.max_message {
            return Err(Error::own(CALL, ErrorKind::Size));
        }
        // libqb rings a bell over this socket and, where it is full, tries again for ever: corosync may be
        // stopped.
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let is_ready = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|it| it > 0);
        let seen = polled[0].revents().unwrap_or(PollFlags::empty());
        if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Err(Error::own(CALL, ErrorKind::Gone));
        }
        if !is_ready {
            return Ok(Sent::Later);
        }
        let part = sys::IoVec { base: data.as_ptr().cast(), len: data.len() };
        // SAFETY: the handle is open; the data is copied before the call returns.
        let code = unsafe { sys::cpg_mcast_joined(self.handle, sys::CPG_TYPE_AGREED, &raw const part, 1) };
        if code == sys::ERR_TRY_AGAIN {
            return Ok(Sent::Later);
        }
        check(CALL, code).map(|()| Sent::Taken)
    }

    /// Leaves the group: the others see [`Reason::Leave`]. Waits for corosync.
    pub fn leave(self) {
        // SAFETY: the handle is open; the name is copied. It may fail: the drop ends the membership all the
        // same.
        let _ = unsafe { sys::cpg_leave(self.handle, &raw const self.name) };
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the handle, which is closed by the drop.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and used no more.
        let _ = unsafe { sys::cpg_finalize(self.handle) };
    }
}

thread_local! {
    /// What the call-backs of the `cpg_dispatch` under way on this thread brought.
    static INBOX: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
}

fn put(event: Event) {
    INBOX.with_borrow_mut(|it| it.push(event));
}

extern "C" fn deliver(
    _: u64,
    _: *const sys::CpgName,
    node: u32,
    pid: u32,
    message: *mut c_void,
    length: usize,
) {
    // SAFETY: libcpg's buffer, of this length, valid during the call.
    let data = unsafe { list(message.cast::<u8>().cast_const(), length) };
    put(Event::Message { from: Member { node, pid }, data });
}

#[allow(clippy::too_many_arguments)] // libcpg's type
extern "C" fn change(
    _: u64,
    _: *const sys::CpgName,
    members: *const sys::CpgAddress,
    member_count: usize,
    left: *const sys::CpgAddress,
    left_count: usize,
    joined: *const sys::CpgAddress,
    joined_count: usize,
) {
    // SAFETY: libcpg's lists, of these lengths, valid during the call.
    let (members, left, joined) =
        unsafe { (list(members, member_count), list(left, left_count), list(joined, joined_count)) };
    let with_reason =
        |it: Vec<sys::CpgAddress>| it.iter().map(|it| (member(it), reason(it.reason))).collect();
    put(Event::Change {
        members: members.iter().map(member).collect(),
        left: with_reason(left),
        joined: with_reason(joined),
    });
}

extern "C" fn ring(_: u64, _: sys::CpgRingId, count: u32, nodes: *const u32) {
    // SAFETY: libcpg's list, of this length, valid during the call.
    let nodes = unsafe { list(nodes, usize::try_from(count).unwrap_or(0)) };
    put(Event::Ring { nodes });
}

/// A copy of what C has.
///
/// # Safety
/// `first` is null, or `count` values can be read there.
unsafe fn list<T: Copy>(first: *const T, count: usize) -> Vec<T> {
    if first.is_null() || count == 0 {
        return Vec::new();
    }
    // SAFETY: as the caller says; C aligns its arrays, and messages are bytes.
    unsafe { slice::from_raw_parts(first, count) }.to_vec()
}

fn member(it: &sys::CpgAddress) -> Member {
    Member { node: it.nodeid, pid: it.pid }
}

fn reason(number: u32) -> Reason {
    match number {
        1 => Reason::Join,
        2 => Reason::Leave,
        3 => Reason::NodeDown,
        4 => Reason::NodeUp,
        5 => Reason::ProcDown,
        other => Reason::Other(other),
    }
}

fn cpg_name(name: &str) -> Result<sys::CpgName, Error> {
    let bytes = name.as_bytes();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut value = [0; sys::CPG_MAX_NAME_LENGTH];
    match value.get_mut(..bytes.len()) {
        Some(it) if !bytes.is_empty() => it.copy_from_slice(bytes),
        _ => return Err(Error::own("join the group", ErrorKind::Size)),
    }
    Ok(sys::CpgName { length, value })
}
