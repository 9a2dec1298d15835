# SPDX-License-Identifier: GPL-2.0-or-later
"""`backend = "cpg, agent"`: machines of fence agents beside the domains of all hosts, the same devices on each host."""

import pytest

from agents.zoo import Zoo
from lab.net import wait_until

from .hosts import listed, refused


@pytest.fixture
def racks(hosts, tmp_path):
    """h1 and h2, each with a domain of its own and with the same devices: `quick` and `slow`."""
    zoo = Zoo(tmp_path / "zoo")
    devices = [zoo.device("good", "quick"), zoo.device("slow", "slow"), zoo.device("good", "a1", name="twin")]
    hosts.domains(h1=["a1"], h2=["b1"])
    for host in (hosts.h1, hosts.h2):
        host.serve("ours", devices=devices)
    hosts.wait_status("h1", "b1", 0)
    hosts.wait_status("h2", "b1", 0)
    return zoo


def test_each_host_has_all_domains_and_all_machines(hosts, racks):
    for asked in ("h1", "h2"):
        assert hosts.ask(asked, "off", "quick").rc == 0 and racks.power("quick") == "off"
        assert hosts.ask(asked, "status", "quick").rc == 2
        assert hosts.ask(asked, "on", "quick").rc == 0 and racks.power("quick") == "on"
        assert refused(hosts.ask(asked, "off", "a1")), "a domain of h1, and a machine"
    assert (hosts.h1.state("a1"), racks.power("a1")) == ("running", "on")
    assert hosts.ask("h1", "off", "b1").rc == 0 and hosts.h2.state("b1") == "shut off"
    assert listed(hosts.ask("h2", "list"))["b1"] == "off"
    assert {"quick", "slow", "a1", "b1"} == set(listed(hosts.ask("h1", "list")))


def test_what_two_hosts_are_asked_for_is_done_once(hosts, racks):
    """The hosts agree on a machine as they do on a domain: its UUID is the same on all of them."""
    first = hosts.agent("h1", "off", "slow")
    racks.wait_run("off", "slow")
    second = hosts.agent("h2", "off", "slow", guest=1)
    assert [first.finish(60).rc, second.finish(60).rc] == [0, 0]
    assert racks.power("slow") == "off" and len(racks.runs("off", "slow")) == 1


def test_without_corosync(hosts, racks):
    """A host alone has its running domains and its machines."""
    hosts.h1.stop_corosync()
    hosts.h1.daemon.wait_log("alone|lost|corosync", timeout=60)
    wait_until(lambda: refused(hosts.ask("h1", "status", "b1")), 60)
    assert hosts.ask("h1", "off", "quick").rc == 0 and racks.power("quick") == "off"
    assert refused(hosts.ask("h1", "off", "a1")) and racks.power("a1") == "on"
    assert hosts.ask("h1", "monitor").rc in (0, 1)
    assert hosts.ask("h2", "on", "quick").rc == 0 and racks.power("quick") == "on"
