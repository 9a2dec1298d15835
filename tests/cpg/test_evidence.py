# SPDX-License-Identifier: GPL-2.0-or-later
"""Off means off, wherever else the domain may be: at a node whose daemon does not run, at a host that was down and is up again, at
one that was cut off. The answer is failure or the truth, in every round; the truth is read at the hypervisors."""

import concurrent.futures
import datetime
import os
import time
import uuid as uuids

import pytest

from lab import judged, process
from lab.net import wait_until

from .hosts import refused
from .test_lost import asked_all, serve

OURS = "ours"
ROUNDS = 1 if int(os.environ.get("ROUNDS", "5")) < 20 else 50

#: Most seconds for which a proof counts, as docs/limits.md has it.
BOOT = 30


def untrue(hosts, name, results):
    """What of {action: exit code} says that a domain is off which runs now."""
    running = [host.name for host in hosts.all if host.state(name) == "running"]
    told = [(action, code, running) for action, code in results.items() if running and (action, code) in (
        ("status", 2), ("off", 0), ("reboot", 0))]
    if told:
        judged.untrue(f"{name}: {told}")
    return told


def none_says_off(hosts, name, timeout=3):
    """Nobody who is asked says that it is off, or that it took it down. h1 and h2 are asked side by side, in orders of their own: each
    waits for a proof, and no two ask for the same in the same moment."""
    def ask(asked, guest, actions):
        return {action: hosts.ask(asked, action, name, guest=guest, timeout=timeout).rc for action in actions}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = {"h1": pool.submit(ask, "h1", 0, ("status", "off")), "h2": pool.submit(ask, "h2", 1, ("off", "status"))}
    for asked, it in both.items():
        results = it.result()
        assert not untrue(hosts, name, results) and 0 not in results.values(), f"{asked}: {results}\n{hosts.logs()}"


def runs_on(hosts, name, actions=("status", "off", "reboot")):
    """Nobody who is asked says that a domain is off, or takes it down: it runs where nobody can look."""
    for asked in ("h1", "h2"):
        results = asked_all(hosts, asked, name, actions)
        assert not untrue(hosts, name, results), f"{asked}: {results}\n{hosts.logs()}"
        assert set(results.values()) == {"refused"}, f"{asked}: {results}\n{hosts.logs()}"


@pytest.mark.parametrize("at", ["h2", "h3"])
def test_a_machine_that_is_made_anew_has_its_old_name(hosts, at):
    """Its predecessor has ended, and is remembered for a while. h2 had it."""
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    old = hosts.h2.has("anew", transient=True)
    hosts.wait_status("h1", "anew", 0)
    assert hosts.ask("h1", "off", "anew").rc == 0
    hosts.wait_status("h1", "anew", 2)
    new = str(uuids.uuid4())
    host = hosts.__dict__[at]
    host.has("anew", uuid=new)
    for asked in ("h1", "h2", "h3"):
        hosts.wait_status(asked, "anew", 0)
        # Which of them runs under the name is for nobody to guess.
        assert refused(hosts.ask(asked, "status", old.uuid)), hosts.logs()
    for asked in ("h1", "h2", "h3"):
        host.has("anew", uuid=new)
        assert hosts.ask(asked, "off", "anew").rc == 0, f"{asked}\n{hosts.logs()}"
        assert host.state("anew") == "shut off"
        assert hosts.ask(asked, "status", old.uuid).rc == 2, hosts.logs()


@pytest.mark.parametrize("transient", [False, True], ids=["defined", "transient"])
def test_a_domain_that_went_off_here_and_runs_where_no_daemon_is(hosts, transient):
    """As in a rolling upgrade: h3 is well, and its daemon is stopped."""
    hosts.serve(h1=OURS, h2=OURS)
    hosts.h1.wait_members(3)
    for n in range(ROUNDS):
        name = f"moved{n}"
        hosts.h1.has(name, transient=transient)
        hosts.wait_status("h2", name, 0)
        # The way in which a cluster moves a machine without live migration.
        hosts.h1.hypervisor.virsh("destroy", name)
        hosts.h3.has(name, transient=transient)
        runs_on(hosts, name)
    # What runs where a daemon is heard is fenced as always.
    hosts.h1.has("here")
    hosts.wait_status("h2", "here", 0)
    assert hosts.ask("h2", "off", "here").rc == 0
    assert hosts.h1.state("here") == "shut off"
    # With the daemon there, everybody knows.
    hosts.h3.serve(OURS)
    hosts.wait_status("h1", name, 0)
    hosts.wait_status("h1", "here", 2)
    assert hosts.ask("h2", "off", name).rc == 0
    assert hosts.h3.state(name) in (None, "shut off")


@pytest.mark.parametrize("action", ["status", "off"])
def test_a_domain_that_was_moved_a_moment_ago_to_a_host_that_has_not_said_so(hosts, action):
    """h1 saw it go off, and all that h2 has published is its definition. A guess would be wrong; h2 has to be asked."""
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    hosts.h2.has("hopper", start=False)
    hosts.h1.has("hopper")
    hosts.wait_status("h3", "hopper", 0)
    process.freeze(hosts.h2.daemon.pid)
    try:
        hosts.h1.hypervisor.virsh("destroy", "hopper")
        hosts.h2.hypervisor.virsh("start", "hopper")
        result = hosts.ask("h1", action, "hopper", timeout=4)
    finally:
        process.thaw(hosts.h2.daemon.pid)
    # Refused, or no answer in time.
    assert result.rc == 1, f"{result}\n{hosts.logs()}"
    assert hosts.h2.state("hopper") == "running"
    hosts.wait_status("h1", "hopper", 0)
    assert hosts.ask("h1", "off", "hopper").rc == 0 and hosts.h2.state("hopper") == "shut off", hosts.logs()


def test_a_domain_that_was_moved_a_moment_ago(hosts):
    """All hosts are well; h1 saw it go off, and it runs at h2 before anybody asks."""
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    hosts.h1.has("hopper")
    hosts.h2.has("hopper", start=False)
    wrong = []
    for n in range(3 * ROUNDS):
        here, there = (hosts.h1, hosts.h2)[::1 if n % 2 == 0 else -1]
        here.has("hopper")
        hosts.wait_status("h3", "hopper", 0)
        here.hypervisor.virsh("destroy", "hopper")
        there.hypervisor.virsh("start", "hopper")
        for asked in ("h1", "h2", "h3"):
            wrong += untrue(hosts, "hopper", {"status": hosts.ask(asked, "status", "hopper").rc})
        wrong += untrue(hosts, "hopper", {"off": hosts.ask(("h1", "h2", "h3")[n % 3], "off", "hopper").rc})
        there.hypervisor.virsh("destroy", "hopper", check=False)
    assert not wrong, f"{wrong}\n{hosts.logs()}"


def test_a_host_that_was_down_and_is_up_again_without_corosync(hosts):
    """The command is asked by each request: what it said to others is nothing."""
    down = hosts.directory / "down"
    command = hosts.directory / "is-off"
    command.write_text(f"#!/bin/sh\n[ -e {down} ] || {{ echo 'power is on' >&2; exit 1; }}\n")
    command.chmod(0o755)
    down.unlink(missing_ok=True)
    serve(hosts, host_down="command", host_down_command=command)
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    hosts.h2.wait_members(2)
    for _ in range(ROUNDS):
        hosts.h3.hypervisor.virsh("destroy", "c1", check=False)
        down.touch()
        for asked in ("h1", "h2"):
            assert asked_all(hosts, asked, "c1", ("status", "off", "on")) == {"status": 2, "off": 0, "on": "refused"}, hosts.logs()
        # It boots, without corosync, and its domains start by themselves.
        down.unlink()
        hosts.h3.has("c1")
        none_says_off(hosts, "c1", timeout=6)


class Pacemaker:
    """A stand-in for stonith_admin on some hosts, with a history of the test's making, as Pacemaker 2.1 writes it."""

    def __init__(self, hosts, at):
        self.at, self.program = at, hosts.directory / "stonith_admin"
        self.write()
        self.program.chmod(0o755)
        for host in at:
            host.run("mount", "--bind", self.program, "/usr/sbin/stonith_admin")

    def write(self, *fencings):
        """The history: (action, seconds from now on)."""
        events = "".join(
            f'<fence_event action="{action}" target="h3" client="c" origin="h1" status="success" delegate="h1" '
            f'completed="{datetime.datetime.utcfromtimestamp(time.time() + offset):%Y-%m-%d %H:%M:%S}Z"/>'
            for action, offset in fencings)
        text = (f'<pacemaker-result api-version="2.25" request="r"><list name="fencing history" count="{len(fencings)}">'
                f'{events}</list><status code="0" message="OK"/></pacemaker-result>')
        # In its place: the hosts have this very file.
        self.program.write_text(f"#!/bin/sh\necho '{text}'\n")

    def close(self):
        for host in self.at:
            if host.alive():
                host.run("umount", "/usr/sbin/stonith_admin")


@pytest.fixture
def pacemaker(hosts):
    stands_in = Pacemaker(hosts, (hosts.h1, hosts.h2))
    yield stands_in
    stands_in.close()


def lose_h3(hosts):
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    hosts.h2.wait_members(2)


def test_a_reboot_in_the_history_of_a_host_that_is_up_again(hosts, pacemaker):
    serve(hosts, host_down="pacemaker")
    lose_h3(hosts)
    # Nothing proves anything yet.
    runs_on(hosts, "c1", ("status",))
    hosts.h3.hypervisor.virsh("destroy", "c1")
    pacemaker.write(("reboot", 0))
    began = time.monotonic()
    for asked in ("h1", "h2"):
        assert hosts.ask(asked, "off", "c1").rc == 0, hosts.logs()
    # It boots, without corosync.
    wait_until(lambda: time.monotonic() > began + BOOT, 2 * BOOT)
    hosts.h3.has("c1")
    for _ in range(ROUNDS):
        none_says_off(hosts, "c1")
    # Fenced once more, by an off: that stands until something powers it on.
    hosts.h3.hypervisor.virsh("destroy", "c1")
    pacemaker.write(("off", 0), ("reboot", -BOOT))
    assert hosts.ask("h1", "off", "c1").rc == 0, hosts.logs()
    assert hosts.ask("h2", "status", "c1").rc == 2, hosts.logs()
    pacemaker.write(("on", 0), ("off", -1), ("reboot", -BOOT))
    hosts.h3.has("c1")
    for asked in ("h1", "h2"):
        assert hosts.ask(asked, "off", "c1", timeout=3).rc not in (0, 2), hosts.logs()


def test_a_fencing_with_a_time_that_can_t_be_true(hosts, pacemaker):
    """Clocks that were set: the host is only cut off, and its domain runs on."""
    serve(hosts, host_down="pacemaker")
    # An old one, which Pacemaker dates a little after the loss.
    pacemaker.write(("off", 25))
    hosts.h3.cut()
    hosts.h1.wait_members(2)
    hosts.h2.wait_members(2)
    wait_until(lambda: "in the future" in hosts.ask("h1", "status", "c1", timeout=3).out + hosts.h1.daemon.log, 20)
    until = time.monotonic() + BOOT
    while time.monotonic() < until:
        none_says_off(hosts, "c1")
    assert hosts.h3.state("c1") == "running"
