# SPDX-License-Identifier: GPL-2.0-or-later
"""A node that is taken out of the cluster for good: power off, corosync.conf, reload, --forget at one node."""

import contextlib
import re

from lab import programs, testdriver
from lab.hypervisor import until

from .hosts import PATIENCE, refused
from .sites import Site, serve

OURS = "ours"
STEP = "node 3 (h3) is no longer in corosync's list of nodes. If that node is gone for good and powered off: fence_virtd --forget h3 on one node"


def tool(host, *args):
    """fence_virtd as an administrator runs it beside the daemon: the CompletedProcess."""
    daemon = host.daemon
    return host.run("env", f"STATE_DIRECTORY={daemon.state}", programs.program("ours", "fence_virtd"), *args,
                    "-f", daemon.config, check=False)


def node_lines(host):
    """What --check says of nodes, with the step."""
    said = tool(host, "--check").stdout
    return re.findall(r"^(\w+) +node (.*)\n +-> (.*)", said, re.M)


@contextlib.contextmanager
def without_h3(hosts):
    """h3 is not in corosync.conf of the others, and corosync has read it anew."""
    def edit(host, text):
        host.run("sh", "-c", 'printf %s "$1" >/etc/corosync/corosync.conf', "sh", text)

    others = (hosts.h1, hosts.h2)
    before = hosts.h1.run("cat", "/etc/corosync/corosync.conf").stdout
    try:
        for host in others:
            edit(host, re.sub(r"node \{\nname: h3\n.*?\}\n", "", before, flags=re.S))
        hosts.h1.run("corosync-cfgtool", "-R")
        yield
    finally:
        for host in others:
            edit(host, before)
        hosts.h1.run("corosync-cfgtool", "-R")


def reason(host, action, target):
    """The reason of its last answer to such a request."""
    records = [it for it in host.records() if (it["action"], it["target"]) == (action, target)]
    return records[-1]["reason"] or ""


def test_a_node_that_is_gone_for_good(hosts):
    uuid = testdriver.uuid_of("c1")
    hosts.h1.has("a1")
    hosts.h2.has("c1", uuid=uuid, start=False)
    hosts.h3.has("c1", uuid=uuid)
    hosts.h3.has("c2")
    hosts.serve(h1=OURS, h2=OURS, h3=OURS)
    for domain in ("c1", "c2"):
        hosts.wait_status("h1", domain, 0)
        hosts.wait_status("h2", domain, 0)
    others = (hosts.h1, hosts.h2)
    until(lambda: hosts.h1.daemon.state.joinpath("nodes").read_text().count(" listed ") == 3, 30, "its nodes are written down")
    for when in ("heard", "silent"):
        refusal = tool(hosts.h1, "--forget", "h3")
        assert refusal.returncode == 1 and "node 3 (h3) is in corosync's list of nodes" in refusal.stderr, (when, refusal)
        if when == "heard":
            hosts.h3.kill()
            hosts.h1.wait_members(2)
    # The daemon looks for itself, whatever asks it.
    hosts.h1.daemon.state.joinpath("nodes.forget").write_text("3\n")
    hosts.h1.daemon.wait_log(r"node 3 \(h3\) is not forgotten: that node is in corosync's list of nodes", 30)
    assert refused(hosts.ask("h2", "status", "c1")) and refused(hosts.ask("h1", "status", "c1"))
    with without_h3(hosts):
        for host in others:
            until(lambda h=host: "node 3 (h3) was taken out of corosync's list of nodes" in h.daemon.log, 30,
                  f"{host.name} says so\n{hosts.logs()}")
        for host in others:
            for action, domain in (("status", "c1"), ("off", "c1"), ("status", "c2")):
                assert refused(hosts.ask(host.name, action, domain)), hosts.logs()
                assert STEP in reason(host, action, domain), reason(host, action, domain)
            assert [line[:2] for line in node_lines(host)] == [
                ("warning", "node 3 (h3): is no longer in corosync's list of nodes, and 2 of its domains may run there: "
                            "status and off of them fail")], tool(host, "--check").stdout
        # Power off, as the pages say.
        for domain in ("c1", "c2"):
            hosts.h3.hypervisor.virsh("destroy", domain)
        told = tool(hosts.h1, "--forget", "h3")
        assert told.returncode == 0 and "forgotten: node 3 (h3)" in told.stdout, told
        for host in others:
            hosts.wait_status(host.name, "c1", 2)
            assert hosts.ask(host.name, "off", "c1").rc == 0, hosts.logs()
            assert refused(hosts.ask(host.name, "status", "c2"))
            assert "no such domain" in reason(host, "status", "c2"), reason(host, "status", "c2")
            until(lambda h=host: node_lines(h) == [], 10, f"--check of {host.name} has no line of a node")
        assert hosts.ask("h1", "status", "a1").rc == 0
        again = tool(hosts.h1, "--forget", "h3")
        assert again.returncode == 1 and "nodes of the cluster: node 1 (h1), node 2 (h2)\n" in again.stderr, again
        assert hosts.ask("h1", "on", "c1").rc == 0 and hosts.h2.state("c1") == "running", hosts.logs()
    # It comes back, as a new one.
    hosts.h3.power_on()
    hosts.wait_whole()
    hosts.h3.serve(OURS)
    hosts.h3.has("c3")
    for asked in ("h1", "h2"):
        hosts.wait_status(asked, "c3", 0)
    hosts.h3.stop_serving()
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    assert refused(hosts.ask("h1", "status", "c3")) and STEP not in reason(hosts.h1, "status", "c3")


def domain_lines(host):
    """What --check says of domains, with the step."""
    return re.findall(r"^(\w+) +domain (.*)\n +-> (.*)", tool(host, "--check").stdout, re.M)


def test_a_domain_that_had_moved_to_a_node_that_is_gone(hosts, sites):
    """Nobody saw it end, and it is known at the node that it left alone: an administrator who took the node out is told of it."""
    here, away = sites[0], Site(hosts, hosts.h3, None)
    try:
        serve(hosts, [here, away])
        others = (hosts.h1, hosts.h2)
        here.hypervisor.domain("goer")
        hosts.wait_status("h2", "goer", 0)
        assert here.migrate("goer", away).wait(PATIENCE) == 0
        here.hypervisor.domain("goer", start=False)
        hosts.wait_status("h2", "goer", 0)
        assert domain_lines(hosts.h1) == [], "it is on"
        hosts.h3.kill()
        hosts.h1.wait_members(2)
        assert domain_lines(hosts.h1) == [], "it may be on"
        with without_h3(hosts):
            for host in others:
                until(lambda h=host: len(node_lines(h)) == 1, 30, f"{host.name} says so\n{hosts.logs()}")
            away.close()
            told = tool(hosts.h1, "--forget", "h3")
            assert told.returncode == 0 and 'may still fail ("moved away")' in told.stdout, told
            for host in others:
                until(lambda h=host: node_lines(h) == [], 10, f"--check of {host.name} has no line of a node")
            for action in ("status", "off"):
                assert refused(hosts.ask("h2", action, "goer")), hosts.logs()
                assert "moved away from host node 1 (h1)" in reason(hosts.h2, action, "goer"), reason(hosts.h2, action, "goer")
            until(lambda: domain_lines(hosts.h1), 10, f"--check of h1 says so\n{hosts.logs()}")
            (level, text, step), = domain_lines(hosts.h1)
            assert level == "warning" and text.startswith("goer (") and "moved away from this host" in text, text
            assert "start the domain with virsh at a node, then fence the domain" in step, step
            assert domain_lines(hosts.h2) == [], "it is named at the node that it left"
            here.hypervisor.domain("goer")
            hosts.wait_status("h2", "goer", 0)
            assert hosts.ask("h2", "off", "goer").rc == 0, hosts.logs()
            until(lambda: domain_lines(hosts.h1) == [], 10, "it is off")
    finally:
        away.close()
        hosts.h3.power_on()
        hosts.wait_whole()
