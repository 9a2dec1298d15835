# SPDX-License-Identifier: GPL-2.0-or-later
"""One lab for the session; daemons are module-scoped in the files that use them."""

import os
import pathlib

import pytest

from compliance.support import Lab
from lab import net as lab_net
from lab import programs, testdriver
from lab.testdriver import PAUSED, SHUTOFF, Domain


def pytest_report_header(config):
    return [f"{name}: {path} ({programs.side_of(path)})" for name, path in
            (("daemon", programs.FENCE_VIRTD), ("fence_xvm", programs.FENCE_XVM), ("fence_virt", programs.FENCE_VIRT))]


def pytest_collection_modifyitems(config, items):
    missing = [p for p in (programs.FENCE_VIRTD, programs.FENCE_XVM, programs.FENCE_VIRT) if not os.access(p, os.X_OK)]
    here = pathlib.Path(__file__).parent
    if os.geteuid() != 0:
        missing.append("root (for network namespaces)")
    if missing and any(here in pathlib.Path(i.path).parents for i in items):
        raise pytest.UsageError(f"the compliance suite needs: {', '.join(map(str, missing))}")


@pytest.fixture(scope="session")
def net():
    with lab_net.Net() as n:
        yield n


@pytest.fixture(scope="session")
def lab(net, tmp_path_factory):
    return Lab(net, tmp_path_factory.mktemp("compliance"))


@pytest.fixture(scope="session")
def domains():
    """Domains that no case changes (on1, off1, paused1), and some for those that do (each case its own)."""
    own = [Domain(f"vm{i}") for i in range(1, 13)]
    return [Domain("on1"), Domain("off1", state=SHUTOFF), Domain("paused1", state=PAUSED),
            Domain("paused2", state=PAUSED), Domain("off2", state=SHUTOFF), Domain("off3", state=SHUTOFF), *own]


@pytest.fixture(scope="module")
def uri(lab, domains):
    return testdriver.write(lab.file(".xml"), domains)


@pytest.fixture(scope="module")
def multicast(lab, uri):
    """A daemon on multicast with everything at its default."""
    with programs.Daemon(lab.host, lab.config(uri)) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def tcp(lab, uri):
    """A daemon on TCP."""
    with programs.Daemon(lab.host, lab.config(uri, "tcp"), ready="tcp") as daemon:
        yield daemon
