# SPDX-License-Identifier: GPL-2.0-or-later
"""vsock: agent and daemon inside one guest, over the loopback of vsock (module vsock_loopback).

A real way from a guest to its host needs vhost_vsock in the host's kernel, which hosts that are guests themselves do
not have. The loopback is the same socket family, the same listener and the same agent; what it can't show is a
context id that a hypervisor gave out: sources are CID 1 (local) here. The daemon's domains are those of libvirt's
test driver, for there is no QEMU inside the guest.
"""

import shlex
from pathlib import Path

import pytest

from conftest import wait_until
from lab import guest, programs, testdriver
from scene import DENIED, FAILED, OFF, OK, inside

#: Context ids. Agents connect to the host's, which the loopback takes where no device is; who connects is the local
#: one.
HOST, SOURCE = 2, 1

CONFIG = """fence_virtd {{ listener = "vsock"; backend = "libvirt"; module_path = "{modules}"; }}
listeners {{ vsock {{ key_file = "/etc/key"; port = "1229"; {options} }} }}
backends {{ libvirt {{ uri = "test:///etc/domains.xml"; }} }}
{groups}
"""


@pytest.fixture(scope="session")
def machine(scene):
    """The guest with daemons and agents of both sides in it."""
    tree = scene.agents_root("vsock_loopback")
    for side in ("reference", "ours"):
        tree.program(programs.program(side, "fence_virtd"), inside(side, "fence_virtd"))
    for plugin in ("vsock", "virt"):
        tree.program(Path(programs.MODULE_PATH) / f"{plugin}.so")
    tree.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")     # libvirt asks who it is
    tree.text("/etc/group", "root:x:0:\n")
    tree.text("/etc/domains.xml", testdriver.node_xml([testdriver.Domain("vm1"), testdriver.Domain("vm2")]))
    memory = 128 + 3 * tree.size() // 2**20       # the archive is in memory twice while it is unpacked
    machine = guest.Guest(scene.hypervisor, "vsock", scene.kernel, tree.write(scene.scratch / "vsock.cpio"),
                          memory=memory)
    machine.up()
    loaded = machine.sh("for it in vsock vmw_vsock_virtio_transport_common vsock_loopback; do "
                        "insmod /modules/$it.ko || exit 1; done")
    assert loaded.rc == 0, loaded
    yield machine
    machine.destroy()


@pytest.fixture
def ask(machine, pair):
    """ask(*args, cid=…, key=…): an agent of the pair; gives the Result."""
    def run(*args, cid=HOST, key="/etc/key"):
        return machine.sh(shlex.join([inside(pair.agent, "fence_virt"), f"-S{cid}", "-k", key, *map(str, args)]))
    return run


@pytest.fixture
def start(machine, pair, ask):
    """start(groups=…, options=…, like=…): the pair's daemon, which listens to agents with the options `like`. It must
    end by SIGTERM with code 0."""
    def run(groups="", options="", like=()):
        text = CONFIG.format(modules=programs.MODULE_PATH, groups=groups, options=options)
        machine.sh(f"cat > /run/conf <<'E'\n{text}E\n"
                   "chmod 600 /run/conf; rm -f /run/ended\n"
                   f"{{ {inside(pair.daemon, 'fence_virtd')} -F -d 9 -f /run/conf -p /run/pid > /run/log 2>&1 & "
                   "echo $! > /run/daemon; wait $!; echo $? > /run/ended; } > /dev/null 2>&1 &")
        wait_until(lambda: ended() or ask("-o", "list", "-t", "2", *like).rc in (OK, DENIED))
        assert not ended(), log()

    def ended():
        return machine.sh("cat /run/ended 2> /dev/null").out.strip()

    def log():
        return machine.sh("cat /run/log").out

    start = run
    start.log = log
    yield start
    assert ended() == "", log()
    machine.sh("kill $(cat /run/daemon)")
    assert wait_until(ended) == "0", log()


def line(name, state):
    return f"{name:<32} {testdriver.uuid_of(name)} {state}"


def test_every_action(start, ask, pair):
    start()
    result = ask("-o", "list")
    assert (result.rc, result.out.splitlines()) == (OK, [line("vm1", "on"), line("vm2", "on")]), (result, start.log())
    assert ask("-o", "monitor").rc == OK
    assert ask("-o", "status", "-H", "vm2").out == "Status: ON\n"
    result = ask("-o", "off", "-H", "vm2")
    assert result.rc == OK, (result, start.log())
    result = ask("-o", "status", "-H", "vm2")
    assert (result.rc, result.out) == (OFF, "Status: OFF\n"), start.log()
    assert line("vm2", "off") in ask("-o", "list").out.splitlines()
    assert ask("-o", "on", "-H", "vm2").rc == OK, start.log()
    assert ask("-o", "status", "-H", "vm2").rc == OK, start.log()
    assert ask("-o", "reboot", "-H", testdriver.uuid_of("vm2")).rc == OK, start.log()
    assert ask("-o", "status", "-H", "vm1").rc == OK, start.log()


def test_a_wrong_key(start, ask):
    start()
    assert ask("-o", "off", "-H", "vm2", "-t", "4", key="/etc/wrong_key").rc == FAILED, start.log()
    assert ask("-o", "status", "-H", "vm2").rc == OK, start.log()


@pytest.mark.pairs(agent="ours", daemon="ours")
def test_sealed_requests_alone(start, ask):
    sealed = ("-c", "hmac-sha256")
    start(options='hash = "hmac-sha256";', like=sealed)
    result = ask("-o", "off", "-H", "vm2", *sealed)
    assert result.rc == OK, (result, start.log())
    assert ask("-o", "status", "-H", "vm2", *sealed).rc == OFF, start.log()
    assert ask("-o", "on", "-H", "vm2", "-t", "2").rc == FAILED, "a classic one"
    wait_until(lambda: "hash sha256 is weaker than hmac-sha256" in start.log())


def test_a_group_with_a_context_id(start, ask):
    """`ip` takes it, in decimal."""
    start(f'groups {{ group {{ ip = "{SOURCE}"; uuid = "vm1"; uuid = "{testdriver.uuid_of("vm1")}"; }} }}')
    assert ask("-o", "status", "-H", "vm1").rc == OK, start.log()
    assert ask("-o", "off", "-H", "vm2").rc == DENIED, start.log()
    assert ask("-o", "list").out.splitlines() == [line("vm1", "on")], start.log()


def test_a_group_with_another_context_id(start, ask):
    start('groups { group { ip = "77"; uuid = "vm1"; } }')
    assert ask("-o", "off", "-H", "vm1").rc == DENIED, start.log()


@pytest.mark.pairs(agent="ours", daemon="ours")
def test_the_log_names_the_source(start, ask):
    """By the local context id too, which the reference agent refuses."""
    start()
    assert ask("-o", "status", "-H", "vm1", cid=SOURCE).rc == OK
    assert f'transport="vsock" peer=cid {SOURCE} port' in start.log().replace('peer="', "peer="), start.log()


@pytest.mark.pairs(agent="ours", daemon="ours")
def test_nobody_listens(ask):
    """A connection that is refused is no reason to wait for the whole time-out, nor to report anything but failure."""
    result = ask("-o", "off", "-H", "vm1", "-t", "3")
    assert result.rc == FAILED and result.err, result
