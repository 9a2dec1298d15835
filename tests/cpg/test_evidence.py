# SPDX-License-Identifier: GPL-2.0-or-later
"""Off means off, wherever else the domain may be: at a node whose daemon does not run, at a host that was down and is up again, at
one that was cut off. The answer is failure or the truth, in every round; the truth is read at the hypervisors."""

import os

import pytest

from .hosts import refused
from .test_lost import asked_all, serve

OURS = "ours"
ROUNDS = 3 if int(os.environ.get("ROUNDS", "5")) < 20 else 50


def untrue(hosts, name, results):
    """What of {action: exit code} says that a domain is off which runs now."""
    running = [host.name for host in hosts.all if host.state(name) == "running"]
    return [(action, code, running) for action, code in results.items() if running and (action, code) in (
        ("status", 2), ("off", 0), ("reboot", 0))]


def runs_on(hosts, name, actions=("status", "off", "reboot")):
    """Nobody who is asked says that a domain is off, or takes it down: it runs where nobody can look."""
    for asked in ("h1", "h2"):
        results = asked_all(hosts, asked, name, actions)
        assert not untrue(hosts, name, results), f"{asked}: {results}\n{hosts.logs()}"
        assert set(results.values()) == {"refused"}, f"{asked}: {results}\n{hosts.logs()}"


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
        for asked in ("h1", "h2"):
            results = {action: hosts.ask(asked, action, "c1", timeout=6).rc for action in ("status", "off")}
            assert not untrue(hosts, "c1", results) and 0 not in results.values(), f"{asked}: {results}\n{hosts.logs()}"
