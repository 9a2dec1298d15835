# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that corosync does not know, and domains that may be at another one: "off" is said when it is off everywhere.

Run: OURS_DIR=… /usr/bin/python3 -m pytest tests/elsewhere       (root; libvirt and QEMU)

ROUNDS=50 is the long run. UNAWARE=1 with OURS_DIR of an older version shows what was told before: the rows fail.
"""

import pytest

from lab.programs import missing, program

from .hosts import Hosts


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """The Hosts."""
    if gone := missing([program("ours", "fence_virtd"), program("ours", "fence_xvm"), program("reference", "fence_virtd")]):
        pytest.fail(f"not there: {', '.join(gone)}")
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A case that fails, perhaps for what it was told last: that is judged while the domains are as they were."""
    report = (yield).get_result()
    hosts = item.funcargs.get("scene")
    if hosts and call.when == "call" and report.failed:
        for answer in hosts.answers:
            answer.lie_afterwards()


@pytest.fixture
def hosts(scene):
    """The Hosts, all well, without daemons and domains."""
    scene.recover()
    scene.answers = []
    yield scene
    for host in scene.all:
        host.stop_serving()
