# SPDX-License-Identifier: GPL-2.0-or-later
"""A node's daemon dies in the middle of a reboot. What it owes gives way to what the cluster did meanwhile.

The fault points are in debug builds alone (see fence_races/test_ends.py): the daemon that dies is that of target/debug.
"""

import signal

from lab import net, process, programs
from lab.net import wait_until


def killed_after_the_power_off(hosts, monkeypatch, name, host=None, timeout=10):
    """h1, or this host, has powered the domain off for a reboot, and its daemon is gone; returns its configuration. `timeout`: the agent's."""
    host = host or hosts.h1
    monkeypatch.setenv("FENCE_VIRTD_STOP_AT", "seen_off")
    with monkeypatch.context() as patch:
        patch.setattr(programs, "OURS_DIR", programs.DEBUG_DIR)
        host.serve("ours")
    monkeypatch.delenv("FENCE_VIRTD_STOP_AT")
    for asked in (host.name, "h3"):
        hosts.wait_status(asked, name, 0)
    shot = hosts.agent(host.name, "reboot", name, timeout=timeout)
    net.wait_until(lambda: process.is_frozen(host.daemon.pid))
    assert host.state(name) == "shut off"
    config = host.daemon.config
    host.stop_serving(signal.SIGKILL)
    assert shot.finish(60).rc != 0
    return config


def start_again(host, config):
    """Its next daemon, with what the last one remembered."""
    host.daemon = programs.Daemon(host, config, program=programs.program("ours", "fence_virtd"), debug=3, ready="udp", wait=60)
    host.wait_joined()


def recovered(host):
    """The reason in the record of what was under way."""
    record = wait_until(lambda: [it for it in host.records() if (it["reason"] or "").startswith("was under way")], 30)
    return record[-1]["reason"]


#: End of the reason where the machine was started again.
MADE_GOOD = ("the start that the reboot owed is made good (fence_virtd was killed or crashed, or was told to end and did not wait any "
             "longer)")


def serve_again(host, config):
    start_again(host, config)
    return recovered(host)


def owes_a_start_that_is_over(hosts, monkeypatch, asked):
    """h1 owes x a start when whoever manages the machines starts it at h2, and `asked` takes it down there; returns h1's configuration."""
    hosts.h2.has("x", start=False)
    hosts.h1.has("x")
    hosts.serve(h2="ours", h3="ours")
    config = killed_after_the_power_off(hosts, monkeypatch, "x")
    hosts.h2.hypervisor.virsh("start", "x")
    hosts.wait_status("h3", "x", 0)
    assert hosts.ask(asked, "off", "x").rc == 0, hosts.logs()
    return config


def stays_off(hosts, config, why):
    """h1's next daemon leaves x off, and its record says why."""
    reason = serve_again(hosts.h1, config)
    assert why in reason, f"{reason}\n{hosts.logs()}"
    assert [host.state("x") for host in (hosts.h1, hosts.h2)] == ["shut off", "shut off"], hosts.logs()


def test_a_start_that_is_owed_gives_way_to_an_end_at_another_node(hosts, monkeypatch):
    config = owes_a_start_that_is_over(hosts, monkeypatch, "h3")
    stays_off(hosts, config, "somebody has started the domain since")


def test_a_start_that_is_owed_gives_way_to_an_end_that_only_a_third_node_remembers(hosts, monkeypatch):
    config = owes_a_start_that_is_over(hosts, monkeypatch, "h2")
    # h2's next daemon does not know how the machine ended: nobody told it.
    hosts.h2.serve("ours")
    stays_off(hosts, config, "another host was asked for the domain since")


def test_a_start_that_is_owed_gives_way_where_nobody_remembers(hosts, monkeypatch):
    """Each daemon that knew of the off was started anew."""
    config = owes_a_start_that_is_over(hosts, monkeypatch, "h3")
    # Neither tells the other's next daemon.
    hosts.h2.stop_serving()
    hosts.h3.stop_serving()
    hosts.serve(h2="ours", h3="ours")
    stays_off(hosts, config, "the domain is left off, since nobody can tell whether somebody asked for it meanwhile: no other host")


def test_a_start_that_is_owed_is_made_good(hosts, monkeypatch):
    hosts.h2.has("x", start=False)
    hosts.h1.has("x")
    hosts.serve(h2="ours", h3="ours")
    config = killed_after_the_power_off(hosts, monkeypatch, "x")
    reason = serve_again(hosts.h1, config)
    assert reason.endswith(MADE_GOOD), f"{reason}\n{hosts.logs()}"
    assert [host.state("x") for host in (hosts.h1, hosts.h2)] == ["running", "shut off"], hosts.logs()


def became_of(host):
    """What became of the start that this host owed, in the words of its record."""
    reason = recovered(host)
    begin, end = "was under way when the daemon ended; ", " (fence_virtd was killed or crashed"
    assert reason.startswith(begin) and end in reason, reason
    return reason[len(begin):reason.index(end)]


MADE_GOOD_HERE = "the start that the reboot owed is made good"


def test_of_two_nodes_that_owe_a_start_one_makes_it_good(hosts, monkeypatch):
    """Each says that it is about to start the machine. Neither may take the other's word for a machine that is on."""
    hosts.h2.has("x", start=False)
    hosts.h1.has("x")
    hosts.serve(h2="ours", h3="ours")
    first = killed_after_the_power_off(hosts, monkeypatch, "x", timeout=30)
    hosts.h2.hypervisor.virsh("start", "x")
    # It is new beside h1, whose fence_virtd is gone: it waits up to 15 s for the orders that may have been left there.
    second = killed_after_the_power_off(hosts, monkeypatch, "x", hosts.h2, timeout=30)
    # The first can't start anything: nobody says what the other one has.
    start_again(hosts.h1, first)
    start_again(hosts.h2, second)
    # Which of them has its turn first is a matter of moments: h1 tries again and again. Whether h3 has heard of the second
    # power-off is one too: the daemon was stopped at the moment when it was about to say so.
    became = {host: became_of(host) for host in (hosts.h1, hosts.h2)}
    good = [host for host, words in became.items() if words == MADE_GOOD_HERE]
    assert len(good) == 1, f"{became.values()}\n{hosts.logs()}"
    (other,) = set(became) - set(good)
    # Each of these says why this node did not start it, and none may be said where it is not so.
    if became[other] == "another host was asked for the domain since, so the domain is not started":
        assert other is hosts.h1, f"h2 was asked last\n{hosts.logs()}"
    else:
        started = f"another request started the domain (one of node {good[0].number})"
        assert became[other] in ("another host has the domain on", started), f"{became.values()}\n{hosts.logs()}"
    # Nobody took it down since, so a second start would be a second machine.
    assert (good[0].state("x"), other.state("x")) == ("running", "shut off"), hosts.logs()
