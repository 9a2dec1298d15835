# SPDX-License-Identifier: GPL-2.0-or-later
"""All loads of the suite islands at once, by somebody without a key and by holders of other keys, beside an honest client.

SOAK_SECONDS is how long they last; ten minutes at most, for what they leave in records and logs. Without it the case is left out."""

import contextlib
import itertools
import os
import time

import pytest

from islands import rows
from islands.sites import BLUE, RED, Lab, Site
from lab import loads, net

pytestmark = [pytest.mark.ours, pytest.mark.skipif(not os.environ.get("SOAK_SECONDS"), reason="takes long: see `make soak`")]

SECONDS = min(float(os.environ.get("SOAK_SECONDS") or 0), 600)
#: Domains of red's, and groups of others with a key of their own.
MANY, KEYS = 2000, 300
#: What the daemon may keep: memory in KiB (that of packets is 60 MB at most), and descriptors and threads (connections to libvirt).
KEPT_KIB, KEPT_COUNT = 64 * 1024, 16


def all_of(site, machines):
    """A load of each kind, of each that can make it. Together they share two processors with the daemon, so each is a part of what it is
    alone."""
    for port, maker in enumerate((rows.KEYLESS, rows.ANOTHER), 5900):
        client, target = rows.maker_of(site, maker)
        for make in (rows.connections(100, loads.nothing, seconds=4), rows.connections(118, loads.challenge, seconds=28),
                     rows.connections(400, loads.request, addresses=13, seconds=2), rows.packets(1000)):
            yield make(site, client, target)
        yield rows.redirected(site, client, target, port)
    # Those of the holder of a key alone.
    for make in (rows.lists(30), rows.lists(300, read=False, seconds=5)):
        yield make(site, client, target)
    # Red has an off of its own that stands still already: each that is not proved.
    yield rows.undying_machines(site, machines, "green")


def held(daemon):
    """Memory in KiB, descriptors and threads."""
    return daemon.rss_kib(), daemon.descriptors(), len(os.listdir(f"/proc/{daemon.pid}/task"))


def test_all_loads_at_once_beside_the_holder_of_another_key(tmp_path, note):
    with contextlib.ExitStack() as ends:
        lab = ends.enter_context(Lab(tmp_path))
        # At another hypervisor of the host than all else.
        machines = lab.machines(("green1", "green2"))
        site = Site(lab.directory(), red=[*RED, *(f"more{it}" for it in range(MANY))], green=machines, keys=KEYS,
                    uris=[lab.hypervisor.uri])
        ends.callback(site.close)

        def start(target):
            assert site.fence("tcp", target, action="on").rc == 0
        fences = rows.Fences(site, itertools.cycle(BLUE), start)

        def beside_all(seconds):
            with contextlib.ExitStack() as stack:
                for it in all_of(site, machines):
                    stack.enter_context(it)
                end, found = time.monotonic() + seconds, []
                while time.monotonic() < end:
                    found.append(fences())
            return found

        quiet = [fences() for _ in range(20)]
        beside_all(SECONDS / 6)
        before = settled(site.daemon)
        beside = beside_all(SECONDS)
        note(f"{len(beside)} fences, p50 and p99 in ms: {shown(quiet)} quiet, {shown(beside)} beside all; held: {before}, {held(site.daemon)}")
        assert all(it.succeeded for it in beside), [it for it in beside if not it.succeeded]
        fences.check()
        try:
            net.wait_until(lambda: all(now <= then + kept for now, then, kept in zip(
                held(site.daemon), before, (KEPT_KIB, KEPT_COUNT, KEPT_COUNT), strict=True)))
        except TimeoutError:
            raise AssertionError(f"memory in KiB, descriptors, threads: {before} before, {held(site.daemon)} after") from None
        assert site.daemon.alive()


def settled(daemon):
    """What is held when the numbers have not changed for twelve seconds: threads end when they had nothing to do for ten."""
    seen = []

    def same():
        seen.append(held(daemon)[1:])
        time.sleep(0.5)
        return len(seen) > 24 and len(set(seen[-24:])) == 1
    net.wait_until(same)
    return held(daemon)


def shown(fences):
    """Two figures of their times."""
    return ", ".join(f"{rows.seconds(fences, share) * 1000:.0f}" for share in (0.5, 0.99))
