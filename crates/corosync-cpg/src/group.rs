// SPDX-License-Identifier: GPL-2.0-or-later
//! Process group: messages in one order for all members, and its membership.
//!
//! Owns the handle of libcpg and the copies of its messages. Runs on one thread at a time. Must never wait in
//! `dispatch` and `send`.

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

/// Most events of one [`ProcessGroup::dispatch`].
const BATCH: usize = 64;

/// Process in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Id of its node.
    pub node: u32,
    /// Process id, as its own node counts.
    pub pid: u32,
}

/// ChangeReason of a membership change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeReason {
    /// The member joined.
    Join,
    /// The member left.
    Leave,
    /// The member's node left corosync: it ended, or is no longer heard.
    NodeDown,
    /// The member's node joined corosync, with the member in the group.
    NodeUp,
    /// The member's process ended; its node is still there.
    ProcDown,
    /// Number that this crate does not know.
    Other(u32),
}

/// GroupEvent of a group. All members see the events of their common membership in the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// Message of a member; our own messages arrive too.
    Message {
        /// Sender.
        from: Member,
        /// Complete content.
        data: Vec<u8>,
    },
    /// Membership change.
    Change {
        /// All members from now on.
        members: Vec<Member>,
        /// Members that left, with the reason.
        left: Vec<(Member, ChangeReason)>,
        /// Members that joined, with the reason.
        joined: Vec<(Member, ChangeReason)>,
    },
    /// Nodes that corosync hears from now on, whatever runs on them. The first such event follows the
    /// joining.
    Ring {
        /// Ids of the nodes.
        nodes: Vec<u32>,
    },
}

/// Result of sending a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a message that was not taken is not sent"]
pub enum SendResult {
    /// Corosync took the message.
    Taken,
    /// Corosync has no room now: try again in some milliseconds.
    Later,
}

/// Membership of this process in one group. Dropping it leaves the group, and waits for corosync.
///
/// The descriptor is readable when [`dispatch`](Self::dispatch) has an event or an error.
#[derive(Debug)]
pub struct ProcessGroup {
    handle: u64,
    fd: RawFd,
    me: Member,
    name: sys::CpgName,
    max_message: usize,
    // libcpg's queue to corosync takes one writer at a time.
    _one_thread: PhantomData<Cell<()>>,
}

impl ProcessGroup {
    /// Joins the group of this name (1 to 128 bytes), which need not exist before. Waits for corosync.
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

    /// Returns the members of the group of this name, by node and process, without joining. Waits for
    /// corosync.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`], [`ErrorKind::AccessDenied`], [`ErrorKind::Size`].
    pub fn members_of(name: &str) -> Result<Vec<Member>, Error> {
        let mut group = Self::connect(name)?;
        let mut members = [sys::CpgAddress::default(); sys::CPG_MEMBERS_MAX];
        let mut count = 0;
        // SAFETY: the handle is open; the list has room for the most members that corosync allows in a group.
        let code = unsafe {
            sys::cpg_membership_get(group.handle, &raw mut group.name, members.as_mut_ptr(), &raw mut count)
        };
        check("ask who is in the group", code)?;
        let count = usize::try_from(count).unwrap_or(0);
        let mut members: Vec<_> = members.iter().take(count).map(member).collect();
        members.sort_unstable();
        Ok(members)
    }

    /// Connects to corosync without joining a group.
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
        // SAFETY: `model` is the structure of this model; libcpg copies it. No context is passed.
        let code = unsafe {
            sys::cpg_model_initialize(&raw mut handle, sys::CPG_MODEL_V1, &raw mut model, ptr::null_mut())
        };
        check("connect to corosync", code)?;
        let me = Member { node: 0, pid: process::id() };
        // From here on, dropping the value closes the handle.
        Ok(Self { handle, fd: -1, me, name, max_message: 0, _one_thread: PhantomData })
    }

    /// Returns this process as the other members see it.
    #[must_use]
    pub fn me(&self) -> Member {
        self.me
    }

    /// Returns the length of the longest message that can be sent, in bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// Returns the next events, oldest first: the waiting ones, up to a limit. Never waits.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when corosync ended. Events that it delivered before come first.
    pub fn dispatch(&mut self) -> Result<Vec<GroupEvent>, Error> {
        // Call-backs run in `cpg_dispatch` alone, on this thread: the inbox has no other source.
        INBOX.take();
        for taken in 1..=BATCH {
            // SAFETY: the handle is open; the call-backs have the declared types.
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

    /// Sends a message to all members, this one included. Never waits.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`]: messages that were taken and did not come back may or may not have been
    /// delivered. [`ErrorKind::Size`]: longer than [`max_message`](Self::max_message).
    pub fn send(&self, data: &[u8]) -> Result<SendResult, Error> {
        const CALL: &str = "send to the group";
        // libcpg would split it, and wait between the parts.
        if data.len() > self.max_message {
            return Err(Error::own(CALL, ErrorKind::Size));
        }
        // libqb signals over this socket, and retries for ever while it is full: corosync may be stopped.
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let is_ready = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|it| it > 0);
        let seen = polled[0].revents().unwrap_or(PollFlags::empty());
        if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Err(Error::own(CALL, ErrorKind::Gone));
        }
        if !is_ready {
            return Ok(SendResult::Later);
        }
        let part = sys::IoVec { base: data.as_ptr().cast(), len: data.len() };
        // SAFETY: the handle is open; the data is copied before the call returns.
        let code = unsafe { sys::cpg_mcast_joined(self.handle, sys::CPG_TYPE_AGREED, &raw const part, 1) };
        if code == sys::ERR_TRY_AGAIN {
            return Ok(SendResult::Later);
        }
        check(CALL, code).map(|()| SendResult::Taken)
    }

    /// Leaves the group: the others see [`ChangeReason::Leave`]. Waits for corosync.
    pub fn leave(self) {
        // SAFETY: the handle is open; the name is copied. The call may fail: dropping the value ends the
        // membership too.
        let _ = unsafe { sys::cpg_leave(self.handle, &raw const self.name) };
    }
}

impl AsFd for ProcessGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the handle, which closes when the value is dropped.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and this is its last use.
        let _ = unsafe { sys::cpg_finalize(self.handle) };
    }
}

thread_local! {
    /// Events from the call-backs of the `cpg_dispatch` in progress on this thread.
    static INBOX: RefCell<Vec<GroupEvent>> = const { RefCell::new(Vec::new()) };
}

fn put(event: GroupEvent) {
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
    // SAFETY: libcpg's buffer, of this length, is valid during the call.
    let data = unsafe { list(message.cast::<u8>().cast_const(), length) };
    put(GroupEvent::Message { from: Member { node, pid }, data });
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
    // SAFETY: libcpg's lists, of these lengths, are valid during the call.
    let (members, left, joined) =
        unsafe { (list(members, member_count), list(left, left_count), list(joined, joined_count)) };
    let with_reason =
        |list: Vec<sys::CpgAddress>| list.iter().map(|it| (member(it), reason(it.reason))).collect();
    put(GroupEvent::Change {
        members: members.iter().map(member).collect(),
        left: with_reason(left),
        joined: with_reason(joined),
    });
}

extern "C" fn ring(_: u64, _: sys::CpgRingId, count: u32, nodes: *const u32) {
    // SAFETY: libcpg's list, of this length, is valid during the call.
    let nodes = unsafe { list(nodes, usize::try_from(count).unwrap_or(0)) };
    put(GroupEvent::Ring { nodes });
}

/// Copies an array of C.
///
/// # Safety
/// `first` is null, or `count` values can be read there.
unsafe fn list<T: Copy>(first: *const T, count: usize) -> Vec<T> {
    if first.is_null() || count == 0 {
        return Vec::new();
    }
    // SAFETY: the caller guarantees the pointer. C aligns its arrays, and messages are bytes.
    unsafe { slice::from_raw_parts(first, count) }.to_vec()
}

fn member(it: &sys::CpgAddress) -> Member {
    Member { node: it.nodeid, pid: it.pid }
}

fn reason(number: u32) -> ChangeReason {
    match number {
        1 => ChangeReason::Join,
        2 => ChangeReason::Leave,
        3 => ChangeReason::NodeDown,
        4 => ChangeReason::NodeUp,
        5 => ChangeReason::ProcDown,
        other => ChangeReason::Other(other),
    }
}

fn cpg_name(name: &str) -> Result<sys::CpgName, Error> {
    let bytes = name.as_bytes();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut value = [0; sys::CPG_MAX_NAME_LENGTH];
    match value.get_mut(..bytes.len()) {
        Some(buffer) if !bytes.is_empty() => buffer.copy_from_slice(bytes),
        _ => return Err(Error::own("join the group", ErrorKind::Size)),
    }
    Ok(sys::CpgName { length, value })
}
