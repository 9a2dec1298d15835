# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool of XenServer hosts whose master moves: Debian's fence_xenapi, and the example of an agent of one's own."""

import os
import re
import shlex
import subprocess

import pytest
from lab import programs

from .rig import FAILED, OFF, OK, Host, device, venv
from .xen_pool import HALTED, PASSWORD, RUNNING, SUSPENDED, USER, Pool, Vm

#: What lasts as long as a client waits is for the long run, WIDE=1.
wide = pytest.mark.skipif(os.environ.get("WIDE", "") in ("", "0"), reason="for the long run")

EXAMPLE = programs.REPOSITORY / "docs/examples/fence_xenpool"

#: Who talks to the pool: Debian's agent, one device a member; the example, one device that knows all members, with the
#: client of Debian's fence-agents and with PyPI's.
AGENTS = ("fence_xenapi", "example", "example-pypi")


@pytest.fixture
def pool(site):
    """A Pool of three, with three VMs, two more of one name, and what else stands between VMs."""
    places = [site.place(f"xen{n}") for n in (1, 2, 3)]
    vms = [Vm(name) for name in ("web1", "web2", "Web Server, 1", "twin", "web1,web2")]
    vms += [Vm("twin", uuid="11111111-2222-4333-8444-555555555555"), Vm("sleeper", power=SUSPENDED), Vm("idle", power=HALTED),
            Vm("golden image", power=HALTED, is_a_template=True), Vm("Control domain on host: xen1", is_control_domain=True)]
    with Pool(places, vms) as pool:
        yield pool


@pytest.fixture
def devices(site, pool, tmp_path):
    """devices(agent, plugs, members=…, **keys): texts of devices of the pool; `options`: further ones of the agent."""
    def make(agent="fence_xenapi", plugs="*", *, members=None, secure=False, options=None, **keys):
        members = members or pool.members
        urls = [it.secure_url if secure else it.url for it in members]
        common = {"username": USER, "password_file": site.secret(PASSWORD), **(options or {})}
        if agent == "fence_xenapi":
            return [device(it.name, agent, plugs, order=n, options={"session_url": url, **common}, **keys)
                    for n, (it, url) in enumerate(zip(members, urls), 1)]
        program = EXAMPLE
        if agent == "example-pypi":
            # The same file, with the modules of an environment of its own.
            program = tmp_path / "fence_xenpool"
            program.write_text(f"#!/bin/sh\nexec {shlex.quote(str(venv() / 'bin/python'))} {shlex.quote(str(EXAMPLE))} \"$@\"\n")
            program.chmod(0o755)
        return [device("pool", program, plugs, options={"members": " ".join(urls), **common}, **keys)]
    return make


@pytest.mark.parametrize("agent", AGENTS)
def test_the_master_moves_between_requests(site, start_host, pool, devices, agent):
    """Each member in turn is master; every fence is done by the one that is. The former master is heard out, and an order that
    it refused holds up the next request: on a busy machine that is longer than a client waits by itself."""
    host = start_host(devices(agent), virtd={"client_timeout": 58})
    for number, master in enumerate([pool.master, pool.members[2], pool.members[1]]):
        if number:
            pool.move_master(master)
        before = len(pool.calls)
        result = site.ask("-o", "reboot", "-H", "web1", "-t", 58)
        assert result.rc == OK, (result, host.daemon.log[-4000:])
        assert pool["web1"].events == ["off", "on"] * (number + 1)
        asked = {member for member, method, _ in pool.calls[before:] if re.search(r"hard_shutdown|VM\.start", method)}
        assert asked == {master.name}
    assert site.ask("-o", "off", "-H", "web2", "-t", 58).rc == OK
    assert pool["web2"].power == HALTED and pool["web1"].power == RUNNING
    for name, state in (("web2", OFF), ("web1", OK)):
        assert site.ask("-o", "status", "-H", name, "-t", 58).rc == state
    assert site.ask("-o", "on", "-H", "web2", "-t", 58).rc == OK and pool["web2"].power == RUNNING
    # Nobody else was touched, and nobody was rebooted by the pool, where nothing proves that it was off.
    assert not any(vm.events for vm in pool.vms if vm.name not in ("web1", "web2"))
    assert not [call for call in pool.calls if "reboot" in call[1]]
    runs = host.runs("reboot")
    assert [run for run in runs if run["action"] == "off"] and [run for run in runs if run["action"] == "on"], runs


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-done", "after-it-is-done"])
@pytest.mark.parametrize("agent", AGENTS[:2])
def test_the_master_moves_in_the_middle(site, start_host, pool, devices, agent, after):
    """The call for the shutdown is cut off, undone or done."""
    host = start_host(devices(agent))
    call = "VM.hard_shutdown" if agent == "fence_xenapi" else "Async.VM.hard_shutdown"
    pool.when(call, lambda: pool.move_master(pool.members[1]), after=after)
    result = site.ask("-o", "off", "-H", "web1")
    assert pool.master is pool.members[1], "it moved"
    assert result.rc == OK, (result, host.record("off"), host.daemon.log[-4000:])
    assert pool["web1"].power == HALTED and pool["web1"].events == ["off"]


@pytest.mark.parametrize(("agent", "how"), [("fence_xenapi", "refuses"), ("fence_xenapi", "burnt"), ("fence_xenapi", "hangs"),
                                            pytest.param("example", "burnt", marks=wide)])
def test_a_dead_member_is_first_in_order(site, start_host, pool, devices, agent, how):
    """It refuses, its cable is out, or it takes calls and says nothing: the next one does it, in the time that clients wait."""
    pool.move_master(pool.members[1])
    dead = pool.members[0]
    host = start_host(devices(agent, status_timeout=6))
    try:
        {"refuses": dead.stop, "burnt": lambda: dead.place.link(False), "hangs": dead.hang}[how]()
        result = site.ask("-o", "reboot", "-H", "web1")
    finally:
        dead.place.link(True)
    assert result.rc == OK, (result, host.record("reboot"), host.daemon.log[-4000:])
    assert pool["web1"].events == ["off", "on"]
    assert result.seconds < 30


def test_one_device_of_the_pool_is_enough_to_know_nothing(site, start_host, pool, devices):
    """All members are down: a failure that says so, and no word of an unknown domain."""
    host = start_host(devices(status_timeout=4, timeout=4))
    for member in pool.members:
        member.stop()
    result = site.ask("-o", "off", "-H", "web1")
    assert result.rc == FAILED
    assert pool["web1"].power == RUNNING
    record = host.record("off")
    assert "refused" in str(record), record


def test_names_that_two_have(site, start_host, pool, devices):
    """A name twice in the pool is refused, each by its UUID is fine, and a name that the UUID was taken for is not."""
    host = start_host(devices())
    for action in ("off", "status"):
        assert site.ask("-o", action, "-H", "twin").rc == FAILED
        assert "ambiguous" in host.record(action)["reason"], host.record(action)
    twin = pool["11111111-2222-4333-8444-555555555555"]
    assert site.ask("-o", "off", "-u", "-H", twin.uuid).rc == OK
    assert twin.power == HALTED
    assert [vm.name for vm in pool.vms if vm.events] == ["twin"], "one of the two"


def test_who_is_no_machine(site, start_host, pool, devices):
    """Templates and control domains are nobody's to fence."""
    start_host(devices())
    for name in ("golden image", "Control domain on host: xen1", "nosuch"):
        assert site.ask("-o", "off", "-H", name).rc == FAILED
    assert not any(vm.events for vm in pool.vms)


def test_names_with_commas(site, start_host, pool, devices):
    """An agent may take a plug with a comma for two plugs. Only the one that has that name is shot."""
    start_host(devices())
    assert site.ask("-o", "off", "-H", "Web Server, 1").rc == OK
    assert site.ask("-o", "off", "-H", "web1,web2").rc == OK
    assert [vm.name for vm in pool.vms if vm.events] == ["Web Server, 1", "web1,web2"]


def test_a_plug_with_a_comma(site, start_host, pool, devices):
    """The same where the configuration names the plug, so that it is no UUID."""
    host = start_host(devices(plugs=None, domains=[{"name": "odd", "plug": "web1,web2"}]))
    result = site.ask("-o", "off", "-H", "odd")
    assert [vm.name for vm in pool.vms if vm.events] == ["web1,web2"] and result.rc == OK, (result, host.record("off"))


def test_suspended_is_not_off(site, start_host, pool, devices):
    """What is suspended still holds its disks."""
    start_host(devices())
    assert site.ask("-o", "status", "-H", "sleeper").rc == OK
    assert site.ask("-o", "off", "-H", "sleeper").rc == OK
    assert pool["sleeper"].power == HALTED
    # Off already: nothing is done.
    assert site.ask("-o", "off", "-H", "idle").rc == OK and not pool["idle"].events


@pytest.mark.parametrize("agent", AGENTS[:2])
def test_list(site, start_host, pool, devices, agent):
    """All machines with their own UUIDs and states: fence_xenapi's list-status knows none, so each is asked."""
    pool["web2"].power = HALTED
    host = start_host(devices(agent))
    # What a busy machine can't be told in time is shown as on, and the audit record names it: it is asked again.
    for number in range(1, 6):
        result = site.ask("-o", "list")
        assert result.rc == OK, result
        if "no device can tell the state" not in (host.record("list", number).get("reason") or ""):
            break
    listed = {(name.strip(), uuid, state) for name, uuid, state in
              re.findall(r"^(.*?) +([0-9a-f-]{36}) (on|off)$", result.out, re.M)}
    # A name that two have is no name: these are called by their plugs.
    assert listed == {(vm.uuid if vm.name == "twin" else vm.name, vm.uuid, "on" if vm.running else "off")
                      for vm in pool.vms if not (vm.is_a_template or vm.is_control_domain)}


def test_a_wrong_password(site, start_host, pool, devices):
    """Refused, and said so in the audit. The file is read for each run: the right one is used as soon as it is there."""
    wrong = site.secret("not-the-password-of-this-pool")
    file = site.scratch / "password-of-the-pool"
    programs.write_key(file, wrong.read_bytes())
    host = start_host(devices(plugs="web1", options={"password_file": file}))
    assert site.ask("-o", "off", "-H", "web1").rc == FAILED
    assert pool["web1"].power == RUNNING
    assert "SESSION_AUTHENTICATION_FAILED" in str(host.runs("off")), host.record("off")
    programs.write_key(file, PASSWORD.encode() + b"\n")
    assert site.ask("-o", "off", "-H", "web1").rc == OK and pool["web1"].power == HALTED


@wide
def test_a_shutdown_that_is_not_done(site, start_host, pool, devices):
    """The pool takes the call and does nothing: no fence was done, and none is claimed."""
    host = start_host(devices(plugs="web1", members=pool.members[:1], timeout=6, retries=0))
    pool["web1"].deaf = True
    result = site.ask("-o", "reboot", "-H", "web1")
    assert result.rc == FAILED and pool["web1"].power == RUNNING and not pool["web1"].events, (result, host.record("reboot"))
    assert [call for call in pool.calls if "hard_shutdown" in call[1]]
    assert not [call for call in pool.calls if call[1].endswith("VM.start")], "what was not off is not started"


@pytest.mark.parametrize(("agent", "how"), [("fence_xenapi", "slow"), ("fence_xenapi", "late"), ("example", "late")])
def test_a_shutdown_that_takes_its_time(site, start_host, pool, devices, agent, how):
    """Answered when it is done, or at once: a fence is done when the machine is off, and not before."""
    host = start_host(devices(agent, "web1"))
    setattr(pool["web1"], how, 3)
    result = site.ask("-o", "off", "-H", "web1")
    assert pool["web1"].power == HALTED and result.rc == OK, (result, host.record("off"))
    assert pool["web1"].events == ["off"]


@wide
def test_a_start_that_is_refused(site, start_host, pool, devices):
    """The fence was done, and the audit says what became of the start."""
    host = start_host(devices(members=pool.members[:1], timeout=8, retries=0, options={"power_timeout": "3", "retry_on": "0"}))
    pool["web1"].refuses = ("HOST_OFFLINE", pool.members[2].ref)
    result = site.ask("-o", "reboot", "-H", "web1")
    assert pool["web1"].events == ["off"]
    assert "HOST_OFFLINE" in str(host.runs("reboot")), host.record("reboot")
    assert result.rc == OK, (result, host.record("reboot"))


def test_sessions_that_the_pool_forgets(site, start_host, pool, devices):
    """A toolstack that was restarted: clients log in again by themselves. XenAPI.py makes each call three times, so a session
    may be forgotten twice in one run."""
    host = start_host(devices("example"))
    # What the daemon asks for by itself is over.
    host.daemon.wait_log(r"device pool has \d+ plugs")
    forgotten = []
    for action, state in (("status", OK), ("off", OK), ("status", OFF)):
        forgotten.clear()
        pool.when("VM.get_all_records", lambda: (forgotten.append(True), pool.forget_sessions()), times=2)
        result = site.ask("-o", action, "-H", "web1")
        assert result.rc == state and len(forgotten) == 2, (result, forgotten, host.record(action))
    assert pool["web1"].power == HALTED and pool["web1"].events == ["off"]


@pytest.mark.parametrize("agent", AGENTS[:2])
def test_https(site, start_host, pool, devices, tmp_path, agent):
    """fence_xenapi trusts what the system trusts; the example has an option `ca_file`, which is no secret's file."""
    members = pool.members[:1]
    certificate = pool.certificate[0]
    host = Host(site, tmp_path / "first", devices(agent, members=members, secure=True, status_timeout=5))
    result = site.ask("-o", "off", "-H", "web1")
    host.stop()
    assert result.rc == FAILED and pool["web1"].power == RUNNING, result
    assert "CERTIFICATE_VERIFY_FAILED" in host.daemon.log + host.audit_file.read_text()
    if agent == "fence_xenapi":
        trusted = tmp_path / "certs"
        trusted.mkdir()
        (trusted / "ca-certificates.crt").write_bytes(certificate.read_bytes())
        digest = subprocess.run(["openssl", "x509", "-hash", "-noout", "-in", certificate], capture_output=True,
                                         text=True, check=True).stdout.strip()
        (trusted / f"{digest}.0").write_bytes(certificate.read_bytes())
        start_host(devices(agent, members=members, secure=True), over={"/etc/ssl/certs": trusted})
    else:
        start_host(devices(agent, members=members, secure=True, options={"ca_file": certificate}))
    assert site.ask("-o", "off", "-H", "web1").rc == OK and pool["web1"].power == HALTED


def test_the_examples_metadata():
    """Valid by the schema of cluster software."""
    said = subprocess.run([EXAMPLE, "-o", "metadata"], capture_output=True, check=True).stdout
    checked = subprocess.run(["xmllint", "--noout", "--relaxng", "/usr/share/cluster/relaxng/metadata.rng", "-"], input=said,
                             capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_member_that_says_off_of_what_runs(site, start_host, pool, devices):
    """What one endpoint says is believed: the page says so."""
    host = start_host(devices(members=pool.members[:1]))
    pool["web1"].claims = HALTED
    assert site.ask("-o", "off", "-H", "web1").rc == OK
    assert pool["web1"].running, "nobody can know better"
    assert not [run for run in host.runs("off") if run["action"] == "off"]
