# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest has a machine rebooted that the agent backend reaches: by Redfish, by SSH and virsh, in a XenServer pool."""

import pytest

from agents import redfish, ssh, xen_pool
from agents.rig import device
from lab import programs
from scene import OK

pytestmark = pytest.mark.pairs(agent="ours", daemon="ours")


class Place:
    """The host as the endpoints of tests/agents want it: all of them are on it."""

    def __init__(self, scene, directory):
        self.hypervisor, self.key = scene.hypervisor, scene.key
        self._host, self._directory = scene.host, directory

    def place(self, _name):
        return self._host

    def secret(self, text):
        return programs.write_key(self._directory / "secret", text.encode() + b"\n")


@pytest.fixture
def place(scene, tmp_path):
    return Place(scene, tmp_path)


@pytest.mark.parametrize("way", ["multicast", "serial"], indirect=True)
def test_redfish(pair, way, place, start_daemon, ask, n1, n2, tmp_path):
    with redfish.Emulator(place, "bmc", tmp_path / "bmc", libvirt=place.hypervisor.uri) as bmc:
        own = n1.process()
        daemon = start_daemon(way, devices=[device("bmc", "fence_redfish", "n2", options=bmc.options(n2.uuid))])
        reboots(ask, n1, way, n2, daemon)
        assert not own.ended()


@pytest.mark.parametrize("way", ["multicast"], indirect=True)
def test_virsh(pair, way, place, start_daemon, ask, n1, n2, tmp_path):
    with ssh.Sshd(place, tmp_path / "sshd") as sshd:
        own = n1.process()
        daemon = start_daemon(way, devices=[device("hv", "fence_virsh", options=sshd.options())], over=sshd.known())
        reboots(ask, n1, way, n2, daemon)
        assert not own.ended()


@pytest.mark.parametrize("way", ["multicast"], indirect=True)
def test_xenapi(pair, way, place, scene, start_daemon, ask, n1):
    with xen_pool.Pool([scene.host], [xen_pool.Vm("web1"), xen_pool.Vm("web2")]) as pool:
        options = {"session_url": pool.master.url, "username": xen_pool.USER,
                   "password_file": place.secret(xen_pool.PASSWORD)}
        daemon = start_daemon(way, devices=[device("pool", "fence_xenapi", options=options)])
        result = ask(n1, way, "-o", "reboot", "-H", "web1")
        assert result.rc == OK, (result, daemon.log)
        assert pool["web1"].events == ["off", "on"] and not pool["web2"].events


def reboots(ask, guest, way, victim, daemon):
    """The guest has the other one rebooted; the proof is QEMU's process."""
    qemu = victim.process()
    result = ask(guest, way, "-o", "reboot", "-H", victim.name)
    assert qemu.ended(), ("reboot was reported and the old QEMU still ran", result, daemon.log)
    assert result.rc == OK, (result, daemon.log)
    assert victim.state() == "running" and victim.pid() != qemu.pid
