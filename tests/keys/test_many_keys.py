# SPDX-License-Identifier: GPL-2.0-or-later
"""A thousand groups with a key of 4 KiB each, and somebody without a key who sends junk.

`pytest -s` prints the figures. What must hold is a comparison with few keys or no junk in the same run."""

import os
import signal
import statistics
import time

import pytest

from lab import loads, programs, wire

KEYS = 1000
#: Junk in a second.
RATE = 2000


@pytest.fixture(scope="module")
def key_files(tmp_path_factory):
    """A key file for each group."""
    directory = tmp_path_factory.mktemp("many")
    return [programs.write_key(directory / f"key{it}", os.urandom(4096))
            for it in range(KEYS)]


@pytest.fixture
def start(daemon):
    """start(key files): the daemon with a group for each, and the seconds that it took to serve."""
    def start(files):
        blocks = "".join(f'group {{ name = "g{n}"; uuid = "vm1"; key_file = "{it}"; }}' for n, it in enumerate(files))
        it = daemon(groups=f"groups {{ {blocks} }}")
        it.wait_serving()
        return it, time.monotonic() - it.started
    return start


def reload(it):
    """The seconds that a reload without a change takes."""
    mark, since = len(it.lines), time.monotonic()
    it.send_signal(signal.SIGHUP)
    it.wait_log("the new configuration is in force", since=mark)
    return time.monotonic() - since


def times(client, count=50):
    """The seconds that each of some requests takes, sorted; none may fail."""
    found = []
    for _ in range(count):
        since = time.monotonic()
        got = client.multicast(wire.STATUS, "vm1", timeout=10)
        assert got.code == wire.SUCCESS, got
        found.append(time.monotonic() - since)
    return sorted(found)


def test_start_and_reload(start, key_files):
    few, with_few = start(key_files[:1])
    reload_few = reload(few)
    assert few.stop() == 0
    many, with_many = start(key_files)
    reload_many = min(reload(many) for _ in range(3))
    print(f"\nstart: {with_few:.2f} s with 1 key, {with_many:.2f} s with {KEYS}; "
          f"reload: {reload_few:.3f} s and {reload_many:.3f} s")
    assert with_many < with_few + 1
    assert reload_many < reload_few + 0.2
    assert f"group_keys={KEYS} keys" in many.log


def test_junk_without_a_key_costs_honest_clients_nothing(stage, start, key_files):
    """One whose key was seen before, and one that is heard for the first time."""
    start(key_files)
    known, newcomer = (wire.FakeClient(stage.guest(guest), wire.read_key(key_files[place]))
                       for guest, place in ((1, 500), (2, 900)))
    quiet = times(known)
    nobody = wire.FakeClient(stage.guest(3), b"a key of nobody")
    with loads.Packets(nobody, "vm1", rate=RATE, action=wire.OFF) as junk:
        since, before = time.monotonic(), junk.done.value
        beside = times(known)
        first = times(newcomer, 1)[0]
        rate = (junk.done.value - before) / (time.monotonic() - since)
    shown = [f"median {statistics.median(it) * 1e3:.1f}, longest {it[-1] * 1e3:.1f} ms" for it in (quiet, beside)]
    print(f"\nquiet: {shown[0]}; with {rate:.0f} junk packets a second: {shown[1]}; a newcomer: {first * 1e3:.1f} ms")
    assert rate > RATE / 2
    assert statistics.median(beside) < 1.5 * statistics.median(quiet) + 0.05
    assert beside[-1] < 1.5 * quiet[-1] + 0.05
    assert first < 1.5 * quiet[-1] + 0.05
