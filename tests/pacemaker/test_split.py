# SPDX-License-Identifier: GPL-2.0-or-later
"""Clusters that are cut: whoever shoots first, one stays up and has the resource."""

import os

import pytest

from lab.net import wait_until

from . import manual
from .conftest import WIDE
from .nodes import PATIENCE, Cluster
from .test_live import DEVICE, RESOURCE, fencing

#: How often the halves shoot each other.
ROUNDS = int(os.environ.get("ROUNDS", "10" if WIDE else "1"))


@pytest.mark.parametrize("agents", ["ours", pytest.param("reference", marks=pytest.mark.wide)])
def test_halves_that_shoot_each_other(cluster, lab, agents, note):
    """Both have quorum and both ask for the other's power; the daemon carries out one request."""
    cluster.use(agents)
    for _ in range(ROUNDS):
        cluster.boot()
        note(one_round(cluster, lab))


def one_round(cluster, lab):
    """The agents of both are called, and start in the same moment."""
    before = {node: len(node.calls()) for node in cluster.nodes}
    seen = len(lab.records())
    cluster.arm()
    cluster.n2.cut()
    cluster.fire_together()
    wait_until(lambda: any(node.fenced() for node in cluster.nodes), PATIENCE)
    survivor, victim = sorted(cluster.nodes, key=lambda node: node.fenced())
    fenced = victim.wait_fenced()
    cluster.wait_seen(survivor, lambda seen: seen.resources.get(RESOURCE) == survivor.name
                      and seen.online == {survivor.name}, f"{survivor.name} has it all")
    # What was asked has come to its end: nothing can follow.
    wait_until(lambda: heard(lab) <= {str(record["id"]) for record in lab.records()}, PATIENCE)
    assert not survivor.fenced() and survivor.alive(), "nobody stays up"
    shots = [record for record in lab.records()[seen:] if record["action"] == "reboot"]
    ran = [record["target"] for record in shots if record["decision"] == "run"]
    assert ran == [victim.domain.name], shots
    assert fencing(survivor, before[survivor]).rc == 0
    others = [record["reason"] for record in shots if record["decision"] != "run"]
    return (f"{survivor.name} stays; off {fenced - fencing(survivor, before[survivor]).released:.2f} s after the shot; "
            f"the other one's: {others}")


@pytest.mark.wide
@pytest.mark.parametrize("favoured", ["n1", "n2"])
def test_the_delay_chooses(cluster, lab, favoured, note):
    """The manual's head start, for either node."""
    words = manual.command("pcs", "stonith", "update", DEVICE, "pcmk_delay_base=n1:5s;n2:0s")
    if favoured == "n2":
        words = [word.replace("n1:5s;n2:0s", "n1:0s;n2:5s") for word in words]
    cluster.n1.run(*words)
    cluster.wait_whole()
    before = {node: len(node.calls()) for node in cluster.nodes}
    try:
        cluster.n2.cut()
        wait_until(lambda: any(node.fenced() for node in cluster.nodes), PATIENCE)
        survivor, _ = sorted(cluster.nodes, key=lambda node: node.fenced())
        assert survivor.name == favoured
        assert fencing(survivor, before[survivor]).rc == 0
        cluster.wait_seen(survivor, lambda seen: seen.resources.get(RESOURCE) == favoured
                          and seen.online == {favoured}, f"{favoured} has it all")
    finally:
        cluster.boot()
        cluster.n1.run("pcs", "stonith", "update", DEVICE, "pcmk_delay_base=")
    note(f"shots: {[(r['source_domain'], r['target'], r['decision']) for r in lab.records() if r['action'] == 'reboot']}")


@pytest.mark.wide
def test_the_node_with_the_resource_stays(cluster, note):
    """The manual's priority-fencing-delay."""
    cluster.n1.run(*manual.command("pcs", "resource", "meta"))
    cluster.n1.run(*manual.command("pcs", "property", "set", "priority-fencing-delay=10s"))
    cluster.wait_whole()
    try:
        favoured = cluster.n1.sees().resources[RESOURCE]
        cluster.n2.cut()
        wait_until(lambda: any(node.fenced() for node in cluster.nodes), PATIENCE)
        survivor, _ = sorted(cluster.nodes, key=lambda node: node.fenced())
        assert survivor.name == favoured
        cluster.wait_seen(survivor, lambda seen: seen.online == {favoured}, "the other one is gone")
        assert survivor.alive()
    finally:
        cluster.boot()
        cluster.n1.run("pcs", "property", "set", "priority-fencing-delay=")
        cluster.n1.run("pcs", "resource", "meta", RESOURCE, "priority=")


@pytest.mark.wide
def test_the_majority_fences_the_one_that_is_cut_off(lab, two_nodes):
    """Three nodes: the one alone has no quorum, so it shoots nobody."""
    two_nodes.close()       # one multicast group: the host serves both clusters, and memory is saved
    lab.serve("ours")
    cluster = Cluster(lab, ["m1", "m2", "m3"])
    try:
        cluster.boot()
        cluster.m1.run("pcs", "stonith", "create", DEVICE, "fence_xvm", "pcmk_host_map=m1:vm-m1;m2:vm-m2;m3:vm-m3")
        cluster.m1.run("pcs", "resource", "create", RESOURCE, "ocf:pacemaker:Dummy")
        cluster.wait_whole()
        alone = next(node for node in cluster.nodes if node.name == cluster.m1.sees().resources[RESOURCE])
        others = [node for node in cluster.nodes if node is not alone]
        alone.cut()
        fenced = alone.wait_fenced()
        seen = cluster.wait_seen(others[0], lambda seen: seen.resources.get(RESOURCE) not in (None, alone.name),
                                 "the resource moves")
        new = next(node for node in others if node.name == seen.resources[RESOURCE])
        assert fenced < new.started_at()
        assert not any(node.fenced() for node in others)
        assert not [call for call in alone.calls() if call.options.get("action") == "reboot"]
        alone.wait_restarted()
    finally:
        cluster.close()


def heard(lab):
    """Ids of all requests that the daemon has read, by its log."""
    return {line.split(" id=")[1].split()[0] for line in lab.daemon.log.splitlines() if ": heard id=" in line}
