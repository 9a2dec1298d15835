# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes away while guests ask, and comes back: libvirtd, the daemon, guests, the bridge between them."""

import os
import signal

import pytest

from conftest import wait_until
from lab.process import Process
from scene import BRIDGE, FAILED, OK, command

# What comes back is the daemon's; an agent of either side sees the same.
pytestmark = pytest.mark.pairs(agent="ours", daemon="ours")

#: The time limit of requests that nobody can answer, seconds, and how much later an agent may end: these guests are
#: slow, and the machine may have more to do.
LIMIT, SLACK = 4, 6
#: The daemon gives up a look at a domain after 10 s: the limit of agents that are to hear of it.
LONG = 20


def fails_in_time(ask, n1, way, *args, limit=LIMIT):
    """The agent fails by its own deadline."""
    result = ask(n1, way, *args, "-t", limit)
    assert result.rc == FAILED, result
    assert result.seconds < limit + SLACK, result


def comes_back(ask, guest, way, target):
    """Requests are answered again, by themselves."""
    wait_until(lambda: ask(guest, way, "-o", "status", "-H", target, "-t", 2).rc == OK)


def both(*names):
    return pytest.mark.parametrize("way", names, indirect=True)


@both("multicast", "serial")
@pytest.mark.parametrize("outage", ["kill", "freeze"])
def test_libvirtd_goes_away_while_requests_run(pair, way, outage, start_daemon, scene, n1, n2):
    daemon = start_daemon(way)
    qemu = n2.process()
    asking = command(pair.agent, way, "-o", "status", "-H", "n2", "-t", LONG)
    n1.sh("rm -f /run/stop /run/done; { while [ ! -e /run/stop ]; do "
          f"{asking} 2>&1; echo $?; done > /run/codes; touch /run/done; }} > /dev/null 2>&1 &")
    daemon.wait_log("audit: status n2: success")
    since = len(daemon.lines)
    getattr(scene.hypervisor, outage)()
    daemon.wait_log(r"audit: status n2: failure.*reason=\S", since=since, timeout=LONG)
    since = len(daemon.lines)
    scene.hypervisor.recover()
    daemon.wait_log("audit: status n2: success", since=since, timeout=LONG)
    codes = n1.sh("touch /run/stop; until [ -e /run/done ]; do usleep 50000; done; cat /run/codes", LONG + SLACK)
    # What it says comes before each code. On multicast an agent asks again after a failure, and may still succeed.
    codes = [it for it in codes.out.splitlines() if it.isdigit()]
    assert codes[0] == codes[-1] == "0" and set(codes) <= {"0", "1"}, (codes, daemon.log)
    assert not qemu.ended()


@pytest.mark.parametrize("outage, way, limit", [("kill", "serial", LIMIT), ("freeze", "serial", 12),
                                                ("freeze", "multicast", LIMIT)], indirect=["way"])
def test_off_fails_without_libvirtd_and_does_not_happen_later(outage, limit, way, start_daemon, ask, scene, n1, n2):
    """On multicast the agent's proof is missing when it gave up. On a serial line the daemon can't see that: it fails
    the request itself, after 3 s without a connection to libvirt and after 10 s without an answer from it."""
    daemon = start_daemon(way)
    qemu = n2.process()
    getattr(scene.hypervisor, outage)()
    since = len(daemon.lines)
    fails_in_time(ask, n1, way, "-o", "off", "-H", "n2", limit=limit)
    daemon.wait_log(r"audit: off n2: (failure|not run).*reason=\S", since=since, timeout=LONG)
    scene.hypervisor.recover()
    comes_back(ask, n1, way, "n2")
    assert not qemu.ended(2), f"off was carried out after its deadline\n{daemon.log}"
    assert ask(n1, way, "-o", "off", "-H", "n2").rc == OK, daemon.log
    assert qemu.ended()


@both("serial", "channel")
def test_a_guest_that_ended_while_libvirtd_was_away(way, start_daemon, ask, scene, n1, n2):
    """Its line comes back with it, and the other guest's was never lost."""
    daemon = start_daemon(way)
    pid = n2.pid()
    scene.hypervisor.kill()
    qemu = Process(pid)
    os.kill(pid, signal.SIGKILL)
    assert qemu.ended(30)
    scene.hypervisor.recover()
    n2.wait_state("shut off")
    comes_back(ask, n1, way, "n1")
    n2.up()
    comes_back(ask, n2, way, "n1")
    assert daemon.log.count("connected to the domain's socket domain=n1 ") == 1, daemon.log


@both("serial", "guestfwd")
def test_a_daemon_that_was_killed(way, start_daemon, ask, n1):
    """The sockets take the next one's connections."""
    daemon = start_daemon(way)
    assert ask(n1, way, "-o", "status", "-H", "n2").rc == OK
    daemon.send_signal(signal.SIGKILL)
    daemon.wait_exit()
    daemon.expected_to_run = False
    fails_in_time(ask, n1, way, "-o", "status", "-H", "n2")
    again = start_daemon(way)
    assert ask(n1, way, "-o", "status", "-H", "n2").rc == OK, again.log


@both("multicast", "multicast6")
def test_the_bridge_is_made_again(pair, way, start_daemon, ask, scene, n1, n2):
    """A bridge of the same name is another interface: the daemon joins the group there, and says so."""
    daemon = start_daemon(way)
    assert ask(n1, way, "-o", "status", "-H", "n2").rc == OK, daemon.log
    taps = scene.taps()
    assert len(taps) == 2
    scene.host.ip_cmd(f"link del {BRIDGE}")
    try:
        gone = daemon.wait_log(rf"the interface is gone.*interface={BRIDGE}\b")
        fails_in_time(ask, n1, way, "-o", "status", "-H", "n2")
    finally:
        scene.make_bridge()
        for tap in taps:
            scene.host.ip_cmd(f"link set {tap} master {BRIDGE}")
    assert gone
    daemon.wait_log(rf"heard by this interface from now on.*interface={BRIDGE}\b")
    comes_back(ask, n1, way, "n2")
    qemu = n2.process()
    assert ask(n1, way, "-o", "off", "-H", "n2").rc == OK, daemon.log
    assert qemu.ended()
