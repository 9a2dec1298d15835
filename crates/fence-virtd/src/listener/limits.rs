// SPDX-License-Identifier: GPL-2.0-or-later
//! Every limit of the listeners, in one place. docs/limits.md explains each limit to administrators.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use crate::util::backoff::Backoff;

/// Open files that the daemon asks the system for, up to the hard limit: more than all other limits together
/// need.
pub(crate) const DESCRIPTORS: u64 = 16_384;

/// Open files that are left to everything but the connections of listeners.
const OTHER_DESCRIPTORS: usize = 96;
/// Tables of slots that share the rest: tcp, vsock, multicast, and one to spare.
const SLOT_TABLES: usize = 4;

/// Connections to the tcp listener, and to the vsock listener, at once; and of one peer with one key. One key
/// has two thirds of them at most. The oldest connection without a challenge is evicted for a new one.
pub(crate) const MAX_CONNECTIONS: usize = 1536;
/// See [`MAX_CONNECTIONS`].
pub(crate) const MAX_CONNECTIONS_OF_PEER: usize = 128;
/// Returns how many of these slots there are with the limit of open files that is in force.
pub(crate) fn slots(most: usize) -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    slots_with(most, usize::try_from(files).unwrap_or(usize::MAX))
}

fn slots_with(most: usize, files: usize) -> usize {
    most.min(files.saturating_sub(OTHER_DESCRIPTORS) / SLOT_TABLES).max(SLOT_TABLES)
}

/// Requests in flight at the multicast listener; and of one client address with one key. One key has two
/// thirds of them at most. The oldest request whose client has sent no challenge is evicted for a new one.
pub(crate) const MAX_REQUESTS: usize = 1536;
/// See [`MAX_REQUESTS`].
pub(crate) const MAX_REQUESTS_OF_PEER: usize = 128;
/// Requests with a call-back to another address than that of the packet, until that address answers. A packet
/// can name any address, and each address that no machine has occupies an entry of the kernel's neighbour
/// table (1024 by default, for the whole machine) for 3 s. So few are admitted at once, and at a limited
/// rate; one key has two thirds of them at most.
pub(crate) const MAX_REDIRECTED: usize = 96;
/// Time after which such a request can be evicted for a new one.
pub(crate) const REDIRECTED_GRACE: Duration = Duration::from_millis(300);

/// Keys of a listener that are all tried for each packet at once. Of more keys only the likely ones are, and
/// a packet that none of them fits waits for the search among all.
pub(crate) const FEW_KEYS: usize = 16;
/// Packets that wait for that search; half of the places are for sources without a waiting packet.
pub(crate) const MAX_SEARCHES: usize = 1024;
/// Packets of one source that wait for it.
pub(crate) const MAX_SEARCHES_OF_SOURCE: usize = 16;
/// Hashes that such searches make in a second: a fifth of a core's time on a common processor.
pub(crate) const SEARCH_RATE: i64 = 1_000_000;
/// Hashes that they make in a row, after a time without any.
pub(crate) const SEARCH_BURST: i64 = 250_000;
/// Hashes that they make before waiting packets are read again.
pub(crate) const SEARCH_SLICE: usize = 1024;
/// Keys that a connection tries before others go on.
pub(crate) const KEYS_IN_A_ROW: usize = 64;
/// Sources of one key that are remembered, so that it is tried first for them.
pub(crate) const MAX_FITTED_SOURCES: usize = 64;
/// Keys that are remembered for one source.
pub(crate) const MAX_FITTED_KEYS: usize = 8;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_open_files_leave_some_to_others_than_connections() {
        assert_eq!(slots_with(MAX_CONNECTIONS, 16_384), MAX_CONNECTIONS);
        assert_eq!(slots_with(MAX_CONNECTIONS, 256), 40);
        assert_eq!(slots_with(MAX_CONNECTIONS, 10), 4);
    }
}
