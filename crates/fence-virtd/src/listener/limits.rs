// SPDX-License-Identifier: GPL-2.0-or-later
//! Every limit of the listeners, in one place. docs/limits.md tells administrators what each one means.

use std::time::Duration;

/// Open files that the daemon asks the system for, where the hard limit lets it: more than all other limits come to.
pub(crate) const DESCRIPTORS: u64 = 16_384;

/// Connections to the tcp listener, and to the vsock listener, at once; and of one peer. The oldest that has not
/// sent a valid request yet gives way to a newcomer.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// See [`MAX_CONNECTIONS`].
pub(crate) const MAX_CONNECTIONS_OF_PEER: usize = 128;
/// Requests that the multicast listener works on at once; and of one client address. The oldest whose client has
/// not been reached yet gives way to a newcomer.
pub(crate) const MAX_REQUESTS: usize = 1024;
/// See [`MAX_REQUESTS`].
pub(crate) const MAX_REQUESTS_OF_PEER: usize = 128;
/// Requests that named another address to call back than they came from, while that address has not answered. A
/// packet can name any address, and each one that nobody has costs the kernel an entry of its neighbour table (1024
/// by default, for the whole machine) for 3 s. So these are few at a time and slow to follow each other.
pub(crate) const MAX_REDIRECTED: usize = 64;
/// How long one of them keeps its place before it gives way to a newcomer.
pub(crate) const REDIRECTED_GRACE: Duration = Duration::from_millis(300);

/// How long a connection may take to send its 176-byte request. The reference waits 1 s.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Connections that the kernel completes and keeps for us until we take them.
pub(crate) const BACKLOG: u32 = 1024;
/// A connection that is silent this long is asked by the kernel whether its peer still lives, ...
pub(crate) const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// ... this often, and is given up after [`KEEPALIVE_PROBES`] questions without an answer.
pub(crate) const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// See [`KEEPALIVE_EVERY`].
pub(crate) const KEEPALIVE_PROBES: u32 = 3;

/// How long a client's address may take to accept the call-back.
pub(crate) const CALL_BACK_LIMIT: Duration = Duration::from_secs(5);
/// The same, when the client named another address too.
pub(crate) const CALL_BACK_LIMIT_WITH_OTHERS: Duration = Duration::from_secs(1);
/// How much earlier than other hosts of a corosync cluster the one that has the domain calls a client back. Those only
/// pass on what it has not heard.
pub(crate) const OWNERS_HEAD_START: Duration = Duration::from_millis(50);
/// Addresses of one client that are tried for one request.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// Bytes of datagrams that the kernel may hold for us: a burst of some thousand requests.
pub(crate) const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// After a change of the network interfaces, how long to wait for the rest of it.
pub(crate) const INTERFACES_SETTLE: Duration = Duration::from_millis(50);

/// How long the rest of a serial frame may take to come: what is left of an older one must not eat the next.
pub(crate) const FRAME_LIMIT: Duration = Duration::from_secs(5);
/// How long a guest may take to read an answer from its serial line or channel.
pub(crate) const SERIAL_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Sockets of domains that the serial listener serves at once.
pub(crate) const MAX_LINES: usize = 4096;
/// The pause before a domain's socket is connected to again: doubled each time, from and to these.
pub(crate) const LINE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
