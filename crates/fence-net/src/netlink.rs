// SPDX-License-Identifier: GPL-2.0-or-later
//! Small part of rtnetlink(7): dumps of whole tables, and sockets for notices of change.
//!
//! ```text
//! message header, 16 bytes        attribute, padded to 4
//! offset size field               offset size field
//!      0    4 length, header too       0    2 length, this header too
//!      4    2 type                     2    2 type
//!      6    2 flags                    4    … value
//!      8    4 sequence number
//!     12    4 port id
//! ```
//!
//! All numbers are in the byte order of the machine.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// Size of the receive buffer: the kernel fills at most this much at once.
const BUFFER: usize = 32 * 1024;
/// Most answers to one dump. The largest tables have some ten thousand entries; more answers are a fault.
const MAX_READS: usize = 4096;

/// Opens a netlink socket that receives these notification groups, one bit each.
pub(crate) fn open(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let kind = SockFlag::SOCK_CLOEXEC | flags;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, kind, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Requests a whole table, and calls `each` with type and body of every answer.
pub(crate) fn dump(kind: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = open(0, SockFlag::empty())?;
    let mut question = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).map_err(|_| garbled())?;
    question.extend_from_slice(&length.to_ne_bytes());
    question.extend_from_slice(&kind.to_ne_bytes());
    question.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    question.extend_from_slice(&[0; 8]);
    question.extend_from_slice(body);
    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    for _ in 0..MAX_READS {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let (kind, body, next) = message(rest).ok_or_else(garbled)?;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let number =
                        body.get(..4).and_then(|it| it.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return Err(io::Error::from_raw_os_error(-number));
                }
                _ => each(kind, body),
            }
            rest = next;
        }
    }
    Err(garbled())
}

/// Iterates over the attributes at the end of a body: type and value of each.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(padded(length)..).unwrap_or_default();
        // The two highest bits are flags.
        Some((kind & 0x3fff, value))
    })
}

/// Splits off the first message: its type, its body, and the rest of the bytes.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((kind, bytes.get(HEADER..length)?, bytes.get(padded(length)..).unwrap_or_default()))
}

fn padded(length: usize) -> usize {
    length.div_ceil(4) * 4
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected answer of the kernel's routing socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_where_the_bytes_do() {
        let bytes = [6, 0, 1, 0, 0xaa, 0xbb, 0, 0, 4, 0, 2, 0, 99, 0, 3, 0, 1];
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &[0xaa, 0xbb][..]), (2, &[][..])]);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
    }

    #[test]
    fn messages_end_where_the_bytes_do() {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&17_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&28_u16.to_ne_bytes());
        assert_eq!(message(&bytes), Some((28, &[0][..], &[][..])));
        assert_eq!(message(&bytes[..16]), None);
        bytes[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(message(&bytes), None);
    }
}
