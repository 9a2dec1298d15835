# SPDX-License-Identifier: GPL-2.0-or-later
"""One daemon, two bridges: a `multicast` block for each, with a key of its own, and the other hosts of both."""

import json
import signal
import time

import pytest

from lab import net, programs, testdriver
from lab.hypervisor import until
from lab.testdriver import SHUTOFF, Domain

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our daemon")

OURS = str(programs.OURS_DIR / "fence_virtd")
XVM = str(programs.OURS_DIR / "fence_xvm")
BOTH = "multicast, multicast"
NAMES = ("multicast eth0 225.0.0.12:1229", "multicast eth1 225.0.0.12:1229")


class Bridges:
    """A host on two bridges, a guest on each, and a further host on each."""

    def __init__(self, directory):
        self.directory = directory
        self.nets = [net.Net(), net.Net()]
        self.host = self.nets[0].node("host")
        self.guests = [self.nets[0].node("g1"), self.far("g2", 2)]
        self.others = [self.nets[0].node("h1"), self.far("h2", 3)]
        self.keys = [programs.write_key(directory / f"key{it}", f"the key of bridge {it}, long enough".encode())
                     for it in (1, 2)]
        self.plug_in()
        self.daemons = []

    def far(self, name, number):
        """A node on the second bridge, in a network of its own."""
        node = self.nets[1].node(name)
        node.ip_cmd("addr flush dev eth0")
        node.ip = f"10.78.0.{number}"
        node.ip_cmd(f"addr add {node.ip}/16 dev eth0")
        node.ip_cmd("route add 224.0.0.0/4 dev eth0")
        return node

    def plug_in(self):
        """The host gets its interface on the second bridge."""
        switch = self.nets[1].switch
        with net._in_ns(switch):
            net._ip(f"-n {switch} link add p99 type veth peer name eth1 netns {self.host.ns}")
            net._ip(f"-n {switch} link set p99 master br0 up")
        self.host.ip_cmd("link set eth1 up")
        self.host.ip_cmd("addr add 10.78.0.1/16 dev eth1")

    def block(self, number, more=""):
        return f'multicast {{ key_file = "{self.keys[number]}"; interface = "eth{number}"; negative_delay = "0"; {more} }}'

    def text(self, listener, *blocks, domains, more=""):
        uri = testdriver.write(self.directory / f"{domains}.xml", DOMAINS[domains])
        return f"""fence_virtd {{ listener = "{listener}"; backend = "libvirt"; {more} }}
            listeners {{ {" ".join(blocks)} }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}"""

    def serve(self, node, name, text, *args, **kw):
        config = self.directory / f"{name}.conf"
        config.write_text(text)
        it = programs.Daemon(node, config, *args, program=OURS, **kw)
        self.daemons.append(it)
        it.wait_serving()
        return it

    def ask(self, number, action, target, key=None, t=5):
        target = ("-n", target) if target else ()
        return programs.run_agent(self.guests[number], "-o", action, *target, "-k", key or self.keys[number],
                                  "-t", t, "-r", 5, program=XVM, timeout=60)

    def clear(self):
        for it in self.daemons:
            if it.alive():
                it.end()
        self.daemons = []


DOMAINS = {
    "here": ["vm1", "vm2", Domain("away", state=SHUTOFF)],
    "none": [Domain("other")],
    "away": [Domain("away")],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    it = Bridges(tmp_path_factory.mktemp("bridges"))
    yield it
    for one in it.nets:
        one.close()


@pytest.fixture
def bridges(made):
    yield made
    made.clear()


def metrics_of(daemon, config):
    return daemon.node.run([OURS, "--status", "-f", config]).stdout


def test_each_guest_fences_by_its_own_bridge(bridges):
    """By its own key, and by no other; a bridge that goes away takes nothing from the other, and comes back."""
    more = f'peers = "none"; metrics = "unix:{bridges.directory}/metrics"; audit_log = "{bridges.directory}/audit";'
    text = bridges.text(BOTH, bridges.block(0), bridges.block(1), domains="here", more=more)
    daemon = bridges.serve(bridges.host, "both", text)
    for number in (0, 1):
        assert bridges.ask(number, "off", f"vm{number + 1}").rc == 0, daemon.log
        assert bridges.ask(number, "on", f"vm{number + 1}").rc == 0, daemon.log
        # The key of the other bridge is none here, and the log says at which block.
        since = len(daemon.lines)
        assert bridges.ask(number, "status", "vm1", key=bridges.keys[1 - number], t=2).rc == 1
        daemon.wait_log(rf"another key on the sender's side.*eth{number} 225\.0\.0\.12:1229", since=since)
    records = [json.loads(it) for it in (bridges.directory / "audit").read_text().splitlines()]
    assert {it["peer"].split(":")[0] for it in records} == {it.ip for it in bridges.guests}
    status = metrics_of(daemon, daemon.config)
    assert all(f"listener {name}: serves" in status for name in NAMES), status
    since = len(daemon.lines)
    bridges.host.ip_cmd("link del eth1")
    daemon.wait_log("interface is gone.*eth1", since=since)
    assert bridges.ask(0, "off", "vm1").rc == 0 and bridges.ask(1, "off", "vm2", t=2).rc == 1, daemon.log
    bridges.plug_in()
    daemon.wait_log("heard by this interface.*eth1", since=since)
    assert bridges.ask(1, "off", "vm2", t=15).rc == 0, daemon.log


def test_a_reload_adds_and_removes_one(bridges):
    """The other one serves all the while, at the same socket."""
    one = bridges.text("multicast", bridges.block(0), domains="here", more='peers = "none";')
    both = bridges.text(BOTH, bridges.block(0), bridges.block(1), domains="here", more='peers = "none";')
    daemon = bridges.serve(bridges.host, "reload", one)
    for text, rc, said in ((both, 0, "listening for multicast.*eth1"), (one, 1, "ends: the configuration.*listener=multicast eth1")) * 2:
        since = len(daemon.lines)
        daemon.config.write_text(text)
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_log("the new configuration is in force", since=since)
        daemon.wait_log(said, since=since)
        assert bridges.ask(1, "status", "vm1", t=5 if rc == 0 else 2).rc == rc, daemon.log
        assert bridges.ask(0, "status", "vm1").rc == 0, daemon.log
        assert not any("listening for multicast" in it and "eth0" in it for it in daemon.lines[since:])


def test_a_bridge_that_is_not_there_is_waited_for(bridges):
    """With -w: the other one serves meanwhile."""
    bridges.host.ip_cmd("link del eth1")
    try:
        text = bridges.text(BOTH, bridges.block(0), bridges.block(1), domains="here", more='peers = "none";')
        config = bridges.directory / "late.conf"
        config.write_text(text)
        refused = programs.Daemon(bridges.host, config, program=OURS, ready=None)
        assert refused.wait_exit() != 0 and NAMES[1] in refused.log, refused.log
        daemon = bridges.serve(bridges.host, "late", text, "-w")
        assert bridges.ask(0, "status", "vm1").rc == 0, daemon.log
        checked = bridges.host.run([OURS, "--check", "-f", config]).stdout
        assert "interface eth1 225.0.0.12:1229: does not exist" in checked, checked
        assert "eth0 225.0.0.12:1229: up" in checked, checked
    finally:
        bridges.plug_in()
    until(lambda: bridges.ask(1, "status", "vm1", t=2).rc == 0, 60, daemon.log)


def test_other_hosts_are_asked_on_each_bridge(bridges):
    """h2 runs a machine that is defined here; it is reached by the second bridge alone, and h1 by the first."""
    def alone(number, domains):
        text = bridges.text("multicast", bridges.block(number).replace(f"eth{number}", "eth0"), domains=domains)
        return bridges.serve(bridges.others[number], f"h{number + 1}", text)

    h1, h2 = alone(0, "none"), alone(1, "away")
    text = bridges.text(BOTH, bridges.block(0), bridges.block(1), domains="here")
    daemon = bridges.serve(bridges.host, "asks", text)
    for _ in range(2):
        daemon.wait_log("another host was heard")
    until(lambda: daemon.log.count("another host was heard: from now on") == 2, 60, daemon.log)
    # The guest of the first bridge asks this host about a machine at the other bridge: on there, and so not off.
    assert bridges.ask(0, "status", "away", t=15).rc == 0, daemon.log
    off = bridges.ask(0, "off", "away", t=15)
    assert off.rc == 1, f"{off}\n{daemon.log}"
    # Where the machine ends, and everybody says so, it is off.
    assert bridges.ask(1, "off", "away", t=15).rc == 0, h2.log
    until(lambda: bridges.ask(0, "status", "away", t=15).rc == 2, 60, daemon.log)
    # A host with one of the keys hears none of the other.
    time.sleep(1)
    for it in (h1, h2):
        assert "another key" not in it.log, it.log
    # One of them is silent: nobody knows any more.
    h2.stop(signal.SIGKILL)
    bridges.daemons.remove(h2)
    assert bridges.ask(0, "status", "away", t=20).rc == 1, daemon.log
