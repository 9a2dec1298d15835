# SPDX-License-Identifier: GPL-2.0-or-later
"""A request takes its turn when something can begin: one that waits for a proof, for a host or for what a host has holds up nobody."""

import contextlib
import os
import signal
import time

import pytest

from lab import rig
from lab.cpg_member import Member
from lab.hypervisor import until

from .hosts import SECOND, refused
from .sites import serve as serve_sites
from .test_lost import frozen

#: WIDE=1 is the long run.
WIDE = bool(os.environ.get("WIDE"))
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
        yield "c1", lambda: True


@contextlib.contextmanager
def a_list(hosts, evidence):
    """A daemon of h3 is there, and never says what it has: "late" is off at h1, and may be on there."""
    hosts.h1.has("late", start=False)
    serve(hosts, evidence)
    hosts.wait_status("h1", "late", 2)
    hosts.h3.stop_serving(signal.SIGKILL)
    with Member(hosts.h3, SECOND):
        until(lambda: "continuing without it" in hosts.h1.daemon.log + hosts.h2.daemon.log, PATIENCE, hosts.logs())
        # Until it knows that this daemon was told of no order of h3's.
        assert hosts.ask("h1", "reboot", "a1", guest=1).rc == 0, hosts.logs()
        yield "late", lambda: True


@pytest.mark.parametrize("awaited", [a_proof, a_host, a_list] if WIDE else [a_proof])
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


@pytest.mark.parametrize("awaited", [a_proof, a_list])
def test_a_client_that_is_killed_waits_for_nothing(hosts, evidence, awaited):
    """Its request is over at once, while another one for the same domain waits on."""
    with awaited(hosts, evidence) as (domain, is_awaited):
        before = hosts.h1.daemon.log.count("resolved")
        killed = hosts.agent("h1", "off", domain, timeout=LONG + 2)
        other = hosts.agent("h1", "off", domain, guest=1, timeout=LONG + 2)
        until(lambda: hosts.h1.daemon.log.count("resolved") > before, PATIENCE, hosts.logs())
        until(is_awaited, PATIENCE, hosts.logs())
        killed.process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        until(lambda: any(it["action"] == "off" and it["target"] == domain for it in hosts.h1.records()), PATIENCE, hosts.logs())
        assert other.process.poll() is None and time.monotonic() - began < LONG / 2, hosts.h1.records()
        other.process.send_signal(signal.SIGKILL)


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


#: Seconds for which a client waits; an order of a request comes two seconds before that at the latest.
CLIENT = 30
#: Seconds for which libvirt may carry an order out, and one more look at the clocks.
EFFECT = 15 + 5


def test_a_daemon_that_stands_still_in_the_middle_of_an_off(hosts, sites):
    """fence_virtd of h2 is stopped while its libvirt ends a machine. Its claim ends by itself: then the others go on, also from
    sources that nobody knows. When it goes on it does nothing of that request."""
    serve_sites(hosts, sites)
    hosts.domains(h3=["c1"])
    domain = sites[1].hypervisor.domain("held")
    for asked in ("h1", "h3"):
        hosts.wait_status(asked, "held", 0)
        hosts.wait_status(asked, "c1", 0)
    try:
        with rig.slow_to_die(domain) as wait_killed:
            shot = hosts.agent("h2", "off", "held")
            wait_killed()
            with frozen(hosts.h2):
                stopped = time.monotonic()
                # It may still be carried out.
                assert hosts.ask("h1", "off", "c1", guest=1, timeout=5).rc != 0, hosts.logs()
                assert hosts.h3.state("c1") == "running"
                while (result := hosts.ask("h1", "off", "c1", guest=1, timeout=CLIENT + 2)).rc:
                    assert time.monotonic() - stopped < CLIENT + EFFECT + PATIENCE / 4, f"{result}\n{hosts.logs()}"
                assert hosts.h3.state("c1") == "shut off"
                hosts.h3.hypervisor.virsh("start", "c1")
                hosts.wait_status("h1", "c1", 0)
            # The host is one of them again.
            hosts.wait_status("h2", "c1", 0)
            assert hosts.ask("h2", "off", "c1").rc == 0, hosts.logs()
        shot.finish(PATIENCE)
    finally:
        domain.remove()
