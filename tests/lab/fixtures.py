# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures that several suites need; a conftest.py imports them. `site` is the suite's own, with a `hypervisor`."""

import pytest


@pytest.fixture
def vm1(site):
    """A running QEMU domain."""
    return site.hypervisor.domain("vm1")


@pytest.fixture
def vm2(site):
    """Another."""
    return site.hypervisor.domain("vm2")


@pytest.fixture(autouse=True)
def a_hypervisor_that_answers(site):
    """A case may kill or stop libvirtd; the next one must not pay for it."""
    yield
    site.hypervisor.recover()
