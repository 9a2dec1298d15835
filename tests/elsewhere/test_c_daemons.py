# SPDX-License-Identifier: GPL-2.0-or-later
"""C daemons on the same network: what they have is known by their lists, and nothing that we send makes one stumble."""

import collections
import re
import time

import pytest

from lab import rig, wire
from lab.hypervisor import until

from .hosts import FAILED, OFF, OK, PATIENCE, Tally, Tap, UNAWARE

#: Seconds after which a C daemon has forgotten a request; the one before again is another one then. It reckons in whole seconds
#: of the clock, and forgets when more than 10 of them have gone by: after 10 to 11 seconds.
C_MEMORY = 11.1


@pytest.fixture
def mixed(hosts):
    """h1 is ours, h2 and h3 run the C daemon."""
    hosts.h2.serve("reference")
    hosts.h3.serve("reference")
    hosts.h1.serve()
    hosts.acquaint(hosts.h1, hosts.h2, hosts.h3)
    return hosts


def ours_alone(hosts):
    """The guest hears from our daemon alone; the others are heard by it."""
    hosts.h2.does_not_call_back()
    hosts.h3.does_not_call_back()


@pytest.mark.parametrize("action", ["status", "off"])
def test_what_a_c_daemon_has_is_known_by_its_list(mixed, note, action):
    mixed.h1.has("x", start=False)
    mixed.h2.has("x")
    mixed.h3.has("x", start=False)
    ours_alone(mixed)
    tally = Tally(note)
    answer = mixed.ask(action, "x")
    tally.add(answer, answer.lie_afterwards())
    tally.none(mixed.logs())
    if not answer.says_on() and not answer.says_off():
        assert mixed.h2.node.ip in str(mixed.h1.records()), mixed.h1.records()[-1:]
    # Off everywhere it is off.
    mixed.h2.hypervisor.virsh("destroy", "x", check=False)
    assert mixed.ask("status", "x").rc == OFF, mixed.logs()
    assert mixed.ask("off", "x").rc == OK, mixed.logs()


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("outage", ["stopped", "libvirtd-stands-still"])
def test_a_c_daemon_that_was_heard_and_is_silent(mixed, note, outage, restarted):
    mixed.h1.has("x", start=False)
    mixed.h2.has("x")
    if outage == "stopped":
        mixed.h2.stop_serving()
    else:
        mixed.h2.hypervisor.freeze()
    if restarted:
        mixed.h1.serve_again()
    ours_alone(mixed)
    tally = Tally(note)
    for action in ("status", "off"):
        answer = mixed.ask(action, "x")
        tally.add(answer, answer.lie_afterwards())
        assert answer.rc == FAILED or answer.lie(), answer.result
        assert mixed.h2.node.ip in str(mixed.h1.records()[-1]) or UNAWARE, mixed.h1.records()[-1:]
    tally.none(mixed.logs())
    # It is heard again.
    mixed.h2.hypervisor.recover()
    mixed.h2.hypervisor.virsh("destroy", "x")
    if outage == "stopped":
        mixed.h2.serve_again()
    until(lambda: mixed.ask("status", "x").rc == OFF, PATIENCE, f"x is off\n{mixed.logs()}")


def requests(host):
    """{(action, sequence number): how often a C daemon took it up}. What it did with the one that it heard last the next line will
    say."""
    taken = r"Request (\d+) seqno (-?\d+) domain .*\n(?!We just did this request)."
    return collections.Counter(re.findall(taken, host.daemon.log))


def test_a_c_daemon_does_nothing_twice(mixed, note):
    """It takes a datagram of another length for the request before. Each is carried out once, however much our hosts say."""
    domains = {host: host.has(f"of-{host.name}") for host in (mixed.h2, mixed.h3)}
    mixed.h1.has("x", start=False)
    with Tap(mixed.guest) as tap:
        mixed.h1.serve()
        mixed.acquaint(mixed.h1, mixed.h2, mixed.h3)
        for host, domain in domains.items():
            # A C daemon says "off" of what it has never heard of: the other one must not be the first.
            other = mixed.h3 if host is mixed.h2 else mixed.h2
            other.does_not_call_back()
            assert mixed.agent("reboot", domain.name).finish().rc == OK
            other.unfilter()
        began = time.monotonic()
        asked = 0
        while time.monotonic() < began + C_MEMORY:
            mixed.ask("status", "x")
            asked += 1
    group = [it for it in tap.datagrams if it[1] == wire.GROUP4]
    own = [it for it in tap.of_hosts() if it[0] == mixed.h1.node.ip]
    note(f"{len(group)} datagrams to the group, {len(own)} of our host to others, while {asked} were asked")
    assert own or UNAWARE
    assert {len(it[2]) for it in group} == {wire.REQUEST_LEN}
    for host, domain in domains.items():
        twice = [it for it, count in requests(host).items() if count > 1]
        assert not twice, f"{twice}\n{host.daemon.log[-3000:]}"
        assert rig.starts(host.hypervisor, domain) == 2, "started once by the case, and once by its reboot"


def test_the_count_would_show_it(hosts):
    """One byte that is the beginning of any request, when the C daemon has forgotten it."""
    hosts.h2.serve("reference")
    hosts.h2.has("x")
    # The agent would hang up on call-backs of a host that was asked in earlier cases and did not call, and ask again.
    hosts.guest.know_ports(hosts.directory / f"run-{hosts.guest.name}")
    assert hosts.ask("status", "x").rc == OK
    assert list(requests(hosts.h2).values()) == [1], hosts.logs()

    def again():
        # What it drops does not remind it of the request.
        wire.multicast_send(hosts.guest, bytes([wire.STATUS]))
        time.sleep(0.2)
        return max(requests(hosts.h2).values()) > 1

    until(again, PATIENCE, f"it was taken up again\n{hosts.logs()}")
    assert list(requests(hosts.h2).values()) == [2], hosts.logs()
