# SPDX-License-Identifier: GPL-2.0-or-later
"""A request takes its turn when something can begin: one that waits for a proof, for a host or for what a host has holds up nobody."""

import contextlib
import signal

import pytest

from lab.cpg_member import Member
from lab.hypervisor import until

from .hosts import SECOND, refused
from .test_lost import frozen

#: Seconds for anything to happen.
PATIENCE = 60
#: Seconds for which a request waits: longer than anything that is to go on beside it.
LONG = 28


class Evidence:
    """`host_down_command` of the hosts: it says no until `is_down` is called, and takes a second for each answer."""

    def __init__(self, directory):
        self.proof, self.said, self.command = (directory / it for it in ("turn-proof", "turn-said", "turn-command"))
        self.proof.unlink(missing_ok=True)
        self.said.unlink(missing_ok=True)
        self.command.write_text(f'#!/bin/sh\n[ -e {self.proof} ]\nr=$?\nsleep 1\necho $r >>{self.said}\nexit $r\n')
        self.command.chmod(0o755)
        self.options = {"host_down": "command", "host_down_command": self.command}

    def answers(self):
        """What it answered so far: "0" for down, "1" for no proof."""
        return self.said.read_text().split() if self.said.exists() else []


@pytest.fixture
def evidence(hosts):
    return Evidence(hosts.directory)


def serve(hosts, evidence, *, h3=("c1",), **domains):
    hosts.domains(h1=["a1", "a2"], h2=["b1", "b2"], h3=h3, **domains)
    for host in hosts.all:
        host.serve("ours", wait=False, **evidence.options)
    for host in hosts.all:
        host.wait_joined()
    for asked in ("h1", "h2"):
        for domain in ("a1", "b1", *h3):
            hosts.wait_status(asked, domain, 0)


@contextlib.contextmanager
def a_proof(hosts, evidence):
    """Nothing proves that h3 is down, which had the domain."""
    serve(hosts, evidence)
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    yield "c1", evidence.answers


@contextlib.contextmanager
def a_host(hosts, evidence):
    """fence_virtd of h3, which has the domain, stands still."""
    serve(hosts, evidence)
    with frozen(hosts.h3):
        yield "c1", lambda: "c1" in hosts.h1.daemon.log.rpartition("status")[2]


@contextlib.contextmanager
def a_list(hosts, evidence):
    """A daemon of h3 is there, and never says what it has: "late" is off at h1, and may be on there."""
    hosts.h1.has("late", start=False)
    serve(hosts, evidence)
    hosts.wait_status("h1", "late", 2)
    hosts.h3.stop_serving(signal.SIGKILL)
    with Member(hosts.h3, SECOND):
        until(lambda: "continuing without it" in hosts.h1.daemon.log + hosts.h2.daemon.log, PATIENCE, hosts.logs())
        yield "late", lambda: True


@pytest.mark.parametrize("awaited", [a_proof, a_host, a_list])
def test_what_only_waits_holds_nobody_up(hosts, evidence, awaited):
    with awaited(hosts, evidence) as (domain, is_awaited):
        waiting = hosts.agent("h1", "off", domain, timeout=LONG + 2)
        until(is_awaited, PATIENCE, hosts.logs())
        # Of any of these four the first could be about the source.
        for asked, other in (("h1", "a1"), ("h1", "b1"), ("h2", "a2"), ("h2", "b2")):
            result = hosts.ask(asked, "off", other, guest=1)
            assert result.rc == 0, f"{other} asked of {asked}: {result}\n{hosts.logs()}"
        assert waiting.process.poll() is None, f"it waited no longer: {hosts.h1.records()[-1]}"
        assert refused(result := waiting.finish(PATIENCE)), f"{result}\n{hosts.logs()}"
    assert [host.state(it) for host, it in ((hosts.h1, "a1"), (hosts.h1, "a2"), (hosts.h2, "b1"), (hosts.h2, "b2"))] == ["shut off"] * 4


def test_a_client_that_is_killed_waits_for_nothing(hosts, evidence):
    """Its request is over at once, while another one for the same domain waits on."""
    with a_proof(hosts, evidence) as (domain, is_awaited):
        killed = hosts.agent("h1", "off", domain, timeout=LONG + 2)
        other = hosts.agent("h1", "off", domain, guest=1, timeout=LONG + 2)
        until(is_awaited, PATIENCE, hosts.logs())
        killed.process.send_signal(signal.SIGKILL)
        until(lambda: any("hung up" in (it.get("reason") or "") for it in hosts.h1.records()), PATIENCE, hosts.logs())
        assert other.process.poll() is None, hosts.h1.records()
        evidence.proof.touch()
        assert other.finish(PATIENCE).rc == 0, hosts.logs()


def test_the_domains_of_a_dead_host_share_its_proof(hosts, evidence):
    """All go on as soon as the proof is there. Else each would ask for one of its own, after the one before."""
    domains = [f"c{number}" for number in range(10)]
    serve(hosts, evidence, h3=domains)
    hosts.h3.kill()
    hosts.h1.wait_members(2)
    agents = [hosts.agent("h1", "off", it, guest=number % 2, timeout=LONG + 2) for number, it in enumerate(domains)]
    until(lambda: hosts.h1.daemon.log.count("resolved") and all(it in hosts.h1.daemon.log for it in domains), PATIENCE, hosts.logs())
    until(lambda: len(evidence.answers()) > 2, PATIENCE, hosts.logs())
    evidence.proof.touch()
    results = [it.finish(PATIENCE) for it in agents]
    assert {it.rc for it in results} == {0}, f"{results}\n{hosts.logs()}"
    # One, and perhaps another for who came while the first was asked for.
    assert evidence.answers().count("0") <= 2, evidence.answers()
