# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirtd dies again and again while both clusters ask: nothing of its connections is left in the daemon."""

import contextlib
import os

import pytest

from lab import loads, net, programs, wire

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs")

KILLS = 10


class Load(loads.Threads):
    """Clients of a cluster that ask for states and lists without a pause, whatever becomes of it."""

    def __init__(self, site, guest, key, names):
        self.site, self.client, self.names = site, wire.FakeClient(guest, wire.read_key(site.keys[key])), names
        super().__init__([(number,) for number in range(3)])
        self.count = 0

    def run(self, number):
        while not self.ended.is_set():
            action, name = ((wire.LIST, b""), (wire.STATUS, self.names[number % len(self.names)].encode()))[number % 3 > 0]
            with contextlib.suppress(OSError, wire.Closed):
                self.client.tcp(self.site.host.ip, action, name)
            self.count += 1


def survives(site, hypervisor, kills):
    """So many deaths of libvirtd beside the load of both clusters."""
    with Load(site, site.red, "red", ["red1", "red2"]) as red, Load(site, site.blue, "blue", ["blue1", "blue2"]) as blue:
        for _ in range(kills):
            for it in (red, blue):
                before = it.count
                net.wait_until(lambda it=it, before=before: it.count > before + 3)
            hypervisor.kill()
            hypervisor.start()


def test_nothing_is_left_of_a_libvirtd_that_dies(machines, hypervisor):
    site, _ = machines
    it = site.daemon

    def held():
        return it.descriptors(), len(os.listdir(f"/proc/{it.pid}/task"))

    def settled():
        """As much as before, but for some connections that are kept. What every kill leaves is more."""
        now = held()
        return all(it < was + KILLS - 1 for it, was in zip(now, before, strict=True))

    survives(site, hypervisor, 2)
    assert site.fence("tcp", "blue1").rc == 0
    before, rss = held(), it.rss_kib()
    survives(site, hypervisor, KILLS)
    assert site.fence("tcp", "blue2").rc == 0
    try:
        net.wait_until(settled, 60)
    except TimeoutError:
        raise AssertionError(f"descriptors and threads: {held()}, {before} before") from None
    assert it.rss_kib() - rss < 24 * 1024, (rss, it.rss_kib())
