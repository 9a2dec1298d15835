// SPDX-License-Identifier: GPL-2.0-or-later
//! Offsets and lengths of the request packet and of the challenge.
//!
//! Owns the numbers and the cutting of fields; values only. Must never interpret a field: that is the work of
//! `request`, `seal` and `handshake`, which all import this file and so need not import each other.
//!
//! ```text
//! offset  size  field
//!      0     1  action
//!      1     1  hash type
//!      2     1  length of the address (4 or 16; 0 on TCP and vsock)
//!      3     1  flags, bit 0: the target is a UUID
//!      4    64  target, NUL-padded
//!     68    28  address of the client, in its first 4 or 16 bytes; the last 12 bytes say that a host asks,
//!            or that a sealed request wants the reason of a failure, or asks what an action would do
//!     96     2  port the client listens on for the call-back
//!     98     6  nonce
//!    104     4  sequence number
//!    108     4  address family: 2 IPv4, 10 IPv6
//!    112    64  hash, zero-padded
//! ```

use core::ops::Range;

/// Length of a request packet in bytes, always.
pub const REQUEST_LEN: usize = 176;
/// Flag of the request packet: the target is a UUID in text form.
pub const UUID_FLAG: u8 = 1;
/// Last bytes of the address field of a request that a host sends to the other hosts, as a client would. C
/// daemons, and older ones of ours, do not read them.
pub(crate) const FROM_HOST: [u8; 12] = *b"from a host\0";
/// Length of a challenge in bytes.
pub const CHALLENGE_LEN: usize = 64;
/// Challenge of 64 random bytes, made by [`draw_challenge`](crate::draw_challenge). No challenge may be used
/// twice.
pub type Challenge = [u8; CHALLENGE_LEN];

/// Last bytes of the address field of a sealed request whose client wants the reason of a failure. Hosts that
/// don't know them do not read them, and answer without one.
pub(crate) const WANTS_REASON: [u8; 12] = *b"say the why\0";

/// Words in the last bytes of the address field of a sealed status that asks what another action would do.
/// The action's number follows. Hosts that don't know them answer the status.
pub(crate) const DRY_RUN: [u8; 11] = *b"dry run of\0";

pub(crate) const ACTION: usize = 0;
pub(crate) const HASH_TYPE: usize = 1;
pub(crate) const ADDRESS_LEN: usize = 2;
pub(crate) const FLAGS: usize = 3;
pub(crate) const TARGET: Range<usize> = 4..68;
pub(crate) const ADDRESS: Range<usize> = 68..96;
pub(crate) const SPARE: Range<usize> = 84..96;
/// Number of the action behind [`DRY_RUN`].
pub(crate) const DRY_RUN_ACTION: usize = 95;
pub(crate) const PORT: Range<usize> = 96..98;
pub(crate) const NONCE: Range<usize> = 98..104;
pub(crate) const SEQUENCE: Range<usize> = 104..108;
pub(crate) const FAMILY: Range<usize> = 108..112;
pub(crate) const HASH: Range<usize> = 112..REQUEST_LEN;
pub(crate) const FAMILY_IPV4: u32 = 2;
pub(crate) const FAMILY_IPV6: u32 = 10;

/// Returns the `N` bytes of a packet that begin at `start`.
pub(crate) fn field<const N: usize>(packet: &[u8; REQUEST_LEN], start: usize) -> [u8; N] {
    core::array::from_fn(|i| packet[start + i])
}
