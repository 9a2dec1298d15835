# SPDX-License-Identifier: GPL-2.0-or-later
"""A live Pacemaker cluster of VMs of a pool: stonith_admin → fence_xvm → fence_virtd → fence_xenapi → the pool."""

import json
import threading

import pytest
from lab import net, programs
from pacemaker import manual, nodes

from . import rig
from .xen_pool import HALTED, PASSWORD, RUNNING, USER, Pool, Vm


class Machines:
    """What a cluster's nodes take for a hypervisor: VMs of a pool."""

    def __init__(self, site_net):
        self._net, self.pool = site_net, None

    def domain(self, name, **_):
        """The VM of that name."""
        return Machine(self.pool, self.pool[name])

    def stop(self):
        """Ends the pool."""
        self.pool.close()


class Machine:
    """One VM as a cluster node sees its domain."""

    def __init__(self, pool, vm):
        self._pool, self._vm, self.name = pool, vm, vm.name
        self._life = None

    def pid(self):
        """Whether it is powered."""
        return self._vm.running

    def state(self):
        """As libvirt calls it."""
        return "running" if self._vm.running else "shut off"

    def start(self):
        """Powers it on."""
        self._pool.power_on(self._vm)

    def process(self):
        """Its life from now to the next time that it is off."""
        self._life = Life()
        self._vm.on_off[:] = [self._life.end]
        return self._life


class Life:
    """Ends when the VM does."""

    def __init__(self):
        self._over = threading.Event()
        self.end = self._over.set

    def ended(self, timeout=0):
        """Whether it is over; waits so long for it."""
        return self._over.wait(timeout)


class Lab(nodes.Lab):
    """A host with the agent backend, and a pool in place of the hypervisor."""

    def __init__(self, directory):
        self.directory = directory
        self.net = net.Net()
        self.host = self.net.node("host")
        self.host.ip_cmd(f"addr add {nodes.HOST}/24 dev eth0")
        self.key = programs.write_key(directory / "fence_xvm.key")
        self.hypervisor = Machines(self.net)
        places = [self.net.node(f"xen{n}", index=200 + n) for n in (1, 2)]
        self.pool = self.hypervisor.pool = Pool(places, [Vm("vm-n1"), Vm("vm-n2")])
        self.audit = directory / "audit"
        self.daemon = None

    def serve(self, side, **_):
        """Our daemon, with a device for each member of the pool."""
        if self.daemon:
            return
        password = programs.write_key(self.directory / "password", PASSWORD.encode() + b"\n")
        # An agent that a busy machine has killed before its own end holds up the next off for that time.
        devices = [rig.device(member.name, "fence_xenapi", order=n, effect_timeout=10,
                              options={"session_url": member.url, "username": USER, "password_file": password})
                   for n, member in enumerate(self.pool.members)]
        config = rig.write_config(self.directory / "fence_virt.conf", self, devices, virtd={"audit_log": self.audit})
        self.daemon = programs.Daemon(self.host, config, program=programs.program("ours", "fence_virtd"), debug=3)
        self.daemon.wait_serving()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Cluster of two, with the manual's device; the pool's second member is master."""
    with Lab(tmp_path_factory.mktemp("pacemaker")) as lab:
        cluster = nodes.Cluster(lab, ["n1", "n2"])
        try:
            lab.serve("ours")
            lab.pool.move_master(lab.pool.members[1])
            cluster.boot()
            cluster.n1.run(*manual.command("pcs", "stonith", "create", "FenceVM"))
            cluster.wait_whole()
            yield cluster
        finally:
            cluster.close()


def test_stonith_admin(cluster):
    """Reboot, while the master moves; then off, and on again; and each of them is in the daemon's audit."""
    lab, n1, n2 = cluster.lab, cluster.n1, cluster.n2
    vm = lab.pool["vm-n2"]
    lab.pool.when("VM.hard_shutdown", lambda: lab.pool.move_master(lab.pool.members[0]), after=True)
    n1.run("stonith_admin", "--reboot", "n2")
    n2.wait_fenced()

    def reboots():
        return [it for it in n1.calls() if it.options.get("action") == "reboot"]
    # On a busy machine the cluster may ask once more itself, since the node has left it: one reboot for each time that it was asked.
    net.wait_until(lambda: reboots() and vm.events == ["off", "on"] * len(reboots()), nodes.PATIENCE)
    assert lab.pool.master is lab.pool.members[0]
    before = len(vm.events)
    for call in reboots():
        assert call.rc == 0 and call.options["port"] == "vm-n2"
    assert "reboot of n2 successful: delegate=n1" in n1.run("stonith_admin", "--history", "n2").stdout

    n1.run("stonith_admin", "--fence", "n2")
    assert vm.events[before:] == ["off"] and vm.power == HALTED
    n1.run("stonith_admin", "--unfence", "n2")
    assert vm.power == RUNNING
    assert not lab.pool["vm-n1"].events
    records = [json.loads(line) for line in lab.audit.read_text().splitlines()]
    acted = {it["action"]: it for it in records if it["action"] in ("reboot", "off", "on")}
    assert set(acted) == {"reboot", "off", "on"} and all(it["result"] == "success" for it in acted.values()), acted
    assert all(it["runs"] for it in acted.values()), acted


def test_a_node_that_dies_is_fenced(cluster):
    """Its Pacemaker is gone and its VM runs on: the other node has it shot."""
    cluster.boot()
    lab, n1, n2 = cluster.lab, cluster.n1, cluster.n2
    before = len(lab.pool["vm-n1"].events)
    n1.kill()
    n1.wait_fenced()
    net.wait_until(lambda: lab.pool["vm-n1"].events[before:] == ["off", "on"], nodes.PATIENCE)
    assert not n2.fenced()
