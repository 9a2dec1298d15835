# SPDX-License-Identifier: GPL-2.0-or-later
"""What a node sent and received last, for a case that has to be explained.

    trace = Trace(node)
    trace.lines(since)      # [(time.monotonic(), "10.77.0.1:40000 > 10.77.0.2:1229 SYN")]
    trace.close()
"""

import collections
import socket
import struct
import threading
import time

from lab import wire

_ETH_P_ALL, _SO_TIMESTAMPNS, _PACKETS = 3, 35, 4000
_FLAGS = {1: "FIN", 2: "SYN", 4: "RST", 8: "PSH", 16: "ACK"}


class Trace:
    """The last IPv4 packets on a node's eth0, read by a thread."""

    def __init__(self, node):
        self.socket = node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self.socket.bind(("eth0", 0))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.packets = collections.deque(maxlen=_PACKETS)
        self.is_over = False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def lines(self, since=0.0):
        """The packets since then, as (time, text)."""
        return [(when, text) for when, packet in list(self.packets) if when >= since and (text := _text(packet))]

    def close(self):
        self.is_over = True
        self.thread.join()
        self.socket.close()

    def _read(self):
        self.socket.settimeout(0.2)
        while not self.is_over:
            try:
                packet, [(_, _, stamp), *_], *_ = self.socket.recvmsg(2048, socket.CMSG_SPACE(16))
            except TimeoutError:
                continue
            # The kernel's own time: this thread may come late.
            seconds, nanoseconds = struct.unpack("qq", stamp)
            self.packets.append((seconds + nanoseconds / 1e9 - time.time() + time.monotonic(), packet))


def _text(frame):
    """A line about an Ethernet frame; none unless it is TCP or UDP over IPv4."""
    if frame[12:14] != b"\x08\x00" or frame[23] not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return None
    start = 14 + (frame[14] & 15) * 4
    length = struct.unpack("!H", frame[16:18])[0] - (start - 14)
    ports = struct.unpack("!HH", frame[start:start + 4])
    source, to = (f"{socket.inet_ntoa(frame[at:at + 4])}:{port}" for at, port in zip((26, 30), ports))
    if frame[23] == socket.IPPROTO_UDP:
        request = wire.Request.parse(frame[start + 8:start + length])
        return f"{source} > {to} request {request.domain.decode(errors='replace')} {request.seqno}"
    header, flags = (frame[start + 12] >> 4) * 4, frame[start + 13]
    data = frame[start + header:start + length]
    words = " ".join(word for bit, word in _FLAGS.items() if flags & bit)
    return f"{source} > {to} {words}" + (f" {len(data)} bytes {data[:8].hex()}" if data else "")
