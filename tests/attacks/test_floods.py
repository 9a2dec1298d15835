# SPDX-License-Identifier: GPL-2.0-or-later
"""Eve has no key and much time: what becomes of the others' requests."""

import contextlib
import os
import socket
import struct
import threading
import time

from lab import wire

from .scene import OURS, SIDE

HONEST = 10      # an honest request's time beside a flood, in seconds: the agents wait 30 by default


class Flood:
    """Datagrams from Eve at a rate, in a thread, until it is closed."""

    def __init__(self, node, datagrams, rate):
        self.sent, self._closed, self._datagrams, self._rate = 0, False, datagrams, rate
        self._socket = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
                                bytes(8) + struct.pack("@i", node.interface_index()))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closed = True
        self._thread.join(5)
        self._socket.close()

    def _run(self):
        begun = time.monotonic()
        while not self._closed:
            due = int((time.monotonic() - begun) * self._rate)
            while self.sent < due and not self._closed:
                self._socket.sendto(self._datagrams[self.sent % len(self._datagrams)], (wire.GROUP4, wire.PORT))
                self.sent += 1
            time.sleep(0.001)


def test_500_silent_connections(scene, note):
    """The C daemon gives each of them a second, one after the other: nobody else is served for minutes."""
    host = scene.host("tcp")
    assert host.state("vm1") == "on"
    with contextlib.ExitStack() as held:
        for _ in range(500):
            sock = held.enter_context(scene.eve.socket())
            sock.settimeout(10)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((host.node.ip, wire.PORT))
        try:
            got = host.ask(wire.STATUS, "vm1", timeout=HONEST if SIDE == OURS else 4)
        except TimeoutError:
            got = wire.Outcome("silence", step="connect", seconds=4)
        note(f"status: {got.kind} {got.code} in {got.seconds:.3f} s")
    if SIDE == OURS:
        assert got.code == wire.SUCCESS
        host.told("there were too many connections")
        assert host.state("vm1") == "on"
    else:
        assert got.code is None, "served"


def test_ten_thousand_junk_datagrams_a_second(scene, note):
    """Noise of the right and of any length. The C daemon answers as long as its socket has room; noted."""
    host = scene.host()
    junk = [os.urandom(176) for _ in range(64)] + [os.urandom(n) for n in (0, 1, 74, 175, 177, 1400)]
    with Flood(scene.eve, junk, 10_000) as flood:
        times, end = [], time.monotonic() + 2
        while time.monotonic() < end or len(times) < 10:
            got = host.client().multicast(wire.STATUS, "vm1", timeout=HONEST, port=1301)
            times.append(got.seconds if got.code == wire.SUCCESS else None)
        lost = times.count(None)
        agents = [scene.agent(scene.other, "-o", "status", "-H", "vm1", "-t", "20", "-r", "10").rc
                  for _ in range(5 if SIDE == OURS else 0)]
    note(f"{flood.sent} datagrams; {lost} of {len(times)} requests lost (one datagram each, no retransmission), slowest "
         f"{max((t for t in times if t is not None), default=0) * 1000:.0f} ms")
    if SIDE == OURS:
        assert agents == [0] * 5
        assert sum("audit" not in line for line in host.daemon.lines) < 100, "a flood of datagrams is no flood of lines"
        host.told("dropped")


def test_packets_that_name_dead_addresses(scene, note):
    """Eve has recorded packets of others (lost on their way, so that no host has seen them) who are gone: nobody
    answers the call-backs. The C daemon waits for each."""
    host = scene.host()
    packets = [scene.captured(wire.STATUS, "vm1", transport="multicast", address=f"10.77.50.{n}") for n in range(1, 200)]
    for packet in packets:
        wire.multicast_send(scene.eve, packet)
    got = host.client().multicast(wire.STATUS, "vm1", timeout=HONEST if SIDE == OURS else 2, port=1301)
    note(f"status: {got.kind} {got.code} in {got.seconds:.3f} s")
    if SIDE == OURS:
        assert got.code == wire.SUCCESS
    else:
        assert got.code is None, "served"
