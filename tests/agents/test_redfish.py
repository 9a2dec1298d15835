# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's fence_redfish against OpenStack's emulator: before real QEMU domains, before its own slow machines, and behind a
front that lies. What became of a machine is asked at QEMU's process, or at the emulator where there is none."""

import contextlib
import os
import re

import pytest

from lab import net, programs

from . import redfish
from .redfish import Emulator, Front
from .rig import FAILED, OFF, OK, Onlooker, device, short, untouched

AGENT = "fence_redfish"


@pytest.fixture(scope="module")
def bmc(site, tmp_path_factory):
    """The emulator before the site's hypervisor."""
    with Emulator(site, "bmc", tmp_path_factory.mktemp("bmc"), libvirt=site.hypervisor.uri) as bmc:
        yield bmc


@pytest.fixture
def front(bmc):
    """A front before it."""
    with Front(bmc) as front:
        yield front


def test_each_action_is_done_and_proved(site, start_host, bmc, vm1):
    """And nothing of it shows the password."""
    host = start_host([device("bmc", AGENT, "node1", options=bmc.options(vm1.uuid))])
    with Onlooker(site) as onlooker:
        result = site.ask("-o", "status", "-H", "node1")
        assert (result.rc, result.out) == (OK, "Status: ON\n"), (result, host.daemon.log)
        qemu = vm1.process()
        result = site.ask("-o", "off", "-H", "node1")
        assert qemu.ended(), "off was reported and QEMU still ran"
        assert result.rc == OK, (result, host.daemon.log)
        record = host.record("off")
        runs = short(record["runs"])
        assert record["domain"] == "node1" and "bmc off: exit 0" in runs and runs[-1] == "bmc status: exit 2", record
        assert {run["agent"] for run in record["runs"]} == {AGENT}, record
        assert all(run["ms"] > 0 for run in record["runs"]), record

        assert site.ask("-o", "status", "-H", "node1").rc == OFF
        result = site.ask("-o", "on", "-H", "node1")
        assert result.rc == OK and vm1.pid(), (result, host.daemon.log)
        runs = short(host.runs("on"))
        assert "bmc on: exit 0" in runs and runs[-1] == "bmc status: exit 0", runs

        qemu = vm1.process()
        result = site.ask("-o", "reboot", "-H", "node1")
        assert qemu.ended() and result.rc == OK, (result, host.daemon.log)
        assert vm1.pid() not in (None, qemu.pid)
        done = [run["action"] for run in host.runs("reboot")]
        # The agent's own reboot proves nothing.
        assert "reboot" not in done and done.index("off") < len(done) - 1 - done[::-1].index("on"), done

        result = site.ask("-o", "list")
        assert result.rc == OK and re.fullmatch(r"node1 +[0-9a-f-]{36} on\n", result.out), (result, host.daemon.log)
        assert site.ask("-o", "monitor").rc == OK
    assert onlooker.saw(AGENT) and not onlooker.leaks, onlooker.leaks


def test_what_is_off_already_is_not_asked_to_go_off(site, start_host, bmc, front):
    vm1 = site.hypervisor.domain("vm1", start=False)
    host = start_host([device("bmc", AGENT, "node1", options=bmc.options(vm1.uuid, ip=front.ip))])
    result = site.ask("-o", "off", "-H", "node1")
    assert result.rc == OK and not front.resets, (result, front.resets, host.daemon.log)
    assert {run["action"] for run in host.runs("off")} <= {"status", "monitor", "metadata"}, host.runs("off")


def test_one_device_for_all_machines_of_a_service(site, start_host, bmc, vm1, vm2):
    """The option that takes the plug is another one; one machine is asked for by its UUID."""
    host = start_host([device(
        "bmc", AGENT, f"vm1:/redfish/v1/Systems/{vm1.uuid}", plug_option="systems_uri", options=bmc.options(),
        domains=[{"name": "Web Server 2", "plug": f"/redfish/v1/Systems/{vm2.uuid}", "uuid": vm2.uuid}])])
    first, second = vm1.process(), vm2.process()
    result = site.ask("-o", "off", "-u", "-H", vm2.uuid)
    assert second.ended() and result.rc == OK, (result, host.daemon.log)
    assert untouched(vm1, first)
    assert host.record("off")["domain"] == "Web Server 2"
    result = site.ask("-o", "list")
    assert result.rc == OK, (result, host.daemon.log)
    assert sorted(line[:32].strip() + line[69:] for line in result.out.splitlines()) == ["Web Server 2 off", "vm1 on"], result


def test_services_that_lie_refuse_and_take_their_time(site, start_host, bmc, tmp_path):
    """At once, since those that don't follow are looked at to the end of the request's time:

    one says 204 and leaves its machine on; one answers 400, which the agent doesn't read; two say 204 and follow when the
    agent has given up long before, so that only looking again shows it: one behind a front, one of the emulator's own."""
    lied_to, refused, slow = (site.hypervisor.domain(name) for name in ("vm1", "vm2", "vm3"))
    qemus = [it.process() for it in (lied_to, refused, slow)]
    own = "7c1e9d6a-0c0f-4f5e-9f6e-0d6a3b2c1d10"
    hasty = {"power_timeout": 1}
    with contextlib.ExitStack() as stack:
        liar = stack.enter_context(Front(bmc, "swallow"))
        # The agent looks about twice; who looks more often than that is the daemon.
        late = stack.enter_context(Front(bmc, "hold", release_after=8))
        emulator = stack.enter_context(Emulator(site, "fake", tmp_path / "fake", systems={own: "On"}))
        strict = stack.enter_context(Emulator(site, "strict", tmp_path / "strict", libvirt=site.hypervisor.uri,
                                              settings={"SUSHY_EMULATOR_DISABLE_POWER_OFF": True}))
        host = start_host([
            device("liar", AGENT, "lied-to", retries=0, options=bmc.options(lied_to.uuid, ip=liar.ip, **hasty)),
            device("strict", AGENT, "refused", retries=0, options=strict.options(refused.uuid, **hasty)),
            device("late", AGENT, "slow", retries=0, options=bmc.options(slow.uuid, ip=late.ip, **hasty)),
            device("own", AGENT, "own", retries=0, options=emulator.options(own, **hasty))])
        asked = {name: site.ask("-o", "off", "-H", name, wait=False) for name in ("lied-to", "refused", "slow", "own")}

        result = asked["slow"].finish()
        assert qemus[2].ended() and result.rc == OK, (result, host.daemon.log)
        result = asked["own"].finish()
        assert emulator.power(own) == "Off" and result.rc == OK, (result, host.daemon.log)
        for name in ("lied-to", "refused"):
            result = asked[name].finish()
            assert result.rc == FAILED, (name, result, host.daemon.log)
        assert untouched(lied_to, qemus[0]) and untouched(refused, qemus[1])

        assert set(liar.resets) == set(late.resets) == {"ForceOff"}, (liar.resets, late.resets)
        assert set(strict.resets()) == {400} and set(emulator.resets()) == {204}, (strict.log(), emulator.log())
        records = {it["domain"]: it for it in host.wait_records(4)}
        for name, by in (("lied-to", "liar"), ("refused", "strict")):
            record = records[name]
            assert record["result"] == "failure" and record["reason"], record
            assert f"{by} status: exit 0" in short(record["runs"]), record
        for name, by in (("slow", "late"), ("own", "own")):
            runs = short(records[name]["runs"])
            assert f"{by} off: exit 1" in runs and runs[-1] == f"{by} status: exit 2", runs


def test_a_second_way_to_a_machine_is_gone_when_the_first_lies(site, start_host, bmc, front, vm1):
    front.mode = "swallow"
    host = start_host([
        device("second", AGENT, "node1", order=2, options=bmc.options(vm1.uuid)),
        device("first", AGENT, "node1", order=1, timeout=4, options=bmc.options(vm1.uuid, ip=front.ip, power_timeout=1))])
    qemu = vm1.process()
    result = site.ask("-o", "off", "-H", "node1")
    assert qemu.ended() and result.rc == OK, (result, host.daemon.log)
    runs = short(host.runs("off"))
    assert front.resets and "second off: exit 0" in runs and runs[-1].endswith(" status: exit 2"), runs
    off = [run["device"] for run in host.runs("off") if run["action"] == "off"]
    assert off[0] == "first" and off[-1] == "second", off


@pytest.mark.parametrize("wrong", ["password", "certificate", "machine"])
def test_a_device_that_can_not_be_used_touches_nothing(site, start_host, bmc, vm1, wrong):
    """And nothing is told of it: not "on", and not "off" either."""
    options = {"password": {"password_file": site.secret("wrong-hunter2-30aa")},
               "certificate": {"ssl_insecure": None},
               "machine": {"systems_uri": "/redfish/v1/Systems/nobody"}}[wrong]
    host = start_host([device("bmc", AGENT, "node1", timeout=4, status_timeout=5, retries=0,
                              options=bmc.options(vm1.uuid, **options))])
    qemu = vm1.process()
    for action in ("status", "off"):
        result = site.ask("-o", action, "-H", "node1")
        assert result.rc == FAILED and "Status" not in result.out, (result, host.daemon.log)
        record = host.record(action)
        assert "bmc status: exit 1" in short(record["runs"]), record
    assert untouched(vm1, qemu)
    assert site.ask("-o", "monitor").rc == FAILED


def test_a_service_that_dies_in_the_middle(site, start_host, tmp_path, vm1):
    with contextlib.ExitStack() as stack:
        bmc = stack.enter_context(Emulator(site, "bmc-3", tmp_path / "emulator", libvirt=site.hypervisor.uri))
        front = stack.enter_context(Front(bmc, "hang"))
        host = start_host([device("bmc", AGENT, "node1", timeout=24, retries=0, options=bmc.options(vm1.uuid, ip=front.ip))])
        qemu = vm1.process()
        asked = site.ask("-o", "off", "-H", "node1", wait=False)
        net.wait_until(lambda: front.resets)
        bmc.kill()
        front.mode = "pass"
        front.let_go()
        result = asked.finish()
        assert result.rc == FAILED and untouched(vm1, qemu), (result, host.daemon.log)
        # It comes back, and so does the fence.
        bmc.start()
        result = site.ask("-o", "off", "-H", "node1")
        assert qemu.ended() and result.rc == OK, (result, host.daemon.log)


def test_a_password_file_is_read_anew_and_only_when_it_is_private(site, start_host, bmc, vm1, tmp_path):
    path = programs.write_key(tmp_path / "password", b"not-yet-hunter2-11\n")
    host = start_host([device("bmc", AGENT, "node1", options=bmc.options(vm1.uuid, password_file=path))])
    assert site.ask("-o", "status", "-H", "node1").rc == FAILED
    programs.write_key(path, redfish.PASSWORD.encode() + b"\n")
    result = site.ask("-o", "status", "-H", "node1")
    assert (result.rc, result.out) == (OK, "Status: ON\n"), (result, host.daemon.log)
    os.chmod(path, 0o644)
    assert site.ask("-o", "status", "-H", "node1").rc == FAILED
    host.daemon.wait_log(re.escape(str(path)))
    os.chmod(path, 0o600)
    assert site.ask("-o", "status", "-H", "node1").rc == OK


def test_its_list_is_no_list(site, start_host, bmc, vm1):
    """fence_redfish answers `list` with a sentence and exit code 0: none of its words is a domain."""
    host = start_host([device("bmc", AGENT, "*", options=bmc.options(vm1.uuid))])
    qemu = vm1.process()
    assert site.ask("-o", "off", "-H", "NOTICE: List option is not working on this device yet").rc == FAILED
    result = site.ask("-o", "list")
    assert "NOTICE" not in result.out, (result, host.daemon.log)
    assert untouched(vm1, qemu)
