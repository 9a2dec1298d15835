# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial listener on a real libvirtd with real QEMUs: sockets are kept while domains and libvirtd come and go.

Nobody speaks inside these machines, so the cases look at who is connected; what is said on a line is in
test_serial.py, and real guests speak in tests/guests."""

import time

import pytest

from lab import net, process
from lab.hypervisor import Hypervisor

SERIAL = 'serial { uri = "@it@"; path = "@dir@"; }'


@pytest.fixture(scope="module")
def hypervisor(stage):
    with Hypervisor(stage.host.ns) as it:
        yield it


@pytest.fixture
def start(hypervisor, daemon, tmp_path):
    """start(text=…): the daemon, serving sockets in tmp_path."""
    def run(text=SERIAL):
        text = text.replace("@it@", hypervisor.uri).replace("@dir@", str(tmp_path))
        return daemon("serial", text, uri=hypervisor.uri, ready=None)

    yield run
    hypervisor.recover()
    for name in ("s1", "s2"):
        hypervisor.domain(name, start=False, serial=[tmp_path / name]).remove()
        hypervisor._domains.pop(name, None)


def connected(stage, path):
    """Whether somebody is connected to the UNIX socket: ss shows QEMU's end with the path, established."""
    lines = stage.host.run(["ss", "-xnH", "state", "connected"]).stdout.splitlines()
    return any(str(path) in line.split() for line in lines)


def wait(stage, path, is_connected=True):
    net.wait_until(lambda: connected(stage, path) == is_connected, 60, 0.05)


def test_domains_come_and_go(stage, hypervisor, start, tmp_path):
    paths = {name: tmp_path / name for name in ("s1", "s2")}
    one = hypervisor.domain("s1", serial=[paths["s1"]])
    start()
    wait(stage, paths["s1"])
    two = hypervisor.domain("s2", serial=[paths["s2"]])
    wait(stage, paths["s2"])
    for _ in range(2):
        one.destroy()
        wait(stage, paths["s1"], False)
        one.start()
        wait(stage, paths["s1"])
    two.suspend()
    time.sleep(0.2)
    assert connected(stage, paths["s2"]), "a paused domain keeps its line"


def test_the_daemon_restarts(stage, hypervisor, start, tmp_path):
    hypervisor.domain("s1", serial=[tmp_path / "s1"])
    for _ in range(2):
        it = start()
        wait(stage, tmp_path / "s1")
        assert it.stop() == 0
        wait(stage, tmp_path / "s1", False)


def test_libvirtd_is_killed(stage, hypervisor, start, tmp_path):
    hypervisor.domain("s1", serial=[tmp_path / "s1"])
    it = start()
    wait(stage, tmp_path / "s1")
    hypervisor.kill()
    it.wait_log("lost libvirt")
    assert connected(stage, tmp_path / "s1"), "the domain runs on, and its line with it"
    hypervisor.start()
    two = hypervisor.domain("s2", serial=[tmp_path / "s2"])
    wait(stage, tmp_path / "s2")
    two.destroy()
    wait(stage, tmp_path / "s2", False)
    assert connected(stage, tmp_path / "s1")


def test_what_happened_while_libvirtd_was_away(stage, hypervisor, start, tmp_path):
    """A domain ends and another starts while the daemon's connection is cut: it looks at everything afterwards."""
    one = hypervisor.domain("s1", serial=[tmp_path / "s1"])
    it = start()
    wait(stage, tmp_path / "s1")
    since = len(it.lines)
    process.freeze(it.pid)      # it sees nothing
    try:
        hypervisor.restart()
        hypervisor.virsh("destroy", one.uuid, check=False)
        one.wait_state("shut off")
        hypervisor.domain("s2", serial=[tmp_path / "s2"])
    finally:
        process.thaw(it.pid)
    it.wait_log("lost libvirt", since=since)
    wait(stage, tmp_path / "s2")
    assert not connected(stage, tmp_path / "s1")


def test_libvirtd_stands_still(stage, hypervisor, start, tmp_path):
    hypervisor.domain("s1", serial=[tmp_path / "s1"])
    start()
    wait(stage, tmp_path / "s1")
    hypervisor.freeze()
    time.sleep(1)
    assert connected(stage, tmp_path / "s1")
    hypervisor.thaw()
    hypervisor.domain("s2", serial=[tmp_path / "s2"])
    wait(stage, tmp_path / "s2")


def test_a_channel_that_is_plugged_in(stage, hypervisor, start, tmp_path):
    """No lifecycle event tells of it."""
    old, new = tmp_path / "old", tmp_path / "new"
    vm = hypervisor.domain("s1", channel=[(old, "org.clusterlabs.fence_virt.0")])
    start('serial { uri = "@it@"; mode = "vmchannel"; path = "@dir@"; }')
    wait(stage, old)
    xml = tmp_path / "channel.xml"
    xml.write_text(f"""<channel type='unix'><source mode='bind' path='{new}'/>
        <target type='virtio' name='org.clusterlabs.fence_virt.1'/></channel>""")
    hypervisor.virsh("attach-device", vm.uuid, xml)
    wait(stage, new)
    hypervisor.virsh("detach-device", vm.uuid, xml)
    wait(stage, new, False)
    assert connected(stage, old)
