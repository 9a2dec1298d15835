# SPDX-License-Identifier: GPL-2.0-or-later
"""End to end: an agent in one namespace, a daemon in another, a real hypervisor under it.

Run: /usr/bin/python3 -m pytest tests/e2e        (root; libvirt and QEMU installed)

Each case runs for pairs of an agent and a daemon, each the reference's or ours, because a host or a guest may
be switched alone. The pair of two reference programs is the control group: where a case fails for it too,
the case is wrong. A case that only one side can pass says so with `@pytest.mark.pairs(daemon="ours")`.
`stage.py` says how pairs are chosen.
"""

import signal

import pytest

from lab import programs
from lab.fixtures import a_hypervisor_that_answers, vm1, vm2  # noqa: F401 - for the cases
from stage import CHOSEN, PAIRS, Pair, Site


def pytest_configure(config):
    config.addinivalue_line("markers", "pairs(agent=, daemon=): the case holds for such pairs only")
    unknown = set(CHOSEN) - set(PAIRS)
    if unknown:
        raise pytest.UsageError(f"E2E_PAIRS: {', '.join(sorted(unknown))}: not one of {', '.join(PAIRS)}")


def pytest_generate_tests(metafunc):
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", CHOSEN or PAIRS, indirect=True)


def pytest_collection_modifyitems(config, items):
    def holds(item):
        marker = item.get_closest_marker("pairs")
        call = getattr(item, "callspec", None)
        if marker is None or call is None or "pair" not in call.params:
            return True
        pair = Pair(*call.params["pair"].split("-"))
        return all(getattr(pair, side) == value for side, value in marker.kwargs.items())

    others = [item for item in items if not holds(item)]
    items[:] = [item for item in items if holds(item)]
    config.hook.pytest_deselected(items=others)


@pytest.fixture
def pair(request):
    """The pair of this run of the case."""
    pair = Pair(*request.param.split("-"))
    missing = pair.missing()
    if missing and CHOSEN:
        pytest.fail(f"not there: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not there: {', '.join(missing)}")
    return pair


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The Site."""
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.fixture
def agent(site, pair):
    """agent(*args, guest=1, key=…, wait=True): an agent of the pair."""
    def run(*args, **kw):
        return site.agent(pair.agent, *args, **kw)
    return run


@pytest.fixture
def start_daemon(site, pair, tmp_path):
    """start_daemon(**config): the pair's daemon on the host, with this configuration.

    At the end of the case every daemon must still be alive and end by SIGTERM with code 0."""
    running = []

    def start(ready="udp", config=None, args=(), **options):
        config = config or site.config(tmp_path / f"fence_virt-{len(running)}.conf", **options)
        path = programs.shelved(pair.daemon, tmp_path)
        daemon = programs.Daemon(site.host, config, *args, program=path, ready=ready, debug=3)
        running.append(daemon)
        return daemon

    yield start
    for daemon in running:
        if getattr(daemon, "stopped_by_case", False):
            assert daemon.stop() in (0, -signal.SIGKILL), daemon.log[-4000:]
        else:
            daemon.end((0, -signal.SIGKILL))


@pytest.fixture
def daemon(start_daemon):
    """A daemon with the plainest configuration."""
    return start_daemon()
