# SPDX-License-Identifier: GPL-2.0-or-later
"""A live cluster fences its nodes: by hand, and when one dies."""

import re

import pytest

from lab.net import wait_until

from . import manual
from .nodes import PATIENCE

#: Resources of the cluster.
DEVICE, RESOURCE = "FenceVM", "App"


def test_what_the_manual_asks(cluster):
    """Everything that can be asked before anything is fenced."""
    n1 = cluster.n1
    listed = n1.run(*manual.command("fence_xvm", "-o", "list")).stdout
    assert re.findall(r"^(vm-n\d) .* on$", listed, re.M) == ["vm-n1", "vm-n2"]
    n1.run(*manual.command("fence_xvm", "-o", "status"))
    assert "succeeded" in n1.run(*manual.command("stonith_admin", "--validate")).stdout
    assert DEVICE in n1.run(*manual.command("stonith_admin", "--list")).stdout.split()
    n1.run(*manual.command("stonith_admin", "--query"))
    assert "Online: [ n1 n2 ]" in n1.run(*manual.command("crm_mon", "-1")).stdout


def test_reboot_by_hand(pair, note):
    """The manual's ways to fence on purpose."""
    ways = [(pair.n2, pair.n1, manual.command("stonith_admin", "--reboot", "n1"))]
    if pair.sides != ("ours", "ours"):
        ways = [(pair.n1, pair.n2, manual.command("pcs", "stonith", "fence", "n2"))]
    for asker, victim, words in ways:
        before = {node: len(node.calls()) for node in pair.nodes}
        asker.run(*words)
        assert victim.fenced()
        # Either node may be the one that carries it out, but for the victim.
        call = fencing(asker, before[asker])
        assert call.rc == 0 and call.options["action"] == "reboot"
        assert call.options["port"] == victim.domain.name and call.options["nodename"] == victim.name
        assert call.began < victim.wait_fenced() < call.ended
        if pair.sides[0] == "ours":
            assert call.err == "", "Pacemaker's own words are warned about"
        victim.wait_restarted()
        history = asker.run("stonith_admin", "--history", victim.name).stdout
        assert f"reboot of {victim.name} successful: delegate={asker.name}" in history
        note(f"agent {call.ended - call.began:.2f} s; off after {victim.wait_fenced() - call.began:.2f} s")


def test_killed_node(pair, note):
    """The resource moves, and only after its node's domain was seen off."""
    victim, survivor = who_runs(pair)
    before = len(survivor.calls())
    killed = victim.kill()
    fenced = victim.wait_fenced()
    pair.wait_seen(survivor, lambda seen: seen.resources.get(RESOURCE) == survivor.name, f"{RESOURCE} on {survivor.name}")
    call = fencing(survivor, before)
    assert call.rc == 0 and call.options["port"] == victim.domain.name
    started = survivor.started_at()
    assert fenced < call.ended < started, (fenced, call, started)
    victim.wait_restarted()
    note(f"killed to off {fenced - killed:.1f} s, agent {call.ended - call.began:.2f} s, off to resource started "
         f"{started - fenced:.1f} s")


@pytest.mark.wide
def test_nothing_moves_while_the_host_is_away(cluster, lab):
    """A fence that was not done is not taken for one: the resource stays where it was until it is."""
    victim, survivor = who_runs(cluster)
    before, started = len(survivor.calls()), survivor.started_at()
    lab.stop_serving()
    victim.kill()
    wait_until(lambda: [call for call in survivor.calls()[before:] if call.options["action"] == "reboot"], PATIENCE)
    assert fencing(survivor, before).rc != 0
    assert "Timed out" in fencing(survivor, before).err
    assert not victim.fenced() and survivor.started_at() == started
    lab.serve("ours")
    fenced = victim.wait_fenced()
    cluster.wait_seen(survivor, lambda seen: seen.resources.get(RESOURCE) == survivor.name, f"{RESOURCE} moves")
    assert fenced < survivor.started_at()


@pytest.mark.wide
def test_off_and_on(pair):
    """A node that was powered off stays off, and a reboot does not change that; `on` does."""
    n1, n2 = pair.nodes
    n1.run("stonith_admin", "--fence", "n2")
    n2.wait_fenced()
    assert n2.domain.state() == "shut off"
    n1.run("stonith_admin", "--reboot", "n2")
    assert n2.domain.state() == "shut off"
    n1.run("stonith_admin", "--unfence", "n2")
    assert n2.domain.state() == "running"


def who_runs(cluster):
    """The node that runs the resource, and the other one."""
    where = cluster.n1.sees().resources[RESOURCE]
    return sorted(cluster.nodes, key=lambda node: node.name != where)


def fencing(node, since):
    """The last call on `node` after number `since` that was to power a domain off."""
    calls = [call for call in node.calls()[since:] if call.options.get("action") in ("off", "reboot")]
    assert calls, f"{node.name} fenced nobody\n{node.cluster.state()}"
    return calls[-1]
