# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts of a corosync cluster that do each other's work.

Run: OURS_DIR=… /usr/bin/python3 -m pytest tests/cpg       (root; corosync, libvirt's test driver, QEMU)

ROUNDS=200 is the long run. `test_reference.py` is about the C daemons alone: what compatibility with them stands on.
"""

import os

import pytest

from lab import programs

from lab import rig

from .hosts import Hosts
from .sites import Site

@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The Hosts."""
    for path in (programs.OURS_DIR / "fence_virtd", programs.REFERENCE_DIR / "fence_virtd"):
        if not os.access(path, os.X_OK):
            pytest.fail(f"not there: {path}")
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture
def hosts(cluster):
    """The Hosts, all up, without daemons and domains."""
    cluster.recover()
    yield cluster
    cluster.stop_serving()


@pytest.fixture(scope="session")
def sites(cluster):
    """Sites of h1 and h2."""
    reaper = rig.Reaper()
    sites = [Site(cluster, host, reaper) for host in (cluster.h1, cluster.h2)]
    yield sites
    reaper.close()
    for site in sites:
        site.close()
