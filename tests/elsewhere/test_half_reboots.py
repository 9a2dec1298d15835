# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirtd ends in the middle of a reboot and is back later, while fence_virtd lives on.

While the client waits the reboot goes on with the next libvirtd: one record, and the machine runs. When nobody waits any more,
fence_virtd still owes the start: a second record tells what became of it.
"""

import itertools
import os
import signal
import time

import pytest

from lab import net, process, programs
from lab.hypervisor import until

from .hosts import FAILED, OK, PATIENCE, ROUNDS, Answer, Tally, uuid_of
from .relay import DESTROY, Relay

#: Seconds for which libvirtd is away: more than those for which fence_virtd waits for a connection in vain.
AWAY = 5


@pytest.fixture
def here(hosts):
    """h1, alone, with x on."""
    hosts.h1.serve(virtd={"peers": "none"})
    hosts.h1.has("x")
    return hosts.h1


def has_ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def lose_libvirtd(here, number, away):
    """libvirtd gets this signal, and the next one begins when it was away for so long."""
    os.kill(here.hypervisor.libvirtd_pid(), number)
    here.hypervisor._wait_gone()
    time.sleep(away)
    here.hypervisor.start()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("moment", ["at once", "in the order", "after the end", "in the start"])
def test_a_reboot_goes_on_with_the_next_libvirtd(hosts, here, number, moment):
    (before,) = here.processes("x")
    known = len(here.records())
    agent = hosts.agent("reboot", "x", timeout=40)
    match moment:
        case "in the order":
            time.sleep(0.1)
        case "after the end":
            net.wait_until(lambda: has_ended(before), 30, 0.001)
        case "in the start":
            net.wait_until(lambda: has_ended(before), 30, 0.001)
            net.wait_until(lambda: set(here.processes("x")) - {before}, 30, 0.001)
    lose_libvirtd(here, number, AWAY)
    result = agent.finish(60)
    net.wait_until(lambda: len(here.records()) > known, 30)
    (record,) = here.records()[known:]
    running = list(here.processes("x"))
    assert len(running) == 1, (result, record, hosts.logs())
    # What the client is told is true: before the order nothing was done.
    assert result.rc == (FAILED if running == [before] else OK), (result, record, hosts.logs())
    if moment == "after the end":
        assert result.rc == OK and not record["reason"], (record, hosts.logs())


def outage_after_the_end(hosts, action, outage):
    """The agent of an action on x at h1. x has ended there, libvirtd is away since, and x is started at h2."""
    here, other = hosts.h1, hosts.h2
    hosts.serve("h1", "h2")
    other.has("x", start=False)
    here.has("x")
    until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{hosts.logs()}")
    (before,) = here.processes("x")
    agent = hosts.agent(action, "x", timeout=40)
    net.wait_until(lambda: has_ended(before), 30, 0.0005)
    {"killed": here.hypervisor.kill, "stands-still": here.hypervisor.freeze}[outage]()
    other.hypervisor.virsh("start", "x")
    return agent


@pytest.mark.parametrize("outage", ["killed", "stands-still"])
def test_an_off_that_goes_on_asks_the_other_hosts_again(hosts, note, outage):
    """libvirtd is away right after the power-off, and x is started at another host meanwhile."""
    here, other = hosts.h1, hosts.h2
    other.does_not_call_back()
    agent = outage_after_the_end(hosts, "off", outage)
    time.sleep(2)
    here.hypervisor.recover()
    result = agent.finish(60)
    tally = Tally(note)
    answer = Answer(hosts, "off", "x", result, {"h2": other.processes("x")})
    tally.add(answer)
    tally.none(hosts.logs())
    assert (result.rc, hosts.where("x")) == (FAILED, ["h2"]), (result, hosts.logs())
    assert "h2" in here.records()[-1]["reason"], here.records()


@pytest.mark.parametrize("action", ["off", "reboot"])
def test_an_order_that_never_reached_libvirtd_proves_nothing(hosts, action):
    """x migrates before the connection is made anew, and libvirtd is restarted: it tells of no migration then."""
    here, other = hosts.h1, hosts.h2
    with Relay(here.hypervisor, here.directory / "relay", DESTROY) as relay:
        here.serve(backend={"uri": relay.uri})
        other.serve()
        hosts.acquaint(here, other)
        other.does_not_call_back()
        here.has("x")
        until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{hosts.logs()}")
        agent = hosts.agent(action, "x", timeout=40)
        assert relay.wait_held(agent.process), hosts.logs()
        assert here.migrate("x", other).wait(PATIENCE) == 0
        here.hypervisor.restart()
        relay.lose()
        result = agent.finish(60)
        assert (result.rc, hosts.where("x")) == (FAILED, ["h2"]), (result, hosts.logs())


@pytest.mark.parametrize("fenced", [False, True], ids=["runs", "fenced"])
@pytest.mark.parametrize("outage", ["killed", "stands-still"])
def test_a_start_elsewhere_ends_the_start_of_a_reboot(hosts, outage, fenced):
    """x is started at another host as soon as it has ended here, and perhaps powered off there, by the word of that host alone."""
    here, other = hosts.h1, hosts.h2
    agent = outage_after_the_end(hosts, "reboot", outage)
    if fenced:
        here.does_not_call_back()
        off = hosts.ask("off", "x")
        assert (off.rc, other.processes("x")) == (OK, {}), (off.result, hosts.logs())
        here.unfilter()
    here.hypervisor.recover()
    result = agent.finish(60)
    assert hosts.where("x") == ([] if fenced else ["h2"]), hosts.logs()
    reason = here.records()[-1]["reason"]
    if result.rc == FAILED and not fenced:
        # libvirtd answered the power-off late, or not at all: by then x was on at another host.
        assert "the domain is on at host h2" in reason, (result, hosts.logs())
    else:
        assert result.rc == OK and "so the domain is not started" in reason, (result, hosts.logs())


@pytest.mark.parametrize("away", [0.3, 2.5])
@pytest.mark.parametrize("place", ["host", "uri"])
def test_a_start_elsewhere_while_libvirtd_is_away_in_the_start_of_a_reboot(hosts, place, away):
    """libvirtd dies while it starts x; the next one ends what is half started. x was started at another place meanwhile."""
    here, x = hosts.h1, hosts.h1.hypervisor
    if place == "host":
        hosts.serve("h1", "h2")
        other = hosts.h2.hypervisor
    else:
        other = here.second
        here.serve(backend={"uri": x.uri, "uri1": other.uri}, virtd={"peers": "none"})
    uuid = other.domain("x", start=False).uuid
    here.has("x")
    until(lambda: hosts.ask("status", "x").rc == OK, PATIENCE, f"x is on\n{hosts.logs()}")
    before = x.processes()[uuid]
    agent = hosts.agent("reboot", "x", timeout=40)
    net.wait_until(lambda: x.processes().get(uuid, before) != before, 30, 0.0005)
    x.kill()
    half = x.processes().get(uuid)
    other.virsh("start", "x")
    time.sleep(away)
    x.start()
    result = agent.finish(60)
    assert uuid in other.processes(), hosts.logs()
    # libvirtd may have died when the start was over: then there were two before anybody could know.
    assert x.processes().get(uuid, half) == half, f"two instances: {result}\n{hosts.logs()}"
    reason = here.records()[-1]["reason"]
    assert result.rc == OK and (uuid in x.processes() or reason.startswith("fenced, but not started again: ")), (result, hosts.logs())


def test_the_failure_of_a_fence_that_is_over_is_given_to_none(hosts, here):
    """Its client gave up before libvirtd was back. A new request comes when it is, and does its own work."""
    (before,) = here.processes("x")
    agent = hosts.agent("off", "x", timeout=5)
    net.wait_until(lambda: has_ended(before), 30, 0.001)
    lose_libvirtd(here, signal.SIGKILL, AWAY)
    assert agent.finish(30).rc == FAILED, hosts.logs()
    here.hypervisor.virsh("start", "x")
    again = hosts.ask("off", "x")
    record = here.records()[-1]
    assert again.rc == OK and not here.processes("x"), (record, hosts.logs())
    assert "the same work" not in (record["reason"] or ""), record


#: Beginnings of the reasons of a start that is made good, or not, after the request has ended: by the same daemon, and by the next one.
LATER, NEXT = "the start was still owed when the request had ended; ", "was under way when the daemon ended; "
MADE_GOOD = "the start that the reboot owed is made good"


def cut_off(hosts, monkeypatch, step, client="over", *others, **machine):
    """h1's libvirtd is away since x was powered off for a reboot, and the client is gone. The fault points are in debug builds
    alone (see fence_races/test_ends.py). Returns the record of the reboot."""
    here = hosts.h1
    with monkeypatch.context() as patch:
        patch.setattr(programs, "OURS_DIR", programs.DEBUG_DIR)
        patch.setenv("FENCE_VIRTD_STOP_AT", step)
        here.serve(virtd=None if others else {"peers": "none"})
    for other in others:
        other.has("x", start=False)
        other.serve()
    hosts.acquaint(here, *others)
    # The daemon has seen that it started.
    here.has("x", **machine)
    (before,) = here.processes("x")
    agent = hosts.agent("reboot", "x", timeout=5)
    until(lambda: process.is_frozen(here.daemon.pid), PATIENCE, f"the daemon is at {step}\n{hosts.logs()}")
    until(lambda: has_ended(before), PATIENCE, "the machine is off")
    here.hypervisor.kill()
    if client == "killed":
        agent.process.kill()
    process.thaw(here.daemon.pid)
    agent.finish(PATIENCE)
    until(here.records, PATIENCE, f"the reboot has ended\n{hosts.logs()}")
    (record,) = here.records()
    assert not here.processes("x")
    return record


def second_record(hosts):
    """The reason in the record of the start after the request."""
    here, found = hosts.h1, []

    def told():
        found[:] = [it for it in here.records()[1:] if (it["reason"] or "").startswith((LATER, NEXT))]
        return found

    until(told, 150, f"what became of the start\n{hosts.logs()}")
    (record,), first = found, here.records()[0]
    assert (record["id"], record["action"], record["uuid"]) == (first["id"], "reboot", first["uuid"])
    return record["reason"]


#: When libvirtd dies, what becomes of the client, and whether the machine is transient. The long run has all of them, else each value
#: stands beside each other one once.
CUTS = [cut for number, cut in enumerate(itertools.product(("destroy_called", "seen_off"), ("over", "killed"), (False, True)))
        if ROUNDS > 3 or number in (0, 3, 5, 6)]


@pytest.mark.parametrize("step, client, transient", CUTS)
def test_what_a_reboot_owes_is_started_though_nobody_waits(hosts, monkeypatch, step, client, transient):
    """libvirtd dies right after the power-off, and is back when the client has given up."""
    here = hosts.h1
    record = cut_off(hosts, monkeypatch, step, client, transient=transient)
    if step == "seen_off":
        assert record["result"] == "success" and record["reason"].startswith("fenced, but not started again: "), record
    else:
        assert record["result"] == "failure", record
    here.hypervisor.start()
    assert second_record(hosts) == LATER + MADE_GOOD, hosts.logs()
    assert len(here.processes("x")) == 1 and len(here.records()) == 2, hosts.logs()
    assert hosts.ask("status", "x").rc == OK, hosts.logs()


def test_an_off_ends_what_a_reboot_owes_though_it_fails(hosts, monkeypatch):
    """It is asked while libvirtd is away, so it can prove nothing. The machine must not start after it."""
    here = hosts.h1
    cut_off(hosts, monkeypatch, "destroy_called")
    assert hosts.ask("off", "x").rc == FAILED, hosts.logs()
    here.hypervisor.start()
    assert second_record(hosts).startswith(f"{LATER}somebody asked for the domain since (off, request "), hosts.logs()
    assert not here.processes("x"), hosts.logs()


def test_a_start_at_another_host_ends_what_a_reboot_owes(hosts, monkeypatch):
    """Somebody starts it there meanwhile, and takes it down."""
    here, other = hosts.h1, hosts.h2
    cut_off(hosts, monkeypatch, "destroy_called", "over", other)
    other.hypervisor.virsh("start", "x")
    other.hypervisor.virsh("destroy", "x")
    here.hypervisor.start()
    assert "so the domain is not started" in second_record(hosts), hosts.logs()
    assert hosts.where("x") == [], hosts.logs()


def test_what_a_reboot_owes_beside_another_host(hosts, monkeypatch):
    here, other = hosts.h1, hosts.h2
    cut_off(hosts, monkeypatch, "destroy_called", "over", other)
    here.hypervisor.start()
    assert second_record(hosts) == LATER + MADE_GOOD, hosts.logs()
    assert hosts.where("x") == ["h1"], hosts.logs()


def test_what_a_reboot_owes_outlives_the_daemon(hosts, monkeypatch):
    """It is killed while libvirtd is away and the start is owed."""
    here = hosts.h1
    cut_off(hosts, monkeypatch, "destroy_called")
    here.stop_serving(signal.SIGKILL)
    here.hypervisor.start()
    here.serve_again()
    assert second_record(hosts).startswith(NEXT + MADE_GOOD), hosts.logs()
    assert len(here.processes("x")) == 1, hosts.logs()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_libvirtd_that_ended_in_a_power_off_holds_up_the_others_for_a_moment(hosts, number):
    """x's libvirtd ends in an off of x and stays away. Its order can be taken up by nobody, so y, of another libvirtd, can be fenced."""
    here, second = hosts.h1, hosts.h1.second
    here.serve(listener="tcp", backend={"uri1": second.uri}, virtd={"peers": "none"})
    here.has("y")
    second.domain("x")
    over_tcp = ("-T", here.node.ip)
    assert [hosts.ask("status", it, *over_tcp).rc for it in "xy"] == [OK, OK], hosts.logs()
    (pid,) = here.processes("x")
    process.freeze(pid)
    shot = hosts.agent("off", "x", *over_tcp, timeout=5)
    until(lambda: process.is_pending(pid, signal.SIGTERM), PATIENCE, "libvirtd told QEMU to end")
    os.kill(second.libvirtd_pid(), number)
    process.thaw(pid)
    second._wait_gone()
    ended = time.monotonic()
    assert shot.finish(60).rc == FAILED, hosts.logs()
    # The host's own record names what comes first, and a guest that may not know x is not told its name.
    assert hosts.ask("off", "y", *over_tcp, timeout=4).rc == FAILED and hosts.where("y") == ["h1"], hosts.logs()
    reason = here.records()[-1]["reason"]
    assert uuid_of("x") in reason and "may still take effect" in reason, reason
    doubt = hosts.agent("off", "y", "--diagnose", *over_tcp).finish(60)
    assert doubt.rc != OK and "can't say before it is done" in doubt.out + doubt.err, doubt
    assert uuid_of("x") not in doubt.out + doubt.err, doubt
    # A QEMU that was told, and that nobody sees, may have taken so long.
    answer = hosts.ask("off", "y", *over_tcp, timeout=40)
    assert answer.rc == OK and hosts.where("y") == [], hosts.logs()
    assert 15 < time.monotonic() - ended < 35, hosts.logs()
