# SPDX-License-Identifier: GPL-2.0-or-later
"""Two VMs of a pool shoot each other in the same moment, with agents as the only backend: exactly one stays up."""

import collections
import contextlib
import os
import signal
import threading

import pytest
from lab import net, programs
from lab.rig import Gun

from .rig import OK, device
from .xen_pool import PASSWORD, USER, Pool, Vm
from .zoo import Zoo

#: Rounds for each way of asking. 200 is the long run.
ROUNDS = int(os.environ.get("ROUNDS", "2"))

#: The long run.
WIDE = os.environ.get("WIDE", "") not in ("", "0") or ROUNDS > 10

#: How the two ask, and what is special about the pool.
WAYS = {
    "multicast": {},
    "multicast, known by their cards": {"cards": True},
    "tcp": {},
    "multicast, the first member is not the master": {"master": 1},
    "tcp, a slow pool": {"slow": 1.5},
    "multicast, done after the answer": {"late": 1.5},
}


#: Addresses of two nodes' network cards.
CARDS = ("02:fe:00:00:00:01", "02:fe:00:00:00:02")


class Node:
    """A cluster node that is no more than a namespace: it dies, with what it runs and what it has sent, when it is told to,
    which is the moment that its machine is powered off. `power_on()` powers the machine on."""

    def __init__(self, site, name, power_on, card=None):
        self.site, self.name, self.power_on, self.card = site, name, power_on, card
        self.place, self.agents, self.dead = None, [], False

    def boot(self):
        """Up and running; one that was shot comes back with a namespace that knows nothing of the old one."""
        self.agents.clear()
        if self.place and not self.dead:
            return
        if self.place:
            self.site.net.remove(self.place.name)
        self.place, self.dead = self.site.node(self.name), False
        if self.card:
            self.place.ip_cmd(f"link set eth0 address {self.card}")
            # The host still knows the address that the card had in an earlier life: a machine with two may answer for another.
            self.site.host.run(["ip", "neigh", "flush", "all"])
        self.power_on()

    def shoot(self, target, action, gun, transport):
        """Our agent on this node fences the other one, when the gun fires."""
        where = ("fence_virt", ["-T", self.site.host.ip]) if transport == "tcp" else ("fence_xvm", [])
        agent = self.site.ask(*where[1], "-o", action, "-H", target.name, node=self.place, name=where[0], wait=False, at=gun)
        self.agents.append(agent)
        return agent

    def die(self):
        """Nothing is proved after this, and no FIN leaves."""
        if self.dead:
            return
        self.dead = True
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                agent.process.send_signal(signal.SIGSTOP)
        self.place.link(False)
        for agent in self.agents:
            agent.process.kill()


def node_of(site, pool, name, card=None):
    """The node whose machine is that VM: it is dead before anybody hears from the pool that the VM is off."""
    node = Node(site, name, lambda: pool.power_on(pool[name]), card)
    pool[name].on_off.append(node.die)
    return node


@pytest.mark.parametrize(("way", "action"), [*((way, "off") for way in WAYS), ("multicast", "reboot")][:None if WIDE else 3])
def test_of_two_that_shoot_each_other_one_stays_up(site, start_host, note, way, action):
    transport = way.split(",")[0]
    places = [site.place("xen1"), site.place("xen2")]
    common = {"username": USER, "password_file": site.secret(PASSWORD), "power_timeout": 10}
    with Pool(places, [Vm("left"), Vm("right")]) as pool:
        pool.master = pool.members[WAYS[way].get("master", 0)]
        for vm in pool.vms:
            vm.slow, vm.late = WAYS[way].get("slow", 0), WAYS[way].get("late", 0)
        cards = {"left": CARDS[0], "right": CARDS[1]} if WAYS[way].get("cards") else {}
        domains = [{"name": it.name, "plug": it.uuid, "source": cards[it.name]} for it in pool.vms if cards]
        host = start_host([device(it.name, "fence_xenapi", order=n, options={"session_url": it.url, **common}, domains=domains)
                           for n, it in enumerate(pool.members)], listener=transport)
        nodes = [node_of(site, pool, name, cards.get(name)) for name in ("left", "right")]
        ends, reasons = collections.Counter(), collections.Counter()
        try:
            for number in range(ROUNDS):
                for node in nodes:
                    node.boot()
                before = len(host.records())
                gun = Gun()
                order = [(0, 1), (1, 0)][number % 2]
                shots = {i: nodes[i].shoot(nodes[1 - i], action, gun, transport) for i in order}
                gun.fire()
                results = {i: shot.finish(60) for i, shot in shots.items()}
                # Both requests are over: nothing of them can come later.
                records = host.wait_records(2, since=before)
                up = [i for i in (0, 1) if not nodes[i].dead]
                ends[len(up)] += 1
                ran = [it for it in records if it["decision"] == "run"]
                reasons.update(it["reason"] for it in records if it["decision"] != "run")
                assert len(up) == 1 and results[up[0]].rc == OK, (number, up, results, records, host.daemon.log[-6000:])
                assert [it["target"] for it in ran] == [nodes[1 - up[0]].name] and ran[0]["delivered"], records
                assert pool[nodes[up[0]].name].running
                sources = {it["source_domain"] for it in records}
                assert sources == ({it.uuid for it in pool.vms} if cards else {None}), records
        finally:
            note(f"{sum(ends.values())} rounds, {action} by {way}: {dict(ends)} up; {dict(reasons)}")
            for node in nodes:
                if node.place:
                    site.net.remove(node.place.name)


def test_two_nodes_that_have_nothing_to_do_with_each_other(site, start_host, tmp_path):
    """One key for all, and a device that hangs in one node's fence. The fence of another node goes on meanwhile, since the
    configuration has both nodes' cards. A node without a card there may be what the first one fences, and waits."""
    zoo = Zoo(tmp_path / "zoo")
    for name in ("left", "right"):
        zoo.switch(name, "on")
    known = [{"name": name, "source": card} for name, card in zip(("left", "right"), CARDS)]
    host = start_host([device("nodes", zoo.agent("good"), None, domains=known, retries=0), zoo.device("slow", "other", "third"),
                       zoo.device("hangs", "stuck", timeout=25, retries=0)])
    nodes = [Node(site, name, lambda: None, card) for name, card in zip(("left", "right"), CARDS)]
    try:
        for node in nodes:
            node.boot()
        hangs = site.ask("-o", "off", "-H", "stuck", node=nodes[0].place, wait=False)
        zoo.wait_run("off", "stuck")
        result = site.ask("-o", "off", "-H", "other", node=nodes[1].place)
        assert result.rc == OK, (result, host.records(), host.daemon.log[-5000:])
        assert any(it.plug == "stuck" for it in zoo.left()), "it was done before, not meanwhile"
        assert site.ask("-o", "off", "-H", "third", "-t", 5).rc != OK
        assert zoo.power("third") == "on" and not zoo.runs("off", "third"), host.records()
        hangs.process.kill()
        hangs.finish()
        zoo.wait_nothing_left()
        sources = {it["target"]: it["source_domain"] for it in host.wait_records(3)}
        assert sources["third"] is None and None not in (sources["stuck"], sources["other"]), sources
        assert sources["stuck"] != sources["other"], sources
    finally:
        for node in nodes:
            site.net.remove(node.place.name)


@pytest.mark.parametrize("mode", ["hangs", "breaks"])
def test_a_shot_that_comes_after_its_time(site, start_host, tmp_path, mode):
    """The endpoint carries out what an agent asked it for after that agent was given up and killed, or failed because its
    connection broke. What conflicts with it did not get its turn meanwhile."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device(mode, "right", timeout=3, retries=0, status_timeout=2), zoo.device("good", "left")])
    left, right = nodes = [Node(site, name, lambda: None) for name in ("left", "right")]
    for node in nodes:
        node.boot()
    try:
        first = shoot(left, right)
        asked = zoo.wait_run("off", "right")[0]
        second = shoot(right, left)
        host.daemon.wait_log(r"heard .*left")
        net.wait_until(lambda: not asked.alive())
        if mode == "breaks":
            # The request fails at once, and its order counts for ten seconds after its agent's end.
            assert first.finish(60).rc == 1
        zoo.switch("right", "off")
        right.die()
        results = [it.finish(60) for it in ((first, second) if mode == "hangs" else (second,))]
        records = host.wait_records(2)
        assert zoo.power("left") == "on" and not zoo.runs("off", "left"), (results, records, host.daemon.log[-6000:])
    finally:
        for node in nodes:
            site.net.remove(node.place.name)


def ended(host, number):
    """The daemon ends by that signal, and the next one serves."""
    host.daemon.stop(number, timeout=60)
    host.daemon = programs.Daemon(host.node, host.config, ready="udp", debug=3)
    host.daemon.wait_serving()


#: The agent that has the order, how the daemon ends, and whether it does so in the middle of the agent's run.
ENDS = {
    "claimed, SIGKILL": ("lies", signal.SIGKILL, False),
    "claimed, SIGTERM": ("lies", signal.SIGTERM, False),
    "under way, SIGKILL": ("hangs", signal.SIGKILL, True),
}


@pytest.mark.parametrize("way", ENDS)
def test_a_shot_that_comes_after_the_daemon_s_end(site, start_host, tmp_path, way):
    """The endpoint carries out what it was ordered after the daemon that gave the order ended. The next daemon lets nothing
    that conflicts with it have its turn until then."""
    mode, number, in_the_middle = ENDS[way]
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device(mode, "right", retries=0), zoo.device("good", "left")])
    left, right = nodes = [Node(site, name, lambda: None) for name in ("left", "right")]
    for node in nodes:
        node.boot()
    try:
        first = shoot(left, right)
        asked = zoo.wait_run("off", "right")[0]
        if not in_the_middle:
            net.wait_until(lambda: not asked.alive())
        ended(host, number)
        host.daemon.wait_log(r"an earlier daemon ordered this machine off.*right")
        before = len(zoo.runs("status", "right"))
        second = shoot(right, left)
        host.daemon.wait_log(r"heard .*left")
        # It is asked until it shows the effect.
        zoo.wait_run("status", "right", before + 2)
        assert not zoo.runs("off", "left") and second.process.poll() is None, host.daemon.log[-6000:]
        zoo.switch("right", "off")
        right.die()
        host.daemon.wait_log("the earlier daemon's order can take effect no more")
        assert zoo.power("left") == "on" and not zoo.runs("off", "left"), host.daemon.log[-6000:]
        # Nothing waits for it any more.
        assert site.ask("-o", "off", "-H", "left").rc == OK
    finally:
        for node in nodes:
            site.net.remove(node.place.name)


def fences_nobody_meanwhile(site, host, zoo, right, left, device):
    """The machine `right`, whose off may come once more, is started again, and has no turn to fence `left` by that device for as
    long as the order may come."""
    assert "may yet" in host.record("off")["reason"]
    zoo.switch("right", "on")
    right.boot()
    shoot(right, left)
    host.daemon.wait_log(r"heard .*left")
    with pytest.raises(TimeoutError):
        host.daemon.wait_log(rf'device="{device}" action="(off|status)"', timeout=2, since=len(host.daemon.lines))
    zoo.switch("right", "off")
    right.die()
    assert zoo.power("left") == "on" and not zoo.runs("off", "left"), host.daemon.log[-6000:]
    assert site.ask("-o", "off", "-H", "left").rc == OK
    assert len(zoo.runs("off", "left")) == 1


def test_a_claim_that_comes_true_after_another_device_did_it(site, start_host, tmp_path):
    """One device says done and does nothing, another one takes the machine down, and the machine is started again. What the
    first device was ordered may come late all the same, so the machine takes no other one down meanwhile."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device("lies", "right", name="first", order=1, timeout=3, retries=0, effect_timeout=10),
                       zoo.device("good", "right", name="second", order=2, effect_timeout=10), zoo.device("good", "left", name="third")])
    left, right = nodes = [Node(site, name, lambda: None) for name in ("left", "right")]
    for node in nodes:
        node.boot()
    try:
        first = shoot(left, right)
        claimed = zoo.wait_run("off", "right")[0]
        net.wait_until(lambda: zoo.power("right") == "off")
        right.die()
        assert first.finish(60).rc == OK and not claimed.alive()
        fences_nobody_meanwhile(site, host, zoo, right, left, "third")
    finally:
        for node in nodes:
            site.net.remove(node.place.name)


def test_a_second_order_that_comes_true_after_the_first(site, start_host, tmp_path):
    """One device is ordered twice, and carries out each order late. The first effect tells nothing of the second order: it may
    come when the machine was started again, so the machine takes no other one down meanwhile."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device("lies", "right", name="first", timeout=2, retries=1, effect_timeout=10),
                       zoo.device("good", "left", name="second")])
    left, right = nodes = [Node(site, name, lambda: None) for name in ("left", "right")]
    for node in nodes:
        node.boot()
    try:
        first = shoot(left, right)
        second = zoo.wait_run("off", "right", 2)[1]
        net.wait_until(lambda: not second.alive())
        zoo.switch("right", "off")
        right.die()
        assert first.finish(60).rc == OK
        fences_nobody_meanwhile(site, host, zoo, right, left, "second")
    finally:
        for node in nodes:
            site.net.remove(node.place.name)


@pytest.mark.parametrize(("mode", "limit"), [("twos", 2000), ("unsure", 12000)])
def test_two_devices_of_which_one_fails_hold_nobody_up(site, start_host, tmp_path, mode, limit):
    """One device fails, the next one does it: whoever conflicts with that goes on at once, or, if the first one took its time,
    when its order can't come any more."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device(mode, "right", name="first", order=1, retries=0), zoo.device("good", "right", name="second", order=2),
                       zoo.device("good", "left", name="third")])
    assert site.ask("-o", "off", "-H", "right").rc == OK
    assert [it["device"] for it in host.runs("off") if it["action"] == "off"] == ["first", "second"]
    assert site.ask("-o", "off", "-H", "left", node=site.place("other")).rc == OK
    assert host.record("off", 2)["turn_ms"] < limit


def test_a_device_that_is_away_leaves_others_their_turns(site, start_host, tmp_path):
    """Its node asks again and again, and its agent takes some time each time: what others ask has its turn in its time."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device("away", "right", name="first"), zoo.device("good", "left", name="second")])
    ended = threading.Event()

    def ask_again():
        while not ended.is_set():
            site.ask("-o", "off", "-H", "right", node=site.place("red"))

    asker = threading.Thread(target=ask_again)
    asker.start()
    try:
        zoo.wait_run("off", "right")
        for _ in range(2):
            assert site.ask("-o", "off", "-H", "left", node=site.place("blue")).rc == OK, host.daemon.log[-6000:]
            zoo.switch("left", "on")
    finally:
        ended.set()
        asker.join()


def shoot(node, target):
    """One shot alone."""
    gun = Gun()
    agent = node.shoot(target, "off", gun, "multicast")
    gun.fire()
    return agent
