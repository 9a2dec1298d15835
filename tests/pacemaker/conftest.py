# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Pacemaker round the agents.

Run: OURS_DIR=… /usr/bin/python3 -m pytest tests/pacemaker        (root; see packages.txt)

WIDE=1 is the long run: every pair of agent and daemon, split clusters, three nodes, all of the manual.
"""

import os

import pytest

from . import manual
from .nodes import Cluster, Lab

#: Whether this is the long run.
WIDE = os.environ.get("WIDE", "") not in ("", "0")

#: Pairs of agent and daemon.
PAIRS = ["ours-ours", "reference-ours"] + (["ours-reference", "reference-reference"] if WIDE else [])


def pytest_configure(config):
    config.addinivalue_line("markers", "wide: belongs to the long run")


def pytest_generate_tests(metafunc):
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", PAIRS, indirect=True)


def pytest_collection_modifyitems(config, items):
    if not WIDE:
        later = [item for item in items if item.get_closest_marker("wide")]
        items[:] = [item for item in items if item not in later]
        config.hook.pytest_deselected(items=later)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The Lab."""
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def two_nodes(lab):
    """The Cluster of two, with the manual's first device and a resource that is started where it may."""
    cluster = Cluster(lab, ["n1", "n2"])
    try:
        lab.serve("ours")
        cluster.boot()
        cluster.n1.run(*manual.command("pcs", "stonith", "create", "FenceVM"))
        # Sticky: it must not move for the sake of balance when a node comes back.
        cluster.n1.run("pcs", "resource", "create", "App", "ocf:pacemaker:Dummy", "op", "monitor", "interval=10s",
                       "meta", "resource-stickiness=1000")
        cluster.wait_whole()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(lab, two_nodes):
    """The Cluster of two, whole, with our agents and our daemon."""
    two_nodes.use("ours")
    lab.serve("ours")
    two_nodes.boot()
    return two_nodes


@pytest.fixture
def pair(request, lab, two_nodes):
    """The Cluster of two, whole, with the agent and the daemon of this run of the case."""
    agent, daemon = request.param.split("-")
    two_nodes.use(agent)
    lab.serve(daemon)
    two_nodes.boot()
    two_nodes.sides = (agent, daemon)
    return two_nodes
