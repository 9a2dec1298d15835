# SPDX-License-Identifier: GPL-2.0-or-later
"""What red's clients and machines do holds up no fence of blue."""

import contextlib
import os
import threading

import pytest

from lab import programs, wire
from lab.rig import slow_to_die

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs")

#: Milliseconds for which a fence of blue may wait for its turn. A turn of red that is not proved lasts 2,000.
SOON = 1000
#: Seconds for anything to happen.
PATIENCE = 60


class SilentClients:
    """One more connection of red's each quarter of a second: it asks for an off, has the host prove itself, and says no more."""

    def __init__(self, site):
        self.site, self.key = site, wire.read_key(site.keys["red"])
        self.ended, self.streams, self.asked = threading.Event(), [], threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        client = wire.FakeClient(self.site.red, self.key)
        while not self.ended.is_set():
            with contextlib.suppress(OSError, wire.Closed):
                socket = self.site.red.socket(wire.socket.AF_INET)
                stream = wire.Stream(socket, 10)
                self.streams.append(stream)
                socket.connect((self.site.host.ip, wire.PORT))
                stream.send(client.packet(wire.OFF, b"red1", address=None))
                stream.send(os.urandom(64))
                if len(self.streams) > 8:
                    self.asked.set()
            self.ended.wait(0.24)

    def __enter__(self):
        self.thread.start()
        assert self.asked.wait(PATIENCE)
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        for stream in self.streams:
            stream.close()


@pytest.mark.parametrize("way", ["tcp", "multicast"])
def test_clients_that_never_prove_themselves(site, way):
    with SilentClients(site):
        for target in ("blue1", "blue2"):
            result = site.fence(way, target)
            assert result.rc == 0, (result, site.daemon.log[-3000:])
            assert site.waited(target) < SOON, site.daemon.log[-3000:]
    # Whoever has the key of all may be anybody: the groups do not let that key fence blue.
    assert site.fence(way, "blue3", key="all").rc == 3


def test_a_machine_that_does_not_die(machines):
    """libvirt waits some seconds before it kills one that stands still."""
    site, domains = machines
    with slow_to_die(domains["red1"]) as wait_ordered:
        first = site.agent(site.red, "tcp", "red1", "red")
        wait_ordered()
        # The same cluster waits: it could be red1 that asks for this.
        second = site.agent(site.red, "tcp", "red2", "red")
        for way, target in (("tcp", "blue1"), ("multicast", "blue2")):
            result = site.fence(way, target)
            assert result.rc == 0, (result, site.daemon.log[-3000:])
            assert site.waited(target) < SOON, site.daemon.log[-3000:]
            assert not domains[target].pid()
        assert domains["red1"].pid() and domains["red2"].pid(), "red's offs have not ended"
    assert [it.finish(PATIENCE).rc for it in (first, second)] == [0, 0], site.daemon.log[-3000:]
    assert not domains["red1"].pid() and not domains["red2"].pid()
