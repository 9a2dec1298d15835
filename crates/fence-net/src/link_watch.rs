// SPDX-License-Identifier: GPL-2.0-or-later
//! Notices of changed network interfaces and addresses.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, recv};

use crate::netlink::open;

const RTMGRP_LINK: u32 = 1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

/// Socket that becomes readable when an interface comes, goes, or changes its state or addresses.
/// Non-blocking.
///
/// A notice does not tell what changed: read [`interfaces`](crate::interfaces) afterwards.
#[derive(Debug)]
pub struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// Starts to watch.
    ///
    /// # Errors
    /// Error of the kernel's netlink socket.
    pub fn open() -> io::Result<Self> {
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        open(groups, SockFlag::SOCK_NONBLOCK).map(Self)
    }

    /// Takes all notices that have arrived. Returns whether there were any.
    ///
    /// # Errors
    /// Error of the kernel. Notices that were lost for lack of room count as notices.
    pub fn changed(&self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let mut any = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(any),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changed_yet() {
        let watch = LinkWatch::open().unwrap();
        // Something may change on a busy machine, but not for ever.
        assert!((0..100).any(|_| !watch.changed().unwrap()));
    }
}
