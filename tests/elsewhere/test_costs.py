# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs to ask the others: nothing for a host that is alone, and for the usual fence; a moment for one that is not."""

import statistics

from lab import programs

from .hosts import FAILED, OFF, OK, UNAWARE

#: Seconds within which another host has to answer (`PEER_LIMIT`).
PEER_LIMIT = 2.0

TIMES = 15


class Course:
    """One way of asking, timed again and again."""

    def __init__(self, hosts, name, *extra):
        self._hosts, self._name, self._extra, self.seconds = hosts, name, extra, []

    def ask(self, rc):
        """One `off`."""
        answer = self._hosts.ask("off", self._name, *self._extra)
        assert answer.rc == rc, (answer.result, self._hosts.logs())
        self.seconds.append(answer.result.seconds)

    def median(self):
        """Of all so far."""
        return statistics.median(self.seconds)

    def best(self):
        """The shortest so far: what it costs where nothing else goes on."""
        return min(self.seconds)


def shifted(hosts, name, group, virtd):
    """A second daemon at h1, in a multicast group of its own; `negative_delay` would hide what is to be seen."""
    config = programs.write_config(
        hosts.h1.directory / f"{name}-{next(hosts.numbers)}.conf", peers=None,
        listener_options={"key_file": hosts.key, "family": "ipv4", "interface": "eth0", "address": group, "negative_delay": 0},
        backend_options={"uri": hosts.h1.hypervisor.uri}, daemon_options=virtd)
    daemon = programs.Daemon(hosts.h1.node, config, program=programs.program("ours", "fence_virtd"), debug=3)
    daemon.wait_serving()
    return daemon


def test_off_of_what_is_off(hosts, note):
    """In turns, so that a machine that is busy is busy for all: a daemon that asks nobody by configuration, one that is alone
    and has to find that out, and one with two others."""
    hosts.h1.has("x", start=False)
    none = shifted(hosts, "none", "225.0.1.1", {} if UNAWARE else {"peers": "none"})
    lone = shifted(hosts, "lone", "225.0.1.2", {})
    try:
        hosts.serve("h1", "h2", "h3", options={"negative_delay": 0})
        # An unknown domain is refused at once then: the others must not be the first to answer.
        hosts.h2.does_not_call_back()
        hosts.h3.does_not_call_back()
        ways = {"none": Course(hosts, "x", "-a", "225.0.1.1"), "lone": Course(hosts, "x", "-a", "225.0.1.2"),
                "two": Course(hosts, "x")}
        for _ in range(TIMES):
            for way in ways.values():
                way.ask(OK)
    finally:
        none.stop()
        lone.stop()
    told = {name: way.best() for name, way in ways.items()}
    note(", ".join(f"{name}: {1000 * way.best():.0f} ms, median {1000 * way.median():.0f}" for name, way in ways.items()))
    assert told["lone"] <= 1.2 * told["none"], told
    # Two rounds of questions on a network without losses take less than the agent does.
    assert told["two"] <= 2 * told["none"], told


def test_off_of_what_runs_here_asks_nobody(hosts, note):
    """The usual fence, with and without others, one of which is silent."""
    seconds = {}
    for way in ("alone", "others", "alone", "others"):
        hosts.recover()
        if way == "alone":
            hosts.serve("h1", virtd={} if UNAWARE else {"peers": "none"})
        else:
            hosts.serve("h1", "h2", "h3")
            hosts.h3.stop_serving()
        for _ in range(5):
            hosts.h1.has("x")
            hosts.h1.has("x")
            answer = hosts.ask("off", "x")
            assert (answer.rc, hosts.where("x")) == (OK, []), (answer.result, hosts.logs())
            seconds.setdefault(way, []).append(answer.result.seconds)
    told = {way: statistics.median(it) for way, it in seconds.items()}
    note(", ".join(f"{name}: {1000 * it:.0f} ms" for name, it in told.items()))
    assert told["others"] <= 1.5 * told["alone"], told


def test_a_silent_host_costs_its_time_and_no_more(hosts, note):
    """The answer is a failure that names it."""
    hosts.h1.has("x", start=False)
    hosts.serve("h1", "h2", "h3", options={"negative_delay": 0})
    hosts.h2.does_not_call_back()
    hosts.h3.does_not_call_back()
    ways = {name: Course(hosts, "x") for name in ("all", "silent")}
    for _ in range(5):
        ways["all"].ask(OK)
    hosts.h3.stop_serving()
    for _ in range(5):
        ways["silent"].ask(FAILED)
        last = hosts.h1.records()[-1]
        assert hosts.h3.node.ip in str(last), last
    told = {name: way.median() for name, way in ways.items()}
    note(", ".join(f"{name}: {1000 * it:.0f} ms" for name, it in told.items()))
    assert hosts.h3.node.ip in hosts.h1.daemon.log
    assert told["silent"] - told["all"] <= 1.2 * PEER_LIMIT, told
    assert hosts.ask("status", "x").rc != OFF
