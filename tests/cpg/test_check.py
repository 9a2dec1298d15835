# SPDX-License-Identifier: GPL-2.0-or-later
"""`--check` and `--status` at a node name what would make a fence fail: silent nodes, and machines at two nodes."""

import re
import signal

import pytest

from lab import process, testdriver
from lab.hypervisor import until

from .hosts import SECOND
from .test_gone import tool

OURS = "ours"


def failures(host):
    """What --check calls failed of nodes and domains: {subject: text with the step}. Its exit code says the same."""
    said = tool(host, "--check")
    found = re.findall(r"^(\w+) +(node|domain) (.*?): (.*\n +-> .*)", said.stdout, re.M)
    failed = {subject: text for level, _, subject, text in found if level == "failed"}
    assert not failed or said.returncode == 1, said.stdout
    return failed


def status_lines(host):
    """What --status says."""
    return tool(host, "--status").stdout.splitlines()


@pytest.mark.parametrize("asked", ["h1", "h3"])
@pytest.mark.parametrize("action", ["off", "reboot"])
def test_a_machine_at_two_nodes(hosts, asked, action):
    """Each node names it. An off ends both instances, and a reboot leaves one, whoever is asked."""
    uuid = testdriver.uuid_of("x")
    for host in (hosts.h1, hosts.h2):
        host.has("x", uuid=uuid)
    hosts.h3.has("c1")
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    hosts.wait_status("h1", "c1", 0)
    hosts.wait_status("h3", "x", 0)
    for host in hosts.all:
        until(lambda h=host: list(failures(h)) == [f"x ({uuid})"], 30, f"{host.name} names it: {failures(host)}")
        assert "runs at several nodes at once: node 1 (h1), node 2 (h2)" in failures(host)[f"x ({uuid})"]
    assert hosts.ask(asked, action, "x").rc == 0, hosts.logs()
    running = [host.name for host in hosts.all if host.state("x") == "running"]
    assert len(running) == (1 if action == "reboot" else 0), (running, hosts.logs())
    assert hosts.ask("h3", "status", "x").rc == (0 if running else 2), hosts.logs()
    assert failures(hosts.h1) == {}


@pytest.mark.parametrize("name", ["x", "uuid"])
def test_a_name_that_means_two_domains(hosts, name):
    """It runs at one node, and another node has a definition of another domain with that name, or one that is called as its
    UUID: each request by that name fails, and each node's check says so before."""
    uuid = testdriver.uuid_of("x")
    target = "x" if name == "x" else uuid
    hosts.h1.has("x", uuid=uuid)
    hosts.h2.has(target, uuid=testdriver.uuid_of("another"), start=False)
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    for host in hosts.all:
        until(lambda h=host: list(failures(h)) == [target], 30, f"{host.name} names it: {failures(host)}")
        text = failures(host)[target]
        assert f"{uuid} at node 1 (h1) (on)" in text and "at node 2 (h2) (off)" in text and "fence by UUID" in text, text
    assert hosts.ask("h3", "off", target).rc == 1 and hosts.h1.state("x") == "running", hosts.logs()
    assert name == "uuid" or hosts.ask("h3", "off", uuid).rc == 0, hosts.logs()


#: What happens to h3: what --check at the others says of it, and what its step names.
SILENCES = {
    "cut": ("corosync does not hear that node", "the power and the network of that node"),
    "daemon": ("corosync hears that node, and no fence_virtd there is heard", "systemctl start fence_virtd"),
    "libvirtd": ("was asked, and did not say what it has", "systemctl restart libvirtd"),
    "stopped": ("was asked, and did not say what it has", "fence_virtd --check"),
}


@pytest.mark.parametrize("silence", SILENCES)
def test_a_silent_node(hosts, silence):
    """What is on nowhere can't be called off then. --check says so, with what to do, and fails until that is over."""
    hosts.h1.has("a1")
    hosts.h2.has("b1", start=False)
    hosts.h3.has("c1")
    for host in hosts.all:
        host.serve(OURS, wait=False, virtd={"metrics": f"unix:{host.directory}/metrics.sock"})
    for host in hosts.all:
        host.wait_joined()
    hosts.wait_status("h1", "c1", 0)
    hosts.wait_status("h1", "b1", 2)
    for host in hosts.all:
        assert failures(host) == {}, hosts.logs()
    h3, others = hosts.h3, (hosts.h1, hosts.h2)
    if silence == "cut":
        h3.cut()
        hosts.h1.wait_members(2)
        hosts.h2.wait_members(2)
    elif silence == "daemon":
        h3.stop_serving(signal.SIGKILL)
        until(lambda: 3 not in hosts.h1.group_members(SECOND), 30, "h1 knows that it is gone")
    elif silence == "libvirtd":
        h3.hypervisor.freeze()
    else:
        process.freeze(h3.daemon.pid)
    fact, step = SILENCES[silence]
    try:
        for host in others:
            found = failures(host)
            assert list(found) == ["node 3 (h3)"], (found, hosts.logs())
            assert fact in found["node 3 (h3)"] and step in found["node 3 (h3)"], found
        assert hosts.ask("h1", "off", "b1", timeout=15).rc == 1, hosts.logs()
        in_vain = [it for it in status_lines(hosts.h1) if it.startswith("node 3 (h3): ASKED LAST")]
        assert len(in_vain) == (silence in ("libvirtd", "stopped")), status_lines(hosts.h1)
    finally:
        if silence == "libvirtd":
            h3.hypervisor.thaw()
        elif silence == "stopped":
            process.thaw(h3.daemon.pid)
    if silence == "cut":
        h3.heal()
        hosts.wait_whole()
    elif silence == "daemon":
        h3.serve(OURS)
    hosts.wait_status("h1", "b1", 2)
    for host in others:
        until(lambda h=host: failures(h) == {}, 60, f"{host.name} is content")
    assert not [it for it in status_lines(hosts.h1) if "ASKED LAST" in it]
