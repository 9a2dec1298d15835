// SPDX-License-Identifier: GPL-2.0-or-later
//! Node list of corosync.conf, as the running corosync has it (cmap).
//!
//! Owns the handle of libcmap. Runs on the caller's thread. Must never return a list without one of its
//! nodes.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr;

use crate::error::{Error, ErrorKind, check};
use crate::sys;

const PREFIX: &CStr = c"nodelist.node.";

/// Node of the cluster, running or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Node id.
    pub id: u32,
    /// Name: `name`, or else `ring0_addr` if that is a name and not an address, as Pacemaker takes it.
    pub name: Option<String>,
    /// Addresses of its links; none of a link that is named by a host name.
    pub addresses: Vec<IpAddr>,
}

/// Open view of the node list. The descriptor is readable when [`changed`](Self::changed) has news.
#[derive(Debug)]
pub struct NodeList {
    handle: u64,
    fd: RawFd,
}

impl NodeList {
    /// Connects to corosync, and waits for it.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`], [`ErrorKind::AccessDenied`].
    pub fn open() -> Result<Self, Error> {
        let mut handle = 0;
        // SAFETY: the call writes the handle.
        check("connect to corosync's map", unsafe { sys::cmap_initialize(&raw mut handle) })?;
        let mut list = Self { handle, fd: -1 };

        // From here on, dropping the list closes the handle.
        let mut track = 0;
        // SAFETY: the handle is open, the text ends with NUL. No data is passed, and the track ends with the
        // handle.
        let code = unsafe {
            sys::cmap_track_add(
                handle,
                PREFIX.as_ptr(),
                sys::CMAP_TRACK_ANY_BELOW,
                notice,
                ptr::null_mut(),
                &raw mut track,
            )
        };
        check("watch the node list", code)?;
        // SAFETY: the handle is open.
        check("ask for the map's descriptor", unsafe { sys::cmap_fd_get(handle, &raw mut list.fd) })?;
        Ok(list)
    }

    /// Returns the nodes by their ids; empty if corosync.conf has no node list. Waits for corosync.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`]. [`ErrorKind::NodeWithoutId`], because a list without that node would be wrong.
    pub fn nodes(&self) -> Result<Vec<Node>, Error> {
        let mut nodes = BTreeMap::new();
        for place in self.places()? {
            let key = |what| key(&place, what);
            let id = self.number(&key("nodeid"))?.ok_or(Error::own(CALL, ErrorKind::NodeWithoutId))?;
            let name = match self.text(&key("name"))? {
                None => self.text(&key("ring0_addr"))?.filter(|it| it.parse::<IpAddr>().is_err()),
                name => name,
            };
            let addresses = self.addresses(&place)?;
            nodes.insert(id, Node { id, name, addresses });
        }
        Ok(nodes.into_values().collect())
    }

    /// Returns whether corosync's configuration admits a process of this user with this primary group. Waits
    /// for corosync.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`].
    pub fn lets_in(&self, user: u32, group: u32) -> Result<bool, Error> {
        let is_named = |kind: &str, id: u32| {
            let key = CString::new(format!("uidgid.config.{kind}.{id}")).unwrap_or_default();
            let mut value = 0;
            // SAFETY: the handle is open, the text ends with NUL.
            let code = unsafe { sys::cmap_get_uint8(self.handle, key.as_ptr(), &raw mut value) };
            found("read who is let in", code)
        };
        Ok(user == 0 || group == 0 || is_named("uid", user)? || is_named("gid", group)?)
    }

    /// Returns whether the list may have changed since the last call. Never waits.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when corosync ended.
    pub fn changed(&mut self) -> Result<bool, Error> {
        NOTICED.set(false);
        // SAFETY: the handle is open; the call-back has the declared type.
        let code = unsafe { sys::cmap_dispatch(self.handle, sys::DISPATCH_ALL) };
        match check("take what the map tells", code) {
            Err(error) if code != sys::ERR_TRY_AGAIN => Err(error),
            _ => Ok(NOTICED.get()),
        }
    }

    /// Returns the numbers of the nodes' entries in the list, as text.
    fn places(&self) -> Result<Vec<String>, Error> {
        let mut iter = 0;
        // SAFETY: the handle is open, the text ends with NUL.
        check(CALL, unsafe { sys::cmap_iter_init(self.handle, PREFIX.as_ptr(), &raw mut iter) })?;
        let mut places = Vec::new();
        let result = loop {
            let mut key: [c_char; sys::CMAP_KEYNAME_MAXLEN + 1] = [0; _];
            let (mut len, mut kind) = (0, 0);
            // SAFETY: the handle and the iteration are open; the buffer has room for the longest key and its
            // NUL.
            let code = unsafe {
                sys::cmap_iter_next(self.handle, iter, key.as_mut_ptr(), &raw mut len, &raw mut kind)
            };
            if code == sys::ERR_NO_SECTIONS {
                break Ok(());
            }
            if let Err(error) = check(CALL, code) {
                break Err(error);
            }
            // SAFETY: cmap wrote the buffer, and the bytes beyond are zero.
            let key = unsafe { CStr::from_ptr(key.as_ptr()) }.to_string_lossy();
            let place = key.strip_prefix(PREFIX_TEXT).and_then(|it| it.split('.').next());
            places.extend(place.map(str::to_owned));
        };
        // SAFETY: the handle and the iteration are open.
        let _ = unsafe { sys::cmap_iter_finalize(self.handle, iter) };
        result?;
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    /// Returns the addresses of the links of the node with this entry.
    fn addresses(&self, place: &str) -> Result<Vec<IpAddr>, Error> {
        let mut addresses = Vec::new();
        for link in 0..LINKS {
            let address = self.text(&key(place, &format!("ring{link}_addr")))?;
            addresses.extend(address.and_then(|it| it.parse::<IpAddr>().ok()));
        }
        Ok(addresses)
    }

    fn number(&self, key: &CStr) -> Result<Option<u32>, Error> {
        let mut value = 0;
        // SAFETY: the handle is open, the text ends with NUL.
        found(CALL, unsafe { sys::cmap_get_uint32(self.handle, key.as_ptr(), &raw mut value) })
            .map(|it| it.then_some(value))
    }

    fn text(&self, key: &CStr) -> Result<Option<String>, Error> {
        let mut value = [0_u8; 1024];
        let (mut len, mut kind) = (size_of_val(&value), 0);
        // SAFETY: the handle is open, the text ends with NUL, and the buffer is as long as `len` says.
        let code = unsafe {
            sys::cmap_get(
                self.handle,
                key.as_ptr(),
                value.as_mut_ptr().cast::<c_void>(),
                &raw mut len,
                &raw mut kind,
            )
        };
        let is_text = found(CALL, code)? && kind == sys::CMAP_VALUETYPE_STRING;
        let text = CStr::from_bytes_until_nul(&value).ok().filter(|it| is_text && !it.is_empty());
        Ok(text.map(|it| it.to_string_lossy().into_owned()))
    }
}

impl AsFd for NodeList {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the handle, which closes when the list is dropped.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for NodeList {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and this is its last use.
        let _ = unsafe { sys::cmap_finalize(self.handle) };
    }
}

/// Links of a node at most.
const LINKS: usize = 8;
const CALL: &str = "read the node list";
const PREFIX_TEXT: &str = "nodelist.node.";

thread_local! {
    /// True if the `cmap_dispatch` in progress on this thread brought a notice.
    static NOTICED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

extern "C" fn notice(
    _: u64,
    _: u64,
    _: i32,
    _: *const c_char,
    _: sys::CmapValue,
    _: sys::CmapValue,
    _: *mut c_void,
) {
    NOTICED.set(true);
}

fn key(place: &str, what: &str) -> CString {
    // A text from C has no NUL inside.
    CString::new(format!("{PREFIX_TEXT}{place}.{what}")).unwrap_or_default()
}

fn found(call: &'static str, code: sys::ResultCode) -> Result<bool, Error> {
    if code == sys::ERR_NOT_EXIST { Ok(false) } else { check(call, code).map(|()| true) }
}
