# SPDX-License-Identifier: GPL-2.0-or-later
"""A hypervisor that stands still, or can't be reached, holds up no more than its own domains: those of all others can be fenced."""

import os

import pytest

from lab.hypervisor import hanging_off

from .hosts import refused
from .sites import gone, serve

#: WIDE=1 is the long run.
WIDE = bool(os.environ.get("WIDE"))


@pytest.mark.parametrize("asked", ["h1", "h3"] if WIDE else ["h3"])
def test_a_libvirtd_that_stands_still_inside_a_power_off(hosts, sites, asked):
    """h1's, which h1 or another host was asked for. h2's own machine has nothing to do with that."""
    serve(hosts, sites)
    red, *blues = sites[0].hypervisor.domain("red"), *(sites[1].hypervisor.domain(name) for name in ("blue1", "blue2"))
    try:
        for it, host in ((red, asked), (blues[0], "h2"), (blues[1], asked)):
            hosts.wait_status(host, it.name, 0, guest=it is not red)
        with hanging_off(sites[0].hypervisor, red, lambda: hosts.agent(asked, "off", "red")) as off:
            assert refused(off.finish(60)), hosts.logs()
            for it, host in zip(blues, ("h2", asked)):
                result = hosts.ask(host, "off", it.name, guest=1)
                assert result.rc == 0, f"{host}: {result}\n{hosts.logs()}"
                gone(sites[1:], it, host, hosts.logs)
    finally:
        for it in (red, *blues):
            it.remove()


@pytest.mark.parametrize("fault", ["nobody listens", "it stands still"])
def test_a_hypervisor_that_was_never_reached(hosts, sites, fault):
    """One of the two of h1, whose daemon is started anew. What is at the other one is known, and can be fenced. Of what may be at the one that is
    not read nobody says "off"."""
    lost, well = hosts.h1.hypervisor, sites[0].hypervisor
    blue = well.domain("blue")
    hosts.h2.has("blue3", start=False)
    (lost.kill if fault == "nobody listens" else lost.freeze)()
    try:
        for host in hosts.all:
            host.serve("ours", wait=False, **({"uri1": well.uri} if host is hosts.h1 else {}))
        for host in hosts.all:
            host.wait_joined()
        hosts.wait_status("h3", "blue", 0)
        # Hosts that come later are told as well.
        hosts.h3.serve("ours")
        hosts.wait_status("h3", "blue", 0)
        for action in ("status", "off"):
            assert hosts.ask("h3", action, "blue3", timeout=10).rc == 1, hosts.logs()
        result = hosts.ask("h3", "off", "blue")
        assert result.rc == 0, f"{result}\n{hosts.logs()}"
        gone(sites[:1], blue, "h3", hosts.logs)
        # Then the other one is read, too.
        lost.recover()
        hosts.wait_status("h3", "blue3", 2)
        assert hosts.ask("h3", "off", "blue").rc == 0, hosts.logs()
    finally:
        lost.recover()
        blue.remove()
