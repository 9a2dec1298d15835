# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that is no node of the corosync cluster, with the same group and key: no side calls off what runs at the other."""

import os
import re
import signal
import subprocess

import pytest

from lab import judged, programs
from lab.hypervisor import Pretended, until

from .hosts import PATIENCE, Hosts

GROUP = "225.0.1.77"
#: A domain's UUID at every host.
UUID = "5f4dcc3b-5aa7-4d61-9f3d-7c0c9f0a2b11"
OK, FAILED, OFF = 0, 1, 2


class Outsider:
    """A host with the libvirt backend that corosync does not know."""

    def __init__(self, hosts, name):
        self.hosts, self.name, self.node = hosts, name, hosts.net.node(name)
        self.directory = hosts.directory / name
        self.directory.mkdir()
        self.hypervisor = Pretended(None)
        self.hypervisor.start()
        self.daemon, self.config = None, None

    def serve(self, name):
        self.stop_serving()
        self.config = programs.write_config(self.directory / f"{name}.conf", text(self, "libvirt"), peers=None)
        self.begin()

    def serve_again(self):
        self.stop_serving()
        self.begin()

    def begin(self):
        self.daemon = programs.Daemon(self.node, self.config, program=programs.program("ours", "fence_virtd"), debug=3)
        self.daemon.wait_serving()

    def stop_serving(self):
        daemon, self.daemon = self.daemon, None
        if daemon:
            daemon.stop()

    def close(self):
        self.stop_serving()
        self.hypervisor.stop()


def text(host, backend, more="", of_backend=""):
    """Configuration with a listener for the group, and one for this host alone."""
    node = getattr(host, "node", None) or host.place
    key = host.hosts.key
    return f"""
fence_virtd {{ listener = "multicast, tcp"; backend = "{backend}"; {more} }}
listeners {{
  multicast {{ key_file = "{key}"; address = "{GROUP}"; interface = "eth0"; family = "ipv4"; }}
  tcp {{ key_file = "{key}"; address = "{node.ip}"; }}
}}
backends {{ {backend} {{ uri = "{host.hypervisor.uri}"; {of_backend} }} }}
"""


class Beside:
    """Nodes h1 and h2, and h3."""

    def __init__(self, hosts):
        self.hosts, self.number = hosts, 0
        self.h3 = Outsider(hosts, "h3")
        self.nodes = [hosts.h1, hosts.h2]

    def serve(self, backends, outsider=True):
        """Daemons with these backends, which remember nothing; one at h3 with `outsider`."""
        self.number += 1
        for host, backend in zip(self.nodes, backends):
            self.serve_node(host, backend)
        if outsider:
            self.h3.serve(f"o-{self.number}")

    def serve_node(self, host, backend, **options):
        host.stop_serving()
        config = programs.write_config(host.directory / f"b-{self.number}.conf", text(host, backend, **options), peers=None)
        host.side, host.config = "ours", config
        host.daemon = programs.Daemon(host, config, program=programs.program("ours", "fence_virtd"), debug=3)
        host.daemon.wait_serving()
        if backend == "cpg":
            host.wait_joined()

    def ask(self, host, action):
        """One host alone is asked: the exit code of the agent."""
        node = getattr(host, "node", None) or host.place
        args = ["-o", action, "-n", "web", "-k", self.hosts.key, "-t", 20, "-T", node.ip]
        return programs.Agent(self.hosts.guests[0], *args, program=programs.program("ours", "fence_virt")).finish(50)

    def ask_all(self, action):
        """All are asked at once."""
        args = ["-o", action, "-n", "web", "-k", self.hosts.key, "-t", 20, "-a", GROUP]
        return programs.Agent(self.hosts.guests[0], *args, program=programs.program("ours", "fence_xvm")).finish(50)

    def run(self, host, *args):
        """Our fence_virtd at a host with the daemon's configuration, to its end."""
        argv = [programs.program("ours", "fence_virtd"), *args, "-f", host.config]
        node = getattr(host, "node", None)
        state = f"STATE_DIRECTORY={host.config}.state"
        if node:
            return node.run(["env", state, *argv], stdin=subprocess.DEVNULL)
        return host.run("env", state, *argv, check=False)

    def wait_off(self, host):
        """Returns when this host says off."""
        try:
            until(lambda: self.ask(host, "status").rc == OFF, 30, f"{host.name} says off")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{host.daemon.log[-4000:]}") from None

    def has(self, host, start):
        """The domain, at this host."""
        host.hypervisor.domain("web", uuid=UUID, start=start)

    def state(self, host):
        return host.hypervisor.virsh("domstate", "web").stdout.strip()

    def clear(self):
        for host in (*self.nodes, self.h3):
            host.stop_serving()
            for name in host.hypervisor.virsh("list", "--all", "--name").stdout.split():
                host.hypervisor.virsh("destroy", name, check=False)
                host.hypervisor.virsh("undefine", name, check=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Hosts(tmp_path_factory.mktemp("pair"), names=("h1", "h2")) as hosts:
        beside = Beside(hosts)
        yield beside
        beside.h3.close()


@pytest.fixture
def beside(pair):
    pair.clear()
    yield pair
    pair.clear()
    if not all(host.alive() for host in pair.nodes):
        pair.hosts.recover()


@pytest.mark.parametrize("runs", ["h1", "h3"])
def test_what_runs_at_one_is_called_off_by_none(beside, runs):
    h1, h2 = beside.nodes
    at, other = (h1, beside.h3) if runs == "h1" else (beside.h3, h1)
    beside.has(at, True)
    beside.has(other, False)
    beside.serve(["cpg", "cpg"])
    for _ in range(4):
        for host in (h1, h2, beside.h3):
            said = beside.ask(host, "status")
            assert said.rc in (OK, FAILED), f"{host.name}: {said}\n{host.daemon.log[-3000:]}"
            # A node says on of what runs at a host that is none, too.
            assert said.rc == OK or host is not at, f"{host.name}: {said}\n{host.daemon.log[-3000:]}"
    for _ in range(8):
        said = beside.ask_all("off")
        if said.rc == 0 and beside.state(at) != "shut off":
            raise judged.UntrueAnswer(f"off, and it runs at {at.name}\n{beside.hosts.logs()}")
        if beside.state(at) == "shut off":
            at.hypervisor.virsh("start", "web")
    at.hypervisor.virsh("destroy", "web")
    for host in (h1, h2, beside.h3):
        assert beside.ask(host, "status").rc == OFF, f"{host.name}\n{host.daemon.log[-3000:]}"


def test_a_silent_host_that_is_no_node_may_have_it(beside):
    h1, h2 = beside.nodes
    beside.has(h1, False)
    beside.has(beside.h3, False)
    beside.serve(["cpg", "cpg"])
    assert beside.ask(h1, "status").rc == OFF
    assert "is no node of this corosync cluster" in h1.daemon.log
    # The daemon writes down whom it knows a moment after it says so.
    until(lambda: re.search("(?m)^warning +peers .*no node of this corosync cluster", beside.run(h1, "--check").stdout), 10,
          f"--check of {h1.name} names the host")
    beside.h3.hypervisor.virsh("start", "web")
    beside.h3.stop_serving()
    for host in (h1, h2):
        assert beside.ask(host, "status").rc == FAILED
        assert beside.ask(host, "off").rc == FAILED
    assert "failed" in beside.run(h1, "--check").stdout
    # A daemon that is started anew remembers it.
    beside.serve_node(h1, "cpg")
    assert beside.ask(h1, "status").rc == FAILED
    beside.run(h1, "--forget", "all")
    beside.wait_off(h1)


def test_nodes_alone_know_nobody_else(beside):
    h1, h2 = beside.nodes
    beside.has(h1, False)
    beside.serve(["cpg", "cpg"], outsider=False)
    for _ in range(3):
        for host in beside.nodes:
            beside.wait_off(host)
        for host in beside.nodes:
            checked = beside.run(host, "--check")
            assert not re.search("(?m)^[a-z]+ +peers", checked.stdout), checked.stdout
            assert "another host was heard" not in host.daemon.log and "is no node" not in host.daemon.log
        beside.serve_node(h2, "cpg")
    # A node whose daemon ended is in doubt by corosync, and by nothing else.
    h2.stop_serving()
    said = beside.ask(h1, "status")
    assert said.rc == FAILED and "--forget" not in h1.daemon.log.rsplit("audit", 1)[-1], said


def test_the_backend_is_changed_host_by_host(beside):
    h1, h2 = beside.nodes
    beside.has(h2, True)
    beside.has(h1, False)
    beside.serve(["libvirt", "libvirt"], outsider=False)

    def none_says_off():
        for host in beside.nodes:
            said = beside.ask(host, "status")
            assert said.rc in (OK, FAILED), f"{host.name}: {said}\n{host.daemon.log[-3000:]}"
    none_says_off()
    for host in beside.nodes:
        beside.serve_node(host, "cpg")
        none_says_off()
    until(lambda: beside.ask(h1, "status").rc == OK, PATIENCE, "h1 says on")
    h2.hypervisor.virsh("destroy", "web")
    for host in beside.nodes:
        beside.wait_off(host)


@pytest.mark.parametrize("way", ["removed", "kept", "kept-then-removed"])
def test_hosts_that_named_each_other_become_nodes(beside, way):
    """`peers` bound each address to the key of its host. As nodes they are no other hosts, whether they live or not."""
    h1, h2 = beside.nodes
    beside.has(h1, False)
    beside.has(h2, True)
    named = {h1: f'peers = "{h2.place.ip}";', h2: f'peers = "{h1.place.ip}";'}
    down = beside.hosts.directory / "down"
    down.write_text("#!/bin/sh\necho down\n")
    down.chmod(0o755)
    proof = f'host_down = "command"; host_down_command = "{down}";'
    beside.number += 1

    def known(host):
        table = host.directory / f"b-{beside.number}.conf.state" / "hosts"
        return table.read_text() if table.exists() else ""
    for host in beside.nodes:
        beside.serve_node(host, "libvirt", more=named[host])
    for host in beside.nodes:
        until(lambda host=host: "pin " in known(host), PATIENCE, f"{host.name} knows the other one")
    assert beside.ask(h1, "status").rc == OK, "it is on at the other one, which is asked"
    for host in beside.nodes:
        beside.serve_node(host, "cpg", more="" if way == "removed" else named[host], of_backend=proof)
    until(lambda: beside.ask(h1, "status").rc == OK, PATIENCE, "h1 says on")
    if way == "kept-then-removed":
        for host in beside.nodes:
            programs.write_config(host.config, text(host, "cpg", of_backend=proof), peers=None)
            os.kill(host.daemon.pid, signal.SIGHUP)
    if way != "kept":
        for host in beside.nodes:
            until(lambda host=host: "host " not in known(host) and "pin " not in known(host), PATIENCE, f"{host.name} knows no other host")
            until(lambda host=host: not re.search("(?m)^[a-z]+ +peers", beside.run(host, "--check").stdout), PATIENCE,
                  f"--check of {host.name} names no other host")
    h2.kill()
    h1.wait_members(1)
    checked = beside.run(h1, "--check").stdout
    assert not re.search("(?m)^failed +peers", checked), checked
    if way == "kept":
        assert re.search("(?m)^warning +peers .*a node of this corosync cluster", checked), checked
    said = beside.ask(h1, "off")
    assert said.rc == OK, f"{said}\n{h1.daemon.log[-3000:]}"
    assert beside.ask(h1, "status").rc == OFF, h1.daemon.log[-3000:]
    # Also for a daemon that never heard the node.
    beside.serve_node(h1, "cpg", more="" if way == "removed" else named[h1], of_backend=proof)
    beside.wait_off(h1)
    assert beside.ask(h1, "off").rc == OK, h1.daemon.log[-3000:]


def test_a_check_beside_nodes_sees_no_machine_twice(beside):
    h1, _ = beside.nodes
    beside.has(h1, True)
    beside.has(beside.h3, False)
    beside.serve(["cpg", "cpg"])
    assert beside.ask(beside.h3, "status").rc == OK
    checked = beside.run(beside.h3, "--check")
    assert "places at once" not in checked.stdout, checked.stdout
    # It still sees a machine that runs twice.
    beside.h3.hypervisor.virsh("start", "web")
    assert "runs at 2 places at once" in beside.run(beside.h3, "--check").stdout
