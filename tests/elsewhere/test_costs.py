# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs to ask the others: nothing for a host that is alone, and for the usual fence beside hosts that are well."""

import statistics

from lab import programs
from lab.hypervisor import until

from .hosts import FAILED, OFF, OK, PATIENCE, UNAWARE

#: Milliseconds within which another host has to answer (`PEER_LIMIT`).
PEER_LIMIT = 2000

#: Milliseconds for which a fence of what runs here waits for others after that has ended (`SECOND_INSTANCE_WAIT`).
SECOND_INSTANCE_WAIT = 250

TIMES = 12

#: So often a measurement is made that a busy machine has spoilt. What really costs more costs it every time.
ATTEMPTS = 4


class Course:
    """One way of asking, timed again and again: by the daemon's records, since an agent's start takes longer than all of it."""

    def __init__(self, hosts, audit, *extra):
        self._hosts, self._audit, self._extra, self.ms = hosts, audit, extra, []

    def ask(self, rc):
        """One `off`; its record."""
        before = len(programs.audit_records(self._audit))
        answer = self._hosts.ask("off", "x", *self._extra)
        assert answer.rc == rc, (answer.result, self._hosts.logs())
        until(lambda: len(programs.audit_records(self._audit)) > before, PATIENCE, "the record")
        record = programs.audit_records(self._audit)[before]
        self.ms.append(record["done_ms"])
        return record

    def median(self):
        """Milliseconds, of all so far."""
        return statistics.median(self.ms)


def shifted(hosts, name, group, virtd):
    """A second daemon at h1, in a multicast group of its own, and its records; `negative_delay` would hide what is to be seen."""
    audit = hosts.h1.directory / f"audit-{name}-{next(hosts.numbers)}"
    config = programs.write_config(
        hosts.h1.directory / f"{name}-{next(hosts.numbers)}.conf", peers=None,
        listener_options={"key_file": hosts.key, "family": "ipv4", "interface": "eth0", "address": group, "negative_delay": 0},
        backend_options={"uri": hosts.h1.hypervisor.uri}, daemon_options={"audit_log": audit, **virtd})
    daemon = programs.Daemon(hosts.h1.node, config, program=programs.program("ours", "fence_virtd"), debug=3)
    daemon.wait_serving()
    return daemon, audit


def test_off_of_what_is_off(hosts, note):
    """In turns, so that a machine that is busy is busy for all: a daemon that asks nobody by configuration, one that is alone
    and has to find that out, and one with two others."""
    hosts.h1.has("x", start=False)
    none, none_audit = shifted(hosts, "none", "225.0.1.1", {} if UNAWARE else {"peers": "none"})
    lone, lone_audit = shifted(hosts, "lone", "225.0.1.2", {})
    try:
        hosts.serve("h1", "h2", "h3", options={"negative_delay": 0})
        # An unknown domain is refused at once then: the others must not be the first to answer.
        hosts.h2.does_not_call_back()
        hosts.h3.does_not_call_back()
        for _ in range(ATTEMPTS):
            ways = {"none": Course(hosts, none_audit, "-a", "225.0.1.1"), "lone": Course(hosts, lone_audit, "-a", "225.0.1.2"),
                    "two": Course(hosts, hosts.h1.audit)}
            for _ in range(TIMES):
                for way in ways.values():
                    way.ask(OK)
            told = {name: way.median() for name, way in ways.items()}
            note(", ".join(f"{name}: {ms:.0f} ms" for name, ms in told.items()))
            if told["lone"] <= 1.2 * told["none"] and told["two"] <= told["none"] + 50:
                break
        else:
            raise AssertionError(f"{told}\n{hosts.logs()}")
    finally:
        none.stop()
        lone.stop()


def test_off_of_what_runs_here(hosts, note):
    """The usual fence: alone, with two others that are well and say so while libvirt ends the machine, and with one of them silent."""
    spent = {}
    for way in ("alone", "well", "silent"):
        hosts.recover()
        if way == "alone":
            hosts.serve("h1", virtd={} if UNAWARE else {"peers": "none"})
        else:
            hosts.serve("h1", "h2", "h3")
        if way == "silent":
            hosts.h3.stop_serving()
        for _ in range(5):
            hosts.h1.has("x")
            before = len(hosts.h1.records())
            answer = hosts.ask("off", "x")
            assert (answer.rc, hosts.where("x")) == (OK, []), (answer.result, hosts.logs())
            until(lambda before=before: len(hosts.h1.records()) > before, PATIENCE, "the record")
            spent.setdefault(way, []).append(hosts.h1.records()[before]["done_ms"])
    told = {way: statistics.median(it) for way, it in spent.items()}
    note(", ".join(f"{name}: {it:.0f} ms" for name, it in told.items()))
    assert told["well"] <= 1.5 * told["alone"], told
    assert told["silent"] <= 1.5 * told["alone"] + SECOND_INSTANCE_WAIT, told


def test_a_silent_host_costs_its_time_and_no_more(hosts, note):
    """The answer is a failure that names it."""
    hosts.h1.has("x", start=False)
    hosts.serve("h1", "h2", "h3", options={"negative_delay": 0})
    hosts.h2.does_not_call_back()
    hosts.h3.does_not_call_back()
    ways = {name: Course(hosts, hosts.h1.audit) for name in ("all", "silent")}
    for _ in range(5):
        ways["all"].ask(OK)
    hosts.h3.stop_serving()
    for _ in range(5):
        record = ways["silent"].ask(FAILED)
        assert f"h3 ({hosts.h3.node.ip})" in record["reason"], record
    told = {name: way.median() for name, way in ways.items()}
    first = ways["silent"].ms[0]
    note(", ".join(f"{name}: {ms:.0f} ms" for name, ms in told.items()) + f", the first of these {first:.0f} ms")
    assert f"h3 ({hosts.h3.node.ip})" in hosts.h1.daemon.log
    assert max(first, told["silent"]) - told["all"] <= 1.2 * PEER_LIMIT, told
    assert hosts.ask("status", "x").rc != OFF
