# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's fence_virsh over a real SSH server to real QEMU domains: a hypervisor that is asked for what it has."""

import contextlib
import pathlib
import subprocess
import uuid

import pytest

from lab import net

from .rig import FAILED, OFF, OK, Onlooker, device, short, untouched
from .ssh import Sshd

AGENT = "fence_virsh"
#: The agent would wait that long for an answer: what ends before was ended by the daemon.
PATIENT = {"login_timeout": 120, "shell_timeout": 120, "power_timeout": 120}


@pytest.fixture(scope="module")
def sshd(site, tmp_path_factory):
    """The SSH server."""
    with Sshd(site, tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture(autouse=True)
def all_is_well_again(site, sshd):
    """A case may stop what it asks."""
    yield
    site.hypervisor.recover()
    if sshd.process.poll() is not None:
        sshd.start()


def running(site, *words):
    """Command lines of processes on the daemon's host that have one of these words in them."""
    pids = subprocess.run(["ip", "netns", "pids", site.host.ns], capture_output=True, text=True, check=True).stdout.split()
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            lines.append(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if any(word in line for word in words)]


@pytest.mark.parametrize("way_in", ["key", "password"])
def test_each_action_on_what_the_hypervisor_lists(site, start_host, sshd, way_in):
    vm1, vm2 = site.hypervisor.domain("vm1"), site.hypervisor.domain("vm2", start=False)
    # With `verbose` the agent writes the password that it types into its log.
    options = sshd.options() if way_in == "key" else sshd.options(password=True, verbose=1)
    host = start_host([device("hv", AGENT, options=options)], over=sshd.known())
    with Onlooker(site) as onlooker:
        result = site.ask("-o", "list")
        assert result.rc == OK, (result, host.daemon.log)
        states = {line[:32].strip(): line[70:] for line in result.out.splitlines()}
        assert (states["vm1"], states["vm2"]) == ("on", "off"), result
        assert len({uuid.UUID(line[33:69]) for line in result.out.splitlines()}) == len(states), result

        qemu = vm1.process()
        result = site.ask("-o", "off", "-H", "vm1")
        assert qemu.ended(), "off was reported and QEMU still ran"
        assert result.rc == OK, (result, host.daemon.log)
        runs = short(host.runs("off"))
        assert "hv off: exit 0" in runs and "hv status: exit 2" in runs[runs.index("hv off: exit 0"):], runs
        if way_in == "password":
            assert any("Sent: ***" in run["output"] for run in host.runs("off")), host.runs("off")
        assert site.ask("-o", "status", "-H", "vm1").rc == OFF
        if way_in == "key":
            result = site.ask("-o", "on", "-H", "vm2")
            assert result.rc == OK and vm2.pid(), (result, host.daemon.log)
            qemu = vm2.process()
            result = site.ask("-H", "vm2")
            assert qemu.ended() and result.rc == OK, (result, host.daemon.log)
            assert vm2.pid() not in (None, qemu.pid)
            assert site.ask("-o", "status", "-H", "vm2").out == "Status: ON\n"
    assert onlooker.saw(AGENT) and onlooker.saw("ssh") and not onlooker.leaks, onlooker.leaks


def test_a_domain_that_is_in_no_list(site, start_host, sshd, vm1):
    host = start_host([device("hv", AGENT, options=sshd.options())], over=sshd.known())
    qemu = vm1.process()
    for action in ("status", "off"):
        result = site.ask("-o", action, "-H", "nobody")
        assert result.rc == FAILED, (result, host.daemon.log)
    assert untouched(vm1, qemu)


@pytest.mark.parametrize("plugs", ["*", "vm1"])
def test_a_hypervisor_whose_virsh_is_gone(site, start_host, sshd, vm1, plugs):
    """The agent says off of every name then, "already off" for off, and that all is well."""
    sshd.kill()
    sshd.start(path="/nowhere")
    try:
        host = start_host([device("hv", AGENT, plugs, retries=0, timeout=5, status_timeout=5, options=sshd.options())], over=sshd.known())
        qemu = vm1.process()
        result = site.ask("-o", "status", "-H", "vm1")
        assert result.rc == FAILED and "Status" not in result.out, (result, host.daemon.log)
        assert site.ask("-o", "off", "-H", "vm1").rc == FAILED, host.daemon.log
        assert untouched(vm1, qemu)
        assert plugs == "*" or "not believed: its list is empty" in host.daemon.log, host.daemon.log
    finally:
        sshd.kill()


def test_the_ssh_server_dies_in_the_middle(site, start_host, sshd, vm1):
    """virsh has been started and waits for a libvirtd that stands still; then the session breaks down."""
    host = start_host([device("hv", AGENT, "vm1", timeout=10, retries=0, options=sshd.options(**PATIENT))],
                      over=sshd.known())
    assert site.ask("-o", "status", "-H", "vm1").rc == OK
    qemu = vm1.process()
    site.hypervisor.freeze()
    asked = site.ask("-o", "off", "-H", "vm1", wait=False)
    net.wait_until(lambda: sshd.runs("virsh"))
    sshd.kill()
    result = asked.finish()
    assert result.rc == FAILED, (result, host.daemon.log)
    site.hypervisor.thaw()
    assert untouched(vm1, qemu)
    # While nobody can be asked nothing is told; a service that is back serves.
    result = site.ask("-o", "status", "-H", "vm1")
    assert result.rc == FAILED and "Status" not in result.out, (result, host.daemon.log)
    sshd.start()
    result = site.ask("-o", "off", "-H", "vm1")
    assert qemu.ended() and result.rc == OK, (result, host.daemon.log)


def test_what_hangs_is_killed_with_all_that_it_started(site, start_host, sshd, vm1):
    """fence_virsh runs ssh on a terminal of its own, in another session: that one too."""
    host = start_host([device("hv", AGENT, "vm1", status_timeout=8, options=sshd.options(**PATIENT))], over=sshd.known())
    assert site.ask("-o", "status", "-H", "vm1").rc == OK
    qemu = vm1.process()
    site.hypervisor.freeze()
    result = site.ask("-o", "status", "-H", "vm1")
    assert result.rc == FAILED and "Status" not in result.out, (result, host.daemon.log)
    runs = host.runs("status", count=2)
    assert any("killed" in run for run in short(runs)), runs
    site.hypervisor.thaw()
    net.wait_until(lambda: not running(site, "/fence_virsh", "ssh "))
    assert untouched(vm1, qemu)
    result = site.ask("-o", "off", "-H", "vm1")
    assert qemu.ended() and result.rc == OK, (result, host.daemon.log)
