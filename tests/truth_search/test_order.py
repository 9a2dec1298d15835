# SPDX-License-Identifier: GPL-2.0-or-later
"""A search that finds no fault of a daemon where there is none: a world is in order before requests must succeed."""

import contextlib
import os
import signal
import socket
import tempfile

import pytest

from lab.net import wait_until

from .search import LaboratoryFault, Search
from .world import Shape, World

#: A world of one host whose daemon is not asked.
SHAPE = Shape("qemu", (1,), peers="none", negative_delay=0)


@pytest.fixture
def ghost():
    """A Search, and a place whose libvirtd waits for ever for a machine that is gone: somebody else has its process's place at the
    monitor, and says nothing. libvirtd can't end it either."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="fvlab-"))
        world = stack.enter_context(World(directory, SHAPE))
        (place,) = world.places
        place.define("b")
        place.start("b")
        place.kill()
        (pid,) = place.hypervisor.processes().values()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not place.has("b"), 20)
        (path,) = place.hypervisor.path("/var/lib/libvirt/qemu").glob("domain-*-b/monitor.sock")
        path.unlink()
        silent = stack.enter_context(socket.socket(socket.AF_UNIX))
        silent.bind(str(path))
        silent.listen(9)
        place.raise_up()
        assert place.claims("b"), "the case shows nothing"
        yield Search(world), place


def test_what_libvirtd_claims_and_is_not_there_is_laid(ghost):
    search, place = ghost
    search._put_in_order("b")
    assert search.world.read().running("b") and place.domain("b").isActive()


def test_one_that_can_not_be_laid_is_no_fault_of_a_daemon(ghost, monkeypatch):
    search, place = ghost
    monkeypatch.setattr("truth_search.search.PATIENCE", 1)
    monkeypatch.setattr(place, "forget", lambda _: None)
    with pytest.raises(LaboratoryFault, match="still has b"):
        search._put_in_order("b")
    assert not search.found()
