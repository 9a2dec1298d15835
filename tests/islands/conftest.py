# SPDX-License-Identifier: GPL-2.0-or-later
"""Two clusters on one daemon, red and blue, each with a group and a key of its own: blue's fences do not wait for red's trouble.

Run: SIDE=ours /usr/bin/python3 -m pytest tests/islands        (root; libvirt's test driver, and a libvirtd with QEMU)
"""

import pytest

from .sites import BLUE, RED, Lab, Site


@pytest.fixture
def site(tmp_path):
    """A Site on libvirt's test driver."""
    it = Site(tmp_path)
    yield it
    it.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """What the rows of the table are set up in."""
    with Lab(tmp_path_factory.mktemp("loads")) as it:
        yield it


@pytest.fixture(scope="session")
def hypervisor(lab):
    """A libvirtd with QEMU domains."""
    return lab.hypervisor


@pytest.fixture
def machines(tmp_path, lab, hypervisor):
    """A Site with real machines, and the domains by name."""
    domains = lab.machines((*RED, *BLUE))
    it = Site(tmp_path, hypervisor.uri)
    yield it, domains
    it.close()
