# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent backend with real fence agents against real endpoints, and with agents and endpoints that lie.

Run: OURS_DIR=… /usr/bin/python3 -m pytest tests/agents     (root; libvirt, QEMU, fence-agents and openssh-server installed)
"""

import pytest

from lab.fixtures import vm1, vm2  # noqa: F401 - for the cases
from lab.programs import missing, program

from .rig import Host, Site


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The Site."""
    if gone := missing(program("ours", name) for name in ("fence_virtd", "fence_xvm", "fence_virt")):
        pytest.fail(f"not there: {', '.join(gone)}")
    site = Site(tmp_path_factory.mktemp("agents"))
    yield site
    site.close()


@pytest.fixture
def start_host(site, tmp_path):
    """start_host(devices, **options): a Host; at the end its daemon must be alive, end well and have kept the secrets."""
    running = []

    def start(devices, **options):
        running.append(Host(site, tmp_path / f"host{len(running)}", devices, **options))
        return running[-1]

    yield start
    for host in running:
        host.stop()
