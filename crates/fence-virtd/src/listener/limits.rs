// SPDX-License-Identifier: GPL-2.0-or-later
//! Every limit of the listeners, in one place. docs/limits.md explains each limit to administrators.

use std::time::Duration;

use crate::util::backoff::Backoff;

/// Open files that the daemon asks the system for, up to the hard limit: more than all other limits together
/// need.
pub(crate) const DESCRIPTORS: u64 = 16_384;

/// Connections to the tcp listener, and to the vsock listener, at once; and of one peer. The oldest
/// connection without a valid request is evicted for a new one.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// See [`MAX_CONNECTIONS`].
pub(crate) const MAX_CONNECTIONS_OF_PEER: usize = 128;
/// Requests in flight at the multicast listener; and of one client address. The oldest request whose client
/// was not reached yet is evicted for a new one.
pub(crate) const MAX_REQUESTS: usize = 1024;
/// See [`MAX_REQUESTS`].
pub(crate) const MAX_REQUESTS_OF_PEER: usize = 128;
/// Requests with a call-back to another address than that of the packet, until that address answers. A packet
/// can name any address, and each address that no machine has occupies an entry of the kernel's neighbour
/// table (1024 by default, for the whole machine) for 3 s. So few are admitted at once, and at a limited
/// rate.
pub(crate) const MAX_REDIRECTED: usize = 64;
/// Time after which such a request can be evicted for a new one.
pub(crate) const REDIRECTED_GRACE: Duration = Duration::from_millis(300);

/// Time for a connection to send its 176-byte request. The C daemon waits 1 s.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Connections that the kernel keeps until they are accepted.
pub(crate) const BACKLOG: u32 = 1024;
/// Silence after which the kernel probes whether the peer of a connection still lives.
pub(crate) const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// Time between two probes. The connection ends after [`KEEPALIVE_PROBES`] probes without an answer.
pub(crate) const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// See [`KEEPALIVE_EVERY`].
pub(crate) const KEEPALIVE_PROBES: u32 = 3;

/// Time for a client's address to accept the call-back.
pub(crate) const CALL_BACK_LIMIT: Duration = Duration::from_secs(5);
/// Time for a client's address to accept the call-back if the client named further addresses.
pub(crate) const CALL_BACK_LIMIT_WITH_OTHERS: Duration = Duration::from_secs(1);
/// Time by which the owner of a domain calls a client back before the other hosts of its corosync cluster.
/// These only pass on requests that the owner did not receive.
pub(crate) const OWNERS_HEAD_START: Duration = Duration::from_millis(50);
/// Addresses of one client that are tried for one request.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// Bytes of datagrams that the kernel keeps until they are read: a burst of some thousand requests.
pub(crate) const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Wait for further changes after a change of the network interfaces.
pub(crate) const INTERFACES_SETTLE: Duration = Duration::from_millis(50);

/// Time for the rest of a serial frame to arrive: the rest of an older frame must not swallow the next one.
pub(crate) const FRAME_LIMIT: Duration = Duration::from_secs(5);
/// Time for a guest to read an answer from its serial line or channel.
pub(crate) const SERIAL_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Sockets of domains that the serial listener serves at once.
pub(crate) const MAX_LINES: usize = 4096;
/// Pause before a domain's socket is connected to again, first and longest: doubled each time.
pub(crate) const LINE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
