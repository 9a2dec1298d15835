# SPDX-License-Identifier: GPL-2.0-or-later
"""Two nodes send off for each other in the same millisecond: exactly one stays up, each time."""

import collections
import contextlib
import os
import statistics
import uuid

import pytest

from lab import net, programs
from lab.rig import OK, SIDE, Gun, without_what_came_first

#: Rounds for each way of asking. 200 is the long run.
ROUNDS = int(os.environ.get("ROUNDS", "3"))

#: How the two ask, and what the host knows of where that comes from.
WAYS = {
    "multicast, sources known": ("multicast", "card"),
    "multicast, sources unknown": ("multicast", "bare"),
    "multicast, one MAC address": ("multicast", "relayed"),
    "multicast, two cards of a router": ("multicast", "routed"),
    "tcp": ("tcp", "bare"),
    "tcp, a group's key": ("tcp", "bare"),
    "multicast, a group's key": ("multicast", "bare"),
    "serial": ("serial", "line"),
}

#: Why a request may not have run, where its source is known and where it is not.
KNOWN = {"the source of the request was fenced after the request arrived", "the client hung up before the turn of the request came"}
UNPROVED = {f"the client {what}: nothing came in time" for what in (
    "did not prove that it holds the key", "sent no challenge")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("action", ["off"])
def test_of_two_that_shoot_each_other_one_stays_up(site, start_host, machines, agents, note, tmp_path, way, action):
    if way.endswith("a group's key") and SIDE != "ours":
        pytest.skip("the C daemon has one key")
    transport, kind = WAYS[way]
    machines(kind)
    host = start_host(listener=transport, **(own_key(site, kind, tmp_path) if way.endswith("a group's key") else {}))
    ends, reasons, gaps, seconds = collections.Counter(), collections.Counter(), [], []
    wrong, late = [], 0
    for number in range(ROUNDS):
        pair = machines(kind)
        if kind == "card" and SIDE == "ours":
            for machine in pair:
                host.wait_recognised(machine, agents)
        before = len(host.records()) if SIDE == "ours" else 0
        gun = Gun()
        order = [(0, 1), (1, 0)][number % 2]
        shots = {i: pair[i].shoot(agents, pair[1 - i], "-o", action, gun=gun, transport=transport) for i in order}
        gun.fire()
        results = {i: shot.finish(60) for i, shot in shots.items()}
        if SIDE == "ours":
            # Both requests are over, but for a proof that is still awaited: nothing of them can come later.
            records = host.wait_records(1, since=before)
            with contextlib.suppress(TimeoutError):
                records = net.wait_until(lambda: len(it := host.records()[before:]) >= 2 and it, 10)
            if len(records) == 1 and records[0]["decision"] == "run":
                # The other one was shot before its agent could ask.
                late += 1
                assert [it.qemu.ended() for it in pair].count(True) == 1, records
                continue
            assert len(records) == 2, records
            ran = [it for it in records if it["decision"] == "run"]
            reasons.update(without_what_came_first(it["reason"]) for it in records if it["decision"] != "run")
            gaps.append(abs(host.arrival(records[0]) - host.arrival(records[1])))
        else:
            records, ran = [], []
            # It asks the dead for 5 s (call-back) or 10 s (challenge), then goes on.
            pair[0].qemu.ended(3)
        up = [i for i in (0, 1) if not pair[i].qemu.ended()]
        ends[len(up)] += 1
        if len(up) != 1 or results[up[0]].rc != OK or (SIDE == "ours" and len(ran) != 1):
            wrong.append((number, up, results, records))
            continue
        seconds.append(results[up[0]].seconds)
        if SIDE == "ours":
            assert ran[0]["target"] == pair[1 - up[0]].name and ran[0]["delivered"], records
    assert late * 2 <= ROUNDS, f"{late} of {ROUNDS} never asked"
    text = ", ".join(f"{count} with {n} up" for n, count in sorted(ends.items()))
    note(f"{ROUNDS} rounds: {text}; gap between arrivals {_ms(gaps)}; not run: {dict(reasons)}")
    assert not wrong, (wrong[:3], host.daemon.log[-6000:])
    if kind in ("card", "line") and SIDE == "ours":
        assert set(reasons) <= KNOWN, reasons
    if kind in ("bare", "relayed", "routed") and SIDE == "ours":
        assert set(reasons) <= UNPROVED, reasons


def own_key(site, kind, directory):
    """Options of a host on which the agents' key is that of a group of the two, one by its name and one by its UUID, beside another group."""
    key = lambda name: programs.write_key(directory / f"{name}.key", f"the key of {name}, and enough bytes".encode())
    pair = {"uuid": [f"{kind}1", str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{kind}2")), "third"], "key_file": site.key}
    return {"options": {"key_file": key("listener")}, "groups": [pair, {"uuid": ["x", "y"], "key_file": key("other")}]}


def _ms(values):
    if not values:
        return "unknown"
    return f"median {statistics.median(values) * 1000:.1f} ms, most {max(values) * 1000:.1f} ms"
