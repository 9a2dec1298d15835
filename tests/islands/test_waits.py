# SPDX-License-Identifier: GPL-2.0-or-later
"""What red's clients and machines do holds up no fence of blue."""

import contextlib
import os
import threading

import pytest

from lab import net, programs, wire
from lab.rig import slow_to_die

from .conftest import RED, Site

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs")

#: Milliseconds for which a fence of blue may wait for its turn. A turn of red that is not proved lasts 2,000.
SOON = 1000
#: Seconds for a whole fence of blue; a slot of red's that is not given back lasts ten.
PROMPT = 5
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


#: Addresses of red's clients, more than fill the table of the listener with 128 connections from each.
ADDRESSES = 13


def red_addresses(site, count):
    """Gives red's guest so many further addresses, and returns them."""
    addresses = [f"{site.red.ip.rpartition('.')[0]}.{200 + number}" for number in range(count)]
    for address in addresses:
        site.red.add_address(address)
    return addresses


def test_clients_that_send_a_request_and_no_challenge(site):
    """Red's packets are valid, so each connection has shown red's key: they take all slots of red and none of blue's."""
    client = wire.FakeClient(site.red, wire.read_key(site.keys["red"]))
    streams = []
    try:
        for address in red_addresses(site, ADDRESSES):
            for _ in range(128):
                socket = site.red.socket(wire.socket.AF_INET)
                socket.bind((address, 0))
                socket.connect((site.host.ip, wire.PORT))
                streams.append(wire.Stream(socket, 10))
                streams[-1].send(client.packet(wire.OFF, b"red1", address=None))
        for way, target in (("tcp", "blue1"), ("multicast", "blue2"), ("tcp", "blue3")):
            result = site.fence(way, target)
            assert result.rc == 0, (result, site.daemon.log[-3000:])
            assert result.seconds < PROMPT, result
    finally:
        for stream in streams:
            stream.close()


def test_silent_connections_where_few_files_may_be_open(tmp_path):
    """The daemon may open 256 files, and more connections than that say nothing: some are left to whoever speaks."""
    wrapper = tmp_path / "with-few-files"
    wrapper.write_text(f'#!/bin/sh\nulimit -n 256\nexec {programs.OURS_DIR / "fence_virtd"} "$@"\n')
    wrapper.chmod(0o755)
    few = Site(tmp_path, program=wrapper)
    streams = []
    try:
        for address in red_addresses(few, 3):
            for _ in range(110):
                streams.append(few.red.socket(wire.socket.AF_INET))
                streams[-1].bind((address, 0))
                streams[-1].connect((few.host.ip, wire.PORT))
        for way, target in (("tcp", "blue1"), ("multicast", "blue2"), ("tcp", "blue3")):
            result = few.fence(way, target)
            assert result.rc == 0, (result, few.daemon.log[-3000:])
            assert result.seconds < 3, (result, few.daemon.log[-3000:])
    finally:
        for stream in streams:
            stream.close()
        few.close()


def unread_list(site, client):
    """A list that red's client asks for, with its proof, and does not read."""
    packet = client.packet(wire.LIST, b"", address=None)
    socket = site.red.socket(wire.socket.AF_INET)
    socket.setsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_RCVBUF, 4096)
    socket.connect((site.host.ip, wire.PORT))
    stream, proofs, c1 = wire.Stream(socket, PATIENCE), wire.Proofs(client.key, client.auth, packet), os.urandom(64)
    stream.send(packet)
    stream.send(c1)
    assert stream.recv(64) == proofs.host(c1)
    stream.send(proofs.client(c1, stream.recv(64)))
    return stream


def test_lists_that_nobody_reads(tmp_path):
    """Red asks for as many lists of its 2000 domains as it may from one address, and reads none of them."""
    many = Site(tmp_path, red=[*RED, *(f"more{number}" for number in range(2000))])
    client, streams = wire.FakeClient(many.red, wire.read_key(many.keys["red"])), []
    try:
        before = many.daemon.rss_kib()
        for _ in range(120):
            streams.append(unread_list(many, client))
        for way, target in (("tcp", "blue1"), ("multicast", "blue2")):
            result = many.fence(way, target)
            assert result.rc == 0, (result, many.daemon.log[-3000:])
            assert result.seconds < PROMPT, (result, many.daemon.log[-3000:])
        assert many.agent(many.blue, "tcp", "blue3", "blue").finish().rc == 0
        # 120 lists of this length are 50 MB as they are made and sent.
        assert many.daemon.rss_kib() - before < 40 * 1024, (before, many.daemon.rss_kib())
    finally:
        for stream in streams:
            stream.close()
        many.close()


def test_requests_that_name_an_address_of_the_other_cluster(site):
    """Red's packets name blue's address, and a port there that takes connections and says nothing."""
    with wire.FakeClient(site.blue).listening(port=5900) as listener:
        listener.listen(1024)
        client = wire.FakeClient(site.red, wire.read_key(site.keys["red"]))
        ended = threading.Event()

        def ask():
            while not ended.is_set():
                client.send(client.packet(wire.OFF, b"red1", address=site.blue.ip, port=5900))
                ended.wait(0.002)

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            net.wait_until(lambda: site.daemon.log.count('"pushed-out"') + site.daemon.log.count("too many requests") > 0)
            for way, target in (("multicast", "blue1"), ("tcp", "blue2"), ("multicast", "blue3")):
                result = site.fence(way, target)
                assert result.rc == 0, (result, site.daemon.log[-3000:])
                assert result.seconds < PROMPT, result
        finally:
            ended.set()
            asker.join()


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
