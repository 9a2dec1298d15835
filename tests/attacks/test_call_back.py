# SPDX-License-Identifier: GPL-2.0-or-later
"""Eve plays the host towards the owner's agent: anybody may connect to the port where it waits for the call-back."""

import os

import pytest

from lab import net, wire
from lab.wire import FakeHost, Stop

from .scene import OURS, PATIENCE, SIDE, program

ANOTHER_KEY = bytes(range(200, 256)) * 8
#: What Eve does with the connection that she makes before the host can.
ROGUES = {
    "silent": {"stop": Stop.CONNECTED, "how": "hang"},
    "hangs-up": {"stop": Stop.CONNECTED, "how": "close"},
    "another-key": {"key": ANOTHER_KEY},
    "without-a-key": {"right_answer": False},
    "success-and-no-challenge": {"auth": wire.HASH_NONE, "response": b"\0"},
    "garbage": {"auth": wire.HASH_NONE, "response": os.urandom(5000)},
}


@pytest.mark.parametrize("rogue", ROGUES)
def test_a_rogue_host_and_no_other(scene, rogue):
    """No agent takes Eve's word. (Nobody there: it fails at its time-out.)"""
    scene.owner = scene.fresh_guest()
    with FakeHost(scene.eve, timeout=2, **ROGUES[rogue]) as eve:
        asks = scene.agent(scene.owner, "-o", "off", "-H", "vm1", "-t", "5", "-r", "20", background=True)
        net.wait_until(lambda: eve.streams, PATIENCE)
    assert asks.finish().rc not in (0, None)


@pytest.mark.parametrize("rogue", ROGUES)
def test_a_rogue_host_that_calls_back_first(scene, rogue):
    """The host is a moment later than Eve. The C agent takes the first connection and no other: the fence fails (and
    the cluster stands still). Ours goes by who proves the key."""
    scene.owner = scene.fresh_guest()
    host = scene.host()
    with FakeHost(scene.eve, timeout=5, **ROGUES[rogue]) as eve:
        with host.busy():
            asks = scene.agent(scene.owner, "-o", "off", "-H", "vm1", "-t", "15", "-r", "100", background=True)
            net.wait_until(lambda: eve.streams, PATIENCE)
        if SIDE != OURS and rogue == "silent":
            with pytest.raises(TimeoutError):
                net.wait_until(lambda: asks.process.poll() is not None, 2)
            asks.process.kill()
        got = asks.finish()
    if SIDE == OURS:
        assert got.rc == 0 and host.state("vm1") == "off", got
    else:
        assert got.rc != 0 and host.state("vm1") == "on", got


def test_thirty_rogue_connections_beside_the_hosts(scene):
    """Ours holds 32 connections; more make room for newer ones. (The C agent has lost with the first, see above.)"""
    scene.owner = scene.fresh_guest()
    host = scene.host()
    spares = []

    def many(request):
        spares.extend(scene.connect(scene.eve, request.address, request.port) for _ in range(60))
    with FakeHost(scene.eve, timeout=5, before=many, stop=Stop.CONNECTED, how="hang") as eve:
        with host.busy():
            asks = scene.agent(scene.owner, "-o", "off", "-H", "vm1", "-t", "15", "-r", "100", background=True)
            net.wait_until(lambda: len(spares) >= 60 or eve.errors, PATIENCE)
        if SIDE != OURS:
            asks.process.kill()
        got = asks.finish()
    for spare in spares:
        spare.close()
    if SIDE == OURS:
        assert got.rc == 0 and host.state("vm1") == "off", got
    else:
        assert got.rc != 0


def test_the_agent_tells_who_called_back(scene):
    """What was wrong with Eve's call-back is said, with her address; nothing of what she sent is."""
    scene.owner = scene.fresh_guest()
    with FakeHost(scene.eve, timeout=2, key=ANOTHER_KEY):
        got = scene.agent(scene.owner, "-o", "off", "-H", "vm1", "-t", "1", "-r", "50", name="fence_xvm",
                          background=True)
        net.wait_until(lambda: got.process.poll() is not None, 8) if SIDE == OURS else got.process.kill()
    result = got.finish()
    assert result.rc != 0
    if SIDE == OURS:
        assert scene.eve.ip in result.err and "wrong answer" in result.err, result
    assert program(SIDE, "fence_xvm")
