# SPDX-License-Identifier: GPL-2.0-or-later
"""Two cluster nodes at two hosts shoot each other in the same moment: exactly one stays up, whichever hosts they ask."""

import collections
import concurrent.futures
import os
import signal
import threading
import time

import pytest

from lab import programs, rig

from .sites import serve

#: Rounds for each way of asking. 200 is the long run.
ROUNDS = int(os.environ.get("ROUNDS", "3"))

#: Which host each of the two asks.
WAYS = ("each its own host", "each the other's host", "both the third host", "all hosts")


@pytest.mark.parametrize("way", WAYS)
def test_of_two_that_shoot_each_other_one_stays_up(hosts, sites, note, way):
    everybody = {"listener": {"address": "225.0.0.12"}} if way == "all hosts" else {}
    serve(hosts, sites, **everybody)
    asked = {"each its own host": (hosts.h1, hosts.h2), "each the other's host": (hosts.h2, hosts.h1),
             "both the third host": (hosts.h3, hosts.h3), "all hosts": (None, None)}[way]
    where = [["-a", host.group] if host else [] for host in asked]
    pair = [rig.Machine(site, f"node{n}") for n, site in enumerate(sites)]
    ends, reasons = collections.Counter(), collections.Counter()
    try:
        for number in range(ROUNDS):
            for machine in pair:
                machine.boot()
            for machine, args in zip(pair, where):
                # Every host knows of both.
                for target in pair:
                    rig.net.wait_until(lambda t=target, m=machine, a=args: m.site.agent(
                        "ours", "-o", "status", "-H", t.name, *a, node=m.node).rc == 0, 60)
            before = [len(host.records()) for host in hosts.all]
            gun = rig.Gun()
            order = [(0, 1), (1, 0)][number % 2]
            shots = {i: pair[i].shoot("ours", pair[1 - i], "-o", "off", *where[i], gun=gun) for i in order}
            gun.fire()
            results = {i: shot.finish(90) for i, shot in shots.items()}
            # Nothing of the loser's request may come later: its host has let go of it.
            records = [record for host, seen in zip(hosts.all, before) for record in host.records()[seen:]]
            up = [i for i in (0, 1) if not pair[i].qemu.ended()]
            ends[len(up)] += 1
            reasons.update(record.get("reason") or record["decision"] for record in records)
            assert len(up) == 1 and results[up[0]].rc == rig.OK, \
                f"round {number}: up {up}, {results}, {records}\n{hosts.logs(60)}"
            # A boot of the loser in the next round is proof that nothing shoots it again.
    finally:
        note(f"{sum(ends.values())} rounds, {way}: {dict(ends)} up; {dict(reasons)}")
        for machine in pair:
            if machine.domain:
                machine.domain.remove()
                machine.site.reaper.wait(machine)
                machine.site.net.remove(machine.node.name)


@pytest.fixture
def pair(hosts, sites):
    """Two machines, at h1 and at h2, which every host knows."""
    serve(hosts, sites)
    pair = [rig.Machine(site, f"late{n}") for n, site in enumerate(sites)]
    try:
        for machine in pair:
            machine.boot()
        for machine in pair:
            for target in pair:
                rig.net.wait_until(lambda t=target, m=machine: m.site.agent(
                    "ours", "-o", "status", "-H", t.name, "-a", hosts.h1.group, node=m.node).rc == 0, 60)
        yield pair
    finally:
        for machine in pair:
            if machine.domain:
                machine.domain.remove()
                machine.site.reaper.wait(machine)
                machine.site.net.remove(machine.node.name)


def test_a_daemon_that_is_not_there_holds_offs_up_for_a_short_time(hosts):
    """It may have left an order, as far as two that were just started know. One that is started later hears that there is none."""
    hosts.domains(h1=["a", "b"])
    hosts.serve(h1="ours", h3="ours")

    def seconds_of_off(name):
        began = time.monotonic()
        assert hosts.ask("h1", "off", name).rc == 0, hosts.logs()
        return time.monotonic() - began

    assert 5 < seconds_of_off("a") < 20
    hosts.h1.daemon.wait_log("has not told yet which power-offs.*node 2")
    # h3 was started a moment later.
    time.sleep(2)
    hosts.serve(h1="ours")
    assert seconds_of_off("b") < 5


#: Seconds after which each host's fence_virtd is started again; h2's libvirt is busy.
STARTS = {"at one moment": (0, 0, 0), "the busy one last": (0, 3, 0), "the busy one first": (1, 0, 2)}


@pytest.mark.parametrize("start", STARTS)
def test_an_order_is_waited_for_when_all_daemons_were_killed(hosts, sites, start):
    """fence_virtd is killed at all hosts while libvirt at h2 ends node1, whose QEMU is slow to die: nobody else knows of that order.
    Until it is over node1 takes nobody down."""
    serve(hosts, sites)
    pair = [rig.Machine(site, f"slow{n}") for n, site in enumerate(sites)]
    first, second = pair
    try:
        for machine in pair:
            machine.boot()
        for machine in pair:
            for target in pair:
                rig.net.wait_until(lambda t=target, m=machine: m.site.agent(
                    "ours", "-o", "status", "-H", t.name, "-a", hosts.h1.group, node=m.node).rc == 0, 60)
        with rig.slow_to_die(second.domain) as wait_killed:
            first.shoot("ours", second, "-o", "off", "-a", hosts.h3.group)
            wait_killed()
            restart_all(hosts, STARTS[start])
            back = second.shoot("ours", first, "-o", "off", "-a", hosts.h1.group)
            # libvirt loses patience after ten seconds.
            rig.net.wait_until(lambda: second.qemu.ended() or first.qemu.ended(), 30)
            assert not first.qemu.ended(), f"both go down: {hosts.h1.records()[-3:]}\n{hosts.logs(60)}"
        back.finish(60)
        assert second.qemu.ended() and not first.qemu.ended(), hosts.logs(60)
    finally:
        for machine in pair:
            if machine.domain:
                machine.domain.remove()
                machine.site.reaper.wait(machine)
                machine.site.net.remove(machine.node.name)


def restart_all(hosts, delays):
    """Kills fence_virtd at all hosts, and starts it again after these seconds, with what it remembered. Returns when one listens."""
    configs = [host.daemon.config for host in hosts.all]
    for host in hosts.all:
        host.stop_serving(signal.SIGKILL)

    def start(host, config, delay):
        time.sleep(delay)
        program = programs.program("ours", "fence_virtd")
        host.daemon = programs.Daemon(host, config, program=program, debug=3, ready="udp", wait=60)

    pool = concurrent.futures.ThreadPoolExecutor()
    started = [pool.submit(start, *it) for it in zip(hosts.all, configs, delays)]
    pool.shutdown(wait=False)
    started[0].result()


def test_an_order_of_a_daemon_that_was_killed_is_waited_for(hosts, pair):
    """h2's fence_virtd is killed while libvirt there ends node1, whose QEMU is slow to die. Until it is gone node1 takes nobody down."""
    first, second = pair
    with rig.slow_to_die(second.domain) as wait_killed:
        first.shoot("ours", second, "-o", "off", "-a", hosts.h1.group)
        wait_killed()
        hosts.h2.stop_serving(signal.SIGKILL)
        back = second.shoot("ours", first, "-o", "off", "-a", hosts.h1.group)
        # libvirt loses patience after ten seconds.
        rig.net.wait_until(lambda: second.qemu.ended() or first.qemu.ended(), 30)
        assert not first.qemu.ended(), f"both go down: {hosts.h1.records()[-3:]}\n{hosts.logs(60)}"
    back.finish(60)
    assert second.qemu.ended() and not first.qemu.ended(), hosts.logs(60)


def test_an_order_of_a_libvirtd_that_died_is_waited_for(hosts, sites, pair):
    """The same where h2's libvirtd dies, is back after 5 s, and all fence_virtd live on. The asker is told before the order is over."""
    first, second = pair
    hypervisor = sites[1].hypervisor
    with rig.slow_to_die(second.domain) as wait_killed:
        # Its client gives up before libvirtd is back; one that waits is served by the next libvirtd.
        shot = first.shoot("ours", second, "-o", "off", "-a", hosts.h1.group, "-t", "5")
        wait_killed()
        back = second.shoot("ours", first, "-o", "off", "-a", hosts.h2.group, "-t", "60")
        time.sleep(0.5)
        hypervisor.kill()
        time.sleep(5)
        # It may wait for the QEMU that stands still.
        anew = threading.Thread(target=hypervisor.start)
        anew.start()
        result = shot.finish(30)
        time.sleep(8)
        assert not first.qemu.ended() and not second.qemu.ended(), f"both go down:\n{hosts.logs(60)}"
    assert second.qemu.ended(30)
    anew.join()
    back.finish(60)
    rig.net.wait_until(lambda: "the order to libvirt can take effect no more" in hosts.h2.daemon.log, 30)
    # The last record may be of h2's question whether h1 answers.
    reasons = [it["reason"] for it in hosts.h1.records() if it["action"] == "off" and it["transport"] != "cpg"]
    assert result.rc == rig.FAILED and "the end of the action is not known" in reasons[-1], hosts.logs(60)
    assert not first.qemu.ended(), f"both are down:\n{hosts.logs(60)}"
