# SPDX-License-Identifier: GPL-2.0-or-later
"""Real guests: agents inside Linux virtual machines, a daemon on their host, each way in between.

Run: /usr/bin/python3 -m pytest tests/guests        (root; libvirt and QEMU installed)

The host is a network namespace with a libvirtd of its own and a bridge; the guests boot a kernel without KVM. A case
runs for pairs of an agent and a daemon, each the reference's or ours. The pair of two reference programs is the
control group: where a case fails for it too, the case is wrong. It runs only where GUESTS_PAIRS names it.
vsock is tested over the loopback of vsock inside one guest, agent and daemon together: see test_guests_vsock.py.
"""

import pytest

from lab import net, programs
from scene import CHOSEN, PAIRS, WAYS, Pair, Scene, command


def pytest_configure(config):
    config.addinivalue_line("markers", "pairs(agent=, daemon=): the case holds for such pairs only")
    unknown = set(CHOSEN) - set(PAIRS)
    if unknown:
        raise pytest.UsageError(f"GUESTS_PAIRS: {', '.join(sorted(unknown))}: not one of {', '.join(PAIRS)}")


def pytest_report_header():
    return "vsock: over vsock_loopback inside one guest"


def pytest_generate_tests(metafunc):
    if "pair" in metafunc.fixturenames:
        pairs = CHOSEN or PAIRS[1:]
        metafunc.parametrize("pair", [Pair(*it.split("-")) for it in pairs], ids=pairs)


def pytest_collection_modifyitems(config, items):
    def holds(item):
        values = getattr(getattr(item, "callspec", None), "params", {})
        if "pair" not in values:
            return True
        pair, marker = values["pair"], item.get_closest_marker("pairs")
        # The reference agent takes every device for a terminal: see test_the_reference_agent_has_no_channel.
        can = pair.agent != "reference" or values.get("way") != "channel"
        return can and (marker is None or all(getattr(pair, side) == it for side, it in marker.kwargs.items()))

    others = [item for item in items if not holds(item)]
    items[:] = [item for item in items if holds(item)]
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """The Scene."""
    scene = Scene(tmp_path_factory.mktemp("guests"))
    yield scene
    scene.close()


@pytest.fixture
def guests(scene):
    """Both guests, which run and answer."""
    scene.hypervisor.recover()
    yield scene.guests_up()
    scene.hypervisor.recover()


@pytest.fixture
def n1(guests):
    """The guest that asks."""
    return guests[0]


@pytest.fixture
def n2(guests):
    """The guest that is fenced."""
    return guests[1]


@pytest.fixture
def way(request):
    """The Way of a name (parametrised indirectly)."""
    return WAYS[request.param]


@pytest.fixture
def start_daemon(scene, guests, pair, tmp_path):
    """start_daemon(way, …, groups=None, devices=(), over=None): the pair's daemon on the host, which hears requests by these
    ways. `devices`: those of the agent backend, in place of libvirt; `over`: {place: path}, what the daemon sees elsewhere.

    At the end of the case every daemon must still be alive and end by SIGTERM with code 0, unless the case has set
    `expected_to_run` to False."""
    running = []

    def start(*ways, groups=None, devices=(), over=None):
        config = scene.config(tmp_path / f"fence_virt-{len(running)}.conf", ways, pair.daemon, groups, devices)
        run = programs.shelved(pair.daemon, tmp_path, over) if over else programs.program(pair.daemon, "fence_virtd")
        up = [it for it in guests if it.state() == "running"]
        daemon = programs.Daemon(scene.host, config, program=run, debug=9,
                                 ready=lambda it: all(way.ready(it, up) for way in ways))
        running.append(daemon)
        return daemon

    yield start
    for daemon in running:
        if getattr(daemon, "expected_to_run", True):
            daemon.end()


@pytest.fixture
def ask(pair):
    """ask(guest, way, *args, key=…): an agent of the pair inside that guest; gives the Result."""
    def run(guest, way, *args, key="/etc/key", timeout=60):
        return guest.sh(command(pair.agent, way, *args, key=key), timeout)
    return run


def wait_until(check, timeout=60):
    """Waits until `check` gives something true, and returns that."""
    return net.wait_until(check, timeout, step=0.05)
