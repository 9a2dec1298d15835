# SPDX-License-Identifier: GPL-2.0-or-later
"""A live cluster fences its nodes: by hand, and when one dies."""

import re
import shlex

import pytest

from lab.net import wait_until

from . import manual
from .conftest import WIDE
from .nodes import PATIENCE

#: Resources of the cluster.
DEVICE, RESOURCE = "FenceVM", "App"


#: The manual's ways to fence on purpose.
FENCES = [manual.command("stonith_admin", "--reboot"), manual.command("pcs", "stonith", "fence")]


def test_what_the_manual_asks(cluster):
    """Everything that fences nobody; what changes the configuration is run without a cluster."""
    said = {shlex.join(words): cluster.n1.run(*words).stdout for words in manual.asking() if words not in FENCES}
    listed = said["fence_xvm -o list"]
    assert re.findall(r"^(vm-n\d) .* on$", listed, re.M) == ["vm-n1", "vm-n2"]
    assert "Status: ON" in said["fence_xvm -o status -n vm-n2"]
    assert "succeeded" in said[shlex.join(manual.command("stonith_admin", "--validate"))]
    assert DEVICE in said["stonith_admin --list n2"].split()
    assert "Online: [ n1 n2 ]" in said["crm_mon -1"]
    assert "fence_xvm" in said[shlex.join(manual.command("grep"))]


def test_reboot_by_hand(pair, note):
    """By each of the manual's ways, for a pair each, and on the long run for all."""
    ways = [(pair.n2, pair.n1), (pair.n1, pair.n2)]
    chosen = [0, 1] if WIDE else [0] if pair.sides == ("ours", "ours") else [1]
    for (asker, victim), words in [(ways[i], FENCES[i]) for i in chosen]:
        pair.boot()
        assert words[-1] == victim.name
        before = {node: len(node.calls()) for node in pair.nodes}
        asker.run(*words)
        assert victim.fenced()
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
    failed = fencing(survivor, before)
    assert failed.rc != 0 and "Timed out" in failed.err
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


@pytest.mark.wide
def test_sealed(cluster, lab):
    """The manual's change to sealed requests, devices first; then the host takes nothing else."""
    cluster.n1.run(*manual.command("pcs", "stonith", "update", DEVICE, "hash=hmac-sha256"))
    try:
        cluster.wait_whole()
        lab.serve("ours", hash="hmac-sha256")
        fence(cluster, cluster.n1, cluster.n2)
        assert lab.records()[-1]["delivered"]
        cluster.boot()
        refused = cluster.n1.run("fence_xvm", "-o", "status", "-n", "vm-n2", "-t", "4", check=False)
        assert refused.returncode == 1 and "Timed out" in refused.stderr
    finally:
        lab.serve("ours")
        cluster.boot()
        cluster.n1.run("pcs", "stonith", "update", DEVICE, "hash=")
        cluster.wait_whole()


@pytest.mark.wide
@pytest.mark.parametrize("agents", ["ours", "reference"])
@pytest.mark.parametrize("devices", [["FenceTCP"], ["FenceN1", "FenceN2"]], ids=["one", "each"])
def test_devices_by_tcp(cluster, lab, agents, devices):
    """The manual's devices of fence_virt, alone."""
    cluster.use(agents)
    lab.serve("ours", listeners=("tcp",))
    cluster.n1.run("pcs", "stonith", "delete", DEVICE)
    try:
        for device in devices:
            cluster.n1.run(*manual.command("pcs", "stonith", "create", device))
        cluster.wait_whole()
        for asker, victim in [(cluster.n1, cluster.n2), (cluster.n2, cluster.n1)]:
            fence(cluster, asker, victim)
            cluster.boot()
    finally:
        for device in devices:
            cluster.n1.run("pcs", "stonith", "delete", device)
        lab.serve("ours")
        cluster.n1.run(*manual.command("pcs", "stonith", "create", DEVICE))
        cluster.wait_whole()


@pytest.mark.wide
@pytest.mark.parametrize("agents", ["ours", "reference"])
def test_devices_that_name_the_domain_themselves(cluster, agents, note):
    """Pacemaker adds port= with the node's name. Beside plug= these are two domains, which the C agents refuse as
    well; where there is a port= it keeps that."""
    cluster.use(agents)
    n1, n2 = cluster.nodes
    n1.run("pcs", "stonith", "delete", DEVICE)
    try:
        before = len(n1.calls())
        n1.run("pcs", "stonith", "create", "Named", "fence_xvm", "plug=vm-n2", "pcmk_host_list=n2")
        done = n1.run("stonith_admin", "--reboot", "n2", check=False)
        call = fencing(n1, before)
        note(f"asked {call.asked!r}, said {call.out!r} {call.err!r}")
        assert done.returncode != 0 and call.rc != 0 and not n2.fenced()
        n1.run("pcs", "stonith", "delete", "Named")
        n1.run("pcs", "stonith", "create", "Named", "fence_xvm", "port=vm-n2", "pcmk_host_list=n2")
        fence(cluster, n1, n2)
    finally:
        n1.run("pcs", "stonith", "delete", "Named", check=False)
        n1.run(*manual.command("pcs", "stonith", "create", DEVICE))
        cluster.boot()


@pytest.mark.wide
def test_without_a_map(cluster):
    """Pacemaker asks the agent for its list, and a node that no list has can't be fenced."""
    n1 = cluster.n1
    n1.run("pcs", "stonith", "create", "Dynamic", "fence_xvm")
    try:
        cluster.wait_whole()
        assert "Dynamic" in n1.run("stonith_admin", "--list", "vm-n2").stdout.split()
        nobody = n1.run("stonith_admin", "--reboot", "vm-n9", check=False)
        assert nobody.returncode != 0 and "No such device" in nobody.stdout + nobody.stderr
        assert [call for call in n1.calls() + cluster.n2.calls() if call.options.get("action") == "list"]
    finally:
        n1.run("pcs", "stonith", "delete", "Dynamic")


def fence(cluster, asker, victim):
    """`asker` has `victim` fenced, and that is what happens."""
    before = len(asker.calls())
    asker.run("stonith_admin", "--reboot", victim.name)
    assert victim.fenced()
    call = fencing(asker, before)
    assert call.rc == 0 and call.began < victim.wait_fenced() < call.ended
    victim.wait_restarted()


def who_runs(cluster):
    """The node that runs the resource, and the other one."""
    where = cluster.n1.sees().resources[RESOURCE]
    return sorted(cluster.nodes, key=lambda node: node.name != where)


def fencing(node, since):
    """The first call on `node` after number `since` that was to power a domain off, as soon as it is over."""
    def over():
        return [call for call in node.calls()[since:] if call.options.get("action") in ("off", "reboot")]
    try:
        return wait_until(over, PATIENCE)[0]
    except TimeoutError:
        raise AssertionError(f"{node.name} fenced nobody\n{node.cluster.state()}") from None
