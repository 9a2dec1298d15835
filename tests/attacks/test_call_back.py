# SPDX-License-Identifier: GPL-2.0-or-later
"""Eve plays the host towards the owner's agent: anybody may connect to the port where it waits for the call-back."""

import contextlib
import os
import pathlib
import subprocess
import threading
import time

import pytest

from lab import net, wire
from lab.wire import FakeHost, Stop

from .scene import OURS, PATIENCE, REFERENCE, SIDE, program

FLOODER = pathlib.Path(__file__).with_name("flooder.c")
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
    """Ours holds some hundred connections; more make room for newer ones. (The C agent has lost with the first, see above.)"""
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


@pytest.fixture(scope="module")
def flooder(tmp_path_factory):
    """The program that makes connections as fast as one core can: Python is too slow for it."""
    out = tmp_path_factory.mktemp("flooder") / "flooder"
    subprocess.run(["cc", "-O2", "-o", out, FLOODER], check=True)
    return out


@contextlib.contextmanager
def flood(node, flooder, kind, to, addresses):
    """Connections to the call-back port of `to` from these addresses of a node, without end, while the block lasts. Yields how
    many there were so far."""
    counts = []
    with node.popen([flooder, kind, to.ip, wire.PORT, *addresses], stdout=subprocess.PIPE) as process:
        thread = threading.Thread(target=lambda: counts.extend(map(int, process.stdout)), daemon=True)
        thread.start()
        try:
            net.wait_until(lambda: counts)
            yield counts
        finally:
            process.kill()
            thread.join(10)


@pytest.mark.ours
@pytest.mark.parametrize("host_side", [OURS, REFERENCE])
@pytest.mark.parametrize("kind, count", [("silent", 1), ("junk", 300)], ids=["silent-one-address", "junk-three-hundred-addresses"])
def test_fences_beside_a_flood_of_connections(scene, note, flooder, kind, count, host_side):
    """Six of six, though the port gets more connections than the agent can hold between two breaths. (The guest is not just
    booted: 64 call-backs of a C host would be hung up on first, and each that the flood delays costs two seconds.)"""
    scene.owner = scene.fresh_guest()
    scene.owner.know_ports()
    host = scene.host(side=host_side)
    addresses = [scene.eve.ip] + [f"10.77.{60 + n // 256}.{n % 256}" for n in range(1, count)]
    # All of these are Eve's.
    scene.eve.ip_cmd("route add local 10.77.60.0/23 dev lo")
    try:
        with flood(scene.eve, flooder, kind, scene.owner, addresses) as connections:
            before, begun = connections[-1], time.monotonic()
            got = [scene.quiet_agent(scene.owner, "-o", "reboot", "-H", "vm1", "-t", "25") for _ in range(6)]
            seconds = time.monotonic() - begun
            note(f"six fences in {seconds:.1f} s beside {(connections[-1] - before) / seconds:.0f} connections a second")
    finally:
        scene.eve.ip_cmd("route del local 10.77.60.0/23 dev lo")
    assert [it.rc for it in got] == [0] * 6, got


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
