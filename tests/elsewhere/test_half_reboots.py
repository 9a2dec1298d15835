# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirtd ends in the middle of a reboot and is back after some seconds, while fence_virtd lives on and the client waits.

The reboot goes on with the next libvirtd: one record, and the machine runs.
"""

import os
import signal
import time

import pytest

from lab import net

from .hosts import FAILED, OK

#: Seconds for which libvirtd is away: more than those for which fence_virtd waits for a connection in vain.
AWAY = 5


@pytest.fixture
def here(hosts):
    """h1, alone, with x on."""
    hosts.h1.serve(virtd={"peers": "none"})
    hosts.h1.has("x")
    return hosts.h1


def has_ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def lose_libvirtd(here, number, away):
    """libvirtd gets this signal, and the next one begins when it was away for so long."""
    os.kill(here.hypervisor.libvirtd_pid(), number)
    here.hypervisor._wait_gone()
    time.sleep(away)
    here.hypervisor.start()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("moment", ["at once", "in the order", "after the end", "in the start"])
def test_a_reboot_goes_on_with_the_next_libvirtd(hosts, here, number, moment):
    (before,) = here.processes("x")
    known = len(here.records())
    agent = hosts.agent("reboot", "x", timeout=40)
    match moment:
        case "in the order":
            time.sleep(0.1)
        case "after the end":
            net.wait_until(lambda: has_ended(before), 30, 0.001)
        case "in the start":
            net.wait_until(lambda: has_ended(before), 30, 0.001)
            net.wait_until(lambda: set(here.processes("x")) - {before}, 30, 0.001)
    lose_libvirtd(here, number, AWAY)
    result = agent.finish(60)
    net.wait_until(lambda: len(here.records()) > known, 30)
    (record,) = here.records()[known:]
    running = list(here.processes("x"))
    assert len(running) == 1, (result, record, hosts.logs())
    # What the client is told is true: before the order nothing was done.
    assert result.rc == (FAILED if running == [before] else OK), (result, record, hosts.logs())
    if moment == "after the end":
        assert result.rc == OK and not record["reason"], (record, hosts.logs())


def test_the_failure_of_a_fence_that_is_over_is_given_to_none(hosts, here):
    """Its client gave up before libvirtd was back. A new request comes when it is, and does its own work."""
    (before,) = here.processes("x")
    agent = hosts.agent("off", "x", timeout=5)
    net.wait_until(lambda: has_ended(before), 30, 0.001)
    lose_libvirtd(here, signal.SIGKILL, AWAY)
    assert agent.finish(30).rc == FAILED, hosts.logs()
    here.hypervisor.virsh("start", "x")
    again = hosts.ask("off", "x")
    record = here.records()[-1]
    assert again.rc == OK and not here.processes("x"), (record, hosts.logs())
    assert "the same work" not in (record["reason"] or ""), record
